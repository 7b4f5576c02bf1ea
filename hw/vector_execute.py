"""The middle of the vector unit: joins the sources, starts one element per cycle, collects the results."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from . import fetch
from .config import TileConfig
from .glue import Fifo, lowest, mux
from .ports import SEM_BITS
from .quantiser import BlockMaximum, element_layout
from .vector_front import BF16, CONSTANTS, E8M0, F32, LANE_BF16, LANE_F32, SCALARS, issue_layout
from .vector_lanes import (
    NEG_ZERO,
    ONE,
    SUM_T3,
    SUM_T5,
    Lanes,
    Reducer,
    flush_blocks,
    flush_end,
    is_half,
    shift,
)
from .vector_queue import CommandQueue
from .vector_writer import pick

__all__ = ["OUT_DEPTH", "VectorExecute", "unpack"]

OUT_DEPTH = 128
"""Elements between the issue of an element and its write: the pipeline, and a block that waits for its
maximum."""


def unpack(m: Module, word: Value, offset: Value, kind: Value, columns: int, name: str) -> Value:
    """C float32 from the element of the type whose bit is set in `kind` at byte `offset` of an SRAM word, the
    word halved until nothing else is left. What is used more than once gets a name. An E8M0 NaN gives an
    infinity, which is left to the next stage."""

    def at(part, size, label):
        signal = Signal(8 * size, name=f"{name}_{label}")
        m.d.comb += signal.eq(pick(part, offset[exact_log2(size) :], 8 * size))
        return signal

    lanes = at(word, 4 * columns, "lanes")
    halves = at(lanes, 2 * columns, "halves")
    one = at(halves, 4, "word")
    is_lane_f32, is_lane_bf16, is_f32, is_bf16, is_e8m0 = (
        kind[k] for k in (LANE_F32, LANE_BF16, F32, BF16, E8M0)
    )
    # The half of a packed value that is the high one of its float32; the byte that is its exponent.
    half, byte = Signal(16, name=f"{name}_half"), Signal(8, name=f"{name}_byte")
    high = Signal(16, name=f"{name}_high")
    m.d.comb += [
        half.eq(Mux(is_f32 | offset[1], one[16:], one[:16])),
        byte.eq(Mux(offset[0], half[8:], half[:8])),
        high.eq(
            (half & (is_f32 | is_bf16).replicate(16))
            | (Cat(Const(0, 7), byte, Const(0, 1)) & is_e8m0.replicate(16))
        ),
    ]
    return Cat(
        Cat(
            (lanes[32 * r : 32 * r + 16] & is_lane_f32.replicate(16)) | (one[:16] & is_f32.replicate(16)),
            (lanes[32 * r + 16 : 32 * r + 32] & is_lane_f32.replicate(16))
            | (halves[16 * r : 16 * r + 16] & is_lane_bf16.replicate(16))
            | high,
        )
        for r in range(columns)
    )


class VectorExecute(wiring.Component):
    """Everything between the fetchers and the writer, at one element per `config.vector_fold` cycles.

    Members: `command` (issue_layout); `a`, `b`, `d`: fetched elements, on `b` after the scalar lane words;
    `sig_a`: semaphore of an instruction whose last element has been taken; `o`: results (element_layout; bf16
    in the high half) of the instructions with an out mode, at most OUT_DEPTH at a time; `scales`: of
    quantised blocks; `ready`, `clear`, `ask_tag`, `ask`, `value`: see `Reducer`; `stop`: start nothing from
    the next cycle on; counter events. From instruction to instruction: one idle cycle and one per scalar
    lane word, 11 from sum to sum, and at least 14 cycles from first element to first element. Latency from
    an element to `o`: 2 + Lanes.latency + 3.

    Where the unit is folded (two cycles per element), the lower half of an element's rows goes through the
    lanes in the first cycle and the upper one in the second: both from the same unpack register, and results
    are put together in front of `o`. An element starts a cycle after its sources are there. A sum that
    follows a sum then waits 43 cycles.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        columns = config.columns
        super().__init__(
            {
                "command": In(stream.Signature(issue_layout)),
                **{name: In(stream.Signature(fetch.element_layout(config))) for name in "abd"},
                "sig_a": Out(stream.Signature(SEM_BITS)),
                "o": Out(stream.Signature(element_layout(columns))),
                "scales": Out(stream.Signature(8 * columns)),
                "ready": Out(2),
                "clear": In(2),
                "ask_tag": In(1),
                "ask": In(3),
                "value": Out(32 * columns),
                "stop": In(1),
                **{name: Out(1) for name in ("count_elements", "count_wait_source", "count_wait_sink")},
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns, fold = self.config.columns, self.config.vector_fold
        m.submodules.lanes = lanes = Lanes(self.config.lanes, fold)
        m.submodules.reducer = reducer = Reducer(self.config.lanes, fold)
        m.submodules.maximum = maximum = BlockMaximum(columns, 32)
        m.submodules.results = results = Fifo(element_layout(columns), OUT_DEPTH, block=True)
        wiring.connect(m, results.o, wiring.flipped(self.o))
        wiring.connect(m, maximum.o, wiring.flipped(self.scales))
        m.d.comb += [
            self.ready.eq(reducer.ready),
            self.value.eq(reducer.value),
            reducer.clear.eq(self.clear),
            reducer.ask_tag.eq(self.ask_tag),
            reducer.ask.eq(self.ask),
        ]
        m.submodules.commands = commands = CommandQueue(issue_layout)
        wiring.connect(m, wiring.flipped(self.command), commands.i)
        c, n = commands.payload, commands.next
        a, b, d = self.a, self.b, self.d
        word, part = 32 * columns, 32 * self.config.lanes

        # Scalars of the next instruction: constants at once, lane words as they arrive on source B.
        # Lane words to come, whether there are none, or a single one.
        pending, settled, single = Signal(len(SCALARS)), Signal(), Signal()
        oldest = lanes.clamp_at + fold
        age = Signal(range(oldest + 1), init=oldest)  # since the first element, saturating
        stopped = Signal()
        m.d.sync += stopped.eq(self.stop)
        alive = commands.valid & ~stopped
        take_scalar = alive & ~settled & b.valid
        oldest_word = lowest(pending)
        still = Mux(commands.open, n.scalars, pending & ~oldest_word)
        scalars = {name: Signal(word, name=name, reset_less=True) for name in SCALARS}
        scalar_word = Signal(word)
        m.d.comb += scalar_word.eq(pick(b.payload.data, b.payload.offset[exact_log2(4 * columns) :], word))
        with m.If(commands.open | take_scalar):
            m.d.sync += [
                pending.eq(still),
                settled.eq(~still.any()),
                single.eq(still.any() & (still == lowest(still))),
            ]
        # A cycle later than the rest, so that the enables are registers.
        arrived = Signal(word, reset_less=True)
        m.d.sync += arrived.eq(scalar_word)
        for k, name in enumerate(SCALARS):
            load, given = Signal(name=f"load_{name}"), Signal(name=f"given_{name}", reset_less=True)
            came = take_scalar & oldest_word[k]
            m.d.sync += [load.eq(commands.begin | came), given.eq(came)]
            constant = c[CONSTANTS[name]].replicate(columns) if name in ("s4", "s5") else Const(0, word)
            with m.If(load & ~given):  # outermost: the register's reset
                m.d.sync += scalars[name].eq(constant)
            with m.Elif(load):
                m.d.sync += scalars[name].eq(arrived)

        # The four operands that are chosen are each the OR of two masked sources, a lane word (0 if none was
        # asked for) and what is the same on all lanes and elements: the constant, or the neutral operand.
        f, lane_words = n.flags, dict(zip(SCALARS, n.scalars, strict=True))
        masks = {
            name: Signal(2, name=f"mask_{name}", reset_less=True)
            for name in ("factor1", "addend1", "factor2", "addend2")
        }
        common = {name: Signal(32, name=f"common_{name}", reset_less=True) for name in masks}
        with m.If(commands.open):
            for name, select, neutral, constant, lane_word in (
                ("factor1", f.x1, ONE, n.c0, lane_words["s0"]),
                ("addend1", f.x2, NEG_ZERO, n.c1, lane_words["s1"]),
                ("factor2", f.x3, ONE, n.c2, lane_words["s2"]),
                ("addend2", f.x4, NEG_ZERO, n.c3, Const(0, 1)),
            ):
                m.d.sync += masks[name].eq(Cat(select == 1, select == 2))
                constant = Mux((select == 3) & ~lane_word, constant, 0)
                m.d.sync += common[name].eq(Mux(select == 0, Const(neutral, 32), constant))

        # One element.
        sums, no_output = Signal(), Signal()
        next_sums = Mux(commands.open, (n.red_op == SUM_T5) | (n.red_op == SUM_T3), sums)
        next_no_output = Mux(commands.open, n.mode == 0, no_output)
        last_flush = flush_end(fold)
        flush, flushing = Signal(range(last_flush + 1)), Signal()
        credits, has_credit = Signal(range(OUT_DEPTH + 1), init=OUT_DEPTH), Signal(init=1)
        first, number, in_block = Signal(init=1), Signal(32, reset_less=True), Signal(5)
        last = a.payload.last
        running = alive & settled
        sources = a.valid & (b.valid | ~c.use_b) & (d.valid | ~c.use_d)
        space = has_credit | no_output
        issue, sig_a = Signal(), self.sig_a
        end = (issue & last) | (running & c.empty & ~sig_a.valid)
        m.d.comb += [
            a.ready.eq(issue),
            b.ready.eq((issue & c.use_b) | take_scalar),
            d.ready.eq(issue & c.use_d),
            commands.done.eq(end),
            # What is chosen by instruction must hold for the second half, too.
            commands.wait.eq((issue & (first if fold == 1 else Const(1))) | (age != oldest)),
        ]
        m.d.sync += [
            self.count_elements.eq(issue),
            self.count_wait_source.eq(running & ~c.empty & ~sources),
            self.count_wait_sink.eq(running & ~c.empty & sources & ~space),
        ]
        block_end = Mux(c.block == 0, in_block == 31, Mux(c.block == 1, in_block == 15, in_block == 7)) | last
        with m.If(issue):
            m.d.sync += [first.eq(0), number.eq(number + 1), in_block.eq(Mux(block_end, 0, in_block + 1))]
            with m.If(first):
                m.d.sync += age.eq(0)
        with m.If(commands.open):
            m.d.sync += number.eq(0)
        with m.If(age != oldest):
            with m.If(~(issue & first)):
                m.d.sync += age.eq(age + 1)
        with m.If(end):
            m.d.sync += [
                first.eq(1),
                sig_a.valid.eq(c.sig_a != 0),
                sig_a.payload.eq(c.sig_a),
            ]
        with m.Elif(sig_a.ready):
            m.d.sync += sig_a.valid.eq(0)
        flushes = issue & last & sums
        flush_from = number[:3] + 2 - fold  # the last half starts it
        next_blocked = Mux(flushes, flush_blocks(flush_from, fold), flush_blocks(flush + 1, fold))
        with m.If(flushes):
            m.d.sync += [flush.eq(flush_from), flushing.eq(1)]
        with m.Elif(flush == last_flush):
            m.d.sync += [flush.eq(0), flushing.eq(0)]
        with m.Elif(flushing):
            m.d.sync += flush.eq(flush + 1)
        popped = results.o.valid & results.o.ready
        spent = issue & ~no_output
        # not 0 after this cycle; `popped` and `spent` come late
        next_credit = Mux(popped, ~spent | (credits != 0), Mux(spent, credits != 1, credits != 0))
        begins = commands.begin & ~n.scalars.any() & ~n.empty
        stays = commands.valid & ~end & ~c.empty & (settled | (take_scalar & single))
        m.d.sync += [
            sums.eq(next_sums),
            no_output.eq(next_no_output),
            credits.eq(credits + popped - spent),
            has_credit.eq(next_credit),
        ]
        # Whether an element may start in the next cycle but for its sources, and what holds up the last one
        # alone: `end` changes that, too, but then none starts.
        next_go = (
            ~self.stop & (begins | stays) & (next_credit | next_no_output) & ~(next_sums & next_blocked)
        )
        next_hold = (next_sums & flushing & (flush != last_flush)) | (sig_a.valid & ~sig_a.ready)
        if fold == 1:
            go, hold = Signal(), Signal()
            m.d.sync += [go.eq(next_go), hold.eq(next_hold)]
            m.d.comb += issue.eq(go & sources & ~(last & hold))
        else:  # a register, as there is a cycle between two elements: the sources show the second one then
            use_b, use_d = (
                Mux(commands.open, after, now) for after, now in ((n.use_b, c.use_b), (n.use_d, c.use_d))
            )
            there = a.valid & ((b.valid & ~take_scalar) | ~use_b) & (d.valid | ~use_d)
            m.d.sync += issue.eq(next_go & ~issue & there & ~(last & next_hold))

        # Unpack register. Where it is folded, it holds its element while `u_valid` and a cycle more.
        ua, ub, ud = (Signal(word, name=f"unpacked_{name}", reset_less=True) for name in "abd")
        u_valid = Signal()
        u = Signal(issue_layout, reset_less=True)
        u_first, u_last, u_end = Signal(), Signal(), Signal()
        u_number = Signal(32, reset_less=True)
        m.d.sync += u_valid.eq(issue)
        u_half = shift(m, u_valid[: ceil_log2(fold)], 1, "u_half", reset_less=False)
        u_open = Const(1) if fold == 1 else ~u_valid
        with m.If(u_open):
            m.d.sync += [u.eq(c), u_number.eq(number)]
            m.d.sync += [u_first.eq(first), u_last.eq(last), u_end.eq(block_end)]
        unpacked = []
        for target, source, code in (
            (ua, a, n.flags.a_type),
            (ub, b, n.flags.b_type),
            (ud, d, n.flags.d_type),
        ):
            kind = Signal(5, name=f"{target.name}_kind", reset_less=True)  # of those in hand, one-hot
            with m.If(commands.open):
                m.d.sync += kind.eq(Cat(code == k for k in range(len(kind))))
            is_e8m0 = Signal(name=f"{target.name}_is_e8m0", reset_less=True)
            with m.If(u_open):
                m.d.sync += is_e8m0.eq(kind[E8M0])
                m.d.sync += target.eq(
                    unpack(m, source.payload.data, source.payload.offset, kind, columns, target.name)
                )
            # An E8M0 byte of ones is NaN, on all lanes.
            nan = Signal(name=f"{target.name}_nan")
            m.d.comb += nan.eq(is_e8m0 & target[23:31].all())
            unpacked.append(target | Cat(Const(0, 22), nan, Const(0, 9)).replicate(columns))

        def rows(value, half):
            """The half of a lane word."""
            return mux(half, [value[part * h : part * (h + 1)] for h in range(fold)])

        # Operand register: every factor and addend of the element is chosen here and waits inside of the
        # lanes.
        f = u.flags
        flip = Cat((Const(0, 31), f.neg2 & (f.x2 != 0)) * self.config.lanes)
        xa, xb, xd = (rows(value, u_half) for value in unpacked)
        s0, s1, s2, s5 = (rows(scalars[name], u_half) for name in ("s0", "s1", "s2", "s5"))
        hits = Signal(self.config.lanes)
        m.d.comb += hits.eq(
            Cat(f.where & (s5[32 * r : 32 * r + 32] == u_number) for r in range(self.config.lanes))
        )

        def choose(name, first, second, scalar=0):
            mask = masks[name]
            return (
                (first & mask[0].replicate(part))
                | (second & mask[1].replicate(part))
                | scalar
                | common[name].replicate(self.config.lanes)
            )

        p_valid, p_first, p_last, p_end = Signal(), Signal(), Signal(), Signal()
        p = Signal(data.StructLayout({"mode": 2, "red_op": 3, "block": 2, "tag": 1}), reset_less=True)
        operands = {
            name: Signal(len(getattr(lanes, name)), name=f"p_{name}", reset_less=True)
            for name in (
                "a",
                "factor1",
                "addend1",
                "factor2",
                "addend2",
                *(["half"] if fold > 1 else []),
                "hit",
                "neg1",
                "square",
                "func",
                "lo",
                "hi",
                "load",
            )
        }
        m.d.sync += [
            p_valid.eq(u_valid | u_half),
            p_first.eq(u_first),
            p_last.eq(u_last),
            p_end.eq(u_end),
            p.mode.eq(u.mode),
            p.red_op.eq(u.red_op),
            p.tag.eq(u.tag),
            p.block.eq(u.block),
            operands["load"].eq((u_valid | u_half) & u_first),
            operands["a"].eq(xa),
            operands["factor1"].eq(choose("factor1", xa, xb, s0)),
            operands["addend1"].eq(choose("addend1", xb, xd, s1) ^ flip),
            operands["factor2"].eq(choose("factor2", xb, xd, s2)),
            operands["addend2"].eq(choose("addend2", xb, xd)),
            operands["hit"].eq(hits),
            operands["neg1"].eq(f.neg1),
            operands["square"].eq(f.x3 == 4),
            operands["func"].eq(f.func),
            operands["lo"].eq(f.lo),
            operands["hi"].eq(f.hi),
            *([operands["half"].eq(u_half)] if fold > 1 else []),
        ]
        m.d.comb += [
            getattr(lanes, name).eq(operand) for name, operand in operands.items() if name != "addend2"
        ]
        p_half = operands["half"] if fold > 1 else Const(0, 0)
        # The comparison of `hits` takes a cycle by itself: its choice is behind the register.
        spread = Cat(hit.replicate(32) for hit in operands["hit"])
        s4 = rows(scalars["s4"], p_half)
        m.d.comb += lanes.addend2.eq((operands["addend2"] & ~spread) | (s4 & spread))
        m.d.comb += [lanes.low.eq(scalars["s4"]), lanes.high.eq(scalars["s5"])]

        # What travels beside the lanes.
        tail = Signal(
            data.StructLayout(
                {"first": 1, "last": 1, "end": 1, "mode": 2, "red_op": 3, "t3": 1, "block": 2, "tag": 1}
                | ({"half": 1} if fold > 1 else {})
            )
        )
        m.d.comb += [
            tail.first.eq(p_first),
            tail.last.eq(p_last),
            tail.end.eq(p_end),
            tail.mode.eq(p.mode),
            tail.red_op.eq(p.red_op),
            tail.t3.eq(p.red_op == SUM_T3),
            tail.tag.eq(p.tag),
            tail.block.eq(p.block),
            *([tail.half.eq(p_half)] if fold > 1 else []),
        ]
        beside = Signal(len(tail.as_value()) + 1)
        m.d.comb += beside.eq(Cat(p_valid, tail))
        beside = shift(m, beside, lanes.latency, "beside", reset_less=False)
        out_valid, out = beside[0], data.View(tail.shape(), beside[1:])

        # To bf16: sums are canonical, so that NaN, infinities and zeros round to themselves.
        rounded = Signal(part)
        for r in range(self.config.lanes):
            x = lanes.t5[32 * r : 32 * r + 32]
            high = (Cat((out.mode == 2) & x[15], x[16:]) + (x[16] | x[:15].any()))[1:17]
            m.d.comb += rounded[32 * r : 32 * r + 32].eq(Cat(x[:16], high))
        kept = [Signal(part, name=f"kept_{h}", reset_less=True) for h in range(fold - 1)]  # lower half
        out_half = out.half if fold > 1 else Const(0, 0)
        with m.If(is_half(out_half, 0)):
            m.d.sync += [signal.eq(rounded) for signal in kept]
        element, whole = Cat(*kept, rounded), out_valid & is_half(out_half, fold - 1)
        exact = Cat(*kept, lanes.t5)  # the same in mode 3, without the rounding in front
        m.d.comb += [
            reducer.valid.eq(out_valid),
            *([reducer.half.eq(out_half)] if fold > 1 else []),
            reducer.t3.eq(lanes.t3),
            reducer.t5.eq(lanes.t5),
            reducer.op.eq(out.red_op),
            reducer.use_t3.eq(out.t3),
            reducer.first.eq(out.first),
            reducer.last.eq(out.last),
            reducer.tag.eq(out.tag),
            maximum.valid.eq(whole & (out.mode == 3)),
            maximum.x.eq(exact),
            maximum.end.eq(out.end),
            results.i.valid.eq(whole & out.mode.any()),
            results.i.payload.x.eq(element),
            results.i.payload.last.eq(out.last),
            results.i.payload.quantise.eq(out.mode == 3),
            results.i.payload.block.eq(out.block),
        ]
        return m
