"""The arithmetic of the vector unit: multiply, add, clamp, function, multiply, add on every lane, and the
reductions."""

from collections.abc import Iterable

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .fp import FpAdd, FpMul, above, below
from .glue import mux, onehot_mux
from .memory import DualPortRam
from .sfu import Sfu

__all__ = [
    "ARGMAX",
    "MAX",
    "NEG_ZERO",
    "ONE",
    "SUM_T3",
    "SUM_T5",
    "Delay",
    "Lanes",
    "Reducer",
    "flush_blocks",
    "flush_end",
    "is_half",
    "shift",
]

ONE, NEG_ZERO = 0x3F800000, 0x80000000
"""Neutral factor and addend: x * 1 and x + -0 are x for every canonical x, and make any other x canonical."""

SUM_T5, SUM_T3, MAX, ARGMAX = range(1, 5)
"""Values of red_op."""


class Delay(wiring.Component):
    """o = i of `cycles` (>= 4) cycles ago, in a circular buffer in block RAM with two registers behind it,
    for its late output and for the way from there: wide operands wait here for the stage that needs them."""

    def __init__(self, width: int, cycles: int):
        if cycles < 4:
            raise ValueError(f"cycles = {cycles}: allowed is 4 or more")
        self.width, self.cycles = width, cycles
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        depth = 1 << ceil_log2(self.cycles)
        m.submodules.ram = ram = DualPortRam(width=self.width, depth=depth, block=True)
        now = Signal(range(depth))
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            self.o.eq(shift(m, ram.rdata, 2, "held")),
            ram.waddr.eq(now),
            ram.wdata.eq(self.i),
            ram.wstrb.eq(1),
            ram.raddr.eq(now - (self.cycles - 3)),
        ]
        return m


def shift(m: Module, value: Value, cycles: int, name: str, reset_less: bool = True) -> Value:
    """A value a few cycles later, in registers; one of no bits is as it was."""
    for k in range(cycles if len(value) else 0):
        stage = Signal(value.shape(), name=f"{name}_{k + 1}", reset_less=reset_less)
        m.d.sync += stage.eq(value)
        value = stage
    return value


def is_half(half: Value, h: int) -> Value:
    """Whether these are the rows of half `h`; without halves, `half` has no bits."""
    return half == h if len(half) else Const(1)


