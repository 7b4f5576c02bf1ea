"""Agents of the cocotb benches: streams and SRAM ports, one step per clock cycle, with random stalls.

All agents of a bench run in one coroutine: in every cycle each first sees the settled values of the cycle
that ends, then drives those of the next one.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge

__all__ = ["Bench", "MemoryPorts", "Sink", "Source", "pauses"]


class Agent(Protocol):
    def step(self) -> None: ...


def pauses(rng: random.Random, fraction: float) -> Iterator[bool]:
    """Endless stall pattern: single cycles and bursts, `fraction` of all cycles."""
    while True:
        length = rng.choice((1, 1, 1, 2, 8))
        stalled = rng.random() < fraction
        for _ in range(length):
            yield stalled


class Bench:
    """Clock, reset and agents of a design. `await bench.until(condition)` runs until it is true, or fails."""

    def __init__(self, dut: Any, seed: int):
        self.dut, self.rng, self.agents, self.cycle = dut, random.Random(seed), list[Agent](), 0
        Clock(dut.clk, 10, unit="ns").start()

    async def start(self, cycles: int = 4) -> None:
        """Reset, then let the agents run."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, cycles)
        self.dut.rst.value = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        edge = RisingEdge(self.dut.clk)
        while True:
            await edge
            self.cycle += 1
            for agent in self.agents:
                agent.step()

    async def until(self, done: Any, what: str, cycles: int = 100_000) -> None:
        edge = RisingEdge(self.dut.clk)
        for _ in range(cycles):
            if done():
                return
            await edge
        raise AssertionError(f"hang: {what} after {cycles} cycles")

    def source(self, name: str, stall: float = 0.0) -> "Source":
        self.agents.append(agent := Source(self.dut, name, pauses(self.rng, stall)))
        return agent

    def sink(self, name: str, stall: float = 0.0) -> "Sink":
        self.agents.append(agent := Sink(self.dut, name, pauses(self.rng, stall)))
        return agent


class Source:
    """Drives an input stream of the design from a queue."""

    def __init__(self, dut: Any, name: str, pause: Iterator[bool]):
        self.valid, self.ready, self.payload = (
            getattr(dut, f"{name}_{x}") for x in ("valid", "ready", "payload")
        )
        self.queue: deque[int] = deque()
        self.pause, self.offered, self.sent = pause, False, 0
        self.valid.value = 0

    def push(self, items: Iterable[int]) -> None:
        self.queue.extend(items)

    @property
    def empty(self) -> bool:
        return not self.queue and not self.offered

    def step(self) -> None:
        if self.offered:
            if not int(self.ready.value):
                return
            self.sent += 1
            self.offered = False
            self.valid.value = 0
        if self.queue and not next(self.pause):
            self.payload.value = self.queue.popleft()
            self.valid.value = 1
            self.offered = True


class Sink:
    """Takes an output stream of the design into `items`; checks that an offer holds until it is taken."""

    def __init__(self, dut: Any, name: str, pause: Iterator[bool]):
        self.name = name
        self.valid, self.ready, self.payload = (
            getattr(dut, f"{name}_{x}") for x in ("valid", "ready", "payload")
        )
        self.items: list[int] = []
        self.pause, self.taking, self.held = pause, False, -1
        self.ready.value = 0

    def step(self) -> None:
        if int(self.valid.value):
            value = int(self.payload.value)
            assert self.held in (-1, value), f"{self.name}: the payload changed while it waited"
            self.held = -1 if self.taking else value
            if self.taking:
                self.items.append(value)
        else:
            assert self.held == -1, f"{self.name}: valid fell before the transfer"
        taking = not next(self.pause)
        if taking != self.taking:
            self.ready.value = self.taking = taking


class MemoryPorts:
    """The SRAM behind a unit's ports (hw/ports.py), as hostile as its contract allows.

    Reads come back in order after LATENCY or more cycles and see memory as it is when they are accepted.
    Writes become visible after a random time, in order, `busy` until then; at most two of a port wait.
    memory: bytearray of the whole SRAM.
    """

    LATENCY = 5

    def __init__(
        self,
        bench: Bench,
        memory: bytearray,
        word: int,
        reads: Iterable[str],
        writes: Iterable[str],
        stall: float,
    ):
        self.memory, self.word, self.rng, self.stall, self.now = memory, word, bench.rng, stall, 0
        self.address_bits = (len(memory) // word - 1).bit_length()
        dut = bench.dut
        self.reads = [
            _ReadPort(
                *(
                    getattr(dut, f"{n}_{x}")
                    for x in ("req_valid", "req_ready", "req_payload", "valid", "data")
                )
            )
            for n in reads
        ]
        self.writes = [
            _WritePort(*(getattr(dut, f"{n}_{x}") for x in ("req_valid", "req_ready", "req_payload", "busy")))
            for n in writes
        ]
        self.read_count = self.write_count = 0
        bench.agents.append(self)

    def step(self) -> None:
        self.now += 1
        for r in self.reads:
            self._read(r)
        for w in self.writes:
            self._write(w)

    def _read(self, p: "_ReadPort") -> None:
        if p.taking and int(p.req_valid.value):
            at = int(p.req.value) * self.word
            word = int.from_bytes(self.memory[at : at + self.word], "little")
            delay = self.LATENCY - 1 + (self.rng.randrange(6) if self.rng.random() < self.stall else 0)
            p.pending.append((max(self.now + delay, p.pending[-1][0] + 1 if p.pending else 0), word))
            self.read_count += 1
        answer = bool(p.pending) and p.pending[0][0] <= self.now
        if answer:
            p.data.value = p.pending.popleft()[1]
        if answer != p.answering:
            p.valid.value = p.answering = answer
        taking = self.rng.random() >= self.stall
        if taking != p.taking:
            p.req_ready.value = p.taking = taking

    def _write(self, p: "_WritePort") -> None:
        if p.pending and self.rng.random() >= self.stall:
            payload = p.pending.popleft()
            at = (payload & (1 << self.address_bits) - 1) * self.word
            data = (payload >> self.address_bits & (1 << 8 * self.word) - 1).to_bytes(self.word, "little")
            strobes = payload >> self.address_bits + 8 * self.word
            for i in range(self.word):
                if strobes >> i & 1:
                    self.memory[at + i] = data[i]
        if p.taking and int(p.req_valid.value):
            p.pending.append(int(p.req.value))
            self.write_count += 1
        busy = bool(p.pending)
        if busy != p.is_busy:
            p.busy.value = p.is_busy = busy
        taking = len(p.pending) < 2 and self.rng.random() >= self.stall
        if taking != p.taking:
            p.req_ready.value = p.taking = taking


class _ReadPort:
    def __init__(self, req_valid: Any, req_ready: Any, req: Any, valid: Any, data: Any):
        self.req_valid, self.req_ready, self.req, self.valid, self.data = (
            req_valid,
            req_ready,
            req,
            valid,
            data,
        )
        self.pending: deque[tuple[int, int]] = deque()
        self.taking = self.answering = False
        req_ready.value = valid.value = data.value = 0


class _WritePort:
    def __init__(self, req_valid: Any, req_ready: Any, req: Any, busy: Any):
        self.req_valid, self.req_ready, self.req, self.busy = req_valid, req_ready, req, busy
        self.pending: deque[int] = deque()
        self.taking = self.is_busy = False
        req_ready.value = busy.value = 0
