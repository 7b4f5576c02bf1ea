"""Repairs of a routed netlist by timing, for an LFE5U.

nextpnr's router gives each wire what is left; some land far above what their length asks for, and one such
wire sets the clock. Here the wires of late paths that came out longer than usual are taken out, what is late
even so moves to better places (sim/refine.py, with the delays of the router for whatever stays), and nextpnr
routes what is missing, late paths first. Where these wires pass, nets with time to spare make way; all others
stay, or each wire that has to go would push out others, through a full part without end.
"""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.moves import Moves
from sim.placement import Placement, slot
from sim.refine import heat, price, summary
from sim.sta import Timing, flat

__all__ = ["fix", "repair", "unroute"]

BEHIND, SPARE = 0.6, 1.4
"""Paths that are earlier than the latest by more (ns) are left alone; nets whose paths are earlier than those
that are not by as much more make way."""
WEAK, FIXED = "1", "4"
"""nextpnr's strengths of routing: may be taken out for other nets; only where it leads nowhere."""


def unroute(netlist: dict, timing: Timing, moved: Collection[int], slow: NDArray) -> None:
    """Take routing out: of the nets that moved cells drive, of slow wires, and of the clocks' network, which
    nextpnr routes before all others. Wires to where a cell no longer is nextpnr drops by itself."""
    whole: set[int] = set()
    pins: dict[int, set[str]] = {}  # net -> nextpnr's names of the pins
    for k, cell in enumerate(timing.cells):
        if k in moved or cell["type"] == "DCCA":
            whole.update(bit for _, bit in timing.pins(k, "output"))
    for w in slow.tolist():
        k, port = int(timing.sink[w]), timing.port(w)
        tile, _, place = timing.cells[k]["attributes"]["NEXTPNR_BEL"].rpartition("/")
        z = slot(place)
        if z is not None and port in ("A", "B", "C", "D", "M"):
            pins.setdefault(timing.bits[timing.net[w]], set()).add(f"{tile}/{port}{z}_SLICE")
        else:
            whole.add(timing.bits[timing.net[w]])
    for net in flat(netlist)["netnames"].values():
        bit, routing = net["bits"][0], net["attributes"].get("ROUTING")
        if bit in whole:
            net["attributes"].pop("ROUTING", None)
        elif routing and bit in pins:
            words = routing.split(";")
            steps = [words[k : k + 3] for k in range(0, len(words), 3)]
            net["attributes"]["ROUTING"] = ";".join(
                word for step in steps if step[0] not in pins[bit] for word in step)


def fix(netlist: dict, timing: Timing, wires: NDArray, spare: NDArray) -> None:
    """Fix the routing of all nets but those of the wires and, of nets with time to spare, those with a wire
    whose box, from driver to pin, meets the box of one of them.

    wires: numbers of wires; spare: of each net, whether it has time."""
    x, y = (np.sort([at[timing.source], at[timing.sink]], axis=0) for at in (timing.x, timing.y))
    near = np.zeros(len(timing.bits), bool)
    for w in wires:
        meets = (x[0] <= x[1, w]) & (x[1] >= x[0, w]) & (y[0] <= y[1, w]) & (y[1] >= y[0, w])
        near[timing.net[meets]] = True
    free = near & spare
    free[timing.net[wires]] = True
    weak = {timing.bits[k] for k in np.flatnonzero(free)}
    for net in flat(netlist)["netnames"].values():
        if routing := net["attributes"].get("ROUTING"):
            words = routing.split(";")
            words[2::3] = [WEAK if net["bits"][0] in weak else FIXED] * len(words[2::3])
            net["attributes"]["ROUTING"] = ";".join(words)


def repair(routed: Path, sdf: Path, repaired: Path, late: float, slow: float, seed: int = 1,
           sweeps: int = 40) -> None:
    """Routed netlist and the delays of its wires in, a netlist to be routed on out.

    late: paths that are longer (ns) are repaired. slow: wires of theirs that take so much (ns) more than
    usual for their length are routed again, and taken to be as usual then; the others stay as they are or,
    where a cell moves, are routed again too."""
    netlist = json.loads(routed.read_text())
    timing = Timing(netlist)
    placement = Moves(timing, seed)
    timing.measure(sdf.read_text())
    arrivals = timing.update()
    late = max(late, arrivals.max() - BEHIND)
    again = timing.slow(late, slow)
    longest = np.zeros(len(timing.bits))
    np.maximum.at(longest, timing.net, timing.through())
    timing.forget(again)
    before, best = placement.bels(), timing.update()
    print(f"repair: {summary(arrivals)}; {(arrivals > late).sum()} over {late:.2f}; {len(again)} wires slow, "
          f"without these latest {best.max():.2f} ns", flush=True)
    places = before
    for sweep in range(sweeps):
        if sweep % 5 == 4:
            placement.move_clusters(late, late)
            placement.move_blocks(late, late)
            placement.move_tiles(late, late)
        arrivals = placement.move_cells(late, late, heat(sweep, sweeps))
        if price(arrivals) < price(best):
            best, places = arrivals, placement.bels()
    moved = [k for k, (a, b) in enumerate(zip(before, places, strict=True)) if a != b]
    for k in moved:
        timing.cells[k]["attributes"]["NEXTPNR_BEL"] = places[k]
    after = Timing(netlist)
    Placement(after).check()
    unroute(netlist, after, set(moved), again)
    missing = np.isin(after.source, moved) | np.isin(after.sink, moved)
    missing[again] = True
    fix(netlist, after, np.flatnonzero(missing), longest < late - SPARE)
    print(f"repair: {len(moved)} cells moved, estimated latest {best.max():.2f} ns", flush=True)
    repaired.write_text(json.dumps(netlist))