class Lanes(wiring.Component):
    """Lanes of t5 = f(clamp(+-(a * factor1) + addend1)) * factor2 + addend2; t3 is the value after the
    function.

    Equals `golden.units._elements` where the factors and addends are the operands chosen by the instruction,
    or neutral. An element takes `fold` cycles in a row: in the first, `half` is 0 and the lanes hold its
    lower rows. Members, lane r in bits [32r, 32r + 32): `a`, `factor1`, `addend1`, `factor2`, `addend2`;
    `hit` (bit per lane): t5 is addend2 alone; `neg1`; `square`: factor2 is t3; `func`; `lo`, `hi` clamp to
    `low` and `high` (of all rows), which `load` of an element takes over for itself and all later ones:
    they must hold for `clamp_at` cycles more. Outputs `t3`, `t5` both `latency` cycles after the inputs.
    Free-running; comparisons are in total order, infinities and NaN as in numerics.md.
    """

    def __init__(self, lanes: int, fold: int = 1):
        self.lanes, self.fold = lanes, fold
        self._mul, self._add, self._sfu = FpMul.STAGES, FpAdd.STAGES, Sfu.LATENCY
        self.clamp_at = self._mul + self._add
        self.func_at = self.clamp_at + 2
        self.mul2_at = self.func_at + self._sfu
        self.add2_at = self.mul2_at + self._mul
        self.latency = self.add2_at + self._add
        word = 32 * lanes
        super().__init__(
            {
                **{name: In(word) for name in ("a", "factor1", "addend1", "factor2", "addend2")},
                **{name: In(fold * word) for name in ("low", "high")},
                **({"half": In(1)} if fold > 1 else {}),
                "hit": In(lanes),
                "neg1": In(1),
                "square": In(1),
                "func": In(2),
                "lo": In(1),
                "hi": In(1),
                "load": In(1),
                "t3": Out(word),
                "t5": Out(word),
            }
        )

    def elaborate(self, platform):
        m = Module()
        word = 32 * self.lanes
        m.submodules.factor2 = factor2 = Delay(word, self.mul2_at)
        m.submodules.addend2 = addend2 = Delay(word + self.lanes, self.add2_at)
        m.submodules.t3_delay = t3_delay = Delay(word, self.latency - self.mul2_at)
        m.d.comb += [
            factor2.i.eq(self.factor2),
            addend2.i.eq(Cat(self.addend2, self.hit)),
            self.t3.eq(t3_delay.o),
        ]
        addend1 = shift(m, self.addend1, self._mul, "addend1")
        neg1 = shift(m, self.neg1, self._mul, "neg1")
        load = shift(m, self.load, self.clamp_at - 1, "load")
        load_high = shift(m, load, 1, "load_high")
        half = self.half if self.fold > 1 else Const(0, 0)
        half_load = shift(m, half, self.clamp_at - 1, "half_load")  # beside `load`, then `load_high`
        half_low = shift(m, half_load, 1, "half_low")
        half_high = shift(m, half_low, 1, "half_high")
        lo = shift(m, self.lo, self.clamp_at, "lo")
        hi = shift(m, self.hi, self.clamp_at + 1, "hi")
        func = shift(m, self.func, self.func_at, "func")
        square = shift(m, self.square, self.mul2_at, "square")
        m.submodules.sfu = sfu = Sfu(self.lanes)
        m.d.comb += [sfu.func.eq(func), t3_delay.i.eq(sfu.o)]
        for r in range(self.lanes):
            lane = slice(32 * r, 32 * r + 32)
            m.submodules[f"mul1_{r}"] = mul1 = FpMul()
            m.submodules[f"add1_{r}"] = add1 = FpAdd()
            m.submodules[f"mul2_{r}"] = mul2 = FpMul()
            m.submodules[f"add2_{r}"] = add2 = FpAdd()
            # As they are: the function makes whatever they let through canonical, with the same result.
            lows, highs = (
                [Signal(32, name=f"{name}_{h * self.lanes + r}", reset_less=True) for h in range(self.fold)]
                for name in ("low", "high")
            )
            raised, clamped = Signal(32, name=f"raised_{r}"), Signal(32, name=f"clamped_{r}")
            for h in range(self.fold):
                with m.If(load & is_half(half_load, h)):
                    m.d.sync += lows[h].eq(self.low[h * word :][lane])
                with m.If(load_high & is_half(half_low, h)):
                    m.d.sync += highs[h].eq(self.high[h * word :][lane])
            low, high = mux(half_low, lows), mux(half_high, highs)
            m.d.sync += [
                raised.eq(Mux(lo & above(low, add1.o), low, add1.o)),
                clamped.eq(Mux(hi & above(raised, high), high, raised)),
            ]
            m.d.comb += [
                mul1.a.eq(self.a[lane]),
                mul1.b.eq(self.factor1[lane]),
                # The adder makes a negated NaN canonical again.
                add1.a.eq(Cat(mul1.o[:31], mul1.o[31] ^ neg1)),
                add1.b.eq(addend1[lane]),
                sfu.a[lane].eq(clamped),
                mul2.a.eq(sfu.o[lane]),
                mul2.b.eq(Mux(square, sfu.o[lane], factor2.o[lane])),
                add2.a.eq(Mux(addend2.o[word + r], Const(NEG_ZERO, 32), mul2.o)),
                add2.b.eq(addend2.o[lane]),
                self.t5[lane].eq(add2.o),
            ]
        return m


# Times in a flush of the partial sums, in cycles from the read of p0; an element that is to be added must not
# arrive then.
_FLUSH_READS = range(8)
_FLUSH_ADDS = (2, 4, 6, 8, 10, 14, 20)
_FLUSH_HOLDS_READ, _FLUSH_HOLDS_SUM = (1, 3, 5, 7), (8, 12, 16)
_FLUSH_DONE = 26
_FLUSH_PERIOD = 32
"""From the flush of the lower half of the rows to that of the upper one."""
FLUSH_START = 8
"""The flush counter starts at (index of the last element mod 8) + 1 in the cycle after it; at FLUSH_START p0
is read."""


def _at(count: Value, fold: int, times: Iterable[int]) -> Value:
    """Whether the flush counter is at one of these times in the flush of some half."""
    return Cat(count == FLUSH_START + _FLUSH_PERIOD * h + t for h in range(fold) for t in times).any()


def flush_end(fold: int) -> int:
    """Last value of the flush counter, where `fold` halves are flushed one after the other."""
    return FLUSH_START + _FLUSH_PERIOD * (fold - 1) + _FLUSH_DONE


