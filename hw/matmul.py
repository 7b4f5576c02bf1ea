"""The matmul unit: MATMUL instructions (docs/architecture.md) on the systolic array, one block per cycle.

```
             +-> walker -> fetcher -> edge (decode, transpose) --+
 command --->+-> walker -> fetcher -> byte select (scales) ------+-> issue -> array -> accumulators -> drain -> SRAM
 (front end) +-> walker -> fetcher -> stationary loader ---------+     ^                                 |
             +-> issue control, drain, signals                         +-------- credits ----------------+
```
Each part has its own small command FIFO, so that the fetches of the next instructions run ahead.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2, exact_log2

from .accumulate import SCALE_SETS, Accumulators, tag_layout
from .array import BLOCK_BITS, SystolicArray
from .config import MX_BLOCK, TileConfig
from .drain import Drain, clamp_limit, drain_layout
from .edge import (COUNT_BITS, FP4, FP6, FRACTION_BITS, INT8, PASS_BITS, StreamEdge, decode_block, edge_command, fp4_codes)
from .fetch import Fetcher, element_layout
from .glue import Fifo
from .isa import BY_OP, MATMUL_FLAGS, Error, Op
from .ports import PC_BITS, SEM_BITS, SramRead, SramWrite, error_layout, flags_layout, unit_members
from .walk import PassWalker, StationaryWalker, pass_layout, stationary_layout

__all__ = ["Matmul", "MatmulFrontEnd", "StationaryLoader"]

ONE_SCALE = 127
"""Scale byte of 2^0."""
COMMANDS = 4
"""Instructions that each part may queue."""

loader_layout = data.StructLayout({"fmt": 2, "rows": 6, "k": PASS_BITS})
signal_layout = data.StructLayout({"sig_a": SEM_BITS, "sig_b": SEM_BITS, "sig_c": SEM_BITS, "runs": 1, "emits": 1})
"""`runs`: the instruction streams blocks; `emits`: it writes lane words."""


def issue_layout(config: TileConfig) -> data.StructLayout:
    """`exp`: exponent of the product of two blocks with scale 0."""
    return data.StructLayout({"n": COUNT_BITS, "k": PASS_BITS, "psum": ceil_log2(config.psum_depth), "first": 1, "last": 1,
                              "has_scale": 1, "exp": signed(10), "rows": 6})


class MatmulFrontEnd(wiring.Component):
    """Checks an instruction and splits it into the commands of the parts; one instruction in two cycles.

    Members: `command`; one command stream per part, all of which take theirs in the same cycle; `error`.
    An instruction with n = 0 or k <= 0 only reaches `signals`. k is limited to 65535.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        ins = BY_OP[Op.MATMUL]
        self.parts = {"walk_stream": pass_layout, "walk_scale": pass_layout, "walk_stat": stationary_layout, "edge": edge_command,
                      "loader": loader_layout, "issue": issue_layout(config), "drain": drain_layout, "signals": signal_layout}
        super().__init__({"command": unit_members(config, ins)["command"], "error": Out(error_layout),
                          **{name: Out(stream.Signature(layout)) for name, layout in self.parts.items()}})

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.command.payload
        flags = data.View(flags_layout(MATMUL_FLAGS), c.flags)
        n, rows = c.n[:COUNT_BITS], flags.rows
        has_scale = c.mask[BY_OP[Op.MATMUL].index("scale")]

        # Cycle 1: checks and sums into registers. Cycle 2: hand out.
        checked, bad, code, value = Signal(), Signal(), Signal(4), Signal(32)
        runs, chunks = Signal(), Signal(COUNT_BITS)
        lo, hi, exp = Signal(signed(12)), Signal(signed(12)), Signal(signed(10))
        fp_operands = Signal(2)
        illegal = ((flags.stream_fmt == 3) | (flags.stat_fmt == 3) | (rows == 0) | (rows > config.columns)
                   | (flags.transpose & ((flags.stream_fmt != INT8) | (c.n > MX_BLOCK - flags.offset))))
        too_wide = c.psum[11:].any() | c.n[11:].any() | (c.psum[:11] + c.n[:11] > config.psum_depth)
        lane_mask = exact_log2(config.lane_bytes)
        nothing = (c.n == 0) | (c.k == 0) | c.k[31]
        faults = (
            (c.n[31], Error.ILLEGAL_OPERAND, c.n), (~nothing & illegal, Error.ILLEGAL_OPERAND, c.flags),
            (~nothing & too_wide, Error.ILLEGAL_OPERAND, c.n), (~nothing & c.k[PASS_BITS:].any(), Error.ILLEGAL_OPERAND, c.k),
            (~nothing & flags.last & c.out[:lane_mask].any(), Error.ALIGNMENT, c.out),
            (~nothing & flags.last & flags.max & c.max_out[:lane_mask].any(), Error.ALIGNMENT, c.max_out))
        m.d.comb += fp_operands.eq((flags.stream_fmt != INT8) + (flags.stat_fmt != INT8))
        saved = FRACTION_BITS[INT8] - FRACTION_BITS[FP6]
        m.d.sync += [
            checked.eq(self.command.valid & ~checked), bad.eq(0), runs.eq(~nothing),
            chunks.eq(Mux(flags.transpose, MX_BLOCK, Mux(flags.stream_fmt == FP4, (n + 1) >> 1,
                                                         Mux(flags.stream_fmt == FP6, (n + (n << 1) + 3) >> 2, n)))),
            lo.eq(clamp_limit(c.lo)), hi.eq(clamp_limit(c.hi)),
            exp.eq(Mux(fp_operands == 0, -254 - 12, Mux(fp_operands == 1, -254 - 12 + saved, -254 - 12 + 2 * saved))),
        ]
        for fault, kind, what in reversed(faults):
            with m.If(fault):
                m.d.sync += [bad.eq(1), code.eq(kind), value.eq(what)]

        common = {"n": n, "k": c.k[:PASS_BITS], "pc": c.pc}
        commands = {
            "walk_stream": {"base": c.data, "step": c.data_pass, **common, "n": chunks},
            "walk_scale": {"base": c.scale, "step": c.scale_pass, **common},
            "walk_stat": {"stat": c.stat, "stat_pass": c.stat_pass, "stat_row": c.stat_row, "scale": c.stat_scale,
                          "scale_pass": c.stat_scale_pass, "scale_row": c.stat_scale_row, "fmt": flags.stat_fmt, "rows": rows,
                          "k": common["k"], "pc": c.pc},
            "edge": {"fmt": flags.stream_fmt, "transpose": flags.transpose, "offset": flags.offset, "n": n, "k": common["k"]},
            "loader": {"fmt": flags.stat_fmt, "rows": rows, "k": common["k"]},
            "issue": {"n": n, "k": common["k"], "psum": c.psum, "first": flags.first, "last": flags.last, "has_scale": has_scale,
                      "exp": exp, "rows": rows},
            "drain": {"out": c.out, "max_out": c.max_out, "lo": lo, "hi": hi, "step": flags.step, "mask": flags.mask,
                      "max": flags.max, "max_first": flags.max_first, "emit": flags.last, "n": n, "pc": c.pc},
            "signals": {"sig_a": c.sig_a, "sig_b": c.sig_b, "sig_c": c.sig_c, "runs": runs, "emits": flags.last},
        }
        ports = {name: getattr(self, name) for name in self.parts}
        go, fail = Signal(), Signal()
        failed = self.error.valid
        m.d.comb += [
            go.eq(checked & ~bad & ~failed & Cat(port.ready for port in ports.values()).all()),
            fail.eq(checked & bad & ~failed),
            self.command.ready.eq(go),
        ]
        for name, port in ports.items():
            wanted = {"signals": 1, "walk_scale": runs & has_scale}.get(name, runs)
            m.d.comb += port.valid.eq(go & wanted)
            m.d.comb += [port.payload[field].eq(source) for field, source in commands[name].items()]
        with m.If(checked & ~go):
            m.d.sync += [checked.eq(1), bad.eq(bad)]
        with m.If(fail):
            m.d.sync += [self.error.valid.eq(1), self.error.code.eq(code), self.error.pc.eq(c.pc), self.error.value.eq(value)]
        return m


