"""Banked SRAM, small: a read of any address returns the last write granted before it, on every port, in
order.

The configuration is reduced in width and depth only: 1-byte words, 2 banks of 2 words, 2 read and 2 write
ports.
"""

from dataclasses import dataclass

import pytest
from amaranth import Cat, Module, Mux, Signal
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw import sram
from hw.config import TileConfig
from hw.ports import SramRead, SramWrite
from sim.formal.prove import cover, mutant, prove, prove_bounded, refute


@dataclass(frozen=True, kw_only=True)
class SmallConfig(TileConfig):
    """TileConfig with 1-byte words, which the architecture has no use for."""

    def __post_init__(self):
        pass

    @property
    def word_bytes(self) -> int:
        return 1


CONFIG = SmallConfig(sram_banks=2, sram_bytes=4)


class Memory(wiring.Component):
    """Last-write property for one symbolic address and one read of it, chosen by `pick`."""

    def __init__(self, source=sram, reads=("a", "b"), writes=("v", "w"), bits=8):
        self.part = source.Sram(CONFIG, reads, writes)
        self.reads, self.writes, self.bits = self.part.reads, writes, bits
        super().__init__({
            **{name: In(SramRead(CONFIG).members["req"].signature) for name in self.reads},
            **{name: In(SramWrite(CONFIG).members["req"].signature) for name in writes},
            "pick": In(len(self.reads)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = part = self.part
        for name in self.reads + self.writes:
            wiring.connect(m, getattr(part, name).req, wiring.flipped(getattr(self, name)))
        address = AnyConst(CONFIG.sram_addr_bits)
        ports = len(part.groups) + len(self.writes)

        # Expected contents of the address: `now` holds the writes granted in earlier cycles.
        now = Signal(8)
        for k, name in enumerate(self.writes, len(part.groups)):
            port, req = getattr(part, name), getattr(self, name)
            queue = [Signal(10, name=f"{name}_queue_{n}") for n in range(2)]  # {data, strobe, to the address}
            held = Signal(2, name=f"{name}_held")
            push, grant = req.valid & req.ready, port.busy & ~part.count_wait[k]
            item = Cat(req.payload.data, req.payload.strb, req.payload.addr == address)
            after = held - grant
            m.d.sync += held.eq(after + push)
            m.d.sync += queue[0].eq(Mux(push & (after[:2] == 0), item, Mux(grant, queue[1], queue[0])))
            with m.If(push & (after[:2] == 1)):
                m.d.sync += queue[1].eq(item)
            with m.If(grant & queue[0][8] & queue[0][9]):
                m.d.sync += now.eq(queue[0][:8])
            m.d.comb += [Assert(port.busy == (held != 0)), Assert(held <= 2)]

        # A read granted in cycle t answers in cycle t + READ_LATENCY - 1.
        past = [now]
        for stage in range(sram.READ_LATENCY - 1):
            past.append(Signal(8, name=f"past_{stage}"))
            m.d.sync += past[-1].eq(past[-2])
        for k, name in enumerate(self.reads):
            port, req = getattr(part, name), getattr(self, name)
            push, limit = req.valid & req.ready, sram.READ_LATENCY + 2
            held = Signal(range(limit + 2), name=f"{name}_held")
            ahead = Signal(range(limit + 2), name=f"{name}_ahead")
            tracked = Signal(name=f"{name}_tracked")
            m.d.sync += held.eq(held + push - port.valid)
            m.d.comb += [Assert(held <= limit), Assert(~port.valid | (held != 0))]
            with m.If(~tracked & push & self.pick[k] & (req.payload == address)):
                m.d.sync += [tracked.eq(1), ahead.eq(held - port.valid)]
            with m.If(tracked & port.valid):
                m.d.sync += ahead.eq(ahead - 1)
                with m.If(ahead == 0):
                    m.d.sync += tracked.eq(0)
                    m.d.comb += [Assert(port.data[:self.bits] == past[-1][:self.bits]),
                                 Cover(port.data == 0xA5)]

        # Of two that share a port, each is accepted after at most one request of the other.
        for group in part.groups:
            for name in group if len(group) > 1 else ():
                req = getattr(self, name)
                blocked = Signal(range(2 * ports + 4), name=f"{name}_blocked")
                m.d.sync += blocked.eq(Mux(req.valid & ~req.ready, blocked + 1, 0))
                m.d.comb += Assert(blocked <= 2 * ports + 1)

        # Nobody waits for more than ports - 1 cycles.
        for k in range(ports):
            wait = Signal(range(ports + 1), name=f"wait_{k}")
            m.d.sync += wait.eq(Mux(part.count_wait[k], wait + 1, 0))
            m.d.comb += [Assert(wait < ports), Cover(wait == ports - 1)]
        return m


def test_proof():
    """Unbounded for one reader, one writer and one bit; bounded for two of each and whole words."""
    prove(Memory(reads=("a",), writes=("w",), bits=1))
    prove_bounded(Memory(), 15)
    cover(Memory(reads=("a",), writes=("w",)), 9)


def test_proof_of_a_shared_port():
    """Two readers that share a port, one writer."""
    prove_bounded(Memory(reads=(("a", "b"),), writes=("w",)), 15)


@pytest.mark.parametrize("old, new", [
    ("valid & mine", "valid"),
    ("next_turn.requests.eq(asking & ~turn)", "next_turn.requests.eq(asking & ~turn & ~1)"),
    ("i.ready.eq(turn[k] & self.o.ready)", "i.ready.eq(self.o.ready)"),
])
def test_seeded_bug_in_sharing(old, new):
    refute(Memory(mutant(sram, old, new), reads=(("a", "b"),), writes=("w",)), depth=14)


@pytest.mark.parametrize("old, new", [
    ("port.busy.eq(request.valid)", "port.busy.eq(0)"),
    ("range(READ_LATENCY - 2)", "range(READ_LATENCY - 3)"),
    ("m.d.sync += select.eq(grants[b])", "m.d.comb += select.eq(grants[b])"),
    ("we.eq(select[n_reads:].any())", "we.eq(select.any())"),
    ("bank & self.i.valid.replicate(len(bank))", "bank"),
    ("take.eq(take ^ (self.valid & self.grant))", "take.eq(take ^ self.valid)"),
    ("row.eq(request.addr[bank_bits:addr_bits])", "row.eq(request.addr[bank_bits:addr_bits] & (p != 1))"),
])
def test_seeded_bug(old, new):
    refute(Memory(mutant(sram, old, new)), depth=14)
