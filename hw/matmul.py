"""The matmul unit: MATMUL instructions (docs/architecture.md) on the systolic array, one block per cycle.

```
            +-> walker -> fetcher -> edge (decode, transpose) -+
 command ---+-> walker -> fetcher -> byte select (scales) -----+-> issue -> array -> accumulators -> drain
 (front     +-> walker -> fetcher -> stationary loader --------+     ^                                 |
  end)      +-> issue control, drain, signals                        +------------- credits -----------+
```
Each part has its own small command FIFO, so that the fetches of the next instructions run ahead.
"""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped
from amaranth.utils import ceil_log2

from .accumulate import SCALE_SETS, Accumulators, tag_layout
from .array import BLOCK_BITS, SystolicArray
from .config import MX_BLOCK, TileConfig
from .drain import Drain
from .edge import COUNT_BITS, PASS_BITS, StreamEdge
from .fetch import Fetcher
from .glue import Fifo, lowest, onehot_mux
from .isa import BY_OP, Error, Op
from .matmul_front import MatmulFrontEnd, issue_layout
from .ports import PC_BITS, SramRead, SramWrite, unit_members
from .queue import RegisterQueue
from .stationary import ONE_SCALE, StationaryLoader
from .vector_queue import Slots
from .walk import PassWalker, StationaryWalker

__all__ = ["Matmul"]

LATE = {"issue": 4, "drain": 4, "signals": 8}
"""Instructions that parts behind the fetchers may queue; two for those in front, whose turn comes at once."""


