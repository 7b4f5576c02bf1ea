"""golden.mlp: bits against the page read row by row, values against float64 textbook formulas.

MXINT8 noise: rounding to a grid of unit u = 2^(E - 6), E the exponent of the block's largest element, has an
RMS error of u / sqrt(12) and never exceeds u (elements that saturate): a product's error can be predicted.
"""
import math

import numpy as np
import pytest

from golden import arith, formats
from golden.arith import F32, fadd, fmul
from golden.mlp import (Q8, clamped_swiglu, gelu_erf, gelu_tanh, linear, mlp, mm, moe, q8, route, swiglu)
from golden.spec import Expert, MxTensor
from golden.test_arith import bits

ULP = 2.0**-23
LOG2E = F32(1.4426950408889634)
FORMATS = (formats.INT8, formats.FP6, formats.FP4)


# ---------------------------------------------------------------- docs/numerics.md, one row at a time

def page_sum8(x) -> F32:
    p = [F32(0)] * 8
    for i, value in enumerate(x):
        p[i % 8] = fadd(p[i % 8], value)
    return fadd(fadd(fadd(p[0], p[1]), fadd(p[2], p[3])), fadd(fadd(p[4], p[5]), fadd(p[6], p[7])))


def page_q8(row: np.ndarray, block: int = 32) -> list[tuple[np.ndarray, int]]:
    """row (n) -> [(32 elements, scale byte)]."""
    out = []
    for i in range(0, len(row), block):
        padded = np.zeros(32, F32)
        padded[:len(row[i:i + block])] = row[i:i + block]
        ints, scale = formats.quantise_int8(padded)
        out.append((ints[0], int(scale[0])))
    return out


def page_mm(blocks: list, w: MxTensor) -> np.ndarray:
    acc = None
    for k, (ints, scale) in enumerate(blocks):
        dot = formats.block_dot(ints[None], w.ints[:, k], scale, w.scales[:, k], formats.INT8, w.fmt)
        acc = dot if acc is None else fadd(acc, dot)
    return acc


def page_act(g: np.ndarray, u: np.ndarray, act: str) -> np.ndarray:
    if act == "swiglu":
        d = fadd(arith.exp2(fmul(g, -LOG2E)), F32(1))
        return fmul(fmul(arith.recip(d), g), u)
    g, u = arith.fmin(g, F32(7)), arith.fmin(arith.fmax(u, F32(-7)), F32(7))
    d = fadd(arith.exp2(fmul(g, F32(-1.702 * float(LOG2E)))), F32(1))
    w = fmul(arith.recip(d), g)
    return fadd(fmul(u, w), w)


