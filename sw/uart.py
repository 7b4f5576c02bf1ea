"""The host's end of the host link: a board's registers and memory over a serial port (docs/boards.md)."""

import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hw.config import TileConfig
from hw.host_link_map import (
    CRC_BYTES,
    END,
    ESCAPE,
    ESCAPED_END,
    ESCAPED_ESCAPE,
    HEADER_BYTES,
    HELLO_BYTES,
    MAX_DATA,
    VERSION,
    Op,
    Status,
)

from .board import BoardDevice, BoardError

BAUD = 3_000_000
WINDOW = 16
"""Requests without an answer. The protocol allows 64; this many cover the latency of USB."""
ZERO_SPEED = 1_000_000
"""Bytes per second that any board zeroes at least."""

_END, _ESCAPE = bytes([END]), bytes([ESCAPE])
_ESCAPES = ((_ESCAPE, bytes([ESCAPE, ESCAPED_ESCAPE])), (_END, bytes([ESCAPE, ESCAPED_END])))


def encode(content: bytes) -> bytes:
    """A frame as on the line: CRC, escapes, delimiters."""
    content += zlib.crc32(content).to_bytes(CRC_BYTES, "little")
    for plain, escaped in _ESCAPES:
        content = content.replace(plain, escaped)
    return _END + content + _END


def decode(line: bytes) -> bytes | None:
    """The content of what came between two delimiters; None where it is broken."""
    content = line
    for plain, escaped in reversed(_ESCAPES):
        content = content.replace(escaped, plain)
    stray = line.replace(_ESCAPES[0][1], b".").replace(_ESCAPES[1][1], b".")
    if _ESCAPE in stray or len(content) < HEADER_BYTES + CRC_BYTES:
        return None
    content, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
    return content if zlib.crc32(content).to_bytes(CRC_BYTES, "little") == crc else None


@dataclass(frozen=True)
class Request:
    op: Op
    address: int
    data: bytes = b""
    length: int = 0
    """Bytes that the answer brings."""

    def content(self, seq: int) -> bytes:
        length = len(self.data) or self.length
        head = bytes([seq, self.op]) + length.to_bytes(2, "little") + self.address.to_bytes(4, "little")
        return head + self.data


class Port(Protocol):
    """What a serial port has to do."""

    def read(self) -> bytes:
        """What has come, after waiting for it for a moment; b"" for nothing. OSError when it has gone."""

    def write(self, data: bytes) -> None:
        """OSError when it has gone; bytes that do not get through in a while are lost."""

    def close(self) -> None: ...


class SerialPort:
    """A serial port of the operating system, for this process alone."""

    WAIT = 0.02

    def __init__(self, path: str, baud: int):
        import serial

        self._lost = serial.SerialTimeoutException
        self.serial = serial.Serial(path, baud, timeout=self.WAIT, write_timeout=1.0, exclusive=True)

    def read(self) -> bytes:
        return self.serial.read(max(1, self.serial.in_waiting))

    def write(self, data: bytes) -> None:
        try:
            self.serial.write(data)
        except self._lost:
            pass

    def close(self) -> None:
        self.serial.close()


