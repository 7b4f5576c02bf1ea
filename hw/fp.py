"""float32 arithmetic: free-running pipelines that equal IEEE-754 round-to-nearest-even with subnormals
flushed (docs/numerics.md).

No handshake and no enable: `o` in cycle t + latency belongs to the inputs of cycle t. Registers hold no state
beyond that, so they have no reset.
"""

from types import SimpleNamespace

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "INF",
    "NAN",
    "FpAdd",
    "FpMul",
    "IntScaleToFloat",
    "Cuts",
    "above",
    "below",
    "bf16_to_f32",
    "canonical",
    "f32_to_bf16",
    "fp_max",
    "fp_min",
    "ftz",
    "is_nan",
    "total_order_key",
]

NAN = 0x7FC00000
INF = 0x7F800000


def _stages(stages: int, total: int) -> int:
    if not 1 <= stages <= total:
        raise ValueError(f"stages = {stages}: allowed is 1 .. {total}")
    return stages


class Cuts:
    """The register boundaries of a pipeline of `total` stages, of which `stages`, evenly spread, are
    registers.

    Calling it with named values ends a stage and returns the same names for the next one. The last boundary
    is always a register. The registers move only while `enable` is high, if it is given.
    """

    def __init__(self, m: Module, total: int, stages: int, *, enable: Value | None = None, prefix: str = "s"):
        self.m, self.total, self.stages, self.index = m, total, stages, 0
        self.enable, self.prefix = Const(1) if enable is None else enable, prefix

    def __call__(self, **values) -> SimpleNamespace:
        k, self.index = self.index, self.index + 1
        assert k < self.total, "more boundaries than stages"
        registered = (k + 1) * self.stages // self.total > k * self.stages // self.total
        out, assignments = {}, []
        for name, value in values.items():
            value = Value.cast(value)
            out[name] = Signal(value.shape(), name=f"{self.prefix}{k + 1}_{name}", reset_less=registered)
            assignments.append(out[name].eq(value))
        if registered and not isinstance(self.enable, Const):
            with self.m.If(self.enable):
                self.m.d.sync += assignments
        else:
            self.m.d["sync" if registered else "comb"] += assignments
        return SimpleNamespace(**out)


# ---- combinational helpers on float32 bit patterns (32-bit unsigned values) --------------------------------


def ftz(x: Value) -> Value:
    """x with a subnormal replaced by zero of the same sign."""
    return Cat(Mux(x[23:31].any(), x[:23], 0), x[23:32])


def is_nan(x: Value) -> Value:
    return x[23:31].all() & x[:23].any()


def canonical(x: Value) -> Value:
    """x as any operation reads it: subnormals flushed, every NaN 0x7fc00000."""
    return Mux(is_nan(x), Const(NAN, 32), ftz(x))


def total_order_key(x: Value) -> Value:
    """Signed 32-bit key whose order is -inf < .. < -0 < +0 < .. < +inf < NaN for canonical x."""
    return (x ^ Cat(x[31].replicate(31), Const(0, 1))).as_signed()


def above(a: Value, b: Value) -> Value:
    """Whether a is after b in total order: `below(a, b)` is the late part of it, behind one gate."""
    return Mux(below(a, b), b[31], ~a[31])


def below(a: Value, b: Value) -> Value:
    """Whether the magnitude of a is below that of b, or equal to it and a is not negative (bit 0)."""
    return Cat(a[31], a[:31]) < Cat(Const(1, 1), b[:31])


def fp_max(a: Value, b: Value) -> Value:
    """The operand with the larger key (canonical operands)."""
    return Mux(total_order_key(a) < total_order_key(b), b, a)


def fp_min(a: Value, b: Value) -> Value:
    """The operand with the smaller key (canonical operands)."""
    return Mux(total_order_key(b) < total_order_key(a), b, a)


def bf16_to_f32(x: Value) -> Value:
    return Cat(Const(0, 16), x)


def f32_to_bf16(x: Value) -> Value:
    """Nearest-even bf16 of a float32: subnormals flush, NaN is 0x7fc0, overflow gives infinity."""
    rounded = (x[16:] + (x[15] & (x[16] | x[:15].any())))[:16]
    return Mux(is_nan(x), Const(NAN >> 16, 16), Mux(x[23:31] == 0, Cat(Const(0, 15), x[31]), rounded))


