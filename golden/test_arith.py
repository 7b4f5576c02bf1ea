"""golden.arith against exact rational arithmetic, float64 and high-precision references."""

from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest

from golden import arith
from golden.arith import F32

CORNERS = np.array([
    0x00000000, 0x00000001, 0x00400000, 0x007FFFFF, 0x00800000, 0x00800001, 0x00FFFFFF, 0x01000000,
    0x20000000, 0x1FFFFFFF, 0x33800000, 0x34000000, 0x3F000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001,
    0x3FFFFFFF, 0x40000000, 0x4B000000, 0x4B7FFFFF, 0x5F800000, 0x7E800000, 0x7F000000, 0x7F7FFFFE,
    0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF], np.uint32)
CORNERS = np.concatenate((CORNERS, CORNERS | np.uint32(0x80000000)))
NAN_BITS = 0x7FC00000


def bits(x) -> np.ndarray:
    return np.asarray(x, F32).view(np.uint32)


def floats(u) -> np.ndarray:
    return np.asarray(u, np.uint32).view(F32)


def ref_round(value: Fraction, zero_sign: int) -> int:
    """Exact value -> float32 bits: nearest even, gradual underflow, then flush; zero_sign for exact zero."""
    sign = (value < 0) if value else zero_sign
    v = abs(value)
    if not v:
        return sign << 31
    e = v.numerator.bit_length() - v.denominator.bit_length()
    if v < Fraction(2) ** e:
        e -= 1
    e = max(e, -126)
    mantissa = round(v / Fraction(2) ** (e - 23))  # Python rounds halves to even
    if mantissa == 1 << 24:
        mantissa, e = 1 << 23, e + 1
    if mantissa < 1 << 23:
        return sign << 31
    return sign << 31 | (0x7F800000 if e > 127 else (e + 127 << 23) + mantissa - (1 << 23))


def ref_op(op: str, ua: int, ub: int) -> int:
    """add, sub and mul on float32 bits, from the definition."""
    def read(u):
        sign, field, m = u >> 31, u >> 23 & 255, u & 0x7FFFFF
        kind = "nan" if field == 255 and m else "inf" if field == 255 else "fin"
        value = (-1) ** sign * Fraction(m | 1 << 23) * Fraction(2) ** (field - 150) if field else Fraction(0)
        return sign, kind, value
    (sa, ka, a), (sb, kb, b) = read(ua), read(ub ^ (0x80000000 if op == "sub" else 0))
    if "nan" in (ka, kb):
        return NAN_BITS
    if op == "mul":
        s = sa ^ sb
        if "inf" in (ka, kb):
            return NAN_BITS if (ka == "fin" and not a) or (kb == "fin" and not b) else s << 31 | 0x7F800000
        return ref_round(a * b, s)
    if ka == kb == "inf" and sa != sb:
        return NAN_BITS
    if "inf" in (ka, kb):
        return (sa if ka == "inf" else sb) << 31 | 0x7F800000
    return ref_round(a + b, sa & sb)


