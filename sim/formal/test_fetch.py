"""Fetcher in front of a memory with arbitrary delays: every element, in order, with its word; responses
always find room.

Reduced in width only: 2-byte words, 4 of them, of arbitrary contents; addresses up to 16; at most 2 words
requested and not delivered.
"""

import pytest
from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw import fetch
from sim.formal.prove import cover, mutant, prove_bounded, refute
from sim.formal.streams import stable
from sim.formal.test_sram import SmallConfig


class TwoByteConfig(SmallConfig):
    @property
    def word_bytes(self) -> int:
        return 2


CONFIG = TwoByteConfig(sram_banks=2, sram_bytes=8)
DEPTH = 2
HELD = DEPTH + 3
"""Elements in the fetcher: request stage, tag FIFO with its output register, output register."""


class Fetching(wiring.Component):
    """`answer`: the memory answers in this cycle if it may; `pick`: the element accepted now is followed."""

    def __init__(self, source=fetch, *, sparse=False):
        self.part = source.Fetcher(CONFIG, DEPTH, sparse=sparse)
        super().__init__({
            "i": In(stream.Signature(fetch.request_layout)),
            "o": Out(stream.Signature(fetch.element_layout(CONFIG))),
            "grant": In(1), "answer": In(1), "pick": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = part = self.part
        wiring.connect(m, part.i, wiring.flipped(self.i))
        wiring.connect(m, part.o, wiring.flipped(self.o))
        i, o, read = self.i, self.o, part.read
        stable(m, o)
        stable(m, read.req)
        m.d.comb += Assume(i.payload.addr < 16)
        contents = Array([AnyConst(1) for _ in range(4)])  # one bit tells two words apart

        # Memory: accepts when it likes, answers in order when it likes.
        queue, queued = [Signal(2, name=f"queue_{n}") for n in range(DEPTH)], Signal(range(DEPTH + 2))
        send, after = read.req.valid & read.req.ready, queued - read.valid
        m.d.comb += [
            read.req.ready.eq(self.grant),
            read.valid.eq(self.answer & (queued != 0)), read.data.eq(contents[queue[0]]),
            Assert(~read.req.valid | (queued < DEPTH)),
        ]
        m.d.sync += queued.eq(after + send)
        for n, entry in enumerate(queue):
            shifted = Mux(read.valid, queue[n + 1] if n + 1 < DEPTH else 0, entry)
            m.d.sync += entry.eq(Mux(send & (after == n), read.req.payload, shifted))

        # Elements accepted and not delivered; the tracked one. Those out of range stop everything.
        bad = i.payload.addr[3]
        push, pull = i.valid & i.ready & ~bad, o.valid & o.ready
        held, ahead = Signal(range(HELD + 2)), Signal(range(HELD + 2))
        token, tracked, failed = Signal(4), Signal(), Signal()
        m.d.sync += held.eq(held + push - pull)
        with m.If(~tracked & push & self.pick):
            m.d.sync += [tracked.eq(1), token.eq(Cat(i.payload.addr[:3], i.payload.last)),
                         ahead.eq(held - pull)]
        with m.If(tracked & pull):
            m.d.sync += [tracked.eq(ahead != 0), ahead.eq(ahead - 1)]
        with m.If(i.valid & i.ready & bad):
            m.d.sync += failed.eq(1)
            m.d.comb += Assert(~failed)
        m.d.comb += [
            Assert(part.error == failed), Assert(~(failed & i.ready)), Assert(held <= HELD),
            Assert(~o.valid | (held != 0)),
        ]
        with m.If(tracked & (ahead == 0) & o.valid):
            m.d.comb += [
                Assert(o.payload.data == contents[token[1:3]]),
                Assert(o.payload.offset == token[0]), Assert(o.payload.last == token[3]),
            ]

        # One read for each word visited: the element before is of another word or ends its sequence.
        first, before, due = Signal(init=1), Signal(2), Signal(range(4))
        new = push & (first | (before != i.payload.addr[1:3]))
        with m.If(push):
            m.d.sync += [first.eq(i.payload.last), before.eq(i.payload.addr[1:3])]
        m.d.sync += due.eq(due + new - send)
        waiting = 1 + part.sparse  # in the request stage, in a register of its own
        m.d.comb += [
            Assert(due <= waiting), Assert(~send | (due != 0)), Assert(~new | (due - send < waiting)),
        ]

        # Nothing stops while memory and consumer are willing.
        idle = Signal(range(12))
        m.d.sync += idle.eq(Mux((held != 0) & ~o.valid & self.grant & self.answer, idle + 1, 0))
        m.d.comb += [
            Assert(idle < 8 + part.sparse),
            Cover(failed & pull & tracked & (ahead == 0)), Cover(held == HELD),
        ]
        return m


@pytest.mark.parametrize("sparse", (False, True))
def test_proof(sparse):
    prove_bounded(Fetching(sparse=sparse), 11)
    cover(Fetching(sparse=sparse), 10)


@pytest.mark.parametrize("old, new", [
    ("fresh.eq(i.payload.last)", "fresh.eq(0)"),
    ("fresh | (next_word != word)", "1"),
    ("credits + freed - send", "credits + freed"),
    ("init=most)", "init=most - 2)"),
    ("~self.error & (~valid", "(~valid"),
    ("valid.eq(i.valid & in_range)", "valid.eq(i.valid)"),
    ("& has_credit & tags.i.ready)", "& has_credit)"),
    ("(~tags.o.payload.new | words.o.valid)", "1"),
    ("tag.new & has_credit", "has_credit"),
])
def test_seeded_bug(old, new):
    refute(Fetching(mutant(fetch, old, new)), depth=12)
