"""Chord tables of the elementary functions exp2, recip and rsqrt (docs/numerics.md, "Table functions").

Each table has 1024 entries: T0[i] is the function at the left node rounded to float32, T1[i] the slope of the
chord to the next node rounded to nearest even to an 18-bit significand. Both are float32 bit patterns.
"""

from functools import cache

import numpy as np

ENTRIES = 1024
SLOPE_BITS = 18


def round_significand(x: np.ndarray, bits: int) -> np.ndarray:
    """float64 x rounded to nearest even to a significand of `bits` bits (leading one included)."""
    mantissa, exponent = np.frexp(x)  # |mantissa| in [0.5, 1)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


def _chords(left: np.ndarray, right: np.ndarray, width) -> tuple[np.ndarray, np.ndarray]:
    slope = round_significand((right - left) / width, SLOPE_BITS)
    t0, t1 = (v.astype(np.float32).view(np.uint32) for v in (left, slope))
    t0.flags.writeable = t1.flags.writeable = False
    return t0, t1


@cache
def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{'exp2' | 'recip' | 'rsqrt': (T0 uint32 (1024,), T1 uint32 (1024,))}: float32 bits, read only."""
    i = np.arange(ENTRIES + 1, dtype=np.float64)
    exp2 = np.exp2(i / ENTRIES)
    recip = 1 / (1 + i / ENTRIES)
    j = np.arange(ENTRIES // 2 + 1, dtype=np.float64)
    octave = 1 + j / (ENTRIES // 2)
    even, odd = 1 / np.sqrt(octave), 1 / np.sqrt(2 * octave)
    width = np.repeat([2.0**-9, 2.0**-8], ENTRIES // 2)
    return {
        "exp2": _chords(exp2[:-1], exp2[1:], 2.0**-10),
        "recip": _chords(recip[:-1], recip[1:], 2.0**-10),
        "rsqrt": _chords(np.concatenate((even[:-1], odd[:-1])), np.concatenate((even[1:], odd[1:])), width),
    }
