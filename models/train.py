"""Train a model that ships, from nothing: `python -m models.train llama|gptoss -o DIR`.

Text of models.corpus -> byte-level BPE tokenizer -> training on the CPU -> a Hugging Face directory that
`transformers` loads, which is checked at the end. Needs the extra `train` (torch, transformers, tokenizers).
A story is one sequence: BOS, its tokens, EOS. Training begins with anecdotes, short texts full of names: who
is who is learned from them within minutes, from stories it takes hours. Loss is printed for unseen stories.
"""

import argparse
import json
import pathlib
import time
from typing import Iterator

import ml_dtypes
import numpy as np
import safetensors.numpy
import safetensors.torch
import tokenizers
import torch
import transformers
from torch.nn import functional as F
from tqdm import tqdm

from golden import formats
from models import corpus
from models.nets import Net, mxfp4

BOS, EOS = "<|begin|>", "<|end|>"
VOCAB, CONTEXT = 704, 256
TRAIN_SEED, TEST_SEED = 1, 2
ANECDOTE_STEPS, ANECDOTE_BATCH = 300, 48
EXPERTS = ("gate_up_proj", "down_proj")  # stored as MXFP4

COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "head_dim": 32,
    "initializer_range": 0.02, "max_position_embeddings": CONTEXT, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": VOCAB,
}
LLAMA = COMMON | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "mlp_bias": False,
    "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}
GPTOSS = COMMON | {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_act": "silu",
    "attention_bias": True, "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_local_experts": 8, "num_experts_per_tok": 2, "experts_per_token": 2, "swiglu_limit": 7.0,
    "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                     "truncate": False, "original_max_position_embeddings": 64},
    "rope_theta": 150000, "tie_word_embeddings": False, "output_router_logits": False,
    "router_aux_loss_coef": 0.01,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                   "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4"},
}
MODELS = {"llama": LLAMA, "gptoss": GPTOSS}


# ---------------------------------------------------------------- text

def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE over VOCAB tokens; encode() puts BOS in front."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """BOS story EOS of each text that fits the context."""
    ids = (np.array([*e.ids, 1], np.int64) for e in tokenizer.encode_batch_fast(texts))
    return [i for i in ids if len(i) <= CONTEXT + 1]


def batches(stories: list[np.ndarray], size: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Endless batches (size, length) of stories of similar length, padded with -1."""
    while True:
        order = rng.permutation(len(stories))
        for chunk in np.split(order, range(size * 32, len(order), size * 32)):
            chunk = sorted(chunk, key=lambda i: len(stories[i]))
            groups = [chunk[i : i + size] for i in range(0, len(chunk), size)]
            for group in (groups[i] for i in rng.permutation(len(groups))):
                yield padded([stories[i] for i in group])


def padded(stories: list[np.ndarray]) -> torch.Tensor:
    out = torch.full((len(stories), max(map(len, stories))), -1)
    for row, ids in zip(out, stories):
        row[: len(ids)] = torch.from_numpy(ids)
    return out


# ---------------------------------------------------------------- training

