"""Moves by timing after nextpnr's placement and before its router, for an LFE5U.

nextpnr places for short wires and looks at timing on the side: of a path of nine LUTs, each may lie 15 tiles
from the last though first and last register are neighbours. Here a placed netlist (`nextpnr --write`) is
timed, and whatever lies on late paths moves to where the paths through it are shortest: LUTs, registers,
pairs of both, and whole tiles, as LUT RAM and carry chains keep their shape. Nothing but places
(`NEXTPNR_BEL`) changes; nextpnr goes on from there with `--no-pack --no-place`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.floorplan import ram_sites
from sim.sta import LUT, NEVER, WIRE, Timing

__all__ = ["Placement", "refine"]

STEEP, LENGTH, WIDE = 0.4, 0.03, 100
"""A path that is late by so many ns more costs e times as much; cost of a tile of a net's half perimeter,
which the router has to find room for; nets with more pins do not count."""
ROOM, CROWDED = (50.0, 40.0), 8.0
"""Nets that may pass a tile from left to right, and up and down, each spread evenly over its box, before the
lengths of all that pass count for more; how much more where there are twice as many."""
HOT = 0.3
"""At the start, costs are taken for so much larger at random: a way out of local minima."""
LATEST, EARLY = 200, 9.0
"""Paths up to half a ns earlier than this one of the latest count as late; none below so many ns does, as
whatever moves for speed makes the router's work harder."""


@dataclass
class Wires:
    """Wires between cells that move together and others: their numbers, the end that moves, the other end."""

    index: NDArray
    own: NDArray
    other: NDArray
    pins: NDArray
    """Of all nets at these wires, net after net: the cells that stay."""
    nets: NDArray
    """Where in `pins` each net begins."""


