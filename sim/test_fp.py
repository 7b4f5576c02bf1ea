"""FpAdd, FpMul, IntScaleToFloat, Sfu and the combinational helpers equal golden.arith bit for bit, at their
stated latency."""

import numpy as np
import pytest
from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from golden import arith
from hw.fp import (
    FpAdd,
    FpMul,
    IntScaleToFloat,
    above,
    canonical,
    f32_to_bf16,
    fp_max,
    fp_min,
    ftz,
    shift_right,
    total_order_key,
)
from hw.sfu import EXP2, IDENTITY, RECIP, RSQRT, Sfu, chord_tables

CORNERS = np.array(
    [
        0,
        1,
        0x7FFFFF,
        0x800000,
        0x800001,
        0xFFFFFF,
        0x1000000,
        0x3F800000,
        0x3F7FFFFF,
        0x3F800001,
        0x40000000,
        0x33800000,
        0x34000000,
        0x7F7FFFFF,
        0x7F000000,
        0x7E800000,
        0x7E800001,
        0x7EFFFFFF,
        0x7F800000,
        0x7F800001,
        0x7FC00000,
        0x7FFFFFFF,
        0x00400000,
        0x20000000,
        0x1FFFFFFF,
        0x20000001,
        0x5F000000,
        0x42FC0000,
        0x42FC0001,
        0x42FFFFFF,
        0x43000000,
        0x4B000000,
        0x4B7FFFFF,
        0x4B800001,
    ],
    np.uint32,
)
CORNERS = np.concatenate((CORNERS, CORNERS | np.uint32(1 << 31)))