class UartAccess:
    """An Access (sw/board.py) over the host link.

    port: path of a serial port, or what opens one. timeout: seconds of silence, beyond what the line takes,
    after which requests are sent again. patience: seconds without progress, the port's absence included,
    after which BoardError is raised. frame: bytes of data in a frame; less where the line is bad.
    """

    def __init__(
        self,
        port: str | Callable[[], Port],
        baud: int = BAUD,
        *,
        timeout: float = 0.25,
        patience: float = 5.0,
        frame: int = MAX_DATA,
    ):
        if not 4 <= frame <= MAX_DATA or frame % 4:
            raise ValueError(f"frame = {frame}: allowed is a multiple of 4, 4..{MAX_DATA}")
        self.name = port if isinstance(port, str) else "port"
        self._make = port if callable(port) else lambda: SerialPort(port, baud)
        self.baud, self.timeout, self.patience = baud, timeout, patience
        self._port: Port | None = None
        self._missing: OSError | None = None
        self._buffer, self._seq = b"", 0
        self._failure: BaseException | None = RuntimeError("not open")
        self._want = self.frame = frame
        self.memory_bytes, self._queue = 0, 0
        self.resent = 0
        """Requests that went out more than once."""

    # ---- the line

    def _with_port(self, action: Callable[[Port], bytes]) -> bytes:
        """The action's result; b"" while the port is missing, which is then tried again."""
        try:
            if self._port is None:
                self._port, self._missing, self._buffer = self._make(), None, b""
            return action(self._port)
        except OSError as error:
            self._missing = error
            if self._port is not None:
                self._drop_port()
            time.sleep(0.05)
            return b""

    def _drop_port(self) -> None:
        port, self._port = self._port, None
        try:
            if port is not None:
                port.close()
        except OSError:
            pass

    def _send(self, line: bytes) -> None:
        def action(port: Port) -> bytes:
            port.write(line)
            return b""

        self._with_port(action)

    def _frames(self) -> list[bytes]:
        """Contents of the frames that have come whole and well."""
        self._buffer += self._with_port(lambda port: port.read())
        *lines, self._buffer = self._buffer.split(_END)
        self._buffer = self._buffer[-4 * MAX_DATA :]  # a babbling line fills no memory
        frames = [decode(line) for line in lines if line]
        return [
            f for f in frames if f is not None and len(f) == HEADER_BYTES + int.from_bytes(f[2:4], "little")
        ]

    def _give_up(self, silent: float) -> BoardError:
        why = f" ({self._missing})" if self._missing else ""
        return BoardError(f"no answer from the board on {self.name} for {silent:.1f} s{why}")

    # ---- requests

    def open(self) -> None:
        """A new session: HELLO until the board answers this very one."""
        self._failure = None
        if self._port is None:
            try:
                self._port, self._buffer = self._make(), b""
            except OSError as error:
                self._failure = BoardError(f"no serial port {self.name}: {error}")
                raise self._failure from None
        token = os.urandom(4)
        hello = Request(Op.HELLO, 0, token)
        begun = time.monotonic()
        sent = 0.0
        answer = None
        try:
            while answer is None:
                now = time.monotonic()
                if now - begun > self.patience:
                    raise self._give_up(now - begun)
                if now - sent > self.timeout + self._line_time(64):
                    self._send(encode(hello.content(0)))
                    sent = now
                for frame in self._frames():
                    if frame[1] == Op.HELLO and frame[4] == Status.OK and frame[8:12] == token:
                        answer = frame[HEADER_BYTES:]
            if len(answer) != HELLO_BYTES or (version := int.from_bytes(answer[4:6], "little")) != VERSION:
                raise BoardError(
                    f"the board speaks protocol {version}, this software {VERSION}"
                    if len(answer) == HELLO_BYTES
                    else "the board's greeting is not understood"
                )
        except BaseException as error:
            self._failure = error
            raise
        self.frame = min(self._want, int.from_bytes(answer[6:8], "little"))
        self.memory_bytes = int.from_bytes(answer[8:12], "little")
        self._queue = int.from_bytes(answer[12:14], "little")
        self._seq = 1

    def _line_time(self, nbytes: int) -> float:
        return 10 * nbytes / self.baud

    def exchange(
        self, requests: Sequence[Request], window: int = WINDOW, seconds: float = 0.0
    ) -> list[bytes]:
        """The answers' data, in the order of the requests. seconds: that the board may take for one."""
        if self._failure is not None:
            raise BoardError(f"the link to the board is down until attach: {self._failure}")
        try:
            return self._exchange(requests, window, seconds)
        except BaseException as error:  # also an interrupt: what is on the way is not known any more
            self._failure = error
            raise

    def _exchange(self, requests: Sequence[Request], window: int, seconds: float) -> list[bytes]:
        first = self._seq
        answers: list[bytes | None] = [None] * len(requests)
        base = sent = 0  # requests before `base` have answers; those before `sent` went out
        held = False  # everything unanswered was sent again and nothing has come of it yet
        progress = heard = time.monotonic()
        while base < len(requests):
            again = 0
            while sent < len(requests) and sent - base < window:
                self._send(encode(requests[sent].content((first + sent) & 0xFF)))
                sent += 1
            for frame in self._frames():
                heard = time.monotonic()
                seq, op, status = frame[0], frame[1], frame[4]
                if status in (Status.CORRUPT, Status.RESEND):
                    again = max(again, 1)
                    continue
                index = base + ((seq - first - base) & 0xFF)
                if index >= sent or op != requests[index].op or answers[index] is not None:
                    continue
                self._judge(status, requests[index])
                data = frame[HEADER_BYTES:]
                if len(data) != requests[index].length:
                    continue
                answers[index] = data
                # In order: what a write before this one had to say is said.
                for k in range(base, index):
                    if answers[k] is None and not requests[k].length:
                        answers[k] = b""
                while base < len(requests) and answers[base] is not None:
                    base += 1
                    progress, held = heard, False
            now = time.monotonic()
            waiting = [k for k in range(base, sent) if answers[k] is None]
            line = sum(
                2 * (HEADER_BYTES + CRC_BYTES) + len(requests[k].data) + requests[k].length for k in waiting
            )
            if now - heard > self.timeout + seconds + 2 * self._line_time(line):
                again, heard, held = 1, now, False
            if now - progress > self.patience + seconds + 2 * self._line_time(line):
                raise self._give_up(now - progress)
            if again and waiting and not held:
                held = True
                self.resent += len(waiting)
                for k in waiting:
                    self._send(encode(requests[k].content((first + k) & 0xFF)))
        self._seq = (first + len(requests)) & 0xFF
        return [a or b"" for a in answers]

    def _judge(self, status: int, request: Request) -> None:
        what = f"{request.op.name} at {request.address:#x}"
        if status == Status.NO_SESSION:
            raise BoardError("the board was reset: what its memory held is lost")
        if status == Status.BUS_ERROR:
            raise BoardError(f"{what}: the board's bus answered with an error")
        if status != Status.OK:
            raise BoardError(f"{what}: the board refused it (status {status})")

    # ---- Access

    def _pieces(self, address: int, nbytes: int) -> list[tuple[int, int]]:
        return [(at, min(self.frame, nbytes - at)) for at in range(0, nbytes, self.frame)]

    def _reads(self, op: Op, address: int, nbytes: int) -> bytes:
        """The board's answers keep it busy: no more on the line than it holds meanwhile."""
        longest = 2 * (HEADER_BYTES + CRC_BYTES) + 2
        requests = [Request(op, address + at, length=n) for at, n in self._pieces(address, nbytes)]
        return b"".join(self.exchange(requests, max(1, min(WINDOW, self._queue // longest))))

    def read_registers(self, address: int, count: int) -> list[int]:
        return np.frombuffer(self._reads(Op.READ_REG, address, 4 * count), "<u4").tolist()

    def write_registers(self, writes: Sequence[tuple[int, Sequence[int]]]) -> None:
        self.exchange([Request(Op.WRITE_REG, at, np.array(v, "<u4").tobytes()) for at, v in writes])

    def read_memory(self, address: int, nbytes: int) -> np.ndarray:
        return np.frombuffer(self._reads(Op.READ_MEM, address, nbytes), np.uint8)

    def write_memory(self, address: int, raw: np.ndarray) -> None:
        pieces = self._pieces(address, raw.size)
        self.exchange([Request(Op.WRITE_MEM, address + at, raw[at : at + n].tobytes()) for at, n in pieces])

    def zero_memory(self, address: int, nbytes: int) -> None:
        request = Request(Op.ZERO_MEM, address, nbytes.to_bytes(4, "little"))
        self.exchange([request], 1, nbytes / ZERO_SPEED)

    def close(self) -> None:
        if self._failure is None:
            self._failure = RuntimeError("closed")
        self._drop_port()


class UartDevice(BoardDevice):
    """The tile of a board on a serial port. options: as of UartAccess."""

    def __init__(
        self,
        config: TileConfig,
        port: str | Callable[[], Port],
        baud: int = BAUD,
        dram_bytes: int = 0,
        **options: float,
    ):
        self.link = UartAccess(port, baud, **options)  # type: ignore[arg-type]
        super().__init__(config, self.link, dram_bytes)