def flush_blocks(count: Value, fold: int = 1) -> Value:
    """Whether a flush whose counter is `count` leaves no slot for an element of another sum that starts in
    this cycle."""
    busy = set(_FLUSH_READS) | {t - 1 for t in _FLUSH_ADDS}
    return _at(count, fold, sorted({t - k for t in busy for k in range(fold)}))


class Reducer(wiring.Component):
    """Sum (eight rotating partial sums), maximum or argmax of a stream of elements, per row.

    Equals `golden.arith.sum8 / max_reduce / argmax` bit for bit. An element takes `fold` cycles in a row,
    the `half` of its lower rows first. Members: `valid`, `half`, `t3`, `t5`, `op` (red_op), `use_t3` (op is
    SUM_T3), `first`, `last`, and `tag`: the results of the instructions with tag 0 and 1 are kept apart.
    While bit k of `ready` is set, tag k = `ask_tag` has a result: `value` is the sum (float32 of all rows),
    the maximum or its index (uint32) as bit 0, 1 or 2 of `ask` was set in the cycle before, 0 if none was.
    `clear` bit k takes it back. No third instruction may begin before the first is cleared. Sums: the result
    is ready at most 36 cycles (68 if folded) after the last element; until then no other sum may end, and an
    element of another sum may arrive only while `flush_blocks` is 0 for the flush counter that starts with
    the last element.
    """

    def __init__(self, lanes: int, fold: int = 1):
        self.lanes, self.fold = lanes, fold
        word = 32 * lanes
        super().__init__(
            {
                "valid": In(1),
                **({"half": In(1)} if fold > 1 else {}),
                "t3": In(word),
                "t5": In(word),
                "op": In(3),
                "use_t3": In(1),
                "first": In(1),
                "last": In(1),
                "tag": In(1),
                "ready": Out(2),
                "clear": In(2),
                "ask_tag": In(1),
                "ask": In(3),
                "value": Out(fold * word),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes, fold, word = self.lanes, self.fold, 32 * self.lanes
        add_latency = FpAdd.STAGES
        assert add_latency + 2 == 8, (
            "the schedule of the flush is made for a revisit distance of eight cycles"
        )

        # Input register.
        x, valid = Signal(word, reset_less=True), Signal()
        step, last, tag = Signal(), Signal(), Signal()  # `step`: valid and a sum
        compare, begins = Signal(fold), Signal(fold)  # per half: valid and no sum, the first of no sum
        half_in = self.half if fold > 1 else Const(0, 0)
        half = shift(m, half_in, 1, "half")
        whole = is_half(half, fold - 1)  # with this half
        sums = (self.op == SUM_T5) | (self.op == SUM_T3)
        compares = Cat(self.valid & (self.op != 0) & ~sums & is_half(half_in, h) for h in range(fold))
        m.d.sync += [
            valid.eq(self.valid & (self.op != 0)),
            step.eq(self.valid & sums),
            compare.eq(compares),
            begins.eq(compares & self.first.replicate(fold)),
            x.eq(Mux(self.use_t3, self.t3, self.t5)),
            last.eq(self.last),
            tag.eq(self.tag),
        ]

        # Element counters: index of this element, whether its partial sum is still empty.
        index, early = Signal(32), Signal(init=1)  # one of the first eight
        slot = index[:3]
        with m.If(valid & whole):
            m.d.sync += [index.eq(Mux(last, 0, index + 1)), early.eq(last | (early & (slot != 7)))]

        # Flush: an idle time of up to seven cycles for the last partial sum to return, then the tree.
        end = flush_end(fold)
        count, flush_tag, filled = Signal(range(end + 1)), Signal(), Signal(4)
        flush_half = shift(m, (count >= FLUSH_START + _FLUSH_PERIOD - 1)[: len(half)], 1, "flush_half")
        done, half_done, take_read, take_sum, first_level = (
            Signal(name=name) for name in ("done", "half_done", "take_read", "take_sum", "first_level")
        )
        m.d.sync += done.eq(count == end - 1)
        m.d.sync += [  # a cycle earlier, as these are registers
            signal.eq(_at(count, fold, [t - 1 for t in times]))
            for signal, times in (
                (half_done, (_FLUSH_DONE,)),
                (take_read, _FLUSH_HOLDS_READ),
                (take_sum, _FLUSH_HOLDS_SUM),
                (first_level, _FLUSH_ADDS[:4]),
            )
        ]
        reading = Cat(count[3:] == (FLUSH_START + _FLUSH_PERIOD * h) // 8 for h in range(fold)).any()
        with m.If(step & last & whole):
            m.d.sync += [count.eq(slot + 1), flush_tag.eq(tag), filled.eq(Mux(early, slot + 1, 8))]
        with m.Elif(done):
            m.d.sync += count.eq(0)
        with m.Elif(count != 0):
            m.d.sync += count.eq(count + 1)

        # Partial sums: read in the cycle of the element, added in the next, written back with the adder's
        # output.
        m.submodules.partial = partial = DualPortRam(width=word, depth=16 * fold)
        adding, early_2, x_2 = Signal(), Signal(), Signal(word, reset_less=True)
        missing = Signal()  # a partial sum that no element reached
        m.d.sync += [adding.eq(step), early_2.eq(early), missing.eq(count[:3] >= filled)]
        m.d.sync += x_2.eq(x)
        back = shift(m, Cat(step, slot, tag, half), 1 + add_latency, "back", reset_less=False)
        m.d.comb += [
            partial.raddr.eq(Mux(reading, Cat(count[:3], flush_tag, flush_half), Cat(slot, tag, half))),
            partial.ren.eq(reading | step),
            partial.wstrb.eq(back[0]),
            partial.waddr.eq(back[1:]),
        ]

        ready_set = (done.replicate(2) & Cat(~flush_tag, flush_tag)) | (
            (compare[-1] & last).replicate(2) & Cat(~tag, tag)
        )
        m.d.sync += self.ready.eq((self.ready & ~self.clear) | ready_set)

        # Results: the latest one of a kind stays where it arose until the next one of its kind takes its
        # place.
        latest_sum, new_sum = Signal(), Signal()  # its tag
        m.d.comb += new_sum.eq(Mux(done, flush_tag, latest_sum))
        m.d.sync += latest_sum.eq(new_sum)
        shows = []
        for h in range(fold):
            latest_best, new_best = (Signal(name=f"{name}_best_{h}") for name in ("latest", "new"))
            show = Signal(6, name=f"show_{h}")
            m.d.comb += new_best.eq(Mux(begins[h], tag, latest_best))
            old = [self.ask_tag ^ latest for latest in (new_sum, new_best, new_best)]
            m.d.sync += [
                latest_best.eq(new_best),
                show.eq(Cat(Cat(ask & ~o, ask & o) for ask, o in zip(self.ask, old, strict=True))),
            ]
            shows.append(show)

        for r in range(lanes):
            lane = slice(32 * r, 32 * r + 32)
            m.submodules[f"add_{r}"] = add = FpAdd()
            held = Signal(32, name=f"held_{r}", reset_less=True)
            read = Mux(missing, Const(0, 32), partial.rdata[lane])
            with m.If(take_read):
                m.d.sync += held.eq(read)
            with m.Elif(take_sum):
                m.d.sync += held.eq(add.o)
            m.d.comb += [
                add.a.eq(Mux(adding, Mux(early_2, Const(0, 32), partial.rdata[lane]), held)),
                add.b.eq(Mux(adding, x_2[lane], Mux(first_level, read, add.o))),
                partial.wdata[lane].eq(add.o),
            ]
            # The sums of all halves appear together: those that are known earlier wait.
            finished = [Signal(32, name=f"finished_{h}_{r}", reset_less=True) for h in range(fold - 1)]
            with m.If(half_done):
                m.d.sync += [signal.eq(value) for signal, value in zip(finished, [*finished[1:], add.o])]
            bests = []
            for h, total in enumerate([*finished, add.o]):
                row = h * lanes + r
                sums_kept, best, best_index = (
                    [Signal(32, name=f"{name}{k}_{row}", reset_less=True) for k in range(2)]
                    for name in ("sum", "best", "best_index")
                )
                with m.If(done):
                    m.d.sync += [sums_kept[0].eq(total), sums_kept[1].eq(sums_kept[0])]
                bests.append((best, best_index))
                m.d.comb += self.value[32 * row : 32 * row + 32].eq(
                    onehot_mux(shows[h], [*sums_kept, *best, *best_index])
                )
            # The first one, or above the best one: `above` with all but the comparison known early.
            newer, best_now = x[lane], mux(half, [best[0] for best, _ in bests])
            less = below(newer, best_now)
            for h, (best, best_index) in enumerate(bests):
                with m.If(begins[h]):
                    m.d.sync += [best[1].eq(best[0]), best_index[1].eq(best_index[0])]
                if_less = begins[h] | (compare[h] & best_now[31])
                if_not = begins[h] | (compare[h] & ~newer[31])
                with m.If(Mux(less, if_less, if_not)):
                    m.d.sync += [best[0].eq(x[lane]), best_index[0].eq(index)]
        return m
