# AMD Kria KV260, K26 SOM (xck26-sfvc784-2LV-c). The tile has no pins: its host is the processor, its clock pl_clk0.
# Pin checked against litex_boards/platforms/xilinx_kv260.py of github.com/litex-hub/litex-boards.

# HDA20: low turns the fan on
set_property -dict { PACKAGE_PIN A12 IOSTANDARD LVCMOS33 } [get_ports {fan_en_b}]
set_property SLEW SLOW [get_ports {fan_en_b}]
set_property DRIVE 4 [get_ports {fan_en_b}]

set_property BITSTREAM.CONFIG.OVERTEMPSHUTDOWN ENABLE [current_design]
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
