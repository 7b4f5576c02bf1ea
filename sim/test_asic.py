"""The ASIC view: one macro seam, mapping to a liberty file, and what a tile may not have in it."""

from pathlib import Path

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import CONFIGS
from hw.fp import FpAdd
from hw.memory import DualPortRam, SinglePortRam
from sim.asic import Macro, MacroPlatform, check, macro_models, rtlil, synthesise
from sim.gates import build, netlist, program, yosys
from sim.liberty import longest_paths, read_liberty
from sim.unit import Unit
from sim.verilate import parse_ports

LIBERTY = Path(__file__).parent / "data" / "simple.lib"


class Pair(wiring.Component):
    """Two units: RAM of both kinds, and an adder of floats."""

    def __init__(self):
        super().__init__(
            {
                "a": In(32),
                "b": In(32),
                "at": In(6),
                "we": In(1),
                "sum": Out(32),
                "one": Out(32),
                "two": Out(64),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.add = add = FpAdd()
        m.submodules.store = store = Module()
        store.submodules.one = one = SinglePortRam(width=32, depth=64)
        store.submodules.two = two = DualPortRam(width=64, depth=64)
        m.d.comb += [
            add.a.eq(self.a),
            add.b.eq(self.b),
            self.sum.eq(add.o),
            one.en.eq(1),
            one.we.eq(self.we),
            one.addr.eq(self.at),
            one.wdata.eq(self.a),
            one.wstrb.eq(self.b[:4]),
            two.waddr.eq(self.at),
            two.wdata.eq(self.a * self.b),
            two.wstrb.eq(self.we),
            two.raddr.eq(~self.at),
            two.ren.eq(self.b[0]),
            self.one.eq(one.rdata),
            self.two.eq(two.rdata),
        ]
        return m


def test_only_one_seam() -> None:
    """No file but hw/memory.py makes a memory, and with MIN_BITS = 0 no written one is left in a tile."""
    hw = Path(__file__).parent.parent / "hw"
    users = [
        f.name
        for f in sorted(hw.rglob("*.py"))
        if "lib.memory" in (text := f.read_text())
        or "lib import memory" in text
        or "hdl.Memory" in text
        or "MemoryInstance" in text
    ]
    assert users == ["memory.py"]


def tile_design(name: str) -> tuple[str, MacroPlatform]:
    from hw.tile import Tile

    platform = MacroPlatform(min_bits=0)
    return rtlil(Tile(CONFIGS[name]), platform=platform), platform


@pytest.mark.parametrize("name", ["tiny", "base", "ecp5"])
def test_tile_is_fit(name: str) -> None:
    """No latch, no asynchronous, inverted, derived or gated clock; all written memories are macros."""
    design, platform = tile_design(name)
    assert sum(platform.macros.values()) > 30
    writes = design.count("cell $memwr_v2")
    assert writes == 0
    check(design, macros=macro_models(platform.macros, model=False))


@pytest.mark.parametrize(
    "body",
    [
        "always @* if (en) q = d;",
        "wire g = clk & en; always @(posedge g) q <= d;",
        "always @(negedge clk) q <= d;",
        "always @(posedge clk or posedge rst) if (rst) q <= 0; else q <= d;",
        "always @(posedge en) q <= d;",
        "reg m [0:15]; always @(posedge clk) m[a] <= d; always @* q = m[a];",
        "reg m [0:15]; always @(posedge en) m[a] <= d; always @(posedge clk) q <= m[a];",
    ],
)
def test_check_finds(body: str, tmp_path: Path) -> None:
    text = f"module t(input clk, rst, en, d, input [3:0] a, output reg q);\n{body}\nendmodule\n"
    (tmp_path / "t.v").write_text(text)
    yosys("read_verilog t.v\nproc\nwrite_rtlil t.il\n", tmp_path)
    with pytest.raises(RuntimeError, match="Assertion failed|Assertation failed"):
        check((tmp_path / "t.il").read_text(), "t")


def test_macros_behave() -> None:
    """The design with macros, and their models, equals a model of the two RAMs; nothing else is a memory."""
    platform = MacroPlatform()
    from amaranth.back import verilog as backend
    from amaranth.hdl._ir import PortDirection

    from hw.export import flat_ports

    pair = Pair()
    ports = {
        p: (v, PortDirection.Input if w == "i" else PortDirection.Output)
        for p, (v, w) in flat_ports(pair).items()
    }
    text = backend.convert(
        pair, name="pair", platform=platform, ports=ports, emit_src=False, strip_internal_attrs=True
    )
    assert platform.macros == {Macro(1, 64, 32, 8): 1, Macro(2, 64, 64, 64): 1}
    assert " mem [" not in text
    found = parse_ports(text, "pair")
    full = f"{text}\n{macro_models(platform.macros)}"
    unit = Unit(build(program(netlist(full, "pair")), found, "pair"), found, seed=4, random_init=True)
    rng = np.random.default_rng(2)
    one, two = {}, {}
    last_one = last_two = None
    for cycle in range(3000):
        a, b, at, we = (int(rng.integers(0, high)) for high in (1 << 32, 1 << 32, 64, 2))
        for port, value in (("a", a), ("b", b), ("at", at), ("we", we)):
            unit.set(port, value)
        unit.step()
        if we:
            old = one.get(at, [None] * 4)
            one[at] = [a >> 8 * i & 255 if b >> i & 1 else old[i] for i in range(4)]
        else:
            last_one = one.get(at)
        if b & 1:
            last_two = two.get(~at & 63)
        if we:
            two[at] = a * b
        if last_one and None not in last_one:
            assert unit.get("one") == int.from_bytes(bytes(last_one), "little"), cycle
        if last_two is not None:
            assert unit.get("two") == last_two, cycle


def test_synthesis() -> None:
    """Area of the units in the liberty's unit, flip-flops, macros, and a longest path of plausible depth."""
    platform = MacroPlatform()
    design = rtlil(Pair(), "pair", platform)
    units = {
        u.name: u for u in synthesise(design, LIBERTY, "pair", macro_models(platform.macros, model=False))
    }
    assert set(units) == {"add", "store", "pair"}
    add = units["add"]
    assert add.flops > 50 and add.area > 8.0 * add.flops + add.cells - add.flops
    # A stage of the adder: some dozen gates of 0.02 to 0.08 ns each.
    assert 8 < add.path.depth < 60 and 0.02 * add.path.depth <= add.path.delay <= 0.08 * add.path.depth
    assert sum(u.macros for u in units.values()) == 2
    pair = units["pair"]  # its own logic only, the product of a and b: gates of 1 to 3.5
    assert pair.cells > 500 and pair.flops == 0 and pair.cells < pair.area < 3.5 * pair.cells


def test_longest_path() -> None:
    """Chains counted by hand: Q -> NAND2 -> INV -> D, and port -> INV -> D of another register."""
    cells, unit = read_liberty(LIBERTY.read_text())
    assert unit == "1ns" and cells["NAND2"].arcs == {"Y": {"A": 0.03, "B": 0.03}} and cells["DFF"].flop

    def cell(kind: str, **pins: int) -> dict:
        return {"type": kind, "connections": {p: [b] for p, b in pins.items()}}

    module = {
        "ports": {"clk": {"direction": "input", "bits": [2]}, "i": {"direction": "input", "bits": [3]}},
        "cells": {
            "f": cell("DFF", CK=2, D=7, Q=4),
            "n": cell("NAND2", A=4, B=3, Y=6),
            "v": cell("INV", A=6, Y=7),
            "w": cell("INV", A=3, Y=8),
            "g": cell("DFF", CK=2, D=8, Q=9),
        },
    }
    paths = longest_paths(module, cells)
    assert (paths["f"].depth, paths["f"].end, paths["g"].depth, paths["g"].start) == (2, "f", 1, "i")
    assert abs(paths["f"].delay - 0.05) < 1e-9 and abs(paths["g"].delay - 0.02) < 1e-9
    module["cells"]["v"]["connections"]["A"] = [7]
    with pytest.raises(ValueError, match="loops"):
        longest_paths(module, cells)


def test_bad_liberty(tmp_path: Path) -> None:
    bad = tmp_path / "bad.lib"
    bad.write_text("library (none) { }\n")
    with pytest.raises(ValueError, match="none of them a flip-flop"):
        synthesise(
            rtlil(Pair(), "pair", p := MacroPlatform()), bad, "pair", macro_models(p.macros, model=False)
        )
