"""A tile for tests of what goes wrong: good programs, programs to break, and what must hold afterwards.

`device` is one tile for all tests: that is what shows that it recovers.
"""

from functools import cache
from itertools import count
from typing import NamedTuple

import numpy as np
import pytest

from golden.machine import Machine
from hw.config import TINY
from hw.isa import MATMUL_FLAGS, VECTOR_FLAGS, VECTOR_FLAGS2, Error, Op, encode_seq, encode_unit, pack
from sim.tile import RtlDevice
from sw.device import TileError
from sw.random_programs import RandomProgram, random_program

DRAM_BYTES = 2 << 20
SRAM = TINY.sram_bytes
LANE = TINY.lane_bytes
WATCHDOG = 2000
AT = 0x180000
"""DRAM address of the programs with errors; the good ones are below 0x140000."""
PC = 7
"""Word index of the instruction that fails: 5 entry words and an LI come before."""


@cache
def _device() -> RtlDevice:
    return RtlDevice(TINY, dram_bytes=DRAM_BYTES, random_init=True, seed=5, watchdog=WATCHDOG)


def device() -> RtlDevice:
    """The tile; memory and registers as a test expects them, whatever a failed one left behind."""
    tile = _device()
    tile.sim.timing(40)
    tile.sim.stall(0.0)
    tile.sim.clear_errors()
    if status(tile)["busy"] or tile.sim.get("irq"):
        tile.sim.reset(16)
    tile.write("WATCHDOG", WATCHDOG)
    return tile


class Good(NamedTuple):
    """A program, the DRAM and the MACs that it must give."""

    program: RandomProgram
    want: np.ndarray
    macs: int


@cache
def good(seed: int) -> Good:
    """A program that uses every unit, and the DRAM that it leaves."""
    program = random_program(TINY, np.random.default_rng(seed), 14)
    machine = Machine(TINY, program.dram.copy())
    machine.run(0, len(program.image), program.args)
    return Good(program, machine.dram, machine.counters["macs"])


_numbers = count()


def check_good_run(tile: RtlDevice) -> None:
    """The tile is ready, and a program (another one each time) runs as ever."""
    program, want, macs = good(next(_numbers) % 12)
    tile.sim.clear_errors()
    for register, value in (
        ("DRAM_BASE", 0),
        ("DRAM_SIZE", 0xFFFFFFFF),
        ("WATCHDOG", WATCHDOG * 10),
        ("TILE_ID", 0),
    ):
        tile.write(register, value)
    tile.attach(program.dram)
    run = tile.run(0, len(program.image), program.args, max_cycles=1_000_000)
    assert np.array_equal(tile.dram[: len(want)], want)
    assert run.counters["MACS"] == macs and tile.read("ERR_CODE") == 0
    assert status(tile) == {"busy": 0, "done": 1, "error": 0, "aborted": 0, "loaded": 1}
    tile.write("WATCHDOG", WATCHDOG)


def status(tile: RtlDevice) -> dict[str, int]:
    word = tile.read("STATUS")
    return {name: word >> k & 1 for k, name in enumerate(("busy", "done", "error", "aborted", "loaded"))}


def put(tile: RtlDevice, words: "list[int] | np.ndarray", at: int = AT) -> int:
    """Program words into DRAM; their number."""
    image = np.asarray(words, np.uint32)
    tile.dram[at : at + image.nbytes] = image.view(np.uint8)
    return len(image)


def expect(
    tile: RtlDevice,
    words: "list[int] | np.ndarray",
    code: Error,
    pc: int | None,
    value: int | None,
    at: int = AT,
) -> TileError:
    """Running the words raises the error, sets the interrupt and the status; then everything works."""
    size = put(tile, words, at)
    with pytest.raises(TileError) as info:
        tile.run(at, size, max_cycles=300_000)
    error = info.value
    assert error.code == code, error
    assert pc is None or error.pc == pc, error
    assert value is None or error.value == value & 0xFFFFFFFF, error
    tile.sim.step(4)
    assert not tile.sim.get("irq")
    seen = status(tile)
    assert (seen["busy"], seen["done"], seen["error"], seen["aborted"]) == (0, 0, 1, 0)
    assert tile.read("UNITS") == 0
    check_good_run(tile)
    return error


def image(thread: int, *words: int) -> list[int]:
    """A program of one thread: an LI, then the words, then HALT."""
    entries = [0] * 5
    entries[thread] = 5
    return [*entries, *encode_seq(Op.LI, 77, rd=1), *words, *encode_seq(Op.HALT)]


def mm(**changes: int) -> list[int]:
    """A MATMUL that is legal without the changes (operands or flag fields; None: operand absent)."""
    flags = {"first": 1, "last": 1, "max": 1, "rows": 2}
    operands = {
        "n": 8,
        "k": 2,
        "data": 0,
        "data_pass": 256,
        "scale": 1024,
        "scale_pass": 8,
        "stat": 2048,
        "stat_scale": 4096,
        "stat_pass": 64,
        "stat_row": 32,
        "out": 8192,
        "max_out": 16384,
    }
    for name, value in changes.items():
        (flags if name in {f.name for f in MATMUL_FLAGS} else operands)[name] = value
    return encode_unit(Op.MATMUL, {"flags": pack(MATMUL_FLAGS, **flags), **operands})


def vec(**changes: int) -> list[int]:
    """A VECTOR that is legal without the changes."""
    flags, flags2 = {"x1": 2, "x2": 2}, {"out_mode": 1}
    operands = {"n0": 9, "a": 0, "b": 512, "d": 1024, "out": 2048}
    for name, value in changes.items():
        for table, names in ((flags, VECTOR_FLAGS), (flags2, VECTOR_FLAGS2)):
            if name in {f.name for f in names}:
                table[name] = value
                break
        else:
            operands[name] = value
    return encode_unit(
        Op.VECTOR, {"flags": pack(VECTOR_FLAGS, **flags), "flags2": pack(VECTOR_FLAGS2, **flags2), **operands}
    )


def load(**operands: int) -> list[int]:
    return encode_unit(Op.LOAD, {"src": 0x1000, "dst": 0, "len": 64} | operands)


def store(**operands: int) -> list[int]:
    return encode_unit(Op.STORE, {"src": 0, "dst": 0x170000, "len": 64} | operands)


def send(**operands: int) -> list[int]:
    return encode_unit(Op.SEND, {"tile": 1, "src": 0, "dst": 0, "len": 64, "sem": 1} | operands)


def begin(tile: RtlDevice, seed: int, cycles: int) -> None:
    """Start a good program and stop looking after some cycles."""
    program = good(seed).program
    tile.attach(program.dram)
    tile.write("PROG_ADDR", 0)
    tile.write("PROG_WORDS", len(program.image))
    for i, a in enumerate(program.args):
        tile.write(f"ARG{i}", a)
    tile.write("CTRL", 1)
    tile.sim.step(cycles)


def abort(tile: RtlDevice) -> int:
    """Abort what runs, if it runs; which IRQ_STATUS bits that gave."""
    tile.write("CTRL", 2)
    tile.sim.run_until_irq(10_000)
    events = tile.read("IRQ_STATUS")
    tile.write("IRQ_STATUS", events)
    for _ in range(100):
        if not status(tile)["busy"]:
            return events
    raise AssertionError("busy after the interrupt")
