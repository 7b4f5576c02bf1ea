"""Assembler: Python calls to a program image, plus allocators for semaphores, registers and SRAM.

    p = Program(config)
    ready = p.semaphore("weights ready")
    p.load.load(src=0x1000, dst=0, len=256, sig_b=ready)
    p.matmul.wait(ready)
    with p.matmul.loop(4):
        p.matmul.matmul(n=8, k=1, data=0, stat=R(1) + 64, stat_scale=512, stat_row=32, out=1024)
        p.matmul.add(R(1), R(1), 256)
    image = p.image()

A *reg* operand takes an int or a register plus an immediate (`R(3) + 64`). Flag fields of hw/isa.py are
keyword arguments beside the operands. ValueError names what was given and what is allowed.
"""
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from hw.config import TileConfig
from hw.isa import (BY_OP, ENTRY_WORDS, LOOP_DEPTH, MATMUL_FLAGS, REGISTERS, THREADS, VECTOR_FLAGS,
                    VECTOR_FLAGS2, Alu, Field, Op, R, encode_seq, encode_unit, pack, reg_word)

__all__ = ["FORMATS", "R", "SOURCES", "Program", "Sram", "Thread"]

Value: TypeAlias = int | R
Name: TypeAlias = str | int
"""One of the names below, or its code."""
FORMATS = {"int8": 0, "fp6": 1, "fp4": 2}
SOURCES = {"f32": 0, "bf16": 1, "broadcast_f32": 2, "broadcast_bf16": 3, "e8m0": 4}
"""Source types; f32 and bf16 are lane words, the others one value for all lanes."""
OUTPUTS = {"none": 0, "f32": 1, "bf16": 2, "int8": 3}
REDUCTIONS = {"none": 0, "sum": 1, "sum_t3": 2, "max": 3, "argmax": 4}
FUNCTIONS = {"none": 0, "exp2": 1, "recip": 2, "rsqrt": 3}
BLOCKS = {32: 0, 16: 1, 8: 2}
SELECT = {"x1": ("", "a", "b", "s0"), "x2": ("", "b", "d", "s1"), "x3": ("", "b", "d", "s2", "t3"),
          "x4": ("", "b", "d", "s3")}
"""Right operands of the four pipeline steps, in the order of their codes."""
_CONSTANT = {"s0": "c0", "s1": "c1", "s2": "c2", "s3": "c3", "s4": "c2", "s5": "c3"}


def _choose(what: str, value: object, names: dict) -> int:
    """The code of a name; the code itself is accepted too."""
    if value in names:
        return names[value]
    if isinstance(value, int) and value in names.values():
        return value
    raise ValueError(f"{what} = {value!r}: allowed is {', '.join(map(repr, names))}")


def _bits(value: "int | float") -> int:
    """A float as its float32 bits, an int as 32 bits."""
    if isinstance(value, (float, np.floating)):
        return struct.unpack("<I", np.float32(value).tobytes())[0]
    return int(value) & 0xFFFFFFFF


def _values(operands: dict) -> dict[str, Value]:
    """Present operands; numpy integers become ints."""
    return {k: v if isinstance(v, R) else int(v) for k, v in operands.items() if v is not None}


def _split(kwargs: dict, *tables: tuple[Field, ...]) -> list[dict]:
    """Take the flag fields of each table out of kwargs."""
    return [{f.name: int(kwargs.pop(f.name)) for f in table if f.name in kwargs} for table in tables]


