"""Relays: the netlist stays what it was but for LUTs that pass on a net, where wires get shorter and no path
too long; nextpnr routes it."""

import copy
import json

import pytest

from sim import closure, relay
from sim.placement import Placement, place_in_slice
from sim.sta import LUT, WIRE, Timing, flat
from sim.test_refine import cell, cells, options, place


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    return place(tmp_path_factory.mktemp("relay"))


def without(netlist):
    """The netlist with relays taken out again, and how many there were."""
    design = copy.deepcopy(flat(netlist))
    inputs = {}
    for name in [name for name in design["cells"] if "_RELAY_" in name]:
        taken = design["cells"].pop(name)
        assert taken["parameters"] == {"INITVAL": "1111111100000000"}  # F = D
        inputs[taken["connections"]["F"][0]] = taken["connections"]["D"][0]
        assert design["netnames"].pop(name)["bits"] == taken["connections"]["F"]
    for other in design["cells"].values():
        for bits in other["connections"].values():
            for k, bit in enumerate(bits):
                while bits[k] in inputs:
                    bits[k] = inputs[bits[k]]
                assert bits[k] == bit or bit in inputs
    return design, len(inputs)


def length(netlist):
    """Tiles from driver to pin of all wires."""
    timing = Timing(netlist)
    way = abs(timing.x[timing.source] - timing.x[timing.sink]) + abs(
        timing.y[timing.source] - timing.y[timing.sink])
    return int(way[~timing.direct].sum())


def test_netlist_stays_what_it_was(placed, monkeypatch):
    monkeypatch.setattr(relay, "WORTH", 1.0)  # a small design has no long wires
    before, relayed = json.loads(placed.read_text()), placed.with_name("relayed.json")
    count = relay.relay(placed, relayed)
    after = json.loads(relayed.read_text())
    design, found = without(after)
    assert found == count > 5
    assert design == flat(before)
    assert length(after) < length(before) - count
    assert closure._route(options(placed.parent), relayed, "relayed", {})["fmax"]
    routed = json.loads(placed.with_name("relayed.routed.json").read_text())
    assert sum("_RELAY_" in name for name in cells(routed)) == count


def net(*pins, late=()):
    """A register at X10/Y10 and one at each of the places, fed by it; those in `late` behind eight LUTs."""
    made = {"first": cell("TRELLIS_FF", "X10/Y10/SLICEA.FF0", Q=1)}
    bit = 1
    for k, (x, y) in enumerate(pins):
        last = 1
        for z in range(8 if k in late else 0):
            bit += 1
            made[f"lut_{k}_{z}"] = cell("TRELLIS_COMB", f"X{x}/Y{y}/{place_in_slice('K', z)}", A=last, F=bit)
            last = bit
        made[f"last_{k}"] = cell("TRELLIS_FF", f"X{x}/Y{y}/SLICED.FF1", M=last)
    names = {f"net_{k}": {"hide_name": 0, "bits": [k], "attributes": {}} for k in range(1, bit + 1)}
    return {"modules": {"top": {"cells": made, "netnames": names}}}


def run(tmp_path, netlist):
    """Relay -> what it feeds, of the netlist with relays."""
    (tmp_path / "in.json").write_text(json.dumps(netlist))
    count = relay.relay(tmp_path / "in.json", tmp_path / "out.json")
    after = json.loads((tmp_path / "out.json").read_text())
    Placement(Timing(copy.deepcopy(after))).check()
    fed = {}
    for name, made in cells(after).items():
        if "_RELAY_" in name:
            out = made["connections"]["F"][0]
            fed[name] = {other for other, pins in cells(after).items() for pin, bits in
                         pins["connections"].items() if bits == [out] and pin != "F"}
    assert len(fed) == count
    return fed, after


def test_pins_that_are_far_together_share_a_wire(tmp_path):
    fed, after = run(tmp_path, net((60, 40), (61, 40), (60, 42), (11, 10), (12, 12)))
    assert fed == {"net_1_RELAY_1": {"last_0", "last_1", "last_2"}}
    assert cells(after)["net_1_RELAY_1"]["attributes"]["NEXTPNR_BEL"].startswith("X60/Y40/")


