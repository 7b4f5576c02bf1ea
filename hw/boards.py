"""Boards: one table of what each is, for RTL, constraints, bitstreams, Vivado projects, software and docs.

A board's tile is a config like those of hw/config.py, under the board's name: `--config ulx3s`.
Imports no Amaranth.
"""

from dataclasses import dataclass
from pathlib import Path

from .config import TileConfig

__all__ = ["BOARDS", "BoardSpec", "board"]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class BoardSpec:
    """One board. The clock of everything is `config.clock_mhz`."""

    config: TileConfig
    part: str
    """As the tool that places it calls it."""
    package: str
    speed: str
    family: str
    """ecp5 (Yosys, nextpnr), xc7 or zynqmp (Vivado)."""
    oscillator_mhz: float
    """The board's clock, from which a PLL makes the tile's; of zynqmp the processor's clock to the logic."""
    constraints: str
    """File in constraints/."""
    memory_bytes: int
    """Model memory: block RAM behind the tile, or what is set aside of the processor's DRAM (zynqmp)."""
    memory_base: int = 0
    """Where it begins for the processor (zynqmp)."""
    baud: int = 0
    """Of the UART host link; 0: the host is a processor on the chip."""
    ties: tuple[tuple[str, int], ...] = ()
    """Further output pins and the level that they need."""
    model: str = ""
    """What the memory was sized for: a command line of `serrano generate` without prompt and backend."""

    def __post_init__(self) -> None:
        if self.family not in ("ecp5", "xc7", "zynqmp"):
            raise ValueError(f"family = {self.family!r}: allowed is ecp5, xc7 or zynqmp")
        if self.memory_bytes % 4096 or self.memory_bytes <= 0:
            raise ValueError(f"memory_bytes = {self.memory_bytes}: allowed is a multiple of 4096")

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def constraint_file(self) -> Path:
        return ROOT / "constraints" / self.constraints


ULX3S = BoardSpec(
    # Two banks of 512 words fill their block RAMs; the decode program of a Llama has less than 2048 words.
    config=TileConfig(
        name="ulx3s", columns=2, psum_depth=64, sram_banks=2, sram_bytes=32 * 1024, axi_data_bits=64,
        axi_outstanding=4, axi_burst_beats=16, imem_words=2048, semaphores=32, clock_mhz=50.0,
    ),
    part="LFE5U-85F", package="CABGA381", speed="6", family="ecp5",
    oscillator_mhz=25.0, constraints="ulx3s.lpf", memory_bytes=292 * 1024, baud=2_000_000,
    ties=(("wifi_gpio0", 1),),
    model="stories260K.bin --config ulx3s --weights mxfp4 --context 64",
)
ARTY = BoardSpec(
    config=ULX3S.config.replace(name="arty"),
    part="xc7a100tcsg324-1", package="csg324", speed="1", family="xc7",
    oscillator_mhz=100.0, constraints="arty.xdc", memory_bytes=448 * 1024, baud=2_000_000,
    model="models/serrano-llama --config arty --weights mxfp4 --context 32",
)
KV260 = BoardSpec(
    config=TileConfig(name="kv260", sram_bytes=256 * 1024),
    part="xck26-sfvc784-2LV-c", package="sfvc784", speed="2LV", family="zynqmp",
    oscillator_mhz=100.0, constraints="kv260.xdc", memory_bytes=256 << 20,
    memory_base=0x6000_0000,
    model="models/serrano-gptoss --config kv260",
)

BOARDS: dict[str, BoardSpec] = {b.name: b for b in (ULX3S, ARTY, KV260)}


def board(name: str) -> BoardSpec:
    """The named board; ValueError lists the names there are."""
    if name not in BOARDS:
        raise ValueError(f"board {name!r}: allowed is one of {', '.join(BOARDS)}")
    return BOARDS[name]
