"""NoC port of a tile: receiver, sender and the SEND unit. docs/noc.md has the packet format."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .glue import Fifo, SkidBuffer
from .isa import BY_OP, Error, Op
from .ports import SEM_BITS, SramRead, SramWrite, unit_members
from .queue import RegisterQueue
from .semaphores import add_layout

__all__ = ["FLIT_BITS", "FLIT_BYTES", "Kind", "MAX_FLITS", "NocPort", "flit_layout", "head_layout"]

FLIT_BYTES = 32
MAX_FLITS = 16
"""Data flits of the longest packet that a tile sends; it accepts longer ones."""
BUFFER = 16


class Kind(enum.Enum, shape=8):
    """What a packet asks for."""
    WRITE = 0
    SIGNAL = 1
    READ = 2


head_layout = data.StructLayout({
    "dst": 16, "src": 16, "kind": Kind, "sem": 8, "count": 16, "addr": 32, "length": 32,
    "reply_tile": 16, "reply_sem": 8, "reserved": 8, "reply_addr": 32, "zero": 8 * FLIT_BYTES - 192})
"""Data bits of a head flit, least significant first; all of them are bytes-aligned. `length` in bytes."""

flit_layout = data.StructLayout({"data": 8 * FLIT_BYTES, "last": 1, "head": 1})
FLIT_BITS = flit_layout.size


def request_layout(config: TileConfig) -> data.StructLayout:
    """Send `len` flits of data from SRAM (flit number `src`) to byte address `dst` of `tile`, then signal
    `sem`."""
    flits = exact_log2(config.sram_bytes // FLIT_BYTES)
    return data.StructLayout({"tile": 16, "src": flits, "dst": 32, "len": flits + 1, "sem": 8})


def _beyond(config: TileConfig, start, length):
    """start + length > sram_bytes."""
    end = start + length
    top = exact_log2(config.sram_bytes)
    return end[top + 1 :].any() | (end[top] & end[:top].any())


class Receiver(wiring.Component):
    """Executes the packets that arrive: writes to SRAM, signals, and READ requests handed to the sender.

    A data flit per cycle, one cycle more per packet and about three for a signal. Signals and reads come when
    all data before them
    is visible. A packet that breaks the rules is dropped from there to its last flit, and `bad` pulses with
    its address (SIGNAL:
    semaphore) in `bad_value`.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(flit_layout)), "tile_id": In(16),
            "write": Out(SramWrite(config)), "add": Out(stream.Signature(add_layout)),
            "read": Out(stream.Signature(request_layout(config))),
            "bad": Out(1), "bad_value": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        config, size = self.config, exact_log2(FLIT_BYTES)
        lanes = config.word_bytes // FLIT_BYTES
        word = exact_log2(config.word_bytes)
        m.submodules.buffer = buffer = SkidBuffer(flit_layout)
        wiring.connect(m, buffer.i, wiring.flipped(self.i))
        flit, head = buffer.o.payload, Signal(head_layout)
        # Both stay within the SRAM: checked before they are used.
        addr, left = Signal(exact_log2(config.sram_bytes)), Signal(exact_log2(config.sram_bytes) - size + 1)
        last = Signal()
        port = self.write.req
        space = ~port.valid | port.ready

        is_write = head.kind == Kind.WRITE
        wrong = Signal()
        sems = head.sem[exact_log2(config.semaphores):].any()
        m.d.comb += [
            wrong.eq((head.dst != self.tile_id) | (head.kind.as_value() > Kind.READ.value) | sems
                     | (last == is_write)
                     | ((head.kind != Kind.SIGNAL)
                        & (head.addr[:size].any() | head.length[:size].any()
                           | _beyond(config, head.addr, head.length)))
                     | (is_write & ~head.length.any())),
            self.add.payload.sem.eq(head.sem), self.add.payload.count.eq(head.count),
            self.read.payload.tile.eq(head.reply_tile), self.read.payload.src.eq(head.addr[size:]),
            self.read.payload.dst.eq(head.reply_addr), self.read.payload.len.eq(head.length[size:]),
            self.read.payload.sem.eq(head.reply_sem),
            self.bad_value.eq(Mux(head.kind == Kind.SIGNAL, head.sem, head.addr)),
        ]
        with m.If(port.ready):
            m.d.sync += port.valid.eq(0)
        with m.FSM():
            with m.State("HEAD"):
                m.d.comb += buffer.o.ready.eq(1)
                m.d.sync += [head.eq(flit.data), last.eq(flit.last)]
                with m.If(buffer.o.valid):
                    with m.If(flit.head):
                        m.next = "CHECK"
                    with m.Else():
                        m.next = "STRAY"
            with m.State("STRAY"):  # a data flit where a head should be
                m.d.comb += self.bad.eq(1)
                with m.If(last):
                    m.next = "HEAD"
                with m.Else():
                    m.next = "DROP"
            with m.State("CHECK"):
                m.d.sync += [addr.eq(head.addr), left.eq(head.length[size:])]
                with m.If(wrong):
                    m.next = "STRAY"
                with m.Elif(is_write):
                    m.next = "DATA"
                with m.Else():
                    m.next = "VISIBLE"
            with m.State("DATA"):
                m.d.comb += buffer.o.ready.eq(space)
                m.d.sync += last.eq(flit.last)
                with m.If(buffer.o.valid & space):
                    with m.If(flit.head | (flit.last != (left == 1))):
                        m.next = "STRAY"
                    with m.Else():
                        m.d.sync += [port.valid.eq(1), port.payload.addr.eq(addr[word:]),
                                     port.payload.data.eq(flit.data.replicate(lanes)),
                                     addr.eq(addr + FLIT_BYTES), left.eq(left - 1)]
                        lane = addr[size:word] if lanes > 1 else Const(0, 1)
                        m.d.sync += port.payload.strb.eq(Cat((lane == k).replicate(FLIT_BYTES)
                                                             for k in range(lanes)))
                        with m.If(flit.last):
                            m.next = "HEAD"
                            with m.If((head.sem != 0) & (head.count != 0)):
                                m.next = "VISIBLE"
            with m.State("VISIBLE"):  # signals and reads come after all data before them
                with m.If(~port.valid & ~self.write.busy):
                    m.next = "SIGNAL"
                    with m.If(head.kind == Kind.READ):
                        m.next = "READ"
            with m.State("SIGNAL"):
                m.d.comb += self.add.valid.eq((head.sem != 0) & (head.count != 0))
                with m.If(self.add.ready | (head.sem == 0) | (head.count == 0)):
                    m.next = "HEAD"
            with m.State("READ"):
                m.d.comb += self.read.valid.eq(1)
                with m.If(self.read.ready):
                    m.next = "HEAD"
            with m.State("DROP"):
                m.d.comb += buffer.o.ready.eq(1)
                with m.If(buffer.o.valid & flit.last):
                    m.next = "HEAD"
        return m


