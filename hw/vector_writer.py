"""The way out of the vector unit: lane words, bf16, packed rows, quantised blocks and reduction results to
SRAM."""

from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .fp import INF
from .glue import onehot_mux
from .isa import Error
from .ports import PC_BITS, SramWrite, error_layout
from .quantiser import Quantiser, element_layout
from .vector_lanes import ARGMAX, SUM_T3, SUM_T5
from .vector_queue import CommandQueue, Slots

__all__ = ["COUNT_BITS", "VectorWriter", "pick", "writer_layout"]

COUNT_BITS = 24
"""Elements per dimension: less than 2^24."""

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


def extent_layout(size: int) -> data.StructLayout:
    """Which of `size` bytes are written, in groups of eight. Bit k says: the first byte is in a group of up
    to k, and in that group at up to k; the byte behind the last is in a group above k, and in that group
    above k."""
    groups = size // 8
    return data.StructLayout({"from_group": groups - 1, "from_byte": 7, "to_group": groups, "to_byte": 7})


def pick(word: Value, index: Value, width: int) -> Value:
    """word[index * width :][:width]; len(word) / width is a power of two."""
    bits = exact_log2(len(word) // width)
    return word.word_select(index[:bits], width) if bits else word


class VectorWriter(wiring.Component):
    """Writes the results of instructions, in order, one element or block per cycle; neighbours in a word
    share a write when the port is slow.

    Members: `command` (writer_layout); `elements` (element_layout, bf16 in the high half of each lane in mode
    2) of the instructions with mode 1 or 2; `blocks` are those of mode 3 with `scales`; `ready`, `clear`,
    `ask_tag`, `ask`, `value` of a `Reducer`, which is asked for a cycle before its value is used; `port`;
    `done`: number (0..2) of instructions whose last write became visible in this cycle; `error`. Completion
    relies on a write port that holds at most two accepted writes that are not visible yet (hw/sram.py). An
    address that is outside of SRAM, misaligned, or lets scale bytes cross a word is refused: `error` holds,
    nothing more is written.
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
                "ask_tag": Out(1),
                "ask": Out(3),
                "value": In(32 * columns),
                "port": Out(SramWrite(config)),
                "done": Out(2),
                "error": Out(error_layout),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, columns = self.config, self.config.columns
        lane_word = 32 * columns
        m.submodules.commands = commands = CommandQueue(writer_layout)
        wiring.connect(m, wiring.flipped(self.command), commands.i)
        c, n = commands.payload, commands.next
        m.submodules.quantiser = quantiser = Quantiser(columns)
        blocks = quantiser.o

        # Write registers: what to write where; `_place` turns it into a word with strobes. One bit of `lanes`
        # .. `block` says what `data` holds: a lane word; bf16 in its high halves; 32 bits (a packed value) or
        # a byte per lane (scales); a block of 32, 16, 8 bytes at the top. There are two, so that whether
        # there is room does not depend on the SRAM's `ready`.
        room, load, write = Signal(), Signal(), Signal()
        offset_bits = exact_log2(config.word_bytes)
        m.submodules.filled = filled = Slots(
            data.StructLayout(
                {
                    "null": 1,  # the end of an instruction that writes nothing
                    "ends": 1,
                    "same": 1,  # of the word of the write before
                    "outside": 1,
                    "good": 1,  # something to write, and aligned, and inside
                    "lanes": 1,
                    "halves": 1,
                    "packed": 1,
                    "scales": 1,
                    "block": 3,
                    "addr": 32,
                    "extent": extent_layout(config.word_bytes),
                    "data": max(256, lane_word),
                    "zfill": 1,
                    "pc": PC_BITS,
                }
            )
        )
        fill, w = filled.i.payload, filled.o.payload
        m.d.comb += room.eq(filled.i.ready)

        # The instruction in hand: elements or blocks, then the reduction's word, then the index word.
        data_phase, indexing = Signal(), Signal()
        steady = Signal()  # the phase is that of the cycle before: `value` is what was asked for
        cur, base, scale_at = Signal(32), Signal(32), Signal(32)
        left0, left1, lane = Signal(COUNT_BITS), Signal(COUNT_BITS), Signal(6)
        # Whether left0 == 1 (never of blocks), left1 == 1, and n0 == 1, n1 == 1.
        ends, reload_ends = Signal(2), Signal(2)
        end0, end1 = ends
        has_data, blockwise, bf16 = Signal(), Signal(), Signal()
        is_block, is_packed, is_lane_word = Signal(), Signal(), Signal()  # one of them in the data phase
        sums, argmax, reduces = Signal(), Signal(), Signal()
        # Of a lane word, packed value or block: bytes, the bits of its address that must be 0, the first byte
        # of the rows, and the row that is packed.
        length, align = Signal(offset_bits + 1), Signal(offset_bits)
        first, lane_is = Signal(offset_bits), Signal(columns)
        whole = 4 * columns  # bytes of a result
        alive = commands.valid & ~self.error.valid
        active = alive & room
        in_data = active & data_phase
        to_quantiser = self.elements.payload.quantise  # also those of the next instruction already
        take = in_data & ~blockwise & self.elements.valid  # its own: what comes before has been taken
        take_block = in_data & blockwise & blocks.valid
        result = (
            active
            & reduces
            & steady
            & ~data_phase
            & ~indexing
            & (c.empty | self.ready.bit_select(c.tag, 1))
        )
        result_index = active & indexing & steady
        nothing = active & ~has_data & ~reduces
        data_end = (take & self.elements.payload.last) | (take_block & blocks.payload.last)
        finish = (data_end & ~reduces) | (result & ~argmax) | result_index | nothing
        m.d.comb += [
            self.elements.ready.eq((to_quantiser & quantiser.i.ready) | take),
            quantiser.i.valid.eq(self.elements.valid & to_quantiser),
            quantiser.i.payload.eq(self.elements.payload),
            quantiser.o.ready.eq(in_data & blockwise),
            commands.done.eq(finish),
            self.clear.eq((finish & reduces).replicate(2) & Cat(~c.tag, c.tag)),
            load.eq(take | (take_block & write) | result | result_index | nothing),
            write.eq(blocks.payload.is_scales | (lane < c.rows)),
        ]
        wiring.connect(m, quantiser.scales, wiring.flipped(self.scales))
        next_data = ~n.empty & (n.mode != 0)
        # The address of the next write: a step further, or at the start of something else.
        step = Mux(data_phase, Mux(end0, Mux(end1, c.o2, c.o1), c.o0), config.lane_bytes)
        turns = data_phase & Mux(blockwise, blocks.payload.is_scales, self.elements.payload.last & reduces)
        next_base = base + c.o1
        turn = Mux(reduces & (blocks.payload.last | ~blockwise), c.red, next_base)
        with m.If(commands.open | take | take_block | result):
            start_of = Mux(commands.open, Mux(next_data, n.out, n.red), turn)
            m.d.sync += cur.eq(Mux(commands.open | turns, start_of, cur + step))
        with m.If(commands.open):
            m.d.sync += [
                has_data.eq(next_data),
                data_phase.eq(next_data),
                indexing.eq(0),
                blockwise.eq(n.mode == 3),
                is_block.eq(next_data & (n.mode == 3)),
                is_packed.eq(next_data & (n.mode != 3) & n.pack),
                is_lane_word.eq(next_data & (n.mode != 3) & ~n.pack),
                bf16.eq(n.mode == 2),
                sums.eq((n.red_op == SUM_T5) | (n.red_op == SUM_T3)),
                argmax.eq(n.red_op == ARGMAX),
                reduces.eq(n.red_op != 0),
                base.eq(n.out),
                scale_at.eq(n.qs),
                left0.eq(n.n0),
                left1.eq(n.n1),
                ends.eq(Cat((n.n0 == 1) & (n.mode != 3), n.n1 == 1)),
                reload_ends.eq(Cat(n.n0 == 1, n.n1 == 1)),
                lane.eq(0),
            ]
            block_bytes, rows = Const(32, 6) >> n.block, Mux(n.pack, 1, n.rows)
            halved = n.mode == 2
            unit = Mux(n.pack, 4, whole)
            m.d.sync += [
                length.eq(Mux(n.mode == 3, block_bytes, Mux(halved, rows << 1, rows << 2))),
                align.eq(Mux(n.mode == 3, block_bytes, Mux(halved, unit >> 1, unit)) - 1),
                first.eq(Mux(halved, n.lane0 << 1, n.lane0 << 2)),
                lane_is.eq(Cat(n.lane0 == r for r in range(columns))),
            ]
        with m.If(take):
            m.d.sync += left0.eq(Mux(end0, c.n0, left0 - 1))
            m.d.sync += ends[0].eq(Mux(end0, reload_ends[0], left0 == 2))
            with m.If(end0):
                m.d.sync += left1.eq(Mux(end1, c.n1, left1 - 1))
                m.d.sync += ends[1].eq(Mux(end1, reload_ends[1], left1 == 2))
        with m.If(take_block):
            m.d.sync += lane.eq(lane + 1)
            with m.If(blocks.payload.is_scales):
                m.d.sync += [
                    base.eq(next_base),
                    scale_at.eq(scale_at + c.o2),
                    lane.eq(0),
                ]
        with m.If(data_end & reduces):
            m.d.sync += [data_phase.eq(0), is_block.eq(0), is_packed.eq(0), is_lane_word.eq(0)]
        with m.If(result & argmax):
            m.d.sync += indexing.eq(1)
        m.d.sync += steady.eq(commands.valid & ~data_end & ~result)

        # Fill a write register: the OR of what may come, all but one of them 0. An empty reduction
        # gives zeros (sum, index) or -inf.
        is_scales = is_block & blocks.payload.is_scales
        asking = commands.valid & ~c.empty & ~data_phase
        lowest = c.empty & ~indexing & ~sums
        m.d.comb += [
            self.ask_tag.eq(c.tag),
            self.ask.eq(Cat(sums, ~sums & ~indexing, indexing) & asking.replicate(3)),
        ]
        x = self.elements.payload.x
        halves = [(x[32 * r : 32 * r + 16], x[32 * r + 16 : 32 * r + 32]) for r in range(columns)]
        packed = Cat(
            onehot_mux(lane_is & (~bf16).replicate(columns), [half for half, _ in halves])
            | onehot_mux(lane_is & bf16.replicate(columns), [half for _, half in halves]),
            onehot_mux(lane_is, [half for _, half in halves]),
        )
        scales = blocks.payload.scales
        for bit in range(exact_log2(columns)):
            rotated = Signal(8 * columns, name=f"scales_by_{1 << bit}")
            m.d.comb += rotated.eq(Mux(scale_at[bit], scales.rotate_left(8 << bit), scales))
            scales = rotated
        scales = Cat(scales, scales)[: max(32, 8 * columns)]  # of two lanes: 16 bits
        parts = [
            (x, is_lane_word),
            (blocks.payload.data[:lane_word], is_block),  # 0 beside scales
            (self.value, 1),
            (packed, is_packed),
            (scales, is_scales),
            (Const(INF | 1 << 31, 32).replicate(columns), lowest & ~data_phase),
            (Cat(Const(0, lane_word), blocks.payload.data[lane_word:]), 1),  # matters in a block alone
        ]
        addr = Mux(is_scales, scale_at, cur)
        count = Mux(is_scales, c.rows, Mux(data_phase, length, whole))
        # Aligned things end in the word.
        crosses = scale_at[:offset_bits] + c.rows > config.word_bytes
        unaligned = (cur[:offset_bits] & Mux(data_phase, align, whole - 1)).any()
        sram_bits = exact_log2(config.sram_bytes)
        start, end, outside = Signal(offset_bits), Signal(offset_bits + 1), Signal()
        word_addr, last_addr = Signal(config.sram_addr_bits), Signal(config.sram_addr_bits)
        m.d.comb += [
            filled.i.valid.eq(load),
            start.eq(addr[:offset_bits] | (first & is_lane_word.replicate(offset_bits))),
            end.eq(start + count),
            word_addr.eq(addr[offset_bits:][: config.sram_addr_bits]),
            fill.null.eq(~has_data & ~reduces),
            fill.ends.eq(finish),
            fill.same.eq(word_addr == last_addr),
            outside.eq(Mux(is_scales, scale_at[sram_bits:].any(), cur[sram_bits:].any())),
            fill.outside.eq(outside),
            fill.good.eq(~fill.null & ~outside & ~Mux(is_scales, crosses, unaligned)),
            fill.extent.from_group.eq(Cat(start[3:] <= k for k in range(config.word_bytes // 8 - 1))),
            fill.extent.from_byte.eq(Cat(start[:3] <= k for k in range(7))),
            fill.extent.to_group.eq(Cat(end[3:] > k for k in range(config.word_bytes // 8))),
            fill.extent.to_byte.eq(Cat(end[:3] > k for k in range(7))),
            fill.lanes.eq(~data_phase | (is_lane_word & ~bf16)),
            fill.halves.eq(is_lane_word & bf16),
            fill.packed.eq(is_packed),
            fill.scales.eq(is_scales),
            fill.block.eq(Cat(is_block & ~is_scales & (c.block == k) for k in range(3))),
            fill.addr.eq(addr),
            fill.data.eq(reduce(or_, (part & Cat(mask).replicate(len(part)) for part, mask in parts))),
            fill.zfill.eq(is_block & ~is_scales & c.zfill),
            fill.pc.eq(c.pc),
        ]
        with m.If(load & ~fill.null):
            m.d.sync += last_addr.eq(word_addr)

        # Refuse, or hand over to the request register. A write that waits there takes in those to the same
        # word behind it: only then, as a stream of writes at half rate would trail a read stream from bank to
        # bank.
        req = self.port.req
        word_data, strobes = self._place(m, w)
        newer, older, req_ends = Signal(), Signal(), Signal()
        visible = ~self.port.busy
        sent = req.valid & req.ready
        held, held_ends = Signal(), Signal()
        held_addr, held_data = Signal(config.sram_addr_bits), Signal(8 * config.word_bytes, reset_less=True)
        held_strobes = Signal(config.word_bytes)
        idle = ~held & ~req.valid & visible & ~newer & ~older
        ok = ~self.error.valid
        null_ends = filled.o.valid & w.null & idle & ok  # once everything before it has
        refuse = filled.o.valid & ~w.null & ~w.good
        same = held & w.same & ~held_ends
        move = ~req.valid | req.ready
        leave, take_write = Signal(), Signal()
        m.d.comb += [
            leave.eq(move & held),
            take_write.eq(filled.o.valid & w.good & ok & (~held | same | move)),
            filled.o.ready.eq(take_write | null_ends),  # what is refused stays
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
                held_addr.eq(w.addr[offset_bits:][: config.sram_addr_bits]),
                held_strobes.eq(strobes | (held_strobes & (same & ~leave).replicate(config.word_bytes))),
            ]
            for k in range(config.word_bytes):
                with m.If(strobes[k]):
                    m.d.sync += held_data[8 * k : 8 * k + 8].eq(word_data[8 * k : 8 * k + 8])
        with m.If(~self.error.valid):
            m.d.sync += [
                self.error.valid.eq(refuse),
                self.error.pc.eq(w.pc),
                self.error.value.eq(w.addr),
                self.error.code.eq(Mux(w.outside, Error.SRAM_RANGE, Error.ALIGNMENT)),
            ]

        # Completion: instructions that end with the last write accepted, or the one before it.
        m.d.comb += self.done.eq(Mux(null_ends & w.ends, 1, Mux(visible, newer + older, sent & older)))
        with m.If(sent):
            m.d.sync += [newer.eq(req_ends), older.eq(newer & ~visible)]
        with m.Elif(visible):
            m.d.sync += [newer.eq(0), older.eq(0)]
        return m

    def _place(self, m, w) -> tuple[Value, Value]:
        """(word, byte strobes) of the write register `w`. What it holds is repeated all over the word: narrow
        things first, wider ones are added on the way."""
        columns, size = self.config.columns, self.config.word_bytes

        def named(value, name):
            signal = Signal(len(value), name=name)
            m.d.comb += signal.eq(value)
            return signal

        no, yes, extent = Const(0, 1), Const(1, 1), w.extent
        reached, at = Cat(no, extent.from_group, yes), Cat(extent.from_byte, yes)
        passed, before = Cat(yes, extent.to_group), Cat(extent.to_byte, no)
        inside = named(
            Cat(
                (reached[g] | (reached[g + 1] & at[k])) & (passed[g + 1] | (passed[g] & before[k]))
                for g in range(size // 8)
                for k in range(8)
            ),
            "inside",
        )
        window = Cat((reached[g + 4] & ~reached[g]).replicate(32) for g in range(0, size // 8, 4))
        # Width, value, whether it is that one.
        lane_word = w.data[: 32 * columns]
        things = [
            (32, w.data[:32], w.packed),
            (max(32, 8 * columns), w.data[: max(32, 8 * columns)], w.scales),
            (16 * columns, Cat(w.data[32 * r + 16 : 32 * r + 32] for r in range(columns)), w.halves),
            (32 * columns, lane_word, w.lanes),
            *((256 >> k, w.data[256 - (256 >> k) : 256], w.block[k]) for k in range(3)),
        ]
        keep = named(inside | ~w.zfill.replicate(size), "keep")
        word = Const(0, 32)
        for width in (32 << k for k in range(exact_log2(8 * size // 32) + 1)):
            word = Cat(word, word)[:width]
            for own, value, here in things:
                if own == width:
                    word = word | (value & here.replicate(width))
            word = named(word, f"repeated_{width}")
        word = word & Cat(bit.replicate(8) for bit in keep)
        return word, Mux(w.zfill, window, inside)
