"""The board's memory and the port that tile and host share: random bursts of two masters against a numpy
memory, every AXI rule checked, and the rates that hw/board.py promises."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from hw.axi import AxiMaster
from hw.axi_checker import AxiChecker, Violation
from hw.board import AxiShare, LargeRam, OnChipMemory
from hw.config import TINY

CONFIG = TINY.replace(axi_data_bits=32)
SIZE, BYTES = 8192, 4


class Shared(wiring.Component):
    """Two masters, the share, the memory, and a checker at the port of each master."""

    def __init__(self):
        super().__init__({"i": In(AxiMaster(CONFIG)).array(2), "ok": Out(2)})
        self.checkers = [AxiChecker(CONFIG, 8), AxiChecker(CONFIG, 8)]

    def elaborate(self, platform):
        m = Module()
        m.submodules.share = share = AxiShare(CONFIG)
        m.submodules.memory = memory = OnChipMemory(CONFIG, SIZE)
        wiring.connect(m, share.o, memory.axi)
        for k, checker in enumerate(self.checkers):
            wiring.connect(m, wiring.flipped(self.i[k]), share.i[k])
            m.submodules[f"checker{k}"] = checker
            checker.watch(m, self.i[k])
            m.d.comb += self.ok[k].eq(checker.ok)
        return m


@dataclass
class Master:
    """Drives one port with bursts in its own half of memory, some beyond the end; checks what comes back."""

    base: int
    rng: random.Random
    stall: float
    bursts: int
    memory: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, np.uint8))
    read_beats: int = 0
    failed: int = 0

    def place(self) -> tuple[int, int]:
        """Address and beats, not over 4 KB, half of them in a small window so that they meet."""
        address = self.base + BYTES * self.rng.randrange(0, 32 if self.rng.random() < 0.5 else 512)
        if self.rng.random() < 0.1:
            address = SIZE + BYTES * self.rng.randrange(64)
        return address, min(self.rng.choice([1, 1, 2, 5, 16, 40]), (4096 - address % 4096) // BYTES)

    async def pause(self, ctx):
        while self.rng.random() < self.stall:
            await ctx.tick()

    async def put(self, ctx, port, channel: str, **payload):
        """One transfer of a channel that this master drives."""
        await self.pause(ctx)
        for name, value in payload.items():
            ctx.set(getattr(port, channel + name), value)
        ctx.set(getattr(port, f"{channel}valid"), 1)
        await ctx.tick().until(getattr(port, f"{channel}ready"))
        ctx.set(getattr(port, f"{channel}valid"), 0)

    async def take(self, ctx, port, channel: str, *names: str):
        await self.pause(ctx)
        ctx.set(getattr(port, f"{channel}ready"), 1)
        values = await ctx.tick().sample(*(getattr(port, channel + n) for n in names)).until(
            getattr(port, f"{channel}valid")
        )
        ctx.set(getattr(port, f"{channel}ready"), 0)
        return values

    async def write(self, ctx, port):
        address, beats = self.place()
        await self.put(ctx, port, "aw", addr=address, len=beats - 1)
        for n in range(beats):
            data, strobe = self.rng.getrandbits(32), self.rng.choice([15, 15, self.rng.randrange(16)])
            await self.put(ctx, port, "w", data=data, strb=strobe, last=n == beats - 1)
            for lane in range(BYTES):
                if strobe >> lane & 1 and address < SIZE:
                    self.memory[address + n * BYTES + lane] = data >> 8 * lane & 255
        response, identity = await self.take(ctx, port, "b", "resp", "id")
        assert response == (0 if address < SIZE else 3) and identity == 0
        self.failed += response != 0

    async def read(self, ctx, port):
        address, beats = self.place()
        await self.put(ctx, port, "ar", addr=address, len=beats - 1)
        for n in range(beats):
            data, response, last = await self.take(ctx, port, "r", "data", "resp", "last")
            at = address + n * BYTES
            want = int.from_bytes(self.memory[at : at + BYTES].tobytes(), "little") if at < SIZE else 0
            assert data == want, f"{at:#x}"
            assert response == (0 if at < SIZE else 3) and last == (n == beats - 1)
            self.read_beats += 1

    async def run(self, ctx, port):
        await ctx.tick()  # nothing in the first cycle after reset
        for _ in range(self.bursts):
            await (self.write if self.rng.random() < 0.5 else self.read)(ctx, port)


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_two_masters(stall: float) -> None:
    dut = Shared()
    masters = [Master(k * SIZE // 2, random.Random(10 + k), stall, 60) for k in range(2)]
    sim = Simulator(dut)
    sim.add_clock(1e-8)
    for k, master in enumerate(masters):

        async def bench(ctx, k=k, master=master):
            await master.run(ctx, dut.i[k])
            assert master.read_beats > 50 and master.failed
            assert ctx.get(dut.checkers[k].violation) == Violation.NONE and ctx.get(dut.ok[k])

        sim.add_testbench(bench)
    sim.run()


def test_rates() -> None:
    """The first beat 7 cycles after the address (one more through the share), then one per cycle across
    bursts; one write beat per cycle too."""
    dut, stamps = OnChipMemory(CONFIG, SIZE), {"ar": [], "r": [], "w": [], "b": []}
    port = dut.axi

    async def reads(ctx):
        ctx.set(port.rready, 1)
        ctx.set(port.bready, 1)
        for burst in range(4):
            ctx.set(port.araddr, 64 * burst)
            ctx.set(port.arlen, 15)
            ctx.set(port.arvalid, 1)
            await ctx.tick().until(port.arready)
        ctx.set(port.arvalid, 0)
        await ctx.tick().repeat(100)
        ctx.set(port.awlen, 63)
        ctx.set(port.awvalid, 1)
        await ctx.tick().until(port.awready)
        ctx.set(port.awvalid, 0)
        ctx.set(port.wvalid, 1)
        for n in range(64):
            ctx.set(port.wlast, n == 63)
            await ctx.tick().until(port.wready)
        ctx.set(port.wvalid, 0)
        await ctx.tick().repeat(20)

    async def watch(ctx):
        for now in range(240):
            for name, seen in stamps.items():
                if ctx.get(getattr(port, f"{name}valid")) and ctx.get(getattr(port, f"{name}ready")):
                    seen.append(now)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(reads)
    sim.add_testbench(watch, background=True)
    sim.run()
    assert stamps["r"] == list(range(stamps["ar"][0] + 7, stamps["ar"][0] + 7 + 64))
    assert stamps["w"] == list(range(stamps["w"][0], stamps["w"][0] + 64)) and len(stamps["b"]) == 1


@pytest.mark.parametrize("slow", ["r", "w"])
def test_reads_and_writes_take_turns(slow: str) -> None:
    """Neither direction starves while the other never pauses: each gets every other cycle."""
    dut, beats = OnChipMemory(CONFIG, SIZE), {"r": 0, "w": 0}
    port = dut.axi

    async def both(ctx):
        for name in ("rready", "bready", "arvalid", "awvalid", "wvalid"):
            ctx.set(getattr(port, name), 1)
        ctx.set(port.arlen, 31)
        ctx.set(port.awlen, 31)
        written = 0
        for _ in range(400):
            ctx.set(port.wlast, written % 32 == 31)
            beats["r"] += ctx.get(port.rvalid)
            written += ctx.get(port.wvalid) & ctx.get(port.wready)
            await ctx.tick()
        beats["w"] = written

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(both)
    sim.run()
    assert beats[slow] >= 190 and sum(beats.values()) >= 390


def test_large_ram() -> None:
    """Pieces of 16, 16, 8, 2 and 1 rows are one memory: random accesses against a list."""
    dut, rng = LargeRam(width=16, depth=43, deepest=16), np.random.default_rng(5)
    rows: list[int | None] = [None] * 43

    async def bench(ctx):
        shown = None  # what rdata has to show
        for _ in range(3000):
            en, we, addr = int(rng.random() < 0.8), int(rng.integers(2)), int(rng.integers(43))
            data, strobes = int(rng.integers(1 << 16)), 3 if rows[addr] is None else int(rng.integers(4))
            for name, value in (("en", en), ("we", we), ("addr", addr), ("wdata", data), ("wstrb", strobes)):
                ctx.set(getattr(dut, name), value)
            if en and we:
                mask = (strobes & 1) * 0x00FF | (strobes >> 1) * 0xFF00
                rows[addr] = data & mask | (rows[addr] or 0) & ~mask
            if en:
                shown = None if we else rows[addr]
            await ctx.tick()
            assert shown is None or ctx.get(dut.rdata) == shown

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    assert None not in rows


def test_sizes() -> None:
    """Sizes that are no memory."""
    for size in (0, 4095, 1 << 32):
        with pytest.raises(ValueError, match="memory_bytes = .* allowed is a multiple of 4096"):
            OnChipMemory(CONFIG, size)
