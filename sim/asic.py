"""The ASIC view of a tile: `make asic LIBERTY=cells.lib CONFIG=tiny`.

Memories of at least MIN_BITS bits become macro instances through the seam in hw/memory.py (`MacroPlatform`),
everything else is mapped by Yosys and ABC to the cells of a liberty file. Printed: area and cells by unit, in
the liberty's unit of area; the macros that the tile needs; the longest path that ends in each unit, timed by
sim/liberty.py over the whole flattened tile (macros count as registers).

Before mapping the design is checked: no latch, no asynchronous or inverted clock, every register and memory
port clocked by `clk` itself. All initial values are dropped; sim/gates.py shows that none is missed.
"""

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hw.config import TileConfig, named
from sim.gates import TOP, yosys
from sim.liberty import Path_, longest_paths, read_liberty

__all__ = [
    "CHECKS",
    "MIN_BITS",
    "Macro",
    "MacroPlatform",
    "Unit",
    "check",
    "macro_models",
    "rtlil",
    "synthesise",
]

MIN_BITS = 1024
"""Smaller memories are cheaper as registers than as a macro with its periphery."""

CHECKS = """
select -assert-none t:$dlatch* t:$adlatch* t:$sr t:$dffsr* t:$adff* t:$aldff* t:$ff t:$_*
select -set state t:$dff* t:$sdff* t:$memrd* t:$memwr*
select -assert-none @state r:CLK_POLARITY=1'b0 %i
select -assert-none @state r:CLK_ENABLE=1'b0 %i
select -assert-none @state w:clk %co1:+[CLK] %d
"""


