"""DRAM images: weight panels in streaming order, the KV cache, constants and activations."""

from dataclasses import dataclass

import numpy as np

from golden import formats
from golden.spec import MxTensor

BLOCK_BYTES = {formats.INT8: 32, formats.FP6: 24, formats.FP4: 16}


def align(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class Panel:
    """`n` output features of a linear layer over all `k` blocks of its contraction: k passes of
    `pass_bytes`, each the n blocks (padded to 32 bytes) followed by the n scale bytes (padded to 32)."""

    address: int
    n: int
    k: int
    fmt: int

    @property
    def data_bytes(self) -> int:
        return align(self.n * BLOCK_BYTES[self.fmt], 32)

    @property
    def pass_bytes(self) -> int:
        return self.data_bytes + align(self.n, 32)

    @property
    def bytes(self) -> int:
        return self.k * self.pass_bytes

    @staticmethod
    def pack(w: MxTensor) -> np.ndarray:
        """The panel's image for all rows of w."""
        n, k = w.scales.shape
        p = Panel(0, n, k, w.fmt)
        image = np.zeros((k, p.pass_bytes), np.uint8)
        blocks = formats.pack(w.ints, w.fmt).reshape(n, k, -1)
        image[:, : n * BLOCK_BYTES[w.fmt]] = blocks.transpose(1, 0, 2).reshape(k, -1)
        image[:, p.data_bytes : p.data_bytes + n] = w.scales.T
        return image.reshape(-1)


def put_program(dram: np.ndarray, address: int, image: np.ndarray) -> None:
    """Copy an array of any type into DRAM."""
    dram[address : address + image.nbytes] = np.ascontiguousarray(image).view(np.uint8).reshape(-1)


class DramImage:
    """A bump allocator over a DRAM image. MemoryError says what did not fit."""

    def __init__(self, size: int, base: int = 0):
        self.data = np.zeros(size, np.uint8)
        self.top = base
        self.regions: dict[str, tuple[int, int]] = {}

    def alloc(self, name: str, nbytes: int, to: int = 64) -> int:
        address = align(self.top, to)
        if address + nbytes > len(self.data):
            raise MemoryError(
                f"{name}: {nbytes} bytes at {address:#x} do not fit a DRAM of {len(self.data)} bytes"
            )
        self.top = address + nbytes
        self.regions[name] = (address, nbytes)
        return address

    def put(self, name: str, array: np.ndarray, to: int = 64) -> int:
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        address = self.alloc(name, raw.size, to)
        self.data[address : address + raw.size] = raw
        return address

    def panel(self, name: str, w: MxTensor) -> Panel:
        return Panel(self.put(name, Panel.pack(w)), w.outputs, w.scales.shape[1], w.fmt)

    def where(self, address: int) -> str:
        """'region + offset' of an address, for error messages."""
        for name, (start, size) in self.regions.items():
            if start <= address < start + size:
                return f"{name} + {address - start}"
        return f"{address:#x}"


def lane_words(x: np.ndarray, columns: int) -> np.ndarray:
    """x (tokens, features) -> (groups, features, C) float32, missing rows zero."""
    t, f = x.shape
    g = -(-t // columns)
    out = np.zeros((g * columns, f), np.float32)
    out[:t] = x
    return np.ascontiguousarray(out.reshape(g, columns, f).transpose(0, 2, 1))


def unlane(words: np.ndarray, tokens: int) -> np.ndarray:
    """Inverse of lane_words: (groups, features, C) -> (tokens, features)."""
    g, f, c = words.shape
    return words.transpose(0, 2, 1).reshape(g * c, f)[:tokens]


def panel_splits(n: int, width: int, step: int) -> list[tuple[int, int]]:
    """Cut n features into panels of at most `width`, all but the last of equal size, a multiple of `step`."""
    if width < step:
        raise ValueError(f"panel width {width}: allowed is at least {step}")
    count = -(-n // (width // step * step))
    size = align(-(-n // count), step)
    return [(i, min(i + size, n)) for i in range(0, n, size)]
