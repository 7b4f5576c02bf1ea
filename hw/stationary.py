"""Loader of the stationary operand: fetched blocks into the columns, their scales into the accumulators."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .accumulate import SCALE_SETS
from .array import BLOCK_BITS
from .config import TileConfig
from .edge import FP4, FP6_BITS, INT8, PASS_BITS, decode_block, fp4_codes
from .fetch import element_layout
from .glue import onehot_mux

__all__ = ["ONE_SCALE", "StationaryLoader", "loader_layout"]

ONE_SCALE = 127
"""Scale byte of 2^0."""

loader_layout = data.StructLayout({"fmt": 2, "rows": 6, "k": PASS_BITS})


class StationaryLoader(wiring.Component):
    """Fetched scale bytes and blocks -> scale sets and shadow blocks.

    Members: `command` (loader_layout), `i` (elements as StationaryWalker orders them); `write`, `stationary`
    to the array;
    `scale_write`, `scale_set`, `scales` to the accumulators; `full`: a set waits in the shadow blocks;
    `swap`: it has been taken. Rows that are absent get zero blocks with scale 2^0. A set takes C cycles from
    `swap` to `full` if its elements are there;
    its scale bytes are taken, one per cycle, while the set before still waits.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                "command": In(stream.Signature(loader_layout)),
                "i": In(stream.Signature(element_layout(config))),
                "write": Out(config.columns),
                "stationary": Out(BLOCK_BITS),
                "scale_write": Out(1),
                "scale_set": Out(ceil_log2(SCALE_SETS)),
                "scales": Out(8 * config.columns),
                "full": Out(1),
                "swap": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns, element = self.config.columns, self.i.payload
        command, active, finish = Signal(loader_layout, reset_less=True), Signal(), Signal()
        new = self.command.payload
        left, row, blocks = Signal(PASS_BITS, reset_less=True), Signal(6), Signal()  # sets left
        present = Signal(init=1)  # row < command.rows
        last_row, last_set = Signal(), Signal()  # of the scales or of the blocks; 1 left
        take, take_scale, take_block = Signal(), Signal(), Signal()
        m.d.comb += [
            take_scale.eq(active & ~blocks & self.i.valid),
            take_block.eq(active & blocks & ~self.full & (self.i.valid | ~present)),
            take.eq(take_scale | take_block),
            self.i.ready.eq(active & present & (~blocks | ~self.full)),
            finish.eq(take_block & last_row & last_set),
            self.command.ready.eq(~active | finish),
        ]
        with m.If(take):
            m.d.sync += [row.eq(Mux(last_row, 0, row + 1)), present.eq(last_row | (row + 1 < command.rows))]
            with m.If(last_row):
                m.d.sync += [blocks.eq(~blocks), last_row.eq(blocks & (command.rows == 1))]
            with m.Else():
                m.d.sync += last_row.eq(Mux(blocks, row == columns - 2, row + 2 == command.rows))
        with m.If(take_block & last_row):
            m.d.sync += [left.eq(left - 1), last_set.eq(left == 2)]
        m.d.sync += self.full.eq((take_block & last_row) | (self.full & ~self.swap))
        with m.If(self.command.ready):  # whether a command is there or not
            m.d.sync += [active.eq(self.command.valid), command.eq(new), left.eq(new.k),
                         last_set.eq(new.k == 1), last_row.eq(new.rows == 1)]

        # Scale bytes gather in `scales`; the set is stored when its first block arrives. All of it a cycle
        # later: the byte select takes time.
        scale, places = Signal(8, reset_less=True), Signal(columns)
        m.d.sync += [
            scale.eq(element.data.word_select(element.offset, 8)),
            places.eq(Cat(take_scale & (row == r) for r in range(columns))),
            self.scale_write.eq(take_block & (row == 0)),
        ]
        with m.If(self.scale_write):
            m.d.sync += [
                self.scale_set.eq(self.scale_set + 1),
                self.scales.eq(Cat(*[Const(ONE_SCALE, 8)] * columns)),
            ]
        for r in range(columns):
            with m.If(places[r]):
                m.d.sync += self.scales[8 * r : 8 * r + 8].eq(scale)

        # Blocks: one register, then the decoder, which does not look at the upper bits of FP codes.
        chunk = element.data.word_select(element.offset[5:], BLOCK_BITS)
        raw, fp = Signal(BLOCK_BITS, reset_less=True), Signal()
        is_fp4, upper = command.fmt == FP4, element.offset[4]
        codes = onehot_mux(
            Cat(~is_fp4, is_fp4 & ~upper, is_fp4 & upper),
            (chunk[:FP6_BITS], fp4_codes(chunk[:128]), fp4_codes(chunk[128:])),
        )
        m.d.sync += [
            self.write.eq(Cat(take_block & (row == r) for r in range(columns))),
            fp.eq(command.fmt != INT8),
            raw.eq(Cat(codes, chunk[FP6_BITS:])),
        ]
        with m.If(~present):
            m.d.sync += raw.eq(0)
        m.d.comb += self.stationary.eq(decode_block(raw, fp))
        return m
