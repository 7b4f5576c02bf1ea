"""UART bit by bit; the host link's RTL against the model of docs/boards.md, byte for byte."""

import zlib

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from hw import csr_map
from hw.board import AxiShare, OnChipMemory
from hw.config import TINY, TileConfig
from hw.csr import CsrFile
from hw.host_link import HostLink, crc_step
from hw.uart import UartReceiver, UartTransmitter, divisor
from sim.far_end import FarEnd, Faults, frame
from sim.verilate import build_unit

MEMORY = 8192


def waveform(data: bytes, period: float) -> list[int]:
    """Levels of an 8N1 line, one per clock cycle; period: cycles per bit."""
    levels = []
    for byte in data:
        bits = [0, *(byte >> k & 1 for k in range(8)), 1]
        start = len(levels)
        levels += [bits[int(t / period)] for t in range(round(10 * period))]
        assert len(levels) - start == round(10 * period)
    return levels


def receive(levels: list[int], cycles: int) -> list[int]:
    """Bytes that `UartReceiver(cycles)` makes of a line, which rests before and after."""
    dut, got = UartReceiver(cycles), []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for level in [1] * 5 + levels + [1] * (12 * cycles):
            ctx.set(dut.rx, level)
            await ctx.tick()
            if ctx.get(dut.o.valid):
                got.append(ctx.get(dut.o.payload))

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return got


@pytest.mark.parametrize("cycles, period", [(4, 4), (5, 5), (8, 8), (33, 33.33), (33, 32.2), (33, 34.0)])
def test_receiver(cycles: int, period: float) -> None:
    data = np.random.default_rng(cycles).integers(0, 256, 20).tolist() + [0x00, 0xFF, 0x55, 0x01, 0x80]
    assert receive(waveform(bytes(data), period), cycles) == data


def test_receiver_drops_broken_bytes() -> None:
    broken = waveform(b"\x12", 8)[:-8] + [0] * 8  # stop bit low
    line = waveform(b"A", 8) + [1] * 9 + [0] * 2 + [1] * 20 + broken + [0] * 100 + [1] * 3 + waveform(b"B", 8)
    assert receive(line, 8) == [ord("A"), ord("B")]


@pytest.mark.parametrize("cycles", [4, 7])
def test_transmitter_literally(cycles: int) -> None:
    dut, levels, data = UartTransmitter(cycles), [], [0xA5, 0x00, 0xFF, 0x31]

    async def send(ctx):
        for n, byte in enumerate(data):
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)
            if n == 2:
                await ctx.tick().repeat(100)

    async def watch(ctx):
        for _ in range(60 * cycles + 200):
            levels.append(ctx.get(dut.tx))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(send)
    sim.add_testbench(watch)
    sim.run()
    first = waveform(bytes(data[:3]), cycles)
    start = levels.index(0)
    assert start < 5 and levels[start : start + len(first)] == first
    rest = levels[start + len(first) :]
    last = waveform(bytes(data[3:]), cycles)
    start = rest.index(0)
    assert rest[start : start + len(last)] == last and all(rest[start + len(last) :])


def test_divisor() -> None:
    assert divisor(100e6, 3e6) == 33 and divisor(25e6, 115200) == 217
    for clock, baud in ((10e6, 3e6), (50e6, 11.4e6)):
        with pytest.raises(ValueError, match="baud = .* allowed is"):
            divisor(clock, baud)
    with pytest.raises(ValueError, match="divisor = 3"):
        UartReceiver(3)


def test_crc_step() -> None:
    """The states after each byte of a message, against zlib."""
    message = np.random.default_rng(1).integers(0, 256, 40).astype(np.uint8).tobytes()
    state, byte, after = Signal(32), Signal(8), Signal(32)
    m = Module()
    m.d.comb += after.eq(crc_step(state, byte))

    async def bench(ctx):
        value = 0xFFFFFFFF
        for n, b in enumerate(message):
            ctx.set(state, value)
            ctx.set(byte, b)
            value = ctx.get(after)
            assert value ^ 0xFFFFFFFF == zlib.crc32(message[: n + 1])

    sim = Simulator(m)
    sim.add_testbench(bench)
    sim.run()


class LinkBench(wiring.Component):
    """Host link with a register file and, behind one port, memory; the share's other master is idle."""

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = HostLink(self.config, MEMORY)
        m.submodules.csr = csr = CsrFile(self.config)
        m.submodules.share = share = AxiShare(self.config)
        m.submodules.memory = memory = OnChipMemory(self.config, MEMORY)
        wiring.connect(m, wiring.flipped(self.i), link.i)
        wiring.connect(m, link.o, wiring.flipped(self.o))
        wiring.connect(m, link.m_axil, csr.s_axil)
        wiring.connect(m, link.m_axi, share.i[1])
        wiring.connect(m, share.o, memory.axi)
        return m


