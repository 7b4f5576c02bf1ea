"""Verilog export: one flat, self-contained and reproducible text per component.

Ports carry AMBA-style flat names: a member path ``m_axi.arvalid`` becomes ``m_axi_arvalid``, a stream ``i``
becomes ``i_valid``, ``i_ready``, ``i_payload``, an array element ``lane[2]`` becomes ``lane_2``. Clock and
reset are ``clk`` and ``rst``. The text holds no source paths and no internal attributes, and is
byte-identical from run to run.

Usage: ``python -m hw.export --config base -o build/base.v``
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path

from amaranth.back import verilog as backend
from amaranth.hdl import Value, ValueCastable
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["flat_ports", "verilog"]

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


def main(argv: list[str] | None = None) -> int:
    """Command line: write the Verilog of the whole tile of one named config."""
    parser = argparse.ArgumentParser(prog="python -m hw.export", description=main.__doc__)
    parser.add_argument("--config", default="base", help="named config (default: base)")
    parser.add_argument("--name", default="serrano_tile", help="top module name (default: serrano_tile)")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    args = parser.parse_args(argv)

    from hw.config import named
    from hw.tile import Tile

    try:
        config = named(args.config)
    except ValueError as error:
        parser.error(str(error))
    text = verilog(Tile(config), args.name)
    if args.output is None:
        sys.stdout.write(text)
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
        print(f"{args.output}: {len(text.splitlines())} lines", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