def test_relays_behind_relays(tmp_path):
    fed, _ = run(tmp_path, net((60, 10), (61, 10), (59, 11), (60, 40), (61, 40), (62, 40)))
    assert sorted(map(len, fed.values())) == [3, 4]  # the far pins; the near ones and the second relay
    assert any("_RELAY_" in name for pins in fed.values() for name in pins)


def test_multipliers_of_a_block_keep_their_enable(tmp_path):
    """The four of a block have one wire for it, though they lie in several tiles: it stays on its net."""
    netlist = net((60, 40), (61, 40), (62, 40))
    for k, x in enumerate((60, 61, 64, 65)):
        cells(netlist)[f"product_{k}"] = cell("MULT18X18D", f"X{x}/Y34/MULT18_{x - 60}", CE2=1, RST0=1)
    fed, after = run(tmp_path, netlist)
    assert fed == {"net_1_RELAY_1": {"last_0", "last_1", "last_2"}}
    for k in range(4):
        assert cells(after)[f"product_{k}"]["connections"] == {"CE2": [1], "RST0": [1]}


def test_constants_have_none(tmp_path):
    netlist = net((60, 40), (61, 40), (60, 42))
    cells(netlist)["first"] = cell("TRELLIS_COMB", "X10/Y10/SLICEA.K0", F=1)
    assert run(tmp_path, netlist)[0] == {}


def test_nothing_to_save(tmp_path):
    assert run(tmp_path, net((60, 40)))[0] == {}
    assert run(tmp_path, net((11, 10), (12, 12), (10, 13)))[0] == {}
    assert run(tmp_path, net((60, 40), (10, 80), (110, 10)))[0] == {}


def test_late_paths_have_none(tmp_path, monkeypatch):
    """A pin that would be late behind the relay stays where it is; it is served where there is time."""
    pins = (60, 40), (61, 40), (60, 42), (61, 41)
    late = 0.525 + WIRE[80] + LUT + WIRE[1] + 8 * LUT + 7 * WIRE[0] + WIRE[0]
    monkeypatch.setattr(relay, "LIMIT", late - 0.3)
    fed, _ = run(tmp_path, net(*pins, late=(3,)))
    assert fed == {"net_1_RELAY_1": {"last_0", "last_1", "last_2"}}
    monkeypatch.setattr(relay, "LIMIT", late + 0.3)
    fed, _ = run(tmp_path, net(*pins, late=(3,)))
    assert fed == {"net_1_RELAY_1": {"last_0", "last_1", "last_2", "lut_3_0"}}


def test_late_behind_two_relays(tmp_path, monkeypatch):
    """The way through the first relay counts for the second."""
    pins = (60, 10), (61, 10), (59, 11), (60, 40), (61, 40), (62, 40)
    for limit, relays in ((8.1, 2), (7.5, 1), (6.7, 2), (5.2, 1)):
        monkeypatch.setattr(relay, "LIMIT", limit)
        fed, after = run(tmp_path, net(*pins))
        timing = Timing(after)
        timing.update()
        behind = [w for w, k in enumerate(timing.source) if "_RELAY_" in timing.names[k]]
        assert timing.through()[behind].max() <= limit
        assert len(fed) == relays


def test_full_tiles(tmp_path):
    """With no place near the pins there is no relay; with one, it is taken."""
    netlist = net((60, 40), (61, 40), (60, 42))
    made = cells(netlist)
    for tile in ((60, 40), (61, 40), (60, 42)):
        for z in range(8):
            name = f"X{tile[0]}/Y{tile[1]}/{place_in_slice('K', z)}"
            made[name] = cell("TRELLIS_COMB", name)
    assert run(tmp_path, netlist)[0] == {}
    del made["X61/Y40/SLICEB.K1"]
    fed, after = run(tmp_path, netlist)
    (name,) = fed
    assert cells(after)[name]["attributes"]["NEXTPNR_BEL"] == "X61/Y40/SLICEB.K1"
