"""Semaphore file: 16-bit counters between the hardware threads, the units and other tiles."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .glue import RoundRobin, lowest, onehot_mux, raw
from .isa import THREADS
from .memory import DualPortRam
from .ports import SEM_BITS

__all__ = ["COUNT_BITS", "Semaphores", "add_layout"]

COUNT_BITS = 16
PARTS = 8
add_layout = data.StructLayout({"sem": SEM_BITS, "count": COUNT_BITS})


class Semaphores(wiring.Component):
    """`config.semaphores` counters, all 0 after reset and after `clear`.

    Members
        signal: one stream of semaphore numbers per unit, each item adds 1 (number 0 is never sent).
        add: two streams (sequencer, NoC) of {sem, count}. Here as in `signal`, `ready` is a register.
        wait: one stream of {sem, count} per thread; it is taken when the counter is at least `count` (not
        0), which it then loses.
        error, error_sem: high from the cycle after an addition went over 65535; the counter then keeps its
        value.
        idle: nothing offered and nothing in flight, except waits that cannot be satisfied.

    One operation every two cycles: read, then add or compare and write. Waits go first (each is tried only
    when new and after an addition to its counter), additions are served round robin. From a lone signal to
    the wait it satisfies: 5 cycles.
    Numbers must be below `config.semaphores`: the issuers check.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "signal": In(stream.Signature(SEM_BITS)).array(len(THREADS)),
            "add": In(stream.Signature(add_layout)).array(2),
            "wait": In(stream.Signature(add_layout)).array(len(THREADS)),
            "clear": In(1),
            "error": Out(1),
            "error_sem": Out(SEM_BITS),
            "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        streams = [*self.signal, *self.add]
        m.submodules.turns = turns = RoundRobin(len(streams))
        # The counters are a memory; one that was not written since `clear` is 0.
        m.submodules.counters = counters = DualPortRam(width=COUNT_BITS, depth=self.config.semaphores)
        written = Signal(self.config.semaphores)

        # Additions: `held` is what its stream offered in the cycle before, or, while `full`, what was not
        # served then. So `ready` is a register, and the units need not wait for the arbiter.
        offered, taken, full = Signal(len(streams)), Signal(len(streams)), Signal(len(streams))
        m.d.comb += [offered.eq(Cat(s.valid for s in streams) | full), turns.requests.eq(offered)]
        m.d.sync += full.eq(offered & ~taken)
        additions = []
        for k, source in enumerate(streams):
            held = Signal(source.payload.shape(), name=f"held_{k}", reset_less=True)
            m.d.comb += source.ready.eq(~full[k])
            with m.If(~full[k]):
                m.d.sync += raw(held).eq(raw(source.payload))
            additions.append(held if k >= len(self.signal) else Cat(held, Const(1, COUNT_BITS)))

        # The operation: chosen when `busy` is low, its counter read in the next cycle, written in the one
        # after.
        waiter, adder = Signal(len(THREADS)), Signal(len(streams))  # one-hot: whose operation it is
        asked, op = Signal(add_layout), Signal(add_layout)  # asked: by a wait, else 0
        minus = Signal()  # a wait's, not an addition
        busy, write = Signal(), Signal()
        known = Signal(PARTS)  # one for each part of the counters: the rest of the choice is the next cycle's
        tried = Signal(len(THREADS))
        first = Signal(len(THREADS))
        # never twice in a row: its result is not out yet
        todo = Cat(w.valid for w in self.wait) & ~tried & ~waiter
        free = ~busy | write
        m.d.comb += [
            first.eq(lowest(todo)),
            turns.advance.eq(free & ~todo.any()),
            taken.eq(turns.grant & turns.advance.replicate(len(streams))),
        ]
        with m.If(free):
            m.d.sync += [
                waiter.eq(first), minus.eq(todo.any()), adder.eq(taken), busy.eq(todo.any() | offered.any()),
                raw(asked).eq(onehot_mux(first, [w.payload for w in self.wait])),
            ]
        number = raw(asked) | onehot_mux(adder, additions)
        with m.If(~write):  # the cycle of the read; a wait subtracts
            m.d.sync += op.eq(number ^ Cat(Const(0, SEM_BITS), minus.replicate(COUNT_BITS)))
        sem, part = number[:len(counters.raddr)], len(written) // PARTS
        low = len(sem) - exact_log2(PARTS)
        m.d.comb += [counters.raddr.eq(sem), counters.ren.eq(~write)]
        m.d.sync += [
            write.eq(busy & ~write),
            known.eq(Cat(written[k * part:(k + 1) * part].bit_select(sem[:low], 1) for k in range(PARTS))),
        ]

        # One adder; what goes over 65535 or below 0 has the carry or lacks it. A counter that is 0 becomes
        # what is added, and satisfies no wait.
        total, filled = Signal(COUNT_BITS + 1), Signal()
        done, over = Signal(), Signal()
        m.d.comb += [
            filled.eq(known.bit_select(op.sem[low:len(sem)], 1)),
            total.eq(counters.rdata + op.count + minus),
            over.eq(Mux(filled, total[-1] ^ minus, minus)), done.eq(write & ~over),
            counters.wstrb.eq(done), counters.waddr.eq(op.sem),
            counters.wdata.eq(Mux(filled, total[:COUNT_BITS], op.count)),
        ]
        with m.If(self.clear):
            m.d.sync += written.eq(0)
        with m.Elif(done):
            m.d.sync += written.bit_select(op.sem[:len(counters.raddr)], 1).eq(1)
        with m.If(write & ~minus & over & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_sem.eq(op.sem)]
        for t, wait in enumerate(self.wait):
            m.d.comb += wait.ready.eq(done & waiter[t])
            with m.If(write & waiter[t]):
                m.d.sync += tried[t].eq(over)
            with m.Elif(write & ~minus & (wait.payload.sem == op.sem)):
                m.d.sync += tried[t].eq(0)
        m.d.comb += self.idle.eq(~busy & ~offered.any() & ~todo.any())
        with m.If(self.clear):
            m.d.sync += [busy.eq(0), write.eq(0), full.eq(0), tried.eq(0), self.error.eq(0)]
        return m