def f32(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def operands(seed: int, n: int):
    """Pairs of bit patterns: all pairs of corners, uniform patterns, close exponents, cancellations, sparse
    fractions."""
    rng = np.random.default_rng(seed)

    def word(size):
        return rng.integers(0, 1 << 32, size, np.uint32)

    a = np.repeat(CORNERS, len(CORNERS))
    b = np.tile(CORNERS, len(CORNERS))
    k = n // 4
    near = word(k)
    near_b = (near & 0x7F800000).astype(np.int64) + (rng.integers(-27, 28, k) << 23)
    near_b = (np.clip(near_b, 0, 0x7F800000).astype(np.uint32)) | (word(k) & 0x807FFFFF)
    cancel = word(k)
    cancel_b = (
        (cancel ^ 0x80000000)
        + rng.integers(-3, 4, k).astype(np.uint32)
        + (rng.integers(-1, 2, k) << 23).astype(np.uint32)
    )
    # Exponents whose sum lies at the edges of the range, for products; fractions of few ones hit ties and
    # all-ones.
    exp = rng.integers(0, 255, k)
    other = np.clip(np.where(rng.integers(0, 2, k), 381, 127) - exp + rng.integers(-2, 3, k), 0, 254)
    fill = np.where(rng.integers(0, 2, k), 0x7FFFFF, 0).astype(np.uint32)
    sparse = [
        (word(k) & 0x80000000)
        | (e.astype(np.uint32) << 23)
        | ((fill ^ (1 << rng.integers(0, 24, k)).astype(np.uint32)) & 0x7FFFFF)
        for e in (exp, other)
    ]
    # Short fractions, whose products are exact or ties.
    short = [word(k) & (0xFFFFFFFF << rng.integers(8, 24, k)).astype(np.uint32) for _ in range(2)]
    return (
        np.concatenate((a, word(n - 3 * k), near, cancel, sparse[0], short[0])),
        np.concatenate((b, word(n - 3 * k), near_b, cancel_b, sparse[1], short[1])),
    )


def run(dut, inputs: dict, outputs: dict) -> dict:
    """Feed one row of `inputs` a cycle; `outputs`: {member: latency} -> what each shows that many cycles
    after its inputs."""
    rows = [(getattr(dut, name), [int(v) for v in values]) for name, values in inputs.items()]
    n = len(rows[0][1])
    got = {name: [] for name in outputs}

    async def process(ctx):
        for t in range(n + max(outputs.values())):
            for member, values in rows:
                ctx.set(member, values[min(t, n - 1)])
            for name, latency in outputs.items():
                if latency <= t < n + latency:
                    got[name].append(ctx.get(getattr(dut, name)))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(process)
    simulator.run()
    return {name: np.array(values) for name, values in got.items()}


def check(got, expected, *inputs):
    expected = np.asarray(expected, np.uint32)
    assert len(got) == len(expected)
    bad = np.flatnonzero(got != expected)
    assert not len(bad), f"{len(bad)} wrong, first: " + "; ".join(
        f"{[hex(int(i[j])) for i in inputs]} -> {int(got[j]):#x}, golden {int(expected[j]):#x}"
        for j in bad[:5]
    )


@pytest.mark.parametrize("seed", [1])
def test_add_and_mul(seed):
    a, b = operands(seed, 20000)
    for unit, latency, golden in ((FpAdd(), 6, arith.fadd), (FpMul(), 4, arith.fmul)):
        assert unit.latency == latency
        check(run(unit, {"a": a, "b": b}, {"o": latency})["o"], bits(golden(f32(a), f32(b))), a, b)


@pytest.mark.parametrize("unit, golden", [(FpAdd, arith.fadd), (FpMul, arith.fmul)])
def test_fewer_stages(unit, golden):
    a, b = (x[::40] for x in operands(2, 8000))
    for stages in (1, 2, 3):
        dut = unit(stages=stages)
        check(run(dut, {"a": a, "b": b}, {"o": stages})["o"], bits(golden(f32(a), f32(b))), a, b)
    with pytest.raises(ValueError):
        unit(stages=7)


@pytest.mark.parametrize("width", [6, 21, 24])
def test_int_scale_to_float(width):
    rng = np.random.default_rng(width)
    top = 1 << width - 1
    n = 7000
    i = rng.integers(-top, top, n) >> rng.integers(0, width, n)
    i[:8] = [0, 1, -1, top - 1, -top, -top + 1, 0, 2]
    e = np.where(rng.integers(0, 2, n), rng.integers(-1024, 1024, n), rng.integers(-160, -120, n))
    nan = rng.integers(0, 16, n) == 0
    dut = IntScaleToFloat(width)
    assert dut.latency == 3
    expected = np.where(nan, 0x7FC00000, bits(arith.dot_to_f32(i, e)))
    check(run(dut, {"i": i, "e": e, "nan": nan}, {"o": 3})["o"], expected, i + (1 << 32), e + 2048, nan)


def round_sensitive(rng, n: int) -> np.ndarray:
    """Arguments in [1, 4) and, for exp2, [0, 1), whose result depends on the rounding of the product T1 *
    lo."""
    frac = rng.integers(0, 1 << 23, 1 << 20).astype(np.uint32)
    found = []
    for name, index, lo in (
        ("exp2", frac >> 13, frac & 8191),
        ("recip", frac >> 13, frac & 8191),
        ("rsqrt", frac >> 14, frac & 16383),
        ("rsqrt", 512 + (frac >> 14), (frac & 16383) * 2),
    ):
        t0, t1 = (t.view(np.float32)[index].astype(np.float64) for t in arith.tables()[name])
        product = t1 * (lo * 2.0**-23)
        once, twice = (t0 + product).astype(np.float32), (t0 + product.astype(np.float32)).astype(np.float32)
        hit = frac[once != twice][:n]
        assert len(hit) > 20
        odd = name == "rsqrt" and index[0] >= 512
        found.append(
            bits(hit * 2.0**-23) if name == "exp2" else hit | np.uint32(0x40000000 if odd else 0x3F800000)
        )
    return np.concatenate(found)


def table_inputs(seed, n):
    """Uniform patterns, arguments of exp2 around its whole range, every table node and its neighbours, tiny
    |x|."""
    rng = np.random.default_rng(seed)
    nodes = (np.arange(1024, dtype=np.uint32) << 13) + np.uint32(0x3F800000)
    return np.concatenate(
        (
            CORNERS,
            round_sensitive(rng, 100),
            rng.integers(0, 1 << 32, n, np.uint32),
            bits(rng.uniform(-130, 130, n)),
            bits(rng.normal(0, 1, n)),
            bits(np.ldexp(rng.uniform(-2, 2, n), rng.integers(-26, 0, n))),
            nodes,
            nodes - 1,
            nodes + np.uint32(1 << 23),
            bits(-126 + np.arange(64) * 2.0**-17),
            bits(128 - np.arange(1, 65) * 2.0**-17),
            rng.integers(0x7E000000, 0x7F800000, n // 4, np.uint32),
        )
    )


@pytest.mark.parametrize("seed", [3])
def test_sfu(seed):
    a = table_inputs(seed, 1500)
    golden = {IDENTITY: arith.canon, EXP2: arith.exp2, RECIP: arith.recip, RSQRT: arith.rsqrt}
    func = np.concatenate([np.full(len(a), f) for f in golden])
    a4 = np.tile(a, 4)
    # Interleaved in random order: neighbours of another function must not leak into each other.
    order = np.random.default_rng(seed).permutation(len(a4))
    expected = np.concatenate([bits(g(f32(a))) for g in golden.values()])
    dut = Sfu()
    assert dut.latency == 12
    check(
        run(dut, {"a": a4[order], "func": func[order]}, {"o": 12})["o"],
        expected[order],
        a4[order],
        func[order],
    )


def test_sfu_lanes():
    """Lanes share tables, not results."""
    rng = np.random.default_rng(5)
    a = rng.integers(0x3F000000, 0x40800000, (3, 400), np.uint32)
    func = rng.integers(0, 4, 400)
    word = [int(a[0][t]) | int(a[1][t]) << 32 | int(a[2][t]) << 64 for t in range(400)]
    got = run(Sfu(3), {"a": word, "func": func}, {"o": 12})["o"]
    golden = [arith.canon, arith.exp2, arith.recip, arith.rsqrt]
    for r in range(3):
        expected = np.choose(func, [bits(g(f32(a[r]))) for g in golden])
        check(np.array([o >> 32 * r & 0xFFFFFFFF for o in got]), expected, a[r], func)


def test_tables_equal_golden():
    for func, name in ((EXP2, "exp2"), (RECIP, "recip"), (RSQRT, "rsqrt")):
        t0, t1 = arith.tables()[name]
        chords = chord_tables()[func]
        assert [c[0] for c in chords] == t0.tolist()
        sign = 1 if func == EXP2 else -1
        slopes = np.array([sign * c[1] * 2.0 ** (c[2] - 18) for c in chords])
        assert (slopes == t1.view(np.float32)).all()


class Helpers(wiring.Component):
    """All combinational helpers on the same pair of operands, registered."""

    def __init__(self):
        super().__init__(
            {
                "a": In(32),
                "b": In(32),
                "ftz": Out(32),
                "canonical": Out(32),
                "bf16": Out(16),
                "key": Out(32),
                "max": Out(32),
                "min": Out(32),
                "above": Out(1),
                "equal_above": Out(1),
                "shifted": Out(32),
                "out": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        ca, cb = canonical(self.a), canonical(self.b)
        m.d.sync += [
            self.ftz.eq(ftz(self.a)),
            self.canonical.eq(ca),
            self.bf16.eq(f32_to_bf16(self.a)),
            self.key.eq(total_order_key(ca)),
            self.max.eq(fp_max(ca, cb)),
            self.min.eq(fp_min(ca, cb)),
            self.above.eq(above(ca, cb)),
            self.equal_above.eq(above(ca, ca)),
            Cat(self.shifted, self.out).eq(Cat(*shift_right(self.a, self.b[:5]))),
        ]
        return m


def test_helpers():
    a, b = (x[::7] for x in operands(4, 8000))
    names = ("ftz", "canonical", "bf16", "key", "max", "min", "above", "equal_above", "shifted", "out")
    got = run(Helpers(), {"a": a, "b": b}, dict.fromkeys(names, 1))
    fa, fb = f32(a), f32(b)
    ca, cb = arith.canon(fa), arith.canon(fb)
    check(got["ftz"], bits(arith.ftz(fa)), a)
    check(got["canonical"], bits(ca), a)
    check(got["bf16"], arith.f32_to_bf16(fa), a)
    check(got["key"], arith.key(ca).view(np.uint32), a)
    check(got["max"], bits(arith.fmax(ca, cb)), a, b)
    check(got["min"], bits(arith.fmin(ca, cb)), a, b)
    check(got["above"], arith.key(ca) > arith.key(cb), a, b)
    assert not got["equal_above"].any()
    check(got["shifted"], a >> (b & 31), a, b)
    check(got["out"], (a & ((np.uint32(1) << (b & 31)) - np.uint32(1))) != 0, a, b)
