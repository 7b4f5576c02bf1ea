"""Writes the reference checkpoints beside this file: small random models as `transformers` saves them, with
the float32 outputs that `transformers` computes from the stored values.

    python -m sw.reference.make [-o DIRECTORY] [names ...]

Needs the extra `train` (torch, transformers, tokenizers); the tests need only what is committed.

Each directory holds config.json, the safetensors file(s), tokenizer files and expected.npz:
* decoders: ids (tokens,) int32, logits (tokens, vocab) float32; with RoPE inv_freq (head_dim / 2,) float32
  and rope_factor
* bert: ids, mask, types (batch, tokens) int32, hidden (batch, tokens, hidden) and pooled (batch, hidden)
  float32; the second sequence is shorter and padded

The gpt-oss model's hidden size 360 (2880 / 8) is no multiple of 32, which the published layout of its experts
cannot say: the last block of a row is zero padded, so blocks are (experts, rows, ceil(inputs / 32), 16).
`transformers` cannot load that; its float32 logits are those of the dequantised experts in memory.
"""

import argparse
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import (AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

from golden import formats

TEXT = """The little tile read one block at a time. It liked the long rows and the short rows, and it never
lost a bit. Once upon a time there was a small array that wanted to count to ten. The array asked the memory
for a number, and the memory gave it two. "Thank you," said the array, and it added them. Then the moon came
up over the mesh."""
BOS, EOS = "<|bos|>", "<|eos|>"


# ---------------------------------------------------------------- tokenizers

def byte_level(vocab: int, template: bool) -> transformers.PreTrainedTokenizerFast:
    """GPT-2 style byte-level BPE; with `template` BOS is put first as Llama 3 does."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if template:
        t.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, t.token_to_id(BOS))])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token=BOS, eos_token=EOS)


def byte_fallback(vocab: int) -> transformers.PreTrainedTokenizerFast:
    """Llama 2 style: spaces as U+2581, a dummy first space, unknown characters as byte tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    marked = [" " + w for w in TEXT.split()]
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator([" ".join(m.replace(" ", "\u2581") for m in marked)], trainers.BpeTrainer(
        vocab_size=vocab - len(pieces), show_progress=False))
    bpe = json.loads(trained.to_str())["model"]
    order = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    t = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces + order)},
                             merges=[tuple(m) for m in bpe["merges"]],
                             unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in pieces[:3]])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>",
                                                unk_token="<unk>")


def word_piece() -> transformers.PreTrainedTokenizerFast:
    """The words of TEXT and all letters (the package's trainer does not give the same vocabulary twice)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = set(re.findall(r"[a-z]+|[^a-z\s]", TEXT.lower())) - set(letters)
    pieces = [*special, *letters, *("##" + c for c in letters), *sorted(words), "##ing", "##ed"]
    t = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.add_special_tokens(special)
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=t, unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]",
        mask_token="[MASK]")


# ---------------------------------------------------------------- weights

def randomise(model: torch.nn.Module, seed: int, logit_std: float = 1.5) -> None:
    """Signals of about unit size, attention that is not uniform, biases and sinks that count."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        is_norm = any(n in name.lower() for n in ("norm", "ln_"))
        transposed = "c_" in name or leaf in ("gate_up_proj", "down_proj")  # (inputs, outputs)
        around, std = 0.0, 0.2
        if is_norm and leaf == "weight":
            around, std = 1.0, 0.1
        elif leaf == "sinks":
            std = 1.0
        elif "lm_head" in name or "embed_tokens" in name or "wte" in name:
            std = logit_std * p.shape[1] ** -0.5
        elif any(e in name for e in ("embeddings.", "wpe")):
            std = 0.5
        elif p.ndim >= 2:
            std = 1.4 * p.shape[-2 if transposed else -1] ** -0.5
        p.data.copy_(around + std * torch.randn(p.shape, generator=rng))


