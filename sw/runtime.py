"""A model on a device: text to tokens to text.

    from sw import load
    session = load("models/stories", config="base", backend="rtl")
    for token in session.generate("Once upon a time", 50):
        print(token.text, end="", flush=True)
    print(session.stats)

The prompt goes through the prefill program in chunks, all but its last token; that one is the first input of
decode. Greedy decoding rings the doorbell once for many tokens and reads them while the tile runs; sampling
takes one step per ring and draws from the logits on the host.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golden.model import Model
from golden.spec import ModelParams, ModelSpec
from hw import config_file
from hw.config import TileConfig

from .engine import Engine, check_backend
from .sampling import Sampling
from .stats import Stats

BURST = 32
"""Greedy tokens per ring of the doorbell unless the caller says otherwise."""
DEFAULT_TOKENS = 64


@dataclass(frozen=True)
class Token:
    """A token as it was generated."""

    id: int
    text: str
    """What it adds to the text; empty for the end of text and for the first bytes of a character."""
    user: int = 0
    """Which prompt of a batch it continues."""
    end: bool = False
    """The model ended the text with it."""


@dataclass
class _Sequence:
    """One user's text. ids[:fed] are in the KV cache, `left` more are to be generated."""

    user: int
    ids: list[int]
    left: int
    stream: Any
    rng: np.random.Generator
    fed: int = 0

    @property
    def in_prompt(self) -> bool:
        """The next token is given, not chosen."""
        return len(self.ids) - self.fed > 1

    def append(self, token: int, end: bool) -> Token:
        self.ids.append(token)
        self.left -= 1
        text = ""
        if self.stream:
            text = "" if end else self.stream.push(token)
            if end or not self.left:
                text += self.stream.finish()
        return Token(token, text, self.user, end)


