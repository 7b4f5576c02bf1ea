"""The runtime against the golden model: what it writes to the device, when it rings, what it makes of it.

`Oracle` does what the programs promise (sw/model_decode.py, sw/model_prefill.py) with golden.model.Model, so
the host's side is tested exhaustively and fast; the last tests run the programs themselves on the
instruction-level model.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from golden.blocks import layer_norm
from golden.machine import Machine
from golden.model import Model
from golden.spec import BlockSpec, ModelSpec, random_model
from hw.config import BASE, TINY, TileConfig
from sw import engine as engine_module
from sw.cost import Need, decode_need, prefill_need
from sw.device import Device, MachineDevice, Run, dram_slice, moved
from sw.layout import lane_words, unlane
from sw.runtime import Session, Token

BLOCK = BlockSpec(name="b", hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, max_tokens=64)
SPEC = ModelSpec(name="m", architecture="llama", block=BLOCK, windows=(None, 16), vocab=259, context=61)
PARAMS = random_model(SPEC, 1)
ENCODER = ModelSpec(
    name="e",
    architecture="bert",
    block=BlockSpec(
        name="b",
        hidden=64,
        heads=4,
        kv_heads=4,
        head_dim=16,
        ffn=96,
        norm="layer",
        post_norm=True,
        causal=False,
        rope="none",
        act="gelu_erf",
        bias=True,
        max_tokens=64,
    ),
    windows=(None,),
    vocab=100,
    context=64,
    embed_norm=True,
)
ENCODER_PARAMS = random_model(ENCODER, 2)


class Oracle:
    """A device that knows the model instead of the programs, one decode step per poll."""

    def __init__(self, config: TileConfig, dram_bytes: int, spec: ModelSpec, params: Any, **options: Any):
        self.config, self.dram = config, np.zeros(dram_bytes, np.uint8)
        self.spec, self.params = spec, params
        self.image: Any = None
        self.models: dict[int, Model] = {}
        self.rings: list[tuple[str, int, tuple[int, ...]]] = []
        self.aborts = 0
        self.work: Iterator[None] = iter(())

    def attach(self, dram: np.ndarray) -> None:
        self.dram[:] = dram

    def write_dram(self, address: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        dram_slice(self.dram, address, raw.size)[:] = raw

    def read_dram(self, address: int, nbytes: int) -> np.ndarray:
        return dram_slice(self.dram, address, nbytes).copy()

    def start(self, address: int, words: int, args: Sequence[int] = ()) -> None:
        name = next(n for n, at in self.image.program_at.items() if at == address)
        self.rings.append((name, words, tuple(args)))
        self.work = self._prefill(*args) if name == "prefill" else self._decode(*args, name == "logits")

    def poll(self, cycles: int) -> bool:
        return next(self.work, "end") == "end"

    def finish(self) -> Run:
        for _ in self.work:
            pass
        return Run(cycles=1000, counters={"READ_BEATS": 1, "WRITE_BEATS": 1})

    def abort(self) -> Run:
        self.aborts += 1
        return Run(cycles=1)

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run:
        self.start(address, words, args)
        return self.finish()

    def close(self) -> None:
        pass

    def _model(self, user: int, length: int) -> Model:
        model = self.models.setdefault(user, Model(self.spec, self.params))
        model.truncate(length)
        return model

    def _prefill(self, first: int, n: int, user: int) -> Iterator[None]:
        im, c, h = self.image, self.config.columns, self.spec.block.hidden
        assert first % 32 == 0 and 1 <= n <= im.chunk and user < im.users
        g = -(-n // c)
        raw = self.read_dram(im.x_in, g * h * 4 * c).view(np.float32).reshape(g, h, c)
        model = self._model(user, first)
        x = unlane(raw, n)
        if self.spec.embed_norm:
            p = self.params
            x = layer_norm(x, p.embed_norm, p.embed_norm_bias, self.spec.block.eps)
        y = model._blocks(x, first)
        if not self.spec.decoder:
            self.write_dram(im.x_out, lane_words(y, c))
        yield

    def _decode(self, steps: int, logits: bool) -> Iterator[None]:
        im, c = self.image, self.config.columns
        state = self.read_dram(im.state_at, 8 * c).view(np.uint32).reshape(2, c).astype(int)
        tokens, positions = state[0].copy(), state[1]
        width = im.head.panels[0].n
        for i in range(steps):
            row = np.zeros((2, c), np.uint32)
            for u in range(im.users):
                p = positions[u] + i
                out = self._model(u, p).forward([tokens[u]], p)[0]
                tokens[u] = np.argmax(out)
                row[:, u] = divmod(tokens[u], width)
                if logits:
                    self.write_dram(im.logits_at + u * im.logit_row, out)
            yield
            self.write_dram(im.chosen_at + 8 * c * i, row)


class Letters:
    """A tokenizer: id = code of the letter, 0 ends."""

    eos_ids: tuple[int, ...] = (0,)

    def encode(self, text: str) -> list[int]:
        return [1, *map(ord, text)]

    def stream(self) -> "Letters":
        return self

    def push(self, token: int) -> str:
        return f"<{token}>"

    def finish(self) -> str:
        return ""


def oracle_session(
    monkeypatch: pytest.MonkeyPatch,
    spec: ModelSpec = SPEC,
    params: Any = PARAMS,
    tokenizer: Any = None,
    config: TileConfig = TINY,
    **options: Any,
) -> tuple[Session, Oracle]:
    made: list[Oracle] = []

    def open_device(backend: str, config: TileConfig, dram_bytes: int, **rest: Any) -> Oracle:
        made.append(Oracle(config, dram_bytes, spec, params, **rest))
        return made[0]

    monkeypatch.setattr(engine_module, "open_device", open_device)
    session = Session(spec, params, tokenizer, config=config, **options)
    made[0].image = session.engine.image
    return session, made[0]


def expected(prompt: Sequence[int], n: int) -> list[int]:
    return list(Model(SPEC, PARAMS).generate(list(prompt), n))


def ids(tokens: Iterator[Token]) -> list[int]:
    return [t.id for t in tokens]


PROMPT = [1, 17, 200, 33, 4, 99, 250, 8, 77, 60]


# ---------------------------------------------------------------- the host's side


@pytest.mark.parametrize("chunk", [None, 32, 0])
@pytest.mark.parametrize("length", [1, 2, 10, 33, 45])
def test_greedy(monkeypatch: pytest.MonkeyPatch, chunk: int | None, length: int) -> None:
    session, device = oracle_session(monkeypatch, chunk=chunk)
    prompt = (PROMPT * 6)[:length]
    assert ids(session.generate(prompt, 16, burst=7)) == expected(prompt, 16)
    prefilled = sum(args[1] for name, _, args in device.rings if name == "prefill")
    assert prefilled == (0 if chunk == 0 else min(length - 1, session.engine.reach))
    steps = [args[0] for name, _, args in device.rings if name == "decode"]
    assert steps == [1] * (length - 1 - prefilled) + [7, 7, 2]
    stats = session.stats
    assert (stats.generated, stats.decode.tokens) == (16, 15 + length - prefilled)
    assert stats.decode.cycles == 1000 * len(steps)


def test_a_program_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session, device = oracle_session(monkeypatch)
    ids(session.generate(PROMPT, 5, burst=2))
    ids(session.generate([3], 3, burst=3))
    loads = [(name, bool(words)) for name, words, _ in device.rings]
    assert loads == [("prefill", True), ("decode", True), *[("decode", False)] * 3]


def test_tokens_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token comes when the tile has done no more than a step and its store."""
    session, device = oracle_session(monkeypatch)
    tokens = session.generate(PROMPT, 12)
    next(tokens)
    assert sum(1 for _ in device.work) >= 10, "the tile was not far from its start"


