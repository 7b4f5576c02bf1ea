"""LOAD and STORE threads of a decode program: DRAM to and from the ring, constants, the KV cache, tokens.

The load thread knows nothing of the arithmetic but free slots, so that it runs far ahead of it. The few
things that it must wait for (the token chosen last, the new keys and values, the chosen experts) are placed
where enough other bytes are on their way.

Loads and stores complete in order, so what is loaded before a chunk (constants b and c, value scales) is
there when the sums or scores of that chunk are, and what a layer used is free once the next layer's keys are
stored.
"""

from hw.isa import R

from .decode_common import LAYER, STEP, Emitter
from .decode_plan import Unit
from .model_image import Linear

SLOT, BASE, VALUE_SCALES, CONST_C, T = (R(i) for i in range(3, 8))
"""Ring offset, the layer's address, offsets of the buffers in use, scratch."""
USER4, N, LEFT, WORDS, SCALES, A, B, T2 = (R(i) for i in range(8, 16))
EXPERTS = tuple(R(i) for i in range(8, 12))
WALK, EXPERT_BASE = R(12), R(13)


class LoadThread(Emitter):
    def begin(self) -> None:
        self.t.load(src=0, dst=0, len=0)

    def emit(self) -> None:
        t, im, p = self.t, self.image, self.plan
        self.sems = {n: self.sem(n) for n in ("chunk", "chunk_free")}
        batches = p.batch_count
        t.signal(self.sem("chunk_free"), p.slots)
        t.signal(self.sem("const_a_free"), batches * p.users)
        t.signal(self.sem("vs_free"), batches * p.vs_copies)
        if p.c_bytes:
            t.signal(self.sem("const_c_free"), p.copies * len(im.down.panels))
        if im.bare:
            t.signal(self.sem("in_free"))
        c = im.config.columns
        first = [(im.windows_at, p.windows, im.windows_bytes), (im.state_at + 4 * c, p.state, 4 * c)]
        if not im.bare:
            first.insert(0, (im.state_at, p.panel_maxima + p.w, 4 * c))
        if im.final.bytes:
            first.insert(0, (im.final.address, p.final, im.final.bytes))
        for src, dst, size in first:
            t.li(WALK, src)
            t.load(src=WALK, dst=dst, len=size, sig_b=self.sem("state"))
        t.wait(self.sem("state"), len(first))
        for other in ("matmul", "vector", "store"):
            t.signal(self.sem(f"state_{other}"))
        t.li(BASE, im.layers_at)
        early = p.chunk_count(im.wk) > p.slots
        with self.each_layer(T):
            t.wait(self.sem("const_a_free"), batches * p.users)
            t.add(WALK, BASE, im.const_a.address)
            with t.label("layer {layer} / constants"):
                t.load(src=WALK, dst=p.const_a, len=im.const_a.bytes, sig_b=self.sem("const_a"))
            if early:
                self._token_rows()
            self._linear(im.wk)
            if not early:
                self._token_rows()
            self._linear(im.wv)
            self._linear(im.wq)
            with t.label("layer {layer} / keys and values"):
                self._attention()
            t.add(WALK, BASE, im.const_b.address)
            with t.label("layer {layer} / constants"):
                t.load(src=WALK, dst=p.const_b, len=im.const_b.bytes)
            self._linear(im.wo)
            if im.router:
                self._linear(im.router)
                if p.users == 1:
                    t.wait(self.sem("routed"))
                    self.chosen_experts(EXPERTS, p.top_index, T)
            with self.each_expert(EXPERTS, T):
                self._expert()
            with self.last_layer():
                if im.head:
                    with t.label("head"):
                        t.li(WALK, im.head.address)
                        self._panels(im.head)
                t.li(BASE, im.layers_at - im.layer_bytes)
            t.add(BASE, BASE, im.layer_bytes)

    # ---- weights

    def _linear(self, lin: Linear, base: R = BASE) -> None:
        with self.t.label(f"layer {{layer}} / {lin.name}"):
            self.t.add(WALK, base, lin.address)
            self._panels(lin)

    def _panels(self, lin: Linear) -> None:
        """All chunks of a linear layer, from WALK on."""
        for count, panel in lin.runs:
            cut = self.plan.cut(panel)
            if cut.last == cut.passes:
                with self.repeat(count * cut.count):
                    self._fetch(cut.passes * panel.pass_bytes)
                continue
            with self.repeat(count):
                with self.repeat(cut.count - 1):
                    self._fetch(cut.passes * panel.pass_bytes)
                self._fetch(cut.last * panel.pass_bytes)

    def _fetch(self, size: int) -> None:
        t, p = self.t, self.plan
        t.wait(self.sems["chunk_free"])
        t.load(src=WALK, dst=SLOT + p.ring, len=size, sig_b=self.sems["chunk"])
        t.add(WALK, WALK, size)
        self.advance(SLOT, p.slot_bytes, p.ring_bytes, T)

    def _expert(self) -> None:
        t, im, p = self.t, self.image, self.plan
        t.add(EXPERT_BASE, BASE, im.experts_at)
        if im.router:
            t.mul(T, EXPERTS[0], im.expert_bytes)
            t.add(EXPERT_BASE, EXPERT_BASE, T)
        if p.c_bytes:
            t.wait(self.sem("const_c_free"), len(im.down.panels))
            t.add(WALK, EXPERT_BASE, im.const_c.address)
            with t.label("layer {layer} / constants"):
                t.load(src=WALK, dst=CONST_C + p.const_c, len=im.const_c.bytes)
            if p.copies > 1:
                self.toggle(CONST_C, p.c_bytes, T)
        self._linear(im.gate_up, EXPERT_BASE)
        self._linear(im.down, EXPERT_BASE)

    # ---- tokens

    def _token_rows(self) -> None:
        """In layer 0: embeddings (or the host's rows) and RoPE rows of all users."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        row = s.hidden * (4 if im.bare else 2)
        with self.first_layer(T), t.label("token rows"):
            t.wait(self.sem("in_free" if im.bare else "chosen"))
            t.li(USER4, 0)
            with self.repeat(p.users):
                if im.bare:
                    t.mul(A, STEP, p.users * row)
                    t.mul(T, USER4, row // 4)
                    t.add(A, A, T)
                    t.add(A, A, im.rows_in)
                else:
                    assert im.head
                    t.lds(A, USER4 + (p.best + p.w))
                    t.mul(T, A, 2 * p.w)
                    t.add(T, T, USER4)
                    t.lds(T, T + (p.panel_maxima + p.w))
                    t.mul(A, A, im.head.panels[0].n)
                    t.add(A, A, T)
                    t.mul(A, A, row)
                    t.add(A, A, im.embedding_at)
                t.mul(T, USER4, p.row_bytes // 4)
                t.load(src=A, dst=T + p.row, len=row)
                self.position(B, USER4)
                if not im.bare and im.params.positions is not None:
                    t.mul(A, B, row)
                    t.add(A, A, im.positions_table_at)
                    t.load(src=A, dst=T + p.positions, len=row)
                if s.rope == "none":
                    t.load(src=A, dst=T + p.row, len=0, sig_b=self.sem("in"))
                else:
                    t.mul(A, B, s.head_dim * 4)
                    t.add(A, A, im.rope_rows)
                    t.mul(T, USER4, s.head_dim)
                    t.load(src=A, dst=T + p.rope_row, len=s.head_dim * 4, sig_b=self.sem("in"))
                t.add(USER4, USER4, 4)

    # ---- keys and values

    def _attention(self) -> None:
        """Keys and values in sight of each user, the new token's among them, from the cache."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        tokens = s.max_tokens
        t.li(USER4, 0)
        with self.repeat(p.users):
            position, window, start = SCALES, LEFT, A
            self.position(position, USER4)
            self.sight(position, window, start, N)
            t.mul(WORDS, LAYER, im.kv_layer_bytes)
            t.mul(T, USER4, im.kv_user_bytes // 4)
            t.add(WORDS, WORDS, T)
            t.add(WORDS, WORDS, im.kv_base)
            t.add(SCALES, WORDS, start)
            t.shl(start, start, 5)
            t.add(WORDS, WORDS, start)
            t.wait(self.sem("kv_stored"))
            t.wait(self.sem("vs_free"), p.batch_count)
            t.add(A, SCALES, im.kv_at["v scales"])
            t.load(
                src=A,
                dst=VALUE_SCALES + p.vs,
                len=N,
                n1=s.kv_scales,
                src1=tokens,
                dst1=p.cap,
            )
            if p.vs_copies > 1:
                self.toggle(VALUE_SCALES, p.vs_bytes, T)
            for count, units in p.batches():
                heads = sum(u.kv_heads for u in units)
                words = heads * s.slices if s.head_dim >= 32 else heads // self.block.per_word
                with self.repeat(count):
                    for u in units:
                        self._keys(u)
                    for u in units:
                        for first, n, _ in u.rounds:
                            self._chunks(self._word(u) + first, n, None)
                    if p.batch_count > 1:
                        t.add(WORDS, WORDS, words * tokens * 32)
                        t.add(SCALES, SCALES, heads * s.slices * tokens)
            t.add(USER4, USER4, 4)

    def _word(self, u: Unit) -> int:
        s = self.block
        return u.first * s.slices if s.head_dim >= 32 else u.first // s.per_word

    def _keys(self, u: Unit) -> None:
        s = self.block
        self._chunks(self._word(u), s.slices, u)

    def _chunks(self, word: int, words: int, keys: Unit | None) -> None:
        """Chunks of `words` words per token from `word` on: of keys with their scales, or of values."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        tokens, step, sem = s.max_tokens, p.chunk_keys, self.sems
        t.add(A, WORDS, im.kv_at["k" if keys else "v"] + word * tokens * 32)
        if keys:
            t.add(B, SCALES, im.kv_at["k scales"] + keys.first * s.slices * tokens)
        if p.chunks > 1:
            t.mov(LEFT, N)
            self.chunk_count(T, N)
            with t.loop(T):
                t.min_(T, LEFT, step)
                self._chunk(T, words, keys, sem)
                t.add(A, A, step * 32)
                if keys:
                    t.add(B, B, step)
                t.sub(LEFT, LEFT, step)
                self.advance(SLOT, p.slot_bytes, p.ring_bytes, T)
        else:
            self._chunk(N, words, keys, sem)
            self.advance(SLOT, p.slot_bytes, p.ring_bytes, T)

    def _chunk(self, n: R, words: int, keys: Unit | None, sem: dict[str, int]) -> None:
        t, p, tokens = self.t, self.plan, self.block.max_tokens
        t.wait(sem["chunk_free"])
        t.shl(T2, n, 5)
        more = dict(n1=words, src1=tokens * 32, dst1=p.chunk_keys * 32) if words > 1 else {}
        t.load(src=A, dst=SLOT + p.ring, len=T2, **more, sig_b=0 if keys else sem["chunk"])
        if keys:
            scales = keys.kv_heads * self.block.slices
            more = dict(n1=scales, src1=tokens, dst1=p.chunk_keys) if scales > 1 else {}
            at = p.ring + words * p.chunk_keys * 32
            t.load(src=B, dst=SLOT + at, len=n, **more, sig_b=sem["chunk"])


class StoreThread(Emitter):
    """Registers: 3 user, 4 cache address, 5 its scales, 6 to 8 scratch."""

    def begin(self) -> None:
        self.t.store(src=0, dst=0, len=0)

    def emit(self) -> None:
        t, im, p, s = self.t, self.image, self.plan, self.block
        user4, words, scales, a, b = (R(i) for i in range(3, 8))
        tokens = s.max_tokens
        if im.bare:
            t.signal(self.sem("y_free"))
        if self.logits:
            t.signal(self.sem("logits_free"))
        t.wait(self.sem("state_store"))
        with self.each_layer(a), t.label("layer {layer} / new keys and values"):
            t.wait(self.sem("kv_new"), p.kv_signals)
            t.li(user4, 0)
            with self.repeat(p.users):
                self.position(a, user4)
                t.mul(words, LAYER, im.kv_layer_bytes)
                t.mul(b, user4, im.kv_user_bytes // 4)
                t.add(words, words, b)
                t.add(words, words, im.kv_base)
                t.add(scales, words, a)
                t.shl(a, a, 5)
                t.add(words, words, a)
                t.mul(a, user4, s.kv_words * 8)
                t.shr(b, user4, 2)
                for x, at, scale_at in (("k", p.kn, p.kns), ("v", p.vn, p.vns)):
                    t.add(R(8), words, im.kv_at[x])
                    t.store(src=a + at, dst=R(8), len=32, n1=s.kv_words, src1=32, dst1=tokens * 32)
                    t.add(R(8), scales, im.kv_at[f"{x} scales"])
                    t.store(
                        src=b + scale_at,
                        dst=R(8),
                        len=1,
                        n1=s.kv_scales,
                        src1=p.pitch,
                        dst1=tokens,
                        sig_b=self.sem("kv_stored") if x == "v" else 0,
                    )
                t.add(user4, user4, 4)
            with self.last_layer():
                if im.bare:
                    size = p.users * s.hidden * 4
                    t.wait(self.sem("y"))
                    t.mul(a, STEP, size)
                    t.add(a, a, im.rows_out)
                    t.store(src=p.y, dst=a, len=size, sig_a=self.sem("y_free"))
                else:
                    if self.logits:
                        self._logits(a, b)
                    self._chosen(user4, words, a, b)

    def _chosen(self, user4: R, best: R, a: R, dst: R) -> None:
        """The panel with the largest logit of each row, then the feature within it of each user."""
        t, im, p = self.t, self.image, self.plan
        c = im.config.columns
        with t.label("chosen token"):
            t.wait(self.sem("chosen_store"))
            t.mul(dst, STEP, 8 * c)
            t.add(dst, dst, im.chosen_at)
            t.store(src=p.best + p.w, dst=dst, len=4 * c)
            t.add(dst, dst, 4 * c)
            t.li(user4, 0)
            with self.repeat(p.users):
                t.lds(best, user4 + (p.best + p.w))
                t.mul(a, best, 2 * p.w)
                t.add(a, a, user4)
                t.store(src=a + (p.panel_maxima + p.w), dst=dst, len=4)
                t.add(user4, user4, 4)
                t.add(dst, dst, 4)

    def _logits(self, a: R, row: R) -> None:
        """Every panel's logits; R(9) counts steps modulo logit_steps."""
        t, im, p = self.t, self.image, self.plan
        assert im.head
        with t.label("logits"):
            t.mul(row, R(9), p.users * im.logit_row)
            t.add(row, row, im.logits_at)
            for count, panel in im.head.runs:
                with self.repeat(count):
                    t.wait(self.sem("logits"))
                    t.store(
                        src=p.logits,
                        dst=row,
                        len=4 * panel.n,
                        n1=p.users,
                        src1=p.logit_bytes,
                        dst1=im.logit_row,
                        sig_a=self.sem("logits_free"),
                    )
                    t.add(row, row, 4 * panel.n)
            self.advance(R(9), 1, im.logit_steps, a)
