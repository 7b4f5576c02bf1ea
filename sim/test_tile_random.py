"""Random programs on the Verilated tile leave the same bytes in DRAM as on the instruction-level model.

Timing is random, registers and memories power up random. SOAK=n runs n seeds for each config, not a few.
"""

import os
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golden.machine import Machine
from hw.config import BASE, ECP5, TINY, TileConfig
from sim.tile import RtlDevice
from sw.random_programs import RandomProgram, random_program

ODD = TINY.replace(
    name="odd",
    columns=4,
    psum_depth=32,
    sram_banks=2,
    sram_bytes=32 * 1024,
    axi_data_bits=32,
    axi_id_bits=1,
    axi_outstanding=1,
    axi_burst_beats=1,
)
"""Two banks, and a narrow bus with single beats, one at a time."""
WIDE = TINY.replace(
    name="wide",
    columns=16,
    psum_depth=128,
    sram_banks=8,
    sram_bytes=128 * 1024,
    axi_data_bits=512,
    axi_burst_beats=64,
    axi_outstanding=16,
)
"""SRAM words of two blocks. Takes minutes to build: only with SOAK."""
CONFIGS = {c.name: c for c in (TINY, ODD, ECP5, BASE, WIDE)}
SEEDS = {"tiny": 24, "odd": 6, "ecp5": 8, "base": 12, "wide": 0}
POWER_UP = ("tiny", "odd")
"""Configs whose registers and memories power up random; the others share their build with other tests."""
DRAM_BYTES = 4 << 20
STALLS = (
    0.0,
    0.1,
    0.5,
    (0.3, 40),
    {"r": 0.5, "b": (0.5, 20)},
    {"ar": 0.8, "w": 0.5},
    {"aw": 0.9, "r": (0.2, 100)},
)
"""A fraction for all AXI channels, (fraction, cycles per stall), or by channel."""


@cache
def device(config: TileConfig) -> RtlDevice:
    """One tile per config, used by all tests: what a program leaves behind must not matter to the next."""
    return RtlDevice(
        config, dram_bytes=DRAM_BYTES, random_init=config.name in POWER_UP, seed=7, watchdog=20_000
    )


def draw_timing(tile: RtlDevice, rng: np.random.Generator) -> str:
    """Random latencies, stalls, depth and refresh of the DRAM; their description."""
    most = 200 if tile.config.axi_outstanding > 1 else 12  # one burst at a time takes its time
    read, write = (int(x) for x in rng.integers(1, most + 1, 2))
    stall = STALLS[int(rng.integers(len(STALLS)))]
    outstanding = int(rng.choice([1, 2, 8, 64]))
    refresh = (int(rng.integers(200, 1000)), int(rng.integers(1, 150))) if rng.random() < 0.3 else (0, 0)
    tile.sim.timing(read, write, outstanding, refresh)
    tile.sim.stall(stall)
    return f"latency {read} and {write}, stall {stall}, outstanding {outstanding}, refresh {refresh}"


def model_of(config: TileConfig, program: RandomProgram) -> tuple[np.ndarray, Counter]:
    """DRAM and counters after the program on the model."""
    machine = Machine(config, program.dram.copy())
    machine.run(0, len(program.image), program.args)
    return machine.dram, machine.counters


def check(tile: RtlDevice, program: RandomProgram, want: np.ndarray, counters: Counter, what: str) -> None:
    """Run the program on a tile; all DRAM and the work counted equal the model's."""
    tile.attach(program.dram)
    tile.sim.dram[len(program.dram) :] = 0x5A
    run = tile.run(0, len(program.image), program.args, max_cycles=4_000_000)
    got = tile.dram[: len(want)]
    if not np.array_equal(got, want):
        at = int(np.flatnonzero(got != want)[0])
        pytest.fail(
            f"{what}: DRAM byte {at:#x}: RTL {got[at]:#04x}, golden {want[at]:#04x}; "
            f"{int((got != want).sum())} bytes differ"
        )
    assert (tile.dram[len(want) :] == 0x5A).all(), f"{what}: wrote outside of its DRAM"
    names = {"MACS": "macs", "BLOCKS": "blocks", "ELEMENTS": "elements"}
    assert {n: run.counters[n] for n in names} == {n: counters[m] for n, m in names.items()}, what
    assert tile.sim.stats()["w_bytes"] == counters["write_bytes"], what


def run_seed(tile: RtlDevice, seed: int, steps: int = 40) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(tile.config, rng, steps)
    what = f"{tile.config.name}, seed {seed}, {steps} steps, {draw_timing(tile, rng)}"
    check(tile, program, *model_of(tile.config, program), what)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_model(name: str) -> None:
    count = int(os.environ.get("SOAK", SEEDS[name]))
    if not count:
        pytest.skip("only with SOAK")
    for seed in range(count):
        run_seed(device(CONFIGS[name]), seed, 25 if name == "odd" else 40)


@settings(
    max_examples=int(os.environ.get("SOAK", 20)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(1 << 20, 1 << 21), steps=st.integers(1, 120))
def test_long_and_short(seed: int, steps: int) -> None:
    """Hypothesis shrinks a failing program to fewer steps."""
    run_seed(device(TINY), seed, steps)


@pytest.mark.parametrize("seed", range(3))
def test_timing_does_not_matter(seed: int) -> None:
    """The same program under eight timings, on tiles that powered up differently: identical memory."""
    program = random_program(TINY, np.random.default_rng(100 + seed), 50)
    want, counters = model_of(TINY, program)
    for power_up in range(2):
        tile = RtlDevice(TINY, dram_bytes=DRAM_BYTES, random_init=True, seed=1000 + power_up, watchdog=20_000)
        for timing in range(4):
            what = draw_timing(tile, np.random.default_rng(10 * power_up + timing))
            check(tile, program, want, counters, f"seed {seed}, power-up {power_up}, {what}")
        tile.close()


def test_repeatable() -> None:
    """Equal seeds give equal runs, cycle for cycle."""
    cycles = []
    program = random_program(TINY, np.random.default_rng(9), 30)
    for _ in range(2):
        tile = RtlDevice(TINY, dram_bytes=DRAM_BYTES, random_init=True, seed=3, stall=0.3)
        check(tile, program, *model_of(TINY, program), "repeat")
        cycles.append(tile.sim.cycles)
        tile.close()
    assert cycles[0] == cycles[1]
