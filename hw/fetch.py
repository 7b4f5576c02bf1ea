"""Element fetcher: byte addresses in, the SRAM words that hold them out, each word read once per visit."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .glue import Fifo
from .ports import SramRead
from .queue import RegisterQueue

__all__ = ["Fetcher", "element_layout", "request_layout"]

request_layout = data.StructLayout({"addr": 32, "last": 1})
"""Byte address of an element; `last` ends a sequence (an instruction)."""


def element_layout(config: TileConfig) -> data.StructLayout:
    """The W-byte word `data` with the requested byte at `offset`, and the request's `last`."""
    return data.StructLayout({
        "data": 8 * config.word_bytes, "offset": exact_log2(config.word_bytes), "last": 1})


class Fetcher(wiring.Component):
    """Stream of byte addresses -> stream of words, in order, one element per cycle.

    Members: `i` (request_layout), `o` (element_layout(config)), `read` (SramRead), `error`, `error_addr`.

    * Consecutive requests to the same W-byte word share one SRAM read. A request after one with `last` reads
      anew, because the memory may have changed in between.
    * An element must not cross a word boundary; the fetcher knows nothing of element sizes.
    * At most `fifo_depth` (power of two) words are requested and not yet delivered, so that every response
      has room; as many elements may be under way. 16 covers `sram.READ_LATENCY` with several cycles of bank
      conflicts to spare. `block`: the words wait in block RAM. `sparse`: only two words may be under way, in
      registers instead of a RAM, and the request waits for its port in a register of its own: full rate for
      eight or more elements to a word though the port is late now and then, else a word in six cycles.
    * Latency from `i` to `o`: sram.READ_LATENCY + 4 cycles without conflicts (`block`, `sparse`: one more).
      `o` and `read.req` payloads are registers. `i.ready` depends on `read.req.ready` through two gates;
      `i.payload` should come from a register.
    * An address outside of the SRAM is not requested: `error` rises and stays, `error_addr` holds the
      address, requests before it are still delivered, none after it is accepted until reset.
    """

    def __init__(
        self, config: TileConfig, fifo_depth: int = 16, *, sparse: bool = False, block: bool = False
    ):
        self.config = config
        self.fifo_depth = fifo_depth
        self.sparse, self.block = sparse, block
        super().__init__({
            "i": In(stream.Signature(request_layout)),
            "o": Out(stream.Signature(element_layout(config))),
            "read": Out(SramRead(config)),
            "error": Out(1), "error_addr": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        config, i, o, read = self.config, self.i, self.o, self.read
        offset_bits, addr_bits = exact_log2(config.word_bytes), config.sram_addr_bits
        tag_layout = data.StructLayout({"offset": offset_bits, "last": 1, "new": 1})
        m.submodules.tags = tags = Fifo(tag_layout, self.fifo_depth)
        width, most = 8 * config.word_bytes, 2 if self.sparse else self.fifo_depth
        m.submodules.words = words = (
            RegisterQueue(width) if self.sparse else Fifo(width, self.fifo_depth, block=self.block)
        )

        # Request stage: `new` unless the previous request of this sequence named the same word.
        valid, word, tag = Signal(), Signal(addr_bits), Signal(tag_layout)
        fresh = Signal(init=1)  # the next request starts a sequence
        credits = Signal(range(most + 1), init=most)
        has_credit = Signal(init=1)
        next_word = i.payload.addr[offset_bits:][:addr_bits]
        in_range = ~i.payload.addr[offset_bits + addr_bits:].any()
        send, taken = Signal(), Signal()
        send_valid, send_ready = read.req.valid, read.req.ready
        if self.sparse:  # a request that waits for its port must not hold up the elements behind it
            send_valid, send_ready = Signal(), Signal()
            m.d.comb += send_ready.eq(~read.req.valid | read.req.ready)
            with m.If(send_ready):
                m.d.sync += read.req.valid.eq(send_valid)
            with m.If(send):
                m.d.sync += read.req.payload.eq(word)
        else:
            m.d.comb += read.req.payload.eq(word)
        m.d.comb += [
            send_valid.eq(valid & tag.new & has_credit & tags.i.ready),
            tags.i.payload.eq(tag),
            tags.i.valid.eq(valid & (~tag.new | (has_credit & send_ready))),
            send.eq(send_valid & send_ready),
            i.ready.eq(~self.error & (~valid | (tags.i.valid & tags.i.ready))),
        ]
        with m.If(i.ready):
            m.d.sync += valid.eq(i.valid & in_range)
            with m.If(i.valid):
                m.d.sync += [
                    word.eq(next_word), tag.offset.eq(i.payload.addr[:offset_bits]),
                    tag.last.eq(i.payload.last), tag.new.eq(fresh | (next_word != word)),
                    fresh.eq(i.payload.last),
                ]
                with m.If(~in_range):
                    m.d.sync += [self.error.eq(1), self.error_addr.eq(i.payload.addr)]

        # Response side: credits guarantee room.
        m.d.comb += [words.i.payload.eq(read.data), words.i.valid.eq(read.valid)]
        freed = Signal()  # `taken` comes late; with two credits, none may come back later still
        m.d["comb" if self.sparse else "sync"] += freed.eq(taken)
        m.d.sync += [
            credits.eq(credits + freed - send),
            # not 0 after this cycle
            has_credit.eq(Mux(freed, ~send | (credits != 0), Mux(send, credits != 1, credits != 0))),
        ]

        # Output register: an element of the same word leaves `data` as it is.
        ready = Signal()
        m.d.comb += [
            ready.eq((~o.valid | o.ready) & (~tags.o.payload.new | words.o.valid)),
            tags.o.ready.eq(ready),
            taken.eq((~o.valid | o.ready) & tags.o.valid & tags.o.payload.new & words.o.valid),
            words.o.ready.eq(taken),
        ]
        with m.If(~o.valid | o.ready):
            m.d.sync += o.valid.eq(tags.o.valid & ready)
            with m.If(tags.o.valid & ready):
                m.d.sync += [
                    o.payload.offset.eq(tags.o.payload.offset), o.payload.last.eq(tags.o.payload.last)]
        with m.If(taken):
            m.d.sync += o.payload.data.eq(words.o.payload)
        return m
