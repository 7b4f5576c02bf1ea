"""The trace: exact against the tile's own counters, tracks without overlap, labels that count along."""

import json
from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from hw.config import named
from hw.isa import LOAD, MATMUL, SEND, THREADS, VECTOR
from sim import trace as tr
from sim.test_fastsim import run_small, small_block, small_model, small_phases, tile
from sim.trace import CAUSES, INSTRUCTION, RUN, STALL, WAIT, Trace, write_perfetto
from sim.verilate import cached_verilog
from sw.assembler import Program
from sw.device import Run
from sw.layout import put_program


@cache
def recorded(gap: int = 0) -> tuple[list[Run], list[Trace]]:
    """Both phases of the small block, each with its trace; stalls and refresh for a bit of everything."""
    device = tile(trace=True, trace_gap=gap, stall=0.1, refresh=(500, 40))
    image, phases, runs, traces = small_block(), small_phases(), [], []
    device.attach(image.dram.data)
    for name, (words, args) in phases.items():
        runs.append(device.run(image.program_at[name], len(words), args))
        traces.append(device.take_trace())
    assert np.array_equal(device.dram, small_model())
    return runs, traces


def lengths(intervals: np.ndarray) -> np.ndarray:
    return (intervals["end"] - intervals["begin"]).astype(int)


@pytest.mark.parametrize("gap", [0, 16])
def test_counters(gap):
    """Waits, stalls and runs are what the counters say, cycle for cycle; tracing costs the tile nothing."""
    runs, traces = recorded(gap)
    plain = run_small(tile(stall=0.1, refresh=(500, 40)))
    assert [r.counters for r in runs] == [r.counters for r in plain]
    for run, trace in zip(runs, traces, strict=True):
        assert trace.dropped == 0 and lengths(trace.of(RUN)).tolist() == [run.cycles]
        for unit, name in enumerate(THREADS):
            assert lengths(trace.of(WAIT, unit)).sum() == run.counters[f"THREAD_WAIT_{name.upper()}"]
            for cause in CAUSES.get(unit, ()):
                assert trace.stalled(unit, cause) == run.counters[f"{name.upper()}_WAIT_{cause}"]
        stalls = trace.of(STALL)
        assert (
            (stalls["value"] == lengths(stalls)).all()
            if gap == 0
            else (stalls["value"] < lengths(stalls)).any()
        )
        assert lengths(trace.of(INSTRUCTION)).max() <= run.unit_cycles
    assert len(traces[1].intervals) > 200


def test_every_instruction_once():
    """As many per unit, at the same places and in the same order, as the model executes."""
    from golden.machine import Machine

    machine = Machine(named("tiny"), small_block().dram.data.copy(), trace=True)
    _, traces = recorded()
    for (name, (words, args)), trace in zip(small_phases().items(), traces, strict=True):
        before = len(machine.events)
        machine.run(small_block().program_at[name], len(words), args)
        for unit, thread in enumerate(THREADS):
            want = [e.pc for e in machine.events[before:] if e.thread == thread]
            done = trace.of(INSTRUCTION, unit)
            assert done["detail"].tolist() == want
            assert (done["begin"][1:] >= done["end"][:-1]).all() and (done["end"] >= done["begin"]).all()


def test_timing_of_one_instruction():
    """From issue to completion; a thread that waits for it is blocked until then, on that semaphore."""
    device = tile(trace=True, latency=20)
    program = Program(named("tiny"))
    loaded, done = program.semaphore("loaded"), program.semaphore("done")
    program.load.load(src=0x1000, dst=0, len=4096, sig_b=loaded)
    program.matmul.wait(loaded)
    program.matmul.signal(done)
    program.store.wait(done)
    program.store.store(src=0, dst=0x4000, len=8)
    program.store.store(src=8, dst=0x4008, len=8)
    words = program.image()
    put_program(device.dram, 0, words)
    run = device.run(0, len(words))
    trace = device.take_trace()
    load, wait = trace.of(INSTRUCTION, LOAD), trace.of(WAIT, MATMUL)
    assert len(load) == len(wait) == 1 and wait["value"] == [loaded]
    assert 4096 // 8 + 20 < lengths(load)[0] < 4096 // 8 + 70
    assert 0 <= int(wait["end"][0]) - int(load["end"][0]) < 10
    first, second = trace.of(INSTRUCTION, 1)
    assert first["value"] == 0 and 0 < second["value"] and second["begin"] == first["end"]
    assert int(second["end"] - load["begin"][0]) == pytest.approx(run.unit_cycles, abs=6)
    assert trace.of(WAIT, 1)["end"][0] <= first["begin"]


def test_send():
    """The unit that the NoC shares counts its own instructions only, one at a time."""
    device = tile(trace=True)
    device.sim.noc_pop()
    program = Program(named("tiny"))
    for size in (64, 256):
        program.send.send(tile=1, src=0, dst=0, len=size, sem=1)
    words = program.image()
    put_program(device.dram, 0, words)
    run = device.run(0, len(words))
    first, second = device.take_trace().of(INSTRUCTION, SEND)
    assert (first["detail"], second["detail"]) == (words[SEND], words[SEND] + 7)
    assert first["end"] <= second["begin"]
    assert lengths(first) < lengths(second) < run.counters["FLITS_OUT"] + 40


