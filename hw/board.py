"""A whole board: tile, host link over a UART, and on-chip memory or the port of a DRAM controller.

docs/boards.md has the picture and the protocol. Usage: ``python -m hw.board --config ecp5 --memory 131072
-o build/board.v``
"""

import argparse
from functools import reduce
from operator import or_
from pathlib import Path

from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .axi import AxiMaster, Resp
from .config import TileConfig
from .glue import Fifo, SkidBuffer, StreamArbiter
from .host_link import HostLink
from .memory import SinglePortRam
from .tile import Tile
from .uart import UartReceiver, UartTransmitter, divisor

__all__ = ["AxiShare", "Board", "LargeRam", "OnChipMemory"]

RESET_CYCLES = 32
"""The tile wants 16."""
QUEUED = 8


class AxiShare(wiring.Component):
    """Two AXI4 masters `i` on one port `o`, round robin by burst.

    Master k has ID k on `o`, so it must not depend on the order between its own IDs; its `rid` and `bid` are
    0. Write data pass in the order of their addresses, one cycle later at the earliest; read data and
    responses pass through.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({"i": In(AxiMaster(config)).array(2), "o": Out(AxiMaster(config))})

    def elaborate(self, platform):
        m = Module()
        o, config = self.o, self.config
        burst = data.StructLayout({"addr": 32, "len": 8, "source": 1})
        m.submodules.reads = reads = StreamArbiter(burst, 2)
        m.submodules.writes = writes = StreamArbiter(burst, 2)
        for turns, name in ((reads, "ar"), (writes, "aw")):
            for k, master in enumerate(self.i):
                m.d.comb += [
                    turns.i[k].valid.eq(getattr(master, f"{name}valid")),
                    getattr(master, f"{name}ready").eq(turns.i[k].ready),
                    turns.i[k].payload.addr.eq(getattr(master, f"{name}addr")),
                    turns.i[k].payload.len.eq(getattr(master, f"{name}len")),
                    turns.i[k].payload.source.eq(k),
                ]
            m.d.comb += [getattr(o, f"{name}{part}").eq(getattr(turns.o.payload, source))
                         for part, source in (("addr", "addr"), ("len", "len"), ("id", "source"))]
        m.d.comb += [o.arvalid.eq(reads.o.valid), reads.o.ready.eq(o.arready)]

        # A write address leaves together with the note of whose data come next.
        m.submodules.order = order = Fifo(1, QUEUED)
        m.d.comb += [
            o.awvalid.eq(writes.o.valid & order.i.ready), writes.o.ready.eq(o.awready & order.i.ready),
            order.i.valid.eq(writes.o.valid & o.awready), order.i.payload.eq(writes.o.payload.source),
        ]
        beat = data.StructLayout({"data": config.axi_data_bits, "strb": config.axi_bytes, "last": 1})
        m.submodules.beats = beats = SkidBuffer(beat)
        turn = order.o.payload
        for part in ("data", "strb", "last"):
            first, second = (getattr(master, f"w{part}") for master in self.i)
            m.d.comb += [getattr(beats.i.payload, part).eq(Mux(turn, second, first)),
                         getattr(o, f"w{part}").eq(getattr(beats.o.payload, part))]
        m.d.comb += [
            beats.i.valid.eq(order.o.valid & Mux(turn, self.i[1].wvalid, self.i[0].wvalid)),
            order.o.ready.eq(beats.i.valid & beats.i.ready & beats.i.payload.last),
            o.wvalid.eq(beats.o.valid), beats.o.ready.eq(o.wready),
            o.rready.eq(Mux(o.rid[0], self.i[1].rready, self.i[0].rready)),
            o.bready.eq(Mux(o.bid[0], self.i[1].bready, self.i[0].bready)),
        ]
        for k, master in enumerate(self.i):
            m.d.comb += [
                master.wready.eq(order.o.valid & (turn == k) & beats.i.ready),
                master.rvalid.eq(o.rvalid & (o.rid[0] == k)), master.bvalid.eq(o.bvalid & (o.bid[0] == k)),
                master.rdata.eq(o.rdata), master.rresp.eq(o.rresp), master.rlast.eq(o.rlast),
                master.bresp.eq(o.bresp),
            ]
        return m


class LargeRam(wiring.Component):
    """`SinglePortRam` of many rows, in pieces: as many of `deepest` rows as there are, then powers of two.

    A block RAM then holds few bits of all rows of a piece: one bit at `deepest`. From one memory tools make
    blocks of few rows with many bits, all of which come to a multiplexer from all over the part.
    """

    def __init__(self, *, width: int, depth: int, deepest: int = 16384):
        self.width, self.depth, self.deepest = width, depth, deepest
        super().__init__(SinglePortRam.members(width, depth))

    def elaborate(self, platform):
        m = Module()
        chosen, words, base = [], [], 0
        while base < self.depth:
            rows = min(self.deepest, 1 << (self.depth - base).bit_length() - 1)
            m.submodules[f"rows_{base}"] = ram = SinglePortRam(width=self.width, depth=rows)
            here = self.addr[exact_log2(rows) :] == base // rows  # base is a multiple of rows
            m.d.comb += [
                ram.en.eq(self.en & here), ram.we.eq(self.we), ram.addr.eq(self.addr),
                ram.wdata.eq(self.wdata), ram.wstrb.eq(self.wstrb),
            ]
            chosen.append(here)
            words.append(ram.rdata)
            base += rows
        latest = Signal(len(words))  # the piece that `rdata` comes from
        with m.If(self.en):
            m.d.sync += latest.eq(Cat(chosen))
        m.d.comb += self.rdata.eq(reduce(or_, (
            word & bit.replicate(self.width) for word, bit in zip(words, latest, strict=True))))
        return m


class OnChipMemory(wiring.Component):
    """AXI4 slave in front of one single-port RAM of `nbytes` (a multiple of 2^12) bytes from address 0.

    INCR bursts of full-width beats. One beat per cycle, of reads or of writes: where both want the RAM they
    take turns. The first beat of a read is offered 7 cycles after its address was taken, the next burst
    follows without a gap. A beat beyond the end reads zeros, writes nothing, and gets DECERR.
    """

    def __init__(self, config: TileConfig, nbytes: int):
        if nbytes < 4096 or nbytes % 4096 or nbytes > 1 << 31:
            raise ValueError(f"memory_bytes = {nbytes}: allowed is a multiple of 4096, 4096 to 2147483648")
        self.config, self.nbytes = config, nbytes
        super().__init__({"axi": In(AxiMaster(config))})

    def elaborate(self, platform):
        m = Module()
        config, axi = self.config, self.axi
        rows, shift = self.nbytes // config.axi_bytes, exact_log2(config.axi_bytes)
        m.submodules.ram = ram = LargeRam(width=config.axi_data_bits, depth=rows)
        burst = data.StructLayout({"row": 32 - shift, "len": 8, "id": config.axi_id_bits})
        done = data.StructLayout({"bad": 1, "id": config.axi_id_bits})
        answer = data.StructLayout({"data": config.axi_data_bits, "last": 1, **done.members})
        m.submodules.ar = ar = SkidBuffer(burst)
        m.submodules.aw = aw = SkidBuffer(burst)
        m.submodules.r = r = Fifo(answer, QUEUED)
        m.submodules.b = b = Fifo(done, QUEUED)
        for queue, name in ((ar, "ar"), (aw, "aw")):
            m.d.comb += [
                queue.i.valid.eq(getattr(axi, f"{name}valid")),
                getattr(axi, f"{name}ready").eq(queue.i.ready),
                queue.i.payload.row.eq(getattr(axi, f"{name}addr")[shift:]),
                queue.i.payload.len.eq(getattr(axi, f"{name}len")),
                queue.i.payload.id.eq(getattr(axi, f"{name}id")),
            ]

        def walk(queue: SkidBuffer, name: str, advance):
            """The burst at work: (present, its row now, this is its last beat, ID)."""
            busy, row = Signal(name=f"{name}_busy"), Signal(32 - shift, name=f"{name}_row")
            left = Signal(8, name=f"{name}_left")
            identity = Signal(config.axi_id_bits, name=f"{name}_id")
            last = left == 0
            m.d.comb += queue.o.ready.eq(~busy | (advance & last))
            with m.If(queue.o.ready):
                m.d.sync += [busy.eq(queue.o.valid), row.eq(queue.o.payload.row),
                             left.eq(queue.o.payload.len), identity.eq(queue.o.payload.id)]
            with m.Elif(advance):
                m.d.sync += [row.eq(row + 1), left.eq(left - 1)]
            return busy, row, last, identity

        reading, writing = Signal(), Signal()
        read_busy, read_row, read_last, read_id = walk(ar, "read", reading)
        write_busy, write_row, write_last, write_id = walk(aw, "write", writing)
        # Credits: every read that is granted has room in `r`. Turns: whoever was granted last gives way.
        read_wants, write_wants, wrote = Signal(), Signal(), Signal()
        inflight = Signal(range(QUEUED + 2))
        m.d.sync += inflight.eq(inflight + reading - (r.o.valid & r.o.ready))
        m.d.comb += [
            read_wants.eq(read_busy & (inflight < QUEUED)),
            write_wants.eq(write_busy & axi.wvalid & b.i.ready),
            writing.eq(write_wants & ~(read_wants & wrote)),
            reading.eq(read_wants & ~writing),
            axi.wready.eq(write_busy & b.i.ready & ~(read_wants & wrote)),
        ]
        with m.If(reading | writing):
            m.d.sync += wrote.eq(writing)

        # Registers on both sides of the RAM, whose blocks lie all over an FPGA; then the answer.
        bad, row = Signal(), Signal(32 - shift)
        spoilt = Signal()  # an earlier beat of this write
        stages = [Signal(data.StructLayout({"valid": 1, "last": 1, **done.members}), name=f"stage_{k}")
                  for k in range(3)]
        read_data = Signal(config.axi_data_bits)
        m.d.comb += [
            row.eq(Mux(writing, write_row, read_row)), bad.eq(row >= rows),
            b.i.valid.eq(writing & write_last), b.i.payload.bad.eq(bad | spoilt), b.i.payload.id.eq(write_id),
            r.i.valid.eq(stages[2].valid), r.i.payload.data.eq(read_data),
            r.i.payload.last.eq(stages[2].last), r.i.payload.bad.eq(stages[2].bad),
            r.i.payload.id.eq(stages[2].id),
        ]
        with m.If(writing):
            m.d.sync += spoilt.eq(~write_last & (spoilt | bad))
        m.d.sync += [
            ram.en.eq((reading | writing) & ~bad), ram.we.eq(writing), ram.addr.eq(row),
            ram.wdata.eq(axi.wdata), ram.wstrb.eq(axi.wstrb),
            stages[0].valid.eq(reading), stages[0].last.eq(read_last), stages[0].bad.eq(bad),
            stages[0].id.eq(read_id), stages[1].eq(stages[0]), stages[2].eq(stages[1]),
            read_data.eq(Mux(stages[1].bad, 0, ram.rdata)),
        ]
        m.d.comb += [
            axi.rvalid.eq(r.o.valid), r.o.ready.eq(axi.rready), axi.rdata.eq(r.o.payload.data),
            axi.rlast.eq(r.o.payload.last), axi.rid.eq(r.o.payload.id),
            axi.rresp.eq(Mux(r.o.payload.bad, Resp.DECERR, Resp.OKAY)),
            axi.bvalid.eq(b.o.valid), b.o.ready.eq(axi.bready), axi.bid.eq(b.o.payload.id),
            axi.bresp.eq(Mux(b.o.payload.bad, Resp.DECERR, Resp.OKAY)),
        ]
        return m


class Board(wiring.Component):
    """Tile of a config, host link on `uart_rx` and `uart_tx`, memory.

    divisor: clock cycles per bit of the UART. memory_bytes: of on-chip memory; None: `m_axi` goes to a memory
    of the board's, which may answer bursts with IDs 0 and 1 in any order between the two, and has
    `report_bytes` bytes (what the host is told; 0: not known).

    Members: `uart_rx`, `uart_tx`, `irq` (the tile's), `m_axi` where memory_bytes is None. Everything is held
    in reset for RESET_CYCLES after `rst`, and after configuration of an FPGA (registers start at 0).
    """

    def __init__(self, config: TileConfig, *, divisor: int, memory_bytes: int | None, report_bytes: int = 0):
        self.config, self.divisor = config, divisor
        self.memory_bytes, self.report_bytes = memory_bytes, report_bytes
        members = {"uart_rx": In(1, init=1), "uart_tx": Out(1, init=1), "irq": Out(1)}
        if memory_bytes is None:
            members["m_axi"] = Out(AxiMaster(config))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        # Counts the cycles of quiet reset; not reset itself by what it makes.
        count = Signal(range(RESET_CYCLES + 1))
        hold = Signal(init=1)
        m.d.sync += [count.eq(count + (count != RESET_CYCLES)), hold.eq(count != RESET_CYCLES)]
        held = ResetInserter(hold)

        known = self.memory_bytes if self.memory_bytes is not None else self.report_bytes
        tile, link, share = Tile(self.config), HostLink(self.config, known), AxiShare(self.config)
        receiver, transmitter = UartReceiver(self.divisor), UartTransmitter(self.divisor)
        for name, unit in (("tile", tile), ("link", link), ("share", share), ("receiver", receiver),
                           ("transmitter", transmitter)):
            m.submodules[name] = held(unit)
        wiring.connect(m, receiver.o, link.i)
        wiring.connect(m, link.o, transmitter.i)
        wiring.connect(m, link.m_axil, tile.s_axil)
        wiring.connect(m, tile.m_axi, share.i[0])
        wiring.connect(m, link.m_axi, share.i[1])
        m.d.comb += [
            receiver.rx.eq(self.uart_rx), self.uart_tx.eq(transmitter.tx), self.irq.eq(tile.irq),
            tile.noc_out.ready.eq(1),
        ]
        if self.memory_bytes is None:
            wiring.connect(m, share.o, wiring.flipped(self.m_axi))
        else:
            memory = OnChipMemory(self.config, self.memory_bytes)
            m.submodules.memory = held(memory)
            wiring.connect(m, share.o, memory.axi)
        return m


def main(argv: list[str] | None = None) -> int:
    """Command line: write the Verilog of a board."""
    from .config import named
    from .export import verilog

    parser = argparse.ArgumentParser(prog="python -m hw.board", description=main.__doc__)
    parser.add_argument("--config", default="ecp5", help="named config (default: %(default)s)")
    parser.add_argument("--memory", type=int, help="bytes of on-chip memory (default: port m_axi)")
    parser.add_argument("--clock", type=float, help="clock in MHz (default: the config's)")
    parser.add_argument("--baud", type=float, default=3_000_000, help="default: %(default)s")
    parser.add_argument("--name", default="serrano_board", help="top module (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        config = named(args.config)
        clock = args.clock or config.clock_mhz
        board = Board(config, divisor=divisor(1e6 * clock, args.baud), memory_bytes=args.memory)
    except ValueError as error:
        parser.error(str(error))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(verilog(board, args.name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
