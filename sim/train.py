"""What a new build of a tile runs to see which of its code is worth optimising: a bit of everything.

Only the speed of the simulator depends on it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from hw.config import TileConfig

__all__ = ["TRAINING", "train"]

TRAINING = Path(__file__).resolve()


def train(config: TileConfig, library: Path) -> None:
    """Run the training on a library, in a process of its own, whose end writes the counts."""
    root = TRAINING.parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "sim.train", str(library), repr(config)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"training of {library}:\n{done.stdout}{done.stderr}")


def main(library: str, config_text: str) -> None:
    """Blocks of two models, prefill and decode, and the products that keep the array busy."""
    from golden import formats
    from golden.spec import GPTOSS_SIM, LLAMA_SIM, BlockSpec, random_params
    from sim.tile import RtlDevice
    from sw.attention_kernels import attention_prefill
    from sw.block import BlockImage
    from sw.kernels import Kernel, gemv

    config = eval(config_text, {"TileConfig": TileConfig})
    device = RtlDevice(config, library=Path(library))

    def kernel(make: Callable[..., Kernel], *sizes: int) -> None:
        k = make(config, *sizes)
        device.attach(k.dram.data)
        for phase, program in k.phases.items():
            device.run(k.program_at[phase], len(program.image()))

    def block(spec: BlockSpec) -> None:
        spec = replace(spec, hidden=128, ffn=172, max_tokens=64)
        x = np.random.default_rng(1).normal(0, 1, (18, spec.hidden)).astype(np.float32)
        image = BlockImage(config, spec, random_params(spec, 1), x[:16], x[16:])
        device.attach(image.dram.data)
        for phase, (words, args) in image.phases.items():
            device.run(image.program_at[phase], len(words), args)

    for run, *what in (
        (kernel, attention_prefill, 128),
        (kernel, gemv, 512, 512, formats.FP4),
        (block, LLAMA_SIM),
        (block, GPTOSS_SIM),
    ):
        with suppress(ValueError):  # does not fit the SRAM of this config
            run(*what)


if __name__ == "__main__":
    main(*sys.argv[1:])