def ids_of(vocab: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randint(0, vocab, (1, tokens), generator=torch.Generator().manual_seed(seed))


def write_expected(out: Path, model: torch.nn.Module, seed: int, tokens: int = 40) -> None:
    """expected.npz of a decoder, run as it is."""
    ids = ids_of(model.config.vocab_size, tokens, seed)
    with torch.no_grad():
        arrays = {"ids": ids[0].numpy().astype(np.int32), "logits": model.eval()(ids).logits[0].numpy()}
    if (rope := getattr(model.base_model, "rotary_emb", None)) is not None:
        arrays |= {"inv_freq": rope.inv_freq.numpy(), "rope_factor": np.float32(rope.attention_scaling)}
    np.savez_compressed(out / "expected.npz", **arrays)


def decoder(out: Path, model: torch.nn.Module, dtype: torch.dtype,
            tokenizer: transformers.PreTrainedTokenizerFast, seed: int, **save: str) -> None:
    """Saves the model as `dtype` and the float32 logits of what was saved."""
    randomise(model, seed)
    model.to(dtype).save_pretrained(out, **save)
    tokenizer.save_pretrained(out)
    stored = type(model).from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    write_expected(out, stored, seed + 1)


# ---------------------------------------------------------------- the models

def llama(out: Path) -> None:
    """Tied head, Llama 3 scaling, GQA, head_dim 64 (two slices) that is not hidden / heads."""
    tokenizer = byte_level(288, template=True)
    config = transformers.LlamaConfig(
        vocab_size=288, hidden_size=64, intermediate_size=100, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=128, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    decoder(out, transformers.LlamaForCausalLM(config), torch.bfloat16, tokenizer, 1)


def llama_sharded(out: Path) -> None:
    """Untied head, no scaling, several files, head_dim 12 (padded to 16 by the loader)."""
    tokenizer = byte_fallback(352)
    config = transformers.LlamaConfig(
        vocab_size=352, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-6, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    decoder(out, transformers.LlamaForCausalLM(config), torch.float16, tokenizer, 3, max_shard_size="60KB")


def gpt2(out: Path) -> None:
    """head_dim 20 (padded to 32 by the loader)."""
    config = transformers.GPT2Config(
        vocab_size=288, n_embd=60, n_layer=2, n_head=3, n_positions=64, bos_token_id=1, eos_token_id=1)
    decoder(out, transformers.GPT2LMHeadModel(config), torch.float16, byte_level(288, template=False), 5)


def gpt_oss(out: Path) -> None:
    """hidden 2880 / 8, 8 query heads on 1 KV head, 8 experts top-4, window 16 of 40 tokens, MXFP4 experts."""
    config = transformers.GptOssConfig(
        vocab_size=264, hidden_size=360, intermediate_size=40, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=1, head_dim=32, num_local_experts=8, num_experts_per_tok=4, sliding_window=16,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                         "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 32})
    model = transformers.GptOssForCausalLM(config)
    randomise(model, 7)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    byte_level(264, template=False).save_pretrained(out)
    tensors = load_file(out / "model.safetensors")
    for p in model.parameters():  # not model.to(...): its RoPE frequencies stay float32
        p.data.copy_(p.data.bfloat16())
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        w = tensors.pop(name).float().transpose(1, 2).numpy()  # (experts, rows, inputs)
        ints, scales = formats.encode(w, formats.FP4)
        tensors[name + "_blocks"] = torch.from_numpy(formats.pack(ints, formats.FP4))
        tensors[name + "_scales"] = torch.from_numpy(scales)
        value = formats.decode(ints, scales, formats.FP4, length=w.shape[-1])
        model.get_parameter(name).data.copy_(torch.from_numpy(value).transpose(1, 2))
    save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    written = json.loads((out / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    write_expected(out, model, 8)


def bert(out: Path) -> None:
    """With pooler; two sequences, the second padded, token types 0 and 1."""
    tokenizer = word_piece()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, max_position_embeddings=64, type_vocab_size=2)
    model = transformers.BertModel(config)
    randomise(model, 9)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    ids, mask, types = (torch.zeros(2, 38, dtype=torch.int64) for _ in range(3))
    for row, (length, split) in enumerate(((38, 20), (21, 9))):
        ids[row, :length] = ids_of(len(tokenizer) - 5, length, 10 + row)[0] + 5
        ids[row, 0], ids[row, split - 1], ids[row, length - 1] = 2, 3, 3
        mask[row, :length], types[row, split:length] = 1, 1
    stored = transformers.BertModel.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        y = stored.eval()(input_ids=ids, attention_mask=mask, token_type_ids=types)
    arrays = {k: v.numpy().astype(np.int32) for k, v in (("ids", ids), ("mask", mask), ("types", types))}
    np.savez_compressed(out / "expected.npz", hidden=y.last_hidden_state.numpy(),
                        pooled=y.pooler_output.numpy(), **arrays)


MODELS = {"llama": llama, "llama-sharded": llama_sharded, "gpt-oss": gpt_oss, "gpt2": gpt2, "bert": bert}


def _main(arguments: list[str] | None = None) -> Iterator[str]:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=list(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(MODELS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed is {', '.join(MODELS)}")
    for name in given.names:
        out = given.output / name
        out.mkdir(parents=True, exist_ok=True)
        MODELS[name](out)
        yield f"{out}: {sum(f.stat().st_size for f in out.iterdir())} bytes"


if __name__ == "__main__":
    for line in _main():
        print(line)
