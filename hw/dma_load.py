"""LOAD engine: DRAM to SRAM."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .axi import AxiRead, Resp
from .config import TileConfig
from .dma_bursts import AddressChannel, Beats, Bursts, Fault, Signals, boot_layout, burst_depth
from .glue import Fifo, raw
from .isa import BY_OP, Error, Op
from .ports import SramWrite, unit_members
from .vector_queue import Slots

__all__ = ["LoadEngine", "rotate_bytes"]


def rotate_bytes(m: Module, value, amount, name: str):
    """Byte t of the result is byte (t - amount) mod n of `value`, n a power of two."""
    for k in range(len(amount)):
        step = Signal(len(value), name=f"{name}_{k}")
        m.d.comb += step.eq(Mux(amount[k], value.rotate_left(8 << k), value))
        value = step
    return value


class LoadEngine(wiring.Component):
    """Copies DRAM to SRAM; LOAD of docs/architecture.md. Also fetches programs.

    Members besides those of every unit
    * `m_axi`: read channels, identifier 0 (that of responses is not looked at), in-order responses. `rready`
      is a register.
    * `write`: SRAM port. Every W-byte word of a run is written once, strobed at its ends.
    * `boot` {src, words} -> `program`: 32-bit words of a program, in order, one per cycle; goes ahead of
      waiting commands.
    * `dram_base`, `dram_size`: allowed window.
    * `stop`: issue no more bursts, discard what still arrives; `idle`: nothing is in flight any more, the
      engine may be reset.

    Timing: command to AR 3 cycles, R to SRAM write 1 cycle. Beats arrive at one per cycle through runs and
    instructions. A run whose last beat spills into a word of its own needs a write more for that, which hides
    behind the first beat of the next run unless that one writes as well.

    Signals leave in instruction order, once the data is visible to reads. Errors are precise: a refused run
    (DRAM_RANGE, SRAM_RANGE; value = its DRAM or SRAM address) is reported after all bursts before it;
    AXI_SLVERR and AXI_DECERR report the first byte wanted of their burst, and nothing of the failed beat and
    after it is written.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                **unit_members(config, BY_OP[Op.LOAD]),
                "m_axi": Out(AxiRead(config)),
                "write": Out(SramWrite(config)),
                "boot": In(stream.Signature(boot_layout)),
                "program": Out(stream.Signature(32)),
                "dram_base": In(32),
                "dram_size": In(32),
                "stop": In(1),
                "idle": Out(1),
                "count_read_beat": Out(1),
                "count_wait_ar": Out(1),
                "count_wait_r": Out(1),
                "count_wait_sram": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, axi = self.config, self.m_axi
        width, lanes = config.word_bytes, exact_log2(config.axi_bytes)
        sub_bits = exact_log2(width // config.axi_bytes)  # position of an axi_bytes slot in its word

        m.submodules.bursts = bursts = Bursts(config, BY_OP[Op.LOAD], "src", "dst")
        m.submodules.ar = ar = AddressChannel(config)
        m.submodules.fifo = fifo = Fifo(bursts.burst.shape(), burst_depth(config))
        m.submodules.beats = beats = Beats(config)
        m.submodules.signals = signals = Signals(config, 3)
        halted = Signal()
        wiring.connect(m, wiring.flipped(self.command), bursts.command)
        wiring.connect(m, wiring.flipped(self.boot), bursts.boot)
        wiring.connect(m, fifo.o, beats.i)
        wiring.connect(m, wiring.flipped(self.signal), signals.signal)
        ticket = bursts.ticket
        m.d.comb += [
            bursts.dram_base.eq(self.dram_base),
            bursts.dram_size.eq(self.dram_size),
            bursts.halt.eq(halted),
            bursts.room.eq(fifo.i.ready & ar.i.ready),
            fifo.i.valid.eq(bursts.push),
            fifo.i.payload.eq(bursts.burst),
            signals.ticket.valid.eq(ticket.valid),
            ticket.ready.eq(signals.ticket.ready),
            raw(signals.ticket.payload).eq(raw(ticket.payload)),
            ar.i.valid.eq(bursts.push & ~bursts.bare),
            ar.i.payload.addr.eq(bursts.addr),
            ar.i.payload.len.eq(bursts.burst.beats),
            axi.arvalid.eq(ar.o.valid),
            ar.o.ready.eq(axi.arready),
            axi.araddr.eq(ar.o.payload.addr),
            axi.arlen.eq(ar.o.payload.len),
        ]

        # R channel: what cannot be used at once waits in `held`.
        held, held_resp, full = Signal(config.axi_data_bits), Signal(2), Signal()
        have, use = Signal(), Signal()  # a beat is there; it is taken
        m.d.comb += [
            axi.rready.eq(~full),
            have.eq(axi.rvalid | full),
            ar.retire.eq(axi.rvalid & axi.rready & axi.rlast),
            self.count_read_beat.eq(axi.rvalid & axi.rready),
        ]
        with m.If(~full):
            m.d.sync += [held.eq(axi.rdata), held_resp.eq(axi.rresp)]
        m.d.sync += full.eq(have & ~use)
        resp = Mux(full, held_resp, axi.rresp)

        # The next beats wait in a queue, which cuts the way of `take`, with the lanes of the slot that each
        # writes; `past` beyond axi_bytes: into the next slot.
        beat_lanes = data.StructLayout({"beat": beats.o.payload.shape(), "begin": lanes, "past": lanes + 1})
        m.submodules.queue = queue = Slots(beat_lanes)
        arriving = beats.o.payload
        past = Signal(lanes + 1)
        m.d.comb += [
            queue.i.valid.eq(beats.o.valid),
            beats.o.ready.eq(queue.i.ready),
            past.eq(arriving.rot + Mux(arriving.last, arriving.tail, config.axi_bytes - 1) + 1),
            queue.i.payload.beat.eq(arriving),
            queue.i.payload.begin.eq(Mux(arriving.first, arriving.near[:lanes], arriving.rot)),
            queue.i.payload.past.eq(Cat(past[:lanes], past[lanes] & ~(arriving.first & arriving.borrow))),
        ]

        # Plan of the next beat: which bytes of its SRAM word and of the word after it are written.
        beat, begin, end = queue.o.payload.beat, queue.o.payload.begin, queue.o.payload.past
        planned, plan = Signal(), Signal(beat.shape(), reset_less=True)
        slot = Signal(len(beat.near) - lanes)  # number of this slot in SRAM
        next_slot = Signal.like(slot)
        m.d.comb += slot.eq(Mux(beat.first, beat.near[lanes:], next_slot))
        sub = slot[:sub_bits]
        word_begin, word_end = Cat(begin, sub), Signal(lanes + sub_bits + 1)
        ones = Const(-1, width + config.axi_bytes)
        mask = Signal(width + config.axi_bytes)
        m.d.comb += [
            word_end.eq(Cat(end[:lanes], sub + end[lanes])),
            mask.eq((ones << word_begin)[: len(mask)] & ~(ones << word_end)[: len(mask)]),
        ]
        strobe, spill = Signal(width), Signal(config.axi_bytes)
        word = Signal(config.sram_addr_bits)
        # Boot: the next program word of the beat as it arrives (not rotated), and how many follow it.
        position, following = Signal(max(lanes - 2, 1)), Signal(max(lanes - 2, 1))
        emit, spills = Signal(), Signal()
        take = Signal()
        # The plan has no beat. There is a plan, and its beat goes to SRAM; ... is of a program.
        bare, loads, boots = Signal(), Signal(), Signal()
        nothing = beat.null | (beat.fault != Fault.NONE)
        advance = ~planned | take
        m.d.comb += queue.o.ready.eq(advance)
        with m.If(advance):
            m.d.sync += [
                planned.eq(queue.o.valid),
                loads.eq(queue.o.valid & ~nothing & ~beat.boot),
                boots.eq(queue.o.valid & ~nothing & beat.boot),
                plan.eq(beat),
                bare.eq(nothing),
                Cat(strobe, spill).eq(mask),
                word.eq(slot[sub_bits:]),
                position.eq(begin[2:] - beat.rot[2:]),
                following.eq(end[2:] - begin[2:] - 1),
                emit.eq(beat.last | (word_end >= width)),
                spills.eq(beat.last & (word_end > width)),
            ]
            with m.If(queue.o.valid):
                m.d.sync += next_slot.eq(slot + end[lanes])

        # Rotate, gather the bytes of a word in `part`, write. `flush`: `part` is the last word of a finished
        # run.
        out, out_end = self.write.req, Signal()
        part, part_strobe = Signal(8 * width), Signal(width)
        flush, flush_word, flush_end = Signal(), Signal.like(word), Signal()
        space = ~out.valid | out.ready
        arrived = Mux(full, held, axi.rdata)
        rotated = rotate_bytes(m, arrived, plan.rot, "rotated")
        lane = Signal(config.axi_data_bits)
        m.d.comb += lane.eq(rotated)
        good = Signal()
        quiet = Signal()  # every write so far is visible
        served = Signal()  # boot: all words of this beat have been passed on
        empty = quiet & ~flush & ~out.valid
        go, moves = Signal(), Signal()  # there is space for a beat in SRAM; the beat can be taken
        m.d.comb += [
            go.eq((space | (~emit & ~flush)) & ~(flush & emit)),
            moves.eq((loads & go) | (boots & (served | resp[1])) | (planned & ~bare & halted)),
            take.eq((planned & bare & (halted | empty)) | (have & moves)),
            use.eq(have & moves),
            good.eq(loads & ~halted & have & go & ~resp[1]),
        ]
        fresh = (
            (strobe | Cat(spill, Const(0, width - config.axi_bytes)))
            if width > config.axi_bytes
            else strobe | spill
        )
        for b in range(width):
            source = lane.word_select(b % config.axi_bytes, 8)
            with m.If(good & fresh[b]):
                m.d.sync += part[8 * b : 8 * b + 8].eq(source)
        with m.If(space):
            m.d.sync += [
                out.valid.eq(~halted & (flush | (good & emit))),
                out.payload.addr.eq(Mux(flush, flush_word, word)),
                out.payload.strb.eq(part_strobe | (strobe & ~flush.replicate(width))),
                out_end.eq(Mux(flush, flush_end, plan.end & ~spills)),
                *(
                    out.payload.data[8 * b : 8 * b + 8].eq(
                        Mux(
                            strobe[b] & ~flush,
                            lane.word_select(b % config.axi_bytes, 8),
                            part[8 * b : 8 * b + 8],
                        )
                    )
                    for b in range(width)
                ),
                flush.eq(0),
            ]
            with m.If(flush):
                m.d.sync += part_strobe.eq(0)
        with m.If(good):
            m.d.sync += part_strobe.eq(Mux(emit, spill, strobe | (part_strobe & ~flush.replicate(width))))
            m.d.sync += [flush.eq(spills), flush_word.eq(word + 1), flush_end.eq(plan.end)]

        # A write is visible when the port is not busy, or two later ones were accepted (the port holds two).
        newest, older = Signal(), Signal()  # the last (last but one) write accepted ends an instruction
        accepted = out.valid & out.ready
        m.d.comb += quiet.eq(~newest & ~older)
        ends_null = planned & plan.null & ~plan.boot & ~halted & empty  # then no write ends
        with m.If(accepted):
            m.d.sync += [newest.eq(out_end), older.eq(newest & self.write.busy)]
        with m.Elif(~self.write.busy):
            m.d.sync += [newest.eq(0), older.eq(0)]
        ends_older, ends_newest = older & (accepted | ~self.write.busy), newest & ~self.write.busy
        m.d.comb += signals.complete.eq(
            Cat(ends_null | (ends_older ^ ends_newest), ends_older & ends_newest)
        )

        # Programs.
        at_end = ~following.any() if lanes > 2 else Const(1)
        instruction = arrived.word_select(position, 32) if lanes > 2 else arrived
        m.d.comb += served.eq(at_end & (~self.program.valid | self.program.ready))
        with m.If(~self.program.valid | self.program.ready):
            serve = boots & have & ~resp[1] & ~halted
            m.d.sync += [self.program.valid.eq(serve), self.program.payload.eq(instruction)]
            with m.If(serve & ~at_end):
                m.d.sync += [position.eq(position + 1), following.eq(following - 1)]

        # Errors.
        with m.If(self.stop):
            m.d.sync += halted.eq(1)
        failed = use & resp[1]
        refused = take & (plan.fault != Fault.NONE)
        with m.If((failed | refused) & ~halted):
            m.d.sync += [halted.eq(1), self.error.valid.eq(1)]
        with m.If(~halted):
            m.d.sync += [
                self.error.pc.eq(plan.pc),
                self.error.value.eq(plan.far),
                self.error.code.eq(
                    Mux(
                        bare,
                        Mux(plan.fault == Fault.DRAM, Error.DRAM_RANGE, Error.SRAM_RANGE),
                        Mux(resp == Resp.DECERR, Error.AXI_DECERR, Error.AXI_SLVERR),
                    )
                ),
            ]
        m.d.comb += [
            self.idle.eq(halted & ~ar.inflight & ~ar.o.valid & ~out.valid),
            self.busy.eq(
                bursts.busy
                | ar.inflight
                | fifo.level.any()
                | beats.o.valid
                | queue.o.valid
                | planned
                | signals.busy
                | self.program.valid
            ),
            self.count_wait_ar.eq(bursts.waiting),
            self.count_wait_r.eq(planned & ~bare & ~have),
            self.count_wait_sram.eq(out.valid & ~out.ready),
        ]
        return m
