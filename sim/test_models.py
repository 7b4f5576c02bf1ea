"""Whole models on the RTL: every logit equals the golden model's, bit for bit.

The checkpoints of sw/reference (as `transformers` writes them) and, if it is there, llama2.c's stories260K.
"""

from pathlib import Path

import numpy as np
import pytest

from golden.model import Model
from sw.checkpoint import Checkpoint, load_checkpoint
from sw.runtime import Session

REFERENCE = Path(__file__).parents[1] / "sw" / "reference"
SHIPPED = Path(__file__).parents[1] / "models"
STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K"
stories = pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not there")


def session(c: Checkpoint, **options) -> Session:
    return Session(c.spec, c.params, c.tokenizer, **{"config": "base", "backend": "rtl"} | options)


def same_bits(got: np.ndarray, want: np.ndarray, what: str) -> None:
    differs = np.flatnonzero(got.view(np.uint32) != want.view(np.uint32))
    assert not len(differs), f"{what}: {len(differs)} logits differ, the first is number {differs[0]}"


def compare_logits(s: Session, prompt: list[int], steps: int) -> list[int]:
    """Prefill the prompt on the device, then decode greedily: all logits equal golden's. The tokens."""
    golden, engine = Model(s.spec, s.params), s.engine
    fed = 0
    last = min(len(prompt) - 1, engine.reach)
    while fed < last:
        n = min(engine.image.chunk, last - fed)
        engine.prefill(0, prompt[fed : fed + n], fed)
        fed += n
    if fed:
        golden.forward(prompt[:fed], 0, last_only=True)
    tokens = list(prompt)
    for i in range(steps + len(prompt) - 1 - fed):
        (row,) = list(engine.decode({0: (tokens[fed], fed)}, 1, logits=True))
        want = golden.forward([tokens[fed]], fed)[0]
        same_bits(engine.logits(0), want, f"position {fed}")
        assert row[0] == int(want.argmax())
        fed += 1
        if fed == len(tokens):
            tokens.append(row[0])
    return tokens[len(prompt) :]


def greedy(c: Checkpoint, prompt: list[int], n: int) -> list[int]:
    """Tokens of the golden model alone."""
    return list(Model(c.spec, c.params).generate(prompt, n))


def ids(c: Checkpoint, n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, c.spec.vocab, n)]


@stories
def test_stories260k_logits():
    """200 tokens decoded from BOS alone, and the story that they are."""
    c = load_checkpoint(STORIES / "stories260K.bin")
    with session(c) as s:
        tokens = compare_logits(s, [1], 200)
    text = c.tokenizer.decode(tokens)
    print(text)
    assert text.lstrip().startswith("Once upon a time")


@pytest.mark.parametrize("name", ["llama", "llama-sharded", "gpt2", "gpt-oss"])
def test_logits(name: str):
    """A prompt of two chunks, the second ragged, then decode past gpt-oss's window."""
    c = load_checkpoint(REFERENCE / name)
    with session(c, chunk=32) as s:
        compare_logits(s, ids(c, 41), 8)


@pytest.mark.parametrize("weights", ["mxfp6", "mxfp4"])
def test_weight_formats(weights: str):
    c = load_checkpoint(REFERENCE / "llama", weights=weights)
    with session(c) as s:
        compare_logits(s, ids(c, 5), 3)


@pytest.mark.parametrize("config", ["tiny", "ecp5"])
@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
def test_configs(config: str, name: str):
    c = load_checkpoint(REFERENCE / name, context=64)
    with session(c, config=config) as s:
        compare_logits(s, ids(c, 34), 2)


@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
def test_full_context(name: str):
    """A prompt of one token, then every position of the context, 32 tokens a ring of the doorbell."""
    c = load_checkpoint(REFERENCE / name, context=70)
    with session(c, stall=0.1) as s:
        made = [t.id for t in s.generate([7], c.spec.context, stop=False)]
        with pytest.raises(ValueError, match="allowed is 0..70"):
            s.generate([7], c.spec.context + 1)
    assert made == greedy(c, [7], c.spec.context)


@pytest.mark.parametrize("name", ["llama", "gpt-oss", "gpt2"])
def test_eight_users(name: str):
    """Eight prompts of different lengths decoded together: each as if it were alone."""
    c = load_checkpoint(REFERENCE / name)
    prompts = [ids(c, n, n) for n in (1, 2, 9, 17, 32, 33, 34, 40)]
    with session(c, users=8) as s:
        made: dict[int, list[int]] = {u: [] for u in range(8)}
        for token in s.generate_batch(prompts, 6, stop=False):
            made[token.user].append(token.id)
    for user, prompt in enumerate(prompts):
        assert made[user] == greedy(c, prompt, 6), f"user {user}"


@pytest.mark.parametrize("config", ["base", "tiny"])
def test_encoder(config: str):
    c = load_checkpoint(REFERENCE / "bert")
    golden = Model(c.spec, c.params)
    with session(c, config=config) as s:
        for n in (1, 21):
            tokens = ids(c, n, n)
            same_bits(s.encode(tokens).reshape(-1), golden.hidden(tokens).reshape(-1), f"{n} tokens")


@pytest.mark.parametrize("name", ["serrano-llama", "serrano-gptoss"])
def test_shipped_models(name: str):
    c = load_checkpoint(SHIPPED / name)
    prompt = c.tokenizer.encode("Once")
    with session(c) as s:
        compare_logits(s, prompt, 12)
