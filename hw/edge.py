"""The array's edge: bytes as they lie in memory (MXINT8, MXFP6, MXFP4, or a tile to transpose) -> blocks of
32 signed bytes."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .array import BLOCK_BITS
from .config import MX_BLOCK
from .glue import onehot_mux
from .memory import DualPortRam

__all__ = [
    "COUNT_BITS",
    "FP4",
    "FP6",
    "FP6_BITS",
    "FRACTION_BITS",
    "INT8",
    "PASS_BITS",
    "StreamEdge",
    "Transposer",
    "decode_block",
    "edge_command",
    "fp4_codes",
]

INT8, FP6, FP4 = range(3)
FRACTION_BITS = {INT8: 6, FP6: 3, FP4: 3}
"""Fraction bits of the signed bytes that leave the edge: FP4 is widened to FP6 (four times its own integer
form), which is exact and lets both share one decoder."""
COUNT_BITS = 11
"""Blocks of a pass: 1 .. 1024."""
PASS_BITS = 16
FP6_BITS = 6 * MX_BLOCK


def fp4_codes(half):
    """32 E2M1 codes (128 bits) as E2M3 codes (192 bits), the same values."""
    return Cat(Cat(Const(0, 2), half[4 * i : 4 * i + 4]) for i in range(MX_BLOCK))


def _e2m3(code):
    """E2M3 code -> 8 times its value, a signed byte in -60 .. 60."""
    mantissa, low, high, sign = code[:3], code[3], code[4], code[5]
    # Significand with sign, two's complement in 5 bits: too short for a carry chain.
    borrow = sign & mantissa.any()
    value = Cat(
        mantissa[0],
        mantissa[1] ^ (sign & mantissa[0]),
        mantissa[2] ^ (sign & mantissa[:2].any()),
        (low | high) ^ borrow,
        borrow | (sign & (low | high)),
    )
    extended = Cat(value, value[4].replicate(3))
    return Mux(high, Mux(low, extended << 2, extended << 1)[:8], extended)


def decode_block(raw, fp):
    """256 bits: 32 signed bytes as they are, or with `fp` set 32 E2M3 codes in the low 192 bits, decoded."""
    return Cat(Mux(fp, _e2m3(raw[6 * i : 6 * i + 6]), raw[8 * i : 8 * i + 8]) for i in range(MX_BLOCK))


class Transposer(wiring.Component):
    """32 x 32 byte transposer: one row in, one column out per tick, no double buffer.

    Members: `tick` moves everything by one step, in the next cycle (thousands of registers need it from a
    register); `phase` counts the ticks modulo 32; `i`, in the next cycle, is row `phase` of a tile, `o`, in
    the next cycle, is column `phase` of the tile that went in during the 32 ticks before. Column `phase` has
    element t = byte `phase` of row t. `show`: a tile comes out; `last`: with this tick the last one has. `o`
    is 0 in cycles after those with `show` low, if it falls with `last`.

    Lane b and time t are exchanged bit by bit: for each bit s, from 16 down to 1, lanes with the bit set are
    delayed by s, lanes b and b + s are swapped in ticks whose phase has the bit set, then lanes with the bit
    clear are delayed by s. Every delay before a stage is a multiple of twice its s, so that
    all stages see the same phase; one register in the middle makes the total 32.
    A delay line is one wide memory for all lanes of a stage, or registers where a RAM of 16 rows would be
    mostly empty: 992 bytes in all.
    """

    CUT = 8
    """The pipeline register follows this stage."""
    SHORT = 4
    """The longest delay made of registers."""

    def __init__(self):
        super().__init__(
            {
                "tick": In(1),
                "phase": In(exact_log2(MX_BLOCK)),
                "i": In(BLOCK_BITS),
                "show": In(1),
                "last": In(1),
                "o": Out(BLOCK_BITS),
            }
        )

    def _delay(self, m, name, lanes, ticks):
        if ticks <= self.SHORT:
            later = Cat(lanes)
            for tick in range(ticks):
                earlier, output = later, name == "after_1"  # of half the lanes
                later = Signal(8 * len(lanes), name=f"{name}_{tick}", reset_less=not output)
                with m.If(self._moves):
                    m.d.sync += later.eq(earlier)
            if output:
                clear = Signal()
                m.d.sync += clear.eq(self.tick & self.last)
                with m.If(clear):
                    m.d.sync += later.eq(0)
        else:
            m.submodules[name] = ram = DualPortRam(width=8 * len(lanes), depth=ticks)
            place, following = Signal(exact_log2(ticks)), Signal(exact_log2(ticks))
            m.d.sync += [place.eq(self.phase), following.eq(self.phase + 1)]
            m.d.comb += [
                ram.waddr.eq(place),
                ram.wdata.eq(Cat(lanes)),
                ram.wstrb.eq(self._moves),
                ram.raddr.eq(following),
                ram.ren.eq(self._moves),
            ]
            later = ram.rdata
        return [later[8 * i : 8 * i + 8] for i in range(len(lanes))]

    def elaborate(self, platform):
        m = Module()
        self._moves, shown = Signal(), Signal()
        m.d.sync += [self._moves.eq(self.tick), shown.eq(self.show)]
        lanes = [self.i[8 * b : 8 * b + 8] for b in range(MX_BLOCK)]
        for s in (16, 8, 4, 2, 1):
            high = [b for b in range(MX_BLOCK) if b & s]
            low = [b - s for b in high]
            for b, late in zip(high, self._delay(m, f"before_{s}", [lanes[b] for b in high], s)):
                lanes[b] = late
            phase = self.phase if s >= self.CUT else self.phase - 1
            swap = Signal(name=f"swap_{s}")
            m.d.sync += swap.eq(phase[exact_log2(s)])
            a, b = (Signal(BLOCK_BITS // 2, name=f"{side}_{s}") for side in ("low", "high"))
            m.d.comb += [a.eq(Cat(lanes[x] for x in low)), b.eq(Cat(lanes[x] for x in high))]
            to_low, to_high = Signal.like(a, name=f"to_low_{s}"), Signal.like(b, name=f"to_high_{s}")
            m.d.comb += [
                to_low.eq(Mux(swap, b, a)),
                to_high.eq(Mux(swap, a, b) & (shown if s == 1 else Const(1)).replicate(len(a))),
            ]
            late = self._delay(m, f"after_{s}", [to_low[8 * i : 8 * i + 8] for i in range(len(low))], s)
            for i, (x, y) in enumerate(zip(low, high)):
                lanes[x], lanes[y] = late[i], to_high[8 * i : 8 * i + 8]
            if s == self.CUT:
                cut = Signal(BLOCK_BITS, reset_less=True)
                with m.If(self._moves):
                    m.d.sync += cut.eq(Cat(lanes))
                lanes = [cut[8 * x : 8 * x + 8] for x in range(MX_BLOCK)]
        m.d.comb += self.o.eq(Cat(lanes))
        return m


edge_command = data.StructLayout({"fmt": 2, "transpose": 1, "offset": 5, "n": COUNT_BITS, "k": PASS_BITS})
"""k passes of n blocks in format `fmt`; `transpose`: columns offset .. offset + n - 1 of k tiles of 32
rows."""


class StreamEdge(wiring.Component):
    """Chunks of 32 bytes -> blocks of 32 signed bytes (integer form with `FRACTION_BITS`), for one command
    after another.

    Members: `command` (edge_command), `i` chunks; `valid`: there is a block, `take` (only then) takes it, and
    in the next cycle it is on `block`. A pass starts with a new chunk; it takes n
    chunks (MXINT8), ceil(3n / 4) (MXFP6: 24-byte blocks across chunks), ceil(n / 2) (MXFP4) or 32
    (transposed). One block per cycle in every format, also from command to command; a transposed tile comes
    out while the next one goes in.
    Transposition to plain needs the 32 ticks in which the last tile comes out, and nothing else. `valid`
    rises in the cycle after the block's chunk was taken: control runs a cycle ahead of the data, so that
    what moves them comes from registers. `block` is decoded combinationally from a register; `i.ready`
    is free of `i.valid` and `take`.
    """

    def __init__(self):
        super().__init__(
            {
                "command": In(stream.Signature(edge_command)),
                "i": In(stream.Signature(BLOCK_BITS)),
                "valid": Out(1),
                "take": In(1),
                "block": Out(BLOCK_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.transposer = turn = Transposer()
        room = Signal(init=1)  # for a block; `put` decides on one
        command, new = Signal(edge_command), self.command.payload
        active, finish = Signal(), Signal()
        left, passes = Signal(COUNT_BITS), Signal(PASS_BITS)  # blocks left in the pass; passes left
        last_block, last_pass = Signal(), Signal()  # 1 left

        # Plain blocks: `place`, one-hot, is the position of the block within 4 (MXFP6; MXINT8 stays at 0) or
        # within 2 (MXFP4: 4, 5); `rest` is the chunk before.
        is_fp6, is_fp4 = command.fmt == FP6, command.fmt == FP4
        place, may_take, take, whole, steps = Signal(6), Signal(), Signal(), Signal(), Signal()
        quiet = Signal(init=1)  # no tile is in the transposer: first_tick & ~leaving
        filled = Signal()  # the last tick of a tile that goes in
        m.d.comb += [
            whole.eq(place[3]),  # the rest holds a whole block
            steps.eq(~whole & ~(place[4] & ~last_block)),  # to the next chunk
            may_take.eq(active & ~command.transpose & quiet & room),
            take.eq(may_take & (self.i.valid | whole)),
        ]
        # The counters' next values do not depend on late signals, only whether they move.
        with m.If(take | (filled & last_pass) | ~active):
            with m.If(~active | command.transpose | (last_block & last_pass)):
                m.d.sync += [left.eq(new.n), last_block.eq(new.n == 1),
                             place.eq(Mux(new.fmt == FP4, 16, 1))]
            with m.Elif(last_block):
                m.d.sync += [left.eq(command.n), last_block.eq(command.n == 1),
                             place.eq(Mux(is_fp4, 16, 1))]
            with m.Else():
                m.d.sync += [
                    left.eq(left - 1), last_block.eq(left == 2),
                    place.eq(Cat(place[3] | (place[0] & ~is_fp6), place[0] & is_fp6, place[1:3],
                                 place[5], place[4])),
                ]

        # Transposed tiles: windows of 32 ticks; in each, a tile goes in (`filling`), or the one before comes
        # out, or both.
        clock, filling, fill, tick, window_end = Signal(5), Signal(), Signal(), Signal(), Signal()
        leaving, first, end, wanted = Signal(), Signal(5), Signal(6), Signal()
        first_tick, last_tick = Signal(init=1), Signal()  # clock is 0, 31
        m.d.comb += [
            fill.eq(Mux(first_tick, active & command.transpose, filling)),
            tick.eq((fill | leaving) & (~fill | self.i.valid) & (~wanted | room)),
            window_end.eq(tick & last_tick),
            turn.tick.eq(tick),
            turn.phase.eq(clock),
            turn.show.eq(leaving),
            turn.last.eq(last_tick & ~fill),
        ]
        with m.If(tick):
            m.d.sync += [
                clock.eq(clock + 1),
                filling.eq(fill),
                first_tick.eq(last_tick),
                quiet.eq(last_tick & ~fill),
                last_tick.eq(clock == 30),
                # first <= clock < end, in the next cycle
                wanted.eq(leaving & ((clock + 1 == first) | (wanted & (clock + 1 != end)))),
            ]
        with m.If(window_end):
            m.d.sync += [
                leaving.eq(fill),
                first.eq(command.offset),
                end.eq(command.offset + command.n),
                wanted.eq(fill & (command.offset == 0)),
            ]

        # Either way.
        pass_end, put = Signal(), take | (tick & wanted)
        m.d.comb += [
            filled.eq(last_tick & filling & self.i.valid & (~wanted | room)),  # window_end & fill
            pass_end.eq((take & last_block) | filled),
            self.i.ready.eq((may_take & steps) | (fill & (~wanted | room))),
            finish.eq(pass_end & last_pass),
            self.command.ready.eq(~active | finish),
        ]
        with m.If(self.command.ready):
            m.d.sync += [active.eq(self.command.valid), command.eq(new)]
        with m.If(pass_end | ~active):
            with m.If(~active | last_pass):
                m.d.sync += [passes.eq(new.k), last_pass.eq(new.k == 1)]
            with m.Else():
                m.d.sync += [passes.eq(passes - 1), last_pass.eq(passes == 2)]

        # A cycle later: the chunk, and what becomes of it. AND-OR: 4 LUT4 a bit. A column of a tile is 0
        # unless one comes out.
        chunk, rest = Signal(BLOCK_BITS, reset_less=True), Signal(FP6_BITS, reset_less=True)
        select, keeps = Signal(len(place)), Signal()
        m.d.sync += [
            chunk.eq(self.i.payload),
            select.eq(place & (~leaving).replicate(len(place))),
            keeps.eq(take & steps & is_fp6),
        ]
        m.d.comb += turn.i.eq(chunk)
        with m.If(keeps):
            m.d.sync += rest.eq(chunk[BLOCK_BITS - FP6_BITS :])
        codes = (
            chunk[:FP6_BITS],
            Cat(rest[128:], chunk[:128]),
            Cat(rest[64:], chunk[:64]),
            rest,
            fp4_codes(chunk[:128]),
            fp4_codes(chunk[128:]),
        )
        block = turn.o | Cat(onehot_mux(select, codes), chunk[FP6_BITS:] & select[0].replicate(64))

        # Two slots, in turn. The next one loads in every cycle while it is free, whether a block comes or
        # not. A block may be taken while it is on its way to its slot, and is read from there in the next
        # cycle.
        tail, head, shown = Signal(), Signal(), Signal()  # to be written next, taken next, taken last
        slots = [Signal(BLOCK_BITS, name=f"slot_{k}", reset_less=True) for k in range(2)]
        fps, fp = Signal(2), Signal()  # FP codes, in the slots and on `block`
        for k, slot in enumerate(slots):
            loads, free = Signal(name=f"loads_{k}"), room & (tail == k)
            m.d.sync += loads.eq(free)
            with m.If(loads):
                m.d.sync += slot.eq(block)
            with m.If(free):
                m.d.sync += fps[k].eq(~leaving & (is_fp4 | is_fp6))
        m.d.sync += [
            tail.eq(tail ^ put),
            head.eq(head ^ self.take),
            shown.eq(head),
            fp.eq(Mux(head, fps[1], fps[0])),
            self.valid.eq(put | ~room | (self.valid & ~self.take)),
            room.eq(self.take | ~self.valid | (room & ~put)),
        ]
        m.d.comb += self.block.eq(decode_block(Mux(shown, *reversed(slots)), fp))
        return m
