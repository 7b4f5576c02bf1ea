"""The boards: their table, clocks, pins and lights, the tools on a small top, tokens from a whole board."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from amaranth import ClockDomain, ClockSignal, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.formats import FP4
from golden.model import Model
from golden.spec import BlockSpec, ModelSpec, random_model
from hw.board_clock import LIMITS, Dividers, dividers
from hw.board_top import BoardTop, Lights
from hw.boards import ARTY, BOARDS, KV260, ULX3S, BoardSpec, board
from hw.config import CONFIGS
from hw.config_file import load
from hw.uart import divisor
from sim import bitstream
from sim.board import BoardSimulation
from sim.verilate import build_unit
from sw.checkpoint import load_checkpoint
from sw.engine import build_image
from sw.layout import align
from sw.runtime import Session
from sw.uart import UartDevice

pytestmark = pytest.mark.filterwarnings("ignore:.*never used")  # components asked for their ports alone

ROOT = Path(__file__).resolve().parent.parent
TOPS = [ULX3S, ARTY]
# stories260K of llama2.c, 260,032 parameters (docs/boards.md), with 64 of its 512 positions.
STORIES = ModelSpec(
    name="stories260K", architecture="llama", windows=(None,) * 5, vocab=512, context=64,
    block=BlockSpec(name="b", hidden=64, heads=8, kv_heads=4, head_dim=8, ffn=172, rope="interleaved",
                    attn_fmt=FP4, ffn_fmt=FP4, max_tokens=64))


# ---- the table


def test_names() -> None:
    assert board("ulx3s") is ULX3S and not BOARDS.keys() & CONFIGS.keys()
    assert all(spec.name == name and load(name) is spec.config for name, spec in BOARDS.items())
    with pytest.raises(ValueError, match="'icestick': allowed is one of ulx3s, arty, kv260"):
        board("icestick")
    with pytest.raises(ValueError, match="memory_bytes = 5000: allowed is a multiple of 4096"):
        dataclasses.replace(ULX3S, memory_bytes=5000)
    with pytest.raises(ValueError, match="family = 'ice40': allowed is"):
        dataclasses.replace(ULX3S, family="ice40")
    with pytest.raises(ValueError, match="board kv260: allowed is one with a UART"):
        BoardTop(KV260)


@pytest.mark.parametrize("spec", TOPS, ids=lambda spec: spec.name)
def test_baud_rate_is_exact(spec: BoardSpec) -> None:
    clock = 1e6 * spec.config.clock_mhz
    assert clock / divisor(clock, spec.baud) == spec.baud


def test_memory_holds_the_model_it_was_sized_for() -> None:
    image = build_image(ULX3S.config, STORIES, random_model(STORIES, 1), dram_bytes=ULX3S.memory_bytes)
    assert align(image.dram.top, 4096) == ULX3S.memory_bytes
    # Block RAMs of 2 KiB: model, SRAM, instructions; 208 in all, and the rest of the tile needs some.
    blocks = (ULX3S.memory_bytes + ULX3S.config.sram_bytes + 4 * ULX3S.config.imem_words) // 2048
    assert blocks <= 208 - 40

    c = load_checkpoint(ROOT / "models/serrano-llama", weights="mxfp4", context=32)
    image = build_image(ARTY.config, c.spec, c.params, dram_bytes=ARTY.memory_bytes)
    assert align(image.dram.top, 4096) == ARTY.memory_bytes


def test_docs_agree_with_the_table() -> None:
    text = (ROOT / "docs/boards.md").read_text()
    configs = [spec.config for spec in BOARDS.values()]
    rows = {
        "`BOARD`, `--config`": [f"`{c.name}`" for c in configs],
        "array, SRAM, instructions": [
            f"32 x {c.columns}, {c.sram_bytes >> 10} KiB, {c.imem_words}" for c in configs
        ],
        "model memory": [
            *(f"{spec.memory_bytes >> 10} KiB of block RAM" for spec in TOPS),
            f"{KV260.memory_bytes >> 20} MiB of DDR from {KV260.memory_base:#x}",
        ],
    }
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |\n" in text, name
    for spec in BOARDS.values():
        model, options = spec.model.split(" ", 1)
        assert re.search(rf"generate {model}( --tokenizer \S+)? {options} ", text), spec.model
        assert not spec.baud or f":{spec.baud} --prompt" in text


# ---- clocks


@pytest.mark.parametrize("family, reference, wanted, input_, feedback, output", [
    ("ecp5", 25, 25, 1, 1, 24), ("ecp5", 25, 50, 1, 2, 12), ("ecp5", 25, 75, 1, 3, 8),
    ("ecp5", 25, 62.5, 2, 5, 10),
    ("xc7", 100, 50, 1, 12, 24), ("xc7", 100, 62.5, 1, 10, 16),
])
def test_dividers(
    family: str, reference: float, wanted: float, input_: int, feedback: int, output: int
) -> None:
    """ECP5's are those of Project Trellis' ecppll."""
    d = dividers(family, reference, wanted)
    assert (d.input, d.feedback, d.output) == (input_, feedback, output) and d.mhz == wanted


@pytest.mark.parametrize("family", LIMITS)
def test_dividers_keep_the_limits(family: str) -> None:
    limits, met = LIMITS[family], 0
    for wanted in np.arange(12.5, 200, 12.5):
        for reference in (12, 25, 48, 100):
            try:
                d = dividers(family, reference, wanted)
            except ValueError:
                continue
            met += 1
            detector = reference / d.input
            vco = detector * d.feedback * (d.output if family == "ecp5" else 1)
            assert Dividers(d.input, d.feedback, d.output, detector, vco, vco / d.output) == d
            assert limits.vco[0] <= vco <= limits.vco[1]
            assert limits.detector[0] <= detector <= limits.detector[1]
            assert abs(vco / d.output / wanted - 1) <= 0.001
    assert met > 20
    assert LIMITS["ecp5"].vco == (400, 800) and LIMITS["ecp5"].detector == (10, 400)


@pytest.mark.parametrize("reference, wanted, message", [
    (25, 51, "clock = 51 MHz from 25 MHz: near it ecp5 has .*50"),
    (5, 50, "reference = 5 MHz: allowed is 8 to 400 MHz"),
])
def test_a_clock_that_cannot_be_had(reference: float, wanted: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dividers("ecp5", reference, wanted)


# ---- lights


def test_lights() -> None:
    unit = build_unit(Lights(40), "lights", opt="-O0")
    unit.set("lines", 3)
    unit.run(2)
    seen = []
    for cycle in range(2000):
        unit.set("lines", 1 if cycle == 100 else 2 if cycle == 300 else 3)
        unit.set("irq", cycle % 200 == 7)
        unit.run(1)
        seen.append(unit.get("led"))
    led = np.array(seen)[:, None] >> np.arange(4) & 1
    assert np.flatnonzero(led[:, 3]).tolist() == list(range(101, 141))
    assert np.flatnonzero(led[:, 2]).tolist() == list(range(301, 341))
    assert np.flatnonzero(led[:, 1]).tolist() == list(range(7, 2000, 200))
    assert (np.diff(np.flatnonzero(np.diff(led[:, 0]))) == 512).all()  # beats of 1024 cycles


# ---- pins and tools


@pytest.mark.parametrize("spec", TOPS, ids=lambda spec: spec.name)
def test_every_port_has_one_pin(spec: BoardSpec) -> None:
    text = spec.constraint_file.read_text()
    pairs = bitstream.located(text)
    pins, places = [pin for pin, _ in pairs], [place for _, place in pairs]
    assert sorted(pins) == sorted(bitstream.port_bits(BoardTop(spec)))
    assert len(set(places)) == len(places)
    assert "hecked against" in text.split("\n\n")[0]
    if spec.family == "ecp5":
        assert re.findall(r'IOBUF PORT "(\S+)" .*IO_TYPE=LVCMOS33', text) == pins
        assert f'FREQUENCY PORT "oscillator" {spec.oscillator_mhz:g} MHz;' in text
    else:
        assert len(re.findall(r"PACKAGE_PIN \w+ IOSTANDARD LVCMOS33 \}", text)) == len(pins)
        assert f"create_clock -name oscillator -period {1000 / spec.oscillator_mhz:.3f}" in text


class Blink(wiring.Component):
    """The pins of a ULX3S with next to nothing behind them."""

    def __init__(self, **more: wiring.Member):
        super().__init__({**BoardTop(ULX3S).signature.members, **more})

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain(reset_less=True)
        count, last = Signal(18), Signal(18)
        m.d.comb += [ClockSignal().eq(self.oscillator), self.led.eq(last[-4:]), self.uart_tx.eq(self.uart_rx)]
        m.d.sync += [count.eq(count + 1 + self.button), last.eq(count)]
        return m


def test_bitstream(tmp_path, capsys) -> None:
    """All tools, on a small design: bitstream, figures, exit status 0."""
    assert bitstream.build(Blink(), ULX3S, tmp_path, [1]) == 0
    data = (tmp_path / "serrano.bit").read_bytes()
    assert b"LFE5U-85F-6CABGA381" in data[:200] and b"\xff\xff\xbd\xb3" in data[:400] and len(data) > 10_000
    printed = capsys.readouterr().out
    assert re.search(r"oscillator.*: \d+\.\d MHz, wanted 25\.0 MHz", printed) and "TRELLIS_FF" in printed
    assert int(re.search(r"TRELLIS_COMB +(\d+) of", printed)[1]) < 100  # tiles kept empty are not counted


def test_no_bitstream_where_the_clock_is_not_met(tmp_path, capsys) -> None:
    lpf = ULX3S.constraint_file.read_text().replace("25 MHz", "900 MHz")
    (tmp_path / "fast.lpf").write_text(lpf)
    (tmp_path / "serrano.bit").write_text("of an earlier run")
    spec = dataclasses.replace(ULX3S, constraints=str(tmp_path / "fast.lpf"))
    assert bitstream.build(Blink(), spec, tmp_path, [1, 2]) == 1
    assert not (tmp_path / "serrano.bit").exists()
    assert len(list(tmp_path.glob("seed?.json"))) == 2 and "no seed of [1, 2]" in capsys.readouterr().err
    assert bitstream.clocks(json.loads((tmp_path / "seed1.json").read_text()))


def test_a_port_without_a_pin_is_refused(tmp_path) -> None:
    wanted = r"ulx3s.lpf: .*ports \['extra', 'out\[0\]', 'out\[1\]'\] have no pin"
    with pytest.raises(ValueError, match=wanted):
        bitstream.build(Blink(extra=In(1), out=Out(2)), ULX3S, tmp_path, [1])


# ---- a whole board


@pytest.fixture(scope="module")
def simulation() -> Iterator[BoardSimulation]:
    simulated = BoardSimulation(ULX3S).start()
    yield simulated
    simulated.close()


def test_whole_board_generates_the_tokens_of_golden(simulation: BoardSimulation) -> None:
    """The top of `make bitstream BOARD=ulx3s`, PLL and button included, its memory, and a model of the shape
    that it is for; only the UART is faster. Memory is full to the last page."""
    params = random_model(STORIES, 7)
    backend, options = f"uart:{simulation.path}", {"timeout": 2.0, "patience": 60.0}
    with Session(STORIES, params, config=ULX3S.config, backend=backend, **options) as session:
        device = session.engine.device
        assert isinstance(device, UartDevice) and device.access.memory_bytes == ULX3S.memory_bytes
        prompt = [3, 141, 59]
        tokens = [t.id for t in session.generate(prompt, 4)]
    assert tokens == list(Model(STORIES, params).generate(prompt, 4)) and len(set(tokens)) > 1
    with pytest.raises(MemoryError, match=f"do not fit the board's {ULX3S.memory_bytes}"):
        UartDevice(ULX3S.config, simulation.path, dram_bytes=ULX3S.memory_bytes + 1, **options)


def test_button_resets(simulation: BoardSimulation) -> None:
    link = UartDevice(ULX3S.config, simulation.path, timeout=2.0, patience=60.0)
    link.attach(np.arange(4096, dtype=np.uint8))
    simulation.reset()
    with pytest.raises(Exception, match="the board was reset"):
        link.read_dram(0, 64)
    link.attach(np.arange(4096, dtype=np.uint8))
    assert np.array_equal(link.read_dram(100, 64), np.arange(100, 164, dtype=np.uint8))
    link.close()
