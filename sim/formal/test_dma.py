"""DMA engines as AXI4 masters: no rule of the AXI checker is broken, whatever the commands and the memory do.

Reduced in size only (4-byte words, 2-byte bus, bursts of 2 beats, 2 outstanding). Commands, window, `stop`,
SRAM and memory timing are free; the memory keeps its own rules. Bounded: the engines hold too much state for
an unbounded proof.
"""

import pytest
from amaranth import Module, Signal
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw import dma_load, dma_store
from hw.axi_checker import AxiChecker, Violation
from sim.formal.prove import cover, mutant, prove_bounded, refute
from sim.formal.streams import stable
from sim.formal.test_sram import SmallConfig


class DmaConfig(SmallConfig):
    @property
    def word_bytes(self) -> int:
        return 4


CONFIG = DmaConfig(sram_banks=2, sram_bytes=64, axi_data_bits=16, axi_burst_beats=2, axi_outstanding=2,
                   axi_id_bits=1)


class Master(wiring.Component):
    """An engine with free surroundings and the checker on its bus."""

    def __init__(self, engine):
        self.part = engine
        self.checker = AxiChecker(CONFIG)
        members = engine.signature.members
        self.names = [name for name in ("command", "signal", "boot", "program", "write", "read", "dram_base",
                                        "dram_size", "stop")
                      if name in members]
        super().__init__({**{name: members[name] for name in self.names},
                          "axi": In(wiring.Signature({
                              n: Out(m.shape) for n, m in members["m_axi"].signature.members.items()
                                                      if m.flow == In}))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = part = self.part
        m.submodules.checker = checker = self.checker
        for name in self.names:
            if self.part.signature.members[name].is_port:
                m.d.comb += getattr(part, name).eq(getattr(self, name))
            else:
                wiring.connect(m, getattr(part, name), wiring.flipped(getattr(self, name)))
        for name in self.axi.signature.members:
            m.d.comb += getattr(part.m_axi, name).eq(getattr(self.axi, name))
        checker.watch(m, part.m_axi)
        stable(m, self.command, Assume)
        bursts, beats = Signal(3), Signal(3)
        axi = checker.axi
        m.d.sync += [
            bursts.eq(bursts + ((axi.awvalid & axi.awready) | (axi.arvalid & axi.arready))),
            beats.eq(beats + ((axi.wvalid & axi.wready) | (axi.rvalid & axi.rready))),
        ]
        m.d.comb += [Assume(checker.memory == Violation.NONE), Assert(checker.master == Violation.NONE),
                     Cover((bursts == 2) & (beats == 2))]
        return m


def load(source=dma_load):
    return Master(source.LoadEngine(CONFIG))


def store(source=dma_store):
    return Master(source.StoreEngine(CONFIG))


@pytest.mark.parametrize("spec, depth", [(load, 16), (store, 12)])
def test_proof(spec, depth):
    prove_bounded(spec(), depth)
    cover(spec(), 12)


@pytest.mark.parametrize("source, old, new", [
    (dma_load, "axi.arvalid.eq(ar.o.valid)", "axi.arvalid.eq(ar.o.valid & ~self.stop)"),
    (dma_load, "ar.retire.eq(axi.rvalid & axi.rready & axi.rlast)", "ar.retire.eq(axi.rvalid & axi.rready)"),
    (dma_store, "axi.awlen.eq(aw.o.payload.len)", "axi.awlen.eq(1)"),
    (dma_store, "w.i.payload.last.eq(final)", "w.i.payload.last.eq(1)"),
    (dma_store, "axi.wvalid.eq(w.o.valid)", "axi.wvalid.eq(w.o.valid & ~halted)"),
])
def test_seeded_bug(source, old, new):
    refute((load if source is dma_load else store)(mutant(source, old, new)), depth=14)
