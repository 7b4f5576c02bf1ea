"""The main job (`make sim`): transformer blocks on the RTL, every byte compared with the golden models.

Then models/serrano-gptoss writes text, from its checkpoint, token by token, compared with golden's.

Environment: CONFIG (base), WAVES=1 (trace of a short run in build/waves.vcd). Exit status 0 only if
everything is equal.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from golden.blocks import Block
from golden.model import Model
from golden.spec import GPTOSS_SIM, LLAMA_SIM, BlockSpec, random_params
from hw.config import BASE, ECP5, TileConfig, named
from sim.fastsim import waves_path
from sim.tile import RtlDevice, first_difference
from sw.block import BlockImage
from sw.cost import block_need
from sw.device import MachineDevice, Run, TileError
from sw.runtime import load

STORYTELLER = Path(__file__).parents[1] / "models" / "serrano-gptoss"
PROMPT = "Once upon a time"
HEADER = (
    f"{'phase':16s}{'cycles':>10s}{'bound':>10s}{'cyc/bound':>10s}{'MACs used':>10s}"
    f"{'moved B':>10s}{'needed B':>10s}{'moved/need':>11s}{'port used':>10s}{'cycles/s':>10s}"
)


def row(name: str, config: TileConfig, run: Run, need) -> str:
    """One line of the table."""
    bound = need.bound(config.macs, config.axi_bytes)
    moved = (run.counters["READ_BEATS"] + run.counters["WRITE_BEATS"]) * config.axi_bytes
    busiest = max(run.counters["READ_BEATS"], run.counters["WRITE_BEATS"])
    return (
        f"{name:16s}{run.cycles:10d}{bound:10.0f}{run.cycles / bound:10.3f}"
        f"{need.macs / config.macs / run.cycles:10.1%}{moved:10d}{need.bytes:10d}{moved / need.bytes:11.3f}"
        f"{busiest / run.cycles:10.1%}{run.counters['SIMULATED'] / max(run.seconds, 1e-9):10.0f}"
    )


def simulate(
    spec: BlockSpec,
    config: TileConfig,
    tokens: int,
    steps: int,
    latency: int,
    stall: float,
    waves: str | None,
) -> list[str]:
    """Prefill and decode of one block; the table rows. Exits at the first mismatch."""
    rng = np.random.default_rng(7)
    params = random_params(spec, 1)
    x = rng.normal(0, 1, (tokens + steps, spec.hidden)).astype(np.float32)
    print(f"{spec.name}: compile for {config.name}", flush=True)
    image = BlockImage(config, spec, params, x[:tokens], x[tokens:])
    model = MachineDevice(config, trace=True)
    model.attach(image.dram.data)
    rtl = RtlDevice(config, dram_bytes=len(image.dram.data), latency=latency, stall=stall, waves=waves)
    rtl.attach(image.dram.data)
    rows = []
    for phase, (words, args) in image.phases.items():
        start, count = (0, tokens) if phase == "prefill" else (tokens, steps)
        with tqdm(
            total=1,
            desc=f"{spec.name} {phase} ({count} tokens, {len(words)} instruction words)",
            bar_format="{desc}: {elapsed}",
        ) as bar:
            result = rtl.run(image.program_at[phase], len(words), args)
            bar.update()
        model.run(image.program_at[phase], len(words), args)
        assert model.machine is not None
        wrong = first_difference(rtl.dram, model.machine, image.dram, image.labels.get(phase, {}))
        if wrong:
            sys.exit(f"MISMATCH in {spec.name} {phase}: {wrong}")
        rows.append(
            row(
                f"{spec.name} {phase}",
                config,
                result,
                block_need(spec, params, start, count, phase == "decode"),
            )
        )
    golden = Block(spec, params)
    want = np.concatenate(
        [
            golden.forward(x[:tokens], 0),
            *(golden.forward(x[i : i + 1], i) for i in range(tokens, tokens + steps)),
        ]
    )
    got = image.outputs(rtl.dram)
    differ = np.argwhere(got.view(np.uint32) != want.view(np.uint32))
    if len(differ):
        t, f = differ[0]
        sys.exit(
            f"MISMATCH in {spec.name}: output of token {t}, feature {f}: "
            f"RTL {got[t, f]!r}, golden block {want[t, f]!r}"
        )
    print(
        f"{spec.name}: all {len(image.dram.data)} bytes of DRAM equal the instruction-level model, "
        "all outputs equal the golden block",
        flush=True,
    )
    rtl.close()
    return rows


def write_text(config: TileConfig, tokens: int, latency: int, stall: float) -> None:
    """Greedy text of the model that ships, as it comes from the RTL; exits when it is not golden's."""
    print(f"\n{STORYTELLER.name} on the RTL ({config.name}), a token at a time:\n", flush=True)
    with load(STORYTELLER, config=config, latency=latency, stall=stall) as session:
        ids = session.tokenizer.encode(PROMPT)
        made = []
        print(PROMPT, end="", flush=True)
        for token in session.generate(ids, tokens):
            print(token.text, end="", flush=True)
            made.append(token.id)
        print(f"\n\n{session.stats}", flush=True)
    want = list(Model(session.spec, session.params).generate(ids, tokens, session.tokenizer.eos_ids))
    if made != want:
        first = next(i for i, (a, b) in enumerate(zip(made + [None], want + [None])) if a != b)
        sys.exit(f"MISMATCH in {STORYTELLER.name}: token {first} is not the golden model's")
    print(f"all {len(made)} tokens equal the golden model's", flush=True)


