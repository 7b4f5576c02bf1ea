"""Relays in long nets after nextpnr's placement and before its router, for an LFE5U.

nextpnr's router leads a wire to each pin of a net and lets them share little of the way: a word of SRAM that
six ports read at the other end of the part is six wires there. A LUT that only passes its input on, near the
pins, makes it one: the wire up to it is shared whatever the router does. LUTs are what a full part still has.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.placement import Placement, place_in_slice
from sim.sta import LUT, NEVER, WIRE, Timing, flat

__all__ = ["relay"]

WORTH = 8.0
"""Tiles of wire, by the square root of the pins behind a driver, that a relay has to save."""
NEAR = 2
"""Tiles that a pin has to be nearer to the relay than to the driver, as a wire has to leave its tile."""
LIMIT = 8.5
"""No path through a relay may become longer (ns), by estimates at the place where it saves most, and without
the relays of other nets."""
MOST = 300
"""Pins of a net; more belong to resets and the like, which are late as it is."""
AROUND = 3
"""Tiles from the best place that a relay may be away."""
BUFFER = "1111111100000000"
"""LUT that passes D on."""


@dataclass
class Driver:
    """A driver and the wires it feeds, of a net or behind a relay."""

    bit: int
    x: int
    y: int
    head: float
    """Arrival at its output (ns)."""
    wires: NDArray


def relay(placed: Path, relayed: Path) -> int:
    """Placed netlist of nextpnr in, the same with relays out; how many there are."""
    netlist = json.loads(placed.read_text())
    timing = Timing(netlist)
    timing.update()
    module, placement = flat(netlist), Placement(timing)
    nets = {net["bits"][0]: name for name, net in module["netnames"].items() if len(net["bits"]) == 1}
    bit, count, saved = max(nets, default=0), 0, 0.0
    for first in _nets(timing):
        drivers = [first]
        while drivers:
            driver = drivers[-1]
            found = _best(timing, placement, driver)
            if found is None:
                drivers.pop()
                continue
            tile, z, behind, gain = found
            bit, count, saved = bit + 1, count + 1, saved + gain
            name = f"{nets[first.bit]}_RELAY_{count}"
            placement.tiles[tile][0][z] = len(timing.cells) + count
            module["cells"][name] = _cell(driver.bit, bit, tile, z)
            module["netnames"][name] = {"hide_name": 0, "bits": [bit], "attributes": {}}
            for w in behind.tolist():
                pins = timing.cells[timing.sink[w]]["connections"]
                pins[timing.port(w)] = [bit if pin == driver.bit else pin for pin in pins[timing.port(w)]]
            driver.wires = np.setdiff1d(driver.wires, behind)
            head = driver.head + float(WIRE[abs(tile[0] - driver.x) + abs(tile[1] - driver.y)]) + LUT
            drivers.append(Driver(bit, *tile, head, behind))
    Placement(Timing(netlist)).check()
    relayed.write_text(json.dumps(netlist))
    print(f"relay: {count} relays instead of {saved:.0f} tiles of wire", flush=True)
    return count


def _nets(timing: Timing) -> Iterator[Driver]:
    """Nets with their wires, but for constants and for pins that must stay on one net: the multipliers of a
    block share the wires of their enables and resets. (Registers do so within a tile, where all or none of
    them are behind a relay.)"""
    alone = [timing.cells[k]["type"] == "MULT18X18D" and timing.port(w).startswith(("CE", "RST"))
             for w, k in enumerate(timing.sink.tolist())]
    wires = np.flatnonzero(~timing.direct & ~np.array(alone, bool) & (timing.head > NEVER / 2))
    wires = wires[np.argsort(timing.net[wires], kind="stable")]
    for own in np.split(wires, np.flatnonzero(np.diff(timing.net[wires])) + 1):
        if 2 <= len(own) <= MOST:
            k = timing.source[own[0]]
            yield Driver(timing.bits[timing.net[own[0]]], int(timing.x[k]), int(timing.y[k]),
                         float(timing.head[own[0]]), own)


def _best(timing: Timing, placement: Placement,
          driver: Driver) -> tuple[tuple[int, int], int, NDArray, float] | None:
    """Tile and place of the relay that saves most, the wires behind it and what it saves (tiles of wire)."""
    sinks = timing.sink[driver.wires]
    x, y = timing.x[sinks], timing.y[sinks]
    # by the pins, or where the way to them turns
    at_x = np.concatenate([x, x, np.full_like(x, driver.x)])
    at_y = np.concatenate([y, np.full_like(y, driver.y), y])
    there = abs(at_x - driver.x) + abs(at_y - driver.y)
    onward = abs(at_x[:, None] - x) + abs(at_y[:, None] - y)
    path = driver.head + WIRE[there][:, None] + LUT + WIRE[onward] + timing.after[driver.wires]
    nearer = abs(x - driver.x) + abs(y - driver.y) - onward - NEAR
    nearer = np.where((path <= LIMIT) & (nearer > 0), nearer, 0)
    gain = nearer.sum(1) - there - NEAR
    best = int(gain.argmax()) if len(gain) else 0
    if not len(gain) or gain[best] < WORTH * len(driver.wires) ** 0.5:
        return None
    tile, z = _free(placement, int(at_x[best]), int(at_y[best]))
    return (tile, z, driver.wires[nearer[best] > 0], float(gain[best])) if z is not None else None


def _free(placement: Placement, x: int, y: int) -> tuple[tuple[int, int], int | None]:
    """The nearest free place for a LUT and its tile, if there is one."""
    for away in range(AROUND + 1):
        for dx in range(-away, away + 1):
            for dy in {away - abs(dx), abs(dx) - away}:
                tile = x + dx, y + dy
                if tile in placement.tiles and (z := placement.free_lut(tile)) is not None:
                    return tile, z
    return (x, y), None


def _cell(bit: int, out: int, tile: tuple[int, int], z: int) -> dict:
    place = f"X{tile[0]}/Y{tile[1]}/{place_in_slice('K', z)}"
    return {
        "hide_name": 0, "type": "TRELLIS_COMB", "parameters": {"INITVAL": BUFFER},
        "attributes": {"NEXTPNR_BEL": place, "BEL_STRENGTH": f"{1:032b}"},
        "port_directions": {"A": "input", "B": "input", "C": "input", "D": "input", "F": "output"},
        "connections": {"A": [], "B": [], "C": [], "D": [bit], "F": [out]},
    }
