"""Command port: turns the sequencer's word beats into the decoded command of one unit."""
from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .glue import Fifo, raw
from .isa import Instruction
from .ports import PC_BITS, SEM_BITS, command_layout

__all__ = ["CommandPort", "FIFO_DEPTH", "beat_layout", "go_layout"]

FIFO_DEPTH = 64
"""Beats that a command port holds: a burst of at most 33 beats (32 operands and `go`) starts when 33 are
free."""

beat_layout = data.StructLayout({"value": 32, "index": 5, "go": 1})
"""Operand `index` of the next command is `value`; or, with `go`, the command is complete and `value` is a
`go_layout`."""

go_layout = data.StructLayout({"sig_a": SEM_BITS, "sig_b": SEM_BITS, "sig_c": SEM_BITS, "pc": PC_BITS})


class CommandPort(wiring.Component):
    """Assembles beats into commands: absent operands get the table's default, `mask` tells which were
    present.

    Members: `i` (beats), `o` (command_layout(ins)), `level` (beats waiting), `busy` (a beat or a command is
    held).
    Double buffered: the operands of the next command are collected while `o` waits; one beat per cycle, but
    none in the cycle after `go`; `o` one cycle after `go`, but not in the cycle after the command before it
    was taken. Beats of operands that the instruction does not have are ignored. Reset drops everything;
    no beat is taken in the cycle after it.
    """

    def __init__(self, ins: Instruction):
        self.ins = ins
        super().__init__({
            "i": In(stream.Signature(beat_layout)),
            "o": Out(stream.Signature(command_layout(ins))),
            "level": Out(range(FIFO_DEPTH + 3)),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = Fifo(beat_layout, FIFO_DEPTH, block=True)
        wiring.connect(m, fifo.i, wiring.flipped(self.i))
        beat = fifo.o.payload
        go = Signal(go_layout)
        # After reset, as after a command, the collecting registers return to their defaults: `taken` alone
        # does it, no reset goes to them.
        take, taken = Signal(), Signal(init=1)
        # `o` follows the collected operands while it is not valid, so that nothing wide hangs on a unit's
        # `ready`, which comes late in its cycle.
        out = Signal(command_layout(self.ins), reset_less=True)
        m.d.comb += [
            go.eq(beat.value),
            fifo.o.ready.eq((~beat.go | ~self.o.valid) & ~taken),
            take.eq(fifo.o.valid & beat.go & ~self.o.valid & ~taken),
            self.level.eq(fifo.level),
            self.busy.eq(fifo.level.any() | self.o.valid),
            raw(self.o.payload).eq(raw(out)),
        ]
        mask = Signal(len(self.ins.operands), reset_less=True)
        m.d.sync += [taken.eq(take), self.o.valid.eq(take | (self.o.valid & ~self.o.ready))]
        with m.If(~self.o.valid):
            m.d.sync += [out.mask.eq(mask), *(out[f].eq(go[f]) for f in ("sig_a", "sig_b", "sig_c", "pc"))]
        with m.If(taken):
            m.d.sync += mask.eq(0)
        for k, operand in enumerate(self.ins.operands):
            # Defaults from the start, so that an absent operand needs no multiplexer: all together, by one
            # synchronous reset that is a register.
            value = Signal(32, init=operand.default, name=f"{operand.name}_next", reset_less=True)
            with m.If(~self.o.valid):
                m.d.sync += out[operand.name].eq(value)
            with m.If(taken):
                m.d.sync += value.eq(operand.default)
            with m.Elif(fifo.o.valid & ~beat.go & (beat.index == k)):
                m.d.sync += [value.eq(beat.value), mask[k].eq(1)]
        return m
