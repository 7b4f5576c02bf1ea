"""A queue of two entries made of registers alone."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import ShapeLike
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .glue import raw

__all__ = ["RegisterQueue"]


class RegisterQueue(wiring.Component):
    """Two registers in a row, each of which loads in every cycle while it is empty.

    For wide items that come seldom: a register with enable costs no LUT, where a RAM or the multiplexer of a
    skid buffer does, and the enables wait for neither `i.valid` nor `o.ready`, which may be late. Latency 2,
    two items at once, then one in two cycles. `i.ready`, `o.valid` and `o.payload` are registers (`i.ready`
    behind a gate). A credit scheme with 2 credits never sees `i.ready` low. Reset empties it.
    """

    def __init__(self, shape: ShapeLike):
        super().__init__({
            "i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "level": Out(2),
        })

    def elaborate(self, platform):
        m = Module()
        first = Signal.like(raw(self.i.payload), reset_less=True)
        full = Signal()
        m.d.comb += [self.i.ready.eq(~full | ~self.o.valid), self.level.eq(full + self.o.valid)]
        m.d.sync += self.o.valid.eq(Mux(self.o.valid, ~self.o.ready, full))
        with m.If(self.i.ready):
            m.d.sync += [full.eq(self.i.valid), first.eq(raw(self.i.payload))]
        with m.If(~self.o.valid):
            m.d.sync += raw(self.o.payload).eq(first)
        return m
