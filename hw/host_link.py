"""The board's end of the host link: frames in, accesses to registers and memory, frames out.

The protocol is docs/boards.md; hw/host_link_map.py has its numbers.
"""

import zlib

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .axi import AxiLite, AxiMaster
from .config import TileConfig
from .csr_map import ADDR_BITS as CSR_BITS
from .glue import Fifo, SkidBuffer
from .host_link_map import (
    CRC_BYTES, END, ESCAPE, ESCAPED_END, ESCAPED_ESCAPE, HEADER_BYTES, HELLO_BYTES, MAX_DATA, QUEUE_BYTES,
    VERSION, Op, Status,
)
from .memory import DualPortRam

__all__ = ["HostLink", "crc_step"]

RESIDUE = 0xFFFF_FFFF ^ zlib.crc32(bytes(4))
"""State of the CRC after a message and its own CRC, for every message."""
_POLYNOMIAL = 0xEDB8_8320


def crc_step(crc: Value, byte: Value) -> Value:
    """State of the reflected CRC-32 after one more byte; it starts at all ones and is sent inverted."""
    state, columns = [], list(Cat(crc, byte))
    # Linear: bit k of the next state is the parity of the inputs whose image has bit k.
    images = [_shifted(1 << k if k < 32 else 1 << (k - 32)) for k in range(40)]
    for k in range(32):
        state.append(Cat(c for c, image in zip(columns, images) if image >> k & 1).xor())
    return Cat(state)


def _shifted(state: int) -> int:
    for _ in range(8):
        state = state >> 1 ^ (_POLYNOMIAL if state & 1 else 0)
    return state


