"""Table functions exp2, recip and rsqrt on float32, one result per cycle (docs/numerics.md, "Table
functions")."""

import itertools
import math
import struct

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fp import Cuts, _pack, shift_right
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


ROW_BITS = 41


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
    """o = a (canonical), 2^a, 1/a or 1/sqrt(a) for func = 0 .. 3 on each of `columns` lanes, lane r in bits
    [32r, 32r + 32). Equals `golden.arith.canon / exp2 / recip / rsqrt` bit for bit.

    Free-running, latency 12 for every function. The identity travels through the same datapath as T0 =
    1.fraction, slope 0. The chord is computed in fixed point with the two roundings of the float32
    definition: the product to 24 significant bits, the sum to 24 significant bits. Two lanes share a table.
    """

    LATENCY = 12

    def __init__(self, columns: int = 1):
        self.columns = columns
        self.latency = self.LATENCY
        super().__init__({"a": In(32 * columns), "func": In(2), "o": Out(32 * columns)})

    def elaborate(self, platform):
        m = Module()
        rows = _rows()
        for r in range(self.columns):
            addr, row = Signal(12, name=f"addr_{r}"), Signal(ROW_BITS, name=f"row_{r}")
            if r % 2 == 0:
                # As wide as what a block RAM makes of 4096 rows: no multiplexer behind its late output.
                tables = [
                    rom(width=min(4, ROW_BITS - low), init=[w >> low & 15 for w in rows],
                        ports=min(2, self.columns - r))
                    for low in range(0, ROW_BITS, 4)
                ]
                for k, table in enumerate(tables):
                    m.submodules[f"table_{r}_{k}"] = table
            for table in tables:
                m.d.comb += (table.addr2 if r % 2 else table.addr).eq(addr)
            m.d.comb += row.eq(Cat(table.rdata2 if r % 2 else table.rdata for table in tables))
            lane = slice(32 * r, 32 * r + 32)
            cut = Cuts(m, self.latency, self.latency, prefix=f"lane{r}_")
            m.d.comb += self.o[lane].eq(self._lane(m, cut, self.a[lane], addr, row))
        return m

    def _lane(self, m, cut, a, addr, row):
        """The result; `row` is that of the `addr` of the cycle before."""
        # 1: operand classes, exponent of the result for y = 1 (exp2) or 1/2 (those that fall from 1 to 1/2),
        # and the shift of exp2's fixed point; for others the fraction stays where it is.
        func = self.func
        exp_in, frac_in, neg = a[23:31], a[:23], a[31]
        is_exp2, is_recip, is_rsqrt = func == EXP2, func == RECIP, func == RSQRT
        exp = Signal(signed(10))
        m.d.comb += exp.eq(Mux(is_recip, 253 - exp_in, Mux(is_rsqrt, 190 - ((exp_in + 1) >> 1), exp_in)))
        s = cut(
            func=func,
            neg=neg,
            frac=frac_in,
            top=frac_in[18:].any(),
            rest=frac_in[:18].any(),
            shift=Mux(is_exp2, 133 - exp_in, 6),
            one=exp_in != 0,
            exp=exp,
            odd=is_rsqrt & ~exp_in[0],
            huge=exp_in == 255,
            over=exp_in > 133,
            edge=(exp_in == 133) & frac_in[18:].all(),
        )

        # 2: |x| with 23 fraction bits; guard and sticky below. Shifts of 32 and more leave nothing. Special
        # values.
        is_exp2, is_recip, is_rsqrt = s.func == EXP2, s.func == RECIP, s.func == RSQRT
        beyond = s.over | (s.edge & s.neg & s.rest)  # exp2: x >= 128 or x < -126
        negate = s.neg & is_exp2
        none = ~s.one | s.shift[5:].any()
        shifted, out = shift_right(Cat(Const(0, 7), s.frac, Const(1, 1)), s.shift[:5])
        s = cut(
            func=s.func,
            exp=s.exp,
            odd=s.odd,
            sign=s.neg & ((s.func == IDENTITY) | is_recip),
            nan=(s.huge & (s.top | s.rest)) | (is_rsqrt & s.neg & s.one),
            zero=Mux(is_exp2, beyond & s.neg, Mux(s.func == IDENTITY, ~s.one, s.huge)),
            inf=Mux(is_exp2, beyond & ~s.neg, Mux(s.func == IDENTITY, s.huge, ~s.one)),
            neg=negate & ~none,
            mag=Mux(none, 0, shifted[1:] ^ negate.replicate(30)),
            guard=shifted[0] & ~none,
            sticky=shifted[1] | out,
        )

        # 3: round, and bias the exponent. -(mag + up) is ~mag + ~up.
        up = (s.guard & s.sticky) ^ s.neg
        v = (Cat(Const(1, 24), Const(127, 10)) + Cat(up, s.mag, s.neg.replicate(3)))[1:34]
        s = cut(
            func=s.func,
            frac=v[:23],
            exp=Mux(s.func == EXP2, v[23:], s.exp).as_signed(),
            odd=s.odd,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )

        # 4: table look-up (the table's own register); 5: its output is slow and gets a stage to itself.
        index = Mux(s.func == RSQRT, Cat(s.frac[14:], s.odd), s.frac[13:])
        m.d.comb += addr.eq(Cat(index, s.func[1] & ~s.func[0], s.func[1] & s.func[0]))
        s = cut(
            func=s.func,
            frac=s.frac,
            exp=s.exp,
            first=~index.any(),
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )
        # y is doubled where it falls, so that it is in [1, 2]; its T0 is 2 in the first row. lo is scaled
        # such that the product's unit is 2^-43 for every table, but for `c`.
        lo = Mux(s.func == RSQRT, Cat(Const(0, 1), s.frac[:14]), Cat(Const(0, 2), s.frac[:13]))
        s = cut(
            identity=s.func == IDENTITY,
            fall=s.func[1],
            frac=s.frac,
            lo=Mux(s.func == IDENTITY, 0, lo),
            exp=s.exp,
            two=s.first & s.func[1],
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
            row=row,
        )

        # 6: multiplier inputs. T0 has unit 2^-23.
        t0, slope, c = s.row[:23], s.row[23:40], s.row[40]
        s = cut(
            lo=(s.lo << c)[:16],
            slope=Cat(slope, Const(1, 1)),
            t0=Cat(Mux(s.identity, s.frac, t0), ~s.two, s.two),
            fall=s.fall,
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

        # 8, 9: round it to 24 significant bits in place: bit k is dropped if the product reaches 2^(24 + k),
        # which is found out in three groups of bits, then for all of them. `odd` is the lowest bit that stays
        # (0 if nothing is dropped). Inverted where it is to be subtracted.
        drops, odds = [], []
        for low, high in ((0, 3), (3, 6), (6, 10)):
            drops.append(Cat(s.p[24 + k : 24 + high].any() for k in range(low, high)))
            odds.append(Cat(s.p[24 + k] & ~s.p[25 + k : 24 + high].any() & s.p[1 + k]
                            for k in range(low, high)).any())
        s = cut(
            p=s.p,
            drops=Cat(drops),
            odds=Cat(odds),
            t0=s.t0,
            fall=s.fall,
            exp=s.exp,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )
        middle, upper = s.drops[3], s.drops[6]  # whether a bit of the group is set
        drop = s.drops | Cat((middle | upper).replicate(3), upper.replicate(3))
        odd = s.odds[2] | (~upper & (s.odds[1] | (~middle & s.odds[0])))
        p = (Cat(Const(1, 1), s.p) + Cat(odd, drop[1:]))[1:]  # p + (half - 1) + odd, one carry chain
        s = cut(
            p=(p & Cat(~drop, Const(-1, 25))) ^ s.fall.replicate(35),
            t0=s.t0,
            fall=s.fall,
            exp=s.exp,
            sign=s.sign,
            nan=s.nan,
            zero=s.zero,
            inf=s.inf,
        )

        # 10: y = T0 +- product.
        y = Cat(Const(1, 1), Const(0, 20), s.t0) + Cat(s.fall, s.p, s.fall.replicate(10))
        s = cut(y=y[1:46], exp=s.exp, sign=s.sign, nan=s.nan, zero=s.zero, inf=s.inf)

        # 11: round to 24 bits; the carry may enter the exponent, and so does y = 2, whose fraction is 0.
        frac, half, two = s.y[20:43], s.y[19], s.y[44]
        body = (Cat(half, frac, s.exp) + Cat(frac[0] | s.y[:19].any(), Const(0, 23), two))[1:34]
        s = cut(body=body, sign=s.sign, nan=s.nan, zero=s.zero, inf=s.inf)

        # 12: flush, overflow, special values.
        exp = s.body[23:].as_signed()
        s = cut(
            o=_pack(s.sign, s.body[:31], zero=s.zero | (exp <= 0), inf=s.inf | (exp >= 255), nan=s.nan)
        )
        return s.o
