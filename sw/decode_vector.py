"""VECTOR thread of a decode program: embedding, norms, RoPE and quantisation, softmax, activations, argmax.

Lanes are users; the softmax, where they are query heads, is in decode_softmax.py.
"""

from collections.abc import Callable
from typing import Any

from hw.isa import R

from .decode_plan import Stationary
from .decode_softmax import SoftmaxEmitter
from .layout import Panel
from .model_image import Linear
from .ops import BROADCAST, activation, norm, rope, route

RING, CONST_C = R(3), R(4)
X, Y, Z, EXPERTS, T, U = R(6), R(7), R(8), tuple(R(i) for i in range(9, 13)), R(13), R(14)
"""In linear layers: offsets that advance from panel to panel; numbers of experts; scratch."""


class VectorThread(SoftmaxEmitter):
    def begin(self) -> None:
        self.t.vector(n0=0, a=0, overlap=1)

    def emit(self) -> None:
        t, im, p, s = self.t, self.image, self.plan, self.block
        a, b, c = im.const_a.offsets, im.const_b.offsets, im.const_c.offsets
        zero: dict[str, Any] = dict(n0=32, a=p.x, lo=1, hi=1, c2=0.0, c3=0.0)
        t.vector(**zero, out=p.zero, out_mode="int8", rows=1, qs=p.zero_scale)
        done = {} if im.bare else {"sig_b": self.sem("chosen")}
        t.vector(**(zero | {"n0": 1}), out=p.best + p.w, **done)
        t.wait(self.sem("state_vector"))
        with self.each_layer(T):
            with self.first_layer(T), t.label("token rows"):
                self._token_rows()
            with t.label("layer {layer} / norm"):
                t.wait(self.sem("const_a"))
                self._norm(p.const_a + a["norm1"], self._at(p.const_a, a, "norm1_bias"))
            for kind, lin in (("k", im.wk), ("v", im.wv), ("q", im.wq)):
                with t.label(f"layer {{layer}} / {kind}"):
                    self._heads(lin, kind)
            with t.label("layer {layer} / softmax"):
                self.attention()
            with t.label("layer {layer} / residual"):
                self._residual(im.wo, p.const_b + b["bo"] if "bo" in b else None)
                self._norm(p.const_b + b["norm2"], self._at(p.const_b, b, "norm2_bias"))
            if im.router:
                with t.label("layer {layer} / router"):
                    self._route(self._at(p.const_b, b, "router_bias"))
            with self.each_expert(EXPERTS, T), t.label("layer {layer} / mlp"):
                self._hidden()
                gate: R | None = None
                if im.router:
                    t.mul(U, EXPERTS[0], p.w)
                    gate = U + p.gates
                bias = CONST_C + (p.const_c + c["down_bias"]) if "down_bias" in c else None
                self._residual(
                    im.down, bias, gate, **({"sig_c": self.sem("const_c_free")} if p.c_bytes else {})
                )
                if p.c_bytes and p.copies > 1:
                    self.toggle(CONST_C, p.c_bytes, T)
            with self.last_layer():
                if im.bare:
                    with t.label("rows"):
                        t.wait(self.sem("y_free"))
                        for u in range(p.users):
                            last = {"sig_b": self.sem("y")} if u == p.users - 1 else {}
                            row = p.y + u * s.hidden * 4
                            t.vector(n0=s.hidden, a=p.x, out=row, pack=1, lane0=u, **last)
                else:
                    with t.label("head"):
                        self._head()

    @staticmethod
    def _at(base: int, offsets: dict[str, int], name: str) -> int | None:
        return base + offsets[name] if name in offsets else None

    # ---- steps

    def _token_rows(self) -> None:
        """Rows of the tokens into the lanes of x, RoPE rows into those of the table."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        t.wait(self.sem("in"), p.users)
        for u in range(p.users):
            row = p.row + u * p.row_bytes
            more: dict[str, Any] = {}
            if not im.bare and im.params.positions is not None:
                more = dict(d=p.positions + u * p.row_bytes, d_type="broadcast_bf16", x2="d")
            if im.bare and u == p.users - 1:
                more["sig_a"] = self.sem("in_free")
            kind = BROADCAST if im.bare else "broadcast_bf16"
            t.vector(n0=s.hidden, a=row, a_type=kind, **more, out=p.x, lane0=u, rows=1, overlap=u > 0)
            if s.rope != "none":
                t.vector(
                    n0=s.head_dim,
                    a=p.rope_row + u * s.head_dim * 4,
                    a_type=BROADCAST,
                    out=p.table,
                    lane0=u,
                    rows=1,
                    overlap=1,
                )

    def _quantised(self, to: Stationary) -> dict[str, Any]:
        """Operands that quantise rows of users into the stationary operand of a linear layer."""
        return dict(o1=to.pitch, o2=to.scale_pitch, rows=self.plan.users)

    def _norm(self, gamma: int, beta: int | None) -> None:
        p = self.plan
        norm(
            self.t,
            self.block,
            self.image.config,
            p.x,
            gamma,
            beta,
            p.tmp,
            out_mode="int8",
            out=p.xn.at,
            qs=p.xn.scales,
            **self._quantised(p.xn),
            sig_b=self.sem("act"),
        )

    def _each_panel(self, lin: Linear, body: Callable[[Panel, R], None]) -> None:
        """body(panel, address of its sums) for all panels; it signals out_free."""
        t, p = self.t, self.plan
        for count, panel in lin.runs:
            with self.repeat(count):
                t.wait(self.sem("out"))
                body(panel, RING + p.out)
                self.advance(RING, p.out_bytes, p.buffers * p.out_bytes, T)

    def _head(self) -> None:
        """Final norm; argmax of each panel of logits, then of the panels."""
        t, im, p = self.t, self.image, self.plan
        assert im.head
        f = im.final.offsets
        self._norm(p.final + f["norm"], self._at(p.final, f, "norm_bias"))
        t.li(X, p.panel_maxima)

        def body(panel: Panel, src: R) -> None:
            if self.logits:
                t.wait(self.sem("logits_free"))
                for u in range(p.users):
                    last = {"sig_b": self.sem("logits")} if u == p.users - 1 else {}
                    t.vector(n0=panel.n, a=src, out=p.logits + u * p.logit_bytes, pack=1, lane0=u, **last)
            t.vector(n0=panel.n, a=src, red_op="argmax", red=X, sig_a=self.sem("out_free"), overlap=1)
            t.add(X, X, 2 * p.w)

        self._each_panel(im.head, body)
        t.vector(
            n0=len(im.head.panels),
            a=p.panel_maxima,
            a0=2 * p.w,
            red_op="argmax",
            red=p.best,
            sig_b=self.sem("chosen"),
            sig_c=self.sem("chosen_store"),
        )

    # ---- queries, keys, values

    def _heads(self, lin: Linear, kind: str) -> None:
        """Bias, RoPE and quantisation: of queries into the stationary operand, of keys and values to where
        they are stored from."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        w = p.w
        bias = im.const_a.offsets.get(f"b{kind}")
        signal = self.sem("act" if kind == "q" else "kv_new")
        for r in (X, Y, Z):
            t.li(r, 0)

        def biased(panel: Panel, src: R) -> tuple[Any, int]:
            """Address of the panel's biased sums; the semaphore to signal when they have been read."""
            if bias is None:
                return src, self.sem("out_free")
            scratch = p.tmp + panel.n * w
            t.vector(
                n0=panel.n,
                a=src,
                d=Z + (p.const_a + bias),
                d_type=BROADCAST,
                x2="d",
                out=scratch,
                sig_a=self.sem("out_free"),
            )
            t.add(Z, Z, 4 * panel.n)
            return scratch, 0

        def operands(src: Any, heads: int) -> dict[str, Any]:
            ops = (
                dict(a=src, n0=heads * s.head_dim)
                if kind == "v"
                else rope(t, s, im.config, src, p.tmp, p.table, heads)
            )
            if kind == "q":
                ops |= dict(x3="s2", c2=float(s.qscale))
            return ops | dict(out_mode="int8", block=s.slice_dim, rows=p.users)

        def wide(panel: Panel, src: R) -> None:
            """head_dim >= 32: all heads of the panel at once."""
            at, free = biased(panel, src)
            heads = panel.n // s.head_dim
            blocks = heads * s.slices
            ops = operands(at, heads)
            if kind == "q":
                to = p.q
                ops |= dict(out=X + to.at, o1=to.pitch, qs=Y + to.scales, o2=to.scale_pitch)
                step = to.pitch
            else:
                to_at, scales = (p.kn, p.kns) if kind == "k" else (p.vn, p.vns)
                ops |= dict(out=X + to_at, o0=s.kv_words * 32, o1=32, qs=Y + scales, o2=p.pitch)
                step = 32
            t.vector(**ops, sig_a=free, sig_b=signal)
            t.add(X, X, blocks * step)
            t.add(Y, Y, blocks * p.pitch)

        if s.head_dim >= 32:
            self._each_panel(lin, wide)
            return
        first = 0
        for panel in lin.panels:
            t.wait(self.sem("out"))
            at, free = biased(panel, RING + p.out)
            ops = operands(at, panel.n // s.head_dim)
            heads = range(first, first + panel.n // s.head_dim)
            owners = [h // s.group if kind == "q" else h for h in heads]
            for kv in sorted(set(owners)):
                done = {"sig_a": free, "sig_b": signal} if kv == owners[-1] else {}
                self._narrow(kind, ops, first, owners.index(kv), owners.count(kv), kv, done)
            first = heads.stop
            self.advance(RING, p.out_bytes, p.buffers * p.out_bytes, T)

    def _narrow(
        self, kind: str, ops: dict[str, Any], first: int, skip: int, count: int, kv: int, done: dict[str, int]
    ) -> None:
        """head_dim < 32: quantise `count` heads of KV head kv, `skip` heads into a panel whose first head is
        `first`: their blocks are at the same place in a word of 32 bytes, with zeros around them."""
        im, p, s = self.image, self.plan, self.block
        offset, dim = skip * s.head_dim * p.w, "n2" if "n2" in ops else "n0"
        ops = ops | {"a": ops["a"] + offset, dim: count if dim == "n2" else count * s.head_dim}
        if "d" in ops:
            ops["d"] = ops["d"] + offset
        if kind == "q":
            head = first + skip
            place: dict[str, Any] = dict(
                out=p.q.at + head * p.q.pitch + im.byte_of(kv),
                o1=p.q.pitch,
                qs=p.q.scales + head * p.q.scale_pitch,
                o2=p.q.scale_pitch,
                zfill=1,
            )
        else:
            at, scales = (p.kn, p.kns) if kind == "k" else (p.vn, p.vns)
            place = dict(
                out=at + im.word_of(kv, 0) * 32 + im.byte_of(kv),
                o0=s.kv_words * 32,
                qs=scales + kv * p.pitch,
                zfill=im.byte_of(kv) == 0,
            )
        self.t.vector(**ops, **place, **done)

    # ---- residuals and MLP

    def _residual(self, lin: Linear, bias: int | R | None, gate: R | None = None, **signals: int) -> None:
        """x += gate * (sums + bias)."""
        t, p = self.t, self.plan
        t.li(X, 0)
        ops: dict[str, Any] = {}
        if isinstance(bias, R):
            t.mov(Z, R(bias.reg))
            ops = dict(b=Z + bias.imm, b_type=BROADCAST, x2="b")
        elif bias is not None:
            t.li(Z, 0)
            ops = dict(b=Z + bias, b_type=BROADCAST, x2="b")
        if gate is not None:
            ops |= dict(s2=gate, x3="s2")

        def body(panel: Panel, src: R) -> None:
            t.vector(
                n0=panel.n,
                a=src,
                **ops,
                d=X + p.x,
                x4="d",
                out=X + p.x,
                sig_a=self.sem("out_free"),
                **signals,
            )
            t.add(X, X, panel.n * p.w)
            if bias is not None:
                t.add(Z, Z, panel.n * 4)

        self._each_panel(lin, body)

    def _route(self, bias: int | None) -> None:
        """Gates of all experts; with one user the chosen experts' numbers into registers."""
        t, im, p = self.t, self.image, self.plan
        assert im.router and len(im.router.panels) == 1
        one = p.users == 1
        done = {"sig_b": self.sem("routed"), "sig_c": self.sem("routed_vector")} if one else {}
        t.wait(self.sem("out"))
        free = self.sem("out_free")
        route(t, self.block, im.config, RING + p.out, bias, p.tmp, p.gates, free, **done)
        self.advance(RING, p.out_bytes, p.buffers * p.out_bytes, T)
        if one:
            t.wait(self.sem("routed_vector"))
            self.chosen_experts(EXPERTS, p.top_index, T)

    def _hidden(self) -> None:
        """The activation of every panel of gate and up (or up) sums."""
        t, im, p, s = self.t, self.image, self.plan, self.block
        c = im.const_c.offsets
        t.li(X, 0)
        t.li(Y, 0)
        t.mov(Z, CONST_C)

        def bias(name: str) -> R | None:
            return Z + (p.const_c + c[name]) if name in c else None

        def body(panel: Panel, src: R) -> None:
            n = panel.n // 2 if s.gated else panel.n
            activation(
                t,
                s,
                im.config,
                src,
                n,
                p.tmp,
                (bias("gate_bias"), bias("up_bias")),
                out=X + p.h.at,
                qs=Y + p.h.scales,
                **self._quantised(p.h),
                sig_a=self.sem("out_free"),
                sig_b=self.sem("act"),
            )
            t.add(X, X, -(-n // 32) * p.h.pitch)
            t.add(Y, Y, -(-n // 32) * p.h.scale_pitch)
            t.add(Z, Z, 4 * n)

        self._each_panel(im.gate_up, body)
