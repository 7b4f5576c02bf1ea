"""The host's end of the link (sw/uart.py) against the model of the board's end, on good and bad lines.

The far end runs programs on the instruction-level model, so a session of the runtime goes through every part
of the Device protocol. Memory-mapped boards (sw/mapped.py) run against the same registers.
"""

import os
import threading
import time
import tty
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from golden.model import Model
from golden.spec import BlockSpec, ModelSpec, random_model
from hw import csr_map
from hw.config import BASE, TINY
from hw.isa import Error
from sim.far_end import FarEnd, Faults, MachineRegisters, frame
from sw.device import TileError
from sw.board import BoardError, runs
from sw.cli import main
from sw.engine import open_device
from sw.mapped import MappedDevice, window
from sw.runtime import Session
from sw.uart import Request, UartAccess, UartDevice, decode, encode
from hw.host_link_map import Op

MEMORY = 1 << 18
BLOCK = BlockSpec(name="b", hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, max_tokens=64)
SPEC = ModelSpec(name="m", architecture="llama", block=BLOCK, windows=(16,), vocab=64, context=61)
PARAMS = random_model(SPEC, 1)
PROMPT = [5, 6, 7, 8, 9, 1, 2]


class LoopPort:
    """A serial port whose other end is the model of the board. there, back: faults of the two directions."""

    def __init__(self, far: FarEnd, rate: float = 0.0, seed: int = 0):
        self.far, self.pending = far, b""
        self.there, self.back = Faults(rate, seed), Faults(rate, seed + 1)
        self.gone = False
        self.opened = self.sent = 0

    def __call__(self) -> "LoopPort":
        if self.gone:
            raise OSError("could not open port")
        self.opened += 1
        return self

    def read(self) -> bytes:
        if self.gone:
            raise OSError("device disconnected")
        if not self.pending:
            time.sleep(0.0005)
        data, self.pending = self.pending, b""
        return data

    def write(self, data: bytes) -> None:
        if self.gone:
            raise OSError("device disconnected")
        self.sent += len(data)
        self.pending += self.back(self.far.feed(self.there(data)))

    def close(self) -> None:
        pass


def board(rate: float = 0.0, seed: int = 0, busy: int = 0) -> tuple[FarEnd, LoopPort]:
    registers = MachineRegisters(TINY, np.full(MEMORY, 0xA5, np.uint8), busy)
    far = FarEnd(registers, registers.memory)
    return far, LoopPort(far, rate, seed)


def device(port: LoopPort, **options: Any) -> UartDevice:
    return UartDevice(TINY, port, **{"timeout": 0.02, "patience": 0.5} | options)


def greedy(prompt: list[int], n: int) -> list[int]:
    """The golden model's continuation."""
    model, ids, out = Model(SPEC, PARAMS), prompt, []
    for _ in range(n):
        position = len(prompt) + len(out) - len(ids)
        out.append(int(np.argmax(model.forward(ids, position)[-1])))
        ids = out[-1:]
    return out


# ---------------------------------------------------------------- frames


def test_frames_literally() -> None:
    """A read of 16 bytes at 0x1C0 with number 0xDB, by hand."""
    content = Request(Op.READ_MEM, 0x1C0, length=16).content(0xDB)
    assert content == bytes.fromhex("db 03 1000 c0010000")
    crc = bytes.fromhex("1429e47b")  # computed bit by bit from the polynomial
    assert encode(content) == bytes.fromhex("c0 dbdd 03 1000 dbdc 010000") + crc + b"\xc0"
    assert decode(encode(content)[1:-1]) == content
    ring = Request(Op.WRITE_REG, 0x20, b"\1\0\0\0").content(7)
    assert ring == bytes.fromhex("07 02 0400 20000000 01000000")


def test_frames_of_both_models_agree() -> None:
    rng = np.random.default_rng(0)
    for n in range(200):
        data = rng.choice([0xC0, 0xDB, 0xDC, 0xDD, 1], rng.integers(8, 40)).astype(np.uint8).tobytes()
        line = encode(data)
        assert line == frame(data) and decode(line[1:-1]) == data
        at = int(rng.integers(1, len(line) - 1))
        assert decode(line[1:at] + bytes([line[at] ^ 1 << n % 8]) + line[at + 1 : -1]) is None
        assert decode(line[1:at] + line[at + 1 : -1]) is None


