"""Timing of placed netlists and moves by timing: a placed design keeps everything but its places and gets
faster, nextpnr still accepts and routes it; the tiles' rules are checked."""

import copy
import json
import os

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.glue import Fifo
from sim import closure, ecp5, pnr
from sim.congestion import ACROSS, ALONG, DETOUR, LEAST, PINS, REACH, Congestion
from sim.moves import LENGTH, Moves
from sim.netlist import nextpnr, tool
from sim.placement import Placement, place_in_slice
from sim.refine import refine
from sim.sta import LUT, WIRE, Timing, flat


class Mixture(wiring.Component):
    """LUT RAM, a carry chain over two tiles and more, a multiplier, registers with enables and resets."""

    def __init__(self):
        super().__init__({"i": In(24), "go": In(1), "valid": In(1), "ready": In(1), "o": Out(24)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = Fifo(24, 16)
        total, product, some = Signal(24), Signal(24), Signal(24)
        m.d.comb += [
            fifo.i.valid.eq(self.valid),
            fifo.i.payload.eq(total),
            fifo.o.ready.eq(self.ready & (some.any() | product[3])),
        ]
        m.d.sync += product.eq(some[:12] * self.i[:12])
        with m.If(self.go):
            m.d.sync += total.eq(total + product)
        with m.If(self.ready & fifo.o.valid):
            m.d.sync += some.eq(fifo.o.payload ^ total)
        with m.If(total[:5].all()):
            m.d.sync += self.o.eq(some + fifo.o.payload)
        return m


def options(folder):
    part = pnr.PARTS["ecp5"]
    lpf = os.path.relpath(part.constraints, folder)
    program, *rest = (word.format(constraints=lpf) for word in part.nextpnr)
    return [tool(program), *rest]


def place(folder):
    """A placed netlist of `Mixture`, without a look at timing."""
    netlist = ecp5.synthesise(pnr.Folded(Mixture()), folder)
    nextpnr([*options(folder), "--json", netlist.name, *closure.PLACE, "--no-tmdriv", "--no-route",
             "--write", "placed.json"], folder, "placed.log")
    return folder / "placed.json"


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    return place(tmp_path_factory.mktemp("refine"))


def cells(netlist):
    return flat(netlist)["cells"]


def test_refine(placed, monkeypatch):
    monkeypatch.setattr("sim.refine.EARLY", 1.0)  # a small design has no late paths
    before = json.loads(placed.read_text())
    refined = placed.with_name("refined.json")
    refine(placed, refined, sweeps=40)
    after = json.loads(refined.read_text())
    old, new = (Timing(copy.deepcopy(netlist)) for netlist in (before, after))
    Placement(new).check()
    assert new.update().max() < old.update().max() - 0.2
    moved = 0
    for cell, other in zip(cells(before).values(), cells(after).values(), strict=True):
        moved += cell["attributes"].pop("NEXTPNR_BEL") != other["attributes"].pop("NEXTPNR_BEL")
        for name in ("src", "module_not_derived"):
            cell["attributes"].pop(name, None)
        assert cell == other
    assert moved > 20
    assert closure._route(options(placed.parent), refined, "refined", {})["fmax"]
    routed = json.loads(placed.with_name("refined.routed.json").read_text())
    held = Timing(routed)
    assert dict(zip(held.names, Placement(held).bels(), strict=True)) == \
        dict(zip(new.names, Placement(new).bels(), strict=True))


def test_same_seed_same_places(placed):
    results = []
    for name in ("a.json", "b.json"):
        refine(placed, placed.with_name(name), sweeps=6)
        results.append(placed.with_name(name).read_text())
    assert results[0] == results[1]


def cell(kind, place, fixed=1, **pins):
    """A cell of a placed netlist; pins: the bit of each."""
    attributes = {"NEXTPNR_BEL": place, "BEL_STRENGTH": f"{fixed:032b}"} if place else {}
    return {"type": kind, "parameters": {}, "attributes": attributes,
            "port_directions": {pin: "output" if pin in ("Q", "F") else "input" for pin in pins},
            "connections": {pin: [bit] for pin, bit in pins.items()}}


def path_netlist(**at):
    """first -> lut -> last, registers without anything else."""
    made = {"first": cell("TRELLIS_FF", at.get("first"), Q=1, M="0"),
            "lut": cell("TRELLIS_COMB", at.get("lut"), A=1, F=2),
            "last": cell("TRELLIS_FF", at.get("last"), M=2, Q=3)}
    return {"modules": {"top": {"cells": made, "netnames": {}}}}


def test_timing_of_a_path():
    timing = Timing(path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0"))
    (arrival,) = timing.update()
    assert arrival == pytest.approx(0.525 + WIRE[7] + LUT + WIRE[1])
    np.testing.assert_allclose(timing.through(), arrival)


def test_nothing_to_time(tmp_path):
    netlist = path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0")
    del cells(netlist)["first"], cells(netlist)["last"]
    (tmp_path / "placed.json").write_text(json.dumps(netlist))
    refine(tmp_path / "placed.json", tmp_path / "refined.json")
    assert json.loads((tmp_path / "refined.json").read_text()) == netlist


def test_block_ram_beside_the_clocks(tmp_path):
    """One place for a block RAM has another name than its group's; what nextpnr puts there stays."""
    netlist = path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0")
    for name, place in (("odd", "X69/Y70/EBR0"), ("even", "X71/Y70/EBR3")):
        cells(netlist)[name] = cell("DP16KD", place, DIA0=3)
    (tmp_path / "placed.json").write_text(json.dumps(netlist))
    refine(tmp_path / "placed.json", tmp_path / "refined.json", sweeps=5)
    after = cells(json.loads((tmp_path / "refined.json").read_text()))
    assert after["odd"]["attributes"]["NEXTPNR_BEL"] == "X69/Y70/EBR0"


def test_loop_is_refused():
    netlist = path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0")
    lut = cells(netlist)["lut"]
    lut["connections"]["B"], lut["port_directions"]["B"] = [2], "input"
    with pytest.raises(ValueError, match="combinational loop"):
        Timing(netlist)


def broken(placed, change):
    """The placement after `change`."""
    placement = Placement(Timing(json.loads(placed.read_text())))
    placement.check()
    change(placement)
    return placement


@pytest.mark.parametrize("which, message", [(0, "differ in clock or reset"), (1, "differ in their enable")])
def test_controls_are_checked(placed, which, message):
    def change(placement):  # a register gets a neighbour that does not suit it
        k, q = next((k, q) for k, mine in placement.controls.items() for q, its in placement.controls.items()
                    if its[which] != mine[which] and (which == 0 or its[0] == mine[0]))
        registers = placement.tiles[placement.x[k], placement.y[k]][1]
        registers[placement.z[k] ^ 1] = q
    with pytest.raises(ValueError, match=message):
        broken(placed, change).check()


def test_pair_is_checked(placed):
    def change(placement):
        lut = placement.role.index("P")
        placement.tiles[placement.x[lut], placement.y[lut]][0][placement.z[lut]] = None
    with pytest.raises(ValueError, match="is not beside the LUT"):
        broken(placed, change).check()


def test_shared_place_is_checked(placed):
    def change(placement):
        luts = [k for k, role in enumerate(placement.role) if role == "L"]
        a, b = luts[:2]
        placement.x[a], placement.y[a], placement.z[a] = placement.x[b], placement.y[b], placement.z[b]
    with pytest.raises(ValueError, match="shares its place"):
        broken(placed, change).check()


def test_wide_multiplexer_is_refused():
    netlist = path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0")
    lut = cells(netlist)["lut"]
    lut["connections"]["OFX"], lut["port_directions"]["OFX"] = [7], "output"
    with pytest.raises(ValueError, match="wide multiplexer"):
        Placement(Timing(netlist))


def test_congestion():
    """A way costs what its tiles do, in its own direction; half of it lies along either end."""
    rng = np.random.default_rng(1)
    source, sink = rng.integers(0, 300, (2, 2000))
    x, y = rng.integers(5, 120, 300), rng.integers(5, 90, 300)
    x[source], y[source] = rng.integers(5, 40, 2000), rng.integers(5, 30, 2000)  # more wires there
    congestion = Congestion(source, sink, np.ones(2000), np.ones((2, 2000)))
    congestion.update(x, y)
    prices = congestion._across, congestion._along

    def walk(start, end):
        total = 0.0
        for axis, table in enumerate(prices):
            low, high = sorted((start[axis], end[axis]))
            for line in (start[1 - axis], end[1 - axis]):
                steps = np.diff(table[line, low : high + 1, int(end[axis] < start[axis])])
                total += steps.sum() / 2
        return total
    ends = [((10, 20), (60, 50)), ((60, 50), (10, 20)), ((10, 50), (60, 20)), ((60, 20), (10, 50)),
            ((30, 30), (30, 30)), ((30, 30), (31, 30))]
    for start, end in ends:
        there = congestion.cost(*map(np.array, (*end, *start)), np.array(1))
        same = congestion.cost(*map(np.array, (*start, *end)), np.array(-1))
        assert there == pytest.approx(walk(start, end)) and same == pytest.approx(walk(start, end))
    assert walk((10, 20), (60, 50)) != pytest.approx(walk((60, 50), (10, 20)))


def test_wires_in_one_direction_do_not_crowd_the_other():
    """A thousand wires from tile 20, 40 to 60, 40 make that way dear, not the one back or one elsewhere;
    and so for columns, which are full with fewer."""
    for full, way in ((ACROSS, 1), (ALONG, -1)):
        congestion = Congestion(np.zeros(1000, int), np.ones(1000, int), np.ones(1000), np.zeros((2, 1000)))
        congestion.update(*(np.array([20, 60]), np.array([40, 40]))[::way])

        def cost(start, end, congestion=congestion, way=way):
            return float(congestion.cost(*map(np.array, (*end[::way], *start[::way], 1))))
        wires = 1000 * DETOUR / (2 * REACH + 1)  # of each of so many lines
        assert cost((20, 10), (60, 10)) == pytest.approx(LEAST * 40)
        assert cost((60, 40), (20, 40)) == pytest.approx(LEAST * 40)
        assert cost((30, 40), (50, 40)) == pytest.approx(20 * (LEAST + (wires / full) ** 2))


def test_pins_crowd_a_tile():
    """A driver of ten wires is one pin; where their other ends are, there are ten."""
    pins = np.stack([np.full(10, 0.1), np.ones(10)])
    congestion = Congestion(np.zeros(10, int), np.ones(10, int), np.ones(10), pins)
    congestion.update(np.array([20, 60]), np.array([40, 40]))
    around = (2 * REACH + 1) ** 2
    x, y = np.array([20, 20 + REACH, 60, 60, 40]), np.array([40, 40, 40, 40 - REACH, 40])
    expected = (np.array([1, 1, 10, 10, 0]) / around / PINS) ** 2
    np.testing.assert_allclose(congestion.pin(x, y), expected, atol=1e-12)


def test_moves_count_the_price_of_a_way(placed):
    """With every tile dearer by one eastward, a place costs more by its wires' way east; with pins dearer by
    one there, by its pins."""
    timing = Timing(json.loads(placed.read_text()))
    pins = np.bincount(timing.net)
    moves = Moves(timing)
    moves.settle()
    moves._start(9.0, 0.0)
    for k in [k for k in moves.units if moves.role[k] in ("L", "P", "R")][:40]:
        wires = moves.units[k][0]
        x, y = np.array([moves.x[k], moves.x[k] + 9]), np.array([moves.y[k], moves.y[k] + 9])
        before = moves._cost(k, x, y)
        east = moves._congestion._across[..., 0]
        east += np.arange(east.shape[1])
        out = np.isin(timing.source[wires.index], moves.together(k))
        way = np.where(out, 1, -1) * (moves.xs[wires.other] - x[:, None])
        dearer = before + np.maximum(way, 0) @ moves._price[wires.index]
        assert moves._cost(k, x, y) == pytest.approx(dearer)
        moves._congestion._pin[:, moves.x[k] + 9] += 1
        ends = sum(1 for w in wires.index if timing.sink[w] in moves.together(k))
        nets = (1 / pins[timing.net[wires.index[out]]]).sum()  # of each, the wires that lead away
        assert moves._cost(k, x, y) - dearer == pytest.approx([0, LENGTH * (ends + nets)])
        moves._congestion._pin[:, moves.x[k] + 9] -= 1
        east -= np.arange(east.shape[1])


def detour(free, last="M"):
    """Moves of a chain of three LUTs that lies aside of the way between its registers, and of a tile on the
    way with so many free places for LUTs; the chain ends at a register that stays (M), or at one beside its
    last LUT (DI), with a reader that stays."""
    made = {"first": cell("TRELLIS_FF", "X66/Y47/SLICEA.FF0", 5, Q=1)}
    for k in range(3):
        made[f"lut_{k}"] = cell("TRELLIS_COMB", f"X56/Y56/{place_in_slice('K', k)}", A=1 + k, F=2 + k)
    if last == "DI":
        made["last"] = cell("TRELLIS_FF", "X56/Y56/SLICEB.FF0", DI=4, Q=5)
    made["reader"] = cell("TRELLIS_FF", "X61/Y49/SLICEB.FF0", 5, M=5 if last == "DI" else 4)
    for tile, empty in (("X63/Y48", free), ("X66/Y47", 0), ("X61/Y49", 0)):
        for z in range(8 - empty):
            place = f"{tile}/{place_in_slice('K', z)}"
            made[place] = cell("TRELLIS_COMB", place, 5)
    return Moves(Timing({"modules": {"top": {"cells": made, "netnames": {}}}}))


def loosen(moves, count):
    """So many LUTs of the tile on the way may move."""
    for k in [k for k, name in enumerate(moves.timing.names) if name.startswith("X63")][:count]:
        moves.role[k], moves.units[k] = "L", moves._unit(k)


def tiles(moves):
    return [(moves.x[k], moves.y[k]) for k, name in enumerate(moves.timing.names) if "lut_" in name]


@pytest.mark.parametrize("last", ["M", "DI"])
def test_a_chain_moves_as_one(last):
    moves = detour(3, last)
    before = moves.settle().max()
    assert moves.move_cells(4.0, 3.0).max() == before  # one LUT alone gains nothing
    assert moves.move_clusters(4.0, 3.0).max() < before - 0.9
    assert tiles(moves) == [(63, 48)] * 3
    moves.check()


def test_a_chain_stays_where_there_is_no_room():
    """One place is free, another can be made so: that is one too few, and all stays where it was."""
    moves = detour(1)
    moves.settle()
    loosen(moves, 1)
    before, places = moves.settle().max(), moves.bels()
    assert moves.move_clusters(4.0, 3.0).max() == before
    assert moves.bels() == places
    moves.check()


def test_a_chain_changes_places_with_what_has_time():
    """The tile on the way is full of LUTs that nothing waits for; two of them go where the chain was."""
    moves = detour(1)
    moves.settle()
    loosen(moves, 7)
    assert moves.move_clusters(4.0, 3.0).max() < 4.5
    assert tiles(moves) == [(63, 48)] * 3
    moves.check()
