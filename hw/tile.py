"""The tile: units, SRAM, sequencer, registers, and the control of a run from the doorbell to the
interrupt."""
from functools import reduce
from operator import or_

from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiLite, AxiMaster, AxiRead, AxiWrite
from .command import CommandPort
from .config import TileConfig
from .csr import CsrFile
from .csr_map import ADDR_BITS as CSR_BITS
from .csr_map import COUNTERS, STATES
from .dma import LoadEngine, StoreEngine
from .isa import ARGS, LOAD, MATMUL, SEND, STORE, THREADS, UNIT_OPS, VECTOR, Error
from .matmul import Matmul
from .noc import FLIT_BITS, NocPort
from .ports import error_layout
from .semaphores import Semaphores
from .sequencer import ADDR_BITS, ProgramMemory, Sequencer
from .sram import READ_LATENCY, Sram
from .vector import Vector

__all__ = ["CLEAR_CYCLES", "RunControl", "Tile", "Watchdog"]

N = len(THREADS)
READS = ("stream", "a", "b", "d", "send", ("scale", "stat", "store", "lds"))
"""Read ports of the crossbar. Those that share one need little of it: a scale word lasts for 32 blocks, a
group of stationary rows for a whole pass of the panel, the store engine takes an AXI beat per cycle, LDS is
rare."""
WRITES = ("drain", "vec", "load", "noc")
CLEARED = (LOAD, STORE, MATMUL, VECTOR)
"""The reset after a run passes through these units, a cycle apart: each has a register of its own for it."""
CLEAR_CYCLES = 2 * len(READS + WRITES) + READ_LATENCY + 3 + len(CLEARED)
"""Length of the reset of the units after a run. The SRAM is not reset (other tiles may be writing to it);
what its ports hold, two requests each, is served in less even where all are for one bank."""
DRAIN_CYCLES = 1 << 16
QUIET_CYCLES = 4
"""A run is complete when nothing was at work for so long: an item between two units shows in neither for a
cycle."""


class Watchdog(wiring.Component):
    """`bark` is high when `limit` (not 0) cycles of `run` passed without `progress`, until `run` falls."""

    def __init__(self):
        super().__init__({"run": In(1), "progress": In(1), "limit": In(32), "bark": Out(1)})

    def elaborate(self, platform):
        m = Module()
        left, armed = Signal(32), Signal()
        with m.If(self.progress | ~self.run):
            m.d.sync += [left.eq(self.limit), armed.eq(self.limit.any() & self.run), self.bark.eq(0)]
        with m.Else():
            m.d.sync += [left.eq(left - left.any()), armed.eq(self.limit.any()),
                         self.bark.eq(armed & ~left.any())]
        return m


