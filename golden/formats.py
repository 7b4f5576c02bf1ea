"""MX block formats and their exact product: docs/numerics.md, "MX blocks" and "Dot product and accumulation".

All three element formats are small integers after a fixed shift ("integer form", int8): value = integer /
2^FRAC. Blocks are kept as (..., blocks, block) integers beside (..., blocks) scale bytes (E8M0, 255 = NaN).
The integer form has no -0: an element code of -0 reads as 0 and is written as +0.
Source: OCP Microscaling Formats (MX) v1.0.
"""

import numpy as np

from golden.arith import F32, NAN, canon, dot_to_f32, fadd, ftz

INT8, FP6, FP4 = 0, 1, 2
FRAC = (6, 3, 1)            # fraction bits of the integer form
EMAX = (0, 2, 2)            # exponent of the largest element
LARGEST = (127, 60, 12)     # largest magnitude that encode produces
BITS = (8, 6, 4)            # bits of an element in memory
BLOCK = 32
BLOCK_BYTES = (32, 24, 16)  # bytes of 32 elements in memory
NAN_SCALE = 255

_quiet = np.errstate(over="ignore", under="ignore", invalid="ignore")


# ---------------------------------------------------------------- quantisation

def _blocks(x: np.ndarray, block: int) -> np.ndarray:
    """(..., n) -> (..., ceil(n / block), block), zero padded."""
    n = x.shape[-1]
    if n % block:
        x = np.concatenate((x, np.zeros((*x.shape[:-1], -n % block), x.dtype)), axis=-1)
    return x.reshape(*x.shape[:-1], -1, block)


def _pow2(exponent: np.ndarray) -> np.ndarray:
    """2^exponent as float32 for int32 exponents in -126..127."""
    return ((exponent + 127) << 23).view(F32)


