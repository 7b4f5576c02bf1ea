"""DMA engines against the numpy model: always with queued descriptors, with stalls, errors, stops and exact
cycles."""

from collections.abc import Iterator

import numpy as np
import pytest

from golden.units import Dram, Fault, dma
from hw.config import TINY
from hw.dma import LoadEngine
from hw.isa import Error
from sim.dma_bench import latencies, utilisation
from sim.dma_soak import (
    DEFAULTS,
    DRAM_BYTES,
    HALF,
    LOAD,
    STORE,
    commands,
    copy,
    make_sim,
    play,
    random_timing,
    random_transfer,
    run,
)
from sim.fastsim import FastSim
from sim.unit import SimTimeout

CONFIG = TINY.replace(name="dma", axi_outstanding=8)
A, W, SRAM = CONFIG.axi_bytes, CONFIG.word_bytes, CONFIG.sram_bytes
SRAM_DUMP = [{"src": k, "dst": HALF + k, "len": 8192, "sig_b": 40} for k in range(0, SRAM, 8192)]


@pytest.fixture(scope="module")
def shared() -> Iterator[FastSim]:
    sim = make_sim(CONFIG)
    yield sim
    sim.close()


@pytest.fixture
def sim(shared: FastSim) -> FastSim:
    """The one simulator, as new: idle, SRAM zero, DRAM random, memory of latency 1 without stalls."""
    sim = shared
    for port in ("stop", "clear", "dram_base", "sram_stall"):
        sim.set(port, 0)
    sim.set("dram_size", 0xFFFFFFFF)
    sim.timing(1)
    sim.stall(0.0)
    sim.clear_errors()
    sim.reset(16)
    sim.dram[:] = 0
    sim.run_streams({"load_command": commands(LOAD, [{"len": SRAM, "sig_b": 1}])}, {"load_signal": 1})
    sim.dram[:] = np.random.default_rng(1).integers(0, 256, DRAM_BYTES)
    sim.stats(clear=True)
    return sim


def models(sim: FastSim) -> tuple[np.ndarray, np.ndarray]:
    return sim.dram.copy(), np.zeros(SRAM, np.uint8)


def clear(sim: FastSim, unit: str) -> list[int]:
    """What the tile does after an error: stop, wait until both engines are idle, reset everything.

    Returns the signals of the unit, those included that were on their way.
    """
    sim.set("stop", 1)
    sim.run(20_000, until="idle")
    assert sim.get("idle"), "an engine did not drain"
    sim.run(100)
    sent = sim.pop(f"{unit}_signal").tolist()
    sim.reset(16)
    sim.set("stop", 0)
    sim.step(1)
    return sent


def window(sim: FastSim, base: int, size: int) -> None:
    sim.set("dram_base", base)
    sim.set("dram_size", size)
    sim.step(2)


def error_of(sim: FastSim, unit: str) -> tuple[bool, int, int, int]:
    """(valid, code, pc, value)."""
    word = sim.get(f"{unit}_error")
    return bool(word & 1), word >> 1 & 15, word >> 5 & 0x3FFF, word >> 19


def test_every_alignment_pair_and_length(sim: FastSim) -> None:
    dram, sram = models(sim)
    lengths = iter(np.tile(np.arange(71), 40).tolist())
    loads, stores = [], []
    for far in range(A):
        for near in range(W):
            for _ in range(2):
                k = len(loads) % 256
                loads.append(
                    {"src": 256 * k + far, "dst": 128 * k + near, "len": next(lengths), "sig_b": 1 + k % 63}
                )
                stores.append(
                    {
                        "src": SRAM // 2 + 96 * k + near,
                        "dst": HALF + 128 * k + far,
                        "len": next(lengths),
                        "sig_b": 32 + k % 32,
                    }
                )
    play(sim, dram, sram, loads, stores, "alignments")
    play(sim, dram, sram, [], SRAM_DUMP, "what LOAD wrote")


def test_page_edges_and_signs_of_strides(sim: FastSim) -> None:
    dram, sram = models(sim)
    loads, stores = [], []
    for edge in range(-8, 9):
        for length in (1, 7, 8, 9, 16, 65, 4096, 4105):
            loads.append({"src": 8192 + edge, "dst": (len(loads) * 40) % 20000, "len": length, "sig_a": 5})
            stores.append(
                {
                    "src": 32768 + len(stores) * 40,
                    "dst": HALF + 8192 + edge - length,
                    "len": length,
                    "sig_b": 33,
                }
            )
    walk = {"len": 13, "n1": 5, "n2": 3, "sig_b": 50}
    for s1, s2 in ((-13, 200), (40, -111), (-64, -333), (0, 0), (1024, -1024)):
        loads.append({**walk, "src": 30000, "src1": s1, "src2": s2, "dst": 24000, "dst1": -s2, "dst2": 29})
        stores.append(
            {**walk, "src": 50000, "src1": -s2, "src2": s1, "dst": HALF + 40000, "dst1": s1, "dst2": s2}
        )
    play(sim, dram, sram, loads, stores, "page edges")
    play(sim, dram, sram, [], SRAM_DUMP, "what LOAD wrote")


