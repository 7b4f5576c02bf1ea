"""`make nightly` runs every step and fails if one did; CI makes only targets that the Makefile has."""

import re
import sys

import pytest
import yaml

from sim import nightly
from sim.nightly import ROOT, STEPS, Result, Step, main, run, table

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.M))
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def calls(text: str) -> set[str]:
    """Targets that the lines of a script or a workflow make."""
    return set(re.findall(r"^(?:\s*- run:)?\s*make ([\w-]+)", text, re.M))


def test_every_target_exists() -> None:
    assert calls((ROOT / ".ci" / "run").read_text()) == {"lint", "test", "synth"} <= TARGETS
    assert calls(WORKFLOW) == {"nightly", "verilog"} <= TARGETS
    assert {step.arguments[0] for step in STEPS} <= TARGETS
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:  # a variable that the Makefile does not know would change nothing
        for name in [argument.partition("=")[0] for argument in step.arguments[1:]]:
            assert name == "SOAK" or re.search(rf"\$\({name}[:)]", MAKEFILE), (step, name)
    assert all((ROOT / path).is_file() for path in nightly.SOAK.split())


def test_workflow() -> None:
    workflow = yaml.safe_load(WORKFLOW)
    jobs = workflow["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    used = {step["uses"].partition("@")[0] for step in steps if "uses" in step}
    assert used <= {"actions/checkout", "actions/setup-python", "actions/upload-artifact"}
    assert all(("uses" in step) != ("run" in step) for step in steps)
    assert any(step.get("run") == ".ci/run" for step in jobs["change"]["steps"])
    assert any(step.get("run") == "make nightly" for step in jobs["nightly"]["steps"])
    release = "\n".join(step.get("run", "") for step in jobs["release"]["steps"])
    from hw.config import CONFIGS

    for name in CONFIGS:
        assert f"make verilog CONFIG={name}\n" in release and re.search(rf"for c in [^;]*\b{name}\b", release)
    # No newlines: a plain scalar is folded, and what `;` and `||` separate stays apart.
    assert 'gh release upload "$TAG" --clobber' in release and jobs["release"]["needs"] == "change"
    events = workflow[True]  # `on` is a boolean in YAML
    assert set(events) == {"push", "pull_request", "schedule", "workflow_dispatch"}


def test_all_steps_run_and_one_failure_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    fake = (sys.executable, "-c", "import sys; print('ran', sys.argv[1:]); sys.exit(sys.argv[1] == 'bad')")
    steps = (Step("first", ("good", "A=1")), Step("second", ("bad",)), Step("third", ("good",)))
    results = run(steps, fake)
    assert [result.status for result in results] == [0, 1, 0]
    out = capfd.readouterr().out
    assert out.index("[1/3] first") < out.index("ran ['good', 'A=1']") < out.index("[2/3] second")
    assert re.search(r"^third +passed +0 min +\d s$", out, re.M)
    monkeypatch.setattr(nightly, "STEPS", steps)
    monkeypatch.setattr(nightly, "run", lambda steps: run(steps, fake))
    assert main([]) == 1 and main(["--only", "third"]) == 0
    assert "2 of 3 steps passed" in capfd.readouterr().out


def test_table() -> None:
    text = table([Result(STEPS[0], 0, 59.7), Result(STEPS[-1], 2, 4000)])
    assert text.splitlines() == [
        f"{STEPS[0].name:<16}passed     1 min  0 s",
        f"{STEPS[-1].name:<16}failed    66 min 40 s",
        "1 of 2 steps passed",
    ]
