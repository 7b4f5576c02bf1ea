"""What a transformer block is: dimensions, options and quantised parameters, independent of any tile."""

from dataclasses import dataclass, field

import numpy as np

from . import formats

LOG2E = np.float32(1.4426950408889634)


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """A decoder block. ValueError names the field, the value given and what is allowed."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float = 1e-5
    rope: str = "half"
    """'half' (pairs i, i + head_dim/2), 'interleaved' (pairs 2i, 2i+1)."""
    rope_theta: float = 10000.0
    window: int | None = None
    sinks: bool = False
    experts: int = 0
    """0: one dense MLP."""
    top_k: int = 0
    act: str = "swiglu"
    """'swiglu' or 'clamped' (gpt-oss)."""
    bias: bool = False
    attn_fmt: int = formats.INT8
    ffn_fmt: int = formats.INT8
    max_tokens: int = 128

    def __post_init__(self) -> None:
        def need(ok: bool, what: str, given: object, allowed: str) -> None:
            if not ok:
                raise ValueError(f"block {self.name}: {what} = {given!r}: allowed is {allowed}")

        need(self.hidden > 0, "hidden", self.hidden, "a positive number")
        need(
            self.kv_heads > 0 and self.heads % self.kv_heads == 0,
            "heads",
            self.heads,
            f"a multiple of kv_heads = {self.kv_heads}",
        )
        need(
            self.head_dim in (8, 16) or self.head_dim % 32 == 0 and self.head_dim > 0,
            "head_dim",
            self.head_dim,
            "8, 16 or a multiple of 32",
        )
        need(self.rope in ("half", "interleaved"), "rope", self.rope, "'half' or 'interleaved'")
        need(self.act in ("swiglu", "clamped"), "act", self.act, "'swiglu' or 'clamped'")
        need(self.window is None or self.window > 0, "window", self.window, "None or a positive number")
        need(
            self.experts == 0 or 1 <= self.top_k <= min(4, self.experts),
            "top_k",
            self.top_k,
            "1..min(4, experts)",
        )
        need(self.max_tokens % 32 == 0, "max_tokens", self.max_tokens, "a multiple of 32")

    @property
    def slices(self) -> int:
        """32-wide slices of a head."""
        return max(1, self.head_dim // 32)

    @property
    def slice_dim(self) -> int:
        return min(32, self.head_dim)

    @property
    def per_word(self) -> int:
        """KV heads that share one 32-byte word of a token (head_dim < 32)."""
        return 32 // self.slice_dim

    @property
    def kv_words(self) -> int:
        """32-byte words of keys (or values) per token."""
        return -(-self.kv_heads // self.per_word) if self.head_dim < 32 else self.kv_heads * self.slices

    @property
    def kv_scales(self) -> int:
        """Scale bytes of keys (or values) per token."""
        return self.kv_heads * self.slices

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def qscale(self) -> np.float32:
        return np.float32(np.float64(LOG2E) / np.sqrt(self.head_dim))

    def rope_tables(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """positions (P,) -> cos, signed sin (P, head_dim) float32, in feature order."""
        half = self.head_dim // 2
        inv = self.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
        angle = np.asarray(positions, np.float64)[:, None] * inv
        cos, sin = np.cos(angle), np.sin(angle)
        if self.rope == "half":
            out = np.concatenate([cos, cos], 1), np.concatenate([-sin, sin], 1)
        else:
            out = np.repeat(cos, 2, 1), np.stack([-sin, sin], 2).reshape(len(angle), -1)
        return out[0].astype(np.float32), out[1].astype(np.float32)


@dataclass
class MxTensor:
    """A weight matrix (N outputs, K inputs) in MX blocks along K.

    ints (N, KB, 32) int8, scales (N, KB) uint8.
    """

    ints: np.ndarray
    scales: np.ndarray
    fmt: int
    inputs: int
    """K before padding to blocks."""

    @classmethod
    def quantise(cls, w: np.ndarray, fmt: int) -> "MxTensor":
        """w (N, K) float -> blocks along K, zero padded."""
        n, k = w.shape
        padded = np.zeros((n, -(-k // 32) * 32), np.float32)
        padded[:, :k] = w
        ints, scales = formats.encode(padded, fmt)
        return cls(ints.reshape(n, -1, 32), scales.reshape(n, -1), fmt, k)

    @property
    def outputs(self) -> int:
        return self.ints.shape[0]

    @property
    def needed_bytes(self) -> int:
        """Bytes of the elements and scales of the model itself (no padding of the last block)."""
        bits = {formats.INT8: 8, formats.FP6: 6, formats.FP4: 4}[self.fmt]
        return -(-self.outputs * self.inputs * bits // 8) + self.scales.size

    def rows(self, index: np.ndarray | list[int] | slice) -> "MxTensor":
        return MxTensor(self.ints[index], self.scales[index], self.fmt, self.inputs)


@dataclass
class Expert:
    """One MLP: gate, up (ffn, hidden), down (hidden, ffn), biases or None."""

    gate: MxTensor
    up: MxTensor
    down: MxTensor
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None


@dataclass
class BlockParams:
    """Parameters of one block.

    `wo` is (hidden, slices * heads blocks), contraction in slice-major order (docs/numerics.md).
    """

    norm1: np.ndarray
    norm2: np.ndarray
    wq: MxTensor
    wk: MxTensor
    wv: MxTensor
    wo: MxTensor
    experts: list[Expert] = field(default_factory=list)
    bq: np.ndarray | None = None
    bk: np.ndarray | None = None
    bv: np.ndarray | None = None
    bo: np.ndarray | None = None
    sinks: np.ndarray | None = None
    """(heads,) as in the checkpoint (natural log domain)."""
    router: MxTensor | None = None
    router_bias: np.ndarray | None = None


def slice_major(spec: BlockSpec, wo: np.ndarray) -> np.ndarray:
    """(hidden, heads * head_dim) -> (hidden, slices * heads * 32).

    Contraction blocks (slice, head), zero padded.
    """
    w = wo.reshape(wo.shape[0], spec.heads, spec.slices, spec.slice_dim).transpose(0, 2, 1, 3)
    out = np.zeros((*w.shape[:3], 32), np.float32)
    out[..., : spec.slice_dim] = w
    return out.reshape(wo.shape[0], -1)


def random_params(spec: BlockSpec, seed: int) -> BlockParams:
    """Parameters drawn with the scale of trained models, quantised."""
    rng = np.random.default_rng(seed)

    def w(n: int, k: int, fmt: int) -> MxTensor:
        return MxTensor.quantise(rng.normal(0, k**-0.5, (n, k)).astype(np.float32), fmt)

    def vec(n: int, scale: float = 0.1, around: float = 0.0) -> np.ndarray:
        return rng.normal(around, scale, n).astype(np.float32)

    qd, kd = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    wo = MxTensor.quantise(
        slice_major(spec, rng.normal(0, qd**-0.5, (spec.hidden, qd)).astype(np.float32)), spec.attn_fmt
    )
    wo.inputs = qd
    p = BlockParams(
        vec(spec.hidden, 0.1, 1.0),
        vec(spec.hidden, 0.1, 1.0),
        w(qd, spec.hidden, spec.attn_fmt),
        w(kd, spec.hidden, spec.attn_fmt),
        w(kd, spec.hidden, spec.attn_fmt),
        wo,
    )
    for _ in range(max(1, spec.experts)):
        e = Expert(
            w(spec.ffn, spec.hidden, spec.ffn_fmt),
            w(spec.ffn, spec.hidden, spec.ffn_fmt),
            w(spec.hidden, spec.ffn, spec.ffn_fmt),
        )
        if spec.bias:
            e.gate_bias, e.up_bias, e.down_bias = vec(spec.ffn), vec(spec.ffn), vec(spec.hidden)
        p.experts.append(e)
    if spec.bias:
        p.bq, p.bk, p.bv, p.bo = vec(qd), vec(kd), vec(kd), vec(spec.hidden)
    if spec.sinks:
        p.sinks = vec(spec.heads, 1.0)
    if spec.experts:
        p.router = w(spec.experts, spec.hidden, formats.INT8)
        p.router_bias = vec(spec.experts)
    return p


LLAMA_SIM = BlockSpec(name="llama", hidden=256, heads=8, kv_heads=4, head_dim=32, ffn=688)
GPTOSS_SIM = BlockSpec(
    name="gptoss",
    hidden=288,
    heads=8,
    kv_heads=1,
    head_dim=64,
    ffn=288,
    window=32,
    sinks=True,
    experts=4,
    top_k=2,
    act="clamped",
    bias=True,
    ffn_fmt=formats.FP4,
    rope_theta=150000.0,
)
