"""RoundRobin and StreamArbiter: one grant, work-conserving, each served within count - 1 grants to others."""

import pytest
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw import glue
from sim.formal.prove import cover, mutant, prove, refute
from sim.formal.streams import stable


class Arbiter(wiring.Component):
    """Properties of a round-robin arbiter, for one requestor that stands for all."""

    def __init__(self, count: int, source=glue):
        self.part, self.count = source.RoundRobin(count), count
        super().__init__({"requests": In(count), "advance": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = part = self.part
        who = AnyConst(range(self.count))
        mine, got = part.requests.bit_select(who, 1), part.grant.bit_select(who, 1)
        m.d.comb += [
            part.requests.eq(self.requests), part.advance.eq(self.advance), Assume(who < self.count),
            Assert((part.grant & (part.grant - 1)[:self.count]) == 0),
            Assert((part.grant & ~part.requests) == 0),
            Assert(part.grant.any() == part.requests.any()),
        ]
        # Fair: grants to others while `who` keeps asking.
        others = Signal(range(self.count + 1))
        with m.If(~mine):
            m.d.sync += others.eq(0)
        with m.Elif(self.advance):
            m.d.sync += others.eq(Mux(got, 0, others + 1))
        m.d.comb += [Assert(others < self.count), Cover((others == self.count - 1) & mine & got)]
        # Stalled: the grant depends on the requests alone.
        stalled, asked, granted = Signal(), Signal(self.count), Signal(self.count)
        m.d.sync += [stalled.eq(~self.advance), asked.eq(part.requests), granted.eq(part.grant)]
        with m.If(stalled & (asked == part.requests)):
            m.d.comb += Assert(granted == part.grant)
        return m


class Merge(wiring.Component):
    """Properties of StreamArbiter: an item of input k is k and a 1-bit sequence number."""

    def __init__(self, count: int, source=glue):
        self.count = count
        self.part = source.StreamArbiter(3, count)
        super().__init__({"i": In(stream.Signature(1)).array(count), "o": Out(stream.Signature(3))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = part = self.part
        wiring.connect(m, part.o, wiring.flipped(self.o))
        sent, waits = Signal(self.count), []
        for k in range(self.count):
            i = part.i[k]
            m.d.comb += [i.valid.eq(self.i[k].valid), i.payload.eq(Cat(sent[k], Const(k, 2))),
                         self.i[k].ready.eq(i.ready)]
            stable(m, self.i[k], Assume)
            seen, wait = Signal(name=f"seen_{k}"), Signal(range(self.count + 1), name=f"wait_{k}")
            with m.If(i.valid & i.ready):
                m.d.sync += [sent[k].eq(~sent[k]), wait.eq(0)]
            with m.Elif(i.valid & (~self.o.valid | self.o.ready)):
                m.d.sync += wait.eq(wait + 1)
            mine = self.o.valid & (self.o.payload[1:] == k)
            with m.If(mine & self.o.ready):
                m.d.sync += seen.eq(~seen)
            m.d.comb += [Assert(~mine | (self.o.payload[0] == seen)), Assert((seen ^ sent[k]) == mine),
                         Assert(wait < self.count)]
            waits.append(wait)
        asked = Cat(s.valid for s in self.i).any() & (~self.o.valid | self.o.ready)
        owed = Signal()
        m.d.sync += owed.eq(asked)
        m.d.comb += [Assert(~owed | self.o.valid), Assert(~self.o.valid | (self.o.payload[1:] < self.count)),
                     Cover(Cat(w == self.count - 1 for w in waits).any() & (sent == 1))]
        stable(m, self.o)
        return m


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_round_robin(count):
    prove(Arbiter(count), free_reset=True)


def test_round_robin_cover():
    cover(Arbiter(4), 8)


def test_merge():
    prove(Merge(3), free_reset=True)
    cover(Merge(3), 10)


@pytest.mark.parametrize("old, new", [
    ("self.grant[:k].any()", "self.grant[:k + 1].any()"),
    ("self.grant[:k].any()", "self.grant[:max(0, k - 1)].any()"),
    ("Mux(ahead.any(), lowest(ahead), lowest(self.requests))", "lowest(ahead)"),
    ("Mux(ahead.any(), lowest(ahead), lowest(self.requests))", "lowest(self.requests)"),
    ("with m.If(self.advance):", "with m.If(self.requests.any()):"),
])
def test_seeded_bug(old, new):
    refute(Arbiter(4, mutant(glue, old, new)), free_reset=True)


@pytest.mark.parametrize("old, new", [
    ("s.ready.eq(turns.grant[k] & space)", "s.ready.eq(turns.grant[k])"),
    ("turns.advance.eq(space)", "turns.advance.eq(0)"),
    ("self.o.valid.eq(turns.requests.any())", "self.o.valid.eq(turns.requests.all())"),
])
def test_seeded_bug_merge(old, new):
    refute(Merge(3, mutant(glue, old, new)), free_reset=True)
