"""Moves of placed cells, LUTs to block RAMs and whole tiles, to where the paths through them are shorter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.congestion import Congestion
from sim.placement import Placement
from sim.sta import LUT, NEVER, WIRE, Timing

__all__ = ["STEEP", "Moves"]

MOST = 80
"""Pins at the wires of a LUT, register or pair that moves."""
STEEP, LENGTH = 0.4, 0.04
"""A path that is late by so many ns more costs e times as much; cost of a tile of wire to the only pin of a
net, where the part is neither empty nor full (sim/congestion.py)."""


@dataclass
class Wires:
    """Wires between cells that move together and others: their numbers, the end that moves, the other end,
    whether that is the source (1) or the sink (-1), and for how many pins the end that moves counts."""

    index: NDArray
    own: NDArray
    other: NDArray
    way: NDArray
    pins: NDArray


class Moves(Placement):
    """A placement and the moves that make it faster, each a sweep over what is late, which returns the new
    arrivals at the registers (ns)."""

    def __init__(self, timing: Timing, seed: int = 1):
        super().__init__(timing)
        self.rng = np.random.default_rng(seed)
        self._source, self._sink = timing.source.tolist(), timing.sink.tolist()
        pins = np.bincount(timing.net)[timing.net]
        share = 1 / np.sqrt(pins)  # wires of a net share some of their way
        self._price = LENGTH * share
        self._pins = np.stack([1 / pins, np.ones_like(share)]) * ~timing.direct  # at source, sink of each
        self._congestion = Congestion(timing.source, timing.sink, ~timing.direct * share, self._pins)
        self.wires: list[list[int]] = [[] for _ in timing.cells]
        for w in np.flatnonzero(~timing.direct).tolist():
            a, b = self._source[w], self._sink[w]
            self.wires[a].append(w)
            self.wires[b].append(w)
        self.units = {k: self._unit(k) for k in range(len(timing.cells)) if self.role[k]}

    def _gather(self, wires: list[tuple[int, int, int]]) -> Wires:
        index, own, other = np.array(wires, int).reshape(-1, 3).T
        out = self.timing.source[index] == own
        pins = np.where(out, self._pins[0, index], self._pins[1, index])
        return Wires(index, own, other, np.where(out, -1, 1), pins)

    def _unit(self, k: int) -> tuple[Wires, int, int]:
        """Wires of what moves with k: into the LUT, out of the LUT, the register's; where the kinds begin."""
        groups: tuple[list, list, list] = [], [], []
        own = self.together(k)
        for cell in own:
            lut = self.timing.cells[cell]["type"] == "TRELLIS_COMB"
            for w in self.wires[cell]:
                out = self._source[w] == cell
                other = self._sink[w] if out else self._source[w]
                if other not in own:
                    groups[out if lut else 2].append((w, cell, other))
        wires = self._gather([wire for group in groups for wire in group])
        return wires, len(groups[0]), len(groups[0]) + len(groups[1])

    def _start(self, late: float, heat: float) -> NDArray:
        """Of a sweep: how much each wire counts."""
        self.late, self.heat = late, heat
        self.locked: set[int] = set()
        self._delays = self.timing.delays()
        self._congestion.update(self.xs, self.ys)
        return self._lateness(self.timing.through()) + self._price

    def _lateness(self, path: NDArray) -> NDArray:
        return np.exp((np.minimum(path, self.late + 6) - self.late) / STEEP)

    def _cost(self, k: int, x: NDArray, y: NDArray) -> NDArray:
        """Cost of the unit of k at each of the places, of which the first is its own: exact, as long as its
        neighbours stay."""
        wires, into, out = self.units[k]
        timing, other = self.timing, wires.other
        delay = WIRE[abs(x[:, None] - self.xs[other]) + abs(y[:, None] - self.ys[other])]
        delay[0] = self._delays[wires.index]
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
        length = self._congestion.cost(x[:, None], y[:, None], self.xs[other], self.ys[other], wires.way)
        crowd = LENGTH * wires.pins.sum() * self._congestion.pin(x, y)
        return self._lateness(path).sum(1) * noise + length @ self._price[wires.index] + crowd

    def _cost_moved(self, wires: Wires, dx: NDArray, dy: NDArray) -> NDArray:
        """Cost of the wires with their own ends moved, of which the first move is none."""
        own, other = wires.own, wires.other
        if not len(own):
            return np.zeros(len(dx))
        x, y = self.xs[own] + dx[:, None], self.ys[own] + dy[:, None]
        delay = WIRE[abs(x - self.xs[other]) + abs(y - self.ys[other])]
        delay[0] = self._delays[wires.index]
        path = delay + self.timing.head[wires.index] + self.timing.after[wires.index]
        length = self._congestion.cost(x, y, self.xs[other], self.ys[other], wires.way)
        crowd = LENGTH * self._congestion.pin(x, y) @ wires.pins
        return self._lateness(path).sum(1) + length @ self._price[wires.index] + crowd

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

    def _places(self, wires: Wires, weight: NDArray, start: tuple[int, int]) -> list[tuple[int, int]]:
        """Tiles for what has these wires, the one where it is first."""
        near = self._towards(weight[wires.index], self.xs[wires.other], self.ys[wires.other], start,
                             around=2, nearest=4)
        return [start, *(tile for tile in near if tile in self.tiles and tile != start)]

    def _partner_at(self, k: int, tile: tuple[int, int], gain: float) -> int | None:
        """Of the units in a tile that may change places with k's the one that loses least, if less than
        `gain`."""
        role, least, best = self.role[k], 0.8 * gain, None
        x, y = np.array([tile[0], self.x[k]]), np.array([tile[1], self.y[k]])
        for q in self.tiles[tile][role == "R"]:
            if (q is None or q in self.locked or self.role[q] != role
                    or len(self.units[q][0].index) > MOST):
                continue
            if role != "L" and self.controls[self.together(q)[-1]] != self.controls[self.together(k)[-1]]:
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

    def move_cells(self, late: float, threshold: float, heat: float = 0.0) -> NDArray:
        """Move what has paths longer than `threshold` (ns), where `late` is late."""
        weight, longest = self._start(late, heat), self._critical()
        for k in range(len(longest)):
            if self.role[k] == "P":
                longest[k] = max(longest[c] for c in self.together(k))
        for k in np.argsort(-longest).tolist():
            if longest[k] <= threshold:
                break
            if self.role[k] not in ("L", "P", "R") or k in self.locked:
                continue
            wires, start = self.units[k][0], (self.x[k], self.y[k])
            if not 0 < len(wires.index) <= MOST:
                continue
            places = self._places(wires, weight, start)
            x, y = np.array(places).T
            cost = self._cost(k, x, y)
            for tried, j in enumerate(np.argsort(cost)[:40]):
                gain = cost[0] - cost[j]
                if gain < 0.002 * cost[0]:
                    break
                z = self.room(k, places[j])
                other = self._partner_at(k, places[j], gain) if z is None and tried < 10 else None
                if z is not None:
                    self.put(k, places[j], z)
                elif other is not None:
                    self._lock(other)
                    self.swap(k, other)
                else:
                    continue
                self._lock(k)
                break
        return self.settle()

    def move_clusters(self, late: float, threshold: float) -> NDArray:
        """Move the LUTs of a tile that are on paths longer than `threshold` (ns) together: one of a chain by
        itself would only leave the others."""
        weight, longest = self._start(late, 0.0), self._critical()
        for k in np.argsort(-longest).tolist():
            if longest[k] <= threshold:
                break
            if self.role[k] not in ("L", "P") or k in self.locked:
                continue
            start = self.x[k], self.y[k]
            units = [q for q in self.tiles[start][0] if q is not None and self.role[q] in ("L", "P")
                     and longest[q] > threshold and q not in self.locked]
            wires = self._outward([cell for q in units for cell in self.together(q)])
            if len(units) < 2 or not len(wires.index):
                continue
            places = self._places(wires, weight, start)
            dx, dy = np.array(places).T - np.array([start]).T
            cost = self._cost_moved(wires, dx, dy)
            for j in np.argsort(cost)[:20]:
                gain = cost[0] - cost[j]
                if gain < 0.005 * cost[0] or self._move_together(units, places[j], gain):
                    break
        return self.settle()

    def _move_together(self, units: list[int], tile: tuple[int, int], gain: float) -> bool:
        """Put units of one tile into another, if there is room or what makes room loses less than `gain`."""
        start, moved = (self.x[units[0]], self.y[units[0]]), []
        for k in sorted(units, key=lambda k: self.role[k], reverse=True):  # pairs fit in few places
            z, own = self.room(k, tile), self.z[k]
            other = self._partner_at(k, tile, gain / len(units)) if z is None else None
            if z is not None:
                self.put(k, tile, z)
            elif other is not None:
                self.swap(k, other)
            else:
                break
            moved.append((k, own, other))
            self.locked.add(k)
        if len(moved) < len(units):
            for k, z, other in reversed(moved):
                self.locked.remove(k)
                if other is None:
                    self.put(k, start, z)
                else:
                    self.swap(k, other)
            return False
        for k, _, other in moved:
            self._lock(k)
            if other is not None:
                self._lock(other)
        return True

    def move_blocks(self, late: float, threshold: float) -> NDArray:
        """Move block RAMs with paths longer than `threshold` (ns), also to where another is."""
        self._start(late, 0.0)
        longest = self._critical()
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
                        self.x[cell], self.y[cell] = self.xs[cell], self.ys[cell] = place
                self._lock(k)
                break
        return self.settle()

    def _outward(self, cells: list[int]) -> Wires:
        own, wires = set(cells), []
        for k in cells:
            for w in self.wires[k]:
                other = self._sink[w] if self._source[w] == k else self._source[w]
                if other not in own:
                    wires.append((w, k, other))
        return self._gather(wires)

    def move_tiles(self, late: float, threshold: float) -> NDArray:
        """Let tiles with LUT RAM or a carry chain on paths longer than `threshold` (ns) change places with
        others."""
        weight, longest, seen = self._start(late, 0.0), self._critical(), set()
        for k in np.argsort(-longest).tolist():
            if longest[k] <= threshold:
                break
            if self.role[k] or (self.x[k], self.y[k]) not in self.tiles:
                continue
            x, y, count = self.strip(self.x[k], self.y[k])
            if (x, y) in seen or not self.movable(x, y, count):
                continue
            seen.add((x, y))
            cells = self.inside(x, y, count)
            wires = self._outward(cells)
            if not self.locked.isdisjoint(cells) or not len(wires.index):
                continue
            # where the strip would have to be for each wire to have no length
            at_x = self.xs[wires.other] - self.xs[wires.own] + x
            at_y = self.ys[wires.other] - self.ys[wires.own] + y
            near = self._towards(weight[wires.index], at_x, at_y, (x, y), around=3, nearest=0)
            places = [(x, y), *((i, j) for i, j in near
                                if (j != y or abs(i - x) >= count) and self.movable(i, j, count))]
            dx, dy = np.array(places).T - np.array([[x], [y]])
            cost = self._cost_moved(wires, dx, dy)
            best, most = None, 0.005 * cost[0]
            for j in np.argsort(cost)[:12]:
                there = self.inside(places[j][0], places[j][1], count)
                if cost[0] - cost[j] > most and self.locked.isdisjoint(there):
                    back = np.array([0, -dx[j]]), np.array([0, -dy[j]])
                    stays, goes = self._cost_moved(self._outward(there), *back)
                    if (gain := cost[0] - cost[j] - goes + stays) > most:
                        most, best = gain, j
            if best is not None:
                self.exchange((x, y), places[best], count)
                self.locked.update(cells, self.inside(x, y, count), wires.other.tolist())
                seen.add(places[best])
        return self.settle()