class Thread:
    """Builder of one thread's code; `halt` is added by Program.image(). Registers are `R(1)` .. `R(15)`."""

    def __init__(self, program: "Program", number: int):
        self.program, self.number, self.name = program, number, THREADS[number]
        self.words: list[int] = []
        self.labels: list[tuple[int, str]] = []
        """(word offset, label) of every instruction emitted under a label."""
        self._depth = 0
        self._label: list[str] = []
        self._free = list(range(REGISTERS - 1, 0, -1))

    def _emit(self, words: list[int]) -> int:
        at = len(self.words)
        if self._label:
            self.labels.append((at, " / ".join(self._label)))
        self.words += words
        return at

    # ------------------------------------------------------------ sequencer instructions

    @contextmanager
    def label(self, text: str) -> Iterator[None]:
        """Name the instructions emitted inside, for traces and error messages; labels nest."""
        self._label.append(text)
        try:
            yield
        finally:
            self._label.pop()

    @contextmanager
    def loop(self, count: Value) -> Iterator[None]:
        """Run the body `count` times (not at all if <= 0)."""
        if self._depth == LOOP_DEPTH:
            raise ValueError(f"thread {self.name}: allowed is {LOOP_DEPTH} nested loops")
        c = count if isinstance(count, R) else R(0, int(count))
        at = self._emit(encode_seq(Op.LOOP, c.imm, reg=c.reg))
        self._depth += 1
        yield
        self._depth -= 1
        self._emit(encode_seq(Op.END))
        self.words[at:at + 2] = encode_seq(Op.LOOP, c.imm, reg=c.reg, skip=len(self.words) - at)

    def wait(self, sem: int, count: Value = 1) -> None:
        """Block until semaphore >= count (1..65535), then subtract count."""
        self._semaphore(Op.WAIT, sem, count)

    def signal(self, sem: int, count: Value = 1) -> None:
        """Add count (1..65535) to a semaphore, from the sequencer."""
        self._semaphore(Op.SIGNAL, sem, count)

    def _semaphore(self, op: Op, sem: int, count: Value) -> None:
        c = count if isinstance(count, R) else R(0, int(count))
        if not 1 <= sem < self.program.config.semaphores:
            raise ValueError(f"semaphore {sem}: allowed is 1..{self.program.config.semaphores - 1}")
        if not c.reg and c.imm == 0:
            raise ValueError("count = 0: allowed is 1..65535")
        self._emit(encode_seq(op, sem=sem, reg=c.reg, count=c.imm))

    def li(self, rd: R, value: "int | float") -> None:
        """rd = value (an int modulo 2^32, a float as its float32 bits)."""
        self._emit(encode_seq(Op.LI, _bits(value), rd=_register(rd)))

    def arg(self, rd: R, index: int) -> None:
        """rd = host argument `index`."""
        self._emit(encode_seq(Op.ARG, rd=_register(rd), index=index))

    def lds(self, rd: R, address: Value) -> None:
        """rd = the 32-bit SRAM word at `address` (multiple of 4). Not ordered with units: wait first."""
        a = address if isinstance(address, R) else R(0, int(address))
        self._emit(encode_seq(Op.LDS, reg_word(a.imm, a.reg), rd=_register(rd)))

    def alu(self, func: Alu, rd: R, rs: R, x: Value) -> None:
        """rd = rs func x; x is an int, a register, or a register plus an immediate."""
        v = x if isinstance(x, R) else R(0, int(x))
        self._emit(encode_seq(Op.ALU, v.imm, rd=_register(rd), rs=_register(rs), rt=v.reg, func=func))

    def mov(self, rd: R, x: Value) -> None:
        """rd = x."""
        if isinstance(x, R):
            self.alu(Alu.ADD, rd, R(0), x)
        else:
            self.li(rd, x)

    def add(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.ADD, rd, rs, x)

    def sub(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.SUB, rd, rs, x)

    def mul(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.MUL, rd, rs, x)

    def shl(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.SHL, rd, rs, x)

    def shr(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.SHR, rd, rs, x)

    def sra(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.SRA, rd, rs, x)

    def and_(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.AND, rd, rs, x)

    def or_(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.OR, rd, rs, x)

    def min_(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.MIN, rd, rs, x)

    def max_(self, rd: R, rs: R, x: Value) -> None:
        self.alu(Alu.MAX, rd, rs, x)

    @contextmanager
    def registers(self, count: int) -> Iterator[tuple[R, ...]]:
        """`count` registers that nothing else uses while the context is open."""
        taken = [self.register() for _ in range(count)]
        try:
            yield tuple(taken)
        finally:
            self.free(*taken)

    def register(self) -> R:
        """A register for good, or until `free`."""
        if not self._free:
            raise ValueError(f"thread {self.name}: allowed is {REGISTERS - 1} registers at a time")
        return R(self._free.pop())

    def free(self, *registers: R) -> None:
        self._free += [r.reg for r in reversed(registers)]

    # ------------------------------------------------------------ unit instructions

    def _unit(self, op: Op, operands: dict, sigs: dict) -> None:
        ins = BY_OP[op]
        if ins.unit != self.number:
            raise ValueError(f"{ins.name} in thread {self.name}: allowed is thread {THREADS[ins.unit]}")
        self._emit(encode_unit(op, _values(operands), **{k: int(v) for k, v in sigs.items() if v}))

    def _take(self, kwargs: dict) -> dict:
        return {k: kwargs.pop(k) for k in ("sig_a", "sig_b", "sig_c") if k in kwargs}

    def load(self, *, src: Value, dst: Value, len: Value, **kwargs: Value) -> None:
        """DMA from DRAM to SRAM: n1, src1, dst1, n2, src2, dst2, sig_a, sig_b, sig_c."""
        sigs = self._take(kwargs)
        self._unit(Op.LOAD, {"src": src, "dst": dst, "len": len, **kwargs}, sigs)

    def store(self, *, src: Value, dst: Value, len: Value, **kwargs: Value) -> None:
        """DMA from SRAM to DRAM: as `load`."""
        sigs = self._take(kwargs)
        self._unit(Op.STORE, {"src": src, "dst": dst, "len": len, **kwargs}, sigs)

    def send(self, *, tile: Value, src: Value, dst: Value, len: Value, sem: Value = 0,
             **kwargs: Value) -> None:
        """len bytes into another tile's SRAM, then one count to its semaphore `sem`."""
        sigs = self._take(kwargs)
        self._unit(Op.SEND, {"tile": tile, "src": src, "dst": dst, "len": len, "sem": sem, **kwargs}, sigs)

    def matmul(self, *, n: Value, k: Value = 1, stream_fmt: Name = "int8", stat_fmt: Name = "int8",
               rows: int | None = None, **kwargs: "Value | bool") -> None:
        """One MATMUL. Formats "int8", "fp6", "fp4"; rows default C; other flags and operands by their names.

        Defaults that differ from the hardware's: first = last = True; `mask` is set when hi or lo is given;
        `max` and `max_first` when max_out is given (max_first=False continues a running maximum).
        """
        sigs = self._take(kwargs)
        flags, = _split(kwargs, MATMUL_FLAGS)
        columns = self.program.config.columns
        flags = {"first": 1, "last": 1, "rows": columns if rows is None else rows,
                 "mask": int("hi" in kwargs or "lo" in kwargs), "max": int("max_out" in kwargs),
                 "max_first": int("max_out" in kwargs),
                 "stream_fmt": _choose("stream_fmt", stream_fmt, FORMATS),
                 "stat_fmt": _choose("stat_fmt", stat_fmt, FORMATS), **flags}
        if not 1 <= flags["rows"] <= columns:
            raise ValueError(f"rows = {flags['rows']}: allowed is 1..{columns}")
        if flags["max"] and "max_out" not in kwargs:
            raise ValueError("max without max_out: allowed is both or none")
        if isinstance(n, int) and n > self.program.config.psum_depth:
            raise ValueError(f"n = {n}: allowed is at most psum_depth = {self.program.config.psum_depth}")
        self._unit(Op.MATMUL, {"flags": pack(MATMUL_FLAGS, **flags), "n": n, "k": k, **kwargs}, sigs)

    def vector(self, *, n0: Value, a: Value, x1: Name = "", x2: Name = "", x3: Name = "", x4: Name = "",
               func: Name = "none", out_mode: Name | None = None, red_op: Name = "none", block: int = 32,
               **kwargs: "Value | float") -> None:
        """One VECTOR. `a_type`, `b_type`, `d_type` are names of SOURCES; out_mode of OUTPUTS (default f32
        when out is given); red_op of REDUCTIONS; func of FUNCTIONS; the codes of hw/isa.py do as well.

        x1..x4 name the right operand of each step (SELECT); "-b" in x2 subtracts it, neg1=True negates t1.
        lo=True and hi=True clamp to s4 and s5. s0..s2, s4, s5 are addresses of lane words; c0..c3 floats, or
        ints taken as bits. Everything else by its name in the instruction table.
        """
        sigs = self._take(kwargs)
        types = {t: _choose(t, kwargs.pop(t, "f32"), SOURCES) for t in ("a_type", "b_type", "d_type")}
        operands: dict[str, Value] = {"n0": n0, "a": a}
        operands |= {k: kwargs.pop(k) for k in ("out", "red") if k in kwargs}
        flags, flags2 = _split(kwargs, VECTOR_FLAGS, VECTOR_FLAGS2)
        constants = {c: _bits(kwargs.pop(c)) for c in ("c0", "c1", "c2", "c3") if c in kwargs}
        given = {"a", *kwargs, *(s for s, c in _CONSTANT.items() if c in constants)}
        for name, text in (("x1", x1), ("x2", x2), ("x3", x3), ("x4", x4)):
            if name == "x2" and str(text).startswith("-"):
                text, flags["neg2"] = str(text)[1:], 1
            flags[name] = _choose(name, text, {s: i for i, s in enumerate(SELECT[name])})
            text = SELECT[name][flags[name]]
            if text not in ("", "t3") and text not in given:
                raise ValueError(f"{name} = {text!r} without its operand: given is "
                                 f"{', '.join(sorted(given))}")
        for flag, needs in (("lo", ("s4",)), ("hi", ("s5",)), ("where", ("s4", "s5"))):
            if flags.get(flag) and not given.issuperset(needs):
                raise ValueError(f"{flag} needs {' and '.join(needs)} (or its constant)")
        flags["func"] = _choose("func", func, FUNCTIONS)
        default = "f32" if "out" in operands else "none"
        mode = _choose("out_mode", default if out_mode is None else out_mode, OUTPUTS)
        red = _choose("red_op", red_op, REDUCTIONS)
        for what, code, address in (("out_mode", mode, "out"), ("red_op", red, "red")):
            if bool(code) != (address in operands):
                raise ValueError(f"{what} and {address}: allowed is both or none")
        if mode == 3 and "qs" not in kwargs:
            raise ValueError("out_mode int8 needs qs, the address of the scale bytes")
        flags2 |= {"out_mode": mode, "red_op": red, "block": _choose("block", block, BLOCKS)}
        self._unit(Op.VECTOR, {"flags": pack(VECTOR_FLAGS, **types, **flags),
                               "flags2": pack(VECTOR_FLAGS2, **flags2),
                               **operands, **kwargs, **constants}, sigs)


