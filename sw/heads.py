"""Attention heads of any size: padding to a size that the tile has (8, 16 or a multiple of 32).

Zero features of queries, keys and values change no score and no output. The pairs of rotary embedding are
kept: half-split RoPE pairs features i and i + head_dim / 2, so each half is padded at its own end.
"""

from dataclasses import dataclass

import numpy as np

from golden.spec import BlockSpec, MxTensor, slice_major


def padded_size(head_dim: int) -> int:
    """The smallest of 8, 16 and the multiples of 32 that holds head_dim features."""
    return next((n for n in (8, 16) if head_dim <= n), -(-head_dim // 32) * 32)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads of `size` features; `rope` is BlockSpec.rope."""

    heads: int
    kv_heads: int
    size: int
    rope: str

    @property
    def padded(self) -> int:
        return padded_size(self.size)

    @property
    def attn_scale(self) -> float | None:
        """BlockSpec.attn_scale: that of the true size where it is padded."""
        return None if self.padded == self.size else self.size**-0.5

    def inv_freq(self, inv: np.ndarray) -> tuple[float, ...]:
        """(size / 2) frequencies -> BlockSpec.rope_inv_freq; the pairs of zeros stand still."""
        return tuple(map(float, inv)) + (0.0,) * ((self.padded - self.size) // 2)

    def pad(self, w: np.ndarray, rotated: bool) -> np.ndarray:
        """w (n * size, ...) of projections or biases -> (n * padded, ...); rotated: queries and keys."""
        where = np.arange(self.size)
        if rotated and self.rope == "half":
            where[self.size // 2:] += (self.padded - self.size) // 2
        w = w.reshape(-1, self.size, *w.shape[1:])
        out = np.zeros((len(w), self.padded, *w.shape[2:]), np.float32)
        out[:, where] = w
        return out.reshape(-1, *w.shape[2:])

    def output(self, wo: np.ndarray, spec: BlockSpec) -> MxTensor:
        """wo (hidden, heads * size) -> BlockParams.wo, slice-major."""
        mx = MxTensor.quantise(slice_major(spec, self.pad(wo.T, False).T), spec.attn_fmt)
        mx.inputs = wo.shape[1]
        return mx
