"""The next token from logits, on the host: temperature, top-k and top-p.

Source: nucleus (top-p) sampling after Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
"""

from dataclasses import dataclass

import numpy as np

from golden.arith import argmax


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. ValueError names the option, the value given and what is allowed.

    temperature 0: the largest logit, the others are without effect. top_k 0: no limit. top_p 1: no limit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf")):
            raise ValueError(f"temperature = {self.temperature}: allowed is a finite number, 0 or more")
        if not isinstance(self.top_k, int | np.integer) or self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k!r}: allowed is an integer, 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: allowed is more than 0, at most 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """logits (vocab,) float32 -> (vocab,) float64 that sum to 1.

        The top_k largest are kept (the lower index of equals), softmax at the temperature, then the fewest of
        the most likely whose sum reaches top_p, scaled to 1 again.
        """
        if self.greedy:
            out = np.zeros(len(logits))
            out[int(argmax(logits))] = 1
            return out
        order = np.argsort(-logits.astype(np.float64), kind="stable")
        kept = order[: self.top_k or len(order)]
        scaled = logits[kept].astype(np.float64)
        p = np.exp((scaled - scaled[0]) / self.temperature)
        p /= p.sum()
        before = np.cumsum(p) - p
        p = np.where(before < self.top_p, p, 0)
        out = np.zeros(len(logits))
        out[kept] = p / p.sum()
        return out

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """A token drawn from probabilities(logits)."""
        if self.greedy:
            return int(argmax(logits))
        possible = np.flatnonzero(p := self.probabilities(logits))
        below = np.cumsum(p[possible])
        at = np.searchsorted(below, rng.random() * below[-1], side="right")
        return int(possible[min(at, len(possible) - 1)])
