"""Vivado project of a board: `make vivado BOARD=arty` writes build/arty; running Vivado is the user's.

    vivado -mode batch -source build.tcl          in that folder: makes serrano.bit

xc7: the Verilog of hw/board_top.py, the board's constraints and the script. zynqmp: the tile as an IP
(hw/core_file.py) in a block design with the processor system as its host, and further serrano.xsa, which
describes the hardware to Linux tools. The script ends in an error where a clock is not met.
"""

import argparse
import re
import shutil
from pathlib import Path

from amaranth import Module
from amaranth.lib import wiring

from .board_top import BoardTop
from .boards import BOARDS, BoardSpec, board
from .core_file import vivado
from .csr_map import ADDR_BITS
from .export import header, release, verilog
from .tile import Tile

__all__ = ["REGISTERS", "TileAt", "build_script", "write_project"]

REGISTERS = 0xA000_0000
"""Of the tile, in the processor's address space (zynqmp): the first address of M_AXI_HPM0_FPD."""


class TileAt(wiring.Component):
    """A tile whose memory begins at address `base` of `m_axi`. Members: those of the tile.

    base: a multiple of `nbytes`, a power of two: the address gets further bits and no adder. What the tile
    asks for beyond nbytes is in its own hands (register DRAM_SIZE).
    """

    def __init__(self, spec: BoardSpec):
        self.spec, nbytes = spec, spec.memory_bytes
        if nbytes & (nbytes - 1) or spec.memory_base % nbytes:
            raise ValueError(
                f"memory_base = {spec.memory_base:#x}: allowed is a multiple of memory_bytes, a power of two"
            )
        self.tile = Tile(spec.config)
        super().__init__(dict(self.tile.signature.members))

    def elaborate(self, platform):
        m = Module()
        m.submodules.tile = tile = self.tile
        for path, member, value in self.signature.flatten(self):
            inner = tile
            for name in path:
                inner = inner[name] if isinstance(name, int) else getattr(inner, name)
            if member.flow is wiring.In:
                m.d.comb += inner.eq(value)
            elif path in (("m_axi", "araddr"), ("m_axi", "awaddr")):
                m.d.comb += value.eq(inner | self.spec.memory_base)
            else:
                m.d.comb += value.eq(inner)
        return m


OPEN = """set here [file dirname [file normalize [info script]]]
create_project -force serrano "$here/project" -part {part}
"""

RUN = """
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
  error "implementation failed: see $here/project/serrano.runs"
}
open_run impl_1
report_utilization -hierarchical -file "$here/utilization.txt"
report_timing_summary -file "$here/timing.txt"
if {[get_property STATS.WNS [get_runs impl_1]] < 0 || [get_property STATS.WHS [get_runs impl_1]] < 0} {
  error "a clock is not met: see $here/timing.txt"
}
file copy -force [glob "$here/project/serrano.runs/impl_1/*.bit"] "$here/serrano.bit"
"""

BLOCK_DESIGN = """
set parts [get_board_parts -quiet -latest_file_version "xilinx.com:kv260_som:*"]
if {{[llength $parts] == 0}} {{
  error "no board file kv260_som: install it with Tools > Vivado Store, or take a Vivado that has it"
}}
set_property board_part [lindex $parts 0] [current_project]
set_property ip_repo_paths [list "$here/ip/ip"] [current_project]
update_ip_catalog
create_bd_design system

# The processor: DDR and pins as the board file has them; one master for the registers, one slave to DDR.
create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e ps
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {{apply_board_preset "1"}} \\
  [get_bd_cells ps]
set_property -dict [list \\
  CONFIG.PSU__USE__M_AXI_GP0 {{1}} CONFIG.PSU__MAXIGP0__DATA_WIDTH {{32}} \\
  CONFIG.PSU__USE__M_AXI_GP1 {{0}} CONFIG.PSU__USE__M_AXI_GP2 {{0}} \\
  CONFIG.PSU__USE__S_AXI_GP2 {{1}} CONFIG.PSU__SAXIGP2__DATA_WIDTH {{{width}}} \\
  CONFIG.PSU__USE__IRQ0 {{1}} \\
  CONFIG.PSU__FPGA_PL0_ENABLE {{1}} CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ {{{clock:g}}} \\
  CONFIG.PSU__TTC0__PERIPHERAL__ENABLE {{1}} \\
  CONFIG.PSU__TTC0__WAVEOUT__ENABLE {{1}} CONFIG.PSU__TTC0__WAVEOUT__IO {{EMIO}} \\
] [get_bd_cells ps]

create_bd_cell -type ip -vlnv serrano:tile:{top}:{version} tile
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset
foreach name {{registers memory}} {{
  create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $name
  set_property -dict [list CONFIG.NUM_SI {{1}} CONFIG.NUM_MI {{1}}] [get_bd_cells $name]
}}

connect_bd_intf_net [get_bd_intf_pins ps/M_AXI_HPM0_FPD] [get_bd_intf_pins registers/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins registers/M00_AXI] [get_bd_intf_pins tile/s_axil]
connect_bd_intf_net [get_bd_intf_pins tile/m_axi] [get_bd_intf_pins memory/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins memory/M00_AXI] [get_bd_intf_pins ps/S_AXI_HP0_FPD]
connect_bd_net [get_bd_pins ps/pl_clk0] [get_bd_pins reset/slowest_sync_clk] \\
  [get_bd_pins ps/maxihpm0_fpd_aclk] [get_bd_pins ps/saxihp0_fpd_aclk] \\
  [get_bd_pins tile/clk] [get_bd_pins registers/aclk] [get_bd_pins memory/aclk]
connect_bd_net [get_bd_pins ps/pl_resetn0] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins reset/peripheral_reset] [get_bd_pins tile/rst]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins registers/aresetn] \\
  [get_bd_pins memory/aresetn]
connect_bd_net [get_bd_pins tile/irq] [get_bd_pins ps/pl_ps_irq0]

# The fan is driven by Linux through a timer of the processor.
create_bd_cell -type ip -vlnv xilinx.com:ip:xlslice fan
set_property -dict [list CONFIG.DIN_WIDTH {{3}} CONFIG.DIN_FROM {{2}} CONFIG.DIN_TO {{2}}] [get_bd_cells fan]
connect_bd_net [get_bd_pins ps/emio_ttc0_wave_o] [get_bd_pins fan/Din]
create_bd_port -dir O fan_en_b
connect_bd_net [get_bd_pins fan/Dout] [get_bd_ports fan_en_b]

assign_bd_address -offset {registers:#010x} -range {register_bytes} \\
  -target_address_space [get_bd_addr_spaces ps/Data] [get_bd_addr_segs tile/s_axil/*] -force
assign_bd_address -offset 0x00000000 -range 2G \\
  -target_address_space [get_bd_addr_spaces tile/m_axi] [get_bd_addr_segs ps/SAXIGP2/HP0_DDR_LOW] -force
validate_bd_design
save_bd_design
add_files -norecurse [make_wrapper -files [get_files system.bd] -top]
set_property top system_wrapper [current_fileset]
"""


