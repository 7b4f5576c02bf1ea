"""llama2.c version-0 checkpoints: seven int32, then float32 tensors without names.

Interleaved RoPE of base 10000, eps 1e-5; a negative vocabulary size says that the head is stored.
"""

from pathlib import Path

import numpy as np

from golden.spec import BlockParams, BlockSpec, Expert, ModelParams, ModelSpec, MxTensor
from sw.source import bf16, rope_fields, round_up
from sw.heads import Heads
from sw.rope import Rope
from sw.tensors import CheckpointError

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def load_llama2c(path: Path, fmt: int, context: int | None) -> tuple[ModelSpec, ModelParams, dict[str, int]]:
    """The model, its parameters and the header. CheckpointError names the field or sizes that do not fit."""
    try:
        size = path.stat().st_size
        raw = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from None
    if size < 28:
        raise CheckpointError(f"{path}: truncated: {size} bytes, the header has 28")
    header = dict(zip(FIELDS, map(int, raw[:28].view("<i4"))))
    for key, value in header.items():
        if not (1 <= abs(value) < 1 << 24 and (value > 0 or key == "vocab_size")):
            raise CheckpointError(f"{path}: {key} = {value}: allowed is a positive number")
    dim, ffn, depth, n, kv, vocab, longest = header.values()
    vocab, tied = abs(vocab), vocab > 0
    if dim % n or dim // n % 2:
        raise CheckpointError(f"{path}: dim = {dim}: allowed is an even multiple of n_heads = {n}")
    if n % kv:
        raise CheckpointError(f"{path}: n_kv_heads = {kv}: allowed is a divisor of n_heads = {n}")
    if context is not None and not 1 <= context <= longest:
        raise CheckpointError(f"{path}: context = {context}: allowed is 1..{longest}, the model's seq_len")
    heads = Heads(heads=n, kv_heads=kv, size=dim // n, rope="interleaved")
    shapes = {
        "tok_embeddings": (vocab, dim), "attention_norm": (depth, dim), "wq": (depth, dim, dim),
        "wk": (depth, kv * heads.size, dim), "wv": (depth, kv * heads.size, dim), "wo": (depth, dim, dim),
        "ffn_norm": (depth, dim), "w1": (depth, ffn, dim), "w2": (depth, dim, ffn), "w3": (depth, ffn, dim),
        "norm": (dim,), **dict.fromkeys(("freq_cis_real", "freq_cis_imag"), (longest, heads.size // 2)),
    } | ({} if tied else {"output": (vocab, dim)})
    need = 28 + 4 * sum(int(np.prod(s, dtype=object)) for s in shapes.values())
    if size != need:
        what = "truncated" if size < need else "extra data"
        raise CheckpointError(f"{path}: {what}: {size} bytes: allowed is {need}, by the header {header}")
    t, at = {}, 28
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        t[name] = raw[at:end].view("<f4").astype(np.float32).reshape(shape)
        at = end
        if not np.isfinite(t[name]).all():
            raise CheckpointError(f"{path}: tensor {name}: holds NaN or infinity: allowed are finite numbers")

    context, name = context or longest, path.stem
    inv = 10000.0 ** (-np.arange(heads.size // 2, dtype=np.float64) * 2 / heads.size)
    spec = BlockSpec(name=name, hidden=dim, heads=n, kv_heads=kv, head_dim=heads.padded, ffn=ffn, eps=1e-5,
                     attn_scale=heads.attn_scale, attn_fmt=fmt, ffn_fmt=fmt, max_tokens=round_up(context, 32),
                     **rope_fields(heads, Rope(inv, 1.0, 10000.0)))
    layers = []
    for i in range(depth):
        w1, w2, w3 = (MxTensor.quantise(t[w][i], fmt) for w in ("w1", "w2", "w3"))
        layers.append(BlockParams(
            norm1=t["attention_norm"][i], norm2=t["ffn_norm"][i], wo=heads.output(t["wo"][i], spec),
            wq=MxTensor.quantise(heads.pad(t["wq"][i], True), fmt),
            wk=MxTensor.quantise(heads.pad(t["wk"][i], True), fmt),
            wv=MxTensor.quantise(heads.pad(t["wv"][i], False), fmt), experts=[Expert(w1, w3, w2)]))
    head = MxTensor.quantise(t["tok_embeddings" if tied else "output"], fmt)
    params = ModelParams(embedding=bf16(t["tok_embeddings"]), layers=layers, final_norm=t["norm"], head=head)
    return ModelSpec(name=name, architecture="llama", block=spec, windows=(None,) * depth, vocab=vocab,
                     context=context), params, header