class Sender(wiring.Component):
    """Cuts a request {tile, src, dst, len, sem} into WRITE packets; the last one carries the signal.

    Members: `i` (in range), taken when it starts; `done` pulses when its last flit is in the output register;
    `cut`: end the current request after the packet under way. `o`: flits, one per cycle, from a register that
    is filled again in the cycle in which `o.ready` empties it.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(request_layout(config))), "tile_id": In(16), "cut": In(1),
            "o": Out(stream.Signature(flit_layout)), "read": Out(SramRead(config)), "done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, size = self.config, exact_log2(FLIT_BYTES)
        word = exact_log2(config.word_bytes)
        lanes = config.word_bytes // FLIT_BYTES
        m.submodules.fifo = fifo = Fifo(8 * FLIT_BYTES, BUFFER)
        # The far end has a buffer of its own: no other cuts the way of `ready`.
        flit, send, space = Signal(flit_layout), Signal(), Signal()
        m.d.comb += space.eq(~self.o.valid | self.o.ready)
        with m.If(space):
            m.d.sync += self.o.valid.eq(send)
            with m.If(send):
                m.d.sync += self.o.payload.eq(flit)
        # The request; it has no data; it has no signal; the packet under way is its last.
        now, empty, silent, ends = Signal(request_layout(config)), Signal(), Signal(), Signal()
        flits = len(now.len)
        left, in_packet = Signal(flits), Signal(range(MAX_FLITS + 1))

        # Reads run ahead of the packets as far as the buffer has room.
        fetch, fetch_left = Signal(len(now.src)), Signal(flits)
        credit = Signal(range(BUFFER + 1), init=BUFFER)
        request = self.read.req
        issue, pop = Signal(), Signal()
        m.d.comb += [
            request.valid.eq((fetch_left != 0) & (credit != 0)), request.payload.eq(fetch[word - size:]),
            issue.eq(request.valid & request.ready), pop.eq(fifo.o.valid & fifo.o.ready),
        ]
        m.d.sync += credit.eq(credit - issue + pop)
        with m.If(issue):
            m.d.sync += [fetch.eq(fetch + 1), fetch_left.eq(fetch_left - 1)]
        lane = Signal(max(word - size, 1))
        m.d.comb += [fifo.i.valid.eq(self.read.valid),
                     fifo.i.payload.eq(self.read.data.word_select(lane, 8 * FLIT_BYTES) if lanes > 1
                                       else self.read.data)]
        with m.If(self.read.valid & (lanes > 1)):
            m.d.sync += lane.eq(lane + 1)

        head = Signal(head_layout)
        packet = Signal(range(MAX_FLITS + 1))
        final = Signal()
        packets = left[exact_log2(MAX_FLITS):]
        m.d.comb += [
            final.eq((packets == 0) | ((packets == 1) & ~left[:exact_log2(MAX_FLITS)].any())),
            packet.eq(Mux(final, left, MAX_FLITS)),
            head.dst.eq(now.tile), head.src.eq(self.tile_id), head.addr.eq(now.dst),
            head.length.eq(packet << size),
            head.kind.eq(Mux(empty, Kind.SIGNAL, Kind.WRITE)), head.sem.eq(Mux(final, now.sem, 0)),
            head.count.eq(final),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [now.eq(self.i.payload), left.eq(self.i.payload.len),
                             empty.eq(self.i.payload.len == 0), silent.eq(self.i.payload.sem == 0)]
                with m.If(self.i.valid):
                    m.d.sync += [fetch.eq(self.i.payload.src),
                                 fetch_left.eq(self.i.payload.len),
                                 lane.eq(self.i.payload.src)]
                    m.next = "HEAD"
            with m.State("HEAD"):
                with m.If(self.cut):
                    m.d.sync += fetch_left.eq(0)
                    m.next = "FLUSH"
                with m.Elif(empty & silent):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
                with m.Else():
                    m.d.comb += [send.eq(1), flit.head.eq(1), flit.last.eq(empty),
                                 flit.data.eq(head)]
                    with m.If(space):
                        m.d.sync += [in_packet.eq(packet), ends.eq(final), packets.eq(packets - 1),
                                     now.dst.eq(now.dst + MAX_FLITS * FLIT_BYTES)]
                        with m.If(final):
                            m.d.sync += left.eq(0)
                        m.next = "DATA"
                        with m.If(empty):
                            m.d.comb += self.done.eq(1)
                            m.next = "IDLE"
            with m.State("DATA"):
                m.d.comb += [send.eq(fifo.o.valid), fifo.o.ready.eq(space),
                             flit.data.eq(fifo.o.payload),
                             flit.last.eq(in_packet == 1)]
                with m.If(pop):
                    m.d.sync += in_packet.eq(in_packet - 1)
                    with m.If(in_packet == 1):
                        m.next = "HEAD"
                        with m.If(ends):
                            m.d.comb += self.done.eq(1)
                            m.next = "IDLE"
            with m.State("FLUSH"):
                m.d.comb += fifo.o.ready.eq(1)
                with m.If(credit == BUFFER):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m


class NocPort(wiring.Component):
    """The SEND unit and the tile's end of the network.

    Members besides those of every unit (command, signal, error, busy: the SEND unit's): `noc_in`, `noc_out`
    (flits), `tile_id`,
    `read`, `write` (SRAM), `add` (signals that arrive), `count_in`, `count_out` (flits). `stop`: SEND ends
    after the packet under
    way and takes no more commands; `idle`: it has. `clear`: forget error, SEND command and signals, with
    `stop` and `idle`.

    Requests of other tiles are served whatever this tile's program does; `clear` does not touch them.
    SEND signals when its last flit is in the output buffer. Errors: ALIGNMENT, SRAM_RANGE (value: operand),
    ILLEGAL_OPERAND
    (tile or semaphore number too large), NOC_PROTOCOL (pc 0).
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            **unit_members(config, BY_OP[Op.SEND]),
            "noc_in": In(stream.Signature(flit_layout)), "noc_out": Out(stream.Signature(flit_layout)),
            "tile_id": In(16), "read": Out(SramRead(config)), "write": Out(SramWrite(config)),
            "add": Out(stream.Signature(add_layout)),
            "stop": In(1), "idle": Out(1), "clear": In(1), "count_in": Out(1), "count_out": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.receiver = receiver = Receiver(config)
        m.submodules.sender = sender = Sender(config)
        m.submodules.reads_in, m.submodules.reads = reads_in, reads = (
            RegisterQueue(request_layout(config)), RegisterQueue(request_layout(config)))  # 4 requests
        wiring.connect(m, reads_in.o, reads.i)
        wiring.connect(m, wiring.flipped(self.noc_in), receiver.i)
        wiring.connect(m, wiring.flipped(self.noc_out), sender.o)
        wiring.connect(m, wiring.flipped(self.read), sender.read)
        wiring.connect(m, wiring.flipped(self.write), receiver.write)
        wiring.connect(m, wiring.flipped(self.add), receiver.add)
        wiring.connect(m, receiver.read, reads_in.i)
        m.d.comb += [
            receiver.tile_id.eq(self.tile_id), sender.tile_id.eq(self.tile_id),
            self.count_in.eq(self.noc_in.valid & self.noc_in.ready),
            self.count_out.eq(self.noc_out.valid & self.noc_out.ready),
        ]

        # SEND: check, hand to the sender (between the requests of others), signal.
        command = self.command.payload
        held = Signal.like(command)
        code, value = Signal(4), Signal(32)
        asking, sending = Signal(), Signal()
        signals = [held.sig_a, held.sig_b, held.sig_c]
        step = Signal(range(3))
        number = Signal(SEM_BITS)
        m.d.comb += [code.eq(Error.NONE), value.eq(held.src)]
        with m.If(_beyond(config, held.src, held.len)):  # later assignments go first
            m.d.comb += code.eq(Error.SRAM_RANGE)
        with m.If(held.tile[16:].any()):
            m.d.comb += [code.eq(Error.ILLEGAL_OPERAND), value.eq(held.tile)]
        with m.If(held.sem[exact_log2(config.semaphores):].any()):
            m.d.comb += [code.eq(Error.ILLEGAL_OPERAND), value.eq(held.sem)]
        for name in ("len", "dst", "src"):
            with m.If(held[name][:exact_log2(FLIT_BYTES)].any()):
                m.d.comb += [code.eq(Error.ALIGNMENT), value.eq(held[name])]

        own, flit_size = Signal(request_layout(config)), exact_log2(FLIT_BYTES)
        m.d.comb += [own.tile.eq(held.tile), own.src.eq(held.src[flit_size:]), own.dst.eq(held.dst),
                     own.len.eq(held.len[flit_size:]), own.sem.eq(held.sem)]
        m.d.comb += [
            sender.i.valid.eq(asking | reads.o.valid),
            sender.i.payload.eq(Mux(asking, own.as_value(), reads.o.payload.as_value())),
            reads.o.ready.eq(sender.i.ready & ~asking),
            sender.cut.eq(self.stop & sending),
        ]
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.command.ready.eq(~self.stop & ~self.error.valid)
                m.d.sync += step.eq(0)
                with m.If(self.command.valid & self.command.ready):
                    m.d.sync += held.eq(command)
                    m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(~self.error.valid):
                    m.d.sync += [self.error.valid.eq(code != Error.NONE), self.error.code.eq(code),
                                 self.error.pc.eq(held.pc), self.error.value.eq(value)]
                with m.If(code == Error.NONE):
                    m.next = "ASK"
                with m.Else():
                    m.next = "IDLE"
            with m.State("ASK"):
                m.d.comb += asking.eq(~self.stop)
                with m.If(self.stop):
                    m.next = "IDLE"
                with m.Elif(sender.i.ready):
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += sending.eq(1)
                with m.If(sender.done):
                    m.next = "SIGNAL"
            with m.State("SIGNAL"):
                m.d.comb += [number.eq(Mux(step == 0, signals[0], Mux(step == 1, signals[1], signals[2]))),
                             self.signal.valid.eq((number != 0) & ~self.stop), self.signal.payload.eq(number)]
                with m.If(self.signal.ready | (number == 0) | self.stop):
                    m.d.sync += step.eq(step + 1)
                    with m.If(step == 2):
                        m.next = "IDLE"
        quiet = fsm.ongoing("IDLE")
        m.d.comb += [self.busy.eq(~quiet), self.idle.eq(quiet)]
        with m.If(receiver.bad & ~self.error.valid):
            m.d.sync += [self.error.valid.eq(1), self.error.code.eq(Error.NOC_PROTOCOL), self.error.pc.eq(0),
                         self.error.value.eq(receiver.bad_value)]
        with m.If(self.clear):
            m.d.sync += self.error.valid.eq(0)
        return m
