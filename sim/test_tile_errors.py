"""Every error code on the Verilated tile, with the word index and value that the documents promise.

After each the next program must run correctly, without a reset.
"""

import numpy as np
import pytest

from golden.machine import Machine, MachineError
from hw.config import TINY
from hw.isa import LOAD, MATMUL, SEND, STORE, VECTOR, Error, Op, R, encode_seq, encode_unit
from sim.fastsim import SimTimeout
from sim.faulty import (
    AT,
    DRAM_BYTES,
    LANE,
    PC,
    SRAM,
    WATCHDOG,
    abort,
    check_good_run,
    device,
    expect,
    good,
    image,
    load,
    mm,
    put,
    send,
    status,
    store,
    vec,
)
from sw.device import TileError
from sw.assembler import Program

SEQ = encode_seq
END = SRAM
OPERAND, RANGE, ALIGN = Error.ILLEGAL_OPERAND, Error.SRAM_RANGE, Error.ALIGNMENT


def flags_case(words: list[int], name: str = "flags") -> tuple:
    """ILLEGAL_OPERAND with the flags word."""
    return words, OPERAND, words[2 + (name == "flags2")]


CASES: dict[str, tuple[int, list[int], Error, int]] = {}


def cases(thread: int, **found: tuple) -> None:
    """Cases of a thread: words of the instruction, code, value."""
    CASES.update({name: (thread, *case) for name, case in found.items()})


