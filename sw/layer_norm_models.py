"""GPT-2 and BERT: LayerNorm, learned positions and an MLP without gate (see sw/architectures.py)."""

import numpy as np

from golden.spec import BlockParams, BlockSpec, Expert, ModelParams, ModelSpec, MxTensor
from sw.heads import Heads
from sw.source import Source, attention, round_up


# ---------------------------------------------------------------- GPT-2

def load_gpt2(s: Source) -> tuple[ModelSpec, ModelParams]:
    """Projections are Conv1D: (inputs, outputs), queries, keys and values side by side."""
    c, t = s.config, s.tensors
    c.one_of("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    c.one_of("scale_attn_weights", (True,), True)
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        c.one_of(key, (False,), False)
    hidden, n, vocab = (c.integer(k) for k in ("n_embd", "n_head", "vocab_size"))
    if hidden % n:
        raise c.fail("n_embd", f"a multiple of n_head = {n}")
    ffn, context = c.integer("n_inner", 4 * hidden), s.positions("n_positions")
    heads = Heads(heads=n, kv_heads=n, size=hidden // n, rope="none")
    spec = BlockSpec(name=s.name, hidden=hidden, heads=n, kv_heads=n, head_dim=heads.padded, ffn=ffn,
                     rope="none", attn_scale=heads.attn_scale, eps=c.number("layer_norm_epsilon", 1e-5),
                     norm="layer", act="gelu_tanh", bias=True, attn_fmt=s.fmt, ffn_fmt=s.fmt,
                     max_tokens=round_up(context, 32))

    def conv(name: str, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        return t.take(name + ".weight", inputs, outputs).T, t.take(name + ".bias", outputs)

    layers = []
    for i in range(c.integer("n_layer")):
        at = f"h.{i}."
        qkv, qkv_bias = conv(at + "attn.c_attn", hidden, 3 * hidden)
        (wq, bq), (wk, bk), (wv, bv) = (
            (MxTensor.quantise(heads.pad(w, False), s.fmt), heads.pad(b, False))
            for w, b in zip(np.split(qkv, 3), np.split(qkv_bias, 3)))
        wo, bo = conv(at + "attn.c_proj", hidden, hidden)
        up, up_bias = conv(at + "mlp.c_fc", hidden, ffn)
        down, down_bias = conv(at + "mlp.c_proj", ffn, hidden)
        mlp = Expert(None, MxTensor.quantise(up, s.fmt), MxTensor.quantise(down, s.fmt),
                     None, up_bias, down_bias)
        layers.append(BlockParams(
            norm1=t.take(at + "ln_1.weight", hidden), norm1_bias=t.take(at + "ln_1.bias", hidden),
            norm2=t.take(at + "ln_2.weight", hidden), norm2_bias=t.take(at + "ln_2.bias", hidden),
            wq=wq, wk=wk, wv=wv, wo=heads.output(wo, spec), bq=bq, bk=bk, bv=bv, bo=bo, experts=[mlp]))
    tied = c.one_of("tie_word_embeddings", (True, False), True)
    params = ModelParams(
        embedding=s.table("wte.weight", vocab, hidden), layers=layers,
        positions=s.table("wpe.weight", c.integer("n_positions"), hidden)[:context],
        final_norm=t.take("ln_f.weight", hidden), final_norm_bias=t.take("ln_f.bias", hidden),
        head=s.head(tied, "wte.weight", "lm_head.weight", vocab, hidden))
    return ModelSpec(name=s.name, architecture="gpt2", block=spec, windows=(None,) * len(layers), vocab=vocab,
                     context=context), params


# ---------------------------------------------------------------- BERT

def load_bert(s: Source) -> tuple[ModelSpec, ModelParams]:
    """An encoder; the pooler is optional, heads of masked language models are not read."""
    c, t = s.config, s.tensors
    act = {"gelu": "gelu_erf", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}[
        c.one_of("hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"), "gelu")]
    c.one_of("position_embedding_type", ("absolute",), "absolute")
    for key in ("is_decoder", "add_cross_attention"):
        c.one_of(key, (False,), False)
    hidden, ffn, vocab, n = (c.integer(k) for k in (
        "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"))
    if hidden % n:
        raise c.fail("hidden_size", f"a multiple of num_attention_heads = {n}")
    heads = Heads(heads=n, kv_heads=n, size=hidden // n, rope="none")
    context = s.positions("max_position_embeddings")
    spec = BlockSpec(name=s.name, hidden=hidden, heads=n, kv_heads=n, head_dim=heads.padded, ffn=ffn,
                     rope="none", attn_scale=heads.attn_scale, eps=c.number("layer_norm_eps", 1e-12),
                     norm="layer", post_norm=True, causal=False, act=act, bias=True, attn_fmt=s.fmt,
                     ffn_fmt=s.fmt, max_tokens=round_up(context, 32))

    def norm(name: str) -> tuple[np.ndarray, np.ndarray]:
        return t.take(name + ".weight", hidden), t.take(name + ".bias", hidden)

    layers = []
    for i in range(c.integer("num_hidden_layers")):
        at = f"encoder.layer.{i}."
        mlp = Expert(None, s.mx(at + "intermediate.dense.weight", ffn, hidden),
                     s.mx(at + "output.dense.weight", hidden, ffn), None,
                     t.take(at + "intermediate.dense.bias", ffn), t.take(at + "output.dense.bias", hidden))
        norm1, norm1_bias = norm(at + "attention.output.LayerNorm")
        norm2, norm2_bias = norm(at + "output.LayerNorm")
        names = (f"{at}attention.{m}" for m in ("self.query", "self.key", "self.value", "output.dense"))
        layers.append(BlockParams(norm1=norm1, norm1_bias=norm1_bias, norm2=norm2, norm2_bias=norm2_bias,
                                  experts=[mlp], **attention(s, spec, heads, names, bias=True)))
    embed_norm, embed_norm_bias = norm("embeddings.LayerNorm")
    pooler = "pooler.dense.weight" in t
    params = ModelParams(
        embedding=s.table("embeddings.word_embeddings.weight", vocab, hidden), layers=layers, final_norm=None,
        head=None, embed_norm=embed_norm, embed_norm_bias=embed_norm_bias,
        positions=s.table("embeddings.position_embeddings.weight",
                          c.integer("max_position_embeddings"), hidden)[:context],
        token_types=s.table("embeddings.token_type_embeddings.weight",
                            c.integer("type_vocab_size", 2), hidden),
        pooler=t.take("pooler.dense.weight", hidden, hidden) if pooler else None,
        pooler_bias=t.take("pooler.dense.bias", hidden) if pooler else None)
    return ModelSpec(name=s.name, architecture="bert", block=spec, windows=(None,) * len(layers),
                     vocab=vocab, context=context, embed_norm=True), params


def gpt2_name(name: str) -> str | None:
    """With or without the prefix of the model with a head; causal masks were once stored."""
    name = name.removeprefix("transformer.")
    return None if name.endswith((".attn.bias", ".attn.masked_bias")) else name


def bert_name(name: str) -> str | None:
    """With or without the prefix of the models with a head, whose heads (cls.) are not read."""
    name = name.removeprefix("bert.")
    if name.startswith("cls.") or name == "embeddings.position_ids":
        return None
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
