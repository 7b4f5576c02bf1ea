"""The decode program of one block: one token per step, the same program at every position.

Weights stream through a ring of SRAM slots in chunks of a few passes, far ahead of the arithmetic: the load
thread knows nothing of it but free slots. The row of the token is lane 0; in attention the rows are the query
heads of a KV head.

Host arguments: ARG0 = position of the first token, ARG1 = steps. Threads keep the position in r1.
"""

from dataclasses import dataclass

from hw.isa import R

from .assembler import Program, Sram, Thread
from .block import BROADCAST, E8M0, BlockImage, activation, first_in_sight, rms_norm, rope, route
from .layout import Panel, align

OUT_BUFFERS = 3
POS, STEP, START, N, START32, RING = R(1), R(2), R(3), R(4), R(5), R(12)
EXPERT = tuple(R(6 + i) for i in range(4))
"""Registers of the chosen experts' numbers, ascending."""


@dataclass
class Chunk:
    """Passes first .. first+passes-1 of a panel.

    expert: which of the chosen experts it belongs to, None for fixed weights.
    """

    panel: Panel
    first: int
    passes: int
    expert: int | None = None
    slot: int = 0


def fit_ring(chunks: list[Chunk], slots: int) -> tuple[list[Chunk], int]:
    """Split chunks until their number is a multiple of the ring's slots (so that every step starts at slot
    0); prefers the largest ring. Returns the chunks, with their slots, and the ring's size."""
    for ring in range(min(slots, len(chunks)), 0, -1):
        need = -len(chunks) % ring
        if need <= sum(c.passes > 1 for c in chunks):
            break
    out: list[Chunk] = []
    for c in chunks:
        if need and c.passes > 1:
            half = c.passes // 2
            out += [
                Chunk(c.panel, c.first, half, c.expert),
                Chunk(c.panel, c.first + half, c.passes - half, c.expert),
            ]
            need -= 1
        else:
            out.append(c)
    for i, c in enumerate(out):
        c.slot = i % ring
    return out, ring