# fmt: off
cases(LOAD, opcode_0=([0], Error.ILLEGAL_OPCODE, 0), opcode_63=([0xABCD3F], Error.ILLEGAL_OPCODE, 0xABCD3F),
    halt_undefined=([0x41], OPERAND, 0x41),
    li_undefined=([SEQ(Op.LI, rd=2)[0] | 1 << 31, 5], OPERAND, SEQ(Op.LI, rd=2)[0] | 1 << 31),
    load_undefined=([1 << 24 | Op.LOAD, 0], OPERAND, 1 << 24 | Op.LOAD),
    load_mask=([Op.LOAD, 1 << 9], OPERAND, 1 << 9), matmul_in_load=(mm(), Error.ILLEGAL_OPCODE, Op.MATMUL),
    wait_0=(SEQ(Op.WAIT, sem=3), OPERAND, SEQ(Op.WAIT, sem=3)[0]),
    signal_65536=([*SEQ(Op.LI, 65535, rd=2), *SEQ(Op.SIGNAL, sem=3, reg=2, count=1)], OPERAND,
        SEQ(Op.SIGNAL, sem=3, reg=2, count=1)[0]),
    alu_10=(SEQ(Op.ALU, 1, rd=1, func=10), OPERAND, SEQ(Op.ALU, rd=1, func=10)[0]),
    arg_8=(SEQ(Op.ARG, rd=1, index=8), OPERAND, SEQ(Op.ARG, rd=1, index=8)[0]),
    lds_range=(SEQ(Op.LDS, END, rd=1), RANGE, END), lds_align=(SEQ(Op.LDS, 6, rd=1), ALIGN, 6),
    load_range=(load(dst=END - 63), RANGE, END - 63), load_high=(load(dst=-64), RANGE, -64),
    load_run=(load(n1=3, src1=64, dst1=END // 2), RANGE, END),
    load_rep=(load(dst=64, n2=3, dst2=-64), RANGE, -64),
    end_outside_loop=(SEQ(Op.END), Error.LOOP_DEPTH, Op.END),
    loop_5=(SEQ(Op.LOOP, 2, skip=9) * 5, Error.LOOP_DEPTH, SEQ(Op.LOOP, skip=9)[0]))
cases(STORE, store_range=(store(src=END - 63), RANGE, END - 63), store_long=(store(len=END + 1), RANGE, 0),
    store_run=(store(n1=5, dst1=64, src1=END // 4), RANGE, END),
    store_mask=([Op.STORE, 1 << 31], OPERAND, 1 << 31))
cases(MATMUL, rows_0=flags_case(mm(rows=0)), rows_3=flags_case(mm(rows=3)),
    stream_fmt_3=flags_case(mm(stream_fmt=3)), stat_fmt_3=flags_case(mm(stat_fmt=3)),
    transpose_fp6=flags_case(mm(transpose=1, stream_fmt=1)),
    transpose_wide=flags_case(mm(transpose=1, offset=25)), n_65=(mm(n=65), OPERAND, 65),
    n_negative=(mm(n=-1), OPERAND, -1), psum=(mm(psum=57), OPERAND, 8), mm_data=(mm(data=END), RANGE, END),
    mm_data_pass=(mm(data_pass=END - 128), RANGE, END), mm_scale=(mm(scale=END - 3), RANGE, END),
    mm_stat=(mm(stat=END), RANGE, END), mm_stat_row=(mm(stat=END - 32), RANGE, END),
    mm_stat_scale=(mm(stat_scale=END - 1), RANGE, END), mm_out=(mm(out=END - 4 * LANE), RANGE, END),
    mm_max_out=(mm(max_out=END), RANGE, END), mm_transposed=(mm(transpose=1, data=END - 32), RANGE, END),
    mm_data_align=(mm(data=16), ALIGN, 16), mm_stat_align=(mm(stat=2064), ALIGN, 2064),
    mm_stat_row_align=(mm(stat_row=33), ALIGN, 2081),
    mm_stat_fp4_align=(mm(stat_fmt=2, stat=2056), ALIGN, 2056), mm_out_align=(mm(out=8196), ALIGN, 8196),
    mm_max_align=(mm(max_out=16388), ALIGN, 16388))
cases(VECTOR, a_type_5=flags_case(vec(a_type=5)), b_type_7=flags_case(vec(b_type=7)),
    d_type_6=flags_case(vec(d_type=6)), x3_5=flags_case(vec(x3=5)),
    red_op_5=flags_case(vec(red_op=5), "flags2"), block_3=flags_case(vec(block=3), "flags2"),
    vec_rows_3=flags_case(vec(rows=3), "flags2"), lane0_2=flags_case(vec(lane0=2), "flags2"),
    lane0_rows=flags_case(vec(lane0=1, rows=2), "flags2"),
    pack_lane=flags_case(vec(pack=1, lane0=2), "flags2"), v_a=(vec(a=END - 4 * LANE), RANGE, END),
    v_b=(vec(b=END - LANE), RANGE, END), v_d=(vec(d=END), RANGE, END),
    v_a_step=(vec(a0=-LANE), RANGE, -LANE), v_out=(vec(out=END - 8 * LANE), RANGE, END),
    v_red=(vec(red_op=1, red=END), RANGE, END), v_argmax=(vec(red_op=4, red=END - LANE), RANGE, END),
    v_s0=(vec(x1=3, s0=END), RANGE, END), v_s1=(vec(x2=3, s1=END), RANGE, END),
    v_s2=(vec(x3=3, s2=END), RANGE, END), v_s4=(vec(lo=1, s4=END), RANGE, END),
    v_s5=(vec(hi=1, s5=END), RANGE, END), v_quant=(vec(out_mode=3, n0=40, out=END - 64, qs=0), RANGE, END),
    v_qs=(vec(out_mode=3, qs=END, n0=1), RANGE, END),
    v_qs_cross=(vec(out_mode=3, qs=END - 1, n0=1), ALIGN, END - 1), v_a_align=(vec(a=4), ALIGN, 4),
    v_b_align=(vec(b_type=1, b=518), ALIGN, 518), v_d_align=(vec(d_type=2, d=1026), ALIGN, 1026),
    v_a_step_align=(vec(a0=12), ALIGN, 12), v_out_align=(vec(out=2052), ALIGN, 2052),
    v_pack_align=(vec(pack=1, out=2050), ALIGN, 2050), v_red_align=(vec(red_op=3, red=2052), ALIGN, 2052),
    v_s0_align=(vec(x1=3, s0=4), ALIGN, 4), v_quant_align=(vec(out_mode=3, out=2064, qs=0), ALIGN, 2064),
    v_qs_align=(vec(out_mode=3, qs=31), ALIGN, 31))
cases(SEND, send_tile=(send(tile=65536), OPERAND, 65536), send_sem=(send(sem=64), OPERAND, 64),
    send_src=(send(src=END - 32), RANGE, END - 32), send_align=(send(src=16), ALIGN, 16),
    send_dst_align=(send(dst=4), ALIGN, 4), send_len_align=(send(len=40), ALIGN, 40))
# fmt: on


@pytest.mark.parametrize("name", CASES)
def test_program_error(name: str) -> None:
    """Code, word index and value are those of the model and of the case."""
    thread, words, code, value = CASES[name]
    program = image(thread, *words)
    pc = PC + {"signal_65536": 2, "loop_5": 8}.get(name, 0)
    if thread != SEND:  # the model does not know the network
        machine = Machine(TINY, np.zeros(DRAM_BYTES, np.uint8))
        machine.dram[: 4 * len(program)] = np.array(program, np.uint32).view(np.uint8)
        with pytest.raises(MachineError) as info:
            machine.run(0, len(program))
        assert (info.value.code, info.value.pc, info.value.value) == (code, pc, value & 0xFFFFFFFF), (
            "the model"
        )
    expect(device(), program, code, pc, value)


# ------------------------------------------------------------ program memory


def test_pc_range() -> None:
    """Past the end, into the middle of nowhere, in the middle of an instruction, longer than the memory."""
    tile = device()
    no_halt = image(LOAD)[:-1]
    expect(tile, no_halt, Error.PC_RANGE, 7, 7)
    expect(tile, [0, 0, 900, 0, 0, 1], Error.PC_RANGE, 900, 900)
    expect(tile, image(VECTOR, *SEQ(Op.LOOP, 0, skip=5000)), Error.PC_RANGE, PC + 5000, PC + 5000)
    for words in (load(), mm(), SEQ(Op.LI, 3, rd=1)):  # cut off
        thread = MATMUL if words[0] & 63 == Op.MATMUL else LOAD
        for keep in range(1, len(words)):
            program = image(thread, *words[:keep])[:-1]
            expect(tile, program, Error.PC_RANGE, PC, len(program))
    tile.write("PROG_WORDS", TINY.imem_words + 1)
    expect(tile, np.zeros(TINY.imem_words + 1, np.uint32), Error.PC_RANGE, 0, TINY.imem_words + 1)


def test_longest_program() -> None:
    """imem_words words: HALT is the last one; then the same program again without loading."""
    tile = device()
    words = np.full(TINY.imem_words, Op.ARG | 1 << 6, np.uint32)
    words[:5], words[-1] = (0, 5, 0, 0, 0), Op.HALT
    for count in (put(tile, words), 0):
        run = tile.run(AT, count)
        assert run.counters["WORDS"] >= len(words) - 5
    check_good_run(tile)


@pytest.mark.parametrize("response", ("slverr", "decerr"))
@pytest.mark.parametrize("word", (0, 3, 100, 299))
def test_program_fetch_error(response: str, word: int) -> None:
    """A beat of the program that fails; threads that run already stop, the program is forgotten."""
    tile = device()
    tile.sim.inject_error(AT + 4 * word, AT + 4 * word + 4, response, "r")
    words = image(LOAD, *SEQ(Op.LOOP, 1, skip=300), *SEQ(Op.LI, 1, rd=2) * 148, *SEQ(Op.END))
    code = Error.AXI_SLVERR if response == "slverr" else Error.AXI_DECERR
    burst = TINY.axi_bytes * TINY.axi_burst_beats
    first = max(AT, (AT + 4 * word) // burst * burst)
    count = put(tile, words)
    with pytest.raises(TileError) as info:
        tile.run(AT, count)
    assert (info.value.code, info.value.pc, info.value.value) == (code, 0, first)
    assert status(tile)["loaded"] == 0
    tile.sim.clear_errors()
    run = tile.run(AT, 0)  # nothing to run: no thread has an entry
    assert run.counters["READ_BEATS"] == 0 and run.counters["WORDS"] == 0
    check_good_run(tile)


def test_program_outside_window() -> None:
    tile = device()
    tile.write("DRAM_BASE", AT + 4)
    expect(tile, image(LOAD), Error.DRAM_RANGE, 0, AT)
    tile.write("DRAM_SIZE", AT + 8)
    expect(tile, image(LOAD, *load()), Error.DRAM_RANGE, 0, AT)


# ------------------------------------------------------------ DRAM


@pytest.mark.parametrize(
    "op,base,size,address,length,runs_done",
    [
        (LOAD, 0, AT + 4096, AT + 4033, 64, 0),
        (LOAD, AT, 4096, AT - 1, 1, 0),
        (STORE, 0, AT + 4096, AT + 4096 - 80, 40, 2),
        (STORE, AT, 1 << 20, AT - 300, 301, 0),
        (STORE, AT, 0xFFFFFFFF, 0xFFFFFFF0, 17, 0),
        (LOAD, 0, AT + 0x2000, AT + 0x1800, 512, 4),
    ],
)
def test_dram_window(op: int, base: int, size: int, address: int, length: int, runs_done: int) -> None:
    """The first run outside is refused before any of it is sent; the runs before it are complete."""
    tile = device()
    near, far = ("dst", "src") if op == LOAD else ("src", "dst")
    operands = {near: 0, far: address, "len": length, "n1": 10, far + "1": length, near + "1": length}
    tile.dram[AT:] = 0xEE
    tile.write("DRAM_BASE", base)
    tile.write("DRAM_SIZE", size)
    words = image(
        op,
        *(load if op == LOAD else store)(**operands)
        if address < 1 << 27
        else [*SEQ(Op.LI, address, rd=2), *(load if op == LOAD else store)(**(operands | {far: R(2)}))],
    )
    before = tile.dram.copy()
    count = put(tile, words)
    before[AT : AT + 4 * count] = tile.dram[AT : AT + 4 * count]
    pc = PC if address < 1 << 27 else PC + 2
    with pytest.raises(TileError) as info:
        tile.run(AT, count)
    error = info.value
    assert (error.code, error.pc, error.value) == (Error.DRAM_RANGE, pc, address + runs_done * length)
    if op == STORE:
        assert tile.sim.stats()["w_bytes"] == runs_done * length
        before[address : address + runs_done * length] = tile.dram[address : address + runs_done * length]
    assert np.array_equal(before, tile.dram)
    check_good_run(tile)


@pytest.mark.parametrize("response", ("slverr", "decerr"))
@pytest.mark.parametrize("on", "rw")
@pytest.mark.parametrize("beat", (0, 1, 7, 33))
def test_bus_error(response: str, on: str, beat: int) -> None:
    """A bad beat in a transfer of several bursts: the value is the first byte of its burst."""
    tile = device()
    base = 0x160008
    burst = TINY.axi_bytes * TINY.axi_burst_beats
    bad = base + beat * TINY.axi_bytes
    tile.sim.inject_error(bad, bad + 1, response, on)
    words = load(src=base, len=300) if on == "r" else store(dst=base, len=300)
    code = Error.AXI_SLVERR if response == "slverr" else Error.AXI_DECERR
    expect(tile, image(LOAD if on == "r" else STORE, *words), code, PC, max(base, bad // burst * burst))


@pytest.mark.parametrize("op", (LOAD, STORE))
def test_beyond_memory(op: int) -> None:
    """No memory there: DECERR of the memory, the default window allows everything."""
    words = load(src=DRAM_BYTES) if op == LOAD else store(dst=DRAM_BYTES)
    expect(device(), image(op, *words), Error.AXI_DECERR, PC, DRAM_BYTES)


@pytest.mark.parametrize("response", ("slverr", "decerr"))
@pytest.mark.parametrize("on", "rw")
def test_random_bus_errors(response: str, on: str) -> None:
    """Errors anywhere in the data of a working program under stalls: never a hang, always the right code."""
    tile = device()
    code = Error.AXI_SLVERR if response == "slverr" else Error.AXI_DECERR
    rng = np.random.default_rng(len(response) + ord(on))
    for seed in range(8):
        program, want, _ = good(seed)
        touched = np.flatnonzero(want != program.dram)
        at = int(rng.choice(touched)) if on == "w" else int(rng.integers(4 * len(program.image), 0x14000))
        tile.sim.inject_error(at, at + int(rng.integers(1, 200)), response, on)
        tile.sim.timing(int(rng.integers(1, 100)))
        tile.sim.stall(float(rng.choice([0, 0.5])))
        tile.attach(program.dram)
        try:
            tile.run(0, len(program.image), program.args, max_cycles=300_000)
            assert on == "r", "the bytes are written"
            assert np.array_equal(tile.dram[: len(want)], want)
        except TileError as error:
            assert error.code == code and error.pc >= 5
        tile.sim.timing(40)
        tile.sim.stall(0.0)
        check_good_run(tile)


# ------------------------------------------------------------ semaphores, watchdog


@pytest.mark.parametrize("thread", range(5))
def test_watchdog(thread: int) -> None:
    """A semaphore that nobody signals: pc of the WAIT, value: the thread has not halted, no unit is busy."""
    expect(device(), image(thread, *SEQ(Op.WAIT, sem=9, count=2)), Error.WATCHDOG, PC, 1 << thread)


def test_watchdog_deadlock() -> None:
    """All threads wait in a circle; the first one's pc."""
    p = Program(TINY)
    for t in p.threads:
        t.wait(t.number + 1)
        t.signal((t.number + 1) % 5 + 1)
    expect(device(), p.image(), Error.WATCHDOG, 5, 0b11111)


def test_watchdog_bus() -> None:
    """Memory that never answers: the LOAD unit is busy. The run ends when it answers."""
    tile = device()
    count = put(tile, image(LOAD, *SEQ(Op.LOOP, 60, skip=5), *SEQ(Op.LI, 1, rd=1), *SEQ(Op.END), *load()))
    tile.write("PROG_ADDR", AT)
    tile.write("PROG_WORDS", count)
    tile.write("CTRL", 1)
    tile.sim.step(300)
    assert tile.read("STATUS") >> 8 & 7 == 3
    tile.sim.stall({"ar": 1.0})
    with pytest.raises(SimTimeout):
        tile.sim.run_until_irq(WATCHDOG + 2000)  # the bus has not drained
    assert tile.read("STATUS") >> 8 & 7 == 4
    tile.sim.stall(0.0)
    tile.sim.run_until_irq(1000)
    assert (tile.read("ERR_CODE"), tile.read("ERR_VALUE") & 31 << 5) == (Error.WATCHDOG, 1 << 5 + LOAD)
    tile.write("IRQ_STATUS", 7)
    check_good_run(tile)


def test_watchdog_off_and_progress() -> None:
    """0 switches it off; a run that goes on for longer than the limit is no reason to bark."""
    tile = device()
    wait = image(LOAD, *SEQ(Op.LOOP, 3000, skip=5), *SEQ(Op.LI, 1, rd=1), *SEQ(Op.END))
    tile.write("WATCHDOG", 100)
    run = tile.run(AT, put(tile, wait))
    assert run.cycles > 10_000
    tile.write("WATCHDOG", 0)
    count = put(tile, image(LOAD, *SEQ(Op.WAIT, sem=1, count=1)))
    tile.write("PROG_ADDR", AT)
    tile.write("PROG_WORDS", count)
    tile.write("CTRL", 1)
    tile.sim.step(20_000)
    assert not tile.sim.get("irq") and tile.read("STATUS") >> 24 == 1 << LOAD
    abort(tile)
    check_good_run(tile)


@pytest.mark.parametrize("by", ("sequencer", "unit"))
def test_semaphore_overflow(by: str) -> None:
    """65535 is allowed, one more is not; the value is the semaphore. The signaller is not known: pc 0."""
    full = [*SEQ(Op.LI, 65530, rd=2), *SEQ(Op.SIGNAL, sem=41, reg=2, count=5)]
    tile = device()
    tile.run(AT, put(tile, image(LOAD, *full)))
    more = (
        SEQ(Op.SIGNAL, sem=41, count=1) if by == "sequencer" else encode_unit(Op.LOAD, {"len": 0}, sig_b=41)
    )
    expect(tile, image(LOAD, *full, *more), Error.SEM_OVERFLOW, 0, 41)