def _register(r: R) -> int:
    if not isinstance(r, R) or r.imm or not 0 <= r.reg < REGISTERS:
        raise ValueError(f"{r!r}: allowed is R(0) .. R({REGISTERS - 1}) without an immediate")
    return r.reg


class Program:
    """A program under construction: one Thread per unit (`load`, `store`, `matmul`, `vector`, `send`)."""

    def __init__(self, config: TileConfig):
        self.config = config
        self.semaphores: dict[str, int] = {}
        self.threads = tuple(Thread(self, i) for i in range(len(THREADS)))
        self.load, self.store, self.matmul, self.vector, self.send = self.threads

    def semaphore(self, name: str) -> int:
        """The semaphore of that name; the first use takes a free number."""
        if name not in self.semaphores:
            number = len(self.semaphores) + 1
            if number >= self.config.semaphores:
                raise ValueError(f"semaphore {name!r}: allowed is {self.config.semaphores - 1} semaphores, "
                                 f"taken by {', '.join(self.semaphores)}")
            self.semaphores[name] = number
        return self.semaphores[name]

    def _codes(self) -> list[tuple[Thread, int, list[int]]]:
        """(thread, entry word, code with its halt) of the threads that have code."""
        codes, at = [], ENTRY_WORDS
        for t in self.threads:
            if t.words:
                codes.append((t, at, t.words + encode_seq(Op.HALT)))
                at += len(codes[-1][2])
        return codes

    def image(self) -> np.ndarray:
        """Entry words and code, uint32."""
        entries, code = [0] * ENTRY_WORDS, []
        for t, at, words in self._codes():
            entries[t.number] = at
            code += words
        if len(entries) + len(code) > self.config.imem_words:
            sizes = ", ".join(f"{t.name} {len(t.words)}" for t in self.threads)
            total = len(entries) + len(code)
            raise ValueError(f"{total} words ({sizes}): allowed is {self.config.imem_words}")
        return np.array(entries + code, np.uint32)

    @property
    def labels(self) -> dict[int, str]:
        """Word index in the image -> label, for Machine.run."""
        return {at + offset: text for t, at, _ in self._codes() for offset, text in t.labels}