@dataclass(frozen=True)
class Macro:
    """One RAM macro: ports 1 (en, we) or 2 (one read, one write), rows, bits, bits per write strobe."""

    ports: int
    depth: int
    width: int
    granularity: int

    @property
    def name(self) -> str:
        return f"ram{self.ports}p_{self.depth}x{self.width}_w{self.granularity}"

    @property
    def signals(self) -> dict[str, tuple[str, int]]:
        """Port -> direction and width, beside clk; meaning as of hw/memory.py."""
        abits, strobes = (self.depth - 1).bit_length(), self.width // self.granularity
        if self.ports == 1:
            shape = {"en": 1, "we": 1, "addr": abits, "wdata": self.width, "wstrb": strobes}
        else:
            shape = {"waddr": abits, "wdata": self.width, "wstrb": strobes, "raddr": abits, "ren": 1}
        return {**{n: ("input", w) for n, w in shape.items()}, "rdata": ("output", self.width)}

    def verilog(self, model: bool) -> str:
        """A black box, or a model that simulates: contents and output undefined until written and read."""
        ports = [
            f"  {way} {f'[{width - 1}:0] ' if width > 1 else ''}{name};"
            for name, (way, width) in self.signals.items()
        ]
        head = [f"module {self.name}(clk, {', '.join(self.signals)});", "  input clk;", *ports]
        if not model:
            return "\n".join(["(* blackbox *)", *head, "endmodule", ""])
        write, address, read, row = (
            ("en & we", "addr", "en & ~we", "addr") if self.ports == 1 else ("1'b1", "waddr", "ren", "raddr")
        )
        g = self.granularity
        strobes = [
            f"    if (({write}) & wstrb[{i}]) mem[{address}][{g * i} +: {g}] <= wdata[{g * i} +: {g}];"
            if self.width > g
            else f"    if (({write}) & wstrb) mem[{address}] <= wdata;"
            for i in range(self.width // g)
        ]
        return "\n".join(
            [
                *head,
                f"  reg [{self.width - 1}:0] rdata;",
                f"  reg [{self.width - 1}:0] mem [{self.depth - 1}:0];",
                "  always @(posedge clk) begin",
                *strobes,
                f"    if ({read}) rdata <= mem[{row}];",
                "  end",
                "endmodule",
                "",
            ]
        )


@dataclass
class MacroPlatform:
    """Elaborate with this as the platform: RAMs of min_bits and more become instances of `Macro.name`.

    ROMs stay tables, small RAMs registers. macros: those in use and how many of each.
    """

    min_bits: int = MIN_BITS
    macros: dict[Macro, int] = field(default_factory=dict)

    def get_ram(self, ram: Any) -> Any:
        from amaranth import ClockSignal, Instance, Module

        from hw.memory import Rom, SinglePortRam

        if isinstance(ram, Rom) or ram.width * ram.depth < self.min_bits or any(ram.init):
            return ram.elaborate(None)
        macro = Macro(1 if isinstance(ram, SinglePortRam) else 2, ram.depth, ram.width, ram.granularity)
        self.macros[macro] = self.macros.get(macro, 0) + 1
        pins = {
            f"{'i' if way == 'input' else 'o'}_{name}": getattr(ram, name)
            for name, (way, _) in macro.signals.items()
        }
        m = Module()
        m.submodules.macro = Instance(macro.name, i_clk=ClockSignal(), **pins)
        return m


def rtlil(component: Any, name: str = TOP, platform: Any = None) -> str:
    """RTLIL of a component with the flat ports of the Verilog export."""
    from amaranth.back import rtlil as backend
    from amaranth.hdl._ir import PortDirection

    from hw.export import flat_ports

    ports = {
        port: (value, PortDirection.Input if way == "i" else PortDirection.Output)
        for port, (value, way) in flat_ports(component).items()
    }
    return backend.convert(component, name=name, platform=platform, ports=ports, emit_src=False)


def macro_models(macros: dict[Macro, int], model: bool = True) -> str:
    """Verilog of all macros: models that simulate, or black boxes."""
    return "\n".join(m.verilog(model) for m in macros)


def check(design: str, top: str = TOP, macros: str = "") -> None:
    """RuntimeError naming the cells, unless the RTLIL passes CHECKS."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "design.il").write_text(design)
        (folder / "macros.v").write_text(macros)
        yosys(
            f"read_rtlil design.il\nread_verilog -lib macros.v\nhierarchy -check -top {top}\nproc\nflatten\n"
            f"opt_clean\n{CHECKS}",
            folder,
        )


@dataclass(frozen=True)
class Unit:
    """One unit after mapping: area of cells, cells, flip-flops, macros, the longest path that ends in it."""

    name: str
    area: float
    cells: int
    flops: int
    macros: int
    path: Path_


def synthesise(design: str, liberty: Path, top: str = TOP, macros: str = "") -> list[Unit]:
    """Map RTLIL to the liberty's cells. Each submodule of the top is a unit; the top itself comes last.

    macros: Verilog black boxes. RuntimeError: the design breaks CHECKS, or Yosys cannot use the liberty;
    ValueError: it is no liberty file with a flip-flop.
    """
    cells, _ = read_liberty(liberty.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "design.il").write_text(design)
        (folder / "macros.v").write_text(macros)
        (folder / "cells.lib").write_text(liberty.read_text())
        body = re.search(rf"^module \\{re.escape(top)}$.*?^end$", design, re.M | re.S)
        if body is None:
            raise ValueError(f"no module {top!r} in the design")
        modules = set(re.findall(r"^module (\S+)$", design, re.M))
        units = {
            kind: name
            for kind, name in re.findall(r"^  cell (\\\S+) (\\\S+)", body[0], re.M)
            if kind in modules
        }
        keep = "\n".join(f"setattr -mod -set keep_hierarchy 1 {unit}" for unit in units)
        check(design, top, macros)
        yosys(
            f"""
read_rtlil design.il
read_verilog -lib macros.v
hierarchy -check -top {top}
{keep}
proc
setattr -unset init w:*
flatten
opt_expr
opt_clean
opt_dff
wreduce
alumacc
opt_clean
memory
opt_clean
techmap
opt_merge
dfflibmap -prepare -liberty cells.lib
dfflibmap -map-only -liberty cells.lib
clean
abc -liberty cells.lib -script +strash;&get,-n;&nf;&put
clean
delete t:$scopeinfo
select -assert-none t:$*
tee -q -o stat.json stat -json
setattr -mod -unset keep_hierarchy *
flatten
write_json netlist.json
""",
            folder,
        )
        stat = json.loads((folder / "stat.json").read_text())["modules"]
        module = json.loads((folder / "netlist.json").read_text())["modules"][top]
    names = {kind.lstrip("\\"): instance.lstrip("\\") for kind, instance in units.items()}
    known = set(re.findall(r"^module (\w+)\(", macros, re.M))
    ends: dict[str, Path_] = {}
    for path in longest_paths(module, cells).values():
        owner = re.match(r"(?:\$flatten)?\\?([^.]+)\.", path.end)
        unit = owner[1] if owner and owner[1] in names.values() else top
        if unit not in ends or path.delay > ends[unit].delay:
            ends[unit] = path
    result = []
    for kind, unit in [*names.items(), (top, top)]:
        kinds = stat[f"\\{kind}"]["num_cells_by_type"]
        real = {k.lstrip("\\"): n for k, n in kinds.items() if k.lstrip("\\") not in names}
        result.append(
            Unit(
                unit,
                sum(n * cells[k].area for k, n in real.items() if k in cells),
                sum(n for k, n in real.items() if k not in known),
                sum(n for k, n in real.items() if k in cells and cells[k].flop),
                sum(n for k, n in real.items() if k in known),
                ends.get(unit, Path_(0.0, "", "", 0)),
            )
        )
    return result


def main(argv: list[str] | None = None) -> int:
    """Command line: area by unit, macros and the longest path of a named config."""
    parser = argparse.ArgumentParser(prog="python -m sim.asic", description=main.__doc__)
    parser.add_argument("--config", default="tiny", help="named config (default: tiny)")
    parser.add_argument("--liberty", type=Path, required=True, help="cells to map to")
    args = parser.parse_args(argv)
    if not args.liberty.is_file():
        parser.error(f"--liberty {args.liberty}: no such file")
    config: TileConfig = named(args.config)
    from hw.tile import Tile

    platform = MacroPlatform()
    design = rtlil(Tile(config), platform=platform)
    units = synthesise(design, args.liberty, macros=macro_models(platform.macros, model=False))
    total = sum(u.area for u in units)
    unit_of_time = read_liberty(args.liberty.read_text())[1]
    print(
        f"{'unit':16} {'area':>12} {'share':>6} {'cells':>8} {'FF':>7} {'macros':>6} "
        f"{'longest path':>12} {'gates':>5}"
    )
    for u in sorted(units, key=lambda u: -u.area):
        print(
            f"{u.name:16} {u.area:12.1f} {u.area / total:6.1%} {u.cells:8} {u.flops:7} {u.macros:6} "
            f"{u.path.delay:12.3f} {u.path.depth:5}"
        )
    print(
        f"{'all':16} {total:12.1f} {1:6.0%} {sum(u.cells for u in units):8} {sum(u.flops for u in units):7}"
    )
    worst = max((u.path for u in units), key=lambda path: path.delay)
    print(
        f"longest path: {worst.delay:.3f} x {unit_of_time}, {worst.depth} gates, {worst.start} -> {worst.end}"
    )
    for macro, count in sorted(platform.macros.items(), key=lambda item: item[0].name):
        print(f"{count:4} x {macro.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