class PlainRegisters:
    """What hw/csr_map.py says of a tile at rest."""

    def __init__(self, config: TileConfig):
        self.values = {r.offset: r.reset for r in csr_map.REGISTERS}
        self.values |= {csr_map.offset(k): v for k, v in csr_map.constants(config).items()}
        self.writable = {r.offset: 0xFFFFFFFF for r in csr_map.REGISTERS if r.access == "rw"}
        self.writable[csr_map.offset("IRQ_ENABLE")] = 7

    def read(self, address: int) -> int:
        return self.values.get(address, 0)

    def write(self, address: int, value: int) -> None:
        if address in self.writable:
            self.values[address] = value & self.writable[address]


def request(rng: np.random.Generator, seq: int) -> bytes:
    """One frame: mostly legal, of every op, some at or beyond the limits."""
    op = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 255], p=[0.02, 0.15, 0.15, 0.3, 0.3, 0.04, 0.02, 0.02]))
    longest = 1024 if rng.random() < 0.05 else 40
    length = int(rng.integers(1, longest + 1))
    inside, anywhere = int(rng.integers(0, MEMORY - 1024)), int(rng.integers(MEMORY - 64, 1 << 32))
    address = inside if rng.random() < 0.9 else anywhere
    if op in (1, 2) and rng.random() < 0.95:
        length, address = max(4, length & ~3), int(rng.integers(0, 1024)) * 4
    if op in (0, 5):
        length = 4 if rng.random() < 0.9 else length
    if rng.random() < 0.03:
        length = int(rng.choice([0, 1025, 1028, 65535]))
    size = min(length, 1100)
    kinds = [rng.integers(0, 256, size), rng.choice([0xC0, 0xDB, 0xDC, 0xDD], size)]
    data = bytes(kinds[int(rng.random() < 0.2)].astype(np.uint8))
    if op == 5 and length == 4:
        data = int(rng.integers(0, 300)).to_bytes(4, "little")
    head = bytes([seq, op]) + length.to_bytes(2, "little") + address.to_bytes(4, "little")
    return frame(head + (b"" if op in (1, 3) else data))


@pytest.mark.parametrize("config, stall", [(TINY, 0.0), (TINY.replace(axi_data_bits=256), 0.3)])
def test_host_link_equals_the_model(config: TileConfig, stall: float) -> None:
    """Random requests, sequence numbers around the expected one, faults on the line: every byte that the RTL
    sends is the model's, and so is all of memory at the end."""
    unit = build_unit(LinkBench(config), f"link{config.axi_data_bits}")
    rng, faults = np.random.default_rng(3), Faults(0.002, 4)
    model = FarEnd(PlainRegisters(config), np.zeros(MEMORY, np.uint8))
    line = frame(bytes([9, 3, 8, 0, 0, 0, 0, 0]))  # before any session
    want = model.feed(line)
    for n in range(600):
        seq = (model.next + int(rng.choice([0, 0, 0, 0, 0, 0, 1, 127, 128, 200, 255]))) % 256
        more = request(rng, seq) if n != 3 else frame(b"\x05\x00\x04\x00\x00\x00\x00\x00abcd")
        sent = faults(more) if n > 10 else more
        line, want = line + sent, want + model.feed(sent)
    for at in range(0, MEMORY, 1024):
        more = frame(bytes([model.next, 3, 0, 4]) + at.to_bytes(4, "little"))
        more = b"\xc0" + more
        line, want = line + more, want + model.feed(more)
    assert faults.count > 20 and model.session and len(model.executed) > 100
    statuses = {s for s in range(6) if bytes([s]) in want}
    assert statuses == set(range(6)) and model.memory.any()
    got = unit.run_streams({"i": np.frombuffer(line, np.uint8)}, {"o": len(want)}, stall=stall)["o"]
    differ = np.flatnonzero(got != np.frombuffer(want, np.uint8))
    if len(differ):
        at = int(differ[0])
        start, end = want.rindex(0xC0, 0, at), want.index(0xC0, at) + 1
        mine = bytes(got[start:end].astype(np.uint8))
        raise AssertionError(f"byte {at}:\nRTL   {mine.hex()}\nmodel {want[start:end].hex()}")
    unit.step(5000)
    assert len(unit.pop("o")) == 0
    unit.close()
