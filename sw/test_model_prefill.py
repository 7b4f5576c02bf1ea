"""Prefill programs of whole models on the instruction-level model equal golden blocks bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest

from golden import formats
from golden.blocks import Block, layer_norm
from golden.spec import BlockSpec, ModelParams, ModelSpec, random_model
from hw.config import TileConfig, named
from hw.isa import LOAD, MATMUL, STORE, THREADS, VECTOR
from sim.tile import RtlDevice
from sw.device import Device, MachineDevice, Run
from sw.layout import put_program, lane_words, unlane
from sw.model_image import ModelImage
from sw.model_prefill import ModelPrefill, best_chunk
from sw.prefill_plan import Plan

DRAM_BYTES = 8 << 20


def model(architecture: str, windows: tuple[int | None, ...], embed_norm: bool = False, **block) -> ModelSpec:
    b = BlockSpec(name=architecture, **block)
    return ModelSpec(
        name=architecture,
        architecture=architecture,
        block=b,
        windows=windows,
        vocab=35,
        context=b.max_tokens,
        embed_norm=embed_norm,
    )


LLAMA = model(
    "llama",
    (None,) * 3,
    hidden=64,
    heads=8,
    kv_heads=4,
    head_dim=8,
    ffn=172,
    rope="interleaved",
    max_tokens=128,
)
WIDE = model(  # heads in two batches, queries in four panels
    "llama",
    (24, 33),
    hidden=64,
    heads=32,
    kv_heads=4,
    head_dim=32,
    ffn=70,
    sinks=True,
    attn_fmt=formats.FP6,
    max_tokens=160,
)
LARGE_HEADS = model("llama", (None, 70), hidden=96, heads=4, kv_heads=2, head_dim=128, ffn=96, max_tokens=96)
ODD = model(
    "llama",
    (None, 20),
    hidden=40,
    heads=6,
    kv_heads=3,
    head_dim=16,
    ffn=33,
    sinks=True,
    attn_fmt=formats.FP4,
    ffn_fmt=formats.FP4,
    max_tokens=96,
)
LONG = model("llama", (None, 300, 40), hidden=32, heads=4, kv_heads=2, head_dim=16, ffn=33, max_tokens=384)
GPTOSS = model(
    "gpt-oss",
    (40, None, 40),
    hidden=96,
    heads=8,
    kv_heads=1,
    head_dim=64,
    ffn=80,
    sinks=True,
    experts=3,
    top_k=2,
    act="clamped",
    bias=True,
    ffn_fmt=formats.FP4,
    max_tokens=128,
)
WIDE_MLP = model(  # a panel of 32 features takes more than the usual part of SRAM
    "llama", (None, None), hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=320, max_tokens=64
)
LARGE_MLP = model(  # `big`: panels of gate and up with more than 128 features each
    "llama", (None, None), hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=250, max_tokens=128
)
SMALL_GPTOSS = replace(GPTOSS, block=replace(GPTOSS.block, heads=4, head_dim=32))
GPT2 = model(
    "gpt2",
    (None, None),
    hidden=72,
    heads=3,
    kv_heads=3,
    head_dim=32,
    ffn=150,
    norm="layer",
    rope="none",
    act="gelu_tanh",
    bias=True,
    max_tokens=96,
)
BIASED = model(  # everything of a layer has constants
    "llama",
    (40, None, 20),
    hidden=64,
    heads=4,
    kv_heads=4,
    head_dim=32,
    ffn=300,
    sinks=True,
    bias=True,
    norm="layer",
    embed_norm=True,
    max_tokens=64,
)
BERT = model(
    "bert",
    (None, None),
    hidden=64,
    heads=4,
    kv_heads=4,
    head_dim=16,
    ffn=130,
    norm="layer",
    post_norm=True,
    causal=False,
    rope="none",
    act="gelu_erf",
    bias=True,
    max_tokens=64,
    embed_norm=True,
)
POST_NORM_EXPERTS = model(
    "bert",
    (None,) * 3,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=40,
    norm="layer",
    post_norm=True,
    experts=3,
    top_k=2,
    bias=True,
    embed_norm=True,
    max_tokens=64,
)


@dataclass
class Outcome:
    """What a run left: per layer and user the bytes of its KV cache, and x behind the last layer."""

    image: ModelImage
    prefill: ModelPrefill
    dram: np.ndarray

    def cache(self, user: int, layer: int, name: str, count: int) -> np.ndarray:
        """(kv_words, count, 32) keys or values, or (kv_scales, count) scales of the first tokens."""
        im, s = self.image, self.image.block
        at = im.kv_base + user * im.kv_user_bytes + layer * im.kv_layer_bytes + im.kv_at[name]
        shape = (s.kv_scales, s.max_tokens) if "scales" in name else (s.kv_words, s.max_tokens, 32)
        return self.dram[at : at + int(np.prod(shape))].reshape(shape)[:, :count]

    def x(self, tokens: int) -> np.ndarray:
        im, c = self.image, self.image.config.columns
        raw = self.dram[im.x_out : im.x_out + im.chunk * im.block.hidden * 4].view(np.float32)
        return unlane(raw.reshape(-1, im.block.hidden, c), tokens)


def run(
    device: Device,
    spec: ModelSpec,
    params: ModelParams,
    x: np.ndarray,
    chunk: int,
    users: int = 1,
    user: int = 0,
    bare: bool = False,
) -> Outcome:
    """All of x (tokens, hidden) in chunks."""
    image = ModelImage(
        device.config, spec, params, users=users, chunk=chunk, bare=bare, dram_bytes=DRAM_BYTES
    )
    prefill = ModelPrefill(image)
    words = prefill.program.image()
    put_program(image.dram.data, image.program_at["prefill"], words)
    assert len(x) <= prefill.cap
    image.dram.data[image.kv_base : image.kv_base + users * image.kv_user_bytes] = 0xA5
    device.attach(image.dram.data)
    if isinstance(device, MachineDevice) and device.machine:
        device.machine.sram[:] = np.random.default_rng(len(x)).integers(0, 256, len(device.machine.sram))
    for first in range(0, len(x), chunk):
        part = x[first : first + chunk]
        # What lies behind the tokens must not matter.
        rows = np.full((chunk, x.shape[1]), np.nan, np.float32)
        rows[: len(part)] = part
        raw = lane_words(rows, device.config.columns).view(np.uint8).reshape(-1)
        device.dram[image.x_in : image.x_in + len(raw)] = raw
        device.run(image.program_at["prefill"], len(words), (first, len(part), user))
    return Outcome(image, prefill, np.array(device.dram))


def check(got: Outcome, spec: ModelSpec, params: ModelParams, x: np.ndarray, user: int = 0) -> None:
    s, n = spec.block, len(x)
    if params.embed_norm is not None:
        x = layer_norm(x, params.embed_norm, params.embed_norm_bias, s.eps)
    im = got.image
    for i, p in enumerate(params.layers):
        block = Block(spec.layer(i), p)
        x = block.forward(x, 0)
        cache = block.cache
        for name, ints, scales in (("k", cache.k, cache.k_scales), ("v", cache.v, cache.v_scales)):
            where = f"layer {i}, {name}"
            assert np.array_equal(got.cache(user, i, f"{name} scales", n), scales.reshape(-1, n)), where
            words = got.cache(user, i, name, n).view(np.int8)
            if s.kv_heads % s.per_word:
                assert not words[-1, :, im.byte_of(s.kv_heads) :].any(), f"{where}: leftovers in the cache"
            for kv in range(s.kv_heads):
                for b in range(s.slices):
                    lo = im.byte_of(kv)
                    mine = words[im.word_of(kv, b), :, lo : lo + s.slice_dim]
                    assert np.array_equal(mine, ints[kv, b, :, : s.slice_dim]), f"{where}, head {kv}"
    for u in range(im.users):
        for i in range(spec.layers):
            for name in ("k", "v", "k scales", "v scales"):
                rest = got.cache(u, i, name, s.max_tokens)[:, n if u == user else 0 :]
                assert (rest == 0xA5).all(), f"layer {i}, user {u}: {name} behind the tokens written"
    if got.prefill.stores_x:
        first = (n - 1) // im.chunk * im.chunk
        assert np.array_equal(got.x(n - first).view(np.uint32), x[first:].view(np.uint32))


def inputs(spec: ModelSpec, tokens: int) -> tuple[ModelParams, np.ndarray]:
    """Parameters and x (tokens, hidden)."""
    x = np.random.default_rng(tokens).normal(0, 1, (tokens, spec.block.hidden)).astype(np.float32)
    return random_model(spec, 3), x


def tile(name: str) -> TileConfig:
    """A named config; "c4" is `ecp5` with twice the SRAM."""
    return replace(named("ecp5"), name=name, sram_bytes=1 << 18) if name == "c4" else named(name)


CASES = [
    # spec, config, tokens, chunk, users, user, bare
    (LLAMA, "base", 64, 64, 1, 0, False),
    (LLAMA, "base", 77, 64, 2, 1, True),
    (LLAMA, "tiny", 43, 32, 1, 0, False),
    (replace(LLAMA, windows=(None,)), "ecp5", 1, 32, 1, 0, False),
    (replace(LLAMA, windows=(5,)), "base", 40, 32, 1, 0, True),
    (WIDE, "c4", 75, 32, 2, 0, False),
    (LARGE_HEADS, "base", 70, 64, 1, 0, False),
    (ODD, "tiny", 75, 32, 1, 0, True),
    (LONG, "base", 300, 128, 1, 0, False),
    (LONG, "tiny", 70, 32, 1, 0, False),
    (GPTOSS, "base", 75, 32, 2, 1, False),
    (GPTOSS, "c4", 37, 64, 1, 0, True),
    (GPTOSS, "ecp5", 32, 32, 1, 0, True),
    (SMALL_GPTOSS, "tiny", 43, 32, 1, 0, False),
    (GPT2, "base", 33, 64, 1, 0, True),
    (GPT2, "tiny", 70, 32, 1, 0, False),
    (BERT, "base", 41, 64, 1, 0, False),
    (BERT, "tiny", 13, 32, 2, 1, False),
    (POST_NORM_EXPERTS, "base", 39, 32, 1, 0, True),
    (WIDE_MLP, "tiny", 37, 32, 1, 0, False),
    (LARGE_MLP, "big", 100, 128, 1, 0, False),
    (GPTOSS, "big", 75, 64, 1, 0, True),
]


@pytest.mark.parametrize("spec,name,tokens,chunk,users,user,bare", CASES, ids=lambda v: getattr(v, "name", v))
def test_equals_golden(
    spec: ModelSpec, name: str, tokens: int, chunk: int, users: int, user: int, bare: bool
) -> None:
    params, x = inputs(spec, tokens)
    check(run(MachineDevice(tile(name)), spec, params, x, chunk, users, user, bare), spec, params, x, user)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "spec,name,bare",
    [(LLAMA, "base", False), (SMALL_GPTOSS, "ecp5", True), (GPT2, "tiny", False), (BERT, "base", False)],
    ids=lambda v: getattr(v, "name", v),
)
def test_no_race(spec: ModelSpec, name: str, bare: bool, seed: int) -> None:
    """Any order in which units may run gives the same bits: no semaphore is missing."""
    params, x = inputs(spec, 27 if spec is BERT else 45)
    check(run(MachineDevice(named(name), schedule=seed), spec, params, x, 32, bare=bare), spec, params, x)


class Starved:
    """A schedule in which one unit runs only when nothing else can: who forgets to wait for it is wrong."""

    def __init__(self, unit: int):
        self.unit = unit
        self.rng = np.random.default_rng(unit)

    def permutation(self, n: int) -> np.ndarray:
        """Threads, then the units' queues."""
        order = self.rng.permutation(n)
        last = order == len(THREADS) + self.unit
        return np.concatenate([order[~last], order[last]])


