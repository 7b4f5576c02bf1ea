"""sw/random_programs.py: programs are valid, repeatable, free of races, and read nothing uninitialised."""
import numpy as np
import pytest

from golden.machine import Machine
from hw.config import BASE, TINY
from sw.random_programs import random_program

CONFIGS = {"tiny": TINY, "base": BASE, "small": TINY.replace(columns=4, sram_bytes=32768),
           "wide": BASE.replace(columns=16)}


def run(config, seed, fill, schedule=None, steps=40):
    """DRAM and counters after the program, on SRAM and partial sums that hold `fill` at the start."""
    program = random_program(config, np.random.default_rng(seed), steps)
    m = Machine(config, program.dram)
    m.sram[:] = fill
    m.state.psum[:] = fill
    m.state.maxima[:] = fill
    m.run(0, len(program.image), program.args,
          schedule=None if schedule is None else np.random.default_rng(schedule))
    return m.dram.tobytes(), m.counters


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(6))
def test_same_result_under_every_schedule_and_power_up(name, seed):
    config = CONFIGS[name]
    expected, counters = run(config, seed, 0)
    assert all(counters[u] for u in ("load", "store", "matmul", "vector"))
    for schedule in range(3):
        assert run(config, seed, 0xA5, schedule)[0] == expected


def test_coverage():
    """Forty programs use every format, mode, function, reduction and kind of signal."""
    from hw.isa import ENTRY_WORDS, MATMUL_FLAGS, VECTOR_FLAGS, VECTOR_FLAGS2, decode, unpack
    seen = set()
    for seed in range(40):
        words = [int(w) for w in random_program(TINY, np.random.default_rng(seed)).image]
        pc = ENTRY_WORDS
        while pc < len(words):
            d = decode(words, pc)
            seen.add(d.ins.name)
            if d.ins.unit is not None:
                seen.update((d.ins.name, k) for k, v in d.fields.items() if v)
                seen.update((d.ins.name, o) for o in d.operands)
                for operand, table in (("flags", MATMUL_FLAGS), ("flags", VECTOR_FLAGS),
                                       ("flags2", VECTOR_FLAGS2)):
                    if operand in d.operands and (table is MATMUL_FLAGS) == (d.ins.name == "MATMUL"):
                        seen.update(unpack(table, d.operands[operand]).items())
            pc += d.size
    wanted = {"HALT", "WAIT", "LI", "ALU", "LOOP", "END", "LDS", "ARG"}
    wanted |= {("stream_fmt", i) for i in range(3)} | {("stat_fmt", i) for i in range(3)}
    wanted |= {(k, i) for k in ("transpose", "first", "last", "mask", "max", "step", "neg1", "neg2", "lo",
                                "hi", "where",
                                "zfill", "overlap", "pack") for i in (0, 1)}
    wanted |= {(k, i) for k in ("a_type", "b_type", "d_type", "red_op", "x3") for i in range(5)}
    wanted |= {(k, i) for k in ("x1", "x2", "x4", "func", "out_mode") for i in range(4)}
    wanted |= {("block", i) for i in range(3)}
    wanted |= {(u, s) for u in ("MATMUL", "VECTOR", "LOAD", "STORE")
               for s in ("sig_a", "sig_b")} - {("LOAD", "sig_a")}
    wanted |= {("VECTOR", s) for s in ("s0", "s1", "s2", "s4", "s5", "red", "qs", "sig_c")}
    assert not wanted - seen


def test_repeatable():
    a, b = (random_program(BASE, np.random.default_rng(5)) for _ in range(2))
    assert a.dram.tobytes() == b.dram.tobytes() and a.args == b.args
