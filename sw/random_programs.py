"""Seeded random programs that are valid: for comparing the RTL with golden.machine over many seeds.

Every program is a chain of LOAD, MATMUL, VECTOR and STORE steps on SRAM buffers that are initialised before
they are read and reused when SRAM runs out. Hazards between steps (through SRAM words and DRAM) become
semaphore waits, and only those, so that the units run as far apart as the program allows; golden.machine
gives the same DRAM under every schedule. Shapes are ragged; formats, masks, loops, indirect addresses and
special values are mixed in.
"""
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hw.config import TileConfig
from sw.assembler import FORMATS, SOURCES, Program, R, Sram, Thread

BLOCK_BYTES = {"int8": 32, "fp6": 24, "fp4": 16}
GRAIN = 64
"""DRAM bytes that hazards are tracked by (SRAM: one word)."""
ADDRESSES = ("src", "dst", "data", "scale", "stat", "stat_scale", "out", "max_out", "a", "b", "d", "red",
             "qs", "s0")
"""Operands that may be given through a register."""


class RandomProgram(NamedTuple):
    """image (uint32) lies at address 0 of dram (uint8) already; run it with `args`."""
    image: np.ndarray
    dram: np.ndarray
    args: list[int]


@dataclass
class _Buffer:
    """An initialised SRAM region. kind: bytes, scales, lane, lane_bf16, row, row_bf16, index, blocks."""
    kind: str
    name: str
    at: int
    count: int
    """Elements: bytes, lane words or values."""
    size: int
    canonical: bool = False
    """Holds no subnormals and no odd NaNs."""
    rows: int = 0
    pitch: tuple[int, int, int] = (0, 0, 0)
    """blocks: bytes from row to row, from block to block, and of the scales from block to block."""
    scales: int = 0


Span = tuple[str, int, int]
"""(space, first byte, bytes)."""


@dataclass
class _Step:
    """One node of the program: unit instructions of one thread that start and signal together."""
    thread: str
    calls: list[dict]
    reads: list[Span]
    writes: list[Span]
    loop: tuple[int, dict[str, int]] | None = None
    """(iterations, operand -> bytes from iteration to iteration) around the only call."""
    needs: dict[int, str] = field(default_factory=dict)
    """Earlier step -> "done" or "read"."""


def _floats(rng: np.random.Generator, n: int) -> np.ndarray:
    """Ordinary values, one in forty special."""
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-4, 5, n)).astype(np.float32)
    odd = np.array([0, -0.0, np.inf, -np.inf, np.nan, 2.0**-126, 1e-39, -1e-40, 3e38, -3e38, 200.0],
                   np.float32)
    return np.where(rng.integers(0, 40, n) == 0, rng.choice(odd, n), x).astype(np.float32)


