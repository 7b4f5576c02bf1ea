"""BlockMaximum and Quantiser equal golden.formats.quantise_int8 byte for byte, at full rate and under
stalls."""

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from golden import formats
from hw.quantiser import BlockMaximum, Quantiser, block_layout, element_layout


class Bench(wiring.Component):
    """Elements pass the maximum and wait in a queue of the test bench for the quantiser."""

    def __init__(self, columns: int):
        self.columns = columns
        super().__init__(
            {
                "valid": In(1),
                "x": In(32 * columns),
                "end": In(1),
                "i": In(stream.Signature(element_layout(columns))),
                "o": Out(stream.Signature(block_layout(columns))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.maximum = maximum = BlockMaximum(self.columns, 32)
        m.submodules.quantiser = quantiser = Quantiser(self.columns)
        wiring.connect(m, maximum.o, quantiser.scales)
        wiring.connect(m, wiring.flipped(self.i), quantiser.i)
        wiring.connect(m, quantiser.o, wiring.flipped(self.o))
        m.d.comb += [maximum.valid.eq(self.valid), maximum.x.eq(self.x), maximum.end.eq(self.end)]
        return m


def values(rng: np.random.Generator, n: int, columns: int) -> np.ndarray:
    """Blocks of one scale with ties and saturating elements; some with zeros, tiny values, infinity or
    NaN."""
    x = np.zeros((n, columns), np.float32)
    for start in range(0, n, 8):
        exponent = rng.integers(-140, 128, columns)
        halves = (rng.integers(-511, 512, (8, columns)) / 256).astype(np.float32)  # 9 bits: elements and ties
        beside = np.nextafter(halves, rng.choice([-4, 4], (8, columns)).astype(np.float32))
        halves = np.where(rng.integers(0, 2, (8, columns)), halves, beside)
        with np.errstate(over="ignore", under="ignore"):
            shift = exponent - rng.integers(0, 10, (8, columns)) * rng.integers(0, 2, (8, columns))
            x[start : start + 8] = np.ldexp(halves, shift)[: n - start]
        kind = rng.integers(0, 12)
        if kind < 3:
            x[start, rng.integers(0, columns)] = (np.inf, np.nan, -np.inf)[kind]
        elif kind == 3:
            x[start : start + 8] = 0
        elif kind == 4:
            x[start : start + 8, 0] = 1.9999999  # rounds up to 128 in an all-ones block
    tiny = np.abs(x) < 2.0**-126
    return np.where(np.isnan(x), np.float32(np.nan), np.where(tiny, np.copysign(np.float32(0), x), x))


@pytest.mark.parametrize("columns, stall", [(2, 0.0), (8, 0.0), (4, 0.3), (16, 0.0)])
def test_quantiser(columns, stall):
    rng = np.random.default_rng(columns)
    instructions = [
        (int(n), int(b))
        for n, b in zip(rng.choice([1, 5, 8, 31, 32, 33, 64, 96], 14), rng.integers(0, 3, 14), strict=True)
    ]
    elements, expected = [], []
    for n, block in instructions:
        x = values(rng, n, columns)
        size = 32 >> block
        ints, scales = formats.quantise_int8(np.ascontiguousarray(x.T), size)
        for k in range(ints.shape[1]):
            expected += [(0, ints[r, k].astype(np.int8).tobytes()) for r in range(columns)]
            expected.append((1 + (k == ints.shape[1] - 1), scales[:, k].tobytes()))
        for e in range(n):
            word = int.from_bytes(x[e].view(np.uint32).tobytes(), "little")
            elements.append((word, e == n - 1, block, e == n - 1 or e % size == size - 1, size))
    got, stamps = [], []
    dut = Bench(columns)

    async def feed(ctx):
        ctx.set(dut.i.payload.quantise, 1)
        for k, (word, last, block, end, _) in enumerate(elements):
            ctx.set(dut.valid, 1)
            ctx.set(dut.x, word)
            ctx.set(dut.end, end)
            await ctx.tick()
            ctx.set(dut.valid, 0)
            # The whole block passes the maximum first, as in the queue of results.
            if end:
                start = max((j + 1 for j in range(k) if elements[j][3]), default=0)
                for word2, last2, block2, _, _ in elements[start : k + 1]:
                    ctx.set(dut.i.payload.x, word2)
                    ctx.set(dut.i.payload.last, last2)
                    ctx.set(dut.i.payload.block, block2)
                    while stall and rng.random() < stall:
                        await ctx.tick()
                    ctx.set(dut.i.valid, 1)
                    await ctx.tick().until(dut.i.ready)
                    ctx.set(dut.i.valid, 0)
        for _ in range(100 + 2 * columns):
            await ctx.tick()

    async def drain(ctx):
        cycle = 0
        while True:
            ready = not stall or rng.random() >= stall
            ctx.set(dut.o.ready, int(ready))
            _, _, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            cycle += 1
            if valid and ready:
                got.append(payload)
                stamps.append(cycle)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(feed)
    simulator.add_testbench(drain, background=True)
    simulator.run()
    assert len(got) == len(expected)
    for payload, (kind, data) in zip(got, expected, strict=True):
        assert (payload.is_scales, payload.last) == (kind > 0, kind == 2)
        if kind:
            assert payload.scales.to_bytes(columns, "little") == data
        else:
            assert payload.data.to_bytes(32, "little")[32 - len(data) :] == data
    if not stall:  # the blocks of all lanes and their scales leave in successive cycles
        groups = np.array(stamps).reshape(-1, columns + 1)
        assert (np.diff(groups, axis=1) == 1).all()
