"""Whole models, from token ids to logits, bit for bit: docs/numerics.md, "Models"."""
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from golden.arith import F32, argmax, fadd
from golden.blocks import Block, layer_norm, linear, norm
from golden.spec import ModelParams, ModelSpec

Ids = Sequence[int] | np.ndarray


class Model:
    """A model and its state, the KV caches of its blocks, for one user.

    Prompts whole, in chunks and token by token give the same bits. ValueError, before anything changes, says
    what was given and what is allowed.
    """

    def __init__(self, spec: ModelSpec, params: ModelParams):
        given = {"layers": len(params.layers), "embedding": params.embedding.shape,
                 "head": params.head is not None}
        allowed = {"layers": spec.layers, "embedding": (spec.vocab, spec.block.hidden), "head": spec.decoder}
        for what, value in given.items():
            if value != allowed[what]:
                raise ValueError(f"model {spec.name}: {what} = {value}: allowed is {allowed[what]}")
        self.spec, self.params = spec, params
        self.blocks = [Block(spec.layer(i), p) for i, p in enumerate(params.layers)]

    @property
    def length(self) -> int:
        """Tokens in the caches: the next token's position."""
        return self.blocks[0].cache.length

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        for block in self.blocks:
            block.cache.truncate(length)

    def forward(self, tokens: Ids, pos0: int, last_only: bool = False) -> np.ndarray:
        """Decoder: ids (T,) at positions pos0, ... (= length) -> logits (T, vocab) float32.

        last_only: logits (1, vocab) of the last token.
        """
        head = self.params.head
        if head is None:
            raise ValueError(f"model {self.spec.name} is an encoder: allowed is hidden()")
        if pos0 != self.length:
            raise ValueError(f"pos0 = {pos0}: allowed is {self.length}, the tokens in the caches")
        x = self._embed(self._ids(tokens, pos0), pos0)
        return linear(self._blocks(x, pos0)[-1 if last_only else 0:], head)

    def hidden(self, tokens: Ids,
               token_types: Ids | None = None) -> np.ndarray:
        """Encoder: the ids (T,) of a whole sequence, types (T,) or all 0 -> (T, hidden) float32."""
        if self.spec.decoder:
            raise ValueError(f"model {self.spec.name} is a decoder: allowed is forward()")
        return self._blocks(self._embed(self._ids(tokens, 0), 0, token_types), 0)

    def pool(self, hidden: np.ndarray, how: str) -> np.ndarray:
        """hidden (T, hidden) -> (hidden,) float32, computed by the host with float32 arithmetic of numpy.

        'cls': row 0; 'mean': of all rows; 'pooler': tanh(W row 0 + bias).
        """
        p = self.params
        if how == "cls":
            return hidden[0]
        if how == "mean":
            return hidden.mean(axis=0, dtype=F32)
        if how == "pooler" and p.pooler is not None:
            y = p.pooler @ hidden[0]
            return np.tanh(y if p.pooler_bias is None else y + p.pooler_bias)
        raise ValueError(f"how = {how!r}: allowed is 'cls', 'mean' or, with a pooler's weights, 'pooler'")

    def generate(self, tokens: Ids, n: int, stop: Collection[int] = ()) -> Iterator[int]:
        """Append tokens, then yield n ids, each the argmax of the logits; an id in `stop` ends it early.

        The last id yielded (also one in `stop`) is not in the caches yet.
        """
        ids = self._ids(tokens, self.length, max(0, n - 1))

        def greedy() -> Iterator[int]:
            step: Ids = ids
            for _ in range(n):
                token = int(argmax(self.forward(step, self.length, last_only=True)[0]))
                yield token
                if token in stop:
                    return
                step = [token]

        return greedy()

    def _ids(self, tokens: Ids, pos0: int, more: int = 0) -> np.ndarray:
        """tokens checked, and that they and `more` fit the context from pos0 on."""
        ids, s = np.asarray(tokens), self.spec
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"tokens {ids.shape} {ids.dtype}: allowed is (T,) integers, T > 0")
        wrong = ids[(ids < 0) | (ids >= s.vocab)]
        if len(wrong):
            raise ValueError(f"token {wrong[0]}: allowed is 0..{s.vocab - 1}")
        last = pos0 + len(ids) + more - 1
        if last >= s.context:
            raise ValueError(f"position {last}: allowed is 0..{s.context - 1}")
        return ids

    def _embed(self, ids: np.ndarray, pos0: int,
               token_types: Ids | None = None) -> np.ndarray:
        """ids (T,) -> (T, hidden): token + position + type, normalised where the model does that."""
        p = self.params
        x = p.embedding[ids]
        if p.positions is not None:
            x = fadd(x, p.positions[pos0:pos0 + len(ids)])
        if p.token_types is not None:
            types = np.zeros(len(ids), int) if token_types is None else np.asarray(token_types)
            count = len(p.token_types)
            if types.shape != ids.shape or not (0 <= types.min() <= types.max() < count):
                raise ValueError(
                    f"token_types = {types.tolist()}: allowed is one of 0..{count - 1} per token")
            x = fadd(x, p.token_types[types])
        elif token_types is not None:
            raise ValueError("token_types given: allowed is None, the model has no types")
        if p.embed_norm is not None:
            x = layer_norm(x, p.embed_norm, p.embed_norm_bias, self.spec.block.eps)
        return x

    def _blocks(self, x: np.ndarray, pos0: int) -> np.ndarray:
        """All blocks and the final norm, where there is one."""
        for block in self.blocks:
            x = block.forward(x, pos0)
        p = self.params
        if p.final_norm is None:
            return x
        return norm(self.spec.block, x, p.final_norm, p.final_norm_bias)
