"""The Verilated tile under broken packets, abort, reset in a run, bad doorbells and corrupted programs.

After each the next program must run correctly, without a reset.
"""

import os

import numpy as np
import pytest

from hw.isa import LOAD, STORE, Error, Op, encode_seq
from sim.fastsim import SimTimeout
from sim.faulty import (
    AT,
    SRAM,
    WATCHDOG,
    abort,
    begin,
    check_good_run,
    device,
    good,
    image,
    put,
    status,
    store,
)
from sw.device import TileError

SEQ = encode_seq

# ------------------------------------------------------------ network


def flit(data: bytes = b"", head: bool = False, last: bool = False) -> int:
    return int.from_bytes(data.ljust(32, b"\0"), "little") | last << 256 | head << 257


def head(
    kind: int = 0,
    dst: int = 0,
    sem: int = 0,
    count: int = 0,
    addr: int = 0,
    length: int = 0,
    last: bool = False,
) -> int:
    """The head flit of a packet; the layout of docs/noc.md."""
    fields = ((dst, 2), (7, 2), (kind, 1), (sem, 1), (count, 2), (addr, 4), (length, 4))
    data = b"".join(v.to_bytes(n, "little") for v, n in fields)
    return flit(data, True, last)


# fmt: off
PACKETS = {"stray_data": ([flit(b"x"), flit(last=True)], None),
    "wrong_tile": ([head(dst=9, length=32), flit(last=True)], 0),
    "kind": ([head(kind=3, addr=64, last=True)], 64),
    "semaphore": ([head(kind=1, sem=64, count=1, last=True)], 64),
    "align": ([head(addr=8, length=32), flit(last=True)], 8),
    "length": ([head(addr=32, length=33), flit(), flit(last=True)], 32),
    "range": ([head(addr=SRAM - 32, length=64), flit(), flit(last=True)], SRAM - 32),
    "empty": ([head(addr=96, last=True)], 96),
    "early_last": ([head(addr=32, length=96), flit(), flit(last=True)], 32),
    "late_last": ([head(addr=32, length=32), flit(), flit(), flit(last=True)], 32),
    "signal_with_data": ([head(kind=1, sem=5, count=1), flit(last=True)], 5),
    "head_in_data": ([head(addr=64, length=64), head(kind=1, last=True)], 64)}
# fmt: on


@pytest.mark.parametrize("running", (True, False), ids=("running", "idle"))
@pytest.mark.parametrize("name", PACKETS)
def test_noc_protocol(name: str, running: bool) -> None:
    """A broken packet stops the program, or is reported by an idle tile; the next packet is served."""
    tile = device()
    flits, value = PACKETS[name]
    if running:
        tile.write("WATCHDOG", 0)
        tile.write("PROG_ADDR", AT)
        tile.write("PROG_WORDS", put(tile, image(LOAD, *SEQ(Op.WAIT, sem=1, count=1))))
        tile.write("CTRL", 1)
        tile.sim.step(500)
        assert status(tile)["busy"]
    tile.sim.noc_push(flits)
    tile.sim.run_until_irq(1000)
    assert tile.read("IRQ_STATUS") == 2 and (tile.read("ERR_CODE"), tile.read("ERR_PC")) == (
        Error.NOC_PROTOCOL,
        0,
    )
    if value is not None:
        assert tile.read("ERR_VALUE") == value
    tile.write("IRQ_STATUS", 2)
    assert status(tile) | {"loaded": 0} == {"busy": 0, "done": 0, "error": 1, "aborted": 0, "loaded": 0}
    # The next packet: data and a signal for a program that stores them.
    tile.write("WATCHDOG", WATCHDOG)
    tile.write("PROG_ADDR", AT)
    data = bytes(np.random.default_rng(3).integers(0, 256, 64, np.uint8))
    tile.write("PROG_WORDS", put(tile, image(STORE, *SEQ(Op.WAIT, sem=6, count=3), *store(src=0x800))))
    tile.write("CTRL", 1)
    tile.sim.step(40)
    tile.sim.noc_push(
        [head(addr=0x800, length=64, sem=6, count=3), flit(data[:32]), flit(data[32:], last=True)]
    )
    tile.sim.run_until_irq(3000)
    assert tile.read("IRQ_STATUS") == 1, [hex(tile.read(f"ERR_{x}")) for x in ("CODE", "PC", "VALUE")]
    tile.write("IRQ_STATUS", 1)
    assert tile.dram[0x170000:0x170040].tobytes() == data
    check_good_run(tile)


# ------------------------------------------------------------ abort, reset, doorbell


