"""What goes wrong on the Verilated tile: every error code, abort, reset in the middle of a run, doorbells at the wrong time.

After each of them the next program must run correctly, without a reset.
"""
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from golden.machine import Machine, MachineError
from hw.config import TINY
from hw.isa import LOAD, MATMUL, MATMUL_FLAGS, SEND, STORE, VECTOR, VECTOR_FLAGS, VECTOR_FLAGS2, Error, Op, R
from hw.isa import encode_seq, encode_unit, pack
from sim.tile import RtlDevice, TileError
from sw.assembler import Program
from sw.random_programs import RandomProgram, random_program

DRAM_BYTES = 2 << 20
SRAM = TINY.sram_bytes
LANE = TINY.lane_bytes
WATCHDOG = 2000
AT = 0x180000
"""DRAM address of the programs with errors; the good ones are below 0x140000."""
PC = 7
"""Word index of the instruction that fails: 5 entry words and an LI come before."""


@cache
def device() -> RtlDevice:
    """One tile for all tests: that is what shows that it recovers."""
    return RtlDevice(TINY, dram_bytes=DRAM_BYTES, random_init=True, seed=5, watchdog=WATCHDOG)


class Good(NamedTuple):
    program: RandomProgram
    want: np.ndarray
    macs: int


@cache
def good(seed: int) -> Good:
    """A program that uses every unit, and the DRAM that it leaves."""
    program = random_program(TINY, np.random.default_rng(seed), 14)
    machine = Machine(TINY, program.dram.copy())
    machine.run(0, len(program.image), program.args)
    return Good(program, machine.dram, machine.counters["macs"])


runs = 0


def check_good_run(tile: RtlDevice, seed: int | None = None) -> None:
    """The tile is ready, and a program (another one each time) runs as ever."""
    global runs
    runs += 1
    program, want, macs = good(runs % 12 if seed is None else seed)
    tile.sim.clear_errors()
    for register, value in (("DRAM_BASE", 0), ("DRAM_SIZE", 0xFFFFFFFF), ("WATCHDOG", WATCHDOG * 10), ("TILE_ID", 0)):
        tile.write(register, value)
    tile.attach(program.dram)
    run = tile.run(0, len(program.image), program.args, max_cycles=1_000_000)
    assert np.array_equal(tile.dram[:len(want)], want)
    assert run.counters["MACS"] == macs and tile.read("ERR_CODE") == 0
    assert status(tile) == {"busy": 0, "done": 1, "error": 0, "aborted": 0, "loaded": 1}
    tile.write("WATCHDOG", WATCHDOG)


def status(tile: RtlDevice) -> dict[str, int]:
    word = tile.read("STATUS")
    return {name: word >> k & 1 for k, name in enumerate(("busy", "done", "error", "aborted", "loaded"))}


def put(tile: RtlDevice, words: "list[int] | np.ndarray", at: int = AT) -> int:
    """Program words into DRAM; their number."""
    image = np.asarray(words, np.uint32)
    tile.dram[at:at + image.nbytes] = image.view(np.uint8)
    return len(image)


def expect(tile: RtlDevice, words: "list[int] | np.ndarray", code: Error, pc: int | None, value: int | None, at: int = AT) -> TileError:
    """Running the words raises the error, sets the interrupt and the status; then everything works."""
    count = put(tile, words, at)
    with pytest.raises(TileError) as info:
        tile.run(at, count, max_cycles=300_000)
    error = info.value
    assert error.code == code, error
    assert pc is None or error.pc == pc, error
    assert value is None or error.value == value & 0xFFFFFFFF, error
    tile.sim.step(4)
    assert not tile.sim.get("irq")
    seen = status(tile)
    assert (seen["busy"], seen["done"], seen["error"], seen["aborted"]) == (0, 0, 1, 0)
    assert tile.read("UNITS") == 0
    check_good_run(tile)
    return error


def image(thread: int, *words: int) -> list[int]:
    """A program of one thread: an LI, then the words, then HALT."""
    entries = [0] * 5
    entries[thread] = 5
    return [*entries, *encode_seq(Op.LI, 77, rd=1), *words, *encode_seq(Op.HALT)]


def mm(**changes: int) -> list[int]:
    """A MATMUL that is legal without the changes (operands or flag fields; None: operand absent)."""
    flags = {"first": 1, "last": 1, "max": 1, "rows": 2}
    operands = {"n": 8, "k": 2, "data": 0, "data_pass": 256, "scale": 1024, "scale_pass": 8, "stat": 2048, "stat_scale": 4096,
                "stat_pass": 64, "stat_row": 32, "out": 8192, "max_out": 16384}
    for name, value in changes.items():
        (flags if name in {f.name for f in MATMUL_FLAGS} else operands)[name] = value
    return encode_unit(Op.MATMUL, {"flags": pack(MATMUL_FLAGS, **flags), **operands})


