"""Decode programs of whole models equal golden.model bit for bit: tokens, logits, KV caches, rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest

from golden import formats
from golden.arith import argmax
from golden.model import Model
from golden.spec import BlockSpec, ModelParams, ModelSpec, random_model
from hw.config import TileConfig, named
from hw.isa import LOAD, MATMUL, STORE, VECTOR
from sim.tile import RtlDevice
from sw.device import Device, MachineDevice, Run
from sw.layout import put_program
from sw.model_decode import ModelDecode
from sw.model_image import ModelImage

DRAM_BYTES = 16 << 20


def model(architecture: str, windows: tuple[int | None, ...], vocab: int = 259, **block) -> ModelSpec:
    b = BlockSpec(name=architecture, **block)
    return ModelSpec(
        name=architecture,
        architecture=architecture,
        block=b,
        windows=windows,
        vocab=vocab,
        context=b.max_tokens,
    )


STORY = model(
    "llama",
    (None, None),
    hidden=64,
    heads=8,
    kv_heads=4,
    head_dim=8,
    ffn=172,
    rope="interleaved",
    max_tokens=64,
)
GPTOSS = model(
    "gpt-oss",
    (32, None),
    hidden=96,
    heads=8,
    kv_heads=1,
    head_dim=64,
    ffn=96,
    sinks=True,
    act="clamped",
    bias=True,
    experts=4,
    top_k=2,
    ffn_fmt=formats.FP4,
    max_tokens=384,
)
TOP4 = model(  # all layers have the same window: the buffers hold no more keys than that
    "gpt-oss",
    (8, 8),
    hidden=64,
    heads=4,
    kv_heads=1,
    head_dim=32,
    ffn=64,
    sinks=True,
    act="clamped",
    bias=True,
    experts=6,
    top_k=4,
    ffn_fmt=formats.FP4,
    max_tokens=128,
)
SINKS = model(  # nothing but the slots holds the load thread back
    "llama",
    (20, None),
    hidden=32,
    heads=2,
    kv_heads=1,
    head_dim=32,
    ffn=32,
    sinks=True,
    bias=True,
    max_tokens=64,
)
GPT2 = model(
    "gpt2",
    (None, None),
    hidden=64,
    heads=2,
    kv_heads=2,
    head_dim=32,
    ffn=256,
    rope="none",
    norm="layer",
    act="gelu_tanh",
    bias=True,
    max_tokens=96,
)
LARGE_HEADS = model(  # scale bytes of a group's outputs cross an SRAM word
    "llama", (20, None), hidden=360, heads=12, kv_heads=2, head_dim=128, ffn=172, max_tokens=96
)
ODD = model(  # two KV heads to a word, FP6, ragged
    "llama",
    (20, None),
    hidden=40,
    heads=12,
    kv_heads=6,
    head_dim=16,
    ffn=33,
    attn_fmt=formats.FP6,
    ffn_fmt=formats.FP6,
    max_tokens=64,
)
MANY_HEADS = model(  # hardware loops over batches of heads
    "llama", (None,), hidden=96, heads=12, kv_heads=12, head_dim=32, ffn=64, max_tokens=64
)
LEFT_OVER = model(  # 17 heads in five words: batches that are not equal
    "llama", (None,), hidden=64, heads=33 * 2, kv_heads=33, head_dim=16, ffn=64, max_tokens=64
)


@dataclass
class Outcome:
    """What a run left in DRAM."""

    image: ModelImage
    decode: ModelDecode
    dram: np.ndarray

    def token(self, step: int, user: int) -> int:
        im, c = self.image, self.image.config.columns
        assert im.head
        at = im.chosen_at + step * 8 * c
        words = self.dram[at : at + 8 * c].view(np.uint32)
        return int(words[user]) * im.head.panels[0].n + int(words[c + user])

    def logits(self, step: int, user: int) -> np.ndarray:
        im = self.image
        at = im.logits_at + (step % im.logit_steps * im.users + user) * im.logit_row
        return self.dram[at : at + 4 * im.spec.vocab].view(np.float32)

    def rows(self, step: int, user: int) -> np.ndarray:
        im, n = self.image, 4 * self.image.block.hidden
        at = im.rows_out + (step * im.users + user) * n
        return self.dram[at : at + n].view(np.float32)


def cache_bytes(image: ModelImage, dram: np.ndarray, user: int, layer: int, name: str) -> np.ndarray:
    """View of (kv_words, max_tokens, 32) keys or values, or of (kv_scales, max_tokens) scales."""
    s = image.block
    at = image.kv_base + user * image.kv_user_bytes + layer * image.kv_layer_bytes + image.kv_at[name]
    shape = (s.kv_scales, s.max_tokens) if "scales" in name else (s.kv_words, s.max_tokens, 32)
    return dram[at : at + int(np.prod(shape))].reshape(shape)


def fill_cache(image: ModelImage, dram: np.ndarray, user: int, golden: Model) -> None:
    """The golden caches' tokens into the user's cache in DRAM."""
    s, n = image.block, golden.length
    for layer, block in enumerate(golden.blocks):
        for x in "kv":
            ints, scales = getattr(block.cache, x), getattr(block.cache, f"{x}_scales")
            words = cache_bytes(image, dram, user, layer, x)
            for kv in range(s.kv_heads):
                at = image.byte_of(kv)
                for b in range(s.slices):
                    words[image.word_of(kv, b), :n, at : at + s.slice_dim] = ints[
                        kv, b, :, : s.slice_dim
                    ].view(np.uint8)
            cache_bytes(image, dram, user, layer, f"{x} scales")[:, :n] = scales.reshape(s.kv_scales, n)


def run(
    device: Device,
    spec: ModelSpec,
    params: ModelParams,
    pasts: Sequence[int],
    steps: int,
    logits: bool = False,
    rows: np.ndarray | None = None,
    logit_steps: int = 1,
) -> tuple[Outcome, list[Model], list[int]]:
    """`steps` steps of one user for each length in pasts: what they left, the golden models before them and
    the users' first tokens. rows (steps, users, hidden): a bare run."""
    config, users = device.config, len(pasts)
    image = ModelImage(
        config,
        spec,
        params,
        users=users,
        logit_steps=logit_steps,
        bare=rows is not None,
        dram_bytes=DRAM_BYTES,
    )
    decode = ModelDecode(image, logits)
    at = image.program_at["logits" if logits else "decode"]
    words = decode.program.image()
    put_program(image.dram.data, at, words)
    rng = np.random.default_rng(sum(pasts))
    state = np.zeros((2, config.columns), np.uint32)
    models, first = [], []
    for u, past in enumerate(pasts):
        golden = Model(spec, params)
        ids = rng.integers(0, spec.vocab, past + 1)
        if past:
            golden.forward(ids[:past], 0)
        fill_cache(image, image.dram.data, u, golden)
        state[:, u] = ids[past], past
        models.append(golden)
        first.append(int(ids[past]))
    image.dram.data[image.state_at : image.state_at + state.nbytes] = state.view(np.uint8).reshape(-1)
    if rows is not None:
        raw = np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1)
        image.dram.data[image.rows_in : image.rows_in + raw.size] = raw
    device.attach(image.dram.data)
    device.run(at, len(words), (steps,))
    return Outcome(image, decode, device.dram), models, first