def tracks(path) -> tuple[dict, dict[str, list[dict]]]:
    """The file, and its slices by name of the track, checked for structure."""
    document = json.loads(path.read_text())
    names = {e["tid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"}
    slices = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            slices[names[event["tid"]]].append(event)
    for track, events in slices.items():
        for a, b in zip(events, events[1:]):
            assert a["dur"] >= 0 and a["ts"] + a["dur"] <= b["ts"] + 1e-7, (track, a, b)
    return document, slices


def test_perfetto(tmp_path):
    runs, (_, trace) = recorded()
    labels = small_block().labels["decode"]
    write_perfetto(tmp_path / "out" / "t.json", trace, labels, clock_mhz=125.0)
    document, slices = tracks(tmp_path / "out" / "t.json")
    assert document["otherData"] == {"clock_mhz": 125.0, "dropped_intervals": 0}
    assert {"runs", "MATMUL", "MATMUL stalls", "VECTOR", "LOAD thread waits"} <= set(slices)
    assert sum(map(len, slices.values())) == len(trace.intervals)
    (run,) = slices["runs"]
    assert run["dur"] == pytest.approx(runs[1].cycles / 125, abs=1e-5) and run["ts"] == 0
    for e in slices["VECTOR"]:
        assert e["name"] == labels.get(e["args"]["pc"], f"VECTOR at {e['args']['pc']}")
    assert "softmax" in " ".join(e["name"] for e in slices["VECTOR"])
    for name in THREADS:
        waits = sum(e["args"]["cycles"] for e in slices[f"{name.upper()} thread waits"])
        assert waits == runs[1].counters[f"THREAD_WAIT_{name.upper()}"]
        assert all(
            e["args"]["cycles"] == pytest.approx(e["dur"] * 125, abs=1e-3) for e in slices[name.upper()]
        )


def test_marks_count_along(tmp_path):
    """{layer} and {token} in labels follow the instructions that are marked, per thread and run."""
    device = tile(trace=True)
    program = Program(named("tiny"))
    with program.load.loop(3), program.load.label("token {token}"):
        with program.load.loop(2), program.load.label("layer {layer}"):
            program.load.load(src=0x1000, dst=0, len=8)
            program.load.load(src=0x1000, dst=64, len=8)
    words = program.image()
    put_program(device.dram, 0, words)
    for _ in range(2):
        device.run(0, len(words))
    trace = device.take_trace()
    pcs = trace.of(INSTRUCTION, LOAD)["detail"].tolist()
    write_perfetto(tmp_path / "t.json", trace, [program.labels, {}], {pcs[0]: ("layer", 2)})
    names = [e["name"] for e in tracks(tmp_path / "t.json")[1]["LOAD"]]
    assert names[:12] == [f"token {{token}} / layer {n // 2 % 2}" for n in range(12)]
    assert names[12:] == [f"LOAD at {pc}" for pc in pcs[12:]] and len(names) == 24
    write_perfetto(tmp_path / "t.json", trace, program.labels, {pcs[1]: ("token", 100)})
    names = [e["name"] for e in tracks(tmp_path / "t.json")[1]["LOAD"]]
    want = ["{token}", *(str(n // 2) for n in range(11))]
    assert names == 2 * [f"token {n} / layer {{layer}}" for n in want]


def test_limit(tmp_path):
    """No more than the limit is kept, and the file says what is missing, from where on."""
    _, (trace, _) = recorded()
    device = tile(trace=True, trace_gap=0, trace_limit=100, stall=0.1, refresh=(500, 40))
    image, (words, args) = small_block(), small_phases()["prefill"]
    device.attach(image.dram.data)
    device.run(image.program_at["prefill"], len(words), args)
    short = device.take_trace()
    assert len(short.intervals) == 100 and short.dropped == len(trace.intervals) - 100
    assert np.array_equal(short.intervals, trace.intervals[:100])
    write_perfetto(tmp_path / "t.json", short, {})
    document, slices = tracks(tmp_path / "t.json")
    assert document["otherData"]["dropped_intervals"] == short.dropped
    assert [e["name"] for e in document["traceEvents"] if e["ph"] == "i"] == [
        f"cut here: {short.dropped} more intervals were not recorded"
    ]


def test_abort_is_shown_as_unfinished(tmp_path):
    device = tile(trace=True)
    image, (words, args) = small_block(), small_phases()["decode"]
    device.attach(image.dram.data)
    device.start(image.program_at["decode"], len(words), args)
    device.poll(2000)
    run = device.abort()
    trace = device.take_trace()
    assert lengths(trace.of(RUN)).tolist() == [run.cycles]
    assert (trace.intervals["kind"] & tr.UNFINISHED).any()
    assert lengths(trace.of(WAIT, VECTOR)).sum() == run.counters["THREAD_WAIT_VECTOR"]
    write_perfetto(tmp_path / "t.json", trace, image.labels["decode"])
    _, slices = tracks(tmp_path / "t.json")
    assert any(e["args"].get("unfinished") for events in slices.values() for e in events)
    run_small(device)
    assert np.array_equal(device.dram, small_model())


def test_probes_name_what_is_missing():
    from hw.tile import Tile

    config = named("tiny")
    text = cached_verilog(lambda: Tile(config), "serrano_tile", repr(config))
    with pytest.raises(ValueError, match="no instances.*'vector'"):
        tr.tile_probes(
            text.replace("serrano_tile.vector  vector (", "serrano_tile.lanes  lanes ("), "serrano_tile"
        )
    with pytest.raises(ValueError, match="matmul.signals_commands"):
        tr.tile_probes(text.replace(".signals_commands ", ".renamed "), "serrano_tile")