class RunControl(wiring.Component):
    """A run from the doorbell to the interrupt.

    IDLE -> START (counters and semaphores to zero) -> LOAD (program fetch handed to the DMA) -> RUN -> CLEAR
    -> IDLE;
    an error or abort goes RUN -> DRAIN (`stop`: nothing is issued, the DMA engines finish what is on the bus)
    -> CLEAR.
    A bus that does not answer for DRAIN_CYCLES is given up.

    Members: doorbell, abort, words, ready (sequencer); fetch (stream without payload: program load),
    load_program, start, fresh
    (pulse), complete (everything has ended), drained, error (first one is recorded), stop, clear, running,
    enable (counters);
    state, busy, done, failed, aborted, record; events (IRQ_STATUS bits: done, error, aborted); rung (a
    doorbell waits).

    A doorbell while a run is going on is ignored; one that rings during the CLEAR of an ended run is kept. An
    error while
    idle (a broken packet) is recorded and reported in the same way.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "doorbell": In(1), "abort": In(1), "words": In(32), "ready": In(1), "error": In(error_layout),
            "fetch": Out(stream.Signature(0)), "load_program": Out(1), "start": Out(1), "fresh": Out(1),
            "complete": In(1), "drained": In(1), "loaded": In(1), "drop": Out(1),
            "stop": Out(1), "clear": Out(1), "running": Out(1), "enable": Out(1),
            "state": Out(3), "busy": Out(1), "done": Out(1), "failed": Out(1), "aborted": Out(1),
            "record": Out(error_layout), "events": Out(3), "rung": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        rung, quiet, count = self.rung, Signal(range(QUIET_CYCLES + 1)), Signal(range(CLEAR_CYCLES))
        too_long, patience = Signal(), Signal(range(DRAIN_CYCLES))
        aborting = Signal()  # abort came between the doorbell and RUN
        m.d.sync += [self.start.eq(0), self.load_program.eq(0), self.fresh.eq(0), self.events.eq(0),
                     self.drop.eq(0),
                     too_long.eq(self.words > self.config.imem_words)]
        m.d.sync += quiet.eq(Mux(self.complete, quiet + (quiet != QUIET_CYCLES), 0))

        def end(error) -> None:
            """Leave with an error, or aborted (error None)."""
            m.d.sync += [self.stop.eq(1), aborting.eq(0)]
            if error is None:
                m.d.sync += self.aborted.eq(1)
            else:
                m.d.sync += [self.failed.eq(1), self.record.eq(error)]
            m.next = "DRAIN"

        with m.FSM() as fsm:
            with m.State("IDLE"):
                with m.If(self.error.valid):
                    m.d.sync += [self.done.eq(0), self.aborted.eq(0)]
                    end(self.error)
                with m.Elif((rung | self.doorbell) & self.ready):
                    m.d.sync += [rung.eq(0), self.fresh.eq(1), self.done.eq(0), self.failed.eq(0),
                                 self.aborted.eq(0),
                                 self.record.eq(0)]
                    m.next = "START"
            with m.State("START"):
                with m.If(too_long):
                    m.d.sync += [self.record.valid.eq(1), self.record.code.eq(Error.PC_RANGE),
                                 self.record.value.eq(self.words), aborting.eq(0),
                                 self.failed.eq(1), self.stop.eq(1)]
                    m.next = "DRAIN"
                with m.Elif(self.words.any()):
                    m.d.sync += self.load_program.eq(1)
                    m.next = "LOAD"
                with m.Else():
                    m.d.sync += self.start.eq(1)
                    m.next = "RUN"
            with m.State("LOAD"):
                m.d.comb += self.fetch.valid.eq(~self.load_program)
                with m.If(self.fetch.valid & self.fetch.ready):
                    m.d.sync += self.start.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(self.error.valid):
                    end(self.error)
                with m.Elif(self.abort | aborting):
                    end(None)
                with m.Elif((quiet == QUIET_CYCLES) & self.complete):
                    m.d.sync += [self.done.eq(1), self.events[0].eq(1)]
                    m.next = "CLEAR"
            with m.State("DRAIN"):
                m.d.sync += patience.eq(patience - 1)
                with m.If(self.drained | (patience == 0)):
                    m.d.sync += self.drop.eq(~self.loaded)
                    m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.sync += [self.clear.eq(1), count.eq(count + 1)]
                with m.If(count == CLEAR_CYCLES - 1):
                    m.d.sync += [self.stop.eq(0), self.events[1].eq(self.failed & ~self.done),
                                 self.events[2].eq(self.aborted)]
                    m.next = "IDLE"
        with m.If(~fsm.ongoing("DRAIN")):
            m.d.sync += patience.eq(DRAIN_CYCLES - 1)
        with m.If(~fsm.ongoing("CLEAR")):
            m.d.sync += [self.clear.eq(0), count.eq(0)]
        # Kept: rung while the registers are cleared after a run, or a moment after it.
        with m.If(self.doorbell & (self.done | fsm.ongoing("IDLE")) & ~((fsm.ongoing("IDLE")) & self.ready)):
            m.d.sync += rung.eq(1)
        with m.If(self.abort & (rung | fsm.ongoing("START") | fsm.ongoing("LOAD"))):
            m.d.sync += aborting.eq(1)
        for k, name in enumerate(STATES):
            with m.If(fsm.ongoing(name)):
                m.d.comb += self.state.eq(k)
        m.d.comb += [
            self.running.eq(fsm.ongoing("RUN")),
            self.enable.eq(fsm.ongoing("START") | fsm.ongoing("LOAD") | fsm.ongoing("RUN")
                           | fsm.ongoing("DRAIN")),
            self.busy.eq(~fsm.ongoing("IDLE") & ~(fsm.ongoing("CLEAR") & self.done) | rung),
        ]
        return m


class Tile(wiring.Component):
    """One Serrano tile; docs/architecture.md. Clock `clk`, synchronous reset `rst` (hold it for 16 cycles
    when the SRAM is in use).

    Members (flat names in the Verilog): `m_axi` AXI4 master to DRAM, `s_axil` AXI4-Lite registers
    (hw/csr_map.py), `irq` (level),
    `noc_in`, `noc_out` (streams of FLIT_BITS bits: docs/noc.md).
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__({
            "m_axi": Out(AxiMaster(config)), "s_axil": In(AxiLite(CSR_BITS)), "irq": Out(1),
            "noc_in": In(stream.Signature(FLIT_BITS)), "noc_out": Out(stream.Signature(FLIT_BITS)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.csr = csr = CsrFile(config)
        m.submodules.control = control = RunControl(config)
        m.submodules.watchdog = watchdog = Watchdog()
        m.submodules.sram = sram = Sram(config, READS, WRITES, first="stream")
        m.submodules.program = program = ProgramMemory(config)
        sequencer, semaphores = Sequencer(config), Semaphores(config)
        load, store, matmul, vector = LoadEngine(config), StoreEngine(config), Matmul(config), Vector(config)
        m.submodules.noc = noc = NocPort(config)
        units = {LOAD: load, STORE: store, MATMUL: matmul, VECTOR: vector, SEND: noc}
        clears = {SEND: control.clear}
        clear = control.clear
        for t in CLEARED:
            clears[t] = Signal(name=f"{THREADS[t]}_clear")
            m.d.sync += clears[t].eq(clear)
            clear = clears[t]
        for name, unit, clear in (("sequencer", sequencer, control.clear),
                                  ("semaphores", semaphores, control.clear),
                                  ("load", load, clears[LOAD]), ("store", store, clears[STORE]),
                                  ("matmul", matmul, clears[MATMUL]), ("vector", vector, clears[VECTOR])):
            m.submodules[name] = ResetInserter(clear)(unit)

        wiring.connect(m, wiring.flipped(self.s_axil), csr.s_axil)
        self._axi(m, load, store)
        self._noc(m, noc, control)
        for ports, unit, name in ((sram.stream, matmul, "stream"), (sram.scale, matmul, "scale"),
                                  (sram.stat, matmul, "stat"),
                                  (sram.a, vector, "a"), (sram.b, vector, "b"), (sram.d, vector, "d"),
                                  (sram.store, store, "read"), (sram.lds, sequencer, "lds"),
                                  (sram.send, noc, "read"), (sram.drain, matmul, "drain"),
                                  (sram.vec, vector, "out"),
                                  (sram.load, load, "write"), (sram.noc, noc, "write")):
            wiring.connect(m, getattr(unit, name), ports)

        # Program: DMA -> instruction memory -> sequencer.
        wiring.connect(m, load.program, program.words)
        m.d.comb += [
            load.boot.valid.eq(control.fetch.valid), control.fetch.ready.eq(load.boot.ready),
            load.boot.payload.src.eq(csr.prog_addr), load.boot.payload.words.eq(csr.prog_words),
            program.load.eq(control.load_program), program.load_words.eq(csr.prog_words[:ADDR_BITS]),
            program.drop.eq(control.drop), program.addr.eq(sequencer.addr), sequencer.data.eq(program.data),
            sequencer.loaded.eq(program.loaded), sequencer.complete.eq(program.complete),
            *(sequencer.entries[t].eq(program.entries[t]) for t in range(N)),
            *(sequencer.args[k].eq(getattr(csr, f"arg{k}")) for k in range(ARGS)),
            sequencer.start.eq(control.start), sequencer.stop.eq(control.stop),
            *(getattr(engine, name).eq(getattr(csr, name)) for engine in (load, store)
              for name in ("dram_base", "dram_size")),
            load.stop.eq(control.stop), store.stop.eq(control.stop),
        ]

        # Commands and semaphores.
        ports = {}
        for ins in UNIT_OPS:
            t, name = ins.unit, ins.name.lower()
            port = ports[t] = CommandPort(ins)
            m.submodules[f"{name}_commands"] = ResetInserter(clears[t])(port)
            wiring.connect(m, sequencer.beats[t], port.i)
            wiring.connect(m, port.o, units[t].command)
            wiring.connect(m, units[t].signal, semaphores.signal[t])
            wiring.connect(m, sequencer.wait[t], semaphores.wait[t])
            m.d.comb += sequencer.levels[t].eq(port.level)
        wiring.connect(m, sequencer.add, semaphores.add[0])
        # A signal that arrives after the doorbell but before the semaphores are cleared waits.
        hold = control.clear | control.rung | control.fresh
        m.d.comb += [
            semaphores.clear.eq(control.fresh),
            semaphores.add[1].valid.eq(noc.add.valid & ~hold),
            noc.add.ready.eq(semaphores.add[1].ready & ~hold),
            semaphores.add[1].payload.eq(noc.add.payload),
        ]

        self._control(m, csr, control, watchdog, sequencer, semaphores, program, units, ports)
        self._counters(m, csr, control, watchdog, sequencer, sram, units)
        return m

    def _axi(self, m: Module, load: LoadEngine, store: StoreEngine) -> None:
        for signature, engine in ((AxiRead(self.config), load), (AxiWrite(self.config), store)):
            for name, member in signature.members.items():
                inner, outer = getattr(engine.m_axi, name), getattr(self.m_axi, name)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)

    def _noc(self, m: Module, noc: NocPort, control: RunControl) -> None:
        m.d.comb += [
            noc.noc_in.valid.eq(self.noc_in.valid), noc.noc_in.payload.eq(self.noc_in.payload),
            self.noc_in.ready.eq(noc.noc_in.ready),
            self.noc_out.valid.eq(noc.noc_out.valid), self.noc_out.payload.eq(noc.noc_out.payload.as_value()),
            noc.noc_out.ready.eq(self.noc_out.ready),
            noc.stop.eq(control.stop), noc.clear.eq(control.clear),
        ]

    def _control(self, m, csr, control, watchdog, sequencer, semaphores, program, units, ports) -> None:
        """State of the run, errors, status registers, interrupt."""
        busy, queued, settled = Signal(N), Signal(N), Signal()
        error = Signal(error_layout)
        # Gathered in registers: the units are far apart. QUIET_CYCLES covers the cycle.
        m.d.sync += [busy.eq(Cat(units[t].busy for t in range(N))),
                     queued.eq(Cat(ports[t].busy for t in range(N))),
                     settled.eq(semaphores.idle),
                     control.drained.eq(units[LOAD].idle & units[STORE].idle & units[SEND].idle),
                     csr.status_loaded.eq(program.complete & program.loaded.any())]
        m.d.comb += [
            control.doorbell.eq(csr.ctrl_doorbell), control.abort.eq(csr.ctrl_abort),
            control.words.eq(csr.prog_words),
            control.ready.eq(sequencer.ready), control.loaded.eq(program.complete), control.error.eq(error),
            control.complete.eq(sequencer.done & program.complete & settled & ~busy.any()
                                & ~queued.any()
                                & ~error.valid),
            watchdog.run.eq(control.running), watchdog.limit.eq(csr.watchdog),
        ]
        # First error wins; in one cycle, in this order.
        sources = [sequencer.error, *(units[t].error for t in (LOAD, STORE, MATMUL, VECTOR, SEND))]
        with m.If(~error.valid):
            m.d.sync += [error.valid.eq(reduce(or_, (e.valid for e in sources)) | semaphores.error
                                        | watchdog.bark)]
            with m.If(watchdog.bark):
                m.d.sync += [error.code.eq(Error.WATCHDOG), error.pc.eq(sequencer.stuck_pc),
                             error.value.eq(Cat(~sequencer.halted, busy | queued))]
            with m.If(semaphores.error):
                m.d.sync += [error.code.eq(Error.SEM_OVERFLOW), error.pc.eq(0),
                             error.value.eq(semaphores.error_sem)]
            for source in reversed(sources):
                with m.If(source.valid):
                    m.d.sync += [error.code.eq(source.code), error.pc.eq(source.pc),
                                 error.value.eq(source.value)]
        with m.If(control.clear):
            m.d.sync += error.valid.eq(0)

        m.d.comb += [
            csr.status_busy.eq(control.busy), csr.status_done.eq(control.done),
            csr.status_error.eq(control.failed),
            csr.status_aborted.eq(control.aborted),
            csr.status_state.eq(control.state), csr.status_halted.eq(sequencer.halted),
            csr.status_waiting.eq(sequencer.waiting), csr.units_busy.eq(busy), csr.units_queued.eq(queued),
            csr.err_code.eq(control.record.code), csr.err_pc.eq(control.record.pc),
            csr.err_value.eq(control.record.value),
            Cat(csr.irq_status_done, csr.irq_status_error, csr.irq_status_aborted).eq(control.events),
            units[SEND].tile_id.eq(csr.tile_id), self.irq.eq(csr.irq),
        ]

    def _counters(self, m, csr, control, watchdog, sequencer, sram, units) -> None:
        """Events to counters; the watchdog's idea of progress."""
        names = {"load": units[LOAD], "store": units[STORE], "matmul": units[MATMUL], "vector": units[VECTOR],
                 "noc": units[SEND], "sequencer": sequencer}
        sram_wait = Signal.like(sram.count_wait)  # who waits is known late in a cycle
        m.d.sync += sram_wait.eq(sram.count_wait)
        tile = {"count_cycles": 1, "count_sram_wait": sum(sram_wait),
                **{f"count_thread_wait_{t}": sequencer.waiting[t] for t in range(N)}}
        m.d.comb += [csr.count_enable.eq(control.enable), csr.count_clear.eq(control.fresh)]
        for c in COUNTERS:
            unit, member = c.source.split(".")
            m.d.comb += getattr(csr, f"count_{c.name.lower()}").eq(
                tile[member] if unit == "tile" else getattr(names[unit], member))

        # Cycles since the first command, sampled while some unit works (as seen a cycle later).
        begun, cycles = Signal(), Signal(32)
        working = Signal()
        m.d.comb += working.eq((csr.units_busy | csr.units_queued).any())
        with m.If(control.fresh):
            m.d.sync += [begun.eq(0), cycles.eq(0), csr.unit_cycles.eq(0)]
        with m.Elif(control.running):
            m.d.sync += [begun.eq(begun | sequencer.issued.any()), cycles.eq(cycles + begun)]
            with m.If(begun & working):
                m.d.sync += csr.unit_cycles.eq(cycles)

        events = [sequencer.progress, units[LOAD].count_read_beat, units[STORE].count_write_beat,
                  units[MATMUL].count_block, units[VECTOR].count_elements, units[SEND].count_in,
                  units[SEND].count_out, *(u.signal.valid for u in units.values()),
                  units[LOAD].program.valid]
        seen = Signal(len(events))  # they come from all over the tile
        m.d.sync += [seen.eq(Cat(events)), watchdog.progress.eq(seen.any())]
