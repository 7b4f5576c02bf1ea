"""golden.model: bits against the page row by row, values against float64 models, and state."""
from dataclasses import replace

import numpy as np
import pytest

from golden import formats
from golden.arith import F32, bf16_to_f32, f32_to_bf16, fadd
from golden.model import Model
from golden.spec import BlockSpec, ModelParams, ModelSpec, random_model
from golden.test_arith import bits
from golden.test_blocks import float_block, float_norm, page_block, page_norm
from golden.test_mlp import page_mm, page_q8, values

LLAMA = BlockSpec(name="llama", hidden=96, heads=4, kv_heads=2, head_dim=32, ffn=172, max_tokens=96,
                  rope_inv_freq=tuple(0.5 ** np.arange(16)))
GPTOSS = BlockSpec(name="gptoss", hidden=72, heads=8, kv_heads=1, head_dim=64, ffn=72, sinks=True, experts=8,
                   top_k=2, act="clamped", bias=True, ffn_fmt=formats.FP4, rope_factor=1.1, max_tokens=96)
GPT2 = BlockSpec(name="gpt2", hidden=80, heads=5, kv_heads=5, head_dim=16, ffn=320, norm="layer", rope="none",
                 act="gelu_tanh", bias=True, max_tokens=96)
BERT = BlockSpec(name="bert", hidden=64, heads=2, kv_heads=2, head_dim=32, ffn=200, norm="layer", eps=1e-12,
                 post_norm=True, causal=False, rope="none", act="gelu_erf", bias=True, max_tokens=96)
MODELS = {
    name: ModelSpec(name=name, architecture=name, block=block, windows=windows, vocab=150, context=context,
                    embed_norm=name == "bert")
    for name, block, windows, context in (
        ("llama", LLAMA, (None, None, None), 90), ("gpt-oss", GPTOSS, (12, None, 12), 90),
        ("gpt2", GPT2, (None, None), 80), ("bert", BERT, (None, None), 96))}
DECODERS = ["llama", "gpt-oss", "gpt2"]


def ids(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 150, tokens)


