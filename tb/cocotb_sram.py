"""The SRAM crossbar against a dictionary of versions: every port, random stalls, order, latency, `busy`."""

from collections import deque
from typing import Any

import cocotb

from hw.sram import READ_LATENCY
from tb.bench import Bench, pauses
from tb.designs import SRAM_CONFIG, SRAM_READS, SRAM_WRITES

WORDS, BYTES, ADDRESS = SRAM_CONFIG.sram_words, SRAM_CONFIG.word_bytes, SRAM_CONFIG.sram_addr_bits


class Model:
    """Each word belongs to one write port, so that its versions have an order."""

    def __init__(self) -> None:
        self.versions: dict[int, list[int]] = {}
        self.visible: dict[int, int] = {}
        """Index of the newest version that every read from now on must see, or a newer one."""


class Writer:
    def __init__(self, bench: Bench, model: Model, number: int, stall: float, count: int, hot: int):
        dut, name = bench.dut, f"sram_{SRAM_WRITES[number]}"
        self.valid, self.ready = getattr(dut, f"{name}_req_valid"), getattr(dut, f"{name}_req_ready")
        self.payload, self.busy = getattr(dut, f"{name}_req_payload"), getattr(dut, f"{name}_busy")
        self.model, self.rng, self.number, self.left, self.hot = model, bench.rng, number, count, hot
        self.pause = pauses(bench.rng, stall)
        self.offered: tuple[int, int] | None = None
        self.waiting: deque[tuple[int, int]] = deque()
        self.valid.value = 0

    def step(self) -> None:
        if not int(self.busy.value):  # everything accepted before is visible
            for word, index in self.waiting:
                self.model.visible[word] = index
            self.waiting.clear()
        if self.offered:
            if not int(self.ready.value):
                return
            word, value = self.offered
            self.model.versions[word].append(value)
            self.waiting.append((word, len(self.model.versions[word]) - 1))
            self.offered = None
            self.valid.value = 0
        if self.left and not next(self.pause):
            self.left -= 1
            mine = [w for w in range(WORDS) if w % len(SRAM_WRITES) == self.number][: self.hot]
            word = self.rng.choice(mine)
            data, strobes = (
                self.rng.getrandbits(8 * BYTES),
                self.rng.choice((0, 1, self.rng.getrandbits(BYTES), (1 << BYTES) - 1)),
            )
            mask = sum(0xFF << 8 * i for i in range(BYTES) if strobes >> i & 1)
            self.offered = word, self.model.versions[word][-1] & ~mask | data & mask
            self.payload.value = word | data << ADDRESS | strobes << ADDRESS + 8 * BYTES
            self.valid.value = 1

    @property
    def done(self) -> bool:
        return not self.left and not self.offered and not self.waiting


class Reader:
    def __init__(self, bench: Bench, model: Model, name: str, stall: float, count: int, hot: int):
        dut = bench.dut
        self.name, self.model, self.rng, self.left, self.bench = name, model, bench.rng, count, bench
        self.valid, self.ready, self.request, self.answer, self.data = (
            getattr(dut, f"sram_{name}_{x}")
            for x in ("req_valid", "req_ready", "req_payload", "valid", "data")
        )
        self.pause = pauses(bench.rng, stall)
        self.hot = hot
        self.word, self.offered = 0, False
        self.asked: deque[tuple[int, int, int]] = deque()
        """(word, oldest version allowed, cycle of acceptance) of the reads in flight."""
        self.last: dict[int, int] = {}
        self.valid.value = 0
        self.answers = 0

    def step(self) -> None:
        if int(self.answer.value):
            assert self.asked, f"{self.name}: a response without a request"
            word, least, cycle = self.asked.popleft()
            assert self.bench.cycle - cycle >= READ_LATENCY, f"{self.name}: too early"
            value, versions = int(self.data.value), self.model.versions[word]
            least = max(least, self.last.get(word, 0))  # a port never sees a word go back
            found = [i for i in range(least, len(versions)) if versions[i] == value]
            assert found, (
                f"{self.name}: word {word} read as {value:#x}, which is none of versions {least}.."
                f"{len(versions) - 1}"
            )
            self.last[word] = found[0]
            self.answers += 1
        if self.offered:
            if not int(self.ready.value):
                return
            self.asked.append((self.word, self.model.visible[self.word], self.bench.cycle))
            self.offered = False
            self.valid.value = 0
        if self.left and not next(self.pause):
            self.left -= 1
            self.word = self.rng.randrange(WORDS if self.rng.random() < 0.2 else self.hot * len(SRAM_WRITES))
            self.request.value, self.valid.value, self.offered = self.word, 1, True

    @property
    def done(self) -> bool:
        return not self.left and not self.offered and not self.asked


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2], stall=[0.0, 0.5], hot=[2, 30])
async def test_all_ports(dut: Any, seed: int, stall: float, hot: int):
    """hot: words of each write port that are in use; few make the ports collide."""
    bench = Bench(dut, seed)
    model = Model()
    model.versions = {w: [0] for w in range(WORDS)}
    model.visible = dict.fromkeys(range(WORDS), 0)
    writers = [Writer(bench, model, k, 0, 0, hot) for k in range(len(SRAM_WRITES))]
    readers = [Reader(bench, model, name, stall, 200, hot) for name in SRAM_READS]
    # The contents survive from test to test (reset keeps them), so every word is written first.
    for w in range(WORDS):
        model.versions[w] = [bench.rng.getrandbits(8 * BYTES)]
    fill = bench.source("sram_v_req")
    fill.push(
        w | model.versions[w][0] << ADDRESS | (1 << BYTES) - 1 << ADDRESS + 8 * BYTES for w in range(WORDS)
    )
    await bench.start()
    await bench.until(lambda: fill.empty and not int(dut.sram_v_busy.value), "fill", 2000)
    bench.agents.remove(fill)
    for writer in writers:
        writer.left, writer.pause = 200, pauses(bench.rng, stall)
    bench.agents += [*writers, *readers]

    def finished() -> bool:
        return all(w.done for w in writers) and all(r.done for r in readers)

    await bench.until(finished, "reads and writes", 20_000)
    assert all(r.answers == 200 for r in readers)
    assert all(model.visible[w] == len(v) - 1 for w, v in model.versions.items()), "a write was never visible"