def check(
    device: Device, spec: ModelSpec, pasts: Sequence[int], steps: int, logits: bool = False, seed: int = 3
) -> Outcome:
    """A run's tokens, logits (of the steps that are kept) and KV caches are golden's."""
    keep = 2
    got, models, tokens = run(device, spec, random_model(spec, seed), pasts, steps, logits, logit_steps=keep)
    for u, (golden, token) in enumerate(zip(models, tokens)):
        for i in range(steps):
            want = golden.forward([token], golden.length)[0]
            token = int(argmax(want))
            assert got.token(i, u) == token, f"user {u}, step {i}"
            if logits and i >= steps - keep:
                assert np.array_equal(got.logits(i, u).view(np.uint32), want.view(np.uint32)), f"{u}, {i}"
        clean = np.zeros_like(got.dram[: got.image.dram.top])
        fill_cache(got.image, clean, u, golden)
        n = golden.length
        for layer in range(spec.layers):
            for name in got.image.kv_at:
                views = (cache_bytes(got.image, d, u, layer, name)[:, :n] for d in (got.dram, clean))
                assert np.array_equal(*views), f"user {u}, layer {layer}, {name}"
    return got


CASES = [
    # spec, config, tokens before the first step, steps, logits
    (STORY, "base", (5,), 3, True),
    (STORY, "base", (30, 0, 61), 3, True),
    (STORY, "ecp5", (31, 1, 7, 60), 4, False),
    (STORY, "tiny", (61,), 3, True),
    (STORY, "tiny", (0, 60), 3, True),
    (GPTOSS, "base", (380,), 3, False),
    (GPTOSS, "base", (380, 0, 200), 3, True),
    (GPTOSS, "tiny", (200,), 2, True),
    (GPTOSS, "tiny", (31, 127), 2, False),
    (TOP4, "base", (0,), 12, False),
    (TOP4, "ecp5", (125, 3), 3, True),
    (GPT2, "base", (93,), 3, True),
    (GPT2, "tiny", (62, 5), 3, True),
    (LARGE_HEADS, "base", (93,), 3, True),
    (LARGE_HEADS, "ecp5", (40, 4), 2, True),
    (LARGE_HEADS, "big", (40, 4), 2, True),
    (ODD, "base", (61, 0), 3, True),
    (ODD, "tiny", (40,), 2, True),
    (MANY_HEADS, "base", (33, 5), 2, True),
    (LEFT_OVER, "base", (33, 5), 2, True),
]


