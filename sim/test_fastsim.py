"""The harness itself: streams, wide ports, DRAM timing and data, AXI4-Lite, protocol check, export."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from golden.spec import LLAMA_SIM, random_params
from hw.config import named
from hw.export import verilog
from sim.fastsim import BusError, FastSim, SimTimeout
from sim.tile import RtlDevice
from sim.unit import Unit
from sim.verilate import build_unit, cached_verilog, compile_verilog, parse_ports, randomize_init
from sw.block import BlockImage
from sw.device import MachineDevice, Run, TileError


class Increment(wiring.Component):
    """o = i + 1 through a FIFO of 8; `level` is combinational on an input."""

    def __init__(self, width: int):
        self.width = width
        super().__init__(
            {
                "i": In(stream.Signature(width)),
                "o": Out(stream.Signature(width)),
                "a": In(width),
                "b": In(width),
                "total": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=self.width, depth=8)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data + 1),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
            self.total.eq(self.a + self.b),
        ]
        return m


def axi_members(bits: int) -> dict:
    """Flat AXI4 master, AXI4-Lite slave, NoC and irq ports of a tile, as members."""
    address = {"addr": Out(40), "len": Out(8), "size": Out(3), "burst": Out(2), "id": Out(4)}
    master = {
        f"{ch}{k}": v for ch in ("ar", "aw") for k, v in {**address, "valid": Out(1), "ready": In(1)}.items()
    }
    master |= {
        "rvalid": In(1),
        "rready": Out(1),
        "rid": In(4),
        "rdata": In(bits),
        "rresp": In(2),
        "rlast": In(1),
    }
    master |= {
        "wvalid": Out(1),
        "wready": In(1),
        "wdata": Out(bits),
        "wstrb": Out(bits // 8),
        "wlast": Out(1),
    }
    master |= {"bvalid": In(1), "bready": Out(1), "bid": In(4), "bresp": In(2)}
    slave = {
        "awvalid": In(1),
        "awready": Out(1),
        "awaddr": In(12),
        "wvalid": In(1),
        "wready": Out(1),
        "wdata": In(32),
        "wstrb": In(4),
        "bvalid": Out(1),
        "bready": In(1),
        "bresp": Out(2),
        "arvalid": In(1),
        "arready": Out(1),
        "araddr": In(12),
        "rvalid": Out(1),
        "rready": In(1),
        "rdata": Out(32),
        "rresp": Out(2),
    }
    return {
        "m_axi": Out(wiring.Signature(master)),
        "s_axil": Out(wiring.Signature(slave)),
        "irq": Out(1),
        "noc_in": In(stream.Signature(48)),
        "noc_out": Out(stream.Signature(48)),
    }


class Bridge(wiring.Component):
    """Every AXI channel as a stream, one CSR counting down to irq, and a NoC loop: test code is the master.

    ar, aw: addr, len, size, burst, id from bit 0. r: data, resp, last, id. w: data, strb, last. b: resp, id.
    `glitch` flips an address bit; CSR 0 is a down counter, irq is high while it is 1; CSR 4 answers SLVERR.
    """

    def __init__(self, bits: int):
        self.bits = bits
        super().__init__(
            {
                **axi_members(bits),
                "glitch": In(1),
                "ar": In(stream.Signature(57)),
                "aw": In(stream.Signature(57)),
                "r": Out(stream.Signature(bits + 7)),
                "w": In(stream.Signature(bits + bits // 8 + 1)),
                "b": Out(stream.Signature(6)),
            }
        )

    def elaborate(self, platform):
        m, x, csr = Module(), self.m_axi, self.s_axil
        m.d.comb += [
            Cat(x.araddr, x.arlen, x.arsize, x.arburst, x.arid).eq(self.ar.payload ^ (self.glitch << 12)),
            x.arvalid.eq(self.ar.valid),
            self.ar.ready.eq(x.arready),
            Cat(x.awaddr, x.awlen, x.awsize, x.awburst, x.awid).eq(self.aw.payload),
            x.awvalid.eq(self.aw.valid),
            self.aw.ready.eq(x.awready),
            self.r.payload.eq(Cat(x.rdata, x.rresp, x.rlast, x.rid)),
            self.r.valid.eq(x.rvalid),
            x.rready.eq(self.r.ready),
            Cat(x.wdata, x.wstrb, x.wlast).eq(self.w.payload),
            x.wvalid.eq(self.w.valid),
            self.w.ready.eq(x.wready),
            self.b.payload.eq(Cat(x.bresp, x.bid)),
            self.b.valid.eq(x.bvalid),
            x.bready.eq(self.b.ready),
            self.noc_out.payload.eq(~self.noc_in.payload),
            self.noc_out.valid.eq(self.noc_in.valid),
            self.noc_in.ready.eq(self.noc_out.ready),
        ]
        count = Signal(32)
        m.d.comb += [
            self.irq.eq(count == 1),
            csr.awready.eq(csr.wvalid & ~csr.bvalid),
            csr.wready.eq(csr.awready & csr.awvalid),
            csr.arready.eq(~csr.rvalid),
        ]
        with m.If(count > 1):
            m.d.sync += count.eq(count - 1)
        with m.If(csr.bready):
            m.d.sync += csr.bvalid.eq(0)
        with m.If(csr.rready):
            m.d.sync += csr.rvalid.eq(0)
        with m.If(csr.awvalid & csr.wready):
            m.d.sync += [csr.bvalid.eq(1), csr.bresp.eq(csr.awaddr[2] << 1)]
            with m.If(csr.awaddr == 0):
                m.d.sync += count.eq(csr.wdata)
        with m.If(csr.arvalid & csr.arready):
            m.d.sync += [csr.rvalid.eq(1), csr.rresp.eq(csr.araddr[2] << 1), csr.rdata.eq(count)]
        return m


def bridge(bits: int = 64, **options) -> FastSim:
    return FastSim(component=Bridge(bits), name=f"bridge{bits}", dram_bytes=1 << 16, opt="-O1", **options)


def command(
    addr: int, beats: int, bits: int = 64, burst: int = 1, size: int | None = None, ident: int = 0
) -> int:
    size = (bits // 8).bit_length() - 1 if size is None else size
    return addr | (beats - 1) << 40 | size << 48 | burst << 51 | ident << 53


def wide(rows: np.ndarray) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def read_beats(rows: np.ndarray | list[int], bits: int) -> list[tuple[int, int, int, int]]:
    """(data, resp, last, id) of each item of the r stream."""
    items = wide(rows) if isinstance(rows, np.ndarray) and rows.ndim == 2 else [int(x) for x in rows]
    return [(x & (1 << bits) - 1, x >> bits & 3, x >> bits + 2 & 1, x >> bits + 3) for x in items]


# Streams and ports


@pytest.mark.parametrize("width", [13, 64, 65, 256])
@pytest.mark.parametrize("stall", [0.0, 0.4, (0.5, 7), {"o": 0.9}])
def test_streams(width, stall):
    unit = build_unit(Increment(width), f"increment{width}", seed=width)
    data = [
        int.from_bytes(row.tobytes(), "little") % 2**width
        for row in np.random.default_rng(width).integers(0, 256, (500, 40), np.uint8)
    ]
    out = unit.run_streams({"i": data}, {"o": len(data)}, stall=stall)["o"]
    assert (wide(out) if out.ndim == 2 else out.tolist()) == [(x + 1) % 2**width for x in data]
    assert np.all(np.diff(unit.stamps["o"]) >= 1)
    if stall == 0.0:
        assert unit.stamps["o"][-1] - unit.stamps["o"][0] == len(data) - 1
        assert unit.stamps["o"][0] - unit.stamps["i"][0] == 2
    else:
        share = 1 - len(data) / (unit.stamps["o"][-1] - unit.stamps["o"][0] + 1)
        assert 0.2 < share < 0.93


def test_stream_items_as_rows_and_as_array():
    unit = build_unit(Increment(65), "increment65")
    rows = np.zeros((3, 9), np.uint8)
    rows[:, 0] = 1, 255, 7
    assert wide(unit.run_streams({"i": rows}, {"o": 3})["o"]) == [2, 256, 8]
    rows[2, 8] = 2
    with pytest.raises(ValueError, match="65 bits"):
        unit.push("i", rows)
    unit = build_unit(Increment(13), "increment13")
    assert unit.run_streams({"i": np.array([-2, -1, 5])}, {"o": 3})["o"].tolist() == [2**13 - 1, 0, 6]


def test_stream_timeout_names_what_is_missing():
    unit = build_unit(Increment(13), "increment13", seed=5)
    with pytest.raises(SimTimeout, match=r"seed 5.*i 2/2, o 2/3"):
        unit.run_streams({"i": [1, 2]}, {"o": 3}, max_cycles=100)
    unit.reset()
    assert unit.run_streams({"i": [8]}, {"o": 1})["o"].tolist() == [9]


def test_ports():
    unit = build_unit(Increment(256), "increment256")
    unit.set("a", -1)
    unit.set("b", 1 << 200)
    assert unit.get("total") == (1 << 200) - 1
    assert unit.get("a") == 2**256 - 1
    unit.set("i.valid", 1)
    before = unit.cycles
    unit.step(3)
    assert unit.cycles - before == 3 and unit.get("o.valid") == 1 and unit.get("o_payload") == 1
    with pytest.raises(KeyError, match="no port"):
        unit.set("nonsense", 1)
    with pytest.raises(ValueError, match="output"):
        unit.set("total", 1)


# DRAM


@pytest.mark.parametrize("bits", [64, 128, 512])
@pytest.mark.parametrize("stall, refresh", [(0.0, (0, 0)), ((0.3, 4), (100, 20))])
def test_random_writes_and_reads(bits, stall, refresh):
    """Random INCR, FIXED and WRAP bursts with random strobes equal a byte-wise reference memory."""
    rng, size = np.random.default_rng(bits), bits // 8
    sim = bridge(bits, latency=7, stall=stall, refresh=refresh, seed=bits)
    expect = np.zeros(1 << 16, np.uint8)
    sim.dram[:] = expect[:] = rng.integers(0, 256, 1 << 16, np.uint8)
    writes, beats, reads, answers = [], [], [], []
    for number in range(100):
        burst = int(rng.integers(0, 3))
        count = int(rng.choice([2, 4, 8])) if burst == 2 else int(rng.integers(1, 9))
        addr = int(rng.integers(0, 15)) * 4096 + int(rng.integers(0, 4096 // size - 8)) * size
        writes.append(command(addr, count, bits, burst, ident=number % 16))
        for beat in range(count):
            data, strobe = rng.integers(0, 256, size, np.uint8), rng.integers(0, 2, size).astype(bool)
            span = count * size
            at = {
                0: addr,
                1: addr + beat * size,
                2: addr // span * span + (addr % span + beat * size) % span,
            }[burst]
            expect[at : at + size][strobe] = data[strobe]
            enables = sum(1 << int(i) for i in np.flatnonzero(strobe))
            beats.append(
                int.from_bytes(data.tobytes(), "little")
                | enables << bits
                | (beat == count - 1) << bits + size
            )
    done = sim.run_streams({"aw": writes, "w": beats}, {"b": len(writes)})["b"]
    assert done.tolist() == [(n % 16) << 2 for n in range(len(writes))]
    assert np.array_equal(sim.dram, expect)
    for number in range(100):
        count, addr = int(rng.integers(1, 17)), int(rng.integers(0, 14)) * 4096 + int(rng.integers(0, 1024))
        reads.append(command(addr, count, bits, ident=number % 16))
        for beat in range(count):
            at = addr // size * size + beat * size
            word = int.from_bytes(expect[at : at + size].tobytes(), "little")
            answers.append((word, 0, int(beat == count - 1), number % 16))
    assert read_beats(sim.run_streams({"ar": reads}, {"r": len(answers)})["r"], bits) == answers
    sim.check_protocol()
    stats = sim.stats(clear=True)
    assert (stats["ar"], stats["r_beats"], stats["aw"], stats["b"]) == (100, len(answers), 100, 100)
    assert stats["r_bytes"] == len(answers) * size and stats["w_beats"] == len(beats)
    assert stats["w_bytes"] == sum((x >> bits & (1 << size) - 1).bit_count() for x in beats)
    assert sim.stats()["r_beats"] == 0


@pytest.mark.parametrize("latency", [1, 2, 40])
def test_latency_and_rate(latency):
    """First beat exactly `latency` after AR, then a beat a cycle across bursts, one-beat bursts included."""
    sim = bridge(latency=latency)
    for beats in (1, 16):
        bursts = 200 if beats == 1 else 40
        sim.run_streams({"ar": [command(64 * n, beats) for n in range(bursts)]}, {"r": bursts * beats})
        assert sim.stamps["r"][0] - sim.stamps["ar"][0] == latency
        assert sim.stamps["r"][-1] - sim.stamps["r"][0] == bursts * beats - 1
    stats = sim.stats()
    assert stats["ar_to_r_min"] == latency and stats["ar_to_r_sum"] >= latency * stats["ar"]
    data = [n | 0xFF << 64 | 1 << 72 for n in range(200)]
    sim.run_streams({"aw": [command(8 * n, 1) for n in range(200)], "w": data}, {"b": 200})
    assert sim.stamps["b"][0] - sim.stamps["w"][0] == latency
    assert sim.stamps["b"][-1] - sim.stamps["b"][0] == 199
    assert sim.dram[:1600].view(np.uint64).tolist() == list(range(200))


def test_outstanding_limit_and_refresh():
    sim = bridge(latency=50, outstanding=2)
    sim.run_streams({"ar": [command(0, 1)] * 4}, {"r": 4})
    assert sim.stamps["ar"][2] >= sim.stamps["r"][0]
    sim.timing(1, refresh=(64, 16))
    sim.run_streams({"ar": [command(0, 256)]}, {"r": 256})
    assert np.all(sim.stamps["r"] % 64 >= 16)
    assert sim.stamps["r"][-1] - sim.stamps["r"][0] == pytest.approx(256 * 64 / 48, abs=20)


@pytest.mark.parametrize("bandwidth", [1.0, 0.75, 0.5, 0.3])
def test_bandwidth(bandwidth):
    """Each direction moves that share of beats, evenly, whatever the other does."""
    sim = bridge(latency=5, bandwidth=bandwidth)
    beats = [n | 0xFF << 64 | (n % 16 == 15) << 72 for n in range(320)]
    sim.run_streams(
        {"ar": [command(0, 16)] * 20, "aw": [command(8192, 16)] * 20, "w": beats}, {"r": 320, "b": 20}
    )
    for name in ("r", "w"):
        stamps = sim.stamps[name][:320]
        assert (stamps[-1] - stamps[0]) == pytest.approx(319 / bandwidth, abs=2)
        assert set(np.diff(stamps)) <= {int(1 / bandwidth), -int(-1 // bandwidth)}
    sim.timing(5)
    sim.run_streams({"ar": [command(0, 16)] * 20}, {"r": 320})
    assert sim.stamps["r"][-1] - sim.stamps["r"][0] == 319


def test_refresh_stops_both_directions():
    sim = bridge(latency=5, refresh=(50, 20))
    beats = [n | 0xFF << 64 | (n % 16 == 15) << 72 for n in range(320)]
    sim.run_streams(
        {"ar": [command(0, 16)] * 20, "aw": [command(8192, 16)] * 20, "w": beats}, {"r": 320, "b": 20}
    )
    for name in ("r", "w"):
        stamps = sim.stamps[name]
        assert np.all(stamps % 50 >= 20) and stamps[-1] - stamps[0] == pytest.approx(320 * 50 / 30, abs=25)


def test_errors():
    sim = bridge(latency=3)
    sim.dram[:] = 1
    sim.inject_error(128, 129, "slverr", "r")
    sim.inject_error(256, 264, "decerr", "w")
    got = read_beats(
        sim.run_streams({"ar": [command(112, 4), command((1 << 16) - 16, 3)]}, {"r": 7})["r"], 64
    )
    assert [resp for _, resp, _, _ in got] == [0, 0, 2, 0, 0, 0, 3]
    ones = int.from_bytes(bytes([1] * 8), "little")
    assert [data == ones for data, *_ in got] == [True, True, False, True, True, True, False]
    full = 0xFF << 64 | 0x22
    out = sim.run_streams(
        {
            "aw": [command(248, 3), command(128, 1), command(1 << 16, 1)],
            "w": [full, full, full | 1 << 72, full | 1 << 72, full | 1 << 72],
        },
        {"b": 3},
    )["b"]
    assert out.tolist() == [3, 0, 3]
    assert sim.dram[248:272:8].tolist() == [0x22, 1, 0x22] and sim.dram[128] == 0x22
    assert (sim.stats()["r_errors"], sim.stats()["b_errors"]) == (2, 2)
    sim.clear_errors()
    assert read_beats(sim.run_streams({"ar": [command(128, 1)]}, {"r": 1})["r"], 64)[0][1] == 0


def test_narrow_reads_and_wide_writes_first():
    """A narrow burst sees whole bus words; write data may come long before its address."""
    sim = bridge(latency=2)
    sim.dram[:32] = np.arange(32)
    got = read_beats(sim.run_streams({"ar": [command(5, 4, size=2)]}, {"r": 4})["r"], 64)
    assert [(data & 255) for data, *_ in got] == [0, 8, 8, 16]
    sim.push("w", [n | 0xFF << 64 | (n == 3) << 72 for n in range(4)])
    sim.step(20)
    assert sim.dram[0:8].tolist() == list(range(8))
    sim.run_streams({"aw": [command(0, 4)]}, {"b": 1})
    assert sim.dram[:32].view(np.uint64).tolist() == [0, 1, 2, 3]


def test_protocol_violations():
    sim = bridge()
    sim.run_streams({"ar": [command(4088, 2)]}, {"r": 2})
    with pytest.raises(BusError, match="crosses 4 KB$"):
        sim.check_protocol()
    sim.stats(clear=True)
    sim.run_streams({"aw": [command(0, 2)], "w": [0xFF << 64 | 1 << 72] * 2}, {"b": 1})
    with pytest.raises(BusError, match="WLAST"):
        sim.check_protocol()
    sim.stats(clear=True)
    sim.stall({"ar": 1.0})
    sim.step(2)
    sim.push("ar", [command(0, 1)])
    sim.step(5)
    sim.check_protocol()
    sim.set("glitch", 1)
    sim.step(2)
    with pytest.raises(BusError, match="AR changed"):
        sim.check_protocol()


def test_reset_drops_transactions_and_keeps_memory():
    sim = bridge(latency=30)
    sim.dram[:8] = 9
    sim.push("ar", [command(0, 8)] * 3)
    sim.step(10)
    sim.reset()
    got = read_beats(sim.run_streams({"ar": [command(0, 1, ident=5)]}, {"r": 1})["r"], 64)
    assert got == [(0x0909090909090909, 0, 1, 5)]
    sim.step(200)
    assert len(sim.pop("r")) == 0


def test_csr_irq_noc_and_determinism():
    sim = bridge(seed=3)
    sim.csr_write(0, 100)
    assert 90 < sim.csr_read(0) < 100
    passed = sim.run_until_irq(1000)
    assert 80 < passed < 100 and sim.csr_read(0) == 1 and sim.run_until_irq(10) == 0
    sim.csr_write(0, 0)
    with pytest.raises(SimTimeout, match="no interrupt in 50 cycles"):
        sim.run_until_irq(50)
    with pytest.raises(BusError, match="write at 0x004: response 2"):
        sim.csr_write(4, 0)
    with pytest.raises(BusError, match="read at 0x004: response 2"):
        sim.csr_read(4)
    assert len(sim.noc_pop()) == 0
    sim.stream_stall("noc_out", 0.5)
    sim.noc_push(range(100))
    sim.step(500)
    assert sim.noc_pop().tolist() == [~n & (1 << 48) - 1 for n in range(100)]
    runs = []
    for seed in (1, 1, 2):
        sim = bridge(stall=0.3, seed=seed)
        sim.run_streams({"ar": [command(0, 16)] * 20}, {"r": 320}, stall=0.2)
        runs.append(sim.stamps["r"].tolist())
    assert runs[0] == runs[1] != runs[2]


def test_memory_access():
    sim = bridge()
    sim.write(16, np.arange(4, dtype=np.float32))
    assert sim.dram[16:32].view(np.float32).tolist() == [0, 1, 2, 3] and sim.read(20, 4) == b"\0\0\x80\x3f"
    with pytest.raises(ValueError, match="do not fit"):
        sim.write((1 << 16) - 2, b"abc")
    for bad in (
        {"latency": 0},
        {"stall": 1.5},
        {"stall": {"x": 0.1}},
        {"refresh": (8, 8)},
        {"refresh": (0, 4)},
        {"refresh": (-8, -9)},
        {"bandwidth": 0},
        {"bandwidth": 1.01},
        {"bandwidth": float("nan")},
        {"outstanding": 0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}|unknown AXI channels"):
            bridge(**bad)
    with pytest.raises(ValueError, match="trace=True"):
        sim.trace_start(10)


# The tile as a device


@cache
def small_block() -> BlockImage:
    """Four tokens of prefill and three steps of decode, for `tiny`."""
    spec = replace(
        LLAMA_SIM, name="small", hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, max_tokens=32
    )
    x = np.random.default_rng(1).normal(0, 1, (7, spec.hidden)).astype(np.float32)
    return BlockImage(named("tiny"), spec, random_params(spec, 1), x[:4], x[4:], dram_bytes=1 << 20)


@cache
def small_phases() -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    return small_block().phases


@cache
def small_model() -> np.ndarray:
    """DRAM after both phases, by the instruction-level model."""
    model = MachineDevice(named("tiny"))
    run_small(model)
    return model.dram


def run_small(device) -> list[Run]:
    image, phases = small_block(), small_phases()
    device.attach(image.dram.data)
    return [device.run(image.program_at[name], len(words), args) for name, (words, args) in phases.items()]


def tile(**options) -> RtlDevice:
    return RtlDevice(named("tiny"), dram_bytes=1 << 20, **options)


def test_memory_options_change_cycles_and_nothing_else():
    def cost(**options) -> tuple[int, int, int]:
        """Cycles and beats of both phases."""
        device = tile(**options)
        runs = run_small(device)
        assert np.array_equal(device.dram, small_model()), options
        assert [r.cycles for r in run_small(tile(**options))] == [r.cycles for r in runs]
        return tuple(sum(r.counters[k] for r in runs) for k in ("CYCLES", "READ_BEATS", "WRITE_BEATS"))

    best, reads, writes = cost(latency=1)
    costs = {
        name: cost(**options)
        for name, options in {
            "latency": {"latency": 200},
            "write latency": {"latency": 1, "write_latency": 400},
            "half": {"latency": 1, "bandwidth": 0.5},
            "tenth": {"latency": 1, "bandwidth": 0.1},
            "refresh": {"latency": 1, "refresh": (400, 300)},
            "stall": {"latency": 1, "stall": 0.5},
            "all": {"latency": 60, "bandwidth": 0.3, "refresh": (1000, 100), "stall": 0.2, "seed": 3},
        }.items()
    }
    assert {c[1:] for c in costs.values()} == {(reads, writes)}
    assert best < min(c[0] for c in costs.values())
    assert costs["half"][0] < costs["tenth"][0] and costs["tenth"][0] >= reads / 0.1
    assert costs["refresh"][0] >= reads * 4


def test_polling():
    """Results can be read while the tile works; the cost is that of `run`."""
    image, phases = small_block(), small_phases()
    want = [run.counters for run in run_small(tile())]
    device = tile()
    device.attach(image.dram.data)
    with pytest.raises(RuntimeError, match="no program runs"):
        device.poll(1)
    got, seen = [], []
    rows = device.dram[image.rows_out :][: 3 * 64 * 4].view(np.float32).reshape(3, 64)
    for name, (words, args) in phases.items():
        device.start(image.program_at[name], len(words), args)
        with pytest.raises(RuntimeError, match="finish or abort"):
            device.start(image.program_at[name], len(words), args)
        while not device.poll(100):
            if name == "decode" and len(seen) < 2 and rows[len(seen)].all() and rows[len(seen) + 1].any():
                seen.append(rows[len(seen)].copy())
        cycles = device.sim.cycles
        assert device.poll(100) and device.sim.cycles == cycles
        got.append(device.finish().counters)
    for a, b in zip(got, want, strict=True):  # the start that was refused read a register
        assert {k: v for k, v in a.items() if k != "SIMULATED"} == {
            k: v for k, v in b.items() if k != "SIMULATED"
        }
    assert len(seen) == 2 and np.array_equal(seen, rows[:2]) and np.array_equal(device.dram, small_model())


def test_polling_error_and_abort():
    image, phases = small_block(), small_phases()
    words, args = phases["decode"]
    device = tile()
    device.attach(image.dram.data)
    device.start(image.program_at["decode"], 1 << 20, args)  # longer than the instruction memory
    assert device.poll(10_000)
    with pytest.raises(TileError, match="PC_RANGE"):
        device.finish()
    device.start(image.program_at["decode"], len(words), args)
    with pytest.raises(SimTimeout, match="no interrupt in 500 cycles"):
        device.finish(500)
    assert not device.poll(500)
    run = device.abort()
    assert 1000 <= run.cycles < 3000
    device.start(image.program_at["decode"], len(words), args)
    assert device.poll(1_000_000)
    assert device.abort().counters["MACS"] > run.counters["MACS"]  # ended before
    run_small(device)
    assert np.array_equal(device.dram, small_model())


# Builds


class PowerUp(wiring.Component):
    """A register with reset, one without, a RAM and a ROM, all visible."""

    def __init__(self):
        super().__init__(
            {"addr": In(4), "we": In(1), "kept": Out(32), "free": Out(32), "ram": Out(32), "rom": Out(32)}
        )

    def elaborate(self, platform):
        m = Module()
        kept, free = Signal(32, init=0x1234), Signal(32, init=0x5678, reset_less=True)
        for name, out in (("ram", self.ram), ("rom", self.rom)):
            m.submodules[name] = mem = memory.Memory(shape=32, depth=16, init=[3] * 16)
            port = mem.read_port()
            m.d.comb += [port.addr.eq(self.addr), out.eq(port.data)]
            if name == "ram":
                write = mem.write_port()
                m.d.comb += [write.addr.eq(self.addr), write.data.eq(7), write.en.eq(self.we)]
        with m.If(self.we):
            m.d.sync += [kept.eq(1), free.eq(1)]
        m.d.comb += [self.kept.eq(kept), self.free.eq(free)]
        return m


def test_random_power_up():
    """Only what reset defines, and ROM contents, survive a random power-up; equal seeds, equal states."""

    def state(seed: int, random_init: bool) -> tuple[int, ...]:
        unit = build_unit(PowerUp(), "power_up", seed=seed, random_init=random_init)
        unit.step(2)
        return tuple(unit.get(port) for port in ("kept", "rom", "free", "ram"))

    assert state(1, False) == (0x1234, 3, 0x5678, 3)
    first, again, other = state(1, True), state(1, True), state(2, True)
    assert first == again and first[:2] == other[:2] == (0x1234, 3)
    assert all(len({a, b, c}) == 3 for a, b, c in zip(first[2:], other[2:], (0x5678, 3), strict=True))


def test_waves(tmp_path):
    unit = build_unit(Increment(13), "increment13", waves=tmp_path / "out.vcd")
    unit.run_streams({"i": [1, 2, 3]}, {"o": 3})
    unit.close()
    text = (tmp_path / "out.vcd").read_text()
    times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
    assert "o_payload" in text and len(times) > 8 and times == sorted(set(times))


def test_cache_and_bad_verilog():
    text = verilog(Increment(13), "increment13")
    path = compile_verilog(text, "increment13", opt="-O1")
    stamp = path.stat().st_mtime_ns
    assert compile_verilog(text, "increment13", opt="-O1") == path and path.stat().st_mtime_ns == stamp
    with pytest.raises(RuntimeError, match="syntax error"):
        compile_verilog("module broken(a);\n  input a;\nendmodule\nmodule", "broken", verbose=False)
    assert isinstance(Unit(path, parse_ports(text, "increment13")), Unit)


def test_cached_verilog():
    """Elaborated once per sources and facts."""
    made = []

    def make() -> Increment:
        made.append(1)
        return Increment(13)

    fact = os.urandom(8).hex()
    texts = {cached_verilog(make, "increment13", fact) for _ in range(3)}
    assert texts == {verilog(Increment(13), "increment13")} and len(made) == 1
    cached_verilog(make, "increment13", fact + "x")
    assert len(made) == 2


def test_export_is_reproducible_and_private():
    """The same bytes from another process with another hash seed; no source path; zero memories are loops."""
    text = verilog(Deep(), "deep")
    code = (
        "from sim.test_fastsim import Deep; from hw.export import verilog; print(end=verilog(Deep(), 'deep'))"
    )
    root = Path(__file__).resolve().parent.parent
    for seed in "12":
        other = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert other == text
    assert str(root) not in text and ".py" not in text and "(* src" not in text
    assert len(text.splitlines()) < 200 and "for (init_" in text and "initial" not in randomize_init(text)
    for random_init in (False, True):
        unit = build_unit(Deep(), "deep", random_init=random_init)
        unit.step(3)
        assert (unit.get("q") == 0) != random_init
        unit.set("we", 1)
        unit.step(3)
        assert unit.get("q") == 1


class Deep(wiring.Component):
    """A 4096-word RAM with zero contents."""

    def __init__(self):
        super().__init__({"addr": In(12), "we": In(1), "q": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=8, depth=4096, init=[])
        read, write = ram.read_port(), ram.write_port()
        m.d.comb += [
            read.addr.eq(self.addr),
            self.q.eq(read.data),
            write.addr.eq(self.addr),
            write.data.eq(1),
            write.en.eq(self.we),
        ]
        return m
