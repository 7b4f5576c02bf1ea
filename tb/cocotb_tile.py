"""The tile on cocotbext-axi memory and registers: every byte of DRAM against golden.machine."""

from collections.abc import Iterable, Mapping
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiReadBus, AxiWriteBus

from golden.machine import Machine, Packet
from golden.spec import BlockSpec, random_params
from hw import csr_map
from hw.isa import ENTRY_WORDS, Error
from sw.assembler import Program
from sw.block import BlockImage
from sw.random_programs import random_program
from tb.axi import AxiResp, Memory
from tb.bench import Bench, pauses
from tb.designs import CONFIG

DRAM_BYTES = 1 << 22
RESET = 16


class TileBench(Bench):
    """The tile between a host (AXI4-Lite) and DRAM (AXI4)."""

    def __init__(self, dut: Any, seed: int, stall: float):
        super().__init__(dut, seed)
        self.dram = Memory(
            DRAM_BYTES,
            self.rng,
            AxiReadBus.from_prefix(dut, "m_axi"),
            AxiWriteBus.from_prefix(dut, "m_axi"),
            dut.clk,
            dut.rst,
        )
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.noc_in, self.noc_out = self.source("noc_in", stall), self.sink("noc_out", stall)
        self.stall(stall)

    def stall(self, fraction: float) -> None:
        """On all ten AXI channels."""
        self.dram.stall(fraction)
        w, r = self.host.write_if, self.host.read_if
        for channel in (w.aw_channel, w.w_channel, w.b_channel, r.ar_channel, r.r_channel):
            channel.set_pause_generator(pauses(self.rng, fraction) if fraction else None)

    async def write(self, register: str, value: int) -> None:
        await self.host.write_dword(csr_map.offset(register), value & 0xFFFFFFFF)

    async def read(self, register: str) -> int:
        return await self.host.read_dword(csr_map.offset(register))

    async def ring(self, words: int, args: Iterable[int] = (), address: int = 0) -> None:
        """Doorbell."""
        await self.write("PROG_ADDR", address)
        await self.write("PROG_WORDS", words)
        for k, arg in enumerate(args):
            await self.write(f"ARG{k}", arg)
        await self.write("CTRL", 1)

    async def finish(self, cycles: int = 200_000) -> tuple[int, int, int]:
        """Wait for the interrupt -> (code, pc, value) of the error, zeros when the run ended well."""
        await self.until(lambda: int(self.dut.irq.value), "interrupt", cycles)
        events = await self.read("IRQ_STATUS")
        await self.write("IRQ_STATUS", events)
        assert events in (1, 2), f"events {events:#x}"
        status = await self.read("STATUS")
        assert status & 15 == events << 1, f"status {status:#x}"
        assert not int(self.dut.irq.value)
        return await self.read("ERR_CODE"), await self.read("ERR_PC"), await self.read("ERR_VALUE")

    async def run(
        self,
        dram: np.ndarray,
        words: int,
        args: Iterable[int],
        what: str,
        address: int = 0,
        model: Machine | None = None,
        labels: Mapping[int, str] | None = None,
    ) -> Machine:
        """One program on both sides from the same DRAM; compare all of it and the counters."""
        args = list(args)
        self.dram.data[: len(dram)] = dram.tobytes()
        model = model or Machine(CONFIG, dram.copy())
        model.run(address, words, args, labels=labels)
        await self.ring(words, args, address)
        error = await self.finish()
        assert error == (0, 0, 0), (
            f"{what}: error {Error(error[0]).name} at word {error[1]}, value {error[2]:#x}"
        )
        wrong = np.flatnonzero(np.frombuffer(self.dram.data, np.uint8)[: len(dram)] != model.dram)
        assert not len(wrong), f"{what}: {len(wrong)} bytes differ, first at {wrong[0]:#x}"
        for counter, name in (("BLOCKS", "blocks"), ("MACS", "macs"), ("ELEMENTS", "elements")):
            assert await self.read(f"{counter}_LO") == model.counters[name], f"{what}: counter {counter}"
        return model

    async def random(self, seed: int, steps: int, what: str) -> None:
        program = random_program(CONFIG, np.random.default_rng(seed), steps)
        await self.run(program.dram, len(program.image), program.args, f"{what}, program {seed}")


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2], stall=[0.0, 0.3, 0.7])
async def test_random_programs(dut, seed, stall):
    bench = TileBench(dut, seed, stall)
    await bench.start(RESET)
    for number in range(3):
        await bench.random(100 * seed + number + int(1000 * stall), 15, f"stall {stall}")


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def test_block(dut):
    """Prefill and decode of a small transformer block, as compiled."""
    spec = BlockSpec(name="small", hidden=32, heads=2, kv_heads=1, head_dim=32, ffn=32, max_tokens=32)
    x = np.random.default_rng(3).normal(0, 1, (3, spec.hidden)).astype(np.float32)
    image = BlockImage(CONFIG, spec, random_params(spec, 1), x[:2], x[2:], dram_bytes=DRAM_BYTES)
    assert list(image.phases) == ["prefill", "decode"]
    bench = TileBench(dut, 5, 0.2)
    await bench.start(RESET)
    dram, model = image.dram.data, None
    for phase, (words, args) in image.phases.items():
        model = await bench.run(
            dram, len(words), args, phase, image.program_at[phase], model, image.labels[phase]
        )
        dram = model.dram


def copy_program(length: int) -> tuple[np.ndarray, dict[str, int]]:
    """Moves `length` bytes from 0x8000 to 0x10000: the image, and the word indices of its LOAD and STORE."""
    p = Program(CONFIG)
    ready = p.semaphore("ready")
    p.load.load(src=0x8000, dst=64, len=length, sig_b=ready)
    p.store.wait(ready)
    p.store.store(src=64, dst=0x10000, len=length)
    image = p.image()
    return image, {"load": int(image[0]), "store": int(image[1]) + 1}


