"""Places that nextpnr's router takes as they are, for an LFE5U.

A router may permute the inputs of a LUT, those of a carry cell within A, B and within C, D, those of LUT RAM
not at all. nextpnr notes which when a cell gets its place. Of a netlist that comes with places (NEXTPNR_BEL)
it does so before it knows what the cells are, and permutes what it must not. With places as constraints (BEL)
it places every cell, where it is, and knows.
"""

import re

from sim.placement import STRENGTH, slot
from sim.sta import flat

__all__ = ["hold", "permuted"]

MIXED = re.compile(r"(X\d+/Y\d+)/0_0_([ABCD])(\d)->0_0_([ABCD])\3_SLICE")
"""The step of a net's routing from a pin of a tile to an input of a LUT: tile, pin, LUT, input."""


def hold(netlist: dict) -> None:
    """Make each cell's place a constraint, in place."""
    for cell in flat(netlist)["cells"].values():
        attributes, bits = cell["attributes"], cell["connections"]
        if "NEXTPNR_BEL" in attributes:
            attributes["BEL"] = attributes.pop("NEXTPNR_BEL")
            attributes.setdefault(STRENGTH, attributes.pop("BEL_STRENGTH", f"{1:032b}"))
        # A pin without a bit would be none, and nextpnr asks DSP blocks for theirs.
        bits.update({pin: ["x"] for pin, wires in bits.items() if not wires})


def permuted(netlist: dict) -> list[str]:
    """Inputs of a routed netlist that the router permuted and must not have: cell, its mode, pins."""
    top = flat(netlist)
    mode: dict[tuple[str, int | None], tuple[str, str]] = {}
    for name, cell in top["cells"].items():
        if cell["type"] == "TRELLIS_COMB":
            tile, _, place = cell["attributes"]["NEXTPNR_BEL"].rpartition("/")
            mode[tile, slot(place)] = cell["parameters"].get("MODE", "LOGIC"), name
    found = []
    for net in top["netnames"].values():
        for tile, pin, z, to in MIXED.findall(net["attributes"].get("ROUTING", "")):
            kind, name = mode.get((tile, int(z)), ("LOGIC", ""))
            pair = "AB" if pin in "AB" else "CD"
            if kind != "LOGIC" and pin != to and (kind != "CCU2" or to not in pair):
                found.append(f"{name} ({kind}): {pin} to {to}")
    return found
