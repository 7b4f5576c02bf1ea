"""The matmul unit on hostile memory ports: MX matrix products against golden.formats.accumulate."""

import cocotb
import numpy as np

from golden import arith, formats
from hw.isa import BY_OP, MATMUL_FLAGS, Op, pack
from hw.ports import command_layout
from tb.bench import Bench, MemoryPorts
from tb.designs import CONFIG

C, LANE = CONFIG.columns, CONFIG.lane_bytes
MATMUL = BY_OP[Op.MATMUL]
PITCH = (32, 32, 16)
"""Bytes from one stationary block to the next."""


class Job:
    """A product x (rows, K) . w (N, K): operands placed in `sram`, its instructions, the words expected."""

    def __init__(self, rng: np.random.Generator, sram: np.ndarray, at: int):
        self.sram, self.at = sram, at
        n, k, rows = (
            int(rng.integers(1, CONFIG.psum_depth + 1)),
            int(rng.integers(1, 5)),
            int(rng.integers(1, C + 1)),
        )
        fw, fx = (int(f) for f in rng.integers(0, 3, 2))
        x, sx = self.blocks(rng, rows, k, fx)
        w, sw = self.blocks(rng, n, k, fw)
        one_pass = -(-n * formats.BLOCK_BYTES[fw] // 32) * 32
        stream = np.zeros((k, one_pass), np.uint8)
        stream[:, : n * formats.BLOCK_BYTES[fw]] = formats.pack(w.transpose(1, 0, 2), fw).reshape(k, -1)
        stat = np.zeros((k, rows, PITCH[fx]), np.uint8)
        stat[..., : formats.BLOCK_BYTES[fx]] = formats.pack(x.transpose(1, 0, 2), fx)
        self.n, self.end = n, int(rng.integers(0, CONFIG.psum_depth - n + 1))
        common = {
            "n": n,
            "k": k,
            "psum": self.end,
            "data": self.put(stream),
            "data_pass": one_pass,
            "scale": self.put(sw.T, 1),
            "scale_pass": n,
            "stat": self.put(stat),
            "stat_row": PITCH[fx],
            "stat_pass": PITCH[fx] * rows,
            "stat_scale": self.put(sx.T, 1),
            "stat_scale_pass": rows,
        }
        flags = {"stream_fmt": fw, "stat_fmt": fx, "rows": rows}
        self.out = -(-self.at // LANE) * LANE
        self.at = self.out + (n + 1) * LANE
        last = {"out": self.out, "max_out": self.out + n * LANE}
        final = {"last": 1, "max": 1, "max_first": 1}
        if k > 1 and rng.random() < 0.5:  # the sums stay in the unit between two instructions
            cut = int(rng.integers(1, k))
            rest = {
                name: common[name] + cut * common[f"{name}_pass"]
                for name in ("data", "scale", "stat", "stat_scale")
            }
            self.instructions = [
                (common | {"k": cut}, flags | {"first": 1}),
                (common | rest | {"k": k - cut} | last, flags | final),
            ]
        else:
            self.instructions = [(common | last, flags | final | {"first": 1})]
        absent = C - rows
        x, sx = (
            np.pad(x, ((0, absent), (0, 0), (0, 0))),
            np.pad(sx, ((0, absent), (0, 0)), constant_values=127),
        )
        self.words = np.ascontiguousarray(formats.accumulate(x, sx, w, sw, fx, fw).T)
        self.best = arith.max_reduce(self.words, axis=0)

    @staticmethod
    def blocks(rng: np.random.Generator, rows: int, k: int, fmt: int) -> tuple[np.ndarray, np.ndarray]:
        ints, scales = formats.encode(rng.normal(0, 2, (rows, 32 * k)).astype(np.float32), fmt)
        odd = rng.random(scales.shape) < 0.02
        return ints, np.where(odd, rng.choice([0, 1, 60, 254, 255], scales.shape), scales).astype(np.uint8)

    def put(self, values: np.ndarray, align: int = 32) -> int:
        at = -(-self.at // align) * align
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.sram[at : at + len(raw)] = raw
        self.at = at + len(raw)
        return at

    def expect(self, sram: np.ndarray) -> None:
        both = np.concatenate([self.words, self.best[None]]).astype(np.float32)
        sram[self.out : self.out + both.nbytes] = both.view(np.uint8).reshape(-1)


def payload(operands: dict[str, int], flags: dict[str, int], sigs: tuple[int, int, int]) -> int:
    values = {o.name: operands.get(o.name, o.default) & 0xFFFFFFFF for o in MATMUL.operands}
    values |= {
        "flags": pack(MATMUL_FLAGS, **flags),
        "pc": 1,
        "mask": 1 | sum(1 << MATMUL.index(name) for name in operands),
    }
    values |= dict(zip(("sig_a", "sig_b", "sig_c"), sigs))
    return sum(values[name] << field.offset for name, field in command_layout(MATMUL))


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2, 3], stall=[0.0, 0.4])
async def test_products(dut, seed, stall):
    bench = Bench(dut, seed)
    rng = np.random.default_rng(seed)
    sram = rng.integers(0, 256, CONFIG.sram_bytes, np.uint8)
    jobs: list[Job] = []
    at = 0
    while at < CONFIG.sram_bytes - 14000 and len(jobs) < 8:
        jobs.append(Job(rng, sram, at))
        at = jobs[-1].at
    memory = MemoryPorts(
        bench,
        bytearray(sram.tobytes()),
        CONFIG.word_bytes,
        ("matmul_stream", "matmul_scale", "matmul_stat"),
        ("matmul_drain",),
        stall,
    )
    commands, signals = bench.source("matmul_command", stall), bench.sink("matmul_signal", stall)
    instructions = [i for job in jobs for i in job.instructions]
    sigs = [(1 + i % 20, 21 + i % 20, 41 + i % 20 if i % 2 else 0) for i in range(len(instructions))]
    commands.push(payload(*i, s) for i, s in zip(instructions, sigs))
    await bench.start()
    want = [s for three in sigs for s in three if s]
    await bench.until(lambda: len(signals.items) >= len(want), "signals", 40_000)
    await bench.until(lambda: not int(dut.matmul_busy.value), "busy", 100)
    assert signals.items == want, f"seed {seed}: signals"
    assert not int(dut.matmul_error.value) & 1  # valid
    for job in jobs:
        job.expect(sram)
    wrong = np.flatnonzero(np.frombuffer(memory.memory, np.uint8) != sram)
    assert not len(wrong), f"seed {seed}: {len(wrong)} bytes differ, first at {wrong[0]:#x}"
    assert memory.write_count == sum(job.n + 1 for job in jobs), "one write for each lane word"
