"""MATMUL thread of a decode program. The rows of the array are the users; in attention the query heads of a
KV head of one user."""

from contextlib import nullcontext

from hw.isa import R

from .decode_common import Emitter
from .decode_plan import Head, Stationary, Unit
from .model_image import Linear

SLOT, RING, BLOCKS, SCALES, T = (R(i) for i in range(3, 8))
"""Ring offsets of weights and of sums, offsets in the stationary operand, scratch."""
USER4, N, LEFT, LOW, Q, QS, A, B = (R(i) for i in range(8, 16))
FIRST, PASSES = BLOCKS, SCALES
"""In attention: the working copy of LOW; passes of a chunk."""


class MatmulThread(Emitter):
    def begin(self) -> None:
        self.t.matmul(n=0)

    def emit(self) -> None:
        t, im, p = self.t, self.image, self.plan
        self.sems = {n: self.sem(n) for n in ("chunk", "chunk_free", "out", "out_free", "act")}
        t.signal(self.sem("out_free"), p.buffers)
        t.wait(self.sem("state_matmul"))
        with self.each_layer(T):
            t.wait(self.sem("act"))
            for lin in (im.wk, im.wv, im.wq):
                self._linear(lin, p.xn)
            with t.label("layer {layer} / attention"):
                t.wait(self.sem("act"), p.q_signals)
                self._attention()
            t.wait(self.sem("act"), p.users * p.batch_count)
            self._linear(im.wo, p.att)
            t.wait(self.sem("act"))
            if im.router:
                self._linear(im.router, p.xn)
            with self.repeat(self.picks):
                self._linear(im.gate_up, p.xn)
                t.wait(self.sem("act"), len(im.splits))
                self._linear(im.down, p.h)
            with self.last_layer():
                if im.head:
                    t.wait(self.sem("act"))
                    self._linear(im.head, p.xn, "head")

    # ---- linear layers

    def _linear(self, lin: Linear, stat: Stationary, label: str = "") -> None:
        t, p = self.t, self.plan
        with t.label(label or f"layer {{layer}} / {lin.name}"):
            for count, panel in lin.runs:
                cut = p.cut(panel)

                def chunk(
                    passes: int,
                    blocks: int | R,
                    scales: int | R,
                    first: bool,
                    last: bool,
                    panel=panel,
                ) -> None:
                    t.wait(self.sems["chunk"])
                    if last:
                        t.wait(self.sems["out_free"])
                    t.matmul(
                        n=panel.n,
                        k=passes,
                        first=first,
                        last=last,
                        rows=p.users,
                        stream_fmt=panel.fmt,
                        data=SLOT + p.ring,
                        scale=SLOT + (p.ring + panel.data_bytes),
                        data_pass=panel.pass_bytes,
                        scale_pass=panel.pass_bytes,
                        stat=blocks + stat.at,
                        stat_pass=stat.pitch,
                        stat_scale=scales + stat.scales,
                        stat_scale_pass=stat.scale_pitch,
                        **({"stat_row": 32, "stat_scale_row": stat.scale_row} if p.users > 1 else {}),
                        sig_a=self.sems["chunk_free"],
                        **({"out": RING + p.out, "sig_b": self.sems["out"]} if last else {}),
                    )
                    self._next_slot()

                with self.repeat(count):
                    chunk(cut.passes, 0, 0, True, cut.count == 1)
                    step, scale_step = cut.passes * stat.pitch, cut.passes * stat.scale_pitch
                    if cut.count == 3:
                        chunk(cut.passes, step, scale_step, False, False)
                    elif cut.count > 3:
                        t.li(BLOCKS, step)
                        t.li(SCALES, scale_step)
                        with t.loop(cut.count - 2):
                            chunk(cut.passes, BLOCKS, SCALES, False, False)
                            t.add(BLOCKS, BLOCKS, step)
                            t.add(SCALES, SCALES, scale_step)
                    if cut.count > 1:
                        done = cut.count - 1
                        chunk(cut.last, done * step, done * scale_step, False, True)
                    self.advance(RING, p.out_bytes, p.buffers * p.out_bytes, T)

    def _next_slot(self) -> None:
        self.advance(SLOT, self.plan.slot_bytes, self.plan.ring_bytes, T)

    # ---- attention

    def _attention(self) -> None:
        t, p, s = self.t, self.plan, self.block
        t.li(USER4, 0)
        with self.repeat(p.users):
            position, window, start = A, T, B
            self.position(position, USER4)
            self.sight(position, window, start, N)
            if p.windowed:
                t.sub(LOW, position, window + -1)
                t.sub(LOW, LOW, start)
            t.shl(Q, USER4, 3)
            t.shr(QS, USER4, 2)
            for count, units in p.batches():
                heads = sum(u.kv_heads for u in units) * s.group
                with self.repeat(count):
                    for u in units:
                        self._scores(u)
                    for u in units:
                        t.wait(self.sem("p"), len(u.heads))
                        for i, (first, _, jobs) in enumerate(u.rounds):
                            self._values(u, first, jobs, i == len(u.rounds) - 1)
                    if p.batch_count > 1:
                        t.add(Q, Q, heads * s.slices * p.q.pitch)
                        t.add(QS, QS, heads * s.slices * p.q.scale_pitch)
            t.add(USER4, USER4, 4)

    def _scores(self, u: Unit) -> None:
        """Scores and maxima of the unit's heads, chunk by chunk."""
        t, p, s = self.t, self.plan, self.block
        one = p.chunks == 1
        keys = p.chunk_keys
        if not one:
            t.li(A, 0)
            t.li(B, 0)
            t.mov(LEFT, N)
            if p.windowed:
                t.mov(FIRST, LOW)
            self.chunk_count(T, N)
        with nullcontext() if one else t.loop(T):
            if not one:
                t.min_(T, LEFT, keys)
            t.wait(self.sems["chunk"])
            for head in u.heads:
                last = head is u.heads[-1]
                mask = dict(lo=LOW if one else FIRST, hi=N if one else LEFT) if p.windowed else {}
                sc, mx = p.sc + head.index * p.cap * p.w, p.mxs + head.index * p.chunks * p.w
                scale = p.ring + s.slices * keys * 32 + (head.kv - u.first) * s.slices * keys
                t.matmul(
                    n=N if one else T,
                    k=s.slices,
                    rows=head.rows,
                    **mask,
                    data=SLOT + p.ring,
                    data_pass=keys * 32,
                    scale=SLOT + scale,
                    scale_pass=keys,
                    stat=Q + (p.q.at + head.head * s.slices * p.q.pitch),
                    stat_pass=p.q.pitch,
                    stat_row=s.slices * p.q.pitch,
                    stat_scale=QS + (p.q.scales + head.head * s.slices * p.q.scale_pitch),
                    stat_scale_pass=p.q.scale_pitch,
                    stat_scale_row=s.slices * p.q.scale_pitch,
                    out=sc if one else A + sc,
                    max_out=mx if one else B + mx,
                    sig_a=self.sems["chunk_free"] if last else 0,
                    sig_b=self.sem("scores") if last else 0,
                )
            if not one:
                t.add(A, A, keys * p.w)
                t.add(B, B, p.w)
                t.sub(LEFT, LEFT, keys)
                if p.windowed:
                    t.sub(FIRST, FIRST, keys)
            self._next_slot()

    def _values(self, u: Unit, first: int, jobs: tuple[tuple[Head, int], ...], final: bool) -> None:
        """Probabilities times values of one round of a unit. Sums stay in the array from chunk to chunk; they
        start as the product with a block of zeros."""
        t, p, s = self.t, self.plan, self.block
        blocks = p.chunk_keys // 32
        c = self.image.config.columns
        if p.chunks == 1:
            t.add(PASSES, N, 31)
            t.shr(PASSES, PASSES, 5)
            self._value_chunk(first, jobs, PASSES, True, True, final)
            return
        t.matmul(
            n=len(jobs) * s.slice_dim,
            k=1,
            first=1,
            last=0,
            rows=1,
            data=p.ring,
            stat=p.zero,
            stat_scale=p.zero_scale,
        )
        t.li(A, 0)
        t.li(B, 0)
        t.mov(LEFT, N)
        self.chunk_count(T, N)
        with t.loop(T + -1):
            self._value_chunk(first, jobs, blocks, False, False, final)
            t.add(A, A, blocks * c * 32)
            t.add(B, B, blocks * c)
            t.sub(LEFT, LEFT, p.chunk_keys)
        t.add(PASSES, LEFT, 31)
        t.shr(PASSES, PASSES, 5)
        self._value_chunk(first, jobs, PASSES, False, True, final)

    def _value_chunk(
        self,
        word: int,
        jobs: tuple[tuple[Head, int], ...],
        passes: int | R,
        first: bool,
        last: bool,
        final: bool,
    ) -> None:
        t, im, p, s = self.t, self.image, self.plan, self.block
        c = im.config.columns
        t.wait(self.sems["chunk"])
        for i, (head, piece) in enumerate(jobs):
            done = i == len(jobs) - 1
            at = head.index * s.slices + piece
            stat, scale = p.p + at * p.p_bytes, p.ps + at * p.ps_bytes
            place = {"out": p.o + (head.index * s.head_dim + 32 * piece) * p.w} if last else {}
            t.matmul(
                n=s.slice_dim,
                k=passes,
                first=first,
                last=last,
                rows=head.rows,
                transpose=1,
                offset=im.byte_of(head.kv),
                data=SLOT + (p.ring + (piece - word) * p.chunk_keys * 32),
                data_pass=1024,
                stat=stat if first else A + stat,
                stat_pass=c * 32,
                stat_row=32,
                stat_scale=scale if first else B + scale,
                stat_scale_pass=c,
                **place,
                psum=0 if first else i * s.slice_dim,
                sig_a=self.sems["chunk_free"] if done else 0,
                sig_b=self.sem("o") if done and last and final else 0,
            )
        self._next_slot()
