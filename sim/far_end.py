"""The board's end of the host link as a model, written from docs/boards.md alone, and faults on a line.

It shares nothing with sw/uart.py and hw/host_link.py: every number is spelt out once more.
"""

import zlib
from typing import Protocol

import numpy as np

from golden.machine import MachineError
from hw import csr_map
from hw.config import TileConfig
from sw.device import MachineDevice

__all__ = ["FarEnd", "Faults", "MachineRegisters", "frame"]


class Registers(Protocol):
    def read(self, address: int) -> int: ...
    def write(self, address: int, value: int) -> None: ...


def frame(content: bytes) -> bytes:
    """Content with CRC, byte by byte onto the line."""
    out = bytearray([0xC0])
    for byte in content + zlib.crc32(content).to_bytes(4, "little"):
        out += {0xC0: b"\xdb\xdc", 0xDB: b"\xdb\xdd"}.get(byte, bytes([byte]))
    return bytes(out + b"\xc0")


class FarEnd:
    """Bytes of the line in, bytes of the line out."""

    def __init__(self, registers: Registers, memory: np.ndarray):
        self.registers, self.memory = registers, memory
        self.reset()

    def reset(self) -> None:
        """As after power on; memory keeps what it has."""
        self.session, self.next, self.line = False, 0, bytearray()
        self.executed: list[tuple[int, int]] = []  # (op, address) of every write

    def feed(self, data: bytes) -> bytes:
        out = b""
        for byte in data:
            if byte != 0xC0:
                self.line.append(byte)
            elif self.line:
                out += self._frame(bytes(self.line))
                self.line.clear()
        return out

    def _frame(self, line: bytes) -> bytes:
        content, escape, broken = bytearray(), False, False
        for byte in line:
            if escape:
                broken |= byte not in (0xDC, 0xDD)
                content.append({0xDC: 0xC0, 0xDD: 0xDB}.get(byte, 0))
                escape = False
            elif byte == 0xDB:
                escape = True
            else:
                content.append(byte)
        broken |= escape or not 12 <= len(content) <= 1036
        if not broken:
            crc = int.from_bytes(content[-4:], "little")
            broken = zlib.crc32(content[:-4]) != crc
        if not broken:
            length = int.from_bytes(content[2:4], "little")
            broken = len(content) - 12 != (0 if content[1] in (1, 3) else length)
        if broken:
            return self._answer(0, 0, 1)
        address = int.from_bytes(content[4:8], "little")
        seq, op = content[0], content[1]
        return self._answer(seq, op, *self._rules(seq, op, length, address, bytes(content[8:-4])))

    def _answer(self, seq: int, op: int, status: int, data: bytes = b"") -> bytes:
        length = len(data).to_bytes(2, "little")
        return frame(bytes([seq, op]) + length + bytes([status, self.next, 0, 0]) + data)

    def _rules(self, seq: int, op: int, length: int, address: int, data: bytes) -> tuple[int, bytes]:
        if op == 0 and length == 4:
            self.session, self.next = True, (seq + 1) % 256
            facts = (1).to_bytes(2, "little") + (1024).to_bytes(2, "little")
            facts += len(self.memory).to_bytes(4, "little") + (128).to_bytes(2, "little") + bytes(2)
            return 0, data + facts
        if not self.session:
            return 3, b""
        aligned = address % 4 == 0 and length % 4 == 0 and address < 4096
        count = int.from_bytes(data, "little")
        if not {
            1: 4 <= length <= 1024 and aligned,
            2: 4 <= length <= 1024 and aligned,
            3: 1 <= length <= 1024,
            4: 1 <= length <= 1024,
            5: length == 4,
        }.get(op, False):
            return 4, b""
        distance = (seq - self.next) % 256
        if 1 <= distance <= 127:
            return 2, b""
        if distance >= 128 and op in (2, 4, 5):
            return 0, b""
        if op == 5 and not count:
            return 4, b""
        status, answer = self._execute(op, address, length, count, data)
        if status == 0 and distance == 0:
            self.next = (self.next + 1) % 256
        return status, answer

    def _execute(self, op: int, address: int, length: int, count: int, data: bytes) -> tuple[int, bytes]:
        if op in (2, 4, 5):
            self.executed.append((op, address))
        if op == 1:
            values = [self.registers.read((address + k) % 4096) for k in range(0, length, 4)]
            return 0, b"".join(v.to_bytes(4, "little") for v in values)
        if op == 2:
            for k in range(0, length, 4):
                self.registers.write((address + k) % 4096, int.from_bytes(data[k : k + 4], "little"))
            return 0, b""
        if op == 5:
            data = bytes(count)
        size = length if op == 3 else len(data)
        fits = address + size <= len(self.memory)
        if op == 3:
            return (0, self.memory[address : address + size].tobytes()) if fits else (5, b"")
        room = max(0, min(size, len(self.memory) - address))  # what fits is written before the error
        self.memory[address : address + room] = np.frombuffer(data, np.uint8)[:room]
        return (0 if fits else 5), b""


class MachineRegisters:
    """Registers of a tile whose programs run on the instruction-level model in no time."""

    def __init__(self, config: TileConfig, memory: np.ndarray, busy: int = 0):
        """busy: reads of STATUS for which a program takes."""
        self.device = MachineDevice(config)
        self.device.attach(memory)
        self.memory = self.device.dram
        self.busy, self.left, self.rings = busy, 0, 0
        self.values = {r.offset: r.reset for r in csr_map.REGISTERS}
        self.values |= {csr_map.offset(name): v for name, v in csr_map.constants(config).items()}

    def __getitem__(self, name: str) -> int:
        return self.values[csr_map.offset(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self.values[csr_map.offset(name)] = value

    def read(self, address: int) -> int:
        if address == csr_map.offset("STATUS") and self.left:
            self.left -= 1
            return 1
        return self.values.get(address, 0)

    def write(self, address: int, value: int) -> None:
        name = next((r.name for r in csr_map.REGISTERS if r.offset == address and r.access != "ro"), None)
        if name == "CTRL" and value & 2 and self.left:
            self.left, self["STATUS"] = 0, 8
        elif name == "CTRL" and value & 1 and not self.left:
            self._run()
        elif name == "IRQ_STATUS":
            self[name] &= ~value
        elif name is not None and name != "CTRL":
            self[name] = value

    def _run(self) -> None:
        self.rings += 1
        self.left = self.busy
        try:
            run = self.device.run(self["PROG_ADDR"], self["PROG_WORDS"], [self[f"ARG{k}"] for k in range(8)])
            self["STATUS"], self["CYCLES_LO"], self["IRQ_STATUS"] = 2, 1000, 1
            self["READ_BEATS_LO"] = run.counters["READ_BYTES"] // self.device.config.axi_bytes
        except MachineError as error:
            self["STATUS"], self["IRQ_STATUS"] = 4, 2
            self["ERR_CODE"], self["ERR_PC"], self["ERR_VALUE"] = error.code, error.pc, error.value


class Faults:
    """Loses, doubles and flips bytes of a line at random; `cut` while the cable is pulled."""

    def __init__(self, rate: float, seed: int):
        self.rate, self.cut = rate, False
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        if self.cut or not data:
            return b""
        hits = np.flatnonzero(self.rng.random(len(data)) < self.rate)
        self.count += len(hits)
        out = [bytes([b]) for b in data]
        for k in hits:
            kind = self.rng.integers(3)
            flipped = bytes([data[k] ^ int(self.rng.integers(1, 256))])
            out[k] = (b"", out[k] * 2, flipped)[kind]
        return b"".join(out)
