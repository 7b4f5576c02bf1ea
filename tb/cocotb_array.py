"""The bare systolic array: every dot product of the streamed blocks, against golden.formats.block_dot."""

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from golden.formats import INT8, block_dot
from tb.bench import Bench
from tb.designs import CONFIG

C, LATENCY, ONE = CONFIG.columns, CONFIG.columns + 6, 127


def packed(block: np.ndarray) -> int:
    return int.from_bytes(block.astype(np.int8).tobytes(), "little")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2])
async def test_dot_products(dut, seed):
    """Passes of random length with gaps, the extremes -128 x -128 included, at the stated latency."""
    bench = Bench(dut, seed)
    rng = np.random.default_rng(seed)
    ports = {
        name: getattr(dut, f"array_{name}") for name in ("valid", "swap", "block", "write", "stationary")
    }
    for port in ports.values():
        port.value = 0
    await bench.start()
    edge = RisingEdge(dut.clk)
    expected: dict[int, list[int]] = {}
    cycle, checked = 0, 0

    async def tick() -> None:
        nonlocal cycle, checked
        await edge
        cycle += 1
        if cycle in expected:
            got = [getattr(dut, f"array_dot_{c}").value.to_signed() for c in range(C)]
            assert got == expected.pop(cycle), f"seed {seed}, dot products in cycle {cycle}"
            checked += 1

    extremes = np.array([-128, 127, 0, -1, 1])
    for number in range(12):
        stationary = rng.choice(extremes, (C, 32)) if number < 4 else rng.integers(-128, 128, (C, 32))
        stationary[number == 0] = -128
        for c in rng.permutation(C):
            dut.array_write.value, dut.array_stationary.value = 1 << int(c), packed(stationary[c])
            await tick()
        dut.array_write.value = 0
        for j in range(int(rng.integers(C, 12))):
            block = np.full(32, -128) if number == 0 else rng.integers(-128, 128, 32)
            dut.array_valid.value, dut.array_swap.value, dut.array_block.value = 1, int(j == 0), packed(block)
            dots = block_dot(stationary, block, np.full(C, ONE), np.full(C, ONE), INT8, INT8).astype(
                np.float64
            )
            # scale 2^0 and two int8 blocks: the float32 is the exact sum over 2^12
            expected[cycle + 1 + LATENCY] = (dots * 4096).astype(int).tolist()
            await tick()
            dut.array_valid.value = dut.array_swap.value = 0
            if rng.random() < 0.3:
                await tick()
        for _ in range(C):
            await tick()
    for _ in range(LATENCY + 2):
        await tick()
    assert checked > 50 and not expected
