"""The models that ship: files as `transformers` expects them of their config, small; text is generated."""

import hashlib
import json
import pathlib
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from golden import formats
from golden.compare import log_softmax
from golden.model import Model
from models import corpus
from sw.checkpoint import load_checkpoint

HERE = pathlib.Path(__file__).parent
MODELS = {"llama": HERE / "serrano-llama", "gpt_oss": HERE / "serrano-gptoss"}
BF16 = np.dtype(ml_dtypes.bfloat16)
SIZE_LIMIT = 2_000_000  # bytes, both directories together

# first 300 stories of the seed that training uses
TEXT_SHA256 = "0462779cfeb6b79b118a9b60aa7e0b39560da398391f2e6cda7a89892d28f0f4"


def read(model: str, name: str) -> dict:
    return json.loads((MODELS[model] / name).read_text(encoding="utf-8"))


def tensors(model: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(MODELS[model] / "model.safetensors")


def expected_shapes(c: dict) -> dict[str, tuple]:
    """Name -> (shape, dtype) as LlamaForCausalLM and GptOssForCausalLM (MXFP4, as published) have them."""
    hidden, ffn, dim, vocab = (c[k] for k in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"))
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    moe = c["model_type"] == "gpt_oss"
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    blocks = {}
    for at in (f"model.layers.{i}." for i in range(c["num_hidden_layers"])):
        shapes |= {at + f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        for m, outputs, inputs in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            shapes[f"{at}self_attn.{m}_proj.weight"] = (outputs, inputs)
            if c["attention_bias"]:
                shapes[f"{at}self_attn.{m}_proj.bias"] = (outputs,)
        if not moe:
            shapes |= {at + "mlp.gate_proj.weight": (ffn, hidden), at + "mlp.up_proj.weight": (ffn, hidden),
                       at + "mlp.down_proj.weight": (hidden, ffn)}
            continue
        experts = c["num_local_experts"]
        shapes |= {at + "self_attn.sinks": (c["num_attention_heads"],),
                   at + "mlp.router.weight": (experts, hidden), at + "mlp.router.bias": (experts,)}
        for name, outputs, inputs in (("gate_up_proj", 2 * ffn, hidden), ("down_proj", hidden, ffn)):
            name = f"{at}mlp.experts.{name}"
            shapes[name + "_bias"] = (experts, outputs)
            blocks |= {name + "_blocks": (experts, outputs, inputs // 32, 16),
                       name + "_scales": (experts, outputs, inputs // 32)}
    return ({name: (shape, BF16) for name, shape in shapes.items()}
            | {name: (shape, np.dtype(np.uint8)) for name, shape in blocks.items()})


def well_formed(text: str) -> None:
    """Articles, capitals, quotes, number, length."""
    assert not re.search(r"[\[\]{}|\n]|  | [.,]", text), text
    assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n (?!hour)[^aeiou]", text), text
    assert not re.search(r'[.] "?[a-zé]|[.?!]" [a-z]+ing\b', text), text  # sentences start with a capital
    assert text.count('"') % 2 == 0 and text[0].isupper() and text[-1] in '.?!"', text
    assert not re.search(r"\b(one \w+s are|(?!one\b)(two|three|ten) \w+ (lives|is|sleeps))\b", text), text
    assert 25 <= len(text.split()) <= 180


# ---------------------------------------------------------------- directories

def test_size_together():
    files = [f for model in MODELS.values() for f in model.iterdir()]
    assert sum(f.stat().st_size for f in files) <= SIZE_LIMIT


@pytest.mark.parametrize("model", MODELS)
def test_tensors(model):
    config, stored = read(model, "config.json"), tensors(model)
    assert {name: (t.shape, t.dtype) for name, t in stored.items()} == expected_shapes(config)
    for name, t in stored.items():
        if t.dtype == BF16:
            assert np.isfinite(t.astype(np.float32)).all(), name
            assert t.astype(np.float32).any(), name
    parameters = sum(t.size * (2 if name.endswith("_blocks") else 0 if name.endswith("_scales") else 1)
                     for name, t in stored.items())
    assert 300_000 <= parameters <= 1_500_000
    with safetensors.safe_open(MODELS[model] / "model.safetensors", "np") as f:
        assert f.metadata() == {"format": "pt"}  # transformers refuses a file without it


def test_config_llama():
    c = read("llama", "config.json")
    assert c["architectures"] == ["LlamaForCausalLM"] and c["tie_word_embeddings"] is True
    assert c["num_key_value_heads"] < c["num_attention_heads"]


def test_config_gpt_oss():
    c = read("gpt_oss", "config.json")
    assert c["architectures"] == ["GptOssForCausalLM"]
    assert (c["num_local_experts"], c["num_experts_per_tok"], c["swiglu_limit"]) == (8, 2, 7.0)
    assert c["layer_types"] == ["sliding_attention", "full_attention"] * (c["num_hidden_layers"] // 2)
    assert 0 < c["sliding_window"] < c["max_position_embeddings"]
    assert c["quantization_config"]["quant_method"] == "mxfp4"
    rope = c["rope_scaling"]
    assert rope["rope_type"] == "yarn"
    assert rope["factor"] * rope["original_max_position_embeddings"] == c["max_position_embeddings"]


def test_experts_follow_the_mx_rule():
    """Stored blocks are what the reference encoder makes of their values: canonical scales, no -0."""
    stored = tensors("gpt_oss")
    names = [n.removesuffix("_blocks") for n in stored if n.endswith("_blocks")]
    assert names
    for name in names:
        blocks, scales = stored[name + "_blocks"], stored[name + "_scales"]
        ints = formats.unpack(blocks, formats.FP4)
        values = formats.decode(ints, scales, formats.FP4)
        again, again_scales = formats.encode(values.reshape(*values.shape[:-2], -1), formats.FP4)
        assert np.array_equal(again_scales, scales), name
        assert np.array_equal(formats.pack(again, formats.FP4), blocks), name
        assert 0 < np.abs(values).max() < 8 and (ints != 0).mean() > 0.5, name


@pytest.mark.parametrize("model", MODELS)
def test_tokenizer(model):
    config, t = read(model, "config.json"), read(model, "tokenizer.json")
    vocab, special = t["model"]["vocab"], {a["content"]: a["id"] for a in t["added_tokens"]}
    assert t["model"]["type"] == "BPE" and t["decoder"]["type"] == t["pre_tokenizer"]["type"] == "ByteLevel"
    assert sorted(vocab.values()) == list(range(config["vocab_size"]))
    assert sum(len(token) == 1 for token in vocab) == 256  # every byte, so that every text can be encoded
    names = read(model, "tokenizer_config.json")
    assert special == {names["bos_token"]: config["bos_token_id"], names["eos_token"]: config["eos_token_id"]}
    for pair in t["model"]["merges"]:
        assert "".join(pair if isinstance(pair, list) else pair.split(" ")) in vocab


@pytest.mark.parametrize("model", MODELS)
def test_golden_model_against_transformers(model):
    """Stories that training has not seen: as likely as in float32, and nearly always the same choices.

    Measured: cross-entropy 0.0000 and 0.0004 nats apart, argmax 98.3 % both.
    """
    checkpoint, expected = load_checkpoint(MODELS[model]), np.load(MODELS[model] / "expected.npz")
    loss, best = [], []
    for text, lo, hi in zip(corpus.stories(4, seed=2), expected["begins"], expected["begins"][1:]):
        tokens = expected["ids"][lo:hi]
        assert tokens.tolist() == [*checkpoint.tokenizer.encode(text), *checkpoint.tokenizer.eos_ids]
        log_probability = log_softmax(Model(checkpoint.spec, checkpoint.params).forward(tokens[:-1], 0))
        loss.append(-log_probability[np.arange(len(tokens) - 1), tokens[1:]])
        best.append(log_probability.argmax(axis=-1))
    assert expected["loss"].mean() < 0.35
    assert abs(np.concatenate(loss).mean() - expected["loss"].mean()) < 0.01
    assert (np.concatenate(best) == expected["argmax"]).mean() >= 0.97


@pytest.mark.parametrize("model", MODELS)
def test_text_is_well_formed(model):
    """Greedy stories end by themselves: words of the corpus, capitals and quotes where they belong."""
    checkpoint = load_checkpoint(MODELS[model])
    tokenizer, context = checkpoint.tokenizer, checkpoint.spec.context
    golden = Model(checkpoint.spec, checkpoint.params)
    words = {w for text in corpus.stories(3000, seed=1) for w in re.findall(r"[\w']+", text)}
    for prompt in ("", "Once upon a time", "In winter", "One morning", "To make"):
        ids = tokenizer.encode(prompt)
        golden.truncate(0)
        made = list(golden.generate(ids, context - len(ids), tokenizer.eos_ids))
        assert made[-1] in tokenizer.eos_ids, prompt
        text = tokenizer.decode([*ids, *made[:-1]])
        well_formed(text)
        assert not {w for w in re.findall(r"[\w']+", text)} - words, text


# ---------------------------------------------------------------- text

def test_corpus_is_the_one_of_training():
    text = "\n".join(corpus.stories(300, seed=1))
    assert hashlib.sha256(text.encode()).hexdigest() == TEXT_SHA256
    assert text != "\n".join(corpus.stories(300, seed=2))


def test_corpus_is_rich_and_well_formed():
    texts = list(corpus.stories(3000, seed=3))
    sentences = {s for text in texts for s in re.split(r'(?<=[.?!]) ', text)}
    assert len(set(texts)) == len(texts) and len(sentences) > 10_000
    for text in texts:
        well_formed(text)


@pytest.mark.parametrize("verb, form", [("sing", "sings"), ("catch", "catches"), ("wash", "washes"),
                                        ("carry", "carries"), ("fly", "flies"), ("play", "plays")])
def test_third_person(verb, form):
    assert corpus._third(verb) == form


def test_text_is_not_in_the_repository():
    texts = list(corpus.stories(200, seed=1))
    for path in HERE.rglob("*"):
        if path.suffix in (".py", ".json", ".txt", ".md"):
            content = path.read_text(encoding="utf-8")
            assert not any(text in content for text in texts), path
