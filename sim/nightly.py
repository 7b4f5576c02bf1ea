"""`make nightly`: what takes too long for every change, one step after another, and a table at the end.

Every step is a `make` target (STEPS) and runs whatever became of those before it. The exit status is 0 only
if all passed. Their output appears as it comes; nothing is kept but what the targets leave in build/.

Usage: ``python -m sim.nightly [--only pnr --only soak] [--list]``
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["STEPS", "Step", "run", "table"]

ROOT = Path(__file__).resolve().parent.parent
SOAK = "sim/test_tile_random.py sim/test_tile_control.py sim/test_export.py"
"""Tests that take more seeds, or larger configs, with SOAK."""


@dataclass(frozen=True)
class Step:
    """A name and the arguments of `make`."""

    name: str
    arguments: tuple[str, ...]


STEPS = (
    Step("soak", ("test", f"T={SOAK}", "SOAK=200")),
    Step("dma-soak", ("dma-soak",)),
    Step("gates", ("gates", "CONFIG=ecp5")),
    Step("synth-base", ("synth", "CONFIG=base")),
    Step("synth-nexus", ("synth", "CONFIG=ecp5", "TARGET=nexus")),
    Step("synth-gowin", ("synth", "CONFIG=ecp5", "TARGET=gowin")),
    Step("synth-xilinx", ("synth", "CONFIG=ecp5", "TARGET=xilinx")),
    Step("pnr", ("pnr", "CONFIG=ecp5")),
    Step("bitstream", ("bitstream", "BOARD=ulx3s")),
)


@dataclass(frozen=True)
class Result:
    """What became of a step: exit status of make, wall-clock seconds."""

    step: Step
    status: int
    seconds: float


def run(steps: Sequence[Step], make: Sequence[str] = ("make",)) -> list[Result]:
    """Run every step in the repository, output to the terminal."""
    results = []
    for number, step in enumerate(steps, 1):
        print(f"==> [{number}/{len(steps)}] {step.name}: {shlex.join((*make, *step.arguments))}", flush=True)
        start = time.monotonic()
        status = subprocess.run([*make, *step.arguments], cwd=ROOT).returncode
        results.append(Result(step, status, time.monotonic() - start))
        print(_line(results[-1]), flush=True)
    return results


def _line(result: Result) -> str:
    verdict = "failed" if result.status else "passed"
    minutes, seconds = divmod(round(result.seconds), 60)
    return f"{result.step.name:<16}{verdict}{minutes:>6} min {seconds:>2} s"


def table(results: Sequence[Result]) -> str:
    """One line for each step, and how many passed."""
    passed = sum(not result.status for result in results)
    return "\n".join([*map(_line, results), f"{passed} of {len(results)} steps passed"])


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status is 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m sim.nightly", description="Checks that take hours.")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", action="append", choices=names, help="only this step (again for more)")
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    args = parser.parse_args(argv)
    steps = [step for step in STEPS if not args.only or step.name in args.only]
    if args.list:
        print("\n".join(f"{step.name:<16}make {shlex.join(step.arguments)}" for step in steps))
        return 0
    results = run(steps)
    print(f"\n{table(results)}")
    return int(any(result.status for result in results))


if __name__ == "__main__":
    sys.exit(main())
