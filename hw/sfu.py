"""Table functions exp2, recip and rsqrt on float32, one result per cycle (docs/numerics.md, "Table
functions")."""

import itertools
import math
import struct

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fp import Cuts, _pack
from .memory import rom

__all__ = ["IDENTITY", "EXP2", "RECIP", "RSQRT", "Sfu", "chord_tables"]

IDENTITY, EXP2, RECIP, RSQRT = range(4)
ENTRIES = 1024
SLOPE_BITS = 18
SLOPE_SHIFT = {EXP2: 2, RECIP: 1, RSQRT: 0}
"""The slope in table f is sig * 2^(SLOPE_SHIFT[f] + c - 20), sig in [2^17, 2^18), c a bit of the table. For
odd rsqrt arguments it is half of that, which leaves the doubling of `lo` out."""


def _chord(left: float, right: float, width: float) -> tuple[int, int, int]:
    """(float32 pattern of the left node, 18-bit significand of the slope's magnitude, its exponent)."""
    fraction, exponent = math.frexp(abs((right - left) / width))
    slope = round(math.ldexp(fraction, SLOPE_BITS))  # Python rounds to nearest even
    if slope >> SLOPE_BITS:
        slope, exponent = slope >> 1, exponent + 1
    return struct.unpack("<I", struct.pack("<f", left))[0], slope, exponent