@pytest.mark.parametrize("spec,name,pasts,steps,logits", CASES, ids=lambda v: getattr(v, "name", v))
def test_equals_golden(spec: ModelSpec, name: str, pasts: tuple[int, ...], steps: int, logits: bool) -> None:
    check(MachineDevice(named(name)), spec, pasts, steps, logits)


class Slow:
    """An order of threads (0..4) and unit queues (5..9) in which `last` come when nothing else can move."""

    def __init__(self, *last: int):
        self.last, self.rng = last, np.random.default_rng(1)

    def permutation(self, n: int) -> list[int]:
        return [i for i in self.rng.permutation(n).tolist() if i not in self.last] + [*self.last]


class ScheduledDevice(MachineDevice):
    """The model with an order of its own."""

    def __init__(self, config: TileConfig, order: Slow):
        super().__init__(config)
        self.order = order

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run:
        assert self.machine is not None
        self.machine.run(address, words, args, schedule=cast(np.random.Generator, self.order))
        return Run()


RACES = [
    (STORY, "tiny", (31, 5)),
    (SINKS, "base", (20,)),
    (GPTOSS, "base", (270,)),
    (TOP4, "base", (40, 7)),
    (GPT2, "tiny", (30,)),
    (MANY_HEADS, "base", (20, 3)),
]
UNITS = {"load": LOAD, "store": STORE, "matmul": MATMUL, "vector": VECTOR}