def test_runs() -> None:
    image = np.zeros(400, np.uint8)
    image[[0, 10, 200, 263]] = 1
    assert list(runs(image)) == [
        (0, 11, False),
        (11, 200, True),
        (200, 264, False),
        (264, 400, True),
    ]
    assert list(runs(np.ones(5, np.uint8))) == [(0, 5, False)] and list(runs(image[20:90])) == [(0, 70, True)]


# ---------------------------------------------------------------- the Device protocol


@pytest.mark.parametrize("rate, size", [(0.0, 1024), (0.002, 64), (0.01, 16)])
def test_memory_over_a_bad_line(rate: float, size: int) -> None:
    """What is written is what is there and what is read, whatever the line loses, doubles and flips."""
    far, port = board(rate, 7)
    link = device(port, frame=size, patience=5.0)
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, MEMORY if not rate else 8192).astype(np.uint8)
    image[1000:3000] = 0
    link.attach(image)
    assert np.array_equal(far.memory[: len(image)], image)
    for _ in range(20):
        at, n = int(rng.integers(0, 8000)), int(rng.integers(1, 180))
        data = rng.integers(0, 256, n).astype(np.uint8)
        link.write_dram(at, data)
        image[at : at + n] = data
        at = int(rng.integers(0, 8000))
        assert np.array_equal(link.read_dram(at, 191), image[at : at + 191])
    assert np.array_equal(far.memory[: len(image)], image)
    if rate:
        assert port.there.count > 20 and port.back.count > 5 and link.link.resent > 20
    else:
        assert link.link.resent == 0
    link.close()


def test_a_megabyte_takes_less_than_four_seconds_of_line() -> None:
    """Zeros are free; random weights cost headers and escapes. The board answers while the host sends on."""
    far = FarEnd(MachineRegisters(TINY, np.zeros(64, np.uint8)), np.zeros(1 << 21, np.uint8))
    port = LoopPort(far)
    link = device(port)
    image = np.zeros(1 << 21, np.uint8)
    image[: 1 << 20] = np.random.default_rng(0).integers(0, 256, 1 << 20)
    port.sent = 0
    link.attach(image)
    assert np.array_equal(far.memory, image) and 10 * port.sent / 3e6 < 4.0


def test_a_doorbell_rings_once_however_often_it_is_heard() -> None:
    """Every answer of the board is lost once, so every request is sent twice."""
    far, port = board()
    link = device(port)
    heard: list[bytes] = []
    feed = far.feed

    def half_deaf(data: bytes) -> bytes:
        answer = feed(data)
        heard.append(data)
        return answer if heard.count(data) > 1 else b""

    far.feed = half_deaf  # type: ignore[method-assign]
    link.write(ARG0=3, CTRL=1)
    assert far.registers.rings == 1 and link.link.resent >= 2  # type: ignore[attr-defined]
    assert [op for op, at in far.executed if at == csr_map.offset("CTRL")] == [2]


