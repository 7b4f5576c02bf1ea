"""What one unit instruction does to memory: docs/architecture.md, "Instructions, exact semantics".

Each function takes SRAM as a flat uint8 array, the flag fields and the operand values (unsigned 32 bits,
defaults filled in), executes the whole instruction at once and returns the regions it wrote. A `Fault` leaves
memory unchanged (LOAD and STORE: the runs before the offending one are done). All C lanes are computed.
"""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from golden import arith, formats
from golden.arith import F32
from hw.config import TileConfig
from hw.isa import Error

U32 = 0xFFFFFFFF
_ZERO_SCALE = 127  # E8M0 byte of 2^0
_ALL = slice(None)


class Fault(Exception):
    """An instruction that stops the tile: error code and the offending address, word or operand."""

    def __init__(self, code: Error, value: int):
        super().__init__(code, value & U32)
        self.code, self.value = code, value & U32


def signed(word: int) -> int:
    """32 bits as two's complement."""
    return (word & U32 ^ 1 << 31) - (1 << 31)


@dataclass(frozen=True, slots=True)
class Walk:
    """Accesses base + sum(i_d * stride_d) of `size` bytes each; dims are (count, stride), outermost first."""
    base: int
    dims: tuple[tuple[int, int], ...]
    size: int

    @property
    def count(self) -> int:
        total = 1
        for n, _ in self.dims:
            total *= n
        return total

    def addresses(self) -> np.ndarray:
        """All addresses in order, int64 (count,), modulo 2^32. (Only the first 2^20 if there are more.)"""
        if self.count > 1 << 20 and len(self.dims) > 1:
            inner = Walk(self.base, self.dims[1:], self.size)
            return Walk(self.base, ((max(1, (1 << 20) // inner.count), self.dims[0][1]), *self.dims[1:]),
                        self.size).addresses() if inner.count < 1 << 20 else inner.addresses()
        a = np.array([self.base], np.int64)
        for n, stride in self.dims:
            a = (a[:, None] + np.arange(min(n, 1 << 20), dtype=np.int64) * stride).reshape(-1)
        return a & U32

    def within(self, low: int, high: int) -> bool:
        """No access touches a byte outside low .. high - 1."""
        ends = [(n - 1) * stride for n, stride in self.dims]
        return (self.base + sum(e for e in ends if e < 0) >= low
                and self.base + sum(e for e in ends if e > 0) + self.size <= high)

    def aligned(self, align: int) -> bool:
        return self.base % align == 0 and not any(s % align for n, s in self.dims if n > 1)

    def first_outside(self, low: int, high: int) -> int:
        """Index of the first access that touches a byte outside; `count` if there is none."""
        if not self.count or self.within(low, high):
            return self.count
        a = self.addresses()
        outside = (a < low) | (a + self.size > high)
        return int(np.argmax(outside)) if outside.any() else self.count

    def check(self, sram: np.ndarray, align: int = 1) -> "Walk":
        """Fault unless every access is inside SRAM and aligned."""
        if self.count and not (self.within(0, len(sram)) and self.aligned(align)):
            a = self.addresses()
            misaligned = a % align != 0
            outside = (a >= len(sram)) | (a + self.size > len(sram)) & ~misaligned
            bad = int(np.argmax(outside | misaligned))
            raise Fault(Error.SRAM_RANGE if outside[bad] else Error.ALIGNMENT, int(a[bad]))
        return self

    def view(self, memory: np.ndarray, dtype: type | np.dtype = np.uint8, origin: int = 0) -> np.ndarray:
        """The accesses as an array (counts..., items) that aliases memory; memory[0] has address `origin`."""
        item = np.dtype(dtype).itemsize
        if not self.count or not self.size:
            return np.zeros((*(n for n, _ in self.dims), self.size // item), dtype)
        return np.ndarray((*(n for n, _ in self.dims), self.size // item), dtype, memory, self.base - origin,
                          (*(s for _, s in self.dims), item))

    def disjoint(self) -> bool:
        """No two accesses overlap (conservative), so that their order does not matter."""
        extent = self.size
        for stride, n in sorted((abs(s), n) for n, s in self.dims if n > 1):
            if stride < extent:
                return False
            extent += stride * (n - 1)
        return True

    def write(self, memory: np.ndarray, values: np.ndarray, items: slice = _ALL, origin: int = 0) -> None:
        """Store values (counts..., items), later accesses over earlier ones; `items` are the items stored."""
        target = self.view(memory, values.dtype, origin)
        if self.disjoint():
            target[..., items] = values[..., items]
        else:
            for i in np.ndindex(target.shape[:-1]):
                target[i][items] = values[i][items]

    def contains(self, address: int) -> bool:
        d = address - self.addresses()
        return bool(((d >= 0) & (d < self.size)).any())


@dataclass
class MatmulState:
    """What the matmul unit keeps between instructions: partial sums (psum_depth, C), running maxima (C)."""
    psum: np.ndarray
    maxima: np.ndarray

    @classmethod
    def of(cls, config: TileConfig) -> "MatmulState":
        return cls(np.zeros((config.psum_depth, config.columns), F32), np.full(config.columns, -np.inf, F32))


# ---------------------------------------------------------------- LOAD, STORE

@dataclass(frozen=True)
class Dram:
    """DRAM as the DMA engines see it: memory[0] has address origin; only the window is accessible."""
    memory: np.ndarray
    origin: int = 0
    window: tuple[int, int] = (0, 1 << 32)
    """(base, size) of the allowed window."""


def _runs(walk: Walk) -> Iterator[Walk]:
    return (Walk(int(a), (), walk.size) for a in walk.addresses())


def dma(sram: np.ndarray, dram: Dram, o: Mapping[str, int], store: bool) -> tuple[list[Walk], int]:
    """LOAD or STORE: regions written (SRAM or DRAM) and bytes moved."""
    def walk(name: str) -> Walk:
        return Walk(o[name], ((o["n2"], signed(o[name + "2"])), (o["n1"], signed(o[name + "1"]))), o["len"])
    src, dst = walk("src"), walk("dst")
    if not (src.size and src.count):
        return [], 0
    there, here = (dst, src) if store else (src, dst)
    base, size = dram.window
    end = dram.origin + len(dram.memory)
    limits = [(there.first_outside(base, base + size), Error.DRAM_RANGE, there),
              (here.first_outside(0, len(sram)), Error.SRAM_RANGE, here),
              (there.first_outside(dram.origin, end), Error.AXI_DECERR, there)]
    bad, code, walked = min(limits, key=lambda limit: limit[0])
    source, target = (sram, dram.memory) if store else (dram.memory, sram)
    so, to = (0, dram.origin) if store else (dram.origin, 0)
    if bad < src.count:
        for s, d, _ in zip(_runs(src), _runs(dst), range(bad)):
            d.write(target, s.view(source, origin=so), origin=to)
        raise Fault(code, int(walked.addresses()[bad]))
    dst.write(target, src.view(source, origin=so), origin=to)
    return [dst], src.count * src.size


# ---------------------------------------------------------------- MATMUL

_SAFE = F32(2.0**-100), F32(2.0**100)


def _plain(x: np.ndarray) -> bool:
    """Sums of such values need no flush and do not overflow: every non-zero |x| is in [2^-100, 2^100)."""
    m = np.abs(x)
    return bool(np.max(m, initial=0) < _SAFE[1]) and bool(np.min(m, where=m != 0, initial=F32(1)) >= _SAFE[0])


def matmul(config: TileConfig, sram: np.ndarray, state: MatmulState, f: Mapping[str, int],
           o: Mapping[str, int], has_scale: bool) -> list[Walk]:
    """MATMUL; `has_scale` says that operand scale is present. numerics.md, "Dot product and accumulation"."""
    lanes, n, k, rows, psum = config.columns, signed(o["n"]), signed(o["k"]), f["rows"], o["psum"]
    if n < 0:
        raise Fault(Error.ILLEGAL_OPERAND, n)
    if n == 0 or k <= 0:
        return []
    stream_fmt, stat_fmt = f["stream_fmt"], f["stat_fmt"]
    if (max(stream_fmt, stat_fmt) > formats.FP4 or not 1 <= rows <= lanes
            or f["transpose"] and (stream_fmt != formats.INT8 or n > 32 - f["offset"])):
        raise Fault(Error.ILLEGAL_OPERAND, o["flags"])
    if psum + n > config.psum_depth:
        raise Fault(Error.ILLEGAL_OPERAND, n)

    def walk(name: str, size: int, *inner: tuple[int, int], align: int = 1) -> np.ndarray:
        dims = ((k, signed(o[name + "_pass"])), *inner)
        return Walk(o[name], dims, size).check(sram, align).view(sram)

    if f["transpose"]:
        tile = walk("data", 32, (32, 32), align=32).view(np.int8)
        w = tile[..., f["offset"]:f["offset"] + n].swapaxes(1, 2)
    else:
        size = n * formats.BLOCK_BYTES[stream_fmt]
        words = walk("data", 32, (-(-size // 32), 32), align=32).reshape(k, -1)
        w = formats.unpack(words[:, :size], stream_fmt).reshape(k, n, 32)
    sw = np.full((k, n), _ZERO_SCALE, np.int32)
    if has_scale:
        sw[:] = walk("scale", 1, (n, 1))[..., 0]
    x, sx = np.zeros((k, lanes, 32), F32), np.full((k, lanes), _ZERO_SCALE, np.int32)
    stat = walk("stat", formats.BLOCK_BYTES[stat_fmt], (rows, signed(o["stat_row"])),
                align=16 if stat_fmt == formats.FP4 else 32)
    x[:, :rows] = formats.unpack(np.ascontiguousarray(stat), stat_fmt)
    sx[:, :rows] = walk("stat_scale", 1, (rows, signed(o["stat_scale_row"])))[..., 0]
    out = Walk(o["out"], ((n, 4 * lanes),), 4 * lanes)
    max_out = Walk(o["max_out"], (), 4 * lanes)
    if f["last"]:
        out.check(sram, 4 * lanes)
        if f["max"]:
            max_out.check(sram, 4 * lanes)

    dot = np.matmul(w.astype(F32), x.swapaxes(1, 2))  # exact integers below 2^24
    dot += F32(0)                                     # -0 of a sum of -0 products
    bias = 254 + formats.FRAC[stream_fmt] + formats.FRAC[stat_fmt]
    dot = arith.dot_to_f32(dot, sw[..., None] + sx[:, None, :] - bias)
    nan = (sw == formats.NAN_SCALE)[..., None] | (sx == formats.NAN_SCALE)[:, None, :]
    if nan.any():
        dot = np.where(nan, arith.NAN, dot)

    region = state.psum[psum:psum + n]
    add = np.add if _plain(dot) and (f["first"] or _plain(region)) else arith.fadd
    before, total = region, dot[0] if f["first"] else add(region, dot[0])
    for p in range(1, k):
        before, total = total, add(total, dot[p])
    if f["max_first"]:
        state.maxima[:] = -np.inf
    if not f["last"]:
        region[:] = total
        return []
    region[:] = before.copy()
    if f["mask"]:
        j, step = np.arange(n)[:, None], f["step"] * np.arange(lanes)
        total = np.where((j >= signed(o["lo"]) + step) & (j < signed(o["hi"]) + step), total, -arith.INF)
    out.write(sram, np.ascontiguousarray(total, F32))
    state.maxima[:] = arith.fmax(state.maxima, arith.max_reduce(total, axis=0))
    if not f["max"]:
        return [out]
    max_out.write(sram, state.maxima)
    return [out, max_out]


# ---------------------------------------------------------------- VECTOR

_LANE, _BROADCAST = (0, 1), (2, 3, 4)
_DTYPE = (np.uint32, np.uint16, np.uint32, np.uint16, np.uint8)
_FUNCTIONS = (lambda x: x, arith.exp2, arith.recip, arith.rsqrt)


@dataclass
class _Vector:
    """Operands of one VECTOR instruction."""
    config: TileConfig
    sram: np.ndarray
    f: Mapping[str, int]
    o: Mapping[str, int]
    present: frozenset[str]
    elements: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.elements = (self.o["n0"], self.o["n1"], self.o["n2"])

    def walk(self, base: str, step: str, size: int) -> Walk:
        """Address steps a0, a1, a2 (applied after an element) as strides, outermost first."""
        n0, n1, n2 = self.elements
        d0, d1, d2 = (signed(self.o[step + i]) if step + i in self.present else size for i in "012")
        s1 = (n0 - 1) * d0 + d1
        return Walk(self.o[base], ((n2, (n1 - 1) * s1 + (n0 - 1) * d0 + d2), (n1, s1), (n0, d0)), size)

    def source(self, name: str) -> np.ndarray:
        """Elements of a source as canonical float32 (n2, n1, n0, C or 1)."""
        kind = self.f[name + "_type"]
        dtype = _DTYPE[kind]
        size = np.dtype(dtype).itemsize * (self.config.columns if kind in _LANE else 1)
        raw = self.walk(name, name, size).check(self.sram, size).view(self.sram, dtype)
        if dtype is np.uint8:  # e8m0
            bits = raw.astype(np.uint32) << 23
            return np.where(raw == formats.NAN_SCALE, arith.NAN, bits.view(F32))
        return arith.canon(raw.view(F32) if dtype is np.uint32 else arith.bf16_to_f32(raw))

    def scalar(self, name: str, constant: str) -> np.ndarray:
        """S operand: lane word (C) or the constant (1), uint32 bits."""
        if name in self.present:
            size = 4 * self.config.columns
            return Walk(self.o[name], (), size).check(self.sram, size).view(self.sram, np.uint32).copy()
        return np.array([self.o[constant]], np.uint32)


def vector(config: TileConfig, sram: np.ndarray, f: Mapping[str, int], o: Mapping[str, int],
           present: frozenset[str]) -> tuple[list[Walk], int]:
    """VECTOR; f has the fields of both flag words. Regions written, elements."""
    lanes = config.columns
    rows = f["rows"] or lanes
    lane_end = f["lane0"] + (1 if f["pack"] else rows)
    used = {name for name, on in (
        ("a", True), ("b", f["x1"] == 2 or f["x2"] == 1 or f["x3"] == 1 or f["x4"] == 1),
        ("d", f["x2"] == 2 or f["x3"] == 2 or f["x4"] == 2)) if on}
    if any(f[name + "_type"] > 4 for name in used) or f["x3"] > 4:
        raise Fault(Error.ILLEGAL_OPERAND, o["flags"])
    if f["red_op"] > 4 or f["block"] > 2 or rows > lanes or f["out_mode"] in (1, 2) and lane_end > lanes:
        raise Fault(Error.ILLEGAL_OPERAND, o["flags2"])
    v = _Vector(config, sram, f, o, present)
    n = o["n0"] * o["n1"] * o["n2"]
    s = {name: v.scalar(name, constant).view(F32) for name, constant, on in (
        ("s0", "c0", f["x1"] == 3), ("s1", "c1", f["x2"] == 3), ("s2", "c2", f["x3"] == 3),
        ("s4", "c2", f["lo"] or f["where"]), ("s5", "c3", f["hi"] or f["where"])) if n and on}
    writes: list[tuple[Walk, np.ndarray, slice]] = []
    if n:
        t3, t5 = _elements(v, {name: v.source(name) for name in sorted(used)}, s)
    else:
        t3 = t5 = np.zeros((0, lanes), F32)
    if n and f["out_mode"] in (1, 2):
        value = t5 if f["out_mode"] == 1 else arith.f32_to_bf16(t5)
        lane0, items = f["lane0"], slice(f["lane0"], f["lane0"] + rows)
        if f["pack"]:
            value, items = value[:, lane0:lane0 + 1], _ALL
        size = value.shape[1] * value.itemsize
        walk = v.walk("out", "o", size).check(sram, size)
        writes.append((walk, value.reshape(*(c for c, _ in walk.dims), -1), items))
    elif n and f["out_mode"] == 3:
        writes += _quantise(v, t5, rows)
    if f["red_op"]:
        x = t3 if f["red_op"] == 2 else t5
        words = [arith.sum8(x, axis=0) if f["red_op"] <= 2 else arith.max_reduce(x, axis=0)]
        if f["red_op"] == 4:
            index = arith.argmax(x, axis=0) if n else np.zeros(lanes)
            words.append(index.astype(np.uint32).view(F32))
        for i, word in enumerate(words):
            walk = Walk(o["red"] + 4 * lanes * i & U32, (), 4 * lanes).check(sram, 4 * lanes)
            writes.append((walk, np.ascontiguousarray(word, F32), _ALL))
    for walk, values, items in writes:
        walk.write(sram, values, items)
    return [walk for walk, _, _ in writes], n


def _elements(v: _Vector, src: dict[str, np.ndarray],
              s: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """t3 and t5 of every element (n, C)."""
    f, lanes = v.f, v.config.columns
    n = v.elements[0] * v.elements[1] * v.elements[2]
    a, b, d = src["a"], src.get("b"), src.get("d")
    t = a
    if f["x1"]:
        t = arith.fmul(t, (a, b, s.get("s0"))[f["x1"] - 1])
    if f["neg1"]:
        t = arith.fneg(t)
    if f["x2"]:
        t = (arith.fsub if f["neg2"] else arith.fadd)(t, (b, d, s.get("s1"))[f["x2"] - 1])
    if f["lo"]:
        t = arith.fmax(t, s["s4"])
    if f["hi"]:
        t = arith.fmin(t, s["s5"])
    t3 = t = _FUNCTIONS[f["func"]](np.ascontiguousarray(t))
    if f["x3"]:
        t = arith.fmul(t, (b, d, s.get("s2"), t3)[f["x3"] - 1])
    if f["x4"]:
        t = arith.fadd(t, (b, d, np.array([v.o["c3"]], np.uint32).view(F32))[f["x4"] - 1])
    shape = (*v.elements[::-1], lanes)
    t3, t = (np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(n, lanes) for x in (t3, t))
    if f["where"]:
        hit = np.arange(n, dtype=np.uint32)[:, None] == s["s5"].view(np.uint32)
        t = np.where(hit, arith.canon(s["s4"]), t)
    return t3, t


def _quantise(v: _Vector, t5: np.ndarray, rows: int) -> list[tuple[Walk, np.ndarray, slice]]:
    """Output mode 3: MXINT8 blocks and their scale bytes, checked."""
    block = 32 >> v.f["block"]
    steps = ((32, "o0"), (32 * v.config.columns, "o1"), (v.config.columns, "o2"))
    o0, o1, o2 = (signed(v.o[name]) if name in v.present else default for default, name in steps)
    ints, scales = formats.quantise_int8(np.ascontiguousarray(t5[:, :rows].T), block)  # (rows, blocks, block)
    ints, scales = ints.swapaxes(0, 1).view(np.uint8), np.ascontiguousarray(scales.T)
    dims = ((len(scales), o1), (rows, o0))
    walk = Walk(v.o["out"], dims, block).check(v.sram, block)
    qs = Walk(v.o["qs"], ((len(scales), o2),), rows)
    at = qs.addresses()
    wrong = (at >= len(v.sram)) | (at % v.config.word_bytes + rows > v.config.word_bytes)
    if wrong.any():
        address = int(at[np.argmax(wrong)])
        raise Fault(Error.SRAM_RANGE if address >= len(v.sram) else Error.ALIGNMENT, address)
    out = [(qs, scales, _ALL)]
    if not v.f["zfill"]:
        return [(walk, ints, _ALL), *out]
    offsets = walk.addresses().reshape(len(scales), rows) % 32
    words = np.zeros((len(scales), rows, 32), np.uint8)
    np.put_along_axis(words, offsets[..., None] + np.arange(block), ints, axis=2)
    if o0 % 32 == o1 % 32 == 0:
        return [(Walk(walk.base & ~31, dims, 32), words, _ALL), *out]
    return [(Walk(address & ~31, (), 32), word, _ALL)
            for address, word in zip(walk.addresses().tolist(), words.reshape(-1, 32))] + out