class Placement:
    """The logic tiles of a placed netlist and what may move between them.

    A tile has eight places for a LUT and eight for a register. All its registers share clock and reset, the
    two of a slice their enable; a register fed by `DI` stays beside its LUT; LUT RAM and carry chains fill
    slices, the latter on through tiles to the right.
    """

    def __init__(self, timing: Timing, seed: int = 1):
        self.timing, self.rng = timing, np.random.default_rng(seed)
        count = len(timing.cells)
        self.x, self.y, self.z = timing.x.tolist(), timing.y.tolist(), [0] * count
        self.tiles: dict[tuple[int, int], tuple[list, list, list]] = {}  # LUTs, registers, RAM writers
        self.pinned: set[tuple[int, int]] = set()  # tiles with what may not move
        self.rams: set[tuple[int, int]] = set()  # tiles with LUT RAM
        self.partner: list[int | None] = [None] * count
        self.role = [""] * count  # L: a LUT, R: a register, P: the LUT of a pair, B: a block RAM
        self.blocks: dict[tuple[int, int], int | None] = {(x, y): None for x, y, _ in ram_sites()}
        for k in range(count):
            self._add(k)
        self.controls = {k: self._controls(cell) for k, cell in enumerate(timing.cells)
                         if cell["type"] == "TRELLIS_FF"}
        self.linked: set[tuple[int, int]] = set()  # tiles whose chain goes on to the right
        source, sink = timing.source.tolist(), timing.sink.tolist()
        self.wires: list[list[int]] = [[] for _ in range(count)]
        for w, (a, b) in enumerate(zip(source, sink, strict=True)):
            if not timing.direct[w]:
                self.wires[a].append(w)
                self.wires[b].append(w)
            elif self.x[a] != self.x[b]:
                self.linked.add((self.x[a], self.y[a]))
        self._source, self._sink, self._net = source, sink, timing.net.tolist()
        self.cells_of: dict[int, list[int]] = {}  # net -> its cells
        for w, net in enumerate(self._net):
            if not timing.direct[w]:
                self.cells_of.setdefault(net, [source[w]]).append(sink[w])
        self.units = {k: self._unit(k) for k in range(count) if self.role[k]}
        self.crowd()

    def _add(self, k: int) -> None:
        timing, cell = self.timing, self.timing.cells[k]
        kind, tile = cell["type"], (self.x[k], self.y[k])
        fixed = int(cell["attributes"].get("BEL_STRENGTH", "1"), 2) > 1
        if kind == "DP16KD":
            self.blocks[tile] = k
            self.role[k] = "" if fixed else "B"
        if kind not in ("TRELLIS_COMB", "TRELLIS_FF", "TRELLIS_RAMW"):
            return
        luts, registers, writers = self.tiles.setdefault(tile, ([None] * 8, [None] * 8, []))
        if fixed:
            self.pinned.add(tile)
        if kind == "TRELLIS_RAMW":
            writers.append(k)
            return
        found = re.fullmatch(r"SLICE([A-D])\.(?:K|FF)([01])", timing.place[k])
        if not found:
            raise ValueError(f"{timing.names[k]} is at {timing.place[k]!r}, which is no place in a slice")
        self.z[k] = "ABCD".index(found[1]) * 2 + int(found[2])
        (registers if kind == "TRELLIS_FF" else luts)[self.z[k]] = k
        if kind == "TRELLIS_COMB":
            mode = cell["parameters"].get("MODE", "LOGIC")
            if cell["connections"].get("OFX"):
                raise ValueError(f"{timing.names[k]} is part of a wide multiplexer, which is not known here")
            if mode in ("DPRAM", "RAMW_BLOCK"):
                self.rams.add(tile)
            elif mode == "LOGIC" and not fixed:
                self.role[k] = "P" if self.partner[k] is not None else "L"
            return
        if not cell["connections"].get("DI"):
            self.role[k] = "" if fixed else "R"
            return
        lut, _ = timing.driver[cell["connections"]["DI"][0]]
        self.partner[k], self.partner[lut] = lut, k
        if self.role[lut]:
            self.role[lut] = "" if fixed else "P"

    def _together(self, k: int) -> list[int]:
        partner = self.partner[k]
        return [k] if self.role[k] != "P" or partner is None else [k, partner]

    def _unit(self, k: int) -> tuple[Wires, int, int]:
        """Wires of what moves with k: into the LUT, out of the LUT, the register's; where the kinds begin."""
        groups: tuple[list, list, list] = [], [], []
        own = self._together(k)
        for cell in own:
            lut = self.timing.cells[cell]["type"] == "TRELLIS_COMB"
            for w in self.wires[cell]:
                out = self._source[w] == cell
                other = self._sink[w] if out else self._source[w]
                if other not in own:
                    groups[out if lut else 2].append((w, cell, other))
        wires = self._wires([wire for group in groups for wire in group], set(own))
        return wires, len(groups[0]), len(groups[0]) + len(groups[1])

    def _wires(self, wires: list[tuple[int, int, int]], own: set[int]) -> Wires:
        pins: list[int] = []
        nets: list[int] = []
        for net in dict.fromkeys(self._net[w] for w, _, _ in wires):
            stay = [k for k in self.cells_of[net] if k not in own]
            if 0 < len(stay) <= WIDE:
                nets.append(len(pins))
                pins += stay
        index, moving, other = np.array(wires, int).reshape(-1, 3).T
        return Wires(index, moving, other, np.array(pins, int), np.array(nets, int))

    # Cost of places.

    def _start(self, late: float, heat: float) -> NDArray:
        """Of a sweep: how much each wire counts."""
        self.late, self.heat = late, heat
        self.locked: set[int] = set()
        self._xs, self._ys = np.array(self.x), np.array(self.y)
        return self._lateness(self.timing.through()) + LENGTH

    def _lateness(self, path: NDArray) -> NDArray:
        return np.exp((np.minimum(path, self.late + 6) - self.late) / STEEP)

    def demand(self) -> tuple[NDArray, NDArray]:
        """Nets that pass each tile from left to right, and up and down: each spread evenly over its box."""
        timing = self.timing
        live = ~timing.direct
        net, count = timing.net[live], int(timing.net.max(initial=0)) + 1
        box = [np.full(count, 999), np.full(count, 999), np.zeros(count, int), np.zeros(count, int)]
        pins = np.bincount(net, minlength=count) + 1
        for end in (timing.source[live], timing.sink[live]):
            for k, at in enumerate((timing.x, timing.y)):
                np.minimum.at(box[k], net, at[end])
                np.maximum.at(box[2 + k], net, at[end])
        some = (box[0] < 999) & (pins <= 10 * WIDE)
        x0, y0, x1, y1 = (side[some] for side in box)
        wide, high = x1 - x0, y1 - y0
        more = 1 + 0.036 * (np.clip(pins[some], 3, 50) - 3)  # wire beside half the box
        maps = []
        for length in (wide, high):
            density = more * length / ((wide + 1) * (high + 1))
            grid = np.zeros((x1.max(initial=0) + 3, y1.max(initial=0) + 3))
            for x, y, sign in ((x0, y0, 1), (x1 + 1, y0, -1), (x0, y1 + 1, -1), (x1 + 1, y1 + 1, 1)):
                np.add.at(grid, (x, y), sign * density)
            maps.append(grid.cumsum(0).cumsum(1))
        return maps[0], maps[1]

    def crowd(self) -> None:
        """Set what lengths count where, by the present demand."""
        self._sums = []
        for demand, room in zip(self.demand(), ROOM, strict=True):
            crowded = np.maximum(demand / room - 1, 0) * CROWDED
            self._sums.append(np.pad(crowded, ((1, 200), (1, 200))).cumsum(0).cumsum(1))

    def _length(self, wires: Wires, x: NDArray, y: NDArray) -> NDArray:
        """Cost of the nets' half perimeters with their moving ends at each of the places."""
        if not len(wires.nets):
            return np.zeros(len(x))
        low, high = [], []
        for at, pins in ((x, self._xs[wires.pins]), (y, self._ys[wires.pins])):
            low.append(np.minimum(at[:, None], np.minimum.reduceat(pins, wires.nets)))
            high.append(np.maximum(at[:, None], np.maximum.reduceat(pins, wires.nets)) + 1)
        sides = high[0] - low[0], high[1] - low[1]
        total = np.zeros(sides[0].shape)
        for side, sums in zip(sides, self._sums, strict=True):
            inside = (sums[high[0], high[1]] - sums[low[0], high[1]] - sums[high[0], low[1]]
                      + sums[low[0], low[1]])
            total += (side - 1) * (1 + inside / (sides[0] * sides[1]))
        return LENGTH * total.sum(1)

    def _cost(self, k: int, x: NDArray, y: NDArray) -> NDArray:
        """Cost of the unit of k at each of the places: exact, as long as its neighbours stay."""
        wires, into, out = self.units[k]
        timing, other = self.timing, wires.other
        delay = WIRE[abs(x[:, None] - self._xs[other]) + abs(y[:, None] - self._ys[other])]
        head, after = timing.head[wires.index], timing.after[wires.index]
        path = delay + head + after
        if out > into:
            onward = (delay[:, into:out] + after[into:out]).max(1)
            if self.role[k] == "P":
                onward = np.maximum(onward, 0)
            path[:, :into] = delay[:, :into] + head[:into] + LUT + onward[:, None]
            if into:
                arrival = (delay[:, :into] + head[:into]).max(1) + LUT
                path[:, into:out] = arrival[:, None] + delay[:, into:out] + after[into:out]
        noise = 1 + self.heat * self.rng.random(len(x)) if self.heat else 1
        return self._lateness(path).sum(1) * noise + self._length(wires, x, y)

    def _cost_moved(self, wires: Wires, dx: NDArray, dy: NDArray) -> NDArray:
        """Cost of the wires with their own ends moved."""
        own, other = wires.own, wires.other
        if not len(own):
            return np.zeros(len(dx))
        delay = WIRE[abs(self._xs[own] + dx[:, None] - self._xs[other])
                     + abs(self._ys[own] + dy[:, None] - self._ys[other])]
        path = delay + self.timing.head[wires.index] + self.timing.after[wires.index]
        x, y = self.x[own[0]] + dx, self.y[own[0]] + dy
        return self._lateness(path).sum(1) + self._length(wires, x, y)

    def _critical(self) -> NDArray:
        """Longest path through each cell (ns)."""
        longest, through = np.full(len(self.x), NEVER), self.timing.through()
        for ends in (self.timing.source, self.timing.sink):
            np.maximum.at(longest, ends, np.where(self.timing.direct, NEVER, through))
        return longest

    def _towards(self, weight: NDArray, x: NDArray, y: NDArray, start: tuple[int, int], around: int,
                 nearest: int) -> dict[tuple[int, int], None]:
        """Places near the line from `start` to the weighted median of the given ones, and near the heaviest
        of them."""
        half = weight.sum() / 2
        way = []
        for at, begin in ((x, start[0]), (y, start[1])):
            order = np.argsort(at)
            way.append(int(at[order][np.searchsorted(np.cumsum(weight[order]), half)]) - begin)
        points = [(start[0] + round(f * way[0]), start[1] + round(f * way[1]), around)
                  for f in (0, 0.25, 0.5, 0.75, 1)]
        points += [(int(x[k]), int(y[k]), 1) for k in np.argsort(-weight)[:nearest]]
        return {(i, j): None for px, py, reach in points
                for i in range(px - reach, px + reach + 1) for j in range(py - reach, py + reach + 1)}

    # LUTs, registers, pairs.

    @staticmethod
    def _controls(cell: dict) -> tuple[tuple, tuple]:
        """What the registers of a tile, and those of a slice, must have in common."""
        bits, parameters = cell["connections"], cell["parameters"]
        return (
            (*bits.get("CLK", ()), "|", *bits.get("LSR", ()),
             *(parameters.get(name) for name in ("CLKMUX", "LSRMUX", "SRMODE"))),
            (*bits.get("CE", ()), parameters.get("CEMUX"), parameters.get("GSR")),
        )

    def _room(self, k: int, tile: tuple[int, int]) -> int | None:
        """A free place of the tile that takes the unit of k."""
        luts, registers, _ = self.tiles[tile]
        own = self._together(k)
        if self.role[k] == "L":
            return next((z for z in range(8) if luts[z] is None), None)
        if tile in self.rams:
            return None
        reset, enable = self.controls[own[-1]]
        for other in registers:
            if other is not None and other not in own:
                if self.controls[other][0] != reset:
                    return None
                break
        for z in range(8):
            if registers[z] is None and (self.role[k] == "R" or luts[z] is None):
                other = registers[z ^ 1]
                if other is None or other in own or self.controls[other][1] == enable:
                    return z
        return None

    def _put(self, k: int, tile: tuple[int, int], z: int) -> None:
        for cell in self._together(k):
            side = cell in self.controls
            self.tiles[self.x[cell], self.y[cell]][side][self.z[cell]] = None
            self.tiles[tile][side][z] = cell
            (self.x[cell], self.y[cell]), self.z[cell] = tile, z
            self._xs[cell], self._ys[cell] = tile

    def _swap(self, k: int, q: int) -> None:
        for a, b in zip(self._together(k), self._together(q), strict=True):
            side = a in self.controls
            self.tiles[self.x[a], self.y[a]][side][self.z[a]] = b
            self.tiles[self.x[b], self.y[b]][side][self.z[b]] = a
            for places in (self.x, self.y, self.z, self._xs, self._ys):
                places[a], places[b] = places[b], places[a]

    def _partner_at(self, k: int, tile: tuple[int, int], gain: float) -> int | None:
        """Of the units in a tile that may change places with k's the one that loses least, if less than
        `gain`."""
        role, least, best = self.role[k], 0.8 * gain, None
        x, y = np.array([tile[0], self.x[k]]), np.array([tile[1], self.y[k]])
        for q in self.tiles[tile][role == "R"]:
            if q is None or q in self.locked or self.role[q] != role:
                continue
            if role != "L" and self.controls[self._together(q)[-1]] != self.controls[self._together(k)[-1]]:
                continue
            here, there = self._cost(q, x, y)
            if there - here < least:
                least, best = there - here, q
        return best

    def _lock(self, k: int) -> None:
        """Neighbours of what has moved wait for the next sweep: their costs are no longer exact."""
        for cell in (k, *self.units[k][0].other.tolist()):
            self.locked.add(cell)
            if self.partner[cell] is not None:
                self.locked.add(self.partner[cell])

    def move_cells(self, late: float, threshold: float, heat: float = 0.0) -> int:
        """Move what has paths longer than `threshold` (ns), where `late` is late; returns how many moved."""
        weight, longest, moved = self._start(late, heat), self._critical(), 0
        for k in range(len(longest)):
            if self.role[k] == "P":
                longest[k] = max(longest[c] for c in self._together(k))
        for k in np.argsort(-longest).tolist():
            if longest[k] <= threshold:
                break
            if self.role[k] not in ("L", "P", "R") or k in self.locked:
                continue
            wires, start = self.units[k][0], (self.x[k], self.y[k])
            if not 0 < len(wires.index) <= 80:
                continue
            others = self._xs[wires.other], self._ys[wires.other]
            near = self._towards(weight[wires.index], *others, start, around=2, nearest=4)
            places = [start, *(tile for tile in near if tile in self.tiles and tile != start)]
            x, y = np.array(places).T
            cost = self._cost(k, x, y)
            for tried, j in enumerate(np.argsort(cost)[:40]):
                gain = cost[0] - cost[j]
                if gain < 0.002 * cost[0]:
                    break
                z = self._room(k, places[j])
                other = self._partner_at(k, places[j], gain) if z is None and tried < 10 else None
                if z is not None:
                    self._put(k, places[j], z)
                elif other is not None:
                    self._lock(other)
                    self._swap(k, other)
                else:
                    continue
                self._lock(k)
                moved += 1
                break
        self._done()
        return moved

    def move_blocks(self, late: float, threshold: float) -> int:
        """Move block RAMs with paths longer than `threshold` (ns), also to where another is; returns how many
        moved."""
        self._start(late, 0.0)
        longest, moved = self._critical(), 0
        for k in np.argsort(-longest).tolist():
            if longest[k] <= threshold:
                break
            if self.role[k] != "B" or k in self.locked or not len(self.units[k][0].index):
                continue
            start = self.x[k], self.y[k]
            places = [start, *(place for place in self.blocks if place != start)]
            cost = self._cost(k, *np.array(places).T)
            for j in np.argsort(cost)[:30]:
                gain, other = cost[0] - cost[j], self.blocks[places[j]]
                if gain < 0.01 * cost[0]:
                    break
                if other is not None:
                    if self.role[other] != "B" or other in self.locked:
                        continue
                    stays, goes = self._cost(other, *np.array([places[j], start]).T)
                    if goes - stays > 0.8 * gain:
                        continue
                    self._lock(other)
                for cell, place in ((k, places[j]), (other, start)):
                    self.blocks[place] = cell
                    if cell is not None:
                        self.x[cell], self.y[cell] = self._xs[cell], self._ys[cell] = place
                self._lock(k)
                moved += 1
                break
        self._done()
        return moved

    # Whole tiles.

    def _strip(self, x: int, y: int) -> tuple[int, int, int]:
        """Tile and number of the tiles that a chain ties together."""
        while (x - 1, y) in self.linked:
            x -= 1
        count = 1
        while (x + count - 1, y) in self.linked:
            count += 1
        return x, y, count

    def _inside(self, x: int, y: int, count: int) -> list[int]:
        return [k for i in range(count) for part in self.tiles[x + i, y] for k in part if k is not None]

    def _outward(self, cells: list[int]) -> Wires:
        own, wires = set(cells), []
        for k in cells:
            for w in self.wires[k]:
                other = self._sink[w] if self._source[w] == k else self._source[w]
                if other not in own:
                    wires.append((w, k, other))
        return self._wires(wires, own)

    def _movable(self, x: int, y: int, count: int) -> bool:
        return (x - 1, y) not in self.linked and (x + count - 1, y) not in self.linked and all(
            (x + i, y) in self.tiles and (x + i, y) not in self.pinned for i in range(count))

    def move_tiles(self, late: float, threshold: float) -> int:
        """Let tiles with LUT RAM or a carry chain on paths longer than `threshold` (ns) change places with
        others; returns how many moved."""
        weight, longest, moved, seen = self._start(late, 0.0), self._critical(), 0, set()
        for k in np.argsort(-longest).tolist():
            if longest[k] <= threshold:
                break
            if self.role[k] or (self.x[k], self.y[k]) not in self.tiles:
                continue
            x, y, count = self._strip(self.x[k], self.y[k])
            if (x, y) in seen or not self._movable(x, y, count):
                continue
            seen.add((x, y))
            cells = self._inside(x, y, count)
            wires = self._outward(cells)
            if not self.locked.isdisjoint(cells) or not len(wires.index):
                continue
            # where the strip would have to be for each wire to have no length
            at_x = self._xs[wires.other] - self._xs[wires.own] + x
            at_y = self._ys[wires.other] - self._ys[wires.own] + y
            near = self._towards(weight[wires.index], at_x, at_y, (x, y), around=3, nearest=0)
            places = [(x, y), *((i, j) for i, j in near
                                if (j != y or abs(i - x) >= count) and self._movable(i, j, count))]
            dx, dy = np.array(places).T - np.array([[x], [y]])
            cost = self._cost_moved(wires, dx, dy)
            best, most = None, 0.005 * cost[0]
            for j in np.argsort(cost)[:12]:
                there = self._inside(places[j][0], places[j][1], count)
                if cost[0] - cost[j] > most and self.locked.isdisjoint(there):
                    back = np.array([0, -dx[j]]), np.array([0, -dy[j]])
                    stays, goes = self._cost_moved(self._outward(there), *back)
                    if (gain := cost[0] - cost[j] - goes + stays) > most:
                        most, best = gain, j
            if best is not None:
                self._exchange((x, y), places[best], count)
                self.locked.update(cells, self._inside(x, y, count), wires.other.tolist())
                seen.add(places[best])
                moved += 1
        self._done()
        return moved

    def _exchange(self, a: tuple[int, int], b: tuple[int, int], count: int) -> None:
        for i in range(count):
            here, there = (a[0] + i, a[1]), (b[0] + i, b[1])
            self.tiles[here], self.tiles[there] = self.tiles[there], self.tiles[here]
            for marks in (self.rams, self.linked):
                if (here in marks) != (there in marks):
                    marks ^= {here, there}
            for tile in (here, there):
                for k in self._inside(*tile, 1):
                    (self.x[k], self.y[k]) = tile
                    self._xs[k], self._ys[k] = tile

    # All of it.

    def _done(self) -> None:
        self.timing.x, self.timing.y = np.array(self.x), np.array(self.y)

    def check(self) -> None:
        """Raises ValueError if a tile breaks the part's rules."""
        for tile, (luts, registers, _) in self.tiles.items():
            controls = [None if k is None else self.controls[k] for k in registers]
            if len({c[0] for c in controls if c}) > 1:
                raise ValueError(f"registers of tile {tile} differ in clock or reset")
            for z in range(0, 8, 2):
                if len({c[1] for c in controls[z : z + 2] if c}) > 1:
                    raise ValueError(f"registers of a slice of tile {tile} differ in their enable")
                modes = {self.timing.cells[k]["parameters"].get("MODE", "LOGIC") == "CCU2"
                         for k in luts[z : z + 2] if k is not None}
                if len(modes) > 1:
                    raise ValueError(f"a slice of tile {tile} has a carry chain and a LUT")
            for z, k in enumerate(registers):
                if k is not None and self.partner[k] is not None and luts[z] != self.partner[k]:
                    raise ValueError(f"{self.timing.names[k]} is not beside the LUT that feeds it")
        for k, cell in enumerate(self.timing.cells):
            if cell["type"] == "DP16KD" and self.blocks[self.x[k], self.y[k]] != k:
                raise ValueError(f"{self.timing.names[k]} shares its place")
            if cell["type"] in ("TRELLIS_COMB", "TRELLIS_FF"):
                if self.tiles[self.x[k], self.y[k]][k in self.controls][self.z[k]] != k:
                    raise ValueError(f"{self.timing.names[k]} shares its place")

    def bels(self) -> list[str]:
        """nextpnr's name for the place of each cell."""
        names, number = [], {(x, y): k for x, y, k in ram_sites()}
        for k, cell in enumerate(self.timing.cells):
            place = self.timing.place[k]
            if cell["type"] in ("TRELLIS_COMB", "TRELLIS_FF"):
                kind = "FF" if k in self.controls else "K"
                place = f"SLICE{'ABCD'[self.z[k] // 2]}.{kind}{self.z[k] % 2}"
            elif cell["type"] == "DP16KD":
                place = f"EBR{number[self.x[k], self.y[k]]}"
            names.append(f"X{self.x[k]}/Y{self.y[k]}/{place}" if place else "")
        return names


