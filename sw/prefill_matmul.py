"""The matmul thread of a model's prefill: panels of weights against every group of C rows, and attention.

It runs ahead of the vector thread by the output buffers. Operands of matmul instructions are safe to
overwrite as soon as the result of a later one has been seen, because results come in order.
"""

from typing import Any

from hw.isa import R

from .assembler import Thread
from .model_image import NO_WINDOW, Linear, ModelImage
from .layout import Panel
from .ops import first_in_sight
from .prefill_plan import Plan

POS, N, TMP, KB, HI, LO, Q, QS, KD, KS, VD = (R(i) for i in range(1, 12))
SLOT, RING, LAYER, GROUPS = R(12), R(13), R(14), R(15)
"""Offset of the panel's slot and of the output buffer; 4 * layer; groups of rows."""
STAT, SCALE = R(1), R(2)
"""In linear layers: offsets of the group's activations."""


def count_groups(t: Thread, groups: R, columns: int) -> None:
    """groups = number of groups of the tokens in ARG1."""
    t.arg(groups, 1)
    t.add(groups, groups, columns - 1)
    t.shr(groups, groups, columns.bit_length() - 1)


def advance_ring(t: Thread, plan: Plan, ring: R, tmp: R) -> None:
    """Next output buffer."""
    size = plan.buffers * plan.out_bytes
    if size & size - 1 == 0:
        t.add(ring, ring, plan.out_bytes)
        t.and_(ring, ring, size - 1)
        return
    t.add(ring, ring, plan.out_bytes - size)
    t.sra(tmp, ring, 31)
    t.and_(tmp, tmp, size)
    t.add(ring, ring, tmp)


def toggle(t: Thread, offset: R, size: int) -> None:
    """offset = size - offset."""
    t.sub(offset, R(0), offset + -size)


