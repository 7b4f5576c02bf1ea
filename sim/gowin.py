"""A design in Gowin GW5A cells for nextpnr-himbaechel: Yosys' synth_gowin, and products in DSP blocks, for
which it has no map in this family (sim/data/gw5a_map.v is ours)."""

from pathlib import Path

from amaranth.lib import wiring

from sim.netlist import FANOUT, last_bit, make, split_registers

__all__ = ["MAP", "MULTIPLIERS", "PLACE", "SYNTH", "THROUGH", "finish", "show_delays", "synthesise"]

MAP = Path(__file__).parent / "data" / "gw5a_map.v"
OPTIONS = "synth_gowin -family gw5a -nowidelut -no-rw-check -noiopads -top {top} -run"
MULTIPLIERS = """techmap -map gw5a_map.v t:$mul
"""
SYNTH = f"""logger -nowarn "elect.* out of bounds"
{OPTIONS} begin:coarse
proc
flatten
opt_expr
opt_clean
opt -nodffe -nosdff
fsm
opt
wreduce
peepopt
opt_clean
{MULTIPLIERS}{OPTIONS} coarse:
"""
"""What synth_gowin does before multipliers of older families are mapped, then those of this one, then all of
its own again. Wide multiplexers take more LUTs than they save, as on the ECP5. The warnings left out are of
Yosys' own maps of block RAM."""
PLACE = ("--placer-heap-beta", "0.5", "--placer-heap-timingweight", "50", "--router", "router2",
         "--timing-allow-fail", "--detailed-timing-report")
"""How nextpnr places, routes and reports. With its default of 0.9 of the places of an area in use, few cells
find one near where they should be: registers next to each other have to share their controls. With its
default of 10 for the weight of late paths, these wander over the part. Its default router is several times
slower."""
THROUGH = "_THROUGH"
"""End of the names of LUTs that only lead to a register."""
PADS = """iopadmap -bits -inpad IBUF O:I -outpad OBUF I:O
"""


def show_delays(netlist: dict) -> None:
    """A JSON netlist whose delays nextpnr sees, in place. Of LUTs it knows those of LUT4 alone, so every LUT
    is one. And the data of a register come through the LUT before it: where there is none, nextpnr adds one
    after placement and then takes the path as none at all."""
    top = netlist["modules"]["top"]
    cells, last = top["cells"], last_bit(top)
    direct: set[int] = set()
    fixed: set[int] = set()
    for cell in cells.values():
        if cell["type"] in ("LUT1", "LUT2", "LUT3", "LUT4"):
            init = cell["parameters"]["INIT"]
            cell["type"], cell["parameters"]["INIT"] = "LUT4", init * (16 // len(init))
            direct.update(cell["connections"]["F"])
        elif cell["type"] in ("GND", "VCC"):
            fixed.update(bit for bits in cell["connections"].values() for bit in bits)
    for name in [name for name, cell in cells.items() if cell["type"].startswith("DFF")]:
        (data,) = cells[name]["connections"]["D"]
        if data in direct:
            direct.remove(data)  # of the registers behind a LUT one is beside it
        elif isinstance(data, int) and data not in fixed:
            last += 1
            cells[name + THROUGH] = {
                "hide_name": 1, "type": "LUT4", "parameters": {"INIT": f"{0xFF00:016b}"}, "attributes": {},
                "port_directions": {"I3": "input", "F": "output"},
                "connections": {"I3": [data], "F": [last]},
            }
            top["netnames"][name + THROUGH] = {"hide_name": 1, "bits": [last], "attributes": {}}
            cells[name]["connections"]["D"] = [last]


def synthesise(top: wiring.Component, folder: Path) -> Path:
    """`sim.netlist.make` in GW5A cells."""
    script = SYNTH.format(top="top") + PADS
    return make(top, folder, script, {MAP.name: MAP.read_text()}, finish, ("gowin.py", "netlist.py"))


def finish(netlist: dict) -> None:
    """What nextpnr does not do by itself, in place."""
    split_registers(netlist, "DFF", FANOUT)
    show_delays(netlist)
