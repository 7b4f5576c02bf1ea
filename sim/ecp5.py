"""A design in ECP5 cells for nextpnr: Yosys' synth_ecp5 with carry chains and multiplexers of our own, and
what nextpnr adds to chains taken out.

Against the plain command this saves a twentieth of the LUTs: nextpnr puts a carry cell in front of a chain
whose carry in is a constant, and one behind a chain whose carry out goes nowhere; adders of a few bits are
smaller in LUTs than in carry cells; ABC takes three LUTs for a multiplexer of four.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from amaranth.lib import wiring

from sim.floorplan import floorplan
from sim.netlist import FANOUT, last_bit, make, split_registers

__all__ = [
    "SYNTH", "absorb_registers", "cut_chains", "finish", "global_controls", "synthesise", "unit_resets",
]

MAP = Path(__file__).parent / "data" / "ecp5_map.v"
NARROW = 5
"""Widest adder that is left to LUTs."""
ENABLED, RESET = 4, 100
"""Registers that an enable or a reset of their own is worth: two of a slice must share their enable, all
eight of a tile their reset."""
FLIP_FLOPS = " ".join(f"-cell {kind} {init}" for kind, init in (
    ("$_DFF_?_", "01"), ("$_DFF_?P?_", "r"), ("$_SDFF_?P?_", "r"),
    ("$_DFFE_??_", "01"), ("$_DFFE_?P??_", "r"), ("$_SDFFE_?P??_", "r")))
COARSE = """
synth_ecp5 -nowidelut -no-rw-check -top {top} -run begin:map_ram
"""
CELLS = f"""synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_ram:map_gates
techmap -map +/techmap.v t:$alu r:Y_WIDTH<={NARROW} %i
techmap -map ecp5_map.v t:$alu
synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_gates:map_ffs
opt_clean
dfflegalize {FLIP_FLOPS} -mince {ENABLED} -minsrst {RESET}
synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_ffs:map_luts
muxcover -mux4=250
techmap -map ecp5_map.v t:$_MUX4_
synth_ecp5 -nowidelut -no-rw-check -top {{top}} -run map_luts:
"""
SYNTH = COARSE + CELLS
"""Wide multiplexers (PFUMX, L6MUX21) cost an eighth more LUTs and gain no speed here. Only a tree that is a
whole multiplexer of four gains by sim/data/ecp5_map.v, hence its cost of 250. Reads never meet a write to
their row (hw/memory.py): -no-rw-check says so of Verilog, sim/netlist.py of RTLIL. ABC9 is the default."""


SHALLOW = """setattr -set ram_style "distributed" t:$mem_v2 r:SIZE<={depth} %i
"""
SHARED = 1000
"""Registers that share a reset or an enable from which on it is worth a network of the clocks'."""
GLOBALS = 7


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


class _Pins:
    """Who drives and who reads the nets of a module of a JSON netlist: bit -> (cell, pin)."""

    def __init__(self, module: dict):
        self.cells = module["cells"]
        self.driver: dict[int | str, tuple[str, str]] = {}
        self.readers: dict[int | str, list[tuple[str, str]]] = defaultdict(list)
        for name, cell in module["cells"].items():
            for pin, bits in cell["connections"].items():
                for bit in bits:
                    if cell["port_directions"][pin] != "output":
                        self.readers[bit].append((name, pin))
                    elif isinstance(bit, int):
                        self.driver[bit] = (name, pin)
        for name, port in module["ports"].items():
            for bit in port["bits"] if port["direction"] != "input" else ():
                self.readers[bit].append((name, "port"))

    def register(self, bit: int | str) -> dict | None:
        """The flip-flop that drives a net."""
        cell = self.cells.get(self.driver.get(bit, ("", ""))[0])
        return cell if cell and cell["type"] == "TRELLIS_FF" else None


def _net(cell: dict, pin: str, default: str) -> int | str:
    """The net of a one-bit pin."""
    return (cell["connections"].get(pin) or [default])[0]


def _plain(cell: dict) -> tuple[int | str, int | str] | None:
    """(clock, enable) of a flip-flop that a block's own register can stand for: no reset, initially 0."""
    parameters = cell["parameters"]
    if (cell["type"] != "TRELLIS_FF" or _net(cell, "LSR", "0") != "0" or parameters["REGSET"] != "RESET"
            or parameters["CLKMUX"] != "CLK" or parameters["CEMUX"].strip() not in ("CE", "1")):
        return None
    return _net(cell, "CLK", "x"), _net(cell, "CE", "1") if parameters["CEMUX"] == "CE" else "1"


def _connect(cell: dict, pins: dict[str, int | str]) -> None:
    for pin, net in pins.items():
        cell["connections"][pin] = [net]
        cell["port_directions"][pin] = "input"


