"""Moves by timing after nextpnr's placement and before its router, for an LFE5U.

nextpnr places for short wires and looks at timing on the side: of a path of nine LUTs, each may lie 15 tiles
from the last though first and last register are neighbours. Here a placed netlist (`nextpnr --write`) is
timed, and whatever lies on late paths moves to where the paths through it are shortest: LUTs, registers,
pairs of both, the late LUTs of a tile together, block RAMs, and whole tiles, as LUT RAM and carry chains keep
their shape. Nothing but places (`NEXTPNR_BEL`) changes; nextpnr goes on from there (sim/closure.py).
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.moves import STEEP, Moves
from sim.placement import Placement
from sim.sta import NEVER, Timing

__all__ = ["heat", "price", "refine", "summary"]

HOT = 0.3
"""At the start, costs are taken for so much larger at random: a way out of local minima."""
WHOLE = 5
"""Each so many sweeps one is over everything, for shorter wires."""
LATEST, EARLY = 200, 9.0
"""Paths up to half a ns earlier than this one of the latest count as late; none below so many ns does, as
whatever moves for speed makes the router's work harder."""


def summary(arrivals: NDArray) -> str:
    late = ", ".join(f"{(arrivals > limit).sum()} over {limit}" for limit in (9, 10, 11, 12))
    return f"latest {arrivals.max():.2f} ns; {late}"


def refine(placed: Path, refined: Path, sweeps: int = 60, seed: int = 1) -> None:
    """Placed netlist of nextpnr in, the same with other places out, progress on stdout."""
    netlist = json.loads(placed.read_text())
    timing = Timing(netlist)
    placement = Moves(timing, seed)
    arrivals = timing.update()
    if not len(arrivals):  # nothing to be in time for
        refined.write_text(json.dumps(netlist))
        return
    best, places = arrivals, placement.bels()
    print(f"refine: {len(timing.cells)} cells; estimated: {summary(arrivals)}", flush=True)
    for sweep in range(sweeps):
        some = min(LATEST, len(arrivals))
        late = max(float(np.partition(arrivals, -some)[-some]) - 0.5, EARLY)
        everything = sweep % WHOLE == WHOLE - 1
        if sweep % 5 == 4:
            placement.move_clusters(late, late - 0.5)
            placement.move_blocks(late, late - 0.5)
            placement.move_tiles(late, late - 0.5 if everything else late)
        if everything:
            placement.move_cells(late, NEVER)
        arrivals = placement.move_cells(late, late - 0.5, heat(sweep, sweeps))
        if price(arrivals) < price(best):
            best, places = arrivals, placement.bels()
        if sweep % 20 == 19:
            print(f"refine: sweep {sweep + 1}: {summary(arrivals)}", flush=True)
    print(f"refine: {summary(best)}", flush=True)
    for cell, place in zip(timing.cells, places, strict=True):
        if place:
            cell["attributes"]["NEXTPNR_BEL"] = place
        for name in ("src", "module_not_derived"):
            cell["attributes"].pop(name, None)
    Placement(Timing(netlist)).check()
    refined.write_text(json.dumps(netlist))


def heat(sweep: int, sweeps: int) -> float:
    """Of a sweep of so many: HOT at first, none in the last quarter."""
    return HOT * max(0.0, 1 - sweep / (0.75 * sweeps))


def price(arrivals: NDArray) -> float:
    """What is to be as small as it can be: mostly the latest arrivals."""
    return float(np.exp((arrivals - 10) / STEEP).sum())
