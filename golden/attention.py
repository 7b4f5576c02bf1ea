"""Rotary embedding, MXINT8 key-value cache and attention: docs/numerics.md, "Blocks"."""
import numpy as np

from golden import formats
from golden.arith import F32, INF, NAN, exp2, fadd, fmax, fmul, fsub, max_reduce, recip, sum8
from golden.mlp import Q8, q8
from golden.spec import LOG2E

_CHUNK = 1 << 22  # scores held at a time; no influence on the bits


def rope(x: np.ndarray, cos: np.ndarray, sin_signed: np.ndarray, style: str) -> np.ndarray:
    """x (tokens, heads, head_dim), tables (tokens, head_dim) of BlockSpec.rope_tables -> rotated x.

    style 'half' pairs features i and i + head_dim / 2, 'interleaved' 2i and 2i + 1.
    """
    n = x.shape[-1]
    if style not in ("half", "interleaved"):
        raise ValueError(f"style = {style!r}: allowed is 'half' or 'interleaved'")
    partner = (np.arange(n) + n // 2) % n if style == "half" else np.arange(n) ^ 1
    t = fmul(x[..., partner], sin_signed[:, None])
    return fadd(fmul(x, cos[:, None]), t)


class KvCache:
    """Keys and values of tokens 0 .. length-1 in the order of memory.

    ints (kv_heads, slices, tokens, 32) int8 (head_dim < 32: zero beyond head_dim), scale bytes (kv_heads,
    slices, tokens) uint8; `k`, `k_scales`, `v`, `v_scales` are views of what has been appended.
    """

    def __init__(self, kv_heads: int, head_dim: int, max_tokens: int):
        self.kv_heads, self.head_dim, self.max_tokens = kv_heads, head_dim, max_tokens
        self.slice_dim = min(formats.BLOCK, head_dim)
        self.slices = head_dim // self.slice_dim
        self.length = 0
        shape = (kv_heads, self.slices, max_tokens)
        self._k, self._v = (Q8(np.zeros((*shape, 32), np.int8), np.zeros(shape, np.uint8)) for _ in "kv")

    @property
    def k(self) -> np.ndarray:
        return self._k.ints[:, :, :self.length]

    @property
    def k_scales(self) -> np.ndarray:
        return self._k.scales[:, :, :self.length]

    @property
    def v(self) -> np.ndarray:
        return self._v.ints[:, :, :self.length]

    @property
    def v_scales(self) -> np.ndarray:
        return self._v.scales[:, :, :self.length]

    def append(self, k: np.ndarray, v: np.ndarray) -> None:
        """k (already rotated), v (tokens, kv_heads, head_dim) float32. ValueError when the cache is full."""
        end = self.length + len(k)
        if end > self.max_tokens:
            raise ValueError(f"{end} tokens: allowed is max_tokens = {self.max_tokens}")
        for store, x in ((self._k, k), (self._v, v)):
            ints, scales = q8(x, self.slice_dim)  # (tokens, kv_heads, slices, 32)
            store.ints[:, :, self.length:end] = ints.transpose(1, 2, 0, 3)
            store.scales[:, :, self.length:end] = scales.transpose(1, 2, 0)
        self.length = end

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length = {length}: allowed is 0..{self.length}")
        self.length = length


def attention(q: np.ndarray, cache: KvCache, positions: np.ndarray, window: int | None = None,
              sinks: np.ndarray | None = None, causal: bool = True) -> np.ndarray:
    """q (tokens, heads, head_dim), rotated and scaled by qscale -> (tokens, heads, head_dim).

    causal: the row at position p (positions (tokens,)) sees tokens max(0, p - window + 1) .. p of the cache,
    which must hold them; else all of it (no window). sinks (heads,): natural-log-domain logits that take part
    in the softmax without a value. A key that a row does not see has no influence on it, not even a NaN.
    Query head h reads KV head h // (heads / kv_heads).
    """
    tokens, heads, head_dim = q.shape
    positions = np.asarray(positions)
    if head_dim != cache.head_dim or heads % cache.kv_heads or len(positions) != tokens:
        raise ValueError(f"q {q.shape}, {len(positions)} positions: allowed is head_dim = {cache.head_dim}, "
                         f"heads a multiple of {cache.kv_heads}, one position per token")
    if causal and tokens and not 0 <= positions.min() <= positions.max() < cache.length:
        raise ValueError(f"positions {positions.min()}..{positions.max()}: allowed is 0..{cache.length - 1}")
    if window is not None and (not causal or window < 1):
        raise ValueError(f"window = {window}, causal = {causal}: a window is positive and causal")
    group = heads // cache.kv_heads
    sink = None if sinks is None else fmul(np.asarray(sinks, F32), LOG2E)
    q_ints, q_scales = q8(q, cache.slice_dim)
    out = np.empty(q.shape, F32)
    step = max(1, _CHUNK // max(1, group * cache.length))
    for i in range(0, tokens, step):
        rows = slice(i, i + step)
        allowed, sight = _visible(positions[rows], cache.length, window, causal)
        for kv in range(cache.kv_heads):
            mine = slice(kv * group, (kv + 1) * group)
            out[rows, mine] = _attend(Q8(q_ints[rows, mine], q_scales[rows, mine]), cache, kv, sight, allowed,
                                      None if sink is None else sink[mine])
    return out


def _visible(positions: np.ndarray, length: int, window: int | None,
             causal: bool) -> tuple[np.ndarray, slice]:
    """allowed (rows, keys in sight) and the keys in sight of any row, from a multiple of 32 on."""
    if not causal:
        return np.ones((len(positions), length), bool), slice(0, length)
    first = positions * 0 if window is None else positions - window + 1
    sight = slice(max(0, int(first.min())) & -32, int(positions.max()) + 1)
    t = np.arange(sight.start, sight.stop)
    return (t <= positions[:, None]) & (t >= first[:, None]), sight


def _attend(q: Q8, cache: KvCache, kv: int, sight: slice, allowed: np.ndarray,
            sink: np.ndarray | None) -> np.ndarray:
    """q (tokens, group, slices, 32) on KV head kv -> (tokens, group, head_dim)."""
    tokens, group = q.ints.shape[:2]
    rows = tokens * group
    k, k_scales = cache.k[kv, :, sight].swapaxes(0, 1), cache.k_scales[kv, :, sight].T  # (keys, slices ...)
    s = formats.accumulate(q.ints.reshape(rows, -1, 32), q.scales.reshape(rows, -1), k, k_scales)
    allowed = np.repeat(allowed, group, axis=0)
    s = np.where(allowed, s, -INF)
    m = max_reduce(s)
    if sink is not None:
        sink = np.tile(sink, tokens)
        m = fmax(m, sink)
    p = np.where(allowed, exp2(fsub(s, m[:, None])), F32(0))
    total = sum8(p)
    if sink is not None:
        total = fadd(exp2(fsub(sink, m)), total)
    o = np.empty((rows, cache.slices, cache.slice_dim), F32)
    for b in range(cache.slices):
        # the values' scales move into the probabilities: no common scale along tokens is needed
        p8 = q8(np.where(allowed, fmul(p, _scale_values(cache.v_scales[kv, b, sight])), F32(0)))
        v = cache.v[kv, b, sight, :cache.slice_dim].T
        v = np.pad(v, ((0, 0), (0, -v.shape[1] % 32))).reshape(cache.slice_dim, -1, 32)
        o[:, b] = formats.accumulate(*p8, v, np.full(v.shape[:2], 127, np.uint8))
    return fmul(o.reshape(tokens, group, -1), recip(total).reshape(tokens, group, 1))


def _scale_values(scales: np.ndarray) -> np.ndarray:
    """Scale bytes as float32: 2^(s - 127), 0 reads +0, 255 NaN."""
    return np.where(scales == formats.NAN_SCALE, NAN, (scales.astype(np.uint32) << 23).view(F32))


def slice_major(o: np.ndarray) -> Q8:
    """o (tokens, heads, head_dim) -> MXINT8 (tokens, slices * heads, 32), blocks (slice, head) as in `wo`."""
    tokens, heads, head_dim = o.shape
    ints, scales = q8(o, min(formats.BLOCK, head_dim))  # (tokens, heads, slices, 32)
    return Q8(ints.swapaxes(1, 2).reshape(tokens, -1, 32), scales.swapaxes(1, 2).reshape(tokens, -1))
