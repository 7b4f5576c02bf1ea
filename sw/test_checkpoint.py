"""Loading checkpoints: what is loaded from the reference checkpoints, and an error that names what is wrong.

Files are read and written here by the format's specification, not by the loader. That the models compute what
they should is sw/test_agreement.py's.
"""

import json
import math
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from golden import formats
from golden.spec import MxTensor
from sw.checkpoint import CheckpointError, load_checkpoint
from sw.heads import Heads
from sw.test_tokenizer import llama2c_file

REFERENCE = Path(__file__).parent / "reference"
STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K" / "stories260K.bin"
NAMES = ["llama", "llama-sharded", "gpt-oss", "gpt2", "bert"]
Stored = dict[str, tuple[str, list[int], bytes]]


# ---------------------------------------------------------------- files

def read_tensors(directory: Path) -> Stored:
    """name -> type, shape, bytes of all safetensors files."""
    tensors: Stored = {}
    for file in sorted(directory.glob("*.safetensors")):
        data = file.read_bytes()
        base = 8 + struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(data[8:base]).items():
            if name != "__metadata__":
                a, b = t["data_offsets"]
                tensors[name] = (t["dtype"], t["shape"], data[base + a:base + b])
    return tensors


def write_tensors(file: Path, tensors: Stored) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(d for _, _, d in tensors.values()))


def values(tensors: Stored, name: str) -> np.ndarray:
    """A float tensor as float64."""
    dtype, shape, data = tensors[name]
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view("<f4").astype(float).reshape(shape)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(float).reshape(shape)


def bf16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(REFERENCE / name, to / name))


def change_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(directory: Path, change: Callable[[Stored], object]) -> None:
    tensors = read_tensors(directory)
    change(tensors)
    write_tensors(directory / "model.safetensors", tensors)


def real(t: MxTensor) -> np.ndarray:
    """(outputs, blocks * 32)"""
    return formats.decode(t.ints, t.scales, t.fmt, np.float64).reshape(t.outputs, -1)


def near(t: MxTensor, w: np.ndarray) -> bool:
    """t is w in MXINT8: half a unit of the last place of each row's largest block at most."""
    got = real(t)[:, :w.shape[1]]
    return bool((np.abs(got - w) <= np.abs(w).max(axis=1, keepdims=True) / 64).all())


# ---------------------------------------------------------------- what is loaded

def test_llama():
    c = load_checkpoint(REFERENCE / "llama")
    s, stored = c.spec, read_tensors(REFERENCE / "llama")
    assert (s.architecture, s.layers, s.vocab, s.context, s.windows) == ("llama", 2, 288, 128, (None, None))
    b = s.block
    assert (b.hidden, b.heads, b.kv_heads, b.head_dim, b.ffn, b.eps) == (64, 2, 1, 64, 100, 1e-5)
    assert (b.norm, b.rope, b.act, b.bias) == ("rms", "half", "swiglu", False)
    assert (b.experts, b.attn_scale) == (0, None)
    assert c.config["model_type"] == "llama" and s.name == "llama"
    layer, at = c.params.layers[1], "model.layers.1."
    assert near(layer.wq, values(stored, at + "self_attn.q_proj.weight"))
    assert near(layer.experts[0].up, values(stored, at + "mlp.up_proj.weight"))
    assert near(layer.experts[0].gate, values(stored, at + "mlp.gate_proj.weight"))
    assert near(c.params.head, values(stored, "model.embed_tokens.weight"))
    assert np.array_equal(c.params.embedding, values(stored, "model.embed_tokens.weight"))
    assert np.array_equal(layer.norm2, values(stored, at + "post_attention_layernorm.weight"))
    assert layer.experts[0].down.inputs == 100 and layer.experts[0].down.ints.shape == (64, 4, 32)
    assert layer.wo.inputs == 128


def test_shards_are_one_model(tmp_path: Path):
    sharded = load_checkpoint(REFERENCE / "llama-sharded")
    directory = copy("llama-sharded", tmp_path)
    tensors = read_tensors(directory)
    assert len(list(directory.glob("model-*.safetensors"))) == 3
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    write_tensors(directory / "model.safetensors", tensors)
    whole = load_checkpoint(directory)
    assert whole.spec == sharded.spec
    for a, b in zip(sharded.params.layers, whole.params.layers):
        for field in ("wq", "wk", "wv", "wo"):
            assert np.array_equal(getattr(a, field).ints, getattr(b, field).ints)
    assert near(whole.params.head, values(tensors, "lm_head.weight"))
    assert np.array_equal(whole.params.final_norm, values(tensors, "model.norm.weight"))
    assert (whole.spec.block.head_dim, whole.spec.block.attn_scale) == (16, pytest.approx(12**-0.5))


