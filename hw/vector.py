"""The vector unit: one element of C lanes per cycle from SRAM through the lane pipeline and back (docs/architecture.md, VECTOR)."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .fetch import Fetcher
from .fp import f32_to_bf16
from .glue import Fifo, StreamArbiter
from .isa import BY_OP, VECTOR_FLAGS, VECTOR_FLAGS2, Error, Op
from .ports import PC_BITS, SEM_BITS, SramRead, SramWrite, error_layout, flags_layout, unit_members
from .quantiser import BlockMaximum, element_layout
from .vector_lanes import FLUSH_END, NEG_ZERO, ONE, SUM_T3, SUM_T5, Lanes, Reducer, flush_blocks
from .vector_writer import COUNT_BITS, VectorWriter, pick, writer_layout

__all__ = ["Vector", "unpack"]

LANE_F32, LANE_BF16, F32, BF16, E8M0 = range(5)
"""Source types."""

INSTRUCTION = BY_OP[Op.VECTOR]
SCALARS = ("s0", "s1", "s2", "s4", "s5")
CONSTANTS = {"s0": "c0", "s1": "c1", "s2": "c2", "s4": "c2", "s5": "c3"}
OUT_DEPTH = 128
"""Elements between the issue of an element and its write: the pipeline, and a block that waits for its maximum."""

issue_layout = data.StructLayout({
    "flags": flags_layout(VECTOR_FLAGS), "mode": 2, "red_op": 3, "block": 2, "use_b": 1, "use_d": 1, "empty": 1,
    "scalars": len(SCALARS), "tag": 1, "c0": 32, "c1": 32, "c2": 32, "c3": 32, "sig_a": SEM_BITS})


def unpack(m: Module, word: Value, offset: Value, kind: Value, columns: int, name: str) -> Value:
    """C float32 from the element of type `kind` at byte `offset` of an SRAM word. What is used more than once gets a name."""
    def at(part, low, size, label):
        bits = exact_log2(len(part) // (8 * size))
        signal = Signal(8 * size, name=f"{name}_{label}")
        m.d.comb += signal.eq(pick(part, offset[exact_log2(low):exact_log2(low) + bits], 8 * size))
        return signal

    lanes = at(word, 4 * columns, 4 * columns, "lanes")
    halves = at(word, 2 * columns, 2 * columns, "halves")
    one = at(word, 4, 4, "word")
    half = at(one, 2, 2, "half")
    byte = at(half, 1, 1, "byte")
    single = Signal(32, name=f"{name}_single")
    m.d.comb += single.eq(Mux(kind == F32, one, Mux(kind == BF16, Cat(Const(0, 16), half), Cat(Const(0, 22), byte == 255, byte, Const(0, 1)))))
    bf16 = Cat(Cat(Const(0, 16), halves[16 * r:16 * r + 16]) for r in range(columns))
    return Mux(kind == LANE_F32, lanes, Mux(kind == LANE_BF16, bf16, single.replicate(columns)))


def _element_size(kind: Value, columns: int) -> Value:
    return Mux(kind == LANE_F32, 4 * columns, Mux(kind == LANE_BF16, 2 * columns, Mux(kind == F32, 4, Mux(kind == BF16, 2, 1))))


class Vector(wiring.Component):
    """Executes VECTOR instructions. Equals `golden.units.vector` bit for bit, errors included (first error only).

    Members: `ports.unit_members`, read ports `a`, `b` (also scalar operands) and `d`, write port `out`, counter events.
    Rate: one element per cycle; a quantised block takes max(block, C + 1) cycles. From instruction to instruction with `overlap`:
    as many idle cycles as scalar operands are read; a sum directly after a sum loses 11 cycles.
    Latency: first element about 65 cycles after the command, write about 50 cycles after the read.
    sig_a: the last element has left the fetchers. sig_b, sig_c: all writes are visible.
    Errors: SRAM_RANGE and ALIGNMENT with the address, ILLEGAL_OPERAND with the flags word, or with a count of 2^24 and more.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            **unit_members(config, INSTRUCTION),
            "a": Out(SramRead(config)), "b": Out(SramRead(config)), "d": Out(SramRead(config)), "out": Out(SramWrite(config)),
            "count_elements": Out(1), "count_wait_source": Out(1), "count_wait_sink": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, columns = self.config, self.config.columns
        m.submodules.lanes = lanes = Lanes(columns)
        m.submodules.reducer = reducer = Reducer(columns)
        m.submodules.maximum = maximum = BlockMaximum(columns, 32)
        m.submodules.results = results = Fifo(element_layout(columns), OUT_DEPTH)
        m.submodules.writer = writer = VectorWriter(config)
        m.submodules.issues = issues = Fifo(issue_layout, 2)
        m.submodules.writes = writes = Fifo(writer_layout, 2)
        m.submodules.signals = signals = Fifo(2 * SEM_BITS, 4)
        m.submodules.merge = merge = StreamArbiter(SEM_BITS, 2)
        fetchers = {}
        for name in "abd":
            m.submodules[f"fetch_{name}"] = fetchers[name] = Fetcher(config)
            wiring.connect(m, fetchers[name].read, wiring.flipped(getattr(self, name)))
        wiring.connect(m, writer.port, wiring.flipped(self.out))
        wiring.connect(m, writes.o, writer.command)
        wiring.connect(m, results.o, writer.elements)
        wiring.connect(m, maximum.o, writer.scales)
        wiring.connect(m, merge.o, wiring.flipped(self.signal))
        m.d.comb += [writer.ready.eq(reducer.ready), writer.value.eq(reducer.value), writer.index.eq(reducer.index),
                     reducer.clear.eq(writer.clear)]

        in_flight = Signal(2)
        accepted = self._front(m, fetchers, issues.i, writes.i, signals.i, in_flight)
        m.d.sync += in_flight.eq(in_flight + accepted - writer.done)
        self._issue(m, fetchers, issues.o, lanes, reducer, maximum, results, merge.i[0])
        self._complete(m, writer.done, signals.o, merge.i[1])
        m.d.comb += self.busy.eq(self.command.valid | in_flight.any() | signals.o.valid | merge.i[0].valid | self.signal.valid)

        # The first error; later ones of the same cycle lose.
        with m.If(~self.error.valid & writer.error.valid):
            m.d.sync += self.error.eq(writer.error)
        return m

    def _front(self, m, fetchers, issue, write, signal, in_flight) -> Value:
        """Checks commands, requests their scalars and walks through their sources. Returns the acceptance of a command."""
        config, columns = self.config, self.config.columns
        c = self.command.payload
        flags, flags2 = Signal(flags_layout(VECTOR_FLAGS)), Signal(flags_layout(VECTOR_FLAGS2))
        m.d.comb += [flags.eq(c.flags), flags2.eq(c.flags2)]

        def present(name):
            return c.mask[INSTRUCTION.index(name)]

        # One cycle for the checks and everything that is derived from the flags.
        use_b = (flags.x1 == 2) | (flags.x2 == 1) | (flags.x3 == 1) | (flags.x4 == 1)
        use_d = (flags.x2 == 2) | (flags.x3 == 2) | (flags.x4 == 2)
        wanted = {"s0": flags.x1 == 3, "s1": flags.x2 == 3, "s2": flags.x3 == 3, "s4": flags.lo | flags.where,
                  "s5": flags.hi | flags.where}
        rows = Mux(flags2.rows == 0, columns, flags2.rows)
        lane_end = flags2.lane0 + Mux(flags2.pack, 1, rows)
        bad_flags = (flags.a_type > E8M0) | (use_b & (flags.b_type > E8M0)) | (use_d & (flags.d_type > E8M0)) | (flags.x3 > 4)
        bad_flags2 = ((flags2.red_op > 4) | (flags2.block > 2) | (rows > columns)
                      | ((flags2.out_mode.any() & ~flags2.out_mode.all()) & (lane_end > columns)))
        checked, legal, zero = Signal(), Signal(), Signal()
        uses_b, uses_d, scalars = Signal(), Signal(), Signal(len(SCALARS))
        requested = Signal(len(SCALARS))
        m.d.sync += [
            checked.eq(self.command.valid & ~self.command.ready),
            uses_b.eq(use_b), uses_d.eq(use_d), legal.eq(~bad_flags & ~bad_flags2),
            zero.eq((c.n0 == 0) | (c.n1 == 0) | (c.n2 == 0)),
            scalars.eq(Cat(wanted[s] & present(s) for s in SCALARS)),
        ]
        too_many = [c[n][COUNT_BITS:].any() for n in ("n0", "n1", "n2")]
        illegal = Signal(3)
        m.d.sync += illegal.eq(Cat(too_many))

        # Start: the order between instructions, then scalars, then the walk.
        walking, go, tag = Signal(), Signal(), Signal()
        start = Signal()
        pending = scalars & ~requested & ~zero.replicate(len(SCALARS))
        b = fetchers["b"].i
        m.d.comb += start.eq(checked & legal & ~illegal.any() & ~walking & ~self.error.valid & issue.ready & write.ready
                             & signal.ready & Mux(flags2.overlap, in_flight <= 1, in_flight == 0))
        accept = start & ~pending.any()
        m.d.comb += self.command.ready.eq(accept)
        with m.If(accept):
            m.d.sync += [tag.eq(~tag), walking.eq(~zero), requested.eq(0)]
        scalar_addr, scalar_next = Const(0, 32), Const(0, len(SCALARS))
        for k in reversed(range(len(SCALARS))):
            scalar_addr = Mux(pending[k], c[SCALARS[k]], scalar_addr)
            scalar_next = Mux(pending[k], Const(1 << k, len(SCALARS)), scalar_next)
        asking = start & pending.any()
        scalar_bad = (scalar_addr & (config.lane_bytes - 1)).any()
        with m.If(asking & b.ready & ~scalar_bad):
            m.d.sync += requested.eq(requested | scalar_next)

        # The walk.
        left, reload = [Signal(COUNT_BITS, name=f"left{k}") for k in range(3)], [Signal(COUNT_BITS, name=f"n{k}") for k in range(2)]
        end0, end1, end2 = (count == 1 for count in left)
        last = end0 & end1 & end2
        used = {"a": Const(1), "b": Signal(name="walk_b"), "d": Signal(name="walk_d")}
        misaligned, addresses = {}, {}
        for name in "abd":
            kind = flags[f"{name}_type"]
            size = _element_size(kind, columns)
            addr, low = Signal(32, name=f"addr_{name}"), Signal(exact_log2(config.word_bytes), name=f"align_{name}")
            jumps = [Signal(32, name=f"jump_{name}{k}") for k in range(3)]
            addresses[name] = addr
            misaligned[name] = used[name] & (addr & low).any()
            with m.If(accept):
                m.d.sync += [addr.eq(c[name]), low.eq(size - 1),
                             *(jump.eq(Mux(present(f"{name}{k}"), c[f"{name}{k}"], size)) for k, jump in enumerate(jumps))]
            with m.Elif(go):
                m.d.sync += addr.eq(addr + Mux(end0, Mux(end1, jumps[2], jumps[1]), jumps[0]))
            source = fetchers[name].i
            m.d.comb += [source.payload.addr.eq(addr), source.payload.last.eq(last), source.valid.eq(go & used[name])]
        bad = Cat(misaligned.values())
        m.d.comb += go.eq(walking & ~bad.any() & ~self.error.valid
                          & Cat(fetchers[name].i.ready | ~used[name] for name in "abd").all())
        with m.If(asking):
            m.d.comb += [b.payload.addr.eq(scalar_addr), b.payload.last.eq(1), b.valid.eq(~scalar_bad)]
        pc, pc_before = Signal(PC_BITS), Signal(PC_BITS)
        asked = Signal()
        m.d.sync += [pc_before.eq(pc), asked.eq(asking)]  # a fetcher reports the address of the cycle before
        with m.If(accept):
            m.d.sync += [*(count.eq(c[f"n{k}"]) for k, count in enumerate(left)),
                         *(count.eq(c[f"n{k}"]) for k, count in enumerate(reload)),
                         used["b"].eq(uses_b), used["d"].eq(uses_d)]
        with m.Elif(go):
            m.d.sync += left[0].eq(Mux(end0, reload[0], left[0] - 1))
            with m.If(end0):
                m.d.sync += left[1].eq(Mux(end1, reload[1], left[1] - 1))
                with m.If(end1):
                    m.d.sync += [left[2].eq(left[2] - 1), walking.eq(~end2)]
        with m.If(accept):
            m.d.sync += pc.eq(c.pc)

        # Hand the instruction on.
        element = Mux(flags2.pack, Const(4, 8), Const(4 * columns, 8))
        element = Mux(flags2.out_mode == 2, element >> 1, element)
        quantise = flags2.out_mode == 3
        steps = [Mux(present(f"o{k}"), c[f"o{k}"], Mux(quantise, default, element))
                 for k, default in enumerate((32, 32 * columns, columns))]
        p, q = issue.payload, write.payload
        m.d.comb += [
            issue.valid.eq(accept), p.flags.eq(flags), p.mode.eq(flags2.out_mode), p.red_op.eq(flags2.red_op),
            p.block.eq(flags2.block), p.use_b.eq(uses_b), p.use_d.eq(uses_d), p.empty.eq(zero), p.tag.eq(tag),
            p.scalars.eq(scalars & ~zero.replicate(len(SCALARS))), p.sig_a.eq(c.sig_a),
            *(p[name].eq(c[name]) for name in ("c0", "c1", "c2", "c3")),
            write.valid.eq(accept), q.mode.eq(flags2.out_mode), q.red_op.eq(flags2.red_op), q.block.eq(flags2.block),
            q.zfill.eq(flags2.zfill), q.pack.eq(flags2.pack), q.lane0.eq(flags2.lane0), q.rows.eq(rows), q.tag.eq(tag),
            q.empty.eq(zero), q.n0.eq(c.n0), q.n1.eq(c.n1), q.out.eq(c.out), q.red.eq(c.red), q.qs.eq(c.qs), q.pc.eq(c.pc),
            *(q[f"o{k}"].eq(step) for k, step in enumerate(steps)),
            signal.valid.eq(accept), signal.payload.eq(Cat(c.sig_b, c.sig_c)),
        ]

        # Errors, the writer's excepted.
        def report(code, pc, value):
            return [self.error.valid.eq(1), self.error.code.eq(code), self.error.pc.eq(pc), self.error.value.eq(value)]

        def address_error(pc, address):
            outside = address[exact_log2(config.sram_bytes):].any()
            return report(Mux(outside, Error.SRAM_RANGE, Error.ALIGNMENT), pc, address)

        with m.If(~self.error.valid):
            with m.If(checked & ~(legal & ~illegal.any())):
                value = Mux(illegal[0], c.n0, Mux(illegal[1], c.n1, c.n2))
                m.d.sync += report(Error.ILLEGAL_OPERAND, c.pc, Mux(legal, value, Mux(bad_flags, c.flags, c.flags2)))
            with m.If(asking & scalar_bad):
                m.d.sync += address_error(c.pc, scalar_addr)
            for name in "dba":
                with m.If(walking & misaligned[name]):
                    m.d.sync += address_error(pc, addresses[name])
            for name in "dba":
                with m.If(fetchers[name].error):
                    m.d.sync += report(Error.SRAM_RANGE, Mux(asked, c.pc, pc_before), fetchers[name].error_addr)
        return accept

    def _issue(self, m, fetchers, config_stream, lanes, reducer, maximum, results, signal) -> None:
        """Joins the sources, loads scalars, starts one element per cycle, and collects what leaves the lanes."""
        columns = self.config.columns
        c = config_stream.payload
        a, b, d = (fetchers[name].o for name in "abd")
        word = 32 * columns

        # Scalars of the next instruction: constants at once, lane words as they arrive on source B.
        fresh, asked = Signal(init=1), Signal(len(SCALARS))
        age = Signal(range(lanes.clamp_at + 4), init=lanes.clamp_at + 3)  # since the first element, saturating
        alive = config_stream.valid & ~self.error.valid
        setup = alive & fresh & (age == lanes.clamp_at + 3)
        pending = Mux(fresh, c.scalars, asked)
        take_scalar = alive & (setup | ~fresh) & pending.any() & b.valid
        lowest = pending & -pending
        scalars = {name: Signal(word, name=name, reset_less=True) for name in SCALARS}
        s3 = Signal(32, reset_less=True)
        scalar_word = Signal(word)
        m.d.comb += scalar_word.eq(pick(b.payload.data, b.payload.offset[exact_log2(4 * columns):], word))
        with m.If(setup):
            m.d.sync += [fresh.eq(0), s3.eq(c.c3), asked.eq(pending)]
            m.d.sync += [scalars[name].eq(c[CONSTANTS[name]].replicate(columns)) for name in SCALARS]
        with m.If(take_scalar):
            m.d.sync += asked.eq(pending & ~lowest)
            for k, name in enumerate(SCALARS):
                with m.If(lowest[k]):
                    m.d.sync += scalars[name].eq(scalar_word)

        # One element.
        sums = (c.red_op == SUM_T5) | (c.red_op == SUM_T3)
        flush = Signal(range(FLUSH_END + 1))
        credits, has_credit = Signal(range(OUT_DEPTH + 1), init=OUT_DEPTH), Signal(init=1)
        first, number, in_block = Signal(init=1), Signal(32), Signal(5)
        last = a.payload.last
        sig_busy = signal.valid & ~signal.ready
        running = alive & (setup | ~fresh) & ~pending.any()
        sources = a.valid & (b.valid | ~c.use_b) & (d.valid | ~c.use_d)
        space = has_credit | (c.mode == 0)
        free = ~(sums & (flush_blocks(flush) | (last & flush.any()))) & ~(last & sig_busy)
        issue = Signal()
        end = running & ((issue & last) | (c.empty & ~sig_busy))
        m.d.comb += [
            issue.eq(running & ~c.empty & sources & space & free),
            a.ready.eq(issue), b.ready.eq((issue & c.use_b) | take_scalar), d.ready.eq(issue & c.use_d),
            config_stream.ready.eq(end),
            self.count_elements.eq(issue), self.count_wait_source.eq(running & ~c.empty & ~sources),
            self.count_wait_sink.eq(running & ~c.empty & sources & ~space),
        ]
        block_end = Mux(c.block == 0, in_block == 31, Mux(c.block == 1, in_block == 15, in_block == 7)) | last
        with m.If(issue):
            m.d.sync += [first.eq(0), number.eq(number + 1), in_block.eq(Mux(block_end, 0, in_block + 1))]
            with m.If(first):
                m.d.sync += age.eq(0)
        with m.If(age != lanes.clamp_at + 3):
            with m.If(~(issue & first)):
                m.d.sync += age.eq(age + 1)
        with m.If(end):
            m.d.sync += [fresh.eq(1), first.eq(1), number.eq(0), signal.valid.eq(c.sig_a != 0), signal.payload.eq(c.sig_a)]
        with m.Elif(signal.ready):
            m.d.sync += signal.valid.eq(0)
        with m.If(issue & last & sums):
            m.d.sync += flush.eq(number[:3] + 1)
        with m.Elif(flush == FLUSH_END):
            m.d.sync += flush.eq(0)
        with m.Elif(flush.any()):
            m.d.sync += flush.eq(flush + 1)
        popped = results.o.valid & results.o.ready
        after = credits + popped - (issue & c.mode.any())
        m.d.sync += [credits.eq(after), has_credit.eq(after != 0)]

        # Unpack register.
        ua, ub, ud = (Signal(word, name=f"unpacked_{name}", reset_less=True) for name in "abd")
        u_valid = Signal()
        u = Signal(issue_layout, reset_less=True)
        u_first, u_last, u_end, u_number = Signal(), Signal(), Signal(), Signal(32)
        m.d.sync += u_valid.eq(issue)
        with m.If(issue):
            m.d.sync += [u.eq(c), u_first.eq(first), u_last.eq(last), u_end.eq(block_end), u_number.eq(number)]
            for target, source, kind in ((ua, a, c.flags.a_type), (ub, b, c.flags.b_type), (ud, d, c.flags.d_type)):
                m.d.sync += target.eq(unpack(m, source.payload.data, source.payload.offset, kind, columns, target.name))

        # Operand register: every factor and addend of the element is chosen here and waits inside of the lanes.
        one, neg_zero = Const(ONE, 32).replicate(columns), Const(NEG_ZERO, 32).replicate(columns)

        def choose(select, *options):
            result = options[0]
            for k, option in enumerate(options[1:], 1):
                result = Mux(select == k, option, result)
            return result

        f = u.flags
        flip = Cat((Const(0, 31), f.neg2 & (f.x2 != 0)) * columns)
        hits = Signal(columns)
        m.d.comb += hits.eq(Cat(f.where & (scalars["s5"][32 * r:32 * r + 32] == u_number) for r in range(columns)))
        spread = Cat(hit.replicate(32) for hit in hits)
        addend2 = Signal(word, name="addend2")
        m.d.comb += addend2.eq(choose(f.x4, neg_zero, ub, ud, s3.replicate(columns)))
        p_valid, p_first, p_last, p_end = Signal(), Signal(), Signal(), Signal()
        p = Signal(data.StructLayout({"mode": 2, "red_op": 3, "block": 2, "tag": 1}), reset_less=True)
        operands = {name: Signal(len(getattr(lanes, name)), name=f"p_{name}", reset_less=True)
                    for name in ("a", "factor1", "addend1", "factor2", "addend2", "hit", "neg1", "square", "func", "lo", "hi", "load")}
        m.d.sync += [p_valid.eq(u_valid), operands["load"].eq(u_valid & u_first)]
        with m.If(u_valid):
            m.d.sync += [
                p_first.eq(u_first), p_last.eq(u_last), p_end.eq(u_end), p.mode.eq(u.mode), p.red_op.eq(u.red_op), p.tag.eq(u.tag),
                p.block.eq(u.block),
                operands["a"].eq(ua),
                operands["factor1"].eq(choose(f.x1, one, ua, ub, scalars["s0"])),
                operands["addend1"].eq(choose(f.x2, neg_zero, ub, ud, scalars["s1"]) ^ flip),
                operands["factor2"].eq(choose(f.x3, one, ub, ud, scalars["s2"])),
                operands["addend2"].eq(Mux(f.where, (scalars["s4"] & spread) | (addend2 & ~spread), addend2)),
                operands["hit"].eq(hits), operands["neg1"].eq(f.neg1), operands["square"].eq(f.x3 == 4),
                operands["func"].eq(f.func), operands["lo"].eq(f.lo), operands["hi"].eq(f.hi),
            ]
        m.d.comb += [getattr(lanes, name).eq(operand) for name, operand in operands.items()]
        m.d.comb += [lanes.low.eq(scalars["s4"]), lanes.high.eq(scalars["s5"])]

        # What travels beside the lanes.
        tail = Signal(data.StructLayout({"first": 1, "last": 1, "end": 1, "mode": 2, "red_op": 3, "block": 2, "tag": 1}))
        m.d.comb += [tail.first.eq(p_first), tail.last.eq(p_last), tail.end.eq(p_end), tail.mode.eq(p.mode),
                     tail.red_op.eq(p.red_op), tail.tag.eq(p.tag), tail.block.eq(p.block)]
        beside = Signal(len(tail.as_value()) + 1)
        m.d.comb += beside.eq(Cat(p_valid, tail))
        for k in range(lanes.latency):
            stage = Signal(len(beside), name=f"beside_{k + 1}")
            m.d.sync += stage.eq(beside)
            beside = stage
        out_valid, out = beside[0], data.View(tail.shape(), beside[1:])

        m.d.comb += [
            reducer.valid.eq(out_valid), reducer.t3.eq(lanes.t3), reducer.t5.eq(lanes.t5), reducer.op.eq(out.red_op),
            reducer.first.eq(out.first), reducer.last.eq(out.last), reducer.tag.eq(out.tag),
            maximum.valid.eq(out_valid & (out.mode == 3)), maximum.x.eq(lanes.t5), maximum.end.eq(out.end),
        ]
        r_valid, r_last, r_quantise, r_word = Signal(), Signal(), Signal(), Signal(word, reset_less=True)
        r_block = Signal(2)
        m.d.sync += r_valid.eq(out_valid & out.mode.any())
        with m.If(out_valid & out.mode.any()):
            m.d.sync += [r_last.eq(out.last), r_quantise.eq(out.mode == 3), r_block.eq(out.block)]
            for r in range(columns):
                x = lanes.t5[32 * r:32 * r + 32]
                m.d.sync += r_word[32 * r:32 * r + 32].eq(Mux(out.mode == 2, f32_to_bf16(x), x))
        m.d.comb += [results.i.valid.eq(r_valid), results.i.payload.x.eq(r_word), results.i.payload.last.eq(r_last),
                     results.i.payload.quantise.eq(r_quantise), results.i.payload.block.eq(r_block)]

    def _complete(self, m, done, signals, signal) -> None:
        """Signals sig_b, then sig_c of every completed instruction."""
        owed, second = Signal(3), Signal()
        sem = Mux(second, signals.payload[SEM_BITS:], signals.payload[:SEM_BITS])
        waiting = owed.any() & signals.valid
        step = waiting & (signal.ready | (sem == 0))
        m.d.comb += [signal.valid.eq(waiting & (sem != 0)), signal.payload.eq(sem), signals.ready.eq(step & second)]
        with m.If(step):
            m.d.sync += second.eq(~second)
        m.d.sync += owed.eq(owed + done - (step & second))
