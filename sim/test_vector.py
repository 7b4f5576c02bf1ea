"""The vector unit on a real SRAM equals golden.units.vector bit for bit, under stalls, overlap and errors, at
its stated rate."""

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from golden.units import Fault, vector
from hw.config import BASE, TINY, TileConfig
from hw.isa import VECTOR_FLAGS, VECTOR_FLAGS2, Error, pack, unpack
from hw.ports import SEM_BITS, command_layout, error_layout
from hw.sram import Sram
from hw.vector import INSTRUCTION, Vector
from sim.verilate import build_unit

CONFIGS = {
    "tiny": TINY,
    "base": BASE.replace(sram_bytes=128 * 1024),
    "one_lane": TINY.replace(name="one_lane", vector_fold=2),
    "folded": TINY.replace(name="folded", columns=4, vector_fold=2, sram_banks=2),
}
WIDE = {"c16": BASE.replace(name="c16", columns=16, sram_bytes=128 * 1024)}
"""Lane words of more than 32 bytes, for the tests that draw their instructions."""
DEFAULTS = {o.name: o.default for o in INSTRUCTION.operands}


class Bench(wiring.Component):
    """Vector unit and SRAM, with a port to fill and one to dump; `stall` (0..255): chance of 256ths that a
    port stalls."""

    def __init__(self, config: TileConfig):
        self.config = config
        word = 8 * config.word_bytes
        self.vector, self.sram = Vector(config), Sram(config, ["a", "b", "d", "dump"], ["out", "load"])
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(INSTRUCTION))),
                "signal": Out(stream.Signature(SEM_BITS)),
                "load": In(stream.Signature(self.sram.load.req.payload.shape())),
                "ask": In(stream.Signature(config.sram_addr_bits)),
                "dump": Out(stream.Signature(word)),
                "stall": In(8),
                "error": Out(error_layout),
                "busy": Out(1),
                "elements": Out(32),
                "first_element": Out(32),
                "last_element": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.vector, m.submodules.sram = unit, sram = self.vector, self.sram
        noise, now = Signal(64, init=0x9E3779B97F4A7C15), Signal(32)
        m.d.sync += [noise.eq((noise << 9) ^ (noise >> 7) ^ noise[60:] ^ (noise << 13)[:64]), now.eq(now + 1)]
        wiring.connect(m, wiring.flipped(self.command), unit.command)
        wiring.connect(m, unit.signal, wiring.flipped(self.signal))
        wiring.connect(m, wiring.flipped(self.load), sram.load.req)
        wiring.connect(m, wiring.flipped(self.ask), sram.dump.req)
        m.d.comb += [
            self.dump.valid.eq(sram.dump.valid),
            self.dump.payload.eq(sram.dump.data),
            self.error.eq(unit.error),
            self.busy.eq(unit.busy),
        ]
        for k, name in enumerate(("a", "b", "d", "out")):
            left, right, stalled = getattr(unit, name), getattr(sram, name), Signal(name=f"stalled_{name}")
            m.d.sync += stalled.eq(noise[8 * k : 8 * k + 8] < self.stall)
            m.d.comb += [
                right.req.valid.eq(left.req.valid & ~stalled),
                left.req.ready.eq(right.req.ready & ~stalled),
                right.req.payload.eq(left.req.payload),
            ]
            if name == "out":
                m.d.comb += left.busy.eq(right.busy)
            else:
                m.d.comb += [left.valid.eq(right.valid), left.data.eq(right.data)]
        with m.If(unit.count_elements):
            m.d.sync += [self.elements.eq(self.elements + 1), self.last_element.eq(now)]
            with m.If(self.elements == 0):
                m.d.sync += self.first_element.eq(now)
        return m


