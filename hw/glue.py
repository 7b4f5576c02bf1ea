"""Stream glue: skid buffer, FIFO, round-robin arbiter, stream merger.

Payloads hold until taken, `valid` never depends on `ready`.
"""

from functools import reduce
from operator import or_

from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import ShapeLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .memory import DualPortRam

__all__ = [
    "Fifo", "RoundRobin", "SkidBuffer", "StreamArbiter", "encode", "exceeds", "lowest", "mux", "onehot_mux",
    "raw",
]


def raw(view):
    """The bits of a payload, whatever its layout."""
    return view.as_value() if isinstance(view, data.View) else view


def lowest(bits):
    """The lowest bit that is set, alone (0 without one), without a carry chain: for a few bits."""
    return Cat(bits[k] & ~bits[:k].any() for k in range(len(bits)))


def exceeds(value, bits):
    """value > 2^bits, without a carry chain."""
    return value[bits + 1:].any() | (value[bits] & value[:bits].any())


def onehot_mux(select, values):
    """AND-OR multiplexer: values[k] for the one bit k set in `select`, else 0. All values have one width."""
    values = [raw(value) for value in values]
    result = values[0] & select[0].replicate(len(values[0]))
    for k, value in enumerate(values[1:], 1):
        result = result | (value & select[k].replicate(len(value)))
    return result


def encode(onehot):
    """Number of the one bit that is set (0 without one)."""
    return Cat(reduce(or_, (onehot[k] for k in range(len(onehot)) if k >> b & 1))
               for b in range(ceil_log2(len(onehot))))


def mux(select, values):
    """values[select], as a tree of multiplexers: two 4-input LUTs a bit for four values, where AND-OR takes
    three or four. All values have one width; a `select` past the end gives any of them."""
    if len(values) == 1:
        return raw(values[0])
    top = ceil_log2(len(values)) - 1
    return Mux(select[top], mux(select, values[1 << top:]), mux(select, values[:1 << top]))


class SkidBuffer(wiring.Component):
    """Two-entry stream buffer that cuts both directions: `o.valid`, `o.payload` and `i.ready` are registers.

    Latency 1, one item per cycle. `o.valid` is also "holds anything". Reset empties it.
    """

    def __init__(self, shape: ShapeLike):
        self.shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        skid = Signal.like(raw(self.i.payload))
        full = Signal()
        m.d.comb += self.i.ready.eq(~full)
        with m.If(~self.o.valid | self.o.ready):
            with m.If(full | self.i.valid):  # a payload at rest toggles nothing
                m.d.sync += raw(self.o.payload).eq(Mux(full, skid, raw(self.i.payload)))
            m.d.sync += [self.o.valid.eq(full | self.i.valid), full.eq(0)]
        with m.Elif(self.i.valid & ~full):
            m.d.sync += [skid.eq(raw(self.i.payload)), full.eq(1)]
        return m


class Fifo(wiring.Component):
    """Show-ahead FIFO in a small RAM (LUT RAM on FPGAs), whose read register is the output; with `block`, in
    block RAM with an output register of its own behind it.

    Latency 2 (`block`: 3), one item per cycle; `i.ready`, `o.valid` and `o.payload` are registers. Holds at
    least `depth` items (`depth` in the RAM, and one at the output or two): a credit scheme with `depth`
    credits never sees `i.ready` low. `level` counts every item held, 0 to `depth` + 2. `depth` is a power of
    two, at least 2. Reset empties it.
    """

    def __init__(self, shape: ShapeLike, depth: int, *, block: bool = False):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth {depth}: allowed is a power of two, at least 2")
        self.shape = shape
        self.depth = depth
        self.block = block
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)),
                          "level": Out(range(depth + 3))})

    def elaborate(self, platform):
        m = Module()
        bits = ceil_log2(self.depth)
        m.submodules.ram = ram = DualPortRam(
            width=len(raw(self.i.payload)), depth=self.depth, block=self.block
        )
        # Pointers have one bit more than the address, so that full and empty differ.
        head, tail = Signal(bits + 1), Signal(bits + 1)
        stored = Signal(bits + 1)
        push, pull = Signal(), Signal()
        full = Signal()
        m.d.comb += [
            stored.eq(tail - head),
            self.i.ready.eq(~full),
            push.eq(self.i.valid & ~full),
            ram.wstrb.eq(push), ram.waddr.eq(tail[:bits]), ram.wdata.eq(raw(self.i.payload)),
            ram.ren.eq(pull), ram.raddr.eq(head[:bits]),
        ]
        with m.If(pull):
            m.d.sync += head.eq(head + 1)
        with m.If(push):
            m.d.sync += tail.eq(tail + 1)
        m.d.sync += [
            # (stored + push - pull == depth), with nothing but a gate behind the late `push` and `pull`
            full.eq(~pull & (full | (push & (stored == self.depth - 1)))),
        ]
        take = ~self.o.valid | self.o.ready
        if self.block:
            read = Signal()  # the RAM's own register holds an item
            m.d.comb += [pull.eq((head != tail) & (~read | take)),
                         self.level.eq(stored + read + self.o.valid)]
            m.d.sync += read.eq(pull | (read & ~take))
            with m.If(take):
                m.d.sync += [self.o.valid.eq(read), raw(self.o.payload).eq(ram.rdata)]
        else:
            m.d.comb += [pull.eq((head != tail) & take), raw(self.o.payload).eq(ram.rdata),
                         self.level.eq(stored + self.o.valid)]
            m.d.sync += self.o.valid.eq(pull | (self.o.valid & ~self.o.ready))
        return m


class RoundRobin(wiring.Component):
    """Round-robin arbiter of `count` requestors: `grant` is one-hot (0 without requests), combinational from
    `requests`.

    While `advance` is high, the turn moves past the granted requestor (without requests: to the first one);
    while it is low, the turn stays. A requestor that asks in every cycle is granted after at most count - 1
    grants to others.
    """

    def __init__(self, count: int):
        if count < 1:
            raise ValueError(f"count {count}: allowed is at least 1")
        self.count = count
        super().__init__({"requests": In(count), "grant": Out(count), "advance": In(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        n = self.count
        if n == 1:
            m.d.comb += self.grant.eq(self.requests)
            return m
        behind = Signal(n)  # those behind the one granted last
        ahead = self.requests & behind
        m.d.comb += self.grant.eq(Mux(ahead.any(), lowest(ahead), lowest(self.requests)))
        with m.If(self.advance):
            m.d.sync += behind.eq(Cat(self.grant[:k].any() for k in range(n)))
        return m


class StreamArbiter(wiring.Component):
    """Merges `count` streams into one, round robin, with a registered output.

    Members: `i` (array of streams), `o`. Latency 1, one item per cycle in total. Order within each input is
    kept.
    """

    def __init__(self, shape: ShapeLike, count: int):
        self.shape = shape
        self.count = count
        super().__init__({"i": In(stream.Signature(shape)).array(count), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.turns = turns = RoundRobin(self.count)
        space = ~self.o.valid | self.o.ready
        m.d.comb += [turns.requests.eq(Cat(s.valid for s in self.i)), turns.advance.eq(space)]
        m.d.comb += [s.ready.eq(turns.grant[k] & space) for k, s in enumerate(self.i)]
        with m.If(space):
            m.d.sync += self.o.valid.eq(turns.requests.any())
            with m.If(turns.requests.any()):
                m.d.sync += raw(self.o.payload).eq(onehot_mux(turns.grant, [s.payload for s in self.i]))
        return m
