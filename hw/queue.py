"""A queue of two entries made of registers alone."""

from amaranth import Module, Signal
from amaranth.hdl import ShapeLike
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .glue import raw

__all__ = ["RegisterQueue"]


class RegisterQueue(wiring.Component):
    """Two registers in a row, each of which an item enters when it is empty or about to be.

    For wide items that come seldom: a register with enable costs no LUT, where a RAM or the multiplexer of a
    skid buffer does. Latency 2; room that the reader makes is seen a cycle later, so a full queue passes one
    item in two cycles. `i.ready`, `o.valid` and `o.payload` are registers (`i.ready` behind a gate). A
    credit scheme with 2 credits never sees `i.ready` low. Reset empties it.
    """

    def __init__(self, shape: ShapeLike):
        super().__init__({
            "i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "level": Out(2),
        })

    def elaborate(self, platform):
        m = Module()
        first = Signal.like(raw(self.i.payload), reset_less=True)
        full = Signal()
        move = ~self.o.valid | self.o.ready
        m.d.comb += [self.i.ready.eq(~full | ~self.o.valid), self.level.eq(full + self.o.valid)]
        with m.If(~full | move):
            m.d.sync += full.eq(self.i.valid & self.i.ready)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += first.eq(raw(self.i.payload))
        with m.If(move):
            m.d.sync += self.o.valid.eq(full)
            with m.If(full):
                m.d.sync += raw(self.o.payload).eq(first)
        return m
