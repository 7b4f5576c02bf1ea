"""The proof runners themselves: a wrong verdict here would make every other proof worthless."""

import pytest
from amaranth import Module, Signal
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw import glue
from sim.formal.prove import cover, mutant, prove, prove_bounded, refute


class Counter(wiring.Component):
    """Counts `step` up to 12; claims to stay at or below `limit`, with `step` assumed low from `stop` on."""

    def __init__(self, limit: int, stop: int = 12):
        self.limit, self.stop = limit, stop
        super().__init__({"step": In(1)})

    def elaborate(self, platform):
        m = Module()
        count = Signal(4)
        with m.If(self.step & (count != 12)):
            m.d.sync += count.eq(count + 1)
        with m.If(count == self.stop):
            m.d.comb += Assume(~self.step)
        m.d.comb += [Assert(count <= self.limit), Cover(count == 5)]
        return m


@pytest.mark.parametrize("free_reset", [False, True])
def test_verdicts(free_reset):
    prove(Counter(12), free_reset=free_reset)
    refute(Counter(11), free_reset=free_reset)
    prove(Counter(9, stop=9), free_reset=free_reset)
    refute(Counter(8, stop=9), free_reset=free_reset)


def test_wrong_claims_are_refused():
    with pytest.raises(AssertionError, match="FAIL, expected PASS"):
        prove(Counter(11))
    with pytest.raises(AssertionError, match="PASS, expected FAIL"):
        refute(Counter(12))


def test_bounded():
    prove_bounded(Counter(3), 4)
    with pytest.raises(AssertionError, match="FAIL"):
        prove_bounded(Counter(3), 6)
    cover(Counter(12), 7)
    with pytest.raises(AssertionError, match="FAIL"):
        cover(Counter(12), 5)
    with pytest.raises(AssertionError, match="FAIL"):
        cover(Counter(12, stop=4), 12)


def test_mutant_needs_one_place():
    with pytest.raises(ValueError, match="0 times"):
        mutant(glue, "no such text", "")
