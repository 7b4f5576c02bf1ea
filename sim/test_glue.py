"""Stream glue: order, rate, latency and capacity of buffers; fairness of the arbiters."""

from functools import cache

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from hw.glue import Fifo, RoundRobin, SkidBuffer, StreamArbiter
from sim.verilate import build_unit

STALLS = [0.0, 0.1, 0.5, (0.9, 4)]
LATENCY = {"skid": 1, "fifo2": 2, "fifo16": 2}
INPUTS = 5


class Bench(wiring.Component):
    """One of each, side by side."""

    def __init__(self):
        item = stream.Signature(16)
        super().__init__({
            **{f"{name}_i": In(item) for name in LATENCY}, **{f"{name}_o": Out(item) for name in LATENCY},
            "merge_i": In(item).array(INPUTS), "merge_o": Out(item),
            "level2": Out(2), "level16": Out(5),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.skid = skid = SkidBuffer(16)
        m.submodules.fifo2 = fifo2 = Fifo(16, 2)
        m.submodules.fifo16 = fifo16 = Fifo(16, 16)
        for name, part in zip(LATENCY, (skid, fifo2, fifo16)):
            wiring.connect(m, part.i, wiring.flipped(getattr(self, f"{name}_i")))
            wiring.connect(m, part.o, wiring.flipped(getattr(self, f"{name}_o")))
        m.submodules.merge = merge = StreamArbiter(16, INPUTS)
        for inner, outer in zip(merge.i, self.merge_i):
            wiring.connect(m, inner, wiring.flipped(outer))
        wiring.connect(m, merge.o, wiring.flipped(self.merge_o))
        m.d.comb += [self.level2.eq(fifo2.level), self.level16.eq(fifo16.level)]
        return m


@cache
def unit():
    return build_unit(Bench(), "glue_bench")


@pytest.fixture(autouse=True)
def clean():
    unit().reset()


@pytest.mark.parametrize("name", LATENCY)
@pytest.mark.parametrize("stall_in", STALLS)
@pytest.mark.parametrize("stall_out", STALLS)
def test_buffer(name, stall_in, stall_out):
    """What goes in comes out, in order; at full rate and the stated latency when nothing stalls."""
    items = np.arange(1, 501) * 77 & 0xffff
    i, o = f"{name}_i", f"{name}_o"
    out = unit().run_streams({i: items}, {o: 500}, stall={i: stall_in, o: stall_out})
    np.testing.assert_array_equal(out[o], items)
    if stall_in == stall_out == 0:
        np.testing.assert_array_equal(unit().stamps[o] - unit().stamps[i], LATENCY[name])
        assert (np.diff(unit().stamps[o]) == 1).all()


@pytest.mark.parametrize("name, least, most", [("skid", 2, 2), ("fifo2", 2, 3), ("fifo16", 16, 17)])
def test_capacity(name, least, most):
    """With the output blocked a buffer takes its depth (and what its output register holds), then stops;
    reset empties it.
    """
    sim = unit()
    sim.stream_stall(f"{name}_i", 0.0)
    sim.stream_stall(f"{name}_o", 1.0)
    sim.push(f"{name}_i", np.arange(40))
    sim.step(60)
    held = len(sim._take_stamps(f"{name}_i"))
    assert least <= held <= most
    if name != "skid":
        assert sim.get(name.replace("fifo", "level")) == held
    sim.reset()
    sim.stream_stall(f"{name}_o", 0.0)
    sim.step(5)
    assert not sim.get(f"{name}_o.valid") and len(sim.pop(f"{name}_o")) == 0


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("stall_out", STALLS)
def test_merge(stall, stall_out):
    """Every item once, order kept within each input; without stalls one a cycle, each input in turn."""
    count = 120
    inputs = {f"merge_i_{k}": np.arange(count) | k << 12 for k in range(INPUTS)}
    out = unit().run_streams(inputs, {"merge_o": INPUTS * count},
                             stall={**dict.fromkeys(inputs, stall), "merge_o": stall_out})["merge_o"]
    for k in range(INPUTS):
        np.testing.assert_array_equal(out[out >> 12 == k] & 0xfff, np.arange(count))
    if stall == 0:
        np.testing.assert_array_equal((out >> 12).reshape(count, INPUTS), [range(INPUTS)] * count)
        if stall_out == 0:
            assert (np.diff(unit().stamps["merge_o"]) == 1).all()


@pytest.mark.parametrize("count", [1, 2, 3, 12])
@pytest.mark.parametrize("seed", range(2))
def test_round_robin(count, seed):
    """Against the definition: the first requestor at or after the turn; the turn moves past it, or
    to the first without requests, only on `advance`.
    """
    dut, rng = RoundRobin(count), np.random.default_rng([seed, count])

    async def bench(ctx):
        turn = 0
        for _ in range(300):
            requests = int(rng.integers(0, 1 << count)) if rng.random() < 0.8 else 0
            advance = int(rng.integers(0, 2))
            ctx.set(dut.requests, requests)
            ctx.set(dut.advance, advance)
            order = [(turn + k) % count for k in range(count) if requests >> (turn + k) % count & 1]
            assert ctx.get(dut.grant) == (1 << order[0] if order else 0)
            if advance:
                turn = (order[0] + 1) % count if order else 0
            await ctx.tick()

    m = Module()
    m.submodules.dut = dut
    m.d.sync += Signal().eq(1)  # one requestor needs no state, the simulator needs a domain
    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
