"""Static timing of a netlist that nextpnr has placed on an LFE5U, speed grade 6, by estimated wires."""

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["LUT", "NEVER", "WIRE", "Timing", "flat"]

WIRE = np.interp(
    np.arange(301),
    [0, 1, 2, 3, 5, 7, 9, 13, 17, 25, 40, 70, 100, 300],
    [0.45, 0.73, 0.88, 1.0, 1.19, 1.35, 1.46, 1.67, 1.92, 2.33, 3.1, 4.65, 6.1, 16.0],
)
"""Delay (ns) of a wire by its distance in tiles, |dx| + |dy|: means over the registers' wires of a routed
tile as nextpnr reports them."""
LUT, TO_CARRY, CARRY, FROM_CARRY, PRODUCT = 0.236, 0.447, 0.071, 0.443, 3.927
LAUNCH = {"TRELLIS_FF": 0.525, "DP16KD": 5.83, "MULT18X18D": 0.735}
SETUP = {"LSR": 0.424, "WRE": 0.392, "DP16KD": 0.25, "MULT18X18D": 0.084}
UNREGISTERED = 3.486
"""Delays (ns) of cells, Project Trellis, speed grade 6; the last: to a product's register without one at the
factors."""

NEVER = -99.0
"""Arrival (ns) where no path is."""


def flat(netlist: dict) -> dict:
    """The design among the modules of a JSON netlist; the others are the part's cells."""
    return max(netlist["modules"].values(), key=lambda module: len(module["cells"]))


