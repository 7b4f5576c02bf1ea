"""The RTL as a device: the exported tile on the fast simulator, run through its registers; and its
comparison with the model."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from golden.machine import Machine
from hw import csr_map
from hw.config import TileConfig
from hw.isa import Error
from sim.fastsim import FastSim
from sw.layout import DramImage
from sw.run import Run


class TileError(RuntimeError):
    """The tile stopped with an error; code, pc (word index), value as in the registers ERR_*."""

    def __init__(self, code: int, pc: int, value: int, units: int = 0):
        super().__init__(f"tile stopped: {Error(code).name} at word {pc}, value {value:#x}, units {units:#x}")
        self.code, self.pc, self.value = Error(code), pc, value


class RtlDevice:
    """The Verilated tile of a config with its DRAM model.

    Latency in cycles, stall a fraction of cycles per AXI channel.
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
    ):
        self.config = config
        self.sim = FastSim(config, dram_bytes, latency, stall, seed, waves, random_init=random_init)
        self.sim.reset()
        self.write("WATCHDOG", watchdog)

    @property
    def dram(self) -> np.ndarray:
        return self.sim.dram

    def attach(self, dram: np.ndarray) -> None:
        self.sim.dram[: len(dram)] = dram

    def write(self, register: str, value: int) -> None:
        self.sim.csr_write(csr_map.offset(register), value)

    def read(self, register: str) -> int:
        return self.sim.csr_read(csr_map.offset(register))

    def counter(self, name: str) -> int:
        low = self.read(f"{name}_LO")
        return self.read(f"{name}_HI") << 32 | low

    def run(self, address: int, words: int, args: Sequence[int] = (), max_cycles: int = 20_000_000) -> Run:
        """Ring the doorbell and wait for the interrupt. TileError when the tile reports an error."""
        self.write("PROG_ADDR", address)
        self.write("PROG_WORDS", words)
        for i, a in enumerate(args):
            self.write(f"ARG{i}", a)
        self.sim.stats(clear=True)
        start, first = time.process_time(), self.sim.cycles
        self.write("CTRL", 1)
        self.sim.run_until_irq(max_cycles)
        seconds, cycles = time.process_time() - start, self.sim.cycles - first
        status = self.read("IRQ_STATUS")
        self.write("IRQ_STATUS", status)
        if status & 2:
            raise TileError(
                self.read("ERR_CODE"), self.read("ERR_PC"), self.read("ERR_VALUE"), self.read("UNITS")
            )
        self.sim.check_protocol()
        counters = {c.name: self.counter(c.name) for c in csr_map.COUNTERS}
        return Run(counters["CYCLES"], self.read("UNIT_CYCLES"), counters | {"SIMULATED": cycles}, seconds)

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
