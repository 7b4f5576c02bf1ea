"""Cycle figures of the DMA engines: latencies, and bus utilisation of back-to-back transfers by length and
alignment.

Usage: python -m sim.dma_bench [--config base] [--latency 1]
"""

import argparse

import numpy as np

from hw.config import BASE, TileConfig, named
from sim.dma_soak import HALF, LOAD, STORE, commands, make_sim
from sim.fastsim import FastSim

__all__ = ["bench", "latencies", "utilisation"]

LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


def _first(sim: FastSim, ports: tuple[str, ...], cycles: int = 60) -> dict[str, int]:
    """Cycle, counted from now, in which each port is first high."""
    seen: dict[str, int] = {}
    for cycle in range(cycles):
        for port in ports:
            if port not in seen and sim.get(port):
                seen[port] = cycle
        sim.step()
    return seen


def latencies(config: TileConfig, memory: int = 10) -> dict[str, int]:
    """Cycles from valid to valid in an idle engine: command to AR, R to SRAM write, command to AW, command
    to first W."""
    sim = make_sim(config)
    sim.timing(memory)
    sim.collect("load_signal")
    sim.collect("store_signal")
    found = {}
    transfer = {"src": 0, "dst": 0, "len": config.word_bytes, "sig_b": 1}
    for name, ins, address in (("load", LOAD, "m_axi_arvalid"), ("store", STORE, "m_axi_awvalid")):
        sim.push(f"{name}_command", commands(ins, [transfer]))
        seen = _first(sim, (f"{name}_command_valid", address, "m_axi_rvalid", "wrote", "m_axi_wvalid"))
        found[f"command_to_{address[6:8]}"] = seen[address] - seen[f"{name}_command_valid"]
        if name == "load":  # the beat that completes the word is the last one
            found["r_to_sram"] = (
                seen["wrote"] - seen["m_axi_rvalid"] - (config.word_bytes // config.axi_bytes - 1)
            )
        else:
            found["command_to_w"] = seen["m_axi_wvalid"] - seen[f"{name}_command_valid"]
    sim.close()
    return found


def utilisation(
    sim: FastSim, config: TileConfig, unit: str, length: int, near: int, far: int, runs: int = 1
) -> dict[str, float]:
    """Steady state of back-to-back transfers of `length` bytes whose SRAM and DRAM addresses are `near` and
    `far` modulo
    the word: beats on the bus per cycle (1 is the bound) and useful bytes per cycle over the bus width."""
    word = config.word_bytes
    pitch = -(-(length + 2 * word) // word) * word
    count = max(24, min(200, HALF // pitch - 2))
    transfers = []
    for k in range(count):
        at = k % max(1, HALF // 2 // pitch - 1) * pitch
        ends = {"load": (at + far, at + near), "store": (at + near, at + far)}[unit]
        transfers.append(
            {
                "src": ends[0],
                "dst": ends[1],
                "len": length,
                "n1": runs,
                "src1": pitch,
                "dst1": pitch,
                "sig_b": 33,
            }
        )
    sim.run_streams(
        {f"{unit}_command": commands(LOAD if unit == "load" else STORE, transfers)},
        {f"{unit}_signal": count},
        max_cycles=2_000_000,
    )
    stamps = sim.stamps[f"{unit}_signal"]
    skip = count // 3  # the queues are full from here on
    cycles, n = int(stamps[-1] - stamps[skip]), (count - 1 - skip) * runs
    beats = -(-(far % config.axi_bytes + length) // config.axi_bytes)
    return {
        "unit": unit,
        "len": length,
        "near": near,
        "far": far,
        "runs": runs,
        "beats_per_cycle": n * beats / cycles,
        "utilisation": n * length / cycles / config.axi_bytes,
    }


def bench(config: TileConfig = BASE, latency: int = 1) -> list[dict[str, float]]:
    """Utilisation of both engines over length and alignment, memory without stalls."""
    sim = make_sim(config)
    sim.timing(latency)
    rng = np.random.default_rng(0)
    rows = []
    for unit in ("load", "store"):
        for near, far in (
            (0, 0),
            (0, 4),
            (5, 3),
            *(tuple(map(int, rng.integers(0, config.word_bytes, 2))) for _ in range(2)),
        ):
            rows += [utilisation(sim, config, unit, length, near, far) for length in LENGTHS]
    sim.check_protocol()
    sim.close()
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sim.dma_bench", description="Cycle figures of the DMA engines."
    )
    parser.add_argument("--config", default=BASE.name)
    parser.add_argument("--latency", type=int, default=1, help="cycles of memory latency")
    args = parser.parse_args(argv)
    config = named(args.config)
    print(
        f"{config.name}: {', '.join(f'{k} {v}' for k, v in latencies(config).items())} cycles; "
        f"memory latency {args.latency}"
    )
    print(
        "unit   near  far "
        + "".join(f"{length:>13d}" for length in LENGTHS)
        + "  (beats per cycle / utilisation)"
    )
    rows = bench(config, args.latency)
    for k in range(0, len(rows), len(LENGTHS)):
        line = rows[k : k + len(LENGTHS)]
        print(
            f"{line[0]['unit']:6s}{line[0]['near']:5d}{line[0]['far']:5d} "
            + "".join(f"  {r['beats_per_cycle']:5.3f}/{r['utilisation']:5.3f}" for r in line)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
