"""Where a decode program keeps things in SRAM, and how what it streams is cut into slots of its ring.

Layouts, U = users, P = scale pitch (U rounded up to a power of two): activations of a linear layer are blocks
[block][user][32] with scale bytes [block][P], but the attention's output has scale bytes [user][block].
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .assembler import Sram
from .layout import Panel, align
from .model_image import Linear, ModelImage
from .ops import activation_scratch, norm_scratch, route_scratch

MAX_BATCH = 8
"""KV units whose code is written out; more of them are a hardware loop."""


def power_of_two(n: int) -> int:
    """n rounded up."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Cut:
    """A panel in `count` chunks of `passes` passes, the last of `last` passes."""

    passes: int
    count: int
    last: int

    @classmethod
    def of(cls, panel: Panel, slot_bytes: int) -> "Cut":
        count = -(-panel.k // (slot_bytes // panel.pass_bytes))
        passes = -(-panel.k // count)
        count = -(-panel.k // passes)
        return cls(passes, count, panel.k - (count - 1) * passes)


@dataclass(frozen=True)
class Stationary:
    """Activations of a linear layer: addresses, bytes from block to block, and from row to row of scales."""

    at: int
    scales: int
    pitch: int
    scale_pitch: int
    scale_row: int = 1


@dataclass(frozen=True)
class Head:
    """Query heads of one KV head of a batch: `rows` of them fit the array.

    kv and head count from the batch's first; index: its place in the buffers of scores and sums.
    """

    index: int
    kv: int
    head: int
    rows: int


@dataclass(frozen=True)
class Unit:
    """KV heads that share the words of a token: their keys are one chunk, their values another.

    rounds: (first word, words, (query heads, slice) ...) whose partial sums fit the array.
    """

    first: int
    kv_heads: int
    heads: tuple[Head, ...]
    rounds: tuple[tuple[int, int, tuple[tuple[Head, int], ...]], ...]


class DecodePlan:
    """Addresses in SRAM. batch: KV units whose scores are there together; buffers: panels of sums in flight;
    copies: places for the constants of an expert, and for the scales of a user's values.

    ValueError if it does not fit, or if the ring would have less than `least` bytes.
    """

    def __init__(self, image: ModelImage, batch: int, buffers: int, copies: int, least: int, logits: bool):
        cfg, s = image.config, image.block
        self.image, self.batch, self.buffers, self.copies = image, batch, buffers, copies
        c, w = cfg.columns, cfg.lane_bytes
        users, pitch = image.users, power_of_two(image.users)
        self.users, self.pitch, self.w = users, pitch, w
        kb, self.kbo, kbf = -(-s.hidden // 32), s.heads * s.slices, -(-s.ffn // 32)
        linears = [image.wk, image.wv, image.wq, image.wo, image.gate_up, image.down]
        linears += [x for x in (image.router, image.head) if x]
        widest = max(p.n for lin in linears for p in lin.panels)
        self._keys(linears)

        self.sram = sram = Sram(cfg)
        alloc = sram.alloc
        self.state = alloc("positions", 4 * c, 128)
        self.windows = alloc("windows", image.windows_bytes, 128)
        self.zero = alloc("zeros", 32, 128)
        self.zero_scale = alloc("zero scale", 1, 128)
        self.best = alloc("best panel", 2 * w, 128)
        self.const_a = alloc("constants a", image.const_a.bytes, 128)
        self.const_b = alloc("constants b", image.const_b.bytes, 128)
        self.c_bytes = align(image.const_c.bytes, 128)
        self.const_c = alloc("constants c", copies * self.c_bytes, 128)
        self.final = alloc("final constants", image.final.bytes, 128)
        self.out_bytes = power_of_two(widest * w)
        self.out = alloc("outputs", buffers * self.out_bytes, 128)
        self.x = alloc("x", s.hidden * w, 128)
        self.row_bytes = align(s.hidden * (4 if image.bare else 2), 128)
        tables = 1 + (image.params.positions is not None and not image.bare)
        self.row = alloc("token rows", tables * users * self.row_bytes, 128)
        self.positions = self.row + users * self.row_bytes
        self.y = alloc("y rows", users * s.hidden * 4 if image.bare else 0, 128)
        self.rope_row = alloc("rope rows", users * s.head_dim * 4, 128)
        self.table = alloc("rope", s.head_dim * w, 128)

        def blocks(name: str, count: int) -> Stationary:
            at = alloc(name, count * users * 32, 128)
            return Stationary(at, alloc(f"{name} scales", count * pitch, 128), users * 32, pitch)

        self.xn = blocks("normed", kb)
        self.q = blocks("q", self.kbo)
        self.h = blocks("hidden", kbf)
        row = align(self.kbo, 128)
        self.att = Stationary(
            alloc("attention", self.kbo * users * 32, 128),
            alloc("attention scales", users * row, 128),
            users * 32,
            1,
            row,
        )
        self.kn, self.vn = (alloc(f"new {x}", users * s.kv_words * 32, 128) for x in ("keys", "values"))
        self.kns, self.vns = (alloc(f"new {x} scales", s.kv_scales * pitch, 128) for x in ("key", "value"))
        self.vs_copies = copies if users > 1 else 1
        self.vs_bytes = align(s.kv_scales * self.cap, 128)
        self.vs = alloc("value scales", self.vs_copies * self.vs_bytes, 128)
        self.gates = alloc("gates", max(1, s.experts) * w, 128)
        features = max(hi - lo for lo, hi in image.splits)
        heads = max(p.n for lin in (image.wk, image.wv, image.wq) for p in lin.panels)
        scratch = [norm_scratch(s), activation_scratch(s) * features, 2 * heads]
        self.tmp = alloc("temporaries", max(*scratch, route_scratch(s) if image.router else 0) * w, 128)
        self.top_index = self.tmp + (2 * s.experts + 1) * w
        """Where `route` leaves the first chosen expert's number; 2 lane words from one to the next."""
        self.kv_signals = len(image.wk.panels) + len(image.wv.panels)
        self.q_signals = len(image.wq.panels)
        self.logit_bytes = align(widest * 4, 128)
        self.logits = alloc("logits", users * self.logit_bytes if logits else 0, 128)
        self._attention_buffers()

        passes = max(p.pass_bytes for lin in linears for p in lin.panels)
        assert self.slot_bytes >= passes
        left = cfg.sram_bytes - align(sram.end, 128)
        self.slots = left // self.slot_bytes
        if self.slots < 2 or self.slots * self.slot_bytes < least:
            raise ValueError(
                f"weight ring: {max(0, left)} bytes left of SRAM beside "
                f"{sram.used}: allowed is at least {max(least, 2 * self.slot_bytes)}, two slots of "
                f"{self.slot_bytes} (config {cfg.name})"
            )
        self.ring_bytes = self.slots * self.slot_bytes
        self.ring = alloc("weight ring", self.ring_bytes, 128)

    def _keys(self, linears: list[Linear]) -> None:
        """Slot size, keys of a chunk (a power of two), most keys in sight."""
        cfg, s, spec = self.image.config, self.image.block, self.image.spec
        windows = [s.max_tokens if x is None else align(x + 31, 32) for x in spec.windows]
        self.cap = min(s.max_tokens, max(windows))
        self.windowed = any(x is not None for x in spec.windows)
        self.unit_heads = min(s.per_word, s.kv_heads) if s.head_dim < 32 else 1
        self.unit_scales = self.unit_heads * s.slices
        key = 32 * s.slices + self.unit_scales
        one = max(p.pass_bytes for lin in linears for p in lin.panels)
        slot = max(one * max(1, cfg.sram_bytes // 64 // one), 32 * key)
        self.slot_bytes = align(slot, 32)
        most = min(cfg.psum_depth, self.slot_bytes // key, power_of_two(self.cap))
        self.chunk_keys = 1 << (most.bit_length() - 1)
        self.chunks = -(-self.cap // self.chunk_keys)
        """Most chunks of a unit's keys."""

    def _attention_buffers(self) -> None:
        """Scores, probabilities and what belongs to them for one batch; the head's maxima share the place."""
        cfg, s, w = self.image.config, self.image.block, self.w
        subs = -(-s.group // cfg.columns)
        groups = min(self.batch * self.unit_heads, s.kv_heads) * subs
        self.p_bytes, self.ps_bytes = self.cap // 32 * cfg.columns * 32, self.cap // 32 * cfg.columns
        sizes = {
            "scores": groups * self.cap * w,
            "maxima": groups * self.chunks * w,
            "maximum": groups * w,
            "sums": groups * w,
            "reciprocals": groups * w,
            "probabilities": groups * s.slices * self.p_bytes,
            "probability scales": groups * s.slices * self.ps_bytes,
            "o": groups * s.head_dim * w,
        }
        panels = 2 * w * len(self.image.head.panels) if self.image.head else 0
        region = self.sram.alloc(
            "attention buffers / logit maxima", max(panels, sum(align(n, 128) for n in sizes.values())), 128
        )
        self.panel_maxima = region
        """(value, index) lane words of each panel of the head."""
        self.at: dict[str, int] = {}
        for name, size in sizes.items():
            self.at[name] = region
            region += align(size, 128)
        self.sc, self.mxs, self.mx, self.ls, self.rl, self.p, self.ps, self.o = self.at.values()

    # ---- KV units

    def batches(self) -> Iterator[tuple[int, tuple[Unit, ...]]]:
        """(count, units): equal batches, then what is left. Indices in units count from the batch's first."""
        s = self.image.block
        full, rest = divmod(s.kv_heads, self.unit_heads)
        if self.batch >= full + (rest > 0):
            yield 1, self._units([self.unit_heads] * full + [rest] * (rest > 0))
            return
        yield full // self.batch, self._units([self.unit_heads] * self.batch)
        left = [self.unit_heads] * (full % self.batch) + [rest] * (rest > 0)
        if left:
            yield 1, self._units(left)

    @property
    def batch_count(self) -> int:
        return sum(n for n, _ in self.batches())

    def _units(self, sizes: list[int]) -> tuple[Unit, ...]:
        s, c = self.image.block, self.image.config.columns
        units, first, index = [], 0, 0
        for size in sizes:
            heads = []
            for kv in range(first, first + size):
                for sub in range(0, s.group, c):
                    heads.append(Head(index, kv, kv * s.group + sub, min(c, s.group - sub)))
                    index += 1
            jobs = [(head, piece) for piece in range(s.slices) for head in heads]
            most = self.image.config.psum_depth // s.slice_dim if self.chunks > 1 else len(jobs)
            rounds = []
            for i in range(0, len(jobs), most):
                part = tuple(jobs[i : i + most])
                rounds.append((part[0][1], part[-1][1] - part[0][1] + 1, part))
            units.append(Unit(first, size, tuple(heads), tuple(rounds)))
            first += size
        return tuple(units)

    def cut(self, panel: Panel) -> Cut:
        return Cut.of(panel, self.slot_bytes)

    def chunk_count(self, lin: Linear) -> int:
        return sum(self.cut(p).count for p in lin.panels)


def plans(image: ModelImage, logits: bool) -> Iterator[DecodePlan]:
    """Plans that fit, best first: a ring of a fifth of SRAM, of a tenth, of any size; ValueError if none."""
    s, size = image.block, image.config.sram_bytes
    total = s.kv_heads if s.head_dim >= 32 else s.kv_words
    batches = sorted({-(-total // n) for n in range(1, total + 1)}, reverse=True)
    problem: ValueError | None = None
    found = False
    for least in (size // 5, size // 10, 0):
        for batch in (n for n in batches if n <= MAX_BATCH):
            for buffers, copies in ((4, 2), (2, 2), (2, 1)):
                try:
                    plan = DecodePlan(image, batch, buffers, copies, least, logits)
                except ValueError as error:
                    problem = error
                else:
                    found = True
                    yield plan
    if not found:
        raise ValueError(f"model {image.spec.name}, decode of {image.users} users: {problem}")
