"""Programs of attention over a KV cache in DRAM, for `make bench`; see sw/kernels.py."""

from typing import Any

import numpy as np

from golden import formats
from golden.spec import MxTensor
from hw.config import TileConfig
from hw.isa import R

from .assembler import Program, Sram
from .kernels import Kernel
from .layout import DramImage


def attention_decode(
    config: TileConfig, tokens: int, heads: int = 64, kv_heads: int = 8, head_dim: int = 64, seed: int = 0
) -> Kernel:
    """One token's attention over a KV cache in DRAM.

    Quantised queries in, quantised (slice-major) attention out.
    """
    rng = np.random.default_rng(seed)
    c, w = config.columns, config.lane_bytes
    group, nb = heads // kv_heads, head_dim // 32
    if group > c or tokens % 32:
        raise ValueError(
            f"{group} query heads per KV head, {tokens} tokens: "
            f"allowed is at most {c} heads, a multiple of 32 tokens"
        )
    d, sram = DramImage(16 << 20), Sram(config)
    qt = MxTensor.quantise(
        (rng.normal(0, 1, (heads, head_dim)) * 1.44 / head_dim**0.5).astype(np.float32), formats.INT8
    )
    q_at, qs_at = d.put("q", qt.ints), d.put("q scales", qt.scales)
    at, scale_at = {}, {}
    for x in "kv":
        kv = MxTensor.quantise(
            rng.normal(0, 1, (kv_heads * tokens, head_dim)).astype(np.float32), formats.INT8
        )
        at[x] = d.put(
            x, np.ascontiguousarray(kv.ints.reshape(kv_heads, tokens, nb, 32).transpose(0, 2, 1, 3))
        )
        scale_at[x] = d.put(
            f"{x} scales", np.ascontiguousarray(kv.scales.reshape(kv_heads, tokens, nb).transpose(0, 2, 1))
        )
    y_at, ys_at = d.alloc("y", heads * head_dim), d.alloc("y scales", heads * nb)
    alloc = sram.alloc
    sq, sqs = alloc("q", heads * head_dim, 128), alloc("q scales", heads * nb, 128)
    buf = {x: [alloc(f"{x}{i}", nb * tokens * 32, 128) for i in range(2)] for x in "kv"}
    scales = {x: [alloc(f"{x}{i} scales", nb * tokens, 128) for i in range(2)] for x in "kv"}
    sc = [alloc(f"scores {i}", tokens * w, 128) for i in range(2)]
    mx, ls, rl = ([alloc(f"{x} {i}", w, 128) for i in range(2)] for x in ("max", "sum", "reciprocal"))
    pb, pbs = tokens // 32 * c * 32, tokens // 32 * c
    p, ps = (
        [alloc(f"{x} {i}", nb * size, 128) for i in range(2)] for x, size in (("p", pb), ("p scales", pbs))
    )
    o = [alloc(f"o {i}", head_dim * w, 128) for i in range(2)]
    y, ys = alloc("y", heads * head_dim, 128), alloc("y scales", heads * nb + c, 128)
    piece = min(tokens, config.psum_depth)
    pieces = [(i, min(piece, tokens - i)) for i in range(0, tokens, piece)]

    pr = Program(config)
    s = {
        name: pr.semaphore(name)
        for name in (
            "q",
            "k",
            "v",
            "vs",
            "k_free",
            "v_free",
            "scores",
            "scores_free",
            "p",
            "p_free",
            "vs_free",
            "o",
            "o_free",
            "y",
        )
    }
    t, m, v = pr.load, pr.matmul, pr.vector
    t.signal(s["k_free"], 2)
    t.signal(s["v_free"], 2)
    t.signal(s["vs_free"], 2)
    t.load(src=q_at, dst=sq, len=heads * head_dim)
    t.load(src=qs_at, dst=sqs, len=heads * nb, sig_b=s["q"])
    for name in ("scores_free", "o_free"):
        m.signal(s[name], 2)
    m.wait(s["q"])
    v.signal(s["p_free"], 2)

    def load_keys(h: int) -> None:
        """Keys, and both scale rows."""
        base, b2 = h * nb * tokens, h % 2
        t.wait(s["k_free"])
        t.wait(s["vs_free"])
        for x, done in (("k", 0), ("v", s["vs"])):
            t.load(src=scale_at[x] + base, dst=scales[x][b2], len=nb * tokens, sig_b=done)
        load_pieces(h, "k")

    def load_pieces(h: int, x: str) -> None:
        base, b2 = h * nb * tokens, h % 2
        for i, n in pieces:
            t.load(
                src=at[x] + (base + i) * 32,
                dst=buf[x][b2] + i * 32,
                len=n * 32,
                n1=nb,
                src1=tokens * 32,
                dst1=tokens * 32,
                sig_b=s[x],
            )

    def scores(h: int) -> None:
        b2 = h % 2
        m.wait(s["scores_free"])
        for j, (i, n) in enumerate(pieces):
            m.wait(s["k"])
            last = j == len(pieces) - 1
            m.matmul(
                n=n,
                k=nb,
                rows=group,
                data=buf["k"][b2] + i * 32,
                data_pass=tokens * 32,
                scale=scales["k"][b2] + i,
                scale_pass=tokens,
                stat=sq + h * group * head_dim,
                stat_pass=32,
                stat_row=head_dim,
                stat_scale=sqs + h * group * nb,
                stat_scale_pass=1,
                stat_scale_row=nb,
                out=sc[b2] + i * w,
                max_out=mx[b2],
                max_first=int(j == 0),
                sig_a=s["k_free"] if last else 0,
                sig_b=s["scores"] if last else 0,
            )

    def values(h: int) -> None:
        b2 = h % 2
        m.wait(s["p"])
        m.wait(s["o_free"])
        for j, (i, n) in enumerate(pieces):
            m.wait(s["v"])
            last = j == len(pieces) - 1
            for b in range(nb):
                end = last and b == nb - 1
                m.matmul(
                    n=32,
                    k=n // 32,
                    rows=group,
                    transpose=1,
                    first=int(j == 0),
                    last=int(last),
                    psum=32 * b,
                    data=buf["v"][b2] + (b * tokens + i) * 32,
                    data_pass=1024,
                    stat=p[b2] + b * pb + i // 32 * c * 32,
                    stat_pass=c * 32,
                    stat_row=32,
                    stat_scale=ps[b2] + b * pbs + i // 32 * c,
                    stat_scale_pass=c,
                    **(dict(out=o[b2] + 32 * b * w) if last else {}),
                    **(dict(sig_a=s["v_free"], sig_b=s["o"], sig_c=s["p_free"]) if end else {}),
                )

    def softmax(h: int) -> None:
        b2 = h % 2
        v.wait(s["p_free"])
        v.wait(s["vs"])
        v.wait(s["scores"])
        for b in range(nb):
            sums: dict[str, Any] = dict(red_op="sum_t3", red=ls[b2]) if b == 0 else {}
            signals: dict[str, Any] = {}
            if b == nb - 1:
                signals = dict(sig_a=s["scores_free"], sig_b=s["p"], sig_c=s["vs_free"])
            v.vector(
                n0=tokens,
                a=sc[b2],
                x2="-s1",
                s1=mx[b2],
                func="exp2",
                b=scales["v"][b2] + b * tokens,
                b_type="e8m0",
                x3="b",
                **sums,
                out_mode="int8",
                out=p[b2] + b * pb,
                qs=ps[b2] + b * pbs,
                overlap=1,
                **signals,
            )

    def output(h: int) -> None:
        b2 = h % 2
        v.vector(n0=1, a=ls[b2], func="recip", out=rl[b2])
        v.wait(s["o"])
        v.vector(
            n0=head_dim,
            a=o[b2],
            x1="s0",
            s0=rl[b2],
            out_mode="int8",
            rows=group,
            out=y + h * group * 32,
            o0=32,
            o1=heads * 32,
            qs=ys + h * group,
            o2=heads,
            sig_a=s["o_free"],
            sig_b=s["y"],
        )

    # Scores of one head ahead of the values of the one before, in every thread.
    load_keys(0)
    scores(0)
    softmax(0)
    for h in range(kv_heads):
        if h + 1 < kv_heads:
            load_keys(h + 1)
            scores(h + 1)
            softmax(h + 1)
        t.wait(s["v_free"])
        load_pieces(h, "v")
        values(h)
        output(h)
    pr.store.wait(s["y"], kv_heads)
    pr.store.store(src=y, dst=y_at, len=heads * head_dim)
    pr.store.store(src=ys, dst=ys_at, len=heads * nb)
    macs = 2 * heads * tokens * head_dim
    row = heads * head_dim * 33 // 32
    return Kernel(
        f"attn-decode-{tokens}",
        config,
        d,
        {"run": pr},
        "run",
        macs,
        2 * kv_heads * tokens * head_dim * 33 // 32 + row,
        row,
    )


