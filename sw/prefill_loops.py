"""Loops of the vector thread of a model's prefill: panels of a linear layer, groups of rows."""

from collections.abc import Callable
from dataclasses import dataclass

from hw.isa import R

from .assembler import Thread
from .layout import Panel
from .model_image import Linear, ModelImage
from .prefill_matmul import advance_ring
from .prefill_plan import Plan

EXPERT, CONST_C, NEXT, RING, GROUPS, LAYER, TMP = (R(i) for i in range(9, 16))
"""Offset of the expert's gate; of its constants' buffer; 1 where another layer follows; of the output buffer;
groups of rows; 4 * layer."""


@dataclass
class Walk:
    """A register that walks over groups, from `init` in every panel; it moves on from panel to panel."""

    reg: R
    init: int | R = 0
    group: int = 0
    panel: int = 0


class VectorLoops:
    """What the parts of the vector thread share: where they emit code, and the loops.

    tail: the program ends with the keys and values of the last layer, so that every whole layer has a
    successor. y: x behind the last layer is stored.
    """

    def __init__(self, t: Thread, image: ModelImage, plan: Plan, sem: dict[str, int], tail: bool, y: bool):
        self.t, self.image, self.plan, self.sem, self.tail, self.y = t, image, plan, sem, tail, y
        self.w = image.config.lane_bytes

    def _groups(self, walks: list[Walk], body: Callable[[], None], out: bool = True) -> None:
        """body for every group; `out`: it takes an output buffer (RING)."""
        t = self.t
        with t.loop(GROUPS):
            if out:
                t.wait(self.sem["out"])
            body()
            for walk in walks:
                if walk.group:
                    t.add(walk.reg, walk.reg, walk.group)
            if out:
                advance_ring(t, self.plan, RING, TMP)

    def _panels(
        self,
        lin: Linear,
        walks: list[Walk],
        body: Callable[[Panel, int, bool], None],
        loopable: bool = True,
        before_last: Callable[[], None] = lambda: None,
    ) -> None:
        """body(panel, first, last) for every panel and group; `before_last` comes before the last panel.

        first: features before the panel, where registers do not account for them (a loop over equal panels).
        """
        t, count = self.t, len(lin.panels) - 1
        bases = {walk.reg: R(6 + i) for i, walk in enumerate(w for w in walks if w.panel)}
        at = 0
        if loopable and count > 1:
            for walk in walks:
                if walk.panel:
                    t.mov(bases[walk.reg], walk.init)
            with t.loop(count):
                for walk in walks:
                    t.mov(walk.reg, bases.get(walk.reg, walk.init))
                self._groups(walks, lambda: body(lin.panels[0], 0, False))
                for walk in walks:
                    if walk.panel:
                        t.add(bases[walk.reg], bases[walk.reg], walk.panel)
            at = count * lin.panels[0].n
            rest = lin.panels[count:]
        else:
            rest = lin.panels
        for i, panel in enumerate(rest):
            last = i == len(rest) - 1
            if last:
                before_last()
            for walk in walks:
                t.mov(walk.reg, walk.init)
            self._groups(walks, lambda: body(panel, at, last))
            at += panel.n
