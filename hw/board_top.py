"""Top module of a board with a UART host link: what the FPGA's pins are.

The pins' places are in constraints/, the figures in hw/boards.py. Usage: `make bitstream BOARD=ulx3s`,
`make vivado BOARD=arty`.
"""

from amaranth import Cat, ClockDomain, ClockSignal, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from .board import Board
from .board_clock import ClockGenerator
from .boards import BoardSpec
from .uart import divisor

__all__ = ["LIGHT_SECONDS", "BoardTop", "Lights"]

LIGHT_SECONDS = 0.05
"""How long a LED shows activity at least."""


class Lights(wiring.Component):
    """`led`: 0 a heartbeat of about a second, 1 the tile's interrupt, 2 and 3 activity of the lines.

    Members: `irq`; `lines`, each of which is high at rest. A low level lights its LED for `cycles` cycles or
    one more, from two cycles later on.
    """

    def __init__(self, cycles: int):
        self.cycles = cycles
        super().__init__({"irq": In(1), "lines": In(2, init=3), "led": Out(4)})

    def elaborate(self, platform):
        m = Module()
        beat = Signal(range(16 * self.cycles))
        line = Signal(2, init=3)
        m.d.sync += [beat.eq(beat + 1), line.eq(self.lines), self.led[1].eq(self.irq)]
        m.d.comb += self.led[0].eq(beat[-1])
        for k in range(2):
            left = Signal(range(self.cycles + 1), name=f"left_{k}")
            with m.If(~line[k]):
                m.d.sync += left.eq(self.cycles)
            with m.Elif(left != 0):
                m.d.sync += left.eq(left - 1)
            m.d.comb += self.led[2 + k].eq(left != 0)
        return m


class BoardTop(wiring.Component):
    """Board of a spec behind its PLL.

    Members: `oscillator`; `button`, high resets; `uart_rx`, `uart_tx`; `led` (see Lights); the spec's `ties`.
    Everything is in reset while the PLL is not locked or the button is held. divisor: clock cycles per bit
    of the UART, the spec's baud unless given (simulation).
    """

    def __init__(self, spec: BoardSpec, *, divisor: int | None = None):
        if spec.family not in ("ecp5", "xc7"):
            raise ValueError(f"board {spec.name}: allowed is one with a UART host link")
        self.spec, self.divisor = spec, divisor
        super().__init__({
            "oscillator": In(1), "button": In(1), "uart_rx": In(1, init=1), "uart_tx": Out(1, init=1),
            "led": Out(4), **{name: Out(1, init=level) for name, level in spec.ties},
        })

    def elaborate(self, platform):
        m = Module()
        spec, clock = self.spec, 1e6 * self.spec.config.clock_mhz
        m.domains.sync = ClockDomain()
        m.submodules.clock = pll = ClockGenerator(spec.family, spec.oscillator_mhz, spec.config.clock_mhz)
        # Synchronous at both ends: registers start in reset, and a clock that is not steady yet does no harm.
        reset = Signal(init=1)
        m.submodules.reset = FFSynchronizer(~pll.locked | self.button, reset, init=1, stages=3)
        m.submodules.board = board = Board(
            spec.config, divisor=self.divisor or divisor(clock, spec.baud), memory_bytes=spec.memory_bytes)
        m.submodules.lights = lights = Lights(round(LIGHT_SECONDS * clock))
        m.d.comb += [
            pll.i.eq(self.oscillator), ClockSignal().eq(pll.o), ResetSignal().eq(reset),
            board.uart_rx.eq(self.uart_rx), self.uart_tx.eq(board.uart_tx),
            lights.irq.eq(board.irq), lights.lines.eq(Cat(board.uart_rx, board.uart_tx)),
            self.led.eq(lights.led),
            *(getattr(self, name).eq(level) for name, level in spec.ties),
        ]
        return m
