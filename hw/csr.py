"""Control and status registers: the AXI4-Lite register file of hw/csr_map.py."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiLite
from .config import TileConfig
from .csr_map import ADDR_BITS, COUNTER_BASE, COUNTER_BITS, COUNTERS, REGISTERS, Register, constants, offset
from .glue import mux
from .memory import DualPortRam

__all__ = ["Counters", "CsrFile"]

COUNTER_REGISTERS = {f"{c.name}_{part}" for c in COUNTERS for part in ("LO", "HI")}


def _pack(m: Module, component: wiring.Component, r: Register):
    """Value of a register whose fields are members `name_field`."""
    word = Signal(32, name=f"{r.name.lower()}_word")
    for f in r.fields:
        m.d.comb += word[f.lo:f.lo + f.width].eq(getattr(component, f"{r.name}_{f.name}".lower()))
    return word


class Counters(wiring.Component):
    """The event counters of the table: totals in a block RAM, and a small counter of recent events for each.

    Members: `count_name`, what happened in this cycle (added with `enable`; the totals lag by one cycle);
    `clear` zeroes them all. `ask` with counter number `row`, both held until `done`: reads the total, `value`
    with `done`, up to 6 cycles later.

    One counter after the other is visited, three cycles for each: what is recent is taken and the total read;
    the total is registered; their sum is written. A read is a visit out of turn. Reads are 6 cycles apart or
    more, so that at most INTERVAL cycles pass between two visits of a counter.
    """

    INTERVAL = 2 * 3 * len(COUNTERS) + 6

    def __init__(self):
        self.totals = DualPortRam(width=COUNTER_BITS, depth=32, block=True)
        self.written = Signal(32)  # rows that hold anything since `clear`; the others are 0
        super().__init__({
            "enable": In(1), "clear": In(1), "ask": In(1), "row": In(5),
            "done": Out(1), "value": Out(COUNTER_BITS),
            **{f"count_{c.name.lower()}": In(c.bits) for c in COUNTERS},
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.totals = totals = self.totals
        turn, row, asked = Signal(5), Signal(5), Signal()
        phase = Signal(3, init=1)
        total, amount, known = (Signal(COUNTER_BITS),
                                Signal(((1 << max(c.bits for c in COUNTERS)) * self.INTERVAL).bit_length()),
                                Signal())
        recent = []
        for k, c in enumerate(COUNTERS):
            name = c.name.lower()
            step = Signal(c.bits, name=f"{name}_step")
            count = Signal(range(((1 << c.bits) - 1) * self.INTERVAL + 1), name=f"{name}_recent")
            m.d.sync += [step.eq(getattr(self, f"count_{name}") & self.enable.replicate(c.bits)),
                         count.eq(count + step)]
            with m.If(phase[0] & (row == k)):
                m.d.sync += count.eq(step)
            with m.If(self.clear):
                m.d.sync += [step.eq(0), count.eq(0)]
            recent.append(Cat(count, Const(0, len(amount) - len(count))))
        m.d.comb += [
            totals.raddr.eq(row), totals.ren.eq(phase[0]), self.value.eq(total + amount),
            totals.waddr.eq(row), totals.wdata.eq(self.value), totals.wstrb.eq(phase[2]),
            self.done.eq(phase[2] & asked),
        ]
        m.d.sync += [phase.eq(phase.rotate_left(1)),
                     total.eq(totals.rdata & known.replicate(COUNTER_BITS))]
        with m.If(phase[0]):
            m.d.sync += [amount.eq(mux(row, recent)), known.eq(self.written.bit_select(row, 1))]
        with m.If(phase[2]):
            m.d.sync += [
                self.written.bit_select(row, 1).eq(1),
                row.eq(Mux(self.ask & ~asked, self.row, turn)), asked.eq(self.ask & ~asked),
            ]
            with m.If(~(self.ask & ~asked)):
                m.d.sync += turn.eq(Mux(turn == len(COUNTERS) - 1, 0, turn + 1))
        with m.If(self.clear):  # the visit begins anew
            m.d.sync += [self.written.eq(0), phase.eq(1)]
        return m


class CsrFile(wiring.Component):
    """AXI4-Lite slave `s_axil` in front of the registers, the interrupt and the event counters.

    Members, all named after the table in lower case
        rw: the value (Out). ro: the value (In), or one `name_field` member per field. wo: pulses `name_field`
        (Out).
        w1c: set pulses `name_field` (In), one cycle. `irq`: some IRQ_STATUS bit is set and enabled, a
        register.
        count_`name`: increment of a counter (In); `count_enable`: count; `count_clear`: zero them all.

    A write is taken when address and data are there; a read is answered two cycles after its address, of a
    counter's LO up to eight; one of each in flight. Responses are always OKAY. Counters lag their events by
    one cycle. Reading a counter's LO latches its HI.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        self.constants = constants(config)
        self.counters = Counters()
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
        members |= {f"count_{c.name.lower()}": In(c.bits) for c in COUNTERS}
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

        # Read channel: address register, value register, response. A counter has to be fetched first.
        index, look, ask = Signal(ADDR_BITS - 2), Signal(), Signal()
        m.submodules.counters = counters = self.counters
        latch = Signal(COUNTER_BITS - 32)
        is_counter = Signal()
        m.d.comb += [
            bus.arready.eq(~look & ~ask & ~bus.rvalid),
            is_counter.eq((index >= COUNTER_BASE >> 2) & (index < (COUNTER_BASE >> 2) + 2 * len(COUNTERS))),
            counters.enable.eq(self.count_enable), counters.clear.eq(self.count_clear),
            counters.ask.eq(ask), counters.row.eq(index[1:]),
            *(getattr(counters, f"count_{c.name.lower()}").eq(getattr(self, f"count_{c.name.lower()}"))
              for c in COUNTERS),
        ]
        m.d.sync += look.eq(0)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [index.eq(bus.araddr[2:]), look.eq(1)]
        with m.If((look & ~(is_counter & ~index[0])) | (ask & counters.done)):
            m.d.sync += bus.rvalid.eq(1)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)

        values = self._registers(m, write & ~strobe_off, write_index, data)
        rows = [Const(0, 32)] * (1 << 5)
        for name, value in values.items():
            rows[offset(name) >> 2] = Cat(value, Const(0, 32))[:32]
        with m.If(look):
            m.d.sync += [ask.eq(is_counter & ~index[0]),
                         bus.rdata.eq(Mux(is_counter, latch, mux(index[:5], rows)))]
            with m.If(~is_counter & index[5:].any()):
                m.d.sync += bus.rdata.eq(0)
        with m.If(ask & counters.done):
            m.d.sync += [ask.eq(0), Cat(bus.rdata, latch).eq(counters.value)]
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