class MatmulThread:
    """Emits the thread's code: `begin`, then `layer` in a loop, `keys_values` where the model ends so."""

    def __init__(self, t: Thread, image: ModelImage, plan: Plan, sem: dict[str, int]):
        self.t, self.image, self.plan, self.sem = t, image, plan, sem

    def begin(self) -> None:
        t, sem = self.t, self.sem
        count_groups(t, GROUPS, self.image.config.columns)
        t.signal(sem["out_free"], self.plan.buffers)
        if self.plan.windowed:
            t.wait(sem["windows matmul"])
            t.signal(sem["windows vector"])

    def layer(self) -> None:
        t, im, p = self.t, self.image, self.plan
        self.keys_values()
        with t.label("q"):
            self._linear(im.wq, p.xn, p.xns, p.group_scales)
        with t.label("attention"):
            self._attention()
        with t.label("output projection"):
            self._linear(im.wo, p.xn, p.xns, p.group_scales, act=p.batches)
        if im.router:
            with t.label("router"):
                self._linear(im.router, p.xn, p.xns, p.group_scales, act=1)
            with t.label("experts"), t.loop(im.block.experts):
                self._mlp(act=0)
        else:
            with t.label("mlp"):
                self._mlp(act=1)
        if p.windowed:
            t.add(LAYER, LAYER, 4)

    def keys_values(self) -> None:
        t, im, p = self.t, self.image, self.plan
        with t.label("k"):
            self._linear(im.wk, p.xn, p.xns, p.group_scales, act=1)
        with t.label("v"):
            self._linear(im.wv, p.xn, p.xns, p.group_scales)

    def _mlp(self, act: int) -> None:
        im, p = self.image, self.plan
        self._linear(im.gate_up, p.xn, p.xns, p.group_scales, act)
        self._linear(im.down, p.h, p.hs, p.kbf * im.config.columns, act=1)

    def _linear(self, lin: Linear, stat: int, stat_scale: int, step: int, act: int = 0) -> None:
        """act: signals to wait for before a group's activations are there (0: they are).

        step: scale bytes from group to group.
        """
        first, last = lin.panels[0], lin.panels[-1]
        more = len(lin.panels)
        if act:
            self._panel(first, stat, stat_scale, step, act)
            more -= 1
        if more > 2:
            with self.t.loop(more - 1):
                self._panel(first, stat, stat_scale, step)
        elif more == 2:
            self._panel(first, stat, stat_scale, step)
        if more:
            self._panel(last, stat, stat_scale, step)

    def _panel(self, panel: Panel, stat: int, stat_scale: int, step: int, act: int = 0) -> None:
        t, p, sem = self.t, self.plan, self.sem
        c = self.image.config.columns
        t.li(STAT, 0)
        t.li(SCALE, 0)
        t.wait(sem["panel"])
        with t.loop(GROUPS):
            if act:
                t.wait(sem["act"], act)
            t.wait(sem["out_free"])
            t.matmul(
                n=panel.n,
                k=panel.k,
                stream_fmt=panel.fmt,
                data=SLOT + p.slots,
                scale=SLOT + (p.slots + panel.data_bytes),
                data_pass=panel.pass_bytes,
                scale_pass=panel.pass_bytes,
                stat=STAT + stat,
                stat_pass=c * 32,
                stat_row=32,
                stat_scale=SCALE + stat_scale,
                stat_scale_pass=c,
                out=RING + p.out,
                sig_a=sem["panel_free"],
                sig_b=sem["out"],
            )
            advance_ring(t, p, RING, TMP)
            t.add(STAT, STAT, step * 32)
            t.add(SCALE, SCALE, step)
        toggle(t, SLOT, p.slot_bytes)

    # ---- attention

    def _attention(self) -> None:
        """Group by group, batch of heads by batch: scores of all heads, then values of all heads."""
        t, im, p = self.t, self.image, self.plan
        s, c = im.block, im.config.columns
        t.arg(POS, 0)
        t.li(Q, 0)
        t.li(QS, 0)
        t.wait(self.sem["past"])
        with t.loop(GROUPS):
            self._sight()
            t.wait(self.sem["act"])
            if p.batches == 1:
                self._batch()
            else:
                with t.loop(p.batches):
                    self._batch()
                    words = p.kv_batch // s.per_word if s.head_dim < 32 else p.kv_batch * s.slices
                    t.add(KD, KD, words * p.cap * 32)
                    t.add(VD, VD, words * p.cap * 32)
                    t.add(KS, KS, p.kv_batch * s.slices * p.cap)
                    t.add(Q, Q, p.batch_heads * s.slices * c * 32)
                    t.add(QS, QS, p.batch_heads * s.slices * c)
            if p.batches == 1:
                t.add(Q, Q, p.kbo * c * 32)
                t.add(QS, QS, p.kbo * c)
            t.add(POS, POS, c)

    def _sight(self) -> None:
        """Of the group at POS: keys N from KS (a multiple of 32) on, blocks KB of them, mask limits.

        In two pieces: N and TMP keys.
        """
        t, p = self.t, self.plan
        key_range(t, self.image, p, LAYER, POS, N, KS, TMP)
        if self.image.block.causal:
            t.sub(HI, POS, KS + -1)
            if p.windowed:
                t.lds(TMP, LAYER + p.windows)
                t.sub(LO, HI, TMP)
        t.add(KB, N, 31)
        t.shr(KB, KB, 5)
        t.shl(KD, KS, 5)
        t.mov(VD, KD)
        if p.pieces == 2:
            depth = self.image.config.psum_depth
            t.sub(TMP, N, depth)
            t.max_(TMP, TMP, 0)
            t.min_(N, N, depth)

    def _batch(self) -> None:
        t, p, sem, s = self.t, self.plan, self.sem, self.image.block
        c, w = self.image.config.columns, self.image.config.lane_bytes
        depth = self.image.config.psum_depth
        for i in range(p.batch_heads):
            kv = i // s.group
            word = self.image.word_of(kv, 0)
            for piece in range(p.pieces):
                first = piece * depth
                n = N if piece == 0 else TMP
                if p.pieces > 2:
                    t.sub(TMP, N, first)
                    t.max_(TMP, TMP, 0)
                    t.min_(TMP, TMP, depth)
                    n = TMP
                mask: dict[str, Any] = {}
                if s.causal:
                    mask = dict(step=1, hi=HI + -first, lo=LO + -first if p.windowed else -NO_WINDOW)
                t.matmul(
                    n=n,
                    k=s.slices,
                    **mask,
                    max_first=int(piece == 0),
                    data=KD + (p.k + (word * p.cap + first) * 32),
                    data_pass=p.cap * 32,
                    scale=KS + (p.ks + kv * s.slices * p.cap + first),
                    scale_pass=p.cap,
                    stat=Q + (p.q + i * s.slices * c * 32),
                    stat_pass=c * 32,
                    stat_row=32,
                    stat_scale=QS + (p.qs + i * s.slices * c),
                    stat_scale_pass=c,
                    out=p.head(i, "scores") + first * w,
                    max_out=p.head(i, "maximum"),
                    sig_b=sem["scores"] if piece == p.pieces - 1 else 0,
                )
        for i in range(p.batch_heads):
            kv = i // s.group
            t.wait(sem["p"])
            for b in range(s.slices):
                t.matmul(
                    n=s.slice_dim,
                    k=KB,
                    transpose=1,
                    offset=self.image.byte_of(kv),
                    data=VD + (p.v + self.image.word_of(kv, b) * p.cap * 32),
                    data_pass=1024,
                    stat=p.head(i, "p") + b * p.p_bytes,
                    stat_pass=c * 32,
                    stat_row=32,
                    stat_scale=p.head(i, "ps") + b * p.p_scales,
                    stat_scale_pass=c,
                    out=p.head(i, "o") + 32 * b * w,
                    sig_b=sem["o"] if b == s.slices - 1 else 0,
                )


def key_range(t: Thread, image: ModelImage, plan: Plan, layer: R, pos: R, n: R, start: R, tmp: R) -> None:
    """Keys that the rows of the group at position pos see: n from `start` (a multiple of 32) on.

    Keys behind the last token are never read: they come from rows that nobody asked for.
    """
    if not image.block.causal:
        t.li(start, 0)
        t.arg(n, 1)
        return
    if plan.windowed:
        t.lds(tmp, layer + plan.windows)
        first_in_sight(t, pos, tmp, start)
    else:
        t.li(start, 0)
    t.arg(n, 0)
    t.arg(tmp, 1)
    t.add(n, n, tmp)
    t.min_(n, n, pos + image.config.columns)
    t.sub(n, n, start)
