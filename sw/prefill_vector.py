"""The vector thread of a model's prefill: norms, RoPE, softmax, activations, routing and residuals.

Sums of the matmul unit are taken group by group from a ring of output buffers, in the order in which that
thread makes them. `overlap` is set wherever an instruction reads nothing that the one before writes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hw.isa import R

from . import ops
from .layout import Panel
from .model_image import Linear
from .ops import BROADCAST
from .prefill_attention import VectorAttention
from .prefill_loops import CONST_C, EXPERT, GROUPS, LAYER, NEXT, RING, Walk
from .prefill_matmul import count_groups, toggle
from .prefill_plan import ACTIVATION


class VectorThread(VectorAttention):
    """Emits the thread's code: `begin`, then `layer` in a loop, `keys_values` where the model ends so."""

    @contextmanager
    def _next(self) -> Iterator[None]:
        """What only happens when another layer follows (register NEXT)."""
        if self.tail and not self.image.router:
            yield
        else:
            with self.t.loop(NEXT):
                yield

    # ---- pieces of a layer

    def begin(self) -> None:
        """The first norms, as x arrives."""
        t, im, p, sem = self.t, self.image, self.plan, self.sem
        count_groups(t, GROUPS, im.config.columns)
        if p.windowed:
            t.wait(sem["windows vector"])
        if p.embed_norm:
            t.wait(sem["final"])
        if im.const_a.bytes:
            t.wait(sem["const a"])
        walks = self._norm_walks()
        for walk in walks:
            t.mov(walk.reg, walk.init)

        def body() -> None:
            t.wait(sem["x"])
            if p.embed_norm:
                self._norm("embed_norm", im.final.offsets, p.const_final, kind="layer", out=R(1) + p.x)
            self._first_norm()

        with t.label("first norm"):
            self._groups(walks, body, out=False)
        if im.block.rope != "none":
            t.wait(sem["rope"])

    def _norm_walks(self) -> list[Walk]:
        """Registers 1 (x), 2, 3 (activations, scales)."""
        p = self.plan
        return [
            Walk(R(1), 0, self.image.block.hidden * self.w, 0),
            Walk(R(2), 0, p.group_bytes),
            Walk(R(3), 0, p.group_scales),
        ]

    def _norm(self, name: str, offsets: dict[str, int], base: "int | R", **out: Any) -> None:
        im, beta = self.image, f"{name}_bias"
        ops.norm(
            self.t,
            im.block,
            im.config,
            R(1) + self.plan.x,
            base + offsets[name],
            base + offsets[beta] if beta in offsets else None,
            self.plan.tmp,
            **out,
        )

    @property
    def _activations(self) -> dict[str, Any]:
        p = self.plan
        return dict(out_mode="int8", out=R(2) + p.xn, qs=R(3) + p.xns, sig_b=self.sem["act"])

    def _first_norm(self) -> None:
        """x of a group -> the layer's input activations."""
        im, p = self.image, self.plan
        if im.block.post_norm:
            self.t.vector(n0=im.block.hidden, a=R(1) + p.x, **self._activations)
        else:
            self._norm("norm1", im.const_a.offsets, p.const_a, **self._activations)

    def layer(self) -> None:
        t, im, p, sem = self.t, self.image, self.plan, self.sem
        self.keys_values()
        with t.label("q"):
            self._heads(im.wq, "q")
        with t.label("softmax"):
            self._attention()
        if im.const_b.bytes:
            t.wait(sem["const b"])
        with t.label("residual"):
            self._residual(im.wo, im.const_b.offsets.get("bo"), p.const_b, self._attention_end)
        if im.router:
            with t.label("router"):
                self._route()
        with t.label("mlp"):
            t.wait(sem["kv stored"])
            if not im.router:
                self._mlp()
            else:
                t.li(EXPERT, 0)
                with t.loop(im.block.experts):
                    self._mlp()
                    t.add(EXPERT, EXPERT, self.w)
        t.add(LAYER, LAYER, 4)

    # ---- residuals and MLP

    def _residual(
        self,
        lin: Linear,
        bias: int | None,
        base: int,
        end: Callable[[], None],
        before_end: Callable[[], None] = lambda: None,
        mlp: bool = False,
    ) -> None:
        """x += gate * (sums + bias); `end` follows in each group of the last panel, `before_end` precedes it.

        bias: its offset among the constants at `base`.
        """
        t, p, sem, s, w = self.t, self.plan, self.sem, self.image.block, self.w
        const_c: int | R = CONST_C if mlp and p.const_c_buffers > 1 else 0
        gated = mlp and bool(s.experts)
        first = lin.panels[0].n
        walks = self._norm_walks()
        walks[0].panel = first * w
        if gated:
            walks.append(Walk(R(4), EXPERT, s.experts * w))
        if bias is not None:
            walks.append(Walk(R(5), const_c, 0, 4 * first))

        def body(panel: Panel, before: int, last: bool) -> None:
            op: dict[str, Any] = {}
            if bias is not None:
                op |= dict(b=R(5) + (base + bias + 4 * before), b_type=BROADCAST, x2="b")
            if gated:
                op |= dict(s2=R(4) + p.gates, x3="s2")
            sigs = {}
            if last and mlp and not s.post_norm:
                sigs = dict(sig_b=sem["y"] if self.y else 0, sig_c=sem["c_free"] if p.const_c_bytes else 0)
            x = R(1) + (p.x + before * w)
            # x of the panels before: the registers of the norm below point at the whole row.
            t.vector(
                n0=panel.n,
                a=RING + p.out,
                **op,
                d=x,
                x4="d",
                out=x,
                overlap=1,
                sig_a=sem["out_free"],
                **sigs,
            )
            if last:
                end()

        self._panels(lin, walks, body, before_last=before_end)

    def _attention_end(self) -> None:
        """The norm behind attention, and the input of the MLP."""
        im, p = self.image, self.plan
        free = self.sem["b_free"] if im.const_b.bytes and not im.router else 0
        if im.block.post_norm:
            self._norm("norm1", im.const_b.offsets, p.const_b, out=R(1) + p.x)
            self.t.vector(n0=im.block.hidden, a=R(1) + p.x, **self._activations, sig_c=free)
        else:
            self._norm("norm2", im.const_b.offsets, p.const_b, **self._activations, sig_c=free)

    def _layer_end(self) -> None:
        """The norm that ends a post-norm layer, and the input of the next layer."""
        t, im, p, sem, s = self.t, self.image, self.plan, self.sem, self.image.block
        if s.post_norm:
            base: int | R = (CONST_C if p.const_c_buffers > 1 else R(0)) + p.const_c

            def norm2() -> None:
                y = dict(sig_b=sem["y"]) if self.y else {}
                self._norm("norm2", im.const_c.offsets, base, out=R(1) + p.x, **y)

            if s.experts:
                with t.loop(self._last_expert):
                    norm2()
            else:
                norm2()
            t.vector(n0=0, a=p.x, sig_b=sem["c_free"])  # complete when the norm, if any, is
        with self._next():
            self._first_norm()

    @property
    def _last_expert(self) -> R:
        """1 for the last expert, else not positive."""
        return EXPERT + (1 - (self.image.block.experts - 1) * self.w)

    def _route(self) -> None:
        t, im, p, s = self.t, self.image, self.plan, self.image.block
        bias = im.const_b.offsets.get("router_bias")
        t.li(R(1), 0)

        def body() -> None:
            ops.route(
                t,
                s,
                im.config,
                RING + p.out,
                None if bias is None else p.const_b + bias,
                p.tmp,
                R(1) + p.gates,
                self.sem["out_free"],
                sig_b=self.sem["b_free"] if im.const_b.bytes else 0,
            )

        self._groups([Walk(R(1), 0, s.experts * self.w)], body)

    def _mlp(self) -> None:
        """One MLP or expert."""
        t, im, p, sem = self.t, self.image, self.plan, self.sem
        if p.const_c_bytes:
            t.wait(sem["const c"])
        self._hidden()
        self._residual(
            im.down,
            im.const_c.offsets.get("down_bias"),
            p.const_c,
            self._layer_end,
            self._before_layer_end,
            mlp=True,
        )
        if p.const_c_buffers > 1 and p.const_c_bytes:
            toggle(t, CONST_C, p.const_c_bytes)

    def _before_layer_end(self) -> None:
        """NEXT = 1 in the last expert of a layer that is not the last (else not positive), and the constants
        that the next layer's first norm needs."""
        t, im, s = self.t, self.image, self.image.block
        if not self.tail:
            t.sub(NEXT, R(0), LAYER + -4 * (im.spec.layers - 1))  # 0 in the last layer, else at least 4
            t.min_(NEXT, NEXT, self._last_expert if s.experts else 1)
            t.min_(NEXT, NEXT, 1)
        elif s.experts:
            t.mov(NEXT, self._last_expert)
        if im.const_a.bytes:
            with self._next():
                t.wait(self.sem["const a"])

    def _hidden(self) -> None:
        """Gate and up sums -> quantised hidden activations."""
        t, im, p, sem, s, w = self.t, self.image, self.plan, self.sem, self.image.block, self.w
        c = im.config.columns
        offsets = im.const_c.offsets
        width = im.splits[0][1] - im.splits[0][0]
        walks = [
            Walk(R(1), 0, p.kbf * c * 32, width * c),
            Walk(R(2), 0, p.kbf * c, width // 32 * c),
        ]
        if "up_bias" in offsets or "gate_bias" in offsets:
            walks.append(Walk(R(3), CONST_C if p.const_c_buffers > 1 else 0, 0, 4 * width))

        def bias(name: str, feature: int) -> R | None:
            return R(3) + (p.const_c + offsets[name] + 4 * feature) if name in offsets else None

        def body(panel: Panel, before: int, last: bool) -> None:
            n = panel.n // 2 if s.gated else panel.n
            first = before // 2 if s.gated else before
            # A gated panel has gate and up sums apart: its features are taken at once.
            step = n if s.gated else ACTIVATION
            for at in range(0, n, step):
                end = at + step >= n
                feature = first + at
                ops.activation(
                    t,
                    s,
                    im.config,
                    RING + (p.out + at * w),
                    min(step, n - at),
                    p.tmp,
                    (bias("gate_bias", feature), bias("up_bias", feature)),
                    overlap=1,
                    out=R(1) + (p.h + feature * c),
                    qs=R(2) + (p.hs + feature // 32 * c),
                    sig_a=sem["out_free"] if end else 0,
                    sig_b=sem["act"] if end and last else 0,
                )

        self._panels(im.gate_up, walks, body)
