"""Devices that run tile programs: what the runtime asks of them, and the golden model as one of them.

The Verilated RTL is sim.tile.RtlDevice; boards follow the same protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from golden.machine import Machine, MachineError
from hw.config import TileConfig
from hw.isa import Error


class TileError(RuntimeError):
    """The tile stopped with an error; code, pc (word index), value as in the registers ERR_*."""

    def __init__(self, code: int, pc: int, value: int, units: int = 0):
        super().__init__(f"tile stopped: {Error(code).name} at word {pc}, value {value:#x}, units {units:#x}")
        self.code, self.pc, self.value = Error(code), pc, value


@dataclass
class Run:
    """What a run of a program cost; zero where a device does not count it.

    counters: those of hw/csr_map.py by name (RTL); READ_BYTES and WRITE_BYTES on a device without a clock.
    """

    cycles: int = 0
    unit_cycles: int = 0
    """From the issue of the first unit instruction to the completion of the last."""
    counters: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Processor time of the simulation."""


def moved(run: Run, config: TileConfig) -> tuple[int, int]:
    """Bytes that a run read and wrote over the DRAM port; whole beats where the device counts beats."""
    c = run.counters
    if "READ_BEATS" in c:
        return c["READ_BEATS"] * config.axi_bytes, c["WRITE_BEATS"] * config.axi_bytes
    return c.get("READ_BYTES", 0), c.get("WRITE_BYTES", 0)


class Device(Protocol):
    """Something that runs tile programs in a DRAM of its own.

    One program at a time: start, then poll until it returns True, then finish; run does all three. words = 0
    runs the program that the tile has already. The host may read and write DRAM also while a program runs.
    """

    config: TileConfig

    def attach(self, dram: np.ndarray) -> None:
        """Copy a DRAM image (uint8, from address 0) to the device."""

    def write_dram(self, address: int, data: np.ndarray) -> None:
        """Copy an array of any type to DRAM. ValueError when it does not fit."""

    def read_dram(self, address: int, nbytes: int) -> np.ndarray:
        """A copy of DRAM, uint8. ValueError beyond its end."""

    def start(self, address: int, words: int, args: Sequence[int] = ()) -> None:
        """Ring the doorbell for the program of `words` words at `address`."""

    def poll(self, cycles: int) -> bool:
        """Let the device work, about `cycles` cycles where that means something. True: the program ended."""

    def finish(self) -> Run:
        """Wait for the end of the program that was started. Raises when the tile stopped with an error."""

    def abort(self) -> Run:
        """Stop the program that was started; what it cost until now. The next one must bring its words."""

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run: ...

    def close(self) -> None: ...


class MachineDevice:
    """The golden instruction-level model as a device. It has no clock: runs report bytes, not cycles."""

    def __init__(self, config: TileConfig, trace: bool = False, schedule: int | None = None):
        """schedule: seed of a random order of threads and units, to show races."""
        self.config, self.trace, self.schedule = config, trace, schedule
        self.machine: Machine | None = None
        self._rng: np.random.Generator | None = None

    @property
    def dram(self) -> np.ndarray:
        return self._attached().dram

    def _attached(self) -> Machine:
        if self.machine is None:
            raise RuntimeError("no DRAM image: allowed after attach")
        return self.machine

    def attach(self, dram: np.ndarray) -> None:
        self.machine = Machine(self.config, dram.copy(), trace=self.trace)

    def write_dram(self, address: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        dram_slice(self.dram, address, raw.size)[:] = raw

    def read_dram(self, address: int, nbytes: int) -> np.ndarray:
        return dram_slice(self.dram, address, nbytes).copy()

    def start(self, address: int, words: int, args: Sequence[int] = ()) -> None:
        self._rng = None if self.schedule is None else np.random.default_rng(self.schedule)
        self._attached().start(address, words, args, deferred=self._rng is not None)

    def poll(self, cycles: int) -> bool:
        machine = self._attached()
        for _ in range(1 if self._rng is None else max(1, cycles)):
            if not machine.advance(self._rng):
                return True
        return False

    def finish(self) -> Run:
        """MachineError as Machine.run raises it."""
        machine = self._attached()
        while not self.poll(1):
            pass
        if not machine.done:
            raise MachineError(Error.WATCHDOG, 0, 0, "every thread waits")
        return self.abort()

    def abort(self) -> Run:
        c = self._attached().counters
        return Run(
            counters={"READ_BYTES": c["read_bytes"], "WRITE_BYTES": c["write_bytes"], "MACS": c["macs"]}
        )

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run:
        self.start(address, words, args)
        return self.finish()

    def close(self) -> None:
        self.machine = None


def dram_slice(dram: np.ndarray, address: int, nbytes: int) -> np.ndarray:
    """The view of nbytes at address. ValueError beyond the end."""
    if address < 0 or nbytes < 0 or address + nbytes > len(dram):
        raise ValueError(f"{nbytes} bytes at {address:#x}: allowed is within {len(dram)} bytes of DRAM")
    return dram[address : address + nbytes]