def summary(arrivals: NDArray) -> str:
    late = ", ".join(f"{(arrivals > limit).sum()} over {limit}" for limit in (9, 10, 11, 12))
    return f"latest {arrivals.max():.2f} ns; {late}"


def refine(placed: Path, refined: Path, sweeps: int = 100, seed: int = 1) -> None:
    """Placed netlist of nextpnr in, the same with other places out, progress on stdout."""
    netlist = json.loads(placed.read_text())
    timing = Timing(netlist)
    placement = Placement(timing, seed)
    arrivals = timing.update()
    if not len(arrivals):  # nothing to be in time for
        refined.write_text(json.dumps(netlist))
        return
    best, places = arrivals, placement.bels()
    print(f"refine: {len(timing.cells)} cells; estimated: {summary(arrivals)}", flush=True)
    for sweep in range(sweeps):
        some = min(LATEST, len(arrivals))
        late = max(float(np.partition(arrivals, -some)[-some]) - 0.5, EARLY)
        everything = sweep % 20 == 4
        if sweep % 5 == 4:
            placement.crowd()
            placement.move_blocks(late, late - 0.5)
            timing.update()
            placement.move_tiles(late, late - 0.5 if everything else late)
            timing.update()
        heat = HOT * max(0.0, 1 - sweep / (0.75 * sweeps))
        if everything:
            placement.move_cells(late, NEVER)
            timing.update()
        placement.move_cells(late, late - 0.5, heat)
        arrivals = timing.update()
        if price(arrivals) < price(best):
            best, places = arrivals, placement.bels()
        if sweep % 40 == 39:
            print(f"refine: sweep {sweep + 1}: {summary(arrivals)}", flush=True)
    print(f"refine: {summary(best)}", flush=True)
    for cell, place in zip(timing.cells, places, strict=True):
        if place:
            cell["attributes"]["NEXTPNR_BEL"] = place
        for name in ("src", "module_not_derived"):
            cell["attributes"].pop(name, None)
    Placement(Timing(netlist)).check()
    refined.write_text(json.dumps(netlist))


def price(arrivals: NDArray) -> float:
    """What is to be as small as it can be: mostly the latest arrivals."""
    return float(np.exp((arrivals - 10) / STEEP).sum())