def absorb_registers(netlist: dict) -> None:
    """Registers at DSP blocks of a JSON netlist moved into these, in place: those of the product, if nothing
    else reads it, and those of both factors, if other registers feed them (then no logic comes to lie in
    front of the block; what else reads such a register keeps it)."""
    for module in netlist["modules"].values():
        cells, pins = module["cells"], _Pins(module)
        spare = Counter({bit: len(readers) for bit, readers in pins.readers.items()})
        for name in [name for name, cell in cells.items() if cell["type"] == "MULT18X18D"]:
            cell = cells[name]
            wires = cell["connections"]
            product = [pin for pin in wires if re.fullmatch(r"P\d+", pin) and pins.readers.get(wires[pin][0])]
            behind = [pins.readers[wires[pin][0]] for pin in product]
            kinds = {_plain(cells[reader[0][0]]) if len(reader) == 1 and reader[0][1] == "DI" else None
                     for reader in behind}
            kind = kinds.pop() if len(kinds) == 1 else None
            if kind and kind[1] == "1":  # Project Trellis knows no enable of this register
                for pin, ((register, _),) in zip(product, behind, strict=True):
                    wires[pin] = cells.pop(register)["connections"]["Q"]
                cell["parameters"] |= {
                    "REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE0", "REG_OUTPUT_RST": "RST0"}
                _connect(cell, {"CLK0": kind[0], "CE0": "1", "RST0": "0"})
            factors = {}
            for side in "AB":
                factor = {pin: wires[pin][0] for pin in wires
                          if re.fullmatch(rf"{side}\d+", pin) and wires[pin][0] != "0"}
                registers = [pins.register(bit) for bit in factor.values()]
                kinds = {_plain(register) if register else None for register in registers}
                before = [_net(register, "DI", "x") for register in registers if register]
                kind = kinds.pop() if len(kinds) == 1 else None
                if kind and all(pins.register(feed) for feed in before):
                    factors[side] = (*kind, dict(zip(factor, before, strict=True)))
            if len(factors) == 2 and factors["A"][0] == factors["B"][0]:
                for number, (side, (clock, enable, feeds)) in enumerate(factors.items(), 1):
                    cell["parameters"] |= {
                        f"REG_INPUT{side}_CLK": "CLK0", f"REG_INPUT{side}_CE": f"CE{number}",
                        f"REG_INPUT{side}_RST": "RST0"}
                    _connect(cell, {"CLK0": clock, f"CE{number}": enable, "RST0": "0"})
                    for pin, feed in feeds.items():
                        spare[wires[pin][0]] -= 1
                        wires[pin] = [feed]
        for name in [name for name, cell in cells.items() if cell["type"] == "TRELLIS_FF"]:
            bit = cells[name]["connections"]["Q"][0]
            if bit in spare and not spare[bit]:
                del cells[name]


def unit_resets(netlist: dict) -> None:
    """Registers without a reset get the one of their unit, in place: of the resets that at least SHARED
    registers have, the one of the nearest module around them. Like any reset it gives them their initial
    value, on which nothing depends, and registers with different resets could not share a tile. What a
    register drives that is reset by such a net itself is no reset of a unit, but part of its work."""
    for module in netlist["modules"].values():
        registers = {name: cell for name, cell in module["cells"].items() if cell["type"] == "TRELLIS_FF"}
        sizes = Counter(_net(cell, "LSR", "0") for cell in registers.values())
        shared = {net for net, size in sizes.items() if net != "0" and size >= SHARED}
        shared -= {_net(cell, "Q", "0") for cell in registers.values() if _net(cell, "LSR", "0") in shared}
        resets: dict[str, Counter] = defaultdict(Counter)
        for name, cell in registers.items():
            net = _net(cell, "LSR", "0")
            if net in shared:
                for around in _around(name):
                    resets[around][net] += 1
        for name, cell in registers.items():
            if _net(cell, "LSR", "0") == "0":
                found = next((resets[around] for around in _around(name) if around in resets), None)
                if found:
                    _connect(cell, {"LSR": found.most_common(1)[0][0]})
                    cell["parameters"] |= {"LSRMUX": "LSR", "SRMODE": "LSR_OVER_CE"}


def _around(name: str) -> Iterator[str]:
    """The modules around a cell of a flat netlist, from the innermost out."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def global_controls(netlist: dict, least: int) -> None:
    """The resets and enables that at least `least` registers of a JSON netlist share, those of the most
    registers first, on the clocks' network, in place: nextpnr leaves them to the fabric, of which a reset of
    everything takes wires in every tile. What else reads them stays. Of the part's networks 8 lead to such
    pins; one is the clock's."""
    for module in netlist["modules"].values():
        cells, last = module["cells"], last_bit(module)
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
            module["netnames"][f"control_{number}_CLKO"] = {"hide_name": 0, "bits": [last], "attributes": {}}
            for name, pin in pins[bit]:
                cells[name]["connections"][pin] = [last]


def synthesise(top: wiring.Component, folder: Path, shallow: int = 0) -> Path:
    """`sim.netlist.make` in ECP5 cells. Memories of up to `shallow` words are LUTs, for a part that runs out
    of block RAM first."""
    script = (COARSE + (SHALLOW.format(depth=shallow) if shallow else "") + CELLS).format(top="top")
    return make(top, folder, script, {MAP.name: MAP.read_text()}, finish,
                ("ecp5.py", "floorplan.py", "netlist.py"))


def finish(netlist: dict) -> None:
    """What nextpnr does not do by itself, in place."""
    cut_chains(netlist)
    absorb_registers(netlist)
    unit_resets(netlist)
    global_controls(netlist, SHARED)
    split_registers(netlist, "TRELLIS_FF", FANOUT)
    floorplan(netlist)
