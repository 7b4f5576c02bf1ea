"""Systolic array, accumulators, stream edge and transposer on the Amaranth simulator, each against numpy."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from golden import arith, formats
from hw.accumulate import Accumulators
from hw.array import SystolicArray
from hw.config import ECP5, TINY
from hw.edge import FRACTION_BITS, StreamEdge, Transposer, edge_command


def to_int(values):
    """Bytes (any signedness), first one lowest, as one integer."""
    return int.from_bytes(np.asarray(values).astype(np.uint8).tobytes(), "little")


def to_bytes(value, count=32):
    return np.frombuffer(value.to_bytes(count, "little"), np.uint8)


def simulate(component, testbench, *more):
    sim = Simulator(component)
    sim.add_clock(1e-6)
    for bench in (testbench, *more):
        sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("config", (TINY, ECP5), ids=lambda c: c.name)
def test_array_is_exact_with_the_stated_latency(config):
    """Random blocks with gaps, a new stationary set every few blocks, the extremes -128 x -128 included."""
    dut, columns = SystolicArray(config), config.columns
    rng = np.random.default_rng(1)
    expected, cycle = {}, [0]
    seen = []

    async def drive(ctx):
        async def tick():
            await ctx.tick()
            cycle[0] += 1

        for burst in range(6):
            stationary = rng.integers(-128, 128, (columns, 32))
            if burst == 0:
                stationary[:] = -128
            for c in range(columns):
                ctx.set(dut.write, 1 << c)
                ctx.set(dut.stationary, to_int(stationary[c]))
                await tick()
            ctx.set(dut.write, 0)
            await tick()
            for j in range(9):
                block = np.full(32, -128) if burst == 0 and j == 0 else rng.integers(-128, 128, 32)
                ctx.set(dut.valid, 1)
                ctx.set(dut.swap, int(j == 0))
                ctx.set(dut.block, to_int(block))
                expected[cycle[0] + dut.latency] = stationary @ block
                await tick()
                ctx.set(dut.valid, 0)
                for _ in range(rng.integers(0, 2)):
                    await tick()
        for _ in range(dut.latency + 1):
            await tick()

    async def watch(ctx):
        while len(seen) < 6 * 9:
            if cycle[0] in expected:
                assert [ctx.get(dot) for dot in dut.dot] == expected[cycle[0]].tolist()
                seen.append(cycle[0])
            await ctx.tick()

    assert dut.latency == columns + 6
    simulate(dut, drive, watch)
    assert len(seen) == 54


def test_transposer_streams_tiles_without_a_gap():
    dut = Transposer()
    tiles = np.random.default_rng(2).integers(0, 256, (4, 32, 32), np.uint8)

    async def bench(ctx):
        for t, row in enumerate(np.concatenate((*tiles, np.zeros((32, 32), np.uint8)))):
            if t % 5 == 0:  # without a tick nothing moves
                ctx.set(dut.tick, 0)
                await ctx.tick()
                ctx.set(dut.i, (1 << 256) - 1)
            ctx.set(dut.tick, 1)
            ctx.set(dut.phase, t % 32)
            ctx.set(dut.show, t >= 32)
            ctx.set(dut.last, t == 32 * (len(tiles) + 1) - 1)
            await ctx.tick()  # rows and columns come a cycle after their tick
            ctx.set(dut.i, to_int(row))
            column = tiles[t // 32 - 1][:, t % 32] if t >= 32 else 0
            assert (to_bytes(ctx.get(dut.o)) == column).all(), t
        ctx.set(dut.tick, 0)
        ctx.set(dut.show, 0)
        for phase in range(32):  # nothing comes out between tiles
            ctx.set(dut.phase, phase)
            await ctx.tick()
            assert not ctx.get(dut.o)

    simulate(dut, bench)


@pytest.mark.parametrize("stall", (0.0, 0.4))
@pytest.mark.parametrize("seed", range(2))
def test_edge_decodes_and_transposes(seed, stall):
    """Commands of all formats in a row; memory bytes come from golden.formats.pack, blocks must be its
    integers."""
    rng, choice = np.random.default_rng(seed), random.Random(seed)
    commands, chunks, blocks = [], [], []
    for fmt in (0, 2, 1, "transpose", "transpose", 1, 2, "transpose", 0, 1):
        k = choice.randrange(1, 4)
        offset = choice.choice((0, 5, 16))
        n = choice.choice((1, 3, 8, 13, 16))
        if fmt == "transpose":
            commands.append(dict(fmt=0, transpose=1, offset=offset, n=n, k=k))
            for tile in rng.integers(0, 256, (k, 32, 32), np.uint8):
                chunks += list(tile)
                blocks += list(tile.T[offset : offset + n])
            continue
        commands.append(dict(fmt=fmt, transpose=0, offset=0, n=n, k=k))
        ints, _ = formats.encode(rng.standard_normal((k, n * 32)).astype(np.float32), fmt)
        for panel in ints:
            data = formats.pack(panel.reshape(-1), fmt)
            chunks += list(np.pad(data, (0, -len(data) % 32)).reshape(-1, 32))
            blocks += list(panel << (FRACTION_BITS[fmt] - formats.FRAC[fmt]))
    dut, cycles, noise = StreamEdge(), [0], random.Random(seed + 100)

    def send(port, items, chance):
        async def bench(ctx):
            for item in items:
                while noise.random() < chance:
                    ctx.set(port.valid, 0)
                    await ctx.tick()
                ctx.set(port.payload, item)
                ctx.set(port.valid, 1)
                await ctx.tick().until(port.ready)
            ctx.set(port.valid, 0)

        return bench

    async def receive(ctx):
        for i, block in enumerate(blocks):
            while True:
                taken = bool(ctx.get(dut.valid)) and noise.random() >= stall
                ctx.set(dut.take, taken)
                await ctx.tick()
                cycles[0] += 1
                if taken:
                    break
            got = to_bytes(ctx.get(dut.block)).view(np.int8)
            assert (got == np.asarray(block).astype(np.int8)).all(), f"block {i}"

    simulate(
        dut,
        receive,
        send(dut.command, [edge_command.const(c) for c in commands], 0.0),
        send(dut.i, [to_int(c) for c in chunks], stall),
    )
    if not stall:
        ticks = sum(32 * c["k"] if c["transpose"] else c["n"] * c["k"] for c in commands)
        assert cycles[0] <= ticks + 2 * 32 + 8, (
            "a block or tick per cycle, and 32 for each change from transposed to plain"
        )


def test_accumulators_scale_add_and_keep():
    """Sums of several blocks in interleaved entries at the shortest revisit distance; overflow, flush and NaN
    scales included."""
    dut, columns = Accumulators(TINY), TINY.columns
    assert (dut.latency, dut.revisit) == (11, 9)
    rng = np.random.default_rng(4)
    entries, passes = dut.revisit, 5
    dots = rng.integers(-1 << 19, (1 << 19) + 1, (passes, entries, columns))
    dots[1, 2] = 0
    exps = rng.integers(-130, -120, (passes, entries)) - 127
    exps[2, 3], exps[3, 4] = -11, -266
    nans = np.zeros((passes, entries), bool)
    nans[4, 5] = True
    scales = rng.integers(100, 140, (2, columns))
    scales[1, 0] = 255
    psum, results, cycle = np.zeros((entries, columns), np.float32), {}, [0]
    stream = [(p, e) for p in range(passes) for e in range(entries)]

    async def drive(ctx):
        for index, values in enumerate(scales):
            ctx.set(dut.scale_set, index)
            ctx.set(dut.scales, to_int(values))
            ctx.set(dut.scale_write, 1)
            await ctx.tick()
            cycle[0] += 1
        ctx.set(dut.scale_write, 0)
        for t in range(len(stream) + dut.latency + 2):
            if t < len(stream):
                p, e = stream[t]
                which = int(e == 1 and p == passes - 1)
                ctx.set(
                    dut.tag,
                    dict(
                        valid=1,
                        set=which,
                        exp=int(exps[p, e]),
                        nan=int(nans[p, e]),
                        psum=e,
                        start=int(p == 0),
                        keep=int(p < passes - 1),
                        emit=int(p == passes - 1),
                    ),
                )
                dot = arith.dot_to_f32(dots[p, e], exps[p, e] + scales[which])
                dot = np.where(nans[p, e] | (scales[which] == 255), arith.NAN, dot)
                psum[e] = dot if p == 0 else arith.fadd(psum[e], dot)
                if p == passes - 1:
                    results[cycle[0] + dut.latency] = psum[e].copy()
            else:
                ctx.set(dut.tag.valid, 0)
            if 2 <= t < len(stream) + 2:
                for r, port in enumerate(dut.dot):
                    ctx.set(port, int(dots[stream[t - 2]][r]))
            assert ctx.get(dut.valid) == (cycle[0] in results)
            if cycle[0] in results:
                assert (
                    to_bytes(ctx.get(dut.o), 4 * columns).view(np.uint32)
                    == results.pop(cycle[0]).view(np.uint32)
                ).all()
            await ctx.tick()
            cycle[0] += 1

    simulate(dut, drive)
    assert not results
