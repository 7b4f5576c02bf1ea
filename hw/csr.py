"""Control and status registers: the AXI4-Lite register file of hw/csr_map.py."""
from amaranth import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiLite
from .config import TileConfig
from .csr_map import ADDR_BITS, COUNTER_BITS, COUNTERS, REGISTERS, Register, constants

__all__ = ["CsrFile", "MAX_STEP"]

MAX_STEP = 11
"""Bits of a counter's increment per cycle (macs: up to 32 x 32)."""
COUNTER_REGISTERS = {f"{c.name}_{part}" for c in COUNTERS for part in ("LO", "HI")}


def _pack(m: Module, component: wiring.Component, r: Register):
    """Value of a register whose fields are members `name_field`."""
    word = Signal(32, name=f"{r.name.lower()}_word")
    for f in r.fields:
        m.d.comb += word[f.lo:f.lo + f.width].eq(getattr(component, f"{r.name}_{f.name}".lower()))
    return word


class CsrFile(wiring.Component):
    """AXI4-Lite slave `s_axil` in front of the registers, the interrupt and the event counters.

    Members, all named after the table in lower case
        rw: the value (Out). ro: the value (In), or one `name_field` member per field. wo: pulses `name_field`
        (Out).
        w1c: set pulses `name_field` (In), one cycle. `irq`: some IRQ_STATUS bit is set and enabled, a
        register.
        count_`name`: increment of a counter (In); `count_enable`: count; `count_clear`: zero them all.

    A write is taken when address and data are there, a read two cycles after its address; one of each in
    flight. Responses are
    always OKAY. Counters lag their events by one cycle. Reading a counter's LO latches its HI.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        self.constants = constants(config)
        self.counts = {c.name: Signal(COUNTER_BITS, name=f"{c.name.lower()}_value") for c in COUNTERS}
        members = {"s_axil": In(AxiLite(ADDR_BITS)), "irq": Out(1), "count_enable": In(1),
                   "count_clear": In(1)}
        for r in REGISTERS:
            name = r.name.lower()
            if r.name in self.constants or r.name in COUNTER_REGISTERS:
                continue
            if r.access == "rw":
                members[name] = Out(32 if not r.fields else max(f.lo + f.width for f in r.fields),
                                    init=r.reset)
            elif r.fields:
                members |= {f"{name}_{f.name}": (Out if r.access == "wo" else In)(f.width) for f in r.fields}
            else:
                members[name] = In(32)
        members |= {f"count_{c.name.lower()}": In(MAX_STEP) for c in COUNTERS}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        bus = self.s_axil
        write, write_index, data = Signal(), Signal(ADDR_BITS - 2), Signal(32)
        strobe_off = Signal()

        # Write channel: both halves are taken together, in a cycle of their own.
        m.d.comb += [bus.bresp.eq(0), bus.rresp.eq(0)]
        m.d.sync += [bus.awready.eq(0), bus.wready.eq(0), write.eq(0)]
        with m.If(bus.awvalid & bus.wvalid & ~bus.awready & (~bus.bvalid | bus.bready)):
            m.d.sync += [bus.awready.eq(1), bus.wready.eq(1)]
        with m.If(bus.awready & bus.awvalid):
            m.d.sync += [write.eq(1), write_index.eq(bus.awaddr[2:]), data.eq(bus.wdata), bus.bvalid.eq(1),
                         strobe_off.eq(~bus.wstrb.any())]
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)

        # Read channel: address register, value register, response.
        index, look = Signal(ADDR_BITS - 2), Signal()
        m.d.sync += look.eq(0)
        m.d.comb += bus.arready.eq(~look & ~bus.rvalid)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [index.eq(bus.araddr[2:]), look.eq(1)]
        with m.If(look):
            m.d.sync += bus.rvalid.eq(1)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)

        values = self._registers(m, write & ~strobe_off, write_index, data)
        values |= self._counters(m, index, look)
        with m.If(look):
            m.d.sync += bus.rdata.eq(0)
            with m.Switch(index):
                for r in REGISTERS:
                    if r.access != "wo":
                        with m.Case(r.offset >> 2):
                            m.d.sync += bus.rdata.eq(values[r.name])
        return m

    def _registers(self, m: Module, write, index, data) -> dict:
        """Everything but the counters: name -> readable value."""
        values = {name: Const(value, 32) for name, value in self.constants.items()}
        for r in REGISTERS:
            name = r.name.lower()
            if r.name in self.constants or r.name in COUNTER_REGISTERS:
                continue
            here = Signal(name=f"write_{name}")
            m.d.comb += here.eq(write & (index == r.offset >> 2))
            if r.access == "rw":
                value = values[r.name] = getattr(self, name)
                with m.If(here):
                    m.d.sync += value.eq(data)
            elif r.access == "wo":
                for f in r.fields:
                    m.d.comb += getattr(self, f"{name}_{f.name}").eq(data[f.lo:f.lo + f.width]
                                                                     & here.replicate(f.width))
            elif r.access == "w1c":
                value = values[r.name] = Signal(32, name=f"{name}_value")
                m.d.sync += value.eq((value & ~(data & here.replicate(32))) | _pack(m, self, r))
            else:
                values[r.name] = _pack(m, self, r) if r.fields else getattr(self, name)
        m.d.sync += self.irq.eq((values["IRQ_STATUS"] & self.irq_enable).any())
        return values

    def _counters(self, m: Module, index, look) -> dict:
        values, latch = {}, Signal(COUNTER_BITS - 32)
        for c in COUNTERS:
            name = c.name.lower()
            step, count = Signal(MAX_STEP, name=f"{name}_step"), self.counts[c.name]
            m.d.sync += step.eq(Mux(self.count_enable, getattr(self, f"count_{name}"), 0))
            with m.If(step.any()):
                m.d.sync += count.eq(count + step)
            with m.If(self.count_clear):
                m.d.sync += [step.eq(0), count.eq(0)]
            lo = next(r for r in REGISTERS if r.name == f"{c.name}_LO")
            with m.If(look & (index == lo.offset >> 2)):
                m.d.sync += latch.eq(count[32:])
            values[f"{c.name}_LO"] = count[:32]
            values[f"{c.name}_HI"] = latch
        return values
