"""Where the prefill program of a model keeps everything in SRAM, and how it cuts the work.

`fit` takes the largest key and value buffers that fit, then the largest batch of heads and the most output
buffers.
"""

from golden.spec import BlockSpec

from .assembler import Sram
from .layout import align
from .model_image import Linear, ModelImage
from .ops import activation_scratch, norm_scratch, route_scratch

BATCH_HEADS = 16
"""Query heads whose scores are in SRAM at a time, at most (their code is unrolled)."""
ACTIVATION = 128
"""Features that one pass of the activation function takes, at most (gated: a panel's)."""


class Plan:
    """SRAM addresses, one attribute each. ValueError lists the sizes when they do not fit.

    Strides: groups of activations `group_bytes` (scales: `group_scales`), heads of a batch `record`.
    """

    def __init__(self, image: ModelImage, tokens: int, cap: int, kv_batch: int, buffers: int):
        """tokens: of a chunk; cap: keys and values; kv_batch: KV heads of a batch; buffers: of outputs."""
        cfg, s = image.config, image.block
        c, w = cfg.columns, cfg.lane_bytes
        self.tokens, self.cap, self.kv_batch, self.buffers = tokens, cap, kv_batch, buffers
        self.batches = s.kv_heads // kv_batch
        self.batch_heads = kv_batch * s.group
        self.kb, self.kbo, self.kbf = -(-s.hidden // 32), s.heads * s.slices, -(-s.ffn // 32)
        self.group_scales = max(self.kb, self.kbo) * c
        self.group_bytes = self.group_scales * 32
        groups = tokens // c
        panels = [p for lin in linears(image) for p in (lin.panels[0], lin.panels[-1])]
        most = max(p.n for p in panels)

        self.sram = sram = Sram(cfg)

        def alloc(name: str, size: int) -> int:
            return sram.alloc(name, align(size, 128), 128)

        def constants(name: str, size: int) -> int:
            return alloc(name, size) if size else 0

        self.const_a = constants("constants a", image.const_a.bytes)
        self.const_b = constants("constants b", image.const_b.bytes)
        self.const_c_bytes = align(image.const_c.bytes, 128)
        self.const_c_buffers = 2 if s.experts else 1
        self.const_c = constants("constants c", self.const_c_buffers * self.const_c_bytes)
        self.embed_norm = "embed_norm" in image.final.offsets
        self.const_final = alloc("final constants", image.final.bytes) if self.embed_norm else 0
        self.windowed = any(window is not None for window in image.spec.windows)
        self.windows = alloc("windows", image.windows_bytes) if self.windowed else 0
        self.slot_bytes = align(max(p.bytes for p in panels), 128)
        self.slots = alloc("panels", 2 * self.slot_bytes)
        self.out_bytes = align(most * w, 128)
        if buffers & buffers - 1 == 0:
            self.out_bytes = 1 << (self.out_bytes - 1).bit_length()
        self.out = alloc("outputs", buffers * self.out_bytes)
        self.x = alloc("x", tokens * s.hidden * 4)
        self.xn = alloc("activations", groups * self.group_bytes)
        """Normed rows; while there are none, the output of attention."""
        self.xns = alloc("activation scales", groups * self.group_scales)
        self.rope = alloc("rope", tokens * s.head_dim * 4) if s.rope != "none" else 0
        features = max(hi - lo for lo, hi in image.splits)
        if not s.gated:
            features = min(ACTIVATION, features)
        scratch = [
            2 * max(p.n for lin in (image.wk, image.wv, image.wq) for p in lin.panels),
            features * activation_scratch(s),
            max(norm_scratch(s), 4 + s.hidden if self.embed_norm else 0),
            route_scratch(s) if s.experts else 0,
        ]
        self.tmp = alloc("temporaries", max(scratch) * w)

        self.span = span(image, cap)
        self.pieces = -(-self.span // cfg.psum_depth)
        self.p_bytes, self.p_scales = self.span * c, self.span // 32 * c
        record = {
            "scores": self.span * w,
            "maximum": w,
            "sink_maximum": w,
            "sum": w,
            "reciprocal": w,
            "o": s.head_dim * w,
            "p": s.slices * self.p_bytes,
            "ps": s.slices * self.p_scales,
        }
        self.at: dict[str, int] = {}
        """Offsets in the record of a head."""
        self.record = 0
        for name, size in record.items():
            self.at[name] = self.record
            self.record = align(self.record + size, 128)
        attention = {
            "q": groups * self.kbo * c * 32,
            "qs": groups * self.kbo * c,
            "k": s.kv_words * cap * 32,
            "v": s.kv_words * cap * 32,
            "ks": s.kv_scales * cap,
            "vs": s.kv_scales * cap,
            "heads": self.batch_heads * self.record,
        }
        mlp = {
            "h": groups * self.kbf * c * 32,
            "hs": groups * self.kbf * c,
            "gates": groups * s.experts * w,
        }
        # Keys, values and scores live while the MLP's hidden activations do not.
        size = max(sum(align(n, 128) for n in part.values()) for part in (attention, mlp))
        base = alloc("attention / hidden", size)
        self.shared: dict[str, int] = {}
        for part in (attention, mlp):
            at = base
            for name, n in part.items():
                self.shared[name] = at
                at += align(n, 128)
        self.q, self.qs = self.shared["q"], self.shared["qs"]
        self.k, self.v, self.ks, self.vs = (self.shared[n] for n in ("k", "v", "ks", "vs"))
        self.heads = self.shared["heads"]
        self.h, self.hs, self.gates = (self.shared[n] for n in ("h", "hs", "gates"))

    def head(self, i: int, name: str) -> int:
        """Address of a field of the record of head i of the batch."""
        return self.heads + i * self.record + self.at[name]


def linears(image: ModelImage) -> list[Linear]:
    """The linear layers of a layer (of one expert), in the order of their weights."""
    out = [image.wk, image.wv, image.wq, image.wo, image.gate_up, image.down]
    return out + ([image.router] if image.router else [])


def span(image: ModelImage, cap: int) -> int:
    """Keys that a group of rows sees, at most; a multiple of 32."""
    windows = [window for window in image.spec.windows if window is not None]
    if len(windows) < image.spec.layers:
        return cap
    return min(cap, align(max(windows) + 31 + image.config.columns, 32))


def kv_batches(s: BlockSpec) -> list[int]:
    """KV heads of a batch that are possible, the best first."""
    whole = [
        n
        for n in range(s.kv_heads, 0, -1)
        if s.kv_heads % n == 0 and (s.head_dim >= 32 or n % s.per_word == 0 or n == s.kv_heads)
    ]
    small = [n for n in whole if n * s.group <= BATCH_HEADS]
    return small or whole[-1:]


def fit(image: ModelImage, chunk: int) -> Plan:
    """The plan with the most keys, then the most heads in a batch, then the most output buffers.

    ValueError with the sizes when even the smallest plan does not fit.
    """
    if image.no_prefill:
        raise ValueError(image.no_prefill)
    s = image.block
    if chunk < 32:
        raise ValueError(f"chunk = {chunk}: allowed is a positive multiple of 32")
    tokens = min(chunk, s.max_tokens)
    batches = kv_batches(s)

    def plan(cap: int, kv_batch: int = batches[-1], buffers: int = 2) -> Plan | None:
        try:
            return Plan(image, tokens, cap, kv_batch, buffers)
        except ValueError:
            return None

    low, high = tokens, s.max_tokens if s.causal else tokens
    if plan(low) is None:
        Plan(image, tokens, low, batches[-1], 2)  # says what does not fit
    while low < high:  # most keys: binary search in multiples of 32
        middle = align((low + high) // 2 + 1, 32)
        if plan(middle):
            low = middle
        else:
            high = middle - 32
    for kv_batch in batches:
        for buffers in (4, 3, 2):
            best = plan(low, kv_batch, buffers)
            if best:
                return best
    raise AssertionError("the smallest plan has been found to fit")