class Matmul(wiring.Component):
    """MATMUL instructions. Equals `golden.units.matmul` bit for bit.

    Members: those of every unit; read ports `stream`, `scale`, `stat`, write port `drain`;
    counter events: `count_block` (a block entered the array), `count_macs` (32 x rows for it, else 0),
    `count_wait_stream` (a pass is under way or due and its next block or scale is not there),
    `count_wait_stat` (only the stationary set is missing), `count_wait_drain` (only room for results is
    missing).

    Rate: one block per cycle, across passes and instructions, while every pass has at least C + rows + 1
    blocks (the time to load the next stationary set) and `Accumulators.revisit` blocks (before a sum is
    continued); shorter passes are padded with idle cycles. A lane word is written for each block of a last
    pass; the pipeline never stalls, blocks of last passes wait for credits.
    Latency: `latency` cycles from the decision on a block to its lane word in the drain's FIFO.
    Errors (first one held): SRAM_RANGE, ALIGNMENT (value: address), ILLEGAL_OPERAND (value: n, k or flags).
    Signals leave in instruction order: sig_a when all operands have been read, sig_b and sig_c when the last
    write is visible.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        self.array, self.accumulators = SystolicArray(config), Accumulators(config)
        self.latency = 1 + self.array.latency - Accumulators.DOT_DELAY + self.accumulators.latency
        super().__init__(
            {
                **unit_members(config, BY_OP[Op.MATMUL]),
                "stream": Out(SramRead(config)),
                "scale": Out(SramRead(config)),
                "stat": Out(SramRead(config)),
                "drain": Out(SramWrite(config)),
                "count_block": Out(1),
                "count_macs": Out(range(config.macs + 1)),
                "count_wait_stream": Out(1),
                "count_wait_stat": Out(1),
                "count_wait_drain": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.front = front = MatmulFrontEnd(config)
        connect(m, flipped(self.command), front.command)
        commands = {}
        for name, layout in front.parts.items():
            m.submodules[f"{name}_commands"] = fifo = (
                Fifo(layout, LATE[name]) if name in LATE else RegisterQueue(layout)
            )
            connect(m, getattr(front, name), fifo.i)
            commands[name] = fifo.o

        # Fetch.
        errors = [(front.error.valid, front.error.code, front.error.pc, front.error.value)]
        elements = {}
        for name, port, walker in (
            ("stream", self.stream, PassWalker(MX_BLOCK)),
            ("scale", self.scale, PassWalker(1)),
            ("stat", self.stat, StationaryWalker()),
        ):
            m.submodules[f"{name}_walker"], m.submodules[f"{name}_fetcher"] = walker, fetcher = (
                walker,
                Fetcher(config, sparse=name == "scale"),
            )
            connect(m, commands[f"walk_{name}"], walker.command)
            connect(m, walker.o, fetcher.i)
            connect(m, fetcher.read, flipped(port))
            elements[name] = fetcher.o
            pc = Signal(PC_BITS, name=f"{name}_pc")
            with m.If(walker.o.valid & walker.o.ready):
                m.d.sync += pc.eq(walker.pc)
            errors += [
                (fetcher.error, Error.SRAM_RANGE, pc, fetcher.error_addr),
                (walker.misaligned, Error.ALIGNMENT, walker.pc, walker.o.payload.addr),
            ]

        # Operands.
        m.submodules.edge, m.submodules.loader = edge, loader = StreamEdge(), StationaryLoader(config)
        element = elements["stream"]
        m.d.comb += [
            edge.i.valid.eq(element.valid),
            element.ready.eq(edge.i.ready),
            edge.i.payload.eq(element.payload.data.word_select(element.payload.offset[5:], BLOCK_BITS)),
        ]
        connect(m, commands["edge"], edge.command)
        connect(m, commands["loader"], loader.command)
        connect(m, elements["stat"], loader.i)
        m.submodules.scales = scales = Slots(8)
        element = elements["scale"]
        m.d.comb += element.ready.eq(~scales.i.valid | scales.i.ready)
        with m.If(element.ready):  # a register behind the byte select
            m.d.sync += [
                scales.i.valid.eq(element.valid),
                scales.i.payload.eq(element.payload.data.word_select(element.payload.offset, 8)),
            ]

        # Array and accumulators; the tag waits for the columns. A block enters the array in the cycle after
        # the decision on it.
        m.submodules.array, m.submodules.accumulators = array, accumulators = self.array, self.accumulators
        entry = Signal(tag_layout(config))
        tag = entry
        for i in range(array.latency - Accumulators.DOT_DELAY):
            later = Signal(tag_layout(config), name=f"wait{i}")
            m.d.sync += later.eq(tag)
            tag = later
        m.d.comb += [
            array.valid.eq(entry.valid),
            array.block.eq(edge.block),
            array.write.eq(loader.write),
            array.stationary.eq(loader.stationary),
            accumulators.tag.eq(tag),
            accumulators.scale_write.eq(loader.scale_write),
            accumulators.scale_set.eq(loader.scale_set),
            accumulators.scales.eq(loader.scales),
            *[to.eq(dot) for to, dot in zip(accumulators.dot, array.dot)],
        ]
        # Room for the lane words under way (with the credit's way back), and as many again for those that
        # wait for a bank.
        depth = 2 << ceil_log2(self.latency + 6)
        m.submodules.results = drain = Drain(config, depth)
        connect(m, commands["drain"], drain.command)
        connect(m, drain.port, flipped(self.drain))
        m.d.comb += [drain.valid.eq(accumulators.valid), drain.i.eq(accumulators.o)]
        errors.append((drain.error, Error.SRAM_RANGE, drain.pc, drain.error_addr))

        read_all = self._issue(m, commands["issue"], edge, scales.o, loader, drain, entry)
        self._signals(m, commands["signals"], read_all, drain.done)
        m.d.comb += self.busy.eq(
            self.command.valid | m.submodules.signals_commands.level.any() | self.signal.valid
        )
        first = Signal(len(errors))  # one-hot; what raises an error stops and holds its values
        m.d.sync += first.eq(lowest(Cat(valid for valid, *_ in errors)))
        with m.If(~self.error.valid):
            m.d.sync += [
                self.error.valid.eq(first.any()),
                self.error.code.eq(onehot_mux(first, [Const(0, 4) | code for _, code, *_ in errors])),
                self.error.pc.eq(onehot_mux(first, [pc for _, _, pc, _ in errors])),
                self.error.value.eq(onehot_mux(first, [value for *_, value in errors])),
            ]
        return m

    def _issue(self, m, commands, blocks, scales, loader, drain, entry):
        """Let blocks into the array; returns the event "last block of an instruction"."""
        config, array, revisit = self.config, self.array, self.accumulators.revisit
        command, active = Signal(issue_layout(config), reset_less=True), Signal()
        left, passes = Signal(COUNT_BITS, reset_less=True), Signal(PASS_BITS, reset_less=True)
        psum = Signal(ceil_log2(config.psum_depth), reset_less=True)
        start, start_sum, final = (
            Signal(),
            Signal(),
            Signal(),
        )  # first block of a pass; first pass of new sums; last pass, emitted
        which = Signal(ceil_log2(SCALE_SETS))  # number of stationary sets taken so far
        # Idle cycles due before a sum may be continued; not 0; a block is due, and sums do not forbid it.
        gap, waits, due = Signal(range(revisit)), Signal(), Signal()
        # Last block of a pass, last pass, last block of all; the events: a block is let in, the last of all.
        pass_end, last_pass, last = Signal(), Signal(), Signal()
        fire, end = Signal(), Signal()
        # The instruction behind the one in hand: `fire` is late and moves nothing of the FIFO.
        new, held = Signal(issue_layout(config), reset_less=True), Signal()
        m.d.comb += commands.ready.eq(~held)
        with m.If(~held):
            m.d.sync += [held.eq(commands.valid), new.eq(commands.payload)]

        operands = blocks.valid & (scales.valid | ~command.has_scale)
        stationary = ~start | loader.full
        room = ~final | drain.credit
        m.d.comb += [
            end.eq(fire & last),
            fire.eq(due & operands & stationary & room),
            blocks.take.eq(fire),
            scales.ready.eq(fire & command.has_scale),
            loader.swap.eq(fire & start),
            drain.reserve.eq(fire & final),
        ]
        m.d.sync += array.swap.eq(start)
        with m.If(fire & start):
            m.d.sync += which.eq(which + 1)
        # The next values do not depend on `fire` either, and a command is loaded whether it is held or not.
        with m.If(~active | end):
            m.d.sync += [active.eq(held), command.eq(new)]
            with m.If(held):
                m.d.sync += held.eq(0)
        short, still = command.n < revisit, waits & (gap != 1)  # a gap begins with the next pass, goes on
        m.d.sync += due.eq(active & (~start | start_sum | ~still))
        with m.If(fire | ~active):
            with m.If(~active | last):
                m.d.sync += [
                    due.eq(held & (new.first | ~Mux(active, short, still))),
                    left.eq(new.n),
                    pass_end.eq(new.n == 1),
                    passes.eq(new.k),
                    last_pass.eq(new.k == 1),
                    last.eq((new.n == 1) & (new.k == 1)),
                    psum.eq(new.psum),
                    start.eq(1),
                    start_sum.eq(new.first),
                    final.eq(new.last & (new.k == 1)),
                ]
            with m.Elif(pass_end):
                m.d.sync += [
                    due.eq(~short),
                    left.eq(command.n),
                    pass_end.eq(command.n == 1),
                    passes.eq(passes - 1),
                    last_pass.eq(passes == 2),
                    last.eq((command.n == 1) & (passes == 2)),
                    psum.eq(command.psum),
                    start.eq(1),
                    start_sum.eq(0),
                    final.eq(command.last & (passes == 2)),
                ]
            with m.Else():
                m.d.sync += [
                    due.eq(1),
                    left.eq(left - 1),
                    pass_end.eq(left == 2),
                    last.eq((left == 2) & last_pass),
                    psum.eq(psum + 1),
                    start.eq(0),
                ]
        # Block j of the next pass must enter at least `revisit` cycles after block j of this one.
        with m.If(fire & pass_end):
            m.d.sync += [gap.eq(revisit - command.n), waits.eq(short)]
        with m.Elif(waits):
            m.d.sync += [gap.eq(gap - 1), waits.eq(still)]
        # Counted a cycle later, so that nothing but `fire` is made of what is late.
        was_active, had_operands, had_stationary, had_room = (Signal(name=name) for name in (
            "was_active", "had_operands", "had_stationary", "had_room"))
        weight = Mux(command.has_scale, scales.payload, ONE_SCALE)
        m.d.sync += [
            entry.valid.eq(fire),
            self.count_block.eq(fire),
            self.count_macs.eq(Mux(fire, MX_BLOCK * command.rows, 0)),
            was_active.eq(active),
            had_operands.eq(operands),
            had_stationary.eq(stationary),
            had_room.eq(room),
            self.count_wait_stream.eq(was_active & ~had_operands),
            self.count_wait_stat.eq(was_active & had_operands & ~had_stationary),
            self.count_wait_drain.eq(was_active & had_operands & had_stationary & ~had_room),
            entry.set.eq(which + start - 1),
            entry.exp.eq(weight + command.exp),
            entry.nan.eq(weight == 255),
            entry.psum.eq(psum),
            entry.start.eq(start_sum),
            entry.keep.eq(~final),
            entry.emit.eq(final),
        ]
        return end

    def _signals(self, m, commands, read_all, written):
        """Semaphore numbers in instruction order: sig_a after `read_all`, then sig_b and sig_c after
        `written` (a count)."""
        reads, writes = Signal(4), Signal(4)  # events not yet used: the command FIFOs bound them
        step, used = Signal(2), Signal()
        c, o = commands.payload, self.signal
        use_read, use_write = Signal(), Signal()  # a cycle late: the next of a kind is three cycles away
        happened = Mux(step == 0, ~c.runs | (reads != 0), (step == 2) | ~c.emits | (writes != 0))
        number = Mux(step == 0, c.sig_a, Mux(step == 1, c.sig_b, c.sig_c))
        m.d.comb += [
            used.eq(commands.valid & happened & (~o.valid | o.ready)),
            commands.ready.eq((step == 2) & (~o.valid | o.ready)),
        ]
        m.d.sync += [
            use_read.eq(used & (step == 0) & c.runs),
            use_write.eq(used & (step == 1) & c.emits),
            reads.eq(reads - use_read + read_all),
            writes.eq(writes - use_write + written),
        ]
        with m.If(~o.valid | o.ready):
            m.d.sync += [o.valid.eq(used & (number != 0)), o.payload.eq(number)]
        with m.If(used):
            m.d.sync += step.eq(Mux(step == 2, 0, step + 1))
        return m