class Timing:
    """Timing graph of a placed JSON netlist with one clock, and the places of its cells.

    Members: `cells`; `x`, `y` (tiles, arrays), `place` (the place within); for every wire (one for each pin
    that is driven) `source`, `sink` (cells), `direct` (no distance), `net` (number), `head` (arrival at the
    driver), `after` (longest way on from the pin to a register) in ns; `end_wire`, the wires to registers.
    """

    def __init__(self, netlist: dict):
        module = flat(netlist)
        self.names, self.cells = list(module["cells"]), list(module["cells"].values())
        at = [re.fullmatch(r"X(\d+)/Y(\d+)/(.+)", cell["attributes"].get("NEXTPNR_BEL", ""))
              for cell in self.cells]
        self.x = np.array([int(found[1]) if found else 0 for found in at])
        self.y = np.array([int(found[2]) if found else 0 for found in at])
        self.place = [found[3] if found else "" for found in at]
        self._graph()
        self._measured = np.full(len(self.net), np.nan)
        self._places = self._ends()

    def measure(self, sdf: str) -> None:
        """Take the delays that nextpnr gives a routed netlist's wires in its SDF file, instead of estimates,
        as long as both ends of a wire stay where they are."""
        found = re.findall(r"\(INTERCONNECT (\S+) (\S+) \(\d+:\d+:(\d+)\)", sdf.replace("\\", ""))
        delay = {(source, sink): int(ps) / 1000 for source, sink, ps in found}
        self._measured = np.array([delay.get(ends, np.nan) for ends in self._pins])
        self._places = self._ends()

    def slow(self, late: float, excess: float) -> NDArray:
        """Numbers of the wires on paths longer than `late` (ns) with a measured delay that is more than
        `excess` above the estimate."""
        return np.flatnonzero((self.through() > late) & ~self.direct
                              & (self._measured > self._estimates() + excess))

    def forget(self, wires: NDArray) -> None:
        """Take these wires to be as estimated from now on."""
        self._measured[wires] = np.nan

    def _ends(self) -> NDArray:
        return np.stack([self.x[self.source], self.y[self.source], self.x[self.sink], self.y[self.sink]])

    def pins(self, k: int, way: str) -> Iterable[tuple[str, int]]:
        """(port, bit) of a cell's connected pins; `way` is input or output."""
        cell = self.cells[k]
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == way:
                yield from ((port, bit) for bit in bits if not isinstance(bit, str))

    def port(self, w: int) -> str:
        """The port that a wire leads to."""
        return self._pins[w][1].rpartition("/")[2]

    def _graph(self) -> None:
        self.driver: dict[int, tuple[int, str]] = {}  # bit -> cell, port
        node: dict[int, int] = {}
        launch: list[float] = []
        for k, cell in enumerate(self.cells):
            for port, bit in self.pins(k, "output"):
                self.driver[bit] = k, port
                node[bit] = len(launch)
                launch.append(NEVER if self._through(cell) else LAUNCH.get(cell["type"], 0.0))
        self.bits = list(node)  # of each net number
        source: list[int] = []
        sink: list[int] = []
        node_of: list[int] = []
        direct: list[bool] = []
        self._pins: list[tuple[str, str]] = []  # of each wire, as SDF writes them
        arcs: list[tuple[int, int, float]] = []  # wire, node, delay
        ends: list[tuple[int, float]] = []  # wire, setup
        for k, cell in enumerate(self.cells):
            kind = cell["type"]
            outputs = [(port, node[bit]) for port, bit in self.pins(k, "output") if self._through(cell)]
            for port, bit in self.pins(k, "input"):
                start, from_port = self.driver.get(bit, (k, ""))
                clock = port.startswith("CLK") or port == "WCK" or kind in ("DCCA", "TRELLIS_IO")
                if not from_port or clock or self.cells[start]["type"] in ("DCCA", "TRELLIS_IO", "EHXPLLL"):
                    continue
                wire = len(source)
                source.append(start)
                sink.append(k)
                node_of.append(node[bit])
                self._pins.append((f"{self.names[start]}/{from_port}", f"{self.names[k]}/{port}"))
                direct.append((from_port, port) in (("FCO", "FCI"), ("F", "DI"))
                              or self.cells[start]["type"] == "TRELLIS_RAMW")
                if outputs and port in ("A", "B", "C", "D", "FCI"):
                    arcs += [(wire, out, self._delay(port, to)) for to, out in outputs]
                elif outputs and kind == "MULT18X18D":
                    arcs += [(wire, out, PRODUCT) for _, out in outputs]
                else:
                    late = kind == "MULT18X18D" and port[0] in "AB" and not self._has(cell, "REG_INPUTA_CLK")
                    ends.append((wire, UNREGISTERED if late else SETUP.get(port, SETUP.get(kind, 0.0))))
        self.source, self.sink = np.array(source, int), np.array(sink, int)
        self.direct = np.array(direct, bool)
        self.net, self._launch = np.array(node_of, int), np.array(launch)
        self.end_wire, self._setup = np.array([w for w, _ in ends], int), np.array([t for _, t in ends])
        self._sort(np.array([w for w, _, _ in arcs], int), np.array([n for _, n, _ in arcs], int),
                   np.array([t for _, _, t in arcs]))

    @staticmethod
    def _has(cell: dict, register: str) -> bool:
        return cell["parameters"].get(register, "NONE") != "NONE"

    def _through(self, cell: dict) -> bool:
        """Whether paths go through the cell."""
        return cell["type"] == "TRELLIS_COMB" or (
            cell["type"] == "MULT18X18D" and not self._has(cell, "REG_OUTPUT_CLK"))

    @staticmethod
    def _delay(port: str, to: str) -> float:
        if to == "FCO":
            return CARRY if port == "FCI" else TO_CARRY
        return FROM_CARRY if port == "FCI" else LUT

    def _sort(self, wire: NDArray, node: NDArray, delay: NDArray) -> None:
        """Arcs by level, so that a level at a time can be timed."""
        level = np.zeros(len(self._launch), int)
        before = self.net[wire]
        for _ in range(1000):
            new = level.copy()
            np.maximum.at(new, node, level[before] + 1)
            if (new == level).all():
                break
            level = new
        else:
            raise ValueError("the netlist has a combinational loop")
        order = np.argsort(level[node], kind="stable")
        self._arc_wire, self._arc_node, self._arc_delay = wire[order], node[order], delay[order]
        levels = level[node][order]
        self._levels = np.searchsorted(levels, np.arange(1, levels.max(initial=0) + 2)).tolist()

    def _estimates(self) -> NDArray:
        way = abs(self.x[self.source] - self.x[self.sink]) + abs(self.y[self.source] - self.y[self.sink])
        return np.where(self.direct, 0.0, WIRE[way])

    def delays(self) -> NDArray:
        """Delay of each wire (ns)."""
        stays = ~np.isnan(self._measured) & (self._ends() == self._places).all(0)
        return np.where(stays, self._measured, self._estimates())

    def update(self) -> NDArray:
        """Time the netlist: sets `head` and `after`; returns the arrival (with setup) at each register."""
        delay = self.delays()
        arrival = self._launch.copy()
        wire, to = self._arc_wire, self._arc_node
        before, step = self.net[wire], delay[wire] + self._arc_delay
        cuts = list(zip([0, *self._levels], self._levels, strict=False))
        for a, b in cuts:
            np.maximum.at(arrival, to[a:b], arrival[before[a:b]] + step[a:b])
        onward = np.full(len(arrival), NEVER)
        end_node = self.net[self.end_wire]
        np.maximum.at(onward, end_node, delay[self.end_wire] + self._setup)
        for a, b in reversed(cuts):
            np.maximum.at(onward, before[a:b], step[a:b] + onward[to[a:b]])
        self.head = arrival[self.net]
        self.after = np.full(len(delay), NEVER)
        np.maximum.at(self.after, self.end_wire, self._setup)
        np.maximum.at(self.after, wire, self._arc_delay + onward[to])
        return arrival[end_node] + delay[self.end_wire] + self._setup

    def through(self) -> NDArray:
        """Longest path through each wire (ns)."""
        return self.head + self.delays() + self.after


