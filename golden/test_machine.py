"""golden/machine.py and golden/units.py against the loops of docs/architecture.md, element by element."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import arith, formats
from golden.arith import F32
from golden.machine import Machine, MachineError
from golden.units import MatmulState, Walk, dma, matmul, signed, vector
from golden.units import Dram as DramView
from hw.config import TINY
from hw.isa import BY_OP, MATMUL_FLAGS, VECTOR_FLAGS, VECTOR_FLAGS2, Alu, Error, Op, encode_seq, pack
from sw.assembler import Program, R

SMALL = TINY.replace(name="small", columns=4, psum_depth=32, sram_bytes=4096)
U32 = 0xFFFFFFFF


def build(config, **threads):
    """A program from one function per thread name."""
    p = Program(config)
    for name, write in threads.items():
        write(getattr(p, name))
    return p


def start(p, dram_bytes=8192, **machine):
    """Machine with the program at address 0 of an otherwise zero DRAM."""
    image = p.image()
    dram = np.zeros(dram_bytes, np.uint8)
    dram[:4 * len(image)] = image.view(np.uint8)
    return Machine(p.config, dram, **machine), len(image)


def execute(p, args=(), **machine):
    m, words = start(p, **machine)
    m.run(0, words, args, labels=p.labels)
    return m


def word(m, address, dtype=np.uint32):
    return m.sram[address:address + 4].view(dtype)[0]


# ---------------------------------------------------------------- sequencer

def test_alu():
    """Every function against literal results, with an immediate and with register + immediate."""
    cases = [(Alu.ADD, 0xFFFFFFFF, 2, 1), (Alu.SUB, 1, 2, 0xFFFFFFFF),
             (Alu.MUL, 0x10001, 0x10001, 0x00020001),
             (Alu.SHL, 3, 31, 0x80000000), (Alu.SHR, 0x80000000, 31, 1),
             (Alu.SRA, 0x80000000, 31, 0xFFFFFFFF),
             (Alu.SHL, 1, 33, 2), (Alu.AND, 12, 10, 8), (Alu.OR, 12, 10, 14),
             (Alu.MIN, 0xFFFFFFFF, 1, 0xFFFFFFFF),
             (Alu.MAX, 0xFFFFFFFF, 1, 1)]
    for func, a, b, expected in cases:
        p = Program(SMALL)
        p.load.li(R(1), a)
        p.load.alu(func, R(2), R(1), b)
        p.load.li(R(3), b - 5)
        p.load.alu(func, R(4), R(1), R(3) + 5)
        m = execute(p)
        assert (m._threads[0].regs[2], m._threads[0].regs[4]) == (expected, expected), func


def test_r0_reads_zero_and_args():
    p = Program(SMALL)
    p.store.li(R(0), 7)
    p.store.arg(R(1), 2)
    p.store.add(R(2), R(0), R(1) + -1)
    m = execute(p, args=(1, 2, 0x12345678))
    assert m._threads[1].regs[:3] == [0, 0x12345678, 0x12345677]


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (2, 0), (-1, 5), (1, 1)])
def test_loops(counts):
    p = Program(SMALL)
    t = p.matmul
    t.li(R(5), counts[1] - 1)
    with t.loop(counts[0]):
        t.add(R(1), R(1), 1)
        with t.loop(R(5) + 1):
            t.add(R(2), R(2), 1)
        t.add(R(3), R(3), 1)
    t.add(R(4), R(4), 1)
    regs = execute(p)._threads[2].regs
    outer, inner = max(counts[0], 0), max(counts[1], 0)
    assert regs[1:5] == [outer, outer * inner, outer, 1]


def test_indirect_load():
    """LDS of a table entry selects what the LOAD thread fetches."""
    p = Program(SMALL)
    ready = p.semaphore("ready")
    t = p.load
    t.load(src=4096, dst=64, len=16, sig_b=ready)
    t.wait(ready)
    t.lds(R(1), 68)
    t.load(src=R(1) + 8, dst=R(1) + -4096, len=4)
    m, words = start(p)
    m.dram[4096:4112].view(np.uint32)[:] = (1, 5000, 3, 4)
    m.dram[5008:5012] = (9, 8, 7, 6)
    m.run(0, words)
    assert m.sram[904:908].tolist() == [9, 8, 7, 6]


def test_semaphores_order_units():
    """A pipeline of units gives the same bytes under every schedule; without its semaphores it does not."""
    def program(ordered):
        p = Program(SMALL)
        loaded, done = p.semaphore("loaded"), p.semaphore("done")
        with p.load.loop(4):
            p.load.load(src=R(1) + 4096, dst=R(1), len=16, sig_b=loaded)
            p.load.add(R(1), R(1), 16)
        with p.vector.loop(4):
            if ordered:
                p.vector.wait(loaded)
            p.vector.vector(n0=1, a=R(1), x2="s1", c1=1.0, out=R(1) + 1024, sig_b=done)
            p.vector.add(R(1), R(1), 16)
        p.store.wait(done, 4)
        p.store.store(src=1024, dst=5000, len=64)
        return p

    def results(p):
        seen = set()
        for seed in range(20):
            m, words = start(p)
            m.dram[4096:4160].view(F32)[:] = np.arange(16)
            m.run(0, words, schedule=np.random.default_rng(seed) if seed else None)
            seen.add(m.dram[5000:5064].tobytes())
        return seen

    assert results(program(True)) == {(np.arange(16, dtype=F32) + 1).tobytes()}
    assert len(results(program(False))) > 1


def test_program_stays_loaded_and_sram_survives():
    p = Program(SMALL)
    p.vector.arg(R(1), 0)
    p.vector.vector(n0=1, a=0, x2="s1", c1=1.0, out=0)
    m, words = start(p)
    m.run(0, words)
    m.dram[:] = 0
    m.run(0, 0)
    assert m.sram[:16].view(F32).tolist() == [2.0] * 4
    assert m.counters["elements"] == 1 and m.counters["vector"] == 1


# ---------------------------------------------------------------- errors

def raw(*words, thread=0):
    """Machine with hand-made code for one thread."""
    entries = [0] * 5
    entries[thread] = 5
    image = np.array(entries + list(words), np.uint32)
    dram = np.zeros(4096, np.uint8)
    dram[:4 * len(image)] = image.view(np.uint8)
    return Machine(SMALL, dram), len(image)


HALT = encode_seq(Op.HALT)


@pytest.mark.parametrize("words,thread,code,pc,value", [
    ([0x3F], 0, Error.ILLEGAL_OPCODE, 5, 0x3F),
    ([*HALT[:0], Op.MATMUL, 0], 0, Error.ILLEGAL_OPCODE, 5, Op.MATMUL),
    ([Op.HALT | 1 << 6], 0, Error.ILLEGAL_OPERAND, 5, Op.HALT | 1 << 6),
    ([Op.LOAD, 1 << 9, 0], 0, Error.ILLEGAL_OPERAND, 5, 1 << 9),
    ([Op.ALU | 10 << 18, 0], 0, Error.ILLEGAL_OPERAND, 5, Op.ALU | 10 << 18),
    ([Op.ARG | 8 << 10], 0, Error.ILLEGAL_OPERAND, 5, Op.ARG | 8 << 10),
    ([Op.WAIT | 1 << 6], 0, Error.ILLEGAL_OPERAND, 5, Op.WAIT | 1 << 6),
    (encode_seq(Op.LI, 5, rd=1), 0, Error.PC_RANGE, 7, 7),
    ([Op.LI], 0, Error.PC_RANGE, 5, 6),
    ([Op.LOAD, 3, 0], 0, Error.PC_RANGE, 5, 8),
    (encode_seq(Op.LOOP, 2, skip=2) * 5, 0, Error.LOOP_DEPTH, 13, encode_seq(Op.LOOP, skip=2)[0]),
    ([Op.END], 0, Error.LOOP_DEPTH, 5, Op.END),
    (encode_seq(Op.LDS, 6, rd=1), 0, Error.ALIGNMENT, 5, 6),
    (encode_seq(Op.LDS, 4096, rd=1), 0, Error.SRAM_RANGE, 5, 4096),
    (encode_seq(Op.SIGNAL, sem=3, count=65535) + encode_seq(Op.SIGNAL, sem=3, count=1), 0, Error.SEM_OVERFLOW,
     6, 3),
    (encode_seq(Op.WAIT, sem=3, count=1), 3, Error.WATCHDOG, 5, 1 << 3),
])
def test_sequencer_errors(words, thread, code, pc, value):
    m, n = raw(*words, thread=thread)
    with pytest.raises(MachineError) as caught:
        m.run(0, n)
    assert (caught.value.code, caught.value.pc, caught.value.value) == (code, pc, value)
    assert m.error is caught.value


def _error(write, thread, window=None):
    p = Program(SMALL)
    t = getattr(p, thread)
    t.li(R(7), 1 << 31)
    with t.label("here"):
        write(t)
    m, words = start(p)
    with pytest.raises(MachineError) as caught:
        m.run(0, words, dram_window=window, labels=p.labels)
    assert (caught.value.pc, caught.value.label) == (7, "here")
    return caught.value.code, caught.value.value


@pytest.mark.parametrize("thread,operands,code,value", [
    ("load", dict(src=1024, dst=4090, len=7), Error.SRAM_RANGE, 4090),
    ("load", dict(src=1024, dst=4000, len=32, n1=4, dst1=32), Error.SRAM_RANGE, 4064 + 32),
    ("load", dict(src=2040, dst=0, len=9), Error.DRAM_RANGE, 2040),
    ("load", dict(src=0, dst=0, len=8, n1=3, src1=-4), Error.DRAM_RANGE, (1 << 32) - 4),
    ("store", dict(src=0, dst=2040, len=9), Error.DRAM_RANGE, 2040),
    ("store", dict(src=R(7), dst=2000, len=1), Error.SRAM_RANGE, 1 << 31),
    ("matmul", dict(n=33 - 1, psum=1, stat_row=32), Error.ILLEGAL_OPERAND, 32),
    ("matmul", dict(n=-1), Error.ILLEGAL_OPERAND, U32),
    ("matmul", dict(n=1, data=16, stat_row=32), Error.ALIGNMENT, 16),
    ("matmul", dict(n=1, data=0, stat=48, stat_row=32), Error.ALIGNMENT, 48),
    ("matmul", dict(n=1, data=0, stat_row=32, out=8), Error.ALIGNMENT, 8),
    ("matmul", dict(n=2, data=0, stat_row=32, out=4080), Error.SRAM_RANGE, 4096),
    ("matmul", dict(n=2, data=4064, stat_row=32), Error.SRAM_RANGE, 4096),
    ("matmul", dict(n=3, data=4064, stream_fmt="fp4", stat_row=32), Error.SRAM_RANGE, 4096),
    ("matmul", dict(n=3, k=2, data=0, stat_row=32, scale=4092, scale_pass=2), Error.SRAM_RANGE, 4096),
    ("vector", dict(n0=1, a=4088, out=0), Error.ALIGNMENT, 4088),
    ("vector", dict(n0=2, a=8, out=0), Error.ALIGNMENT, 8),
    ("vector", dict(n0=2, a=4080, out=0), Error.SRAM_RANGE, 4096),
    ("vector", dict(n0=2, a=0, x1="s0", s0=4), Error.ALIGNMENT, 4),
    ("vector", dict(n0=32, a=0, out_mode="int8", out=8, qs=1024), Error.ALIGNMENT, 8),
    ("vector", dict(n0=32, a=0, out_mode="int8", out=0, qs=1054), Error.ALIGNMENT, 1054),
    ("vector", dict(n0=1, a=0, lane0=2, rows=3, out=0), Error.ILLEGAL_OPERAND,
     pack(VECTOR_FLAGS2, out_mode=1, lane0=2, rows=3)),
])
def test_unit_errors(thread, operands, code, value):
    def write(t):
        getattr(t, thread)(**operands)
    assert _error(write, thread, window=(0, 2048)) == (code, value)


def test_program_outside_window_or_memory():
    m, words = start(build(SMALL, load=lambda t: t.li(R(1), 0)))
    for window, code in (((4, 4096), Error.DRAM_RANGE), ((0, 4 * words - 1), Error.DRAM_RANGE)):
        with pytest.raises(MachineError) as caught:
            m.run(0, words, dram_window=window)
        assert (caught.value.code, caught.value.pc, caught.value.value) == (code, 0, 0)
    with pytest.raises(MachineError) as caught:
        m.run(8192, words)
    assert caught.value.code == Error.AXI_DECERR


def test_matmul_flag_errors():
    for flags in (dict(rows=0), dict(rows=5), dict(rows=1, stream_fmt=3), dict(rows=1, stat_fmt=3),
                  dict(rows=1, transpose=1, offset=30), dict(rows=1, transpose=1, stream_fmt=1)):
        with pytest.raises(Exception) as caught:
            run_matmul(np.zeros(4096, np.uint8), MatmulState.of(SMALL), flags, dict(n=3))
        assert (caught.value.code, caught.value.value) == (Error.ILLEGAL_OPERAND, pack(MATMUL_FLAGS, **flags))


def test_runs_before_a_bad_one_are_stored():
    m, _ = raw(*HALT)
    m.sram[:] = 5
    view = DramView(m.dram, 0, (0, 1024))
    o = operands(Op.STORE, src=0, dst=1000, len=8, n1=4, dst1=8)
    with pytest.raises(Exception) as caught:
        dma(m.sram, view, o, True)
    assert caught.value.value == 1024
    assert m.dram[1000:1032].tolist() == [5] * 24 + [0] * 8


# ---------------------------------------------------------------- DMA

def operands(op, **values):
    return {o.name: values.get(o.name, o.default) & U32 for o in BY_OP[op].operands}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_dma(data):
    """Every byte, in order, against three loops; overlapping destinations included."""
    seed = data.draw(st.integers(0, 1 << 30))
    store = data.draw(st.booleans())
    stride = st.integers(-70, 70)
    o = operands(Op.LOAD, src=data.draw(st.integers(800, 1200)), dst=data.draw(st.integers(800, 1200)),
                 len=data.draw(st.integers(0, 40)), n1=data.draw(st.integers(0, 5)),
                 n2=data.draw(st.integers(0, 4)),
                 src1=data.draw(stride), dst1=data.draw(stride), src2=data.draw(stride),
                 dst2=data.draw(stride))
    rng = np.random.default_rng(seed)
    sram, dram = rng.integers(0, 256, 4096, np.uint8), rng.integers(0, 256, 4096, np.uint8)
    source, target = (sram, dram.copy()) if store else (dram, sram.copy())
    for i2 in range(o["n2"]):
        for i1 in range(o["n1"]):
            for i in range(o["len"]):
                s = o["src"] + i1 * signed(o["src1"]) + i2 * signed(o["src2"]) + i
                target[o["dst"] + i1 * signed(o["dst1"]) + i2 * signed(o["dst2"]) + i] = source[s]
    _, moved = dma(sram, DramView(dram), o, store)
    assert (dram if store else sram).tobytes() == target.tobytes()
    assert moved == o["len"] * o["n1"] * o["n2"]


def test_dma_literal():
    """2 x 3 runs of 4 bytes out of a 16-byte pitch, as bytes on paper."""
    m, _ = raw(*HALT)
    m.dram[:] = np.arange(4096) & 255
    dma(m.sram, DramView(m.dram, 4096), operands(Op.LOAD, src=4096 + 1, dst=3, len=4, n1=3, src1=16, dst1=4,
                                                 n2=2,
                                                 src2=64, dst2=12), False)
    assert m.sram[:28].tolist() == [0, 0, 0, 1, 2, 3, 4, 17, 18, 19, 20, 33, 34, 35, 36, 65, 66, 67, 68, 81,
                                    82, 83,
                                    84, 97, 98, 99, 100, 0]


# ---------------------------------------------------------------- MATMUL

def run_matmul(sram, state, flags, values, config=SMALL):
    o = operands(Op.MATMUL, flags=pack(MATMUL_FLAGS, **flags), **values)
    f = {x.name: flags.get(x.name, 0) for x in MATMUL_FLAGS}
    return matmul(config, sram, state, f, o, "scale" in values)


def matmul_loops(config, sram, psum, maxima, f, o, has_scale):
    """The loops of docs/architecture.md, one element at a time."""
    c, g = config.columns, lambda name: signed(o[name])
    size = formats.BLOCK_BYTES[f["stream_fmt"]]
    if f["max_first"]:
        maxima[:] = -np.inf
    for p in range(g("k")):
        for j in range(g("n")):
            base = o["data"] + p * g("data_pass")
            if f["transpose"]:
                block = np.array([sram[base + 32 * t + f["offset"] + j] for t in range(32)]).view(np.int8)
            else:
                block = formats.unpack(sram[base + j * size:base + (j + 1) * size], f["stream_fmt"])
            sw = sram[o["scale"] + p * g("scale_pass") + j] if has_scale else 127
            v = np.zeros(c, F32)
            for r in range(c):
                x, sx = np.zeros(32, np.int8), 127
                if r < f["rows"]:
                    at = o["stat"] + p * g("stat_pass") + r * g("stat_row")
                    x = formats.unpack(sram[at:at + formats.BLOCK_BYTES[f["stat_fmt"]]], f["stat_fmt"])
                    sx = sram[o["stat_scale"] + p * g("stat_scale_pass") + r * g("stat_scale_row")]
                v[r] = formats.block_dot(block, x, sw, sx, f["stream_fmt"], f["stat_fmt"])
                if not (f["first"] and p == 0):
                    v[r] = arith.fadd(psum[o["psum"] + j, r], v[r])
            if not (f["last"] and p == g("k") - 1):
                psum[o["psum"] + j] = v
                continue
            for r in range(c):
                if f["mask"] and not g("lo") + f["step"] * r <= j < g("hi") + f["step"] * r:
                    v[r] = -np.inf
                maxima[r] = arith.fmax(maxima[r], v[r])
            sram[o["out"] + 4 * c * j:][:4 * c].view(F32)[:] = v
    if f["last"] and f["max"]:
        sram[o["max_out"]:][:4 * c].view(F32)[:] = maxima


@pytest.mark.parametrize("seed", range(60))
def test_matmul(seed):
    """Random instructions that share one partial-sum memory, special scales included."""
    rng = np.random.default_rng(seed)
    sram = rng.integers(0, 256, 4096, np.uint8)
    sram[1536:2048] = rng.choice([0, 1, 60, 120, 127, 128, 133, 140, 253, 254, 255] if seed % 3 == 0 else
                                 [120, 125, 127, 130], 512)
    state, ref = MatmulState.of(SMALL), sram.copy()
    psum, maxima = state.psum.copy(), state.maxima.copy()
    for _ in range(4):
        transpose = int(rng.integers(4) == 0)
        flags = dict(stream_fmt=0 if transpose else int(rng.integers(3)), stat_fmt=int(rng.integers(3)),
                     transpose=transpose, first=int(rng.integers(2)), last=int(rng.integers(2)),
                     mask=int(rng.integers(2)), max=int(rng.integers(2)), max_first=int(rng.integers(2)),
                     rows=int(rng.integers(1, 5)), step=int(rng.integers(2)),
                     offset=int(rng.integers(0, 20)) if transpose else 0)
        n, k = int(rng.integers(1, 13)), int(rng.integers(1, 4))
        values = dict(n=n, k=k, data=32 * int(rng.integers(0, 4)), data_pass=32 * int(rng.integers(-0, 4)),
                      stat=1024 + 32 * int(rng.integers(0, 4)), stat_pass=32 * int(rng.integers(-1, 3)),
                      stat_row=int(rng.choice([0, 32, 64])), stat_scale=1536 + int(rng.integers(0, 99)),
                      stat_scale_pass=int(rng.integers(-3, 9)), stat_scale_row=int(rng.integers(-2, 9)),
                      out=2048 + 16 * int(rng.integers(0, 9)), max_out=3072 + 16 * int(rng.integers(0, 9)),
                      lo=int(rng.integers(-3, 9)), hi=int(rng.integers(0, 14)),
                      psum=int(rng.integers(0, 33 - n)))
        if rng.integers(3):
            values |= dict(scale=1800 + int(rng.integers(0, 20)), scale_pass=int(rng.integers(-13, 13)))
        o = operands(Op.MATMUL, **values)
        matmul_loops(SMALL, ref, psum, maxima, flags, o, "scale" in values)
        writes = run_matmul(sram, state, flags, values)
        changed = np.flatnonzero(sram != ref)
        assert not len(changed), (seed, flags, values, changed[:4])
        assert len(writes) == flags["last"] * (1 + flags["max"])
        np.testing.assert_array_equal(state.psum.view(np.uint32), psum.view(np.uint32))
        np.testing.assert_array_equal(state.maxima.view(np.uint32), maxima.view(np.uint32))


def test_overflow_of_both_signs_is_the_canonical_nan():
    """+inf from pass 0 and -inf from pass 1: 64 * 64 * 32 * 2^(127 + 12 - 12)."""
    sram = np.zeros(4096, np.uint8)
    sram[0:96] = 64
    sram[96:128] = 192
    sram[1024:1026] = (254, 254)
    sram[1056:1058] = (139, 139)
    flags = dict(first=1, last=1, rows=1)
    values = dict(n=1, k=2, data=0, data_pass=32, stat=64, stat_pass=32, scale=1024, scale_pass=1,
                  stat_scale=1056, stat_scale_pass=1, out=2048)
    run_matmul(sram, MatmulState.of(SMALL), flags, values)
    assert sram[2048:2064].view(np.uint32).tolist() == [0x7FC00000, 0, 0, 0]


def test_gemm_program():
    """A ragged GEMM over two instructions equals golden.formats.accumulate on the same blocks."""
    rng = np.random.default_rng(1)
    m_rows, kb, n = 4, 5, 21
    x, sx = formats.quantise_int8(rng.standard_normal((m_rows, 32 * kb)).astype(F32))
    w, sw = formats.encode(rng.standard_normal((n, 32 * kb)).astype(F32), formats.FP4)
    weights = np.zeros((kb, -(-n * 16 // 32) * 32), np.uint8)
    weights[:, :n * 16] = formats.pack(w, formats.FP4).transpose(1, 0, 2).reshape(kb, -1)
    p = Program(SMALL)
    common = dict(stream_fmt="fp4", data_pass=weights.shape[1], scale_pass=n, stat_pass=128, stat_row=32,
                  stat_scale_pass=4, n=n)
    p.matmul.matmul(k=2, data=0, scale=2048, stat=2304, stat_scale=3072, last=False, **common)
    p.matmul.matmul(k=3, data=2 * weights.shape[1], scale=2048 + 2 * n, stat=2304 + 256, stat_scale=3080,
                    out=3200,
                    first=False, max_out=3200 + 16 * n, **common)
    m, words = start(p)
    m.sram[:weights.size] = weights.reshape(-1)
    m.sram[2048:2048 + n * kb] = sw.T.reshape(-1)
    m.sram[2304:2304 + 640] = x.transpose(1, 0, 2).reshape(-1).view(np.uint8)
    m.sram[3072:3092] = sx.T.reshape(-1)
    m.run(0, words)
    expected = formats.accumulate(x, sx, w, sw, formats.INT8, formats.FP4)
    assert m.sram[3200:3200 + 16 * n].view(F32).tobytes() == expected.T.tobytes()
    assert m.sram[3200 + 16 * n:][:16].view(F32).tobytes() == expected.max(axis=1).tobytes()
    assert m.counters["blocks"] == n * kb and m.counters["macs"] == n * kb * m_rows * 32


# ---------------------------------------------------------------- VECTOR

def run_vector(sram, values, flags, flags2, config=SMALL):
    o = operands(Op.VECTOR, flags=pack(VECTOR_FLAGS, **flags), flags2=pack(VECTOR_FLAGS2, **flags2), **values)
    f = {x.name: flags.get(x.name, 0) for x in VECTOR_FLAGS} | {x.name: flags2.get(x.name, 0)
                                                                for x in VECTOR_FLAGS2}
    return vector(config, sram, f, o, frozenset(values))


def vector_loops(config, sram, o, present, f):
    """docs/architecture.md, one element of one lane at a time. f: all flag fields."""
    c = config.columns
    sizes = (4 * c, 2 * c, 4, 2, 1)

    def bits(address, size):
        return int.from_bytes(sram[address:address + size].tobytes(), "little")

    def lane_word(name, constant, r):
        return bits(o[name] + 4 * r, 4) if name in present else o[constant]

    def f32(u):
        return np.uint32(u).view(F32)

    def load(kind, address, r):
        if kind == 4:
            s = bits(address, 1)
            return f32(0x7FC00000 if s == 255 else s << 23)
        if kind in (1, 3):
            return arith.canon(f32(bits(address + (2 * r if kind == 1 else 0), 2) << 16))
        return arith.canon(f32(bits(address + (4 * r if kind == 0 else 0), 4)))

    def step(address, prefix, default, i):
        which = "0" if (i + 1) % o["n0"] else "1" if (i + 1) % (o["n0"] * o["n1"]) else "2"
        return address + (signed(o[prefix + which]) if prefix + which in present else default)

    n = o["n0"] * o["n1"] * o["n2"]
    s = {k: [f32(lane_word(k, q, r)) for r in range(c)] for k, q in
         (("s0", "c0"), ("s1", "c1"), ("s2", "c2"), ("s4", "c2"), ("s5", "c3"))}
    s["s3"] = [f32(o["c3"])] * c
    at = {x: o[x] for x in ("a", "b", "d", "out")}
    t3s, t5s, outs = np.zeros((n, c), F32), np.zeros((n, c), F32), []
    for e in range(n):
        outs.append(at["out"])
        for r in range(c):
            a, b, d = (load(f[x + "_type"], at[x], r) if x == "a" or x in present else F32(0) for x in "abd")
            t = a
            if f["x1"]:
                t = arith.fmul(t, (a, b, s["s0"][r])[f["x1"] - 1])
            if f["neg1"]:
                t = arith.fneg(t)
            if f["x2"]:
                y = (b, d, s["s1"][r])[f["x2"] - 1]
                t = arith.fadd(t, arith.fneg(y) if f["neg2"] else y)
            t = arith.fmax(t, s["s4"][r]) if f["lo"] else t
            t = arith.fmin(t, s["s5"][r]) if f["hi"] else t
            t3 = t = (lambda x: x, arith.exp2, arith.recip, arith.rsqrt)[f["func"]](t)
            if f["x3"]:
                t = arith.fmul(t, (b, d, s["s2"][r], t3)[f["x3"] - 1])
            if f["x4"]:
                t = arith.fadd(t, (b, d, s["s3"][r])[f["x4"] - 1])
            if f["where"] and e == int(s["s5"][r].view(np.uint32)):
                t = arith.canon(s["s4"][r])
            t3s[e, r], t5s[e, r] = t3, t
        for x in "abd":
            at[x] = step(at[x], x, sizes[f[x + "_type"]], e)
        size = 4 if f["out_mode"] == 1 else 2
        at["out"] = step(at["out"], "o", size if f["pack"] else size * c, e)
    rows = f["rows"] or c
    for e in range(n if f["out_mode"] in (1, 2) else 0):
        for r in range(f["lane0"], f["lane0"] + (1 if f["pack"] else rows)):
            lane = 0 if f["pack"] else r
            if f["out_mode"] == 1:
                sram[outs[e] + 4 * lane:][:4].view(F32)[:] = t5s[e, r]
            else:
                sram[outs[e] + 2 * lane:][:2].view(np.uint16)[:] = arith.f32_to_bf16(t5s[e, r])
    block = (32, 16, 8)[f["block"]]
    for i in range(-(-n // block) if f["out_mode"] == 3 else 0):
        for r in range(rows):
            x = np.zeros(block, F32)
            x[:len(t5s[i * block:(i + 1) * block])] = t5s[i * block:(i + 1) * block, r]
            ints, scale = formats.quantise_int8(x, block)
            o0, o1, o2 = (signed(o[q]) if q in present else z for q,
                          z in (("o0", 32), ("o1", 32 * c), ("o2", c)))
            where = o["out"] + i * o1 + r * o0
            if f["zfill"]:
                sram[where // 32 * 32:][:32] = 0
            sram[where:where + block] = ints.reshape(-1).view(np.uint8)
            sram[o["qs"] + i * o2 + r] = scale[0]
    for r in range(c if f["red_op"] else 0):
        x = t3s[:, r] if f["red_op"] == 2 else t5s[:, r]
        value, index = -arith.INF, 0
        if f["red_op"] <= 2:
            p = [F32(0)] * 8
            for i, y in enumerate(x):
                p[i % 8] = arith.fadd(p[i % 8], y)
            while len(p) > 1:
                p = [arith.fadd(p[i], p[i + 1]) for i in range(0, len(p), 2)]
            value = p[0]
        else:
            for i, y in enumerate(x):
                if arith.key(y) > arith.key(value):
                    value, index = arith.canon(y), i
        sram[o["red"] + 4 * r:][:4].view(F32)[:] = value
        if f["red_op"] == 4:
            sram[o["red"] + 4 * c + 4 * r:][:4].view(np.uint32)[:] = index


def random_floats(rng, n):
    """Ordinary values with the awkward ones mixed in."""
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-6, 6, n)).astype(F32)
    odd = np.array([0, -0.0, np.inf, -np.inf, np.nan, 2.0**-126, 3e38, -3e38, 1e-40], F32)
    return np.where(rng.integers(0, 12, n) == 0, rng.choice(odd, n), x).astype(F32)


@pytest.mark.parametrize("seed", range(150))
def test_vector(seed):
    rng = np.random.default_rng(seed)

    def pick(*options):
        return int(rng.choice(options))

    sram = np.zeros(4096, np.uint8)
    sram.view(F32)[:] = random_floats(rng, 1024)
    sram[1536:2048] = rng.integers(100, 140, 512)
    sram[2048:2064].view(np.uint32)[:] = rng.integers(0, 20, 4)
    kind = {x: pick(0, 0, 1, 2, 3, 4) for x in "abd"}
    size = (16, 8, 4, 2, 1)
    values = dict(n0=pick(1, 2, 5, 7), n1=pick(1, 2, 3),
                  n2=pick(1, 1, 2)) if seed % 10 else dict(n0=pick(0, 33))
    for x, base in (("a", 0), ("b", 512), ("d", 1024)):
        z = size[kind[x]]
        values[x] = base + 512 * (kind[x] == 4) * pick(0, 1) + z * pick(40, 42, 50) // (z // 8 or 1)
        for i in "012":
            if rng.integers(2):
                values[x + i] = z * (pick(-1, 0, 1, 2) if z < 8 else pick(0, 1, 1))
    flags = dict(a_type=kind["a"], b_type=kind["b"], d_type=kind["d"], x1=pick(0, 1, 2, 3), neg1=pick(0, 1),
                 x2=pick(0, 1, 2, 3), neg2=pick(0, 1), lo=pick(0, 1), hi=pick(0, 1), func=pick(0, 0, 1, 2, 3),
                 x3=pick(0, 1, 2, 3, 4), x4=pick(0, 1, 2, 3), where=pick(0, 0, 1))
    if flags["where"]:
        flags["hi"] = 0
    flags2 = dict(out_mode=pick(0, 1, 2, 3), red_op=pick(0, 1, 2, 3, 4), block=pick(0, 1, 2),
                  zfill=pick(0, 1), rows=pick(0, 1, 3))
    for i, x in enumerate(("s0", "s1", "s2", "s4", "s5")):
        if rng.integers(2):
            values[x] = (2048 if x == "s5" and flags["where"] else 256) + 16 * (i if x != "s5" else 0)
    for x in ("c0", "c1", "c2"):
        values[x] = int(random_floats(rng, 1).view(np.uint32)[0])
    values["c3"] = pick(0, 3, 5) if flags["where"] else int(random_floats(rng, 1).view(np.uint32)[0])
    z = 32 >> flags2["block"]
    if flags2["out_mode"] == 3:
        values |= dict(out=2560 + z * pick(0, 1, 2, 3),
                       qs=3840 + pick(0, 1, 28 if flags2["rows"] in (0, 3) else 31))
        if values["qs"] >= 3868 and flags2["rows"] == 0:
            values["qs"] = 3868
        if rng.integers(2):
            values |= dict(o0=pick(0, 32, 64), o1=z * pick(1, 4), o2=32)
        else:
            values["qs"] &= ~3
    else:
        z = 16 if flags2["out_mode"] == 1 else 8
        flags2 |= dict(lane0=pick(0, 0, 1) if flags2["rows"] else 0, pack=pick(0, 0, 1))
        z = z // 4 if flags2["pack"] else z
        values |= dict(out=2560 + z * pick(0, 1))
        values |= dict(o0=z * pick(0, 1, 2), o1=z * pick(-1, 1, 9),
                       o2=z * pick(0, 1)) if rng.integers(2) else {}
    values["red"] = 3968 + 16 * pick(0, 1)
    f = {x.name: flags.get(x.name, 0) for x in VECTOR_FLAGS} | {x.name: flags2.get(x.name, 0)
                                                                for x in VECTOR_FLAGS2}
    ref, before = sram.copy(), sram.copy()
    vector_loops(SMALL, ref, operands(Op.VECTOR, **values), values, f)
    writes, n = run_vector(sram, values, flags, flags2)
    changed = np.flatnonzero(sram != ref)
    assert not len(changed), (flags, flags2, values, changed[:8])
    for address in np.flatnonzero(sram != before):
        assert any(w.contains(int(address)) for w in writes)


def softmax_program(n):
    """max, exp2 of the difference with its sum, then scale and quantise."""
    p = Program(SMALL)
    v = p.vector
    with v.label("softmax"):
        v.vector(n0=n, a=0, red_op="max", red=2048)
        v.vector(n0=n, a=0, x2="-s1", s1=2048, func="exp2", out=0, red_op="sum", red=2064)
        v.vector(n0=1, a=2064, func="recip", out=2080)
        v.vector(n0=n, a=0, x1="s0", s0=2080, out_mode="int8", out=1024, qs=2112)
    return p


def test_softmax_and_trace():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 4)).astype(F32)
    m, words = start(p := softmax_program(50), trace=True)
    m.sram[:800] = x.view(np.uint8).reshape(-1)
    m.run(0, words, labels=p.labels)
    e = arith.exp2(arith.fsub(x, x.max(axis=0)))
    prob = arith.fmul(e, arith.recip(arith.sum8(e, axis=0)))
    ints, scales = formats.quantise_int8(np.ascontiguousarray(prob.T))
    assert m.sram[1024:1024 + 256].tobytes() == ints.swapaxes(0, 1).tobytes()
    assert m.sram[2112:2120].tobytes() == scales.T.tobytes()
    np.testing.assert_allclose(prob.sum(axis=0), 1, rtol=1e-5)
    assert [e.pc for e in m.events] == [m.writer_of("sram", a).pc for a in (2048, 0, 2080, 1024)]
    v = Program(SMALL)
    v.vector.vector(n0=1, a=0, out=0)
    v.vector.vector(n0=1, a=0, out=0)
    again, words = start(v, trace=True)
    again.run(0, words)
    assert again.writer_of("sram", 3) is again.events[1]
    assert m.writer_of("sram", 2119).label == "softmax" and m.writer_of("sram", 2200) is None


def test_rmsnorm():
    rng = np.random.default_rng(4)
    n = 40
    x, g = rng.standard_normal((n, 4)).astype(F32), rng.standard_normal(n).astype(F32)
    p = Program(SMALL)
    v = p.vector
    v.vector(n0=n, a=0, x1="a", red_op="sum", red=2048)
    v.vector(n0=1, a=2048, x1="s0", c0=1 / n, x2="s1", c1=1e-5, func="rsqrt", out=2064)
    v.vector(n0=n, a=0, x1="s0", s0=2064, x3="b", b=1024, b_type="broadcast_f32", out_mode="bf16", out=3072)
    m, words = start(p)
    m.sram[:16 * n] = x.view(np.uint8).reshape(-1)
    m.sram[1024:1024 + 4 * n] = g.view(np.uint8)
    m.run(0, words)
    y = m.sram[3072:3072 + 8 * n].view(np.uint16).reshape(n, 4)
    r = arith.rsqrt(arith.fadd(arith.fmul(arith.sum8(arith.fmul(x, x), axis=0), F32(1 / n)), F32(1e-5)))
    np.testing.assert_array_equal(y, arith.f32_to_bf16(arith.fmul(arith.fmul(x, r), g[:, None])))
    exact = x / np.sqrt((x.astype(float)**2).mean(axis=0) + 1e-5) * g[:, None]
    np.testing.assert_allclose(arith.bf16_to_f32(y), exact, rtol=2**-8)


# ---------------------------------------------------------------- SEND

def test_send_between_machines():
    p = Program(SMALL)
    go = p.semaphore("go")
    p.send.send(tile=R(0) + 1, src=32, dst=64, len=32, sem=go)
    q = Program(SMALL)
    q.vector.wait(q.semaphore("go"))
    q.vector.vector(n0=2, a=64, x2="s1", c1=1.0, out=64)
    sender, words = start(p)
    receiver, more = start(q, tile=1)
    sender.peers[1] = receiver
    sender.sram[32:64].view(F32)[:] = np.arange(8)
    receiver.start(0, more)
    sender.start(0, words)
    assert not receiver.advance()
    while sender.advance() or receiver.advance():
        pass
    assert sender.done and receiver.done
    assert receiver.sram[64:96].view(F32).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_walk_is_the_address_sequence():
    w = Walk(100, ((2, 50), (3, -4)), 4)
    assert w.addresses().tolist() == [100, 96, 92, 150, 146, 142]
    assert w.disjoint() and not Walk(0, ((2, 3),), 4).disjoint() and not Walk(0, ((2, 4), (2, 4)),
                                                                              4).disjoint()
