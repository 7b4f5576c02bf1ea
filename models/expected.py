"""What `transformers` says in float32 about unseen stories: `python -m models.expected MODEL...`.

Writes MODEL/expected.npz: for 4 stories that training has not seen, one behind the other, ids (tokens,) int32
as encoded, begins (stories + 1,) the first row of each; for every token but a story's first, from what is
before it: loss (tokens - stories,) float32, nats, and argmax, int32. Needs the extra `train`.
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers

from models import corpus

STORIES, SEED = 4, 2


def load(path: pathlib.Path) -> torch.nn.Module:
    """The model in float32; MXFP4 blocks decoded."""
    config = transformers.AutoConfig.from_pretrained(path)
    options = {}
    if hasattr(config, "quantization_config"):
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, attn_implementation="eager", **options).float()


@torch.no_grad()
def expected(path: pathlib.Path) -> dict[str, np.ndarray]:
    model, tokenizer = load(path), transformers.AutoTokenizer.from_pretrained(path)
    ids, begins, losses, best = [], [0], [], []
    for text in corpus.stories(STORIES, SEED):
        story = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        logits = model(story[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, story[1:], reduction="none"))
        best.append(logits.argmax(-1))
        ids.append(story)
        begins.append(begins[-1] + len(story))
    return {"ids": torch.cat(ids).numpy().astype(np.int32), "begins": np.array(begins, np.int32),
            "loss": torch.cat(losses).numpy(), "argmax": torch.cat(best).numpy().astype(np.int32)}


def main() -> None:
    parser = argparse.ArgumentParser(description="float32 losses and choices of models that ship")
    parser.add_argument("models", nargs="+", type=pathlib.Path, metavar="MODEL")
    for path in parser.parse_args().models:
        found = expected(path)
        np.savez_compressed(path / "expected.npz", **found)
        print(f"{path}: {len(found['loss'])} tokens, {found['loss'].mean():.4f} nats per token")


if __name__ == "__main__":
    main()
