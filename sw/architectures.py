"""Hugging Face architectures: configuration and tensors -> `ModelSpec` and `ModelParams`.

`LOADERS` has a function for each model_type, load(Source) -> (ModelSpec, ModelParams), and one that maps
stored tensor names to those it takes (None: not needed). They say what a configuration may hold, what every
tensor is called and its shape; everything else is a CheckpointError. Llama and gpt-oss are here, GPT-2 and
BERT in sw/layer_norm_models.py.
"""

from collections.abc import Callable

from golden import formats
from golden.spec import MAX_TOP_K, BlockParams, BlockSpec, Expert, ModelParams, ModelSpec, MxTensor
from sw.heads import Heads
from sw.layer_norm_models import bert_name, gpt2_name, load_bert, load_gpt2
from sw.rope import read_rope
from sw.source import Source, attention, rope_fields, round_up
from sw.tensors import CheckpointError, Config



def _heads(config: Config, hidden: int, default: int | None = None) -> Heads:
    """Heads of a Llama style configuration."""
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.fail("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    if config.get("head_dim") is None and default is None and hidden % heads:
        raise config.fail("hidden_size", f"a multiple of num_attention_heads = {heads}")
    size = config.integer("head_dim", default or hidden // heads)
    if size % 2 or size > 1 << 16:
        raise config.fail("head_dim", f"an even number of at most {1 << 16}")
    return Heads(heads=heads, kv_heads=kv_heads, size=size, rope="half")


# ---------------------------------------------------------------- Llama

def load_llama(s: Source) -> tuple[ModelSpec, ModelParams]:
    c, t = s.config, s.tensors
    c.one_of("hidden_act", ("silu", "swish"), "silu")
    for key in ("attention_bias", "mlp_bias"):
        c.one_of(key, (False,), False)
    hidden, ffn, vocab = (c.integer(k) for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, context = _heads(c, hidden), s.positions("max_position_embeddings")
    spec = BlockSpec(name=s.name, hidden=hidden, heads=heads.heads, kv_heads=heads.kv_heads, ffn=ffn,
                     head_dim=heads.padded, attn_scale=heads.attn_scale, eps=c.number("rms_norm_eps", 1e-6),
                     attn_fmt=s.fmt, ffn_fmt=s.fmt, max_tokens=round_up(context, 32),
                     **rope_fields(heads, read_rope(c, heads.size, 10000.0)))
    layers = []
    for i in range(c.integer("num_hidden_layers")):
        at = f"model.layers.{i}."
        gate, up = (s.mx(f"{at}mlp.{m}_proj.weight", ffn, hidden) for m in ("gate", "up"))
        mlp = Expert(gate, up, s.mx(at + "mlp.down_proj.weight", hidden, ffn))
        layers.append(BlockParams(
            norm1=t.take(at + "input_layernorm.weight", hidden),
            norm2=t.take(at + "post_attention_layernorm.weight", hidden), experts=[mlp],
            **attention(s, spec, heads, [f"{at}self_attn.{m}_proj" for m in "qkvo"], bias=False)))
    tied = c.one_of("tie_word_embeddings", (True, False), False)
    params = ModelParams(
        embedding=s.table("model.embed_tokens.weight", vocab, hidden), layers=layers,
        final_norm=t.take("model.norm.weight", hidden),
        head=s.head(tied, "model.embed_tokens.weight", "lm_head.weight", vocab, hidden))
    return ModelSpec(name=s.name, architecture="llama", block=spec, windows=(None,) * len(layers),
                     vocab=vocab, context=context), params


# ---------------------------------------------------------------- gpt-oss

def load_gpt_oss(s: Source) -> tuple[ModelSpec, ModelParams]:
    c, t = s.config, s.tensors
    c.one_of("hidden_act", ("silu",), "silu")
    c.one_of("attention_bias", (True,), True)
    c.one_of("swiglu_alpha", (1.702,), 1.702)
    c.one_of("swiglu_limit", (7.0,), 7.0)
    published = False
    if (quantisation := c.inner("quantization_config")) is not None:
        published = quantisation.one_of("quant_method", ("mxfp4",), None) == "mxfp4"
    hidden, ffn, vocab, depth = (c.integer(k) for k in (
        "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    experts = c.integer("num_local_experts")
    top_k = _chosen(c, experts)
    heads, context = _heads(c, hidden, default=64), s.positions("max_position_embeddings")
    spec = BlockSpec(name=s.name, hidden=hidden, heads=heads.heads, kv_heads=heads.kv_heads, ffn=ffn,
                     head_dim=heads.padded, attn_scale=heads.attn_scale, eps=c.number("rms_norm_eps", 1e-5),
                     sinks=True, experts=experts, top_k=top_k, act="clamped", bias=True, attn_fmt=s.fmt,
                     ffn_fmt=formats.FP4 if published else s.fmt, max_tokens=round_up(context, 32),
                     **rope_fields(heads, read_rope(c, heads.size, 150000.0)))
    layers = []
    for i in range(depth):
        at = f"model.layers.{i}."
        layers.append(BlockParams(
            norm1=t.take(at + "input_layernorm.weight", hidden),
            norm2=t.take(at + "post_attention_layernorm.weight", hidden),
            router=MxTensor.quantise(t.take(at + "mlp.router.weight", experts, hidden), formats.INT8),
            router_bias=t.take(at + "mlp.router.bias", experts),
            sinks=t.take(at + "self_attn.sinks", heads.heads), experts=_experts(s, spec, at, published),
            **attention(s, spec, heads, [f"{at}self_attn.{m}_proj" for m in "qkvo"], bias=True)))
    tied = c.one_of("tie_word_embeddings", (True, False), False)
    params = ModelParams(
        embedding=s.table("model.embed_tokens.weight", vocab, hidden), layers=layers,
        final_norm=t.take("model.norm.weight", hidden),
        head=s.head(tied, "model.embed_tokens.weight", "lm_head.weight", vocab, hidden))
    return ModelSpec(name=s.name, architecture="gpt-oss", block=spec, windows=_windows(c, depth), vocab=vocab,
                     context=context), params


def _chosen(c: Config, experts: int) -> int:
    """Experts per token, under the key of transformers or that of the published gpt-oss."""
    key = next((k for k in ("num_experts_per_tok", "experts_per_token") if c.get(k) is not None),
               "num_experts_per_tok")
    top_k = c.integer(key)
    if top_k > min(MAX_TOP_K, experts):
        raise c.fail(key, f"1..{min(MAX_TOP_K, experts)}: the model has num_local_experts = {experts}, "
                          f"the tile chooses at most {MAX_TOP_K}")
    return top_k


def _windows(c: Config, depth: int) -> tuple[int | None, ...]:
    """The window of each layer; without layer_types every even layer slides."""
    kinds = ("sliding_attention", "full_attention")
    types = c.get("layer_types", [kinds[i % 2] for i in range(depth)])
    if not isinstance(types, list) or len(types) != depth or any(t not in kinds for t in types):
        raise c.fail("layer_types", f"{depth} of {' or '.join(kinds)}")
    window = c.integer("sliding_window", 128) if kinds[0] in types else None
    return tuple(window if t == kinds[0] else None for t in types)


def _experts(s: Source, spec: BlockSpec, at: str, published: bool) -> list[Expert]:
    """The experts of a layer; rows of gate and up alternate."""
    take = _published if published else _plain
    n, at = spec.experts, at + "mlp.experts."
    gate_up = take(s, at + "gate_up_proj", n, 2 * spec.ffn, spec.hidden)
    down = take(s, at + "down_proj", n, spec.hidden, spec.ffn)
    gate_up_bias = s.tensors.take(at + "gate_up_proj_bias", n, 2 * spec.ffn)
    down_bias = s.tensors.take(at + "down_proj_bias", n, spec.hidden)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    return [Expert(g.rows(even), g.rows(odd), d, gb[even], gb[odd], db)
            for g, d, gb, db in zip(gate_up, down, gate_up_bias, down_bias)]


def _published(s: Source, name: str, experts: int, rows: int, inputs: int) -> list[MxTensor]:
    """MXFP4 as published: blocks (experts, rows, ceil(inputs / 32), 16), scales without the last axis.

    Untouched: the integers are the file's elements, the scale bytes the file's.
    """
    blocks = round_up(inputs, formats.BLOCK) // formats.BLOCK
    ints = formats.unpack(s.tensors.take_bytes(name + "_blocks", experts, rows, blocks, 16), formats.FP4)
    scales = s.tensors.take_bytes(name + "_scales", experts, rows, blocks).copy()
    if ints.reshape(experts, rows, -1)[..., inputs:].any():
        raise CheckpointError(f"{s.config.where}: tensor {name}_blocks: elements beyond {inputs} of a row: "
                              "allowed are zeros")
    if (scales == formats.NAN_SCALE).any():
        raise CheckpointError(f"{s.config.where}: tensor {name}_scales: scale 255 (NaN): allowed is 0..254")
    return [MxTensor(i, e, formats.FP4, inputs) for i, e in zip(ints, scales)]


def _plain(s: Source, name: str, experts: int, rows: int, inputs: int) -> list[MxTensor]:
    """Experts that were saved as floats: (experts, inputs, rows)."""
    return [MxTensor.quantise(w.T, s.fmt) for w in s.tensors.take(name, experts, inputs, rows)]


# ---------------------------------------------------------------- all

def _rms_name(name: str) -> str | None:
    """Old checkpoints carry the rotary table, which the configuration defines."""
    return None if name.endswith("rotary_emb.inv_freq") else name


Load = Callable[[Source], tuple[ModelSpec, ModelParams]]
LOADERS: dict[str, tuple[Load, Callable[[str], str | None]]] = {
    "llama": (load_llama, _rms_name),
    "gpt_oss": (load_gpt_oss, _rms_name),
    "gpt2": (load_gpt2, gpt2_name),
    "bert": (load_bert, bert_name),
}