@dataclass
class Sram:
    """First-fit allocator of SRAM bytes."""
    config: TileConfig
    regions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """name -> (address, bytes)."""

    @property
    def used(self) -> int:
        return sum(size for _, size in self.regions.values())

    @property
    def end(self) -> int:
        """First byte behind all regions."""
        return max((start + size for start, size in self.regions.values()), default=0)

    def alloc(self, name: str, size: int, align: int | None = None) -> int:
        """Address of `size` free bytes at a multiple of `align` (default: an SRAM word)."""
        if name in self.regions:
            raise ValueError(f"region {name!r} exists: allowed is a new name")
        align = align or self.config.word_bytes
        at = 0
        for start, length in sorted(self.regions.values()):
            if at + size <= start:
                break
            at = -(-(start + length) // align) * align
        if at + size > self.config.sram_bytes:
            taken = ", ".join(f"{n} {b}" for n, (_, b) in sorted(self.regions.items(), key=lambda r: r[1]))
            raise ValueError(f"{size} bytes for {name!r} do not fit in {self.config.sram_bytes} bytes of "
                             f"SRAM with {self.used} bytes taken: {taken or 'nothing'}")
        self.regions[name] = (at, size)
        return at

    def free(self, *names: str) -> None:
        for name in names:
            if name not in self.regions:
                raise ValueError(f"region {name!r}: allowed is {', '.join(self.regions)}")
            del self.regions[name]
