"""The DMA engines on cocotbext-axi memory: queued descriptors, stalls, bus errors; against numpy."""

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiReadBus, AxiWriteBus

from hw.isa import Error
from sim.dma_soak import DRAM_BYTES, HALF, LOAD, STORE, commands, copy, random_transfer, signals_of
from tb.axi import AxiResp, Memory
from tb.bench import Bench, MemoryPorts, Source
from tb.designs import CONFIG

SRAM = CONFIG.sram_bytes


class DmaBench(Bench):
    """Both engines, DRAM and SRAM with random contents."""

    def __init__(self, dut: Any, seed: int, stall: float):
        super().__init__(dut, seed)
        self.random = np.random.default_rng(seed)
        for engine in ("load", "store"):
            getattr(dut, f"{engine}_dram_base").value = 0
            getattr(dut, f"{engine}_dram_size").value = 0xFFFFFFFF
            getattr(dut, f"{engine}_stop").value = 0
        dut.load_boot_valid.value = 0
        dut.load_program_ready.value = 0
        self.dram = Memory(
            DRAM_BYTES,
            self.rng,
            AxiReadBus.from_prefix(dut, "load_m_axi"),
            AxiWriteBus.from_prefix(dut, "store_m_axi"),
            dut.clk,
            dut.rst,
        )
        self.dram.data[:] = self.random.integers(0, 256, DRAM_BYTES, np.uint8).tobytes()
        self.sram = MemoryPorts(
            self,
            bytearray(self.random.integers(0, 256, SRAM, np.uint8).tobytes()),
            CONFIG.word_bytes,
            ("store_read",),
            ("load_write",),
            stall,
        )
        self.dram.stall(stall)
        self.commands: dict[str, Source] = {e: self.source(f"{e}_command") for e in ("load", "store")}
        self.signals = {e: self.sink(f"{e}_signal", stall) for e in ("load", "store")}

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of DRAM and SRAM as they are now."""
        return np.frombuffer(bytes(self.dram.data), np.uint8).copy(), np.frombuffer(
            bytes(self.sram.memory), np.uint8
        ).copy()

    def compare(self, dram: np.ndarray, sram: np.ndarray, what: str) -> None:
        for name, want, got in zip(("DRAM", "SRAM"), (dram, sram), self.images()):
            wrong = np.flatnonzero(want != got)
            assert not len(wrong), f"{what}: {len(wrong)} wrong bytes in {name}, first at {wrong[0]:#x}"

    async def play(self, loads: list[dict[str, int]], stores: list[dict[str, int]], what: str) -> None:
        """Queue everything at once, wait for all signals, compare signals and every byte."""
        dram, sram = self.images()
        for s in self.signals.values():
            s.items.clear()
        self.commands["load"].push(commands(LOAD, loads))
        self.commands["store"].push(commands(STORE, stores))
        for t in loads:
            copy(dram, sram, t)
        for t in stores:
            copy(sram, dram, t)
        want = sum((signals_of(t) for t in loads), [])
        early, late = (sum((signals_of(t, k) for t in stores), []) for k in ("a", "bc"))
        got, seen = self.signals["load"].items, self.signals["store"].items
        await self.until(lambda: len(got) >= len(want) and len(seen) >= len(early + late), f"{what}: signals")
        assert got == want, f"{what}: LOAD signals"
        assert [s for s in seen if s < 32] == early and [s for s in seen if s >= 32] == late, (
            f"{what}: STORE signals"
        )
        self.compare(dram, sram, what)
        assert not (int(self.dut.load_error.value) | int(self.dut.store_error.value)) & 1  # valid


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2], stall=[0.0, 0.3, 0.8])
async def test_random(dut, seed, stall):
    """Loads and stores at the same time, on halves of the memories."""
    bench = DmaBench(dut, seed, stall)
    await bench.start(16)
    rng = bench.random
    loads = [random_transfer(rng, (0, HALF), (0, SRAM // 2)) for _ in range(25)]
    stores = [random_transfer(rng, (SRAM // 2, SRAM), (HALF, 2 * HALF)) for _ in range(25)]
    await bench.play(loads, stores, f"seed {seed}")


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(unit=["load", "store"], response=[AxiResp.SLVERR, AxiResp.DECERR], stall=[0.0, 0.5])
async def test_bus_error(dut, unit, response, stall):
    """A failing beat inside a queue: code, pc and address; earlier ones complete, nothing after."""
    bench = DmaBench(dut, 7, stall)
    await bench.start(16)
    ins, far, near = (LOAD, "src", "dst") if unit == "load" else (STORE, "dst", "src")
    burst = CONFIG.axi_burst_beats * CONFIG.axi_bytes
    code = Error.AXI_SLVERR if response == AxiResp.SLVERR else Error.AXI_DECERR
    for case in range(4):
        at, queue = 4096 * (case + 1) - 700, []
        for k, length in enumerate((3, 40, 8, 300, 200, 17, 100)):
            queue.append({far: at, near: 1000 + 400 * k, "len": length, "sig_b": 32 + k, "pc": 10 + k})
            at += length + 2 * CONFIG.axi_bytes
        bad = bench.rng.choice((1, 3, 4))
        position = queue[bad][far] + bench.rng.randrange(queue[bad]["len"])
        bench.dram.bad, bench.dram.response = (position, position + 1), response
        dram, sram = bench.images()
        signals, error = bench.signals[unit], getattr(dut, f"{unit}_error")
        signals.items.clear()
        bench.commands[unit].push(commands(ins, queue))
        await bench.until(lambda: int(error.value) & 1, "error", 20_000)
        word = int(error.value)
        value = max(queue[bad][far], position // burst * burst)
        assert (word >> 1 & 15, word >> 5 & 0x3FFF, word >> 19) == (code, 10 + bad, value), (
            f"case {case}: {word:#x}"
        )
        dut.load_stop.value = dut.store_stop.value = 1
        await ClockCycles(dut.clk, 2)
        await bench.until(
            lambda: int(dut.load_idle.value) and int(dut.store_idle.value), "idle after an error", 20_000
        )
        await ClockCycles(dut.clk, 100)
        assert signals.items == [32 + k for k in range(len(signals.items))] and len(signals.items) <= bad
        now_dram, now_sram = bench.images()
        for t in queue[:bad]:
            copy(*((dram, sram) if unit == "load" else (sram, dram)), t)
        failed = queue[bad]
        if unit == "load":
            open_ = (
                position // CONFIG.axi_bytes * CONFIG.axi_bytes - failed["src"]
            )  # bytes in front of the failed beat
            free = slice(failed["dst"], failed["dst"] + max(open_, 0))
            sram[free] = now_sram[free]
        else:
            for t in queue[bad:]:  # what is on the bus already is written
                dram[t["dst"] : t["dst"] + t["len"]] = now_dram[t["dst"] : t["dst"] + t["len"]]
        bench.compare(dram, sram, f"{unit}, case {case}")
        bench.commands[unit].queue.clear()
        bench.dram.bad = (0, 0)
        dut.rst.value = 1
        await ClockCycles(dut.clk, 16)
        dut.load_stop.value = dut.store_stop.value = dut.rst.value = 0
        bench.commands[unit].offered = False
        getattr(dut, f"{unit}_command_valid").value = 0
        await ClockCycles(dut.clk, 2)
        await bench.play(
            [{"src": 64, "dst": 4096, "len": 150, "sig_b": 1}],
            [{"src": 40000, "dst": HALF, "len": 90, "sig_b": 33}],
            "after an error",
        )
