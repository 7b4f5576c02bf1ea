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
    "NAN",
    "INF",
    "FpAdd",
    "FpMul",
    "IntScaleToFloat",
    "Cuts",
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


def _pack(sign, body, *, zero, inf, nan) -> Value:
    """32 bits from sign and 31 bits of exponent and fraction, or a special value; nan beats inf beats
    zero."""
    return Mux(
        nan,
        Const(NAN, 32),
        Cat(Mux(zero | inf, 0, body[:23]), Mux(inf, 255, Mux(zero, 0, body[23:31])), sign),
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


def _shift_add(x: Value, narrow: Value) -> Value:
    """x * narrow (unsigned) as a sum of shifted rows, which no tool maps to a DSP block."""
    rows = (Cat(Const(0, k), x & narrow[k].replicate(len(x))) for k in range(len(narrow)))
    return sum(rows, Const(0, 1))[: len(x) + len(narrow)]


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

        # 1: order by magnitude (raw bits do: what subnormals order wrongly is flushed anyway), exponent
        # distance.
        swap = a[:31] < b[:31]
        fa, fb = ftz(a), ftz(b)
        s = cut(
            big=Mux(swap, fb, fa),
            small=Mux(swap, fa, fb),
            small_one=Mux(swap, a[23:31].any(), b[23:31].any()),
            shift=Mux(swap, b[23:31] - a[23:31], a[23:31] - b[23:31])[:8],
        )

        # 2: align the smaller significand to 24 bits + guard + round + sticky; from 27 on, sticky cannot
        # change the result. big is NaN whenever either operand is.
        small = Cat(Const(0, 2), s.small[:23], s.small_one)
        far = s.shift[5:].any()
        aligned = Mux(far, 0, small >> s.shift[:5])
        lost = ~(Const(-1, signed(26)).as_unsigned() << s.shift[:5])[:26]
        special, sub = s.big[23:31].all(), s.big[31] ^ s.small[31]
        s = cut(
            sign=s.big[31],
            exp=s.big[23:31],
            big=Cat(s.big[:23], s.big[23:31].any()),
            sub=sub,
            small=Cat((small & lost).any(), aligned),
            inf=special,
            nan=special & (s.big[:23].any() | (s.small[23:31].all() & sub)),
        )

        # 3: add or subtract; the extra bit 0 carries in the +1 of the two's complement. No borrow, as big >=
        # small.
        total = Cat(Const(1, 1), Const(0, 3), s.big) + Cat(s.sub, s.small ^ s.sub.replicate(27))
        s = cut(
            sign=s.sign, exp=s.exp, sub=s.sub, inf=s.inf, nan=s.nan, sum=Cat(total[1:28], total[28] & ~s.sub)
        )

        # 4: normalise by nibbles. An exact zero is +0 unless both operands were -0.
        nibbles = leading_nibble(s.sum, 7)
        zero = ~s.sum.any()
        s = cut(
            sign=s.sign & ~(zero & s.sub),
            exp=s.exp,
            inf=s.inf,
            nan=s.nan,
            zero=zero,
            nibbles=nibbles,
            sum=(s.sum << Cat(Const(0, 2), nibbles))[:28],
        )

        # 5: normalise by bits. A subnormal sum is exact, so it flushes without rounding.
        bits = _leading_bit(s.sum[24:])
        exp = Signal(signed(10))
        m.d.comb += exp.eq(s.exp + 1 - Cat(bits, s.nibbles))
        s = cut(
            sign=s.sign,
            exp=exp[:8],
            inf=s.inf | (exp >= 255),
            nan=s.nan,
            zero=s.zero | (exp <= 0),
            sum=(s.sum << bits)[:27],
        )

        # 6: round; the carry runs into the exponent and makes infinity by itself.
        body = Cat(s.sum[4:27], s.exp) + (s.sum[3] & (s.sum[4] | s.sum[:3].any()))
        s = cut(o=_pack(s.sign, body, zero=s.zero & ~s.inf, inf=s.inf, nan=s.nan))
        m.d.comb += self.o.eq(s.o)
        return m


class FpMul(wiring.Component):
    """o = a * b. Equals `golden.arith.fmul` bit for bit.

    Latency `stages` (1 .. 4). The 24 x 24 product is four products of at most 18 x 18, with registers on both
    sides. Two of them are left to DSP blocks, those with the upper six bits of `a` are made of adders: an
    FPGA that spends a DSP block on every multiplier of the array has none to waste on six bits.
    """

    STAGES = 4

    def __init__(self, stages: int = STAGES):
        self.latency = _stages(stages, 4)
        super().__init__({"a": In(32), "b": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        cut = Cuts(m, 4, self.latency)
        a, b = self.a, self.b

        # 1: multiplier inputs and operand classes.
        zero_a, zero_b = ~a[23:31].any(), ~b[23:31].any()
        inf_a, inf_b = a[23:31].all(), b[23:31].all()
        nan_a, nan_b = a[:23].any() & inf_a, b[:23].any() & inf_b
        s = cut(
            a=Cat(a[:23], Const(1, 1)),
            b=Cat(b[:23], Const(1, 1)),
            sign=a[31] ^ b[31],
            exp=a[23:31] + b[23:31],
            zero=zero_a | zero_b,
            inf=inf_a | inf_b,
            nan=nan_a | nan_b | (inf_a & zero_b) | (inf_b & zero_a),
        )

        # 2: partial products.
        s = cut(
            ll=s.a[:18] * s.b[:18],
            lh=s.a[:18] * s.b[18:],
            hl=_shift_add(s.b[:18], s.a[18:]),
            hh=_shift_add(s.b[18:], s.a[18:]),
            sign=s.sign,
            exp=(s.exp - 127).as_signed(),
            zero=s.zero,
            inf=s.inf,
            nan=s.nan,
        )

        # 3: sum. The low 18 bits are final already and are only needed as sticky.
        upper = (Cat(s.ll[18:], s.hh) + (s.lh + s.hl))[:30]
        s = cut(
            p=upper,
            sticky=s.ll[:18].any(),
            sign=s.sign,
            exp=s.exp,
            exp1=s.exp + 1,
            zero=s.zero,
            inf=s.inf,
            nan=s.nan,
        )

        # 4: normalise by at most one bit and round. With gradual underflow, everything from 2^-126 - 2^-150
        # on rounds up to 2^-126: just below the smallest exponent, the increment is unconditional and its
        # carry tells.
        high = s.p[29]
        exp = Mux(high, s.exp1, s.exp)
        frac = Mux(high, s.p[6:29], s.p[5:28])
        half = Mux(high, s.p[5], s.p[4])
        rest = s.sticky | s.p[:4].any() | (high & s.p[4])
        edge = exp == 0
        body = Cat(frac, exp[:8]) + (edge | (half & (frac[0] | rest)))
        s = cut(
            o=_pack(
                s.sign,
                body,
                zero=~s.inf & (s.zero | (exp < 0) | (edge & ~body[23])),
                inf=s.inf | ((exp >= 255) & ~s.zero),
                nan=s.nan,
            )
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
