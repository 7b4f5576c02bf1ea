"""UART, 8N1: one start bit (low), eight data bits from the least significant on, one stop bit (high)."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["MIN_DIVISOR", "UartReceiver", "UartTransmitter", "divisor"]

MIN_DIVISOR = 4
"""Clock cycles per bit below which the middle of a bit is not hit reliably."""
MAX_ERROR = 0.02
"""Of a bit's length. Ten bits long a receiver may be off by half a bit; the other side takes its share."""


def divisor(clock_hz: float, baud: float) -> int:
    """Clock cycles per bit. ValueError where the rate cannot be met within 2 %."""
    cycles = round(clock_hz / baud)
    if cycles < MIN_DIVISOR or abs(clock_hz / cycles / baud - 1) > MAX_ERROR:
        raise ValueError(
            f"baud = {baud:g} at {clock_hz:g} Hz: allowed is at most a {MIN_DIVISOR}th of the clock, "
            f"met within {MAX_ERROR:.0%} by a whole number of cycles per bit"
        )
    return cycles


def _check(cycles: int) -> int:
    if cycles < MIN_DIVISOR:
        raise ValueError(f"divisor = {cycles}: allowed is at least {MIN_DIVISOR} cycles per bit")
    return cycles


class UartReceiver(wiring.Component):
    """`rx` (asynchronous) to bytes on `o`.

    A byte appears two synchroniser cycles and one after the middle of its stop bit. Dropped: a byte whose
    stop bit is low (the line is then waited for to go high again), one that is complete while the one before
    waits on `o`, and start bits shorter than half a bit.
    """

    def __init__(self, divisor: int):
        self.divisor = _check(divisor)
        super().__init__({"rx": In(1, init=1), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchroniser = FFSynchronizer(self.rx, line, init=1)
        wait, bits, shift = Signal(range(self.divisor)), Signal(range(10)), Signal(8)
        sample = wait == 0
        m.d.sync += wait.eq(wait - 1)
        with m.If(sample):
            m.d.sync += wait.eq(self.divisor - 1)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM():
            with m.State("BREAK"):  # also after reset: the first start bit follows a high line
                with m.If(line):
                    m.next = "IDLE"
            with m.State("IDLE"):
                m.d.sync += [wait.eq(self.divisor // 2 - 1), bits.eq(0)]
                with m.If(~line):
                    m.next = "BITS"
            with m.State("BITS"):
                with m.If(sample):
                    m.d.sync += [bits.eq(bits + 1), shift.eq(Cat(shift[1:], line))]
                    with m.If((bits == 0) & line):
                        m.next = "IDLE"
                    with m.If(bits == 9):
                        with m.If(line & (~self.o.valid | self.o.ready)):
                            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(shift)]
                        m.next = "BREAK"
        return m


class UartTransmitter(wiring.Component):
    """Bytes on `i` to `tx`: ten bits of `divisor` cycles each, bytes back to back. `tx` is a register."""

    def __init__(self, divisor: int):
        self.divisor = _check(divisor)
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        wait, left, shift = Signal(range(self.divisor)), Signal(range(11)), Signal(9, init=-1)
        last = (left == 0) | ((left == 1) & (wait == 0))
        m.d.comb += self.i.ready.eq(last)
        m.d.sync += wait.eq(wait - 1)
        with m.If(wait == 0):
            m.d.sync += [wait.eq(self.divisor - 1), self.tx.eq(shift[0]),
                         shift.eq(Cat(shift[1:], Const(1, 1)))]
            with m.If(left.any()):
                m.d.sync += left.eq(left - 1)
        with m.If(self.i.valid & last):
            m.d.sync += [self.tx.eq(0), shift.eq(Cat(self.i.payload, Const(1, 1))), left.eq(10),
                         wait.eq(self.divisor - 1)]
        return m
