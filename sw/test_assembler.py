"""sw/assembler.py: encodings against literal words, allocators, errors."""
import numpy as np
import pytest

from hw.config import TINY
from hw.isa import MATMUL_FLAGS, VECTOR_FLAGS, VECTOR_FLAGS2, Op, decode, disassemble, unpack
from sw.assembler import Program, R, Sram


def code(p, words=None):
    return [int(w) for w in p.image()[5:-1]]


def test_image_literal_words():
    """Two threads, laid out by hand from the tables of hw/isa.py."""
    p = Program(TINY)
    p.load.load(src=0x1000, dst=R(2) + -4, len=64, sig_b=3)
    with p.vector.loop(R(1) + 2):
        p.vector.wait(5, 7)
    assert [int(w) for w in p.image()] == [
        5, 0, 0, 11, 0,
        0x10 | 3 << 12, 0b111, 0x1000, 2 << 28 | 0xFFFFFFC, 64, 0x01,
        0x06 | 1 << 6 | 4 << 16, 2, 0x02 | 5 << 6 | 7 << 16, 0x07, 0x01]


def test_sequencer_words():
    p = Program(TINY)
    t = p.store
    t.li(R(3), 1.5)
    t.arg(R(4), 6)
    t.lds(R(5), R(4) + 8)
    t.sub(R(6), R(5), R(4) + -1)
    t.signal(9, R(2))
    t.mov(R(7), R(6))
    assert code(p) == [0x04 | 3 << 6, 0x3FC00000, 0x09 | 4 << 6 | 6 << 10, 0x08 | 5 << 6, 4 << 28 | 8,
                       0x05 | 6 << 6 | 5 << 10 | 4 << 14 | 1 << 18, 0xFFFFFFFF, 0x03 | 9 << 6 | 2 << 12,
                       0x05 | 7 << 6 | 6 << 14, 0]


def _only(p):
    return decode([int(w) for w in p.image()], 5)


def test_matmul_flags():
    p = Program(TINY)
    p.matmul.matmul(n=3, k=2, stream_fmt="fp4", data=64, hi=R(1), step=1, max_out=0x400, rows=1)
    d = _only(p)
    flags = unpack(MATMUL_FLAGS, d.operands["flags"])
    assert {k for k, v in flags.items() if v} == {"stream_fmt", "first", "last", "mask", "max", "max_first",
                                                  "step", "rows"}
    assert flags["stream_fmt"] == 2 and flags["rows"] == 1
    assert set(d.operands) == {"flags", "n", "k", "data", "hi", "max_out"}


@pytest.mark.parametrize("named,coded", [
    (dict(x1="b", x2="-s1", x3="t3", x4="d", func="rsqrt", out_mode="bf16", red_op="sum_t3"),
     dict(x1=2, x2=3, neg2=1, x3=4, x4=2, func=3, out_mode=2, red_op=2)),
    (dict(x1="a", x2="d", x3="s2", x4="b", func="exp2", out_mode="int8", red_op="argmax", block=8),
     dict(x1=1, x2=2, x3=3, x4=1, func=1, out_mode=3, red_op=4, block=2))])
def test_vector_names_and_codes(named, coded):
    """Names and codes give the same words, and those say what the table says."""
    def flags(kwargs):
        p = Program(TINY)
        p.vector.vector(n0=4, a=0, a_type="bf16", b=8, b_type="e8m0", d=16, d_type="broadcast_f32", out=512,
                        red=1024,
                        qs=2048, c1=1.0, c2=2.0, **kwargs)
        d = _only(p)
        assert d.operands["c1"] == 0x3F800000
        return unpack(VECTOR_FLAGS, d.operands["flags"]), unpack(VECTOR_FLAGS2, d.operands["flags2"])
    first, second = flags(named)
    assert (first, second) == flags(coded)
    assert (first["a_type"], first["b_type"], first["d_type"]) == (1, 4, 2)
    assert {k: first[k] for k in ("x1", "x2", "x3", "x4", "func")} == {k: coded[k] for k in ("x1", "x2", "x3",
                                                                                             "x4", "func")}
    assert (second["out_mode"], second["red_op"], second["block"]) == (coded["out_mode"], coded["red_op"],
                                                                       coded.get("block", 0))