def vec(**changes: int) -> list[int]:
    """A VECTOR that is legal without the changes."""
    flags, flags2 = {"x1": 2, "x2": 2}, {"out_mode": 1}
    operands = {"n0": 9, "a": 0, "b": 512, "d": 1024, "out": 2048}
    for name, value in changes.items():
        for table, names in ((flags, VECTOR_FLAGS), (flags2, VECTOR_FLAGS2)):
            if name in {f.name for f in names}:
                table[name] = value
                break
        else:
            operands[name] = value
    return encode_unit(Op.VECTOR, {"flags": pack(VECTOR_FLAGS, **flags), "flags2": pack(VECTOR_FLAGS2, **flags2), **operands})


def word_of(words: list[int], name: str) -> int:
    """Flags words are the first operands."""
    return words[{"flags": 2, "flags2": 3}[name]]


def load(**operands: int) -> list[int]:
    return encode_unit(Op.LOAD, {"src": 0x1000, "dst": 0, "len": 64} | operands)


def store(**operands: int) -> list[int]:
    return encode_unit(Op.STORE, {"src": 0, "dst": 0x170000, "len": 64} | operands)


def send(**operands: int) -> list[int]:
    return encode_unit(Op.SEND, {"tile": 1, "src": 0, "dst": 0, "len": 64, "sem": 1} | operands)


SEQ = encode_seq
END, WIDE = SRAM, 1 << 20
OPERAND, RANGE, ALIGN = Error.ILLEGAL_OPERAND, Error.SRAM_RANGE, Error.ALIGNMENT


def flags_case(words: list[int], name: str = "flags") -> tuple:
    """ILLEGAL_OPERAND with the flags word."""
    return words, OPERAND, word_of(words, name)


CASES: dict[str, tuple[int, list[int], Error, int]] = {}


def cases(thread: int, **found: tuple) -> None:
    CASES.update({name: (thread, *case) for name, case in found.items()})


