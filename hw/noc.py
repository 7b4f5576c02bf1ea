"""NoC port of a tile: receiver, sender and the SEND unit. docs/noc.md has the packet format."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .glue import exceeds, raw
from .isa import BY_OP, Error, Op
from .memory import DualPortRam
from .ports import SEM_BITS, SramRead, SramWrite, unit_members
from .queue import RegisterQueue
from .semaphores import add_layout
from .vector_queue import Slots

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


class _Range:
    """Whether start + length > sram_bytes, for multiples of a flit: `found` is what registers hold of
    `start` and `length`, `beyond` the answer from them."""

    def __init__(self, m: Module, config: TileConfig, start, length):
        size, top = exact_log2(FLIT_BYTES), exact_log2(config.sram_bytes)
        end, far = Signal(top + 2 - size, reset_less=True), Signal(reset_less=True)
        self.found = [
            end.eq(start[size : top + 1] + length[size : top + 1]),
            far.eq(start[top + 1 :].any() | length[top + 1 :].any()),
        ]
        self.beyond = far | exceeds(end, top - size)


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
        m.submodules.buffer = buffer = Slots(flit_layout)  # its wide registers do not wait for `space`
        wiring.connect(m, buffer.i, wiring.flipped(self.i))
        flit, head = buffer.o.payload, Signal(head_layout, reset_less=True)
        # Both stay within the SRAM: checked before they are used.
        addr = Signal(exact_log2(config.sram_bytes), reset_less=True)
        left = Signal(exact_log2(config.sram_bytes) - size + 1, reset_less=True)
        last, last_due = Signal(), Signal()  # the flit in hand is its packet's last; left is 1
        port = self.write.req
        space = ~port.valid | port.ready
        payload = Signal.like(port.payload, reset_less=True)
        m.d.comb += raw(port.payload).eq(raw(payload))

        # The rules, looked at while the head is loaded.
        arriving = data.View(head_layout, flit.data)
        is_write = Signal(reset_less=True)
        signals, uses_sram = Signal(reset_less=True), Signal(reset_less=True)  # has a signal; is no SIGNAL
        area = _Range(m, config, arriving.addr, arriving.length)
        faults, wrong = Signal(5, reset_less=True), Signal()
        writes = arriving.kind == Kind.WRITE
        rules = [
            *area.found, is_write.eq(writes), uses_sram.eq(arriving.kind != Kind.SIGNAL),
            signals.eq((arriving.sem != 0) & (arriving.count != 0)),
            faults.eq(Cat(
                arriving.dst != self.tile_id,
                arriving.kind.as_value()[2:].any() | arriving.kind.as_value()[:2].all(),
                arriving.sem[exact_log2(config.semaphores):].any() | (flit.last == writes),
                (arriving.kind != Kind.SIGNAL) & (arriving.addr[:size].any() | arriving.length[:size].any()),
                writes & ~arriving.length.any(),
            )),
        ]
        m.d.comb += [
            wrong.eq(faults.any() | (uses_sram & area.beyond)),
            self.add.payload.sem.eq(head.sem), self.add.payload.count.eq(head.count),
            self.read.payload.tile.eq(head.reply_tile), self.read.payload.src.eq(head.addr[size:]),
            self.read.payload.dst.eq(head.reply_addr), self.read.payload.len.eq(head.length[size:]),
            self.read.payload.sem.eq(head.reply_sem),
            self.bad_value.eq(Mux(uses_sram, head.addr, head.sem)),
        ]
        lane = addr[size:word] if lanes > 1 else Const(0, 1)
        with m.If(space):  # whether a flit goes there or not
            m.d.sync += [port.valid.eq(0), payload.addr.eq(addr[word:]),
                         payload.data.eq(flit.data.replicate(lanes)),
                         payload.strb.eq(Cat((lane == k).replicate(FLIT_BYTES) for k in range(lanes)))]
        with m.FSM():
            with m.State("HEAD"):
                m.d.comb += buffer.o.ready.eq(1)
                m.d.sync += [head.eq(flit.data), last.eq(flit.last), *rules]
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
                m.d.sync += [addr.eq(head.addr), left.eq(head.length[size:]),
                             last_due.eq(head.length[size:] == 1)]
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
                    m.d.sync += [addr.eq(addr + FLIT_BYTES), left.eq(left - 1), last_due.eq(left == 2)]
                    with m.If(flit.head | (flit.last != last_due)):
                        m.next = "STRAY"
                    with m.Else():
                        m.d.sync += port.valid.eq(1)
                        with m.If(flit.last):
                            m.next = "HEAD"
                            with m.If(signals):
                                m.next = "VISIBLE"
            with m.State("VISIBLE"):  # signals and reads come after all data before them
                with m.If(~port.valid & ~self.write.busy):
                    m.next = "SIGNAL"
                    with m.If(uses_sram & ~is_write):
                        m.next = "READ"
            with m.State("SIGNAL"):
                m.d.comb += self.add.valid.eq(signals)
                with m.If(self.add.ready | ~signals):
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

    Members: `i` (in range), taken when it starts; `done` pulses a cycle after its last flit went into the
    output register;
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
        m.submodules.buffer = buffer = DualPortRam(width=8 * FLIT_BYTES, depth=BUFFER)
        # The far end has a buffer of its own: no other cuts the way of `ready`.
        flit, send, space = Signal(flit_layout), Signal(), Signal()
        held = Signal(flit_layout, reset_less=True)
        m.d.comb += [space.eq(~self.o.valid | self.o.ready), raw(self.o.payload).eq(raw(held))]
        with m.If(space):  # whether there is a flit or not
            m.d.sync += [self.o.valid.eq(send), held.eq(flit)]
        sends_data, ended = Signal(), Signal()
        m.d.sync += self.done.eq(ended)
        # The request; it has no data; it has no signal.
        now, empty, silent = Signal(request_layout(config), reset_less=True), Signal(), Signal()
        flits = len(now.len)
        # Flits that no packet has yet; they fit into one. Flits due of the packet under way; 1 is; it is the
        # request's last packet.
        left, final = Signal(flits, reset_less=True), Signal()
        in_packet, last, ends = Signal(range(MAX_FLITS + 1), reset_less=True), Signal(), Signal()

        # Reads run ahead of the packets as far as the buffer has room. What leaves it counts a cycle later.
        fetch, fetch_left = Signal(len(now.src), reset_less=True), Signal(flits, reset_less=True)
        credit = Signal(range(BUFFER + 1), init=BUFFER)
        fetching, has_credit = Signal(), Signal(init=1)  # fetch_left and credit are not 0
        request = self.read.req
        issue, pop, popped = Signal(), Signal(), Signal()
        ready, taken = Signal(), Signal()  # the buffer's read register holds a flit; it goes if it is there
        m.d.comb += [
            request.valid.eq(fetching & has_credit), request.payload.eq(fetch[word - size:]),
            issue.eq(request.valid & request.ready), pop.eq(ready & taken),
        ]
        m.d.sync += [
            popped.eq(pop), credit.eq(credit - issue + popped),
            has_credit.eq(popped | Mux(issue, credit != 1, credit != 0)),
        ]
        with m.If(issue):
            m.d.sync += [fetch.eq(fetch + 1), fetch_left.eq(fetch_left - 1), fetching.eq(fetch_left != 1)]
        lane = Signal(max(word - size, 1))
        # The buffer, which the credits keep from overflowing; stored: it is not empty.
        front, back, stored = Signal(range(BUFFER)), Signal(range(BUFFER)), Signal()
        pull = stored & (~ready | taken)
        m.d.comb += [buffer.wstrb.eq(self.read.valid), buffer.waddr.eq(back),
                     buffer.wdata.eq(self.read.data.word_select(lane, 8 * FLIT_BYTES) if lanes > 1
                                     else self.read.data),
                     buffer.ren.eq(pull), buffer.raddr.eq(front)]
        m.d.sync += [ready.eq(pull | (ready & ~taken)),
                     stored.eq(self.read.valid | Mux(pull, (front + 1)[:len(front)] != back, stored))]
        with m.If(self.read.valid):
            m.d.sync += back.eq(back + 1)
        with m.If(pull):
            m.d.sync += front.eq(front + 1)
        with m.If(self.read.valid & (lanes > 1)):
            m.d.sync += lane.eq(lane + 1)

        head = Signal(head_layout)
        used = len(raw(head)) - len(head.zero)
        packet = Signal(range(MAX_FLITS + 1))
        packets = left[exact_log2(MAX_FLITS):]

        def fits(length, packets=0):
            """What is left of `length` after so many packets goes into one."""
            whole = length[exact_log2(MAX_FLITS):]
            return (whole == packets) | ((whole == packets + 1) & ~length[:exact_log2(MAX_FLITS)].any())

        m.d.comb += [
            packet.eq(Mux(final, left, MAX_FLITS)),
            head.dst.eq(now.tile), head.src.eq(self.tile_id), head.addr.eq(now.dst),
            head.length.eq(packet << size),
            head.kind.eq(Mux(empty, Kind.SIGNAL, Kind.WRITE)), head.sem.eq(Mux(final, now.sem, 0)),
            head.count.eq(final),
            # 0 above the head: of gates, else synthesis makes it a reset, which would wait for `space`.
            flit.data.eq(Cat(Mux(sends_data, buffer.rdata[:used], raw(head)[:used]),
                             buffer.rdata[used:] & sends_data.replicate(len(head.zero)))),
            flit.head.eq(~sends_data), flit.last.eq(Mux(sends_data, last, empty)),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [now.eq(self.i.payload), left.eq(self.i.payload.len),
                             final.eq(fits(self.i.payload.len)), empty.eq(self.i.payload.len == 0),
                             silent.eq(self.i.payload.sem == 0), fetch.eq(self.i.payload.src),
                             fetch_left.eq(self.i.payload.len), lane.eq(self.i.payload.src)]
                with m.If(self.i.valid):
                    m.d.sync += fetching.eq(self.i.payload.len != 0)
                    m.next = "HEAD"
            with m.State("HEAD"):
                with m.If(self.cut):
                    m.d.sync += fetching.eq(0)
                    m.next = "FLUSH"
                with m.Elif(empty & silent):
                    m.d.comb += ended.eq(1)
                    m.next = "IDLE"
                with m.Else():
                    m.d.comb += send.eq(1)
                    with m.If(space):
                        m.d.sync += [in_packet.eq(packet), last.eq(packet == 1), ends.eq(final),
                                     packets.eq(packets - 1), final.eq(fits(left, 1)),
                                     now.dst.eq(now.dst + MAX_FLITS * FLIT_BYTES)]
                        m.next = "DATA"
                        with m.If(empty):
                            m.d.comb += ended.eq(1)
                            m.next = "IDLE"
            with m.State("DATA"):
                m.d.comb += [send.eq(ready), taken.eq(space), sends_data.eq(1)]
                with m.If(pop):
                    m.d.sync += [in_packet.eq(in_packet - 1), last.eq(in_packet == 2)]
                    with m.If(last):
                        m.next = "HEAD"
                        with m.If(ends):
                            m.d.comb += ended.eq(1)
                            m.next = "IDLE"
            with m.State("FLUSH"):
                m.d.comb += taken.eq(1)
                with m.If(credit == BUFFER):
                    m.d.comb += ended.eq(1)
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
        held = Signal.like(command, reset_less=True)
        area, faults = _Range(m, config, command.src, command.len), Signal(5, reset_less=True)
        code, value = Signal(4), Signal(32)
        asking, sending = Signal(), Signal()
        signals = [held.sig_a, held.sig_b, held.sig_c]
        step = Signal(range(3))
        number = Signal(SEM_BITS)
        m.d.comb += [code.eq(Error.NONE), value.eq(held.src)]
        with m.If(area.beyond):  # later assignments go first
            m.d.comb += code.eq(Error.SRAM_RANGE)
        checks = [  # while the command is loaded
            (command.tile[16:].any(), Error.ILLEGAL_OPERAND, held.tile),
            (command.sem[exact_log2(config.semaphores):].any(), Error.ILLEGAL_OPERAND, held.sem),
            *((command[name][:exact_log2(FLIT_BYTES)].any(), Error.ALIGNMENT, held[name])
              for name in ("len", "dst", "src")),
        ]
        for k, (_, error, operand) in enumerate(checks):
            with m.If(faults[k]):
                m.d.comb += [code.eq(error), value.eq(operand)]
        fine = ~faults.any() & ~area.beyond

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
                m.d.sync += [step.eq(0), held.eq(command), *area.found,
                             faults.eq(Cat(fault for fault, _, _ in checks))]
                with m.If(self.command.valid & self.command.ready):
                    m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(~self.error.valid):
                    m.d.sync += [self.error.valid.eq(~fine), self.error.code.eq(code),
                                 self.error.pc.eq(held.pc), self.error.value.eq(value)]
                with m.If(fine):
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
