"""A byte that differs is reported with its tensor, the instruction that wrote it, and both values."""

import numpy as np

from golden.machine import Machine
from golden.spec import BlockSpec, random_params
from hw.config import TINY
from sim.tile import first_difference
from sw.block import BlockImage

SPEC = BlockSpec(name="small", hidden=32, heads=2, kv_heads=1, head_dim=32, ffn=32, max_tokens=32)


def test_first_difference() -> None:
    x = np.random.default_rng(0).normal(0, 1, (3, 32)).astype(np.float32)
    image = BlockImage(TINY, SPEC, random_params(SPEC, 0), x[:2], x[2:], dram_bytes=1 << 20)
    model = Machine(TINY, image.dram.data.copy(), trace=True)
    words, args = image.phases["prefill"]
    model.run(image.program_at["prefill"], len(words), args)
    rtl = model.dram.copy()
    assert first_difference(rtl, model, image.dram, image.labels["prefill"]) is None
    rtl[image.x_out + 9] ^= 0x40
    text = first_difference(rtl, model, image.dram, image.labels["prefill"])
    assert text is not None
    assert "x out + 9" in text and "store instruction at word" in text and "1 bytes differ" in text
    rtl[image.layers_at] ^= 1
    text = first_difference(rtl, model, image.dram, image.labels["prefill"])
    assert text is not None and "layers + 0" in text and "not written by the program" in text
