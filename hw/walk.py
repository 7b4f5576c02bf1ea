"""Address walkers of the matmul unit: a command in, byte addresses for a `Fetcher` out, one per cycle, from
command to command."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .edge import COUNT_BITS, FP4, PASS_BITS
from .fetch import request_layout
from .ports import PC_BITS

__all__ = ["PassWalker", "StationaryWalker", "pass_layout", "stationary_layout"]

pass_layout = data.StructLayout({"base": 32, "step": 32, "n": COUNT_BITS, "k": PASS_BITS, "pc": PC_BITS})
"""k passes of n elements; pass p starts at base + p * step (32-bit wrap-around)."""

stationary_layout = data.StructLayout(
    {
        "stat": 32,
        "stat_pass": 32,
        "stat_row": 32,
        "scale": 32,
        "scale_pass": 32,
        "scale_row": 32,
        "fmt": 2,
        "rows": 6,
        "k": PASS_BITS,
        "pc": PC_BITS,
    }
)
"""k sets of `rows` scale bytes, then `rows` blocks."""


class _Walker(wiring.Component):
    """Members: `command`, `o` (requests, payload in registers; `last` ends a command), `misaligned`: the
    walker stopped at `o.payload.addr`, which is no multiple of what the format needs; `pc` of the request
    on `o`."""

    def __init__(self, layout):
        super().__init__(
            {
                "command": In(stream.Signature(layout)),
                "o": Out(stream.Signature(request_layout)),
                "misaligned": Out(1),
                "pc": Out(PC_BITS),
            }
        )

    def _flow(self, m, layout, end):
        """(command, move, fresh, valid): `move` goes on to the next address, `fresh` to the next command's
        first. `move` is late: next values should depend on `fresh` alone, and registers load from a command
        that is not valid too. `command` is the one being walked up to its last address, then any."""
        command, valid = Signal(layout, reset_less=True), Signal()
        step, move, fresh = Signal(), Signal(), Signal()
        m.d.comb += [
            self.o.valid.eq(valid & ~self.misaligned),
            self.o.payload.last.eq(end),
            step.eq(self.o.valid & self.o.ready),
            move.eq(~valid | step),
            fresh.eq(~valid | end),
            self.command.ready.eq(~valid | (step & end)),
        ]
        with m.If(self.command.ready):
            m.d.sync += [valid.eq(self.command.valid), self.pc.eq(self.command.payload.pc)]
        with m.If(fresh):
            m.d.sync += command.eq(self.command.payload)
        return command, move, fresh, valid


class PassWalker(_Walker):
    """Addresses base + p * step + i * size for p < k, i < n. `size` (bytes) must divide every pass's first
    address."""

    def __init__(self, size: int):
        self.size = size
        super().__init__(pass_layout)

    def elaborate(self, platform):
        m = Module()
        addr, new = self.o.payload.addr, self.command.payload
        start, following = Signal(32), Signal(32)  # of this pass, of the next (of the first of a command)
        # Numbers of the element and of the pass, from 1, and whether they are the last.
        element, which, pass_end, last_pass = Signal(COUNT_BITS), Signal(PASS_BITS), Signal(), Signal()
        command, move, fresh, valid = self._flow(m, pass_layout, pass_end & last_pass)
        m.d.comb += following.eq(Mux(fresh, new.base, start + command.step))
        if self.size > 1:
            m.d.comb += self.misaligned.eq(valid & addr[: exact_log2(self.size)].any())
        with m.If(move):
            with m.If(fresh | pass_end):
                m.d.sync += [
                    addr.eq(following),
                    start.eq(following),
                    element.eq(1),
                    pass_end.eq(Mux(fresh, new.n, command.n) == 1),
                    which.eq(Mux(fresh, 1, which + 1)),
                    last_pass.eq(Mux(fresh, new.k == 1, which + 1 == command.k)),
                ]
            with m.Else():
                m.d.sync += [
                    addr.eq(addr + self.size),
                    element.eq(element + 1),
                    pass_end.eq(element + 1 == command.n),
                ]
        return m


class StationaryWalker(_Walker):
    """For p < k: scale bytes at scale + p * scale_pass + r * scale_row for r < rows, then blocks at stat + p
    * stat_pass + r * stat_row.

    Blocks must lie at multiples of 32 (MXFP4: 16)."""

    def __init__(self):
        super().__init__(stationary_layout)

    def elaborate(self, platform):
        m = Module()
        addr, new = self.o.payload.addr, self.command.payload
        blocks = Signal()  # walking through blocks, not scales
        packed = Signal()  # as MXFP4
        scales, next_scales, next_blocks = Signal(32), Signal(32), Signal(32)  # starts of passes
        # Numbers from 1, and whether they are the last.
        row, which, row_end, last_pass = Signal(6), Signal(PASS_BITS), Signal(), Signal()
        pass_end = row_end & blocks
        command, move, fresh, valid = self._flow(m, stationary_layout, pass_end & last_pass)
        m.d.comb += [
            next_scales.eq(Mux(fresh, new.scale, scales + command.scale_pass)),
            self.misaligned.eq(valid & blocks & (addr[:4].any() | (addr[4] & ~packed))),
        ]
        with m.If(move):
            with m.If(fresh | row_end):
                m.d.sync += [row.eq(1), row_end.eq(Mux(fresh, new.rows, command.rows) == 1)]
            with m.Else():
                m.d.sync += [row.eq(row + 1), row_end.eq(row + 1 == command.rows)]
            with m.If(fresh | pass_end):
                m.d.sync += [
                    addr.eq(next_scales),
                    scales.eq(next_scales),
                    blocks.eq(0),
                    which.eq(Mux(fresh, 1, which + 1)),
                    last_pass.eq(Mux(fresh, new.k == 1, which + 1 == command.k)),
                ]
            with m.Elif(row_end):
                m.d.sync += [addr.eq(next_blocks), blocks.eq(1)]
            with m.Else():
                m.d.sync += addr.eq(addr + Mux(blocks, command.stat_row, command.scale_row))
            with m.If(fresh):
                m.d.sync += [next_blocks.eq(new.stat), packed.eq(new.fmt == FP4)]
            with m.Elif(row_end & ~blocks):
                m.d.sync += next_blocks.eq(next_blocks + command.stat_pass)
        return m