def loss_of(net: Net, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, nats per token."""
    logits = net(batch[:, :-1].clamp(min=0))
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1)


def optimisers(net: Net, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers but routers, AdamW for embeddings, experts and vectors."""
    layers = {id(p) for name, p in net.model.layers.named_parameters() if p.ndim == 2 and "weight" in name
              and "router" not in name}
    matrices = [p for p in net.parameters() if id(p) in layers]
    others = [p for p in net.parameters() if id(p) not in layers]
    groups = [{"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0}]
    return [torch.optim.Muon(matrices, lr=5 * rate, weight_decay=0.1),
            torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]


def train(net: Net, anecdotes: list[np.ndarray], stories: list[np.ndarray], steps: int, minutes: float,
          size: int, rate: float, seed: int) -> tuple[int, int]:
    """Linear warm-up, decay to zero at the end of steps or minutes -> steps done, tokens seen."""
    optimiser = optimisers(net, rate)
    groups = [group for o in optimiser for group in o.param_groups]
    highest = [group["lr"] for group in groups]
    coefficient, tokens, mean = net.config.get("router_aux_loss_coef", 0.0), 0, None
    short = batches(anecdotes, ANECDOTE_BATCH, np.random.default_rng(seed))
    long = batches(stories, size, np.random.default_rng(seed))
    start, step, progress = time.monotonic(), 0, tqdm(total=steps, mininterval=5)
    while (done := max(step / steps, (time.monotonic() - start) / 60 / minutes)) < 1:
        for group, top in zip(groups, highest):
            group["lr"] = top * min((step + 1) / 100, 1 - done)
        batch = next(short if step < ANECDOTE_STEPS else long)
        loss = loss_of(net, batch)
        (loss + coefficient * net.balance()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o in optimiser:
            o.step()
            o.zero_grad()
        step += 1
        tokens += int((batch[:, 1:] >= 0).sum())
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        progress.set_postfix(loss=f"{mean:.3f}", balance=f"{net.balance().item():.2f}", refresh=False)
        progress.update()
    progress.close()
    return step, tokens


@torch.no_grad()
def evaluate(net: Net, stories: list[np.ndarray]) -> float:
    """Nats per token."""
    total = count = 0
    for batch in (padded(stories[i : i + 32]) for i in range(0, len(stories), 32)):
        n = int((batch[:, 1:] >= 0).sum())
        total, count = total + n * loss_of(net, batch).item(), count + n
    return total / count


# ---------------------------------------------------------------- the directory

def round_weights(net: Net) -> None:
    """The weights to what is stored: MXFP4 for experts, bfloat16 for everything else."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(mxfp4(p) if name.endswith(EXPERTS) else p.bfloat16().float())


def export(net: Net, tokenizer: tokenizers.Tokenizer, out: pathlib.Path) -> None:
    """Write the Hugging Face directory of a net with rounded weights."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, p in net.state_dict().items():
        value = p.numpy()
        if name.endswith(EXPERTS):
            ints, scales = formats.encode(value, formats.FP4)
            if not np.array_equal(formats.decode(ints, scales, formats.FP4).reshape(value.shape), value):
                raise ValueError(f"{name} is not what the reference encoder stores")
            tensors[name + "_blocks"], tensors[name + "_scales"] = formats.pack(ints, formats.FP4), scales
        else:
            tensors[name] = value.astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    for name, value in {
        "config.json": net.config,
        "generation_config.json": {
            "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.8,
            "max_length": CONTEXT},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
            "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False},
    }.items():
        (out / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def check(net: Net, out: pathlib.Path, test: list[np.ndarray], samples: int) -> None:
    """Load the directory with transformers: the same logits, the same greedy text; print samples."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    quantisation = {}
    if "quantization_config" in net.config:
        quantisation["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.bfloat16, attn_implementation="eager", **quantisation).float()
    tokens = torch.from_numpy(test[0][None, :-1])
    ours, theirs = net(tokens), model(tokens).logits
    difference = (ours - theirs).abs().max().item()
    if difference > 1e-2:
        raise ValueError(f"logits of transformers differ by up to {difference}")
    greedy = torch.zeros(1, 1, dtype=torch.int64)
    while greedy.shape[1] < CONTEXT and greedy[0, -1] != 1:
        greedy = torch.cat((greedy, net(greedy)[:, -1:].argmax(-1)), dim=1)
    theirs = model.generate(torch.zeros(1, 1, dtype=torch.int64), do_sample=False, max_length=CONTEXT)
    if greedy.tolist() != theirs.tolist():
        raise ValueError("greedy text of transformers differs")
    print(f"transformers {transformers.__version__}: logits within {difference:.1e}, the same greedy text:")
    print(tokenizer.decode(greedy[0], skip_special_tokens=True), end="\n\n")
    torch.manual_seed(0)
    start = torch.zeros(samples, 1, dtype=torch.int64)
    for row in model.generate(start, do_sample=True, temperature=0.8, top_k=0, max_length=CONTEXT,
                              attention_mask=torch.ones_like(start), pad_token_id=1):
        print(tokenizer.decode(row, skip_special_tokens=True), end="\n\n" if row[-1] == 1 else " (cut)\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small model and write its Hugging Face directory.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--minutes", type=float, default=60.0, help="end earlier, after this time")
    parser.add_argument("--batch", type=int, default=16, help="stories per step")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--stories", type=int, default=40000, help="stories to train on")
    parser.add_argument("--samples", type=int, default=10, help="stories to print at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    texts = list(corpus.stories(args.stories, TRAIN_SEED))
    tokenizer = train_tokenizer(texts[:20000])
    anecdotes = encode(tokenizer, list(corpus.anecdotes(args.stories // 4, TRAIN_SEED)))
    stories = encode(tokenizer, texts) + anecdotes[: args.stories // 20]
    test = encode(tokenizer, list(corpus.stories(500, TEST_SEED)))
    print(f"{len(texts)} stories, {sum(map(len, texts)) / 1e6:.1f} million characters, "
          f"{sum(map(len, stories))} tokens")
    net = Net(MODELS[args.model])
    print(f"{args.model}: {sum(p.numel() for p in net.parameters())} parameters")
    start = time.process_time()
    steps, tokens = train(net, anecdotes, stories, args.steps, args.minutes, args.batch, args.rate,
                          args.seed)
    seconds = time.process_time() - start
    before = evaluate(net, test)
    round_weights(net)
    print(f"{steps} steps, {tokens} tokens, {seconds:.0f} s of processor time; loss on unseen stories, nats "
          f"per token: {before:.4f} in float32, {evaluate(net, test):.4f} as stored")
    export(net, tokenizer, args.output)
    check(net, args.output, test, args.samples)


if __name__ == "__main__":
    main()
