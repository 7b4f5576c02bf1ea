"""The arithmetic of the vector unit: multiply, add, clamp, function, multiply, add on every lane, and the
reductions."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .fp import FpAdd, FpMul, ftz, total_order_key
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
]

ONE, NEG_ZERO = 0x3F800000, 0x80000000
"""Neutral factor and addend: x * 1 and x + -0 are x for every canonical x, and make any other x canonical."""

SUM_T5, SUM_T3, MAX, ARGMAX = range(1, 5)
"""Values of red_op."""


class Delay(wiring.Component):
    """o = i of `cycles` (>= 2) cycles ago, in a circular buffer: wide operands wait here for the stage that
    needs them."""

    def __init__(self, width: int, cycles: int):
        if cycles < 2:
            raise ValueError(f"cycles = {cycles}: allowed is 2 or more")
        self.width, self.cycles = width, cycles
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        depth = 1 << ceil_log2(self.cycles)
        m.submodules.ram = ram = DualPortRam(width=self.width, depth=depth)
        now = Signal(range(depth))
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            ram.waddr.eq(now),
            ram.wdata.eq(self.i),
            ram.wstrb.eq(1),
            ram.raddr.eq(now - (self.cycles - 1)),
            self.o.eq(ram.rdata),
        ]
        return m


def shift(m: Module, value: Value, cycles: int, name: str, reset_less: bool = True) -> Value:
    """A narrow value `cycles` cycles later."""
    for k in range(cycles):
        stage = Signal(value.shape(), name=f"{name}_{k + 1}", reset_less=reset_less)
        m.d.sync += stage.eq(value)
        value = stage
    return value


class Lanes(wiring.Component):
    """C lanes of t5 = f(clamp(+-(a * factor1) + addend1)) * factor2 + addend2; t3 is the value after the
    function.

    Equals `golden.units._elements` where the factors and addends are the operands chosen by the instruction,
    or neutral. Members, lane r in bits [32r, 32r + 32): `a`, `factor1`, `addend1`, `factor2`, `addend2`;
    `hit` (bit per lane): t5 is addend2 alone; `neg1`; `square`: factor2 is t3; `func`; `lo`, `hi` clamp to
    `low` and `high`, which `load` of an element takes over for itself and all later ones: they must hold for
    `clamp_at` cycles more. Outputs `t3`, `t5` both `latency` cycles after the inputs. Free-running;
    comparisons are in total order, infinities and NaN as in numerics.md.
    """

    def __init__(self, columns: int):
        self.columns = columns
        self._mul, self._add, self._sfu = FpMul.STAGES, FpAdd.STAGES, Sfu.LATENCY
        self.clamp_at = self._mul + self._add
        self.func_at = self.clamp_at + 2
        self.mul2_at = self.func_at + self._sfu
        self.add2_at = self.mul2_at + self._mul
        self.latency = self.add2_at + self._add
        word = 32 * columns
        super().__init__(
            {
                **{
                    name: In(word)
                    for name in ("a", "factor1", "addend1", "factor2", "addend2", "low", "high")
                },
                "hit": In(columns),
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
        word = 32 * self.columns
        m.submodules.addend1 = addend1 = Delay(word, self._mul)
        m.submodules.factor2 = factor2 = Delay(word, self.mul2_at)
        m.submodules.addend2 = addend2 = Delay(word + self.columns, self.add2_at)
        m.submodules.t3_delay = t3_delay = Delay(word, self.latency - self.mul2_at)
        m.d.comb += [
            addend1.i.eq(self.addend1),
            factor2.i.eq(self.factor2),
            addend2.i.eq(Cat(self.addend2, self.hit)),
            self.t3.eq(t3_delay.o),
        ]
        neg1 = shift(m, self.neg1, self._mul, "neg1")
        load = shift(m, self.load, self.clamp_at - 1, "load")
        load_high = shift(m, load, 1, "load_high")
        lo = shift(m, self.lo, self.clamp_at, "lo")
        hi = shift(m, self.hi, self.clamp_at + 1, "hi")
        func = shift(m, self.func, self.func_at, "func")
        square = shift(m, self.square, self.mul2_at, "square")
        for r in range(self.columns):
            lane = slice(32 * r, 32 * r + 32)
            m.submodules[f"mul1_{r}"] = mul1 = FpMul()
            m.submodules[f"add1_{r}"] = add1 = FpAdd()
            m.submodules[f"sfu_{r}"] = sfu = Sfu()
            m.submodules[f"mul2_{r}"] = mul2 = FpMul()
            m.submodules[f"add2_{r}"] = add2 = FpAdd()
            low, high = Signal(32, name=f"low_{r}"), Signal(32, name=f"high_{r}")
            low_key, high_key = total_order_key(low), total_order_key(high)
            raised, clamped = Signal(32, name=f"raised_{r}"), Signal(32, name=f"clamped_{r}")
            with m.If(load):
                m.d.sync += low.eq(ftz(self.low[lane]))
            with m.If(load_high):
                m.d.sync += high.eq(ftz(self.high[lane]))
            m.d.sync += [
                raised.eq(Mux(lo & (low_key > total_order_key(add1.o)), low, add1.o)),
                clamped.eq(Mux(hi & (high_key < total_order_key(raised)), high, raised)),
            ]
            m.d.comb += [
                mul1.a.eq(self.a[lane]),
                mul1.b.eq(self.factor1[lane]),
                # The adder makes a negated NaN canonical again.
                add1.a.eq(Cat(mul1.o[:31], mul1.o[31] ^ neg1)),
                add1.b.eq(addend1.o[lane]),
                sfu.a.eq(clamped),
                sfu.func.eq(func),
                mul2.a.eq(sfu.o),
                mul2.b.eq(Mux(square, sfu.o, factor2.o[lane])),
                t3_delay.i[lane].eq(sfu.o),
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
FLUSH_START, FLUSH_END = 8, 8 + _FLUSH_DONE
"""The flush counter starts at (index of the last element mod 8) + 1 in the cycle after it; at FLUSH_START p0
is read."""


def flush_blocks(count: Value) -> Value:
    """Whether a flush whose counter is `count` leaves no slot for an element of another sum in this cycle."""
    busy = set(_FLUSH_READS) | {t - 1 for t in _FLUSH_ADDS}
    return Cat(count == FLUSH_START + t for t in sorted(busy)).any()


class Reducer(wiring.Component):
    """Sum (eight rotating partial sums), maximum or argmax of a stream of lane words, per lane.

    Equals `golden.arith.sum8 / max_reduce / argmax` bit for bit. Members: `valid`, `t3`, `t5`, `op` (red_op),
    `first`, `last`, and `tag`: the results of the instructions with tag 0 and 1 are kept apart. `value` (2
    lane words: float32) and `index` (2 words of C uint32) hold the result of tag k while bit k of `ready` is
    set; `clear` bit k takes it back. One element per cycle. Sums: the result is ready at most 36 cycles after
    the last element; until then no other sum may end, and an element of another sum may arrive only while
    `flush_blocks` is 0 for the flush counter that starts with the last element.
    """

    def __init__(self, columns: int):
        self.columns = columns
        word = 32 * columns
        super().__init__(
            {
                "valid": In(1),
                "t3": In(word),
                "t5": In(word),
                "op": In(3),
                "first": In(1),
                "last": In(1),
                "tag": In(1),
                "ready": Out(2),
                "clear": In(2),
                "value": Out(2 * word),
                "index": Out(2 * word),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns, word = self.columns, 32 * self.columns
        add_latency = FpAdd.STAGES
        assert add_latency + 2 == 8, (
            "the schedule of the flush is made for a revisit distance of eight cycles"
        )

        # Input register.
        x, valid = Signal(word, reset_less=True), Signal()
        op, first, last, tag = Signal(3), Signal(), Signal(), Signal()
        m.d.sync += valid.eq(self.valid & (self.op != 0))
        with m.If(self.valid & (self.op != 0)):
            m.d.sync += [
                x.eq(Mux(self.op == SUM_T3, self.t3, self.t5)),
                op.eq(self.op),
                first.eq(self.first),
                last.eq(self.last),
                tag.eq(self.tag),
            ]
        sums = (op == SUM_T5) | (op == SUM_T3)
        step = valid & sums

        # Element counters: index of this element, whether its partial sum is still empty.
        next_index, next_early = Signal(32), Signal()
        index = Mux(first, 0, next_index)
        early = first | next_early  # one of the first eight
        slot = index[:3]
        with m.If(valid):
            m.d.sync += [next_index.eq(index + 1), next_early.eq(early & (slot != 7))]

        # Flush: an idle time of up to seven cycles for the last partial sum to return, then the tree.
        count, flush_tag, filled = Signal(range(FLUSH_END + 1)), Signal(), Signal(4)
        at = {
            t: Signal(name=f"at_{t}")
            for t in sorted({*_FLUSH_ADDS, *_FLUSH_HOLDS_READ, *_FLUSH_HOLDS_SUM, _FLUSH_DONE})
        }
        m.d.comb += [at[t].eq(count == FLUSH_START + t) for t in at]
        reading = (count >= FLUSH_START) & (count < FLUSH_START + 8)
        with m.If(step & last):
            m.d.sync += [count.eq(slot + 1), flush_tag.eq(tag), filled.eq(Mux(early, slot + 1, 8))]
        with m.Elif(at[_FLUSH_DONE]):
            m.d.sync += count.eq(0)
        with m.Elif(count != 0):
            m.d.sync += count.eq(count + 1)

        # Partial sums: read in the cycle of the element, added in the next, written back with the adder's
        # output.
        m.submodules.partial = partial = DualPortRam(width=word, depth=16)
        adding, early_2, x_2 = Signal(), Signal(), Signal(word, reset_less=True)
        missing = Signal()  # a partial sum that no element reached
        m.d.sync += [adding.eq(step), early_2.eq(early), missing.eq(count[:3] >= filled)]
        with m.If(step):
            m.d.sync += x_2.eq(x)
        back = shift(m, Cat(step, slot, tag), 1 + add_latency, "back", reset_less=False)
        m.d.comb += [
            partial.raddr.eq(Mux(reading, Cat(count[:3], flush_tag), Cat(slot, tag))),
            partial.wstrb.eq(back[0]),
            partial.waddr.eq(back[1:]),
        ]
        take_read, take_sum = (
            Cat(at[t] for t in times).any() for times in (_FLUSH_HOLDS_READ, _FLUSH_HOLDS_SUM)
        )
        first_level = Cat(at[t] for t in _FLUSH_ADDS[:4]).any()

        done = at[_FLUSH_DONE]
        compare = valid & ~sums
        ready_set = (done.replicate(2) & Cat(~flush_tag, flush_tag)) | (
            (compare & last).replicate(2) & Cat(~tag, tag)
        )
        m.d.sync += self.ready.eq((self.ready & ~self.clear) | ready_set)

        for r in range(columns):
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
            # Maximum: the state of an instruction is its result.
            best = [Signal(32, name=f"best{k}_{r}") for k in range(2)]
            best_index = [Signal(32, name=f"best_index{k}_{r}") for k in range(2)]
            current = Mux(tag, best[1], best[0])
            better = first | (total_order_key(x[lane]) > total_order_key(current))
            for k in range(2):
                with m.If(compare & better & (tag == k)):
                    m.d.sync += [best[k].eq(x[lane]), best_index[k].eq(index)]
                with m.Elif(done & (flush_tag == k)):
                    m.d.sync += best[k].eq(add.o)
            m.d.comb += [
                Cat(self.value[lane], self.value[word:][lane]).eq(Cat(best)),
                Cat(self.index[lane], self.index[word:][lane]).eq(Cat(best_index)),
            ]
        return m
