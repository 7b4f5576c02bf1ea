"""STORE engine: SRAM to DRAM."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .axi import AxiWrite, Resp
from .config import TileConfig
from .dma_bursts import AddressChannel, Beats, Bursts, Fault, Signals, burst_depth, fifo_depth
from .dma_load import rotate_bytes
from .glue import Fifo, SkidBuffer, StreamArbiter, raw
from .isa import BY_OP, Error, Op
from .memory import DualPortRam
from .ports import PC_BITS, SEM_BITS, SramRead, unit_members
from .vector_queue import Slots

__all__ = ["StoreEngine"]

WORDS = 16
"""SRAM words fetched ahead: covers the round trip through the SRAM at one word per cycle."""


class _WordReader(wiring.Component):
    """Reads the SRAM words of each run, one per cycle through all runs, ahead of their use.

    Members: `push` with `near` (byte address of a run) and `length` (its bytes - 1), only while `ready` is
    high; `read`, the SRAM port; `o`, the words in order, each once per run.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                "push": In(1),
                "near": In(exact_log2(config.sram_bytes)),
                "length": In(32),
                "ready": Out(1),
                "read": Out(SramRead(config)),
                "o": Out(stream.Signature(8 * config.word_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits, offset = self.config.sram_addr_bits, exact_log2(self.config.word_bytes)
        m.submodules.jobs = jobs = Fifo(
            data.StructLayout({"word": bits, "more": bits}), burst_depth(self.config)
        )
        m.submodules.words = words = DualPortRam(width=8 * self.config.word_bytes, depth=WORDS)
        m.d.comb += [
            self.ready.eq(jobs.i.ready),
            jobs.i.valid.eq(self.push),
            jobs.i.payload.word.eq(self.near[offset:]),
            jobs.i.payload.more.eq((self.near[:offset] + self.length[: bits + offset]) >> offset),
        ]
        # The FIFO of words: credits keep it from overflowing, so that nothing hangs on `o.ready` but one
        # read.
        head, tail, pull = Signal(range(2 * WORDS)), Signal(range(2 * WORDS)), Signal()
        m.d.comb += [
            words.wstrb.eq(self.read.valid),
            words.wdata.eq(self.read.data),
            words.waddr.eq(tail[:-1]),
            pull.eq((head != tail) & (~self.o.valid | self.o.ready)),
            words.ren.eq(pull),
            words.raddr.eq(head[:-1]),
            self.o.payload.eq(words.rdata),
        ]
        with m.If(self.read.valid):
            m.d.sync += tail.eq(tail + 1)
        with m.If(pull):
            m.d.sync += head.eq(head + 1)
        m.d.sync += self.o.valid.eq(pull | (self.o.valid & ~self.o.ready))
        active, more, none_left = Signal(), Signal(bits), Signal()  # words of the run after this one
        credits = Signal(range(WORDS + 1), init=WORDS)
        request = self.read.req
        m.d.comb += [
            request.valid.eq(active & credits.any()),
            jobs.o.ready.eq(~active | (request.valid & request.ready & none_left)),
        ]
        taken = request.valid & request.ready
        with m.If(jobs.o.ready):
            m.d.sync += [
                active.eq(jobs.o.valid),
                request.payload.eq(jobs.o.payload.word),
                more.eq(jobs.o.payload.more),
                none_left.eq(~jobs.o.payload.more.any()),
            ]
        with m.Elif(taken):
            m.d.sync += [request.payload.eq(request.payload + 1), more.eq(more - 1), none_left.eq(more == 1)]
        pulled = Signal()  # `pull` comes late
        m.d.sync += [pulled.eq(pull), credits.eq(credits - taken + pulled)]
        return m


class StoreEngine(wiring.Component):
    """Copies SRAM to DRAM; STORE of docs/architecture.md.

    Members besides those of every unit
    * `m_axi`: write channels, identifier 0 (that of responses is not looked at), in-order responses. AW
      leaves a cycle before its first W at the earliest; neither waits for the other's ready.
    * `read`: SRAM port; every W-byte word of a run is read once.
    * `dram_base`, `dram_size`: allowed window. `stop`: issue no more bursts; bursts whose address is out
      are finished without strobes; `idle`: all are answered, the engine may be reset.

    Timing: SRAM data to W 4 cycles. Beats leave at one per cycle through runs and instructions.

    `sig_a` leaves when the SRAM has been read, `sig_b` and `sig_c` when all responses have arrived; each
    kind in instruction order. Errors are precise, as in the LOAD engine; AXI_SLVERR and AXI_DECERR report
    the first byte of their burst.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                **unit_members(config, BY_OP[Op.STORE]),
                "m_axi": Out(AxiWrite(config)),
                "read": Out(SramRead(config)),
                "dram_base": In(32),
                "dram_size": In(32),
                "stop": In(1),
                "idle": Out(1),
                "count_write_beat": Out(1),
                "count_wait_aw": Out(1),
                "count_wait_w": Out(1),
                "count_wait_sram": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, axi = self.config, self.m_axi
        width, lanes = config.word_bytes, exact_log2(config.axi_bytes)
        slots = width // config.axi_bytes
        sub_bits = exact_log2(slots)

        m.submodules.bursts = bursts = Bursts(config, BY_OP[Op.STORE], "dst", "src")
        m.submodules.aw = aw = AddressChannel(config)
        m.submodules.fifo = fifo = Fifo(bursts.burst.shape(), burst_depth(config))
        m.submodules.beats = beats = Beats(config)
        m.submodules.reader = reader = _WordReader(config)
        m.submodules.read_signals = read_signals = Signals(config, 1)
        m.submodules.done_signals = done_signals = Signals(config, 2)
        m.submodules.signals = signals = StreamArbiter(SEM_BITS, 2)
        answer_layout = data.StructLayout({"far": 32, "pc": PC_BITS, "end": 1, "null": 1, "fault": Fault})
        m.submodules.answers = answers = Fifo(answer_layout, fifo_depth(config), block=True)
        halted = Signal()
        wiring.connect(m, wiring.flipped(self.command), bursts.command)
        wiring.connect(m, fifo.o, beats.i)
        wiring.connect(m, wiring.flipped(self.read), reader.read)
        wiring.connect(m, read_signals.signal, signals.i[0])
        wiring.connect(m, done_signals.signal, signals.i[1])
        wiring.connect(m, wiring.flipped(self.signal), signals.o)
        ticket, burst = bursts.ticket, bursts.burst
        m.d.comb += [
            bursts.dram_base.eq(self.dram_base),
            bursts.dram_size.eq(self.dram_size),
            bursts.halt.eq(halted),
            bursts.room.eq(fifo.i.ready & answers.i.ready & reader.ready),
            fifo.i.valid.eq(bursts.push),
            fifo.i.payload.eq(burst),
            answers.i.valid.eq(bursts.push),
            *(raw(answers.i.payload[f]).eq(raw(burst[f])) for f in ("far", "pc", "end", "null", "fault")),
            reader.push.eq(bursts.push & burst.first & ~bursts.bare),
            reader.near.eq(burst.near),
            reader.length.eq(bursts.length),
            read_signals.ticket.valid.eq(ticket.valid & done_signals.ticket.ready),
            done_signals.ticket.valid.eq(ticket.valid & read_signals.ticket.ready),
            ticket.ready.eq(read_signals.ticket.ready & done_signals.ticket.ready),
            raw(read_signals.ticket.payload).eq(ticket.payload.sig_a),
            raw(done_signals.ticket.payload).eq(Cat(ticket.payload.sig_b, ticket.payload.sig_c)),
            axi.awvalid.eq(aw.o.valid),
            aw.o.ready.eq(axi.awready),
            axi.awaddr.eq(aw.o.payload.addr),
            axi.awlen.eq(aw.o.payload.len),
        ]

        # The next beats wait in a queue, which cuts the way of `take`, with what is to be known of each:
        # `bare`, no beat; `early`, all bytes are in the first slot, lanes before them in none; `beyond`, some
        # are in the slot after the first; `later`, which lanes that would be; `strobe`.
        arriving = beats.o.payload
        beat_lanes = data.StructLayout(
            {
                "beat": arriving.shape(),
                "bare": 1,
                "early": 1,
                "beyond": 1,
                "later": config.axi_bytes - 1,
                "strobe": config.axi_bytes,
            }
        )
        m.submodules.queue = queue = Slots(beat_lanes)
        past = Signal(lanes + 1)  # lane of the beat's last byte, counted from lane 0 of its first slot
        early = arriving.first & arriving.borrow
        ones = (1 << config.axi_bytes) - 1
        head = Mux(arriving.first, arriving.near[:lanes] - arriving.rot, 0)[:lanes]
        tail = Mux(arriving.last, (2 << arriving.tail) - 1, ones)
        m.d.comb += [
            queue.i.valid.eq(beats.o.valid),
            beats.o.ready.eq(queue.i.ready),
            past.eq(arriving.rot + Mux(arriving.last, arriving.tail, config.axi_bytes - 1)),
            queue.i.payload.beat.eq(arriving),
            queue.i.payload.bare.eq(arriving.null | (arriving.fault != Fault.NONE)),
            queue.i.payload.early.eq(early),
            queue.i.payload.beyond.eq(past[lanes] & ~early),
            queue.i.payload.later.eq(
                Cat(~early & (t < arriving.rot) for t in range(config.axi_bytes - 1))
            ),
            queue.i.payload.strobe.eq((ones << head) & tail),
        ]

        # Plan of the next beat: its strobes, the slot of its first lane and which bytes come from the slot
        # after that.
        next_up, beat = queue.o.payload, queue.o.payload.beat
        slot, next_slot = Signal(len(beat.near) - lanes), Signal(len(beat.near) - lanes)
        m.d.comb += slot.eq(Mux(beat.first, beat.near[lanes:], next_slot))
        # A plan is there; it has a beat, and that beat is the last one of its first slot.
        planned, carries, drops = Signal(), Signal(), Signal()
        end, final = (Signal(name=n, reset_less=True) for n in ("end", "final"))
        back, strobe = Signal(lanes, reset_less=True), Signal(config.axi_bytes, reset_less=True)
        # Slot, of those of `word` and the first one of `after`, that each byte comes from.
        source = Signal(data.ArrayLayout(range(slots + 1), config.axi_bytes), reset_less=True)
        straddles, leaves_both = (Signal(name=n, reset_less=True) for n in ("straddles", "leaves_both"))
        at_end = slot[:sub_bits] == slots - 1
        crosses, leaves = next_up.beyond & at_end, beat.last | (~next_up.early & at_end)
        # The address goes out when its first beat is planned: no burst is in flight before its data is due.
        # After a halt,
        # bursts whose address is not out are dropped, the others finished.
        starts, sending, free = Signal(), Signal(), Signal()
        may_go = ~starts | aw.i.ready
        goes = queue.o.valid & may_go & (~halted | sending)
        m.d.comb += [
            starts.eq(queue.o.valid & beat.begin & ~next_up.bare & ~halted),
            queue.o.ready.eq(free & may_go),
            aw.i.valid.eq(starts & free),
            aw.i.payload.addr.eq(beat.far),
            aw.i.payload.len.eq(beat.beats),
        ]
        with m.If(free):
            m.d.sync += [
                planned.eq(goes),
                carries.eq(goes & ~next_up.bare),
                drops.eq(goes & ~next_up.bare & leaves),
                end.eq(beat.end),
                final.eq(beat.final),
                back.eq(-beat.rot),
                *(
                    source[t].eq(slot[:sub_bits] + next_up.later[t])
                    for t in range(config.axi_bytes - 1)
                ),
                source[-1].eq(slot[:sub_bits]),  # no rotation reaches it
                strobe.eq(next_up.strobe),
                straddles.eq(crosses),
                leaves_both.eq(crosses & beat.last),
            ]
        with m.If(queue.o.valid & queue.o.ready):
            m.d.sync += [
                sending.eq((starts | sending) & ~beat.final),
                next_slot.eq(slot + ~next_up.early),
            ]

        # `word` has the beat's first slot, `after` is the next word; both leave at once at the end of a run
        # that straddles.
        word, after = (Signal(8 * width, name=n, reset_less=True) for n in ("word", "after"))
        loaded, after_loaded = Signal(), Signal()
        words = reader.o
        m.submodules.w = w = SkidBuffer(
            data.StructLayout({"data": config.axi_data_bits, "strb": config.axi_bytes, "last": 1})
        )
        have = loaded & (after_loaded | ~straddles)
        drop, shift, skip = Signal(), Signal(), Signal()  # shift: `word` is loaded; skip: past `after`
        m.d.comb += [
            w.i.valid.eq(carries & (halted | have)),
            free.eq(~carries | ((halted | have) & w.i.ready)),  # the plan, if any, is carried out
            drop.eq(drops & have & w.i.ready),
            shift.eq(~loaded | drop),
            skip.eq(shift & (~after_loaded | (drop & leaves_both))),
            words.ready.eq(shift | ~after_loaded),
        ]
        with m.If(shift):
            m.d.sync += [word.eq(Mux(skip, words.payload, after)), loaded.eq(~skip | words.valid)]
        with m.If(skip):
            m.d.sync += after_loaded.eq(0)
        with m.Elif(shift | ~after_loaded):
            m.d.sync += [after.eq(words.payload), after_loaded.eq(words.valid)]
        slot_size = config.axi_data_bits
        mixed = []
        for t in range(config.axi_bytes):
            place = [slot_size * k + 8 * t for k in range(slots)]
            own = Cat(word[at : at + 8] for at in place)
            if slots > 1:
                own = own.word_select(source[t][:sub_bits], 8)
            mixed.append(Mux(source[t][sub_bits], after[8 * t : 8 * t + 8], own))
        m.d.comb += [
            w.i.payload.data.eq(rotate_bytes(m, Cat(mixed), back, "rotated")),
            w.i.payload.strb.eq(strobe & ~halted.replicate(config.axi_bytes)),
            w.i.payload.last.eq(final),
            axi.wvalid.eq(w.o.valid),
            w.o.ready.eq(axi.wready),
            axi.wdata.eq(w.o.payload.data),
            axi.wstrb.eq(w.o.payload.strb),
            axi.wlast.eq(w.o.payload.last),
            read_signals.complete.eq(planned & free & end),
        ]

        # Responses, in order with what was refused or empty.
        reply = answers.o.payload
        unsent = reply.null | (reply.fault != Fault.NONE)
        got = Signal()
        failed = got & axi.bresp[1]
        refused = answers.o.valid & (reply.fault != Fault.NONE)
        m.d.comb += [
            axi.bready.eq(answers.o.valid & ~unsent),
            got.eq(axi.bvalid & axi.bready),
            aw.retire.eq(got),
            answers.o.ready.eq(unsent | got),
            done_signals.complete.eq(
                answers.o.valid & answers.o.ready & reply.end & ~halted & ~failed & ~refused
            ),
        ]
        with m.If(self.stop):
            m.d.sync += halted.eq(1)
        with m.If((failed | refused) & ~halted):
            m.d.sync += [halted.eq(1), self.error.valid.eq(1)]
        with m.If(~halted):
            m.d.sync += [
                self.error.pc.eq(reply.pc),
                self.error.value.eq(reply.far),
                self.error.code.eq(
                    Mux(
                        unsent,
                        Mux(reply.fault == Fault.DRAM, Error.DRAM_RANGE, Error.SRAM_RANGE),
                        Mux(axi.bresp == Resp.DECERR, Error.AXI_DECERR, Error.AXI_SLVERR),
                    )
                ),
            ]
        m.d.comb += [
            self.idle.eq(halted & ~aw.inflight & ~aw.o.valid & ~w.o.valid),
            self.busy.eq(
                bursts.busy
                | aw.inflight
                | answers.level.any()
                | read_signals.busy
                | done_signals.busy
                | signals.o.valid
            ),
            self.count_write_beat.eq(axi.wvalid & axi.wready),
            self.count_wait_aw.eq(starts & ~aw.i.ready),
            self.count_wait_w.eq(axi.wvalid & ~axi.wready),
            self.count_wait_sram.eq(carries & ~have),
        ]
        return m
