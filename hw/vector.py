"""The vector unit: one element of C lanes per cycle from SRAM through the lane pipeline and back
(docs/architecture.md, VECTOR)."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from .config import TileConfig
from .fetch import Fetcher
from .glue import Fifo, SkidBuffer, StreamArbiter
from .isa import Error
from .ports import SEM_BITS, SramRead, SramWrite, unit_members
from .quantiser import element_layout
from .vector_execute import VectorExecute
from .vector_front import INSTRUCTION, VectorFront
from .vector_queue import Slots
from .vector_writer import VectorWriter

__all__ = ["INSTRUCTION", "Vector"]

finish_layout = data.StructLayout({"sems": data.ArrayLayout(SEM_BITS, 2), "given": 2})
"""sig_b and sig_c of an instruction, and which of them are semaphores (not 0)."""


class Vector(wiring.Component):
    """Executes VECTOR instructions. Equals `golden.units.vector` bit for bit, errors included (first error
    only).

    Members: `ports.unit_members`, read ports `a`, `b` (also scalar operands) and `d`, write port `out`,
    counter events. Rate: one element per cycle; a quantised block takes max(block, C + 1) cycles. From
    instruction to instruction with `overlap`: one idle cycle and one per scalar operand that is read; a sum
    directly after a sum loses 11 cycles. Latency: first element 13 cycles after the command (folded: 14; plus
    one per scalar lane word), last element to its write visible 45 cycles (quantised: 92), a sum up to
    36 + 46.
    sig_a: the last element has left the fetchers. sig_b, sig_c: all writes are visible. Errors: SRAM_RANGE
    and ALIGNMENT with the address, ILLEGAL_OPERAND with the flags word, or with a count of 2^24 and more.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                **unit_members(config, INSTRUCTION),
                "a": Out(SramRead(config)),
                "b": Out(SramRead(config)),
                "d": Out(SramRead(config)),
                "out": Out(SramWrite(config)),
                "count_elements": Out(1),
                "count_wait_source": Out(1),
                "count_wait_sink": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.front = front = VectorFront(self.config)
        m.submodules.execute = execute = VectorExecute(self.config)
        m.submodules.writer = writer = VectorWriter(self.config)
        m.submodules.finishes = finishes = Fifo(finish_layout, 4)
        m.submodules.merge = merge = StreamArbiter(SEM_BITS, 2)
        m.submodules.sig_a = sig_a = SkidBuffer(SEM_BITS)  # the lanes are far away
        fetchers = {}
        for name in "abd":
            m.submodules[f"fetch_{name}"] = fetchers[name] = fetcher = Fetcher(self.config)
            wiring.connect(m, getattr(front, name), fetcher.i)
            wiring.connect(m, fetcher.read, wiring.flipped(getattr(self, name)))
            wiring.connect(m, fetcher.o, getattr(execute, name))
        wiring.connect(m, wiring.flipped(self.command), front.command)
        # At most two instructions are in flight: one in hand, one behind it.
        wiring.connect(m, front.issue, execute.command)
        wiring.connect(m, front.write, writer.command)
        sems = [front.finish.payload[:SEM_BITS], front.finish.payload[SEM_BITS:]]
        m.d.comb += [
            finishes.i.valid.eq(front.finish.valid),
            front.finish.ready.eq(finishes.i.ready),
            finishes.i.payload.sems.eq(front.finish.payload),
            finishes.i.payload.given.eq(Cat(sem.any() for sem in sems)),
        ]
        # The writer's `ready` comes from the SRAM's and ends here.
        m.submodules.elements = elements = Slots(element_layout(self.config.columns))
        m.submodules.scales = scales = SkidBuffer(8 * self.config.columns)
        wiring.connect(m, execute.o, elements.i)
        wiring.connect(m, execute.scales, scales.i)
        wiring.connect(m, elements.o, writer.elements)
        wiring.connect(m, scales.o, writer.scales)
        wiring.connect(m, writer.port, wiring.flipped(self.out))
        wiring.connect(m, execute.sig_a, sig_a.i)
        wiring.connect(m, sig_a.o, merge.i[0])
        wiring.connect(m, merge.o, wiring.flipped(self.signal))
        in_flight = Signal(2)
        m.d.sync += in_flight.eq(in_flight + (self.command.valid & self.command.ready) - writer.done)
        m.d.comb += [
            writer.ready.eq(execute.ready),
            writer.value.eq(execute.value),
            execute.clear.eq(writer.clear),
            execute.ask_tag.eq(writer.ask_tag),
            execute.ask.eq(writer.ask),
            front.in_flight.eq(in_flight),
            front.stop.eq(self.error.valid),
            execute.stop.eq(self.error.valid),
            *(
                getattr(self, name).eq(getattr(execute, name))
                for name in execute.signature.members
                if "count" in name
            ),
            self.busy.eq(
                self.command.valid
                | in_flight.any()
                | finishes.o.valid
                | execute.sig_a.valid
                | sig_a.o.valid
                | self.signal.valid
            ),
        ]
        self._complete(m, writer.done, finishes.o, merge.i[1])

        # The first error; of several in one cycle, that of the earliest stage.
        with m.If(~self.error.valid):
            with m.If(writer.error.valid):
                m.d.sync += self.error.eq(writer.error)
            for fetcher in reversed(fetchers.values()):
                with m.If(fetcher.error):
                    m.d.sync += [
                        self.error.valid.eq(1),
                        self.error.code.eq(Error.SRAM_RANGE),
                        self.error.pc.eq(front.fetch_pc),
                        self.error.value.eq(fetcher.error_addr),
                    ]
            with m.If(front.error.valid):
                m.d.sync += self.error.eq(front.error)
        return m

    def _complete(self, m, done, signals, signal) -> None:
        """Signals sig_b, then sig_c of every completed instruction."""
        owed, second = Signal(3), Signal()
        payload = signals.payload
        given = Mux(second, payload.given[1], payload.given[0])
        waiting = owed.any() & signals.valid
        step = waiting & (signal.ready | ~given)
        m.d.comb += [
            signal.valid.eq(waiting & given),
            signal.payload.eq(Mux(second, payload.sems[1], payload.sems[0])),
            signals.ready.eq(step & second),
        ]
        with m.If(step):
            m.d.sync += second.eq(~second)
        m.d.sync += owed.eq(owed + done - (step & second))
