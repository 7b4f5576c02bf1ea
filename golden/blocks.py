"""A transformer block, bit for bit: docs/numerics.md, "Blocks". Programs and RTL give the same bits.

Attention is in golden/attention.py, MLPs and routing in golden/mlp.py; everything is importable from here.
"""
import numpy as np

from golden.arith import F32, fadd, fmul, fsub, rsqrt, sum8
from golden.attention import KvCache, attention, rope, slice_major
from golden.mlp import (Q8, clamped_swiglu, gelu_erf, gelu_tanh, linear, mlp, mm, moe, q8, route,
                        swiglu)
from golden.spec import BlockParams, BlockSpec

__all__ = ["Block", "KvCache", "Q8", "attention", "clamped_swiglu", "gelu_erf", "gelu_tanh", "layer_norm",
           "linear", "mlp", "mm", "moe", "norm", "q8", "rms_norm", "rope", "route", "slice_major", "swiglu"]


def rms_norm(x: np.ndarray, gamma: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """x (rows, n), gamma (n) -> (rows, n)."""
    mean_square = fmul(sum8(fmul(x, x)), F32(1 / x.shape[-1]))
    return fmul(fmul(x, rsqrt(fadd(mean_square, F32(eps)))[..., None]), gamma)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None, eps: float = 1e-5) -> np.ndarray:
    """x (rows, n), gamma (n), beta (n) or None -> (rows, n)."""
    inverse = F32(1 / x.shape[-1])
    c = fsub(x, fmul(sum8(x), inverse)[..., None])
    variance = fmul(sum8(fmul(c, c)), inverse)
    y = fmul(fmul(c, rsqrt(fadd(variance, F32(eps)))[..., None]), gamma)
    return y if beta is None else fadd(y, beta)


def norm(spec: BlockSpec, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None) -> np.ndarray:
    """The norm that spec.norm names; beta is a LayerNorm's. x (rows, n) -> (rows, n)."""
    return rms_norm(x, gamma, spec.eps) if spec.norm == "rms" else layer_norm(x, gamma, beta, spec.eps)


class Block:
    """A transformer block and its state, the KV cache (`cache`).

    Prefill, chunks of a prompt and single tokens give the same bits.
    """

    def __init__(self, spec: BlockSpec, params: BlockParams):
        self.spec, self.params = spec, params
        self.cache = KvCache(spec.kv_heads, spec.head_dim, spec.max_tokens)

    def forward(self, x: np.ndarray, pos0: int) -> np.ndarray:
        """x (tokens, hidden) float32 at positions pos0, pos0 + 1, ... -> (tokens, hidden).

        causal: keys and values are appended; ValueError unless pos0 is the number of tokens in the cache.
        Else x is the whole sequence (pos0 = 0), every row attends to all of it, the cache is written anew.
        """
        s, p = self.spec, self.params
        if not s.causal:
            self.cache.truncate(0)
        if pos0 != self.cache.length:
            raise ValueError(f"pos0 = {pos0}: allowed is {self.cache.length}, the tokens in the cache")
        x = np.asarray(x, F32)
        positions = pos0 + np.arange(len(x))
        if s.post_norm:
            x = norm(s, self._attend(q8(x), x, positions), p.norm1, p.norm1_bias)
            return norm(s, self._feed_forward(q8(x), x), p.norm2, p.norm2_bias)
        x = self._attend(q8(norm(s, x, p.norm1, p.norm1_bias)), x, positions)
        return self._feed_forward(q8(norm(s, x, p.norm2, p.norm2_bias)), x)

    def _attend(self, x8: Q8, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x + attention of x8."""
        s, p = self.spec, self.params
        q, k, v = (mm(x8, w, bias).reshape(len(x), -1, s.head_dim)
                   for w, bias in ((p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv)))
        if s.rope != "none":
            tables = s.rope_tables(positions)
            q, k = rope(q, *tables, s.rope), rope(k, *tables, s.rope)
        self.cache.append(k, v)
        sinks = p.sinks if s.sinks else None
        o = attention(fmul(q, s.qscale), self.cache, positions, s.window, sinks, s.causal)
        return fadd(mm(slice_major(o), p.wo, p.bo), x)

    def _feed_forward(self, x8: Q8, x: np.ndarray) -> np.ndarray:
        """x + MLP or mixture of experts of x8."""
        s, p = self.spec, self.params
        if p.router is None:
            return fadd(mlp(x8, p.experts[0], s.act), x)
        gates, selected = route(mm(x8, p.router, p.router_bias), s.top_k)
        return moe(x, x8, p.experts, gates, selected, s.act)
