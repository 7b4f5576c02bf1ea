"""Run compiled programs on a device: the instruction-level model here, the RTL in sim/tile.py.

A device has `dram` (uint8 array) and `run(address, words, args) -> Run`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from golden.machine import Machine
from golden.spec import BlockParams, BlockSpec
from hw.config import TileConfig

from .block import BlockImage
from .decode import Decode
from .layout import unlane
from .prefill import Prefill


@dataclass
class Run:
    """What a run of a program cost; zero where a device does not count it."""

    cycles: int = 0
    unit_cycles: int = 0
    """From the issue of the first unit instruction to the completion of the last."""
    counters: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Processor time of the simulation."""


class Device(Protocol):
    """Something that runs tile programs."""

    config: TileConfig

    @property
    def dram(self) -> np.ndarray: ...

    def attach(self, dram: np.ndarray) -> None:
        """Take over the contents of a DRAM image (a copy may be made: read results from `dram`)."""

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run: ...


class MachineDevice:
    """The golden instruction-level model as a device."""

    def __init__(self, config: TileConfig, trace: bool = False, schedule: int | None = None):
        """schedule: seed of a random order of threads and units, to show races."""
        self.config, self.trace, self.schedule = config, trace, schedule
        self.machine: Machine | None = None

    @property
    def dram(self) -> np.ndarray:
        assert self.machine is not None
        return self.machine.dram

    def attach(self, dram: np.ndarray) -> None:
        self.machine = Machine(self.config, dram.copy(), trace=self.trace)

    def run(self, address: int, words: int, args: Sequence[int] = ()) -> Run:
        assert self.machine is not None
        self.machine.run(
            address,
            words,
            args,
            schedule=None if self.schedule is None else np.random.default_rng(self.schedule),
        )
        return Run()


def put_program(dram: np.ndarray, address: int, image: np.ndarray) -> None:
    dram[address : address + image.nbytes] = image.view(np.uint8)


def block_programs(image: BlockImage) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """phase -> (program, arguments) of the block's phases that have tokens.

    The programs are put into the image.
    """
    phases: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {}
    if image.tokens:
        program = Prefill(image).program
        phases["prefill"], image.labels["prefill"] = (program.image(), ()), program.labels
    if image.steps:
        program = Decode(image).program
        phases["decode"], image.labels["decode"] = (
            (program.image(), (image.tokens, image.steps)),
            program.labels,
        )
    for phase, (words, _) in phases.items():
        put_program(image.dram.data, image.program_at[phase], words)
    return phases


def block_outputs(image: BlockImage, dram: np.ndarray) -> np.ndarray:
    """(tokens + steps, hidden) float32 that the programs left in DRAM."""
    c, h = image.config.columns, image.spec.hidden
    out = []
    if image.tokens:
        g = -(-image.tokens // c)
        raw = dram[image.prefill_out : image.prefill_out + g * c * h * 4].view(np.float32)
        out.append(unlane(raw.reshape(g, h, c), image.tokens))
    if image.steps:
        out.append(
            dram[image.decode_out : image.decode_out + image.steps * h * 4].view(np.float32).reshape(-1, h)
        )
    return np.concatenate(out)


def run_block(
    device: Device, spec: BlockSpec, params: BlockParams, prefill: np.ndarray, decode: np.ndarray
) -> np.ndarray:
    """Prefill then decode rows of x (tokens, hidden) float32 on a device -> (tokens, hidden) float32."""
    image = BlockImage(
        device.config, spec, params, prefill if len(prefill) else None, decode if len(decode) else None
    )
    phases = block_programs(image)
    device.attach(image.dram.data)
    for phase, (words, args) in phases.items():
        device.run(image.program_at[phase], len(words), args)
    return block_outputs(image, device.dram)
