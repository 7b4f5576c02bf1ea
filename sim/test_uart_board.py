"""The whole board in RTL on a pseudo-terminal: tokens over a bad line equal golden's, faults end in errors.

The tests share one simulated board, in order of the file; each attaches anew.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from golden.model import Model
from golden.spec import BlockSpec, ModelSpec, random_model
from hw.config import TINY
from hw.isa import Error
from sim.board import BoardSimulation
from sw.device import TileError
from sw.board import BoardError
from sw.engine import open_device
from sw.runtime import Session
from sw.uart import UartDevice

MEMORY = 1 << 17
BLOCK = BlockSpec(name="b", hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=64, max_tokens=32)
SPEC = ModelSpec(name="m", architecture="llama", block=BLOCK, windows=(None,), vocab=64, context=32)
PARAMS = random_model(SPEC, 3)
SLOW = {"timeout": 1.0, "patience": 60.0}  # the simulated line is a hundred times slower than a real one


@pytest.fixture(scope="module")
def simulation() -> Iterator[BoardSimulation]:
    board = BoardSimulation(TINY, MEMORY, seed=5).start()
    yield board
    board.close()


@pytest.fixture
def board(simulation: BoardSimulation) -> Iterator[BoardSimulation]:
    yield simulation
    for faults in (simulation.there, simulation.back):
        faults.rate, faults.cut = 0.0, False


def test_generate_over_a_bad_line_equals_golden(board: BoardSimulation) -> None:
    """Bytes are lost, doubled and flipped in both directions while a model is loaded and decodes."""
    board.there.rate = board.back.rate = 5e-4
    options: dict[str, Any] = {**SLOW, "frame": 128}
    with Session(SPEC, PARAMS, config=TINY, backend=f"uart:{board.path}", chunk=0, **options) as session:
        link = session.engine.device
        assert isinstance(link, UartDevice)
        prompt = [3, 1, 4]
        tokens = [t.id for t in session.generate(prompt, 5)]
        assert tokens == list(Model(SPEC, PARAMS).generate(prompt, 5))
        assert session.stats.decode.cycles > 1000 and session.stats.decode.tokens >= 5
        assert link.link.resent and board.there.count > 5 and board.back.count


def test_memory_and_errors_of_the_tile(board: BoardSimulation) -> None:
    """Odd addresses and lengths, zeros, the tile's own error with its code, the bus error of what is not
    there."""
    link = UartDevice(TINY, board.path, **SLOW)
    image = np.random.default_rng(1).integers(0, 256, 1500).astype(np.uint8)
    image[200:700] = 0
    link.attach(np.full(1500, 0xFF, np.uint8))
    link.attach(image)
    link.write_dram(301, np.arange(7, dtype=np.uint8))
    image[301:308] = np.arange(7)
    assert np.array_equal(link.read_dram(0, 1500), image)
    assert np.array_equal(link.read_dram(199, 111), image[199:310])
    link.write_dram(0, np.full(8, 0xFFFFFFFF, np.uint32))
    with pytest.raises(TileError, match="tile stopped") as caught:
        link.run(0, 8)
    assert caught.value.code in (Error.ILLEGAL_OPCODE, Error.ILLEGAL_OPERAND, Error.PC_RANGE)
    link.access.memory_bytes = 1 << 30  # as if the board had said so
    with pytest.raises(BoardError, match="answered with an error"):
        link.read_dram(MEMORY, 4)
    link.close()


def test_cable_pulled_and_back(board: BoardSimulation) -> None:
    link = open_device(f"uart:{board.path}", TINY, 4096, **SLOW)
    link.attach(np.zeros(64, np.uint8))
    data = np.random.default_rng(2).integers(0, 256, 3000).astype(np.uint8)
    start = board.received

    def pull() -> None:
        while board.received < start + 900:
            time.sleep(0.001)
        board.there.cut = board.back.cut = True
        time.sleep(1.5)
        board.there.cut = board.back.cut = False

    thread = threading.Thread(target=pull)
    thread.start()
    link.write_dram(7, data)
    thread.join()
    assert isinstance(link, UartDevice) and link.link.resent
    assert np.array_equal(link.read_dram(7, 3000), data)
    link.close()


def test_cable_pulled_for_good(board: BoardSimulation) -> None:
    link = UartDevice(TINY, board.path, timeout=0.3, patience=20.0)
    link.attach(np.ones(64, np.uint8))
    link.link.patience = 2.0
    board.there.cut = True
    begin = time.monotonic()
    with pytest.raises(BoardError, match="no answer from the board"):
        link.write_dram(0, np.zeros(5000, np.uint8))
    assert time.monotonic() - begin < 20
    link.close()


def test_reset_of_the_board(board: BoardSimulation) -> None:
    link = UartDevice(TINY, board.path, **SLOW)
    link.attach(np.ones(64, np.uint8))
    board.reset()
    with pytest.raises(BoardError, match="the board was reset"):
        link.read_dram(0, 64)
    link.attach(np.ones(64, np.uint8))
    assert link.read_dram(0, 64).all()
    link.close()
