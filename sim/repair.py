"""Repairs of a routed netlist by timing, for an LFE5U.

nextpnr's router gives each wire what is left; some land far above what their length asks for, and one such
wire sets the clock. Here the wires of late paths that came out longer than usual are taken out, what is late
even so moves to better places (sim/refine.py, with the delays of the router for whatever stays), and nextpnr
routes what is missing, late paths first, on top of the rest.
"""

import json
from collections.abc import Collection
from pathlib import Path


from sim.moves import Moves
from sim.placement import Placement
from sim.refine import price, summary
from sim.sta import Timing

__all__ = ["repair"]

SLOW = 0.15
"""A wire of a late path that is so much (ns) slower than usual for its length is routed again."""
BEHIND = 1.0
"""Paths that are earlier than the latest by more (ns) are left alone."""


def unroute(netlist: dict, timing: Timing, bits: Collection[int]) -> int:
    """Take the routing of nets out, and that of the clocks' network, which nextpnr routes before all others;
    returns the number of nets."""
    module = max(netlist["modules"].values(), key=lambda module: len(module["cells"]))
    count = 0
    for net in module["netnames"].values():
        bit = net["bits"][0]
        driver = timing.cells[timing.driver[bit][0]]["type"] if bit in timing.driver else ""
        if (bit in bits or driver == "DCCA") and net["attributes"].pop("ROUTING", None) is not None:
            count += bit in bits
    return count


def repair(routed: Path, sdf: Path, repaired: Path, late: float, seed: int = 1, sweeps: int = 40) -> None:
    """Routed netlist and the delays of its wires in, a netlist to be routed on out; `late` (ns): paths that
    are longer are repaired."""
    netlist = json.loads(routed.read_text())
    timing = Timing(netlist)
    placement = Moves(timing, seed)
    timing.measure(sdf.read_text())
    arrivals = timing.update()
    late = max(late, arrivals.max() - BEHIND)
    print(f"repair: routed {summary(arrivals)}", flush=True)
    slow = timing.forget(late, SLOW)
    arrivals = timing.update()
    print(f"repair: {len(slow)} wires slow: {summary(arrivals)}", flush=True)
    before = placement.bels()
    best, places = arrivals, before
    for sweep in range(sweeps):
        if sweep % 5 == 4:
            placement.move_blocks(late, late)
            timing.update()
            placement.move_tiles(late, late)
            timing.update()
        placement.move_cells(late, late, 0.3 * max(0.0, 1 - sweep / (0.75 * sweeps)))
        arrivals = timing.update()
        if price(arrivals) < price(best):
            best, places = arrivals, placement.bels()
    moved = [k for k, (a, b) in enumerate(zip(before, places, strict=True)) if a != b]
    bits = {timing.bits[timing.net[w]] for w in slow}
    for k in moved:
        timing.cells[k]["attributes"]["NEXTPNR_BEL"] = places[k]
        for bit in timing.cells[k]["connections"].values():
            bits.update(b for b in bit if isinstance(b, int))
    count = unroute(netlist, timing, bits)
    print(f"repair: {len(moved)} cells moved, {count} nets to route: {summary(best)}", flush=True)
    Placement(Timing(netlist)).check()
    repaired.write_text(json.dumps(netlist))
