"""What a transformer block is: dimensions, options and quantised parameters, independent of any tile."""

from dataclasses import dataclass, field, replace

import numpy as np

from . import formats
from .arith import bf16_to_f32, f32_to_bf16

LOG2E = np.float32(1.4426950408889634)
ACTS = ("swiglu", "clamped", "gelu_tanh", "gelu_erf")


MAX_TOP_K = 4
"""Experts that the tile can choose for a token."""


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """A transformer block. ValueError names the field, the value given and what is allowed."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float = 1e-5
    norm: str = "rms"
    """'rms' or 'layer'."""
    post_norm: bool = False
    """x = norm(x + f(x)) as in BERT instead of x + f(norm(x))."""
    causal: bool = True
    rope: str = "half"
    """'half' (pairs i, i + head_dim/2), 'interleaved' (pairs 2i, 2i+1), 'none'."""
    rope_theta: float = 10000.0
    rope_inv_freq: tuple[float, ...] | None = None
    """head_dim / 2 angles per position in place of those of rope_theta (scaled RoPE: Llama 3, YaRN, ...)."""
    rope_factor: float = 1.0
    """Multiplies cosines and sines (YaRN)."""
    attn_scale: float | None = None
    """Scale of the scores; None is 1 / sqrt(head_dim)."""
    window: int | None = None
    sinks: bool = False
    experts: int = 0
    """0: one dense MLP."""
    top_k: int = 0
    act: str = "swiglu"
    """'swiglu', 'clamped' (gpt-oss), 'gelu_tanh' or 'gelu_erf' (the last two have no gate matrix)."""
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
        need(self.norm in ("rms", "layer"), "norm", self.norm, "'rms' or 'layer'")
        need(
            self.rope in ("half", "interleaved", "none"), "rope", self.rope, "'half', 'interleaved' or 'none'"
        )
        need(
            self.rope_inv_freq is None or len(self.rope_inv_freq) == self.head_dim // 2,
            "rope_inv_freq",
            self.rope_inv_freq,
            f"{self.head_dim // 2} numbers",
        )
        need(self.act in ACTS, "act", self.act, ", ".join(map(repr, ACTS)))
        need(self.causal or self.window is None, "window", self.window, "None where causal = False")
        need(self.window is None or self.window > 0, "window", self.window, "None or a positive number")
        need(
            self.experts == 0 or 1 <= self.top_k <= min(MAX_TOP_K, self.experts),
            "top_k",
            self.top_k,
            f"1..min({MAX_TOP_K}, experts)",
        )
        need(
            self.max_tokens % 32 == 0 and self.max_tokens > 0,
            "max_tokens",
            self.max_tokens,
            "a positive multiple of 32",
        )
        need(self.gated or self.experts == 0, "act", self.act, "'swiglu' or 'clamped' with experts")

    @property
    def gated(self) -> bool:
        """The MLP has a gate matrix."""
        return self.act in ("swiglu", "clamped")

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
        """Scale of the scores in the log2 domain."""
        scale = 1 / np.sqrt(self.head_dim) if self.attn_scale is None else self.attn_scale
        return np.float32(np.float64(LOG2E) * scale)

    def rope_tables(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """positions (P,) -> cos, signed sin (P, head_dim) float32, in feature order."""
        half = self.head_dim // 2
        inv = self.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
        if self.rope_inv_freq is not None:
            inv = np.array(self.rope_inv_freq, np.float64)
        angle = np.asarray(positions, np.float64)[:, None] * inv
        cos, sin = np.cos(angle) * self.rope_factor, np.sin(angle) * self.rope_factor
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
    """One MLP: gate (None: not gated), up (ffn, hidden), down (hidden, ffn), biases or None."""

    gate: MxTensor | None
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
    norm1_bias: np.ndarray | None = None
    """(hidden,) of a LayerNorm."""
    norm2_bias: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole model: `layers` blocks that differ in their window at most.

    ValueError names the field, the value given and what is allowed.
    """

    name: str
    architecture: str
    """'llama', 'gpt-oss', 'gpt2' or 'bert'."""
    block: BlockSpec
    """Its window is unused; max_tokens is `context` rounded up to a multiple of 32."""
    windows: tuple[int | None, ...]
    """Sliding window of each layer, None: the whole context."""
    vocab: int
    context: int
    """Positions that a sequence may have."""
    embed_norm: bool = False
    """A LayerNorm follows the embedding (BERT)."""

    def __post_init__(self) -> None:
        def need(ok: bool, what: str, given: object, allowed: str) -> None:
            if not ok:
                raise ValueError(f"model {self.name}: {what} = {given!r}: allowed is {allowed}")

        need(self.architecture in ARCHITECTURES, "architecture", self.architecture, ", ".join(ARCHITECTURES))
        need(len(self.windows) > 0, "windows", self.windows, "one for each of at least one layer")
        need(self.vocab > 0, "vocab", self.vocab, "a positive number")
        need(
            0 < self.context <= self.block.max_tokens,
            "context",
            self.context,
            f"1..max_tokens = {self.block.max_tokens}",
        )

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def decoder(self) -> bool:
        """Writes text (has a head and causal attention); else an encoder."""
        return self.block.causal

    def layer(self, index: int) -> BlockSpec:
        return replace(self.block, window=self.windows[index])


