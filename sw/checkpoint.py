"""Checkpoints: from files to a `ModelSpec`, quantised `ModelParams` and a tokenizer.

A Hugging Face directory (config.json, model.safetensors or its shards with their index, tokenizer.json) of
type llama, gpt_oss, gpt2 or bert; or a llama2.c version-0 binary with its tokenizer file. Whatever does not
fit is a `CheckpointError` that names it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden import formats
from golden.spec import ModelParams, ModelSpec
from sw.architectures import LOADERS
from sw.llama2c import load_llama2c
from sw.source import Source
from sw.tensors import CheckpointError, Config, Tensors, read_json, shown
from sw.tokenizer import HuggingFaceTokenizer, Llama2cTokenizer, Tokenizer

__all__ = ["WEIGHTS", "Checkpoint", "CheckpointError", "load_checkpoint"]

WEIGHTS = {"mxint8": formats.INT8, "mxfp6": formats.FP6, "mxfp4": formats.FP4}


@dataclass
class Checkpoint:
    spec: ModelSpec
    params: ModelParams
    tokenizer: Tokenizer
    config: dict[str, Any]
    """config.json, or the header of a llama2.c binary."""


def load_checkpoint(path: str | Path, *, weights: str = "mxint8", context: int | None = None,
                    tokenizer: str | Path | None = None) -> Checkpoint:
    """The checkpoint in a directory or a llama2.c .bin file.

    weights: the block format ('mxint8', 'mxfp6', 'mxfp4') of all matrices but routers, which are MXINT8;
    tensors published as MXFP4 stay as they are. Embeddings are bf16, norms and biases float32. context:
    positions to make room for, None: the model's longest. tokenizer: file of a llama2.c tokenizer, None:
    tok<vocab>.bin or tokenizer.bin beside the model.
    """
    path = Path(path)
    if weights not in WEIGHTS:
        raise CheckpointError(f"{path}: weights = {weights!r}: allowed is {', '.join(map(repr, WEIGHTS))}")
    fmt = WEIGHTS[weights]
    if not path.exists():
        raise CheckpointError(f"{path}: missing: allowed is a directory with config.json or a llama2.c file")
    try:
        if path.is_dir():
            if tokenizer is not None:
                raise CheckpointError(f"{path}: tokenizer = {tokenizer}: allowed is None for a directory, "
                                      "which holds its own")
            return _load_directory(path, fmt, context)
        return _load_binary(path, fmt, context, tokenizer)
    except CheckpointError:
        raise
    except ValueError as e:  # a BlockSpec or ModelSpec that the tile cannot run
        raise CheckpointError(f"{path}: {e}") from e


def _load_directory(path: Path, fmt: int, context: int | None) -> Checkpoint:
    file = path / "config.json"
    config = Config(read_json(file), str(file))
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in LOADERS:
        raise CheckpointError(f"{file}: model_type = {shown(model_type)}: unknown architecture, "
                              f"allowed is {', '.join(map(repr, LOADERS))}")
    if model_type != "gpt_oss" and config.get("quantization_config") is not None:
        raise config.fail("quantization_config", f"none for {model_type}")
    load, rename = LOADERS[model_type]
    tensors = Tensors(path, rename)
    spec, params = load(Source(path.resolve().name, config, tensors, fmt, context))
    tensors.finish()
    return Checkpoint(spec, params, HuggingFaceTokenizer(path, config.data, spec.vocab), config.data)


def _load_binary(path: Path, fmt: int, context: int | None, tokenizer: str | Path | None) -> Checkpoint:
    spec, params, header = load_llama2c(path, fmt, context)
    beside = [path.with_name(n) for n in (f"tok{spec.vocab}.bin", "tokenizer.bin")]
    file = Path(tokenizer) if tokenizer is not None else next((f for f in beside if f.exists()), None)
    if file is None:
        raise CheckpointError(f"{path}: no tokenizer: allowed is {' or '.join(f.name for f in beside)} "
                              "beside it, or the option tokenizer")
    return Checkpoint(spec, params, Llama2cTokenizer(file, spec.vocab), dict(header))