@pytest.mark.parametrize("slow", ["none", *UNITS, "not load", "not matmul"])
@pytest.mark.parametrize("spec,name,pasts", RACES, ids=lambda v: getattr(v, "name", v))
def test_no_race(spec: ModelSpec, name: str, pasts: tuple[int, ...], slow: str) -> None:
    """Any order in which units may run gives the same bits: no semaphore is missing."""
    config = named(name)
    if slow == "none":
        check(MachineDevice(config, schedule=1), spec, pasts, 3, logits=True)
        return
    fast = UNITS.get(slow.removeprefix("not "))
    last = [UNITS[slow] + 5] if slow in UNITS else [u + 5 for u in UNITS.values() if u != fast]
    check(ScheduledDevice(config, Slow(*last)), spec, pasts, 3, logits=slow in ("vector", "store"))


@pytest.mark.parametrize(
    "spec,users", [(STORY, 1), (GPTOSS, 1), (GPT2, 2)], ids=lambda v: getattr(v, "name", v)
)
def test_bare(spec: ModelSpec, users: int) -> None:
    """Rows of the host through the layers, no embedding and no head."""
    steps = 3
    rows = np.random.default_rng(1).normal(0, 1, (steps, users, spec.block.hidden)).astype(np.float32)
    params = random_model(spec, 4)
    pasts = range(9, 9 + users)
    got, models, _ = run(MachineDevice(named("base"), schedule=1), spec, params, pasts, steps, rows=rows)
    for u, golden in enumerate(models):
        for i in range(steps):
            x = rows[i, u][None]
            for block in golden.blocks:
                x = block.forward(x, block.cache.length)
            assert np.array_equal(got.rows(i, u).view(np.uint32), x[0].view(np.uint32)), f"user {u}, step {i}"


@pytest.mark.parametrize(
    "spec,pasts", [(STORY, (30,)), (GPTOSS, (31, 70))], ids=lambda v: getattr(v, "name", v)
)
def test_rtl(spec: ModelSpec, pasts: tuple[int, ...]) -> None:
    """The tile itself, with a memory that stalls."""
    tile = RtlDevice(named("tiny"), dram_bytes=DRAM_BYTES, stall=0.2, seed=len(pasts))
    check(tile, spec, pasts, 2, logits=len(pasts) == 1)
    tile.close()


def test_first_of_equal_logits() -> None:
    """All logits are equal: the first token wins, across panels too."""
    params = random_model(STORY, 1)
    assert params.head
    params.head.ints[:] = params.head.ints[:1]
    params.head.scales[:] = params.head.scales[:1]
    got, *_ = run(MachineDevice(named("tiny")), STORY, params, (3,), 2)
    assert len(got.image.head.panels) > 1 and [got.token(i, 0) for i in range(2)] == [0, 0]


def test_program_does_not_depend_on_sizes() -> None:
    """Layers, panels and vocabulary are hardware loops; a layer begins once per thread."""
    words = []
    for layers, ffn, vocab in ((2, 768, 1024), (5, 1536, 2048)):
        block = replace(GPT2.block, ffn=ffn)
        spec = replace(GPT2, block=block, windows=(None,) * layers, vocab=vocab)
        params = random_model(spec, 1)
        decode = ModelDecode(ModelImage(named("base"), spec, params, dram_bytes=DRAM_BYTES))
        words.append(len(decode.program.image()))
        assert sorted(decode.marks.values()) == [("layer", layers)] * 4
        assert all("begin" in decode.labels[at] for at in decode.marks)
    assert (
        abs(words[0] - words[1]) < 20
    )  # a ring whose size is no power of two takes two words more to advance


def test_what_does_not_fit() -> None:
    wide = replace(STORY, block=replace(STORY.block, hidden=4096))
    params = random_model(wide, 1)
    with pytest.raises(ValueError, match="decode of 1 users: .* bytes"):
        ModelDecode(ModelImage(named("tiny"), wide, params, dram_bytes=64 << 20))
    bert = replace(STORY.block, causal=False)
    encoder = replace(STORY, architecture="bert", block=bert)
    with pytest.raises(ValueError, match="causal = False"):
        ModelDecode(ModelImage(named("base"), encoder, random_model(encoder, 1), dram_bytes=DRAM_BYTES))
