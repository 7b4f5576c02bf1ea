"""The way out of the array: credits, lane words to SRAM with mask and running maximum, and word of their
completion."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .edge import COUNT_BITS
from .fp import INF
from .glue import Fifo
from .ports import PC_BITS, SramWrite

__all__ = ["LIMIT_BITS", "Drain", "clamp_limit", "drain_layout"]

LIMIT_BITS = 12
MINUS_INF = INF | 1 << 31

drain_layout = data.StructLayout(
    {
        "out": 32,
        "max_out": 32,
        "above": signed(LIMIT_BITS + 1),
        "over": signed(LIMIT_BITS + 1),
        "step": 1,
        "mask": 1,
        "max": 1,
        "max_first": 1,
        "emit": 1,
        "n": COUNT_BITS,
        "pc": PC_BITS,
    }
)
"""n lane words to `out`, then with `max` the maxima to `max_out`; without `emit` nothing but the reset of the
maxima. `above`, `over`: the mask limits lo and hi, negated."""


def clamp_limit(limit):
    """A 32-bit mask limit in 12 bits: all comparisons with j - step * r (j <= 1023, r <= 31) come out the
    same."""
    limit = limit.as_signed()
    return Mux(
        limit < -32,
        Const(-32, signed(LIMIT_BITS)),
        Mux(limit > 1024, Const(1024, signed(LIMIT_BITS)), limit[:LIMIT_BITS].as_signed()),
    )


class Drain(wiring.Component):
    """Lane words from the accumulators, buffered, masked, written to SRAM in order.

    Members: `command` (drain_layout), `valid` and `i` (a lane word, no back-pressure), `reserve` takes one of
    the places that `credit` promises: a lane word may be started only then. `done`: number (0 .. 2) of
    commands with `emit` of which every write has become visible in this cycle. `error`, `error_addr`,
    `pc`: a write outside of the SRAM was refused; it and all after it are not done.

    One lane word per cycle; between commands a cycle, after one with `max` four.
    Completion relies on the write port holding at most two accepted writes that are not yet visible (a skid
    buffer in front of the arbiter): a write is visible when `port.busy` is low or two more have been
    accepted.
    """

    def __init__(self, config: TileConfig, depth: int):
        self.config, self.depth = config, depth
        super().__init__(
            {
                "command": In(stream.Signature(drain_layout)),
                "valid": In(1),
                "i": In(32 * config.columns),
                "credit": Out(1),
                "reserve": In(1),
                "done": Out(2),
                "error": Out(1),
                "error_addr": Out(32),
                "pc": Out(PC_BITS),
                "port": Out(SramWrite(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, lanes = self.config, range(self.config.columns)
        m.submodules.words = words = Fifo(32 * config.columns, self.depth)
        m.d.comb += [words.i.valid.eq(self.valid), words.i.payload.eq(self.i)]
        pop = Signal()
        # `pop` comes late and counts a cycle after; the place of the FIFO's output register makes up for it.
        credits = Signal(range(self.depth + 2), init=self.depth + 1)
        popped = Signal()
        m.d.sync += [
            popped.eq(pop),
            credits.eq(credits + popped - self.reserve),
            # not 0 after this cycle; `reserve` comes late
            self.credit.eq(Mux(popped, ~self.reserve | (credits != 0),
                               Mux(self.reserve, credits != 1, credits != 0))),
        ]

        def reach(j, r):
            """j >= step * r, for signed j; all but its low bits are looked at once for every lane."""
            low = exact_log2(config.columns)
            return ~j[-1] & (~step | j[low:-1].any() | (j[:low] >= r))

        def less(a, b):
            """Total order of float32, `fp_max`'s; of equal operands either answer does."""
            return Mux(a[31] ^ b[31], a[31], (a[:31] < b[:31]) ^ a[31])

        # The command in hand and the place in it.
        command, active, finish = Signal(drain_layout, reset_less=True), Signal(), Signal()
        left, first, last_word = Signal(COUNT_BITS, reset_less=True), Signal(), Signal()
        new = self.command.payload
        m.d.comb += self.command.ready.eq(~active)

        # Lanes that the mask hides: of the lane word in turn; `command.above` and `over` are a word ahead.
        hidden = Signal(config.columns, reset_less=True)
        above, over = Mux(active, command.above, new.above), Mux(active, command.over, new.over)
        step, mask = Mux(active, command.step, new.step), Mux(active, command.mask, new.mask)
        hides = Cat(mask & ~(reach(above, r) & ~reach(over, r)) for r in lanes)

        # Places outside of the SRAM. `out` counts up to the first of them only.
        sram = exact_log2(config.sram_bytes)
        out_beyond, max_beyond = Signal(), Signal()

        # Write register: a lane word, or the maxima after them. A word outside of the SRAM goes no further:
        # `full` without `inside`.
        full, inside = Signal(), Signal()
        word, addr = Signal(32 * config.columns, reset_less=True), Signal(32, reset_less=True)
        ends, resets, is_max = Signal(), Signal(), Signal()
        error_pc = Signal(PC_BITS, reset_less=True)
        req = self.port.req
        room, sent = Signal(), Signal()
        m.d.comb += [
            req.valid.eq(inside),
            sent.eq(inside & req.ready),
            room.eq(~full | sent),
            self.error.eq(full & ~inside),
            self.error_addr.eq(addr),
            self.pc.eq(error_pc),
        ]
        maxima = [Signal(32, name=f"max_{r}", reset_less=True) for r in lanes]
        # Lane words of the command are due; they are out, its maxima are due.
        copies, maximum = Signal(), Signal()
        write_max = Signal()
        m.d.comb += [
            pop.eq(copies & room & words.o.valid),
            words.o.ready.eq(copies & room),
            write_max.eq(maximum & ~full),  # by then the last lane word is part of the maxima
            finish.eq(Mux(command.emit, Mux(command.max, write_max, pop & last_word), active & ~full)),
        ]
        comes = (copies & words.o.valid) | write_max
        with m.If(room):  # loads in every cycle while it is free, whether a word comes or not
            m.d.sync += [
                full.eq(comes),
                inside.eq(comes & ~Mux(maximum, max_beyond, out_beyond | command.out[sram])),
                addr.eq(Mux(maximum, command.max_out, command.out)),
                ends.eq(maximum | (last_word & ~command.max)),
                is_max.eq(maximum),
                error_pc.eq(command.pc),
                resets.eq(first & command.max_first),
                *[
                    word[32 * r : 32 * r + 32].eq(
                        Mux(maximum, maxima[r],
                            Mux(hidden[r], Const(MINUS_INF, 32), words.o.payload[32 * r : 32 * r + 32]))
                    )
                    for r in lanes
                ],
            ]
        with m.If(pop):
            m.d.sync += [
                first.eq(0),
                left.eq(left - 1),
                last_word.eq(left == 2),
                copies.eq(~last_word),
                maximum.eq(last_word & command.max),
                command.out[: sram + 1].eq(command.out[: sram + 1] + config.lane_bytes),
            ]
        with m.If(pop | ~active):
            m.d.sync += [hidden.eq(hides), command.above.eq(above + 1), command.over.eq(over + 1)]
        with m.If(write_max):
            m.d.sync += maximum.eq(0)
        with m.If(finish):
            m.d.sync += active.eq(0)
        with m.If(~active):  # whether a command is there or not
            m.d.sync += [
                active.eq(self.command.valid),
                copies.eq(self.command.valid & new.emit),
                *(command[field].eq(new[field]) for field in drain_layout.members
                  if field not in ("above", "over")),
                left.eq(new.n),
                last_word.eq(new.n == 1),
                first.eq(1),
                out_beyond.eq(new.out[sram + 1 :].any()),
                max_beyond.eq(new.max_out[sram:].any()),
            ]

        reset_only = Signal(init=1)  # a cycle late: no word is compared so soon
        m.d.sync += reset_only.eq(active & ~command.emit & ~full & command.max_first)
        for r, best in enumerate(maxima):
            value = word[32 * r : 32 * r + 32]
            with m.If(reset_only):
                m.d.sync += best.eq(MINUS_INF)
            with m.Elif(sent & ~is_max & (resets | less(best, value))):
                m.d.sync += best.eq(value)

        ratio = config.word_bytes // config.lane_bytes
        place = addr[exact_log2(config.lane_bytes) : exact_log2(config.word_bytes)]
        m.d.comb += [
            req.payload.addr.eq(addr[exact_log2(config.word_bytes) :]),
            req.payload.data.eq(Cat(*[word] * ratio)),
            req.payload.strb.eq(
                Cat((place == i).replicate(config.lane_bytes) for i in range(ratio)) if ratio > 1 else -1
            ),
        ]

        # Completion: commands that end with the last write accepted, or the one before it.
        newer, older = Signal(), Signal()
        visible = ~self.port.busy
        m.d.comb += self.done.eq(Mux(visible, newer + older, sent & older))
        with m.If(sent):
            m.d.sync += [newer.eq(ends), older.eq(newer & ~visible)]
        with m.Elif(visible):
            m.d.sync += [newer.eq(0), older.eq(0)]
        return m
