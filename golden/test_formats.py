"""golden.formats against ml_dtypes, rational arithmetic and literal bytes."""

from fractions import Fraction
from math import floor, isfinite, log2

import ml_dtypes
import numpy as np
import pytest

from golden import arith
from golden import formats as mx
from golden.arith import F32
from golden.test_arith import bits, floats, ref_op, ref_round

CASTS = {mx.FP6: ml_dtypes.float6_e2m3fn, mx.FP4: ml_dtypes.float4_e2m1fn}
FORMATS = [mx.INT8, mx.FP6, mx.FP4]
EVERY_BF16 = arith.bf16_to_f32(np.arange(1 << 16).astype(np.uint16))


def ref_quantise(block: list[float]) -> tuple[list[int], int]:
    """MXINT8 from the definition, on rationals; block holds float32 values."""
    if not all(isfinite(v) for v in block):
        return [0] * len(block), 255
    values = [Fraction(v) if abs(v) >= 2.0**-126 else Fraction(0) for v in block]
    largest = max(abs(v) for v in values)
    if not largest:
        return [0] * len(block), 0
    e = floor(log2(largest))
    e += (Fraction(2) ** (e + 1) <= largest) - (Fraction(2) ** e > largest)
    return [max(-127, min(127, round(v * Fraction(2) ** (6 - e)))) for v in values], e + 127


def wide(x: np.ndarray) -> np.ndarray:
    """float64 of flushed float32; signalling NaNs would warn."""
    return arith.canon(x).astype(np.float64)


def ref_encode_fp(x: np.ndarray, fmt: int) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, 32) float32 -> element values float64 and scales, elements rounded by ml_dtypes' own cast."""
    x = wide(x)
    special = ~np.isfinite(x).all(axis=-1)
    x = np.where(special[:, None], 0, x)
    largest = np.abs(x).max(axis=-1)
    shared = np.where(largest > 0, np.frexp(largest)[1] - 1 - 2, -127)
    shared = np.maximum(shared, -127)
    limit = float(ml_dtypes.finfo(CASTS[fmt]).max)
    v = np.clip(np.ldexp(x, -shared[:, None]), -limit, limit)
    return v.astype(CASTS[fmt]).astype(np.float64), np.where(special, 255, shared + 127)


def bf16_blocks() -> np.ndarray:
    """Every bf16 alone in a block, beside a larger neighbour, and among 31 others."""
    alone = np.zeros((1 << 16, 32), F32)
    alone[:, 5] = EVERY_BF16
    g = np.random.default_rng(0)
    beside = alone.copy()
    beside[:, 9] = arith.fmul(EVERY_BF16, np.exp2(g.integers(0, 9, 1 << 16)))
    mixed = EVERY_BF16.reshape(-1, 32)
    return np.concatenate((alone, beside, mixed, g.permutation(EVERY_BF16).reshape(-1, 32)))


@pytest.mark.parametrize("fmt", [mx.FP6, mx.FP4])
def test_encode_fp_matches_casts(fmt):
    g = np.random.default_rng(1)
    spread = (g.standard_normal((4096, 32)) * np.exp2(g.integers(-140, 124, (4096, 1)))).astype(F32)
    steps = g.integers(-128, 129, (4096, 32)).astype(F32) / F32(16)  # ties of both formats
    for x in (bf16_blocks(), spread, steps):
        ints, scales = mx.encode(x, fmt)
        want, want_scales = ref_encode_fp(x, fmt)
        assert (scales[:, 0] == want_scales).all()
        assert (np.ldexp(ints[:, 0].astype(float), -mx.FRAC[fmt]) == want).all()


def test_encode_int8_every_bf16():
    x = bf16_blocks()
    ints, scales = mx.encode(x, mx.INT8)
    flushed = wide(x)
    ok = np.isfinite(flushed).all(axis=-1)
    largest = np.abs(flushed).max(axis=-1)
    e = np.frexp(largest)[1] - 1
    want_scale = np.where(~ok, 255, np.where(largest == 0, 0, e + 127))
    assert (scales[:, 0] == want_scale).all()
    want = np.clip(np.rint(np.ldexp(np.where(ok[:, None], flushed, 0), 6 - e[:, None])), -127, 127)
    assert (ints[:, 0] == want).all()


