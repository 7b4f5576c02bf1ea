"""golden.attention: bits against the page read row by row, values against float64 attention."""
import numpy as np
import pytest

from golden import arith, formats
from golden.arith import F32, fadd, fmul
from golden.attention import KvCache, attention, rope, slice_major
from golden.spec import LOG2E, BlockSpec, slice_major as weights_slice_major
from golden.test_arith import bits
from golden.test_mlp import normal, page_q8, page_sum8, rms

LN2 = np.log(2)


# ---------------------------------------------------------------- docs/numerics.md, one row at a time

def page_dot(x: tuple, y: tuple) -> F32:
    return formats.block_dot(x[0], y[0], x[1], y[1], formats.INT8, formats.INT8)


def page_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: list[bool],
                   sink: F32 | None) -> np.ndarray:
    """One row: q (head_dim), k, v (tokens, head_dim) float32, allowed (tokens), sink in the log2 domain."""
    block, tokens = min(32, len(q)), len(k)
    q8, k8, v8 = page_q8(q, block), [page_q8(row, block) for row in k], [page_q8(row, block) for row in v]
    s = []
    for t in range(tokens):
        acc = page_dot(q8[0], k8[t][0])
        for a, b in zip(q8[1:], k8[t][1:]):
            acc = fadd(acc, page_dot(a, b))
        s.append(acc if allowed[t] else -arith.INF)
    m = -arith.INF
    for value in s:
        m = arith.fmax(m, value)
    if sink is not None:
        m = arith.fmax(m, sink)
    p = [arith.exp2(arith.fsub(value, m)) for value in s]
    total = page_sum8(p)
    if sink is not None:
        total = fadd(arith.exp2(arith.fsub(sink, m)), total)
    out = []
    for b in range(len(q8)):
        scales = [v8[t][b][1] for t in range(tokens)]
        weighted = [fmul(p[t], F32(2.0 ** (s - 127)) if s else F32(0)) for t, s in enumerate(scales)]
        p8 = page_q8(np.array(weighted, F32))
        for i in range(block):
            acc = F32(0)
            for n, probabilities in enumerate(p8):
                column = np.zeros(32, np.int8)
                for t in range(32 * n, min(32 * n + 32, tokens)):
                    column[t - 32 * n] = v8[t][b][0][i]
                acc = fadd(acc, page_dot(probabilities, (column, 127)))
            out.append(fmul(acc, arith.recip(total)))
    return np.array(out)


# ---------------------------------------------------------------- float64