@pytest.mark.parametrize("text,write", [
    ("thread load", lambda p: p.load.matmul(n=1)),
    ("no operand 'stride'", lambda p: p.load.load(src=0, dst=0, len=1, stride=3)),
    ("x1 = 'b' without", lambda p: p.vector.vector(n0=1, a=0, x1="b", out=0)),
    ("x3 = 's2' without", lambda p: p.vector.vector(n0=1, a=0, x3=3, out=0)),
    ("x2 = 'c'", lambda p: p.vector.vector(n0=1, a=0, x2="c", out=0)),
    ("lo needs s4", lambda p: p.vector.vector(n0=1, a=0, lo=True, out=0)),
    ("red_op and red", lambda p: p.vector.vector(n0=1, a=0, red_op="sum")),
    ("out_mode and out", lambda p: p.vector.vector(n0=1, a=0, out_mode="f32")),
    ("needs qs", lambda p: p.vector.vector(n0=1, a=0, out_mode="int8", out=0)),
    ("rows = 3", lambda p: p.matmul.matmul(n=1, rows=3)),
    ("psum_depth", lambda p: p.matmul.matmul(n=65)),
    ("put the base in a register", lambda p: p.load.load(src=1 << 27, dst=0, len=1)),
    ("semaphore 0", lambda p: p.load.wait(0)),
    ("R\\(0\\) .. R\\(15\\)", lambda p: p.load.li(R(1) + 4, 0)),
    ("count = 0", lambda p: p.load.signal(1, 0)),
])
def test_errors(text, write):
    with pytest.raises(ValueError, match=text):
        write(Program(TINY))


def test_limits():
    p = Program(TINY)
    with pytest.raises(ValueError, match="4 nested loops"):
        with p.load.loop(1), p.load.loop(1), p.load.loop(1), p.load.loop(1), p.load.loop(1):
            pass
    p = Program(TINY.replace(imem_words=256))
    for _ in range(126):
        p.store.li(R(1), 0)
    with pytest.raises(ValueError, match="store 252"):
        p.image()
    p = Program(TINY)
    assert [p.semaphore(str(i)) for i in range(63)] == list(range(1, 64)) and p.semaphore("4") == 5
    with pytest.raises(ValueError, match="63 semaphores"):
        p.semaphore("more")


def test_registers():
    t = Program(TINY).load
    with t.registers(15) as regs:
        assert sorted(r.reg for r in regs) == list(range(1, 16))
        with pytest.raises(ValueError, match="15 registers"):
            t.register()
    assert t.register() == R(1)


def test_labels_follow_the_code():
    p = Program(TINY)
    p.load.li(R(1), 0)
    with p.vector.label("norm"):
        p.vector.li(R(1), 0)
        with p.vector.label("head 0"):
            p.vector.vector(n0=1, a=0, out=0)
    assert p.labels == {8: "norm", 10: "norm / head 0"}
    assert decode([int(w) for w in p.image()], 10).ins.op == Op.VECTOR
    assert any("vector" in line for line in disassemble(p.image()))


def test_sram_allocator():
    s = Sram(TINY)
    a, b = s.alloc("a", 100), s.alloc("b", 32)
    assert (a, b) == (0, 128)
    s.free("a")
    assert s.alloc("c", 128) == 0 and s.alloc("d", 1, align=4) == 160 and s.alloc("e", 8) == 192
    with pytest.raises(ValueError, match="65536 bytes for 'big'.*c 128, b 32"):
        s.alloc("big", 65536)
    with pytest.raises(ValueError, match="exists"):
        s.alloc("b", 1)
    rng = np.random.default_rng(0)
    for i in range(200):
        if i > 20 and rng.integers(2):
            s.free(str(rng.choice(list(s.regions))))
        s.alloc(f"r{i}", int(rng.integers(1, 300)), align=int(rng.choice([4, 32])))
        spans = sorted(s.regions.values())
        assert all(x + n <= y for (x, n), (y, _) in zip(spans, spans[1:]))