@pytest.mark.parametrize("block", [8, 16, 32])
@pytest.mark.parametrize("n", [1, 8, 31, 32, 40, 96])
def test_quantise_matches_rationals(block, n):
    g = np.random.default_rng(block * 100 + n)
    x = (g.standard_normal((24, n)) * np.exp2(g.integers(-12, 1, (24, n)))).astype(F32)
    x[:6] *= np.exp2(g.integers(-126, 120, (6, 1))).astype(F32)
    x[6:9] = g.integers(-255, 256, (3, n)) / F32(2)  # ties and saturation
    x[9] = 0
    x[10] = floats(g.integers(0, 1 << 23, n, np.uint32))  # subnormal
    x[11:14] = floats(g.integers(0, 6 << 23, (3, n), np.uint32))
    x[14, g.integers(0, n)], x[15, g.integers(0, n)] = np.nan, -np.inf
    x[16] = F32(np.finfo(F32).max)
    x[17, 0] = F32(255 / 256)
    ints, scales = mx.quantise_int8(x, block)
    blocks = -(-n // block)
    assert ints.shape == (24, blocks, block) and scales.shape == (24, blocks)
    assert ints.dtype == np.int8 and scales.dtype == np.uint8
    for r in range(24):
        for b in range(blocks):
            part = x[r, b * block:(b + 1) * block].astype(float).tolist()
            want, scale = ref_quantise(part + [0.0] * (block - len(part)))
            assert ints[r, b].tolist() == want and scales[r, b] == scale, (r, b)


def test_encode_literals():
    """Round half to even, saturation and the floor of the shared exponent, spelled out."""
    x = np.zeros(32, F32)
    x[:6] = 1.9999, 1.0, 0.0234375, 0.0390625, -0.0078125, -1.9999  # 1.5, 2.5 and -0.5 units of 1/64
    ints, scales = mx.encode(x, mx.INT8)
    assert ints[0, :6].tolist() == [127, 64, 2, 2, 0, -127] and scales.tolist() == [127]
    x[:6] = 7.9, 5.0, 2.5, 3.5, -0.25, 0.75
    ints, scales = mx.encode(x, mx.FP4)
    assert ints[0, :6].tolist() == [12, 8, 4, 8, 0, 2] and scales.tolist() == [127]
    ints, scales = mx.encode(x, mx.FP6)
    assert ints[0, :6].tolist() == [60, 40, 20, 28, -2, 6] and scales.tolist() == [127]
    x[0] = 8.0
    assert mx.encode(x, mx.FP4)[1].tolist() == [128] and mx.encode(x, mx.INT8)[1].tolist() == [130]


def test_encode_axis():
    g = np.random.default_rng(2)
    x = g.standard_normal((5, 70, 3)).astype(F32)
    for fmt in FORMATS:
        a, sa = mx.encode(x, fmt, axis=1)
        b, sb = mx.encode(np.ascontiguousarray(x.transpose(0, 2, 1)), fmt)
        assert a.shape == (5, 3, 3, 32) and (a == b).all() and (sa == sb).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_and_layout(fmt):
    codes = np.arange(1 << mx.BITS[fmt])
    g = np.random.default_rng(3)
    codes = np.concatenate((codes, g.integers(0, codes.size, -codes.size % 32 + 96)))
    stream = np.zeros(codes.size * mx.BITS[fmt] // 8, np.uint8)  # bit by bit, element j at bit j * BITS
    for j, c in enumerate(codes):
        for b in range(mx.BITS[fmt]):
            at = j * mx.BITS[fmt] + b
            stream[at // 8] |= (int(c) >> b & 1) << at % 8
    ints = mx.unpack(stream, fmt)
    if fmt == mx.INT8:
        values = codes.astype(np.uint8).view(np.int8) / 64
    else:
        values = codes.astype(np.uint8).view(CASTS[fmt]).astype(np.float64)
    assert (ints == values * 2.0 ** mx.FRAC[fmt]).all()
    canonical = mx.pack(ints, fmt)  # equal except that a code of -0 is written as +0
    assert (mx.unpack(canonical, fmt) == ints).all()
    no_minus_zero = codes.copy()
    if fmt != mx.INT8:
        no_minus_zero[codes == 1 << mx.BITS[fmt] - 1] = 0
    clean = np.zeros(stream.size * 8, np.uint8)
    for b in range(mx.BITS[fmt]):
        clean[b::mx.BITS[fmt]] = no_minus_zero >> b & 1
    assert (canonical == np.packbits(clean, bitorder="little")).all()
    shaped = mx.pack(ints[:96].reshape(1, 3, 32), fmt)
    assert shaped.shape == (1, 3, mx.BLOCK_BYTES[fmt])
    assert (shaped.reshape(-1) == canonical[:96 * mx.BITS[fmt] // 8]).all()


def test_pack_literals_and_errors():
    ints = np.zeros(32, np.int8)
    ints[:4] = 12, -1, 0, 3
    assert mx.pack(ints, mx.FP4)[:2].tolist() == [0x97, 0x30]
    ints[:4] = 60, -1, 0, 16
    assert mx.pack(ints, mx.FP6)[:3].tolist() == [0x5F, 0x08, 0x40]
    ints[0] = 5
    with pytest.raises(ValueError):
        mx.pack(ints, mx.FP4)
    with pytest.raises(ValueError):
        mx.pack(ints[:31], mx.FP6)
    with pytest.raises(ValueError):
        mx.unpack(np.zeros(23, np.uint8), mx.FP6)


@pytest.mark.parametrize("fmt", FORMATS)
def test_decode(fmt):
    g = np.random.default_rng(4)
    codes = mx.unpack(g.integers(0, 256, (256, mx.BLOCK_BYTES[fmt]), dtype=np.uint8), fmt)
    scales = np.arange(256, dtype=np.uint8)
    want = np.ldexp(codes.astype(np.float64), scales.astype(int)[:, None] - 127 - mx.FRAC[fmt])
    want[255] = np.nan
    assert np.array_equal(mx.decode(codes, scales, fmt, np.float64), want, equal_nan=True)
    with np.errstate(over="ignore", under="ignore"):
        want = arith.canon(np.where(np.abs(want) < 2.0**-126, np.copysign(0, want), want).astype(F32))
    assert (bits(mx.decode(codes, scales, fmt)) == bits(want)).all()
    x = g.standard_normal((3, 50)).astype(F32)
    back = mx.decode(*mx.encode(x, fmt), fmt, length=50)
    assert back.shape == (3, 50) and np.abs(back - x).max() < {0: 0.04, 1: 0.3, 2: 1.1}[fmt]


def all_ints(fmt: int) -> np.ndarray:
    """Every element code's integer form, -0 included."""
    if fmt == mx.INT8:
        return np.arange(-128, 128).astype(np.int8)
    values = np.arange(1 << mx.BITS[fmt]).astype(np.uint8).view(CASTS[fmt]).astype(np.float64)
    return (values * 2.0 ** mx.FRAC[fmt]).astype(np.int8)


@pytest.mark.parametrize("fmt_a", FORMATS)
@pytest.mark.parametrize("fmt_b", FORMATS)
def test_every_element_pair(fmt_a, fmt_b):
    """Each pair of elements, in a lane that varies, beside one constant pair in another lane."""
    i, j = (v.reshape(-1) for v in np.meshgrid(all_ints(fmt_a), all_ints(fmt_b)))
    a, b = np.zeros((2, i.size, 32), np.int8)
    rows = np.arange(i.size)
    lane = rows % 31
    a[rows, lane], b[rows, lane] = i, j
    a[:, 31], b[:, 31] = 3, -4
    got = mx.block_dot(a, b, np.full(i.size, 120), np.full(i.size, 131), fmt_a, fmt_b)
    va, vb = i / 2.0 ** mx.FRAC[fmt_a], j / 2.0 ** mx.FRAC[fmt_b]
    constant = -12 / 2.0 ** (mx.FRAC[fmt_a] + mx.FRAC[fmt_b])
    want = ((va * vb + constant) * 2.0**-3).astype(F32)
    assert (got == want).all()
    assert not (bits(got) == 0x80000000).any()


def ref_product(x, sx, w, sw, frac: int) -> np.ndarray:
    """The definition, one row pair at a time, on integers, rationals and rational float32 adds."""
    out = np.zeros((len(x), len(w)), np.uint32)
    for m in range(len(x)):
        for n in range(len(w)):
            acc = None
            for k in range(x.shape[1]):
                s, t = int(sx[m, k]), int(sw[n, k])
                total = sum(p * q for p, q in zip(x[m, k].tolist(), w[n, k].tolist()))
                exact = Fraction(total) * Fraction(2) ** (s + t - 254 - frac)
                dot = ref_round(exact, 0) if abs(exact) >= Fraction(2) ** -126 else (total < 0) << 31
                dot = 0x7FC00000 if 255 in (s, t) else dot
                acc = dot if acc is None else ref_op("add", acc, dot)
            out[m, n] = acc
    return out


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("centre, spread", [
    (127, 3), (127, 12), (64, 4), (70, 3), (190, 3), (5, 5), (250, 5), (128, 127)])
def test_accumulate_matches_definition(fmt, centre, spread):
    """Ordinary scales (float32 path), results near underflow and overflow, NaN blocks and zero blocks."""
    g = np.random.default_rng(centre * 10 + fmt)
    m, n, kb = 3, 5, 6
    x = g.integers(-128, 128, (m, kb, 32)).astype(np.int8)
    w = g.choice(all_ints(fmt), (n, kb, 32))
    x[0, 1], w[1] = 0, 0
    w[2, :, 1:] = 0  # dot products of +-1 and small ones
    x[1, :, 0], w[2, :, 0] = [1, -1, 1, 1, -1, -1], 1
    w[3] = np.where(g.integers(0, 2, (kb, 1)) == 1, all_ints(fmt).max(), all_ints(fmt).min())
    sx, sw = (np.clip(g.integers(centre - spread, centre + spread + 1, s), 0, 255).astype(np.uint8)
              for s in ((m, kb), (n, kb)))
    sx[0, 1] = 0
    sw[1, ::2] = 0
    if spread == 12:
        sw[4, 3] = 255
    if spread == 4:
        sx[0, 1] = 255
    want = ref_product(x, sx, w, sw, 6 + mx.FRAC[fmt])
    got = bits(mx.accumulate(x, sx, w, sw, mx.INT8, fmt))
    assert (got == want).all()


def test_accumulate_extreme_operand_scales():
    """The product is ordinary although a decoded operand alone exceeds float32, either way round."""
    low, one = np.full((1, 1, 32), -128, np.int8), np.ones((1, 1, 32), np.int8)
    top, bottom = np.full((1, 1), 254, np.uint8), np.full((1, 1), 10, np.uint8)
    want = F32(-128 * 32 * 2.0 ** (254 + 10 - 254 - 12))
    assert mx.accumulate(low, top, one, bottom) == want and mx.accumulate(one, bottom, low, top) == want


@pytest.mark.parametrize("m, n, kb", [(1, 40, 90), (8, 33, 7), (17, 1, 3), (64, 300, 200), (1, 1, 1)])
def test_accumulate_shapes(m, n, kb):
    """Equal to block_dot and fadd in ascending order for shapes that BLAS treats differently."""
    g = np.random.default_rng(m + n)
    x, sx = mx.encode(g.standard_normal((m, kb * 32)), mx.INT8)
    w, sw = mx.encode(g.standard_normal((n, kb * 32)) * 0.02, mx.FP4)
    rows = np.unique(g.integers(0, m, 4))
    acc = None
    for k in range(kb):
        dot = mx.block_dot(x[rows, None, k], w[:, k], sx[rows, None, k], sw[:, k], mx.INT8, mx.FP4)
        acc = dot if acc is None else arith.fadd(acc, dot)
    got = mx.accumulate(x, sx, w, sw, mx.INT8, mx.FP4)
    assert got.shape == (m, n) and got.dtype == F32 and (bits(got[rows]) == bits(acc)).all()


def test_block_dot_corners():
    """Largest sum, NaN scales, flush with sign, overflow and exact zero."""
    low = np.full(32, -128, np.int8)
    high = np.full(32, 127, np.int8)

    def dot(a, b, s: int, t: int) -> int:
        return int(bits(mx.block_dot(a, b, s, t, mx.INT8, mx.INT8)))

    assert dot(low, low, 127, 127) == int(bits(F32(128)))
    assert dot(low, high, 0, 0) == 0x80000000 and dot(low, low, 0, 0) == 0
    assert dot(low, high, 254, 254) == 0xFF800000 and dot(low, low, 254, 254) == 0x7F800000
    assert dot(low, low, 255, 0) == dot(low * 0, low, 3, 255) == 0x7FC00000
    one = np.zeros(32, np.int8)
    one[7] = 1
    assert dot(one, one, 70, 70) == int(bits(F32(2.0**-126))) and dot(one, one, 70, 69) == 0
    assert dot(-one, one, 70, 69) == 0x80000000
    cancel = one.copy()
    cancel[8] = -1
    assert dot(cancel, np.ones(32, np.int8) * -1, 127, 127) == 0
