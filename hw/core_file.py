"""What goes beside an exported tile: lint waivers, FuseSoC core file, Vivado packaging script.

Every file is named in the same directory as the Verilog; none holds a path.
"""

from .config import TileConfig
from .csr_map import ADDR_BITS

__all__ = ["WAIVERS", "fusesoc", "lint_waivers", "vivado"]

WAIVERS = {
    "UNUSEDSIGNAL": "Every signal and structure field of the source keeps its name for waveforms, also where"
                    " only a part of it has readers.",
    "WIDTHEXPAND": "Amaranth widens operands as IEEE 1364 does; the text relies on that rule and no other.",
    "WIDTHTRUNC": "A shift is as wide as what it shifts, and the element that was selected is its low bits.",
    "UNSIGNED": "A threshold that depends on the config is zero in some.",
    "DECLFILENAME": "The file is named after the config, the module is not: boards swap configs by files.",
}
"""Verilator rules that the exported text breaks on purpose, and why."""


def lint_waivers(verilog: str) -> str:
    """Verilator control file: pass it before the Verilog to `verilator --lint-only -Wall`."""
    lines = ["`verilator_config", f"// Waivers for {verilog}, each with its reason."]
    for rule, reason in WAIVERS.items():
        lines += [f"// {reason}", f'lint_off -rule {rule} -file "*{verilog}"']
    return "\n".join([*lines, ""])


def fusesoc(config: TileConfig, top: str, version: str, verilog: str, lint: str, header: str) -> str:
    """FuseSoC core description (CAPI 2)."""
    return f"""CAPI=2:
# FuseSoC core of a Serrano tile. Integration: docs/integration.md
name: serrano:tile:{config.name}:{version}
description: Serrano LLM-inference tile, {config.name}: {config.macs} MAC, {config.axi_data_bits}-bit AXI4

filesets:
  rtl:
    files:
      - {verilog}: {{file_type: verilogSource-2005}}
  lint:
    files:
      - {lint}: {{file_type: vlt}}
  driver:
    files:
      - {header}: {{file_type: user}}

targets:
  default: &default
    filesets: [rtl, driver]
    toplevel: {top}
  lint:
    <<: *default
    filesets: [lint, rtl]
    default_tool: verilator
    tools:
      verilator:
        mode: lint-only
        verilator_options: [-Wall]
  synth:
    <<: *default
    default_tool: yosys
    tools:
      yosys:
        arch: xilinx
"""


def vivado(config: TileConfig, top: str, version: str, verilog: str) -> str:
    """Tcl that packages the Verilog as an IP of Vivado's catalogue, with its interfaces.

    Run: vivado -mode batch -source <file> -tclargs <directory of the IP> <part>
    """
    major, minor = version.split(".")[:2]
    return f"""# Packages {verilog} as a Vivado IP: AXI4 master m_axi, AXI4-Lite slave s_axil, irq.
# vivado -mode batch -source {verilog.removesuffix('.v')}.tcl -tclargs ?directory? ?part?
set here [file dirname [file normalize [info script]]]
set out [expr {{$argc > 0 ? [file normalize [lindex $argv 0]] : "$here/{config.name}_ip"}}]
set part [expr {{$argc > 1 ? [lindex $argv 1] : "xc7a100tcsg324-1"}}]

create_project -force -part $part package_{config.name} "$out/project"
add_files -norecurse "$here/{verilog}"
set_property top {top} [current_fileset]
update_compile_order -fileset sources_1
ipx::package_project -root_dir "$out/ip" -vendor serrano -library tile -taxonomy /UserIP -import_files -force
set core [ipx::current_core]
set_property name {top}_{config.name} $core
set_property display_name "Serrano tile ({config.name})" $core
set_property version {major}.{minor} $core

# The packager infers both AXI interfaces from the names m_axi_* and s_axil_*; make sure that it did.
foreach {{bus mode}} {{m_axi master s_axil slave}} {{
  if {{[llength [ipx::get_bus_interfaces $bus -of_objects $core]] == 0}} {{
    error "no AXI interface $bus was inferred"
  }}
  set_property interface_mode $mode [ipx::get_bus_interfaces $bus -of_objects $core]
}}
proc add_interface {{core name type mode ports}} {{
  if {{[llength [ipx::get_bus_interfaces $name -of_objects $core]] != 0}} {{
    ipx::remove_bus_interface $name $core
  }}
  set bus [ipx::add_bus_interface $name $core]
  set_property abstraction_type_vlnv xilinx.com:$type\\_rtl:1.0 $bus
  set_property bus_type_vlnv xilinx.com:$type:1.0 $bus
  set_property interface_mode $mode $bus
  foreach {{logical physical}} $ports {{
    set_property physical_name $physical [ipx::add_port_map $logical $bus]
  }}
  return $bus
}}
proc add_parameter {{bus name value}} {{
  set_property value $value [ipx::add_bus_parameter $name $bus]
}}

set clock [add_interface $core clk signal:clock slave {{CLK clk}}]
add_parameter $clock ASSOCIATED_BUSIF m_axi:s_axil
add_parameter $clock ASSOCIATED_RESET rst
add_parameter $clock FREQ_HZ {round(config.clock_mhz * 1e6)}
add_parameter [add_interface $core rst signal:reset slave {{RST rst}}] POLARITY ACTIVE_HIGH
add_parameter [add_interface $core irq signal:interrupt master {{INTERRUPT irq}}] SENSITIVITY LEVEL_HIGH

# The NoC's flits are no whole bytes, so its ports stay as they are; left open they mean a single tile.
foreach {{port value}} {{noc_in_valid 0 noc_in_payload 0 noc_out_ready 1}} {{
  set_property driver_value $value [ipx::get_ports $port -of_objects $core]
}}

# Registers: {1 << ADDR_BITS} bytes.
foreach map [ipx::get_memory_maps -of_objects $core] {{
  foreach block [ipx::get_address_blocks -of_objects $map] {{
    set_property range {1 << ADDR_BITS} $block
  }}
}}

set_property core_revision 1 $core
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
puts "packaged {top}_{config.name} in $out/ip"
"""
