"""Compiled transformer blocks on the Verilated tile, for awkward shapes and slow, stalling memory.

Every byte of DRAM equals the instruction-level model's, every output the golden block's.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from golden.blocks import Block
from golden.spec import GPTOSS_SIM, LLAMA_SIM, BlockSpec, random_params
from hw.config import named
from sim.test_tile_random import draw_timing
from sim.tile import RtlDevice, first_difference
from sw.assembler import Program
from sw.block import BlockImage
from sw.device import MachineDevice
from sw.layout import put_program
from sw.test_block import MOE as MOE_128
from sw.test_block import NARROW, RAGGED, WIDE

DRAM_BYTES = 16 << 20
MOE = replace(MOE_128, max_tokens=64)
CASES = [
    (RAGGED, "tiny", 7, 2),
    (WIDE, "tiny", 0, 3),
    (NARROW, "tiny", 33, 2),
    (MOE, "tiny", 3, 2),
    (RAGGED, "ecp5", 1, 4),
    (WIDE, "ecp5", 31, 1),
    (NARROW, "ecp5", 5, 3),
    (MOE, "ecp5", 9, 12),
    (RAGGED, "base", 33, 3),
    (WIDE, "base", 17, 2),
    (NARROW, "base", 0, 2),
    (MOE, "base", 33, 3),
    (LLAMA_SIM, "base", 9, 2),
    (GPTOSS_SIM, "base", 9, 2),
]


@cache
def device(name: str) -> RtlDevice:
    """One tile per config."""
    return RtlDevice(
        named(name), dram_bytes=DRAM_BYTES + (1 << 20), random_init=name == "tiny", seed=2, watchdog=50_000
    )


def fill_sram(tile: RtlDevice, content: np.ndarray) -> None:
    """Load the whole SRAM, with a program that lies beyond the DRAM of the blocks."""
    p = Program(tile.config)
    p.load.load(src=DRAM_BYTES + 4096, dst=0, len=len(content))
    words = p.image()
    put_program(tile.dram, DRAM_BYTES, words)
    tile.dram[DRAM_BYTES + 4096 : DRAM_BYTES + 4096 + len(content)] = content
    tile.run(DRAM_BYTES, len(words))


@pytest.mark.parametrize("spec,name,tokens,steps", CASES, ids=lambda v: getattr(v, "name", v))
def test_block(spec: BlockSpec, name: str, tokens: int, steps: int) -> None:
    rng = np.random.default_rng(tokens + 100 * steps)
    params = random_params(spec, 5)
    x = rng.normal(0, 1, (tokens + steps, spec.hidden)).astype(np.float32)
    image = BlockImage(
        named(name), spec, params, x[:tokens], x[tokens:], dram_bytes=DRAM_BYTES
    )
    model, rtl = MachineDevice(named(name), trace=True), device(name)
    model.attach(image.dram.data)
    rtl.attach(image.dram.data)
    assert model.machine is not None
    # Nothing that counts depends on it, but the padding of the KV cache is made of it.
    model.machine.sram[:] = rng.integers(0, 256, len(model.machine.sram), np.uint8)
    fill_sram(rtl, model.machine.sram)
    timing = draw_timing(rtl, rng)
    for phase, (words, args) in image.phases.items():
        run = rtl.run(image.program_at[phase], len(words), args)
        model.run(image.program_at[phase], len(words), args)
        wrong = first_difference(rtl.dram, model.machine, image.dram, image.labels.get(phase, {}))
        assert wrong is None, f"{phase}, {timing}: {wrong}"
        assert run.counters["MACS"] == model.machine.counters["macs"]
        assert run.counters["ELEMENTS"] == model.machine.counters["elements"]
        stats = rtl.sim.stats()
        assert stats["w_bytes"] == model.machine.counters["write_bytes"]
        assert (run.counters["READ_BEATS"], run.counters["WRITE_BEATS"]) == (
            stats["r_beats"],
            stats["w_beats"],
        )
    block = Block(spec, params)
    want = [block.forward(x[:tokens], 0)] if tokens else []
    want += [block.forward(x[i : i + 1], i) for i in range(tokens, tokens + steps)]
    assert np.array_equal(
        image.outputs(rtl.dram).view(np.uint32), np.concatenate(want).view(np.uint32)
    )
