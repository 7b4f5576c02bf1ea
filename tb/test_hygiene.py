"""The runner cannot pass on nothing: whatever goes wrong in a run is a failure; and waves are optional."""

from pathlib import Path

import pytest

from hw.glue import RoundRobin
from tb import runner
from tb.runner import BenchFailure


def go(testcase: str | None, module: str = "tb.cocotb_hygiene", **options) -> int:
    return runner.run(lambda: RoundRobin(4), "tb_hygiene", module, testcase=testcase, **options)


@pytest.mark.parametrize(
    "testcase,what",
    [
        ("test_wrong", "deliberately wrong"),
        ("test_hangs_in_simulated_time", "1 of 1 tests did not pass"),
        ("test_hangs", "tb.cocotb_hygiene on tb_hygiene"),
        ("test_simulator_leaves", "no results"),
        ("test_no_such_port", "no_such_port"),
        ("test_that_does_not_exist", "no test was run"),
    ],
)
def test_failures_are_reported(testcase: str, what: str) -> None:
    with pytest.raises(BenchFailure, match=what):
        go(testcase, seconds=5 if testcase == "test_hangs" else 60)


def test_module_that_does_not_exist() -> None:
    with pytest.raises(BenchFailure):
        go(None, "tb.cocotb_that_does_not_exist")


def test_one_failure_among_passes() -> None:
    with pytest.raises(BenchFailure, match="1 of 2 tests did not pass.*deliberately wrong"):
        go("(test_good|test_wrong)")


@pytest.mark.parametrize("waves", ["", "1"])
def test_waves_are_optional(waves: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVES", waves)
    assert go("test_good", place=tmp_path) == 1
    dump = tmp_path / "dump.vcd"
    assert dump.exists() == bool(waves)
    assert not waves or b"clk" in dump.read_bytes()


@pytest.mark.parametrize("cases", ["", "<testcase name='a'><skipped/></testcase>",
                                   "<testcase name='a'/><testcase name='b'><error/></testcase>"])
def test_verdict_of_odd_results(cases: str, tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(f"<testsuites><testsuite name='s'>{cases}</testsuite></testsuites>")
    with pytest.raises(BenchFailure):
        runner.verdict(results)
