"""The synthesis report: units, primitives, sums and differences; real runs of Yosys on small units."""

import json
import re
import threading
import time

import pytest

from hw.config import TINY
from hw.array import SystolicArray
from hw.export import verilog
from hw.readable import readable
from hw.sequencer import ProgramMemory
from sim import synth
from sim.synth import COLUMNS, TARGETS, Unit, count, difference, main, report, synthesise, synthesise_all
from sim.synth import table, units

TEXT = """module top (clk, o);
  input clk;
  wire clk;
  output o;
  wire o;
  top_load u_load (
    .clk(clk),
    .o(o)
  );
endmodule

module top_load (clk, o);
  input clk;
  wire clk;
  output o;
  wire o;
  top_load_fifo fifo (
    .clk(clk)
  );
  top_load_port port (
    .o(o)
  );
endmodule

module top_load_fifo (clk);
  input clk;
  wire clk;
endmodule

module top_load_port (o);
  output o;
  wire o;
  assign o = 1'h1;
endmodule
"""


def test_units_share_the_hierarchy_without_overlap():
    tile, load, port = units(TEXT, "top", ("load.port",))
    assert [(u.path, u.top, u.boxes) for u in (tile, load, port)] == [
        ("tile", "top", ["top_load"]),
        ("load", "top_load", ["top_load_port"]),
        ("load.port", "top_load_port", []),
    ]
    assert tile.text.count("blackbox") == 1
    assert "module top_load (clk, o);\n  input clk;\n  output o;\nendmodule" in tile.text
    assert "fifo" not in tile.text and "module top_load_fifo" in load.text and "1'h1" not in load.text
    assert "1'h1" in port.text and "blackbox" not in port.text


def test_primitives_are_counted_with_their_weights():
    cells = {"LUT4": 10, "CCU2C": 3, "TRELLIS_DPR16X4": 2, "TRELLIS_FF": 7, "MULT18X18D": 5, "DP16KD": 4,
             "PFUMX": 9, "box": 1}
    assert count(cells, TARGETS["ecp5"], ("box",)) == {"lut": 24, "ff": 7, "dsp": 5, "ram": 4}
    assert count({"RAMB18E1": 3, "RAMB36E1": 1, "LUT6": 2, "FDRE": 1}, TARGETS["xilinx"]) == {
        "lut": 2, "ff": 1, "dsp": 0, "ram": 2.5}
    with pytest.raises(ValueError, match="2 cells 'NOVEL' that synth_ecp5 gave have no column"):
        count({"LUT4": 1, "NOVEL": 2}, TARGETS["ecp5"])
    with pytest.raises(ValueError, match="'box'"):
        count({"box": 1}, TARGETS["ecp5"])


def row(*values: float) -> dict[str, float]:
    return dict(zip(COLUMNS, values, strict=True))


def test_sums_lut_per_mac_and_differences():
    results = {"matmul.array": row(1000, 10, 64, 0), "gone": row(5, 0, 0, 1)}
    old = report(TINY, "ecp5", results, {"LUT4": 1005})
    assert old["total"] == row(1005, 10, 64, 1) and old["lut_per_mac"] is None
    results = {"matmul.array": row(1000, 10, 64, 0), "matmul.accumulators": row(600, 20, 0, 2)}
    new = report(TINY, "ecp5", results, {"LUT4": 1600})
    assert new["lut_per_mac"] == 25.0 and new["macs"] == 64 and new["total"] == row(1600, 30, 64, 2)
    assert difference(new, old) == {
        "matmul.accumulators": row(600, 20, 0, 2), "gone": row(-5, 0, 0, -1), "total": row(595, 20, 0, 1)}
    text = table(new, old)
    assert re.search(r"^total +1,600 +30 +64 +2$", text, re.M) and "25.0 LUT per MAC (64 MAC)" in text
    assert re.search(r"^gone +-5 +\+0 +\+0 +-1$", text, re.M) and text.endswith("LUT per MAC: None -> 25.0")
    assert table(new, new).endswith("no change against the committed report")
    assert table(new, None).endswith("--update writes one")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_instruction_memory_becomes_block_ram(name, monkeypatch, tmp_path):
    """Every target: 2048 words of 32 bits in two block RAMs of 32 Kbit at most, and little logic."""
    monkeypatch.setattr(synth, "CACHE", tmp_path)
    text = readable(verilog(ProgramMemory(TINY.replace(imem_words=2048)), "program"), "program")
    unit = Unit("program", "program", text)
    found = count(synthesise(unit, TARGETS[name]), TARGETS[name])
    assert 2 <= found["ram"] <= 4 and found["dsp"] == 0
    assert 100 < found["ff"] < 400 and 10 < found["lut"] < 300, found