def attention_prefill(
    config: TileConfig, tokens: int, heads: int = 8, head_dim: int = 64, seed: int = 0
) -> Kernel:
    """Causal attention of a whole prompt, one KV head per query head.

    Quantised q, k, v in, quantised (slice-major) attention out. Everything arrives C tokens at a time, in the
    order in which rows need it: group g sees keys 0 .. C (g + 1) - 1.
    """
    rng = np.random.default_rng(seed)
    c, w = config.columns, config.lane_bytes
    nb = head_dim // 32
    if tokens % 32 or tokens > config.psum_depth:
        raise ValueError(
            f"{tokens} tokens: allowed is a multiple of 32, at most psum_depth = {config.psum_depth}"
        )
    groups, hb = tokens // c, heads * nb
    d, sram = DramImage(16 << 20), Sram(config)
    qt = MxTensor.quantise(
        (rng.normal(0, 1, (tokens * heads, head_dim)) * 1.44 / head_dim**0.5).astype(np.float32), formats.INT8
    )
    q_at = d.put("q", np.ascontiguousarray(qt.ints.reshape(groups, c, hb, 32).transpose(0, 2, 1, 3)))
    qs_at = d.put("q scales", np.ascontiguousarray(qt.scales.reshape(groups, c, hb).transpose(0, 2, 1)))
    at, scale_at = {}, {}
    for x in "kv":
        kv = MxTensor.quantise(rng.normal(0, 1, (tokens * heads, head_dim)).astype(np.float32), formats.INT8)
        at[x] = d.put(x, np.ascontiguousarray(kv.ints.reshape(tokens, hb, 32).transpose(1, 0, 2)))
        scale_at[x] = d.put(f"{x} scales", np.ascontiguousarray(kv.scales.reshape(tokens, hb).T))
    y_at, ys_at = d.alloc("y", tokens * heads * head_dim), d.alloc("y scales", tokens * hb)
    alloc = sram.alloc
    rings = 4
    qb, qsb = hb * c * 32, hb * c
    sq, sqs = alloc("q", rings * qb, 128), alloc("q scales", rings * qsb, 128)
    buf = {x: alloc(x, hb * tokens * 32, 128) for x in "kv"}
    scales = {x: alloc(f"{x} scales", hb * tokens, 128) for x in "kv"}
    sc = alloc("scores", heads * tokens * w, 128)
    mx, ls, rl = (alloc(x, heads * w, 128) for x in ("max", "sum", "reciprocal"))
    pb, pbs = tokens // 32 * c * 32, tokens // 32 * c
    p, ps = alloc("p", hb * pb, 128), alloc("p scales", hb * pbs, 128)
    o = alloc("o", heads * head_dim * w, 128)
    sy, sys_ = alloc("y", 2 * qb, 128), alloc("y scales", 2 * qsb, 128)

    pr = Program(config)
    s = {
        name: pr.semaphore(name) for name in ("in", "in_vector", "q_free", "scores", "p", "o", "y", "y_free")
    }
    row, g, qr, n, kb, hi, srow = R(1), R(2), R(3), R(4), R(5), R(6), R(7)
    t = pr.load
    t.signal(s["q_free"], rings)
    for r in (row, g, qr, n, srow):
        t.li(r, 0)
    with t.loop(groups):
        t.wait(s["q_free"])
        t.load(src=g + q_at, dst=qr + sq, len=qb)
        t.shr(hi, g, 5)
        t.shr(kb, qr, 5)
        t.load(src=hi + qs_at, dst=kb + sqs, len=qsb)
        for x in "kv":
            t.load(src=row + at[x], dst=row + buf[x], len=c * 32, n1=hb, src1=tokens * 32, dst1=tokens * 32)
            t.load(
                src=srow + scale_at[x],
                dst=srow + scales[x],
                len=c,
                n1=hb,
                src1=tokens,
                dst1=tokens,
                **(dict(sig_b=s["in"], sig_c=s["in_vector"]) if x == "v" else {}),
            )
        t.add(g, g, qb)
        t.add(qr, qr, qb)
        t.and_(qr, qr, rings * qb - 1)
        t.add(row, row, c * 32)
        t.add(srow, srow, c)
    t = pr.matmul
    for r in (qr, srow, n):
        t.li(r, 0)
    with t.loop(groups):
        t.add(hi, n, 1)
        t.add(n, n, c)
        t.add(kb, n, 31)
        t.shr(kb, kb, 5)
        t.wait(s["in"])
        for h in range(heads):
            t.matmul(
                n=n,
                k=nb,
                mask=1,
                step=1,
                hi=hi,
                lo=-(1 << 20),
                data=buf["k"] + h * nb * tokens * 32,
                data_pass=tokens * 32,
                scale=scales["k"] + h * nb * tokens,
                scale_pass=tokens,
                stat=qr + (sq + h * nb * c * 32),
                stat_pass=c * 32,
                stat_row=32,
                stat_scale=srow + (sqs + h * nb * c),
                stat_scale_pass=c,
                out=sc + h * tokens * w,
                max_out=mx + h * w,
                sig_a=s["q_free"] if h == heads - 1 else 0,
                sig_b=s["scores"],
            )
        for h in range(heads):
            t.wait(s["p"])
            for b in range(nb):
                t.matmul(
                    n=32,
                    k=kb,
                    transpose=1,
                    data=buf["v"] + (h * nb + b) * tokens * 32,
                    data_pass=1024,
                    stat=p + (h * nb + b) * pb,
                    stat_pass=c * 32,
                    stat_row=32,
                    stat_scale=ps + (h * nb + b) * pbs,
                    stat_scale_pass=c,
                    out=o + (h * head_dim + 32 * b) * w,
                    sig_b=s["o"] if b == nb - 1 else 0,
                )
        t.add(qr, qr, qb)
        t.and_(qr, qr, rings * qb - 1)
        t.add(srow, srow, qsb)
        t.and_(srow, srow, rings * qsb - 1)
    t = pr.vector
    t.signal(s["y_free"], 2)
    for r in (qr, srow, n):
        t.li(r, 0)
    with t.loop(groups):
        t.add(n, n, c)
        t.wait(s["in_vector"])
        for h in range(heads):
            t.wait(s["scores"])
            for b in range(nb):
                t.vector(
                    n0=n,
                    a=sc + h * tokens * w,
                    x2="-s1",
                    s1=mx + h * w,
                    func="exp2",
                    b=scales["v"] + (h * nb + b) * tokens,
                    b_type="e8m0",
                    x3="b",
                    **(dict(red_op="sum_t3", red=ls + h * w) if b == 0 else {}),
                    out_mode="int8",
                    out=p + (h * nb + b) * pb,
                    qs=ps + (h * nb + b) * pbs,
                    overlap=1,
                    sig_b=s["p"] if b == nb - 1 else 0,
                )
        t.vector(n0=heads, a=ls, func="recip", out=rl)
        t.wait(s["y_free"])
        for h in range(heads):
            t.wait(s["o"])
            t.vector(
                n0=head_dim,
                a=o + h * head_dim * w,
                x1="s0",
                s0=rl + h * w,
                out_mode="int8",
                out=qr + (sy + h * c * 32),
                o1=heads * c * 32,
                qs=srow + (sys_ + h * c),
                o2=heads * c,
                overlap=int(h > 0),
                sig_b=s["y"] if h == heads - 1 else 0,
            )
        t.add(qr, qr, qb)
        t.and_(qr, qr, 2 * qb - 1)
        t.add(srow, srow, qsb)
        t.and_(srow, srow, 2 * qsb - 1)
    t = pr.store
    for r in (g, qr, row, srow):
        t.li(r, 0)
    with t.loop(groups):
        t.wait(s["y"])
        t.store(src=qr + sy, dst=g + y_at, len=qb)
        t.store(src=srow + sys_, dst=row + ys_at, len=qsb, sig_b=s["y_free"])
        t.add(g, g, qb)
        t.add(row, row, qsb)
        t.add(qr, qr, qb)
        t.and_(qr, qr, 2 * qb - 1)
        t.add(srow, srow, qsb)
        t.and_(srow, srow, 2 * qsb - 1)
    macs = sum(heads * c * 32 * (nb * c * (i + 1) + head_dim * -(-c * (i + 1) // 32)) for i in range(groups))
    rows = tokens * heads * head_dim * 33 // 32
    return Kernel(f"attn-prefill-{tokens}", config, d, {"run": pr}, "run", macs, 3 * rows, rows)
