"""Where a placement needs many of an LFE5U's wires, and what a way costs there."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Congestion"]

SHAPE = 98, 130
"""Rows and columns of tiles, at least."""
DETOUR = 1.45
"""Tiles of wire that nextpnr's router takes in a full part for each tile between the ends, of a net with one
pin. With n it is the square root of n less for each: means over a routed tile."""
REACH = 3
"""A way may as well lie so many tiles to the side."""
ACROSS, ALONG, PINS, LEAST = 36.0, 24.0, 36.0, 0.5
"""Wires of a tile in one direction, east or west and north or south, and pins of a tile, at which the price
is one more than the least, that of an empty tile; it grows with the square. By what nextpnr's other router
uses twice: of a tile's excess, pins, wires across and wires along account for that much."""


def _around(count: NDArray) -> NDArray:
    """Means over the tiles within REACH."""
    for axis in (0, 1):
        wide = [(REACH, REACH) if axis == k else (0, 0) for k in (0, 1)]
        sums = np.insert(np.pad(count, wide, mode="edge").cumsum(axis), 0, 0, axis)
        some, all_ = 2 * REACH + 1, count.shape[axis]
        count = (sums.take(range(some, all_ + some), axis) - sums.take(range(all_), axis)) / some
    return count


class Congestion:
    """What it costs to go from tile to tile, by how many wires would like to; each direction has its own.

    A wire is taken to go half along the row of either end, and half along the column."""

    def __init__(self, source: NDArray, sink: NDArray, weight: NDArray, pins: NDArray):
        """Cells at the ends of each wire, how much it counts, and the pins at its source and sink."""
        self.source, self.sink, self.weight = source, sink, DETOUR * weight / 2
        self.pins = pins

    def update(self, x: NDArray, y: NDArray) -> None:
        """Prices for the cells where they are now."""
        xs, ys, xt, yt = x[self.source], y[self.source], x[self.sink], y[self.sink]
        self._across = self._prices(xs, xt, (ys, yt), SHAPE, ACROSS)  # row, column -> eastward, westward
        self._along = self._prices(ys, yt, (xs, xt), SHAPE[::-1], ALONG)  # column, row -> south, north
        pins = np.zeros(SHAPE)
        np.add.at(pins, (ys, xs), self.pins[0])
        np.add.at(pins, (yt, xt), self.pins[1])
        self._pin = (_around(pins) / PINS) ** 2

    def pin(self, x: NDArray, y: NDArray) -> NDArray:
        """What a pin costs there."""
        return self._pin[y, x]

    def _prices(self, start: NDArray, end: NDArray, lines: tuple[NDArray, NDArray],
                shape: tuple[int, int], full: float) -> NDArray:
        """Sums of the prices up to each tile of each line; forth and back."""
        prices = []
        for wires, first, last in ((start < end, start, end), (start > end, end, start)):
            wanted = np.zeros(shape)
            for line in lines:
                np.add.at(wanted, (line[wires], first[wires]), self.weight[wires])
                np.add.at(wanted, (line[wires], last[wires]), -self.weight[wires])
            around = _around(wanted.cumsum(1))
            price = LEAST + (around / full) ** 2
            prices.append(price.cumsum(1) - price)
        return np.stack(prices, -1)

    def cost(self, x: NDArray, y: NDArray, other_x: NDArray, other_y: NDArray, way: NDArray) -> NDArray:
        """From the others to x, y where `way` is 1, from x, y to the others where it is -1."""
        return (self._between(self._across, y, other_y, x, other_x, way)
                + self._between(self._along, x, other_x, y, other_y, way)) / 2

    @staticmethod
    def _between(prices: NDArray, line: NDArray, other_line: NDArray, at: NDArray, other_at: NDArray,
                 way: NDArray) -> NDArray:
        own = prices[line, at] - prices[line, other_at]
        others = prices[other_line, at] - prices[other_line, other_at]
        signs = np.stack([way, -way], -1)
        return np.maximum.reduce(own * signs, -1) + np.maximum.reduce(others * signs, -1)
