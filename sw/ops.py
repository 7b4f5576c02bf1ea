"""Sequences of vector instructions that prefill and decode share: norms, RoPE, activations, routing.

All operands are SRAM addresses (int, or register plus immediate). docs/numerics.md, "Blocks", has the order
of the operations.
"""

from typing import Any, TypeAlias

import numpy as np

from golden.spec import LOG2E, BlockSpec
from hw.config import TileConfig
from hw.isa import R

from .assembler import Thread

Address: TypeAlias = int | R
LANE, BROADCAST, BF16, E8M0 = "f32", "broadcast_f32", "broadcast_bf16", "e8m0"
NEG_INF = float("-inf")
_LOG2E = np.float64(LOG2E)
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""a5 .. a1 of Abramowitz and Stegun 7.1.26."""


def f32(x: float) -> float:
    """x rounded to float32."""
    return float(np.float32(x))


def norm_scratch(spec: BlockSpec) -> int:
    """Lane words of scratch that `norm` needs."""
    return 4 + (spec.hidden if spec.norm == "layer" else 0)


def norm(
    v: Thread,
    spec: BlockSpec,
    config: TileConfig,
    x: Address,
    gamma: Address,
    beta: Address | None,
    scratch: int,
    kind: str | None = None,
    **out: Any,
) -> None:
    """RMSNorm or LayerNorm of `hidden` lane words at x; gamma, beta: broadcast float32 vectors.

    out: operands of the last pass (out, out_mode, qs, strides, rows, signals). kind overrides spec.norm.
    """
    n, w = spec.hidden, config.lane_bytes
    inverse, eps = f32(1 / n), f32(spec.eps)
    mean, var, root, centred = scratch, scratch + w, scratch + 2 * w, scratch + 4 * w
    if (kind or spec.norm) == "rms":
        v.vector(n0=n, a=x, x1="a", red_op="sum", red=var)
        v.vector(n0=1, a=var, x1="s0", c0=inverse, x2="s1", c1=eps, func="rsqrt", out=root)
        v.vector(n0=n, a=x, x1="s0", s0=root, b=gamma, b_type=BROADCAST, x3="b", **out)
        return
    v.vector(n0=n, a=x, red_op="sum", red=mean)
    v.vector(n0=1, a=mean, x1="s0", c0=inverse, out=mean)
    v.vector(n0=n, a=x, x2="-s1", s1=mean, x3="t3", red_op="sum", red=var)
    v.vector(n0=1, a=var, x1="s0", c0=inverse, x2="s1", c1=eps, func="rsqrt", out=root)
    v.vector(n0=n, a=x, x2="-s1", s1=mean, x3="s2", s2=root, out=centred)
    bias: dict[str, Any] = {} if beta is None else dict(d=beta, d_type=BROADCAST, x2="d")
    v.vector(n0=n, a=centred, x1="b", b=gamma, b_type=BROADCAST, **bias, **out)


def rope(
    v: Thread,
    spec: BlockSpec,
    config: TileConfig,
    src: Address,
    tmp: int,
    table: Address,
    heads: int,
    overlap: int = 0,
) -> dict[str, Any]:
    """First RoPE pass (partner times sine) of `heads` heads into tmp; returns the operands of the second
    (x * cos + tmp), to be completed with a destination. Without RoPE: the operands of a plain pass.

    table: head_dim/2 cosines, then head_dim/2 sines, lane words. overlap: of the first instruction (src and
    table are not what the instruction before writes).
    """
    if spec.rope == "none":
        return dict(a=src, n0=spec.head_dim * heads)
    half, w = spec.head_dim // 2, config.lane_bytes
    step = w if spec.rope == "half" else 2 * w
    second = half * w if spec.rope == "half" else w
    jump = (half + 1) * w if spec.rope == "half" else step
    sines = table + half * w
    rewind = -(half - 1) * w
    for mine, partner, neg, overlap in ((0, second, 1, overlap), (second, 0, 0, 1)):
        v.vector(
            n0=half,
            n1=heads,
            a=src + partner,
            a0=step,
            a1=jump,
            b=sines,
            b0=w,
            b1=rewind,
            x1="b",
            neg1=neg,
            out=tmp + mine,
            o0=step,
            o1=jump,
            overlap=overlap,
        )
    second_pass: dict[str, Any] = dict(a=src, b=table, d=tmp, x1="b", x2="d", b2=rewind)
    if spec.rope == "half":
        return second_pass | dict(n0=half, n1=2, n2=heads, b0=w, b1=rewind)
    return second_pass | dict(n0=2, n1=half, n2=heads, b0=0, b1=w)


def activation_scratch(spec: BlockSpec) -> int:
    """Lane words of scratch per feature that `activation` needs."""
    return {"swiglu": 2, "clamped": 2, "gelu_tanh": 2, "gelu_erf": 6}[spec.act]


def activation(
    v: Thread,
    spec: BlockSpec,
    config: TileConfig,
    sums: Address,
    n: int,
    tmp: int,
    bias: "tuple[Address | None, Address | None]",
    overlap: int = 0,
    **quant: Any,
) -> None:
    """The MLP's activation of n features, quantised.

    sums: n gate sums then n up sums (gated), or n up sums, lane words; they may be changed, and the last pass
    reads them for the last time. bias: broadcast vectors of gate and up. quant: out, qs, strides, rows,
    signals (sig_a: sums are free). overlap: of the first instruction (the one before does not write sums).
    """
    w = config.lane_bytes
    begin = {"overlap": overlap}
    gate, up = sums, (sums + n * w if spec.gated else sums)
    t = [tmp + i * n * w for i in range(activation_scratch(spec))]
    act = spec.act
    if act == "clamped":
        g: dict[str, Any] = {} if bias[0] is None else dict(d=bias[0], d_type=BROADCAST, x2="d")
        u: dict[str, Any] = {} if bias[1] is None else dict(d=bias[1], d_type=BROADCAST, x2="d")
        v.vector(n0=n, a=gate, **g, hi=1, c3=7.0, out=t[0], **begin)
        c0 = f32(-1.702 * _LOG2E)
        v.vector(n0=n, a=t[0], x1="s0", c0=c0, func="exp2", x4="s3", c3=1.0, out=t[1])
        v.vector(n0=n, a=t[1], func="recip", b=t[0], x3="b", out=t[0])
        v.vector(
            n0=n, a=up, **u, lo=1, hi=1, c2=-7.0, c3=7.0, b=t[0], x3="b", x4="b", out_mode="int8", **quant
        )
        return
    for x, b in zip((gate, up) if spec.gated else (up, up), bias):
        if b is not None:
            v.vector(n0=n, a=x, d=b, d_type=BROADCAST, x2="d", out=x, **begin)
            begin = {}
    if act == "swiglu":
        v.vector(n0=n, a=gate, x1="s0", c0=float(-LOG2E), func="exp2", x4="s3", c3=1.0, out=t[0], **begin)
        v.vector(n0=n, a=t[0], func="recip", b=gate, x3="b", out=t[1])
        v.vector(n0=n, a=t[1], b=up, x1="b", out_mode="int8", **quant)
    elif act == "gelu_tanh":
        c = np.float32(-2 * np.sqrt(2 / np.pi) * _LOG2E)
        ca = float(c * np.float32(0.044715))
        v.vector(n0=n, a=up, x1="a", x3="s2", c2=ca, x4="s3", c3=float(c), out=t[0], **begin)
        v.vector(n0=n, a=up, b=t[0], x1="b", func="exp2", x4="s3", c3=1.0, out=t[1])
        v.vector(n0=n, a=t[1], func="recip", b=up, x3="b", out_mode="int8", **quant)
    else:
        r, a, z, q, e, poly = t
        c5, c4, c3, c2, c1 = map(f32, ERF)
        v.vector(n0=n, a=up, lo=1, c2=0.0, out=r, **begin)
        sig_a = quant.pop("sig_a", 0)
        v.vector(n0=n, a=up, neg1=1, lo=1, c2=0.0, b=r, x4="b", out=a, sig_a=sig_a)
        v.vector(n0=n, a=a, x1="s0", c0=f32(np.sqrt(0.5)), out=z)
        v.vector(n0=n, a=z, x1="s0", c0=f32(0.3275911), x2="s1", c1=1.0, func="recip", out=q)
        v.vector(n0=n, a=q, x1="s0", c0=c5, x2="s1", c1=c4, b=q, x3="b", x4="s3", c3=c3, out=poly)
        v.vector(n0=n, a=poly, b=q, x1="b", x2="s1", c1=c2, x3="b", x4="s3", c3=c1, out=poly)
        v.vector(n0=n, a=z, x1="a", x3="s2", c2=float(-LOG2E), out=e)
        v.vector(n0=n, a=e, func="exp2", x3="s2", c2=0.5, out=e)
        v.vector(n0=n, a=poly, b=q, x1="b", d=e, x3="d", out=e)
        v.vector(n0=n, a=e, b=a, x1="b", neg1=1, d=r, x2="d", out_mode="int8", **quant)


def route_scratch(spec: BlockSpec) -> int:
    """Lane words of scratch that `route` needs."""
    return 2 * spec.experts + 2 * spec.top_k + 2


def route(
    v: Thread,
    spec: BlockSpec,
    config: TileConfig,
    logits: Address,
    bias: Address | None,
    scratch: int,
    gates: Address,
    free: int,
    **signals: int,
) -> int:
    """Top-k routing of one group of rows: router sums -> gates (experts lane words).

    Returns the address of the k (value, index) lane-word pairs in scratch. `free` is signalled when logits
    have been read.
    """
    w, n = config.lane_bytes, spec.experts
    work, sel, top = scratch, scratch + n * w, scratch + 2 * n * w
    total = top + 2 * spec.top_k * w
    add: dict[str, Any] = {} if bias is None else dict(d=bias, d_type=BROADCAST, x2="d")
    v.vector(n0=n, a=logits, **add, x3="s2", c2=float(LOG2E), out=work, sig_a=free)
    v.vector(n0=n, a=work, x1="s0", c0=0.0, x2="s1", c1=NEG_INF, out=sel)
    for i in range(spec.top_k):
        pair = top + 2 * i * w
        v.vector(n0=n, a=work, red_op="argmax", red=pair)
        v.vector(n0=n, a=sel, where=1, s4=pair, s5=pair + w, out=sel)
        if i + 1 < spec.top_k:
            v.vector(n0=n, a=work, where=1, c2=NEG_INF, s5=pair + w, out=work, overlap=1)
    v.vector(n0=n, a=sel, x2="-s1", s1=top, func="exp2", red_op="sum_t3", red=total, out=sel)
    v.vector(n0=1, a=total, func="recip", out=total + w)
    v.vector(n0=n, a=sel, x1="s0", s0=total + w, out=gates, **signals)
    return top


def first_in_sight(t: Thread, position: R, window: R, start: R) -> None:
    """start = first key that the row at `position` sees through `window` keys, a multiple of 32."""
    t.sub(start, position, window + -1)
    t.max_(start, start, 0)
    t.and_(start, start, -32)