class Session:
    """A model ready to generate. Made by `load`, or from a specification and parameters.

    generate and the like check their arguments at the call, before the first token is asked for, and start
    from an empty context; starting one ends the one before. ValueError says what was given and is allowed.
    """

    def __init__(self, spec: ModelSpec, params: ModelParams, tokenizer: Any = None, **options: Any):
        """options: those of Engine. Without a tokenizer prompts are token ids."""
        self.spec, self.params, self.tokenizer = spec, params, tokenizer
        self.engine = Engine(spec, params, **options)
        self._running: Generator[Token, None, None] | None = None

    @property
    def config(self) -> TileConfig:
        return self.engine.config

    @property
    def users(self) -> int:
        return self.engine.image.users

    @property
    def stats(self) -> Stats:
        """Of the last generate, generate_batch or embed."""
        return self.engine.stats

    def close(self) -> None:
        self._begin()
        self.engine.device.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = None,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        burst: int = BURST,
        stop: bool = True,
    ) -> Iterator[Token]:
        """Continue a prompt, text or ids, with up to max_tokens tokens (None: 64, or what the context holds).

        burst: greedy tokens per ring of the doorbell. stop: the model's end of text is the last token. The
        same seed gives the same tokens.
        """
        return self.generate_batch(
            [prompt],
            max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            burst=burst,
            stop=stop,
        )

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_tokens: int | None = None,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        burst: int = BURST,
        stop: bool = True,
    ) -> Iterator[Token]:
        """Continue several prompts at the same time; tokens come as they are made, Token.user says for which.

        Results do not depend on the other prompts: prompt u draws from numpy's generator of seed (seed, u).
        """
        if not self.spec.decoder:
            raise ValueError(f"model {self.spec.name} is an encoder: allowed is embed")
        if isinstance(prompts, str):
            raise ValueError(f"prompts = {prompts!r}: allowed is a list of prompts")
        if not 1 <= len(prompts) <= self.users:
            raise ValueError(f"{len(prompts)} prompts: allowed is 1..{self.users}, the session's users")
        for name, value, least in (("burst", burst, 1), ("seed", seed, 0), ("max_tokens", max_tokens, 0)):
            if value is not None and (not isinstance(value, int | np.integer) or value < least):
                raise ValueError(f"{name} = {value!r}: allowed is an integer, {least} or more")
        sampling = Sampling(temperature, top_k, top_p)
        sequences = [self._sequence(u, p, max_tokens, seed) for u, p in enumerate(prompts)]
        ends = frozenset(self.tokenizer.eos_ids) if stop and self.tokenizer else frozenset()
        self._begin()
        self._running = self._generate(sequences, sampling, burst, ends)
        return self._running

    def embed(
        self, text: str | Sequence[int], pooling: str = "mean", token_types: Sequence[int] | None = None
    ) -> np.ndarray:
        """(hidden,) float32: an encoder's output, pooled ('mean', 'cls' or, where it has one, 'pooler').

        token_types: one for each token (BERT: 0 for the first text of a pair, 1 for the second); None: all 0.
        """
        return self.embed_batch([text], pooling, None if token_types is None else [token_types])[0]

    def embed_batch(
        self,
        texts: Sequence[str | Sequence[int]],
        pooling: str = "mean",
        token_types: Sequence[Sequence[int] | None] | None = None,
    ) -> np.ndarray:
        """(texts, hidden) float32, as embed one by one; statistics are those of all."""
        if self.spec.decoder:
            raise ValueError(f"model {self.spec.name} writes text: allowed is an encoder")
        if pooling not in ("mean", "cls", "pooler") or pooling == "pooler" and self.params.pooler is None:
            raise ValueError(
                f"pooling = {pooling!r}: allowed is 'mean', 'cls' or, with its weights, 'pooler'"
            )
        types = [None] * len(texts) if token_types is None else token_types
        prepared = [self._input(text, t) for text, t in zip(texts, types, strict=True)]
        self._begin()
        model = Model(self.spec, self.params)
        return np.stack([model.pool(self.engine.encode(*p), pooling) for p in prepared])

    def encode(self, text: str | Sequence[int], token_types: Sequence[int] | None = None) -> np.ndarray:
        """An encoder's output for each token, (tokens, hidden) float32. token_types: as in embed."""
        if self.spec.decoder:
            raise ValueError(f"model {self.spec.name} writes text: allowed is an encoder")
        ids, types = self._input(text, token_types)
        self._begin()
        return self.engine.encode(ids, types)

    def _input(
        self, text: str | Sequence[int], token_types: Sequence[int] | None
    ) -> tuple[list[int], Sequence[int] | None]:
        """Token ids and types, checked."""
        ids = self._ids(text)
        if token_types is not None:
            rows = 0 if self.params.token_types is None else len(self.params.token_types)
            if len(token_types) != len(ids) or any(not 0 <= int(i) < rows for i in token_types):
                raise ValueError(
                    f"token_types = {list(token_types)} for {len(ids)} tokens: allowed is one of each token, "
                    f"below {rows}, the model's number of types"
                )
        return ids, token_types

    def write_trace(self, path: str | Path) -> None:
        """What the units did since the last call, for ui.perfetto.dev. The device has trace=True."""
        self.engine.write_trace(path)

    def _begin(self) -> None:
        """End the generation that may still run; new statistics."""
        if self._running is not None:
            self._running.close()
        self._running, self.engine.stats = None, Stats(self.config)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, or ids checked, that fit the context."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("a text without a tokenizer: allowed is token ids")
            ids = list(self.tokenizer.encode(prompt))
        else:
            if odd := [i for i in prompt if not isinstance(i, int | np.integer)]:
                raise ValueError(f"token {odd[0]!r}: allowed is an integer")
            ids = [int(i) for i in prompt]
        if not ids:
            raise ValueError("an empty prompt: allowed is at least one token")
        if wrong := [i for i in ids if not 0 <= i < self.spec.vocab]:
            raise ValueError(f"token {wrong[0]}: allowed is 0..{self.spec.vocab - 1}")
        if len(ids) > self.spec.context:
            raise ValueError(f"{len(ids)} tokens: allowed is the context of {self.spec.context}")
        return ids

    def _sequence(
        self, user: int, prompt: str | Sequence[int], max_tokens: int | None, seed: int
    ) -> _Sequence:
        ids = self._ids(prompt)
        room = self.spec.context - len(ids) + 1  # the last token needs no place in the cache
        count = min(DEFAULT_TOKENS, room) if max_tokens is None else max_tokens
        if not 0 <= count <= room:
            raise ValueError(
                f"{count} tokens after a prompt of {len(ids)}: allowed is 0..{room} "
                f"(context of {self.spec.context})"
            )
        stream = self.tokenizer.stream() if self.tokenizer else None
        if stream:
            for i in ids:
                stream.push(i)  # what a token adds depends on the text before it
        return _Sequence(user, ids, count, stream, np.random.default_rng((seed, user)))

    def _generate(
        self, sequences: list[_Sequence], sampling: Sampling, burst: int, ends: frozenset[int]
    ) -> Generator[Token, None, None]:
        engine = self.engine
        active = [s for s in sequences if s.left]
        for s in active:
            self._feed_prompt(s)
        while active:
            steps = 1
            if sampling.greedy and not any(s.in_prompt for s in active):
                room = min(self.spec.context - s.fed for s in active)
                steps = min(burst, room, max(s.left for s in active))
            inputs = {s.user: (s.ids[s.fed], s.fed) for s in active}
            with closing(engine.decode(inputs, steps, not sampling.greedy)) as rows:
                for row in rows:
                    for s in list(active):
                        s.fed += 1
                        if s.fed < len(s.ids):
                            continue
                        token = row[s.user]
                        if not sampling.greedy:
                            token = sampling.choose(engine.logits(s.user), s.rng)
                        end = token in ends
                        engine.stats.generated += 1
                        made = s.append(token, end)
                        if end or not s.left:
                            active.remove(s)
                        yield made
                    if not active:
                        break

    def _feed_prompt(self, s: _Sequence) -> None:
        """Prefill all but the last token, as far as the program reaches."""
        last = min(len(s.ids) - 1, self.engine.reach)
        while s.fed < last:
            n = min(self.engine.image.chunk, last - s.fed)
            self.engine.prefill(s.user, s.ids[s.fed : s.fed + n], s.fed)
            s.fed += n


