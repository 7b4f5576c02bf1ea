"""Compiled blocks on the instruction-level model equal golden.blocks bit for bit: sizes, formats, configs."""

from dataclasses import replace

import numpy as np
import pytest

from golden import formats
from golden.blocks import Block
from golden.spec import GPTOSS_SIM, LLAMA_SIM, BlockSpec, random_params
from hw import config
from sw.block import run_block
from sw.device import MachineDevice

RAGGED = BlockSpec(
    name="ragged", hidden=64, heads=8, kv_heads=4, head_dim=8, ffn=172, rope="interleaved", max_tokens=64
)
WIDE = BlockSpec(
    name="wide",
    hidden=96,
    heads=4,
    kv_heads=2,
    head_dim=64,
    ffn=100,
    max_tokens=64,
    ffn_fmt=formats.FP6,
    bias=True,
)
NARROW = BlockSpec(
    name="narrow",
    hidden=40,
    heads=3,
    kv_heads=1,
    head_dim=16,
    ffn=33,
    max_tokens=64,
    window=20,
    sinks=True,
    attn_fmt=formats.FP4,
    ffn_fmt=formats.FP4,
)
MOE = BlockSpec(
    name="moe",
    hidden=64,
    heads=4,
    kv_heads=1,
    head_dim=32,
    ffn=64,
    max_tokens=128,
    window=8,
    sinks=True,
    experts=6,
    top_k=4,
    act="clamped",
    bias=True,
    ffn_fmt=formats.FP4,
)

CASES = [
    (LLAMA_SIM, "base", 64, 16),
    (GPTOSS_SIM, "base", 64, 16),
    (LLAMA_SIM, "ecp5", 16, 2),
    (GPTOSS_SIM, "ecp5", 0, 2),
    (replace(GPTOSS_SIM, hidden=256, heads=4), "ecp5", 16, 2),
    *[
        (s, c, t, d)
        for s in (RAGGED, WIDE, NARROW)
        for c, t, d in (("base", 33, 3), ("ecp5", 1, 4), ("base", 0, 2))
    ],
    (RAGGED, "tiny", 7, 2),
    (WIDE, "tiny", 0, 2),  # the smallest prefill, 32 tokens, does not fit
    (NARROW, "tiny", 7, 2),
    (MOE, "base", 33, 60),
    (MOE, "ecp5", 9, 40),
]


@pytest.mark.parametrize("spec,name,tokens,steps", CASES, ids=lambda v: getattr(v, "name", v))
def test_equals_golden(spec: BlockSpec, name: str, tokens: int, steps: int) -> None:
    rng = np.random.default_rng(tokens)
    x = rng.normal(0, 1, (tokens + steps, spec.hidden)).astype(np.float32)
    params = random_params(spec, 3)
    got = run_block(MachineDevice(config.named(name)), spec, params, x[:tokens], x[tokens:])
    block = Block(spec, params)
    want = [block.forward(x[:tokens], 0)] if tokens else []
    want += [block.forward(x[tokens + i : tokens + i + 1], tokens + i) for i in range(steps)]
    assert np.array_equal(got.view(np.uint32), np.concatenate(want).view(np.uint32))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "spec,name", [(RAGGED, "base"), (MOE, "base"), (NARROW, "ecp5")], ids=lambda v: getattr(v, "name", v)
)
def test_no_race(spec: BlockSpec, name: str, seed: int) -> None:
    """Any order in which units may run gives the same bits: no semaphore is missing."""
    x = np.random.default_rng(seed).normal(0, 1, (20, spec.hidden)).astype(np.float32)
    params = random_params(spec, 3)
    plain, shuffled = (
        run_block(MachineDevice(config.named(name), schedule=s), spec, params, x[:17], x[17:])
        for s in (None, seed)
    )
    assert np.array_equal(plain.view(np.uint32), shuffled.view(np.uint32))


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(heads=7), "heads"),
        (dict(head_dim=24), "head_dim"),
        (dict(window=0), "window"),
        (dict(max_tokens=33), "max_tokens"),
        (dict(act="relu"), "act"),
        (dict(experts=2, top_k=3), "top_k"),
    ],
)
def test_bad_spec(change: dict, message: str) -> None:
    fields = dict(name="bad", hidden=64, heads=8, kv_heads=4, head_dim=32, ffn=64) | change
    with pytest.raises(ValueError, match=message):
        BlockSpec(**fields)


@pytest.mark.parametrize(
    "head_dim,message", [(128, "head_dim = 128: allowed is at most psum_depth = 64"), (32, "panel buffer")]
)
def test_too_large_for_tile(head_dim: int, message: str) -> None:
    spec = BlockSpec(name="large", hidden=4096, heads=1, kv_heads=1, head_dim=head_dim, ffn=32)
    with pytest.raises(ValueError, match=message):
        run_block(
            MachineDevice(config.TINY),
            spec,
            random_params(spec, 0),
            np.zeros((1, 4096), np.float32),
            np.zeros((0, 4096), np.float32),
        )


def test_too_many_tokens() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        run_block(
            MachineDevice(config.BASE),
            RAGGED,
            random_params(RAGGED, 0),
            np.zeros((64, 64), np.float32),
            np.zeros((1, 64), np.float32),
        )
