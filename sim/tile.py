"""The RTL as a device: the exported tile on the fast simulator, run through its registers; and its
comparison with the model."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from golden.machine import Machine
from hw import csr_map
from hw.config import TileConfig
from sim.fastsim import FastSim, SimTimeout
from sim.trace import Trace
from sw.layout import DramImage
from sw.device import Run, TileError


class RtlDevice:
    """The Verilated tile of a config with its DRAM model.

    latency, write_latency in cycles, stall a fraction of cycles per AXI channel, bandwidth in beats per cycle
    and direction, refresh (period, cycles): as of FastSim. None of them changes a bit of the results.

    trace: record what the units do, at most trace_limit intervals (24 bytes each), stalls of one cause that
    are at most trace_gap cycles apart as one interval; `take_trace` hands it out. library: as of FastSim.

    `run` is `start` and `finish`. Between these the host may read `dram` and go on with `poll`:

        device.start(address, words, args)
        while not device.poll(10_000):
            ...  # look at device.dram
        cost = device.finish()
    """

    def __init__(
        self,
        config: TileConfig,
        *,
        dram_bytes: int = 32 << 20,
        latency: int = 40,
        stall: float = 0.0,
        seed: int = 1,
        waves: str | Path | None = None,
        random_init: bool = False,
        watchdog: int = 1 << 20,
        write_latency: int | None = None,
        bandwidth: float = 1.0,
        refresh: tuple[int, int] = (0, 0),
        trace: bool = False,
        trace_limit: int = 1_000_000,
        trace_gap: int = 16,
        library: Path | None = None,
    ):
        self.config = config
        self.sim = FastSim(
            config,
            dram_bytes,
            latency,
            stall,
            seed,
            waves,
            write_latency=write_latency,
            bandwidth=bandwidth,
            refresh=refresh,
            random_init=random_init,
            trace=trace,
            library=library,
        )
        self._seconds, self._first, self._busy = 0.0, 0, False
        self.sim.reset()
        self.write("WATCHDOG", watchdog)
        if trace:
            self.sim.trace_start(trace_limit, trace_gap)

    @property
    def dram(self) -> np.ndarray:
        """All of the memory, also while the tile works: what it has written so far."""
        return self.sim.dram

    def attach(self, dram: np.ndarray) -> None:
        self.sim.dram[: len(dram)] = dram

    def write_dram(self, address: int, data: np.ndarray) -> None:
        """Copy an array of any type to memory. ValueError when it does not fit."""
        self.sim.write(address, data)

    def read_dram(self, address: int, nbytes: int) -> np.ndarray:
        """A copy of memory, uint8. ValueError beyond its end."""
        return np.frombuffer(self.sim.read(address, nbytes), np.uint8)

    def write(self, register: str, value: int) -> None:
        self.sim.csr_write(csr_map.offset(register), value)

    def read(self, register: str) -> int:
        return self.sim.csr_read(csr_map.offset(register))

    def counter(self, name: str) -> int:
        low = self.read(f"{name}_LO")
        return self.read(f"{name}_HI") << 32 | low

    def run(self, address: int, words: int, args: Sequence[int] = (), max_cycles: int = 20_000_000) -> Run:
        """Ring the doorbell and wait for the interrupt. TileError when the tile reports an error."""
        self.start(address, words, args)
        return self.finish(max_cycles)

    def start(self, address: int, words: int, args: Sequence[int] = ()) -> None:
        """Ring the doorbell. RuntimeError while a program that was started is not finished."""
        if self._busy and self.read("STATUS") & 1:  # not busy after a reset of the simulator
            raise RuntimeError("a program runs: finish or abort it first")
        self.write("PROG_ADDR", address)
        self.write("PROG_WORDS", words)
        for i, a in enumerate(args):
            self.write(f"ARG{i}", a)
        self.sim.stats(clear=True)
        begin, self._first, self._busy = time.process_time(), self.sim.cycles, True
        self.write("CTRL", 1)
        self._seconds = time.process_time() - begin

    def poll(self, cycles: int) -> bool:
        """Let up to so many cycles pass; True when the program has ended, well or not (see `finish`)."""
        if not self._busy:
            raise RuntimeError("no program runs: start one first")
        begin = time.process_time()
        self.sim.run(cycles, until="irq")
        self._seconds += time.process_time() - begin
        return bool(self.sim.get("irq"))

    def finish(self, max_cycles: int = 20_000_000) -> Run:
        """Wait for the end of the program that was started, and what it cost.

        TileError when the tile reports an error; SimTimeout (the program runs on) after max_cycles.
        """
        if not self.poll(max_cycles):
            raise SimTimeout(
                f"no interrupt in {max_cycles} cycles (seed {self.sim.seed}); {self.sim.stats()}"
            )
        cycles = self.sim.cycles - self._first
        self._busy = False
        status = self.read("IRQ_STATUS")
        self.write("IRQ_STATUS", status)
        if status & 2:
            raise TileError(
                self.read("ERR_CODE"), self.read("ERR_PC"), self.read("ERR_VALUE"), self.read("UNITS")
            )
        self.sim.check_protocol()
        counters = {c.name: self.counter(c.name) for c in csr_map.COUNTERS}
        return Run(
            counters["CYCLES"], self.read("UNIT_CYCLES"), counters | {"SIMULATED": cycles}, self._seconds
        )

    def abort(self, max_cycles: int = 20_000_000) -> Run:
        """Stop the program that was started: transfers on the bus end, the rest does not happen.

        What it cost so far; that of the whole program, or its TileError, when it had ended before. The tile
        is ready for the next `start`; DRAM and SRAM keep what was written.
        """
        if not self.poll(0):
            self.write("CTRL", 2)
        return self.finish(max_cycles)

    def take_trace(self) -> Trace:
        """The intervals recorded since the last call."""
        return self.sim.trace_take()

    def close(self) -> None:
        self.sim.close()


def first_difference(
    rtl: np.ndarray, model: Machine, image: DramImage, labels: Mapping[int, str]
) -> str | None:
    """None if every byte of DRAM is equal; else what differs first.

    Names the tensor, the element, the instruction that wrote it and both values.
    """
    n = len(model.dram)
    if np.array_equal(rtl[:n], model.dram):
        return None
    at = int(np.flatnonzero(rtl[:n] != model.dram)[0])
    word = at & ~3
    event = model.writer_of("dram", at) if model.events is not None else None
    by = "not written by the program"
    if event:
        label = labels.get(event.pc, event.label) or "no label"
        by = f"written by {event.thread} instruction at word {event.pc} ({label})"
    count = int((rtl[:n] != model.dram).sum())
    got, want = (dram[word : word + 4].view(np.float32)[0] for dram in (rtl, model.dram))
    return (
        f"DRAM byte {at:#x} ({image.where(at)}), {by}: RTL {rtl[at]:#04x}, golden {model.dram[at]:#04x} "
        f"(float32 {got!r} and {want!r}); {count} bytes differ in all"
    )