class _Generator:
    def __init__(self, config: TileConfig, rng: np.random.Generator, steps: int):
        self.config, self.rng, self.lane = config, rng, config.lane_bytes
        self.sram = Sram(config)
        self.steps: list[_Step] = []
        self.buffers: list[_Buffer] = []
        self.pinned: set[str] = set()
        self.loose: list[str] = []
        self.number = 0
        self.written: dict[tuple[str, int], int] = {}
        self.readers: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._fill_dram()
        self._start()
        makers: list[tuple[float, Callable[[], object]]] = [
            (0.30, self._load), (0.30, self._matmul), (0.40, self._vector), (0.12, self._store)]
        weights = np.array([w for w, _ in makers])
        while len(self.steps) < steps:
            self.pinned.clear()
            makers[rng.choice(len(makers), p=weights / weights.sum())][1]()
        for buffer in list(self.buffers)[-8:]:
            self._store(buffer)

    # ------------------------------------------------------------ memory

    def _fill_dram(self) -> None:
        """Sections at odd addresses behind the program; results go after them."""
        rng = self.rng
        base = 4 * self.config.imem_words
        floats = 2048 * self.config.columns
        contents = {
            "bytes": rng.integers(0, 256, 16384, np.uint8), "f32": _floats(rng, floats).view(np.uint8),
            "bf16": (_floats(rng, floats).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8),
            "scales": np.where(rng.integers(0, 50, 4096) == 0, rng.choice([0, 1, 254, 255], 4096),
                               rng.integers(118, 136, 4096)).astype(np.uint8),
            "index": rng.integers(0, 64, 1024, np.uint32).view(np.uint8)}
        self.section: dict[str, tuple[int, int]] = {}
        for name, data in contents.items():
            base += int(rng.integers(0, 70))
            self.section[name] = (base, len(data))
            base += len(data)
        self.dram_top = base
        self.dram = np.zeros(base + (1 << 20), np.uint8)
        for name, data in contents.items():
            self.dram[self.section[name][0]:][:len(data)] = data
        self.args = [int(a) for a in rng.integers(0, 1 << 12, 8)]

    def _pick(self, *options: int) -> int:
        return int(self.rng.choice(options))

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _new(self, kind: str, count: int, size: int, align: int | None = None,
             canonical: bool = False) -> _Buffer:
        """Space for a buffer; old ones go when there is none."""
        name = f"{kind} {self.number}"
        self.number += 1
        while True:
            try:
                at = self.sram.alloc(name, size, align)
                break
            except ValueError:
                loose = [b for b in self.buffers if b.name not in self.pinned]
                if not loose:
                    raise
                old = loose[int(self.rng.integers(len(loose)))]
                self.buffers.remove(old)
                self.sram.free(old.name)
        return _Buffer(kind, name, at, count, size, canonical)

    def _keep(self, buffer: _Buffer) -> None:
        """From now on later steps may use the buffer."""
        if len(self.buffers) >= 24:
            old = next((b for b in self.buffers if b.name not in self.pinned), None)
            if old:
                self.buffers.remove(old)
                self.sram.free(old.name)
        self.buffers.append(buffer)

    def _use(self, kinds: tuple[str, ...], count: int = 1,
             want: Callable[[_Buffer], bool] = lambda b: True) -> _Buffer:
        """A buffer of a kind with enough elements; loaded if there is none."""
        fit = [b for b in self.buffers if b.kind in kinds and b.count >= count and want(b)]
        if not fit or self._chance(0.1):
            plain = [k for k in kinds if k != "blocks"]
            fit = [self._load(plain[int(self.rng.integers(len(plain)))], count)]
        found = fit[int(self.rng.integers(len(fit)))]
        self.pinned.add(found.name)
        return found

    # ------------------------------------------------------------ steps

    def _grains(self, spans: list[Span]) -> set[tuple[str, int]]:
        found: set[tuple[str, int]] = set()
        for space, at, size in spans:
            g = GRAIN if space == "dram" else self.config.word_bytes
            found.update((space, w) for w in range(at // g, (at + size - 1) // g + 1 if size else at // g))
        return found

    def _add(self, step: _Step) -> None:
        """Append a step; find what it must wait for."""
        index = len(self.steps)
        reads, writes = self._grains(step.reads), self._grains(step.writes)
        for w in reads | writes:
            if w in self.written:
                step.needs[self.written[w]] = "done"
        for w in writes:
            for reader in self.readers.pop(w, []):
                step.needs.setdefault(reader, "read")
            self.written[w] = index
        for w in reads - writes:
            self.readers[w].append(index)
        self.steps.append(step)

    def _start(self) -> None:
        """The table of small offsets that LDS reads."""
        at, size = self.section["index"]
        self.table = self.sram.alloc("table", 64)
        self.table_values = self.dram[at:at + 64].view(np.uint8).copy().view(np.uint32).tolist()
        self._add(_Step("load", [dict(src=at, dst=self.table, len=64)], [], [("sram", self.table, 64)]))

    def _load(self, kind: str | None = None, count: int = 1) -> _Buffer:
        rng, lane = self.rng, self.lane
        kind = kind or str(rng.choice(["bytes", "scales", "lane", "lane_bf16", "row", "row_bf16", "index"]))
        section, item, most = {
            "bytes": ("bytes", 1, 4096), "scales": ("scales", 1, 500), "lane": ("f32", lane, 60),
            "lane_bf16": ("bf16", lane // 2, 60), "row": ("f32", 4, 90), "row_bf16": ("bf16", 2, 90),
            "index": ("index", lane, 1)}[kind]
        count = max(count, int(rng.integers(1, most + 1)))
        base, length = self.section[section]
        least = 32 if kind == "bytes" else max(item, 4)
        buffer = self._new(kind, count, count * item, max(32, lane) if self._chance(0.7) else least)
        self.pinned.add(buffer.name)
        unit = {"f32": 4, "bf16": 2, "index": 4}.get(section, 1)
        words = count * item // unit
        parts = [d for d in range(1, 9) if words % d == 0]
        n1 = self._pick(*parts)
        n2 = self._pick(*[d for d in parts if words // n1 % d == 0])
        run = words // n1 // n2 * unit
        s1, s2 = (run + unit * int(rng.integers(0, 9)) for _ in "12")
        if run * 20 + s1 * n1 + s2 * n2 > length:
            s1, s2 = run, 0
        reach = s1 * (n1 - 1) + s2 * (n2 - 1) + run
        src = base + unit * int(rng.integers(0, (length - reach) // unit + 1))
        if self._chance(0.2):
            src, s1 = src + s1 * (n1 - 1), -s1
        d1, d2 = (run, run * n1) if self._chance(0.6) else (run * n2, run)
        call = dict(src=src, dst=buffer.at, len=run, n1=n1, src1=s1, dst1=d1, n2=n2, src2=s2, dst2=d2)
        step = _Step("load", [call], [], [("sram", buffer.at, buffer.size)])
        if n2 > 1 and self._chance(0.3):
            step.loop = (n2, {"src": s2, "dst": d2})
            del call["n2"], call["src2"], call["dst2"]
        elif n1 == n2 == 1:
            step.calls = [dict(src=src, dst=buffer.at, len=run)]
        self._add(step)
        self._keep(buffer)
        return buffer

    def _store(self, buffer: _Buffer | None = None) -> None:
        """A whole buffer to fresh DRAM; sometimes loaded again."""
        if buffer is None:
            kinds = ("bytes", "scales", "lane", "lane_bf16", "row", "row_bf16", "index")
            buffer = self._use(kinds)
        rng, size = self.rng, buffer.size
        n1 = self._pick(*[d for d in range(1, 9) if size % d == 0])
        run = size // n1
        pitch = run + int(rng.integers(0, 40))
        dst = self.dram_top + int(rng.integers(0, 70))
        self.dram_top = -(-(dst + pitch * n1) // GRAIN) * GRAIN  # a fresh grain: only real hazards are seen
        if self.dram_top > len(self.dram):
            raise ValueError(f"results need more than {len(self.dram)} bytes of DRAM: allowed is fewer steps")
        self._add(_Step("store", [dict(src=buffer.at, dst=dst, len=run, n1=n1, src1=run, dst1=pitch)],
                        [("sram", buffer.at, size)], [("dram", dst, pitch * n1)]))
        if buffer.kind in ("lane", "row") and self._chance(0.2):
            self.pinned.add(buffer.name)
            copy = self._new(buffer.kind, buffer.count, size, canonical=buffer.canonical)
            self._add(_Step("load", [dict(src=dst, dst=copy.at, len=run, n1=n1, src1=pitch, dst1=run)],
                            [("dram", dst, pitch * n1)], [("sram", copy.at, size)]))
            self._keep(copy)

    def _matmul(self) -> None:
        rng, config, lane = self.rng, self.config, self.lane
        transpose = self._chance(0.25)
        stream = "int8" if transpose else str(rng.choice(list(FORMATS)))
        k = int(rng.integers(1, 5))
        offset = int(rng.integers(0, 31)) if transpose else 0
        n = int(rng.integers(1, 33 - offset if transpose else min(65, config.psum_depth + 1)))
        one = 1024 if transpose else -(-n * BLOCK_BYTES[stream] // 32) * 32
        k = max(1, min(k, 4096 // one))
        data = self._use(("bytes",), one * k, lambda b: b.at % 32 == 0)
        call: dict = dict(n=n, k=k, stream_fmt=stream,
                    data=data.at + 32 * int(rng.integers(0, (data.count - one * k) // 32 + 1)),
                    data_pass=one)
        reads = [("sram", data.at, data.size)]
        if transpose:
            call |= dict(transpose=1, offset=offset)
        elif self._chance(0.8):
            scale = self._use(("scales",), n * k)
            call |= dict(scale=scale.at + int(rng.integers(0, scale.count - n * k + 1)), scale_pass=n)
            reads.append(("sram", scale.at, scale.size))
        call |= self._stationary(k, reads)
        call["psum"] = int(rng.integers(0, config.psum_depth - n + 1))
        out = self._new("lane", n, n * lane, lane if self._chance(0.3) else None, canonical=True)
        self.pinned.add(out.name)
        writes, kept = [("sram", out.at, out.size)], [out]
        last: dict = dict(out=out.at)
        if self._chance(0.4):
            last |= dict(lo=int(rng.integers(-5, n + 1)), hi=int(rng.integers(0, n + 9)),
                         step=self._pick(0, 1))
        if self._chance(0.4):
            best = self._new("lane", 1, lane, lane, canonical=True)
            self.pinned.add(best.name)
            last["max_out"] = best.at
            writes.append(("sram", best.at, lane))
            kept.append(best)
        calls = [call | last]
        if k > 1 and self._chance(0.5):  # the same sums in two instructions
            cut = int(rng.integers(1, k))
            moved = {x: call[x] + cut * call[x + "_pass"] for x in ("data", "scale", "stat", "stat_scale")
                     if x in call}
            calls = [call | dict(k=cut, last=False), call | moved | dict(k=k - cut, first=False) | last]
        self._add(_Step("matmul", calls, reads, writes))
        for b in kept:
            self._keep(b)

    def _stationary(self, k: int, reads: list[Span]) -> dict:
        """Stationary operands: what a VECTOR quantised, or loaded bytes in any format."""
        rng, columns = self.rng, self.config.columns
        ready = [b for b in self.buffers if b.kind == "blocks" and b.count >= k]
        if ready and self._chance(0.7):
            b = ready[int(rng.integers(len(ready)))]
            self.pinned.add(b.name)
            reads += [("sram", b.at, b.size), ("sram", b.scales, b.count * b.pitch[2])]
            rows = int(rng.integers(1, b.rows + 1))
            return dict(stat=b.at, stat_row=b.pitch[0], stat_pass=b.pitch[1], stat_scale=b.scales,
                        stat_scale_pass=b.pitch[2], rows=rows)
        fmt = str(rng.choice(list(FORMATS)))
        rows = int(rng.integers(1, columns + 1)) if self._chance(0.5) else columns
        size = 16 if fmt == "fp4" else 32
        x = self._use(("bytes",), size * rows * k, lambda b: b.at % 32 == 0)
        s = self._use(("scales",), rows * k)
        reads += [("sram", x.at, x.size), ("sram", s.at, s.size)]
        by_row = self._chance(0.5)
        return dict(stat=x.at, stat_fmt=fmt, rows=rows,
                    stat_scale=s.at + int(rng.integers(0, s.count - rows * k + 1)),
                    **(dict(stat_row=size * k, stat_pass=size, stat_scale_row=k, stat_scale_pass=1)
                       if by_row else
                       dict(stat_row=size, stat_pass=size * rows, stat_scale_pass=rows)))

    # ------------------------------------------------------------ VECTOR

    _KINDS = {"f32": "lane", "bf16": "lane_bf16", "broadcast_f32": "row", "broadcast_bf16": "row_bf16",
              "e8m0": "scales"}

    def _source(self, name: str, dims: tuple[int, int, int], reads: list[Span]) -> dict:
        """Operands that walk inside an initialised buffer: in order, repeated, reversed or strided."""
        rng = self.rng
        kind = str(rng.choice(list(SOURCES))) if self._chance(0.5) else "f32"
        n0, n1, n2 = dims
        strides = [(1, n0, n0 * n1), (0, 1, n1), (1, 0, 0), (1, 0, n0), (n1, 1, n0 * n1), (0, 0, 0),
                   (2, 2 * n0, 0),
                   (-1, n0, 0), (0, 0, 1)][int(rng.integers(9)) if self._chance(0.6) else 0]
        ends = [(n - 1) * s for n, s in zip(dims, strides)]
        low, high = sum(min(e, 0) for e in ends), sum(max(e, 0) for e in ends)
        buffer = self._use((self._KINDS[kind],), high - low + 1)
        reads.append(("sram", buffer.at, buffer.size))
        z = {"f32": self.lane, "bf16": self.lane // 2, "broadcast_f32": 4, "broadcast_bf16": 2,
             "e8m0": 1}[kind]
        first = -low + int(rng.integers(0, buffer.count - (high - low)))
        s0, s1, s2 = strides
        steps = (s0, s1 - (n0 - 1) * s0, s2 - (n1 - 1) * s1 - (n0 - 1) * s0)
        explicit = {f"{name}{i}": z * s for i, s in enumerate(steps) if s != 1 or self._chance(0.3)}
        return {name: buffer.at + z * first, f"{name}_type": kind, **explicit}

    def _scalars(self, call: dict, used: set[str], where: bool, reads: list[Span]) -> None:
        """S operands: lane words or constants."""
        for s, c in (("s0", "c0"), ("s1", "c1"), ("s2", "c2"), ("s4", "c2"), ("s5", "c3")):
            if s not in used:
                continue
            if where and s == "s5":
                if self._chance(0.5):
                    index = self._use(("index",))
                    call[s] = index.at
                    reads.append(("sram", index.at, index.size))
                else:
                    call[c] = int(self.rng.integers(0, 40))
            elif self._chance(0.5):
                word = self._use(("lane",), 1, lambda b: b.canonical or not where)
                if where and not word.canonical:
                    call[c] = float(np.float32(self.rng.standard_normal()))
                    continue
                call[s] = word.at + self.lane * int(self.rng.integers(word.count))
                reads.append(("sram", word.at, word.size))
            else:
                call[c] = float(np.float32(self.rng.standard_normal() * 4))
        if "s3" in used:
            call.setdefault("c3", float(np.float32(self.rng.standard_normal())))

    def _vector(self) -> None:
        rng = self.rng
        dims = (int(rng.integers(1, 41)), self._pick(1, 1, 1, 2, 3, 4), self._pick(1, 1, 1, 2, 3))
        if dims[0] * dims[1] * dims[2] * 16 * self.lane > self.config.sram_bytes:
            dims = (dims[0], 1, 1)
        elements = dims[0] * dims[1] * dims[2]
        reads: list[Span] = []
        call: dict = dict(zip(("n0", "n1", "n2"), dims))
        call = {k: v for k, v in call.items() if k == "n0" or v != 1}
        where = self._chance(0.1)
        x1, x2 = str(rng.choice(["", "a", "b", "s0"])), str(rng.choice(["", "b", "d", "s1", "-b", "-d",
                                                                        "-s1"]))
        x3, x4 = str(rng.choice(["", "", "b", "d", "s2", "t3"])), str(rng.choice(["", "", "b", "d", "s3"]))
        used = {x1, x2.removeprefix("-"), x3, x4}
        call |= dict(x1=x1, x2=x2, x3=x3, x4=x4, neg1=self._pick(0, 0, 1),
                     func=str(rng.choice(["none", "none", "exp2", "recip", "rsqrt"])))
        if where:
            call["where"] = 1
            used |= {"s4", "s5"}
        else:
            call |= dict(lo=self._pick(0, 0, 1), hi=self._pick(0, 0, 1))
            used |= {s for s, flag in (("s4", "lo"), ("s5", "hi")) if call[flag]}
        for name in "abd":
            if name == "a" or name in used:
                call |= self._source(name, dims, reads)
        self._scalars(call, used, where, reads)
        writes: list[Span] = []
        kept: list[_Buffer] = []
        mode = str(rng.choice(["none", "f32", "f32", "bf16", "int8", "pack", "partial"]))
        red = str(rng.choice(["none", "none", "sum", "sum_t3", "max", "argmax"]))
        if mode == "none" and red == "none":
            mode = "f32"
        self._destination(mode, dims, elements, call, writes, kept)
        if red != "none":
            words = 2 if red == "argmax" else 1
            lane = self._new("lane", 1, self.lane * words, self.lane, canonical=True)
            self.pinned.add(lane.name)
            call |= dict(red_op=red, red=lane.at)
            writes.append(("sram", lane.at, lane.size))
            if words == 2:
                lane.kind, lane.size = "lane", self.lane
                self._keep(_Buffer("index", lane.name + " index", lane.at + self.lane, 1, self.lane))
                self.sram.regions[lane.name] = (lane.at, self.lane)
                self.sram.regions[lane.name + " index"] = (lane.at + self.lane, self.lane)
                self.pinned.add(lane.name + " index")
            kept.append(lane)
        step = _Step("vector", [call], reads, writes)
        self._add(step)
        self.sram.free(*self.loose)
        self.loose.clear()
        previous = next((i for i in range(len(self.steps) - 2, -1, -1) if self.steps[i].thread == "vector"),
                        -1)
        if previous >= 0 and previous not in step.needs and self._chance(0.7):
            call["overlap"] = 1
        for b in kept:
            self._keep(b)

    def _destination(self, mode: str, dims: tuple[int, int, int], elements: int, call: dict,
                     writes: list[Span],
                     kept: list[_Buffer]) -> None:
        rng, lane, columns = self.rng, self.lane, self.config.columns
        if mode in ("f32", "bf16", "pack"):
            bf16 = mode == "bf16" or mode == "pack" and self._chance(0.5)
            z = (lane if mode != "pack" else 4) // (2 if bf16 else 1)
            kind = ("row" if mode == "pack" else "lane") + ("_bf16" if bf16 else "")
            out = self._new(kind, elements, elements * z, max(z, 4), canonical=True)
            self.pinned.add(out.name)
            n0, n1, n2 = dims
            s0, s1, s2 = (1, n0, n0 * n1) if self._chance(0.6) else (n1, 1, n0 * n1)
            call |= dict(out=out.at, out_mode="bf16" if bf16 else "f32", o0=z * s0,
                         o1=z * (s1 - (n0 - 1) * s0),
                         o2=z * (s2 - (n1 - 1) * s1 - (n0 - 1) * s0))
            if mode == "pack":
                call |= dict(pack=1, lane0=int(rng.integers(columns)))
            writes.append(("sram", out.at, out.size))
            kept.append(out)
        elif mode == "partial":  # some lanes of a buffer that is not a source
            rows = int(rng.integers(1, columns + 1))
            pinned = set(self.pinned)
            out = self._use(("lane",), elements, lambda b: b.name not in pinned)
            if out.name in pinned:
                self._destination("f32", dims, elements, call, writes, kept)
                return
            call |= dict(out=out.at, out_mode="f32", rows=rows,
                         lane0=int(rng.integers(0, columns - rows + 1)))
            writes.append(("sram", out.at, out.size))
        elif mode == "int8":
            self._quantise(elements, call, writes, kept)

    def _quantise(self, elements: int, call: dict, writes: list[Span], kept: list[_Buffer]) -> None:
        columns = self.config.columns
        block = self._pick(32, 32, 16, 8)
        rows = int(self.rng.integers(1, columns + 1)) if self._chance(0.4) else columns
        blocks = -(-elements // block)
        zfill = block < 32 and self._chance(0.6)
        pitch = 32 if zfill else block
        by_row = self._chance(0.5)
        o0, o1 = (pitch * blocks, pitch) if by_row else (pitch, pitch * rows)
        o2 = columns
        size, count = blocks * rows * pitch, blocks * o2
        if pitch == 32:  # data and scales live and die together
            apart = -(-size // self.config.word_bytes) * self.config.word_bytes
            data = self._new("blocks", blocks, apart + count)
            data.size, data.rows, data.pitch, data.scales = size, rows, (o0, o1, o2), data.at + apart
            self.pinned.add(data.name)
            scales_at = data.scales
        else:
            data = self._new("bytes", size, size)
            self.pinned.add(data.name)
            scales = self._new("scales", count, count)
            self.pinned.add(scales.name)
            scales_at = scales.at
            if rows == o2:
                kept.append(scales)
            else:
                self.loose.append(scales.name)  # not every byte of it is written
        kept.append(data)
        shift = block * int(self.rng.integers(0, 32 // block)) if zfill else 0
        call |= dict(out=data.at + shift, out_mode="int8", block=block, zfill=int(zfill), o0=o0, o1=o1, o2=o2,
                     rows=rows, qs=scales_at)
        writes += [("sram", data.at, size), ("sram", scales_at, count)]

    # ------------------------------------------------------------ code

    def program(self) -> Program:
        """Waits, signals and instructions of every step."""
        p = Program(self.config)
        signals: list[list[tuple[str, int]]] = [[] for _ in self.steps]
        waits: list[list[tuple[int, int]]] = [[] for _ in self.steps]
        seen: dict[tuple[str, str, str], int] = defaultdict(lambda: -1)
        for i, step in enumerate(self.steps):
            for j in sorted(step.needs):
                how, before = step.needs[j], self.steps[j].thread
                # Units keep their own order, except that MATMUL runs ahead of its own writes.
                if before == step.thread and (before != "matmul" or how == "done"):
                    continue
                if max(seen[before, step.thread, "done"], seen[before, step.thread, how]) >= j:
                    continue
                seen[before, step.thread, how] = j
                sem = p.semaphore(f"{before} {how} for {step.thread}")
                signals[j].append((how, sem))
                waits[i].append((sem, j))
        for i, step in enumerate(self.steps):
            t = getattr(p, step.thread)
            with t.label(f"step {i}"):
                for sem, j in waits[i]:
                    t.wait(sem, self._repeats(j, signals[j], sem))
                self._emit(p, t, step, signals[i])
        return p

    def _slots(self, signals: list[tuple[str, int]]) -> tuple[dict[str, int], list[tuple[str, int]]]:
        """sig_a, sig_b, sig_c of the instruction, and what has to follow it."""
        slots, rest = {}, []
        for how, sem in signals:
            free = [s for s in (("sig_a",) if how == "read" else ("sig_b", "sig_c")) if s not in slots]
            if free:
                slots[free[0]] = sem
            else:
                rest.append((how, sem))
        return slots, rest

    def _repeats(self, step: int, signals: list[tuple[str, int]], sem: int) -> int:
        """How often a step signals: once for each iteration of its loop."""
        loop = self.steps[step].loop
        return loop[0] if loop and sem in self._slots(signals)[0].values() else 1

    def _emit(self, p: Program, t: Thread, step: _Step, signals: list[tuple[str, int]]) -> None:
        slots, rest = self._slots(signals)
        instruction = getattr(t, step.thread)
        if step.loop:
            count, strides = step.loop
            call = dict(step.calls[0])
            with t.registers(len(strides)) as regs:
                for r, (name, _) in zip(regs, strides.items()):
                    t.li(r, call[name])
                    call[name] = r
                with t.loop(count):
                    instruction(**call, **slots)
                    for r, stride in zip(regs, strides.values()):
                        t.add(r, r, stride)
        else:
            for call in step.calls[:-1]:
                instruction(**call)
            with t.registers(1) as (r,):
                instruction(**self._indirect(t, r, dict(step.calls[-1])), **slots)
        nothing = {"load": dict(src=0, dst=0, len=0), "store": dict(src=0, dst=0, len=0), "matmul": dict(n=0),
                   "vector": dict(n0=0, a=0)}[step.thread]
        while rest:
            slots, rest = self._slots(rest)
            instruction(**nothing, **slots)

    def _indirect(self, t: Thread, r: R, call: dict) -> dict:
        """Sometimes an address comes from a register, an argument or the table in SRAM."""
        names = [n for n in ADDRESSES if n in call]
        if not self._chance(0.3):
            return call
        name = names[int(self.rng.integers(len(names)))]
        how = self._pick(0, 1, 2, 3)
        if how == 0:
            value = call[name] + int(self.rng.integers(-999, 999))
            t.li(r, value)
        elif how == 1:
            i = int(self.rng.integers(8))
            value = self.args[i]
            t.arg(r, i)
        elif how == 2 and t.name in self.loaded_table:
            i = int(self.rng.integers(16))
            value = self.table_values[i]
            t.lds(r, self.table + 4 * i)
        else:
            value = call[name] // 3 * 3 - 33
            t.li(r, value // 3)
            t.mul(r, r, 3)
        return call | {name: r + (call[name] - value)}

    loaded_table: frozenset[str] = frozenset()


def random_program(config: TileConfig, rng: np.random.Generator, steps: int = 40) -> RandomProgram:
    """A valid random program of about `steps` steps; the same rng state gives the same program."""
    g = _Generator(config, rng, steps)
    # Every thread waits for the LDS table once, in front of its first step.
    first: dict[str, int] = {}
    for i, step in enumerate(g.steps[1:], 1):
        if first.setdefault(step.thread, i) == i:
            step.needs[0] = "done"
    g.loaded_table = frozenset(t for t in first if t != "load")
    image = g.program().image()
    g.dram[:4 * len(image)] = image.view(np.uint8)
    return RandomProgram(image, g.dram, g.args)
