"""Matmul unit on a real SRAM with random stalls: equals golden.units.matmul byte for byte; exact cycle
figures; errors."""

import random

import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from golden import units
from hw.config import BASE, ECP5, TINY
from hw.isa import BY_OP, MATMUL_FLAGS, Error, Op, pack
from hw.matmul import Matmul
from hw.ports import SEM_BITS, SramWrite, command_layout, error_layout
from hw.sram import Sram
from sim.verilate import build_unit

MATMUL = BY_OP[Op.MATMUL]
CONFIGS = {
    c.columns: c.replace(name="test", sram_bytes=64 * 1024, psum_depth=128) for c in (TINY, ECP5, BASE)
}
INPUTS, SCALES, OUTPUTS = 0, 32 * 1024, 40 * 1024
"""The SRAM: random blocks, scale bytes, lane words written."""


class Bench(wiring.Component):
    """Unit and SRAM; the chance of a closed gate per port and cycle is `stall` / 256. `load` and `peek` reach
    the SRAM from outside.

    `blocks` and `macs` count since reset, `first_block` and `last_block` are cycle numbers, `wait_*` count
    the cycles waited.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(MATMUL))),
                "signal": Out(stream.Signature(SEM_BITS)),
                "error": Out(error_layout),
                "busy": Out(1),
                "stall": In(8),
                "load": In(
                    stream.Signature(SramWrite(config).members["req"].signature.members["payload"].shape)
                ),
                "peek": In(stream.Signature(config.sram_addr_bits)),
                "word": Out(stream.Signature(8 * config.word_bytes)),
                "blocks": Out(32),
                "macs": Out(32),
                "first_block": Out(32),
                "last_block": Out(32),
                "wait_stream": Out(32),
                "wait_stat": Out(32),
                "wait_drain": Out(32),
                "last_write": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = Matmul(self.config)
        m.submodules.sram = sram = Sram(  # as in hw/tile.py
            self.config, ["stream", ("scale", "stat"), "peek"], ["drain", "load"], first="stream"
        )
        connect(m, flipped(self.command), unit.command)
        connect(m, unit.signal, flipped(self.signal))
        connect(m, flipped(self.load), sram.load.req)
        connect(m, flipped(self.peek), sram.peek.req)
        noise, now = Signal(32, init=0x2545F491), Signal(32)
        a = noise ^ (noise << 13)[:32]
        b = a ^ (a >> 17)
        m.d.sync += [
            noise.eq(b ^ (b << 5)),
            now.eq(now + 1),
            self.blocks.eq(self.blocks + unit.count_block),
            self.macs.eq(self.macs + unit.count_macs),
            self.wait_drain.eq(self.wait_drain + unit.count_wait_drain),
            self.wait_stat.eq(self.wait_stat + unit.count_wait_stat),
            self.wait_stream.eq(self.wait_stream + unit.count_wait_stream),
        ]
        for i, name in enumerate(("stream", "scale", "stat", "drain")):
            inner, outer = getattr(unit, name), getattr(sram, name)
            gate = noise[8 * i : 8 * i + 8] >= self.stall
            m.d.comb += [
                outer.req.payload.eq(inner.req.payload),
                outer.req.valid.eq(inner.req.valid & gate),
                inner.req.ready.eq(outer.req.ready & gate),
            ]
            if name == "drain":
                m.d.comb += inner.busy.eq(outer.busy)
            else:
                m.d.comb += [inner.valid.eq(outer.valid), inner.data.eq(outer.data)]
        m.d.comb += [
            self.word.valid.eq(sram.peek.valid),
            self.word.payload.eq(sram.peek.data),
            self.error.eq(unit.error),
            self.busy.eq(unit.busy),
        ]
        with m.If(unit.count_block):
            m.d.sync += self.last_block.eq(now)
            with m.If(self.blocks == 0):
                m.d.sync += self.first_block.eq(now)
        with m.If(unit.drain.req.valid & unit.drain.req.ready):
            m.d.sync += self.last_write.eq(now)
        return m


class Harness:
    """One simulated bench and its golden twin; instructions are dicts of operands and flag fields."""

    units_built: dict = {}

    def __init__(self, columns, seed=0):
        self.config = CONFIGS[columns]
        if columns not in self.units_built:
            self.units_built[columns] = build_unit(Bench(self.config), f"matmul_bench_{columns}")
        self.unit = self.units_built[columns]
        self.unit.reset()
        self.unit.collect("signal")
        self.unit.collect("word")
        rng = np.random.default_rng(seed)
        self.sram = rng.integers(0, 256, self.config.sram_bytes, np.uint8)
        scales = rng.integers(118, 136, OUTPUTS - SCALES, np.uint8)
        rare = rng.random(len(scales)) < 0.01
        self.sram[SCALES:OUTPUTS] = np.where(rare, rng.choice([0, 1, 254, 255], len(scales)), scales)
        self.state = units.MatmulState.of(self.config)
        word = self.config.word_bytes
        rows = self.sram.reshape(-1, word)
        bits = self.config.sram_addr_bits
        strobe = (1 << word) - 1
        self.unit.push(
            "load",
            [
                i | int.from_bytes(row.tobytes(), "little") << bits | strobe << bits + 8 * word
                for i, row in enumerate(rows)
            ],
        )
        self.unit.run(len(rows) + 20)

    def encode(self, ins):
        """Payload of the command stream, and (flags, operands, has_scale) for golden."""
        flags = {f.name: ins.get(f.name, 0) for f in MATMUL_FLAGS}
        operands = {o.name: ins.get(o.name, o.default) & 0xFFFFFFFF for o in MATMUL.operands}
        operands["flags"] = pack(MATMUL_FLAGS, **flags)
        mask = sum(1 << i for i, o in enumerate(MATMUL.operands) if o.name in ins) | 1
        values = {
            **operands,
            "mask": mask,
            **{f"sig_{x}": ins.get(f"sig_{x}", 0) for x in "abc"},
            "pc": ins.get("pc", 0),
        }
        payload = sum(values[name] << field.offset for name, field in command_layout(MATMUL))
        return payload, (flags, operands, "scale" in ins)

    def run(self, program, stall=0, max_cycles=60_000):
        """Run instructions back to back, compare signals and the whole SRAM with golden; returns cycles from
        first block to last."""
        payloads, expected = [], []
        for ins in program:
            payload, golden = self.encode(ins)
            payloads.append(payload)
            units.matmul(self.config, self.sram, self.state, *golden)
            expected += [ins[s] for s in ("sig_a", "sig_b", "sig_c") if ins.get(s)]
        self.unit.set("stall", stall)
        start = self.unit.cycles
        out = self.unit.run_streams({"command": payloads}, {"signal": len(expected)}, max_cycles=max_cycles)
        assert out["signal"].tolist() == expected
        self.signal_cycles = self.unit.stamps["signal"] - start
        self.unit.run(40)
        assert self.unit.get("busy") == 0 and self.unit.get("error") == 0
        assert len(self.unit.pop("signal")) == 0
        self.compare()
        return self.unit.get("last_block") - self.unit.get("first_block") + 1

    def compare(self):
        words = self.unit.run_streams(
            {"peek": range(self.config.sram_words)}, {"word": self.config.sram_words}
        )["word"]
        got = words.reshape(-1)
        different = np.flatnonzero(got != self.sram)
        assert not len(different), f"first difference at {different[0]:#x}, {len(different)} bytes"


def random_instruction(rng, config, **fixed):
    """A legal instruction with operands anywhere in their regions."""
    columns = config.columns
    transpose = fixed.get("transpose", rng.random() < 0.3)
    fmt = 0 if transpose else fixed.get("stream_fmt", rng.randrange(3))
    stat_fmt = rng.randrange(3)
    offset = rng.choice((0, 8, 16, rng.randrange(32))) if transpose else 0
    n = fixed.get("n", rng.choice((1, 2, 7, 32, 33, rng.randrange(1, 65))))
    n = min(n, 32 - offset) if transpose else n
    k, rows = fixed.get("k", rng.randrange(1, 6)), rng.randrange(1, columns + 1)
    unit = 16 if stat_fmt == 2 else 32
    data_pass = 32 * rng.randrange(-2, 36)
    ins = dict(
        n=n,
        k=k,
        stream_fmt=fmt,
        stat_fmt=stat_fmt,
        transpose=int(transpose),
        offset=offset,
        rows=rows,
        first=1,
        last=1,
        data=32 * rng.randrange(300, 400),
        data_pass=data_pass,
        stat=unit * rng.randrange(200, 400),
        stat_row=unit * rng.randrange(-3, 12),
        stat_pass=unit * rng.randrange(-3, 20),
        stat_scale=rng.randrange(SCALES + 1000, OUTPUTS - 1000),
        stat_scale_row=rng.choice((1, 1, 3, -2, 40)),
        stat_scale_pass=rng.randrange(-20, 40),
        psum=rng.randrange(0, config.psum_depth - n + 1),
        out=OUTPUTS + 4 * columns * rng.randrange(0, 200),
        max_out=OUTPUTS + 4 * columns * rng.randrange(300, 400),
        mask=rng.randrange(2),
        step=rng.randrange(2),
        max=rng.randrange(2),
        max_first=rng.randrange(2),
        lo=rng.choice((0, -5, 1, 3, -1 << 31, 1 << 30)),
        hi=rng.choice((n, n - 2, n // 2, (1 << 31) - 1, -1 << 31, 0)),
        sig_a=rng.randrange(64),
        sig_b=rng.randrange(1, 64),
        sig_c=rng.randrange(3),
    )
    if rng.random() < 0.8 and not transpose or rng.random() < 0.2:
        ins.update(scale=rng.randrange(SCALES + 100, OUTPUTS - 1000), scale_pass=rng.randrange(-10, 100))
    ins.update(fixed)
    return ins


def random_program(rng, config, length, **fixed):
    """Instructions of all kinds; some keep their sums and continue them later, with others in between."""
    program, kept = [], None
    while len(program) < length:
        ins = random_instruction(rng, config, **fixed)
        if kept is not None:  # stay clear of its partial sums, or continue it
            low, n = kept
            if rng.random() < 0.5 and not ins["transpose"]:
                ins.update(first=0, psum=low, n=n, last=rng.randrange(2))
            else:
                ins["n"] = min(ins["n"], config.psum_depth // 2)
                ins["psum"] = 0 if low >= config.psum_depth // 2 else config.psum_depth // 2
            if not ins["first"] and ins["last"]:
                kept = None
        elif rng.random() < 0.4:
            half = config.psum_depth // 2
            ins["n"] = min(ins["n"], half)
            ins.update(last=0, psum=rng.choice((0, half)))
            kept = ins["psum"], ins["n"]
        elif rng.random() < 0.1:
            ins[rng.choice(("n", "k"))] = 0
        program.append(ins)
    return program


@pytest.mark.parametrize("columns", CONFIGS)
@pytest.mark.parametrize("stall", (0, 60, 200))
def test_random_programs(columns, stall):
    for seed in range(6):
        rng = random.Random(f"{columns} {stall} {seed}")
        harness = Harness(columns, seed)
        harness.run(random_program(rng, harness.config, 40), stall)


def panels(columns, instructions, n, k, **fields):
    """Back-to-back instructions of one GEMM: the stationary rows change, the streamed panel stays."""
    size = (32, 24, 16)[fields.get("stream_fmt", 0)]
    pitch = -(-n * size // 32) * 32
    return [
        dict(
            n=n,
            k=k,
            rows=columns,
            first=1,
            last=1,
            data=0,
            data_pass=pitch,
            scale=SCALES,
            scale_pass=n,
            stat=8192 + 32 * columns * k * i,
            stat_row=32,
            stat_pass=32 * columns,
            stat_scale=SCALES + 2048 + columns * k * i,
            stat_scale_pass=columns,
            out=OUTPUTS + i * n * 4 * columns,
            sig_a=1,
            sig_b=2,
            **fields,
        )
        for i in range(instructions)
    ]


@pytest.mark.parametrize("columns,fmt", [(4, 1), (4, 2), (8, 0), (8, 1), (8, 2)])
def test_no_idle_cycle_between_passes_and_instructions(columns, fmt):
    harness = Harness(columns)
    assert harness.run(panels(columns, 4, 64, 3, stream_fmt=fmt)) == harness.unit.get("blocks") == 4 * 64 * 3
    assert harness.unit.get("macs") == 4 * 64 * 3 * 32 * columns


@pytest.mark.parametrize("columns", (2, 4))
def test_four_narrow_banks_lose_at_most_one_percent(columns):
    """With 2 and 4 columns, lane words of 8 or 16 bytes dwell on a bank of four: some conflicts with a stream
    of MXINT8 are unavoidable."""
    harness = Harness(columns)
    assert harness.run(panels(columns, 4, 64, 3)) - 4 * 64 * 3 <= 8


def test_gemm_64_cubed_takes_less_than_60_cycles_over_its_macs():
    harness = Harness(8)
    program = panels(8, 8, 64, 2)
    harness.run(program)
    # From the decision on the first block: a cycle to the array, its latency, the accumulators, the drain.
    assert harness.unit.get("last_write") - harness.unit.get("first_block") <= 1024 + 25
    assert harness.signal_cycles[-1] <= 1024 + 64, "from the first command offered to the last signal"


@pytest.mark.parametrize("n", (32, 24))
def test_transposed_tiles_take_32_cycles_each(n):
    harness = Harness(8)
    program = panels(8, 4, n, 6, transpose=1)
    for ins in program:
        ins["data_pass"] = 1024
    cycles = harness.run(program)
    # Windows of 32 ticks; the last ends with its last column. Start-up conflicts of the banks cost a few
    # cycles.
    assert 32 * (4 * 6 - 1) + n <= cycles <= 32 * (4 * 6 - 1) + n + 12


@pytest.mark.parametrize("n", (1, 4, 12, 17))
def test_short_passes_are_padded_only_as_far_as_needed(n):
    harness = Harness(8)
    passes = 4 * 6
    cycles = harness.run(panels(8, 4, n, 6))
    assert cycles <= (passes - 1) * max(n, 2 * 8 + 4) + n


def test_full_drain_waits_for_credits():
    """All ports closed three cycles in four, but two blocks arrive with each word: results wait, nothing is
    lost."""
    harness = Harness(8)
    harness.run(panels(8, 4, 64, 1, stream_fmt=2), stall=192)
    assert harness.unit.get("wait_drain") > 0


ERRORS = {
    "n beyond psum": (dict(psum=100, n=64), Error.ILLEGAL_OPERAND, 64),
    "n negative": (dict(n=-1), Error.ILLEGAL_OPERAND, -1),
    "no rows": (dict(rows=0), Error.ILLEGAL_OPERAND, None),
    "too many rows": (dict(rows=5), Error.ILLEGAL_OPERAND, None),
    "format 3": (dict(stream_fmt=3), Error.ILLEGAL_OPERAND, None),
    "stationary format 3": (dict(stat_fmt=3), Error.ILLEGAL_OPERAND, None),
    "transposed FP4": (dict(transpose=1, stream_fmt=2, n=32), Error.ILLEGAL_OPERAND, None),
    "transposed too wide": (dict(transpose=1, n=25, offset=8), Error.ILLEGAL_OPERAND, None),
    "data misaligned": (dict(data=16), Error.ALIGNMENT, 16),
    "data pass misaligned": (dict(data=64, data_pass=48), Error.ALIGNMENT, 112),
    "stationary misaligned": (dict(stat=8192 + 16), Error.ALIGNMENT, 8192 + 16),
    "stationary FP4 misaligned": (dict(stat_fmt=2, stat=8192 + 8), Error.ALIGNMENT, 8192 + 8),
    "out misaligned": (dict(out=OUTPUTS + 8), Error.ALIGNMENT, OUTPUTS + 8),
    "max_out misaligned": (dict(max=1, max_out=OUTPUTS + 4), Error.ALIGNMENT, OUTPUTS + 4),
    "data range": (dict(data=64 * 1024 - 32, data_pass=0), Error.SRAM_RANGE, 64 * 1024),
    "scale range": (dict(scale=64 * 1024 - 3), Error.SRAM_RANGE, 64 * 1024),
    "stationary range": (dict(stat=1 << 31), Error.SRAM_RANGE, 1 << 31),
    "stationary scale range": (dict(stat_scale=-1), Error.SRAM_RANGE, -1),
    "out range": (dict(out=64 * 1024 - 16), Error.SRAM_RANGE, 64 * 1024),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_reported_with_the_instruction_and_the_value(name):
    changes, code, value = ERRORS[name]
    harness = Harness(4)
    good, bad, after = ({**ins, "pc": 100 + i} for i, ins in enumerate(panels(4, 3, 32, 2)))
    bad.update(changes)
    after["sig_b"] = 3
    payloads = [harness.encode(ins)[0] for ins in (good, bad, after)]
    flags = harness.encode(bad)[1][1]["flags"]
    with pytest.raises(units.Fault) as fault:
        units.matmul(harness.config, harness.sram, harness.state, *harness.encode(bad)[1])
    harness.unit.push("command", payloads)
    harness.unit.run(1500)
    error = harness.unit.get("error")
    fields = {key: error >> field.offset & (1 << field.width) - 1 for key, field in error_layout}
    expected = flags if value is None else value & 0xFFFFFFFF
    assert fields == {"valid": 1, "code": code, "pc": 101, "value": expected}
    assert fault.value.code == code
    assert fault.value.value == expected or name in ("data range", "scale range"), (
        "golden gives the start of the pass there"
    )
    assert 3 not in harness.unit.pop("signal"), "the instruction after the failing one must not complete"
