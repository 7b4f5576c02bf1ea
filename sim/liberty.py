"""The part of a liberty file that a longest path needs, and the longest path of a netlist of its cells.

An arc's delay is the middle entry of its tables (a typical edge and load), the slower of rise and fall, in
the liberty's time unit. Wires, sizing, set-up times and the clock network are left out.
"""

import re
from dataclasses import dataclass
from typing import Any

__all__ = ["Cell", "Path_", "longest_paths", "read_liberty"]

TOKEN = re.compile(r'"[^"]*"|[(){}:;,]|[^\s(){}:;,"]+')
Group = tuple[str, str, list[Any]]


@dataclass(frozen=True)
class Cell:
    """arcs: output pin -> {input pin: delay}; flop: outputs start paths, inputs end them (an `ff` group)."""

    arcs: dict[str, dict[str, float]]
    outputs: frozenset[str]
    flop: bool
    area: float


@dataclass(frozen=True)
class Path_:
    """A longest path: delay, the cells it starts and ends at (or ports), the number of cells between."""

    delay: float
    start: str
    end: str
    depth: int


def _parse(tokens: list[str], at: int) -> tuple[list[Group], int]:
    """Statements up to the closing brace: (name, argument or value, statements inside)."""
    found: list[Group] = []
    while at < len(tokens) and tokens[at] != "}":
        if tokens[at] == ";":
            at += 1
            continue
        name, at = tokens[at], at + 1
        if at < len(tokens) and tokens[at] == ":":
            end = at
            while end < len(tokens) and tokens[end] not in ";}":
                end += 1
            found.append((name, " ".join(tokens[at + 1 : end]).strip('"'), []))
            at = end
        elif at < len(tokens) and tokens[at] == "(":
            end = tokens.index(")", at)
            value, at = " ".join(tokens[at + 1 : end]), end + 1
            inner: list[Group] = []
            if at < len(tokens) and tokens[at] == "{":
                inner, at = _parse(tokens, at + 1)
                at += 1
            found.append((name, value.replace('"', ""), inner))
        else:
            raise ValueError(f"liberty: {name!r} is followed by {tokens[at : at + 1]}, not by ':' or '('")
    return found, at


def read_liberty(text: str) -> tuple[dict[str, Cell], str]:
    """Cells by name, and the time unit. ValueError when there is no library or no flip-flop in it."""
    tokens = TOKEN.findall(re.sub(r"/\*.*?\*/|\\\n", " ", text, flags=re.S))
    top, _ = _parse(tokens, 0)
    library = next((body for name, _, body in top if name == "library"), None)
    if library is None:
        raise ValueError("liberty: no `library` group")
    cells = {}
    for kind, name, body in library:
        if kind != "cell":
            continue
        arcs: dict[str, dict[str, float]] = {}
        outputs = set()
        area = next((float(g[1]) for g in body if g[0] == "area"), 0.0)
        for _, pin, statements in (g for g in body if g[0] == "pin"):
            if any(s[:2] == ("direction", "output") for s in statements):
                outputs.add(pin)
            for _, _, timing in (s for s in statements if s[0] == "timing"):
                tables = [s for s in timing if s[0] in ("cell_rise", "cell_fall")]
                values = [
                    [float(v) for v in t[1].replace(",", " ").split()]
                    for g in tables
                    for t in g[2]
                    if t[0] == "values"
                ]
                for related in next((s[1] for s in timing if s[0] == "related_pin"), "").split():
                    delay = max((v[len(v) // 2] for v in values), default=0.0)
                    known = arcs.setdefault(pin, {})
                    known[related] = max(known.get(related, 0.0), delay)
        cells[name] = Cell(arcs, frozenset(outputs), any(g[0] == "ff" for g in body), area)
    if not any(c.flop for c in cells.values()):
        raise ValueError(f"liberty: {len(cells)} cells, none of them a flip-flop (`ff` group)")
    return cells, next((value for name, value, _ in library if name == "time_unit"), "1ns")


def longest_paths(module: dict[str, Any], cells: dict[str, Cell]) -> dict[str, Path_]:
    """End (register, macro or port) -> longest path to it, of a flat netlist in Yosys' JSON.

    A cell that the liberty does not have is a macro: its outputs start paths and its inputs end them.
    ValueError: a loop of gates.
    """
    arrival: dict[Any, tuple[float, str, int]] = {b: (0.0, "constant", 0) for b in ("0", "1", "x", "z")}
    ends: dict[str, list[Any]] = {}
    waiting: dict[Any, list[str]] = {}
    left: dict[str, int] = {}
    ready: list[Any] = []

    def arrive(bit: Any, value: tuple[float, str, int]) -> None:
        arrival[bit] = value
        ready.append(bit)

    gates = {}
    for name, cell in module["cells"].items():
        kind, c = cells.get(cell["type"]), cell["connections"]
        out = kind.outputs if kind else {p for p, way in cell["port_directions"].items() if way == "output"}
        ins = [b for p, bits in c.items() if p not in out for b in bits]
        if kind and not kind.flop:
            gates[name] = (kind, c)
            left[name] = len(ins)
            for bit in ins:
                waiting.setdefault(bit, []).append(name)
            if not ins:
                for pin in out & c.keys():
                    arrive(c[pin][0], (0.0, "constant", 0))
            continue
        ends[name] = ins
        for pin in set(out) & c.keys():
            delay = max(kind.arcs.get(pin, {}).values(), default=0.0) if kind else 0.0
            for bit in c[pin]:
                arrive(bit, (delay, name, 0))
    for name, port in module["ports"].items():
        if port["direction"] == "input":
            for bit in port["bits"]:
                arrive(bit, (0.0, name, 0))
        else:
            ends[name] = port["bits"]
    ready += ["0", "1", "x", "z"]
    while ready:
        for name in waiting.pop(ready.pop(), ()):
            left[name] -= 1
            if left[name]:
                continue
            kind, c = gates[name]
            for pin in kind.outputs & c.keys():
                best = max(
                    (
                        (arrival[c[p][0]][0] + d, *arrival[c[p][0]][1:])
                        for p, d in kind.arcs.get(pin, {}).items()
                        if p in c
                    ),
                    default=(0.0, name, 0),
                )
                arrive(c[pin][0], (best[0], best[1], best[2] + 1))
    if stuck := [name for name, n in left.items() if n > 0]:
        raise ValueError(f"{len(stuck)} gates in loops or without a driver: {', '.join(stuck[:3])}")
    paths = {}
    for name, bits in ends.items():
        delay, start, depth = max((arrival[b] for b in bits if b in arrival), default=(0.0, "", 0))
        paths[name] = Path_(delay, start, name, depth)
    return paths
