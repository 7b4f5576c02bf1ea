"""What goes wrong on the Verilated tile: every error code, abort, reset in the middle of a run, bad doorbells.

After each of them the next program must run correctly, without a reset.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from golden.machine import Machine, MachineError
from hw.config import TINY
from hw.isa import LOAD, MATMUL, MATMUL_FLAGS, SEND, STORE, VECTOR, VECTOR_FLAGS, VECTOR_FLAGS2, Error, Op, R
from hw.isa import encode_seq, encode_unit, pack
from sim.fastsim import SimTimeout
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


@pytest.fixture(autouse=True)
def calm():
    """Memory and registers as a test expects them, whatever a failed one left behind."""
    tile = device()
    tile.sim.timing(40)
    tile.sim.stall(0.0)
    tile.sim.clear_errors()
    if status(tile)["busy"] or tile.sim.get("irq"):
        tile.sim.reset(16)
    tile.write("WATCHDOG", WATCHDOG)
    yield


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
    for register, value in (
        ("DRAM_BASE", 0),
        ("DRAM_SIZE", 0xFFFFFFFF),
        ("WATCHDOG", WATCHDOG * 10),
        ("TILE_ID", 0),
    ):
        tile.write(register, value)
    tile.attach(program.dram)
    run = tile.run(0, len(program.image), program.args, max_cycles=1_000_000)
    assert np.array_equal(tile.dram[: len(want)], want)
    assert run.counters["MACS"] == macs and tile.read("ERR_CODE") == 0
    assert status(tile) == {"busy": 0, "done": 1, "error": 0, "aborted": 0, "loaded": 1}
    tile.write("WATCHDOG", WATCHDOG)


def status(tile: RtlDevice) -> dict[str, int]:
    word = tile.read("STATUS")
    return {name: word >> k & 1 for k, name in enumerate(("busy", "done", "error", "aborted", "loaded"))}


def put(tile: RtlDevice, words: "list[int] | np.ndarray", at: int = AT) -> int:
    """Program words into DRAM; their number."""
    image = np.asarray(words, np.uint32)
    tile.dram[at : at + image.nbytes] = image.view(np.uint8)
    return len(image)


def expect(
    tile: RtlDevice,
    words: "list[int] | np.ndarray",
    code: Error,
    pc: int | None,
    value: int | None,
    at: int = AT,
) -> TileError:
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
    operands = {
        "n": 8,
        "k": 2,
        "data": 0,
        "data_pass": 256,
        "scale": 1024,
        "scale_pass": 8,
        "stat": 2048,
        "stat_scale": 4096,
        "stat_pass": 64,
        "stat_row": 32,
        "out": 8192,
        "max_out": 16384,
    }
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
    return encode_unit(
        Op.VECTOR, {"flags": pack(VECTOR_FLAGS, **flags), "flags2": pack(VECTOR_FLAGS2, **flags2), **operands}
    )


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


# fmt: off
cases(LOAD, opcode_0=([0], Error.ILLEGAL_OPCODE, 0), opcode_63=([0xABCD3F], Error.ILLEGAL_OPCODE, 0xABCD3F),
    halt_undefined=([0x41], OPERAND, 0x41),
    li_undefined=([SEQ(Op.LI, rd=2)[0] | 1 << 31, 5], OPERAND, SEQ(Op.LI, rd=2)[0] | 1 << 31),
    load_undefined=([1 << 24 | Op.LOAD, 0], OPERAND, 1 << 24 | Op.LOAD),
    load_mask=([Op.LOAD, 1 << 9], OPERAND, 1 << 9), matmul_in_load=(mm(), Error.ILLEGAL_OPCODE, Op.MATMUL),
    wait_0=(SEQ(Op.WAIT, sem=3), OPERAND, SEQ(Op.WAIT, sem=3)[0]),
    signal_65536=([*SEQ(Op.LI, 65535, rd=2), *SEQ(Op.SIGNAL, sem=3, reg=2, count=1)], OPERAND, SEQ(Op.SIGNAL, sem=3, reg=2, count=1)[0]),
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
    """A beat of the program that fails; threads that started already are stopped, the program is forgotten."""
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


# ------------------------------------------------------------ network


def flit(data: bytes = b"", head: bool = False, last: bool = False) -> int:
    return int.from_bytes(data.ljust(32, b"\0"), "little") | last << 256 | head << 257


def head(
    kind: int = 0,
    dst: int = 0,
    sem: int = 0,
    count: int = 0,
    addr: int = 0,
    length: int = 0,
    last: bool = False,
) -> int:
    """The head flit of a packet; the layout of docs/noc.md."""
    fields = ((dst, 2), (7, 2), (kind, 1), (sem, 1), (count, 2), (addr, 4), (length, 4))
    data = b"".join(v.to_bytes(n, "little") for v, n in fields)
    return flit(data, True, last)


# fmt: off
PACKETS = {"stray_data": ([flit(b"x"), flit(last=True)], None),
    "wrong_tile": ([head(dst=9, length=32), flit(last=True)], 0),
    "kind": ([head(kind=3, addr=64, last=True)], 64),
    "semaphore": ([head(kind=1, sem=64, count=1, last=True)], 64),
    "align": ([head(addr=8, length=32), flit(last=True)], 8),
    "length": ([head(addr=32, length=33), flit(), flit(last=True)], 32),
    "range": ([head(addr=SRAM - 32, length=64), flit(), flit(last=True)], SRAM - 32),
    "empty": ([head(addr=96, last=True)], 96),
    "early_last": ([head(addr=32, length=96), flit(), flit(last=True)], 32),
    "late_last": ([head(addr=32, length=32), flit(), flit(), flit(last=True)], 32),
    "signal_with_data": ([head(kind=1, sem=5, count=1), flit(last=True)], 5),
    "head_in_data": ([head(addr=64, length=64), head(kind=1, last=True)], 64)}
# fmt: on


@pytest.mark.parametrize("running", (True, False), ids=("running", "idle"))
@pytest.mark.parametrize("name", PACKETS)
def test_noc_protocol(name: str, running: bool) -> None:
    """A broken packet stops the program, or is reported by an idle tile; the next packet is served."""
    tile = device()
    flits, value = PACKETS[name]
    if running:
        tile.write("WATCHDOG", 0)
        tile.write("PROG_ADDR", AT)
        tile.write("PROG_WORDS", put(tile, image(LOAD, *SEQ(Op.WAIT, sem=1, count=1))))
        tile.write("CTRL", 1)
        tile.sim.step(500)
        assert status(tile)["busy"]
    tile.sim.noc_push(flits)
    tile.sim.run_until_irq(1000)
    assert tile.read("IRQ_STATUS") == 2 and (tile.read("ERR_CODE"), tile.read("ERR_PC")) == (
        Error.NOC_PROTOCOL,
        0,
    )
    if value is not None:
        assert tile.read("ERR_VALUE") == value
    tile.write("IRQ_STATUS", 2)
    assert status(tile) | {"loaded": 0} == {"busy": 0, "done": 0, "error": 1, "aborted": 0, "loaded": 0}
    # The next packet: data and a signal for a program that stores them.
    tile.write("WATCHDOG", WATCHDOG)
    tile.write("PROG_ADDR", AT)
    data = bytes(np.random.default_rng(3).integers(0, 256, 64, np.uint8))
    tile.write("PROG_WORDS", put(tile, image(STORE, *SEQ(Op.WAIT, sem=6, count=3), *store(src=0x800))))
    tile.write("CTRL", 1)
    tile.sim.step(40)
    tile.sim.noc_push(
        [head(addr=0x800, length=64, sem=6, count=3), flit(data[:32]), flit(data[32:], last=True)]
    )
    tile.sim.run_until_irq(3000)
    assert tile.read("IRQ_STATUS") == 1, [hex(tile.read(f"ERR_{x}")) for x in ("CODE", "PC", "VALUE")]
    tile.write("IRQ_STATUS", 1)
    assert tile.dram[0x170000:0x170040].tobytes() == data
    check_good_run(tile)


# ------------------------------------------------------------ abort, reset, doorbell


def begin(tile: RtlDevice, seed: int, cycles: int) -> None:
    """Start a good program and stop looking after some cycles."""
    program = good(seed).program
    tile.attach(program.dram)
    tile.write("PROG_ADDR", 0)
    tile.write("PROG_WORDS", len(program.image))
    for i, a in enumerate(program.args):
        tile.write(f"ARG{i}", a)
    tile.write("CTRL", 1)
    tile.sim.step(cycles)


def abort(tile: RtlDevice) -> int:
    """Abort what runs, if it runs; which IRQ_STATUS bits that gave."""
    tile.write("CTRL", 2)
    tile.sim.run_until_irq(10_000)
    events = tile.read("IRQ_STATUS")
    tile.write("IRQ_STATUS", events)
    for _ in range(100):
        if not status(tile)["busy"]:
            return events
    raise AssertionError("busy after the interrupt")


@pytest.mark.parametrize("part", range(3))
def test_abort(part: int) -> None:
    """At random cycles, from the program fetch to the last write."""
    tile = device()
    rng = np.random.default_rng(part)
    for seed in range(12):
        tile.sim.timing(int(rng.integers(1, 150)))
        begin(tile, seed, int(rng.integers(0, 4000)))
        if (events := abort(tile)) == 4:
            assert (tile.read("ERR_CODE"), tile.read("UNITS")) == (0, 0)
            assert status(tile) | {"loaded": 0} == {
                "busy": 0,
                "done": 0,
                "error": 0,
                "aborted": 1,
                "loaded": 0,
            }
        else:
            assert events == 1  # it was complete
        tile.sim.timing(40)
        check_good_run(tile)


def test_abort_at_once() -> None:
    """Abort right behind a doorbell that waits for the clearing after the run before: no run."""
    tile = device()
    for gap in range(0, 100, 7):
        begin(tile, gap % 12, 0)
        tile.sim.run_until_irq(100_000)
        tile.write("IRQ_STATUS", 1)
        tile.write("CTRL", 1)
        tile.sim.step(gap)
        assert abort(tile) == 4 and status(tile)["aborted"]
        check_good_run(tile)


@pytest.mark.parametrize("part", range(3))
def test_reset(part: int) -> None:
    """In the middle of a run, with bursts on the bus."""
    tile = device()
    rng = np.random.default_rng(10 + part)
    for seed in range(12):
        tile.sim.timing(int(rng.integers(1, 150)))
        tile.sim.stall(float(rng.choice([0, 0.5])))
        begin(tile, seed, int(rng.integers(0, 4000)))
        tile.sim.reset(16)
        assert not tile.sim.get("irq") and tile.read("STATUS") & 0xFF == 0 and tile.read("PROG_WORDS") == 0
        tile.sim.timing(40)
        tile.sim.stall(0.0)
        check_good_run(tile)


def test_doorbell_while_busy() -> None:
    """Ignored: the run goes on, ends once, and nothing runs after it."""
    tile = device()
    rng = np.random.default_rng(4)
    for seed in range(6):
        begin(tile, seed, int(rng.integers(0, 1500)))
        for _ in range(5):
            tile.write("CTRL", 1)
        tile.sim.run_until_irq(100_000)
        assert tile.read("IRQ_STATUS") == 1
        tile.write("IRQ_STATUS", 1)
        want = good(seed).want
        assert np.array_equal(tile.dram[: len(want)], want)
        tile.sim.step(3000)
        assert not tile.sim.get("irq") and not status(tile)["busy"]


def test_doorbell_at_once() -> None:
    """Rung in the cycle of the interrupt, while the units are cleared: the run comes."""
    tile = device()
    for gap in range(0, 120, 3):
        begin(tile, gap % 12, 0)
        tile.sim.run_until_irq(100_000)
        tile.sim.step(gap)
        tile.write("IRQ_STATUS", 1)
        check_good_run(tile)


def test_interrupt_mask() -> None:
    """IRQ_ENABLE hides events, IRQ_STATUS still has them."""
    tile = device()
    tile.write("IRQ_ENABLE", 2)
    begin(tile, 1, 30_000)
    assert not tile.sim.get("irq") and tile.read("IRQ_STATUS") == 1
    tile.write("IRQ_ENABLE", 7)
    tile.sim.step(2)
    assert tile.sim.get("irq")
    tile.write("IRQ_STATUS", 7)
    check_good_run(tile)


# ------------------------------------------------------------ anything at all


@pytest.mark.parametrize("seed", range(40))
def test_corrupted_program(seed: int) -> None:
    """Random bits of a program are wrong: it ends or can be aborted, and touches only its window."""
    tile = device()
    rng = np.random.default_rng(1000 + seed)
    program = good(seed % 12).program
    words = program.image.copy()
    for at in rng.integers(5, len(words), int(rng.integers(1, 4))):
        words[at] ^= 1 << int(rng.integers(32))
    tile.attach(program.dram)
    put(tile, words, 0)
    guard = len(program.dram) + 4096
    tile.dram[guard - 4096 :] = 0x77
    tile.write("DRAM_SIZE", guard - 4096)
    try:
        tile.run(0, len(words), program.args, max_cycles=60_000)
    except TileError as error:
        assert error.code != Error.NONE
    except SimTimeout:  # a loop without end
        assert abort(tile) == 4
    assert (tile.dram[guard - 4096 :] == 0x77).all()
    check_good_run(tile)
