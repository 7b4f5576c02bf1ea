"""A decoder block, bit for bit: docs/numerics.md, "Blocks". Programs and RTL give the same bits.

Attention is in golden/attention.py, MLPs and routing in golden/mlp.py; everything is importable from here.
"""
import numpy as np

from golden.arith import F32, fadd, fmul, fsub, rsqrt, sum8
from golden.attention import KvCache, attention, rope, slice_major
from golden.mlp import (Q8, clamped_swiglu, gelu_erf, gelu_tanh, linear, mlp, mm, moe, q8, route,
                        swiglu)
from golden.spec import BlockParams, BlockSpec

__all__ = ["Block", "KvCache", "Q8", "attention", "clamped_swiglu", "gelu_erf", "gelu_tanh", "layer_norm",
           "linear", "mlp", "mm", "moe", "q8", "rms_norm", "rope", "route", "slice_major", "swiglu"]


def rms_norm(x: np.ndarray, gamma: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """x (rows, n), gamma (n) -> (rows, n)."""
    mean_square = fmul(sum8(fmul(x, x)), F32(1 / x.shape[-1]))
    return fmul(fmul(x, rsqrt(fadd(mean_square, F32(eps)))[..., None]), gamma)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """x (rows, n), gamma, beta (n) -> (rows, n)."""
    inverse = F32(1 / x.shape[-1])
    c = fsub(x, fmul(sum8(x), inverse)[..., None])
    variance = fmul(sum8(fmul(c, c)), inverse)
    return fadd(fmul(fmul(c, rsqrt(fadd(variance, F32(eps)))[..., None]), gamma), beta)


class Block:
    """A decoder block and its state, the KV cache (`cache`).

    Prefill, chunks of a prompt and single tokens give the same bits.
    """

    def __init__(self, spec: BlockSpec, params: BlockParams):
        self.spec, self.params = spec, params
        self.cache = KvCache(spec.kv_heads, spec.head_dim, spec.max_tokens)

    def forward(self, x: np.ndarray, pos0: int) -> np.ndarray:
        """x (tokens, hidden) float32 at positions pos0, pos0 + 1, ... -> (tokens, hidden).

        Keys and values are appended; ValueError unless pos0 is the number of tokens in the cache.
        """
        if pos0 != self.cache.length:
            raise ValueError(f"pos0 = {pos0}: allowed is {self.cache.length}, the tokens in the cache")
        x = np.asarray(x, F32)
        return self._feed_forward(self._attend(x, pos0 + np.arange(len(x))))

    def _attend(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x + attention of the normalised x."""
        s, p = self.spec, self.params
        xn = q8(rms_norm(x, p.norm1, s.eps))
        q, k, v = (mm(xn, w, bias).reshape(len(x), -1, s.head_dim)
                   for w, bias in ((p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv)))
        tables = s.rope_tables(positions)
        self.cache.append(rope(k, *tables, s.rope), v)
        q = fmul(rope(q, *tables, s.rope), s.qscale)
        o = attention(q, self.cache, positions, s.window, p.sinks if s.sinks else None)
        return fadd(mm(slice_major(o), p.wo, p.bo), x)

    def _feed_forward(self, x: np.ndarray) -> np.ndarray:
        """x + MLP or mixture of experts of the normalised x."""
        s, p = self.spec, self.params
        xn = q8(rms_norm(x, p.norm2, s.eps))
        if p.router is None:
            return fadd(mlp(xn, p.experts[0], s.act), x)
        gates, selected = route(mm(xn, p.router, p.router_bias), s.top_k)
        return moe(x, xn, p.experts, gates, selected, s.act)
