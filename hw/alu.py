"""Scalar arithmetic of the sequencer: one-cycle operations, and the late unit for those that take longer."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .isa import Alu
from .ports import SramRead

__all__ = ["LATE", "LateUnit", "fast_alu"]

LATE = (Alu.MUL, Alu.SHL, Alu.SHR, Alu.SRA, Alu.MIN, Alu.MAX)
"""Functions of the late unit; the others are combinational."""


def fast_alu(m: Module, func, x, y):
    """32-bit x op y for the functions that are not LATE."""
    result = Signal(32)
    with m.Switch(func):
        with m.Case(Alu.ADD):
            m.d.comb += result.eq(x + y)
        with m.Case(Alu.SUB):
            m.d.comb += result.eq(x - y)
        with m.Case(Alu.AND):
            m.d.comb += result.eq(x & y)
        with m.Default():
            m.d.comb += result.eq(x | y)
    return result


class LateUnit(wiring.Component):
    """MUL, shifts, MIN, MAX (5 cycles) and loads from SRAM (memory latency), one operation at a time.

    Members: `start` with `func`, `x`, `y` begins x func y (isa.Alu); `load` with byte address `y` (aligned,
    in range) begins a load; `take` is high with them and may be high without (it comes early, and enables
    what is wide); `o` holds the result until taken; `read` is the SRAM port. The user starts nothing before
    `o` was taken.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "take": In(1), "start": In(1), "load": In(1), "func": In(4), "x": In(32), "y": In(32),
            "o": Out(stream.Signature(32)),
            "read": Out(SramRead(config)),
        })

    def elaborate(self, platform):
        m = Module()
        word = exact_log2(self.config.word_bytes)
        x, y = self.x, self.y
        low, parts = Signal(32), [Signal(16), Signal(16)]
        low_1, parts_1 = Signal(32), [Signal(16), Signal(16)]  # multipliers are slow and far away
        factor, other, second, swap, is_mul = Signal(32), Signal(32), Signal(32), Signal(), Signal()
        lane = Signal(word - 2)
        step = Signal(3)  # one-hot
        # A 32-bit product of 16-bit parts: (xh*yl + xl*yh) * 2^16 + xl*yl.
        m.d.sync += [step.eq(Cat(self.start, step)), low.eq(low_1), low_1.eq(factor[:16] * second[:16]),
                     parts_1[0].eq(factor[16:] * second[:16]), parts_1[1].eq(factor[:16] * second[16:]),
                     *(part.eq(part_1) for part, part_1 in zip(parts, parts_1))]
        with m.If(self.take):
            # MIN, MAX: both candidates, and which one it is.
            m.d.sync += [factor.eq(x), other.eq(x), second.eq(y), is_mul.eq(self.func == Alu.MUL),
                         swap.eq((x.as_signed() < y.as_signed()) ^ (self.func == Alu.MIN))]
            with m.Switch(self.func):
                with m.Case(Alu.SHL):
                    m.d.sync += [other.eq((x << y[:5])[:32]), swap.eq(0)]
                with m.Case(Alu.SHR):
                    m.d.sync += [other.eq(x >> y[:5]), swap.eq(0)]
                with m.Case(Alu.SRA):
                    m.d.sync += [other.eq(x.as_signed() >> y[:5]), swap.eq(0)]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(step[2]):
            product = low + Cat(Const(0, 16), parts[0] + parts[1])
            m.d.sync += [self.o.valid.eq(1),
                         self.o.payload.eq(Mux(is_mul, product, Mux(swap, second, other)))]

        with m.If(self.read.req.ready):
            m.d.sync += self.read.req.valid.eq(0)
        with m.If(self.load):
            m.d.sync += self.read.req.valid.eq(1)
        with m.If(self.take):
            m.d.sync += [self.read.req.payload.eq(y[word:]), lane.eq(y[2:word])]
        with m.If(self.read.valid):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(self.read.data.word_select(lane, 32))]
        return m
