"""Two-entry buffers whose wide registers load without waiting for anything that comes late."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import ShapeLike
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .glue import raw

__all__ = ["CommandQueue", "Slots"]


class CommandQueue(wiring.Component):
    """The instruction in hand and the one behind it.

    Members: `i`; `valid`, `payload`: the instruction in hand, which `done` takes away; `wait`: none may be
    taken in hand in the next cycle. While `open` is high nothing is in hand, and `payload` and whatever else
    is derived from `next`, the instruction behind, is loaded in every cycle: it is in hand after the cycle
    in which `begin` is high. One cycle per instruction without any in hand. All outputs but `begin` are
    registers.
    """

    def __init__(self, shape: ShapeLike):
        self.shape = shape
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "next": Out(shape),
                "open": Out(1, init=1),
                "begin": Out(1),
                "wait": In(1),
                "valid": Out(1),
                "payload": Out(shape),
                "done": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        behind = Signal(self.shape, reset_less=True)
        hand = Signal(self.shape, reset_less=True)
        full = Signal()
        m.d.comb += [
            self.i.ready.eq(~full),
            self.begin.eq(self.open & full),
            raw(self.next).eq(raw(behind)),
            raw(self.payload).eq(raw(hand)),
        ]
        with m.If(~full):
            m.d.sync += raw(behind).eq(raw(self.i.payload))
        with m.If(self.open):
            m.d.sync += raw(hand).eq(raw(behind))
        m.d.sync += [
            full.eq(Mux(full, ~self.open, self.i.valid)),
            self.valid.eq(self.begin | (self.valid & ~self.done)),
            self.open.eq(~self.begin & ~(self.valid & ~self.done) & ~self.wait),
        ]
        return m


class Slots(wiring.Component):
    """Stream buffer of two registers, each of which loads while it is empty, whatever `i.valid` says.

    `o.ready` moves a pointer, no data. Latency 1, one item per cycle; `o.payload` is behind a multiplexer,
    `i.ready` and `o.valid` are behind a gate. Reset empties it.
    """

    def __init__(self, shape: ShapeLike):
        self.shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        slots = [Signal(self.shape, name=f"slot_{k}", reset_less=True) for k in range(2)]
        held = Signal(2)
        put, take = Signal(), Signal()  # slot of the next item, slot of the one in front
        push, pop = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        m.d.comb += [
            self.i.ready.eq(~held.all()),
            self.o.valid.eq(held.any()),
            raw(self.o.payload).eq(Mux(take, raw(slots[1]), raw(slots[0]))),
        ]
        m.d.sync += [put.eq(put ^ push), take.eq(take ^ pop)]
        for k, slot in enumerate(slots):
            with m.If(~held[k]):
                m.d.sync += raw(slot).eq(raw(self.i.payload))
            m.d.sync += held[k].eq(Mux(held[k], ~(pop & (take == k)), push & (put == k)))
        return m
