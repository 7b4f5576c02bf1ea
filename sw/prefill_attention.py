"""Attention in the vector thread of a model's prefill: heads of q, k and v; softmax; output of the heads."""

from typing import Any

from hw.isa import R

from . import ops
from .layout import Panel
from .model_image import Linear
from .ops import BROADCAST, E8M0
from .prefill_loops import GROUPS, LAYER, RING, TMP, VectorLoops, Walk
from .prefill_matmul import key_range

POS, N, VALUE, ATT, ATTS, SINK = (R(i) for i in range(1, 7))
"""Position of the group's first token, keys in sight, offsets of the values' scales, of the output, its
scales and the sinks of the batch."""


class VectorAttention(VectorLoops):
    """Emits queries, keys and values, and everything between their matmuls and the output projection."""

    def keys_values(self) -> None:
        with self.t.label("k"):
            self._heads(self.image.wk, "k")
        with self.t.label("v"):
            self._heads(self.image.wv, "v")

    def _heads(self, lin: Linear, kind: str) -> None:
        """Bias, RoPE and quantisation of q, k or v heads."""
        t, im, p, sem, s, w = self.t, self.image, self.plan, self.sem, self.image.block, self.w
        c = im.config.columns
        bias = im.const_a.offsets.get(f"b{kind}")
        count = lin.panels[0].n // s.head_dim
        first_pos, first_bytes = R(5), R(9)
        if kind == "q":
            loopable = s.head_dim >= 32 or count % (s.group * s.per_word) == 0
            start: list[int | R] = [0, 0]
            step = c * 32 * p.kbo, c * p.kbo
            panel = count * s.slices * c * 32, count * s.slices * c
        else:
            loopable = s.head_dim >= 32 or count % s.per_word == 0
            t.arg(first_pos, 0)
            t.shl(first_bytes, first_pos, 5)
            start = [first_bytes, first_pos]
            step = c * 32, c
            words = count * s.slices if s.head_dim >= 32 else count // s.per_word
            panel = words * p.cap * 32, count * s.slices * p.cap
        walks = [Walk(R(1), start[0], step[0], panel[0]), Walk(R(2), start[1], step[1], panel[1])]
        if kind != "v" and s.rope != "none":
            walks.append(Walk(R(3), 0, s.head_dim * w))
        if bias is not None:
            walks.append(Walk(R(4), 0, 0, 4 * count * s.head_dim))

        def body(panel: Panel, first: int, last_panel: bool) -> None:
            heads, before = panel.n // s.head_dim, first // s.head_dim
            src: R = RING + p.out
            free, begin = sem["out_free"], 1  # 1: the first instruction does not read what the last one wrote
            if bias is not None:
                scratch = p.tmp + panel.n * w
                t.vector(
                    n0=panel.n,
                    a=src,
                    d=R(4) + (p.const_a + bias + 4 * first),
                    d_type=BROADCAST,
                    x2="d",
                    out=scratch,
                    overlap=1,
                    sig_a=free,
                )
                src, free, begin = R(0) + scratch, 0, 0
            done = {"sig_b": sem["act"] if kind == "q" else sem[kind]} if last_panel else {}
            plain = kind == "v" or s.rope == "none"
            all_heads = {} if plain else ops.rope(t, s, im.config, src, p.tmp, R(3) + p.rope, heads, begin)
            # head_dim < 32: each head has its own place in a shared word, so heads are written one by one.
            each = [(0, heads)] if s.head_dim >= 32 else [(h, 1) for h in range(heads)]
            for h, number in each:
                at = h * s.head_dim * w
                op: dict[str, Any] = dict(a=src + at)
                if plain:
                    op |= dict(n0=number * s.head_dim)
                else:
                    op = all_heads | op | dict(d=p.tmp + at, n2=number)
                this = before + h
                if kind == "q":
                    op |= dict(
                        x3="s2",
                        c2=float(s.qscale),
                        out=R(1) + (p.q + this * s.slices * c * 32 + im.byte_of(this // s.group)),
                        qs=R(2) + (p.qs + this * s.slices * c),
                        zfill=int(s.head_dim < 32),
                    )
                else:
                    data, scales = (p.k, p.ks) if kind == "k" else (p.v, p.vs)
                    op |= dict(
                        out=R(1) + (data + im.word_of(this, 0) * p.cap * 32 + im.byte_of(this)),
                        o1=p.cap * 32,
                        qs=R(2) + (scales + this * s.slices * p.cap),
                        o2=p.cap,
                        # The last word may have room for more heads than there are: zeros, not leftovers.
                        zfill=int(im.byte_of(this) == 0 and this + s.per_word > s.kv_heads),
                    )
                last = h + number == heads
                t.vector(
                    **op,
                    out_mode="int8",
                    block=s.slice_dim,
                    overlap=int(h > 0 or plain and begin),
                    **(done if last else {}),
                    sig_a=free if last else 0,
                )

        self._panels(lin, walks, body, loopable)

    # ---- attention

    def _attention(self) -> None:
        t, im, p = self.t, self.image, self.plan
        s, c = im.block, im.config.columns
        t.arg(POS, 0)
        t.li(ATT, 0)
        t.li(ATTS, 0)
        with t.loop(GROUPS):
            key_range(t, im, p, LAYER, POS, N, VALUE, TMP)
            if p.batches == 1:
                self._batch()
                done = 0
            else:
                t.li(SINK, 0)
                with t.loop(p.batches):
                    self._batch()
                    t.add(VALUE, VALUE, p.kv_batch * s.slices * p.cap)
                    t.add(ATT, ATT, p.batch_heads * c * 32)
                    t.add(ATTS, ATTS, p.batch_heads * c)
                    t.add(SINK, SINK, 4 * p.batch_heads)
                done = s.heads * c
            t.add(POS, POS, c)
            t.add(ATT, ATT, p.group_bytes - done * 32)
            t.add(ATTS, ATTS, p.group_scales - done)

    def _batch(self) -> None:
        t, im, p, sem, s = self.t, self.image, self.plan, self.sem, self.image.block
        c = im.config.columns
        sinks: Any = im.const_a.offsets.get("sinks")
        if sinks is not None:
            sinks = (SINK if p.batches > 1 else R(0)) + (p.const_a + sinks)
        for i in range(p.batch_heads):
            kv = i // s.group
            t.wait(sem["scores"])
            top = p.head(i, "maximum")
            if sinks is not None:
                # A copy, because the next batch may write its maximum before the sum has the sink.
                t.vector(
                    n0=1,
                    a=sinks + 4 * i,
                    a_type=BROADCAST,
                    lo=1,
                    s4=top,
                    out=p.head(i, "sink_maximum"),
                    overlap=1,
                )
                top = p.head(i, "sink_maximum")
            for b in range(s.slices):
                reduction: dict[str, Any] = dict(red_op="sum_t3", red=p.head(i, "sum")) if b == 0 else {}
                t.vector(
                    n0=N,
                    a=p.head(i, "scores"),
                    x2="-s1",
                    s1=top,
                    func="exp2",
                    b=VALUE + (p.vs + (kv * s.slices + b) * p.cap),
                    b_type=E8M0,
                    x3="b",
                    **reduction,
                    out_mode="int8",
                    out=p.head(i, "p") + b * p.p_bytes,
                    qs=p.head(i, "ps") + b * p.p_scales,
                    overlap=int(sinks is None or b > 0),
                    sig_b=sem["p"] if b == s.slices - 1 else 0,
                )
        total = p.head(0, "sum")
        step = p.record
        if sinks is not None:
            t.vector(
                n0=p.batch_heads,
                a=sinks,
                a_type=BROADCAST,
                d=p.head(0, "sink_maximum"),
                d0=step,
                x2="-d",
                func="exp2",
                b=total,
                b0=step,
                x4="b",
                out=total,
                o0=step,
            )
        t.vector(n0=p.batch_heads, a=total, a0=step, func="recip", out=p.head(0, "reciprocal"), o0=step)
        for i in range(p.batch_heads):
            t.wait(sem["o"])
            last = i == p.batch_heads - 1
            t.vector(
                n0=s.head_dim,
                a=p.head(i, "o"),
                x1="s0",
                s0=p.head(i, "reciprocal"),
                out_mode="int8",
                block=s.slice_dim,
                zfill=int(s.head_dim < 32),
                out=ATT + (p.xn + i * c * 32),
                o1=s.heads * c * 32,
                qs=ATTS + (p.xns + i * c),
                o2=s.heads * c,
                overlap=int(i > 0),
                **(dict(sig_b=sem["act"], sig_c=sem["a_free"]) if last else {}),
            )