def workload(config: TileConfig, small: bool = False) -> tuple[list[BlockSpec], int]:
    """Blocks and prefill length that fit the config's SRAM: the main job, or a smaller one on small tiles."""
    if config.sram_bytes >= BASE.sram_bytes and not small:
        return [LLAMA_SIM, GPTOSS_SIM], 64
    if config.sram_bytes >= ECP5.sram_bytes and not small:
        return [LLAMA_SIM, replace(GPTOSS_SIM, name="gptoss-256", hidden=256, heads=4)], 32
    llama = replace(LLAMA_SIM, name="llama-small", hidden=64, heads=4, kv_heads=2, ffn=172, max_tokens=64)
    gptoss = replace(GPTOSS_SIM, name="gptoss-small", hidden=64, heads=4, head_dim=32, ffn=64, max_tokens=64)
    return [llama, gptoss], 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=os.environ.get("CONFIG") or "base", help="tiny, base or ecp5")
    parser.add_argument("--tokens", type=int, help="prefill length (default 64; ecp5 32, tiny 16)")
    parser.add_argument("--steps", type=int, default=16, help="decode steps")
    parser.add_argument("--latency", type=int, default=40, help="DRAM latency in cycles")
    parser.add_argument(
        "--stall", type=float, default=0.0, help="fraction of cycles that each AXI channel stalls"
    )
    parser.add_argument("--text", type=int, default=200, help="tokens of text behind the blocks")
    args = parser.parse_args()
    begin = time.perf_counter()
    try:
        config = named(args.config)
    except ValueError as e:
        sys.exit(str(e))
    waves = waves_path()
    blocks, tokens = workload(config, small=bool(waves))
    tokens = tokens if args.tokens is None else args.tokens
    if waves:
        os.makedirs(os.path.dirname(waves), exist_ok=True)
        tokens, args.steps = min(tokens, 8), min(args.steps, 1)
        print(
            f"waves: a short run ({tokens} tokens, {args.steps} step) of a small block into {waves}",
            flush=True,
        )
    blocks = blocks[:1] if waves else blocks
    try:
        rows = [
            r
            for spec in blocks
            for r in simulate(spec, config, tokens, args.steps, args.latency, args.stall, waves)
        ]
    except (ValueError, MemoryError, TileError) as e:
        sys.exit(f"config {config.name}, {tokens} + {args.steps} tokens: {e}")
    print(
        f"\nconfig {config.name}: 32 x {config.columns} array, {config.axi_data_bits}-bit AXI, "
        f"DRAM latency {args.latency}, stalls {args.stall:.0%}; "
        f"bound = max(MACs / {config.macs}, bytes / {config.axi_bytes})"
    )
    print(HEADER)
    print("\n".join(rows))
    if waves:
        print("waves: no text")
    elif args.text:
        try:
            write_text(config, args.text, args.latency, args.stall)
        except (ValueError, MemoryError, TileError) as e:
            sys.exit(f"config {config.name}, text of {args.text} tokens: {e}")
    print(f"\nPASS in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
