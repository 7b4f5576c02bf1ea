"""Linear layers, activation functions and mixture of experts: docs/numerics.md, "Blocks".

Every function acts on rows (tokens) independently, so any batching gives the same bits. Activations enter a
product as MXINT8 blocks (`Q8`) along the contraction axis.
"""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from golden import formats
from golden.arith import F32, INF, exp2, fadd, fmax, fmin, fmul, fneg, fsub, key, recip, sum8
from golden.spec import LOG2E, Expert, MxTensor

_ONE = F32(1)
_LOG2E = np.float64(LOG2E)


class Q8(NamedTuple):
    """MXINT8 activations: ints (..., blocks, 32) int8, scale bytes (..., blocks) uint8."""

    ints: np.ndarray
    scales: np.ndarray


def q8(x: np.ndarray, block: int = formats.BLOCK) -> Q8:
    """x (..., n) -> blocks of `block` elements along the last axis, each zero padded to 32."""
    ints, scales = formats.quantise_int8(x, block)
    if block < formats.BLOCK:
        ints = np.pad(ints, [(0, 0)] * (ints.ndim - 1) + [(0, formats.BLOCK - block)])
    return Q8(ints, scales)


def mm(x8: Q8, w: MxTensor, bias: np.ndarray | None = None) -> np.ndarray:
    """x8 (rows, blocks, 32), w (N, blocks * 32), bias (N) -> (rows, N), blocks in ascending order."""
    if x8.ints.shape[1:] != w.ints.shape[1:]:
        raise ValueError(f"activations have {x8.ints.shape[1]} blocks: allowed is {w.ints.shape[1]}")
    y = formats.accumulate(x8.ints, x8.scales, w.ints, w.scales, formats.INT8, w.fmt)
    return y if bias is None else fadd(y, bias)


def linear(x: np.ndarray, w: MxTensor, bias: np.ndarray | None = None) -> np.ndarray:
    """x (rows, K) float32 -> (rows, N)."""
    return mm(q8(x), w, bias)


# ---------------------------------------------------------------- activation functions

def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up."""
    d = fadd(exp2(fmul(gate, -LOG2E)), _ONE)
    return fmul(fmul(recip(d), gate), up)


def clamped_swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gpt-oss: gate <= 7, |up| <= 7, gate * sigmoid(1.702 gate) * (up + 1). Biases are already added."""
    gate = fmin(gate, F32(7))
    up = fmin(fmax(up, F32(-7)), F32(7))
    d = fadd(exp2(fmul(gate, F32(-1.702 * _LOG2E))), _ONE)
    w = fmul(recip(d), gate)
    return fadd(fmul(up, w), w)


_TANH_A = F32(0.044715)
_TANH_C = F32(-2 * np.sqrt(2 / np.pi) * _LOG2E)
_TANH_CA = _TANH_C * _TANH_A
# Abramowitz and Stegun 7.1.26: |error of erf| < 1.5e-7
_ERF_P = F32(0.3275911)
_ERF_A = tuple(F32(a) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
_SQRT_HALF = F32(np.sqrt(0.5))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as x * sigmoid."""
    p = fadd(fmul(fmul(x, x), _TANH_CA), _TANH_C)
    return fmul(recip(fadd(exp2(fmul(x, p)), _ONE)), x)


def gelu_erf(x: np.ndarray) -> np.ndarray:
    """x / 2 (1 + erf(x / sqrt(2))), as max(x, 0) - |x| (1 - erf(|x| / sqrt(2))) / 2."""
    r = fmax(x, F32(0))
    a = fadd(fmax(fneg(x), F32(0)), r)
    z = fmul(a, _SQRT_HALF)
    t = recip(fadd(fmul(z, _ERF_P), _ONE))
    q = np.asarray(_ERF_A[0])
    for coefficient in _ERF_A[1:]:
        q = fadd(fmul(q, t), coefficient)
    e = fmul(exp2(fmul(fmul(z, z), -LOG2E)), F32(0.5))
    return fsub(r, fmul(fmul(fmul(q, t), e), a))


ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "swiglu": swiglu, "clamped": clamped_swiglu,
    "gelu_tanh": gelu_tanh, "gelu_erf": gelu_erf,
}
"""Name in BlockSpec.act -> function of (gate, up), of (up) alone where there is no gate matrix."""


# ---------------------------------------------------------------- MLP and mixture of experts

def mlp(x8: Q8, e: Expert, act: str) -> np.ndarray:
    """x8 (rows, blocks, 32) -> (rows, hidden): down(act(gate, up)), or down(act(up)) without a gate."""
    up = mm(x8, e.up, e.up_bias)
    h = ACTIVATIONS[act](up) if e.gate is None else ACTIVATIONS[act](mm(x8, e.gate, e.gate_bias), up)
    return linear(h, e.down, e.down_bias)


def route(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """logits (rows, experts) -> gates (rows, experts) float32, selected (rows, experts) bool.

    Softmax over the top k by value (equal values: lower index first); the other gates are 0.
    """
    scores = fmul(logits, LOG2E)
    order = np.argsort(-key(scores).astype(np.int64), axis=-1, kind="stable")[:, :top_k]
    selected = np.zeros(scores.shape, bool)
    np.put_along_axis(selected, order, True, axis=-1)
    largest = np.take_along_axis(scores, order[:, :1], axis=-1)
    p = exp2(fsub(np.where(selected, scores, -INF), largest))
    return fmul(p, recip(sum8(p))[:, None]), selected


def moe(x: np.ndarray, x8: Q8, experts: Sequence[Expert], gates: np.ndarray, selected: np.ndarray,
        act: str) -> np.ndarray:
    """x (rows, hidden) + sum of gate * mlp(x8) over each row's selected experts, in ascending index."""
    acc = x.copy()
    for i, e in enumerate(experts):
        rows = np.flatnonzero(selected[:, i])
        if len(rows):
            y = mlp(Q8(x8.ints[rows], x8.scales[rows]), e, act)
            acc[rows] = fadd(fmul(y, gates[rows, i, None]), acc[rows])
    return acc