@pytest.mark.parametrize("seed", range(3))
def test_random(seed: int) -> None:
    run(CONFIG, 1000, seed=seed)


def test_nothing_to_copy_only_signals(sim: FastSim) -> None:
    dram, sram = models(sim)
    empty = [
        {"len": 0, "sig_a": 1, "sig_b": 32, "sig_c": 33},
        {"len": 4, "n1": 0, "sig_a": 2},
        {"len": 0xFFFFFFFF, "n2": 0, "src": 0xFFFFFFFF, "dst": 0xFFFFFFFF, "sig_b": 34},
    ]
    full = [{"src": 100, "dst": 200, "len": 50, "sig_a": 3, "sig_b": 35}]
    play(
        sim,
        dram,
        sram,
        empty + full + empty + empty,
        [{**t, "src": 7} for t in empty + full * 3 + empty],
        "empty",
    )
    assert not np.array_equal(sram[200:250], np.zeros(50)), (
        "the copy between the empty ones must have happened"
    )


@pytest.mark.parametrize("unit", ["load", "store"])
def test_refused_run_equals_golden(sim: FastSim, unit: str) -> None:
    """Code, value and everything copied before, for windows and addresses one byte off every edge."""
    rng = np.random.default_rng(3)
    far, near = ("src", "dst") if unit == "load" else ("dst", "src")
    base, size = HALF, 4096
    seen = set()
    for case in range(60):
        t = {"len": int(rng.integers(1, 60)), "n1": 4, "n2": 2, "pc": 77 + case, "sig_b": 40}
        t |= {
            far: base + int(rng.integers(300, 3000)),
            far + "1": 64,
            far + "2": 256,
            near: 4000,
            near + "1": 70,
            near + "2": 300,
        }
        length, kind = t["len"], case % 6
        if kind == 0:
            t[far] = base + size - length - 64 * 3 + 1  # the last run of the first row ends one byte late
        elif kind == 1:
            t |= {far: base + 64, far + "1": -65}  # run 1 starts one byte early
        elif kind == 2:
            t[near] = SRAM - length - 70 + 1
        elif kind == 3:
            t |= {near: 69, near + "1": -70}  # run 1 wraps around below zero
        elif kind == 4:
            t |= {"len": 5000}
        else:
            t |= {far: base, near: SRAM - length}  # run 1 leaves SRAM; run 0 just fits on both sides
        good = {far: HALF + 8, near: 9, "len": 100, "sig_b": 41, "pc": 5}  # queued before and after
        sram = np.zeros(SRAM, np.uint8)
        if unit == "store":
            sram[:] = rng.integers(0, 256, SRAM)
            window(sim, 0, DRAM_BYTES)
            sim.stall(0.0)
            sim.set("sram_stall", 0)
            sim.dram[:SRAM] = sram
            play(
                sim, sim.dram.copy(), sram.copy(), [{"src": 0, "dst": 0, "len": SRAM, "sig_b": 1}], [], "fill"
            )
        dram = sim.dram.copy()
        window(sim, base, size)
        random_timing(sim, rng, (1, 5, 20))
        view = Dram(dram, 0, (base, size))
        dma(sram, view, {**DEFAULTS, **good}, unit == "store")
        with pytest.raises(Fault) as fault:
            dma(sram, view, {**DEFAULTS, **t}, unit == "store")
        sim.collect(f"{unit}_signal")
        sim.push(f"{unit}_command", commands(LOAD if unit == "load" else STORE, [good, t, good]))
        sim.run(50_000, until="error")
        assert error_of(sim, unit) == (True, fault.value.code, t["pc"], fault.value.value), f"case {case}"
        seen.add(fault.value.code)
        assert clear(sim, unit) == [41]
        if unit == "load":  # compare the bytes written by storing them
            window(sim, 0, DRAM_BYTES)
            regions = [{"src": near_, "dst": near_, "len": 100, "sig_b": 40} for near_ in range(0, 8000, 100)]
            touched = np.zeros(SRAM, bool)
            copy(np.ones(1 << 17, bool), touched, good)
            before = sim.dram.copy()
            play_back = sim.run_streams(
                {"store_command": commands(STORE, regions)}, {"store_signal": len(regions)}
            )
            assert len(play_back["store_signal"]) == len(regions)
            assert np.array_equal(sim.dram[:8000][touched[:8000]], sram[:8000][touched[:8000]]), (
                f"case {case}"
            )
            sim.dram[:] = before
        else:
            assert np.array_equal(sim.dram, dram), f"case {case}"
    assert seen == {Error.DRAM_RANGE, Error.SRAM_RANGE}


