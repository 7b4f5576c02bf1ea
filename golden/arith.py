"""float32 arithmetic of the tile, vectorised: docs/numerics.md, "float32", "Table functions", "Reductions".

Every function takes anything that numpy broadcasts, reads it as float32 and returns float32 (or the integer
type stated). Subnormals are read and written as zero of the same sign, every NaN result is 0x7fc00000. A
function may return its input array unchanged and never modifies it.
"""

from functools import cache

import numpy as np

from golden.tables import tables

__all__ = ["F32", "INF", "NAN", "argmax", "bf16_to_f32", "canon", "dot_to_f32", "exp2", "f32_to_bf16", "fadd",
           "fmax", "fmin", "fmul", "fneg", "fsub", "ftz", "int_to_f32", "key", "max_reduce", "recip", "rsqrt",
           "sum8", "tables", "unkey"]

F32 = np.float32
NAN = np.uint32(0x7FC00000).view(F32)
INF = F32(np.inf)
TINY = F32(2.0**-126)  # smallest normal
_SIGN = np.uint32(0x80000000)
_KEY_NEG_INF = np.int32(0xFF800000 - (1 << 32)) ^ np.int32(0x7FFFFFFF)
_quiet = np.errstate(over="ignore", under="ignore", invalid="ignore")


def _f32(x) -> np.ndarray:
    return np.asarray(x, F32)


# ---------------------------------------------------------------- rounding and order

def ftz(x) -> np.ndarray:
    """Subnormals to zero of the same sign; NaN payloads and everything else pass unchanged."""
    x = _f32(x)
    subnormal = (np.abs(x) < TINY) & (x != 0)
    return np.where(subnormal, np.copysign(F32(0), x), x) if subnormal.any() else x


def canon(x) -> np.ndarray:
    """ftz, and every NaN becomes 0x7fc00000: the last step of every operation."""
    x = ftz(x)
    nan = np.isnan(x)
    return np.where(nan, NAN, x) if nan.any() else x


def key(x) -> np.ndarray:
    """Total-order key, int32: -0 < +0 < ... < inf < NaN (a NaN with its sign set is below -inf)."""
    b = ftz(x).view(np.int32)
    return b ^ ((b >> 31) & np.int32(0x7FFFFFFF))


def unkey(k) -> np.ndarray:
    """The float32 whose key is k, NaN canonical."""
    k = np.asarray(k, np.int32)
    return canon((k ^ ((k >> 31) & np.int32(0x7FFFFFFF))).view(F32))


# ---------------------------------------------------------------- elementwise operations

@_quiet
def fadd(a, b) -> np.ndarray:
    """a + b."""
    return canon(ftz(a) + ftz(b))


@_quiet
def fsub(a, b) -> np.ndarray:
    """a - b, which is a + (-b)."""
    return canon(ftz(a) - ftz(b))


@_quiet
def fmul(a, b) -> np.ndarray:
    """a * b. A product in [2^-126 - 2^-150, 2^-126) rounds up to 2^-126 and stays."""
    return canon(ftz(a) * ftz(b))


def fneg(x) -> np.ndarray:
    """Sign flipped; NaN canonical."""
    return canon(-_f32(x))


def fmax(a, b) -> np.ndarray:
    """Larger by key: NaN wins over everything."""
    return unkey(np.maximum(key(a), key(b)))


def fmin(a, b) -> np.ndarray:
    """Smaller by key."""
    return unkey(np.minimum(key(a), key(b)))


# ---------------------------------------------------------------- table functions

@cache
def _rom(name: str) -> tuple[np.ndarray, np.ndarray]:
    """T0 and T1 * 2^-23 as float32: the power of two moves from lo to the slope, no rounding changes."""
    t0, t1 = (t.view(F32) for t in tables()[name])
    return t0, t1 * F32(2.0**-23)


def _chord(name: str, i: np.ndarray, lo: np.ndarray) -> np.ndarray:
    """fadd(T0[i], fmul(T1[i], lo * 2^-23)) as int32 bits, lo an integer. All normal: no flush is needed."""
    t0, t1 = _rom(name)
    y = t1[i]
    y *= lo.astype(F32)
    y += t0[i]
    return y.view(np.int32)


