"""A model in DRAM: weights in streaming order, KV caches, tables, what the host hands over and gets back.

Every layer has the same layout, so a program walks through all of them with one base register:

    layer  | constants a | wk | wv | wq | constants b | wo | router | expert 0 | expert 1 | ...
    expert | constants c | gate and up | down                         (a dense MLP is one expert)

Constants are float32 vectors: a (norm before attention, biases of q, k, v, sinks), b (bias of wo, norm behind
attention, router bias), c (biases of one expert; a post-norm's parameters).
"""

from dataclasses import dataclass

import numpy as np

from golden.arith import f32_to_bf16
from golden.spec import LOG2E, BlockParams, BlockSpec, Expert, ModelParams, ModelSpec, MxTensor
from hw.config import TileConfig

from .layout import DramImage, Panel, align, lane_words, panel_splits

NO_WINDOW = 1 << 20
"""In the table of windows: the layer sees all earlier tokens."""


@dataclass(frozen=True)
class QueryGroup:
    """Query heads head .. head + rows - 1: they share KV head kv and fit the array's rows in decode."""

    kv: int
    head: int
    rows: int


@dataclass(frozen=True)
class Linear:
    """The panels of one weight matrix, one behind the other: all but the last have the same n.

    Addresses are relative to the layer, to the expert, or (head) absolute.
    """

    name: str
    panels: tuple[Panel, ...]

    @property
    def address(self) -> int:
        return self.panels[0].address

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.panels)

    @property
    def outputs(self) -> int:
        return sum(p.n for p in self.panels)

    @property
    def runs(self) -> list[tuple[int, Panel]]:
        """(count, first panel) of equal panels: at most two runs."""
        first, last = self.panels[0], self.panels[-1]
        if last.n == first.n:
            return [(len(self.panels), first)]
        return [(len(self.panels) - 1, first), (1, last)]


@dataclass(frozen=True)
class Constants:
    """Named float32 vectors at byte offsets of one region; each starts at a multiple of 128 bytes."""

    address: int
    offsets: dict[str, int]
    bytes: int