cases(LOAD, opcode_0=([0], Error.ILLEGAL_OPCODE, 0), opcode_63=([0xABCD3F], Error.ILLEGAL_OPCODE, 0xABCD3F),
      halt_undefined=([0x41], OPERAND, 0x41), li_undefined=([SEQ(Op.LI, rd=2)[0] | 1 << 31, 5], OPERAND, SEQ(Op.LI, rd=2)[0] | 1 << 31),
      load_undefined=([1 << 24 | Op.LOAD, 0], OPERAND, 1 << 24 | Op.LOAD), load_mask=([Op.LOAD, 1 << 9], OPERAND, 1 << 9),
      matmul_in_load=(mm(), Error.ILLEGAL_OPCODE, Op.MATMUL), wait_0=(SEQ(Op.WAIT, sem=3), OPERAND, SEQ(Op.WAIT, sem=3)[0]),
      signal_65536=([*SEQ(Op.LI, 65535, rd=2), *SEQ(Op.SIGNAL, sem=3, reg=2, count=1)], OPERAND, SEQ(Op.SIGNAL, sem=3, reg=2, count=1)[0]),
      alu_10=(SEQ(Op.ALU, 1, rd=1, func=10), OPERAND, SEQ(Op.ALU, rd=1, func=10)[0]),
      arg_8=(SEQ(Op.ARG, rd=1, index=8), OPERAND, SEQ(Op.ARG, rd=1, index=8)[0]),
      lds_range=(SEQ(Op.LDS, END, rd=1), RANGE, END), lds_align=(SEQ(Op.LDS, 6, rd=1), ALIGN, 6),
      load_range=(load(dst=END - 63), RANGE, END - 63), load_high=(load(dst=-64), RANGE, -64),
      load_run=(load(n1=3, src1=64, dst1=END // 2), RANGE, END),
      load_rep=(load(dst=64, n2=3, dst2=-64), RANGE, -64), end_outside_loop=(SEQ(Op.END), Error.LOOP_DEPTH, Op.END),
      loop_5=(SEQ(Op.LOOP, 2, skip=9) * 5, Error.LOOP_DEPTH, SEQ(Op.LOOP, skip=9)[0]))
cases(STORE, store_range=(store(src=END - 63), RANGE, END - 63), store_long=(store(len=END + 1), RANGE, 0),
      store_run=(store(n1=5, dst1=64, src1=END // 4), RANGE, END), store_mask=([Op.STORE, 1 << 31], OPERAND, 1 << 31))
cases(MATMUL, rows_0=flags_case(mm(rows=0)), rows_3=flags_case(mm(rows=3)), stream_fmt_3=flags_case(mm(stream_fmt=3)),
      stat_fmt_3=flags_case(mm(stat_fmt=3)), transpose_fp6=flags_case(mm(transpose=1, stream_fmt=1)),
      transpose_wide=flags_case(mm(transpose=1, offset=25)), n_65=(mm(n=65), OPERAND, 65), n_negative=(mm(n=-1), OPERAND, -1),
      psum=(mm(psum=57), OPERAND, 8), mm_data=(mm(data=END), RANGE, END), mm_data_pass=(mm(data_pass=END - 128), RANGE, END),
      mm_scale=(mm(scale=END - 3), RANGE, END), mm_stat=(mm(stat=END), RANGE, END),
      mm_stat_row=(mm(stat=END - 32), RANGE, END), mm_stat_scale=(mm(stat_scale=END - 1), RANGE, END),
      mm_out=(mm(out=END - 4 * LANE), RANGE, END), mm_max_out=(mm(max_out=END), RANGE, END),
      mm_transposed=(mm(transpose=1, data=END - 32), RANGE, END),
      mm_data_align=(mm(data=16), ALIGN, 16), mm_stat_align=(mm(stat=2064), ALIGN, 2064),
      mm_stat_row_align=(mm(stat_row=33), ALIGN, 2081), mm_stat_fp4_align=(mm(stat_fmt=2, stat=2056), ALIGN, 2056),
      mm_out_align=(mm(out=8196), ALIGN, 8196), mm_max_align=(mm(max_out=16388), ALIGN, 16388))
cases(VECTOR, a_type_5=flags_case(vec(a_type=5)), b_type_7=flags_case(vec(b_type=7)), d_type_6=flags_case(vec(d_type=6)),
      x3_5=flags_case(vec(x3=5)), red_op_5=flags_case(vec(red_op=5), "flags2"), block_3=flags_case(vec(block=3), "flags2"),
      vec_rows_3=flags_case(vec(rows=3), "flags2"), lane0_2=flags_case(vec(lane0=2), "flags2"),
      lane0_rows=flags_case(vec(lane0=1, rows=2), "flags2"), pack_lane=flags_case(vec(pack=1, lane0=2), "flags2"),
      v_a=(vec(a=END - 4 * LANE), RANGE, END), v_b=(vec(b=END - LANE), RANGE, END), v_d=(vec(d=END), RANGE, END),
      v_a_step=(vec(a0=-LANE), RANGE, -LANE), v_out=(vec(out=END - 8 * LANE), RANGE, END), v_red=(vec(red_op=1, red=END), RANGE, END),
      v_argmax=(vec(red_op=4, red=END - LANE), RANGE, END), v_s0=(vec(x1=3, s0=END), RANGE, END), v_s1=(vec(x2=3, s1=END), RANGE, END),
      v_s2=(vec(x3=3, s2=END), RANGE, END), v_s4=(vec(lo=1, s4=END), RANGE, END), v_s5=(vec(hi=1, s5=END), RANGE, END),
      v_quant=(vec(out_mode=3, n0=40, out=END - 64, qs=0), RANGE, END), v_qs=(vec(out_mode=3, qs=END, n0=1), RANGE, END),
      v_qs_cross=(vec(out_mode=3, qs=END - 1, n0=1), ALIGN, END - 1),
      v_a_align=(vec(a=4), ALIGN, 4), v_b_align=(vec(b_type=1, b=518), ALIGN, 518), v_d_align=(vec(d_type=2, d=1026), ALIGN, 1026),
      v_a_step_align=(vec(a0=12), ALIGN, 12), v_out_align=(vec(out=2052), ALIGN, 2052), v_pack_align=(vec(pack=1, out=2050), ALIGN, 2050),
      v_red_align=(vec(red_op=3, red=2052), ALIGN, 2052), v_s0_align=(vec(x1=3, s0=4), ALIGN, 4),
      v_quant_align=(vec(out_mode=3, out=2064, qs=0), ALIGN, 2064), v_qs_align=(vec(out_mode=3, qs=31), ALIGN, 31))
cases(SEND, send_tile=(send(tile=65536), OPERAND, 65536), send_sem=(send(sem=64), OPERAND, 64), send_src=(send(src=END - 32), RANGE, END - 32),
      send_align=(send(src=16), ALIGN, 16), send_dst_align=(send(dst=4), ALIGN, 4), send_len_align=(send(len=40), ALIGN, 40))


@pytest.mark.parametrize("name", CASES)
def test_program_error(name: str) -> None:
    """Code, word index and value are those of the model and of the case."""
    thread, words, code, value = CASES[name]
    program = image(thread, *words)
    pc = PC + {"signal_65536": 2, "loop_5": 8}.get(name, 0)
    if thread != SEND:  # the model does not know the network
        machine = Machine(TINY, np.zeros(DRAM_BYTES, np.uint8))
        machine.dram[:4 * len(program)] = np.array(program, np.uint32).view(np.uint8)
        with pytest.raises(MachineError) as info:
            machine.run(0, len(program))
        assert (info.value.code, info.value.pc, info.value.value) == (code, pc, value & 0xFFFFFFFF), "the model"
    expect(device(), program, code, pc, value)