def float_rope(x: np.ndarray, positions: np.ndarray, theta: float, style: str,
               inverse: tuple[float, ...] | None = None, factor: float = 1.0) -> np.ndarray:
    """Pairs as complex numbers, turned by position * inverse, or * theta^(-2 i / head_dim), times factor."""
    n = x.shape[-1]
    inverse = theta ** (-np.arange(0, n, 2) / n) if inverse is None else np.array(inverse)
    half = slice(0, n // 2), slice(n // 2, n)
    first, second = half if style == "half" else (slice(0, n, 2), slice(1, n, 2))
    turn = factor * np.exp(1j * np.multiply.outer(np.asarray(positions, float), inverse))
    z = (x[..., first] + 1j * x[..., second]) * turn[:, None]
    out = np.empty(x.shape)
    out[..., first], out[..., second] = z.real, z.imag
    return out


def float_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray,
                    window: int | None = None, sinks: np.ndarray | None = None,
                    causal: bool = True, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """q (tokens, heads, d), k, v (keys, kv_heads, d) -> softmax(q k scale) v, and the probabilities.

    scale None: 1 / sqrt(d).
    """
    scale = q.shape[2] ** -0.5 if scale is None else scale
    out, probabilities = np.zeros(q.shape), np.zeros((*q.shape[:2], len(k)))
    for i, position in enumerate(positions):
        keys = np.arange(len(k))
        if causal:
            keys = keys[(keys <= position) & (keys > position - (window or len(k)))]
        for h in range(q.shape[1]):
            kv = h * k.shape[1] // q.shape[1]
            e = np.exp(k[keys, kv].astype(float) @ q[i, h] * scale)
            probabilities[i, h, keys] = e / (e.sum() + (0 if sinks is None else np.exp(float(sinks[h]))))
            out[i, h] = probabilities[i, h] @ v[:, kv].astype(float)
    return out, probabilities


def scaled(q: np.ndarray) -> np.ndarray:
    return fmul(q, F32(float(LOG2E) / np.sqrt(q.shape[-1])))


def filled(k: np.ndarray, v: np.ndarray) -> KvCache:
    cache = KvCache(k.shape[1], k.shape[2], -(-len(k) // 32) * 32)
    cache.append(k, v)
    return cache


# ---------------------------------------------------------------- RoPE and the cache

@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("head_dim", [8, 64])
def test_rope(style, head_dim):
    spec = BlockSpec(name="t", hidden=32, heads=3, kv_heads=1, head_dim=head_dim, ffn=32, rope=style)
    x, positions = normal(np.random.default_rng(0), 50, 3, head_dim), np.arange(7, 57)
    y = rope(x, *spec.rope_tables(positions), style)
    error = np.abs(y - float_rope(x, positions, 10000.0, style))
    assert error.max() < 4 * 4 * 2.0**-24  # |x| < 4, four roundings


def test_rope_literal():
    """A quarter turn takes (x, y) to (-y, x)."""
    cos, x = np.zeros((1, 4), F32), np.array([[[1, 2, 3, 4]]], F32)
    assert rope(x, cos, np.array([[-1, -1, 1, 1]], F32), "half").tolist() == [[[-3, -4, 1, 2]]]
    assert rope(x, cos, np.array([[-1, 1, -1, 1]], F32), "interleaved").tolist() == [[[-2, 1, -4, 3]]]
    with pytest.raises(ValueError, match="style = 'full'"):
        rope(x, cos, cos, "full")


@pytest.mark.parametrize("head_dim", [8, 96])
def test_cache(head_dim):
    k, v = (normal(np.random.default_rng(seed), 40, 2, head_dim) for seed in (1, 2))
    cache = KvCache(2, head_dim, 64)
    for lo, hi in ((0, 33), (33, 34), (34, 40)):
        cache.append(k[lo:hi], v[lo:hi])
    block, slices = min(32, head_dim), max(1, head_dim // 32)
    assert cache.k.shape == cache.v.shape == (2, slices, 40, 32)
    for t in (0, 33, 39):
        for h in range(2):
            for x, ints, scales in ((k, cache.k, cache.k_scales), (v, cache.v, cache.v_scales)):
                for b, (want, scale) in enumerate(page_q8(x[t, h], block)):
                    assert ints[h, b, t].tolist() == want.tolist() and scales[h, b, t] == scale
    with pytest.raises(ValueError, match="65 tokens: allowed is max_tokens = 64"):
        cache.append(k[:25], v[:25])
    cache.truncate(3)
    assert cache.length == 3 and cache.v_scales.shape == (2, slices, 3)
    with pytest.raises(ValueError, match="allowed is 0..3"):
        cache.truncate(4)


def test_slice_major():
    """The blocks of o meet the blocks of the output projection that hold the same features."""
    for head_dim in (8, 32, 64):
        spec = BlockSpec(name="t", hidden=32, heads=4, kv_heads=2, head_dim=head_dim, ffn=32)
        o = normal(np.random.default_rng(3), 5, 4, head_dim)
        o8 = slice_major(o)
        want = weights_slice_major(spec, o.reshape(5, -1)).reshape(5, -1, 32)
        values = formats.decode(*o8, formats.INT8)
        assert values.shape == want.shape and np.abs(values - want).max() <= np.abs(o).max() / 64


# ---------------------------------------------------------------- attention

CASES = [  # heads, kv_heads, head_dim, keys, window, sinks, causal
    (2, 2, 32, 45, None, False, True),
    (4, 2, 8, 70, None, True, True),
    (4, 1, 64, 70, 33, True, True),
    (2, 1, 16, 67, 5, False, True),
    (3, 3, 96, 40, None, False, False),
    (4, 2, 8, 33, None, True, False),
]


def case(heads, kv_heads, head_dim, keys, window, sinks, causal):
    g = np.random.default_rng(heads * 1000 + head_dim)
    q, k, v = (normal(g, keys, n, head_dim) for n in (heads, kv_heads, kv_heads))
    v *= np.exp2(g.integers(-3, 4, (keys, kv_heads, 1))).astype(F32)
    return q, k, v, normal(g, heads) * F32(2) if sinks else None, dict(window=window, causal=causal)


@pytest.mark.parametrize("c", CASES)
def test_attention_bits(c):
    q, k, v, sinks, options = case(*c)
    heads, kv_heads, keys, window, causal = c[0], c[1], c[3], c[4], c[6]
    q = scaled(q)
    v[4] = 0  # scale byte 0
    o = attention(q, filled(k, v), np.arange(keys), sinks=sinks, **options)
    assert o.dtype == F32 and o.shape == q.shape
    for position in (0, 31, keys - 1):
        allowed = [not causal or position - (window or keys) < t <= position for t in range(keys)]
        for h in range(heads):
            kv = h // (heads // kv_heads)
            sink = None if sinks is None else fmul(sinks[h], LOG2E)
            want = page_attention(q[position, h], k[:, kv], v[:, kv], allowed, sink)
            assert np.array_equal(bits(want), bits(o[position, h])), (position, h)


@pytest.mark.parametrize("c", CASES)
def test_attention_values(c):
    """Every rounding: q, k (scores), v and probabilities."""
    q, k, v, sinks, options = case(*c)
    o = attention(scaled(q), filled(k, v), np.arange(len(q)), sinks=sinks, **options)
    want, p = float_attention(q, k, v, np.arange(len(q)), sinks=sinks, **options)
    # value scales: u / sqrt(12), u <= largest / 64, which is up to 4 times the RMS of a block, 1.8 %
    # value scales: u / sqrt(12), u <= largest / 64, which is up to 4 times the RMS of a block: 1.8 %
    assert rms(o - want) < 0.03 * rms(want)
    assert np.sum(o * want) > 0.9995 * np.sqrt(np.sum(np.square(o, dtype=float)) * np.sum(want**2))


@pytest.mark.parametrize("c", CASES)
def test_attention_probability_noise(c):
    """q, k and v on the MXINT8 grid: the probabilities' grid alone is left, and bounds every element."""
    q, k, v, sinks, options = case(*c)
    for x in (q, k, v):
        x[:] = np.clip(np.rint(x * 32), -64, 64) / 64
        x[..., ::32] = 1
    v *= np.exp2(np.random.default_rng(4).integers(-3, 4, (len(k), k.shape[1], 1))).astype(F32)
    heads, head_dim = q.shape[1:]
    o = attention(q, filled(k, v), np.arange(len(q)), sinks=sinks, **options)
    natural = q.astype(float) * np.sqrt(head_dim) * LN2
    want, p = float_attention(natural, k, v, np.arange(len(q)), sinks=sinks, **options)
    v = np.repeat(v, heads // k.shape[1], axis=1).astype(float)
    scale = np.abs(v).max(axis=2)  # of the blocks, all slices alike
    noise, most = np.zeros(o.shape), np.zeros(o.shape)
    for lo in range(0, len(k), 32):
        weighted = p[..., lo:lo + 32] * scale.T[:, lo:lo + 32]  # (rows, heads, keys)
        u = weighted.max(axis=2) / 64  # the grid is this or finer: its unit is a power of two
        ints = v[lo:lo + 32] / scale[lo:lo + 32, :, None]
        used = weighted > 0
        noise += u[..., None] ** 2 / 12 * np.einsum("iht,thd->ihd", used, ints**2)
        most += u[..., None] * np.einsum("iht,thd->ihd", used, np.abs(ints))
    error = np.abs(o - want)
    assert (error <= most + 1e-5).all()
    assert rms(error) < rms(np.sqrt(noise)) + 1e-6


@pytest.mark.parametrize("c", [c for c in CASES if c[6]])
def test_decode_equals_prefill(c):
    """Token by token, and in chunks, with what the cache holds at that time."""
    q, k, v, sinks, options = case(*c)
    q = scaled(q)
    whole = attention(q, filled(k, v), np.arange(len(q)), sinks=sinks, **options)
    for edges in (list(range(len(q) + 1)), [0, 7, 32, 33, len(q)]):
        cache = KvCache(k.shape[1], k.shape[2], 96)
        for lo, hi in zip(edges, edges[1:]):
            cache.append(k[lo:hi], v[lo:hi])
            part = attention(q[lo:hi], cache, np.arange(lo, hi), sinks=sinks, **options)
            assert np.array_equal(bits(part), bits(whole[lo:hi])), (lo, hi)


def test_chunks_of_rows(monkeypatch):
    """The chunk size of the implementation does not show."""
    q, k, v, sinks, options = case(*CASES[2])
    arguments = q, filled(k, v), np.arange(70)
    whole = attention(*arguments, sinks=sinks, **options)
    monkeypatch.setattr("golden.attention._CHUNK", 1000)
    assert np.array_equal(bits(attention(*arguments, sinks=sinks, **options)), bits(whole))


def test_unseen_keys_have_no_influence():
    q, k, v, _, _ = case(4, 2, 32, 50, None, False, True)
    clean = attention(q, filled(k, v), np.arange(50), window=20)
    k[20, 0], v[20, 1, 3] = np.nan, np.inf
    o = attention(q, filled(k, v), np.arange(50), window=20)
    assert np.array_equal(bits(o[:20]), bits(clean[:20])) and np.array_equal(bits(o[40:]), bits(clean[40:]))
    assert np.isnan(o[20:40]).all()


def test_limits():
    k = np.zeros((5, 2, 32), F32)
    cache = filled(k, k)
    for q_shape, positions, options, message in (
            ((1, 4, 32), [5], {}, "positions 5..5: allowed is 0..4"),
            ((1, 3, 32), [4], {}, "a multiple of 2"),
            ((1, 4, 64), [4], {}, "head_dim = 32"), ((2, 4, 32), [4], {}, "one position per token"),
            ((1, 4, 32), [4], {"window": 3, "causal": False}, "window = 3, causal = False")):
        with pytest.raises(ValueError, match=message):
            attention(np.zeros(q_shape, F32), cache, np.array(positions), **options)
    assert (attention(np.zeros((1, 4, 32), F32), cache, np.array([4])) == 0).all()