def _split(x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bits int32, biased exponent, mantissa field)."""
    b = _f32(x).reshape(-1).view(np.int32)
    return b, (b >> 23) & 255, b & 0x7FFFFF


@_quiet
def exp2(x) -> np.ndarray:
    """2^x; |error| < 2.63 ulp for every float32, < 1.94 ulp where x has no bits below 2^-23.

    x >= 128 gives +inf, x < -126 gives +0, exp2(0) = 1 exactly.
    """
    x = _f32(x)
    flat = x.reshape(-1)
    # clamped for the conversion only (fmax also takes NaN out); 128 - 2^-17 is the last float32 below 128
    v = np.fmin(np.fmax(flat, F32(-126)), F32(128 - 2.0**-17))
    v = np.rint(v * F32(2.0**23)).astype(np.int32)
    y = _chord("exp2", (v >> 13) & 1023, v & 8191)
    y += v & np.int32(-(1 << 23))  # n = v >> 23 added to the exponent field; 2.0 * 2^127 becomes +inf
    y = y.view(F32)
    y[flat >= 128] = INF
    y[flat < -126] = 0
    y[np.isnan(flat)] = NAN
    return y.reshape(x.shape)


def recip(a) -> np.ndarray:
    """1 / a; |error| < 4.89 ulp. +-0 gives +-inf, +-inf gives +-0, results below 2^-126 flush."""
    b, e, m = _split(a)
    y = _chord("recip", m >> 13, m & 8191)
    y -= (e - 127) << 23
    y[y < 1 << 23] = 0  # |a| > 2^126: below the smallest normal
    y[e == 0] = 0x7F800000
    y[e == 255] = 0
    y |= b & np.int32(-(1 << 31))
    y[(e == 255) & (m != 0)] = 0x7FC00000
    return y.view(F32).reshape(np.shape(a))


def rsqrt(a) -> np.ndarray:
    """1 / sqrt(a); |error| < 6.85 ulp. +-0 gives +inf, +inf gives +0, a < 0 gives NaN."""
    b, e, m = _split(a)
    odd = (e + 1) & 1
    y = _chord("rsqrt", odd << 9 | m >> 14, (m & 16383) << odd)
    y -= (e - 127 - odd) >> 1 << 23
    y[b == 0x7F800000] = 0
    y[(b < 0) | (b > 0x7F800000)] = 0x7FC00000
    y[e == 0] = 0x7F800000
    return y.view(F32).reshape(np.shape(a))


# ---------------------------------------------------------------- conversions

def bf16_to_f32(u) -> np.ndarray:
    """bf16 bits uint16 -> float32: 16 zero bits appended, nothing flushed."""
    return (np.asarray(u, np.uint16).astype(np.uint32) << np.uint32(16)).view(F32)


def f32_to_bf16(x) -> np.ndarray:
    """float32 -> bf16 bits uint16, to nearest even; subnormals flush, NaN is 0x7fc0, overflow infinity."""
    b = canon(x).view(np.uint32)
    b = b + ((b >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF))
    return (b >> np.uint32(16)).astype(np.uint16)


def int_to_f32(i) -> np.ndarray:
    """Integer -> float32, to nearest even; 0 gives +0."""
    return np.asarray(i).astype(F32)


@_quiet
def dot_to_f32(i, exponent) -> np.ndarray:
    """i * 2^exponent for integers |i| <= 2^20: exact, flushed below 2^-126, infinity above; i = 0 is +0."""
    return ftz(np.ldexp(np.asarray(i).astype(F32), np.asarray(exponent, np.int32)))


# ---------------------------------------------------------------- reductions along a stream

@_quiet
def sum8(x, axis: int = -1) -> np.ndarray:
    """Sum along axis in eight interleaved partial sums, then ((p0+p1)+(p2+p3)) + ((p4+p5)+(p6+p7))."""
    x = np.moveaxis(ftz(x), axis, 0)
    steps = -(-x.shape[0] // 8)
    padded = np.full((steps * 8, *x.shape[1:]), F32(-0.0))  # -0 leaves every partial sum as it is
    padded[: x.shape[0]] = x
    rows = padded.reshape(steps, 8, *x.shape[1:])
    rows[:1] += F32(0)  # +0 + x_0
    sums = np.add.accumulate(rows, axis=0)  # strictly sequential
    if not steps:
        p = np.zeros(rows.shape[1:], F32)
    elif ((np.abs(sums) < TINY) & (sums != 0)).any():  # a partial sum must be flushed on the way
        p = rows[0]
        for row in rows[1:]:
            p = ftz(p + row)
    else:
        p = sums[-1]
    while len(p) > 1:
        p = ftz(p[0::2] + p[1::2])
    return canon(p[0])


def max_reduce(x, axis: int = -1) -> np.ndarray:
    """Largest along axis by key, starting at -inf (also the result of an empty stream)."""
    return unkey(np.max(key(x), axis=axis, initial=_KEY_NEG_INF))


def argmax(x, axis: int = -1) -> np.ndarray:
    """First index (int64) of the largest along axis by key; 0 when nothing exceeds -inf."""
    return np.argmax(np.maximum(key(x), _KEY_NEG_INF), axis=axis)
