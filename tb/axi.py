"""AXI memory for the benches: cocotbext-axi slaves on a bytearray; latency, stalls, failing addresses."""

import random
from typing import Any

from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiResp
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite

from tb.bench import pauses

__all__ = ["AxiResp", "Memory"]


class _Fault(Exception):
    """Makes the slave answer with an error."""


class _Read(AxiRamRead):
    def __init__(self, owner: "Memory", bus: Any, clock: Any, reset: Any):
        super().__init__(bus, clock, reset, mem=owner.data)
        self.owner = owner
        send = self.r_channel.send

        async def respond(r: Any) -> None:
            if r.rresp != AxiResp.OKAY:
                r.rresp = owner.response
            await send(r)

        self.r_channel.send = respond

    async def _read(self, address: int, length: int) -> bytes:
        await self.owner.wait(self.clock)
        self.owner.check(address, length)
        return bytes(self.read(address, length))


class _Write(AxiRamWrite):
    def __init__(self, owner: "Memory", bus: Any, clock: Any, reset: Any):
        super().__init__(bus, clock, reset, mem=owner.data)
        self.owner = owner
        send = self.b_channel.send

        async def respond(b: Any) -> None:
            await owner.wait(self.clock)
            if b.bresp != AxiResp.OKAY:
                b.bresp = owner.response
            await send(b)

        self.b_channel.send = respond

    async def _write(self, address: int, data: bytes) -> None:
        self.owner.check(address, len(data))
        self.write(address, data)


class Memory:
    """`data` behind a read and a write bus; the byte range `bad` (low, high) answers with `response`."""

    def __init__(self, size: int, rng: random.Random, read_bus: Any, write_bus: Any, clock: Any, reset: Any):
        self.data = bytearray(size)
        self.rng, self.slow = rng, 0.0
        self.bad, self.response = (0, 0), AxiResp.SLVERR
        self.read_if = _Read(self, read_bus, clock, reset)
        self.write_if = _Write(self, write_bus, clock, reset)

    async def wait(self, clock: Any) -> None:
        if self.rng.random() < self.slow / 8:
            await ClockCycles(clock, self.rng.choice((1, 3, 20, 60)))

    def check(self, address: int, length: int) -> None:
        low, high = self.bad
        if address < high and address + length > low or address + length > len(self.data):
            raise _Fault(f"{address:#x}")

    def stall(self, fraction: float) -> None:
        """Every channel waits in about that fraction of its cycles; some beats and responses come late."""
        self.slow = fraction
        for channel in (
            self.read_if.ar_channel,
            self.read_if.r_channel,
            self.write_if.aw_channel,
            self.write_if.w_channel,
            self.write_if.b_channel,
        ):
            channel.set_pause_generator(pauses(self.rng, fraction) if fraction else None)
            if not fraction:
                channel.pause = False
