"""Program memory and sequencer: five hardware threads share one instruction memory and one free-running
pipeline.

    fetch | memory | decode | registers | add | execute | complete, write
      ^ one word per cycle, first and second word of an instruction in consecutive cycles

A thread has one instruction in flight, and is fetched again while the last one completes. A sequencer
instruction takes eight cycles (late ones: hw/alu.py), so several threads fill the pipeline. A unit
instruction starts a *burst*: its operand words are fetched in consecutive cycles, and stream through the same
adder into the unit's command port. The pipeline never stalls: an instruction that cannot go on when it is
decoded (resource taken, wait pending, words not loaded yet) has no effect and is fetched again later.
"""
from functools import reduce
from operator import or_
from types import SimpleNamespace

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .alu import LATE, LateUnit, fast_alu
from .command import FIFO_DEPTH, beat_layout
from .config import TileConfig
from .glue import RoundRobin, mux, onehot_mux, raw
from .isa import ARGS, BY_OP, ENTRY_WORDS, LOOP_DEPTH, REGISTERS, TABLE, THREADS, UNIT_OPS, Alu, Error, Op
from .memory import DualPortRam
from .ports import PC_BITS, SramRead, error_layout
from .semaphores import COUNT_BITS, add_layout

__all__ = ["ADDR_BITS", "ProgramMemory", "Sequencer"]

N = len(THREADS)
ADDR_BITS = PC_BITS + 1
"""Word indices inside the sequencer: one bit more than an index, so that one past the end and beyond can be
told apart."""
BURST_BEATS = 33
REGISTER_ROWS = 128
INIT_ROWS = N * REGISTERS
UNIT = {ins.unit: ins for ins in UNIT_OPS}


def _field(word, op: Op, name: str):
    """Bits of word 0 that hold a field of the table."""
    f = next(f for f in BY_OP[op].fields if f.name == name)
    return word[f.lo:f.lo + f.width]


def _encode(onehot):
    """Number of the bit that is set."""
    bits = range((len(onehot) - 1).bit_length())
    return Cat(reduce(or_, (onehot[k] for k in range(len(onehot)) if k >> b & 1)) for b in bits)