class Machine:
    """The bench beside the golden model."""

    def __init__(self, name: str):
        self.config = (CONFIGS | WIDE)[name]
        self.unit = build_unit(Bench(self.config), f"vector_bench_{name}")
        self.unit.collect("signal")
        self.unit.collect("dump")
        self.words = self.config.sram_bytes // self.config.word_bytes

    def load(self, sram: np.ndarray) -> None:
        self.unit.reset()
        size, bits = self.config.word_bytes, self.config.sram_addr_bits
        strobes = (1 << size) - 1
        items = [
            w
            | int.from_bytes(sram[w * size : (w + 1) * size].tobytes(), "little") << bits
            | strobes << bits + 8 * size
            for w in range(self.words)
        ]
        self.unit.run_streams({"load": items}, {})
        self.unit.step(20)

    def dump(self) -> np.ndarray:
        return self.unit.run_streams({"ask": list(range(self.words))}, {"dump": self.words})["dump"].reshape(
            -1
        )

    def command(self, operands: dict, sigs=(0, 0, 0), pc: int = 0) -> int:
        mask = sum(1 << INSTRUCTION.index(name) for name in operands)
        values = {name: value & 0xFFFFFFFF for name, value in {**DEFAULTS, **operands}.items()}
        layout = command_layout(INSTRUCTION)
        return (
            layout.const(
                {**values, "mask": mask, "sig_a": sigs[0], "sig_b": sigs[1], "sig_c": sigs[2], "pc": pc}
            )
            .as_value()
            .value
        )

    def golden(self, sram: np.ndarray, operands: dict) -> None:
        f = {**unpack(VECTOR_FLAGS, operands["flags"]), **unpack(VECTOR_FLAGS2, operands["flags2"])}
        o = {name: value & 0xFFFFFFFF for name, value in {**DEFAULTS, **operands}.items()}
        vector(self.config, sram, f, o, frozenset(operands))


MACHINES: dict[str, Machine] = {}


def machine(name: str) -> Machine:
    if name not in MACHINES:
        MACHINES[name] = Machine(name)
    return MACHINES[name]


def operand(flags: dict, flags2: dict, **others: int) -> dict:
    return {"flags": pack(VECTOR_FLAGS, **flags), "flags2": pack(VECTOR_FLAGS2, **flags2), **others}