class HostLink(wiring.Component):
    """Executes the frames that arrive on `i` and answers each on `o`; both are bytes as on the line.

    Members: `m_axil` to the tile's registers, `m_axi` to the board's memory (one beat at a time, strobes for
    what a beat does not cover whole). memory_bytes: what HELLO reports, 0 for not known.

    One byte per cycle into the frame's buffer and between it and the buses, whose latency comes on top per
    beat; one byte per two cycles out (a UART takes 40).
    While a frame is executed and answered, QUEUE_BYTES bytes of the next ones wait in a FIFO. An access whose
    bus never answers blocks the link until reset.
    """

    def __init__(self, config: TileConfig, memory_bytes: int = 0):
        self.config, self.memory_bytes = config, memory_bytes
        super().__init__({
            "i": In(stream.Signature(8)), "o": Out(stream.Signature(8)),
            "m_axil": Out(AxiLite(CSR_BITS)), "m_axi": Out(AxiMaster(config)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Fifo(8, QUEUE_BYTES)
        m.submodules.data = self._ram = ram = DualPortRam(width=8, depth=MAX_DATA)
        m.submodules.out = self._out = out = SkidBuffer(8)
        wiring.connect(m, wiring.flipped(self.i), queue.i)
        wiring.connect(m, out.o, wiring.flipped(self.o))

        self._byte = byte = queue.o
        self._crc, self._crc_in = Signal(32, init=-1), Signal(8)
        self._step, self._restart = Signal(), Signal()
        with m.If(self._restart):
            m.d.sync += self._crc.eq(0xFFFF_FFFF)
        with m.Elif(self._step):
            m.d.sync += self._crc.eq(crc_step(self._crc, self._crc_in))

        # Of the request.
        self._header = Signal(8 * HEADER_BYTES)
        self._seq, self._op, self._length, self._address = (
            self._header[:8], self._header[8:16], self._header[16:32], self._header[32:])
        self._good, self._count = Signal(), Signal(range(HEADER_BYTES + MAX_DATA + CRC_BYTES + 2))
        # Of the session and the answer.
        self._next, self._session = Signal(8), Signal()
        self._status, self._answer = Signal(Status), Signal(range(MAX_DATA + 1))
        # Of the access: place in the buffer, address and bytes left.
        self._at, self._where, self._left = Signal(range(MAX_DATA)), Signal(32), Signal(32)
        self._place = Signal.like(self._at)  # row of the buffer that is read for the next cycle
        m.d.comb += [ram.raddr.eq(self._place), ram.ren.eq(~ram.wstrb), self._place.eq(self._at)]

        self._register = Signal()
        self._lane = self._lanes(m)
        with m.FSM():
            self._receive(m, byte)
            self._check(m)
            self._write(m)
            self._read(m)
            self._respond(m, out.i)
        return m

    # ---- frames in

    def _receive(self, m: Module, byte) -> None:
        """Bytes to header and buffer, until a frame ends: RECEIVE -> CHECK."""
        ram, count, escaped, broken = self._ram, self._count, Signal(), Signal()
        data = Signal(8)
        last_count = HEADER_BYTES + MAX_DATA + CRC_BYTES + 1  # one more than the longest frame
        fill = Signal.like(count)
        with m.State("RECEIVE"):
            m.d.comb += [byte.ready.eq(1), data.eq(byte.payload), self._crc_in.eq(data),
                         fill.eq(count - HEADER_BYTES)]
            with m.If(escaped):
                m.d.comb += data.eq(Mux(byte.payload == ESCAPED_END, END, ESCAPE))
            with m.If(byte.valid):
                m.d.sync += escaped.eq(0)
                with m.If(byte.payload == END):
                    m.d.sync += self._good.eq(~broken & ~escaped & (self._crc == RESIDUE)
                                              & (count >= HEADER_BYTES + CRC_BYTES) & (count != last_count))
                    with m.If(count.any() | broken | escaped):
                        m.next = "LENGTH"
                with m.Elif(~escaped & (byte.payload == ESCAPE)):
                    m.d.sync += escaped.eq(1)
                with m.Else():
                    m.d.sync += [count.eq(Mux(count == last_count, last_count, count + 1)),
                                 broken.eq(broken | (escaped & (byte.payload != ESCAPED_END)
                                                     & (byte.payload != ESCAPED_ESCAPE)))]
                    m.d.comb += [self._step.eq(1), ram.waddr.eq(fill), ram.wdata.eq(data),
                                 ram.wstrb.eq((count >= HEADER_BYTES) & (fill < MAX_DATA))]
                    with m.If(count < HEADER_BYTES):
                        m.d.sync += self._header.eq(Cat(self._header[8:], data))
        with m.State("LENGTH"):
            reads = (self._op == Op.READ_REG) | (self._op == Op.READ_MEM)
            m.d.sync += [
                self._good.eq(self._good & (count == HEADER_BYTES + CRC_BYTES + Mux(reads, 0, self._length))),
                count.eq(0), broken.eq(0), self._at.eq(0), self._where.eq(self._address),
                self._left.eq(self._length), self._answer.eq(0),
            ]
            m.d.comb += self._restart.eq(1)
            m.next = "CHECK"

    # ---- rules

    def _check(self, m: Module) -> None:
        """What a frame leads to: docs/boards.md, "Order, loss, duplicates"."""
        ahead, aligned, legal = Signal(8), Signal(), Signal()
        length, op = self._length, self._op
        writes = Signal()
        m.d.comb += [
            ahead.eq(self._seq - self._next),
            aligned.eq(~length[:2].any() & ~self._address[:2].any() & ~self._address[CSR_BITS:].any()),
            self._register.eq((op == Op.READ_REG) | (op == Op.WRITE_REG)),
            writes.eq((op == Op.WRITE_REG) | (op == Op.WRITE_MEM) | (op == Op.ZERO_MEM)),
        ]
        def answer(status: Status) -> None:
            m.d.sync += self._status.eq(status)
            m.next = "OPEN"

        with m.State("CHECK"):
            with m.Switch(op):
                with m.Case(Op.READ_REG, Op.WRITE_REG):
                    m.d.comb += legal.eq(length.any() & (length <= MAX_DATA) & aligned)
                with m.Case(Op.READ_MEM, Op.WRITE_MEM):
                    m.d.comb += legal.eq(length.any() & (length <= MAX_DATA))
                with m.Case(Op.ZERO_MEM):
                    m.d.comb += legal.eq(length == 4)
            with m.If(~self._good):
                m.d.sync += Cat(self._seq, self._op).eq(0)
                answer(Status.CORRUPT)
            with m.Elif((op == Op.HELLO) & (length == 4)):
                m.d.sync += [self._next.eq(self._seq + 1), self._session.eq(1), self._at.eq(4)]
                m.next = "HELLO"
            with m.Elif(~self._session):
                answer(Status.NO_SESSION)
            with m.Elif(~legal):
                answer(Status.REFUSED)
            with m.Elif(ahead.any() & ~ahead[7]):
                answer(Status.RESEND)
            with m.Elif(ahead[7] & writes):
                answer(Status.OK)
            with m.Elif(op == Op.ZERO_MEM):
                m.next = "COUNT"
            with m.Elif(writes):
                m.next = "WRITE"
            with m.Else():
                m.next = "READ_BEAT"
        with m.State("HELLO"):  # the rest of its answer, behind the 4 bytes that it brought
            facts = b"".join(n.to_bytes(size, "little") for n, size in (
                (VERSION, 2), (MAX_DATA, 2), (self.memory_bytes, 4), (QUEUE_BYTES, 2), (0, 2)))
            ram = self._ram
            m.d.comb += [ram.waddr.eq(self._at), ram.wstrb.eq(1)]
            with m.Switch(self._at):
                for k, fact in enumerate(facts):
                    with m.Case(4 + k):
                        m.d.comb += ram.wdata.eq(fact)
            m.d.sync += self._at.eq(self._at + 1)
            with m.If(self._at == HELLO_BYTES - 1):
                m.d.sync += self._answer.eq(HELLO_BYTES)
                answer(Status.OK)
        with m.State("COUNT"):  # ZERO_MEM: its four bytes of data are the count
            m.d.comb += self._place.eq(self._at + 1)
            m.d.sync += [self._left.eq(Cat(self._left[8:], self._ram.rdata)), self._at.eq(self._at + 1)]
            with m.If(self._at == 3):
                m.next = "COUNTED"
        with m.State("COUNTED"):
            m.next = "WRITE"
            with m.If(~self._left.any()):
                answer(Status.REFUSED)

    # ---- accesses

    def _executed(self, m: Module) -> None:
        m.d.sync += self._status.eq(Status.OK)
        with m.If(self._seq == self._next):
            m.d.sync += self._next.eq(self._next + 1)
        m.next = "OPEN"

    def _failed(self, m: Module) -> None:
        m.d.sync += self._status.eq(Status.BUS_ERROR)
        m.next = "OPEN"

    def _lanes(self, m: Module):
        """(byte lane of the address within its beat, it is the last one, address of the beat)."""
        bits = exact_log2(self.config.axi_bytes)
        lane, last, beat = Signal(bits), Signal(), Signal(32)
        m.d.comb += [
            lane.eq(Mux(self._register, self._where[:2], self._where[:bits])),
            last.eq(Mux(self._register, self._where[:2].all(), self._where[:bits].all())),
            beat.eq(Cat(Const(0, bits), self._where[bits:])),
        ]
        return lane, last, beat

    def _write(self, m: Module) -> None:
        """Bytes of the buffer, or zeros, gather in a beat (WRITE), which goes to the bus (WRITE_BEAT)."""
        lite, axi = self.m_axil, self.m_axi
        lane, last, beat = self._lane
        word, strobe = Signal(8 * self.config.axi_bytes), Signal(self.config.axi_bytes)
        address, taken = Signal(32), Signal(2)
        m.d.comb += [
            lite.awaddr.eq(address), lite.wdata.eq(word[:32]), lite.wstrb.eq(0b1111),
            axi.awaddr.eq(address), axi.wdata.eq(word), axi.wstrb.eq(strobe), axi.wlast.eq(1),
        ]
        with m.State("WRITE"):
            value = Mux(self._op == Op.ZERO_MEM, 0, self._ram.rdata)
            m.d.comb += self._place.eq(self._at + 1)
            m.d.sync += [
                word.word_select(lane, 8).eq(value), strobe.bit_select(lane, 1).eq(1),
                address.eq(Mux(self._register, Cat(Const(0, 2), self._where[2:]), beat)),
                self._where.eq(self._where + 1), self._left.eq(self._left - 1), self._at.eq(self._at + 1),
            ]
            with m.If(last | (self._left == 1)):
                m.next = "WRITE_BEAT"
        with m.State("WRITE_BEAT"):
            def offer(bus, done) -> None:
                m.d.comb += [bus.awvalid.eq(~taken[0]), bus.wvalid.eq(~taken[1]), bus.bready.eq(1)]
                m.d.sync += taken.eq(taken | Cat(bus.awvalid & bus.awready, bus.wvalid & bus.wready))
                with m.If(bus.bvalid):
                    m.d.sync += [taken.eq(0), strobe.eq(0)]
                    with m.If(bus.bresp[1]):
                        self._failed(m)
                    with m.Elif(self._left.any()):
                        m.next = "WRITE"
                    with m.Else():
                        self._executed(m)
            with m.If(self._register):
                offer(lite, taken)
            with m.Else():
                offer(axi, taken)

    def _read(self, m: Module) -> None:
        """A beat comes from the bus (READ_BEAT), its bytes go to the buffer (READ)."""
        lite, axi, ram = self.m_axil, self.m_axi, self._ram
        lane, last, beat = self._lane
        word, asked = Signal(8 * self.config.axi_bytes), Signal()
        m.d.comb += [lite.araddr.eq(Cat(Const(0, 2), self._where[2:])), axi.araddr.eq(beat)]
        with m.State("READ_BEAT"):
            def ask(bus) -> None:
                m.d.comb += [bus.arvalid.eq(~asked), bus.rready.eq(1)]
                m.d.sync += asked.eq(asked | bus.arready)
                with m.If(bus.rvalid):
                    m.d.sync += [asked.eq(0), word.eq(bus.rdata)]
                    m.next = "READ"
                    with m.If(bus.rresp[1]):
                        self._failed(m)
            with m.If(self._register):
                ask(lite)
            with m.Else():
                ask(axi)
        with m.State("READ"):
            m.d.comb += [ram.waddr.eq(self._at), ram.wdata.eq(word.word_select(lane, 8)), ram.wstrb.eq(1)]
            m.d.sync += [self._where.eq(self._where + 1), self._left.eq(self._left - 1),
                         self._at.eq(self._at + 1)]
            with m.If(self._left == 1):
                m.d.sync += self._answer.eq(self._length)
                self._executed(m)
            with m.Elif(last):
                m.next = "READ_BEAT"

    # ---- frames out

    def _respond(self, m: Module, o) -> None:
        """OPEN, HEAD, FETCH and DATA, SUM, CLOSE -> RECEIVE: the answer, with escapes and CRC."""
        escape, value, special, advance = Signal(), Signal(8), Signal(), Signal()
        position, byte, final = Signal(range(HEADER_BYTES)), Signal(8), Signal()
        status = Const(0, 8) | Value.cast(self._status)
        head = Cat(self._seq, self._op, Const(0, 16) | self._answer, status, self._next, Const(0, 16))
        m.d.comb += special.eq((value == END) | (value == ESCAPE))

        def put() -> None:
            """Send `value`; `advance` in the cycle in which it is done."""
            m.d.comb += o.valid.eq(1)
            with m.If(special & ~escape):
                m.d.comb += o.payload.eq(ESCAPE)
                m.d.sync += escape.eq(o.ready)
            with m.Else():
                m.d.comb += [o.payload.eq(Mux(escape, Mux(value == END, ESCAPED_END, ESCAPED_ESCAPE), value)),
                             advance.eq(o.ready)]
                with m.If(o.ready):
                    m.d.sync += [escape.eq(0), position.eq(position + 1)]

        def delimiter(following: str) -> None:
            m.d.comb += [o.valid.eq(1), o.payload.eq(END), self._place.eq(0)]
            m.d.sync += [self._at.eq(0), position.eq(0)]
            with m.If(o.ready):
                m.next = following

        def summed() -> None:
            m.d.comb += [self._crc_in.eq(value), self._step.eq(advance)]

        with m.State("OPEN"):
            delimiter("HEAD")
        with m.State("HEAD"):
            m.d.comb += value.eq(head.word_select(position, 8))
            put()
            summed()
            with m.If(advance & (position == HEADER_BYTES - 1)):
                m.next = "SUM"
                with m.If(self._answer.any()):
                    m.next = "FETCH"
        # A cycle to fetch and one to send: a block RAM's output is too late to decide on its next address.
        with m.State("FETCH"):
            m.d.sync += [byte.eq(self._ram.rdata), self._at.eq(self._at + 1),
                         final.eq(self._at == self._answer - 1)]
            m.next = "DATA"
        with m.State("DATA"):
            m.d.comb += value.eq(byte)
            put()
            summed()
            with m.If(advance):
                m.next = "FETCH"
                with m.If(final):
                    m.d.sync += position.eq(0)
                    m.next = "SUM"
        with m.State("SUM"):
            m.d.comb += value.eq((~self._crc).word_select(position[:2], 8))
            put()
            with m.If(advance & (position == CRC_BYTES - 1)):
                m.next = "CLOSE"
        with m.State("CLOSE"):
            delimiter("RECEIVE")
            m.d.comb += self._restart.eq(1)
