"""Vivado projects: the script against a recording of Vivado's commands, and the tile behind a base address.

Vivado itself is not here. The recording knows the commands that the scripts may use, and fails at others.
"""

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest
from amaranth import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw import board_top, board_vivado
from hw.board_vivado import TileAt, write_project
from hw.boards import ARTY, KV260, ULX3S
from hw.config import TINY
from hw.export import flat_ports
from hw.tile import Tile
from sim import bitstream
from sim.test_export import VIVADO
from sim.verilate import build_unit, parse_ports


pytestmark = pytest.mark.filterwarnings("ignore:.*never used")  # components asked for their ports alone


class FewGates(wiring.Component):
    """The ports of a tile; every output bit is one of the input bits, registered and not."""

    def __init__(self, config: Any):
        super().__init__(dict(Tile(config).signature.members))

    def elaborate(self, platform):
        m = Module()
        ports = flat_ports(self)
        bits = Cat(value for value, way in ports.values() if way == "i")
        held = Signal.like(bits)
        m.d.sync += held.eq(bits)
        source = Cat(bits, held)
        for k, (name, (value, way)) in enumerate(ports.items()):
            if way == "o":
                turn = 97 * k % (len(source) - len(value))
                m.d.comb += value.eq(source[turn : turn + len(value)])
        return m