class StarvedDevice(MachineDevice):
    """The model with a unit starved."""

    def __init__(self, config: TileConfig, unit: int):
        super().__init__(config)
        self.starved = Starved(unit)

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run:
        assert self.machine is not None
        self.machine.run(address, words, args, schedule=cast(np.random.Generator, self.starved))
        return Run()


@pytest.mark.parametrize("unit", [LOAD, STORE, MATMUL, VECTOR], ids=lambda u: THREADS[u])
@pytest.mark.parametrize("spec", [LLAMA, SMALL_GPTOSS, BIASED, BERT], ids=lambda s: s.name)
def test_starved(spec: ModelSpec, unit: int) -> None:
    for tokens in (5, 29 if spec is BERT else 45):
        params, x = inputs(spec, tokens)
        check(run(StarvedDevice(named("base"), unit), spec, params, x, 32), spec, params, x)


@pytest.mark.parametrize("kv_batch,buffers", [(1, 3), (2, 2)])
@pytest.mark.parametrize("spec", [WIDE, LARGE_HEADS, SMALL_GPTOSS], ids=lambda s: s.name)
def test_scarce_sram(spec: ModelSpec, kv_batch: int, buffers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few heads in a batch, rings of two and three output buffers, buffers for no more keys than needed."""
    kv_batch = min(kv_batch, spec.block.kv_heads)
    monkeypatch.setattr(
        "sw.model_prefill.fit", lambda image, chunk: Plan(image, chunk, 64, kv_batch, buffers)
    )
    params, x = inputs(spec, 50)
    got = run(MachineDevice(named("base"), schedule=1), spec, params, x, 32)
    assert got.prefill.cap == 64 < spec.block.max_tokens
    check(got, spec, params, x)


@pytest.mark.parametrize(
    "spec,tokens", [(LLAMA, 43), (SMALL_GPTOSS, 35), (BERT, 13)], ids=lambda v: getattr(v, "name", v)
)
def test_rtl(spec: ModelSpec, tokens: int) -> None:
    """The tile itself, with a memory that stalls."""
    params, x = inputs(spec, tokens)
    tile = RtlDevice(named("tiny"), dram_bytes=DRAM_BYTES, stall=0.2, seed=tokens)
    check(run(tile, spec, params, x, 32), spec, params, x)


def test_program_does_not_depend_on_layers() -> None:
    params, _ = inputs(LLAMA, 1)
    words = []
    for layers in (1, 3):
        spec = replace(LLAMA, windows=LLAMA.windows[:layers])
        some = replace(params, layers=params.layers[:layers])
        prefill = ModelPrefill(ModelImage(named("base"), spec, some, chunk=32, dram_bytes=DRAM_BYTES))
        words.append(len(prefill.program.image()))
        assert set(prefill.marks.values()) == {("layer", max(1, layers - 1))} and len(prefill.marks) == 4
    assert words[0] == words[1]


def test_best_chunk() -> None:
    """The chunk that is found compiles; a longer context makes it smaller; too wide a model has none."""
    config = named("tiny")
    params, _ = inputs(LLAMA, 1)
    assert best_chunk(config, LLAMA, params) == 32
    image = ModelImage(config, LLAMA, params, chunk=32, dram_bytes=DRAM_BYTES)
    assert ModelPrefill(image).cap == 64
    with pytest.raises(ValueError, match="bytes for .* do not fit in 65536 bytes of SRAM"):
        ModelPrefill(ModelImage(config, LLAMA, params, chunk=128, dram_bytes=DRAM_BYTES))
    with pytest.raises(ValueError, match="chunk = 0"):
        ModelPrefill(ModelImage(config, LLAMA, params, dram_bytes=DRAM_BYTES))
    assert best_chunk(named("base"), LLAMA, params) == 128
    long_bert = replace(BERT, block=replace(BERT.block, max_tokens=512), context=512)
    assert best_chunk(named("big"), long_bert, random_model(long_bert, 3)) == 512  # an encoder has one chunk
    wide = model("llama", (None,), hidden=1024, heads=8, kv_heads=8, head_dim=32, ffn=64, max_tokens=512)
    assert best_chunk(config, wide, random_model(wide, 3)) == 0
    medium = model("llama", (None,), hidden=256, heads=8, kv_heads=4, head_dim=32, ffn=688, max_tokens=512)
    long_params = random_model(medium, 3)
    whole, short = (best_chunk(named("base"), medium, long_params, prompt) for prompt in (None, 128))
    assert 64 <= whole < short == 128