def copy_dram(image: np.ndarray, length: int, seed: int) -> np.ndarray:
    dram = np.zeros(0x11000, np.uint8)
    dram[: image.nbytes] = image.view(np.uint8)
    dram[0x8000 : 0x8000 + length] = np.random.default_rng(seed).integers(0, 256, length)
    return dram


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(response=[AxiResp.SLVERR, AxiResp.DECERR], stall=[0.0, 0.4])
async def test_bus_errors(dut, response, stall):
    """On R of data, on B, on R of the program: the documented error, and then the next program is right."""
    bench = TileBench(dut, 11, stall)
    await bench.start(RESET)
    length, burst = 700, CONFIG.axi_burst_beats * CONFIG.axi_bytes
    image, at = copy_program(length)
    dram = copy_dram(image, length, 1)
    code = Error.AXI_SLVERR if response == AxiResp.SLVERR else Error.AXI_DECERR
    assert ENTRY_WORDS == 5
    for where, base, pc in (("load", 0x8000, at["load"]), ("store", 0x10000, at["store"]), ("program", 0, 0)):
        bench.dram.data[: len(dram)] = dram.tobytes()
        position = base + bench.rng.randrange(image.nbytes if where == "program" else length)
        bench.dram.bad, bench.dram.response = (position, position + 1), response
        await bench.ring(len(image))
        assert await bench.finish() == (code, pc, position // burst * burst), where
        bench.dram.bad = (0, 0)
        if where == "program":  # what was loaded is not a program
            assert not await bench.read("STATUS") >> 4 & 1
        await bench.run(dram, len(image), (), f"after an error of {where}")
        await bench.random(40, 6, f"after an error of {where}")


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def test_reset_in_a_run(dut, stall):
    """Reset at any moment of a run, then a run that is right."""
    bench = TileBench(dut, 13, stall)
    await bench.start(RESET)
    for case in range(4):
        program = random_program(CONFIG, np.random.default_rng(50 + case), 12)
        bench.dram.data[: len(program.dram)] = program.dram.tobytes()
        await bench.ring(len(program.image), program.args)
        await ClockCycles(dut.clk, bench.rng.randrange(1, 1500))
        assert not int(dut.irq.value) and await bench.read("STATUS") & 1, "the run must still be going on"
        dut.rst.value = 1
        await ClockCycles(dut.clk, RESET)
        dut.rst.value = 0
        await ClockCycles(dut.clk, 2)
        assert await bench.read("STATUS") & 31 == 0
        await bench.random(60 + case, 6, f"after reset {case}")


def flits(packet: Packet, source: int) -> list[int]:
    """A SEND in docs/noc.md: WRITE packets of up to 16 data flits, the last with the semaphore, count 1."""
    found: list[int] = []
    for first in range(0, len(packet.data), 512):
        part = packet.data[first : first + 512].tobytes()
        final = first + 512 >= len(packet.data)
        fields = (
            (0, packet.tile),
            (2, source),
            (5, packet.sem if final else 0),
            (6, int(final)),
            (8, packet.dst + first),
            (12, len(part)),
        )
        found.append(1 << 257 | sum(value << 8 * byte for byte, value in fields))
        found += [int.from_bytes(part[i : i + 32], "little") for i in range(0, len(part), 32)]
        found[-1] |= 1 << 256
    return found


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def test_noc(dut, stall):
    """A program that sends, and one that waits for packets from outside and stores what they wrote."""
    bench = TileBench(dut, 17, stall)
    await bench.start(RESET)
    own, peer, length = 0x0102, 0x0201, 1120
    await bench.write("TILE_ID", own)
    p = Program(CONFIG)
    ready, arrived = p.semaphore("ready"), p.semaphore("arrived")
    p.load.load(src=0x8000, dst=0, len=length, sig_b=ready)
    p.send.wait(ready)
    p.send.send(tile=peer, src=0, dst=0x400, len=length, sem=9)
    p.send.send(tile=peer, src=64, dst=0, len=64)
    p.store.wait(arrived, 2)
    p.store.store(src=0x2000, dst=0x10000, len=length)
    image = p.image()
    dram = copy_dram(image, length, 2)
    incoming = [
        Packet(own, 0x2000 + first, np.random.default_rng(first).integers(0, 256, size, np.uint8), arrived)
        for first, size in ((0, 512), (512, length - 512))
    ]
    model = Machine(CONFIG, dram.copy(), tile=own)
    model.start(0, len(image))
    while model.advance():
        pass
    assert not model.done, "the program must wait for the packets"
    for packet in incoming:
        model.receive(packet)
    while model.advance():
        pass
    assert model.done
    bench.dram.data[: len(dram)] = dram.tobytes()
    await bench.ring(len(image))
    want = [f for packet in model.sent for f in flits(packet, own)]
    await bench.until(lambda: len(bench.noc_out.items) >= len(want), "flits sent", 20_000)
    assert await bench.read("STATUS") & 1, "the program must wait for the packets"
    bench.noc_in.push(f for packet in incoming for f in flits(packet, peer))
    assert await bench.finish() == (0, 0, 0)
    assert [f"{f:065x}" for f in bench.noc_out.items] == [f"{f:065x}" for f in want]
    wrong = np.flatnonzero(np.frombuffer(bench.dram.data, np.uint8)[: len(dram)] != model.dram)
    assert not len(wrong), f"{len(wrong)} bytes differ, first at {wrong[0]:#x}"
    assert await bench.read("FLITS_OUT_LO") == len(want)
