"""One transformer block in DRAM, and the pieces that its prefill and decode programs share."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.spec import LOG2E, BlockParams, BlockSpec, MxTensor
from hw.config import TileConfig
from hw.isa import R

from .assembler import Thread
from .layout import DramImage, Panel, lane_words, panel_splits

LANE, BROADCAST, E8M0 = "f32", "broadcast_f32", "e8m0"
NEG_INF = float("-inf")


@dataclass(frozen=True)
class QueryGroup:
    """Query heads that share a KV head and fit the array's rows in decode."""

    kv: int
    head: int
    rows: int


@dataclass
class ExpertPanels:
    """Panels of one MLP; gate_up[i] holds features lo:hi of gate, then of up."""

    gate_up: list[Panel]
    down: list[Panel]


class BlockImage:
    """Parameters, KV cache, inputs and outputs of a block in DRAM.

    x (tokens, hidden) float32 are prefilled from `prefill_in` (lane words); decode step i takes row i of
    `decode_in` and leaves row i of `decode_out`. ValueError or MemoryError name what does not fit.
    """

    def __init__(
        self,
        config: TileConfig,
        spec: BlockSpec,
        params: BlockParams,
        prefill: np.ndarray | None,
        decode: np.ndarray | None,
        dram_bytes: int = 32 << 20,
    ):
        self.config, self.spec, self.params = config, spec, params
        self.dram = d = DramImage(dram_bytes)
        self.labels: dict[str, dict[int, str]] = {}
        """phase -> labels of its program (word index -> text)."""
        self.const_base: int = 0
        """SRAM address of the constants in the program being built."""
        c, s = config.columns, spec
        self.program_at = {
            phase: d.alloc(f"program.{phase}", 4 * config.imem_words, 4096) for phase in ("prefill", "decode")
        }
        self.panel_slot = config.sram_bytes * 9 // 64 // 1024 * 1024
        """Bytes of one of the two buffers that hold a weight panel in prefill."""
        self.wq = self._panels("wq", params.wq, s.head_dim)
        self.wk = self._panels("wk", params.wk, s.head_dim)
        self.wv = self._panels("wv", params.wv, s.head_dim)
        self.wo = self._panels("wo", params.wo, 32)
        self.router = self._panels("router", params.router, s.experts) if params.router else []
        self.splits = panel_splits(s.ffn, self._width(params.experts[0].gate) // 2, 32)
        self.experts = [self._expert(i) for i in range(len(params.experts))]
        self.expert_bytes = 0
        if len(self.experts) > 1:
            self.expert_bytes = self.experts[1].gate_up[0].address - self.experts[0].gate_up[0].address
        self._constants()
        t = s.max_tokens
        self.kv_at = {
            "k": d.alloc("k cache", s.kv_words * t * 32),
            "v": d.alloc("v cache", s.kv_words * t * 32),
        }
        self.kv_scale_at = {
            "k": d.alloc("k scales", s.kv_scales * t),
            "v": d.alloc("v scales", s.kv_scales * t),
        }
        self.tokens = 0 if prefill is None else len(prefill)
        self.steps = 0 if decode is None else len(decode)
        if self.tokens + self.steps > t:
            raise ValueError(f"{self.tokens} + {self.steps} tokens: allowed is max_tokens = {t}")
        if prefill is not None:
            x = lane_words(prefill, c)
            self.prefill_in = d.put("prefill x", x)
            self.prefill_out = d.alloc("prefill y", x.nbytes)
            cos, sin = s.rope_tables(np.arange(len(x) * c))
            self.rope_lanes = d.put(
                "rope lanes",
                np.concatenate([lane_words(half[:, self._first()], c) for half in (cos, -sin)], 1),
            )
        if decode is not None:
            self.decode_in = d.put("decode x", decode.astype(np.float32))
            self.decode_out = d.alloc("decode y", decode.size * 4)
            cos, sin = s.rope_tables(np.arange(t))
            self.rope_rows = d.put(
                "rope rows", np.concatenate([cos[:, self._first()], -sin[:, self._first()]], 1)
            )

    def _first(self) -> slice:
        """Features that are the first of their RoPE pair."""
        half = self.spec.head_dim // 2
        return slice(0, half) if self.spec.rope == "half" else slice(0, None, 2)

    def _width(self, w: MxTensor) -> int:
        probe = Panel(0, 32, w.scales.shape[1], w.fmt)
        width = min(self.config.psum_depth, self.panel_slot // probe.bytes * 32)
        if width < 32:
            raise ValueError(
                f"a panel of 32 features with contraction {w.inputs} takes {probe.bytes} bytes: "
                f"allowed is the panel buffer of {self.panel_slot} bytes (config {self.config.name})"
            )
        return width

    def _panels(self, name: str, w: MxTensor, step: int) -> list[Panel]:
        return [
            self.dram.panel(f"{name}[{lo}:{hi}]", w.rows(slice(lo, hi)))
            for lo, hi in panel_splits(w.outputs, self._width(w), step)
        ]

    def _expert(self, i: int) -> ExpertPanels:
        e = self.params.experts[i]
        gate_up = []
        for lo, hi in self.splits:
            w = MxTensor(
                np.concatenate([e.gate.ints[lo:hi], e.up.ints[lo:hi]]),
                np.concatenate([e.gate.scales[lo:hi], e.up.scales[lo:hi]]),
                e.gate.fmt,
                e.gate.inputs,
            )
            gate_up.append(self.dram.panel(f"expert{i}.gate_up[{lo}:{hi}]", w))
        return ExpertPanels(gate_up, self._panels(f"expert{i}.down", e.down, 32))

    def _constants(self) -> None:
        """All float32 vectors in one region that every program loads once.

        `const[name]` is the offset in it.
        """
        p, c = self.params, self.config.columns
        parts: dict[str, np.ndarray | None] = {
            "norm1": p.norm1,
            "norm2": p.norm2,
            "bq": p.bq,
            "bk": p.bk,
            "bv": p.bv,
            "bo": p.bo,
            "router_bias": p.router_bias,
        }
        for i, e in enumerate(p.experts):
            parts |= {f"gate{i}": e.gate_bias, f"up{i}": e.up_bias, f"down{i}": e.down_bias}
        if p.sinks is not None:
            sinks = (p.sinks * LOG2E).astype(np.float32)
            parts["sinks"] = sinks
            lanes = np.zeros((len(self.query_groups), c), np.float32)
            for i, q in enumerate(self.query_groups):
                lanes[i, : q.rows] = sinks[q.head : q.head + q.rows]
            parts["sink_lanes"] = lanes.reshape(-1)
        self.const: dict[str, int] = {}
        words: list[np.ndarray] = []
        at = 0
        for name, v in parts.items():
            if v is not None:
                self.const[name] = 4 * at
                pad = -len(v) % 32
                words.append(np.concatenate([v.astype(np.float32), np.zeros(pad, np.float32)]))
                at += len(v) + pad
        self.const_at = self.dram.put("constants", np.concatenate(words))
        self.const_bytes = 4 * at
        self.const_stride = {
            k: self.const[f"{k}1"] - self.const[f"{k}0"]
            for k in ("gate", "up", "down")
            if f"{k}1" in self.const
        }

    @property
    def query_groups(self) -> list[QueryGroup]:
        s, c = self.spec, self.config.columns
        return [
            QueryGroup(kv, kv * s.group + sub, min(c, s.group - sub))
            for kv in range(s.kv_heads)
            for sub in range(0, s.group, c)
        ]

    def word_of(self, kv: int, piece: int) -> int:
        """32-byte word of a token that holds slice `piece` of KV head kv."""
        s = self.spec
        return kv // s.per_word if s.head_dim < 32 else kv * s.slices + piece

    def byte_of(self, kv: int) -> int:
        """First byte of KV head kv in its word."""
        return kv % self.spec.per_word * self.spec.slice_dim if self.spec.head_dim < 32 else 0


def first_in_sight(t: Thread, image: BlockImage, position: R, start: R) -> None:
    """start = first key that the row at `position` may see, rounded down to a multiple of 32."""
    window = image.spec.window
    if window is None:
        t.li(start, 0)
    else:
        t.sub(start, position, window - 1)
        t.max_(start, start, 0)
        t.and_(start, start, -32)


def rms_norm(v: Thread, image: BlockImage, x: R | int, gamma: int, scratch: int, **quant: "int | R") -> None:
    """Three passes: sum of squares, reciprocal root, scale and quantise.

    `quant`: out, o0.., qs, rows, signals.
    """
    n, eps = image.spec.hidden, image.spec.eps
    w = image.config.lane_bytes
    v.vector(n0=n, a=x, x1="a", red_op="sum", red=scratch)
    v.vector(
        n0=1,
        a=scratch,
        x1="s0",
        c0=float(np.float32(1 / n)),
        x2="s1",
        c1=float(np.float32(eps)),
        func="rsqrt",
        out=scratch + w,
    )
    v.vector(n0=n, a=x, x1="s0", s0=scratch + w, b=gamma, b_type=BROADCAST, x3="b", out_mode="int8", **quant)


def rope(
    v: Thread, image: BlockImage, src: R | int, tmp: int, table: R | int, table_type: str, heads: int
) -> dict[str, Any]:
    """First RoPE pass (partner times sine) into tmp; returns the operands of the second (x * cos + tmp), to
    be completed with a destination.

    table: head_dim/2 cosines then head_dim/2 sines, lane words or broadcast float32.
    """
    half, w = image.spec.head_dim // 2, image.config.lane_bytes
    tw = w if table_type == LANE else 4
    step = w if image.spec.rope == "half" else 2 * w
    second = half * w if image.spec.rope == "half" else w
    jump = (half + 1) * w if image.spec.rope == "half" else step
    sines = table + half * tw
    rewind = -(half - 1) * tw
    for mine, partner, neg, overlap in ((0, second, 1, 0), (second, 0, 0, 1)):
        v.vector(
            n0=half,
            n1=heads,
            a=src + partner,
            a0=step,
            a1=jump,
            b=sines,
            b_type=table_type,
            b0=tw,
            b1=rewind,
            x1="b",
            neg1=neg,
            out=tmp + mine,
            o0=step,
            o1=jump,
            overlap=overlap,
        )
    second_pass: dict[str, Any] = dict(a=src, b=table, b_type=table_type, d=tmp, x1="b", x2="d", b2=rewind)
    if image.spec.rope == "half":
        return second_pass | dict(n0=half, n1=2, n2=heads, b0=tw, b1=rewind)
    return second_pass | dict(n0=2, n1=half, n2=heads, b0=0, b1=tw)


def activation(
    v: Thread,
    image: BlockImage,
    gate: R | int,
    up: R | int,
    n: int,
    tmp: int,
    bias: "tuple[R | int, R | int] | None",
    **quant: "int | R",
) -> None:
    """SwiGLU or clamped SwiGLU of n features, quantised; tmp holds 2 n lane words.

    The last pass reads gate and up for the last time.
    """
    w = image.config.lane_bytes
    t1, t2 = tmp, tmp + n * w
    if image.spec.act == "swiglu":
        for x, b in zip((gate, up), bias or ()):
            v.vector(n0=n, a=x, d=b, d_type=BROADCAST, x2="d", out=x)
        c0 = float(-LOG2E)
        v.vector(n0=n, a=gate, x1="s0", c0=c0, func="exp2", x4="s3", c3=1.0, out=t1)
        v.vector(n0=n, a=t1, func="recip", b=gate, x3="b", out=t2)
        v.vector(n0=n, a=t2, b=up, x1="b", out_mode="int8", **quant)
        return
    g: dict[str, Any] = {}
    u: dict[str, Any] = {}
    if bias:
        g = dict(d=bias[0], d_type=BROADCAST, x2="d")
        u = dict(d=bias[1], d_type=BROADCAST, x2="d")
    c0 = float(np.float32(-1.702 * np.float64(LOG2E)))
    v.vector(n0=n, a=gate, **g, hi=1, c3=7.0, out=t1)
    v.vector(n0=n, a=t1, x1="s0", c0=c0, func="exp2", x4="s3", c3=1.0, out=t2)
    v.vector(n0=n, a=t2, func="recip", b=t1, x3="b", out=t1)
    v.vector(n0=n, a=up, **u, lo=1, hi=1, c2=-7.0, c3=7.0, b=t1, x3="b", x4="b", out_mode="int8", **quant)


def route(
    v: Thread, image: BlockImage, logits: R | int, scratch: int, gates: R | int, free: int, **signals: int
) -> int:
    """Top-k routing of one group: router sums -> gates (experts lane words).

    Returns the address of the k (value, index) lane-word pairs in scratch (which needs 2 experts + 2 k + 2
    lane words). `free` is signalled when logits have been read.
    """
    s, w = image.spec, image.config.lane_bytes
    n = s.experts
    work, sel, top, total = scratch, scratch + n * w, scratch + 2 * n * w, scratch + (2 * n + 2 * s.top_k) * w
    v.vector(
        n0=n,
        a=logits,
        d=image.const["router_bias"] + image.const_base,
        d_type=BROADCAST,
        x2="d",
        x3="s2",
        c2=float(LOG2E),
        out_mode=1,
        out=work,
        sig_a=free,
    )
    v.vector(n0=n, a=work, x1="s0", c0=0.0, x2="s1", c1=NEG_INF, out=sel)
    for i in range(s.top_k):
        pair = top + 2 * i * w
        v.vector(n0=n, a=work, red_op="argmax", red=pair)
        v.vector(n0=n, a=sel, where=1, s4=pair, s5=pair + w, out=sel)
        if i + 1 < s.top_k:
            v.vector(n0=n, a=work, where=1, c2=NEG_INF, s5=pair + w, out=work, overlap=1)
    v.vector(n0=n, a=sel, x2="-s1", s1=top, func="exp2", red_op="sum_t3", red=total, out=sel)
    v.vector(n0=1, a=total, func="recip", out=total + w)
    v.vector(n0=n, a=sel, x1="s0", s0=total + w, out=gates, **signals)
    return top
