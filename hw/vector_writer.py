"""The way out of the vector unit: lane words, bf16, packed rows, quantised blocks and reduction results to
SRAM."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .fp import INF
from .isa import Error
from .ports import PC_BITS, SramWrite, error_layout
from .quantiser import Quantiser, element_layout
from .vector_lanes import ARGMAX, MAX

__all__ = ["COUNT_BITS", "VectorWriter", "pick", "writer_layout"]

COUNT_BITS = 24
"""Elements per dimension: less than 2^24."""

F32_LANES, BF16_LANES, F32_PACKED, BF16_PACKED, BLOCK, SCALES = range(6)

writer_layout = data.StructLayout(
    {
        "mode": 2,
        "red_op": 3,
        "block": 2,
        "zfill": 1,
        "pack": 1,
        "lane0": 5,
        "rows": 6,
        "tag": 1,
        "empty": 1,
        "n0": COUNT_BITS,
        "n1": COUNT_BITS,
        "out": 32,
        "o0": 32,
        "o1": 32,
        "o2": 32,
        "red": 32,
        "qs": 32,
        "pc": PC_BITS,
    }
)
"""What the writer needs of an instruction: rows is resolved (1..C), n0 and n1 count elements."""


def pick(word: Value, index: Value, width: int) -> Value:
    """word[index * width :][:width]; len(word) / width is a power of two."""
    bits = exact_log2(len(word) // width)
    return word.word_select(index[:bits], width) if bits else word


class VectorWriter(wiring.Component):
    """Writes the results of instructions, in order, one element or block per cycle; neighbours in a word
    share a write when the port is slow.

    Members: `command` (writer_layout); `elements` (element_layout, bf16 in the low half of each lane in mode
    2) of the instructions with mode 1 or 2; `blocks` are those of mode 3 with `scales`; `ready`, `clear`,
    `value`, `index` of a `Reducer`; `port`; `done`: number (0..2) of instructions whose last write became
    visible in this cycle; `error`. Completion relies on a write port that holds at most two accepted writes
    that are not visible yet (hw/sram.py). An address that is outside of SRAM, misaligned, or lets scale bytes
    cross a word is refused: `error` holds, nothing more is written.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        columns = config.columns
        super().__init__(
            {
                "command": In(stream.Signature(writer_layout)),
                "elements": In(stream.Signature(element_layout(columns))),
                "scales": In(stream.Signature(8 * columns)),
                "ready": In(2),
                "clear": Out(2),
                "value": In(64 * columns),
                "index": In(64 * columns),
                "port": Out(SramWrite(config)),
                "done": Out(2),
                "error": Out(error_layout),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, columns = self.config, self.config.columns
        lane_word = 32 * columns
        command, c = self.command, self.command.payload
        m.submodules.quantiser = quantiser = Quantiser(columns)
        blocks = quantiser.o

        # Write register: what to write where; `place` below turns it into a word with strobes.
        full, room, load, write, ends = Signal(), Signal(), Signal(), Signal(), Signal()
        w = Signal(
            data.StructLayout(
                {
                    "write": 1,
                    "ends": 1,
                    "kind": range(6),
                    "addr": 32,
                    "data": max(256, lane_word),
                    "first": 5,
                    "rows": 6,
                    "block": 2,
                    "zfill": 1,
                    "pc": PC_BITS,
                }
            ),
            reset_less=True,
        )
        with m.If(room):
            m.d.sync += full.eq(load)

        # The instruction in hand: elements or blocks, then the reduction's word, then the index word.
        started, reducing, indexing = Signal(), Signal(), Signal()
        cur, base, scale_at = Signal(32), Signal(32), Signal(32)
        left0, left1, lane = Signal(COUNT_BITS), Signal(COUNT_BITS), Signal(6)
        end0, end1 = left0 == 1, left1 == 1
        has_data = ~c.empty & (c.mode != 0)
        active = command.valid & started & room & ~self.error.valid
        in_data = active & has_data & ~reducing & ~indexing
        to_quantiser = self.elements.payload.quantise  # also those of the next instruction already
        take = in_data & (c.mode != 3) & self.elements.valid & ~to_quantiser
        take_block = in_data & (c.mode == 3) & blocks.valid
        result = (
            active
            & (c.red_op != 0)
            & (reducing | ~has_data)
            & ~indexing
            & (c.empty | self.ready.bit_select(c.tag, 1))
        )
        result_index = active & indexing
        nothing = active & ~has_data & (c.red_op == 0)
        data_end = (take & self.elements.payload.last) | (take_block & blocks.payload.last)
        finish = (data_end & (c.red_op == 0)) | (result & (c.red_op != ARGMAX)) | result_index | nothing
        m.d.comb += [
            self.elements.ready.eq(Mux(to_quantiser, quantiser.i.ready, take)),
            quantiser.i.valid.eq(self.elements.valid & to_quantiser),
            quantiser.i.payload.eq(self.elements.payload),
            quantiser.o.ready.eq(take_block),
            command.ready.eq(finish),
            self.clear.eq((finish & (c.red_op != 0)).replicate(2) & Cat(~c.tag, c.tag)),
            load.eq(take | (take_block & write) | result | result_index | nothing),
            ends.eq(finish),
            write.eq(blocks.payload.is_scales | (lane < c.rows)),
        ]
        wiring.connect(m, quantiser.scales, wiring.flipped(self.scales))
        m.d.sync += started.eq(command.valid & ~finish)
        with m.If(command.valid & ~started):
            m.d.sync += [
                cur.eq(c.out),
                base.eq(c.out),
                scale_at.eq(c.qs),
                left0.eq(c.n0),
                left1.eq(c.n1),
                lane.eq(0),
            ]
        with m.If(take):
            m.d.sync += [
                cur.eq(cur + Mux(end0, Mux(end1, c.o2, c.o1), c.o0)),
                left0.eq(Mux(end0, c.n0, left0 - 1)),
            ]
            with m.If(end0):
                m.d.sync += left1.eq(Mux(end1, c.n1, left1 - 1))
        with m.If(take_block):
            m.d.sync += [cur.eq(cur + c.o0), lane.eq(lane + 1)]
            with m.If(blocks.payload.is_scales):
                m.d.sync += [
                    cur.eq(base + c.o1),
                    base.eq(base + c.o1),
                    scale_at.eq(scale_at + c.o2),
                    lane.eq(0),
                ]
        with m.If(data_end & (c.red_op != 0)):
            m.d.sync += reducing.eq(1)
        with m.If(result & (c.red_op == ARGMAX)):
            m.d.sync += indexing.eq(1)
        with m.If(finish):
            m.d.sync += [reducing.eq(0), indexing.eq(0)]

        # Fill the write register.
        bf16 = c.mode == 2
        value, index = pick(self.value, c.tag, lane_word), pick(self.index, c.tag, lane_word)
        lowest = Mux(
            (c.red_op == MAX) | (c.red_op == ARGMAX), Const(INF | 1 << 31, 32), Const(0, 32)
        ).replicate(columns)
        with m.If(load):
            m.d.sync += [
                w.ends.eq(ends),
                w.write.eq(~nothing),
                w.pc.eq(c.pc),
                w.block.eq(c.block),
                w.zfill.eq(0),
                w.first.eq(0),
                w.rows.eq(columns),
                w.kind.eq(F32_LANES),
            ]
        with m.If(take):
            m.d.sync += [
                w.addr.eq(cur),
                w.data.eq(self.elements.payload.x),
                w.first.eq(c.lane0),
                w.rows.eq(c.rows),
                w.kind.eq(Mux(c.pack, F32_PACKED, F32_LANES) + bf16),
            ]
        with m.If(take_block):
            m.d.sync += w.rows.eq(c.rows)
            with m.If(blocks.payload.is_scales):
                m.d.sync += [w.addr.eq(scale_at), w.data.eq(blocks.payload.scales), w.kind.eq(SCALES)]
            with m.Else():
                m.d.sync += [
                    w.addr.eq(cur),
                    w.data.eq(blocks.payload.data),
                    w.kind.eq(BLOCK),
                    w.zfill.eq(c.zfill),
                ]
        with m.If(result):
            m.d.sync += [w.addr.eq(c.red), w.data.eq(Mux(c.empty, lowest, value))]
        with m.If(result_index):
            m.d.sync += [
                w.addr.eq(c.red + config.lane_bytes),
                w.data.eq(index & ~c.empty.replicate(lane_word)),
            ]

        # Refuse, or hand over to the request register. A write that waits there takes in those to the same
        # word behind it: only then, as a stream of writes at half rate would trail a read stream from bank to
        # bank.
        req = self.port.req
        word_data, strobes, misaligned = self._place(m, w)
        outside = w.addr[exact_log2(config.sram_bytes) :].any()
        refuse = full & w.write & (outside | misaligned)
        newer, older, req_ends = Signal(), Signal(), Signal()
        visible = ~self.port.busy
        sent = req.valid & req.ready
        held, held_ends = Signal(), Signal()
        held_addr, held_data = Signal(config.sram_addr_bits), Signal(8 * config.word_bytes, reset_less=True)
        held_strobes = Signal(config.word_bytes)
        idle = ~held & ~req.valid & visible & ~newer & ~older
        null = full & ~w.write  # completes once everything before it has
        word_addr = w.addr[exact_log2(config.word_bytes) :][: config.sram_addr_bits]
        same = held & (held_addr == word_addr) & ~held_ends
        coming = full & w.write & ~refuse & ~self.error.valid
        move = ~req.valid | req.ready
        leave, take_write = Signal(), Signal()
        m.d.comb += [
            leave.eq(move & held),
            take_write.eq(coming & (~held | same | move)),
            room.eq(~full | take_write | (null & idle & ~self.error.valid)),
        ]
        with m.If(move):
            m.d.sync += req.valid.eq(leave)
        with m.If(leave):
            m.d.sync += [
                held.eq(0),
                req_ends.eq(held_ends),
                req.payload.addr.eq(held_addr),
                req.payload.data.eq(held_data),
                req.payload.strb.eq(held_strobes),
            ]
        with m.If(take_write):
            m.d.sync += [
                held.eq(1),
                held_ends.eq(w.ends),
                held_addr.eq(word_addr),
                held_strobes.eq(strobes | (held_strobes & (same & ~leave).replicate(config.word_bytes))),
            ]
            for k in range(config.word_bytes):
                with m.If(strobes[k]):
                    m.d.sync += held_data[8 * k : 8 * k + 8].eq(word_data[8 * k : 8 * k + 8])
        with m.If(refuse & ~self.error.valid):
            m.d.sync += [
                self.error.valid.eq(1),
                self.error.pc.eq(w.pc),
                self.error.value.eq(w.addr),
                self.error.code.eq(Mux(outside, Error.SRAM_RANGE, Error.ALIGNMENT)),
            ]

        # Completion: instructions that end with the last write accepted, or the one before it.
        m.d.comb += self.done.eq(Mux(null & idle & w.ends, 1, Mux(visible, newer + older, sent & older)))
        with m.If(sent):
            m.d.sync += [newer.eq(req_ends), older.eq(newer & ~visible)]
        with m.Elif(visible):
            m.d.sync += [newer.eq(0), older.eq(0)]
        return m

    def _place(self, m, w) -> tuple[Value, Value, Value]:
        """(word, byte strobes, misaligned) of the write register `w`. Expressions used more than once are
        named (emitted once)."""

        def named(value, name):
            signal = Signal(len(value), name=name)
            m.d.comb += signal.eq(value)
            return signal

        columns, size = self.config.columns, self.config.word_bytes
        lane_word = 32 * columns
        offset = w.addr[: exact_log2(size)]
        lanes = named((((Const(1, 1) << w.rows) - 1)[:columns] << w.first)[:columns], "lanes_written")
        block_bytes = Mux(w.block == 0, 32, Mux(w.block == 1, 16, 8))

        def repeat(value):
            return Cat(*[value] * (8 * size // len(value)))

        one = named(pick(w.data[:lane_word], w.first, 32), "packed_value")
        top = w.data[:256]
        scales = w.data[: 8 * columns]
        for bit in range(exact_log2(columns)):
            scales = named(Mux(w.addr[bit], scales.rotate_left(8 << bit), scales), f"scales_by_{1 << bit}")
        kinds = {
            F32_LANES: (repeat(w.data[:lane_word]), Cat(bit.replicate(4) for bit in lanes), 4 * columns - 1),
            BF16_LANES: (
                repeat(Cat(w.data[32 * r : 32 * r + 16] for r in range(columns))),
                Cat(bit.replicate(2) for bit in lanes),
                2 * columns - 1,
            ),
            F32_PACKED: (repeat(one), Const(15, 4), 3),
            BF16_PACKED: (repeat(one[:16]), Const(3, 2), 1),
            BLOCK: (
                Mux(w.block == 0, repeat(top), Mux(w.block == 1, repeat(top[128:]), repeat(top[192:]))),
                ((Const(1, 1) << block_bytes) - 1)[:32],
                block_bytes - 1,
            ),
            SCALES: (repeat(scales), ((Const(1, 1) << w.rows) - 1)[:columns], 0),
        }
        chosen, ones, align = kinds[F32_LANES]
        for kind in range(1, 6):
            hit = named(w.kind == kind, f"is_kind_{kind}")
            chosen, ones, align = (
                Mux(hit, new, old) for new, old in zip(kinds[kind], (chosen, ones, align), strict=True)
            )
        strobes = named((ones << offset)[:size], "strobes")
        chosen = named(chosen, "chosen")
        crossing = (w.kind == SCALES) & ((offset + w.rows) > size)
        misaligned = (w.addr & align).any() | crossing
        whole = (Const((1 << 32) - 1, 32) << Cat(Const(0, 5), offset[5:]))[:size]
        inside = named(Cat(bit.replicate(8) for bit in strobes), "inside")
        return Mux(w.zfill, chosen & inside, chosen), Mux(w.zfill, whole, strobes), misaligned