ARCHITECTURES = ("llama", "gpt-oss", "gpt2", "bert")


@dataclass
class ModelParams:
    """Parameters of a model, quantised.

    embedding (vocab, hidden), positions (context, hidden) or None, token_types (types, hidden) or None:
    float32 arrays of bf16 values (`formats`: rounded to nearest even).
    """

    embedding: np.ndarray
    layers: list[BlockParams]
    final_norm: np.ndarray | None
    """(hidden,); None for post-norm models."""
    head: MxTensor | None
    """(vocab, hidden); None for encoders."""
    final_norm_bias: np.ndarray | None = None
    positions: np.ndarray | None = None
    token_types: np.ndarray | None = None
    embed_norm: np.ndarray | None = None
    embed_norm_bias: np.ndarray | None = None
    pooler: np.ndarray | None = None
    """(hidden, hidden) float32 of BERT's pooler, computed by the host: tanh(W x[first token] + bias)."""
    pooler_bias: np.ndarray | None = None


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
            w(spec.ffn, spec.hidden, spec.ffn_fmt) if spec.gated else None,
            w(spec.ffn, spec.hidden, spec.ffn_fmt),
            w(spec.hidden, spec.ffn, spec.ffn_fmt),
        )
        if spec.bias:
            e.gate_bias = vec(spec.ffn) if spec.gated else None
            e.up_bias, e.down_bias = vec(spec.ffn), vec(spec.hidden)
        p.experts.append(e)
    if spec.bias:
        p.bq, p.bk, p.bv, p.bo = vec(qd), vec(kd), vec(kd), vec(spec.hidden)
    if spec.sinks:
        p.sinks = vec(spec.heads, 1.0)
    if spec.experts:
        p.router = w(spec.experts, spec.hidden, formats.INT8)
        p.router_bias = vec(spec.experts)
    if spec.norm == "layer":
        p.norm1_bias, p.norm2_bias = vec(spec.hidden), vec(spec.hidden)
    return p


def random_model(spec: ModelSpec, seed: int) -> ModelParams:
    """Parameters of a model of its architecture, drawn with the scale of trained models, quantised."""
    rng = np.random.default_rng(seed)
    block, hidden = spec.block, spec.block.hidden
    learned, encoder = spec.architecture in ("gpt2", "bert"), not spec.decoder

    def table(rows: int, scale: float) -> np.ndarray:
        return bf16_to_f32(f32_to_bf16(rng.normal(0, scale, (rows, hidden)).astype(np.float32)))

    def vec(scale: float = 0.1, around: float = 0.0) -> np.ndarray:
        return rng.normal(around, scale, hidden).astype(np.float32)

    def matrix(rows: int) -> np.ndarray:
        return rng.normal(0, hidden**-0.5, (rows, hidden)).astype(np.float32)

    p = ModelParams(
        embedding=table(spec.vocab, 1.0),
        layers=[random_params(spec.layer(i), int(rng.integers(1 << 32))) for i in range(spec.layers)],
        final_norm=None if block.post_norm else vec(0.1, 1.0),
        head=None if encoder else MxTensor.quantise(matrix(spec.vocab), block.attn_fmt),
        positions=table(spec.context, 0.5) if learned else None,
        token_types=table(2, 0.5) if encoder else None,
    )
    if block.norm == "layer" and p.final_norm is not None:
        p.final_norm_bias = vec()
    if spec.embed_norm:
        p.embed_norm, p.embed_norm_bias = vec(0.1, 1.0), vec()
    if encoder:
        p.pooler, p.pooler_bias = matrix(hidden), vec()
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