def chord_tables() -> dict[int, list[tuple[int, int, int]]]:
    """{function: 1024 entries as of `_chord`}."""
    fine, coarse = (
        [i / ENTRIES for i in range(ENTRIES + 1)],
        [1 + 2 * i / ENTRIES for i in range(ENTRIES // 2 + 1)],
    )
    exp2 = [2.0**f for f in fine]
    recip = [1 / (1 + f) for f in fine]
    even, odd = ([1 / math.sqrt(scale * f) for f in coarse] for scale in (1, 2))

    def chords(nodes, width):
        return [_chord(left, right, width) for left, right in itertools.pairwise(nodes)]

    return {
        EXP2: chords(exp2, 2.0**-10),
        RECIP: chords(recip, 2.0**-10),
        RSQRT: chords(even, 2.0**-9) + chords(odd, 2.0**-8),
    }


def _rows() -> list[int]:
    """ROM contents: T0's 23 fraction bits, the slope's 17 bits below its leading one, and the exponent bit
    c."""
    rows = []
    for func, chords in chord_tables().items():
        for i, (t0, slope, exponent) in enumerate(chords):
            doubled = func == RSQRT and i >= ENTRIES // 2
            c = exponent + 2 + doubled - SLOPE_SHIFT[func]
            assert c in (0, 1) and slope >> 17 == 1, "slope outside of its two binades"
            # The exponent of T0 is implied by the table and by i = 0.
            assert t0 >> 23 == (127 if func == EXP2 or i == 0 else 126)
            rows.append((t0 & 0x7FFFFF) | (slope & 0x1FFFF) << 23 | c << 40)
    return rows


class Sfu(wiring.Component):
    """o = a (canonical), 2^a, 1/a or 1/sqrt(a) for func = 0 .. 3. Equals `golden.arith.canon / exp2 / recip /
    rsqrt` bit for bit.

    Free-running, latency 12 for every function. The identity travels through the same datapath as T0 =
    1.fraction, slope 0. The chord is computed in fixed point with the two roundings of the float32
    definition: the product to 24 significant bits, the sum to 24 significant bits.
    """

    LATENCY = 12

    def __init__(self):
        self.latency = self.LATENCY
        super().__init__({"a": In(32), "func": In(2), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        cut = Cuts(m, self.latency, self.latency)
        m.submodules.table = table = rom(width=41, init=_rows())

        # 1: operand classes, exponent of the result when y = 1, and the shift of exp2's fixed point.
        a, func = self.a, self.func
        exp_in, frac_in, neg = a[23:31], a[:23], a[31]
        is_exp2, is_recip, is_rsqrt = func == EXP2, func == RECIP, func == RSQRT
        tiny, huge, nan = exp_in == 0, exp_in == 255, (exp_in == 255) & frac_in.any()
        beyond = (exp_in > 133) | ((exp_in == 133) & neg & (frac_in > 0x7C0000))  # exp2: x >= 128 or x < -126
        s = cut(
            func=func,
            neg=neg,
            frac=frac_in,
            shift=133 - exp_in,
            one=~tiny,
            exp=Mux(is_recip, 254 - exp_in, Mux(is_rsqrt, 191 - ((exp_in + 1) >> 1), exp_in)).as_signed(),
            odd=is_rsqrt & ~exp_in[0],
            sign=neg & ((func == IDENTITY) | is_recip),
            nan=nan | (is_rsqrt & neg & ~tiny),
            zero=Mux(is_exp2, beyond & neg, Mux(func == IDENTITY, tiny, huge)),
            inf=Mux(is_exp2, beyond & ~neg, Mux(func == IDENTITY, huge, tiny)),
        )

        # 2: |x| with 23 fraction bits; guard and sticky below. Shifts of 32 and more leave nothing.
        keep = s.one & ~s.shift[5:].any()
        fixed = Cat(Const(0, 7), s.frac, Const(1, 1)) & keep.replicate(31)
        shifted = (fixed >> s.shift[:5])[:31]
        lost = ~(Const(-1, signed(31)).as_unsigned() << s.shift[:5])[:31]
        s = cut(
            func=s.func,
            neg=s.neg,
            frac=s.frac,
            exp=s.exp,
            odd=s.odd,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
            mag=shifted[1:],
            up=shifted[0] & (shifted[1] | (fixed & lost).any()),
        )

        # 3: round and negate: +-(mag + up) is (mag ^ neg) + (up ^ neg).
        v = ((Cat(s.mag, Const(0, 1)) ^ s.neg.replicate(31)) + (s.up ^ s.neg))[:31].as_signed()
        exp2 = s.func == EXP2
        s = cut(
            func=s.func,
            frac=Mux(exp2, v[:23], s.frac),
            exp=Mux(exp2, (v >> 23) + 127, s.exp),
            odd=s.odd,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )

        # 4: table look-up (the table's own register); 5: its output is slow and gets a stage to itself.
        index = Mux(s.func == RSQRT, Cat(s.frac[14:], s.odd), s.frac[13:])
        m.d.comb += table.addr.eq(Cat(index, s.func[1] & ~s.func[0], s.func[1] & s.func[0]))
        s = cut(
            func=s.func,
            frac=s.frac,
            exp=s.exp,
            whole=(s.func == EXP2) | ~index.any(),
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )
        s = cut(
            func=s.func,
            frac=s.frac,
            exp=s.exp,
            whole=s.whole,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
            t0=table.rdata[:23],
            slope=table.rdata[23:40],
            c=table.rdata[40],
        )

        # 6: multiplier inputs; lo is scaled such that the product's unit is 2^-43 for every table. T0 has
        # unit 2^-24.
        identity = s.func == IDENTITY
        lo = Mux(s.func == RSQRT, s.frac[:14], s.frac[:13]) & ~identity.replicate(14)
        shift = Mux(
            s.func == EXP2, SLOPE_SHIFT[EXP2] + s.c, Mux(s.func == RECIP, SLOPE_SHIFT[RECIP] + s.c, s.c)
        )
        ones = Cat(Const(0, 1), Mux(identity, s.frac, s.t0), Const(1, 1))
        t0 = Mux(identity | s.whole, ones, ones >> 1)
        s = cut(
            lo=(lo << shift)[:16],
            slope=Cat(s.slope, Const(1, 1)),
            t0=t0,
            fall=s.func[1],
            exp=s.exp,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )

        # 7: product.
        s = cut(
            p=s.slope * s.lo, t0=s.t0, fall=s.fall, exp=s.exp, sign=s.sign, nan=s.nan, zero=s.zero, inf=s.inf
        )

        # 8, 9: round it to 24 significant bits in place: bit k is dropped if the product reaches 2^(24 + k).
        drop = Cat(s.p[24 + k :].any() for k in range(10))
        lowest_kept = Cat(~drop, Const(1, 1)) & Cat(Const(0, 1), drop)  # none if nothing is dropped
        s = cut(
            p=s.p,
            drop=drop,
            odd=(s.p[:11] & lowest_kept).any(),
            t0=s.t0,
            fall=s.fall,
            exp=s.exp,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )
        p = (Cat(Const(1, 1), s.p) + Cat(s.odd, s.drop[1:]))[1:]  # p + (half - 1) + odd, one carry chain
        s = cut(
            p=p & Cat(~s.drop, Const(-1, 25)),
            t0=s.t0,
            fall=s.fall,
            exp=s.exp,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )

        # 10: y = T0 +- product, in [1/2, 2).
        y = Cat(Const(1, 1), Const(0, 19), s.t0) + Cat(
            s.fall, s.p ^ s.fall.replicate(35), s.fall.replicate(9)
        )
        s = cut(y=y[1:45], exp=s.exp, sign=s.sign, nan=s.nan, zero=s.zero, inf=s.inf)

        # 11: normalise and round to 24 bits; the carry may enter the exponent.
        high = s.y[43]
        frac, half = Mux(high, s.y[20:43], s.y[19:42]), Mux(high, s.y[19], s.y[18])
        up = half & (frac[0] | s.y[:18].any() | (high & s.y[18]))
        exp = Signal(signed(10))
        m.d.comb += exp.eq(s.exp - ~high)
        body = Cat(frac, exp) + up
        s = cut(body=body[:33], sign=s.sign, nan=s.nan, zero=s.zero, inf=s.inf)

        # 12: flush, overflow, special values.
        exp = s.body[23:33].as_signed()
        s = cut(
            o=_pack(
                s.sign,
                s.body[:31],
                zero=s.zero | (~s.inf & (exp <= 0)),
                inf=(s.inf | (exp >= 255)) & ~s.zero,
                nan=s.nan,
            )
        )
        m.d.comb += self.o.eq(s.o)
        return m
