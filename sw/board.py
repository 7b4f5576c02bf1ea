"""A tile on a board as a device: its registers and memory behind an `Access`, whatever carries it.

sw/uart.py carries it over a serial port, sw/mapped.py over the address space of a processor on the same chip.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from hw import csr_map
from hw.config import TileConfig
from hw.csr_map import offset
from hw.isa import ARGS

from .device import Run, TileError

ZERO_RUN = 64
"""Zeros of an image that are worth a request of their own."""
RUN_SECONDS = 600.0
"""Longest wait of `finish`. The tile's watchdog ends a program that stands still much earlier."""
WATCHDOG = 1 << 20
DONE, ERROR, ABORTED = (1 << f.lo for f in csr_map.BY_NAME["STATUS"].fields[1:4])
BUSY, DOORBELL, ABORT = 1, 1, 2
CLOCK_MASK = 0x000F_FFFF  # of CONFIG2: a board may run at another clock


class BoardError(RuntimeError):
    """The board does not answer, was reset, or is not the one that was asked for."""


class Access(Protocol):
    """Registers and memory of a board. BoardError when they are out of reach, and from then on at every call
    until `open`."""

    memory_bytes: int
    """Length of memory, from the tile's address 0 on; 0: not known."""

    def open(self) -> None:
        """Begin, or begin anew after a failure."""

    def read_registers(self, address: int, count: int) -> list[int]: ...

    def write_registers(self, writes: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Pairs of an address and the values from there on, in this order."""

    def read_memory(self, address: int, nbytes: int) -> np.ndarray: ...

    def write_memory(self, address: int, raw: np.ndarray) -> None: ...

    def zero_memory(self, address: int, nbytes: int) -> None: ...

    def close(self) -> None: ...


class BoardDevice:
    """The Device protocol (sw/device.py) over an Access.

    config must be the one that the board was built for. dram_bytes: what has to fit. A program that still
    runs from an earlier host is stopped. After BoardError the memory is in doubt: `attach` begins anew.
    """

    def __init__(self, config: TileConfig, access: Access, dram_bytes: int = 0, watchdog: int = WATCHDOG):
        self.config, self.access, self.watchdog = config, access, watchdog
        self._began, self._running, self._attached = 0.0, False, 0
        try:
            self._connect()
            if access.memory_bytes and dram_bytes > access.memory_bytes:
                raise MemoryError(f"{dram_bytes} bytes do not fit the board's {access.memory_bytes}")
        except BaseException:
            access.close()
            raise

    def _connect(self) -> None:
        self._running, self._attached = False, 0
        self.access.open()
        for name, want in csr_map.constants(self.config).items():
            mask = CLOCK_MASK if name == "CONFIG2" else 0xFFFFFFFF
            have = self.read(name)
            if have & mask != want & mask:
                raise BoardError(
                    f"the board is a different tile: {name} is {have:#x}, "
                    f"config {self.config.name} has {want:#x}"
                )
        if self.read("STATUS") & BUSY:
            self.write(CTRL=ABORT)
            self._wait(RUN_SECONDS)
        size = self.access.memory_bytes or 0xFFFFFFFF
        self.write(DRAM_BASE=0, DRAM_SIZE=size, WATCHDOG=self.watchdog, IRQ_STATUS=7)

    def read(self, register: str) -> int:
        return self.access.read_registers(offset(register), 1)[0]

    def write(self, **values: int) -> None:
        """Registers by name, in this order."""
        self.access.write_registers([(offset(name), [value]) for name, value in values.items()])

    def _range(self, address: int, nbytes: int) -> None:
        end = self.access.memory_bytes or self._attached
        if address < 0 or nbytes < 0 or address + nbytes > end:
            raise ValueError(
                f"{nbytes} bytes at {address:#x}: allowed is within {end} bytes of the board's DRAM"
            )

    def attach(self, dram: np.ndarray) -> None:
        if self.access.memory_bytes and len(dram) > self.access.memory_bytes:
            raise MemoryError(f"{len(dram)} bytes do not fit the board's {self.access.memory_bytes}")
        self._connect()
        for start, end, zero in runs(dram):
            if zero:
                self.access.zero_memory(start, end - start)
            else:
                self.access.write_memory(start, dram[start:end])
        self._attached = len(dram)

    def write_dram(self, address: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self._range(address, raw.size)
        self.access.write_memory(address, raw)

    def read_dram(self, address: int, nbytes: int) -> np.ndarray:
        self._range(address, nbytes)
        return self.access.read_memory(address, nbytes)

    def start(self, address: int, words: int, args: Sequence[int] = ()) -> None:
        """RuntimeError while a program that was started is not finished."""
        if self._running and self.read("STATUS") & BUSY:
            raise RuntimeError("a program runs: finish or abort it first")
        if len(args) > ARGS:
            raise ValueError(f"{len(args)} arguments: allowed is at most {ARGS}")
        self._running, self._began = True, time.perf_counter()
        writes: list[tuple[int, Sequence[int]]] = [(offset("PROG_ADDR"), [address, words])]
        if args:
            writes.append((offset("ARG0"), [int(a) & 0xFFFFFFFF for a in args]))
        self.access.write_registers([*writes, (offset("CTRL"), [DOORBELL])])

    def poll(self, cycles: int) -> bool:
        """Gives the tile about `cycles` of its cycles, at most 10 ms, when it is found at work."""
        if not self._running:
            raise RuntimeError("no program runs: start one first")
        if not self.read("STATUS") & BUSY:
            return True
        time.sleep(min(0.01, cycles / (1e6 * self.config.clock_mhz)))
        return False

    def _wait(self, seconds: float) -> int:
        """STATUS when the tile is idle. BoardError when it is not after so long."""
        end = time.monotonic() + seconds
        while (status := self.read("STATUS")) & BUSY:
            if time.monotonic() > end:
                raise BoardError(f"the tile has been at work for {seconds:g} s")
            time.sleep(0.0001)
        return status

    def finish(self, seconds: float = RUN_SECONDS) -> Run:
        """Wait for the end of the program; Run.seconds is by the host's clock. TileError as of the class.

        BoardError (the program runs on) after so many seconds.
        """
        if not self._running:
            raise RuntimeError("no program runs: start one first")
        status = self._wait(seconds)
        self._running = False
        self.write(IRQ_STATUS=7)
        if status & ERROR:
            raise TileError(*(self.read(name) for name in ("ERR_CODE", "ERR_PC", "ERR_VALUE", "UNITS")))
        base = csr_map.COUNTER_BASE
        halves = self.access.read_registers(base, 2 * len(csr_map.COUNTERS))
        counters = {
            c.name: halves[2 * k] | halves[2 * k + 1] << 32 for k, c in enumerate(csr_map.COUNTERS)
        }
        return Run(
            counters["CYCLES"], self.read("UNIT_CYCLES"), counters, time.perf_counter() - self._began
        )

    def abort(self) -> Run:
        """What it cost so far; that of the whole program, or its TileError, when it had ended before."""
        if self.read("STATUS") & BUSY:
            self.write(CTRL=ABORT)
        return self.finish()

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run:
        self.start(address, words, args)
        return self.finish()

    def close(self) -> None:
        """The tile goes on with what it does."""
        self.access.close()


def runs(image: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """(start, end, all zero) of pieces that cover an image; zeros in pieces of ZERO_RUN and more."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], (image == 0).astype(np.int8), [0]))))
    at = 0
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start >= ZERO_RUN:
            if at < start:
                yield at, start, False
            yield start, end, True
            at = end
    if at < len(image):
        yield at, len(image), False
