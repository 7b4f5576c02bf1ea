"""The instruction set: one table gives encoder, decoder, disassembler, hardware layout and docs/isa.md.

Imports no Amaranth. A program is a list of 32-bit little-endian words, position independent of the token
index. Five hardware threads run it, one per unit (LOAD, STORE, MATMUL, VECTOR, SEND), each with its own
program counter, 16 registers (r0 reads 0) and loop stack; they meet only at semaphores.

Program image: words 0..4 are the entry points (word index) of threads 0..4, 0 for a thread that does not run.

Word 0 of every instruction: bits [5:0] opcode; other fields below; undefined bits must be 0.
Unit instructions: word 0 also holds sig_a [11:6], sig_b [17:12], sig_c [23:18] (semaphore numbers, 0 = none);
word 1 is the mask of operands present; then one word per present operand, in ascending index.
A *reg* operand word is a signed 28-bit immediate in [27:0] plus the register named in [31:28] (32-bit
wrap-around sum); a *raw* operand word is the 32-bit value itself.
"""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

THREADS = ("load", "store", "matmul", "vector", "send")
LOAD, STORE, MATMUL, VECTOR, SEND = range(5)
"""Thread (and unit) numbers."""
ENTRY_WORDS = len(THREADS)
LOOP_DEPTH = 4
REGISTERS = 16
ARGS = 8


class Op(IntEnum):
    HALT = 0x01
    WAIT = 0x02
    SIGNAL = 0x03
    LI = 0x04
    ALU = 0x05
    LOOP = 0x06
    END = 0x07
    LDS = 0x08
    ARG = 0x09
    LOAD = 0x10
    STORE = 0x11
    MATMUL = 0x12
    VECTOR = 0x13
    SEND = 0x14


class Alu(IntEnum):
    """rd = R[rs] op (R[rt] + imm), 32 bits; SRA/SHR/SHL use the low 5 bits; MIN, MAX and SRA are signed."""
    ADD = 0
    SUB = 1
    MUL = 2
    SHL = 3
    SHR = 4
    SRA = 5
    AND = 6
    OR = 7
    MIN = 8
    MAX = 9


class Error(IntEnum):
    """Why a tile stopped (CSR ERR_CODE)."""
    NONE = 0
    ILLEGAL_OPCODE = 1
    ILLEGAL_OPERAND = 2
    SRAM_RANGE = 3
    ALIGNMENT = 4
    DRAM_RANGE = 5
    AXI_SLVERR = 6
    AXI_DECERR = 7
    WATCHDOG = 8
    SEM_OVERFLOW = 9
    PC_RANGE = 10
    LOOP_DEPTH = 11
    NOC_PROTOCOL = 12


@dataclass(frozen=True)
class Field:
    """A bit field of word 0 (sequencer instructions) or of a raw flags operand."""
    name: str
    lo: int
    width: int
    doc: str = ""