class StationaryLoader(wiring.Component):
    """Fetched scale bytes and blocks -> scale sets and shadow blocks.

    Members: `command` (loader_layout), `i` (elements as StationaryWalker orders them); `write`, `stationary` to the array;
    `scale_write`, `scale_set`, `scales` to the accumulators; `full`: a set waits in the shadow blocks; `swap`: it has been taken.
    Rows that are absent get zero blocks with scale 2^0. A set takes C cycles from `swap` to `full` if its elements are there;
    its scale bytes are taken, one per cycle, while the set before still waits.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "command": In(stream.Signature(loader_layout)), "i": In(stream.Signature(element_layout(config))),
            "write": Out(config.columns), "stationary": Out(BLOCK_BITS),
            "scale_write": Out(1), "scale_set": Out(ceil_log2(SCALE_SETS)), "scales": Out(8 * config.columns),
            "full": Out(1), "swap": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        columns, element = self.config.columns, self.i.payload
        command, active, finish = Signal(loader_layout), Signal(), Signal()
        passes, row, blocks = Signal(PASS_BITS), Signal(6), Signal()
        present = row < command.rows
        take, take_scale, take_block = Signal(), Signal(), Signal()
        last_row = Mux(blocks, row == columns - 1, row + 1 == command.rows)
        m.d.comb += [
            take_scale.eq(active & ~blocks & self.i.valid),
            take_block.eq(active & blocks & ~self.full & (self.i.valid | ~present)),
            take.eq(take_scale | take_block),
            self.i.ready.eq(active & present & (~blocks | ~self.full)),
            finish.eq(take_block & last_row & (passes == 1)),
            self.command.ready.eq(~active | finish),
        ]
        with m.If(take):
            m.d.sync += row.eq(Mux(last_row, 0, row + 1))
            with m.If(last_row):
                m.d.sync += blocks.eq(~blocks)
        with m.If(take_block & last_row):
            m.d.sync += [self.full.eq(1), passes.eq(passes - 1)]
        with m.If(self.swap):
            m.d.sync += self.full.eq(0)
        with m.If(self.command.ready):
            m.d.sync += active.eq(self.command.valid)
            with m.If(self.command.valid):
                m.d.sync += [command.eq(self.command.payload), passes.eq(self.command.payload.k)]

        # Scale bytes gather in `scales`; the set is stored when its first block arrives.
        scale = element.data.word_select(element.offset, 8)
        m.d.comb += self.scale_write.eq(take_block & (row == 0))
        with m.If(self.scale_write):
            m.d.sync += [self.scale_set.eq(self.scale_set + 1), self.scales.eq(Cat(*[Const(ONE_SCALE, 8)] * columns))]
        for r in range(columns):
            with m.If(take_scale & (row == r)):
                m.d.sync += self.scales[8 * r:8 * r + 8].eq(scale)

        # Blocks: one register, then the decoder.
        chunk = element.data.word_select(element.offset[5:], BLOCK_BITS)
        raw, fp = Signal(BLOCK_BITS, reset_less=True), Signal()
        codes = Mux(command.fmt == FP4, fp4_codes(Mux(element.offset[4], chunk[128:], chunk[:128])), chunk[:192])
        is_fp = command.fmt != INT8
        m.d.sync += self.write.eq(Cat(take_block & (row == r) for r in range(columns)))
        with m.If(take_block):
            m.d.sync += [fp.eq(is_fp), raw.eq(Mux(is_fp, Cat(codes, chunk[192:]), chunk) & present.replicate(BLOCK_BITS))]
        m.d.comb += self.stationary.eq(decode_block(raw, fp))
        return m


class Matmul(wiring.Component):
    """MATMUL instructions. Equals `golden.units.matmul` bit for bit.

    Members: those of every unit; read ports `stream`, `scale`, `stat`, write port `drain`;
    counter events: `count_block` (a block entered the array), `count_macs` (32 x rows for it, else 0),
    `count_wait_stream` (a pass is under way or due and its next block or scale is not there), `count_wait_stat` (only the stationary
    set is missing), `count_wait_drain` (only room for results is missing).

    Rate: one block per cycle, across passes and instructions, while every pass has at least max(2 rows, C + 1) blocks (the time
    to load the next stationary set) and sums that are continued at once come at least `Accumulators.revisit` blocks later; shorter passes
    are padded with idle cycles. A lane word is written for each block of a last pass; the pipeline never stalls, blocks of last passes
    wait for credits.
    Latency: `latency` cycles from the block's entry to its lane word in the drain's FIFO.
    Errors (first one held): SRAM_RANGE, ALIGNMENT (value: address), ILLEGAL_OPERAND (value: n, k or flags).
    Signals leave in instruction order: sig_a when all operands have been read, sig_b and sig_c when the last write is visible.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        self.array, self.accumulators = SystolicArray(config), Accumulators(config)
        self.latency = self.array.latency - Accumulators.DOT_DELAY + self.accumulators.latency
        super().__init__({
            **unit_members(config, BY_OP[Op.MATMUL]),
            "stream": Out(SramRead(config)), "scale": Out(SramRead(config)), "stat": Out(SramRead(config)),
            "drain": Out(SramWrite(config)),
            "count_block": Out(1), "count_macs": Out(range(config.macs + 1)),
            "count_wait_stream": Out(1), "count_wait_stat": Out(1), "count_wait_drain": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.front = front = MatmulFrontEnd(config)
        connect(m, flipped(self.command), front.command)
        commands = {}
        for name, layout in front.parts.items():
            m.submodules[f"{name}_commands"] = fifo = Fifo(layout, 2 * COMMANDS if name == "signals" else COMMANDS)
            connect(m, getattr(front, name), fifo.i)
            commands[name] = fifo.o

        # Fetch.
        errors = [(front.error.valid, front.error.code, front.error.pc, front.error.value)]
        elements = {}
        for name, port, walker in (("stream", self.stream, PassWalker(MX_BLOCK)), ("scale", self.scale, PassWalker(1)),
                                   ("stat", self.stat, StationaryWalker())):
            m.submodules[f"{name}_walker"], m.submodules[f"{name}_fetcher"] = walker, fetcher = walker, Fetcher(config)
            connect(m, commands[f"walk_{name}"], walker.command)
            connect(m, walker.o, fetcher.i)
            connect(m, fetcher.read, flipped(port))
            elements[name] = fetcher.o
            pc = Signal(PC_BITS, name=f"{name}_pc")
            with m.If(walker.o.valid & walker.o.ready):
                m.d.sync += pc.eq(walker.pc)
            errors += [(fetcher.error, Error.SRAM_RANGE, pc, fetcher.error_addr),
                       (walker.misaligned, Error.ALIGNMENT, walker.pc, walker.o.payload.addr)]

        # Operands.
        m.submodules.edge, m.submodules.loader = edge, loader = StreamEdge(), StationaryLoader(config)
        chunk = elements["stream"]
        connect(m, commands["edge"], edge.command)
        m.d.comb += [edge.i.valid.eq(chunk.valid), chunk.ready.eq(edge.i.ready),
                     edge.i.payload.eq(chunk.payload.data.word_select(chunk.payload.offset[5:], BLOCK_BITS))]
        connect(m, commands["loader"], loader.command)
        connect(m, elements["stat"], loader.i)
        byte, scale, scale_valid, scale_taken = elements["scale"], Signal(8), Signal(), Signal()
        m.d.comb += byte.ready.eq(~scale_valid | scale_taken)
        with m.If(byte.ready):
            m.d.sync += scale_valid.eq(byte.valid)
            with m.If(byte.valid):
                m.d.sync += scale.eq(byte.payload.data.word_select(byte.payload.offset, 8))

        # Array and accumulators; the tag waits for the columns.
        m.submodules.array, m.submodules.accumulators = array, accumulators = self.array, self.accumulators
        entry = Signal(tag_layout(config))
        tag = entry
        for i in range(array.latency - Accumulators.DOT_DELAY - 1):
            later = Signal(tag_layout(config), name=f"wait{i}")
            m.d.sync += later.eq(tag)
            tag = later
        m.d.comb += [
            array.block.eq(edge.o.payload), array.write.eq(loader.write), array.stationary.eq(loader.stationary),
            accumulators.tag.eq(tag), accumulators.scale_write.eq(loader.scale_write),
            accumulators.scale_set.eq(loader.scale_set), accumulators.scales.eq(loader.scales),
            *[to.eq(dot) for to, dot in zip(accumulators.dot, array.dot)],
        ]
        # Room for the lane words under way (with the credit's way back), and as many again for those that wait for a bank.
        depth = 2 << ceil_log2(self.latency + 6)
        m.submodules.results = drain = Drain(config, depth)
        connect(m, commands["drain"], drain.command)
        connect(m, drain.port, flipped(self.drain))
        m.d.comb += [drain.valid.eq(accumulators.valid), drain.i.eq(accumulators.o)]
        errors.append((drain.error, Error.SRAM_RANGE, drain.pc, drain.error_addr))

        read_all = self._issue(m, commands["issue"], edge.o, loader, drain, scale, scale_valid, scale_taken, entry)
        self._signals(m, commands["signals"], read_all, drain.done)
        m.d.comb += self.busy.eq(self.command.valid | m.submodules.signals_commands.level.any() | self.signal.valid)
        with m.If(~self.error.valid):
            for valid, code, pc, value in reversed(errors):
                with m.If(valid):
                    m.d.sync += [self.error.valid.eq(1), self.error.code.eq(code), self.error.pc.eq(pc),
                                 self.error.value.eq(value)]
        return m

    def _issue(self, m, commands, blocks, loader, drain, scale, scale_valid, scale_taken, entry):
        """Let blocks into the array; returns the event "last block of an instruction"."""
        config, array, revisit = self.config, self.array, self.accumulators.revisit
        command, active = Signal(issue_layout(config)), Signal()
        left, passes, psum = Signal(COUNT_BITS), Signal(PASS_BITS), Signal(ceil_log2(config.psum_depth))
        start, start_sum, final = Signal(), Signal(), Signal()  # first block of a pass; first pass of new sums; last pass, emitted
        which = Signal(ceil_log2(SCALE_SETS))  # number of stationary sets taken so far
        gap = Signal(range(revisit))  # idle cycles due before a sum may be continued
        pass_end, end, fire = Signal(), Signal(), Signal()
        new = commands.payload

        operands = blocks.valid & (scale_valid | ~command.has_scale)
        stationary = ~start | loader.full
        room = ~final | drain.credit
        m.d.comb += [
            pass_end.eq(left == 1), end.eq(fire & pass_end & (passes == 1)),
            fire.eq(active & operands & stationary & room & (~start | start_sum | (gap == 0))),
            blocks.ready.eq(fire), scale_taken.eq(fire & command.has_scale),
            array.valid.eq(fire), array.swap.eq(start), loader.swap.eq(fire & start), drain.reserve.eq(fire & final),
            commands.ready.eq(~active | end),
        ]
        with m.If(fire):
            m.d.sync += [left.eq(left - 1), psum.eq(psum + 1), start.eq(pass_end)]
            with m.If(start):
                m.d.sync += which.eq(which + 1)
            with m.If(pass_end):
                m.d.sync += [left.eq(command.n), psum.eq(command.psum), passes.eq(passes - 1), start_sum.eq(0),
                             final.eq(command.last & (passes == 2))]
        # Block j of the next pass must enter at least `revisit` cycles after block j of this one.
        with m.If(fire & pass_end):
            m.d.sync += gap.eq(Mux(command.n < revisit, revisit - command.n, 0))
        with m.Elif(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        with m.If(commands.ready):
            m.d.sync += active.eq(commands.valid)
            with m.If(commands.valid):
                m.d.sync += [command.eq(new), left.eq(new.n), passes.eq(new.k), psum.eq(new.psum), start.eq(1),
                             start_sum.eq(new.first), final.eq(new.last & (new.k == 1))]

        weight = Mux(command.has_scale, scale, ONE_SCALE)
        m.d.sync += [entry.valid.eq(fire), self.count_block.eq(fire),
                     self.count_macs.eq(Mux(fire, MX_BLOCK * command.rows, 0)),
                     self.count_wait_stream.eq(active & ~operands),
                     self.count_wait_stat.eq(active & operands & ~stationary),
                     self.count_wait_drain.eq(active & operands & stationary & ~room)]
        with m.If(fire):
            m.d.sync += [entry.set.eq(which + start - 1), entry.exp.eq(weight + command.exp), entry.nan.eq(weight == 255),
                         entry.psum.eq(psum), entry.start.eq(start_sum), entry.keep.eq(~final), entry.emit.eq(final)]
        return end

    def _signals(self, m, commands, read_all, written):
        """Semaphore numbers in instruction order: sig_a after `read_all`, then sig_b and sig_c after `written` (a count)."""
        reads, writes = Signal(4), Signal(4)  # events not yet used: the command FIFOs bound them
        step, used = Signal(2), Signal()
        c, o = commands.payload, self.signal
        use_read, use_write = used & (step == 0) & c.runs, used & (step == 1) & c.runs & c.emits
        happened = Mux(step == 0, ~c.runs | (reads != 0), (step == 2) | ~(c.runs & c.emits) | (writes != 0))
        number = Mux(step == 0, c.sig_a, Mux(step == 1, c.sig_b, c.sig_c))
        m.d.comb += [used.eq(commands.valid & happened & (~o.valid | o.ready)), commands.ready.eq(used & (step == 2))]
        m.d.sync += [reads.eq(reads + read_all - use_read), writes.eq(writes + written - use_write)]
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)
        with m.If(used):
            m.d.sync += [step.eq(Mux(step == 2, 0, step + 1)), o.valid.eq(number != 0), o.payload.eq(number)]
        return m