def memory(rng: np.random.Generator, size: int) -> np.ndarray:
    """Float32, bf16 and random bytes in turn, with special values."""
    sram = rng.integers(0, 256, size, np.uint8)
    for start in range(0, size, 512):
        kind = (start // 512) % 8
        if kind < 5:
            sram[start : start + 512] = (
                (rng.normal(0, 1, 128) * 2.0 ** rng.integers(-3, 4)).astype(np.float32).view(np.uint8)
            )
        elif kind < 7:
            sram[start : start + 512] = (
                rng.normal(0, 2, 512).astype(np.float32).view(np.uint16)[1:512:2].copy().view(np.uint8)
            )
    return sram


def random_instruction(rng, config: TileConfig, place) -> dict:
    """A legal instruction that reads the lower half of SRAM and writes where `place(bytes, align)` says."""
    c, half = config.columns, config.sram_bytes // 2

    def choose(*options):
        return int(rng.choice(options))

    n0, n1, n2 = (
        choose(0, 1, 2, 7, 8, 9, 16, 31, 32, 33, 40, 64, 71),
        choose(1, 1, 1, 2, 3),
        choose(1, 1, 1, 2),
    )
    if n0 > 40:
        n1 = n2 = 1
    n = n0 * n1 * n2
    flags = {
        "a_type": choose(0, 0, 0, 1, 2, 3, 4),
        "b_type": choose(0, 0, 1, 2, 3, 4),
        "d_type": choose(0, 1, 2, 3, 4),
        "x1": choose(0, 1, 2, 3),
        "neg1": choose(0, 1),
        "x2": choose(0, 1, 2, 3),
        "neg2": choose(0, 1),
        "lo": choose(0, 0, 1),
        "hi": choose(0, 0, 1),
        "func": choose(0, 0, 1, 2, 3),
        "x3": choose(0, 1, 2, 3, 4),
        "x4": choose(0, 0, 1, 2, 3),
        "where": choose(0, 0, 0, 1),
    }
    mode, red_op = choose(0, 1, 1, 2, 3, 3), choose(0, 0, 1, 2, 3, 4)
    flags2 = {
        "out_mode": mode,
        "red_op": red_op,
        "block": choose(0, 0, 1, 2),
        "zfill": choose(0, 1),
        "overlap": choose(0, 1, 1),
        "lane0": 0,
        "rows": choose(0, *range(1, c + 1)),
        "pack": 0,
    }
    if mode in (1, 2):
        flags2["pack"] = choose(0, 0, 1)
        flags2["lane0"] = choose(*range(c - (1 if flags2["pack"] else flags2["rows"] or c) + 1))
    others = {"n0": n0, "n1": n1, "n2": n2}
    if n1 == 1 and choose(0, 1):
        del others["n1"]
    for name in "abd":
        size = (4 * c, 2 * c, 4, 2, 1)[flags[f"{name}_type"]]
        steps = [choose(size, size, 0, 2 * size, -size) for _ in range(3)]
        addresses, at = [], 0
        for i in range(n):
            addresses.append(at)
            at += steps[0] if (i + 1) % n0 else steps[1] if (i + 1) % (n0 * n1) else steps[2]
        low, high = min(addresses, default=0), max(addresses, default=0)
        others[name] = size * int(rng.integers(-low // size, (half - high) // size))
        for k, step in enumerate(steps):
            if step != size or choose(0, 1):
                others[f"{name}{k}"] = step
    for s in ("s0", "s1", "s2", "s4", "s5"):
        if choose(0, 1):
            others[s] = 4 * c * int(rng.integers(0, half // (4 * c)))
    for constant in ("c0", "c1", "c2", "c3"):
        others[constant] = int(np.float32(rng.normal(0, 2)).view(np.uint32))
    if flags["where"] and not flags["hi"] and "s5" not in others:
        others["c3"] = choose(0, 1, max(n - 1, 0), n)
    if mode in (1, 2):
        size = (4, 2)[mode - 1] * (1 if flags2["pack"] else c)
        gap = choose(0, 0, 1) * size
        others["out"] = place((size + gap) * n, size)
        if gap:
            others |= {"o0": size + gap, "o1": size + gap, "o2": size + gap}
    elif mode == 3:
        block = 32 >> flags2["block"]
        blocks = -(-n // block)
        order = choose(0, 0, 1)
        rows = flags2["rows"] or c
        others["out"] = place(32 * c * blocks, 32) + block * int(rng.integers(0, 32 // block))
        if order:
            others |= {"o0": 32 * max(blocks, 1), "o1": 32}
        if rows < c and choose(0, 1):
            word = config.word_bytes
            others["qs"] = place(word * blocks, word) + int(rng.integers(0, word - rows + 1))
            others["o2"] = word
        else:
            others["qs"] = place(c * blocks, c)
    if red_op:
        others["red"] = place(8 * c, 4 * c)
    return operand(flags, flags2, **others)


def run(bench: Machine, sram: np.ndarray, program: list[dict], stall: int = 0) -> dict[str, int]:
    """Load SRAM, execute the program on both sides, compare all of SRAM and the signals. Returns cycle
    figures."""
    bench.load(sram)
    signals = [(2 * (i % 8) + 1, 32 + i % 8, 48 + i % 8 if i % 3 else 0) for i in range(len(program))]
    items = [bench.command(o, s, pc) for pc, (o, s) in enumerate(zip(program, signals, strict=True))]
    for operands in program:
        bench.golden(sram, operands)
    early, late = [s[0] for s in signals], [sig for s in signals for sig in s[1:] if sig]
    bench.unit.set("stall", stall)
    got = bench.unit.run_streams(
        {"command": items}, {"signal": len(early + late)}, stall={"signal": stall / 256}, max_cycles=100_000
    )["signal"].tolist()
    assert bench.unit.get("error") == 0
    assert [s for s in got if s < 32] == early and [s for s in got if s >= 32] == late
    stamps = bench.unit.stamps
    bench.unit.set("stall", 0)
    bench.unit.step(5)
    assert bench.unit.get("busy") == 0
    first, last = bench.unit.get("first_element"), bench.unit.get("last_element")
    difference = np.flatnonzero(bench.dump() != sram)
    assert not len(difference), f"{len(difference)} bytes differ, first at {difference[0]:#x}"
    return {
        "elements": bench.unit.get("elements"),
        "span": last - first + 1,
        "total": int(stamps["signal"][-1] - stamps["command"][0]),
    }


def allocator(start: int):
    at = [start]

    def place(size: int, align: int) -> int:
        at[0] = -(-at[0] // align) * align
        start, at[0] = at[0], at[0] + size
        return start

    return place


@pytest.mark.parametrize("stall", [0, 60, 200])
@pytest.mark.parametrize("name", CONFIGS | WIDE)
def test_random(name, stall):
    bench = machine(name)
    for seed in range(8):
        print("seed", seed)
        rng = np.random.default_rng(seed + 100 * stall)
        place = allocator(bench.config.sram_bytes // 2)
        program = []
        while place(0, 1) < bench.config.sram_bytes - 20000 and len(program) < 40:
            program.append(random_instruction(rng, bench.config, place))
        assert len(program) > 5
        result = run(bench, memory(rng, bench.config.sram_bytes), program, stall)
        assert result["elements"] == sum(o["n0"] * o.get("n1", 1) * o["n2"] for o in program)


def softmax_pass(
    config: TileConfig, place, n: int, i: int, *, mode: int = 3, red_op: int = 1, overlap: int = 1
) -> dict:
    """exp2(scale * x - max), its sum, quantised: the inner loop of attention. One scalar operand is a lane
    word."""
    c = config.columns
    return operand(
        {"x1": 3, "x2": 3, "neg2": 1, "func": 1},
        {"out_mode": mode, "red_op": red_op, "overlap": overlap},
        n0=n,
        a=4 * c * i,
        c0=0x3F000000,
        s1=4 * c * (i + 1),
        out=place(n * 4 * c, 32 * c),
        qs=place(n * c, c),
        red=place(8 * c, 4 * c),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_cycles(name):
    """One element per cycle (two where the unit is folded); between overlapped instructions one cycle and one
    per scalar lane word, 11 between sums (43). An instruction alone also waits for its checks, which are two
    registers deep, and its blocks pass a FIFO."""
    bench = machine(name)
    config, n = bench.config, 256
    fold = config.vector_fold
    sram = memory(np.random.default_rng(7), config.sram_bytes)
    for count, options, gap, tail in (
        (1, {}, 0, 105 if fold == 1 else 137),
        (4, {}, 12 if fold == 1 else 44, 100),
        (4, {"red_op": 0}, 2, 102),
        (4, {"red_op": 3, "mode": 2}, 2, 120),
        (3, {"mode": 1, "red_op": 0}, 2, 60),
    ):
        place = allocator(config.sram_bytes // 2)
        result = run(bench, sram.copy(), [softmax_pass(config, place, n, i, **options) for i in range(count)])
        assert result["elements"] == count * n
        assert result["span"] <= count * n * fold + (count - 1) * gap + 4, (
            result
        )  # 4: bank conflicts of the first words
        assert result["total"] <= count * (n * fold + gap) + tail, result
    place = allocator(config.sram_bytes // 2)
    serial = run(
        bench, sram.copy(), [softmax_pass(config, place, n, i, mode=1, red_op=0, overlap=0) for i in range(3)]
    )
    assert serial["total"] <= 3 * (n * fold + 59), serial


@pytest.mark.parametrize("name", CONFIGS)
def test_many_overlapping(name):
    """Short and long instructions with every kind of result chase each other; sums after sums at all
    distances."""
    bench = machine(name)
    rng = np.random.default_rng(11)
    for stall in (0, 30):
        place = allocator(bench.config.sram_bytes // 2)
        program = [
            softmax_pass(
                bench.config, place, int(n), i % 32, mode=int(rng.choice([0, 1, 2])), red_op=int(red_op)
            )
            for i, (n, red_op) in enumerate(
                zip(rng.integers(1, 60, 40), rng.choice([1, 1, 2, 3, 4], 40), strict=True)
            )
            if place(0, 1) < bench.config.sram_bytes - 60 * 5 * bench.config.columns - 4096
        ]
        assert len(program) > 8
        run(bench, memory(rng, bench.config.sram_bytes), program, stall)


def test_errors():
    """The first error's code, program counter and value equal golden's, and the unit stops."""
    bench = machine("tiny")
    c, size = bench.config.columns, bench.config.sram_bytes
    good = {"flags": {"x1": 1}, "flags2": {"out_mode": 1, "overlap": 1}}
    cases = [
        ({"a_type": 5}, {}, {}),
        ({"b_type": 6, "x1": 2}, {}, {}),
        ({"d_type": 7, "x2": 2}, {}, {}),
        ({"x3": 5}, {}, {}),
        ({}, {"red_op": 5}, {}),
        ({}, {"block": 3}, {}),
        ({}, {"rows": c + 1}, {}),
        ({}, {"rows": c, "lane0": 1}, {}),
        ({}, {"pack": 1, "lane0": c}, {}),
        ({}, {}, {"a": size - 4 * c}),
        ({}, {}, {"a": 4}),
        ({"b_type": 1, "x1": 2}, {}, {"b": 2}),
        ({"d_type": 3, "x4": 2}, {}, {"d": 1}),
        ({}, {}, {"a0": 4 * c + 4}),
        ({}, {}, {"a": 0xFFFFFFF8}),
        ({"d_type": 2, "x2": 2}, {}, {"d": size - 8}),
        ({"x1": 3}, {}, {"s0": size}),
        ({"x1": 3}, {}, {"s0": 4}),
        ({}, {}, {"out": size - 8 * c}),
        ({}, {}, {"out": 4}),
        ({}, {"out_mode": 2}, {"out": 2}),
        ({}, {"pack": 1}, {"out": 2}),
        ({}, {"out_mode": 0, "red_op": 1}, {"red": size}),
        ({}, {"out_mode": 0, "red_op": 4}, {"red": size - 4 * c}),
        ({}, {"red_op": 3}, {"red": 4}),
        ({}, {"out_mode": 3}, {"out": 16}),
        ({}, {"out_mode": 3, "block": 1}, {"out": 8, "qs": size - 64}),
        ({}, {"out_mode": 3, "rows": 2}, {"qs": 31, "out": size - 4096}),
        ({}, {"out_mode": 3}, {"qs": size, "out": size - 4096}),
    ]
    for flags, flags2, others in cases:
        bad = operand(
            {**good["flags"], **flags}, {**good["flags2"], **flags2}, **{"n0": 5, "out": size // 2, **others}
        )
        fine = operand(good["flags"], good["flags2"], n0=9, out=size // 2 + 1024)
        with pytest.raises(Fault) as fault:
            bench.golden(np.zeros(size, np.uint8), bad)
        bench.load(np.zeros(size, np.uint8))
        bench.unit.push(
            "command", [bench.command(o, (1, 2, 3), pc) for pc, o in enumerate((fine, bad, fine))]
        )
        bench.unit.run(2000)
        layout = error_layout
        got = layout.from_bits(bench.unit.get("error"))
        assert (got.valid, got.code, got.pc, got.value) == (1, fault.value.code, 1, fault.value.value), (
            flags,
            flags2,
            others,
        )
        assert bench.unit.pop("signal").tolist().count(2) <= 1, "an instruction after the error has completed"
    # A count that the counters do not hold is refused (golden would run it).
    bench.load(np.zeros(size, np.uint8))
    bench.unit.push("command", [bench.command(operand({}, {}, n0=1 << 24))])
    bench.unit.run(100)
    got = error_layout.from_bits(bench.unit.get("error"))
    assert (got.code, got.value) == (Error.ILLEGAL_OPERAND, 1 << 24)