# the values of E2M1, from the OCP specification
E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6])


@pytest.mark.parametrize("weights", ["mxint8", "mxfp6", "mxfp4"])
def test_published_mxfp4_is_untouched(weights: str):
    c = load_checkpoint(REFERENCE / "gpt-oss", weights=weights)
    stored = read_tensors(REFERENCE / "gpt-oss")
    fmt = {"mxint8": formats.INT8, "mxfp6": formats.FP6, "mxfp4": formats.FP4}[weights]
    assert (c.spec.block.attn_fmt, c.spec.block.ffn_fmt) == (fmt, formats.FP4)
    assert (c.params.head.fmt, c.params.layers[0].router.fmt) == (fmt, formats.INT8)

    def published(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raw = np.frombuffer(stored[name + "_blocks"][2], np.uint8).reshape(stored[name + "_blocks"][1])
        code = np.stack([raw % 16, raw // 16], -1).reshape(*raw.shape[:-1], 32)  # low nibble first
        scales = np.frombuffer(stored[name + "_scales"][2], np.uint8).reshape(raw.shape[:-1])
        return E2M1[code], scales, values(stored, name + "_bias")

    for i, layer in enumerate(c.params.layers):
        gate_up, down = (published(f"model.layers.{i}.mlp.experts.{m}_proj") for m in ("gate_up", "down"))
        assert gate_up[0].shape == (8, 80, 12, 32) and down[0].shape == (8, 360, 2, 32)
        for e, expert in enumerate(layer.experts):
            for t, elements, scales, bias, given in (
                    (expert.gate, *(x[e, ::2] for x in gate_up), expert.gate_bias),
                    (expert.up, *(x[e, 1::2] for x in gate_up), expert.up_bias),
                    (expert.down, *(x[e] for x in down), expert.down_bias)):
                assert t.fmt == formats.FP4 and np.array_equal(t.ints, elements * 2)
                assert np.array_equal(t.scales, scales) and np.array_equal(given, bias)
        assert np.array_equal(layer.sinks, values(stored, f"model.layers.{i}.self_attn.sinks"))
    assert (expert.gate.inputs, expert.down.inputs) == (360, 40)


def test_gpt_oss():
    s = load_checkpoint(REFERENCE / "gpt-oss").spec
    b = s.block
    assert (s.architecture, s.windows, s.context) == ("gpt-oss", (16, None), 128)
    assert (b.hidden, b.heads, b.kv_heads, b.head_dim, b.ffn, b.experts, b.top_k) == (360, 8, 1, 32, 40, 8, 4)
    assert (b.act, b.sinks, b.bias, b.rope) == ("clamped", True, True, "half")


def test_gpt_oss_that_is_not_quantised(tmp_path: Path):
    """Experts as transformers holds them, (experts, inputs, rows) float, take the format of the option."""
    directory = copy("gpt-oss", tmp_path)
    rng = np.random.default_rng(1)
    gate_up = rng.normal(size=(8, 360, 80)).astype(np.float32)
    down = rng.normal(size=(8, 40, 360)).astype(np.float32)

    def change(t: Stored) -> None:
        for i in range(2):
            for name, w in (("gate_up_proj", gate_up), ("down_proj", down)):
                at = f"model.layers.{i}.mlp.experts.{name}"
                del t[at + "_blocks"], t[at + "_scales"]
                t[at] = ("F32", list(w.shape), w.tobytes())

    change_tensors(directory, change)
    change_config(directory, quantization_config=None)
    c = load_checkpoint(directory)
    expert = c.params.layers[1].experts[5]
    assert c.spec.block.ffn_fmt == formats.INT8
    assert near(expert.gate, gate_up[5, :, ::2].T) and near(expert.up, gate_up[5, :, 1::2].T)
    assert near(expert.down, down[5].T)


def test_gpt2():
    c, stored = load_checkpoint(REFERENCE / "gpt2", context=33), read_tensors(REFERENCE / "gpt2")
    b = c.spec.block
    assert (b.hidden, b.heads, b.head_dim, b.ffn, b.max_tokens, c.spec.context) == (60, 3, 32, 240, 64, 33)
    assert (b.norm, b.rope, b.act, b.bias, b.post_norm) == ("layer", "none", "gelu_tanh", True, False)
    assert b.attn_scale == pytest.approx(20**-0.5)
    assert np.array_equal(c.params.positions, bf16(values(stored, "transformer.wpe.weight")[:33]))
    assert np.array_equal(c.params.embedding, bf16(values(stored, "transformer.wte.weight")))
    layer, qkv = c.params.layers[0], values(stored, "transformer.h.0.attn.c_attn.weight")
    bias = values(stored, "transformer.h.0.attn.c_attn.bias")
    for i, (w, given) in enumerate(((layer.wq, layer.bq), (layer.wk, layer.bk), (layer.wv, layer.bv))):
        heads = real(w).reshape(3, 32, -1)  # 20 features and 12 zeros
        want = qkv[:, 60 * i:60 * i + 60].T.reshape(3, 20, 60)
        assert np.abs(heads[:, :20, :60] - want).max() < np.abs(want).max() / 64 and not heads[:, 20:].any()
        assert np.array_equal(given.reshape(3, 32)[:, :20].ravel(), bias[60 * i:60 * i + 60])
    assert near(layer.experts[0].up, values(stored, "transformer.h.0.mlp.c_fc.weight").T)
    assert layer.experts[0].gate is None and layer.wo.inputs == 60


def test_bert():
    c, stored = load_checkpoint(REFERENCE / "bert"), read_tensors(REFERENCE / "bert")
    b, p = c.spec.block, c.params
    assert (c.spec.architecture, c.spec.decoder, c.spec.embed_norm) == ("bert", False, True)
    assert (b.norm, b.post_norm, b.causal, b.act, b.eps) == ("layer", True, False, "gelu_erf", 1e-12)
    assert (p.head, p.final_norm) == (None, None) and p.token_types.shape == (2, 48)
    short = load_checkpoint(REFERENCE / "bert", context=7).params.positions
    assert np.array_equal(short, bf16(values(stored, "embeddings.position_embeddings.weight")[:7]))
    assert np.array_equal(p.pooler, values(stored, "pooler.dense.weight"))
    assert np.array_equal(p.layers[1].norm1_bias,
                          values(stored, "encoder.layer.1.attention.output.LayerNorm.bias"))
    assert np.array_equal(p.layers[1].norm2, values(stored, "encoder.layer.1.output.LayerNorm.weight"))


def test_bert_as_other_programs_save_it(tmp_path: Path):
    """Prefix, old names of norms, stored position ids, a language model's head, no pooler."""
    directory = copy("bert", tmp_path)

    def change(t: Stored) -> None:
        for name in list(t):
            new = "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta")
            t[new] = t.pop(name)
        t["bert.embeddings.position_ids"] = ("I64", [1, 1], bytes(8))
        t["cls.predictions.bias"] = ("F32", [1], bytes(4))
        del t["bert.pooler.dense.weight"], t["bert.pooler.dense.bias"]

    change_tensors(directory, change)
    got, want = load_checkpoint(directory).params, load_checkpoint(REFERENCE / "bert").params
    assert got.pooler is None and np.array_equal(got.layers[0].norm2_bias, want.layers[0].norm2_bias)


@pytest.mark.parametrize("weights, fmt", [("mxfp6", formats.FP6), ("mxfp4", formats.FP4)])
def test_weight_formats(weights: str, fmt: int):
    c = load_checkpoint(REFERENCE / "llama", weights=weights)
    w = values(read_tensors(REFERENCE / "llama"), "model.layers.0.self_attn.v_proj.weight")
    ints, scales = formats.encode(w, fmt)
    assert (c.spec.block.attn_fmt, c.spec.block.ffn_fmt, c.params.head.fmt) == (fmt, fmt, fmt)
    got = c.params.layers[0].wv
    assert np.array_equal(got.ints, ints) and np.array_equal(got.scales, scales)
    assert {t.fmt for t in (c.params.layers[1].wo, c.params.layers[1].experts[0].down)} == {fmt}


@pytest.mark.parametrize("name", ["llama", "llama-sharded", "gpt-oss"])
def test_rope_equals_transformers(name: str):
    """Llama 3 scaling, none, YaRN."""
    b = load_checkpoint(REFERENCE / name).spec.block
    expected = np.load(REFERENCE / name / "expected.npz")
    n = len(expected["inv_freq"])
    inv = b.rope_inv_freq or tuple(b.rope_theta ** (-np.arange(n) / n))
    np.testing.assert_allclose(inv[:n], expected["inv_freq"], rtol=2e-6)
    assert not any(inv[n:]) and b.rope_factor == pytest.approx(float(expected["rope_factor"]), rel=1e-6)


def test_rope_spellings(tmp_path: Path):
    """Before transformers 5: rope_theta beside rope_scaling, whose type was once called type."""
    for name in ("llama", "gpt-oss"):
        directory = copy(name, tmp_path)
        p = json.loads((directory / "config.json").read_text())["rope_parameters"]
        theta = p.pop("rope_theta")
        want = load_checkpoint(REFERENCE / name).spec.block
        for scaling in (p, {"type" if k == "rope_type" else k: v for k, v in p.items()}):
            change_config(directory, rope_parameters=None, rope_scaling=scaling, rope_theta=theta)
            assert load_checkpoint(directory).spec.block == want
    directory = tmp_path / "llama"
    change_config(directory, rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=10000.0)
    np.testing.assert_allclose(load_checkpoint(directory).spec.block.rope_inv_freq,
                               10000.0 ** (-np.arange(32) / 32) / 4)
    change_config(directory, rope_scaling=None, rope_theta=777.0)
    assert load_checkpoint(directory).spec.block.rope_theta == 777.0


@pytest.mark.parametrize("rope, size", [("half", 12), ("half", 20), ("half", 40), ("interleaved", 10),
                                        ("none", 5), ("half", 64)])
def test_padded_heads(rope: str, size: int):
    """Scores of rotated heads do not change when they are padded."""
    heads = Heads(heads=3, kv_heads=1, size=size, rope=rope)
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, 3 * size))

    def rotate(x: np.ndarray, inv: np.ndarray, position: int) -> np.ndarray:
        if rope == "none":
            return x
        n = x.shape[-1]
        first, second = slice(n // 2), slice(n // 2, n)
        if rope == "interleaved":
            first, second = slice(0, n, 2), slice(1, n, 2)
        a, b = x[..., first], x[..., second]
        y = np.empty_like(x)
        y[..., first] = a * np.cos(inv * position) - b * np.sin(inv * position)
        y[..., second] = b * np.cos(inv * position) + a * np.sin(inv * position)
        return y

    inv = rng.uniform(0.1, 1, size // 2)
    q, k = (rotate(v.reshape(3, size), inv, i) for i, v in enumerate(x, 3))
    wide = np.array(heads.inv_freq(inv)) if rope != "none" else inv
    pad_q, pad_k = (rotate(heads.pad(v, True).reshape(3, -1), wide, i) for i, v in enumerate(x, 3))
    assert pad_q.shape == (3, heads.padded) and heads.padded in (8, 16, 32, 64)
    np.testing.assert_allclose((q * k).sum(-1), (pad_q * pad_k).sum(-1), rtol=1e-5)


# ---------------------------------------------------------------- llama2.c

def llama2c(path: Path, dims: tuple[int, ...], extra: int = 0) -> tuple[Path, list[np.ndarray]]:
    """A random binary with its tokenizer: path, tensors in file order."""
    dim, ffn, depth, n, kv, vocab, context = dims
    hd = dim // n
    layers = [(dim,), (dim, dim), (kv * hd, dim), (kv * hd, dim), (dim, dim), (dim,), (ffn, dim), (dim, ffn),
              (ffn, dim)]
    shapes = [(abs(vocab), dim), *((depth, *s) for s in layers), (dim,), *2 * [(context, hd // 2)]]
    shapes += [(abs(vocab), dim)] * (vocab < 0)
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=s).astype("<f4") for s in shapes]
    path.write_bytes(struct.pack("<7i", *dims) + b"".join(t.tobytes() for t in tensors) + bytes(extra))
    llama2c_file(path.with_name("tokenizer.bin"))
    return path, tensors


@pytest.mark.parametrize("vocab", [267, -267])
def test_llama2c(tmp_path: Path, vocab: int):
    path, t = llama2c(tmp_path / "m.bin", (24, 20, 2, 4, 2, vocab, 40))
    c = load_checkpoint(path)
    s, b = c.spec, c.spec.block
    assert (s.architecture, s.layers, s.vocab, s.context, b.max_tokens) == ("llama", 2, 267, 40, 64)
    assert (b.rope, b.heads, b.kv_heads, b.head_dim, b.ffn, b.eps) == ("interleaved", 4, 2, 8, 20, 1e-5)
    layer = c.params.layers[1]
    assert near(layer.experts[0].gate, t[7][1]) and near(layer.experts[0].down, t[8][1])
    assert near(layer.experts[0].up, t[9][1]) and near(c.params.head, t[-1] if vocab < 0 else t[0])
    assert np.array_equal(layer.norm1, t[1][1]) and np.array_equal(layer.norm2, t[6][1])
    assert real(layer.wk).reshape(2, 8, 32)[:, 6:].max() == 0
    assert np.abs(real(layer.wv).reshape(2, 8, 32)[:, :6, :24] - t[4][1].reshape(2, 6, 24)).max() < 0.05
    assert load_checkpoint(path, tokenizer=tmp_path / "tokenizer.bin", context=9).spec.context == 9


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not there")
def test_stories260k():
    c = load_checkpoint(STORIES)
    b = c.spec.block
    assert (b.hidden, b.heads, b.kv_heads, b.head_dim, b.ffn, c.spec.context) == (64, 8, 4, 8, 172, 512)
    assert (c.spec.vocab, c.tokenizer.bos_id, c.config["seq_len"]) == (512, 1, 512)


@pytest.mark.parametrize("dims, extra, message", [
    ((24, 20, 2, 4, 2, 267, 40), 4, r"extra data: \d+ bytes: allowed is \d+"),
    ((24, 20, 2, 4, 2, 267, 40), -4, r"truncated: \d+ bytes: allowed is \d+"),
    ((26, 20, 2, 4, 2, 267, 40), 0, "dim = 26: .* n_heads = 4"),
    ((24, 20, 2, 4, 3, 267, 40), 0, "n_kv_heads = 3: .* n_heads = 4"),
    ((24, 20, 0, 4, 2, 267, 40), 0, "n_layers = 0: allowed is a positive"),
])
def test_llama2c_errors(tmp_path: Path, dims: tuple[int, ...], extra: int, message: str):
    path, _ = llama2c(tmp_path / "m.bin", dims, max(0, extra))
    if extra < 0:
        path.write_bytes(path.read_bytes()[:extra])
    with pytest.raises(CheckpointError, match=r"m\.bin: " + message):
        load_checkpoint(path)


def test_llama2c_file_errors(tmp_path: Path):
    path, _ = llama2c(tmp_path / "m.bin", (24, 20, 2, 4, 2, 267, 40))
    with pytest.raises(CheckpointError, match="context = 41: allowed is 1..40"):
        load_checkpoint(path, context=41)
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer: allowed is tok267.bin or tokenizer.bin"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated: 0 bytes"):
        load_checkpoint(path)


# ---------------------------------------------------------------- errors

def rename(old: str, new: str) -> Callable[[Stored], None]:
    def change(t: Stored) -> None:
        t[new] = t.pop(old)
    return change


def add(name: str, dtype: str, shape: list[int], data: bytes | None = None) -> Callable[[Stored], None]:
    size = {"F32": 4, "BF16": 2, "U8": 1, "I32": 4}[dtype] * math.prod(shape)

    def change(t: Stored) -> None:
        t[name] = (dtype, shape, bytes(size) if data is None else data * (size // len(data)))
    return change


GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize("name, change, message", [
    ("llama", rename("model.norm.weight", "model.norm.wait"), "missing tensor model.norm.weight"),
    ("llama", add("model.layers.2.mlp.up_proj.weight", "F32", [1]), "extra tensor model.layers.2.mlp"),
    ("llama", add("model.norm.weight", "F32", [63]), r"model.norm.weight: shape \[63\]: allowed is \[64\]"),
    ("llama", add("model.norm.weight", "F32", [64, 1]), r"model.norm.weight: shape \[64, 1\]"),
    ("llama", add("model.norm.weight", "I32", [64]), "model.norm.weight: I32: allowed is F32, F16, BF16"),
    ("llama", add("model.norm.weight", "BF16", [64], b"\xc0\x7f"), "model.norm.weight: holds NaN"),
    ("llama", add("lm_head.weight", "F32", [288, 64]), "tie_word_embeddings = True: .* lm_head.weight"),
    ("llama", add("model.layers.0.self_attn.q_proj.bias", "F32", [128]), "extra tensor .*q_proj.bias"),
    ("gpt-oss", rename(GATE_UP + "_scales", "x"), f"missing tensor {GATE_UP}_scales"),
    ("gpt-oss", add(GATE_UP + "_blocks", "U8", [8, 80, 11, 16]), r"\[8, 80, 11, 16\]: .*\[8, 80, 12, 16\]"),
    ("gpt-oss", add(GATE_UP + "_blocks", "F32", [8, 80, 12, 16]), "_blocks: F32: allowed is U8"),
    ("gpt-oss", add(GATE_UP + "_blocks", "U8", [8, 80, 12, 16], b"\1"), "_blocks: elements beyond 360"),
    ("gpt-oss", add(GATE_UP + "_scales", "U8", [8, 80, 12], b"\xff"), "_scales: scale 255"),
    ("gpt-oss", add("model.layers.1.self_attn.sinks", "BF16", [1]), r"sinks: shape \[1\]: allowed is \[8\]"),
    ("gpt2", rename("transformer.h.1.mlp.c_fc.bias", "x"), "missing tensor h.1.mlp.c_fc.bias"),
    ("gpt2", add("wte.weight", "F32", [288, 60]), "wte.weight is stored twice"),
    ("bert", rename("pooler.dense.bias", "x"), "missing tensor pooler.dense.bias"),
])
def test_tensor_errors(tmp_path: Path, name: str, change: Callable[[Stored], None], message: str):
    directory = copy(name, tmp_path)
    change_tensors(directory, change)
    with pytest.raises(CheckpointError, match=message) as e:
        load_checkpoint(directory)
    assert str(directory) in str(e.value)


@pytest.mark.parametrize("name, changes, message", [
    ("llama", {"model_type": "mamba"}, "model_type = 'mamba': unknown architecture, allowed is 'llama'"),
    ("llama", {"model_type": None}, "model_type = None: unknown architecture"),
    ("llama", {"attention_bias": True}, "attention_bias = True: allowed is False"),
    ("llama", {"mlp_bias": True}, "mlp_bias = True"),
    ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu': allowed is 'silu'"),
    ("llama", {"hidden_size": "64"}, "hidden_size = '64': allowed is an integer"),
    ("llama", {"hidden_size": None}, "hidden_size = None: allowed is an integer"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads = 3: allowed is a divisor"),
    ("llama", {"head_dim": 33}, "head_dim = 33: allowed is an even number"),
    ("llama", {"head_dim": 32}, r"q_proj.weight: shape \[128, 64\]: allowed is \[64, 64\]"),
    ("llama", {"num_hidden_layers": 1}, "extra tensor model.layers.1"),
    ("llama", {"num_hidden_layers": 3}, "missing tensor model.layers.2"),
    ("llama", {"model_type": "m" * 9999}, "model_type = 'm+[.]{3}m+': unknown architecture, allowed is"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps = 0: allowed is a positive number"),
    ("llama", {"rms_norm_eps": 10**400}, r"rms_norm_eps = 10+\.{3}0+: allowed is a positive number in 1.1"),
    ("llama", {"rms_norm_eps": 1e-320}, "rms_norm_eps = 1e-320: allowed is a positive number"),
    ("llama", {"head_dim": 10**9}, "head_dim = 1000000000: allowed is an even number of at most 65536"),
    ("llama", {"hidden_size": 10**400}, "hidden_size = 10.*: allowed is an integer in 1..2147483647"),
    ("llama", {"eos_token_id": "a"}, "eos_token_id = 'a': .* an id in 0..287, a list of them or null"),
    ("llama", {"eos_token_id": {}}, "eos_token_id = {}: allowed is"),
    ("llama", {"eos_token_id": True}, "eos_token_id = True: allowed is"),
    ("llama", {"eos_token_id": [1, "a"]}, r"eos_token_id = \[1, 'a'\]: allowed is"),
    ("llama", {"eos_token_id": [1, -1]}, r"eos_token_id = \[1, -1\]: allowed is"),
    ("llama", {"bos_token_id": "x"}, "config.json: bos_token_id = 'x': allowed is an id in 0..287, a list"),
    ("llama", {"tie_word_embeddings": False}, "missing tensor lm_head.weight"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: allowed is 1"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope': allowed is"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention = {"),
    ("llama", {"rope_parameters": [1]}, r"rope_parameters = \[1\]: allowed is an object"),
    ("llama", {"vocab_size": 200}, "embed_tokens.weight: shape"),
    ("gpt-oss", {"swiglu_limit": 6.0}, r"swiglu_limit = 6.0: allowed is 7.0"),
    ("gpt-oss", {"attention_bias": False}, "attention_bias = False: allowed is True"),
    ("gpt-oss", {"num_experts_per_tok": 5}, "num_experts_per_tok = 5: .* 1..4: .*_experts = 8, .* most 4$"),
    ("gpt-oss", {"num_experts_per_tok": None, "experts_per_token": 5}, "[^_]experts_per_token = 5: allowed"),
    ("gpt-oss", {"num_local_experts": 3}, "num_experts_per_tok = 4: .* 1..3: .*_experts = 3, "),
    ("gpt-oss", {"layer_types": ["full_attention"]}, "layer_types .*: allowed is 2 of"),
    ("gpt-oss", {"layer_types": ["full_attention", "chunked"]}, "layer_types .*: allowed is 2 of"),
    ("gpt-oss", {"sliding_window": 0}, "sliding_window = 0: allowed is an integer in 1..2147483647"),
    ("gpt-oss", {"quantization_config": {"quant_method": "fp8"}}, "quant_method = 'fp8': allowed is"),
    ("gpt-oss", {"quantization_config": None}, "missing tensor .*0.mlp.experts.gate_up_proj$"),
    ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
    ("gpt2", {"n_head": 7}, "n_embd = 60: allowed is a multiple of n_head = 7"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ("bert", {"is_decoder": True}, "is_decoder = True"),
    ("bert", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
])
def test_config_errors(tmp_path: Path, name: str, changes: dict[str, object], message: str):
    directory = copy(name, tmp_path)
    change_config(directory, **changes)
    with pytest.raises(CheckpointError, match=message) as e:
        load_checkpoint(directory)
    assert str(directory) in str(e.value)


@pytest.mark.parametrize("key, value, allowed", [
    ("rope_theta", 1, "more than 1 where rope_type = 'yarn'"),
    ("rope_theta", 10**400, "a positive number in 1.17549e-38..3.40282e"),
    ("rope_theta", 1e-320, "a positive number"),
    ("rope_theta", math.nan, "a positive number"),
    ("factor", 0.5, "a positive number in 1..100000$"),
    ("factor", True, "a positive number"),
    ("original_max_position_embeddings", 0.1, "a positive number in 1.."),
    ("attention_factor", [1], "a positive number in 0.001..100000$"),
    ("attention_factor", "zz", "a positive number"),
    ("attention_factor", math.nan, "a positive number"),
    ("attention_factor", math.inf, "a positive number"),
    ("attention_factor", -1, "a positive number"),
    ("attention_factor", 0, "a positive number"),
    ("attention_factor", 1e30, "a positive number"),
    ("mscale", "a", "a number in 0..100"),
    ("mscale", -1, "a number in 0..100"),
    ("mscale_all_dim", 1e30, "a number in 0..100"),
    ("beta_fast", 1e-300, "a positive number in 0.001..100000$"),
    ("beta_fast", 0, "a positive number"),
    ("beta_fast", 0.5, "at least beta_slow = 1.0"),
    ("beta_slow", -1, "a positive number"),
    ("beta_slow", 1e30, "a positive number"),
    ("truncate", "no", "True or False"),
])
def test_yarn_errors(tmp_path: Path, key: str, value: object, allowed: str):
    """In both spellings; the file, the key and the value are named where the value is."""
    directory = copy("llama", tmp_path)
    yarn = {"rope_type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": 0.7}
    given = "10+[.]{3}0+" if isinstance(value, int) and value > 1 else re.escape(repr(value))
    error = f"{key} = {given}: allowed is {allowed}"
    for spelling in ("rope_parameters", "rope_scaling"):
        change_config(directory, rope_parameters=None, rope_scaling=None)
        change_config(directory, **{spelling: yarn | {key: value}})
        with pytest.raises(CheckpointError, match=f": {spelling}: {error}") as e:
            load_checkpoint(directory)
        assert str(directory / "config.json") in str(e.value)
    if key in ("rope_theta", "original_max_position_embeddings"):
        change_config(directory, rope_scaling=yarn, **{key: value})
        with pytest.raises(CheckpointError, match=rf"config\.json: {error}"):
            load_checkpoint(directory)


def test_yarn_attention_factor(tmp_path: Path):
    directory = copy("llama", tmp_path)
    yarn = {"rope_type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": 0.7}
    one, all_dim = 0.1 * math.log(4) + 1, 0.07 * math.log(4) + 1
    for changes, factor in (({}, one / all_dim), ({"mscale": None}, one), ({"mscale_all_dim": 0}, one),
                            ({"attention_factor": 2}, 2.0), ({"rope_theta": 1.5}, one / all_dim)):
        change_config(directory, rope_parameters=yarn | changes)
        b = load_checkpoint(directory).spec.block
        assert b.rope_factor == pytest.approx(factor) and np.isfinite(b.rope_inv_freq).all()


@pytest.mark.parametrize("name, longest", [("llama", 128), ("gpt-oss", 128), ("gpt2", 64), ("bert", 64)])
def test_context(name: str, longest: int):
    assert load_checkpoint(REFERENCE / name, context=longest).spec.context == longest
    c = load_checkpoint(REFERENCE / name, context=33)
    assert (c.spec.context, c.spec.block.max_tokens) == (33, 64)
    for context in (longest + 1, 0):
        with pytest.raises(CheckpointError, match=f"context = {context}: allowed is 1..{longest}, the"):
            load_checkpoint(REFERENCE / name, context=context)


def cut(file: str, size: int) -> Callable[[Path], object]:
    return lambda d: (d / file).write_bytes((d / file).read_bytes()[:size])


def grow(file: str, size: int) -> Callable[[Path], object]:
    return lambda d: (d / file).write_bytes((d / file).read_bytes() + bytes(size))


def header(text: str, size: int) -> Callable[[Path], object]:
    return write("model.safetensors", struct.pack("<Q", len(text)) + text.encode() + bytes(size))


def write(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda d: (d / file).write_bytes(data)


def weight_map(tensor: str, file: str) -> Callable[[Path], object]:
    def change(d: Path) -> None:
        index = json.loads((d / INDEX).read_text())
        index["weight_map"][tensor] = file
        (d / INDEX).write_text(json.dumps(index))
    return change


INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00003.safetensors"


@pytest.mark.parametrize("name, damage, message", [
    ("llama", lambda d: (d / "config.json").unlink(), r"config\.json: missing"),
    ("llama", cut("config.json", 100), r"config\.json: no readable JSON"),
    ("llama", write("config.json", b"[]"), r"config\.json: holds list"),
    ("llama", write("config.json", b"[" * 200000), r"config\.json: no readable JSON file: .*recursion"),
    ("llama", write("generation_config.json", b'{"a":' * 200000), "generation_config.json: no readable"),
    ("llama", write("generation_config.json", b'{"bos_token_id": [1.0]}'),
     r"generation_config\.json: bos_token_id = \[1.0\]: allowed is an id in 0..287, a list of them or null"),
    ("llama", grow("model.safetensors", 100), r"model\.safetensors: extra data: 100 bytes after the last"),
    ("llama-sharded", grow(SHARD, 1), f"{SHARD}: extra data: 1 bytes after the last tensor"),
    ("llama", write("model.safetensors", struct.pack("<Q", 200000) + b"[" * 200000), "no safetensors header"),
    ("llama", header('{"a":{"dtype":"U8","shape":[1e400],"data_offsets":[0,1]}}', 1), "no safetensors"),
    ("llama", header('{"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}}', 1), "missing tensor"),
    ("llama", header('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', 2),
     r"tensor a begins at byte 62: allowed is 61, where the one before it ends"),
    ("llama", lambda d: (d / "model.safetensors").unlink(), "no weights: allowed is model.safetensors or"),
    ("llama", cut("model.safetensors", -1), r"model\.safetensors: truncated: tensor model\.\S+ is bytes"),
    ("llama", cut("model.safetensors", 1000), r"model\.safetensors: truncated: header ends at byte"),
    ("llama", cut("model.safetensors", 5), r"model\.safetensors: truncated: 5 bytes"),
    ("llama", write("model.safetensors", struct.pack("<Q", 4) + b"nope"), "no safetensors header"),
    ("llama", write("model.safetensors", struct.pack("<Q", 8) + b'{"a":[]}'), "no safetensors header"),
    ("llama", lambda d: (d / "tokenizer.json").unlink(), "no tokenizer: allowed is tokenizer.json"),
    ("llama", cut("tokenizer.json", 500), r"tokenizer\.json: no readable tokenizer"),
    ("llama", write("generation_config.json", b'{"eos_token_id": 288}'),
     r"generation_config\.json: eos_token_id = 288: allowed is an id in 0..287"),
    ("gpt-oss", lambda d: shutil.copy(REFERENCE / "llama" / "tokenizer.json", d), "token id 287: allowed is"),
    ("llama-sharded", lambda d: (d / SHARD).unlink(), f"{SHARD}: No such file"),
    ("llama-sharded", cut(SHARD, -5), f"{SHARD}: truncated: tensor"),
    ("llama-sharded", weight_map("model.embed_tokens.weight", SHARD), f"weight is not in {SHARD}"),
    ("llama-sharded", weight_map("model.norm.weight", "../x"), "file '../x': allowed is a file beside"),
    ("llama-sharded", write(INDEX, b"{}"), "weight_map: allowed is an object"),
])
def test_file_errors(tmp_path: Path, name: str, damage: Callable[[Path], object], message: str):
    directory = copy(name, tmp_path)
    damage(directory)
    with pytest.raises(CheckpointError, match=message) as e:
        load_checkpoint(directory)
    assert str(directory) in str(e.value)


def test_option_errors(tmp_path: Path):
    with pytest.raises(CheckpointError, match="weights = 'int4': allowed is 'mxint8', 'mxfp6', 'mxfp4'"):
        load_checkpoint(REFERENCE / "llama", weights="int4")
    with pytest.raises(CheckpointError, match="nowhere: missing"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="tokenizer = t.bin: allowed is None for a directory"):
        load_checkpoint(REFERENCE / "llama", tokenizer="t.bin")