@pytest.mark.parametrize("rate", [0.0, 0.0005])
def test_generate_equals_golden(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime over the link: prefill, decode, logits; the model's tokens."""
    far, port = board(rate, 11, busy=3)
    made: list[UartDevice] = []

    def open_device(backend: str, config: Any, dram_bytes: int, **options: Any) -> UartDevice:
        made.append(device(port, dram_bytes=dram_bytes, frame=256, patience=5.0))
        return made[0]

    monkeypatch.setattr("sw.engine.open_device", open_device)
    with Session(SPEC, PARAMS, config=TINY, backend="uart:x") as session:
        assert [t.id for t in session.generate(PROMPT, 6)] == greedy(PROMPT, 6)
        assert session.stats.decode.tokens == 6 and session.stats.decode.cycles == 1000
        next(stream := session.generate(PROMPT, 12, burst=12))
        stream.close()  # type: ignore[attr-defined]
        assert [t.id for t in session.generate(PROMPT, 2, temperature=1e-6, seed=1)] == greedy(PROMPT, 2)
    if rate:
        assert made[0].link.resent


def test_errors_of_a_program() -> None:
    """An illegal word stops the tile; the error has its code, and the device goes on."""
    far, port = board()
    link = device(port)
    link.attach(np.zeros(4096, np.uint8))
    link.write_dram(0, np.full(8, 0xFFFFFFFF, np.uint32))
    with pytest.raises(TileError, match="tile stopped") as caught:
        link.run(0, 8)
    assert isinstance(caught.value.code, Error) and caught.value.code == far.registers["ERR_CODE"]  # type: ignore[index]
    with pytest.raises(RuntimeError, match="start one first"):
        link.poll(1)
    with pytest.raises(ValueError, match="allowed is within"):
        link.read_dram(MEMORY - 4, 8)
    with pytest.raises(ValueError, match="allowed is within"):
        link.write_dram(-1, np.zeros(1))
    with pytest.raises(MemoryError, match="do not fit the board's"):
        link.attach(np.zeros(MEMORY + 1, np.uint8))
    far.registers.busy = 5  # type: ignore[attr-defined]
    with pytest.raises(TileError):
        link.run(0, 8)
    link.start(0, 8)
    assert not link.poll(10)
    with pytest.raises(RuntimeError, match="finish or abort"):
        link.start(0, 8)
    link.abort()
    assert link.read("STATUS") == 8


def test_a_program_of_an_earlier_host_is_stopped() -> None:
    far, port = board()
    far.registers.left = 1 << 30  # type: ignore[attr-defined]
    assert device(port).read("STATUS") == 8


# ---------------------------------------------------------------- broken connections


def test_wrong_board_and_small_board() -> None:
    far, port = board()
    with pytest.raises(BoardError, match="different tile: SRAM_BYTES is .* config base"):
        UartDevice(BASE, port)
    with pytest.raises(MemoryError, match="do not fit the board's 262144"):
        device(port, dram_bytes=MEMORY + 1)
    far.registers["ID"] = 0  # type: ignore[index]
    with pytest.raises(BoardError, match="different tile: ID is 0x0"):
        device(port)


def test_silence_is_an_error_in_time() -> None:
    _, port = board()
    port.there.cut = True
    start = time.monotonic()
    with pytest.raises(BoardError, match=r"no answer from the board on port for 0\.5"):
        device(port)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("way", ["there", "back", "gone"])
@pytest.mark.parametrize("returns", [True, False])
def test_cable_pulled_in_mid_transfer(way: str, returns: bool) -> None:
    """Pulled in the middle of a transfer. Back in time: all arrives. Not back: an error, also afterwards."""
    far, port = board()
    link = device(port, patience=1.0)
    link.attach(np.zeros(MEMORY, np.uint8))
    data = np.random.default_rng(2).integers(0, 256, 100_000).astype(np.uint8)
    write, count = port.write, 0

    def pull(state: bool) -> None:
        if way == "gone":
            port.gone = state
        else:
            getattr(port, way).cut = state

    def counting(line: bytes) -> None:
        nonlocal count
        count += 1
        if count == 30:
            write(line[:500])  # the frame is cut in the middle
            pull(True)
            if returns:
                threading.Timer(0.3, pull, [False]).start()
        else:
            write(line)

    port.write = counting  # type: ignore[method-assign]
    if returns:
        link.write_dram(5, data)
        assert np.array_equal(far.memory[5 : 5 + len(data)], data) and link.link.resent
        assert np.array_equal(link.read_dram(5, len(data)), data)
        return
    with pytest.raises(BoardError, match="no answer from the board"):
        link.write_dram(5, data)
    pull(False)
    with pytest.raises(BoardError, match="down until attach: no answer"):  # never half an image in silence
        link.read_dram(0, 4)
    link.attach(np.zeros(4096, np.uint8))
    assert not link.read_dram(0, 4096).any()


def test_reset_of_the_board_is_an_error() -> None:
    far, port = board()
    link = device(port)
    link.attach(np.ones(4096, np.uint8))
    far.reset()
    with pytest.raises(BoardError, match="the board was reset"):
        link.read_dram(0, 16)
    with pytest.raises(BoardError, match="down until attach: the board was reset"):
        link.start(0, 1)
    link.attach(np.ones(4096, np.uint8))
    assert link.read_dram(0, 16).all()


def test_a_broken_frame_is_sent_again_at_once() -> None:
    """The board says so: nobody waits for the timeout."""
    _, port = board()
    link = device(port, timeout=30.0, patience=60.0)
    link.attach(np.zeros(4096, np.uint8))
    write, count = port.write, 0

    def flip(line: bytes) -> None:
        nonlocal count
        count += 1
        write(line[:50] + bytes([line[50] ^ 1]) + line[51:] if count == 4 else line)

    port.write = flip  # type: ignore[method-assign]
    data = np.random.default_rng(3).integers(0, 256, 30_000).astype(np.uint8)
    begin = time.monotonic()
    link.write_dram(0, data)
    assert time.monotonic() - begin < 10 and 0 < link.link.resent <= 16
    assert np.array_equal(link.read_dram(0, 30_000), data)


def test_answers_to_an_earlier_session_are_dropped() -> None:
    """HELLO of a host that died is answered late, then its read; the new host sees neither."""
    far, port = board()
    far.memory[:4] = 1, 2, 3, 4
    stale = far.feed(frame(b"\x00\x00\x04\x00\0\0\0\0abcd"))
    for seq in range(1, 4):
        stale += far.feed(frame(bytes([seq, 3, 4, 0, 0, 0, 0, 0])))
    far.memory[:4] = 9
    access = UartAccess(port, timeout=0.05, patience=1.0)
    write, once = port.write, [stale]

    def late(line: bytes) -> None:
        """The host that died held the line: its answers come now, the new request gets lost."""
        if once:
            port.pending += once.pop()
        else:
            write(line)

    port.write = late  # type: ignore[method-assign]
    access.open()
    assert access.read_memory(0, 4).tolist() == [9, 9, 9, 9]
    access.write_memory(1, np.array([7, 7], np.uint8))  # not taken for a repetition of the earlier session's
    assert far.memory[:4].tolist() == [9, 7, 7, 9]


def test_an_interrupt_leaves_no_doubt() -> None:
    """Ctrl-C in a transfer: what was on the way is not known; stale answers reach nobody."""
    _, port = board()
    link = device(port)
    link.attach(np.arange(4096, dtype=np.uint8))
    read = port.read

    def interrupted() -> bytes:
        raise KeyboardInterrupt

    port.read = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        link.read_dram(100, 50)
    port.read = read  # type: ignore[method-assign]
    with pytest.raises(BoardError, match="down until attach"):
        link.read_dram(0, 4)
    link.attach(np.arange(4096, dtype=np.uint8)[::-1].copy())
    assert link.read_dram(0, 2).tolist() == [255, 254]


def test_bus_error_and_refusal() -> None:
    _, port = board()
    access = UartAccess(port, timeout=0.02, patience=0.5)
    with pytest.raises(BoardError, match="down until attach: not open"):
        access.read_memory(0, 4)
    access.open()
    with pytest.raises(BoardError, match="READ_MEM at 0x3fffe: the board's bus answered with an error"):
        access.read_memory(MEMORY - 2, 4)
    access.open()
    with pytest.raises(BoardError, match="READ_REG at 0x2: the board refused it"):
        access.read_registers(2, 1)


def test_another_protocol_version() -> None:
    far, port = board()
    rules = far._rules

    def newer(*args: Any) -> tuple[int, bytes]:
        status, data = rules(*args)
        return status, data[:4] + b"\2\0" + data[6:]

    far._rules = newer  # type: ignore[method-assign]
    with pytest.raises(BoardError, match="speaks protocol 2, this software 1"):
        device(port)


# ---------------------------------------------------------------- a real (pseudo) serial port


@pytest.fixture
def terminal() -> Iterator[tuple[FarEnd, str, list[bool]]]:
    """The model behind a pseudo-terminal."""
    far, _ = board()
    master, slave = os.openpty()
    tty.setraw(slave)
    stop: list[bool] = []

    def serve() -> None:
        while not stop:
            try:
                data = os.read(master, 4096)
                while data and (answer := far.feed(data)):
                    os.write(master, answer)
                    data = b""
            except BlockingIOError:
                time.sleep(0.001)

    os.set_blocking(master, False)
    thread = threading.Thread(target=serve)
    thread.start()
    yield far, os.ttyname(slave), stop
    stop.append(True)
    thread.join()
    os.close(slave)
    os.close(master)


def test_backend_by_name(terminal: tuple[FarEnd, str, list[bool]]) -> None:
    """open_device of `uart:PATH:BAUD` through pyserial; the port is held alone."""
    far, path, _ = terminal
    link = open_device(f"uart:{path}:115200", TINY, 4096)
    image = np.random.default_rng(5).integers(0, 256, 9000).astype(np.uint8)
    link.attach(image)
    assert np.array_equal(link.read_dram(0, 9000), image) and np.array_equal(far.memory[:9000], image)
    link.close()


def test_backends_that_are_not_there(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = "sw/reference/llama"
    for backend, text in (
        ("uart:/dev/no-such-port", "no serial port /dev/no-such-port"),
        ("uart:", "uart:PORT"),
        ("uart:/dev/x:fast", "uart:PORT"),
        ("mmap:/dev/x", "mmap:REGISTERS,MEMORY"),
        (f"mmap:{tmp_path}/a,{tmp_path}/b", "No such file"),
    ):
        code = 0
        try:
            code = main(["generate", model, "--prompt", "a", "--config", "tiny", "--backend", backend])
        except SystemExit as end:
            code = int(str(end.code))
        out = capsys.readouterr().err
        assert code == 2 and text in out, (backend, out)


# ---------------------------------------------------------------- memory-mapped


class FakeTile:
    """A register file in shared memory that a thread drives: a tile that runs programs on the model."""

    def __init__(self, directory: Any, registers_at: int = 4096, memory_at: int = 8192):
        self.path = str(directory / "mem")
        with open(self.path, "wb") as file:
            file.truncate(memory_at + MEMORY)
        self.view = np.memmap(self.path, np.uint8, "r+")
        self.window = self.view[registers_at : registers_at + 4096].view(np.uint32)
        self.memory = self.view[memory_at:]
        self.name = f"mmap:{self.path}@{registers_at:#x},{self.path}@{memory_at:#x}+{MEMORY:#x}"
        self.model = MachineRegisters(TINY, np.zeros(MEMORY, np.uint8))
        self.stop = False
        for at, value in self.model.values.items():
            self.window[at // 4] = value
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        ctrl, status = (csr_map.offset(n) // 4 for n in ("CTRL", "STATUS"))
        while not self.stop:
            if not self.window[ctrl]:
                time.sleep(0.0002)
                continue
            self.window[status] = 1
            self.window[ctrl] = 0
            for r in csr_map.REGISTERS:
                if r.access == "rw":
                    self.model[r.name] = int(self.window[r.offset // 4])
            self.model.memory[:] = self.memory
            self.model.write(csr_map.offset("CTRL"), 1)
            self.memory[:] = self.model.memory
            for r in csr_map.REGISTERS:
                if r.access == "ro" and r.name != "STATUS":
                    self.window[r.offset // 4] = self.model[r.name]
            self.window[status] = self.model["STATUS"]

    def close(self) -> None:
        self.stop = True
        self.thread.join()


def test_mapped_board_generates(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a file that stands for /dev/mem: offsets, registers, memory; tokens equal golden's."""
    tile = FakeTile(tmp_path)
    write = MappedDevice.start

    def start(self: MappedDevice, *args: Any) -> None:  # the fake register CTRL is not a pulse: wait for it
        write(self, *args)
        while tile.window[csr_map.offset("CTRL") // 4]:
            time.sleep(0.0002)

    monkeypatch.setattr(MappedDevice, "start", start)
    try:
        with Session(SPEC, PARAMS, config=TINY, backend=tile.name) as session:
            assert isinstance(session.engine.device, MappedDevice)
            assert [t.id for t in session.generate(PROMPT, 4)] == greedy(PROMPT, 4)
        assert tile.model.rings >= 2
    finally:
        tile.close()


def test_windows(tmp_path: Any) -> None:
    assert window("/dev/mem@0xa0000000") == ("/dev/mem", 0xA0000000, 0)
    assert window("/dev/udmabuf0+0x1000") == ("/dev/udmabuf0", 0, 4096)
    assert window("a@16+32") == ("a", 16, 32)
    with pytest.raises(ValueError, match="path"):
        window("a@x")
    (tmp_path / "r").write_bytes(bytes(4096))
    (tmp_path / "m").write_bytes(bytes(4096))
    name = f"mmap:{tmp_path}/r,{tmp_path}/m"
    with pytest.raises(BoardError, match="different tile: ID is 0x0"):
        open_device(name, TINY, 4096)
    odd = f"mmap:{tmp_path}/r@0x800,{tmp_path}/m"
    for bad, text in ((odd, "multiple of"), (f"{name}+8192", "4096 bytes")):
        with pytest.raises(ValueError, match=text):
            open_device(bad, TINY, 4096)
