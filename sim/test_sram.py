"""Banked SRAM: contents, order, visibility, latency, and the grants of scheduled and random patterns."""

from functools import cache

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from hw.config import TileConfig
from hw.ports import SramRead, SramWrite
from hw.sram import READ_LATENCY, Sram
from sim.verilate import build_unit

CONFIG = TileConfig(columns=2, sram_banks=8, sram_bytes=8192, axi_data_bits=64, axi_burst_beats=16)
WORDS, BYTES = CONFIG.sram_words, CONFIG.word_bytes
READS = ("stream", "scale", "stat", "a", "b", "d", "store", "misc")
WRITES = ("drain", "vec", "load", "noc")


class Bench(wiring.Component):
    """The SRAM with its responses as streams that are always taken, for the stream harness."""

    def __init__(self):
        super().__init__({
            **{name: In(SramRead(CONFIG).members["req"].signature) for name in READS},
            **{name: In(SramWrite(CONFIG).members["req"].signature) for name in WRITES},
            **{f"{name}_out": Out(stream.Signature(8 * BYTES)) for name in READS},
            "busy": Out(len(WRITES)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.sram = sram = Sram(CONFIG, READS, WRITES)
        for name in READS + WRITES:
            wiring.connect(m, getattr(sram, name).req, wiring.flipped(getattr(self, name)))
        for name in READS:
            port, out = getattr(sram, name), getattr(self, f"{name}_out")
            m.d.comb += [out.valid.eq(port.valid), out.payload.eq(port.data)]
        m.d.comb += [self.busy[k].eq(getattr(sram, name).busy) for k, name in enumerate(WRITES)]
        return m


@cache
def unit():
    return build_unit(Bench(), "sram_bench")


@pytest.fixture(autouse=True)
def clean():
    unit().reset()


def write_items(addr, data, strb):
    """Payloads of a write port: addr (n,), data (n, BYTES) uint8, strb (n, BYTES) bool."""
    bits = (WORDS - 1).bit_length()
    return [int(a) | int.from_bytes(d.tobytes(), "little") << bits
            | int.from_bytes(np.packbits(s, bitorder="little").tobytes(), "little") << (bits + 8 * BYTES)
            for a, d, s in zip(addr, data, strb)]


def read(requests, **options):
    """{port: addresses} -> ({port: words}, cycles from the first acceptance to the last response)."""
    sim = unit()
    out = sim.run_streams(requests, {f"{name}_out": len(addr) for name, addr in requests.items()}, **options)
    cycles = max(s.max() for s in sim.stamps.values()) - min(s.min() for s in sim.stamps.values()) + 1
    return {name: out[f"{name}_out"] for name in requests}, int(cycles)


def fill(rng):
    """Random contents through all write ports; returns them as (WORDS, BYTES)."""
    image = rng.integers(0, 256, (WORDS, BYTES), dtype=np.uint8)
    full = np.ones((WORDS, BYTES), bool)
    unit().run_streams({name: write_items(np.arange(k, WORDS, 4), image[k::4], full[k::4])
                        for k, name in enumerate(WRITES)}, {})
    return image


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stall", [0.0, 0.5, (0.9, 3)])
def test_contents(seed, stall):
    """Strobed writes of four ports to words of their own, then reads of all ports: every byte as in numpy."""
    rng = np.random.default_rng([seed, 1])
    image = fill(rng)
    items = {}
    for k, name in enumerate(WRITES):
        addr = rng.integers(0, WORDS // 4, 150) * 4 + k
        data = rng.integers(0, 256, (150, BYTES), dtype=np.uint8)
        strb = rng.random((150, BYTES)) < rng.choice([0, 0.1, 0.9, 1], (150, 1))
        for a, d, s in zip(addr, data, strb):
            image[a] = np.where(s, d, image[a])
        items[name] = write_items(addr, data, strb)
    unit().run_streams(items, {}, stall=stall)
    unit().step(100)
    assert unit().get("busy") == 0
    requests = {name: rng.integers(0, WORDS, 200) for name in READS}
    words, _ = read(requests, stall={name: stall for name in READS})
    for name, addr in requests.items():
        np.testing.assert_array_equal(words[name], image[addr], err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_concurrent(seed):
    """Reads racing writes: each port sees the versions of a word in the order in which they were written."""
    rng = np.random.default_rng([seed, 2])
    hot, count = rng.choice(WORDS, 8, replace=False), 300
    data = np.zeros((count, BYTES), np.uint8)
    data.view("<u4")[:] = np.arange(1, count + 1)[:, None]  # version in every 4 bytes
    addr = hot[rng.integers(0, 8, count)]
    for a in hot:
        zero = write_items([a], np.zeros((1, BYTES), np.uint8), np.ones((1, BYTES), bool))
        unit().run_streams({"vec": zero}, {})
    requests = {name: hot[rng.integers(0, 8, count)] for name in READS}
    sim = unit()
    stall = dict.fromkeys(("vec", *READS), 0.2)
    out = sim.run_streams({"vec": write_items(addr, data, np.ones((count, BYTES), bool)), **requests},
                          {f"{name}_out": count for name in READS}, stall=stall)
    seen = 0
    for name, asked in requests.items():
        versions = out[f"{name}_out"].view("<u4")
        assert (versions == versions[:, :1]).all(), "torn word"
        for a in hot:
            mine = versions[asked == a, 0]
            assert (np.diff(mine.astype(int)) >= 0).all()
            assert set(mine) <= {0, *(np.flatnonzero(addr == a) + 1)}
            seen += len(set(mine))
    assert seen > 100, "the reads did not race"


def test_latency_and_visibility():
    """READ_LATENCY from acceptance to data; a write is visible to a read accepted when `busy` falls; reset
    drops requests.
    """
    dut = Sram(CONFIG, ("a",), ("w",))

    async def bench(ctx):
        for version in range(1, 5):
            addr = 5 * version
            ctx.set(dut.w.req.payload, {"addr": addr, "data": version, "strb": 1})
            ctx.set(dut.w.req.valid, 1)
            assert ctx.get(dut.w.req.ready) and not ctx.get(dut.w.busy)
            await ctx.tick()
            ctx.set(dut.w.req.valid, 0)
            assert ctx.get(dut.w.busy), "accepted and not yet visible"
            await ctx.tick()
            assert not ctx.get(dut.w.busy)
            ctx.set(dut.a.req.payload, addr)
            ctx.set(dut.a.req.valid, 1)
            for cycle in range(READ_LATENCY):
                assert not ctx.get(dut.a.valid), cycle
                await ctx.tick()
                ctx.set(dut.a.req.valid, 0)
            assert ctx.get(dut.a.valid) and ctx.get(dut.a.data) == version
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def sequential(starts, count):
    return {name: (np.arange(count) + start) % WORDS for name, start in zip(READS, starts)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ports", [1, 2, 4, 6, 8])
def test_sequential_streams(ports, seed):
    """Sequential streams on up to as many ports as banks, from any starts: full rate after the start-up."""
    rng = np.random.default_rng([seed, 3])
    starts = [0] * ports if seed == 0 else rng.integers(0, WORDS, ports)
    image = fill(rng)
    requests = sequential(starts, 400)
    words, cycles = read(requests)
    for name, addr in requests.items():
        np.testing.assert_array_equal(words[name], image[addr], err_msg=name)
    lost = cycles - 400 - READ_LATENCY
    print(f"{ports} sequential streams: {lost} cycles lost of {cycles}")
    assert 0 <= lost <= CONFIG.sram_banks


def test_fairness():
    """Eight ports on one bank: each gets an eighth of it, in turn, whatever the others do."""
    requests = {name: np.full(50, 8 * k) for k, name in enumerate(READS)}
    _, cycles = read(requests)
    assert cycles == 400 + READ_LATENCY
    stamps = np.stack([unit().stamps[f"{name}_out"] for name in READS])
    assert (np.diff(stamps, axis=1) == len(READS)).all()


@pytest.mark.parametrize("pattern, least", [("scheduled", 0.98), ("random", 0.55), ("stride 3", 0.98)])
def test_grants(pattern, least):
    """Share of port cycles granted on 8 banks with every one of 8 read ports asking always."""
    rng = np.random.default_rng(4)
    count, ports = 600, len(READS)
    if pattern == "scheduled":  # the ports start a bank apart
        requests = sequential(range(ports), count)
    elif pattern == "stride 3":
        requests = {name: (3 * np.arange(count) + rng.integers(WORDS)) % WORDS for name in READS}
    else:
        requests = {name: rng.integers(0, WORDS, count) for name in READS}
    _, cycles = read(requests)
    share = count / (cycles - READ_LATENCY)
    print(f"{pattern}: {share:.1%} of port cycles granted")
    assert share >= least


def shared_reads(requests, stall=0.0):
    """Reads of words, of which w holds w + 1, by readers that share a port: cycles of acceptance by reader,
    and (cycle, word) of the answers. A reader is idle before each request with probability `stall`."""
    dut = Sram(CONFIG, ("alone", ("b", "c", "d")), ("w",))
    taken, got = {name: [] for name in requests}, {name: [] for name in requests}

    async def bench(ctx):
        rng = np.random.default_rng(7)
        for word in range(WORDS):
            ctx.set(dut.w.req.payload, {"addr": word, "data": word + 1, "strb": 255})
            ctx.set(dut.w.req.valid, 1)
            await ctx.tick().until(dut.w.req.ready)
        ctx.set(dut.w.req.valid, 0)
        await ctx.tick().repeat(4)
        for cycle in range(20 * sum(map(len, requests.values())) + 20):
            for name, words in requests.items():
                port, sent = getattr(dut, name), len(taken[name])
                valid = sent < len(words) and bool(ctx.get(port.req.valid) or rng.random() >= stall)
                ctx.set(port.req.valid, valid)
                ctx.set(port.req.payload, int(words[sent]) if valid else 0)
            for name in requests:
                port = getattr(dut, name)
                if ctx.get(port.req.valid) and ctx.get(port.req.ready):
                    taken[name].append(cycle)
                if ctx.get(port.valid):
                    got[name].append((cycle, ctx.get(port.data) - 1))
            await ctx.tick()
            for name in requests:  # a request that was taken is withdrawn, one that was not stays
                if taken[name] and taken[name][-1] == cycle:
                    ctx.set(getattr(dut, name).req.valid, 0)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return taken, got


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_shared_port(stall):
    """Readers that share a port: each gets its own words in order, and their turns come round."""
    rng = np.random.default_rng(5)
    requests = {name: rng.integers(0, WORDS, 100) for name in ("alone", "b", "c", "d")}
    taken, got = shared_reads(requests, stall)
    for name, words in requests.items():
        assert [word for _, word in got[name]] == list(words), name
        assert all(answer - asked >= READ_LATENCY for (answer, _), asked in zip(got[name], taken[name]))
    if not stall:
        for a, b in zip(taken["b"][:90], taken["c"][:90]):
            assert abs(a - b) <= 16


def test_shared_port_alone():
    """One reader of a shared port: a word in every cycle. Three of them: a third of the cycles each."""
    taken, got = shared_reads({"c": np.arange(60)})
    assert (np.diff(taken["c"]) == 1).all()
    assert [answered for answered, _ in got["c"]] == [asked + READ_LATENCY for asked in taken["c"]]
    requests = {name: np.arange(k, 60 + k) for k, name in enumerate("bcd")}
    taken, got = shared_reads(requests)
    for cycles in taken.values():
        assert (np.diff(cycles) == 3).all()
    assert all([word for _, word in got[name]] == list(words) for name, words in requests.items())