class ProgramMemory(wiring.Component):
    """Instruction memory, filled in order while threads may already run.

    Members
        load, load_words: pulse; forget the program and expect that many words (1..imem_words) on `words`.
        drop: pulse; forget the program (it failed to load).
        words: stream of instruction words, always taken.
        addr, data: read port; data one cycle after the address.
        loaded: words that may be read; complete: all of them are loaded. entries: words 0..4, 0 until loaded.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "load": In(1), "load_words": In(ADDR_BITS), "drop": In(1),
            "words": In(stream.Signature(32)),
            "addr": In(PC_BITS), "data": Out(32),
            "loaded": Out(ADDR_BITS), "complete": Out(1, init=1), "entries": Out(32).array(N),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = DualPortRam(width=32, depth=self.config.imem_words)
        total = Signal(ADDR_BITS)
        push = Signal()
        m.d.comb += [
            self.words.ready.eq(1),
            push.eq(self.words.valid & ~self.complete),
            ram.wstrb.eq(push), ram.waddr.eq(self.loaded[:len(ram.waddr)]), ram.wdata.eq(self.words.payload),
            ram.raddr.eq(self.addr[:len(ram.raddr)]), self.data.eq(ram.rdata),
        ]
        with m.If(push):
            m.d.sync += [self.loaded.eq(self.loaded + 1), self.complete.eq(self.loaded + 1 == total)]
            for k, entry in enumerate(self.entries):
                with m.If(self.loaded == k):
                    m.d.sync += entry.eq(self.words.payload)
        with m.If(self.load | self.drop):
            m.d.sync += [self.loaded.eq(0), total.eq(self.load_words), self.complete.eq(self.drop),
                         *(entry.eq(0) for entry in self.entries)]
        return m


class Sequencer(wiring.Component):
    """Runs the threads; docs/architecture.md and hw/isa.py define what each instruction does.

    Members
        ready: registers are zero, `start` is accepted (80 cycles after reset). start: pulse; threads begin as
        soon as the entry
            words are there. stop: issue nothing any more (until reset).
        addr, data, loaded, complete, entries: `ProgramMemory`. args: CSR ARG0..7.
        beats, levels: word beats to the command ports and their fill.
        wait, add: to the semaphores. lds: SRAM read port.
        error: held with the first error until reset; pc is the failing instruction's first word.
        halted, waiting: one bit per thread; stuck_pc: where the first thread that has not halted is (its
        WAIT, if it waits); done: all threads have halted and nothing of them is on its way.
        progress: a thread completed an instruction. issued: per unit, a command was completed. count_words:
        words read.

    A thread waits at most once at a time, and runs ahead of a pending WAIT up to the next WAIT, SIGNAL, LDS
    or HALT or to the
    completion of a unit instruction, whose operands stream while it waits.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "ready": Out(1), "start": In(1), "stop": In(1),
            "addr": Out(PC_BITS), "data": In(32),
            "loaded": In(ADDR_BITS), "complete": In(1), "entries": In(32).array(N),
            "args": In(32).array(ARGS),
            "beats": Out(stream.Signature(beat_layout)).array(N),
            "levels": In(range(FIFO_DEPTH + 2)).array(N),
            "wait": Out(stream.Signature(add_layout)).array(N), "add": Out(stream.Signature(add_layout)),
            "lds": Out(SramRead(config)),
            "error": Out(error_layout),
            "halted": Out(N, init=(1 << N) - 1), "stuck_pc": Out(PC_BITS), "waiting": Out(N), "done": Out(1),
            "progress": Out(1), "issued": Out(N), "count_words": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        s = self._state()
        m.submodules.late = s.late = LateUnit(self.config)
        # register file, one copy per read port
        m.submodules.minuends = s.minuends = DualPortRam(width=32, depth=REGISTER_ROWS)
        m.submodules.addends = s.addends = DualPortRam(width=32, depth=REGISTER_ROWS)
        m.submodules.loops = s.loops = DualPortRam(width=ADDR_BITS + 32, depth=32, block=True)
        self._control(m, s)
        self._fetch(m, s)
        self._decode(m, s)
        self._burst(m, s)
        self._read(m, s)
        self._execute(m, s)
        self._complete(m, s)
        return m

    def _state(self) -> SimpleNamespace:
        """Signals shared by the stages; `d_`, `r_`, `e_`, `x_`, `z_` belong to decode, registers, add,
        execute, complete."""
        s = SimpleNamespace()
        s.pc = [Signal(ADDR_BITS, name=f"pc_{t}") for t in range(N)]
        s.depth = [Signal(range(LOOP_DEPTH + 1), name=f"depth_{t}") for t in range(N)]
        s.idle = Signal(N)          # nothing in flight
        s.wake = [Signal(N, name=f"wake_{k}") for k in ("launch", "go", "retry", "late", "execute")]
        s.take = Signal(N)          # granted a fetch
        s.hold_wait = Signal(N)     # fetch again when no wait is pending
        s.hold_burst = Signal(N)    # fetch again when a burst may start
        s.go = Signal(N)            # operands streamed, command not completed
        s.go_value = [Signal(32, name=f"go_value_{t}") for t in range(N)]
        s.wait_pc = [Signal(PC_BITS, name=f"wait_pc_{t}") for t in range(N)]
        s.pending = Cat(w.valid for w in self.wait)
        s.room, s.frozen = Signal(N), Signal()
        s.init_row, s.init = Signal(range(INIT_ROWS)), Signal(init=1)
        s.late_busy, s.add_busy, s.late_thread, s.late_rd = Signal(), Signal(), Signal(N), Signal(4)
        # Burst: fetch side; data side (operands not yet decoded).
        s.b_fetch, s.b_pc, s.b_start = Signal(), Signal(ADDR_BITS), Signal()
        s.b_busy, s.b_mask, s.b_raw = Signal(), Signal(32), Signal(32)
        s.b_low, s.b_last = Signal(32), Signal()
        # Fetched word at the decode stage, and the word before it.
        for d in "dw":
            for name, width in (("word", 32), ("pc", ADDR_BITS), ("ok", 1), ("complete", 1)):
                setattr(s, f"{d}_{name}", Signal(width, name=f"{d}_{name}"))
        s.d_first, s.d_second, s.d_burst, s.d_thread = Signal(), Signal(), Signal(), Signal(N)
        s.common = (("instr", 1), ("burst", 1), ("thread", N), ("op", 6), ("word", 32), ("pc", ADDR_BITS),
                    ("index", 5), ("last", 1),
                    ("late", 1))
        s.addend = (("imm", 32), ("reg", 1), ("rs", 1), ("two", 1),
                    *((f"bad_{name}", 1) for name in ("pc", "opcode", "field", "end", "mask", "thread",
                                                      "sem")))
        for d in "rex":
            for name, width in s.common if d == "x" else s.common + s.addend:
                setattr(s, f"{d}_{name}", Signal(width, name=f"{d}_{name}"))
        s.x_a, s.x_y, s.x_code, s.x_value = Signal(32), Signal(32), Signal(4), Signal(32)
        s.x_next, s.x_skip, s.x_start = Signal(ADDR_BITS), Signal(ADDR_BITS), Signal(ADDR_BITS)
        s.x_count, s.x_more = Signal(32), Signal()
        s.x_write, s.x_finish = Signal(), Signal()  # it has a result at once; the thread goes on at once
        s.z_beats, s.z_going = Signal(N), Signal(N)
        s.z_index, s.z_y = Signal(5), Signal(32)
        for name in ("instr", "burst", "finish", "failed", "sem", "bad_amount", "odd", "beyond",
                     "loops", "none", "full", "empty", "again", "pop"):
            setattr(s, f"z_{name}", Signal(name=f"z_{name}"))
        for name in ("thread", "op", "pc", "code", "next", "skip", "start", "value"):
            setattr(s, f"z_{name}", Signal.like(getattr(s, f"x_{name}"), name=f"z_{name}"))
        s.z_loop, s.z_row = Signal(ADDR_BITS + 32), Signal(5)
        return s

    def _control(self, m: Module, s: SimpleNamespace) -> None:
        """Start, register initialisation, completion of commands, end."""
        starting, launch = Signal(), Signal()
        going = Signal(N)
        m.d.comb += [
            self.ready.eq(~s.init),
            s.frozen.eq(self.stop | self.error.valid),
            launch.eq(starting & (self.complete | (self.loaded >= ENTRY_WORDS))),
            going.eq(s.go & ~s.pending & ~s.frozen.replicate(N)),
            s.wake[1].eq(going), self.issued.eq(s.z_going), self.waiting.eq(s.pending),
            self.done.eq(~starting & ~self.start & self.halted.all() & ~s.pending.any() & ~self.add.valid),
        ]
        m.d.sync += [s.init_row.eq(s.init_row + s.init), s.init.eq(s.init & (s.init_row != INIT_ROWS - 1)),
                     s.go.eq(s.go & ~going)]
        with m.If(self.start):
            m.d.sync += starting.eq(1)
        with m.If(launch):
            m.d.sync += starting.eq(0)
            for t, entry in enumerate(self.entries):
                m.d.sync += [s.pc[t].eq(Cat(entry[:PC_BITS], entry[PC_BITS:].any())),
                             self.halted[t].eq(entry == 0)]
                m.d.comb += s.wake[0][t].eq(entry != 0)
        m.d.sync += [s.idle.eq(reduce(or_, s.wake, s.idle & ~s.take)),
                     s.room.eq(Cat(level <= FIFO_DEPTH - BURST_BEATS for level in self.levels))]
        for t in reversed(range(N)):
            with m.If(~self.halted[t]):
                m.d.comb += self.stuck_pc.eq(Mux(s.pending[t], s.wait_pc[t], s.pc[t]))
        for wait in self.wait:
            with m.If(wait.ready):
                m.d.sync += wait.valid.eq(0)
        with m.If(self.add.valid & self.add.ready):
            m.d.sync += [self.add.valid.eq(0), s.add_busy.eq(0)]

    def _fetch(self, m: Module, s: SimpleNamespace) -> None:
        """Choose the word to read: a second word, else an operand of the burst, else the first word of an
        idle thread."""
        m.submodules.turns = turns = RoundRobin(N)
        free = Signal(N)
        first, second, burst = Signal(), Signal(), Signal()
        pick, space = Signal(N), Signal()  # the next thread is chosen a cycle ahead
        pc, thread = Signal(ADDR_BITS), Signal(N)
        m_first, m_second, m_burst, m_pc = Signal(), Signal(), Signal(), Signal(ADDR_BITS)
        counting, final = Signal(), Signal()  # final: the next operand word is the last
        number, words, total = Signal(6), Signal(6), Signal(6)
        b_thread, b_loaded = Signal(N), Signal()
        # Whether the next operand word is loaded is found a cycle ahead, for the word behind the last one.
        newest, before = Signal(ADDR_BITS), Signal(ADDR_BITS)

        m.d.sync += free.eq(~(s.hold_wait & s.pending)
                            & ~(s.hold_burst & ~(s.room & ~s.b_fetch.replicate(N))))
        m.d.comb += [
            burst.eq(s.b_fetch & ~second & b_loaded),
            before.eq(Mux(s.d_second & ~s.b_fetch, s.d_pc, s.b_pc)),
            turns.requests.eq(s.idle & free & ~pick),
            first.eq(~second & ~burst & ~s.frozen & pick.any()),
            space.eq(first | ~pick.any()), turns.advance.eq(space),
            s.take.eq(pick & first.replicate(N)),
            pc.eq(Mux(second, m_pc + 1, Mux(burst, s.b_pc, onehot_mux(pick, s.pc)))),
            self.addr.eq(pc),
            self.count_words.eq(first | second | burst),
        ]
        m.d.sync += [second.eq(first), newest.eq(self.loaded - self.loaded.any()),
                     b_loaded.eq((before < newest) | self.complete)]
        with m.If(space):
            m.d.sync += pick.eq(turns.grant)

        # A burst has as many words as its mask has bits, counted in two cycles: one word is read before that.
        groups = [Signal(4, name=f"group_{k}") for k in range(4)]
        for k, group in enumerate(groups):
            with m.If(s.d_second):
                m.d.sync += group.eq(sum(s.d_word[8 * k + b] for b in range(8)))
        m.d.comb += [total.eq(sum(groups)), final.eq(Mux(counting, total == 1, number == words))]
        m.d.sync += counting.eq(s.b_start)
        with m.If(counting):
            m.d.sync += words.eq(total)
        # That an instruction goes on is known late: what matters only then is set up in any case.
        with m.If(s.b_start):
            m.d.sync += s.b_fetch.eq(1)
        with m.Elif(burst & final):
            m.d.sync += s.b_fetch.eq(0)
        with m.If(s.d_second & ~s.b_fetch):
            m.d.sync += [s.b_pc.eq(s.d_pc + 1), number.eq(1), b_thread.eq(s.d_thread)]
        with m.Elif(burst):
            m.d.sync += [s.b_pc.eq(s.b_pc + 1), number.eq(number + 1)]
        with m.If(s.frozen):
            m.d.sync += s.b_fetch.eq(0)

        # Memory stage: the word is read; was it there?
        loaded, complete = Signal.like(self.loaded), Signal()
        with m.If(~second):
            m.d.sync += thread.eq(Mux(burst, b_thread, pick))
        m.d.sync += [
            m_first.eq(first), m_second.eq(second), m_burst.eq(burst), m_pc.eq(pc),
            loaded.eq(self.loaded), complete.eq(self.complete),
            s.d_first.eq(m_first), s.d_second.eq(m_second), s.d_burst.eq(m_burst), s.d_thread.eq(thread),
            s.d_pc.eq(m_pc), s.d_ok.eq(m_pc < loaded), s.d_complete.eq(complete),
        ]
        with m.If(m_first | m_second | m_burst):
            m.d.sync += s.d_word.eq(self.data)
        with m.If(s.d_first):
            m.d.sync += [s.w_word.eq(s.d_word), s.w_pc.eq(s.d_pc), s.w_ok.eq(s.d_ok),
                         s.w_complete.eq(s.d_complete)]

    def _decode(self, m: Module, s: SimpleNamespace) -> None:
        """First word in `w_word`, second in `d_word`: what is it, is it legal, may it go on now?"""
        word, op = s.w_word, Signal(6)
        no_operand, raw, number, imm = Signal(32), Signal(), Signal(3), Signal(32)
        imm28 = Cat(s.d_word[:28], s.d_word[27].replicate(4))
        early = self._first_word(m, s)
        unit, late, two = early.unit, early.late, early.two
        reg = Mux(s.d_burst | early.lds, s.d_word[28:], early.reg)
        m.d.comb += [
            op.eq(word), number.eq(_encode(s.d_thread)),
            raw.eq((s.b_low & s.b_raw).any()),
            s.loops.raddr.eq(Cat((onehot_mux(s.d_thread, s.depth) - 1)[:2], number)),
            s.minuends.raddr.eq(Cat(_field(word, Op.ALU, "rs"), number)),
            s.addends.raddr.eq(Cat(reg, number)),
            imm.eq(s.d_word),
        ]
        with m.If(s.d_burst):
            m.d.comb += imm.eq(Cat(s.d_word[:28], Mux(raw, s.d_word[28:], imm28[28:])))
        with m.Else():
            with m.Switch(op):
                for ins in UNIT_OPS:
                    with m.Case(ins.op):
                        m.d.comb += no_operand.eq(0xFFFFFFFF & ~((1 << len(ins.operands)) - 1))
                with m.Case(Op.WAIT, Op.SIGNAL):
                    m.d.comb += imm.eq(_field(word, Op.WAIT, "count"))
                with m.Case(Op.LDS):
                    m.d.comb += imm.eq(imm28)
                with m.Case(Op.ARG):
                    m.d.comb += imm.eq(mux(_field(word, Op.ARG, "index")[:exact_log2(ARGS)], self.args))
        sems = [_field(word, Op.LOAD, f) for f in ("sig_a", "sig_b", "sig_c")]

        drop, waits, bursts, busy, accept = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            drop.eq(~(s.w_ok | s.w_complete) | (~(s.d_ok | s.d_complete))),
            waits.eq((s.d_thread & s.pending).any() & early.waits),
            bursts.eq(unit & (s.b_busy | ~(s.d_thread & s.room).any())),
            busy.eq((late & s.late_busy) | (early.signal & s.add_busy)),
            accept.eq(s.d_second & ~drop & ~waits & ~bursts & ~busy & ~s.frozen),
            s.wake[2].eq(s.d_thread & (s.d_second & ~accept & ~s.frozen).replicate(N)),
            s.b_start.eq(accept & unit & s.d_word.any()),
        ]
        with m.If(s.d_second & ~drop):
            m.d.sync += [s.hold_wait.eq(s.hold_wait & ~s.d_thread | (s.d_thread & waits.replicate(N))),
                         s.hold_burst.eq(s.hold_burst & ~s.d_thread | (s.d_thread & bursts.replicate(N)))]
        with m.If(accept & late):
            m.d.sync += [s.late_busy.eq(1), s.late_thread.eq(s.d_thread),
                         s.late_rd.eq(_field(word, Op.LDS, "rd"))]
        with m.If(accept & early.signal):
            m.d.sync += s.add_busy.eq(1)
        for t in range(N):
            with m.If(s.d_second & s.d_thread[t]):  # of a unit instruction: as in the burst
                m.d.sync += s.go_value[t].eq(Cat(*sems, s.w_pc[:PC_BITS]))

        m.d.sync += [s.r_instr.eq(accept), s.r_burst.eq(s.d_burst & ~s.frozen)]
        with m.If(s.d_second | s.d_burst):
            m.d.sync += [
                s.r_thread.eq(s.d_thread), s.r_op.eq(Mux(s.d_burst, 0, op)), s.r_word.eq(word),
                s.r_imm.eq(imm), s.r_late.eq(late),
                s.r_pc.eq(Mux(s.d_burst, s.d_pc, s.w_pc)), s.r_two.eq(two & ~s.d_burst),
                s.r_reg.eq((reg != 0) & ~(s.d_burst & raw)), s.r_rs.eq(_field(word, Op.ALU, "rs") != 0),
                # A unit instruction without operands is complete with its second word.
                s.r_last.eq(Mux(s.d_burst, s.b_last, unit & ~s.d_word.any())),
                s.r_index.eq(_encode(s.b_low)),
                s.r_bad_pc.eq(~s.w_ok & ~s.d_burst), s.r_bad_opcode.eq(early.bad_opcode & ~s.d_burst),
                s.r_bad_field.eq(early.bad_field & ~s.d_burst),
                s.r_bad_end.eq(~s.d_ok & (two | s.d_burst)),
                s.r_bad_mask.eq((s.d_word & no_operand).any() & ~s.d_burst),
                s.r_bad_thread.eq(early.bad_thread & ~s.d_burst),
                s.r_bad_sem.eq(unit & ~s.d_burst & self._beyond(*sems)),
            ]

    def _first_word(self, m: Module, s: SimpleNamespace) -> SimpleNamespace:
        """Registers beside `w_word` with what the first word alone tells."""
        word, op = s.d_word, s.d_word[:6]
        early = SimpleNamespace(reg=Signal(4))
        for name in ("unit", "late", "lds", "two", "waits", "signal",
                     "bad_opcode", "bad_field", "bad_thread"):
            setattr(early, name, Signal(name=f"early_{name}"))
        undefined, illegal, late, reg = Signal(32), Signal(), Signal(), Signal(4)
        with m.Switch(op):
            for ins in TABLE:
                with m.Case(ins.op):
                    m.d.comb += undefined.eq(0xFFFFFFFF & ~(63 | sum((1 << f.width) - 1 << f.lo
                                                                     for f in ins.fields)))
                    if ins.op in (Op.WAIT, Op.SIGNAL, Op.LOOP):
                        m.d.comb += reg.eq(_field(word, ins.op, "reg"))
                    elif ins.op == Op.ALU:
                        func = _field(word, ins.op, "func")
                        m.d.comb += [reg.eq(_field(word, ins.op, "rt")), illegal.eq(func > max(Alu)),
                                     late.eq(reduce(or_, (func == f for f in LATE)))]
                    elif ins.op == Op.ARG:
                        m.d.comb += illegal.eq(_field(word, ins.op, "index") >= ARGS)

        def one_of(instructions):
            return reduce(or_, (op == ins for ins in instructions))
        with m.If(s.d_first):
            m.d.sync += [
                early.reg.eq(reg), early.unit.eq(one_of(ins.op for ins in UNIT_OPS)),
                early.late.eq(late | (op == Op.LDS)), early.lds.eq(op == Op.LDS),
                early.two.eq(one_of(ins.op for ins in TABLE if ins.words == 2)),
                early.waits.eq(one_of((Op.WAIT, Op.SIGNAL, Op.LDS, Op.HALT))),
                early.signal.eq(op == Op.SIGNAL),
                early.bad_opcode.eq(~one_of(ins.op for ins in TABLE)),
                early.bad_field.eq((word & undefined).any() | illegal),
                early.bad_thread.eq(reduce(or_, (~s.d_thread[ins.unit] & (op == ins.op)
                                                 for ins in UNIT_OPS))),
            ]
        return early

    def _beyond(self, *sems):
        """Some semaphore number does not exist."""
        if self.config.semaphores > max(1 << len(sem) for sem in sems) - 1:
            return Const(0)
        return reduce(or_, (sem >= self.config.semaphores for sem in sems))

    def _burst(self, m: Module, s: SimpleNamespace) -> None:
        """Data side of the burst: which operand is the word at the decode stage?"""
        rest, after = Signal(32), Signal(32)
        m.d.comb += [rest.eq(s.b_mask & ~s.b_low), s.b_last.eq(~rest.any()),
                     after.eq(Mux(s.d_burst, rest, s.d_word))]
        with m.If(s.b_start):
            m.d.sync += s.b_busy.eq(1)
        with m.Elif(s.d_burst):
            m.d.sync += s.b_busy.eq(~s.b_last)
        with m.If(s.d_burst | (s.d_second & ~s.b_busy)):
            m.d.sync += [s.b_mask.eq(after), s.b_low.eq(after & (~after + 1))]
        with m.If(s.d_second & ~s.b_busy):
            m.d.sync += [s.b_raw.eq(onehot_mux(s.d_thread, [Const(UNIT[t].raw_mask, 32) for t in range(N)]))]

    def _read(self, m: Module, s: SimpleNamespace) -> None:
        """Registers and loop counters are read: y = register + immediate, addresses of the next
        instruction."""
        # Memories are slow: a register behind them.
        a, b, loop = Signal(32), Signal(32), Signal.like(s.loops.rdata)
        m.d.sync += [s.e_instr.eq(s.r_instr), s.e_burst.eq(s.r_burst)]
        with m.If(s.r_instr | s.r_burst):
            m.d.sync += [*(getattr(s, f"e_{n}").eq(getattr(s, f"r_{n}")) for n, _ in s.common[2:] + s.addend),
                         a.eq(s.minuends.rdata), b.eq(s.addends.rdata), loop.eq(s.loops.rdata)]
        skip = Signal(17)
        direct = ((s.e_op == Op.LI) | (s.e_op == Op.ARG) | ((s.e_op == Op.ALU) & ~s.e_late))
        start, count = loop[:ADDR_BITS], loop[ADDR_BITS:]
        m.d.comb += skip.eq(s.e_pc + _field(s.e_word, Op.LOOP, "skip"))
        m.d.sync += [s.x_instr.eq(s.e_instr), s.x_burst.eq(s.e_burst)]
        with m.If(s.e_instr | s.e_burst):
            m.d.sync += [
                *(getattr(s, f"x_{n}").eq(getattr(s, f"e_{n}")) for n, _ in s.common[2:]),
                s.x_y.eq((b & s.e_reg.replicate(32)) + s.e_imm),
                s.x_a.eq(a & s.e_rs.replicate(32)),
                s.x_next.eq(s.e_pc + Mux(s.e_two, 2, 1)),
                s.x_skip.eq(skip[:ADDR_BITS] | skip[ADDR_BITS:].any().replicate(ADDR_BITS)),
                s.x_start.eq(start), s.x_count.eq(count - 1), s.x_more.eq(count != 1),
                s.x_code.eq(Error.NONE), s.x_value.eq(s.e_word), s.x_write.eq(direct),
                # HALT ends; LDS is finished by its data, a unit instruction by its go beat.
                s.x_finish.eq(direct | reduce(or_, (s.e_op == op for op in (Op.WAIT, Op.SIGNAL, Op.LOOP,
                                                                            Op.END)))),
            ]
            with m.If(s.e_bad_pc):
                m.d.sync += [s.x_code.eq(Error.PC_RANGE), s.x_value.eq(s.e_pc)]
            with m.Elif(s.e_bad_opcode):
                m.d.sync += s.x_code.eq(Error.ILLEGAL_OPCODE)
            with m.Elif(s.e_bad_field):
                m.d.sync += s.x_code.eq(Error.ILLEGAL_OPERAND)
            with m.Elif(s.e_bad_end):
                m.d.sync += [s.x_code.eq(Error.PC_RANGE), s.x_value.eq(self.loaded)]
            with m.Elif(s.e_bad_mask):
                m.d.sync += [s.x_code.eq(Error.ILLEGAL_OPERAND), s.x_value.eq(s.e_imm)]
            with m.Elif(s.e_bad_thread):
                m.d.sync += s.x_code.eq(Error.ILLEGAL_OPCODE)
            with m.Elif(s.e_bad_sem):
                m.d.sync += s.x_code.eq(Error.ILLEGAL_OPERAND)

    def _execute(self, m: Module, s: SimpleNamespace) -> None:
        """Results and operands leave; what the sum decides is found, for the last stage."""
        y, word = s.x_y, s.x_word
        active, okay, burst, complete = Signal(), Signal(), Signal(), Signal()
        result = Signal(32)
        sem = _field(word, Op.WAIT, "sem")
        amount = Cat(sem, y[:COUNT_BITS])  # an add_layout
        depth = onehot_mux(s.x_thread, s.depth)
        m.d.comb += [
            active.eq(s.x_instr & ~s.frozen), okay.eq(active & (s.x_code == 0)),
            burst.eq(s.x_burst & ~s.frozen), result.eq(y),
            s.late.take.eq(s.x_instr & s.x_late), s.late.x.eq(s.x_a), s.late.y.eq(y),
            s.late.func.eq(_field(word, Op.ALU, "func")),
        ]
        with m.If(s.x_op == Op.ALU):
            m.d.comb += [s.late.start.eq(okay & s.x_late),
                         result.eq(fast_alu(m, _field(word, Op.ALU, "func"), s.x_a, y))]

        # The thread may go on, after a fault as well: nothing is fetched then.
        m.d.comb += [s.wake[4].eq(s.x_thread & (active & s.x_finish).replicate(N)),
                     complete.eq((okay | (burst & (s.x_code == 0))) & s.x_last)]
        for t in range(N):
            with m.If(s.x_thread[t] & complete):
                m.d.sync += s.go[t].eq(1)
            with m.If(s.x_thread[t] & s.x_instr & (s.x_op == Op.WAIT)):  # none is pending then
                m.d.sync += [raw(self.wait[t].payload).eq(amount), s.wait_pc[t].eq(s.x_pc)]
            # Beats leave a cycle later, from registers: the units are far away.
            beat, going = self.beats[t], s.wake[1][t]
            m.d.sync += s.z_beats[t].eq(going | (burst & s.x_thread[t] & (s.x_code == 0)))
            m.d.comb += [
                beat.valid.eq(s.z_beats[t]), beat.payload.go.eq(s.z_going[t]),
                beat.payload.index.eq(s.z_index),
                beat.payload.value.eq(Mux(s.z_going[t], s.go_value[t], s.z_y)),
            ]
        m.d.sync += [s.z_going.eq(s.wake[1]), s.z_index.eq(s.x_index), s.z_y.eq(y)]
        with m.If(s.x_instr & (s.x_op == Op.SIGNAL)):  # none is under way then
            m.d.sync += raw(self.add.payload).eq(amount)

        # Register file, written a cycle later: initialisation, else results at once, else late results (there
        # are none during the initialisation, and they wait for a result that then fails as well).
        late, strobe = Signal(), Signal()
        row, value = Signal.like(s.minuends.waddr), Signal(32)
        m.d.comb += [late.eq(s.late.o.valid & ~(s.x_instr & s.x_write)), s.late.o.ready.eq(late),
                     s.wake[3].eq(s.late_thread & late.replicate(N))]
        with m.If(late):
            m.d.sync += s.late_busy.eq(0)
        m.d.sync += [
            strobe.eq((okay & s.x_write) | late | s.init),
            row.eq(Mux(s.init, s.init_row,
                       Mux(late, Cat(s.late_rd, _encode(s.late_thread)),
                           Cat(_field(word, Op.LI, "rd"), _encode(s.x_thread))))),
            value.eq(Mux(s.init, 0, Mux(late, s.late.o.payload, result))),
        ]
        for ram in (s.minuends, s.addends):
            m.d.comb += [ram.wstrb.eq(strobe), ram.waddr.eq(row), ram.wdata.eq(value)]
        wiring.connect(m, s.late.read, wiring.flipped(self.lds))

        m.d.sync += [
            s.z_instr.eq(active), s.z_burst.eq(burst),
            *(getattr(s, f"z_{n}").eq(getattr(s, f"x_{n}"))
              for n in ("thread", "op", "pc", "code", "next", "skip", "start")),
            s.z_sem.eq(sem != 0), s.z_value.eq(Mux((s.x_code == 0) & (s.x_op == Op.LDS), y, s.x_value)),
            s.z_loop.eq(Mux(s.x_op == Op.LOOP, Cat(s.x_next, y), Cat(s.x_start, s.x_count))),
            s.z_failed.eq(s.x_code != 0),
            s.z_bad_amount.eq(((s.x_op == Op.WAIT) | (s.x_op == Op.SIGNAL))
                              & (self._beyond(sem) | y[COUNT_BITS:].any() | ~y[:COUNT_BITS].any())),
            s.z_odd.eq((s.x_op == Op.LDS) & y[:2].any()),
            s.z_beyond.eq((s.x_op == Op.LDS) & (y >= self.config.sram_bytes)),
            s.z_loops.eq(s.x_op == Op.LOOP), s.z_none.eq((s.x_op == Op.LOOP) & (y[31] | ~y.any())),
            s.z_full.eq((s.x_op == Op.LOOP) & (depth == LOOP_DEPTH)),
            s.z_empty.eq((s.x_op == Op.END) & (depth == 0)),
            s.z_again.eq((s.x_op == Op.END) & s.x_more), s.z_pop.eq((s.x_op == Op.END) & ~s.x_more),
            s.z_row.eq(Cat((depth - (s.x_op == Op.END))[:2], _encode(s.x_thread))),
            s.z_finish.eq(complete | (s.x_instr & (s.x_finish | (s.x_op == Op.LDS) | (s.x_op == Op.ALU)))),
        ]

    def _complete(self, m: Module, s: SimpleNamespace) -> None:
        """Every other effect of an instruction, and errors. The thread is fetched two cycles later at the
        earliest."""
        good, fault, push = Signal(), Signal(4), Signal()
        m.d.comb += [
            good.eq(s.z_instr & ~s.frozen & ~(s.z_failed | s.z_bad_amount | s.z_odd | s.z_beyond | s.z_empty
                                              | (s.z_full & ~s.z_none))),
            push.eq(s.z_loops & ~s.z_none), s.late.load.eq(good & (s.z_op == Op.LDS)),
            fault.eq(Mux(s.z_failed, s.z_code, Mux(s.z_bad_amount, Error.ILLEGAL_OPERAND,
                     Mux(s.z_odd, Error.ALIGNMENT, Mux(s.z_beyond, Error.SRAM_RANGE, Error.LOOP_DEPTH))))),
        ]
        m.d.comb += self.progress.eq(good | (s.z_burst & ~s.frozen))
        for t in range(N):
            mine = s.z_thread[t]
            with m.If(mine & s.z_finish & (good | (s.z_burst & ~s.frozen))):
                m.d.sync += s.pc[t].eq(Mux(s.z_none, s.z_skip, Mux(s.z_again, s.z_start, s.z_next)))
            with m.If(mine & good & (s.z_op == Op.HALT)):
                m.d.sync += self.halted[t].eq(1)
            with m.If(mine & good):
                m.d.sync += s.depth[t].eq(s.depth[t] + push - s.z_pop)
            with m.If(mine & good & (s.z_op == Op.WAIT) & s.z_sem):
                m.d.sync += self.wait[t].valid.eq(1)
        with m.If(good & (s.z_op == Op.SIGNAL)):
            m.d.sync += [self.add.valid.eq(s.z_sem), s.add_busy.eq(s.z_sem)]

        # Loop stack: {first word of the body, iterations left}.
        m.d.comb += [s.loops.wstrb.eq(good & (push | s.z_again)), s.loops.waddr.eq(s.z_row),
                     s.loops.wdata.eq(s.z_loop)]

        # The first error stays.
        with m.If(~s.frozen & ((s.z_instr & ~good) | (s.z_burst & s.z_failed))):
            m.d.sync += self.error.valid.eq(1)
        with m.If((s.z_instr | s.z_burst) & ~self.error.valid):
            m.d.sync += [
                self.error.code.eq(fault), self.error.value.eq(s.z_value),
                self.error.pc.eq(Mux(s.z_burst, onehot_mux(s.z_thread, s.pc), s.z_pc)),
            ]