class NoBoard(wiring.Component):
    def __init__(self, config: Any, **options: Any):
        super().__init__({"uart_rx": In(1, init=1), "uart_tx": Out(1, init=1), "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.uart_tx.eq(self.uart_rx)
        return m


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """What the scripts are about is around the tile."""
    monkeypatch.setattr(board_vivado, "Tile", FewGates)
    monkeypatch.setattr(board_top, "Board", NoBoard)


def test_tile_at_a_base_address() -> None:
    """Equal to the tile on every port in every cycle but for the base in both addresses."""
    spec = dataclasses.replace(KV260, config=TINY)
    pair = [build_unit(part, "tile", opt="-O0") for part in (FewGates(TINY), TileAt(spec))]
    rng, seen = random.Random(3), set()
    for _ in range(300):
        for name, (way, width) in pair[0].ports.items():
            if way == "input" and name not in ("clk", "rst"):
                value = rng.getrandbits(width)
                for unit in pair:
                    unit.set(name, value)
        for name, (way, _) in pair[0].ports.items():
            if way == "output":
                plain, based = (unit.get(name) for unit in pair)
                base = spec.memory_base if name in ("m_axi_araddr", "m_axi_awaddr") else 0
                assert based == plain | base, name
                seen.add((name, plain))
        for unit in pair:
            unit.step()
    assert pair[0].ports == pair[1].ports and len(seen) > 2000
    with pytest.raises(ValueError, match="memory_base = 0x8000000: allowed is a multiple"):
        TileAt(dataclasses.replace(KV260, memory_base=0x0800_0000))


COMMANDS = """
foreach name {create_bd_design create_bd_cell create_bd_port apply_bd_automation assign_bd_address
    connect_bd_net connect_bd_intf_net validate_bd_design save_bd_design make_wrapper current_project
    update_ip_catalog launch_runs wait_on_run open_run report_utilization report_timing_summary
    write_hw_platform} {
  interp alias {} $name {} note $name
}
foreach name {get_bd_cells get_bd_pins get_bd_intf_pins get_bd_ports get_bd_addr_spaces get_bd_addr_segs
    get_files get_runs} {
  proc $name args { return [lindex $args end] }
}
proc get_board_parts args { return $::parts }
proc get_property {name of} { return [dict get $::properties $name] }
set properties {PROGRESS 100% STATS.WNS 0.25 STATS.WHS 0.02}
set parts {xilinx.com:kv260_som:part0:1.4}
"""


def run(folder: Path, setup: str = "") -> list[list[str]]:
    """The commands that build.tcl gave, as words."""
    tkinter = pytest.importorskip("tkinter")
    tcl = tkinter.Tcl()
    tcl.eval(VIVADO + COMMANDS)
    # Words of a command stay words.
    tcl.eval('proc note {name args} { append ::calls [list [concat $name $args]] " "; return obj }')
    tcl.setvar("inferred", "m_axi s_axil")
    tcl.eval(setup)
    made = folder / "project/serrano.runs/impl_1/made.bit"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("bits")
    tcl.call("source", str(folder / "build.tcl"))
    return [list(tcl.splitlist(call)) for call in tcl.splitlist(tcl.getvar("calls"))]


@pytest.mark.parametrize("setup, message", [
    ("dict set properties STATS.WNS -0.01", "a clock is not met"),
    ("dict set properties STATS.WHS -0.01", "a clock is not met"),
    ("dict set properties PROGRESS 60%", "implementation failed"),
    ("set parts {}", "no board file kv260_som"),
])
def test_the_script_ends_in_an_error(tmp_path, setup: str, message: str) -> None:
    tkinter = pytest.importorskip("tkinter")
    write_project(KV260, tmp_path)
    with pytest.raises(tkinter.TclError, match=message):
        run(tmp_path, setup)
    assert not (tmp_path / "serrano.bit").exists()


def test_arty(tmp_path) -> None:
    files = write_project(ARTY, tmp_path)
    assert sorted(path.name for path in files) == ["arty.xdc", "build.tcl", "serrano_board.v"]
    text = (tmp_path / "serrano_board.v").read_text()
    names = [name if width == 1 else f"{name}[{k}]"
             for name, (_, width) in parse_ports(text, "serrano_board").items() for k in range(width)]
    assert sorted(pin for pin, _ in bitstream.located((tmp_path / "arty.xdc").read_text())) == sorted(names)
    assert "PLLE2_BASE #(" in text and "BUFG" in text and ".CLKIN1_PERIOD(10.0" in text
    calls = run(tmp_path)
    assert ["create_project", "-force", "serrano", f"{tmp_path}/project", "-part", ARTY.part] in calls
    assert ["set_property", "top", "serrano_board", "obj"] in calls
    added = [Path(call[-1]) for call in calls if call[0] == "add_files"]
    assert added == [tmp_path / "arty.xdc", tmp_path / "serrano_board.v"]
    assert all(path.is_file() for path in added)
    assert (tmp_path / "serrano.bit").read_text() == "bits"
    with pytest.raises(ValueError, match="board ulx3s: allowed is one of AMD's"):
        write_project(ULX3S, tmp_path)


def test_kv260(tmp_path) -> None:
    """Every input of the tile is driven once, clock and reset reach all, the addresses are those of docs."""
    write_project(KV260, tmp_path)
    calls = run(tmp_path)
    added = [Path(call[-1]) for call in calls if call[0] == "add_files" and "obj" not in call]
    assert added == [tmp_path / "serrano_tile.v", tmp_path / "kv260.xdc"] and all(p.is_file() for p in added)
    assert not any("FREQ_HZ" in call for call in calls)

    cells = {call[-1]: call[call.index("-vlnv") + 1] for call in calls if call[0] == "create_bd_cell"}
    assert cells["tile"] == "serrano:tile:serrano_tile_kv260:0.1" and len(cells) == 6
    package = [call for call in calls if call[:2] == ["set_property", "name"]]
    assert package[0][2] == "serrano_tile_kv260"

    nets = [call[1:] for call in calls if call[0] in ("connect_bd_net", "connect_bd_intf_net")]
    pins = [pin for net in nets for pin in net]
    assert len(pins) == len(set(pins))
    assert {pin.partition("/")[0] for pin in pins} == {*cells, "fan_en_b"}
    of = {pin: net[0] for net in nets for pin in net}
    assert of["tile/clk"] == of["ps/maxihpm0_fpd_aclk"] == of["ps/saxihp0_fpd_aclk"] == "ps/pl_clk0"
    assert of["tile/rst"] == "reset/peripheral_reset" and of["ps/pl_ps_irq0"] == "tile/irq"
    ports = parse_ports((tmp_path / "serrano_tile.v").read_text(), "serrano_tile")
    tied = {call[1] for call in calls if call[0] == "ipx::get_ports"}
    mine = {pin.removeprefix("tile/") for pin in pins if pin.startswith("tile/")}
    loose = {p for p, (way, _) in ports.items() if way == "input" and not p.startswith(tuple(mine))}
    assert {"m_axi", "s_axil"} <= mine and loose == tied

    config = next(call[2:] for call in calls if call[:2] == ["set_property", "-dict"] and "ps" in call)
    options = dict(zip(*[iter(config[0].split())] * 2))
    assert options["CONFIG.PSU__SAXIGP2__DATA_WIDTH"] == str(KV260.config.axi_data_bits)
    assert options["CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"] == "100"
    maps = [call for call in calls if call[0] == "assign_bd_address"]
    assert [call[call.index("-offset") + 1] for call in maps] == ["0xa0000000", "0x00000000"]
    assert maps[0][maps[0].index("-range") + 1] == "4096"
    assert KV260.memory_base + KV260.memory_bytes <= 2 << 30  # what HP0_DDR_LOW reaches
    assert (tmp_path / "serrano.bit").exists() and calls[-1][0] == "write_hw_platform"

    text = KV260.constraint_file.read_text()
    assert bitstream.located(text) == [("fan_en_b", "A12")]
    assert set(re.findall(r"get_ports \{(\w+)\}", text)) == {"fan_en_b"}