def test_context_to_its_last_position(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = oracle_session(monkeypatch)
    room = SPEC.context - len(PROMPT) + 1
    assert ids(session.generate(PROMPT, room)) == expected(PROMPT, room)
    assert len(ids(session.generate(PROMPT))) == room, "by default, what the context holds"
    assert ids(session.generate(PROMPT[:1] * SPEC.context, 1)) == expected(PROMPT[:1] * SPEC.context, 1)
    with pytest.raises(ValueError, match=f"{room + 1} tokens after a prompt of 10: allowed is 0..{room}"):
        session.generate(PROMPT, room + 1)
    with pytest.raises(ValueError, match="62 tokens: allowed is the context of 61"):
        session.generate([1] * 62, 0)


def test_end_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    want = expected(PROMPT, 12)
    end = want[4]
    tokenizer = Letters()
    tokenizer.eos_ids = (end,)
    session, device = oracle_session(monkeypatch, tokenizer=tokenizer)
    got = list(session.generate(PROMPT, 12))
    stop = want.index(end) + 1
    assert [t.id for t in got] == want[:stop]
    assert [t.end for t in got] == [False] * (stop - 1) + [True]
    assert got[-1].text == "" and got[0].text == f"<{want[0]}>"
    assert device.aborts == 1, "the rest of the burst was stopped"
    assert session.stats.decode.tokens == stop
    assert ids(session.generate(PROMPT, 12, stop=False)) == want
    assert device.rings[-1][1] > 0, "after an abort the program is loaded again"


def test_text_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = oracle_session(monkeypatch, tokenizer=Letters())
    assert ids(session.generate("hello", 6, stop=False)) == expected([1, *map(ord, "hello")], 6)


def test_dropping_a_generation_stops_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    session, device = oracle_session(monkeypatch)
    first = session.generate(PROMPT, 12)
    next(first)
    assert ids(session.generate([5, 6], 4)) == expected([5, 6], 4)
    assert device.aborts == 1 and list(first) == []
    next(session.generate([5], 12))
    assert ids(session.generate([5], 4)) == expected([5], 4)
    assert device.aborts == 2 and device.rings[-1][:1] == ("decode",) and device.rings[-1][1] > 0


def test_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths, one per user, a user left over; one ends early."""
    session, device = oracle_session(monkeypatch, users=4, config=BASE)
    prompts = [PROMPT, [9], (PROMPT * 4)[:37]]
    texts: list[list[int]] = [[], [], []]
    for t in session.generate_batch(prompts, 9, burst=4):
        texts[t.user].append(t.id)
    assert texts == [expected(p, 9) for p in prompts]
    assert [a[0] for name, _, a in device.rings if name == "decode"] == [4, 4, 1]


def test_batch_to_the_end_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default each prompt gets what its context holds; a burst ends where the longest text does."""
    session, _ = oracle_session(monkeypatch, users=2)
    prompts = [(PROMPT * 6)[:58], [9]]
    texts: list[list[int]] = [[], []]
    for t in session.generate_batch(prompts):
        texts[t.user].append(t.id)
    assert texts == [expected(prompts[0], 4), expected([9], 61)]


def test_batch_without_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one prompt is still fed, the others generate."""
    session, _ = oracle_session(monkeypatch, users=2, chunk=0)
    prompts = [PROMPT, [9]]
    texts: list[list[int]] = [[], []]
    order = []
    for t in session.generate_batch(prompts, 14):
        texts[t.user].append(t.id)
        order.append(t.user)
    assert texts == [expected(p, 14) for p in prompts]
    assert order[:9] == [1] * 9 and 0 in order[9:11]


def test_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    session, device = oracle_session(monkeypatch, users=2)
    prompts = [PROMPT, [9, 9]]

    def sample(prompts: list[list[int]], seed: int) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        for t in session.generate_batch(prompts, 8, temperature=0.9, top_k=20, top_p=0.95, seed=seed):
            texts[t.user].append(t.id)
        return texts

    first = sample(prompts, 3)
    assert first == sample(prompts, 3) != sample(prompts, 4)
    assert first[0] == sample(prompts[:1], 3)[0], "the other prompt has no influence"
    assert {args for name, _, args in device.rings if name == "logits"} == {(1,)}
    for prompt, text in zip(prompts, first):
        likely = [
            np.argsort(-Model(SPEC, PARAMS).forward(prompt + text[:i], 0)[-1])[:20] for i in range(len(text))
        ]
        assert all(t in top for t, top in zip(text, likely))
    same = sample([PROMPT, PROMPT], 3)
    assert same[0] == first[0] != same[1], "each prompt has draws of its own"
    top1 = session.generate(PROMPT, 8, temperature=2.0, top_k=1)
    assert ids(top1) == expected(PROMPT, 8)


@pytest.mark.parametrize("length", [1, 7, 32])
def test_encoder(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    session, _ = oracle_session(monkeypatch, ENCODER, ENCODER_PARAMS)
    text = np.random.default_rng(length).integers(0, 100, length).tolist()
    golden = Model(ENCODER, ENCODER_PARAMS)
    hidden = golden.hidden(text)
    assert np.array_equal(session.encode(text), hidden)
    for pooling in ("mean", "cls", "pooler"):
        assert np.array_equal(session.embed(text, pooling), golden.pool(hidden, pooling))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = oracle_session(monkeypatch)
    for call, what in (
        (lambda: session.generate([], 4), "an empty prompt: allowed"),
        (lambda: session.generate([1, 259], 4), "token 259: allowed is 0..258"),
        (lambda: session.generate("text", 4), "a text without a tokenizer: allowed"),
        (lambda: session.generate([1], -1), "max_tokens = -1: allowed"),
        (lambda: session.generate([1], 2.5), "max_tokens = 2.5: allowed is an integer"),
        (lambda: session.generate([1], 2, seed=-3), "seed = -3: allowed"),
        (lambda: session.generate([1, 2.5], 2), "token 2.5: allowed is an integer"),
        (lambda: session.generate_batch("hey", 2), "prompts = 'hey': allowed is a list"),
        (lambda: session.generate([1], 2, temperature=1.0, top_k=2.5), "top_k = 2.5: allowed is an integer"),
        (lambda: session.generate([1], 4, burst=0), "burst = 0: allowed"),
        (lambda: session.generate([1], 4, temperature=-1), "temperature = -1: allowed"),
        (lambda: session.generate_batch([[1], [2]], 4), "2 prompts: allowed is 1..1"),
        (lambda: session.embed([1]), "writes text: allowed is an encoder"),
    ):
        with pytest.raises(ValueError, match=what):
            call()
    encoder, _ = oracle_session(monkeypatch, ENCODER, ENCODER_PARAMS, chunk=32)
    with pytest.raises(ValueError, match="is an encoder: allowed is embed"):
        encoder.generate([1], 4)
    with pytest.raises(ValueError, match="33 tokens: allowed is at most 32"):
        encoder.encode([1] * 33)
    with pytest.raises(ValueError, match="pooling = 'max'"):
        encoder.embed([1], "max")


def test_what_does_not_fit() -> None:
    with pytest.raises(
        MemoryError,
        match=r"model m on config tiny: .*\d+ bytes at 0x[0-9a-f]+ do not fit a DRAM of 131072 bytes",
    ):
        Session(SPEC, PARAMS, config=TINY, backend="golden", dram_bytes=131072)
    with pytest.raises(MemoryError, match=r"weights of \d+ bytes, .* do not fit a DRAM of 4096 bytes"):
        Session(SPEC, PARAMS, config=TINY, backend="golden", dram_bytes=4096)
    with pytest.raises(ValueError, match="users = 3: allowed is 1..2"):
        Session(SPEC, PARAMS, config=TINY, backend="golden", users=3)
    with pytest.raises(ValueError, match="chunk = 33: allowed is a multiple of 32"):
        Session(SPEC, PARAMS, config=TINY, backend="golden", chunk=33)
    with pytest.raises(ValueError, match="backend 'fpga': allowed is one of rtl, golden"):
        Session(SPEC, PARAMS, config=TINY, backend="fpga")


# ---------------------------------------------------------------- needs


def test_needs_add_up() -> None:
    """Decode of n tokens takes the MACs of a prefill, and of the head and the rest of the last layer."""
    n, head = 20, PARAMS.head
    assert head is not None
    rest = 2 * 64 * 64 + 3 * 64 * 96  # wq, wo and the MLP; the window of the last layer holds 16 keys
    seen = 2 * 64 * sum(min(i + 1, 16) for i in range(n))
    steps = sum((decode_need(SPEC, PARAMS, [p]) for p in range(n)), Need())
    chunk = prefill_need(SPEC, PARAMS, 0, n)
    assert steps.macs == chunk.macs + n * (head.outputs * head.inputs + rest) + seen
    assert steps.written == chunk.written + 4 * n
    two = prefill_need(SPEC, PARAMS, 0, 12) + prefill_need(SPEC, PARAMS, 12, 8)
    assert (two.macs, two.written) == (chunk.macs, chunk.written)
    kv = 2 * (2 * 16 + 2)  # 2 KV heads of 16 and their scales, keys and values
    past = kv * 12  # of the first layer; the last one computes no attention
    weights = prefill_need(SPEC, PARAMS, 0, 1).read - (4 * 64 + 4 * 16)
    assert two.read == chunk.read + weights + past


def test_need_of_windows_and_encoders() -> None:
    """A chunk at 40 behind a window of 16 reads 15 earlier keys; an encoder writes rows, no keys."""
    spec = replace(SPEC, windows=(16, None))
    kv = 2 * (2 * 16 + 2)
    assert prefill_need(spec, PARAMS, 40, 8).read == prefill_need(spec, PARAMS, 0, 8).read + 15 * kv
    assert prefill_need(spec, PARAMS, 40, 8).written == 8 * 2 * kv
    assert prefill_need(ENCODER, ENCODER_PARAMS, 0, 9).written == 9 * 64 * 4


def test_need_of_a_step_by_hand() -> None:
    """Literal count at position 30: layer 0 sees 31 keys, layer 1 its window of 16."""
    linear = 64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 96
    attention = 2 * 64 * (31 + 16)
    assert decode_need(SPEC, PARAMS, [30]).macs == 2 * linear + attention + 64 * 259
    scales = 2 * linear // 32 + 2 * 259 + 2 * 64 * 2  # wo has blocks of one head, 16 inputs
    vectors = 4 * 64 * (2 * 2 + 1)
    tables = 64 * 2 + 16 * 4  # embedding row, RoPE row
    kv = 2 * (2 * 16 + 2)
    want = 2 * linear + 64 * 259 + scales + vectors + tables + kv * (30 + 15)
    assert decode_need(SPEC, PARAMS, [30]).read == want
    assert decode_need(SPEC, PARAMS, [30]).written == 2 * kv + 4
    assert decode_need(SPEC, PARAMS, [30], logits=True).written == 2 * kv + 4 + 4 * 259
    users = decode_need(SPEC, PARAMS, [30, 30])
    assert users.macs == 2 * decode_need(SPEC, PARAMS, [30]).macs
    assert users.read == want + tables + kv * (30 + 15)


# ---------------------------------------------------------------- devices and programs


def test_machine_device_polls_to_the_same_end() -> None:
    """start, poll, finish give what Machine.run gives."""
    spec = SPEC
    session = Session(spec, PARAMS, config=TINY, backend="golden")
    device: Device = session.engine.device
    assert isinstance(device, MachineDevice)
    image = session.engine.image
    before = device.dram.copy()
    state = np.zeros((2, 2), np.uint32)
    state[0, 0] = 7
    device.write_dram(image.state_at, state)
    model = Machine(TINY, device.dram.copy())
    words = len(session.engine.programs["decode"].program.image())
    device.start(image.program_at["decode"], words, (2,))
    polls = next(i for i in itertools.count() if device.poll(100))
    run = device.finish()
    model.run(image.program_at["decode"], words, (2,))
    assert polls > 2 and np.array_equal(model.dram, device.dram) and not np.array_equal(before, device.dram)
    assert moved(run, TINY) == (model.counters["read_bytes"], model.counters["write_bytes"])
    with pytest.raises(ValueError, match="bytes at .* allowed is within"):
        device.read_dram(len(device.dram) - 4, 8)
    with pytest.raises(ValueError, match="bytes at .* allowed is within"):
        device.write_dram(-4, state)


@pytest.mark.parametrize("schedule", [None, 3])
def test_generate_on_the_machine(schedule: int | None) -> None:
    """Programs, runtime and golden model agree; prompt longer than a chunk."""
    with Session(SPEC, PARAMS, config=TINY, backend="golden", chunk=32, schedule=schedule) as session:
        prompt = (PROMPT * 4)[:37]
        assert ids(session.generate(prompt, 4)) == expected(prompt, 4)
        stats = session.stats
        assert stats.prefill.tokens + stats.decode.tokens == 36 + 4
        assert 1 <= stats.decode.moved / stats.decode.need.bytes < 1.5
        assert "no cycles" in str(stats)


def test_logits_on_the_machine() -> None:
    with Session(SPEC, PARAMS, config=TINY, backend="golden", users=2) as session:
        texts: list[list[int]] = [[], []]
        prompts = [PROMPT, [9, 9]]
        for t in session.generate_batch(prompts, 3, temperature=1.0, seed=1):
            texts[t.user].append(t.id)
        for u, (prompt, text) in enumerate(zip(prompts, texts)):
            want = Model(SPEC, PARAMS).forward(prompt + text[:-1], 0, last_only=True)[0]
            assert np.array_equal(session.engine.logits(u), want)


def test_interrupted() -> None:
    """Ctrl-C in the middle of decode or of prefill; the session goes on."""
    prompt = list(range(1, 40))
    want = list(Model(SPEC, PARAMS).generate(prompt, 5))
    with Session(SPEC, PARAMS, config=TINY, backend="golden", schedule=1) as session:
        device, poll = session.engine.device, session.engine.device.poll
        for polls in (0, 1, 3, 6):
            calls = iter(range(polls))

            def interrupted(cycles: int) -> bool:
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return poll(50)

            device.poll = interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                list(session.generate(prompt, 20, stop=False))
            device.poll = poll  # type: ignore[method-assign]
            assert [t.id for t in session.generate(prompt, 5, stop=False)] == want


def test_addresses() -> None:
    with pytest.raises(MemoryError, match="allowed is at most 4294967296, 32-bit addresses"):
        Session(SPEC, PARAMS, config=TINY, backend="golden", dram_bytes=1 << 33)


def test_token_types() -> None:
    """The second text of a pair."""
    text, types = [3, 4, 5, 6], [0, 0, 1, 1]
    golden = Model(ENCODER, ENCODER_PARAMS)
    with Session(ENCODER, ENCODER_PARAMS, config=TINY, backend="golden") as session:
        hidden = golden.hidden(text, np.array(types))
        assert np.array_equal(session.encode(text, types), hidden)
        assert np.array_equal(session.embed(text, token_types=types), golden.pool(hidden, "mean"))
        both = session.embed_batch([text, text], "cls", [types, None])
        assert np.array_equal(both[0], golden.pool(hidden, "cls")) and not np.array_equal(both[0], both[1])
        assert session.stats.prefill.tokens == 8
        for bad in ([0, 0, 1], [0, 0, 1, 2], [0, 0, 1, -1]):
            with pytest.raises(ValueError, match="below 2"):
                session.encode(text, bad)


def test_encoder_on_the_machine() -> None:
    with Session(ENCODER, ENCODER_PARAMS, config=TINY, backend="golden") as session:
        text = np.random.default_rng(1).integers(0, 100, 21).tolist()
        assert np.array_equal(session.encode(text), Model(ENCODER, ENCODER_PARAMS).hidden(text))
