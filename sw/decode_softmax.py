"""The vector thread's part of a decode program's attention: softmax and outputs of each user, batch by batch.

Lanes are the query heads of a KV head.
"""

from typing import Any

from hw.isa import R

from .decode_common import Emitter
from .decode_plan import Head, Unit
from .ops import BROADCAST, E8M0

VALUE_SCALES = R(5)
"""Offset of the buffer of value scales in use, kept through the program."""
USER4, N, CHUNKS, ATT, ATT_SCALES, SINK, VS, T, U, V = (R(i) for i in range(6, 16))
"""4 * user, keys in sight and their chunks, offsets that advance from batch to batch, scratch."""


class SoftmaxEmitter(Emitter):
    def attention(self) -> None:
        t, p, s = self.t, self.plan, self.block
        t.li(USER4, 0)
        base = 0
        with self.repeat(p.users):
            position, window, start = T, U, V
            self.position(position, USER4)
            self.sight(position, window, start, N)
            self.chunk_count(CHUNKS, N)
            t.mov(VS, VALUE_SCALES)
            t.li(SINK, 0)
            t.shl(ATT, USER4, 3)
            t.mul(ATT_SCALES, USER4, p.att.scale_row // 4)
            for count, units in p.batches():
                kv_heads = sum(u.kv_heads for u in units)
                heads = [h for u in units for h in u.heads]
                with self.repeat(count):
                    self._softmax(units, heads)
                    starts = range(base, base + count * kv_heads * s.group, kv_heads * s.group)
                    self._outputs(units, heads, starts)
                    if p.batch_count > 1:
                        t.add(VS, VS, kv_heads * s.slices * p.cap)
                        t.add(SINK, SINK, len(heads) * p.w)
                        t.add(ATT, ATT, kv_heads * s.group * p.att.pitch)
                        t.add(ATT_SCALES, ATT_SCALES, kv_heads * s.group)
                base = starts.stop
            if p.vs_copies > 1:
                self.toggle(VALUE_SCALES, p.vs_bytes, T)
            t.add(USER4, USER4, 4)

    def _softmax(self, units: tuple[Unit, ...], heads: list[Head]) -> None:
        """Probabilities, times the values' scales, quantised; reciprocal sums."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        w, one = p.w, p.chunks == 1
        sinks = im.const_a.offsets.get("sink_lanes")
        sink = SINK + (p.const_a + (sinks or 0))
        maxima = p.mxs if one and sinks is None else p.mx
        for u in units:
            t.wait(self.sem("scores"), 1 if one else CHUNKS)
            for head in u.heads:
                i = head.index
                floor: dict[str, Any] = {} if sinks is None else dict(lo=1, s4=sink + i * w)
                m, chunk_maxima = maxima + i * w, p.mxs + i * p.chunks * w
                if not one:
                    t.vector(n0=CHUNKS, a=chunk_maxima, **floor, red_op="max", red=m)
                elif floor:
                    t.vector(n0=1, a=chunk_maxima, **floor, out=m)
                for b in range(s.slices):
                    done = {"sig_b": self.sem("p")} if b == s.slices - 1 else {}
                    if done and head is heads[-1]:
                        done |= {"sig_c": self.sem("vs_free")}
                    t.vector(
                        n0=N,
                        a=p.sc + i * p.cap * w,
                        x2="-s1",
                        s1=m,
                        func="exp2",
                        b=VS + (p.vs + (head.kv * s.slices + b) * p.cap),
                        b_type=E8M0,
                        x3="b",
                        **(dict(red_op="sum_t3", red=p.ls + i * w) if b == 0 else {}),
                        out_mode="int8",
                        out=p.p + (i * s.slices + b) * p.p_bytes,
                        qs=p.ps + (i * s.slices + b) * p.ps_bytes,
                        overlap=b > 0 or one and sinks is None,
                        **done,
                    )
        n = len(heads)
        if sinks is not None:
            t.vector(n0=n, a=sink, d=maxima, x2="-d", func="exp2", b=p.ls, x4="b", out=p.ls)
        t.vector(n0=n, a=p.ls, func="recip", out=p.rl)

    def _outputs(self, units: tuple[Unit, ...], heads: list[Head], starts: range) -> None:
        """Outputs over sums, quantised. starts: first query head of the batch in each round of its loop."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        word = im.config.word_bytes
        for u in units:
            t.wait(self.sem("o"))
            for head in u.heads:
                done = {"sig_b": self.sem("act"), "sig_c": self.sem("const_a_free")}
                done = done if head is heads[-1] else {}
                o, rl = p.o + head.index * s.head_dim * p.w, p.rl + head.index * p.w
                quantised: dict[str, Any] = dict(
                    n0=s.head_dim,
                    out_mode="int8",
                    block=s.slice_dim,
                    zfill=s.head_dim < 32,
                    o1=s.heads * p.att.pitch,
                    o2=s.heads,
                    overlap=head is not heads[0],
                )
                crosses = any(
                    (b * s.heads + start + head.head) % word + head.rows > word
                    for b in range(s.slices)
                    for start in starts
                )
                if not crosses:
                    t.vector(
                        **quantised,
                        a=o,
                        x1="s0",
                        s0=rl,
                        rows=head.rows,
                        out=ATT + (p.att.at + head.head * p.att.pitch),
                        o0=p.att.pitch,
                        qs=ATT_SCALES + (p.att.scales + head.head),
                        **done,
                    )
                    continue
                # The scale bytes of one instruction lie in one word of SRAM: here one head at a time.
                for r in range(head.rows):
                    t.vector(
                        **quantised,
                        a=o + 4 * r,
                        a_type=BROADCAST,
                        a0=p.w,
                        x1="b",
                        b=rl + 4 * r,
                        b_type=BROADCAST,
                        b0=0,
                        rows=1,
                        out=ATT + (p.att.at + (head.head + r) * p.att.pitch),
                        qs=ATT_SCALES + (p.att.scales + head.head + r),
                        **(done if r == head.rows - 1 else {}),
                    )
