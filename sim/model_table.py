"""`make models`: what models cost on the RTL, and how far their text is from float32's; README's table.

For each checkpoint: a prompt of 32 tokens and 16 greedy tokens on the Verilated tile, which must be the
golden model's (encoders: one text of 32 tokens, every value). Agreement is the golden model's, which the RTL
equals bit for bit, with float32 outputs stored beside the checkpoint (expected.npz, expected_fp32.npz): how
often the most likely token is the same, and cross-entropy minus float32's on the same text, nats per token
(encoders: the smallest cosine of a token's output).
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import safetensors
from tqdm import tqdm

from golden.compare import cosine, log_softmax
from golden.model import Model
from golden.spec import ModelParams
from hw.config import named
from sim.bench import put_into_readme
from sw.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from sw.runtime import Session

ROOT = Path(__file__).parents[1]
MODELS = [
    *(ROOT / "models" / n for n in ("serrano-llama", "serrano-gptoss")),
    *(ROOT / "sw" / "reference" / n for n in ("llama", "gpt-oss", "gpt2", "bert")),
]
PROMPT, TOKENS = 32, 16


def of_stories(c: Checkpoint, expected: dict[str, np.ndarray]) -> str:
    """Shipped models: losses and choices of float32 on stories (models/expected.py)."""
    loss, same = [], []
    for lo, hi in zip(expected["begins"], expected["begins"][1:]):
        ids = expected["ids"][lo:hi]
        y = log_softmax(Model(c.spec, c.params).forward(ids[:-1], 0))
        loss.append(-y[np.arange(len(y)), ids[1:]])
        same.append(y.argmax(axis=1))
    agree = (np.concatenate(same) == expected["argmax"]).mean()
    return f"{agree:.1%}, {np.concatenate(loss).mean() - expected['loss'].mean():+.4f} nats"


def of_logits(c: Checkpoint, ids: np.ndarray, reference: np.ndarray) -> str:
    """All logits of float32 for a text whose next tokens are ids[1:]."""
    y, z = (log_softmax(v) for v in (Model(c.spec, c.params).forward(ids[: len(reference)], 0), reference))
    agree = (y.argmax(axis=1) == z.argmax(axis=1)).mean()
    rows = np.arange(len(ids) - 1)
    return f"{agree:.1%}, {(z[rows, ids[1:]] - y[rows, ids[1:]]).mean():+.4f} nats"


def of_hidden(c: Checkpoint, expected: dict[str, np.ndarray]) -> str:
    """An encoder's outputs for padded texts."""
    worst, model = 1.0, Model(c.spec, c.params)
    for row, length in enumerate(expected["mask"].sum(axis=1)):
        y = model.hidden(expected["ids"][row, :length], expected["types"][row, :length]).astype(float)
        z = expected["hidden"][row, :length].astype(float)
        worst = min(worst, float(cosine(y, z).min()))
    return f"cosine {worst:.4f}"


def agreement(path: Path, c: Checkpoint) -> str:
    """With what is stored beside the checkpoint; '-' if nothing is."""
    here = path if path.is_dir() else path.parent
    for name in ("expected.npz", "expected_fp32.npz"):
        if (here / name).exists():
            expected = dict(np.load(here / name))
            if "hidden" in expected:
                return of_hidden(c, expected)
            if "argmax" in expected:
                return of_stories(c, expected)
            ids, logits = ("ids", "logits") if "ids" in expected else ("bos_ids", "bos_logits")
            return of_logits(c, expected[ids], expected[logits])
    return "-"


def parameters(path: Path, p: ModelParams) -> int:
    """Of the files, MXFP4 blocks counted as their weights."""
    if path.is_dir():
        total = 0
        for file in path.glob("*.safetensors"):
            with safetensors.safe_open(file, "np") as f:
                sizes = {name: int(np.prod(f.get_slice(name).get_shape())) for name in f.keys()}
            total += sum(n * (2 if name.endswith("_blocks") else 0 if name.endswith("_scales") else 1)
                         for name, n in sizes.items())
        return total
    layers = [w for layer in p.layers for w in (layer.wq, layer.wk, layer.wv, layer.wo)]
    layers += [w for layer in p.layers for e in layer.experts for w in (e.gate, e.up, e.down) if w]
    norms = sum(layer.norm1.size + layer.norm2.size for layer in p.layers)
    if p.final_norm is not None:
        norms += p.final_norm.size
    return sum(w.outputs * w.inputs for w in layers) + norms + p.embedding.size  # the head is tied


def measure(path: Path, config: str, weights: str) -> str:
    """A row of the table. RuntimeError where the RTL is not the golden model."""
    c = load_checkpoint(path, weights=weights)
    s = c.spec
    prompt = np.random.default_rng(3).integers(2, s.vocab, PROMPT).tolist()
    with Session(c.spec, c.params, c.tokenizer, config=config) as session:
        golden = Model(s, c.params)
        if s.decoder:
            n = min(TOKENS, s.context - PROMPT)
            got = [t.id for t in session.generate(prompt, n, burst=n, stop=False)]
            equal, phase, what = got == list(golden.generate(prompt, n)), session.stats.decode, "decode"
        else:
            y, want = session.encode(prompt), golden.hidden(np.array(prompt))
            equal = np.array_equal(y.view(np.uint32), want.view(np.uint32))
            phase, what = session.stats.prefill, "encode"
        clock = session.config.clock_mhz
    if not equal:
        raise RuntimeError(f"{path}: the RTL's {what} differs from the golden model's")
    published = s.block.experts > 0 and "quantization_config" in c.config
    fmt = weights.upper() + (", experts MXFP4" if published else "")
    name = "/".join(path.parts[-2:]) if path.parent.name == "reference" else path.stem
    cells = [
        f"`{name}`",
        s.architecture,
        f"{s.layers} x {s.block.hidden}",
        f"{parameters(path, c.params):,}",
        fmt,
        f"{phase.cycles_per_token:,.0f}",
        f"{phase.bound / phase.tokens:,.0f}",
        f"{phase.bound / phase.cycles:.3f}",
        f"{1e6 * clock / phase.cycles_per_token:,.0f}",
        agreement(path, c),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, help="more checkpoints")
    parser.add_argument("--config", default=os.environ.get("CONFIG") or "base")
    parser.add_argument("--weights", default="mxint8", help="mxint8, mxfp6 or mxfp4")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    table = []
    try:
        clock = named(args.config).clock_mhz
        for path in tqdm([*MODELS, *args.checkpoints], desc="models", file=sys.stderr):
            table.append(measure(path, args.config, args.weights))
    except (ValueError, MemoryError, RuntimeError, CheckpointError) as e:
        sys.exit(f"models: {e}")
    table = [
        "| checkpoint | architecture | layers x hidden | parameters | weights | cycles/token | bound | ratio "
        f"| tokens/s at {clock:g} MHz | argmax and cross-entropy against float32 |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
        *table,
    ]
    print("\n".join(table))
    if args.readme:
        put_into_readme("models", "\n".join(table))


if __name__ == "__main__":
    main()
