"""Tile configurations: one frozen dataclass.

The single source for RTL, golden model, compiler, constraints and docs.
Imports no Amaranth.
"""
from dataclasses import dataclass, replace

MX_BLOCK = 32
"""Elements that share one scale (OCP MX v1.0)."""


def _need(ok: bool, field: str, given: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{field} = {given!r}: allowed is {allowed}")


def _pow2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Independent facts of one tile; everything that can be computed is a property.

    Raises ValueError naming the field, the value given and what is allowed.
    """

    name: str = "custom"
    columns: int = 8
    """Array columns C: stationary rows held at once; also the rows of a lane word."""
    vector_fold: int = 1
    """Cycles that the vector unit takes for an element: it has C / vector_fold lanes."""
    psum_depth: int = 256
    """Partial sums per column: the widest panel (N) of one matmul instruction."""
    sram_banks: int = 8
    sram_bytes: int = 512 * 1024
    axi_data_bits: int = 128
    axi_id_bits: int = 4
    axi_outstanding: int = 8
    """Bursts that each DMA direction may have in flight."""
    axi_burst_beats: int = 64
    imem_words: int = 8192
    """Instruction memory, 32-bit words; the longest program."""
    semaphores: int = 64
    clock_mhz: float = 100.0

    def __post_init__(self) -> None:
        _need(self.columns in (2, 4, 8, 16, 32), "columns", self.columns, "2, 4, 8, 16 or 32")
        _need(self.vector_fold in (1, 2), "vector_fold", self.vector_fold, "1 or 2")
        _need(_pow2(self.psum_depth) and 32 <= self.psum_depth <= 1024, "psum_depth", self.psum_depth,
              "a power of two, 32 to 1024")
        _need(_pow2(self.sram_banks) and 2 <= self.sram_banks <= 32, "sram_banks", self.sram_banks,
              "a power of two, 2 to 32")
        _need(_pow2(self.sram_bytes) and 4096 <= self.sram_bytes <= 1 << 26, "sram_bytes", self.sram_bytes,
              "a power of two, 4096 to 67108864")
        _need(self.sram_bytes >= self.sram_banks * self.word_bytes * 16, "sram_bytes", self.sram_bytes,
              f"at least 16 words of {self.word_bytes} bytes in each of {self.sram_banks} banks")
        _need(self.axi_data_bits in (32, 64, 128, 256, 512), "axi_data_bits", self.axi_data_bits,
              "32, 64, 128, 256 or 512")
        _need(self.axi_bytes <= self.word_bytes, "axi_data_bits", self.axi_data_bits,
              f"at most the SRAM word of {8 * self.word_bytes} bits")
        _need(1 <= self.axi_id_bits <= 8, "axi_id_bits", self.axi_id_bits, "1 to 8")
        _need(_pow2(self.axi_outstanding) and 1 <= self.axi_outstanding <= 32, "axi_outstanding",
              self.axi_outstanding, "a power of two, 1 to 32")
        _need(_pow2(self.axi_burst_beats) and self.axi_burst_beats <= 256
              and self.axi_burst_beats * self.axi_bytes <= 4096, "axi_burst_beats", self.axi_burst_beats,
              "a power of two, at most 256 beats and 4096 bytes")
        _need(_pow2(self.imem_words) and 256 <= self.imem_words <= 16384, "imem_words", self.imem_words,
              "a power of two, 256 to 16384")
        _need(self.semaphores in (16, 32, 64), "semaphores", self.semaphores, "16, 32 or 64")
        _need(self.clock_mhz > 0, "clock_mhz", self.clock_mhz, "a positive number")

    @property
    def macs(self) -> int:
        """Multipliers of the array: MACs per cycle at full use."""
        return MX_BLOCK * self.columns

    @property
    def lanes(self) -> int:
        """Lanes of the vector unit."""
        return self.columns // self.vector_fold

    @property
    def lane_bytes(self) -> int:
        """Bytes of a lane word: one float32 for each of the C rows."""
        return 4 * self.columns

    @property
    def word_bytes(self) -> int:
        """Bytes of one SRAM word: a whole block of 32 int8 elements or a lane word, whichever is wider."""
        return max(MX_BLOCK, self.lane_bytes)

    @property
    def sram_words(self) -> int:
        return self.sram_bytes // self.word_bytes

    @property
    def sram_addr_bits(self) -> int:
        """Bits of an SRAM word index."""
        return (self.sram_words - 1).bit_length()

    @property
    def bank_words(self) -> int:
        return self.sram_words // self.sram_banks

    @property
    def axi_bytes(self) -> int:
        return self.axi_data_bits // 8

    def replace(self, **changes: object) -> "TileConfig":
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)  # type: ignore[arg-type]


TINY = TileConfig(name="tiny", columns=2, psum_depth=64, sram_banks=4, sram_bytes=64 * 1024, axi_data_bits=64,
                  axi_outstanding=4, axi_burst_beats=16, imem_words=4096)
BASE = TileConfig(name="base")
ECP5 = TileConfig(name="ecp5", columns=4, vector_fold=2, sram_banks=2, sram_bytes=128 * 1024)
BIG = TileConfig(name="big", columns=32, psum_depth=512, sram_banks=16, sram_bytes=4 << 20, axi_data_bits=512,
                 axi_outstanding=16, clock_mhz=200.0)

CONFIGS: dict[str, TileConfig] = {c.name: c for c in (TINY, BASE, ECP5, BIG)}


def named(name: str) -> TileConfig:
    """The named config; ValueError lists the names there are."""
    if name not in CONFIGS:
        raise ValueError(f"config {name!r}: allowed is one of {', '.join(CONFIGS)}")
    return CONFIGS[name]
