"""A checkpoint while it is loaded, and what all architectures do with its tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.arith import bf16_to_f32, f32_to_bf16
from golden.spec import BlockSpec, MxTensor
from sw.heads import Heads
from sw.rope import Rope
from sw.tensors import CheckpointError, Config, Tensors


@dataclass(frozen=True)
class Source:
    """A checkpoint to load: `fmt` is the format of weights that are not published in MX blocks.

    `context` is what the user asked for, None: what the model has.
    """

    name: str
    config: Config
    tensors: Tensors
    fmt: int
    context: int | None

    def positions(self, key: str) -> int:
        """The context; CheckpointError if it is longer than config[key]."""
        longest = self.config.integer(key)
        if self.context is not None and not 1 <= self.context <= longest:
            raise CheckpointError(f"{self.config.where}: context = {self.context}: allowed is 1..{longest}, "
                                  f"the model's {key}")
        return self.context or longest

    def mx(self, name: str, outputs: int, inputs: int) -> MxTensor:
        return MxTensor.quantise(self.tensors.take(name, outputs, inputs), self.fmt)

    def table(self, name: str, rows: int, hidden: int) -> np.ndarray:
        """An embedding: float32 array of bf16 values."""
        return bf16(self.tensors.take(name, rows, hidden))

    def head(self, tied: bool, embedding: str, head: str, vocab: int, hidden: int) -> MxTensor:
        """The head; a tied one may be stored a second time if it is the same."""
        if not tied:
            return self.mx(head, vocab, hidden)
        w = self.tensors.take(embedding, vocab, hidden)
        if head in self.tensors and not np.array_equal(w, self.tensors.take(head, vocab, hidden)):
            raise CheckpointError(f"{self.config.where}: tie_word_embeddings = True: allowed is False where "
                                  f"{head} is stored and is not {embedding}")
        return MxTensor.quantise(w, self.fmt)


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to bf16, as float32."""
    return bf16_to_f32(f32_to_bf16(x))


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def rope_fields(heads: Heads, rope: Rope) -> dict[str, Any]:
    """The fields of BlockSpec that say how heads are rotated."""
    if rope.theta is not None and heads.padded == heads.size:
        return {"rope": heads.rope, "rope_theta": rope.theta}
    return {"rope": heads.rope, "rope_inv_freq": heads.inv_freq(rope.inv_freq), "rope_factor": rope.factor}


def attention(s: Source, spec: BlockSpec, heads: Heads, names: Iterable[str], bias: bool) -> dict[str, Any]:
    """The attention fields of BlockParams; names of the projections (outputs, inputs) q, k, v, o."""
    fields: dict[str, Any] = {}
    q, k, v, o = names
    for field, name, n in (("wq", q, heads.heads), ("wk", k, heads.kv_heads), ("wv", v, heads.kv_heads)):
        rotated, rows = field != "wv", n * heads.size
        w = heads.pad(s.tensors.take(name + ".weight", rows, spec.hidden), rotated)
        fields[field] = MxTensor.quantise(w, spec.attn_fmt)
        if bias:
            fields["b" + field[1]] = heads.pad(s.tensors.take(name + ".bias", rows), rotated)
    fields["wo"] = heads.output(s.tensors.take(o + ".weight", spec.hidden, heads.heads * heads.size), spec)
    if bias:
        fields["bo"] = s.tensors.take(o + ".bias", spec.hidden)
    return fields
