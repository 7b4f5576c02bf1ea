"""Place and route: the wrapper, the tables and one small design all the way through the tools."""
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sim import pnr
from sim.ecp5 import synthesise


class Adder(wiring.Component):
    """Sixteen bits of sum behind a register, and a second output that nothing depends on."""

    def __init__(self):
        super().__init__({"a": In(16), "b": In(16), "sum": Out(17), "odd": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.late = late = Later()
        m.d.comb += [late.i.eq(self.a + self.b), self.sum.eq(late.o), self.odd.eq(self.a[0] ^ self.b[0])]
        return m


class Later(wiring.Component):
    def __init__(self):
        super().__init__({"i": In(17), "o": Out(17)})

    def elaborate(self, platform):
        m = Module()
        held = Signal(17)
        m.d.sync += held.eq(self.i)
        m.d.comb += self.o.eq(held)
        return m


@pytest.fixture(scope="module")
def netlist(tmp_path_factory):
    return synthesise(pnr.Folded(Adder()), tmp_path_factory.mktemp("pnr"))


def test_area(netlist):
    """Every port bit has its register, and cells are counted in their units."""
    count = pnr.area(netlist)
    assert count["late"]["TRELLIS_FF"] == 17
    total = sum(count.values(), Counter())
    assert total["TRELLIS_FF"] == 17 + 32 + 2 * 18  # inputs; outputs and their fold
    assert total["CCU2C"] == 9


def test_place_and_route(netlist):
    report = pnr.place_and_route(netlist, pnr.PARTS["ecp5"], pnr.PARTS["ecp5"].constraints, 1, 100.0)
    assert report["utilization"]["TRELLIS_FF"]["used"] == 17 + 32 + 2 * 18
    lines = pnr.worst_path(report, pnr.Sources(netlist))
    (fmax,) = (f["achieved"] for f in report["fmax"].values())
    assert float(lines[-1].split()[0]) == pytest.approx(1000 / fmax, abs=0.02)
    assert any("sim/test_pnr.py:" in line or "sim/pnr.py:" in line for line in lines)
    routed = netlist.with_name("seed1.routed.json"), netlist.with_name("seed1.sdf")
    assert not pnr.measured_late(*routed, 1000 / fmax + 0.01)
    misses = pnr.measured_late(*routed, 0.9)
    assert misses["late"][0][0] > 0.9 and misses["late"][0][1].startswith("inner.late.held")


def test_what_is_enough(tmp_path):
    """The part's constraints ask for more than has to be reached, a user's own do not."""
    part = replace(pnr.PARTS["ecp5"], in_steps=lambda command, netlist, seed, enough: {"enough": enough})
    for constraints, enough in (part.constraints, 100.0), (tmp_path / "own.lpf", math.inf):
        found = pnr.place_and_route(tmp_path / "netlist.json", part, constraints, 1, 100.0)
        assert found == {"enough": enough}


def test_same_netlist_is_kept(netlist):
    before = netlist.stat().st_mtime_ns
    assert synthesise(pnr.Folded(Adder()), netlist.parent).stat().st_mtime_ns == before
    assert json.loads(netlist.read_text())["modules"]["top"]


def test_unit():
    assert pnr.unit("inner.vector.execute.lanes.add") == "vector.execute"
    assert pnr.unit("inner.sum") == "top"
    assert pnr.unit("port_a_TRELLIS_FF_Q") == "ports"
