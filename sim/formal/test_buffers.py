"""The buffers: a symbolic token is never lost, duplicated, reordered or changed; free resets."""

import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw import glue, queue
from sim.formal.prove import cover, mutant, prove, refute
from sim.formal.streams import in_order, stable


class Buffer(wiring.Component):
    """Properties of a buffer of 2-bit items."""

    def __init__(self, part, depth: int, capacity: int, latency: int):
        self.part, self.depth, self.capacity, self.latency = part, depth, capacity, latency
        super().__init__({"i": In(stream.Signature(2)), "o": Out(stream.Signature(2)), "pick": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = self.part
        wiring.connect(m, self.part.i, wiring.flipped(self.i))
        wiring.connect(m, self.part.o, wiring.flipped(self.o))
        in_order(m, self.i, self.o, self.pick, depth=self.depth, capacity=self.capacity, latency=self.latency)
        stable(m, self.o)
        return m


def skid(source=glue):
    return Buffer(source.SkidBuffer(2), 2, 2, 1)


def fifo(source=glue):
    return Buffer(source.Fifo(2, 4), 4, 5, 2)


def block_fifo(source=glue):
    return Buffer(source.Fifo(2, 4, block=True), 4, 6, 3)


def registers(source=queue):
    return Buffer(source.RegisterQueue(2), 2, 2, 2)


@pytest.mark.parametrize("spec, depth", [(skid, 6), (fifo, 10), (block_fifo, 12), (registers, 8)])
def test_proof(spec, depth):
    prove(spec(), free_reset=True)
    cover(spec(), depth)


@pytest.mark.parametrize("spec, old, new", [
    (skid, "with m.Elif(self.i.valid & ~full):", "with m.Elif(self.i.valid):"),
    (skid, "self.o.valid.eq(full | self.i.valid)", "self.o.valid.eq(self.i.valid)"),
    (fifo, "full.eq(~pull & (full | (push & (stored == self.depth - 1))))", "full.eq(stored == self.depth)"),
    (fifo, "head.eq(head + 1)", "head.eq(head + self.o.ready)"),
    (fifo, "pull.eq((head != tail) & take)", "pull.eq(head != tail)"),
    (block_fifo, "pull.eq((head != tail) & (~read | take))", "pull.eq(head != tail)"),
    (block_fifo, "read.eq(pull | (read & ~take))", "read.eq(pull)"),
])
def test_seeded_bug(spec, old, new):
    refute(spec(mutant(glue, old, new)), free_reset=True)


@pytest.mark.parametrize("old, new", [
    ("self.i.ready.eq(~full | ~self.o.valid)", "self.i.ready.eq(~full | self.o.ready)"),
    ("self.o.valid.eq(Mux(self.o.valid, ~self.o.ready, full))", "self.o.valid.eq(full)"),
    ("with m.If(self.i.ready):", "with m.If(self.i.valid):"),
    ("with m.If(~self.o.valid):", "with m.If(self.o.ready):"),
])
def test_seeded_bug_in_registers(old, new):
    refute(registers(mutant(queue, old, new)), free_reset=True)
