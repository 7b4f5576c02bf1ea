"""The systolic array: 32 x C signed 8 x 8 multipliers that turn a stream of blocks into C exact dot products
per cycle."""

from amaranth import Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import MX_BLOCK, TileConfig

__all__ = ["BLOCK_BITS", "DOT_BITS", "Column", "SystolicArray"]

BLOCK_BITS = 8 * MX_BLOCK
DOT_BITS = 21
"""A sum of 32 products of two signed bytes lies in -2^19 + 2^12 .. 2^19."""


class Column(wiring.Component):
    """One column: a stationary block (active and shadow), 32 multipliers, an adder tree.

    Members: `valid`, `swap`, `block` arrive from the left and leave one cycle later as `valid_o`, `swap_o`,
    `block_o`.
    While `swap` is high the active block follows the shadow block: with the first block of a pass, for this
    block and those after it, and while none comes before that.
    `write` puts `stationary` into the shadow block.
    `dot`: the dot product, `LATENCY` cycles after its block was on `block`; holds while no block passes.

    Every multiplier has registers on both sides (the block and the active block; the product), so that it
    fits a DSP block; that of the product moves in every cycle, as Project Trellis knows no enable for it.
    Sums move only with a block. Every enable is a register: hundreds of others share it.
    """

    LATENCY = 7

    def __init__(self):
        super().__init__(
            {
                "valid": In(1),
                "swap": In(1),
                "block": In(BLOCK_BITS),
                "valid_o": Out(1),
                "swap_o": Out(1),
                "block_o": Out(BLOCK_BITS),
                "write": In(1),
                "stationary": In(BLOCK_BITS),
                "dot": Out(signed(DOT_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shadow = Signal(BLOCK_BITS, reset_less=True)
        active = Signal(BLOCK_BITS, reset_less=True)
        block = Signal(BLOCK_BITS, reset_less=True)
        with m.If(self.write):
            m.d.sync += shadow.eq(self.stationary)
        with m.If(self.swap):
            m.d.sync += active.eq(shadow)
        m.d.sync += [self.valid_o.eq(self.valid), self.swap_o.eq(self.swap), block.eq(self.block)]
        m.d.comb += self.block_o.eq(block)

        # Products, then a binary adder tree with a register at every level, which costs nothing behind a
        # carry chain and keeps
        # synthesis from building compressor trees out of LUTs. `enable` follows the block through the stages.
        enable, stage = self.valid_o, 0
        terms = [
            block[8 * i : 8 * i + 8].as_signed() * active[8 * i : 8 * i + 8].as_signed()
            for i in range(MX_BLOCK)
        ]
        while True:
            width = 16 + stage
            sums = [Signal(signed(width), name=f"sum{stage}_{i}", reset_less=True) for i in range(len(terms))]
            with m.If(enable if stage else Const(1)):
                m.d.sync += [s.eq(term) for s, term in zip(sums, terms)]
            if len(sums) == 1:
                break
            previous, enable, stage = enable, Signal(name=f"enable{stage}"), stage + 1
            m.d.sync += enable.eq(previous)
            terms = [a + b for a, b in zip(sums[::2], sums[1::2])]
        m.d.comb += self.dot.eq(sums[0])
        return m


class SystolicArray(wiring.Component):
    """C columns side by side: `dot[c]` is the exact dot product of the block with the stationary block of
    column c.

    Members: `valid`, `swap`, `block` (32 signed bytes, byte i in bits [8i, 8i + 8)) enter column 0;
    `write` (one bit per column) loads the shadow block of a column from `stationary`, which is broadcast: a
    row is on it for a single cycle, so nothing waits for it to travel.
    `dot[c]`: all C results of one block in the same cycle, `latency` = C + 6 cycles after it was on `block`
    (columns are de-skewed here, where a result has only 21 bits, so that one control pipeline serves every
    accumulator).

    A block with `swap` in cycle t takes the shadow of column c in cycle t + c: the shadow of column c must
    not be written before cycle t + c, and must be complete before it. `swap` may be high without a block, but
    not with the blocks of a pass after its first.
    """

    def __init__(self, config: TileConfig):
        self.columns = config.columns
        self.latency = Column.LATENCY + config.columns - 1
        super().__init__(
            {
                "valid": In(1),
                "swap": In(1),
                "block": In(BLOCK_BITS),
                "write": In(config.columns),
                "stationary": In(BLOCK_BITS),
                "dot": Out(signed(DOT_BITS)).array(config.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid, swap, block = self.valid, self.swap, self.block
        for c in range(self.columns):
            m.submodules[f"column_{c}"] = column = Column()
            m.d.comb += [
                column.valid.eq(valid),
                column.swap.eq(swap),
                column.block.eq(block),
                column.write.eq(self.write[c]),
                column.stationary.eq(self.stationary),
            ]
            valid, swap, block = column.valid_o, column.swap_o, column.block_o
            dot = column.dot
            for i in range(self.columns - 1 - c):
                later = Signal(signed(DOT_BITS), name=f"deskew_{c}_{i}", reset_less=True)
                m.d.sync += later.eq(dot)
                dot = later
            m.d.comb += self.dot[c].eq(dot)
        return m