def operands(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every corner pair, random bit patterns, near exponents (cancellation) and products near 2^-126."""
    g = np.random.default_rng(seed)
    pairs = [np.array(np.meshgrid(CORNERS, CORNERS)).reshape(2, -1)]
    pairs.append(g.integers(0, 1 << 32, (2, n), np.uint32))
    near = g.integers(0, 1 << 32, (2, n), np.uint32) & np.uint32(0x807FFFFF)
    pairs.append(near | g.integers(120, 132, (2, n), np.uint32) << np.uint32(23))
    pairs.append(near | g.integers(0, 12, (2, n), np.uint32) << np.uint32(23))  # sums that underflow
    under = near | g.integers(60, 68, (2, n), np.uint32) << np.uint32(23)
    pairs.append(under)
    return tuple(np.concatenate(pairs, axis=1))


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_operations_match_rationals(op):
    a, b = operands(seed=1, n=1500)
    got = bits({"add": arith.fadd, "sub": arith.fsub, "mul": arith.fmul}[op](floats(a), floats(b)))
    want = np.array([ref_op(op, int(x), int(y)) for x, y in zip(a, b)], np.uint32)
    bad = np.flatnonzero(got != want)
    assert not bad.size, [(hex(a[i]), hex(b[i]), hex(got[i]), hex(want[i])) for i in bad[:5]]


@pytest.mark.parametrize("op, a, b, want", [
    ("mul", 0x00FFFFFF, 0x3F000000, 0x00800000),  # 2^-126 - 2^-150: the tie rounds up to normal and stays
    ("mul", 0x00FFFFFE, 0x3F000000, 0x00000000),  # 2^-126 - 2^-149: subnormal, flushed
    ("mul", 0x80FFFFFE, 0x3F000000, 0x80000000),
    ("mul", 0x007FFFFF, 0x7F000000, 0x00000000),  # a subnormal operand is zero
    ("mul", 0x80000001, 0x7F800000, NAN_BITS),    # and zero times infinity
    ("add", 0x00800001, 0x80800000, 0x00000000),  # subnormal difference
    ("add", 0x80800001, 0x00800000, 0x80000000),
    ("add", 0x3F800000, 0xBF800000, 0x00000000),
    ("add", 0x80000000, 0x80000000, 0x80000000),
    ("add", 0x80000000, 0x00000000, 0x00000000),
    ("add", 0x80000000, 0x80000001, 0x80000000),
    ("add", 0x7F800000, 0xFF800000, NAN_BITS),
    ("add", 0xFFC12345, 0x3F800000, NAN_BITS),
    ("add", 0x7F7FFFFF, 0x7F7FFFFF, 0x7F800000),
])
def test_literal_corners(op, a, b, want):
    assert bits({"add": arith.fadd, "mul": arith.fmul}[op](floats(a), floats(b))) == want
    assert ref_op(op, a, b) == want


def test_order():
    ordered = floats([0xFF800000, 0xFF7FFFFF, 0xBF800000, 0x80800000, 0x80000000, 0, 0x00800000, 0x3F800000,
                      0x7F7FFFFF, 0x7F800000, NAN_BITS])
    assert (np.diff(arith.key(ordered).astype(np.int64)) > 0).all()
    i, j = np.meshgrid(np.arange(11), np.arange(11))
    assert (bits(arith.fmax(ordered[i], ordered[j])) == bits(ordered[np.maximum(i, j)])).all()
    assert (bits(arith.fmin(ordered[i], ordered[j])) == bits(ordered[np.minimum(i, j)])).all()
    assert arith.key(floats([0x80000001, 0x00000001])).tolist() == [-1, 0]
    assert bits(arith.fneg(floats([0, 0x80000001, 0x3F800000, 0xFFC00001]))).tolist() == [
        0x80000000, 0, 0xBF800000, NAN_BITS]
    assert bits(arith.ftz(floats([0x807FFFFF, 0x00800000]))).tolist() == [0x80000000, 0x00800000]


# ---------------------------------------------------------------- table functions

def test_tables_match_high_precision():
    """Every entry from 50-digit decimals, so no float64 rounding decides an entry."""
    getcontext().prec = 50
    two = Decimal(2)

    def bits_of(v: Decimal, significand: int) -> int:
        f = Fraction(v)
        e = 0
        while abs(f) >= 2:
            f, e = f / 2, e + 1
        while abs(f) < 1:
            f, e = f * 2, e - 1
        m = round(f * 2 ** (significand - 1))
        return int(bits(F32(m * 2.0 ** (e - significand + 1))))

    nodes = {
        "exp2": [(two ** (Decimal(i) / 1024), two ** (Decimal(i + 1) / 1024), Decimal(1) / 1024)
                 for i in range(1024)],
        "recip": [(1 / (1 + Decimal(i) / 1024), 1 / (1 + Decimal(i + 1) / 1024), Decimal(1) / 1024)
                  for i in range(1024)],
        "rsqrt": [(1 / (s + s * j / 512).sqrt(), 1 / (s + s * (j + 1) / 512).sqrt(), s / 512)
                  for s in (Decimal(1), Decimal(2)) for j in range(512)],
    }
    for name, rows in nodes.items():
        t0, t1 = arith.tables()[name]
        assert t0.dtype == t1.dtype == np.uint32 and len(t0) == len(t1) == 1024
        assert [bits_of(a, 24) for a, _, _ in rows] == t0.tolist()
        assert [bits_of((b - a) / w, 18) for a, b, w in rows] == t1.tolist()
        assert not (t1 & 63).any()


def ulps(got: np.ndarray, true: np.ndarray) -> float:
    return float(np.max(np.abs(got.astype(np.float64) - true) / np.ldexp(1.0, np.frexp(true)[1] - 24)))


CHUNKS = [np.arange(c << 20, (c + 1) << 20, dtype=np.int32) for c in range(8)]


def test_exp2_error_every_float32():
    """Every fixed-point fraction f; all x that round to f lie within half a unit: bounds every float32."""
    exact, rounded = 0.0, 0.0
    for f in CHUNKS:
        y = arith.exp2(f * F32(2.0**-23))
        true = np.exp2(f * 2.0**-23)
        exact = max(exact, ulps(y, true))
        half = np.exp2(2.0**-24)
        rounded = max(rounded, ulps(y, true * half), ulps(y, true / half))
    print(f"exp2: {exact:.4f} ulp on the grid, {rounded:.4f} ulp for every float32")
    assert 1.93 < exact < 1.94 and 2.62 < rounded < 2.63
    x = floats((CHUNKS[3] | 126 << 23).astype(np.uint32))  # finer than the grid: rounding of x to fixed point
    for scale in (1, -1, 1 / 64, -1 / 64):
        assert ulps(arith.exp2(x * F32(scale)), np.exp2(x.astype(np.float64) * scale)) < 2.63


def test_recip_error_every_mantissa():
    worst = 0.0
    for m in CHUNKS:
        a = floats((m | 127 << 23).astype(np.uint32))
        y = arith.recip(a)
        worst = max(worst, ulps(y, 1 / a.astype(np.float64)))
        assert y.min() >= 0.5
        assert not (bits(y) == 0x3F7FFFFF).any()  # would be a tie that rounds up to 2^-126 at e = 126
    print(f"recip: {worst:.4f} ulp")
    assert 4.88 < worst < 4.89


def test_rsqrt_error_every_mantissa():
    worst = 0.0
    for m in CHUNKS:
        for field in (127, 128):
            a = floats((m | field << 23).astype(np.uint32))
            worst = max(worst, ulps(arith.rsqrt(a), 1 / np.sqrt(a.astype(np.float64))))
    print(f"rsqrt: {worst:.4f} ulp")
    assert 6.84 < worst < 6.85


def test_exponents_scale_exactly():
    """Other binades are the reduced range times a power of two, flushed or overflowed."""
    g = np.random.default_rng(2)
    m = g.integers(0, 1 << 23, 64, np.uint32)
    m[:2] = 0, 1
    sign = g.integers(0, 2, 64, np.uint32) << np.uint32(31)
    base = arith.recip(floats(m | np.uint32(127 << 23) | sign)).astype(np.float64)
    root = [arith.rsqrt(floats(m | np.uint32(f << 23))).astype(np.float64) for f in (127, 128)]
    for field in range(1, 255):
        got = arith.recip(floats(m | np.uint32(field << 23) | sign))
        want = np.ldexp(base, 127 - field)
        want = np.where(np.abs(want) < 2.0**-126, np.copysign(0, want), want).astype(F32)
        assert (bits(got) == bits(want)).all(), field
        got = arith.rsqrt(floats(m | np.uint32(field << 23)))
        assert (got == np.ldexp(root[(field + 1) & 1], -((field - 127) // 2))).all(), field
    f = g.integers(0, 1 << 15, 64) * 2.0**-15  # survives next to an integer part below 2^8
    reduced = arith.exp2(f.astype(F32)).astype(np.float64)
    for n in range(-126, 128):
        assert (arith.exp2((n + f).astype(F32)) == np.ldexp(reduced, n)).all(), n


def test_table_function_corners():
    x = floats([0, 0x80000000, 1, 0x42FFFFFF, 0x43000000, 0x7F800000, 0xFF800000, 0xFFC00001, 0xC2FC0000,
                0xC2FC0001, 0x3F800000])
    one, inf = 0x3F800000, 0x7F800000
    got = bits(arith.exp2(x)).tolist()
    assert got[:3] == [one] * 3 and 0x7F7FFE00 < got[3] < inf
    assert got[4:] == [inf, inf, 0, NAN_BITS, 0x00800000, 0, 0x40000000]
    x = floats([0, 0x80000000, 1, 0x80000001, inf, 0xFF800000, 0xFF800001, one, 0xC0000000, 0x7E800000,
                0x7E800001, 0xFF7FFFFF, 0x00800000])
    assert bits(arith.recip(x)).tolist() == [
        inf, 0xFF800000, inf, 0xFF800000, 0, 0x80000000, NAN_BITS, one, 0xBF000000, 0x00800000,
        0, 0x80000000, 0x7E800000]
    x = floats([0, 0x80000000, 1, 0x80000001, inf, 0xFF800000, 0xFF800001, 0x7F800001, one, 0xBF800000,
                0x40800000, 0x80800000, 0x00800000])
    assert bits(arith.rsqrt(x)).tolist() == [
        inf, inf, inf, inf, 0, NAN_BITS, NAN_BITS, NAN_BITS, one, NAN_BITS, 0x3F000000, NAN_BITS, 0x5F000000]


def ref_scalar(name: str, u: int) -> int:
    """The definition of a table function, one value at a time, on rationals and ref_op."""
    t0, t1 = (t.tolist() for t in arith.tables()[name])
    field, m = u >> 23 & 255, u & 0x7FFFFF
    value = Fraction(float(floats(u)))
    if name == "exp2":
        v = round(value * 2**23)
        i, lo, shift = (v >> 13) & 1023, v & 8191, v >> 23
    elif name == "recip":
        i, lo, shift = m >> 13, m & 8191, 127 - field
    else:
        odd = (field + 1) & 1
        i, lo, shift = odd << 9 | m >> 14, (m & 16383) * (1 + odd), -((field - 127 - odd) // 2)
    y = ref_op("add", t0[i], ref_op("mul", t1[i], ref_round(Fraction(lo, 2**23), 0)))
    sign = u & 0x80000000 if name == "recip" else 0
    return sign | ref_round(Fraction(float(floats(y))) * Fraction(2) ** shift, 0)


@pytest.mark.parametrize("name", ["exp2", "recip", "rsqrt"])
def test_table_functions_follow_the_definition(name):
    g = np.random.default_rng(3)
    if name == "exp2":
        small = g.standard_normal(1000) * 2.0 ** g.integers(-30, 3, 1000)
        u = bits(np.concatenate((g.uniform(-126, 128, 1000), small)))
    else:
        u = g.integers(1 << 23, 255 << 23, 2000, np.uint32)
        u |= np.uint32(0 if name == "rsqrt" else 1 << 31) & g.integers(0, 1 << 32, 2000, np.uint32)
    got = bits(getattr(arith, name)(floats(u)))
    assert got.tolist() == [ref_scalar(name, int(v)) for v in u]


# ---------------------------------------------------------------- conversions

def test_bf16():
    import ml_dtypes

    every = np.arange(1 << 16).astype(np.uint16)
    wide = arith.bf16_to_f32(every)
    assert (bits(wide) == every.astype(np.uint32) << 16).all()
    back = arith.f32_to_bf16(wide)
    nan, sub = np.isnan(wide), (every & 0x7F80) == 0
    assert (back == np.where(nan, 0x7FC0, np.where(sub, every & 0x8000, every))).all()
    g = np.random.default_rng(4)
    u = np.concatenate((CORNERS, g.integers(0, 1 << 32, 1 << 18, np.uint32),
                        g.integers(0, 1 << 17, 1 << 16, np.uint32) << np.uint32(15)))  # halfway cases
    x = arith.canon(floats(u))
    want = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (arith.f32_to_bf16(floats(u)) == np.where(np.isnan(x), 0x7FC0, want)).all()


def test_integers():
    g = np.random.default_rng(5)
    i = [0, 2**24 + 1, 2**24 + 3, -2**24 - 1, -2**31, 2**31 - 1]
    i = np.concatenate((g.integers(-2**31, 2**31, 1000), i))
    assert bits(arith.int_to_f32(i.astype(np.int32))).tolist() == [ref_round(Fraction(int(v)), 0) for v in i]
    i = np.concatenate((g.integers(-2**19, 2**19 + 1, 3000), [0, 1, -1, 2**19, -2**19])).repeat(2)
    e = g.integers(-266, 255, i.size)
    e[::2] = g.integers(-150, -120, e[::2].size)
    want = []
    for v, s in zip(i.tolist(), e.tolist()):
        exact = Fraction(v) * Fraction(2) ** s
        want.append((v < 0) << 31 if abs(exact) < Fraction(2) ** -126 else ref_round(exact, 0))
    assert bits(arith.dot_to_f32(i, e)).tolist() == want


# ---------------------------------------------------------------- reductions

def ref_sum8(column: list[int]) -> int:
    p = [0] * 8
    for i, u in enumerate(column):
        p[i % 8] = ref_op("add", p[i % 8], u)
    while len(p) > 1:
        p = [ref_op("add", p[i], p[i + 1]) for i in range(0, len(p), 2)]
    return p[0]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 16, 31, 100])
@pytest.mark.parametrize("kind", ["normal", "tiny", "special", "negative zero"])
def test_sum8(n, kind):
    g = np.random.default_rng(n)
    x = g.standard_normal((n, 5)).astype(F32)
    if kind == "tiny":  # cancellation leaves subnormal partial sums
        sign = g.integers(0, 2, x.shape, np.uint32) << np.uint32(31)
        x = floats(g.integers(0, 3 << 23, x.shape, np.uint32) | sign)
    elif kind == "special" and n:
        x.reshape(-1)[g.integers(0, x.size, 3)] = [np.inf, -np.inf, np.nan]
    elif kind == "negative zero":
        x = np.full((n, 5), F32(-0.0))
    want = [ref_sum8(c) for c in bits(x).T.tolist()]
    keep = x.copy()
    assert bits(arith.sum8(x, axis=0)).tolist() == want
    assert bits(arith.sum8(np.ascontiguousarray(x.T))).tolist() == want
    assert (bits(keep) == bits(x)).all()


def test_sum8_ragged_keeps_negative_zero():
    """Partial sums flushed to -0 stay -0 where the last row of eight has no element."""
    x = np.full(17, F32(-0.0))
    x[:8], x[8:16] = floats(0x00800000), floats(0x80800001)
    assert bits(arith.sum8(x)) == 0x80000000 == ref_sum8(bits(x).tolist())


def test_max_and_argmax():
    g = np.random.default_rng(6)
    pool = floats(np.concatenate((CORNERS, g.integers(0, 1 << 32, 30, np.uint32))))
    for n in (1, 2, 3, 9, 40):
        for _ in range(30):
            x = g.choice(pool, n)
            best, index = 0xFF800000, 0
            for i, v in enumerate(x):
                if int(arith.key(v)) > int(arith.key(floats(best))):
                    best, index = int(bits(v)), i
            assert arith.argmax(x) == index
            assert bits(arith.max_reduce(x)) == bits(arith.canon(floats(best)))
    assert bits(arith.max_reduce(np.zeros((0, 2), F32), axis=0)).tolist() == [0xFF800000] * 2
    assert arith.argmax(np.full(4, -np.inf, F32)) == 0
    assert arith.argmax(floats([0xFFC00000, 0xFF800000])) == 0  # nothing exceeds the starting -inf
    assert arith.argmax(F32([[1, 3, 3], [-0.0, -1, 0.0]])).tolist() == [1, 2]


def test_shapes():
    """Any shape, scalars included, and broadcasting."""
    x = np.linspace(-2, 2, 24, dtype=F32).reshape(2, 3, 4)
    for f in (arith.exp2, arith.recip, arith.rsqrt, arith.fneg, arith.canon, arith.ftz):
        assert f(x).shape == x.shape and f(x).dtype == F32
        assert (bits(f(x.T)) == bits(f(x)).T).all()
        assert bits(f(x[1, 2, 3])) == bits(f(x))[1, 2, 3]
    assert arith.fadd(x, F32(1)).shape == x.shape and arith.fmul(x[:, :1], x[:1]).shape == (2, 3, 4)
