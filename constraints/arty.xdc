# Digilent Arty A7-100T, xc7a100tcsg324-1. Ports are those of hw/board_top.py.
# Pins checked against Arty-A7-100-Master.xdc of github.com/Digilent/digilent-xdc and amaranth_boards/arty_a7.py of
# github.com/amaranth-lang/amaranth-boards. Names of the schematic are in comments.
# The clock behind the PLL needs no line: it follows from the oscillator's.

# gclk[100]
set_property -dict { PACKAGE_PIN E3 IOSTANDARD LVCMOS33 } [get_ports {oscillator}]
create_clock -name oscillator -period 10.000 [get_ports {oscillator}]

# btn[0], high while pressed
set_property -dict { PACKAGE_PIN D9 IOSTANDARD LVCMOS33 } [get_ports {button}]

# FT2232H: uart_txd_in drives uart_rx, uart_tx drives uart_rxd_out
set_property -dict { PACKAGE_PIN A9 IOSTANDARD LVCMOS33 } [get_ports {uart_rx}]
set_property -dict { PACKAGE_PIN D10 IOSTANDARD LVCMOS33 } [get_ports {uart_tx}]

# led[4] to led[7], the green ones
set_property -dict { PACKAGE_PIN H5 IOSTANDARD LVCMOS33 } [get_ports {led[0]}]
set_property -dict { PACKAGE_PIN J5 IOSTANDARD LVCMOS33 } [get_ports {led[1]}]
set_property -dict { PACKAGE_PIN T9 IOSTANDARD LVCMOS33 } [get_ports {led[2]}]
set_property -dict { PACKAGE_PIN T10 IOSTANDARD LVCMOS33 } [get_ports {led[3]}]

# Asynchronous: synchronisers follow, or nothing listens at this clock.
set_false_path -from [get_ports {button uart_rx}]
set_false_path -to [get_ports {uart_tx led[*]}]

set_property CFGBVS VCCO [current_design]
set_property CONFIG_VOLTAGE 3.3 [current_design]
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
set_property BITSTREAM.CONFIG.SPI_BUSWIDTH 4 [current_design]