def types(tokens: int) -> np.ndarray:
    return (np.arange(tokens) > tokens // 2).astype(int)


def run(model: Model, tokens: np.ndarray) -> np.ndarray:
    return model.forward(tokens, 0) if model.spec.decoder else model.hidden(tokens, types(len(tokens)))


# ---------------------------------------------------------------- references

def page_model(spec: ModelSpec, p: ModelParams, tokens: np.ndarray) -> np.ndarray:
    """Every row of the result."""
    x = []
    for t, token in enumerate(tokens):
        row = p.embedding[token]
        if spec.architecture in ("gpt2", "bert"):
            row = fadd(row, p.positions[t])
        if spec.architecture == "bert":
            row = fadd(row, p.token_types[types(len(tokens))[t]])
            row = page_norm(spec.block, row, p.embed_norm, p.embed_norm_bias)
        x.append(row)
    for i, layer in enumerate(p.layers):
        x = [page_block(replace(spec.block, window=spec.windows[i]), layer, np.array(x), t)[0]
             for t in range(len(x))]
    if spec.architecture == "bert":
        return np.array(x)
    return np.array([page_mm(page_q8(page_norm(spec.block, row, p.final_norm, p.final_norm_bias)), p.head)
                     for row in x])


def float_model(spec: ModelSpec, p: ModelParams, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 result of the quantised weights, and each row's smallest routing margin."""
    x, margin = p.embedding[tokens].astype(float), np.full(len(tokens), np.inf)
    if spec.architecture in ("gpt2", "bert"):
        x += p.positions[:len(tokens)]
    if spec.architecture == "bert":
        x = float_norm(spec.block, x + p.token_types[types(len(tokens))], p.embed_norm, p.embed_norm_bias)
    for window, layer in zip(spec.windows, p.layers):
        x, mine = float_block(replace(spec.block, window=window), layer, x)
        margin = np.minimum(margin, mine)
    if spec.architecture == "bert":
        return x, margin
    return float_norm(spec.block, x, p.final_norm, p.final_norm_bias) @ values(p.head).T, margin


# ---------------------------------------------------------------- bits and values

@pytest.mark.parametrize("name", MODELS)
def test_model_bits(name):
    spec = MODELS[name]
    if spec.windows[0]:
        spec = replace(spec, windows=(3, None, 3))  # shorter than the few rows that the page can do
    p, tokens = random_model(spec, 1), ids(6)
    for table in (p.positions, p.token_types):
        if table is not None:
            table *= F32(2.0**-18)  # so that the order of additions shows
    assert np.array_equal(bits(page_model(spec, p, tokens)), bits(run(Model(spec, p), tokens)))


@pytest.mark.parametrize("name", MODELS)
def test_model_values(name):
    spec, tokens = MODELS[name], ids(70)
    p = random_model(spec, 2)
    y = run(Model(spec, p), tokens)
    want, margin = float_model(spec, p, tokens)
    clear = margin > 0.1  # of a logit; closer than that, rounding may choose another expert
    assert clear.mean() > 0.4
    cosine = np.sum(y * want, axis=1) / np.linalg.norm(y, axis=1) / np.linalg.norm(want, axis=1)
    # 2 or 3 layers, six MXINT8 products each, 0.8 % to 2 % of noise per operand; where a neighbour's experts
    # differ, attention brings some of that too
    assert cosine[clear].min() > (0.98 if spec.block.experts else 0.999) and np.median(cosine[clear]) > 0.999
    assert y.shape == want.shape and y.dtype == F32


# ---------------------------------------------------------------- state

@pytest.mark.parametrize("name", DECODERS)
def test_decode_equals_prefill(name):
    spec = MODELS[name]
    p, tokens = random_model(spec, 3), ids(75)
    whole = Model(spec, p).forward(tokens, 0)
    for edges in ([0, *range(40, 76)], [0, 3, 32, 65, 75]):
        model = Model(spec, p)
        parts = [model.forward(tokens[lo:hi], lo) for lo, hi in zip(edges, edges[1:])]
        assert np.array_equal(bits(np.concatenate(parts)), bits(whole)), edges
    model.truncate(50)
    assert model.length == 50
    assert np.array_equal(bits(model.forward(tokens[50:], 50, last_only=True)), bits(whole[-1:]))


@pytest.mark.parametrize("name", DECODERS)
def test_generate(name):
    """Ids are those of the argmax over whole sequences recomputed for each."""
    spec = MODELS[name]
    p, tokens = random_model(spec, 4), ids(20)
    model, sequence = Model(spec, p), list(tokens)
    out = list(model.generate(tokens, 8))
    assert len(out) == 8 and model.length == 27
    for token in out:
        logits = Model(spec, p).forward(sequence, 0)[-1]
        assert token == int(np.flatnonzero(logits == logits.max())[0])
        sequence.append(token)
    again = Model(spec, p)
    stop = out[3]
    assert list(again.generate(tokens, 8, stop={stop})) == out[:out.index(stop) + 1]
    # what was yielded last is still to be appended; then the same text goes on
    assert list(again.generate([stop], 8 - len(out[:out.index(stop) + 1]))) == out[out.index(stop) + 1:]


def test_generate_first_of_equals():
    spec = MODELS["llama"]
    p = random_model(spec, 5)
    first = next(Model(spec, p).generate(ids(9), 1))
    lower = 3 if first > 3 else first + 50
    for copy in (lower, 149):
        p.head.ints[copy], p.head.scales[copy] = p.head.ints[first], p.head.scales[first]
    assert next(Model(spec, p).generate(ids(9), 1)) == min(first, lower)


def test_windows():
    """Layers of 4 and 6 tokens see 4 + 6 - 1 tokens; one layer with the whole context sees everything."""
    for windows, sight in (((4, 6), 9), ((4, None), 40)):
        spec = replace(MODELS["llama"], windows=windows)
        model, other = (Model(spec, random_model(spec, 6)) for _ in range(2))
        tokens = ids(40)
        changed = np.concatenate(([(tokens[0] + 1) % 150], tokens[1:]))
        differs = (model.forward(tokens, 0) != other.forward(changed, 0)).any(axis=1)
        assert differs[:sight].all() and not differs[sight:].any(), windows


def test_encoder_keeps_nothing():
    spec = MODELS["bert"]
    model = Model(spec, random_model(spec, 7))
    first = model.hidden(ids(33))
    longer = model.hidden(ids(50, seed=1))
    assert longer.shape == (50, 64)
    assert np.array_equal(bits(model.hidden(ids(33), np.zeros(33, int))), bits(first))
    assert (model.hidden(ids(33), types(33)) != first).any(axis=1).all()


def test_pool():
    spec = MODELS["bert"]
    model = Model(spec, random_model(spec, 8))
    hidden = model.hidden(ids(11))
    exact = hidden.astype(float)
    assert np.array_equal(model.pool(hidden, "cls"), hidden[0])
    assert np.allclose(model.pool(hidden, "mean"), exact.sum(axis=0) / 11, atol=1e-6)
    p = model.params
    want = np.tanh([p.pooler[i].astype(float) @ exact[0] + p.pooler_bias[i] for i in range(64)])
    pooled = model.pool(hidden, "pooler")
    assert np.allclose(pooled, want, atol=1e-5) and np.abs(want).max() > 0.1
    assert pooled.dtype == model.pool(hidden, "mean").dtype == F32
    with pytest.raises(ValueError, match="how = 'max': allowed is 'cls', 'mean'"):
        model.pool(hidden, "max")


def test_random_model_tables_are_bf16():
    p = random_model(MODELS["bert"], 9)
    for table in (p.embedding, p.positions, p.token_types):
        assert np.array_equal(bf16_to_f32(f32_to_bf16(table)), table)


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("tokens,message", [
    ([3, 150], r"token 150: allowed is 0\.\.149"), ([-1], r"token -1: allowed is 0\.\.149"),
    ([], r"tokens \(0,\) .*allowed is \(T,\) integers, T > 0"), ([[1, 2]], r"tokens \(1, 2\) int"),
    ([1.0], r"tokens \(1,\) float64"), (ids(81), r"position 80: allowed is 0\.\.79")])
def test_refused_tokens(tokens, message):
    spec = MODELS["gpt2"]
    model = Model(spec, random_model(spec, 10))
    for call in (lambda: model.forward(tokens, 0), lambda: model.generate(tokens, 1)):
        with pytest.raises(ValueError, match=message):
            call()
    assert model.length == 0


def test_refused_states():
    spec = MODELS["gpt2"]
    model = Model(spec, random_model(spec, 10))
    model.forward(ids(70), 0)
    with pytest.raises(ValueError, match="pos0 = 0: allowed is 70, the tokens in the caches"):
        model.forward(ids(2), 0)
    with pytest.raises(ValueError, match=r"position 80: allowed is 0\.\.79"):
        model.forward(ids(11), 70)
    with pytest.raises(ValueError, match=r"position 80: allowed is 0\.\.79"):
        model.generate([1], 11)
    assert model.length == 70 and len(list(model.generate([1], 10))) == 10 and model.length == 80
    with pytest.raises(ValueError, match=r"length = 81: allowed is 0\.\.80"):
        model.truncate(81)


def test_refused_models():
    decoder, encoder = (Model(MODELS[n], random_model(MODELS[n], 11)) for n in ("llama", "bert"))
    with pytest.raises(ValueError, match=r"is a decoder: allowed is forward\(\)"):
        decoder.hidden([1])
    with pytest.raises(ValueError, match=r"is an encoder: allowed is hidden\(\)"):
        encoder.forward([1], 0)
    for wrong in ([2, 0], [0], [0, -1]):
        with pytest.raises(ValueError, match=r"token_types = .*: allowed is one of 0\.\.1 per token"):
            encoder.hidden([1, 2], wrong)
    with pytest.raises(ValueError, match="no types"):
        untyped = Model(MODELS["bert"], replace(encoder.params, token_types=None))
        untyped.hidden([1, 2], [0, 0])
    with pytest.raises(ValueError, match="model llama: layers = 2: allowed is 3"):
        Model(MODELS["llama"], random_model(replace(MODELS["llama"], windows=(None, None)), 0))
    with pytest.raises(ValueError, match=r"embedding = \(150, 80\): allowed is \(150, 64\)"):
        Model(MODELS["bert"], random_model(MODELS["gpt2"], 0))
    with pytest.raises(ValueError, match="head = False: allowed is True"):
        Model(MODELS["llama"], replace(decoder.params, head=None))