@pytest.mark.parametrize("part", range(3))
def test_abort(part: int) -> None:
    """At random cycles, from the program fetch to the last write."""
    tile = device()
    rng = np.random.default_rng(part)
    for seed in range(12):
        tile.sim.timing(int(rng.integers(1, 150)))
        begin(tile, seed, int(rng.integers(0, 4000)))
        if (events := abort(tile)) == 4:
            assert (tile.read("ERR_CODE"), tile.read("UNITS")) == (0, 0)
            assert status(tile) | {"loaded": 0} == {
                "busy": 0,
                "done": 0,
                "error": 0,
                "aborted": 1,
                "loaded": 0,
            }
        else:
            assert events == 1  # it was complete
        tile.sim.timing(40)
        check_good_run(tile)


def test_abort_at_once() -> None:
    """Abort right behind a doorbell that waits for the clearing after the run before: no run."""
    tile = device()
    for gap in range(0, 100, 7):
        begin(tile, gap % 12, 0)
        tile.sim.run_until_irq(100_000)
        tile.write("IRQ_STATUS", 1)
        tile.write("CTRL", 1)
        tile.sim.step(gap)
        assert abort(tile) == 4 and status(tile)["aborted"]
        check_good_run(tile)


@pytest.mark.parametrize("part", range(3))
def test_reset(part: int) -> None:
    """In the middle of a run, with bursts on the bus."""
    tile = device()
    rng = np.random.default_rng(10 + part)
    for seed in range(12):
        tile.sim.timing(int(rng.integers(1, 150)))
        tile.sim.stall(float(rng.choice([0, 0.5])))
        begin(tile, seed, int(rng.integers(0, 4000)))
        tile.sim.reset(16)
        assert not tile.sim.get("irq") and tile.read("STATUS") & 0xFF == 0 and tile.read("PROG_WORDS") == 0
        tile.sim.timing(40)
        tile.sim.stall(0.0)
        check_good_run(tile)


def test_doorbell_while_busy() -> None:
    """Ignored: the run goes on, ends once, and nothing runs after it."""
    tile = device()
    rng = np.random.default_rng(4)
    for seed in range(6):
        begin(tile, seed, int(rng.integers(0, 1500)))
        for _ in range(5):
            tile.write("CTRL", 1)
        tile.sim.run_until_irq(100_000)
        assert tile.read("IRQ_STATUS") == 1
        tile.write("IRQ_STATUS", 1)
        want = good(seed).want
        assert np.array_equal(tile.dram[: len(want)], want)
        tile.sim.step(3000)
        assert not tile.sim.get("irq") and not status(tile)["busy"]


def test_doorbell_at_once() -> None:
    """Rung in the cycle of the interrupt, while the units are cleared: the run comes."""
    tile = device()
    for gap in range(0, 120, 3):
        begin(tile, gap % 12, 0)
        tile.sim.run_until_irq(100_000)
        tile.sim.step(gap)
        tile.write("IRQ_STATUS", 1)
        check_good_run(tile)


def test_interrupt_mask() -> None:
    """IRQ_ENABLE hides events, IRQ_STATUS still has them."""
    tile = device()
    tile.write("IRQ_ENABLE", 2)
    begin(tile, 1, 30_000)
    assert not tile.sim.get("irq") and tile.read("IRQ_STATUS") == 1
    tile.write("IRQ_ENABLE", 7)
    tile.sim.step(2)
    assert tile.sim.get("irq")
    tile.write("IRQ_STATUS", 7)
    check_good_run(tile)


# ------------------------------------------------------------ anything at all


@pytest.mark.parametrize("seed", range(int(os.environ.get("SOAK", 40))))
def test_corrupted_program(seed: int) -> None:
    """Random bits of a program are wrong: it ends or can be aborted, and touches only its window."""
    tile = device()
    rng = np.random.default_rng(1000 + seed)
    program = good(seed % 12).program
    words = program.image.copy()
    for at in rng.integers(5, len(words), int(rng.integers(1, 4))):
        words[at] ^= 1 << int(rng.integers(32))
    tile.attach(program.dram)
    put(tile, words, 0)
    guard = len(program.dram) + 4096
    tile.dram[guard - 4096 :] = 0x77
    tile.write("DRAM_SIZE", guard - 4096)
    try:
        tile.run(0, len(words), program.args, max_cycles=60_000)
    except TileError as error:
        assert error.code != Error.NONE
    except SimTimeout:  # a loop without end
        assert abort(tile) == 4
    assert (tile.dram[guard - 4096 :] == 0x77).all()
    check_good_run(tile)