def _pack(sign, body, *, zero, inf, nan, no_fraction=0) -> Value:
    """32 bits from sign and 31 bits of exponent and fraction, or a special value; nan beats inf beats
    zero. `no_fraction`: the fraction is 0 whatever `body` says. Constants instead of it make a synchronous
    reset of the register behind, which costs no gate."""
    special = nan | inf
    return Cat(
        Mux(special | zero | no_fraction, Cat(Const(0, 22), nan), body[:23]),
        Mux(special, 255, Mux(zero, 0, body[23:31])),
        sign & ~nan,
    )


def leading_nibble(x: Value, groups: int) -> Value:
    """Number of all-zero nibbles above the leading one of x (4 * groups bits); groups - 1 if x is zero or
    only the last is set."""
    count = Const(groups - 1, range(groups))
    for j in range(1, groups):
        count = Mux(x[4 * j : 4 * j + 4].any(), Const(groups - 1 - j, range(groups)), count)
    return count


def _leading_bit(nibble: Value) -> Value:
    """Number of zeros above the leading one of a nibble, 3 if none of the upper three bits is set."""
    return Cat(~nibble[3] & (nibble[2] | ~nibble[1]), ~nibble[3] & ~nibble[2])


def shift_right(x: Value, amount: Value) -> tuple[Value, Value]:
    """x >> amount (5 bits), and whether a one fell out: whole nibbles first, so that what falls out is known
    as early as what stays. The eighth nibble never falls out whole."""
    out = Cat(x[k : k + 4].any() & (amount[2:] > k // 4) for k in range(0, min(len(x), 28), 4)).any()
    for level in (4, 3, 2):
        x = Mux(amount[level], x[1 << level :], x)
    out |= (x[0] & amount[:2].any()) | (x[1] & amount[1]) | (x[2] & amount[:2].all())
    for level in (1, 0):
        x = Mux(amount[level], x[1 << level :], x)
    return x, out


# ---- pipelines ---------------------------------------------------------------------------------------------


class FpAdd(wiring.Component):
    """o = a + b. Equals `golden.arith.fadd` bit for bit.

    `stages` (1 .. 6) is the latency; at 6 every stage is one carry chain or about five LUT4 levels.
    """

    STAGES = 6

    def __init__(self, stages: int = STAGES):
        self.latency = _stages(stages, 6)
        super().__init__({"a": In(32), "b": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        cut = Cuts(m, 6, self.latency)
        a, b = self.a, self.b

        # 1: order by magnitude (raw bits do: what subnormals order wrongly counts as zero anyway), exponent
        # distance. Only the smaller operand can be zero, or both are.
        swap = a[:31] < b[:31]
        zero_a, zero_b = ~a[23:31].any(), ~b[23:31].any()
        s = cut(
            big=Mux(swap, b, a),
            small=Mux(swap, a[:23], b[:23]),
            sub=a[31] ^ b[31],
            shift=Mux(swap, b[23:31] - a[23:31], a[23:31] - b[23:31])[:8],
            alone=zero_a | zero_b,
            zero=zero_a & zero_b,
        )

        # 2: align the smaller significand to 24 bits + guard + round + sticky, inverted to be subtracted;
        # from 27 on, it cannot change the result and is taken for 0. big is NaN whenever either operand is. A
        # sum of zeros is +0 unless both are -0.
        aligned, sticky = shift_right(Cat(Const(0, 2), s.small, Const(1, 1)), s.shift[:5])
        alone = s.alone | s.shift[5:].any()
        special = s.big[23:31].all()
        s = cut(
            sign=s.big[31] & ~(s.zero & s.sub),
            exp=s.big[23:31],
            big=s.big[:23],
            sub=s.sub & ~alone,
            small=Mux(alone, 0, Cat(sticky, aligned) ^ s.sub.replicate(27)),
            zero=s.zero,
            inf=special,
            nan=special & (s.big[:23].any() | (s.sub & ~s.shift.any())),
        )

        # 3: add or subtract; the extra bit 0 carries in the +1 of the two's complement. No borrow, as big >=
        # small.
        total = Cat(Const(1, 1), Const(0, 3), s.big, Const(1, 1)) + Cat(s.sub, s.small, s.sub)
        s = cut(sign=s.sign, exp=s.exp, zero=s.zero, inf=s.inf, nan=s.nan, sum=total[1:29])

        # 4: normalise by nibbles.
        nibbles = leading_nibble(s.sum, 7)
        s = cut(
            sign=s.sign,
            exp=s.exp,
            zero=s.zero,
            inf=s.inf,
            nan=s.nan,
            nibbles=nibbles,
            sum=(s.sum << Cat(Const(0, 2), nibbles))[:28],
        )

        # 5: normalise by bits. A subnormal sum is exact, so it flushes without rounding; an exponent of 0 is
        # noticed in the next stage, beside the rounding. Finite operands have at most 254: only a carry of
        # the significand makes infinity. An exact zero of operands that are none is +0.
        bits, cancelled = _leading_bit(s.sum[24:]), ~s.sum[24:].any()
        exp = Signal(signed(10))
        m.d.comb += exp.eq(s.exp + 1 - Cat(bits, s.nibbles))
        s = cut(
            sign=s.sign & (s.zero | ~cancelled),
            exp=exp[:8],
            inf=s.inf | (s.exp[1:].all() & s.sum[27] & ~s.nibbles.any()),
            nan=s.nan,
            zero=s.zero | cancelled | exp[-1],
            sum=(s.sum << bits)[:27],
        )

        # 6: round; the carry runs into the exponent and makes infinity by itself. It arises in the chain,
        # where the half meets what makes it count.
        body = (Cat(s.sum[3:27], s.exp) + (s.sum[4] | s.sum[:3].any()))[1:]
        s = cut(o=_pack(s.sign, body, zero=s.zero | ~s.exp.any(), inf=s.inf, nan=s.nan))
        m.d.comb += self.o.eq(s.o)
        return m


class FpMul(wiring.Component):
    """o = a * b. Equals `golden.arith.fmul` bit for bit.

    Latency `stages` (1 .. 4). The 24 x 24 product is the sum of 18 x 18, 18 x 6 and 6 x 24 products, with
    registers on both sides. The last one is made of adders, the others are left to DSP blocks: an FPGA that
    spends a DSP block on every multiplier of the array has none to waste on six bits.
    """

    STAGES = 4

    def __init__(self, stages: int = STAGES):
        self.latency = _stages(stages, 4)
        super().__init__({"a": In(32), "b": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        cut = Cuts(m, 4, self.latency)
        a, b = self.a, self.b

        # 1: multiplier inputs and operand classes. The upper six bits of a become 64 plus digits -1, 0, 1, 2
        # of weight 1 and 4, and -2, -1, 0 of weight 16, each of them modulo 4.
        zero_a, zero_b = ~a[23:31].any(), ~b[23:31].any()
        inf_a, inf_b = a[23:31].all(), b[23:31].all()
        nan_a, nan_b = a[:23].any() & inf_a, b[:23].any() & inf_b
        digit1 = a[20:22] + a[18:20].all()
        digit2 = Cat(a[22], Const(1, 1)) + (digit1 >= 3)
        s = cut(
            a=a[:18],
            digits=Cat(a[18:20], digit1[:2], digit2[:2]),
            b=Cat(b[:23], Const(1, 1)),
            sign=a[31] ^ b[31],
            exp=a[23:31] + b[23:31],
            zero=zero_a | zero_b,
            inf=inf_a | inf_b,
            nan=nan_a | nan_b | (inf_a & zero_b) | (inf_b & zero_a),
        )

        # 2: partial products. Two's complement: the +1 of a negative row fills a free bit of another one.
        one, double = Cat(s.b, Const(0, 2)), Cat(Const(0, 1), s.b, Const(0, 1))

        def row(digit, double):
            """digit * b, less 1 if negative: a gate per bit."""
            return Mux(digit[1], Mux(digit[0], ~one, double), Mux(digit[0], one, 0))[:26].as_signed()

        d0, d1, d2 = s.digits[:2], s.digits[2:4], s.digits[4:]
        row0, row1, row2 = row(d0, double), row(d1, double), row(d2, ~double)
        minus0, minus1, minus2 = d0.all(), d1.all(), d2[1]
        low = row0 + Cat(minus0, Const(0, 1), row1).as_signed()
        high = row2 + Cat(minus2, Const(0, 1), s.b, Const(0, 1)).as_signed()
        s = cut(
            ll=s.a * s.b[:18],
            lh=s.a * s.b[18:],
            low=low,
            high=Cat(minus1, Const(0, 1), high)[:28],
            sign=s.sign,
            exp=(s.exp - 127).as_signed(),
            zero=s.zero,
            inf=s.inf,
            nan=s.nan,
        )

        # 3: sum, two carry chains deep. The low 18 bits are final already and are only needed as sticky. What
        # the exponent means is found out for a product in [1, 2) and for one in [2, 4).
        lower = Signal(24)
        m.d.comb += lower.eq(s.ll[18:] + s.lh)
        h = Cat(s.low[:2], s.low[2:].as_signed() + s.high.as_signed())[:30]
        s = cut(
            p=(lower + h)[:30],
            sticky=s.ll[:18].any(),
            sign=s.sign,
            exp=s.exp[:8],
            edge=Cat(s.exp == 0, s.exp == -1),
            under=Cat(s.exp < 0, s.exp < -1),
            over=Cat(s.exp >= 255, s.exp >= 254),
            zero=s.zero,
            inf=s.inf,
            nan=s.nan,
        )

        # 4: normalise by at most one bit and round; the chain of the rounding also counts the exponent. With
        # gradual underflow, everything from 2^-126 - 2^-150 on rounds up to 2^-126: just below the smallest
        # exponent, the increment is unconditional, and either it carries into the exponent or the result is
        # zero.
        high = s.p[29]
        edge, under, over = (Mux(high, pair[1], pair[0]) for pair in (s.edge, s.under, s.over))
        frac = Mux(high, s.p[6:29], s.p[5:28])
        half = Mux(high, s.p[5], s.p[4])
        rest = s.sticky | s.p[:4].any() | (high & s.p[4])
        body = (Cat(half | edge, frac, s.exp) + Cat(frac[0] | rest | edge, Const(0, 23), high))[1:32]
        s = cut(
            o=_pack(s.sign, body, zero=s.zero | under, inf=s.inf | over, nan=s.nan, no_fraction=edge)
        )
        m.d.comb += self.o.eq(s.o)
        return m


class IntScaleToFloat(wiring.Component):
    """o = i * 2^e as float32 (exact; flush below 2^-126, infinity above, zero is +0; NaN if `nan`).

    Equals `golden.arith.dot_to_f32` bit for bit. `width` (<= 24) is that of the signed `i`. Latency `stages`
    (1 .. 3).
    """

    def __init__(self, width: int, stages: int = 3):
        if not 2 <= width <= 24:
            raise ValueError(f"width must be 2 .. 24, not {width}")
        self.width, self.latency = width, _stages(stages, 3)
        super().__init__({"i": In(signed(width)), "e": In(signed(11)), "nan": In(1), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        cut = Cuts(m, 3, self.latency)
        groups = -(-self.width // 4)

        # 1: sign and magnitude (at most 2^(width - 1)); the biased exponent that a leading one in the top bit
        # would have.
        sign = self.i[-1]
        s = cut(
            mag=((self.i ^ sign.replicate(self.width)).as_unsigned() + sign)[: self.width],
            sign=sign,
            nan=self.nan,
            exp=self.e + (127 + 4 * groups - 1),
        )

        # 2: normalise by nibbles.
        mag = Cat(Const(0, 4 * groups - self.width), s.mag)
        exp = s.exp - (4 * groups - self.width)
        nibbles = leading_nibble(mag, groups)
        s = cut(
            mag=(mag << Cat(Const(0, 2), nibbles))[: 4 * groups],
            exp=exp,
            nibbles=nibbles,
            sign=s.sign,
            nan=s.nan,
            zero=~s.mag.any(),
        )

        # 3: normalise by bits and pack.
        bits = _leading_bit(s.mag[-4:])
        norm = (s.mag << bits)[: 4 * groups]
        frac = Cat(Const(0, 24), norm[:-1])[-23:]
        exp = Signal(signed(13))
        m.d.comb += exp.eq(s.exp - Cat(bits, s.nibbles))
        s = cut(
            o=_pack(
                s.sign, Cat(frac, exp[:8]), zero=s.zero | (exp <= 0), inf=~s.zero & (exp >= 255), nan=s.nan
            )
        )
        m.d.comb += self.o.eq(s.o)
        return m
