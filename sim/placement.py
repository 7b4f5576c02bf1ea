"""Where the cells of a design placed by nextpnr lie on an LFE5U, and where they may."""

import re

from numpy.typing import NDArray

from sim.floorplan import ram_sites
from sim.sta import Timing

__all__ = ["STRENGTH", "Placement", "place_in_slice", "slot"]

STRENGTH = "PLACER_STRENGTH"
"""Attribute that keeps a cell's BEL_STRENGTH where all are held for the router (sim/hold.py)."""


def slot(place: str) -> int | None:
    """Which of the eight LUTs or registers of a tile a place is, by nextpnr's name for it."""
    found = re.fullmatch(r"SLICE([A-D])\.(?:K|FF)([01])", place)
    return "ABCD".index(found[1]) * 2 + int(found[2]) if found else None


def place_in_slice(kind: str, z: int) -> str:
    """nextpnr's name for the place of LUT (K) or register (FF) `z` of a tile."""
    return f"SLICE{'ABCD'[z // 2]}.{kind}{z % 2}"


class Placement:
    """The logic tiles and block RAMs of a placed netlist, and what may stand where.

    A tile has eight places for a LUT and eight for a register. All its registers share clock and reset, the
    two of a slice their enable; a register fed by `DI` stays beside its LUT; LUT RAM and carry chains fill
    slices, the latter on through tiles to the right.
    """

    def __init__(self, timing: Timing):
        self.timing = timing
        count = len(timing.cells)
        self.x, self.y, self.z = timing.x.tolist(), timing.y.tolist(), [0] * count
        self.xs, self.ys = timing.x.copy(), timing.y.copy()  # the same, for sums over many cells
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
        for a, b in zip(timing.source[timing.direct].tolist(), timing.sink[timing.direct].tolist(),
                        strict=True):
            if self.x[a] != self.x[b]:
                self.linked.add((self.x[a], self.y[a]))

    def _add(self, k: int) -> None:
        timing, cell = self.timing, self.timing.cells[k]
        kind, tile = cell["type"], (self.x[k], self.y[k])
        fixed = int(cell["attributes"].get(STRENGTH) or cell["attributes"].get("BEL_STRENGTH", "1"), 2) > 1
        if kind == "DP16KD" and tile in self.blocks:  # one place has a name of its own: what is there stays
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
        z = slot(timing.place[k])
        if z is None:
            raise ValueError(f"{timing.names[k]} is at {timing.place[k]!r}, which is no place in a slice")
        self.z[k] = z
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

    def together(self, k: int) -> list[int]:
        partner = self.partner[k]
        return [k] if self.role[k] != "P" or partner is None else [k, partner]

    @staticmethod
    def _controls(cell: dict) -> tuple[tuple, tuple]:
        """What the registers of a tile, and those of a slice, must have in common."""
        bits, parameters = cell["connections"], cell["parameters"]
        return (
            (*bits.get("CLK", ()), "|", *bits.get("LSR", ()),
             *(parameters.get(name) for name in ("CLKMUX", "LSRMUX", "SRMODE"))),
            (*bits.get("CE", ()), parameters.get("CEMUX"), parameters.get("GSR")),
        )

    def free_lut(self, tile: tuple[int, int]) -> int | None:
        return next((z for z, lut in enumerate(self.tiles[tile][0]) if lut is None), None)

    def room(self, k: int, tile: tuple[int, int]) -> int | None:
        """A free place of the tile that takes the unit of k."""
        luts, registers, _ = self.tiles[tile]
        own = self.together(k)
        if self.role[k] == "L":
            return self.free_lut(tile)
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

    def put(self, k: int, tile: tuple[int, int], z: int) -> None:
        for cell in self.together(k):
            side = cell in self.controls
            self.tiles[self.x[cell], self.y[cell]][side][self.z[cell]] = None
            self.tiles[tile][side][z] = cell
            (self.x[cell], self.y[cell]), self.z[cell] = tile, z
            self.xs[cell], self.ys[cell] = tile

    def swap(self, k: int, q: int) -> None:
        for a, b in zip(self.together(k), self.together(q), strict=True):
            side = a in self.controls
            self.tiles[self.x[a], self.y[a]][side][self.z[a]] = b
            self.tiles[self.x[b], self.y[b]][side][self.z[b]] = a
            for places in (self.x, self.y, self.z, self.xs, self.ys):
                places[a], places[b] = places[b], places[a]

    def strip(self, x: int, y: int) -> tuple[int, int, int]:
        """Tile and number of the tiles that a chain ties together."""
        while (x - 1, y) in self.linked:
            x -= 1
        count = 1
        while (x + count - 1, y) in self.linked:
            count += 1
        return x, y, count

    def inside(self, x: int, y: int, count: int) -> list[int]:
        return [k for i in range(count) for part in self.tiles[x + i, y] for k in part if k is not None]

    def movable(self, x: int, y: int, count: int) -> bool:
        return (x - 1, y) not in self.linked and (x + count - 1, y) not in self.linked and all(
            (x + i, y) in self.tiles and (x + i, y) not in self.pinned for i in range(count))

    def exchange(self, a: tuple[int, int], b: tuple[int, int], count: int) -> None:
        for i in range(count):
            here, there = (a[0] + i, a[1]), (b[0] + i, b[1])
            self.tiles[here], self.tiles[there] = self.tiles[there], self.tiles[here]
            for marks in (self.rams, self.linked):
                if (here in marks) != (there in marks):
                    marks ^= {here, there}
            for tile in (here, there):
                for k in self.inside(*tile, 1):
                    (self.x[k], self.y[k]) = tile
                    self.xs[k], self.ys[k] = tile

    def settle(self) -> NDArray:
        """Time the cells where they are now; returns the arrival at each register (ns)."""
        self.timing.x, self.timing.y = self.xs.copy(), self.ys.copy()
        return self.timing.update()

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
            if cell["type"] == "DP16KD" and self.blocks.get((self.x[k], self.y[k]), k) != k:
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
                place = place_in_slice("FF" if k in self.controls else "K", self.z[k])
            elif self.role[k] == "B":
                place = f"EBR{number[self.x[k], self.y[k]]}"
            names.append(f"X{self.x[k]}/Y{self.y[k]}/{place}" if place else "")
        return names
