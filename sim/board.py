"""A simulated board on a pseudo-terminal: the RTL of hw/board.py or hw/board_top.py, bits on its UART."""

import inspect
import os
import threading
import time
import tty

import numpy as np
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.board import Board
from hw.board_top import BoardTop
from hw.boards import BoardSpec
from hw.config import TileConfig
from hw.uart import UartReceiver, UartTransmitter
from sim.far_end import Faults
from sim.unit import Unit
from sim.verilate import cached_verilog, compile_verilog, parse_ports

__all__ = ["BoardSimulation", "HostEnd"]

DIVISOR = 4
CYCLES = 200 * DIVISOR
"""Between two looks at the pseudo-terminal."""

PRIMITIVES = """
module EHXPLLL #(parameter CLKI_DIV = 1, CLKFB_DIV = 1, FEEDBK_PATH = "", CLKOP_ENABLE = "", CLKOP_DIV = 1,
                 CLKOP_CPHASE = 0, CLKOP_FPHASE = 0, OUTDIVIDER_MUXA = "", PLLRST_ENA = "", INTFB_WAKE = "",
                 STDBY_ENABLE = "", DPHASE_SOURCE = "")
    (input CLKI, CLKFB, RST, STDBY, PLLWAKESYNC, ENCLKOP, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP,
     PHASELOADREG, output CLKOP, LOCK);
  reg [5:0] count = 0;
  always @(posedge CLKI) if (!LOCK) count <= count + 1;
  assign CLKOP = CLKI, LOCK = count[5];
endmodule
module PLLE2_BASE #(parameter CLKIN1_PERIOD = 0.0, DIVCLK_DIVIDE = 1, CLKFBOUT_MULT = 1, CLKOUT0_DIVIDE = 1)
    (input CLKIN1, CLKFBIN, RST, PWRDWN, output CLKFBOUT, CLKOUT0, LOCKED);
  reg [5:0] count = 0;
  always @(posedge CLKIN1) if (!LOCKED) count <= count + 1;
  assign CLKOUT0 = CLKIN1, CLKFBOUT = CLKIN1, LOCKED = count[5];
endmodule
module BUFG(input I, output O);
  assign O = I;
endmodule
"""
"""Vendors' cells of hw/board_clock.py. A PLL makes the clock that it gets and locks after 32 cycles."""


class HostEnd(wiring.Component):
    """A board and the host's end of its UART, whose bytes are on `i` (to the board) and `o`.

    A BoardTop makes its own clock from `clk`, and `rst` is its button.
    """

    def __init__(self, board: Board | BoardTop):
        self.board = board
        members = {"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))}
        if isinstance(board, BoardTop):
            members |= {"clk": In(1), "rst": In(1)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.board = board = self.board
        m.submodules.transmitter = transmitter = UartTransmitter(DIVISOR)
        m.submodules.receiver = receiver = UartReceiver(DIVISOR)
        wiring.connect(m, wiring.flipped(self.i), transmitter.i)
        wiring.connect(m, receiver.o, wiring.flipped(self.o))
        m.d.comb += [board.uart_rx.eq(transmitter.tx), receiver.rx.eq(board.uart_tx)]
        if isinstance(board, BoardTop):
            m.d.comb += [board.oscillator.eq(self.clk), board.button.eq(self.rst)]
        return m


class BoardSimulation:
    """Runs in a thread of its own from `start` on; `path` is the serial port of the host.

    board: a config and the bytes of its memory, or the spec of a board, whose whole top is simulated. there,
    back: faults of the line to and from the board; `cut` is a pulled cable. Bits are exactly DIVISOR cycles.
    """

    def __init__(
        self, board: TileConfig | BoardSpec, memory_bytes: int = 0, rate: float = 0.0, seed: int = 0
    ):
        def make() -> HostEnd:
            if isinstance(board, BoardSpec):
                return HostEnd(BoardTop(board, divisor=DIVISOR))
            return HostEnd(Board(board, divisor=DIVISOR, memory_bytes=memory_bytes))

        name = "serrano_board"
        text = cached_verilog(make, name, repr((board, memory_bytes, DIVISOR)), inspect.getsource(HostEnd))
        text += PRIMITIVES if isinstance(board, BoardSpec) else ""
        self.unit = Unit(compile_verilog(text, name, opt="-O1"), parse_ports(text, name), seed=seed)
        self.there, self.back = Faults(rate, seed), Faults(rate, seed + 1)
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self._slave)
        self._stop = self._reset = False
        self.seconds, self.received, self.sent = 0.0, 0, 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> "BoardSimulation":
        self._thread.start()
        return self

    def reset(self) -> None:
        """Of the board, while it runs."""
        self._reset = True
        while self._reset:
            time.sleep(0.001)

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        os.close(self._slave)
        os.close(self.master)
        self.unit.close()

    def _serve(self) -> None:
        unit = self.unit
        unit.collect("o")
        unit.push("i", np.zeros(0, np.uint8))
        unit.step(100)
        busy = 0  # cycles that the bytes on the way take
        while not self._stop:
            if self._reset:
                unit.reset(40)
                self._reset, busy = False, 0
            if busy <= 0 and (data := self._read()):
                self.received += len(data)
                sent = self.there(data)
                unit.push("i", np.frombuffer(sent, np.uint8))
                busy = len(sent) * 10 * DIVISOR
            begin = time.perf_counter()
            busy -= unit.run(CYCLES)
            self.seconds += time.perf_counter() - begin
            if len(answer := unit.pop("o").astype(np.uint8).tobytes()):
                self.sent += len(answer)
                os.write(self.master, self.back(answer))

    def _read(self) -> bytes:
        try:
            return os.read(self.master, 256)
        except (BlockingIOError, OSError):
            return b""
