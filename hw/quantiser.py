"""MXINT8 quantiser: lanes of float32 elements in, blocks of 8 to 32 bytes per lane and their scale bytes
out."""

from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Signal, Value, Mux
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .fp import Cuts
from .glue import Fifo

__all__ = ["BlockMaximum", "Quantiser", "block_layout", "element_layout"]

BLOCKS = 3
"""Blocks in the quantiser at a time: one that leaves, one behind it, one whose elements arrive."""


def element_layout(columns: int) -> data.StructLayout:
    """An element of every lane; `last` ends an instruction. `quantise` says that it is one for the quantiser,
    in blocks of 32 >> `block` elements."""
    return data.StructLayout({"x": 32 * columns, "last": 1, "quantise": 1, "block": 2})


def block_layout(columns: int) -> data.StructLayout:
    """The block of one lane (its bytes at the top of `data`), or the `scales` of all lanes; lanes come in
    order, then the scales. `last`: scales of the last block of an instruction."""
    return data.StructLayout({"data": 256, "scales": 8 * columns, "is_scales": 1, "last": 1})


class BlockMaximum(wiring.Component):
    """Largest biased exponent field per lane of each block: its E8M0 scale byte (255 for inf and NaN, 0 for
    zeros).

    Members: `valid`, `x` (C canonical float32), `end` of a block; `o`: stream of C bytes per block. There
    must be room in the FIFO of `depth` blocks. Source: OCP MX v1.0, 6.3, with emax = 0.
    """

    def __init__(self, columns: int, depth: int):
        self.columns, self.depth = columns, depth
        super().__init__(
            {"valid": In(1), "x": In(32 * columns), "end": In(1), "o": Out(stream.Signature(8 * columns))}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = Fifo(8 * self.columns, self.depth)
        wiring.connect(m, wiring.flipped(self.o), fifo.o)
        m.d.comb += fifo.i.valid.eq(self.valid & self.end)
        for r in range(self.columns):
            seen, best = Signal(8, name=f"seen_{r}"), Signal(8, name=f"best_{r}")
            exponent = self.x[32 * r + 23 : 32 * r + 31]
            m.d.comb += [
                best.eq(Mux(exponent > seen, exponent, seen)),
                fifo.i.payload[8 * r : 8 * r + 8].eq(best),
            ]
            with m.If(self.valid):
                m.d.sync += seen.eq(Mux(self.end, 0, best))
        return m


def quantise_stages(cut, x: Value, scale: Value) -> Value:
    """k = RNE(x * 2^(133 - scale)) saturated to +-127, as a byte: three stages. scale >= the exponent field
    of x."""
    sign, exponent, mantissa = x[31], x[23:31], x[:23]
    # Eight bits of the significand and a sticky bit are enough, as at least 16 bits are always rounded away.
    s = cut(
        sign=sign,
        top=Cat(mantissa[:16].any(), mantissa[16:], Const(1, 1)),
        shift=scale - exponent,
        none=(exponent == 0) | (scale == 255),
    )
    low = s.shift[:3]
    # top >> shift: 7 bits of integer, guard; everything below is sticky.
    shifted = (s.top >> low)[:9]
    lost = (s.top & ~(Const(0x1FF, 9) << low)[:9]).any()
    keep = ~(s.none | s.shift[3:].any())
    s = cut(
        sign=s.sign, whole=shifted[2:] & keep.replicate(7), half=shifted[1] & keep, rest=shifted[0] | lost
    )
    magnitude = s.whole + (s.half & (s.rest | s.whole[0]))  # up to 128
    magnitude = magnitude[:7] | magnitude[7].replicate(7)
    s = cut(k=(Cat(magnitude, Const(0, 1)) ^ s.sign.replicate(8)) + s.sign)
    return s.k[:8]


class Quantiser(wiring.Component):
    """Quantises blocks and turns element order into block order. Equals `golden.formats.quantise_int8` bit
    for bit.

    Members: `i` (element_layout) elements, `scales` the stream of `BlockMaximum`, `o` (block_layout). The
    last block of an instruction is padded with zeros. Lane r is r cycles late: its block is complete exactly
    when it is its turn to leave, so that one shift register per lane transposes at full rate: max(block, C +
    1) cycles per block. Nothing stops on the way: a block begins when there is room for it in the FIFO at
    the end. Latency from a block's last element to lane 0: 9 cycles.
    """

    def __init__(self, columns: int):
        self.columns = columns
        super().__init__(
            {
                "i": In(stream.Signature(element_layout(columns))),
                "scales": In(stream.Signature(8 * columns)),
                "o": Out(stream.Signature(block_layout(columns))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns = self.columns

        # Slots of a block. It begins late enough for its C blocks and scales to leave after those of the
        # block before, whatever the sizes of the two.
        slot, padding = Signal(range(32)), Signal()
        idle = Signal(range(columns + 2), init=columns + 1)  # since the last block's end
        begin, held = Signal(init=1), Signal(2)  # slot == 0
        block = Mux(begin, self.i.payload.block, held)
        ends = slot == (Const(31, 5) >> block)
        spaced = idle >= Mux(
            block == 2,
            max(columns + 1 - 8, 0),
            Mux(block == 1, max(columns + 1 - 16, 0), max(columns + 1 - 32, 0)),
        )
        take, blocks = Signal(), Signal(range(BLOCKS + 1))
        left = self.o.valid & self.o.ready & self.o.payload.is_scales
        m.d.comb += [
            take.eq(padding | (self.i.valid & (~begin | (self.scales.valid & spaced & (blocks != BLOCKS))))),
            self.i.ready.eq(take & ~padding),
            self.scales.ready.eq(take & begin),
        ]
        m.d.sync += blocks.eq(blocks + self.scales.ready - left)
        with m.If(take):
            m.d.sync += [slot.eq(Mux(ends, 0, slot + 1)), begin.eq(ends)]
            m.d.sync += [padding.eq((padding | self.i.payload.last) & ~ends)]
        m.d.sync += idle.eq(Mux(take & ends, 0, Mux(idle == columns + 1, idle, idle + 1)))
        scale_now, scale_held = Signal(8 * columns), Signal(8 * columns)
        m.d.comb += scale_now.eq(Mux(begin, self.scales.payload, scale_held))
        with m.If(self.scales.ready):
            m.d.sync += held.eq(block)
            m.d.sync += scale_held.eq(self.scales.payload)
        m.submodules.leaving = leaving = Fifo(8 * columns, 4)
        m.d.sync += leaving.i.valid.eq(self.scales.ready)
        m.d.comb += leaving.i.payload.eq(scale_held)

        # Stage 0: element register. It loads in every cycle; `valid` tells what counts.
        x, scale = Signal(32 * columns, reset_less=True), Signal(8 * columns, reset_less=True)
        valid, end, last = Signal(4), Signal(4), Signal(4)  # per stage
        m.d.sync += [
            valid.eq(Cat(take, valid)),
            end.eq(Cat(take & ends, end)),
            last.eq(Cat(take & ends & (padding | self.i.payload.last), last)),
            x.eq(self.i.payload.x),
            scale.eq(scale_now),
        ]
        with m.If(padding):
            m.d.sync += x.eq(0)

        # Lanes: three stages of arithmetic, r cycles of skew, the shift register. `end` walks along and lets
        # them leave.
        leaves, last_leaves, shifting = Signal(columns + 1), Signal(columns + 1), Signal(columns)
        m.d.sync += [
            leaves.eq(Cat(end[3], leaves)),
            last_leaves.eq(Cat(last[3], last_leaves)),
            shifting.eq(Cat(valid[3], shifting)),
        ]
        rows = []
        for r in range(columns):
            lane = slice(8 * r, 8 * r + 8)
            byte = quantise_stages(
                Cuts(m, 3, 3, prefix=f"lane{r}_"), x[32 * r : 32 * r + 32], scale[lane]
            )
            for k in range(r):
                late = Signal(8, name=f"late_{r}_{k}", reset_less=True)
                m.d.sync += late.eq(byte)
                byte = late
            row, done = (Signal(256, name=f"{name}_{r}", reset_less=True) for name in ("row", "done"))
            shifted = Cat(row[8:], byte)
            with m.If(shifting[r - 1] if r else valid[3]):
                m.d.sync += row.eq(shifted)
            # A block that is complete, else 0: multiplexing the lanes is an OR.
            ends_now = leaves[r - 1] if r else end[3]
            with m.If(ends_now):
                m.d.sync += done.eq(shifted)
            with m.Else():
                m.d.sync += done.eq(0)
            rows.append(done)

        m.submodules.results = results = Fifo(
            data.StructLayout({"data": 256, "is_scales": 1, "last": 1}),
            1 << ceil_log2(BLOCKS * (columns + 1)),
            block=True,
        )
        m.d.comb += [
            results.i.valid.eq(leaves.any()),
            results.i.payload.data.eq(reduce(or_, rows)),
            results.i.payload.is_scales.eq(leaves[columns]),
            results.i.payload.last.eq(last_leaves[columns]),
            results.o.ready.eq(self.o.ready),
            self.o.valid.eq(results.o.valid),
            self.o.payload.data.eq(results.o.payload.data),
            self.o.payload.scales.eq(leaving.o.payload),
            self.o.payload.is_scales.eq(results.o.payload.is_scales),
            self.o.payload.last.eq(results.o.payload.last),
            leaving.o.ready.eq(left),
        ]
        return m
