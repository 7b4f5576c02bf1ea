"""The vector unit on memory ports: VECTOR instructions of random programs, against golden.units.vector."""

import cocotb
import numpy as np

from golden.machine import Machine
from golden.units import vector
from hw.isa import BY_OP, VECTOR_FLAGS, VECTOR_FLAGS2, Op, decode, unpack
from hw.ports import command_layout
from sw.random_programs import random_program
from tb.bench import Bench, MemoryPorts
from tb.designs import CONFIG

VECTOR = BY_OP[Op.VECTOR]


def instructions(seed: int) -> tuple[np.ndarray, list[tuple[dict[str, int], frozenset[str]]]]:
    """SRAM as a random program leaves it; its VECTOR instructions in order: operands, names given."""
    program = random_program(CONFIG, np.random.default_rng(seed), 50)
    machine = Machine(CONFIG, program.dram.copy(), trace=True)
    machine.run(0, len(program.image), program.args)
    assert machine.events is not None
    words = program.image.tolist()
    found = [
        (dict(e.operands), frozenset(decode(words, e.pc).operands))
        for e in machine.events
        if e.thread == "vector"
    ]
    return machine.sram, found


def payload(operands: dict[str, int], present: frozenset[str], sigs: tuple[int, int, int], pc: int) -> int:
    values = operands | {"mask": sum(1 << VECTOR.index(name) for name in present), "pc": pc}
    values |= dict(zip(("sig_a", "sig_b", "sig_c"), sigs))
    return sum(
        (values[name] & (1 << field.width) - 1) << field.offset for name, field in command_layout(VECTOR)
    )


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2, 3], stall=[0.0, 0.4])
async def test_random(dut, seed, stall):
    bench = Bench(dut, seed)
    sram, program = instructions(seed)
    assert len(program) > 5
    memory = MemoryPorts(
        bench,
        bytearray(sram.tobytes()),
        CONFIG.word_bytes,
        ("vector_a", "vector_b", "vector_d"),
        ("vector_out",),
        stall,
    )
    commands, signals = bench.source("vector_command", stall), bench.sink("vector_signal", stall)
    sigs = [(1 + i % 31, 32 + i % 16, 48 + i % 16 if i % 2 else 0) for i in range(len(program))]
    commands.push(payload(*p, s, pc) for pc, (p, s) in enumerate(zip(program, sigs)))
    await bench.start()
    early, late = [s[0] for s in sigs], [x for s in sigs for x in s[1:] if x]
    await bench.until(lambda: len(signals.items) >= len(early + late), "signals", 60_000)
    await bench.until(lambda: not int(dut.vector_busy.value), "busy", 100)
    assert not int(dut.vector_error.value) & 1  # valid
    assert [s for s in signals.items if s < 32] == early and [s for s in signals.items if s >= 32] == late
    for operands, present in program:
        f = unpack(VECTOR_FLAGS, operands["flags"]) | unpack(VECTOR_FLAGS2, operands["flags2"])
        vector(CONFIG, sram, f, operands, present)
    wrong = np.flatnonzero(np.frombuffer(memory.memory, np.uint8) != sram)
    assert not len(wrong), f"seed {seed}: {len(wrong)} bytes differ, first at {wrong[0]:#x}"