def generate(model: str | Path, prompt: str | Sequence[int], max_tokens: int | None = None, *,
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, **options: Any,
             ) -> Iterator[str]:
    """Text that continues a prompt, piece by piece: `load` with options, then Session.generate."""
    with load(model, **options) as session:
        for token in session.generate(
            prompt, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        ):
            yield token.text


def load(
    path: str | Path,
    config: TileConfig | str = "base",
    backend: str = "rtl",
    weights: str = "mxint8",
    context: int | None = None,
    users: int = 1,
    tokenizer: str | Path | None = None,
    **options: Any,
) -> Session:
    """A checkpoint as a session, ready to generate.

    config: a TileConfig, or the name of one, of a board or of a file (hw/config_file.py). backend: as of
    open_device. weights: 'mxint8', 'mxfp6' or 'mxfp4' for tensors that the checkpoint has in a wider format.
    context: positions, default the model's own. users: prompts of a batch. tokenizer: file of a llama2.c
    tokenizer. options: chunk and dram_bytes of Engine, the others to the device (latency, stall, seed, ... of
    sim.tile.RtlDevice).
    """
    from .checkpoint import load_checkpoint

    config = config_file.load(config) if isinstance(config, str) else config
    if not 1 <= users <= config.columns:
        raise ValueError(f"users = {users}: allowed is 1..{config.columns} (columns of {config.name})")
    check_backend(backend)
    c = load_checkpoint(Path(path), weights=weights, context=context, tokenizer=tokenizer)
    return Session(c.spec, c.params, c.tokenizer, config=config, backend=backend, users=users, **options)