class _Record:
    """Collects the bytes of one layer or expert, in order."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.size = 0

    def put(self, raw: np.ndarray) -> int:
        at = self.size
        raw = np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
        pad = -len(raw) % 64
        self.parts += [raw, np.zeros(pad, np.uint8)]
        self.size += len(raw) + pad
        return at

    def linear(self, name: str, pieces: list[MxTensor]) -> Linear:
        """Panels back to back (each a multiple of 32 bytes)."""
        panels, raws, at = [], [], self.size
        for w in pieces:
            raws.append(Panel.pack(w))
            panels.append(Panel(at, w.outputs, w.scales.shape[1], w.fmt))
            at += raws[-1].size
        self.put(np.concatenate(raws))
        return Linear(name, tuple(panels))

    def constants(self, parts: dict[str, np.ndarray | None]) -> Constants:
        offsets: dict[str, int] = {}
        words: list[np.ndarray] = [np.zeros(0, np.float32)]
        at = 0
        for name, v in parts.items():
            if v is not None:
                offsets[name] = 4 * at
                words.append(np.concatenate([v.astype(np.float32), np.zeros(-len(v) % 32, np.float32)]))
                at += len(words[-1])
        return Constants(self.put(np.concatenate(words)), offsets, 4 * at)

    def image(self) -> np.ndarray:
        return np.concatenate(self.parts)


class ModelImage:
    """Everything of a model that lies in DRAM. ValueError or MemoryError name what does not fit, with sizes.

    users: sequences decoded together (rows of the array), each with its KV cache. chunk: tokens of a prefill
    (a multiple of 32). logit_steps: decode steps whose logits the tile leaves in DRAM. bare (block tests): no
    embedding, no head; the host gives and takes float32 rows.
    """

    def __init__(
        self,
        config: TileConfig,
        spec: ModelSpec,
        params: ModelParams,
        *,
        users: int = 1,
        chunk: int = 0,
        logit_steps: int = 1,
        bare: bool = False,
        dram_bytes: int = 256 << 20,
    ):
        if not 1 <= users <= config.columns:
            raise ValueError(f"users = {users}: allowed is 1..{config.columns} (columns of {config.name})")
        if chunk % 32 or chunk < 0:
            raise ValueError(f"chunk = {chunk}: allowed is a multiple of 32")
        s = spec.block
        for what, width in (("head_dim", s.head_dim), ("experts", s.experts), ("a gate and up panel", 64)):
            if width > config.psum_depth:
                raise ValueError(
                    f"model {spec.name}: {what} = {width}: allowed is at most psum_depth = "
                    f"{config.psum_depth} (config {config.name})"
                )
        self.config, self.spec, self.params = config, spec, params
        self.users, self.chunk, self.bare = users, chunk, bare
        self.logit_steps = logit_steps
        self.dram = d = DramImage(dram_bytes)
        self.block: BlockSpec = s
        self.labels: dict[str, dict[int, str]] = {}
        """program -> labels (word index -> text)."""
        self.program_at = {
            name: d.alloc(f"program.{name}", 4 * config.imem_words, 4096)
            for name in ("prefill", "decode", "logits")
        }
        self.panel_slot = self._panel_slot(params.layers[0])
        self.no_prefill = ""
        """Why panels cannot be prefilled (contraction too long for the panel buffer), or empty."""
        self._layers()
        head = None
        if not bare and params.head is not None:
            head = _Record()
            lin = head.linear("head", self._cut(params.head, config.psum_depth, 32))
            base = d.put("head", head.image())
            panels = tuple(Panel(base + p.address, p.n, p.k, p.fmt) for p in lin.panels)
            self.head: Linear | None = Linear("head", panels)
        else:
            self.head = None
        final = _Record()
        self.final = final.constants(
            {
                "norm": params.final_norm,
                "norm_bias": params.final_norm_bias,
                "embed_norm": params.embed_norm,
                "embed_norm_bias": params.embed_norm_bias,
            }
        )
        """Constants outside of the layers; absolute address."""
        if self.final.bytes:
            at = d.put("final constants", final.image())
            self.final = Constants(at, self.final.offsets, self.final.bytes)
        windows = np.array([NO_WINDOW if w is None else w for w in spec.windows], np.uint32)
        self.windows_at = d.put("windows", np.concatenate([windows, np.zeros(-len(windows) % 8, np.uint32)]))
        self.windows_bytes = 4 * align(len(windows), 8)
        self._tables()
        t = s.max_tokens
        sizes = {
            "k": s.kv_words * t * 32,
            "v": s.kv_words * t * 32,
            "k scales": align(s.kv_scales * t, 64),
            "v scales": align(s.kv_scales * t, 64),
        }
        self.kv_layer_bytes = sum(sizes.values())
        self.kv_user_bytes = spec.layers * self.kv_layer_bytes
        """The cache of user u, layer l: kv_base + u * kv_user_bytes + l * kv_layer_bytes + kv_at[...]."""
        self.kv_base = d.alloc("kv cache", users * self.kv_user_bytes)
        offsets = np.cumsum([0, *sizes.values()])
        self.kv_at = {name: int(at) for name, at in zip(sizes, offsets)}
        self._exchange()

    # ---- weights

    def _panel_slot(self, p: BlockParams) -> int:
        """Bytes of one of the two buffers that hold a weight panel in prefill: 9/64 of SRAM, or what the
        narrowest panel of the longest contraction takes, up to a quarter."""
        s, e, kb = self.block, p.experts[0], self.config.sram_bytes // 1024
        up = [(e.up, 32)] if e.gate is None else [(e.gate, 64)]
        linears = [(p.wk, s.head_dim), (p.wv, s.head_dim), (p.wq, s.head_dim), (p.wo, 32), (e.down, 32), *up]
        linears += [(p.router, s.experts)] if p.router else []
        need = max(Panel(0, least, w.scales.shape[1], w.fmt).bytes for w, least in linears)
        usual = kb * 9 // 64 * 1024
        return need if usual < need <= kb // 4 * 1024 else usual

    def _layers(self) -> None:
        records = [self._layer(p) for p in self.params.layers]
        sizes = {r.size for r in records}
        if len(sizes) != 1:
            raise ValueError(f"layers of {sorted(sizes)} bytes: allowed is one structure for all layers")
        self.layer_bytes = records[0].size
        self.layers_at = self.dram.put("layers", np.concatenate([r.image() for r in records]))

    def _layer(self, p: BlockParams) -> _Record:
        s = self.block
        r = _Record()
        norm1 = {"norm1": p.norm1, "norm1_bias": p.norm1_bias}
        norm2 = {"norm2": p.norm2, "norm2_bias": p.norm2_bias}
        sinks = None if p.sinks is None else (p.sinks * LOG2E).astype(np.float32)
        lanes = None
        if sinks is not None:
            grid = np.zeros((len(self.query_groups), self.config.columns), np.float32)
            for i, q in enumerate(self.query_groups):
                grid[i, : q.rows] = sinks[q.head : q.head + q.rows]
            lanes = grid.reshape(-1)
        post = s.post_norm
        self.const_a = r.constants(
            ({} if post else norm1)
            | {"bk": p.bk, "bv": p.bv, "bq": p.bq, "sinks": sinks, "sink_lanes": lanes}
        )
        self.wk, self.wv, self.wq = (
            r.linear(n, self._cut(w, self._width(w, s.head_dim), s.head_dim))
            for n, w in (("wk", p.wk), ("wv", p.wv), ("wq", p.wq))
        )
        self.const_b = r.constants({"bo": p.bo} | (norm1 if post else norm2) | {"router_bias": p.router_bias})
        self.wo = r.linear("wo", self._cut(p.wo, self._width(p.wo), 32))
        self.router = (
            r.linear("router", self._cut(p.router, self._width(p.router, s.experts), s.experts))
            if p.router
            else None
        )
        self.experts_at = r.size
        """Offset of expert 0 in a layer; expert e is at experts_at + e * expert_bytes."""
        for e in p.experts:
            at = r.size
            r.put(self._expert(e, norm2 if post else {}))
            self.expert_bytes = r.size - at
        return r

    def _expert(self, e: Expert, norm: dict[str, np.ndarray | None]) -> np.ndarray:
        r = _Record()
        self.const_c = r.constants(
            {"gate_bias": e.gate_bias, "up_bias": e.up_bias, "down_bias": e.down_bias} | norm
        )
        if e.gate is None:
            self.splits = panel_splits(self.block.ffn, self._width(e.up), 32)
            pieces = [e.up.rows(slice(lo, hi)) for lo, hi in self.splits]
        else:
            self.splits = panel_splits(self.block.ffn, self._width(e.gate, 64) // 2, 32)
            pieces = [
                MxTensor(
                    np.concatenate([e.gate.ints[lo:hi], e.up.ints[lo:hi]]),
                    np.concatenate([e.gate.scales[lo:hi], e.up.scales[lo:hi]]),
                    e.gate.fmt,
                    e.gate.inputs,
                )
                for lo, hi in self.splits
            ]
        self.gate_up = r.linear("gate_up", pieces)
        self.down = r.linear("down", self._cut(e.down, self._width(e.down), 32))
        return r.image()

    def _width(self, w: MxTensor, least: int = 32) -> int:
        """Features of a panel: what the prefill's panel buffer takes, if that is at least `least`."""
        probe = Panel(0, 32, w.scales.shape[1], w.fmt)
        width = min(self.config.psum_depth, self.panel_slot // probe.bytes * 32)
        if width < min(least, self.config.psum_depth):
            size = least * probe.bytes // 32
            self.no_prefill = (
                f"a panel of {least} features with contraction {w.inputs} takes {size} bytes: "
                f"allowed is the panel buffer of {self.panel_slot} bytes (config {self.config.name})"
            )
            return self.config.psum_depth
        return width

    @staticmethod
    def _cut(w: MxTensor, width: int, step: int) -> list[MxTensor]:
        return [w.rows(slice(lo, hi)) for lo, hi in panel_splits(w.outputs, width, step)]

    # ---- tables and the host's side

    def _first(self) -> slice:
        """Features that are the first of their RoPE pair."""
        half = self.block.head_dim // 2
        return slice(0, half) if self.block.rope == "half" else slice(0, None, 2)

    def _tables(self) -> None:
        s, d, p = self.block, self.dram, self.params
        t = s.max_tokens
        if not self.bare:
            self.embedding_at = d.put("embedding", f32_to_bf16(p.embedding))
            if p.positions is not None:
                self.positions_table_at = d.put("position embedding", f32_to_bf16(p.positions))
        if s.rope != "none":
            cos, sin = s.rope_tables(np.arange(t))
            rows = np.concatenate([cos[:, self._first()], -sin[:, self._first()]], 1)
            self.rope_rows = d.put("rope rows", rows)
            """Position p: head_dim/2 cosines, head_dim/2 sines, float32."""
            self.rope_lanes = d.put("rope lanes", lane_words(rows, self.config.columns))
            """The same as lane words: positions C i .. C i + C - 1 at i * head_dim * 4 C."""

    def _exchange(self) -> None:
        c, h, d = self.config.columns, self.block.hidden, self.dram
        self.state_at = d.alloc("state", 8 * c)
        """The host writes C words: token of each user; then C words: its position."""
        self.chosen_at = d.alloc("chosen tokens", self.block.max_tokens * 8 * c)
        """Step i of decode: C words: head panel with the largest logit; C words: feature within it."""
        self.logits_at = 0
        if not self.bare and self.head:
            self.logits_at = d.alloc("logits", self.logit_steps * self.users * self.logit_row)
            """[step][user][logit_row bytes]."""
        if self.chunk:
            self.x_in = d.alloc("x in", self.chunk * h * 4)
            """Prefill: lane words (chunk / C groups, hidden, C)."""
            self.x_out = d.alloc("x out", self.chunk * h * 4)
        if self.bare:
            self.rows_in = d.alloc("rows in", self.block.max_tokens * self.users * h * 4)
            """Decode: [step][user][hidden] float32."""
            self.rows_out = d.alloc("rows out", self.block.max_tokens * self.users * h * 4)

    @property
    def logit_row(self) -> int:
        """Bytes of one user's logits."""
        return align(4 * self.spec.vocab, 64)

    # ---- heads

    @property
    def query_groups(self) -> list[QueryGroup]:
        s, c = self.block, self.config.columns
        return [
            QueryGroup(kv, kv * s.group + sub, min(c, s.group - sub))
            for kv in range(s.kv_heads)
            for sub in range(0, s.group, c)
        ]

    def word_of(self, kv: int, piece: int) -> int:
        """32-byte word of a token that holds slice `piece` of KV head kv."""
        s = self.block
        return kv // s.per_word if s.head_dim < 32 else kv * s.slices + piece

    def byte_of(self, kv: int) -> int:
        """First byte of KV head kv in its word."""
        return kv % self.block.per_word * self.block.slice_dim if self.block.head_dim < 32 else 0
