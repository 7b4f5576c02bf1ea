"""float32 accumulation of the array's dot products: scale, convert, add to the partial sum, keep or emit."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .array import DOT_BITS
from .config import TileConfig
from .fp import FpAdd, IntScaleToFloat
from .memory import DualPortRam

__all__ = ["SCALE_SETS", "Accumulators", "tag_layout"]

SCALE_SETS = 4
"""Sets of stationary scales held: one being loaded, one waiting for its swap, and those of the blocks in the
array."""
NAN_SCALE = 255
MINUS_ZERO = 0x80000000


def tag_layout(config: TileConfig) -> data.StructLayout:
    """What the accumulators know of a block: its stationary scale set, its own exponent (scale - 254 -
    fraction bits; `nan` for scale 255), its partial-sum entry, and whether it starts the sum, whether the sum
    is kept, whether it is emitted."""
    return data.StructLayout(
        {
            "valid": 1,
            "set": ceil_log2(SCALE_SETS),
            "exp": signed(10),
            "nan": 1,
            "psum": ceil_log2(config.psum_depth),
            "start": 1,
            "keep": 1,
            "emit": 1,
        }
    )


class Accumulators(wiring.Component):
    """C accumulators in lock step: sum = (start ? dot : fadd(psum[entry], dot)) with dot = I * 2^(exp +
    stationary scale).

    Equals `golden.formats.block_dot` followed by `golden.arith.fadd`, bit for bit.

    Members: `tag` of a block, `DOT_DELAY` cycles before its dot products are on `dot`;
    `scale_write` stores `scales` (C bytes) as scale set `scale_set`;
    `valid`, `o`: the C sums of a block whose tag has `emit`, `latency` cycles after its tag.

    One block per cycle, no back-pressure. A sum that is kept can be read by a tag at least `revisit` cycles
    later. The starting value of a sum is -0, the neutral element of IEEE addition.
    """

    DOT_DELAY = 2

    def __init__(self, config: TileConfig):
        self.config = config
        self.convert = [IntScaleToFloat(DOT_BITS) for _ in range(config.columns)]
        self.add = [FpAdd() for _ in range(config.columns)]
        self._read_at = (
            self.DOT_DELAY + self.convert[0].latency - 2
        )  # the partial sum takes a RAM and a register to arrive
        self.latency = self._read_at + 2 + self.add[0].latency
        self.revisit = self.latency - self._read_at + 1
        super().__init__(
            {
                "tag": In(tag_layout(config)),
                "dot": In(signed(DOT_BITS)).array(config.columns),
                "scale_write": In(1),
                "scale_set": In(ceil_log2(SCALE_SETS)),
                "scales": In(8 * config.columns),
                "valid": Out(1),
                "o": Out(32 * config.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, lanes = self.config, range(self.config.columns)
        m.submodules.scale_sets = sets = DualPortRam(width=8 * config.columns, depth=SCALE_SETS)
        m.submodules.psum = psum = DualPortRam(width=32 * config.columns, depth=config.psum_depth)

        tags = [self.tag]
        for stage in range(1, self.latency + 1):
            tag = Signal(tag_layout(config), name=f"tag{stage}")
            m.d.sync += tag.eq(tags[-1])
            tags.append(tag)
        read, enter, done = tags[self._read_at], tags[self._read_at + 1], tags[self.latency]
        m.d.comb += [
            sets.waddr.eq(self.scale_set),
            sets.wdata.eq(self.scales),
            sets.wstrb.eq(self.scale_write),
            sets.raddr.eq(self.tag.set),
            sets.ren.eq(self.tag.valid),
            psum.raddr.eq(read.psum),
            psum.ren.eq(read.valid & ~read.start),
            psum.waddr.eq(done.psum),
            psum.wdata.eq(self.o),
            psum.wstrb.eq(done.valid & done.keep),
            self.valid.eq(done.valid & done.emit),
            self.o.eq(Cat(add.o for add in self.add)),
        ]
        for r in lanes:
            m.submodules[f"convert_{r}"], m.submodules[f"add_{r}"] = convert, add = (
                self.convert[r],
                self.add[r],
            )
            scale = sets.rdata[8 * r : 8 * r + 8]
            before = Signal(32, name=f"before_{r}", reset_less=True)
            with m.If(tags[1].valid):
                m.d.sync += [
                    convert.e.eq(scale + tags[1].exp),
                    convert.nan.eq(tags[1].nan | (scale == NAN_SCALE)),
                ]
            with m.If(enter.valid):
                m.d.sync += before.eq(
                    Mux(enter.start, Const(MINUS_ZERO, 32), psum.rdata[32 * r : 32 * r + 32])
                )
            m.d.comb += [convert.i.eq(self.dot[r]), add.a.eq(convert.o), add.b.eq(before)]
        return m