def _scaled(x, fmt: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of x in integer-form units before rounding, and their scale bytes; inf and NaN blocks zeroed."""
    x = _blocks(ftz(x), block)
    field = (x.view(np.int32) & 0x7F800000).max(axis=-1) >> 23
    special = field == 255
    scale = np.where(special, NAN_SCALE, np.maximum(field - EMAX[fmt], 0))
    if special.any():
        x = np.where(special[..., None], F32(0), x)
    exponent = FRAC[fmt] + 127 - scale  # 2^exponent can exceed float32 for tiny blocks: two exact steps
    y = x * _pow2(np.clip(exponent, -126, 127))[..., None]
    if ((exponent > 127) & (field > 0)).any():
        y *= _pow2(np.maximum(exponent - 127, 0))[..., None]
    return y, scale.astype(np.uint8)


@_quiet
def quantise_int8(x, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """MXINT8 along the last axis: x (..., n) -> int8 (..., blocks, block), scales uint8 (..., blocks).

    Ragged ends are zero padded. The hardware quantiser's result for block = 8, 16 or 32.
    """
    y, scale = _scaled(x, INT8, block)
    k = np.clip(np.rint(y, out=y), F32(-127), F32(127), out=y)
    return k.astype(np.int8), scale


@_quiet
def encode(x, fmt: int, axis: int = -1, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Blocks along axis, which moves last: x -> int8 (..., blocks, block), scales uint8 (..., blocks).

    Elements in integer form; a ragged end is zero padded.
    """
    x = np.moveaxis(np.asarray(x, F32), axis, -1)
    if fmt == INT8:
        return quantise_int8(x, block)
    y, scale = _scaled(x, fmt, block)
    # binades [0, 2), [2, 4), [4, 8) of the element have quanta 1, 2, 4 in the integer form
    magnitude, two = np.abs(y), F32(2 << FRAC[fmt])
    quantum = np.where(magnitude < two, F32(1), np.where(magnitude < 2 * two, F32(2), F32(4)))
    k = np.rint(y / quantum) * quantum
    return np.clip(k, -LARGEST[fmt], LARGEST[fmt]).astype(np.int8), scale


def _values(ints, scales, fmt: int, dtype) -> np.ndarray:
    """Exact values, subnormal where they are; NaN blocks where the scale byte is 255."""
    scales = np.asarray(scales)
    factor = np.ldexp(dtype(1), scales.astype(np.int32) - (127 + FRAC[fmt]))
    factor = np.where(scales == NAN_SCALE, dtype(np.nan), factor)
    return np.asarray(ints).astype(dtype) * factor[..., None]


@_quiet
def decode(ints, scales, fmt: int, dtype=np.float32, length: int | None = None) -> np.ndarray:
    """ints (..., blocks, block), scales (..., blocks) -> values of the same shape, or (..., length) if given.

    float64 is exact; float32 is exact except that it flushes below 2^-126 and overflows at -128/64 * 2^127.
    """
    values = _values(ints, scales, fmt, dtype)
    if dtype == np.float32:
        values = canon(values)
    if length is None:
        return values
    return values.reshape(*values.shape[:-2], -1)[..., :length]


# ---------------------------------------------------------------- memory layout

def _magnitudes(mantissa_bits: int) -> np.ndarray:
    """Integer form of the non-negative codes of E2M<mantissa_bits> (exponent bias 1)."""
    code = np.arange(4 << mantissa_bits)
    exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    return np.where(exponent == 0, mantissa, (mantissa + (1 << mantissa_bits)) << np.maximum(exponent - 1, 0))


def _code_tables(fmt: int) -> tuple[np.ndarray, np.ndarray]:
    """(integer form of each code, code of each integer form at index ints + 128; 255 = not representable)."""
    m = _magnitudes(FRAC[fmt]).astype(np.int8)
    to_int = np.concatenate((m, -m))
    to_code = np.full(256, 255, np.uint8)
    codes = np.arange(len(to_int))[::-1]  # reversed, so that 0 ends as +0
    to_code[to_int[codes].astype(int) + 128] = codes
    return to_int, to_code


_CODES = {fmt: _code_tables(fmt) for fmt in (FP6, FP4)}


def pack(ints, fmt: int) -> np.ndarray:
    """Integer form (..., 32 n) -> bytes uint8 (..., 32 n | 24 n | 16 n) as they lie in memory.

    ValueError when an integer is no element of the format or the last axis is no multiple of 32.
    """
    ints = np.asarray(ints, np.int8)
    if ints.shape[-1] % BLOCK:
        raise ValueError(f"last axis is {ints.shape[-1]}, must be a multiple of {BLOCK}")
    if fmt == INT8:
        return ints.view(np.uint8)
    code = _CODES[fmt][1][ints.astype(np.int16) + 128]
    if (code == 255).any():
        raise ValueError(f"integers are no elements of format {fmt}: {np.unique(ints[code == 255])[:8]}")
    if fmt == FP4:
        return code[..., 0::2] | code[..., 1::2] << 4
    word = code.reshape(*code.shape[:-1], -1, 4).astype(np.uint32) << np.arange(0, 24, 6, dtype=np.uint32)
    word = np.bitwise_or.reduce(word, axis=-1)[..., None] >> np.arange(0, 24, 8, dtype=np.uint32)
    return word.astype(np.uint8).reshape(*code.shape[:-1], -1)


def unpack(data, fmt: int) -> np.ndarray:
    """Bytes uint8 (..., 32 n | 24 n | 16 n) -> integer form int8 (..., 32 n)."""
    data = np.asarray(data, np.uint8)
    if data.shape[-1] % BLOCK_BYTES[fmt]:
        raise ValueError(f"last axis is {data.shape[-1]}, must be a multiple of {BLOCK_BYTES[fmt]}")
    if fmt == INT8:
        return data.view(np.int8)
    if fmt == FP4:
        code = np.stack((data & 15, data >> 4), axis=-1)
    else:
        b = data.reshape(*data.shape[:-1], -1, 3).astype(np.uint32) << np.arange(0, 24, 8, dtype=np.uint32)
        word = np.bitwise_or.reduce(b, axis=-1)[..., None]
        code = word >> np.arange(0, 24, 6, dtype=np.uint32) & np.uint32(63)
    return _CODES[fmt][0][code].reshape(*data.shape[:-1], -1)


# ---------------------------------------------------------------- products

def block_dot(a, b, sa, sb, fmt_a: int, fmt_b: int) -> np.ndarray:
    """Dot product of blocks: ints a, b (..., 32), scales sa, sb (...) -> float32 (...)."""
    total = (np.asarray(a, np.int32) * np.asarray(b, np.int32)).sum(axis=-1, dtype=np.int32)
    sa, sb = np.asarray(sa, np.int32), np.asarray(sb, np.int32)
    dot = dot_to_f32(total, sa + sb - 254 - FRAC[fmt_a] - FRAC[fmt_b])
    return np.where((sa == NAN_SCALE) | (sb == NAN_SCALE), NAN, dot)


def _exponents(ints: np.ndarray, scales: np.ndarray, fmt: int) -> tuple[int, int]:
    """Smallest and largest exponent of the unit of a non-zero block (any pair is right when all are zero)."""
    used = scales
    if used.size and used.min() < 72:  # an all-zero block has scale 0 but no influence: look at the elements
        used = scales[(ints != 0).any(axis=-1)]
    return (int(used.min()) - 127 - FRAC[fmt], int(used.max()) - 127 - FRAC[fmt]) if used.size else (0, 0)


@_quiet
def accumulate(x, sx, w, sw, fmt_x: int = INT8, fmt_w: int = INT8) -> np.ndarray:
    """MX matrix product: ints x (M, KB, 32), scales sx (M, KB), w (N, KB, 32), sw (N, KB) -> float32 (M, N).

    acc = dot_0; acc = fadd(acc, dot_k) in ascending k. A dot product is an integer below 2^20 times a
    power of two, so a float matrix product of decoded blocks is exact in any order of additions: in float32
    while no unit 2^(ex + ew) is below 2^-126 and no sum can overflow (none is then subnormal); else float64.
    """
    x, sx, w, sw = (np.asarray(v) for v in (x, sx, w, sw))
    (m, kb, _), n = x.shape, w.shape[0]
    (x_min, x_max), (w_min, w_max) = _exponents(x, sx, fmt_x), _exponents(w, sw, fmt_w)
    nan = (sx == NAN_SCALE).any() or (sw == NAN_SCALE).any()
    plain = (not nan and x_min + w_min >= -126 and max(x_max, w_max) < 100
             and x_max + w_max + 20 + kb.bit_length() < 127)
    xv, wv = (_values(i, s, f, F32 if plain else np.float64) for i, s, f in ((x, sx, fmt_x), (w, sw, fmt_w)))
    xv, wv = xv.transpose(1, 0, 2), wv.transpose(1, 2, 0)
    acc = np.zeros((m, n), F32)
    chunk = max(1, (1 << 21) // max(1, m * n))
    for k in range(0, kb, chunk):
        for step, dot in enumerate(np.matmul(xv[k : k + chunk], wv[k : k + chunk]), k):
            if plain:
                acc += dot  # acc starts at +0, which turns a -0 into the +0 that I = 0 gives
            else:
                dot = canon((dot + 0.0).astype(F32))  # I = 0 is +0, a flushed negative is -0
                acc = dot if step == 0 else fadd(acc, dot)
    return acc
