"""A simulated board on a pseudo-terminal: the RTL of hw/board.py, its UART pins moved bit by bit."""

import os
import threading
import time
import tty
from collections import deque

from hw.board import Board
from hw.config import TileConfig
from sim.far_end import Faults
from sim.unit import Unit
from sim.verilate import cached_verilog, compile_verilog, parse_ports

__all__ = ["BoardSimulation"]

DIVISOR = 4


class BoardSimulation:
    """Runs in a thread of its own from `start` on; `path` is the serial port of the host.

    there, back: faults of the line to and from the board; `cut` is a pulled cable. A level is driven and one
    is sampled once per bit: the line is exact, what differs is only the phase.
    """

    def __init__(self, config: TileConfig, memory_bytes: int, rate: float = 0.0, seed: int = 0):
        text = cached_verilog(
            lambda: Board(config, divisor=DIVISOR, memory_bytes=memory_bytes),
            "serrano_board",
            repr((config, memory_bytes, DIVISOR)),
        )
        library = compile_verilog(text, "serrano_board", opt="-O1")
        self.unit = Unit(library, parse_ports(text, "serrano_board"), seed=seed)
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
        unit.set("uart_rx", 1)
        unit.step(100)
        levels: deque[int] = deque()
        left = byte = 0  # bits that are to come, and the byte so far
        answer = bytearray()
        while not self._stop:
            if self._reset:
                unit.reset(40)
                self._reset = False
            if len(levels) < 100 and (data := self._read()):
                self.received += len(data)
                for b in self.there(data):
                    levels.extend((0, *(b >> k & 1 for k in range(8)), 1))
            begin = time.perf_counter()
            for _ in range(200):
                if levels:
                    unit.set("uart_rx", levels.popleft())
                unit.run(DIVISOR)
                level = unit.get("uart_tx")
                if left:
                    left -= 1
                    byte = byte >> 1 | level << 8
                    if not left:
                        assert level, "stop bit"
                        answer.append(byte & 0xFF)
                elif not level:
                    left, byte = 9, 0
            self.seconds += time.perf_counter() - begin
            if answer:
                self.sent += len(answer)
                os.write(self.master, self.back(bytes(answer)))
                answer.clear()

    def _read(self) -> bytes:
        try:
            return os.read(self.master, 256)
        except (BlockingIOError, OSError):
            return b""