def build_script(spec: BoardSpec, top: str) -> str:
    """Tcl: from the files beside it to serrano.bit."""
    script = f"# vivado -mode batch -source build.tcl: {spec.name}, {spec.part}\n"
    if spec.family == "zynqmp":
        script += (
            "# The tile becomes an IP first, in a project of its own.\n"
            "set here [file dirname [file normalize [info script]]]\n"
            f'set argv [list "$here/ip" {spec.part}]\nset argc 2\nsource "$here/{top}.tcl"\n\n'
        )
    script += OPEN.format(part=spec.part)
    script += f'add_files -fileset constrs_1 -norecurse "$here/{spec.constraints}"\n'
    if spec.family == "zynqmp":
        script += BLOCK_DESIGN.format(
            top=f"{top}_{spec.name}", version=".".join(release().split(".")[:2]),
            width=spec.config.axi_data_bits, clock=spec.config.clock_mhz, registers=REGISTERS,
            register_bytes=1 << ADDR_BITS,
        )
    else:
        script += f'add_files -norecurse "$here/{top}.v"\nset_property top {top} [current_fileset]\n'
    script += "update_compile_order -fileset sources_1\n" + RUN
    if spec.family == "zynqmp":
        script += 'write_hw_platform -fixed -include_bit -force -file "$here/serrano.xsa"\n'
    return script + 'puts "$here/serrano.bit"\n'


def write_project(spec: BoardSpec, folder: Path) -> list[Path]:
    """Write the project; its files. ValueError for a board that is not Vivado's."""
    if spec.family not in ("xc7", "zynqmp"):
        raise ValueError(f"board {spec.name}: allowed is one of AMD's; `make bitstream` is for the others")
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m hw.board_vivado --board {spec.name}"
    if spec.family == "xc7":
        top = "serrano_board"
        files = {f"{top}.v": header(spec.config, top, command) + verilog(BoardTop(spec), top)}
    else:
        top = "serrano_tile"
        files = {
            f"{top}.v": header(spec.config, top, command) + verilog(TileAt(spec), top),
            # pl_clk0 is only nearly what was asked for, and the block design insists on equality.
            f"{top}.tcl": re.sub(r"(?m)^add_parameter \$clock FREQ_HZ .*\n", "",
                                 vivado(spec.config, top, release(), f"{top}.v")),
        }
    files["build.tcl"] = build_script(spec, top)
    for name, text in files.items():
        (folder / name).write_text(text)
    shutil.copy(spec.constraint_file, folder / spec.constraints)
    return [folder / name for name in [*files, spec.constraints]]


def main(argv: list[str] | None = None) -> int:
    """Command line: write the Vivado project of a board."""
    parser = argparse.ArgumentParser(prog="python -m hw.board_vivado", description=main.__doc__)
    names = [name for name, spec in BOARDS.items() if spec.family != "ecp5"]
    parser.add_argument("--board", default="arty", choices=names, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="folder (default: build/<board>)")
    args = parser.parse_args(argv)
    spec = board(args.board)
    for path in write_project(spec, args.output or Path("build") / spec.name):
        print(f"{path}: {len(path.read_text().splitlines())} lines")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
