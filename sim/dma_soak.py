"""Random soak of both DMA engines on Verilator: queued descriptors of every shape against a numpy model,
with random stalls on
every channel, random memory latency and real SRAM contention, every byte and every signal checked.

Usage: python -m sim.dma_soak [--transfers 100000] [--config base] [--seed 0]
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from amaranth import Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.axi import AxiMaster
from hw.config import BASE, TileConfig, named
from hw.dma import LoadEngine, StoreEngine, boot_layout
from hw.isa import BY_OP, Instruction, Op
from hw.ports import SEM_BITS, command_layout, error_layout
from hw.sram import Sram
from sim.fastsim import FastSim, SimTimeout

__all__ = [
    "DmaPair",
    "commands",
    "copy",
    "make_sim",
    "play",
    "random_timing",
    "random_transfer",
    "run",
    "signals_of",
]

DRAM_BYTES = 1 << 17
HALF = DRAM_BYTES // 2
LOAD, STORE = BY_OP[Op.LOAD], BY_OP[Op.STORE]
OPERANDS = tuple(o.name for o in LOAD.operands)
DEFAULTS = {o.name: o.default for o in LOAD.operands}
Transfer = dict[str, int]


class DmaPair(wiring.Component):
    """Both engines, an SRAM between them whose requests stall in `sram_stall` of 256 cycles, and one AXI
    master."""

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                "load_command": In(stream.Signature(command_layout(LOAD))),
                "load_signal": Out(stream.Signature(SEM_BITS)),
                "store_command": In(stream.Signature(command_layout(STORE))),
                "store_signal": Out(stream.Signature(SEM_BITS)),
                "load_error": Out(error_layout),
                "store_error": Out(error_layout),
                "load_busy": Out(1),
                "store_busy": Out(1),
                "boot": In(stream.Signature(boot_layout)),
                "program": Out(stream.Signature(32)),
                "dram_base": In(32),
                "dram_size": In(32),
                "stop": In(1),
                "idle": Out(1),
                "error": Out(1),
                "m_axi": Out(AxiMaster(config)),
                "sram_stall": In(9),
                "clear": In(1),
                "wrote": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.load = ResetInserter(self.clear)(load := LoadEngine(self.config))
        m.submodules.store = ResetInserter(self.clear)(store := StoreEngine(self.config))
        m.submodules.sram = sram = Sram(self.config, ["store"], ["load"])
        for engine, prefixes in ((load, ("ar", "r")), (store, ("aw", "w", "b"))):
            for name, member in engine.m_axi.signature.members.items():
                ours, theirs = getattr(self.m_axi, name), getattr(engine.m_axi, name)
                m.d.comb += ours.eq(theirs) if member.flow == Out else theirs.eq(ours)
        for name, engine in (("load", load), ("store", store)):
            wiring.connect(m, wiring.flipped(getattr(self, f"{name}_command")), engine.command)
            wiring.connect(m, engine.signal, wiring.flipped(getattr(self, f"{name}_signal")))
            m.d.comb += [
                getattr(self, f"{name}_error").eq(engine.error),
                getattr(self, f"{name}_busy").eq(engine.busy),
                engine.dram_base.eq(self.dram_base),
                engine.dram_size.eq(self.dram_size),
                engine.stop.eq(self.stop),
            ]
        wiring.connect(m, wiring.flipped(self.boot), load.boot)
        wiring.connect(m, load.program, wiring.flipped(self.program))
        random = Signal(32, init=0xACE1)
        m.d.sync += random.eq((random ^ random << 13 ^ random >> 7 ^ random << 3) | 1)
        gates = [random[8 * k + 4 : 8 * k + 12] >= self.sram_stall for k in range(2)]
        for gate, ours, theirs in ((gates[0], load.write, sram.load), (gates[1], store.read, sram.store)):
            m.d.comb += [
                theirs.req.valid.eq(ours.req.valid & gate),
                theirs.req.payload.eq(ours.req.payload),
                ours.req.ready.eq(theirs.req.ready & gate),
            ]
        m.d.comb += [
            load.write.busy.eq(sram.load.busy),
            store.read.valid.eq(sram.store.valid),
            store.read.data.eq(sram.store.data),
            self.idle.eq(load.idle & store.idle),
            self.error.eq(load.error.valid | store.error.valid),
            self.wrote.eq(load.write.req.valid),
        ]
        return m


def make_sim(config: TileConfig, seed: int = 0, **options: Any) -> FastSim:
    """A simulated `DmaPair` with an open DRAM window and 128 KB of random memory."""
    sim = FastSim(
        config,
        DRAM_BYTES,
        component=DmaPair(config),
        name=f"dma_{config.name}",
        seed=seed,
        opt="-O2",
        **options,
    )
    sim.dram[:] = np.random.default_rng(seed).integers(0, 256, DRAM_BYTES)
    sim.set("dram_size", 0xFFFFFFFF)
    return sim


def _offsets(ins: Instruction) -> dict[str, int]:
    layout = command_layout(ins)
    return {name: layout[name].offset for name in (*OPERANDS, "sig_a", "sig_b", "sig_c", "pc")}


def commands(ins: Instruction, transfers: list[Transfer]) -> list[int]:
    """Payloads of the command stream; absent operands get their default."""
    at = _offsets(ins)
    return [
        sum((t.get(name, DEFAULTS.get(name, 0)) & 0xFFFFFFFF) << offset for name, offset in at.items())
        for t in transfers
    ]


def signals_of(transfer: Transfer, kinds: str = "abc") -> list[int]:
    return [s for k in kinds if (s := transfer.get(f"sig_{k}", 0))]


def copy(src: np.ndarray, dst: np.ndarray, t: Mapping[str, int]) -> None:
    """One LOAD or STORE: runs in order, addresses modulo 2^32."""
    o = {**DEFAULTS, **t}
    for i2 in range(o["n2"]):
        for i1 in range(o["n1"]):
            a = (o["src"] + i1 * o["src1"] + i2 * o["src2"]) & 0xFFFFFFFF
            b = (o["dst"] + i1 * o["dst1"] + i2 * o["dst2"]) & 0xFFFFFFFF
            dst[b : b + o["len"]] = src[a : a + o["len"]]


def _side(
    rng: np.random.Generator, low: int, high: int, length: int, n1: int, n2: int
) -> tuple[int, int, int]:
    """Address and two strides, of either sign, such that every run lies in low .. high - 1; often at a
    page's edge."""
    room = high - low - length
    limit = max(1, room // (2 * (n1 + n2)))
    near = (length + 3, 64, 4096, limit)[rng.integers(4)]
    s1, s2 = (int(rng.integers(-min(near, limit), min(near, limit) + 1)) for _ in range(2))
    spans = [s1 * (n1 - 1), s2 * (n2 - 1)]
    first, last = low - sum(s for s in spans if s < 0), high - length - sum(s for s in spans if s > 0)
    address = int(rng.integers(first, last + 1))
    if rng.integers(3) == 0:
        edge = (address + 2048) // 4096 * 4096 + int(rng.integers(-8, 9)) - (length if rng.integers(2) else 0)
        address = min(max(edge, first), last)
    return address, s1, s2


def random_transfer(rng: np.random.Generator, src: tuple[int, int], dst: tuple[int, int]) -> Transfer:
    """A transfer between two address ranges; lengths and dimensions are mostly small, sometimes 0."""
    kind = rng.integers(10)
    length = int(
        rng.integers(0, 9)
        if kind < 3
        else rng.integers(0, 71)
        if kind < 8
        else rng.integers(0, 700)
        if kind < 9
        else rng.integers(0, 5000)
    )
    n1 = 1 if length > 700 else int((1, 1, 1, 2, 3, 5, 0)[rng.integers(7)])
    n2 = 1 if length > 700 else int((1, 1, 1, 2, 3)[rng.integers(5)])
    a, a1, a2 = _side(rng, *src, length, max(n1, 1), n2)
    b, b1, b2 = _side(rng, *dst, length, max(n1, 1), n2)
    sig = rng.integers(0, 32, 3) * (rng.integers(0, 3, 3) > 0)
    return {
        "src": a,
        "dst": b,
        "len": length,
        "n1": n1,
        "src1": a1,
        "dst1": b1,
        "n2": n2,
        "src2": a2,
        "dst2": b2,
        "sig_a": int(sig[0]),
        "sig_b": 32 + int(sig[1]),
        "sig_c": 32 + int(sig[2]) if sig[2] else 0,
    }


def _stall(rng: np.random.Generator) -> float | tuple[float, int]:
    fraction = (0.0, 0.0, 0.1, 0.3, 0.5, 0.9)[rng.integers(6)]
    return (fraction, int(rng.integers(2, 20))) if fraction and rng.integers(4) == 0 else fraction


def play(
    sim: FastSim,
    dram: np.ndarray,
    sram: np.ndarray,
    loads: list[Transfer],
    stores: list[Transfer],
    what: str,
    stall: Mapping[str, Any] | None = None,
) -> None:
    """Queue all transfers at once, wait for all signals, apply them to the models `dram` and `sram` too, and
    compare.

    Loads and stores run at the same time and must not touch each other's bytes. STORE's sig_a is below 32,
    its sig_b and
    sig_c are not: the two kinds are only ordered within themselves.
    """
    for t in loads:
        copy(dram, sram, t)
    for t in stores:
        copy(sram, dram, t)
    want_load = sum((signals_of(t) for t in loads), [])
    want_store = {k: sum((signals_of(t, k) for t in stores), []) for k in ("a", "bc")}
    try:
        got = sim.run_streams(
            {"load_command": commands(LOAD, loads), "store_command": commands(STORE, stores)},
            {"load_signal": len(want_load), "store_signal": sum(map(len, want_store.values()))},
            stall=stall or {},
            max_cycles=20_000 * (len(loads) + len(stores)),
        )
    except SimTimeout as error:
        raise AssertionError(
            f"{what}: hang: {error}, {sim.get('load_error'):#x} {sim.get('store_error'):#x}"
        ) from error
    assert not sim.get("error"), f"{what}: error {sim.get('load_error'):#x} {sim.get('store_error'):#x}"
    assert got["load_signal"].tolist() == want_load, f"{what}: LOAD signals"
    seen = got["store_signal"]
    assert seen[seen < 32].tolist() == want_store["a"], f"{what}: STORE sig_a"
    assert seen[seen >= 32].tolist() == want_store["bc"], f"{what}: STORE sig_b, sig_c"
    wrong = np.flatnonzero(sim.dram != dram)
    assert not len(wrong), f"{what}: {len(wrong)} wrong bytes, first at {wrong[0]:#x}"
    sim.check_protocol()


def random_timing(
    sim: FastSim, rng: np.random.Generator, latencies: tuple[int, ...] = (1, 2, 5, 40, 200)
) -> dict[str, Any]:
    """New stalls and latencies for everything around the engines; returns those of the streams."""
    sim.timing(int(rng.choice(latencies)), int(rng.choice(latencies)))
    sim.stall({channel: _stall(rng) for channel in ("ar", "r", "aw", "w", "b")})
    sim.set("sram_stall", int(rng.choice((0, 0, 25, 128, 230))))
    return {name: _stall(rng) for name in ("load_command", "store_command", "load_signal", "store_signal")}


def run(config: TileConfig, transfers: int, seed: int = 0, batch: int = 200) -> dict[str, int]:
    """Run `transfers` in queued batches; AssertionError names the seed and the batch. Returns totals.

    Loads and stores run at the same time, on halves of SRAM and DRAM that change places after each batch.
    """
    rng = np.random.default_rng(seed)
    sim = make_sim(config, seed)
    dram = sim.dram.copy()
    sram = np.zeros(min(config.sram_bytes, 1 << 16), np.uint8)
    half, done, moved = len(sram) // 2, 0, 0
    while done < transfers:
        side = done // batch % 2
        here, there = (side * half, side * half + half), (side * HALF, side * HALF + HALF)
        here2, there2 = (half - here[0], 2 * half - here[0]), (HALF - there[0], 2 * HALF - there[0])
        loads = [random_transfer(rng, there, here) for _ in range(batch // 2)]
        stores = [random_transfer(rng, here2, there2) for _ in range(batch // 2)]
        if done % (8 * batch) == 0 or done + batch >= transfers:  # all of this half leaves
            step = 4096
            stores += [
                {"src": here2[0] + k, "dst": there2[0] + k, "len": step, "sig_b": 63}
                for k in range(0, half, step)
            ]
        moved += sum(t["len"] * t.get("n1", 1) * t.get("n2", 1) for t in loads + stores)
        what = f"{config.name}, seed {seed}, transfers {done}..{done + batch - 1}"
        play(sim, dram, sram, loads, stores, what, random_timing(sim, rng))
        done += batch
    sim.run(20)
    assert not sim.get("load_busy") and not sim.get("store_busy"), f"{config.name}, seed {seed}: busy at rest"
    totals = {"transfers": done, "bytes": moved, "cycles": sim.cycles}
    sim.close()
    return totals


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sim.dma_soak", description="Random soak of the DMA engines."
    )
    parser.add_argument("--transfers", type=int, default=100_000)
    parser.add_argument("--config", default=BASE.name)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    start = time.monotonic()
    totals = run(named(args.config), args.transfers, args.seed)
    print(
        f"{args.config}: {totals['transfers']} transfers, {totals['bytes']} bytes, "
        f"{totals['cycles']} cycles, {time.monotonic() - start:.1f} s, no error (seed {args.seed})"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
