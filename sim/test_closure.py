"""Timing closure: measured delays are nextpnr's, repairs leave what is early alone, the best turn is kept."""

import copy
import json
import sys
from collections import Counter

import numpy as np
import pytest

from sim import closure
from sim.floorplan import ram_sites
from sim.hold import hold, permuted
from sim.placement import Placement, slot
from sim.repair import fix, repair, unroute
from sim.sta import Timing, flat
from sim.test_refine import cell, cells, options, path_netlist, place


def nets(netlist):
    return flat(netlist)["netnames"]


def steps(net):
    """Wire -> pip of a net's routing."""
    words = net["attributes"].get("ROUTING", "").split(";")
    return dict(zip(words[::3], words[1::3], strict=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Placed, a LUT put far away from the others, and routed."""
    placed = place(tmp_path_factory.mktemp("closure"))
    design = json.loads(placed.read_text())
    placement = Placement(Timing(design))
    placement.timing.cells[placement.role.index("L")]["attributes"]["NEXTPNR_BEL"] = "X100/Y60/SLICEA.K0"
    placed.write_text(json.dumps(design))
    closure._route(options(placed.parent), placed, "first", {})
    return placed.parent


def test_measured_timing_is_nextpnrs(folder):
    (fmax,) = json.loads((folder / "first.json").read_text())["fmax"].values()
    timing = Timing(json.loads((folder / "first.routed.json").read_text()))
    timing.update()
    timing.measure((folder / "first.sdf").read_text())
    assert timing.update().max() == pytest.approx(1000 / fmax["achieved"], abs=0.002)


def test_inputs_that_must_not_are_not_permuted(folder):
    """LUT RAM and carry cells: of these the router must not mix all inputs."""
    netlist = json.loads((folder / "first.routed.json").read_text())
    assert permuted(netlist) == []
    modes = Counter(cell["parameters"].get("MODE", "LOGIC") for cell in cells(netlist).values()
                    if cell["type"] == "TRELLIS_COMB")
    assert min(modes[mode] for mode in ("CCU2", "DPRAM", "RAMW_BLOCK")) >= 8


@pytest.mark.parametrize("mode, legal", [
    ("LOGIC", "ABCD"), ("CCU2", "AB"), ("DPRAM", "A"), ("RAMW_BLOCK", "A"),
])
def test_permuted_inputs_are_found(mode, legal):
    lut = cell("TRELLIS_COMB", "X5/Y6/SLICEB.K1", fixed=6, A=1, F=2)
    lut["parameters"]["MODE"] = mode
    for pin in "ABCD":
        routing = f"X5/Y6/A3_SLICE;X5/Y6/0_0_{pin}3->0_0_A3_SLICE;1;X5/Y6/{pin}3;;1"
        net = {"bits": [1], "attributes": {"ROUTING": routing}}
        found = permuted({"modules": {"top": {"cells": {"it": lut}, "netnames": {"n": net}}}})
        assert found == ([] if pin in legal else [f"it ({mode}): {pin} to A"])


def test_held_cells_keep_what_the_placer_may_move():
    """nextpnr writes its own strength, that of a constraint, for all of them."""
    places = [f"X{x}/Y{y}/EBR{k}" for x, y, k in ram_sites()[:2]]
    made = {"given": cell("DP16KD", places[0], fixed=6), "free": cell("DP16KD", places[1])}
    held = {"modules": {"top": {"cells": made, "netnames": {}}}}
    for _ in range(2):  # once more after a repair
        hold(held)
        for found in made.values():
            found["attributes"]["NEXTPNR_BEL"] = found["attributes"].pop("BEL")
            found["attributes"]["BEL_STRENGTH"] = f"{6:032b}"
    assert Placement(Timing(held)).role == ["", "B"]


def test_repair(folder):
    (fmax,) = json.loads((folder / "first.json").read_text())["fmax"].values()
    routed, repaired = folder / "first.routed.json", folder / "repaired.json"
    repair(routed, folder / "first.sdf", repaired, late=0.0, slow=0.15)
    before, after = json.loads(routed.read_text()), json.loads(repaired.read_text())
    Placement(Timing(copy.deepcopy(after))).check()
    driven: set[int] = set()  # nets of moved cells
    for old, new in zip(cells(before).values(), cells(after).values(), strict=True):
        if old["attributes"].pop("NEXTPNR_BEL") != new["attributes"].pop("NEXTPNR_BEL"):
            driven.update(bit for pin, bits in old["connections"].items() for bit in bits
                          if old["port_directions"][pin] == "output")
        assert old == new
    assert driven
    whole = 0
    for net, other in zip(nets(before).values(), nets(after).values(), strict=True):
        old, new = steps(net), steps(other)
        assert new.items() <= old.items()
        assert not new or not driven.intersection(net["bits"])
        whole += 0 < len(new) == len(old)
    assert whole > 100
    closure._route(options(folder), repaired, "again", {})
    (better,) = json.loads((folder / "again.json").read_text())["fmax"].values()
    assert better["achieved"] > 1.1 * fmax["achieved"]


def test_slow_wires_are_taken_out(folder):
    """Of three wires the last step, and no other wire of theirs."""
    netlist = json.loads((folder / "first.routed.json").read_text())
    timing = Timing(netlist)
    slow = [w for w in range(len(timing.net)) if timing.port(w) in "ABCD" and not timing.direct[w]][:3]
    before = copy.deepcopy(nets(netlist))
    unroute(netlist, timing, set(), np.array(slow))
    gone = set()
    for name, net in nets(netlist).items():
        if "control" not in name and "clk" not in name:
            gone |= steps(before[name]).keys() - steps(net).keys()
    ends = set()
    for w in slow:
        k = timing.sink[w]
        ends.add(f"X{timing.x[k]}/Y{timing.y[k]}/{timing.port(w)}{slot(timing.place[k])}_SLICE")
    assert gone == ends and len(ends) == 3


def test_nets_near_a_missing_wire_make_way():
    """If they have time; all others stay."""
    made, netnames = {}, {}
    for n, (a, b) in enumerate([((10, 10), (20, 10)), ((15, 5), (15, 20)), ((12, 10), (13, 10)),
                                ((21, 10), (30, 10)), ((15, 12), (15, 20))]):
        made |= {f"from{n}": cell("TRELLIS_FF", f"X{a[0]}/Y{a[1]}/SLICEA.FF0", Q=n + 1),
                 f"to{n}": cell("TRELLIS_FF", f"X{b[0]}/Y{b[1]}/SLICEB.FF{n % 2}", M=n + 1)}
        netnames[str(n)] = {"bits": [n + 1], "attributes": {"ROUTING": "a;;1;b;p;1"}}
    netlist = {"modules": {"top": {"cells": made, "netnames": netnames}}}
    timing = Timing(netlist)
    wires = np.array([w for w in range(5) if timing.bits[timing.net[w]] == 1])
    fix(netlist, timing, wires, np.array([timing.bits[k] in (2, 4, 5) for k in range(len(timing.bits))]))
    strengths = {name: net["attributes"]["ROUTING"] for name, net in netnames.items()}
    weak, fixed = "a;;1;b;p;1", "a;;4;b;p;4"
    assert strengths == {"0": weak, "1": weak, "2": fixed, "3": fixed, "4": fixed}


FAKE = """#!{python}
import json, pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
pathlib.Path(options["-l"]).write_text("Info: constraining clock net 'clk' to 100.00 MHz\\n")
netlist = json.loads(pathlib.Path(options["--json"]).read_text())
for cell in netlist["modules"]["top"]["cells"].values():
    cell["attributes"]["NEXTPNR_BEL"] = cell["attributes"].pop("BEL", cell["attributes"].get("NEXTPNR_BEL"))
pathlib.Path(options["--write"]).write_text(json.dumps(netlist))
if "--report" in options:
    speeds = json.loads(pathlib.Path("speeds.json").read_text())
    if not speeds:
        sys.exit("more turns than expected")
    pathlib.Path("speeds.json").write_text(json.dumps(speeds[1:]))
    if not speeds[0]:
        sys.exit("no way left")
    fmax = {{"$glbnet$clk$x": {{"achieved": speeds[0], "constraint": 12.0}}}}
    pathlib.Path(options["--report"]).write_text(json.dumps({{"fmax": fmax}}))
    pathlib.Path(options["--sdf"]).write_text("")
    pathlib.Path(options["--textcfg"]).write_text(str(speeds[0]))
"""


def fake(folder, program):
    """The command of a program in place of nextpnr."""
    (folder / "fake").write_text(program)
    (folder / "fake").chmod(0o755)
    return [str(folder / "fake")]


def run(folder, program, speeds, **options):
    """Report of place_and_route with FAKE or the like."""
    (folder / "speeds.json").write_text(json.dumps(speeds))
    netlist = path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0")
    (folder / "netlist.json").write_text(json.dumps(netlist))
    command = fake(folder, program.format(python=sys.executable))
    return closure.place_and_route(command, folder / "netlist.json", 1, **options)


@pytest.mark.parametrize("speeds, best", [
    ([101.0], 101.0),
    ([80.0, 90.0, 85.0, 100.0], 100.0),
    ([80.0, 0, 90.0, 0, 0, 0], 90.0),
    ([80.0, 90.0, 85.0, 89.0, 90.0], 90.0),
    ([float(80 + turn) for turn in range(1 + closure.REPAIRS)], 80.0 + closure.REPAIRS),
])
def test_the_best_turn_is_kept(tmp_path, speeds, best):
    """Turns end with the clock met, without progress, or by their number; one that fails (0) brings none."""
    report = run(tmp_path, FAKE, speeds)
    assert report["fmax"] == {"$glbnet$clk$x": {"achieved": best, "constraint": 100.0}}
    assert json.loads((tmp_path / "seed1.json").read_text()) == report
    assert (tmp_path / "seed1.config").read_text() == str(best)
    assert json.loads((tmp_path / "speeds.json").read_text()) == []


def test_enough_is_enough(tmp_path):
    """Whatever a clock is constrained to for its placement."""
    report = run(tmp_path, FAKE, [80.0, 95.0], enough=95.0)
    assert report["fmax"] == {"$glbnet$clk$x": {"achieved": 95.0, "constraint": 95.0}}


def test_failure_says_why(tmp_path):
    command = fake(tmp_path, f"#!{sys.executable}\nimport sys\n"
                   "open(sys.argv[-1], 'w').write('LUTs 104%\\nERROR: no room\\n')\nsys.exit(1)")
    with pytest.raises(RuntimeError, match="LUTs 104%\nERROR: no room"):
        closure.place_and_route(command, tmp_path / "netlist.json", 1)


def test_constraints_are_read_from_the_log():
    log = ("Info: constraining clock net 'oscillator' to 25.00 MHz\n"
           "Info: Generating derived constraints...\n"
           "Info:     Derived frequency constraint of 50.0 MHz for net clk\n")
    assert closure.constrained(log) == {"oscillator": 25.0, "clk": 50.0}
