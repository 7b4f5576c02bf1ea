"""A tile in the address space of this processor: registers and memory through mmap (docs/boards.md).

For Zynq boards and the like: /dev/mem, UIO, u-dma-buf. The files are mapped uncached (O_SYNC).
"""

import mmap
import os
import re
import stat
from collections.abc import Sequence

import numpy as np

from hw import csr_map
from hw.config import TileConfig

from .board import BoardDevice

REGISTER_BYTES = 1 << csr_map.ADDR_BITS
_WINDOW = re.compile(r"(?P<path>[^@+]+)(@(?P<offset>\w+))?(\+(?P<size>\w+))?")


def window(text: str) -> tuple[str, int, int]:
    """(path, offset, bytes or 0) of `path[@offset][+bytes]`."""
    match = _WINDOW.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        return match["path"], int(match["offset"] or "0", 0), int(match["size"] or "0", 0)
    except ValueError:
        raise ValueError(f"window {text!r}: allowed is path[@offset][+bytes]") from None


class Mapping:
    """A window of a file as an array of bytes, until `close`."""

    def __init__(self, text: str, nbytes: int = 0):
        """nbytes: its length where the text does not say; 0: the rest of the file."""
        path, offset, size = window(text)
        if offset % mmap.ALLOCATIONGRANULARITY:
            raise ValueError(
                f"offset {offset:#x} of {path}: allowed is a multiple of {mmap.ALLOCATIONGRANULARITY}"
            )
        file = os.open(path, os.O_RDWR | os.O_SYNC)
        try:
            status = os.fstat(file)
            # A device's length is not known (0), and what cannot be mapped is refused by the system.
            length = status.st_size - offset if stat.S_ISREG(status.st_mode) else 0
            size = size or nbytes or length
            if size <= 0 or 0 < length < size or stat.S_ISREG(status.st_mode) and length <= 0:
                raise ValueError(
                    f"window {text!r}: {path} has {max(0, length)} bytes there, {size} are asked for"
                )
            self._map = mmap.mmap(file, size, offset=offset)
        finally:
            os.close(file)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """Views that others keep stay valid; the mapping goes with the last of them."""
        self.bytes = np.zeros(0, np.uint8)
        try:
            self._map.close()
        except BufferError:
            pass


class MappedAccess:
    """An Access (sw/board.py). registers, memory: windows, `path[@offset][+bytes]`; dram_bytes: memory's
    length where the window does not say and the file has none."""

    def __init__(self, registers: str, memory: str, dram_bytes: int = 0):
        self._registers = Mapping(registers, REGISTER_BYTES)
        # One aligned 32-bit access per element: this is how registers have to be touched.
        self._words = self._registers.bytes[:REGISTER_BYTES].view(np.uint32)
        try:
            regular = os.path.isfile(window(memory)[0])
            self._memory = Mapping(memory, 0 if regular else dram_bytes)
        except BaseException:
            self.close()
            raise
        self.memory_bytes = len(self._memory.bytes)

    def open(self) -> None:
        pass

    def read_registers(self, address: int, count: int) -> list[int]:
        return [int(self._words[address // 4 + k]) for k in range(count)]

    def write_registers(self, writes: Sequence[tuple[int, Sequence[int]]]) -> None:
        for address, values in writes:
            for k, value in enumerate(values):
                self._words[address // 4 + k] = value

    def read_memory(self, address: int, nbytes: int) -> np.ndarray:
        return self._memory.bytes[address : address + nbytes].copy()

    def write_memory(self, address: int, raw: np.ndarray) -> None:
        self._memory.bytes[address : address + raw.size] = raw

    def zero_memory(self, address: int, nbytes: int) -> None:
        self._memory.bytes[address : address + nbytes] = 0

    def close(self) -> None:
        self._words = np.zeros(0, np.uint32)
        for mapping in (self._registers, getattr(self, "_memory", None)):
            if mapping is not None:
                mapping.close()


class MappedDevice(BoardDevice):
    """The tile of a board on this processor's bus."""

    def __init__(self, config: TileConfig, registers: str, memory: str, dram_bytes: int = 0):
        super().__init__(config, MappedAccess(registers, memory, dram_bytes), dram_bytes)
