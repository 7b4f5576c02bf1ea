"""Element fetcher on a real SRAM with a competing port: data, order, coalescing, rate and range errors."""

from functools import cache

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.config import TileConfig
from hw.fetch import Fetcher, element_layout, request_layout
from hw.ports import SramRead, SramWrite
from hw.sram import READ_LATENCY, Sram
from sim.verilate import build_unit

CONFIG = TileConfig(columns=2, sram_banks=8, sram_bytes=8192, axi_data_bits=64, axi_burst_beats=16)
WORDS, BYTES = CONFIG.sram_words, CONFIG.word_bytes
DEPTH = 16


class Bench(wiring.Component):
    """Fetcher and SRAM; `rival` competes for the banks, `fill` writes, `reads` counts the reads issued."""

    def __init__(self, **kind):
        self.kind = kind
        super().__init__({
            "i": In(stream.Signature(request_layout)), "o": Out(stream.Signature(element_layout(CONFIG))),
            "fill": In(SramWrite(CONFIG).members["req"].signature),
            "rival": In(SramRead(CONFIG).members["req"].signature),
            "reads": Out(32), "error": Out(1), "error_addr": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.sram = sram = Sram(CONFIG, ("a", "rival"), ("fill",))
        m.submodules.fetch = fetch = Fetcher(CONFIG, DEPTH, **self.kind)
        wiring.connect(m, fetch.read, sram.a)
        wiring.connect(m, fetch.i, wiring.flipped(self.i))
        wiring.connect(m, fetch.o, wiring.flipped(self.o))
        wiring.connect(m, sram.fill.req, wiring.flipped(self.fill))
        wiring.connect(m, sram.rival.req, wiring.flipped(self.rival))
        m.d.comb += [self.error.eq(fetch.error), self.error_addr.eq(fetch.error_addr)]
        m.d.sync += self.reads.eq(self.reads + (fetch.read.req.valid & fetch.read.req.ready))
        return m


KINDS: dict[str, dict] = {"ram": {}, "block": {"block": True}, "sparse": {"sparse": True}}
chosen = "ram"


@cache
def built(kind):
    return build_unit(Bench(**KINDS[kind]), f"fetch_bench_{kind}")


def unit():
    return built(chosen)


def latency():
    return READ_LATENCY + 4 + (chosen in ("block", "sparse"))


@cache
def fill(kind):
    """Contents of the SRAM, once for all tests: reset keeps them."""
    data = np.random.default_rng(1).integers(0, 256, (WORDS, BYTES), dtype=np.uint8)
    bits = (WORDS - 1).bit_length()
    unit().reset()
    strobes = (1 << BYTES) - 1 << (bits + 8 * BYTES)
    items = [k | int.from_bytes(row.tobytes(), "little") << bits | strobes for k, row in enumerate(data)]
    unit().run_streams({"fill": items}, {})
    unit().step(10)
    return data


def image():
    return fill(chosen)


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    global chosen
    chosen = request.param
    return chosen


@pytest.fixture(autouse=True)
def clean(kind):
    image()
    unit().reset()


def fetch(addr, last, **options):
    """Checks data, offset and last of every element; returns (reads issued, cycles until the last one)."""
    sim = unit()
    before = sim.get("reads")
    items = [int(a) | int(end) << 32 for a, end in zip(addr, last)]
    out = sim.run_streams({"i": items}, {"o": len(items)}, **options)["o"]
    np.testing.assert_array_equal(out[:, :BYTES], image()[addr // BYTES])
    np.testing.assert_array_equal(out[:, BYTES], addr % BYTES | np.asarray(last) * BYTES)
    return sim.get("reads") - before, int(sim.stamps["o"][-1] - sim.stamps["i"][0] + 1)


def ends(addr, *positions):
    last = np.zeros(len(addr), int)
    last[[-1, *positions]] = 1
    return last


def reads_needed(addr, last):
    word = addr // BYTES
    return 1 + int(((np.diff(word) != 0) | (last[:-1] == 1)).sum())


@pytest.mark.parametrize("step", [1, 2, 4, 8, 16, 32, 96, -4, 0])
def test_rate(step):
    """One element per cycle for every step, each word read once; the stated latency."""
    addr = (4000 + step * np.arange(400)) % CONFIG.sram_bytes
    reads, cycles = fetch(addr, ends(addr))
    assert reads == reads_needed(addr, ends(addr))
    if chosen == "sparse" and abs(step) >= 4:  # two words under way
        few = abs(step) > 4
        assert cycles <= 400 * (6 if few else 1) + latency() + 1  # -4 starts with a word of one element
        return
    assert cycles == 400 + latency()
    assert (np.diff(unit().stamps["o"]) == 1).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("stall", [0.0, 0.2, 0.5, (0.9, 5)])
def test_random(seed, stall):
    """Random walks, with a rival on the same banks and stalls on both sides."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1, 4, 32, -7, 0, 1000], 500, p=[.3, .3, .2, .1, .05, .05])
    addr = rng.integers(0, CONFIG.sram_bytes) + np.cumsum(steps)
    addr %= CONFIG.sram_bytes
    last = (rng.random(500) < 0.1).astype(int)
    unit().push("rival", rng.integers(0, WORDS, 2000))
    reads, _ = fetch(addr, last, stall={"i": stall, "o": stall, "rival": 0.0})
    assert reads == reads_needed(addr, last)


def test_rival_costs_no_rate():
    """Two sequential streams: the fetcher loses at most the cycles of one round over the banks."""
    addr = np.arange(0, 32 * 250, 32)
    unit().push("rival", np.arange(2000) % WORDS)
    _, cycles = fetch(addr, ends(addr), stall={"rival": 0.0})
    assert cycles <= 250 * (6 if chosen == "sparse" else 1) + latency() + CONFIG.sram_banks


@pytest.mark.parametrize("bad", [8192, 1 << 31, 8192 + 3, 0xffffffff])
@pytest.mark.parametrize("stall", [0.0, (0.9, 4)])
def test_range_error(bad, stall):
    """A request outside of the SRAM is not sent and reported; earlier ones are delivered."""
    sim = unit()
    addr = np.arange(0, 640, 32)
    before = sim.get("reads")
    sim.push("i", [int(a) for a in addr] + [bad, 0, 32])
    sim.stream_stall("o", stall)
    sim.collect("o")
    sim.step(800)
    np.testing.assert_array_equal(sim.pop("o")[:, :BYTES], image()[addr // BYTES])
    assert sim.get("error") and sim.get("error_addr") == bad and sim.get("reads") - before == len(addr)
    assert not sim.get("i.ready")
    sim.reset()
    assert not sim.get("error")
    assert fetch(addr, ends(addr), stall=0.0)[0] == len(addr)