class Decode:
    """Builds the program; `program.image()` goes to image.program_at['decode']."""

    def __init__(self, image: BlockImage):
        self.image = image
        cfg, s = image.config, image.spec
        c, w = cfg.columns, cfg.lane_bytes
        self.kb, self.kbo, self.kbf = -(-s.hidden // 32), s.heads * s.slices, -(-s.ffn // 32)
        self.cap = s.max_tokens if s.window is None else min(s.max_tokens, align(s.window + 31, 32) + 32)
        if self.cap > cfg.psum_depth:
            raise ValueError(f"{self.cap} keys in sight: allowed is psum_depth = {cfg.psum_depth}")
        sram = Sram(cfg)
        alloc = sram.alloc
        panels = [*image.wq, *image.wk, *image.wv, *image.wo, *image.router]
        expert = [*image.experts[0].gate_up, *image.experts[0].down]
        n_panel = max(p.n for p in panels + expert)
        groups = image.query_groups
        self.const = image.const_base = alloc("constants", image.const_bytes, 128)
        self.out_bytes = align(n_panel * w, 128)
        self.out = alloc("outputs", OUT_BUFFERS * self.out_bytes, 128)
        self.x = alloc("x", s.hidden * w, 128)
        self.row = alloc("x row", s.hidden * 4, 128)
        self.y = alloc("y row", s.hidden * 4, 128)
        self.table = alloc("rope", s.head_dim * 4, 128)
        self.xn = alloc("normed", self.kb * 32, 128)
        self.xns = alloc("normed scales", self.kb, 128)
        self.q = alloc("q", self.kbo * 32, 128)
        self.qs = alloc("q scales", self.kbo, 128)
        self.k, self.v = (alloc(x, s.kv_words * self.cap * 32, 128) for x in "kv")
        self.ks, self.vs = (alloc(f"{x} scales", s.kv_scales * self.cap, 128) for x in "kv")
        self.sc = alloc("scores", len(groups) * self.cap * w, 128)
        self.mx, self.ls, self.rl = (
            alloc(x, len(groups) * w, 128) for x in ("maxima", "sums", "reciprocals")
        )
        self.pb, self.pbs = self.cap // 32 * c * 32, self.cap // 32 * c
        self.p = alloc("probabilities", len(groups) * s.slices * self.pb, 128)
        self.ps = alloc("probability scales", len(groups) * s.slices * self.pbs, 128)
        self.o = alloc("o", len(groups) * s.head_dim * w, 128)
        self.att = alloc("attention", self.kbo * 32, 128)
        self.atts = alloc("attention scales", self.kbo + c, 128)
        self.h = alloc("hidden", self.kbf * 32, 128)
        self.hs = alloc("hidden scales", self.kbf, 128)
        self.gates = alloc("gates", max(1, s.experts) * w, 128)
        self.tmp = alloc("temporaries", 2 * max(n_panel, 2 * s.experts + 2 * s.top_k + 2) * w, 128)
        self.top = self.tmp + 2 * s.experts * w
        self.chosen = alloc("chosen", 2 * s.top_k * w + 128, 128)

        pass_bytes = max(p.pass_bytes for p in panels + expert)
        self.slot_bytes = pass_bytes * max(1, -(-cfg.sram_bytes // 32 // pass_bytes))
        picked = range(s.top_k if image.router else 1)
        chunks = [c for p in panels for c in self._cut(p, None)]
        for e in picked:
            chunks += [c for p in expert for c in self._cut(p, e if image.router else None)]
        slots = (cfg.sram_bytes - sram.used - 1024) // self.slot_bytes
        if slots < 2:
            raise ValueError(
                f"weight ring: {cfg.sram_bytes - sram.used} bytes left of SRAM: "
                f"allowed is at least two slots of {self.slot_bytes}"
            )
        chunks, ring = fit_ring(chunks, slots)
        self.ring = ring
        self.ring_at = alloc("weight ring", ring * self.slot_bytes, 128)
        self.sram = sram
        self.chunks: dict[tuple[int, int | None], list[Chunk]] = {}
        for ch in chunks:
            self.chunks.setdefault((ch.panel.address, ch.expert), []).append(ch)

        self.program = pr = Program(cfg)
        self.sem = {
            n: pr.semaphore(n)
            for n in (
                "const",
                "in",
                "in_free",
                "chunk",
                "chunk_free",
                "act",
                "out",
                "out_free",
                "kv",
                "kv_free",
                "kv_new",
                "kv_stored",
                "scores",
                "p",
                "o",
                "y",
                "y_free",
                "routed",
                "routed_vector",
            )
        }
        self._load(pr.load)
        self._matmul(pr.matmul)
        self._vector(pr.vector)
        self._store(pr.store)

    def _cut(self, panel: Panel, expert: int | None) -> list[Chunk]:
        most = self.slot_bytes // panel.pass_bytes
        return [Chunk(panel, i, min(most, panel.k - i), expert) for i in range(0, panel.k, most)]

    def _picked(self) -> range:
        return range(self.image.spec.top_k if self.image.router else 1)

    def _key(self, e: int) -> int | None:
        return e if self.image.router else None

    def _begin(self, t: Thread) -> None:
        """Position, step count in N (for the loop), byte offset of the row, output ring."""
        t.arg(POS, 0)
        t.arg(N, 1)
        t.li(STEP, 0)
        t.li(RING, 0)

    def _advance(self, t: Thread) -> None:
        t.add(POS, POS, 1)
        t.add(STEP, STEP, self.image.spec.hidden * 4)

    def _start(self, t: Thread) -> None:
        """START = first key in sight, a multiple of 32."""
        first_in_sight(t, self.image, POS, START)

    # ---- load and store threads

    def _load(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        t.load(src=im.const_at, dst=self.const, len=im.const_bytes, sig_b=sem["const"])
        for name, n in (("chunk_free", self.ring), ("in_free", 2), ("kv_free", 1), ("kv_stored", 1)):
            t.signal(sem[name], n)

        def fetch(panels: list[Panel], expert: int | None = None) -> None:
            for p in panels:
                for ch in self.chunks[p.address, expert]:
                    t.wait(sem["chunk_free"])
                    src = p.address + ch.first * p.pass_bytes
                    t.load(
                        src=src if expert is None else R(START.reg) + src,
                        dst=self.ring_at + ch.slot * self.slot_bytes,
                        len=ch.passes * p.pass_bytes,
                        sig_b=sem["chunk"],
                    )

        self._begin(t)
        with t.loop(N):
            t.wait(sem["in_free"], 2)
            t.load(src=STEP + im.decode_in, dst=self.row, len=s.hidden * 4, sig_b=sem["in"])
            t.mul(START, POS, s.head_dim * 4)
            t.load(src=START + im.rope_rows, dst=self.table, len=s.head_dim * 4, sig_b=sem["in"])
            with t.label("qkv weights"):
                fetch(im.wq)
                self._start(t)
                t.sub(N, POS, START)
                t.shl(START32, START, 5)
                t.wait(sem["kv_free"])
                t.wait(sem["kv_stored"])
                t.shl(EXPERT[0], N, 5)
                with t.label("past keys and values"):
                    for x, at, scales in (("k", self.k, self.ks), ("v", self.v, self.vs)):
                        t.load(
                            src=START32 + im.kv_at[x],
                            dst=at,
                            len=EXPERT[0],
                            n1=s.kv_words,
                            src1=s.max_tokens * 32,
                            dst1=self.cap * 32,
                        )
                        t.load(
                            src=START + im.kv_scale_at[x],
                            dst=scales,
                            len=N,
                            n1=s.kv_scales,
                            src1=s.max_tokens,
                            dst1=self.cap,
                            sig_b=sem["kv"],
                        )
                fetch(im.wk)
                fetch(im.wv)
            with t.label("wo weights"):
                fetch(im.wo)
            if im.router:
                fetch(im.router)
                self._chosen(t, sem["routed"])
            for e in self._picked():
                with t.label(f"mlp {e} weights"):
                    if im.router:
                        t.mul(START, EXPERT[e], im.expert_bytes)
                    fetch([*im.experts[0].gate_up, *im.experts[0].down], self._key(e))
            self._advance(t)

    def _chosen(self, t: Thread, routed: int) -> None:
        """Numbers of the chosen experts into registers, ascending (a bubble sort by min and max)."""
        s, w = self.image.spec, self.image.config.lane_bytes
        t.wait(routed)
        for i in range(s.top_k):
            t.lds(EXPERT[i], self.top + (2 * i + 1) * w)
        for end in range(s.top_k - 1, 0, -1):
            for i in range(end):
                t.max_(R(10), EXPERT[i], EXPERT[i + 1])
                t.min_(EXPERT[i], EXPERT[i], EXPERT[i + 1])
                t.mov(EXPERT[i + 1], R(10))

    def _store(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        t.signal(sem["y_free"], 1)
        self._begin(t)
        with t.loop(N):
            self._start(t)
            t.sub(N, POS, START)
            t.shl(START32, N, 5)
            t.shl(EXPERT[0], POS, 5)
            t.wait(sem["kv_new"], 2)
            for x, at, scales in (("k", self.k, self.ks), ("v", self.v, self.vs)):
                t.store(
                    src=START32 + at,
                    dst=EXPERT[0] + im.kv_at[x],
                    len=32,
                    n1=s.kv_words,
                    src1=self.cap * 32,
                    dst1=s.max_tokens * 32,
                )
                t.store(
                    src=N + scales,
                    dst=POS + im.kv_scale_at[x],
                    len=1,
                    n1=s.kv_scales,
                    src1=self.cap,
                    dst1=s.max_tokens,
                    sig_b=sem["kv_stored"] if x == "v" else 0,
                )
            t.wait(sem["y"])
            t.store(src=self.y, dst=STEP + im.decode_out, len=s.hidden * 4, sig_a=sem["y_free"])
            self._advance(t)

    # ---- matmul thread

    def _linear(
        self, t: Thread, panels: list[Panel], stat: int, stat_scale: int, expert: int | None = None
    ) -> None:
        sem = self.sem
        for p in panels:
            chunks = self.chunks[p.address, expert]
            for i, ch in enumerate(chunks):
                t.wait(sem["chunk"])
                last = i == len(chunks) - 1
                if last:
                    t.wait(sem["out_free"])
                at = self.ring_at + ch.slot * self.slot_bytes
                t.matmul(
                    n=p.n,
                    k=ch.passes,
                    first=int(i == 0),
                    last=int(last),
                    rows=1,
                    stream_fmt=p.fmt,
                    data=at,
                    scale=at + p.data_bytes,
                    data_pass=p.pass_bytes,
                    scale_pass=p.pass_bytes,
                    stat=stat + ch.first * 32,
                    stat_pass=32,
                    stat_scale=stat_scale + ch.first,
                    stat_scale_pass=1,
                    sig_a=sem["chunk_free"],
                    **(dict(out=RING + self.out, sig_b=sem["out"]) if last else {}),
                )
            t.add(RING, RING, self.out_bytes)
            self._wrap(t)

    def _wrap(self, t: Thread) -> None:
        """RING = RING mod (OUT_BUFFERS * out_bytes): subtract, and add back where that went below zero."""
        size = OUT_BUFFERS * self.out_bytes
        t.sub(RING, RING, size)
        t.sra(R(13), RING, 31)
        t.and_(R(13), R(13), size)
        t.add(RING, RING, R(13))

    def _matmul(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        w = im.config.lane_bytes
        t.signal(sem["out_free"], OUT_BUFFERS)
        self._begin(t)
        groups = im.query_groups
        with t.loop(N):
            with t.label("qkv"):
                t.wait(sem["act"])
                self._linear(t, im.wq + im.wk + im.wv, self.xn, self.xns)
            with t.label("attention"):
                self._start(t)
                hi, kb = R(6), R(7)
                t.sub(N, POS, START + -1)
                t.add(kb, N, 31)
                t.shr(kb, kb, 5)
                t.sub(hi, N, s.window if s.window is not None else 1 << 20)
                t.wait(sem["act"], 3)
                t.wait(sem["kv"], 2)
                for i, g in enumerate(groups):
                    t.matmul(
                        n=N,
                        k=s.slices,
                        rows=g.rows,
                        lo=hi,
                        hi=N,
                        data=self.k + im.word_of(g.kv, 0) * self.cap * 32,
                        data_pass=self.cap * 32,
                        scale=self.ks + g.kv * s.slices * self.cap,
                        scale_pass=self.cap,
                        stat=self.q + g.head * s.slices * 32,
                        stat_pass=32,
                        stat_row=s.slices * 32,
                        stat_scale=self.qs + g.head * s.slices,
                        stat_scale_pass=1,
                        stat_scale_row=s.slices,
                        out=self.sc + i * self.cap * w,
                        max_out=self.mx + i * w,
                        sig_b=sem["scores"],
                    )
                for i, g in enumerate(groups):
                    t.wait(sem["p"])
                    for b in range(s.slices):
                        last = b == s.slices - 1
                        t.matmul(
                            n=s.slice_dim,
                            k=kb,
                            rows=g.rows,
                            transpose=1,
                            offset=im.byte_of(g.kv),
                            data=self.v + im.word_of(g.kv, b) * self.cap * 32,
                            data_pass=1024,
                            stat=self.p + (i * s.slices + b) * self.pb,
                            stat_pass=im.config.columns * 32,
                            stat_row=32,
                            stat_scale=self.ps + (i * s.slices + b) * self.pbs,
                            stat_scale_pass=im.config.columns,
                            out=self.o + (i * s.head_dim + 32 * b) * w,
                            sig_b=sem["o"] if last else 0,
                            sig_a=sem["kv_free"] if last and i == len(groups) - 1 else 0,
                        )
            with t.label("output projection"):
                t.wait(sem["act"])
                self._linear(t, im.wo, self.att, self.atts)
            with t.label("mlp"):
                t.wait(sem["act"])
                self._linear(t, im.router, self.xn, self.xns)
                for e in self._picked():
                    self._linear(t, im.experts[0].gate_up, self.xn, self.xns, self._key(e))
                    t.wait(sem["act"])
                    self._linear(t, im.experts[0].down, self.h, self.hs, self._key(e))
            self._advance(t)

    # ---- vector thread

    def _out(self, t: Thread) -> R:
        t.wait(self.sem["out"])
        return RING + self.out

    def _taken(self, t: Thread) -> None:
        t.add(RING, RING, self.out_bytes)
        self._wrap(t)

    def _norm(self, t: Thread, gamma: str) -> None:
        rms_norm(
            t,
            self.image,
            self.x,
            self.const + self.image.const[gamma],
            self.tmp,
            out=self.xn,
            o1=32,
            qs=self.xns,
            o2=1,
            rows=1,
            sig_b=self.sem["act"],
        )

    def _vector(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        t.wait(sem["const"])
        self._begin(t)
        with t.loop(N):
            self._start(t)
            t.sub(START32, POS, START)
            t.add(N, START32, 1)
            t.wait(sem["in"], 2)
            with t.label("norm1"):
                t.vector(n0=s.hidden, a=self.row, a_type=BROADCAST, out=self.x, sig_a=sem["in_free"])
                self._norm(t, "norm1")
            with t.label("qkv"):
                t.mov(R(11), START32)
                t.shl(R(10), START32, 5)
                for kind, panels in (("q", im.wq), ("k", im.wk), ("v", im.wv)):
                    self._heads(t, panels, kind)
            with t.label("softmax"):
                self._attention(t)
            with t.label("residual"):
                self._residual(t, im.wo, "bo", first_sig=sem["in_free"])
                self._norm(t, "norm2")
            if im.router:
                with t.label("router"):
                    top = route(
                        t,
                        im,
                        self._out(t),
                        self.tmp,
                        self.gates,
                        sem["out_free"],
                        sig_b=sem["routed"],
                        sig_c=sem["routed_vector"],
                    )
                    assert top == self.top
                    self._taken(t)
                    self._chosen(t, sem["routed_vector"])
            for e in self._picked():
                with t.label(f"mlp {e}"):
                    self._hidden(t, e)
                    self._residual(t, im.experts[0].down, "down0", expert=EXPERT[e] if im.router else None)
            t.wait(sem["y_free"])
            t.vector(n0=s.hidden, a=self.x, out=self.y, pack=1, sig_b=sem["y"])
            self._advance(t)

    def _heads(self, t: Thread, panels: list[Panel], kind: str) -> None:
        """Bias, RoPE and quantisation; r10 and r11 hold the new token's place in the key and value buffers
        (bytes of words, of scales)."""
        im, sem, s = self.image, self.sem, self.image.spec
        w = im.config.lane_bytes
        head = 0
        for i, panel in enumerate(panels):
            count = panel.n // s.head_dim
            bias = im.const.get(f"b{kind}")
            src, free = self._out(t), sem["out_free"]
            if bias is not None:
                scratch = self.tmp + panel.n * w
                t.vector(
                    n0=panel.n,
                    a=src,
                    d=self.const + bias + 4 * head * s.head_dim,
                    d_type=BROADCAST,
                    x2="d",
                    out=scratch,
                    sig_a=free,
                )
                src, free = R(0, scratch), 0
            done = (
                dict(sig_b=sem["act"], sig_c=sem["kv_new"] if kind != "q" else 0)
                if i == len(panels) - 1
                else {}
            )
            for h in [None] if s.head_dim >= 32 else range(count):
                last = h is None or h == count - 1
                at = src + (h or 0) * s.head_dim * w
                heads = count if h is None else 1
                ops = (
                    dict(a=at, n0=heads * s.head_dim)
                    if kind == "v"
                    else rope(t, im, at, self.tmp, self.table, BROADCAST, heads)
                )
                this = head + (h or 0)
                if kind == "q":
                    ops |= dict(
                        x3="s2",
                        c2=float(s.qscale),
                        out=self.q + this * s.slices * 32 + im.byte_of(this // s.group),
                        o1=32,
                        qs=self.qs + this * s.slices,
                        o2=1,
                        zfill=int(s.head_dim < 32),
                    )
                else:
                    at8, ats = (self.k, self.ks) if kind == "k" else (self.v, self.vs)
                    ops |= dict(
                        out=R(10) + (at8 + im.word_of(this, 0) * self.cap * 32 + im.byte_of(this)),
                        o1=self.cap * 32,
                        qs=R(11) + (ats + this * s.slices * self.cap),
                        o2=self.cap,
                    )
                t.vector(
                    **ops,
                    out_mode="int8",
                    block=s.slice_dim,
                    rows=1,
                    **(done if last else {}),
                    sig_a=free if last else 0,
                )
            self._taken(t)
            head += count

    def _attention(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        w = im.config.lane_bytes
        groups = im.query_groups
        sinks = im.const.get("sink_lanes")
        for i, g in enumerate(groups):
            t.wait(sem["scores"])
            if sinks is not None:
                t.vector(n0=1, a=self.const + sinks + i * w, lo=1, s4=self.mx + i * w, out=self.mx + i * w)
            for b in range(s.slices):
                t.vector(
                    n0=N,
                    a=self.sc + i * self.cap * w,
                    x2="-s1",
                    s1=self.mx + i * w,
                    func="exp2",
                    b=self.vs + (g.kv * s.slices + b) * self.cap,
                    b_type=E8M0,
                    x3="b",
                    **(dict(red_op="sum_t3", red=self.ls + i * w) if b == 0 else {}),
                    out_mode="int8",
                    out=self.p + (i * s.slices + b) * self.pb,
                    qs=self.ps + (i * s.slices + b) * self.pbs,
                    overlap=int(sinks is None or b > 0),
                    sig_b=sem["p"] if b == s.slices - 1 else 0,
                )
        if sinks is not None:
            t.vector(
                n0=len(groups),
                a=self.const + sinks,
                d=self.mx,
                x2="-d",
                func="exp2",
                b=self.ls,
                x4="b",
                out=self.ls,
            )
        t.vector(n0=len(groups), a=self.ls, func="recip", out=self.rl)
        for i, g in enumerate(groups):
            t.wait(sem["o"])
            t.vector(
                n0=s.head_dim,
                a=self.o + i * s.head_dim * w,
                x1="s0",
                s0=self.rl + i * w,
                out_mode="int8",
                block=s.slice_dim,
                zfill=int(s.head_dim < 32),
                rows=g.rows,
                out=self.att + g.head * 32,
                o0=32,
                o1=s.heads * 32,
                qs=self.atts + g.head,
                o2=s.heads,
                overlap=int(i > 0),
                sig_b=sem["act"] if i == len(groups) - 1 else 0,
            )

    def _residual(
        self, t: Thread, panels: list[Panel], bias: str, expert: R | None = None, first_sig: int = 0
    ) -> None:
        """x += gate * (sums + bias)."""
        im, sem = self.image, self.sem
        w = im.config.lane_bytes
        at = 0
        for i, panel in enumerate(panels):
            ops: dict = {}
            if bias in im.const:
                place = self.const + im.const[bias] + 4 * at
                if expert is not None:
                    t.mul(R(10), expert, im.const_stride["down"])
                ops |= dict(b=R(10) + place if expert is not None else place, b_type=BROADCAST, x2="b")
            if expert is not None:
                t.mul(R(11), expert, w)
                ops |= dict(s2=R(11) + self.gates, x3="s2")
            t.vector(
                n0=panel.n,
                a=self._out(t),
                **ops,
                d=self.x + at * w,
                x4="d",
                out=self.x + at * w,
                sig_a=sem["out_free"],
                sig_c=first_sig if i == 0 else 0,
            )
            self._taken(t)
            at += panel.n

    def _hidden(self, t: Thread, e: int) -> None:
        im, sem = self.image, self.sem
        w = im.config.lane_bytes
        for i, (lo, hi) in enumerate(im.splits):
            n = hi - lo
            bias: tuple[R | int, R | int] | None = None
            if "gate0" in im.const:
                gate, up = (self.const + im.const[f"{x}0"] + 4 * lo for x in ("gate", "up"))
                bias = gate, up
                if im.router:
                    t.mul(R(10), EXPERT[e], im.const_stride["gate"])
                    bias = R(10) + gate, R(10) + up
            src = self._out(t)
            activation(
                t,
                im,
                src,
                src + n * w,
                n,
                self.tmp,
                bias,
                out=self.h + lo,
                o1=32,
                qs=self.hs + lo // 32,
                o2=1,
                rows=1,
                sig_a=sem["out_free"],
                sig_b=sem["act"] if i == len(im.splits) - 1 else 0,
            )
            self._taken(t)