@dataclass(frozen=True)
class Operand:
    """An operand word. `default` is its value when absent; `fields` splits a raw flags word."""
    name: str
    raw: bool = False
    default: int = 0
    doc: str = ""
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    `words` is 1 or 2 for sequencer instructions (word 1 is `imm`, reg-class only for LDS).
    """
    op: Op
    doc: str
    fields: tuple[Field, ...] = ()
    words: int = 1
    unit: int | None = None
    operands: tuple[Operand, ...] = ()

    @property
    def name(self) -> str:
        return self.op.name

    def index(self, operand: str) -> int:
        for i, o in enumerate(self.operands):
            if o.name == operand:
                return i
        allowed = ", ".join(o.name for o in self.operands)
        raise ValueError(f"{self.name} has no operand {operand!r}: allowed is {allowed}")

    @property
    def raw_mask(self) -> int:
        return sum(1 << i for i, o in enumerate(self.operands) if o.raw)


_RD = Field("rd", 6, 4, "destination register")
_SIGS = (Field("sig_a", 6, 6, "signalled when the instruction has read its operands"),
         Field("sig_b", 12, 6, "signalled when the instruction is complete"),
         Field("sig_c", 18, 6, "signalled when the instruction is complete"))


def _r(name: str, doc: str, default: int = 0) -> Operand:
    return Operand(name, False, default, doc)


_DIMS = (_r("len", "bytes of a run"), _r("n1", "runs", 1), _r("src1", "source bytes from run to run"),
         _r("dst1", "destination bytes from run to run"), _r("n2", "repetitions of the n1 runs", 1),
         _r("src2", "source bytes from repetition to repetition"),
         _r("dst2", "destination bytes from repetition to repetition"))

MATMUL_FLAGS = (
    Field("stream_fmt", 0, 2, "0 MXINT8, 1 MXFP6, 2 MXFP4"), Field("stat_fmt", 2, 2, "as stream_fmt"),
    Field("transpose", 4, 1, "stream columns of 32 x 32 byte tiles (values); scales are then 2^0"),
    Field("first", 5, 1, "start new sums instead of adding to those in the partial-sum memory"),
    Field("last", 6, 1, "write the sums out at the last pass (else keep them)"),
    Field("mask", 7, 1, "write -inf where n < lo + step*r or n >= hi + step*r"),
    Field("max", 8, 1, "keep the running maximum per row and write it to max_out"),
    Field("max_first", 9, 1, "reset the running maximum first"),
    Field("rows", 10, 6, "stationary rows present, 1..C; the others are zero"),
    Field("step", 16, 1, "mask limits move by one per row"),
    Field("offset", 17, 5, "transpose: first byte column streamed"))

VECTOR_FLAGS = (
    Field("a_type", 0, 3, "0 lane f32, 1 lane bf16, 2 broadcast f32, 3 broadcast bf16, 4 broadcast e8m0"),
    Field("b_type", 3, 3, "as a_type"), Field("d_type", 6, 3, "as a_type"),
    Field("x1", 9, 2, "t1 = a * (0: nothing, 1: a, 2: b, 3: s0)"),
    Field("neg1", 11, 1, "negate t1 before the first add"),
    Field("x2", 12, 2, "t2 = t1 + (0: nothing, 1: b, 2: d, 3: s1)"),
    Field("neg2", 14, 1, "negate that addend"),
    Field("lo", 15, 1, "t2 = max(t2, s4)"), Field("hi", 16, 1, "t2 = min(t2, s5)"),
    Field("func", 17, 2, "t3 = 0 t2, 1 exp2, 2 recip, 3 rsqrt"),
    Field("x3", 19, 3, "t4 = t3 * (0: nothing, 1: b, 2: d, 3: s2, 4: t3)"),
    Field("x4", 22, 2, "t5 = t4 + (0: nothing, 1: b, 2: d, 3: s3)"),
    Field("where", 24, 1, "t5 = s4 where the element index equals the integer lane word s5"))
VECTOR_FLAGS2 = (
    Field("out_mode", 0, 2, "0 none, 1 lane f32, 2 lane bf16, 3 quantise to MXINT8"),
    Field("red_op", 2, 3, "0 none, 1 sum of t5, 2 sum of t3, 3 max of t5, 4 argmax of t5"),
    Field("block", 5, 2, "quantised block: 0 32, 1 16, 2 8 elements"),
    Field("zfill", 7, 1, "quantise: write the whole 32-byte word, zero outside the block"),
    Field("overlap", 8, 1, "start while the previous vector instruction is still in flight "
          "(all earlier ones are complete)"),
    Field("lane0", 9, 5, "first lane written (out modes 1 and 2)"),
    Field("rows", 14, 6, "lanes written, 1..C; 0 means C"),
    Field("pack", 20, 1, "out modes 1 and 2: write only lane0's value, at the out address itself "
          "(default step: its size)"))

TABLE: tuple[Instruction, ...] = (
    Instruction(Op.HALT, "End this thread; the tile is done when all threads have halted and all units are "
                "idle."),
    Instruction(Op.WAIT, "Wait until semaphore >= count, then subtract count; count = R[reg] + imm16, "
                "1..65535.",
                (Field("sem", 6, 6), Field("reg", 12, 4), Field("count", 16, 16))),
    Instruction(Op.SIGNAL, "Add count = R[reg] + imm16 to a semaphore.",
                (Field("sem", 6, 6), Field("reg", 12, 4), Field("count", 16, 16))),
    Instruction(Op.LI, "rd = imm.", (_RD,), 2),
    Instruction(Op.ALU, "rd = R[rs] op (R[rt] + imm).",
                (_RD, Field("rs", 10, 4), Field("rt", 14, 4), Field("func", 18, 4)), 2),
    Instruction(Op.LOOP, "Run the body count = R[reg] + imm times (signed; none if <= 0); skip = words from "
                "word 0 of LOOP to the word after its END.", (Field("reg", 6, 4), Field("skip", 16, 16)), 2),
    Instruction(Op.END, "End of the innermost loop body."),
    Instruction(Op.LDS, "rd = 32-bit word of SRAM at byte address R[sel] + imm28 (multiple of 4).",
                (_RD,), 2),
    Instruction(Op.ARG, "rd = host argument register (CSR ARG0..7).", (_RD, Field("index", 10, 4))),
    Instruction(Op.LOAD, "DMA: DRAM to SRAM.", _SIGS, 2, LOAD,
                (_r("src", "DRAM byte address"), _r("dst", "SRAM byte address"), *_DIMS)),
    Instruction(Op.STORE, "DMA: SRAM to DRAM; complete when every write response has arrived.", _SIGS, 2,
                STORE, (_r("src", "SRAM byte address"), _r("dst", "DRAM byte address"), *_DIMS)),
    Instruction(
        Op.MATMUL, "out[n][r] = sum over passes k of stationary[r][k] . stream[k][n].", _SIGS, 2, MATMUL,
        (Operand("flags", True, 0, "", MATMUL_FLAGS), _r("n", "blocks streamed per pass, at most psum_depth"),
         _r("k", "passes (blocks along the contraction)", 1),
         _r("data", "streamed blocks, multiple of 32"), _r("scale", "their scale bytes; absent: all 2^0"),
         _r("data_pass", "bytes from pass to pass, multiple of 32"),
         _r("scale_pass", "bytes from pass to pass"),
         _r("stat", "stationary blocks, multiple of 32 (MXFP4: 16)"), _r("stat_scale", "their scale bytes"),
         _r("stat_pass", "bytes from pass to pass"), _r("stat_scale_pass", "bytes from pass to pass"),
         _r("stat_row", "bytes from row to row"), _r("stat_scale_row", "bytes from row to row", 1),
         _r("out", "lane words written, multiple of 4C"),
         _r("max_out", "lane word of row maxima, multiple of 4C"),
         _r("hi", "mask limit"), _r("lo", "mask limit"), _r("psum", "first partial-sum entry used"))),
    Instruction(
        Op.VECTOR,
        "Stream elements through the lane pipeline: multiply, add, clamp, function, multiply, add.",
        _SIGS, 2, VECTOR,
        (Operand("flags", True, 0, "", VECTOR_FLAGS), Operand("flags2", True, 0, "", VECTOR_FLAGS2),
         _r("n0", "elements of the innermost dimension"), _r("n1", "middle dimension", 1),
         _r("n2", "outer dimension", 1),
         _r("a", "source A"), _r("a0", "A: bytes added after each element; default its size"),
         _r("a1", "A: bytes added instead at the end of dimension 0; default as a0's default"),
         _r("a2", "A: bytes added instead at the end of dimension 1; default as a0's default"),
         _r("b", "source B"), _r("b0", "as a0"), _r("b1", "as a1"), _r("b2", "as a2"),
         _r("d", "source D"), _r("d0", "as a0"), _r("d1", "as a1"), _r("d2", "as a2"),
         _r("out", "destination"), _r("o0", "as a0; quantise: bytes from row to row, default 32"),
         _r("o1", "as a1; quantise: bytes from block to block, default 32 C"),
         _r("o2", "as a2; quantise: scale bytes from block to block, default C"),
         _r("red", "reduction result, lane word (argmax: value, then index)"),
         _r("s0", "lane word S0"), _r("s1", "lane word S1"), _r("s2", "lane word S2"),
         _r("qs", "scale bytes of the quantised blocks, one per row"),
         _r("s4", "lane word S4"), _r("s5", "lane word S5"),
         Operand("c0", True, 0, "float32: S0 when s0 is absent"),
         Operand("c1", True, 0, "float32: S1 when s1 is absent"),
         Operand("c2", True, 0, "float32: S2 when s2 is absent, S4 when s4 is absent"),
         Operand("c3", True, 0, "float32: S3; S5 when s5 is absent"))),
    Instruction(Op.SEND, "Write len bytes of this tile's SRAM into another tile's, then signal its "
                "semaphore.",
                _SIGS, 2, SEND,
                (_r("tile", "destination tile, y << 8 | x"), _r("src", "SRAM byte address, multiple of 32"),
                 _r("dst", "remote SRAM byte address, multiple of 32"), _r("len", "bytes, multiple of 32"),
                 _r("sem", "remote semaphore, 0 for none"))),
)
BY_OP: dict[int, Instruction] = {int(i.op): i for i in TABLE}
UNIT_OPS: tuple[Instruction, ...] = tuple(i for i in TABLE if i.unit is not None)


def pack(fields: tuple[Field, ...], **values: int) -> int:
    """Bit fields to a word; ValueError names the field, the value and its range."""
    word = 0
    names = {f.name: f for f in fields}
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"field {name!r}: allowed is {', '.join(names)}")
        f = names[name]
        if not 0 <= value < 1 << f.width:
            raise ValueError(f"field {name} = {value}: allowed is 0..{(1 << f.width) - 1}")
        word |= value << f.lo
    return word


def unpack(fields: tuple[Field, ...], word: int) -> dict[str, int]:
    return {f.name: word >> f.lo & (1 << f.width) - 1 for f in fields}


def reg_word(imm: int, reg: int = 0) -> int:
    """A reg operand word."""
    if not -(1 << 27) <= imm < 1 << 27:
        raise ValueError(f"immediate {imm}: allowed is -2^27..2^27-1 (put the base in a register)")
    if not 0 <= reg < REGISTERS:
        raise ValueError(f"register {reg}: allowed is 0..{REGISTERS - 1}")
    return reg << 28 | imm & 0xFFFFFFF


@dataclass(frozen=True)
class R:
    """Operand value: register plus immediate, as in R(3) or R(3) + 64."""
    reg: int
    imm: int = 0

    def __add__(self, imm: int) -> "R":
        return R(self.reg, self.imm + imm)


def encode_unit(op: Op, operands: Mapping[str, "int | R"], sig_a: int = 0, sig_b: int = 0,
                sig_c: int = 0) -> list[int]:
    """Words of a unit instruction; only the operands given are present."""
    ins = BY_OP[op]
    words = {ins.index(name): value for name, value in operands.items()}
    out = [pack(ins.fields, sig_a=sig_a, sig_b=sig_b, sig_c=sig_c) | op, sum(1 << i for i in words)]
    for i in sorted(words):
        v = words[i]
        if ins.operands[i].raw:
            if isinstance(v, R) or not 0 <= v < 1 << 32:
                raise ValueError(f"{ins.name} {ins.operands[i].name} = {v!r}: allowed is a 32-bit word")
            out.append(v)
        else:
            out.append(reg_word(v.imm, v.reg) if isinstance(v, R) else reg_word(v))
    return out


def encode_seq(op: Op, imm: int = 0, **fields: int) -> list[int]:
    """Words of a sequencer instruction; imm is its word 1, taken modulo 2^32."""
    ins = BY_OP[op]
    word = pack(ins.fields, **fields) | op
    return [word, imm & 0xFFFFFFFF] if ins.words == 2 else [word]


@dataclass(frozen=True)
class Decoded:
    """One decoded instruction at word index pc."""
    pc: int
    ins: Instruction
    fields: dict[str, int]
    imm: int
    operands: dict[str, int]
    """Present operands, undecoded words."""
    size: int


class IllegalInstruction(ValueError):
    """pc, word and what is allowed."""


def decode(words: "list[int]", pc: int) -> Decoded:
    """Decode the instruction at word index pc; IllegalInstruction names the word and what is allowed."""
    word = int(words[pc])
    ins = BY_OP.get(word & 63)
    if ins is None:
        allowed = ", ".join(f"{o.value:#x}" for o in Op)
        raise IllegalInstruction(f"opcode {word & 63:#x} at word {pc}: allowed is {allowed}")
    fields = unpack(ins.fields, word)
    if word != pack(ins.fields, **fields) | ins.op:
        raise IllegalInstruction(f"{ins.name} at word {pc}: undefined bits set in {word:#010x}")
    if ins.unit is None:
        imm = int(words[pc + 1]) if ins.words == 2 else 0
        return Decoded(pc, ins, fields, imm, {}, ins.words)
    mask = int(words[pc + 1])
    if mask >> len(ins.operands):
        raise IllegalInstruction(
            f"{ins.name} at word {pc}: operand mask {mask:#x} names operands it does not have")
    present = [i for i in range(32) if mask >> i & 1]
    operands = {ins.operands[i].name: int(words[pc + 2 + j]) for j, i in enumerate(present)}
    return Decoded(pc, ins, fields, mask, operands, 2 + len(present))


def _reg_text(word: int) -> str:
    imm = (word & 0xFFFFFFF) - (1 << 28 if word >> 27 & 1 else 0)
    return f"r{word >> 28}{imm:+#x}" if word >> 28 else f"{imm:#x}"


def disassemble(words: "list[int]") -> Iterator[str]:
    """One line per instruction of a program image."""
    yield "entries " + " ".join(f"{t}={int(w)}" for t, w in zip(THREADS, words))
    pc = ENTRY_WORDS
    while pc < len(words):
        d = decode(words, pc)
        parts = [f"{k}={v}" for k, v in d.fields.items() if v]
        if d.ins.unit is None:
            if d.ins.words == 2:
                parts.append(_reg_text(d.imm) if d.ins.op == Op.LDS else f"imm={d.imm:#x}")
        for o in d.ins.operands:
            if o.name in d.operands:
                w = d.operands[o.name]
                if o.fields:
                    parts += [f"{k}={v}" for k, v in unpack(o.fields, w).items() if v]
                else:
                    parts.append(f"{o.name}={w:#x}" if o.raw else f"{o.name}={_reg_text(w)}")
        yield f"{pc:5d}  {d.ins.name.lower():7s} {' '.join(parts)}"
        pc += d.size
