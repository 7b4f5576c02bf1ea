"""What the four threads of a decode program share: semaphores, the loop over steps and layers, rings."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from hw.isa import R

from .assembler import Program, Thread
from .decode_plan import DecodePlan
from .ops import first_in_sight

LAYER, STEP = R(1), R(2)
"""In every thread: number of the layer, of the step."""


class Emitter:
    """Emits one thread. One hardware loop runs over all layers of all steps (loops nest only four deep);
    what happens once per step is in `first_layer` and `last_layer`."""

    def __init__(self, plan: DecodePlan, program: Program, thread: Thread, logits: bool):
        self.plan, self.program, self.t, self.logits = plan, program, thread, logits
        self.image, self.block = plan.image, plan.image.block
        self.layers = plan.image.spec.layers
        self.top = 0
        """Word index in the thread of the instruction that begins a layer."""

    def sem(self, name: str) -> int:
        return self.program.semaphore(name)

    @contextmanager
    def each_layer(self, scratch: R) -> Iterator[None]:
        """All layers of ARG0 steps. Each begins with an instruction without effect, for traces to count."""
        t = self.t
        t.arg(scratch, 0)
        t.mul(scratch, scratch, self.layers)
        with t.loop(scratch):
            self.top = len(t.words)
            with t.label("layer {layer} / begin"):
                self.begin()
            yield
            t.add(LAYER, LAYER, 1)

    def begin(self) -> None:
        """Emit an instruction of the thread's unit that does nothing."""
        raise NotImplementedError

    @contextmanager
    def first_layer(self, scratch: R) -> Iterator[None]:
        """Body for layer 0 only."""
        self.t.sub(scratch, R(0), LAYER)
        with self.t.loop(scratch + 1):
            yield

    @contextmanager
    def last_layer(self) -> Iterator[None]:
        """Body for the last layer only, which must be the last thing in the loop; the next step follows."""
        with self.t.loop(LAYER + (2 - self.layers)):
            yield
            self.t.add(STEP, STEP, 1)
            self.t.li(LAYER, -1)

    def repeat(self, count: int) -> AbstractContextManager[None]:
        """A hardware loop, but for one round."""
        return self.t.loop(count) if count > 1 else nullcontext()

    def advance(self, ring: R, step: int, size: int, scratch: R) -> None:
        """ring = (ring + step) mod size."""
        t = self.t
        if size & (size - 1) == 0:
            t.add(ring, ring, step)
            t.and_(ring, ring, size - 1)
            return
        t.add(ring, ring, step - size)
        t.sra(scratch, ring, 31)
        t.and_(scratch, scratch, size)
        t.add(ring, ring, scratch)

    def toggle(self, which: R, step: int, scratch: R) -> None:
        """which = step - which: alternates between 0 and step."""
        self.t.sub(scratch, R(0), which)
        self.t.add(which, scratch, step)

    def position(self, position: R, user4: R) -> None:
        """Position of the user (register: 4 times its number) in this step."""
        self.t.lds(position, R(user4.reg, self.plan.state))
        self.t.add(position, position, STEP)

    def sight(self, position: R, window: R, start: R, n: R) -> None:
        """n keys from `start`, a multiple of 32, to the new token; `window` of the layer where it has one."""
        t = self.t
        if self.plan.windowed:
            t.shl(start, LAYER, 2)
            t.lds(window, start + self.plan.windows)
            first_in_sight(t, position, window, start)
        else:
            t.li(start, 0)
        t.sub(n, position, start + -1)

    def chunk_count(self, count: R, n: R) -> None:
        """count = chunks of n keys."""
        keys = self.plan.chunk_keys
        self.t.add(count, n, keys - 1)
        self.t.shr(count, count, keys.bit_length() - 1)

    def chosen_experts(self, experts: tuple[R, ...], index: int, scratch: R) -> None:
        """Numbers of the chosen experts, `index` the SRAM address of the first, ascending (a bubble sort)."""
        t, step = self.t, 2 * self.plan.w
        k = self.block.top_k
        for i in range(k):
            t.lds(experts[i], index + i * step)
        for end in range(k - 1, 0, -1):
            for i in range(end):
                t.max_(scratch, experts[i], experts[i + 1])
                t.min_(experts[i], experts[i], experts[i + 1])
                t.mov(experts[i + 1], scratch)

    @property
    def picks(self) -> int:
        """Experts that a step computes: the chosen ones of one user, all for several users."""
        s = self.block
        return (s.top_k if self.plan.users == 1 else s.experts) if s.experts else 1

    @contextmanager
    def each_expert(self, experts: tuple[R, ...], scratch: R) -> Iterator[None]:
        """experts[0] is the expert's number in the body."""
        t, k = self.t, self.block.top_k
        if not self.block.experts:
            yield
            return
        if self.plan.users > 1:
            t.li(experts[0], 0)
        with self.repeat(self.picks):
            yield
            if self.plan.users > 1:
                t.add(experts[0], experts[0], 1)
            else:
                for i in range(k - 1):
                    t.mov(experts[i], experts[i + 1])
