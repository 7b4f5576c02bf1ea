"""`make bench`: cycles against their bounds on the RTL, as a table and as build/bench.json.

Every case also compares the whole DRAM with the instruction-level model. Cycles count from the doorbell to
the interrupt; in the gemm-sram cases from the issue of the first instruction to the completion of the last.
The *-model-* cases are models of four layers: prefill of so many tokens, then decode of whole tokens behind
them, from embedding to argmax (-x8: for eight users together).
ratio = bound / cycles, bound = max(MACs / array, bytes read / port, bytes written / port), all three as the
computation needs them.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from golden import formats
from golden.machine import Machine
from golden.spec import GPTOSS_SIM, LLAMA_SIM, BlockSpec, ModelSpec, random_model, random_params
from hw.config import TileConfig, named
from sim import dma_bench
from sim.tile import RtlDevice, first_difference
from sw.attention_kernels import attention_decode, attention_prefill
from sw.block import BlockImage
from sw.cost import Need, block_need, decode_need, prefill_need
from sw.kernels import Kernel, gemm_dram, gemm_sram, gemv
from sw.layout import DramImage, align, lane_words, put_program
from sw.model_decode import ModelDecode
from sw.model_image import ModelImage
from sw.model_prefill import ModelPrefill
from sw.device import Run

README = Path(__file__).parents[1] / "README.md"
Phases = dict[str, tuple[int, int, tuple[int, ...]]]
"""name -> program address, words, arguments."""
Case = tuple[str, DramImage, Phases, dict[str, tuple[str, Need, bool]]]
"""name, DRAM, phases, measured phases (phase -> name in the table, need, from SRAM)."""


def kernel_case(k: Kernel) -> Case:
    phases: Phases = {name: (k.program_at[name], len(p.image()), ()) for name, p in k.phases.items()}
    need = Need(k.macs, k.bytes_read, k.bytes_written)
    return k.name, k.dram, phases, {k.measured: (k.name, need, k.from_sram)}


def block_case(config: TileConfig, spec: BlockSpec, tokens: int, steps: int) -> Case:
    params = random_params(spec, 1)
    x = np.random.default_rng(7).normal(0, 1, (tokens + steps, spec.hidden)).astype(np.float32)
    image = BlockImage(config, spec, params, x[:tokens], x[tokens:])
    phases = {
        name: (image.program_at[name], len(words), args)
        for name, (words, args) in image.phases.items()
    }
    measured = {
        "prefill": (f"{spec.name}-prefill", block_need(spec, params, 0, tokens, False), False),
        "decode": (f"{spec.name}-decode", block_need(spec, params, tokens, steps, True), False),
    }
    return spec.name, image.dram, phases, measured


def model_spec(block: BlockSpec, layers: int = 4) -> ModelSpec:
    """A model of `layers` such blocks, every other one with the block's window; context 256."""
    return ModelSpec(
        name=f"{block.name}-model",
        architecture="gpt-oss" if block.experts else "llama",
        block=replace(block, window=None, max_tokens=256),
        windows=(block.window, None) * (layers // 2),
        vocab=2048,
        context=256,
    )


def model_case(config: TileConfig, spec: ModelSpec, tokens: int, steps: int, users: int = 1) -> Case:
    """Prefill of `tokens` tokens (the first user's; the others have zeros), then whole decode steps."""
    params = random_model(spec, 1)
    image = ModelImage(config, spec, params, users=users, chunk=align(tokens, 32), dram_bytes=32 << 20)
    prompt = np.random.default_rng(7).integers(0, spec.vocab, tokens)
    put_program(image.dram.data, image.x_in, lane_words(params.embedding[prompt], config.columns))
    state = np.array([[5] * config.columns, [tokens] * config.columns], np.uint32)
    put_program(image.dram.data, image.state_at, state)
    phases: Phases = {}
    prefill, decode = ModelPrefill(image), ModelDecode(image)
    for name, compiled, args in (("prefill", prefill, (0, tokens, 0)), ("decode", decode, (steps,))):
        words = compiled.program.image()
        put_program(image.dram.data, image.program_at[name], words)
        phases[name] = image.program_at[name], len(words), args
    needs = [decode_need(spec, params, [tokens + i] * users) for i in range(steps)]
    measured = {"decode": (f"{spec.name}-decode-x{users}", sum(needs, Need()), False)}
    if users == 1:
        measured["prefill"] = f"{spec.name}-prefill-{tokens}", prefill_need(spec, params, 0, tokens), False
    return measured["decode"][0], image.dram, phases, measured


def cases(config: TileConfig) -> list[Callable[[], Case]]:
    """Constructors, so that only one image is in memory at a time."""

    def kernel(make: Callable[..., Kernel], *sizes: int) -> Callable[[], Case]:
        return lambda: kernel_case(make(config, *sizes))

    return [
        *(kernel(gemm_sram, m, m, m) for m in (64, 192, 256)),
        kernel(gemm_sram, 64, 2880, 64),
        kernel(gemm_dram, 512, 512, 512),
        kernel(gemv, 2880, 2880, formats.FP4),
        kernel(gemv, 2880, 2880, formats.INT8),
        *(kernel(attention_decode, t) for t in (128, 1024)),
        *(kernel(attention_prefill, t) for t in (128, 256)),
        lambda: block_case(config, LLAMA_SIM, 64, 16),
        lambda: block_case(config, GPTOSS_SIM, 64, 16),
        *(lambda u=u: model_case(config, model_spec(LLAMA_SIM), 128, 4, u) for u in (1, config.columns)),
        lambda: model_case(config, model_spec(GPTOSS_SIM), 64, 4),
    ]


def result(config: TileConfig, name: str, memory: str, run: Run, need: Need, from_sram: bool) -> dict:
    cycles = run.unit_cycles if from_sram else run.cycles
    reads, writes = run.counters["READ_BEATS"], run.counters["WRITE_BEATS"]
    bound = need.macs / config.macs if from_sram else need.bound(config.macs, config.axi_bytes)
    moved = need.bytes if from_sram else (reads + writes) * config.axi_bytes
    return {
        "name": name,
        "memory": memory,
        "cycles": cycles,
        "bound_cycles": round(bound, 1),
        "macs": need.macs,
        "bytes_moved": moved,
        "bytes_needed": need.bytes,
        "mac_utilisation": round(need.macs / config.macs / cycles, 4),
        "port_utilisation": round(max(reads, writes) / cycles, 4),
        "ratio": round(bound / cycles, 4),
    }


def markdown(results: list[dict]) -> str:
    """The README's table: one row per case, both memories."""
    lines = [
        "| case | cycles | bound | ratio | ratio, `stall20` | MACs | port | moved / needed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    stalled = {r["name"]: r for r in results if r["memory"] == "stall20"}
    for r in results:
        if r["memory"] == "ideal":
            other = stalled[r["name"]]["ratio"]
            lines.append(
                f"| `{r['name']}` | {r['cycles']} | {r['bound_cycles']:.0f} | {r['ratio']:.3f} | "
                f"{other:.3f} | {r['mac_utilisation']:.1%} | {r['port_utilisation']:.1%} | "
                f"{r['bytes_moved'] / r['bytes_needed']:.3f} |"
            )
    return "\n".join(lines)


def put_into_readme(target: str, table: str) -> None:
    """Replace the table of a Makefile target in README.md."""
    mark = f"<!-- make {target} ARGS=--readme -->"
    before, _, after = README.read_text().split(mark)
    README.write_text(f"{before}{mark}\n{table}\n{mark}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="base")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    config = named(args.config)
    results, speeds = [], []
    devices = {
        "ideal": RtlDevice(config, latency=40),
        "stall20": RtlDevice(config, latency=40, stall=0.2, seed=5),
    }
    for make in tqdm(cases(config), desc="cases", file=sys.stderr):
        name, dram, phases, measured = make()
        if args.only not in name and not any(args.only in m[0] for m in measured.values()):
            continue
        for memory, device in devices.items():
            model = Machine(config, dram.data.copy(), trace=True)
            device.attach(dram.data)
            for phase, (address, words, arguments) in phases.items():
                model.run(address, words, arguments)
                run = device.run(address, words, arguments)
                if wrong := first_difference(device.dram, model, dram, {}):
                    sys.exit(f"MISMATCH in {name} {phase} ({memory}): {wrong}")
                if phase in measured:
                    results.append(result(config, measured[phase][0], memory, run, *measured[phase][1:]))
                    if run.cycles > 100_000 and run.seconds:
                        speeds.append(
                            (
                                run.counters["SIMULATED"] / run.seconds,
                                results[-1]["mac_utilisation"],
                                measured[phase][0],
                            )
                        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"\n{'name':22s}{'memory':9s}{'cycles':>9s}{'bound':>11s}{'ratio':>8s}{'MACs':>8s}"
        f"{'port':>8s}{'moved B':>10s}{'needed B':>10s}{'moved/needed':>13s}"
    )
    for r in results:
        print(
            f"{r['name']:22s}{r['memory']:9s}{r['cycles']:9d}{r['bound_cycles']:11.1f}{r['ratio']:8.4f}"
            f"{r['mac_utilisation']:8.1%}{r['port_utilisation']:8.1%}{r['bytes_moved']:10d}"
            f"{r['bytes_needed']:10d}{r['bytes_moved'] / r['bytes_needed']:13.3f}"
        )
    if speeds:
        best = max(speeds, key=lambda s: s[1])
        print(
            f"\nsimulator: {best[0]:.0f} cycles/s on one core in {best[2]} ({best[1]:.0%} of the MACs busy); "
            f"slowest long case {min(speeds)[0]:.0f}"
        )
    print(f"{len(results)} results in {args.out}; every byte of DRAM equal to the instruction-level model")
    if args.readme:
        put_into_readme("bench", markdown(results))
    if not args.only:
        print("\nDMA engines alone, queued descriptors")
        dma_bench.main(["--config", config.name])


if __name__ == "__main__":
    main()