@pytest.mark.parametrize("response,code", [("slverr", Error.AXI_SLVERR), ("decerr", Error.AXI_DECERR)])
@pytest.mark.parametrize("unit", ["load", "store"])
def test_bus_error_at_every_position(sim: FastSim, unit: str, response: str, code: Error) -> None:
    """A failing beat anywhere in a queue: reported with its burst, everything drained, earlier bursts done,
    then all well."""
    rng = np.random.default_rng(5)
    far, near = ("src", "dst") if unit == "load" else ("dst", "src")
    burst = CONFIG.axi_burst_beats * A
    lengths, queue, at = (3, 8, 200, 1, 40, 300, 8, 8, 8, 8, 90), [], HALF + 5
    for k, length in enumerate(lengths):
        queue.append({far: at, near: 1000 + 400 * k, "len": length, "sig_b": 32 + k, "pc": 10 + k})
        at += length + 2 * A  # so that no beat serves two of them
    for position in range(HALF, at - 2 * A, A):
        inside = [
            (k, t)
            for k, t in enumerate(queue)
            if t[far] - A < position < t[far] + t["len"]
            and position // A * A < t[far] + t["len"]
            and position // A * A + A > t[far]
        ]
        if not inside:
            continue
        k, t = inside[0]
        random_timing(sim, rng, (1, 2, 30))
        sim.inject_error(position, position + 1, response)
        sim.collect(f"{unit}_signal")
        before = sim.dram.copy()
        sim.push(f"{unit}_command", commands(LOAD if unit == "load" else STORE, queue))
        sim.run(20_000, until="error")
        value = max(t[far], position // burst * burst)
        assert error_of(sim, unit) == (True, code, 10 + k, value), f"position {position:#x}"
        assert clear(sim, unit) == [32 + j for j in range(k)], f"position {position:#x}"
        if unit == "store":
            allowed = np.zeros(DRAM_BYTES, bool)
            for q in queue:
                allowed[q[far] : q[far] + q["len"]] = True
            assert np.array_equal(sim.dram[~allowed], before[~allowed]), (
                f"position {position:#x}: wrote beside its runs"
            )
        sim.clear_errors()
        dram, sram = sim.dram.copy(), np.zeros(SRAM, np.uint8)
        play(sim, dram, sram, [{"src": 64, "dst": 4096, "len": 150, "sig_b": 1}], [], "after an error")
        play(sim, dram, sram, [], [{"src": 4096, "dst": 300, "len": 150, "sig_b": 33}], "after an error")


def test_failed_load_writes_nothing_of_it(sim: FastSim) -> None:
    dram, sram = models(sim)
    play(sim, dram, sram, [{"src": 0, "dst": 0, "len": 4096, "sig_b": 1}], [], "fill")
    sim.inject_error(HALF + 1024, HALF + 1025, "slverr")
    sim.push(
        "load_command",
        commands(
            LOAD,
            [
                {"src": HALF + 512, "dst": 0, "len": 512},
                {"src": HALF + 1024, "dst": 512, "len": 512},
                {"src": HALF, "dst": 1024, "len": 512},
            ],
        ),
    )
    sim.run(2000, until="error")
    clear(sim, "load")
    sim.clear_errors()
    copy(dram, sram, {"src": HALF + 512, "dst": 0, "len": 512})
    play(sim, dram, sram, [], [{"src": 0, "dst": 0, "len": 4096, "sig_b": 33}], "SRAM after the error")


@pytest.mark.parametrize("seed", range(2))
def test_stop_in_the_middle(sim: FastSim, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        random_timing(sim, rng, (1, 5, 60))
        for unit, ins, ends in (
            ("load", LOAD, ((0, HALF), (0, SRAM // 2))),
            ("store", STORE, ((SRAM // 2, SRAM), (HALF, 2 * HALF))),
        ):
            sim.collect(f"{unit}_signal")
            sim.push(f"{unit}_command", commands(ins, [random_transfer(rng, *ends) for _ in range(6)]))
        sim.run(int(rng.integers(1, 300)))
        assert not sim.get("error")
        sim.set("stop", 1)
        sim.run(2)
        issued = sim.stats()
        sim.run(20_000, until="idle")
        assert sim.get("idle"), f"seed {seed}: did not drain"
        now = sim.stats()
        assert now["ar"] - issued["ar"] <= 2 and now["aw"] - issued["aw"] <= 2, (
            "only addresses already valid may still go"
        )
        sim.check_protocol()
        sim.set("clear", 1)
        sim.reset(4)  # drops the commands that the harness still holds
        sim.set("clear", 0)
        sim.set("stop", 0)
        dram, sram = sim.dram.copy(), np.zeros(SRAM, np.uint8)
        play(
            sim, dram, sram, [{"src": 3, "dst": 77, "len": 300, "sig_b": 1}], [], f"seed {seed} after a stop"
        )
        play(
            sim,
            dram,
            sram,
            [],
            [{"src": 77, "dst": 600, "len": 300, "sig_b": 33}],
            f"seed {seed} after a stop",
        )


def test_programs_and_loads_share_the_engine(sim: FastSim) -> None:
    rng = np.random.default_rng(2)
    dram, sram = models(sim)
    for src, words in ((0, 1), (4, 1), (4092, 300), (8, 17), (12, 16), (0, 0), (100, 3)):
        random_timing(sim, rng, (1, 40))
        sim.push("boot", [src | words << 32])
        want = dram[src : src + 4 * words].view("<u4")
        load = {"src": 5000, "dst": 40, "len": 77, "sig_b": 9}
        copy(dram, sram, load)
        got = sim.run_streams(
            {"load_command": commands(LOAD, [load])},
            {"program": words, "load_signal": 1},
            stall={"program": 0.3},
            max_cycles=20_000,
        )
        assert got["program"].tolist() == want.tolist()
        assert len(sim.pop("program")) == 0
    play(sim, dram, sram, [], [{"src": 40, "dst": HALF, "len": 77, "sig_b": 33}], "load beside programs")
    sim.set("dram_size", 1000)
    sim.step(2)
    sim.push("boot", [996 | 2 << 32])
    sim.run(100, until="error")
    assert error_of(sim, "load") == (True, Error.DRAM_RANGE, 0, 996)


def test_load_signals_wait_until_writes_are_visible() -> None:
    """`busy` holds the signal back, unless two later writes were accepted (the port has room for two)."""
    sim = FastSim(CONFIG, 1 << 16, component=LoadEngine(CONFIG), name="load_engine", opt="-O1", latency=2)
    sim.set("dram_size", 1 << 16)
    sim.set("write_busy", 1)
    for stream in ("write_req", "signal"):
        sim.collect(stream)
    queue = [
        {"dst": k * W, "len": W, "sig_a": 3 * k + 1, "sig_b": 3 * k + 2, "sig_c": 3 * k + 3} for k in range(5)
    ]
    sim.push("command", commands(LOAD, queue[:2]))
    sim.run(200)
    assert len(sim.pop("write_req")) == 2 and not len(sim.pop("signal"))
    sim.push("command", commands(LOAD, queue[2:4]))
    sim.run(200)
    assert sim.pop("signal").tolist() == [1, 2, 3, 4, 5, 6]
    sim.set("write_busy", 0)
    sim.run(20)
    assert sim.pop("signal").tolist() == [7, 8, 9, 10, 11, 12]
    sim.stream_stall("write_req", 1.0)  # the port does not take the write at all
    sim.push("command", commands(LOAD, queue[4:]))
    sim.run(200)
    assert not len(sim.pop("signal")) and sim.get("busy")
    sim.stream_stall("write_req", 0.0)
    sim.run(20)
    assert sim.pop("signal").tolist() == [13, 14, 15] and not sim.get("busy")
    sim.close()


def test_cycles(sim: FastSim) -> None:
    assert latencies(CONFIG) == {"command_to_ar": 3, "r_to_sram": 1, "command_to_aw": 7, "command_to_w": 15}
    sim.timing(1)
    full = [
        ("load", 8, 0, 0),
        ("load", 4, 3, 3),
        ("load", 5, 1, 2),
        ("load", 32, 0, 4),
        ("load", 64, 5, 3),
        ("store", 8, 0, 0),
        ("store", 4, 3, 3),
        ("store", 5, 1, 2),
        ("store", 32, 0, 4),
        ("store", 64, 5, 3),
        ("store", 32, 2, 0),
    ]
    for unit, length, near, far in full:
        for runs in (1, 4):
            row = utilisation(sim, CONFIG, unit, length, near, far, runs)
            assert row["beats_per_cycle"] >= 0.99, row
    # A run in two SRAM words needs two accesses whatever its beats.
    for unit in ("load", "store"):
        assert 0.49 <= utilisation(sim, CONFIG, unit, 6, W - 3, 0)["beats_per_cycle"] <= 0.5


def test_the_harness_sees_a_wrong_byte(sim: FastSim) -> None:
    dram, sram = models(sim)
    dram[4000] ^= 1
    with pytest.raises(AssertionError, match="wrong bytes"):
        play(sim, dram, sram, [{"src": 3990, "dst": 0, "len": 20, "sig_b": 1}], [], "spoilt model")
    with pytest.raises((AssertionError, SimTimeout)):
        sim.set("stop", 1)
        sim.run(3)
        sim.run_streams(
            {"load_command": commands(LOAD, [{"len": 4, "sig_b": 1}])}, {"load_signal": 1}, max_cycles=500
        )