def test_array_becomes_multipliers_and_results_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(synth, "CACHE", tmp_path)
    unit = Unit("matmul.array", "array", readable(verilog(SystolicArray(TINY), "array"), "array"))
    cells = synthesise(unit, TARGETS["ecp5"])
    assert count(cells, TARGETS["ecp5"])["dsp"] == TINY.macs
    (kept,) = tmp_path.iterdir()
    kept.write_text(json.dumps({"LUT4": 1}))
    assert synthesise(unit, TARGETS["ecp5"]) == {"LUT4": 1}
    unit.text += "\n"  # another text is another result
    monkeypatch.setattr(synth.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(OSError("ran Yosys")))
    with pytest.raises(OSError, match="ran Yosys"):
        synthesise(unit, TARGETS["ecp5"])


def test_an_error_of_yosys_is_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(synth, "CACHE", tmp_path)
    with pytest.raises(RuntimeError, match="(?s)Yosys failed on broken.*syntax error"):
        synthesise(Unit("broken", "top", "module top(; endmodule"), TARGETS["ecp5"])
    with pytest.raises(RuntimeError, match="(?s)latch"):  # no latch passes unseen
        text = "module top(input e, d, output reg q);\n  always @* if (e) q = d;\nendmodule\n"
        synthesise(Unit("latch", "top", text), TARGETS["ecp5"])
    assert not any(path.suffix == ".json" for path in tmp_path.iterdir())


def test_units_run_at_once_and_keep_their_order(monkeypatch, capsys):
    """Two units wait for each other; results come in the given order; an error stops what has not begun."""
    together, started = threading.Barrier(2), []

    def fake(unit, target):
        started.append(unit.path)
        if unit.path == "bad":
            raise RuntimeError("Yosys failed on bad")
        if unit.path in "ab":
            together.wait(30)
        time.sleep(0.01)
        return {unit.path: 1}

    monkeypatch.setattr(synth, "synthesise", fake)
    todo = [Unit("c", "c", ""), Unit("a", "a", "."), Unit("b", "b", "..")]
    assert synthesise_all(todo, TARGETS["ecp5"], 2) == [{"c": 1}, {"a": 1}, {"b": 1}]
    assert re.search(r"^\[3/3\] c \(0\.\d s\)$", capsys.readouterr().err, re.M)
    started.clear()
    todo = [Unit(f"last{n}", "c", "") for n in range(50)] + [Unit("bad", "b", ".")]
    with pytest.raises(RuntimeError, match="Yosys failed on bad"):
        synthesise_all(todo, TARGETS["ecp5"], 1)
    assert started[0] == "bad" and len(started) < 51


@pytest.mark.parametrize("arguments, message", [
    (["--jobs", "0"], "--jobs 0: allowed is 1 and more"),
    (["--target", "ice40"], "target 'ice40': allowed is one of ecp5, nexus, gowin, xilinx"),
    (["--config", "huge"], "config 'huge': allowed is one of tiny"),
    (["--unit", "sram", "--update"], "leave out --unit")])
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_committed_reports_add_up():
    paths = sorted(synth.REPORTS.glob("*-*.json"))
    assert paths
    for path in paths:
        data = json.loads(path.read_text())
        assert path.stem == f"{data['config']}-{data['target']}"
        assert data["command"] == TARGETS[data["target"]].command
        assert data["total"] == {c: sum(u[c] for u in data["units"].values()) for c in COLUMNS}
        assert data["total"] == count(data["cells"], TARGETS[data["target"]])
        array = data["units"]["matmul.array"]["lut"] + data["units"]["matmul.accumulators"]["lut"]
        assert data["lut_per_mac"] == round(array / data["macs"], 2)