def page_gelu(x: np.ndarray, act: str) -> np.ndarray:
    if act == "gelu_tanh":
        c = F32(-2 * math.sqrt(2 / math.pi) * float(LOG2E))
        p = fadd(fmul(fmul(x, x), fmul(c, F32(0.044715))), c)
        return fmul(arith.recip(fadd(arith.exp2(fmul(x, p)), F32(1))), x)
    a5, a4, a3, a2, a1 = (F32(v) for v in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
    r = arith.fmax(x, F32(0))
    a = fadd(arith.fmax(-x, F32(0)), r)
    z = fmul(a, F32(math.sqrt(0.5)))
    t = arith.recip(fadd(fmul(z, F32(0.3275911)), F32(1)))
    q = fadd(fmul(fadd(fmul(fadd(fmul(fadd(fmul(a5, t), a4), t), a3), t), a2), t), a1)
    e = fmul(arith.exp2(fmul(fmul(z, z), -LOG2E)), F32(0.5))
    return arith.fsub(r, fmul(fmul(fmul(q, t), e), a))


def page_linear(blocks: list, w: MxTensor, bias: np.ndarray | None) -> np.ndarray:
    y = page_mm(blocks, w)
    return y if bias is None else fadd(y, bias)


def page_mlp(blocks: list, e: Expert, act: str) -> np.ndarray:
    u = page_linear(blocks, e.up, e.up_bias)
    if act in ("gelu_tanh", "gelu_erf"):
        h = page_gelu(u, act)
    else:
        h = page_act(page_linear(blocks, e.gate, e.gate_bias), u, act)
    return page_linear(page_q8(h), e.down, e.down_bias)


def page_moe(x: np.ndarray, blocks: list, experts: list[Expert], logits: np.ndarray, top_k: int,
             act: str) -> np.ndarray:
    scores = [fmul(v, LOG2E) for v in logits]
    chosen: list[int] = []
    for _ in range(top_k):
        rest = [i for i in range(len(scores)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (scores[i], -i)))
    v0 = scores[chosen[0]]
    p = [arith.exp2(arith.fsub(s, v0)) if i in chosen else F32(0) for i, s in enumerate(scores)]
    r = arith.recip(page_sum8(p))
    for i in sorted(chosen):
        x = fadd(fmul(page_mlp(blocks, experts[i], act), fmul(p[i], r)), x)
    return x


# ---------------------------------------------------------------- float64

def values(w: MxTensor) -> np.ndarray:
    """(N, K) float64."""
    return formats.decode(w.ints, w.scales, w.fmt, np.float64, w.inputs)


def float_mlp(x: np.ndarray, e: Expert, act: str) -> np.ndarray:
    def project(x: np.ndarray, w: MxTensor, bias: np.ndarray | None) -> np.ndarray:
        return x @ values(w).T + (0 if bias is None else bias)

    u = project(x, e.up, e.up_bias)
    g = None if e.gate is None else project(x, e.gate, e.gate_bias)
    if act == "gelu_tanh":
        h = u / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    elif act == "gelu_erf":
        h = u / 2 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
    elif act == "swiglu":
        h = g / (1 + np.exp(-g)) * u
    else:
        g, u = np.minimum(g, 7), np.clip(u, -7, 7)
        h = g / (1 + np.exp(-1.702 * g)) * (u + 1)
    return project(h, e.down, e.down_bias)


def float_gates(logits: np.ndarray, top_k: int) -> np.ndarray:
    gates = np.zeros(logits.shape)
    for row, out in zip(logits, gates):
        best = sorted(range(len(row)), key=lambda i: -row[i])[:top_k]
        e = np.exp(row[best] - row.max())
        out[best] = e / e.sum()
    return gates


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Grid of the MXINT8 block that x is."""
    return 2.0 ** (np.floor(np.log2(np.abs(x).max(axis=axis))) - 6)


# ---------------------------------------------------------------- drawn operands

def weights(g: np.random.Generator, n: int, k: int, fmt: int = formats.INT8) -> MxTensor:
    return MxTensor.quantise(g.normal(0, k**-0.5, (n, k)).astype(F32), fmt)


def expert(g: np.random.Generator, hidden: int, ffn: int, fmt: int, bias: bool, gated: bool = True) -> Expert:
    gate = weights(g, ffn, hidden, fmt) if gated else None
    e = Expert(gate, weights(g, ffn, hidden, fmt), weights(g, hidden, ffn, fmt))
    if bias:
        e.gate_bias, e.up_bias, e.down_bias = (g.normal(0, 1, n).astype(F32) for n in (ffn, ffn, hidden))
    return e


def normal(g: np.random.Generator, *shape: int) -> np.ndarray:
    return g.normal(0, 1, shape).astype(F32)


# ---------------------------------------------------------------- linear

@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("k", [8, 64, 172, 288])
def test_linear(k, fmt):
    g = np.random.default_rng(k)
    x, w, bias = normal(g, 40, k) * F32(3), weights(g, 50, k, fmt), normal(g, 50)
    y = linear(x, w, bias)
    for row in (0, 39):
        assert np.array_equal(bits(fadd(page_mm(page_q8(x[row]), w), bias)), bits(y[row]))
    assert np.array_equal(bits(fadd(linear(x, w), bias)), bits(y))
    error = y - (x.astype(np.float64) @ values(w).T + bias)
    padded = np.pad(x, ((0, 0), (0, -k % 32))).reshape(40, -1, 32)
    noise = np.repeat(unit(padded), 32, axis=1)[:, :k]
    predicted = np.sqrt((noise**2 / 12) @ values(w).T ** 2)
    assert 0.8 < rms(error / predicted) < 1.2  # the quantisation of x, and nothing else
    assert (np.abs(error) <= noise @ np.abs(values(w).T) + 1e-5).all()


def test_linear_exact_inputs():
    """Activations on the MXINT8 grid: only float32 additions are left."""
    g = np.random.default_rng(5)
    x = (g.integers(-64, 65, (20, 96)) / 64).astype(F32)
    x[:, ::32] = 1
    w = weights(g, 30, 96)
    assert np.abs(linear(x, w) - x.astype(np.float64) @ values(w).T).max() < 3 * ULP


def test_mm_refuses_other_lengths():
    g = np.random.default_rng(0)
    with pytest.raises(ValueError, match="2 blocks: allowed is 1"):
        mm(q8(normal(g, 1, 64)), weights(g, 4, 32))


def test_q8_small_blocks():
    ints, scales = q8(np.array([[1, 0.5, 0, 0, 0, 0, 0, -1, 4, 0, 0, 0, 0, 0, 0, 0.25]], F32), 8)
    assert ints.shape == (1, 2, 32) and scales.tolist() == [[127, 129]]
    assert ints[0, 0].tolist() == [64, 32, 0, 0, 0, 0, 0, -64] + [0] * 24
    assert ints[0, 1].tolist() == [64, 0, 0, 0, 0, 0, 0, 4] + [0] * 24


# ---------------------------------------------------------------- activation functions

_DRAWN = np.random.default_rng(1).normal(0, 1, 3000)
X = np.concatenate((np.linspace(-30, 30, 6001), _DRAWN, [0.0, -0.0])).astype(F32)
X64 = X.astype(np.float64)


def test_swiglu():
    up = np.random.default_rng(2).permutation(X)
    want = X64 / (1 + np.exp(-X64)) * up
    # exp2's argument carries two roundings, each |x| / 2 ulp of the result; then exp2, recip, four operations
    assert (np.abs(swiglu(X, up) - want) <= (12 + np.abs(X64)) * ULP * np.abs(want)).all()
    assert np.array_equal(bits(swiglu(X, up)), bits(page_act(X, up, "swiglu")))
    assert swiglu(np.array([-500, 500], F32), F32(2)).tolist() == [0, 1000]


def test_clamped_swiglu():
    up = np.random.default_rng(3).permutation(X)
    gate, clipped = np.minimum(X64, 7), np.clip(up.astype(np.float64), -7, 7)
    w = gate / (1 + np.exp(-1.702 * gate))
    bound = (12 + 1.702 * np.abs(gate)) * ULP * np.abs(w) * (np.abs(clipped) + 1)
    assert (np.abs(clamped_swiglu(X, up) - w * (clipped + 1)) <= bound).all()
    assert np.array_equal(bits(clamped_swiglu(X, up)), bits(page_act(X, up, "clamped")))
    top = 7 / (1 + math.exp(-1.702 * 7))
    assert clamped_swiglu(np.full(3, 99, F32), np.array([99, -99, -1], F32)) == pytest.approx(
        [8 * top, -6 * top, 0], abs=1e-5)


def test_gelu_tanh():
    inner = math.sqrt(2 / math.pi) * (X64 + 0.044715 * X64**3)
    want = X64 / (1 + np.exp(np.clip(-2 * inner, -700, 700)))  # x / 2 (1 + tanh(inner)) without cancellation
    # exp2's argument carries five roundings; results below 30 * 2^-126 may flush
    bound = (12 + 6 * np.abs(inner)) * ULP * np.abs(want) + 2.0**-121
    assert (np.abs(gelu_tanh(X) - want) <= bound).all()
    assert np.abs(want - X64 / 2 * (1 + np.tanh(inner))).max() < 1e-13


def test_gelu_erf():
    want = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in X64])
    # |x| / 2 times the error of erf: 1.5e-7 (Abramowitz and Stegun), recip's 4.9 * 2^-24 near t = 1, where
    # q t has slope 3.4, exp2's 2.7 * 2^-24 and four roundings of terms up to 1.5
    bound = (1.5e-7 + (3.4 * 4.9 + 2.7 + 4) * 2.0**-24) / 2
    assert (np.abs(gelu_erf(X) - want) <= bound * np.abs(X64) + ULP * np.abs(want)).all()
    assert np.array_equal(gelu_erf(X)[np.abs(X) > 15], np.maximum(X, 0)[np.abs(X) > 15])


def test_gelu_erf_order():
    """The page again, in its letters."""
    for x in X[::37]:
        assert bits(page_gelu(x, "gelu_erf")) == bits(gelu_erf(x))
        assert bits(page_gelu(x, "gelu_tanh")) == bits(gelu_tanh(x))


# ---------------------------------------------------------------- MLP, routing, mixture of experts

@pytest.mark.parametrize("act,fmt,bias", [("swiglu", formats.INT8, False), ("swiglu", formats.FP6, True),
                                          ("clamped", formats.FP4, True), ("gelu_tanh", formats.INT8, True),
                                          ("gelu_erf", formats.FP6, False)])
def test_mlp(act, fmt, bias):
    g = np.random.default_rng(7)
    e, x = expert(g, 288, 172, fmt, bias, "gelu" not in act), normal(g, 60, 288)
    y = mlp(q8(x), e, act)
    assert np.array_equal(bits(y[59]), bits(page_mlp(page_q8(x[59]), e, act)))
    want = float_mlp(x.astype(np.float64), e, act)
    # x and h are quantised: 0.8 % for x's normal blocks (largest element 2 sigma: u = sigma / 32) on gate and
    # on up, up to 2 % for h, whose largest elements are 4 to 6 sigma
    assert rms(y - want) < 0.025 * rms(want)


def test_route():
    g = np.random.default_rng(8)
    logits = g.normal(0, 3, (200, 8)).astype(F32)
    for k in (1, 2, 4):
        gates, selected = route(logits, k)
        want = float_gates(logits.astype(np.float64), k)
        assert (selected == (want > 0)).all() and (gates[~selected] == 0).all()
        assert (np.abs(gates - want) <= 60 * ULP * want).all()  # |exp2's argument| <= 30: 30 ulp, the rest


def test_route_ties():
    gates, selected = route(np.array([[1, 2, 2, 2], [0, 0, 0, 0], [-1, -9, -1, 5]], F32), 2)
    assert selected.astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]]
    assert gates[:2, 1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("act,fmt", [("swiglu", formats.INT8), ("clamped", formats.FP4)])
def test_moe(act, fmt):
    g = np.random.default_rng(9)
    experts = [expert(g, 96, 40, fmt, act == "clamped") for _ in range(5)]
    x, normed, logits = normal(g, 30, 96), normal(g, 30, 96), normal(g, 30, 5)
    gates, selected = route(logits, 3)
    y = moe(x, q8(normed), experts, gates, selected, act)
    for row in range(0, 30, 6):
        want = page_moe(x[row], page_q8(normed[row]), experts, logits[row], 3, act)
        assert np.array_equal(bits(want), bits(y[row]))
    exact = float_gates(logits.astype(np.float64), 3)
    normed = normed.astype(np.float64)
    update = sum(exact[:, i, None] * float_mlp(normed, e, act) for i, e in enumerate(experts))
    assert rms(y - x - update) < 0.025 * rms(update)  # as test_mlp


def test_rows_are_independent():
    g = np.random.default_rng(10)
    e, x = expert(g, 64, 40, formats.INT8, False), normal(g, 6, 64)
    clean = mlp(q8(x), e, "swiglu")
    x[2, 3], x[4] = np.inf, 1e-38
    y = mlp(q8(x), e, "swiglu")
    assert np.isnan(y[2]).all() and np.array_equal(bits(y[[0, 1, 3, 5]]), bits(clean[[0, 1, 3, 5]]))
    x8 = q8(x)
    assert np.array_equal(bits(mlp(Q8(x8.ints[:1], x8.scales[:1]), e, "swiglu")), bits(clean[:1]))
