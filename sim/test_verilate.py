"""The cache of builds, shared by processes: what two want at once is built once, and both find it."""

import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sim import verilate

KEPT = verilate.CACHE
TEXT = """module half(a, o);
  input [7:0] a;
  output [7:0] o;
  assign o = a >> 1;
endmodule
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verilate, "CACHE", tmp_path)
    return tmp_path


def together(work: Any, *args: Any) -> list[Any]:
    """Results of work(barrier, *args) in three processes that start at the same time."""
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(3), fork.SimpleQueue()
    processes = [fork.Process(target=lambda: results.put(work(barrier, *args))) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def test_exclusive_lets_one_in_at_a_time(empty: Path) -> None:
    def add(barrier: Any) -> None:
        barrier.wait()
        for _ in range(5):
            with verilate.exclusive("counter"):
                path = empty / "counter"
                value = int(path.read_text()) if path.exists() else 0
                time.sleep(0.005)
                path.write_text(str(value + 1))

    together(add)
    assert (empty / "counter").read_text() == "15"
    with verilate.exclusive("one"), verilate.exclusive("other"):  # names do not hold each other up
        pass


def test_a_build_that_three_want_is_made_once(empty: Path) -> None:
    for runtime in KEPT.glob("verilated*.o"):  # Verilator's own, the same for every design
        shutil.copy2(runtime, empty)

    def build(barrier: Any) -> tuple[str, int]:
        began = 0

        def say(command: list[str], *args: Any, **env: str) -> None:
            nonlocal began
            began += command[0].endswith("verilator_bin")
            run(command, *args, **env)

        run, verilate._run = verilate._run, say
        barrier.wait()
        return str(verilate.compile_verilog(TEXT, "half", opt="-O0", verbose=False)), began

    found = together(build)
    assert {Path(path) for path, _ in found} == set(empty.glob("half-*.so"))
    assert len({path for path, _ in found}) == 1 and sum(began for _, began in found) == 1
    assert not [path for path in empty.iterdir() if path.is_dir() and path.name != "locks"]


def test_verilog_that_three_want_is_made_once(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hw import export

    monkeypatch.setattr(export, "verilog", lambda component, name: component)

    def elaborate(barrier: Any) -> tuple[str, int]:
        made = []

        def make() -> str:
            made.append(1)
            time.sleep(0.2)
            return TEXT

        barrier.wait()
        return verilate.cached_verilog(make, "half"), len(made)

    found = together(elaborate)
    assert [text for text, _ in found] == [TEXT] * 3 and sum(made for _, made in found) == 1
