"""Timing closure: measured delays are nextpnr's, repairs leave what is early alone, the best turn is kept."""

import copy
import json
import sys

import pytest

from sim import closure, ecp5, pnr
from sim.netlist import nextpnr
from sim.placement import Placement
from sim.repair import repair
from sim.sta import Timing
from sim.test_refine import Mixture, cells, options, path_netlist


def nets(netlist):
    return max(netlist["modules"].values(), key=lambda module: len(module["cells"]))["netnames"]


def steps(net):
    """Wire -> pip of a net's routing."""
    words = net["attributes"].get("ROUTING", "").split(";")
    return dict(zip(words[::3], words[1::3], strict=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Placed without a look at timing, and routed."""
    folder = tmp_path_factory.mktemp("closure")
    netlist = ecp5.synthesise(pnr.Folded(Mixture()), folder)
    nextpnr([*options(folder), "--json", netlist.name, *closure.PLACE, "--no-tmdriv", "--no-route",
             "--write", "placed.json"], folder, "placed.log")
    closure._route(options(folder), folder / "placed.json", "first", {})
    return folder


def test_measured_timing_is_nextpnrs(folder):
    (fmax,) = json.loads((folder / "first.json").read_text())["fmax"].values()
    timing = Timing(json.loads((folder / "first.routed.json").read_text()))
    timing.update()
    timing.measure((folder / "first.sdf").read_text())
    assert timing.update().max() == pytest.approx(1000 / fmax["achieved"], abs=0.002)


def test_repair(folder):
    (fmax,) = json.loads((folder / "first.json").read_text())["fmax"].values()
    routed, repaired = folder / "first.routed.json", folder / "repaired.json"
    repair(routed, folder / "first.sdf", repaired, late=0.0)
    before, after = json.loads(routed.read_text()), json.loads(repaired.read_text())
    Placement(Timing(copy.deepcopy(after))).check()
    driven: set[int] = set()  # nets of moved cells
    for cell, other in zip(cells(before).values(), cells(after).values(), strict=True):
        if cell["attributes"].pop("NEXTPNR_BEL") != other["attributes"].pop("NEXTPNR_BEL"):
            driven.update(bit for pin, bits in cell["connections"].items() for bit in bits
                          if cell["port_directions"][pin] == "output")
        assert cell == other
    assert len(driven) > 10
    whole = slow = 0
    for net, other in zip(nets(before).values(), nets(after).values(), strict=True):
        old, new = steps(net), steps(other)
        assert new.items() <= old.items()
        assert not new or not driven.intersection(net["bits"])
        whole += 0 < len(new) == len(old)
        slow += 0 < len(new) < len(old)
    assert whole > 100 and slow > 0
    closure._route(options(folder), repaired, "again", {})
    (better,) = json.loads((folder / "again.json").read_text())["fmax"].values()
    assert better["achieved"] > fmax["achieved"]


FAKE = """#!{python}
import json, pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
pathlib.Path(options["-l"]).write_text("Info: constraining clock net 'clk' to 100.00 MHz\\n")
netlist = json.loads(pathlib.Path(options["--json"]).read_text())
pathlib.Path(options["--write"]).write_text(json.dumps(netlist))
if "--report" in options:
    speeds = json.loads(pathlib.Path("speeds.json").read_text())
    if not speeds:
        sys.exit("more turns than expected")
    pathlib.Path("speeds.json").write_text(json.dumps(speeds[1:]))
    if not speeds[0]:
        pathlib.Path(options["-l"]).write_text(
            "Warning: Failed to find a route for arc 0 of net some.net[1].\\n")
        sys.exit(1)
    fmax = {{"$glbnet$clk$x": {{"achieved": speeds[0], "constraint": 12.0}}}}
    pathlib.Path(options["--report"]).write_text(json.dumps({{"fmax": fmax}}))
    pathlib.Path(options["--sdf"]).write_text("")
    pathlib.Path(options["--textcfg"]).write_text(str(speeds[0]))
"""


@pytest.mark.parametrize("speeds, best", [
    ([101.0], 101.0),
    ([80.0, 90.0, 85.0, 100.0], 100.0),
    ([80.0, 0, 90.0, 0, 0, 0], 90.0),
    ([80.0, 90.0, 85.0, 89.0, 90.0], 90.0),
    ([float(80 + turn) for turn in range(1 + closure.REPAIRS)], 80.0 + closure.REPAIRS),
])
def test_the_best_turn_is_kept(tmp_path, speeds, best):
    """Turns end with the clock met, without progress, or by their number; a turn that cannot be routed (0)
    is one without progress."""
    (tmp_path / "fake").write_text(FAKE.format(python=sys.executable))
    (tmp_path / "fake").chmod(0o755)
    (tmp_path / "speeds.json").write_text(json.dumps(speeds))
    netlist = path_netlist(first="X5/Y5/SLICEA.FF0", lut="X8/Y9/SLICEB.K1", last="X8/Y10/SLICEC.FF0")
    nets(netlist)["some.net[1]"] = {"bits": [2], "attributes": {}}
    (tmp_path / "netlist.json").write_text(json.dumps(netlist))
    report = closure.place_and_route([str(tmp_path / "fake")], tmp_path / "netlist.json", 1)
    assert report["fmax"] == {"$glbnet$clk$x": {"achieved": best, "constraint": 100.0}}
    assert json.loads((tmp_path / "seed1.json").read_text()) == report
    assert (tmp_path / "seed1.config").read_text() == str(best)
    assert json.loads((tmp_path / "speeds.json").read_text()) == []


def test_failure_says_why(tmp_path):
    (tmp_path / "fake").write_text(
        f"#!{sys.executable}\nimport sys\n"
        "open(sys.argv[-1], 'w').write('LUTs 104%\\nERROR: no room\\n')\nsys.exit(1)")
    (tmp_path / "fake").chmod(0o755)
    with pytest.raises(RuntimeError, match="LUTs 104%\nERROR: no room"):
        closure.place_and_route([str(tmp_path / "fake")], tmp_path / "netlist.json", 1)


def test_constraints_are_read_from_the_log():
    log = ("Info: constraining clock net 'oscillator' to 25.00 MHz\n"
           "Info: Generating derived constraints...\n"
           "Info:     Derived frequency constraint of 50.0 MHz for net clk\n")
    assert closure.constrained(log) == {"oscillator": 25.0, "clk": 50.0}
