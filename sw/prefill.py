"""The prefill program of one block: all tokens of a prompt, C rows (tokens) at a time.

Every linear layer keeps a panel of weights in SRAM and streams it once per group of C tokens. The matmul
thread runs ahead of the vector thread by the output buffers; loops over groups are hardware loops.

Registers, both threads: r1.. operand offsets of the current group (see each loop); r12 offset in the ring of
output buffers (whole program).
"""

import numpy as np

from hw.isa import R

from .assembler import Program, Sram, Thread
from .block import BROADCAST, E8M0, LANE, BlockImage, activation, first_in_sight, rms_norm, rope, route
from .layout import Panel, align

OUT_BUFFERS = 4
RING = R(12)


class Prefill:
    """Builds the program; `program.image()` goes to image.program_at['prefill']."""

    def __init__(self, image: BlockImage):
        self.image = image
        cfg, s = image.config, image.spec
        c, w = cfg.columns, cfg.lane_bytes
        self.groups = g = -(-image.tokens // c)
        self.cap = align(image.tokens, 32)
        if min(self.cap, image.tokens if s.window is None else s.window + 32 + c) > cfg.psum_depth:
            raise ValueError(
                f"prefill of {image.tokens} tokens: "
                f"allowed is psum_depth = {cfg.psum_depth} keys in sight of a row"
            )
        self.kb = -(-s.hidden // 32)
        self.kbo = s.heads * s.slices
        self.kbf = -(-s.ffn // 32)
        sram = Sram(cfg)
        n_panel = max(p.n for p in self._all_panels())
        self.out_bytes = 1 << (n_panel * w - 1).bit_length()
        alloc = sram.alloc
        self.const = image.const_base = alloc("constants", image.const_bytes, 128)
        slot = max(p.bytes for p in self._all_panels())
        self.slots = [alloc(f"panel {i}", slot, 128) for i in range(2)]
        self.out = alloc("outputs", OUT_BUFFERS * self.out_bytes, 128)
        self.x = alloc("x", g * s.hidden * w, 128)
        self.xn = alloc("normed", g * self.kb * c * 32, 128)
        self.xns = alloc("normed scales", g * self.kb * c, 128)
        self.table = alloc("rope", g * s.head_dim * w, 128)
        self.q = alloc("q", g * self.kbo * c * 32, 128)
        self.qs = alloc("q scales", g * self.kbo * c, 128)
        self.k, self.v = (alloc(x, s.kv_words * self.cap * 32, 128) for x in "kv")
        self.ks, self.vs = (alloc(f"{x} scales", s.kv_scales * self.cap, 128) for x in "kv")
        self.att = alloc("attention", g * self.kbo * c * 32, 128)
        self.atts = alloc("attention scales", g * self.kbo * c, 128)
        self.tmp = alloc(
            "temporaries", 2 * max(n_panel, s.hidden // 2, 2 * s.experts + 2 * s.top_k + 2) * w, 128
        )
        # Scores and probabilities live while the MLP's hidden activations do not.
        self.pb = self.cap // 32 * c * 32
        self.pbs = self.cap // 32 * c
        attention = [
            s.heads * self.cap * w,
            s.heads * w,
            s.heads * w,
            s.heads * w,
            s.heads * s.head_dim * w,
            s.heads * s.slices * self.pb,
            s.heads * s.slices * self.pbs,
        ]
        mlp = [g * self.kbf * c * 32, g * self.kbf * c, g * max(1, s.experts) * w]
        shared = alloc(
            "scores / hidden",
            max(sum(align(n, 128) for n in attention), sum(align(n, 128) for n in mlp)),
            128,
        )

        def carve(sizes: list[int]) -> list[int]:
            return [
                int(a) for a in shared + np.concatenate([[0], np.cumsum([align(n, 128) for n in sizes])[:-1]])
            ]

        self.sc, self.mx, self.ls, self.rl, self.o, self.p, self.ps = carve(attention)
        self.h, self.hs, self.gates = carve(mlp)
        self.sram = sram

        self.program = pr = Program(cfg)
        self.sem = {
            n: pr.semaphore(n)
            for n in (
                "const",
                "x",
                "panel",
                "panel_free",
                "act",
                "out",
                "out_free",
                "kv",
                "scores",
                "p",
                "o",
                "y",
            )
        }
        self._load(pr.load)
        self._matmul(pr.matmul)
        self._vector(pr.vector)
        self._store(pr.store)

    def _experts(self) -> range:
        return range(len(self.image.experts))

    def _all_panels(self) -> list[Panel]:
        """Panels in the order in which they are used."""
        im = self.image
        out = [*im.wq, *im.wk, *im.wv, *im.wo, *im.router]
        for e in self._experts():
            out += im.experts[e].gate_up + im.experts[e].down
        return out

    # ---- load and store threads

    def _load(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        w = im.config.lane_bytes
        t.load(src=im.const_at, dst=self.const, len=im.const_bytes, sig_b=sem["const"])
        panels = self._all_panels()
        t.signal(sem["panel_free"], 2)

        def panel(i: int) -> None:
            t.wait(sem["panel_free"])
            t.load(src=panels[i].address, dst=self.slots[i % 2], len=panels[i].bytes, sig_b=sem["panel"])

        group = s.hidden * w
        t.load(src=im.prefill_in, dst=self.x, len=group, sig_b=sem["x"])
        panel(0)
        t.load(src=im.rope_lanes, dst=self.table, len=self.groups * s.head_dim * w, sig_b=sem["const"])
        if self.groups > 1:
            t.li(R(1), 0)
            with t.loop(self.groups - 1):
                t.load(
                    src=R(1) + (im.prefill_in + group), dst=R(1) + (self.x + group), len=group, sig_b=sem["x"]
                )
                t.add(R(1), R(1), group)
        for i in range(1, len(panels)):
            panel(i)

    def _store(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        n = im.tokens
        t.wait(sem["kv"], 2 * self.groups)
        for x, at, scales in (("k", self.k, self.ks), ("v", self.v, self.vs)):
            t.store(
                src=at, dst=im.kv_at[x], len=n * 32, n1=s.kv_words, src1=self.cap * 32, dst1=s.max_tokens * 32
            )
            t.store(
                src=scales, dst=im.kv_scale_at[x], len=n, n1=s.kv_scales, src1=self.cap, dst1=s.max_tokens
            )
        group = s.hidden * im.config.lane_bytes
        t.li(R(1), 0)
        with t.loop(self.groups):
            t.wait(sem["y"])
            t.store(src=R(1) + self.x, dst=R(1) + im.prefill_out, len=group)
            t.add(R(1), R(1), group)

    # ---- matmul thread

    def _panel_matmuls(
        self, t: Thread, index: int, panel: Panel, stat: int, stat_scale: int, blocks: int, first: bool
    ) -> None:
        """One panel against every group.

        `first`: the groups' activations arrive one by one (semaphore act).
        """
        c, sem = self.image.config.columns, self.sem
        slot = self.slots[index % 2]

        def one(last: bool) -> None:
            if first:
                t.wait(sem["act"])
            t.wait(sem["out_free"])
            t.matmul(
                n=panel.n,
                k=panel.k,
                first=1,
                last=1,
                rows=c,
                stream_fmt=panel.fmt,
                data=slot,
                scale=slot + panel.data_bytes,
                data_pass=panel.pass_bytes,
                scale_pass=panel.pass_bytes,
                stat=R(1) + stat,
                stat_pass=c * 32,
                stat_row=32,
                stat_scale=R(2) + stat_scale,
                stat_scale_pass=c,
                out=RING + self.out,
                sig_a=sem["panel_free"] if last else 0,
                sig_b=sem["out"],
            )
            t.add(RING, RING, self.out_bytes)
            t.and_(RING, RING, OUT_BUFFERS * self.out_bytes - 1)

        t.li(R(1), 0)
        t.li(R(2), 0)
        t.wait(sem["panel"])
        if self.groups > 1:
            with t.loop(self.groups - 1):
                one(False)
                t.add(R(1), R(1), blocks * c * 32)
                t.add(R(2), R(2), blocks * c)
        one(True)

    def _matmul(self, t: Thread) -> None:
        im, sem = self.image, self.sem
        t.li(RING, 0)
        t.signal(sem["out_free"], OUT_BUFFERS)
        index = 0

        def linear(panels: list[Panel], stat: int, stat_scale: int, blocks: int, wait: bool) -> None:
            nonlocal index
            for i, p in enumerate(panels):
                self._panel_matmuls(t, index, p, stat, stat_scale, blocks, wait and i == 0)
                index += 1

        with t.label("qkv"):
            linear(im.wq + im.wk + im.wv, self.xn, self.xns, self.kb, True)
        with t.label("attention"):
            self._attention_matmul(t)
        with t.label("output projection"):
            linear(im.wo, self.att, self.atts, self.kbo, True)
        if im.router:
            with t.label("router"):
                linear(im.router, self.xn, self.xns, self.kb, True)
        for e in self._experts():
            with t.label(f"mlp {e}"):
                linear(im.experts[e].gate_up, self.xn, self.xns, self.kb, not im.router and e == 0)
                linear(im.experts[e].down, self.h, self.hs, self.kbf, True)

    def _sight(self, t: Thread, pos: R, n: R, start: R) -> None:
        """From the group's first position in register pos: first key in sight (a multiple of 32) and number
        of keys."""
        first_in_sight(t, self.image, pos, start)
        t.sub(n, pos, start + -self.image.config.columns)

    def _attention_matmul(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        c, w = im.config.columns, im.config.lane_bytes
        pos, n, start, kb, hi, lo, q, qs, start32 = (R(i) for i in range(1, 10))
        t.wait(sem["act"], 3 * self.groups)
        for r in (pos, q, qs):
            t.li(r, 0)
        with t.loop(self.groups):
            self._sight(t, pos, n, start)
            t.add(kb, n, 31)
            t.shr(kb, kb, 5)
            t.shl(start32, start, 5)
            t.sub(hi, pos, start + -1)
            t.sub(lo, hi, s.window if s.window is not None else 1 << 20)
            for h in range(s.heads):
                kv = h // s.group
                word = im.word_of(kv, 0)
                t.matmul(
                    n=n,
                    k=s.slices,
                    first=1,
                    last=1,
                    rows=c,
                    mask=1,
                    step=1,
                    max=1,
                    max_first=1,
                    data=start32 + (self.k + word * self.cap * 32),
                    data_pass=self.cap * 32,
                    scale=start + (self.ks + kv * s.slices * self.cap),
                    scale_pass=self.cap,
                    stat=q + (self.q + h * s.slices * c * 32),
                    stat_pass=c * 32,
                    stat_row=32,
                    stat_scale=qs + (self.qs + h * s.slices * c),
                    stat_scale_pass=c,
                    out=self.sc + h * self.cap * w,
                    max_out=self.mx + h * w,
                    hi=hi,
                    lo=lo,
                    sig_b=sem["scores"],
                )
            for h in range(s.heads):
                kv = h // s.group
                t.wait(sem["p"])
                for b in range(s.slices):
                    t.matmul(
                        n=s.slice_dim,
                        k=kb,
                        first=1,
                        last=1,
                        rows=c,
                        transpose=1,
                        offset=im.byte_of(kv),
                        data=start32 + (self.v + im.word_of(kv, b) * self.cap * 32),
                        data_pass=1024,
                        stat=self.p + (h * s.slices + b) * self.pb,
                        stat_pass=c * 32,
                        stat_row=32,
                        stat_scale=self.ps + (h * s.slices + b) * self.pbs,
                        stat_scale_pass=c,
                        out=self.o + (h * s.head_dim + 32 * b) * w,
                        sig_b=sem["o"] if b == s.slices - 1 else 0,
                    )
            t.add(pos, pos, c)
            t.add(q, q, self.kbo * c * 32)
            t.add(qs, qs, self.kbo * c)

    # ---- vector thread

    def _each_group(self, t: Thread, steps: dict[int, int], body, from_matmul: bool = True) -> None:
        """Loop over groups; registers `steps` start at 0 and advance; RING is the output buffer to read."""
        for r in steps:
            t.li(R(r), 0)
        with t.loop(self.groups):
            if from_matmul:
                t.wait(self.sem["out"])
            body()
            for r, step in steps.items():
                t.add(R(r), R(r), step)
            if from_matmul:
                t.add(RING, RING, self.out_bytes)
                t.and_(RING, RING, OUT_BUFFERS * self.out_bytes - 1)

    def _norm(self, t: Thread, gamma: str) -> None:
        """x[group] -> normed[group]; registers 1 (x), 2 (blocks), 3 (scales)."""
        rms_norm(
            t,
            self.image,
            R(1) + self.x,
            self.const + self.image.const[gamma],
            self.tmp,
            out=R(2) + self.xn,
            qs=R(3) + self.xns,
            sig_b=self.sem["act"],
        )

    def _vector(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        c, w = im.config.columns, im.config.lane_bytes
        x_step = s.hidden * w
        norm_steps = {1: x_step, 2: self.kb * c * 32, 3: self.kb * c}
        t.li(RING, 0)
        t.wait(sem["const"])

        def first_norm() -> None:
            t.wait(sem["x"])
            self._norm(t, "norm1")

        with t.label("norm1"):
            self._each_group(t, norm_steps, first_norm, from_matmul=False)
        t.wait(sem["const"])
        with t.label("q"):
            self._heads(t, im.wq, "q")
        with t.label("k"):
            self._heads(t, im.wk, "k")
        with t.label("v"):
            self._heads(t, im.wv, "v")
        with t.label("softmax"):
            self._attention_vector(t)
        with t.label("residual"):
            self._residual(t, im.wo, "bo", norm="norm2")
        if im.router:
            with t.label("router"):
                self._each_group(
                    t,
                    {1: s.experts * w},
                    lambda: route(t, im, RING + self.out, self.tmp, R(1) + self.gates, sem["out_free"]),
                )
        for e in self._experts():
            with t.label(f"mlp {e}"):
                self._hidden(t, e)
                self._residual(
                    t,
                    im.experts[e].down,
                    f"down{e}",
                    gate=e if im.router else None,
                    last=e == self._experts()[-1],
                )

    def _heads(self, t: Thread, panels: list[Panel], kind: str) -> None:
        """Bias, RoPE and quantisation of q, k or v heads."""
        im, sem, s = self.image, self.sem, self.image.spec
        c, w = im.config.columns, im.config.lane_bytes
        head = 0
        for i, panel in enumerate(panels):
            count = panel.n // s.head_dim
            last_panel = i == len(panels) - 1
            bias = im.const.get(f"b{kind}")
            scratch = self.tmp + panel.n * w

            def body() -> None:
                src: R | int = RING + self.out
                free = sem["out_free"]
                if bias is not None:
                    t.vector(
                        n0=panel.n,
                        a=src,
                        d=self.const + bias + 4 * head * s.head_dim,
                        d_type=BROADCAST,
                        x2="d",
                        out=scratch,
                        sig_a=free,
                    )
                    src, free = scratch, 0
                done = dict(sig_b=sem["act"], sig_c=sem["kv"] if kind != "q" else 0) if last_panel else {}
                # head_dim < 32: each head has its own place in a shared word, so heads are written one by
                # one.
                for h in [None] if s.head_dim >= 32 else range(count):
                    last = h is None or h == count - 1
                    at = src if h is None else src + h * s.head_dim * w
                    heads = count if h is None else 1
                    if kind == "v":
                        ops = dict(a=at, n0=heads * s.head_dim)
                    else:
                        ops = rope(t, im, at, self.tmp, R(2) + self.table, LANE, heads)
                    this = head + (h or 0)
                    if kind == "q":
                        kv = this // s.group
                        ops |= dict(
                            x3="s2",
                            c2=float(s.qscale),
                            out=R(1) + (self.q + this * s.slices * c * 32 + im.byte_of(kv)),
                            qs=R(3) + (self.qs + this * s.slices * c),
                            zfill=int(s.head_dim < 32),
                        )
                    else:
                        at8, ats = (self.k, self.ks) if kind == "k" else (self.v, self.vs)
                        ops |= dict(
                            out=R(1) + (at8 + im.word_of(this, 0) * self.cap * 32 + im.byte_of(this)),
                            o1=self.cap * 32,
                            qs=R(3) + (ats + this * s.slices * self.cap),
                            o2=self.cap,
                        )
                    t.vector(
                        **ops,
                        out_mode="int8",
                        block=s.slice_dim,
                        **(done if last else {}),
                        sig_a=free if last else 0,
                    )

            steps = {1: self.kbo * c * 32, 3: self.kbo * c} if kind == "q" else {1: c * 32, 3: c}
            self._each_group(t, steps | {2: s.head_dim * w}, body)
            head += count

    def _attention_vector(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.image.spec
        c, w = im.config.columns, im.config.lane_bytes
        pos, n, start, att, atts = (R(i) for i in range(1, 6))
        sinks = im.const.get("sinks")
        for r in (pos, att, atts):
            t.li(r, 0)
        with t.loop(self.groups):
            self._sight(t, pos, n, start)
            for h in range(s.heads):
                kv = h // s.group
                t.wait(sem["scores"])
                if sinks is not None:
                    t.vector(
                        n0=1,
                        a=self.const + sinks + 4 * h,
                        a_type=BROADCAST,
                        lo=1,
                        s4=self.mx + h * w,
                        out=self.mx + h * w,
                    )
                for b in range(s.slices):
                    last = b == s.slices - 1
                    t.vector(
                        n0=n,
                        a=self.sc + h * self.cap * w,
                        x2="-s1",
                        s1=self.mx + h * w,
                        func="exp2",
                        b=start + (self.vs + (kv * s.slices + b) * self.cap),
                        b_type=E8M0,
                        x3="b",
                        **(dict(red_op="sum_t3", red=self.ls + h * w) if b == 0 else {}),
                        out_mode="int8",
                        out=self.p + (h * s.slices + b) * self.pb,
                        qs=self.ps + (h * s.slices + b) * self.pbs,
                        overlap=int(sinks is None or b > 0),
                        sig_b=sem["p"] if last else 0,
                    )
            if sinks is not None:
                t.vector(
                    n0=s.heads,
                    a=self.const + sinks,
                    a_type=BROADCAST,
                    d=self.mx,
                    x2="-d",
                    func="exp2",
                    b=self.ls,
                    x4="b",
                    out=self.ls,
                )
            t.vector(n0=s.heads, a=self.ls, func="recip", out=self.rl)
            for h in range(s.heads):
                t.wait(sem["o"])
                t.vector(
                    n0=s.head_dim,
                    a=self.o + h * s.head_dim * w,
                    x1="s0",
                    s0=self.rl + h * w,
                    out_mode="int8",
                    block=s.slice_dim,
                    zfill=int(s.head_dim < 32),
                    out=att + (self.att + h * c * 32),
                    o1=s.heads * c * 32,
                    qs=atts + (self.atts + h * c),
                    o2=s.heads * c,
                    overlap=int(h > 0),
                    sig_b=sem["act"] if h == s.heads - 1 else 0,
                )
            t.add(pos, pos, c)
            t.add(att, att, self.kbo * c * 32)
            t.add(atts, atts, self.kbo * c)

    def _residual(
        self,
        t: Thread,
        panels: list[Panel],
        bias: str,
        norm: str | None = None,
        gate: int | None = None,
        last: bool = False,
    ) -> None:
        """x += gate * (sums + bias); then the norm of the finished group, or (last) its way out."""
        im, sem, s = self.image, self.sem, self.image.spec
        c, w = im.config.columns, im.config.lane_bytes
        at = 0
        for i, panel in enumerate(panels):
            ops: dict = {}
            if bias in im.const:
                ops |= dict(b=self.const + im.const[bias] + 4 * at, b_type=BROADCAST, x2="b")
            if gate is not None:
                ops |= dict(s2=R(4) + (self.gates + gate * w), x3="s2")
            x = R(1) + (self.x + at * w)
            end = i == len(panels) - 1

            def body() -> None:
                t.vector(
                    n0=panel.n,
                    a=RING + self.out,
                    **ops,
                    d=x,
                    x4="d",
                    out=x,
                    sig_a=sem["out_free"],
                    sig_b=sem["y"] if end and last else 0,
                )
                if end and norm:
                    self._norm(t, norm)

            self._each_group(
                t, {1: s.hidden * w, 2: self.kb * c * 32, 3: self.kb * c, 4: max(1, s.experts) * w}, body
            )
            at += panel.n

    def _hidden(self, t: Thread, e: int) -> None:
        """Gate and up sums -> quantised hidden activations."""
        im, sem = self.image, self.sem
        c, w = im.config.columns, im.config.lane_bytes
        for i, (lo, hi) in enumerate(im.splits):
            n = hi - lo
            bias: tuple[int, int] | None = None
            if f"gate{e}" in im.const:
                gate, up = (self.const + im.const[f"{x}{e}"] + 4 * lo for x in ("gate", "up"))
                bias = gate, up
            self._each_group(
                t,
                {1: self.kbf * c * 32, 2: self.kbf * c},
                lambda: activation(
                    t,
                    im,
                    RING + self.out,
                    RING + (self.out + n * w),
                    n,
                    self.tmp,
                    bias,
                    out=R(1) + (self.h + lo // 32 * c * 32),
                    qs=R(2) + (self.hs + lo // 32 * c),
                    sig_a=sem["out_free"],
                    sig_b=sem["act"] if i == len(im.splits) - 1 else 0,
                ),
            )
