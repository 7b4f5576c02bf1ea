"""The designs under test: the units of a tiny tile side by side (one Verilator build), and the tile."""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw.array import SystolicArray
from hw.config import TINY
from hw.dma import LoadEngine, StoreEngine
from hw.matmul import Matmul
from hw.sram import Sram
from hw.tile import Tile
from hw.vector import Vector

__all__ = ["CONFIG", "SRAM_CONFIG", "SRAM_READS", "SRAM_WRITES", "Units", "tile"]

CONFIG = TINY
SRAM_CONFIG = TINY.replace(name="sram", sram_bytes=4096)
SRAM_READS, SRAM_WRITES = ("a", "b", "c", "d", "e"), ("v", "w", "x")


class Units(wiring.Component):
    """Every unit on its own; port `p` of unit `u` is port `u_p`."""

    def __init__(self) -> None:
        self.units: dict[str, wiring.Component] = {
            "array": SystolicArray(CONFIG),
            "matmul": Matmul(CONFIG),
            "vector": Vector(CONFIG),
            "load": LoadEngine(CONFIG),
            "store": StoreEngine(CONFIG),
            "sram": Sram(SRAM_CONFIG, SRAM_READS, SRAM_WRITES),
        }
        super().__init__({name: Out(unit.signature) for name, unit in self.units.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
            wiring.connect(m, wiring.flipped(getattr(self, name)), unit)
        return m


def tile() -> Tile:
    return Tile(CONFIG)
