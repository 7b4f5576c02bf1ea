"""AXI4 and AXI4-Lite signatures with flat AMBA member names, so that a member `m_axi` is exported as
`m_axi_awvalid`, ...

Directions are the master's. Everything is INCR bursts of full-width beats to normal memory: the constant or
optional signals (lock, cache, prot, qos, region, user) are left out. Source: AMBA AXI and ACE protocol
specification, IHI 0022E, chapters A2, B1.
"""

from enum import IntEnum

from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from .config import TileConfig

__all__ = ["AxiLite", "AxiMaster", "AxiRead", "AxiWrite", "Resp", "BURST_INCR"]

BURST_INCR = 1


class Resp(IntEnum):
    """RRESP and BRESP."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def _address(prefix: str, config: TileConfig) -> dict:
    size = exact_log2(config.axi_bytes)
    return {
        f"{prefix}valid": Out(1), f"{prefix}ready": In(1),
        f"{prefix}id": Out(config.axi_id_bits), f"{prefix}addr": Out(32), f"{prefix}len": Out(8),
        f"{prefix}size": Out(3, init=size), f"{prefix}burst": Out(2, init=BURST_INCR),
    }


def _read(config: TileConfig) -> dict:
    return {
        **_address("ar", config),
        "rvalid": In(1), "rready": Out(1), "rid": In(config.axi_id_bits), "rdata": In(config.axi_data_bits),
        "rresp": In(2), "rlast": In(1),
    }


def _write(config: TileConfig) -> dict:
    return {
        **_address("aw", config),
        "wvalid": Out(1), "wready": In(1), "wdata": Out(config.axi_data_bits), "wstrb": Out(config.axi_bytes),
        "wlast": Out(1),
        "bvalid": In(1), "bready": Out(1), "bid": In(config.axi_id_bits), "bresp": In(2),
    }


class AxiRead(Signature):
    """AR and R channels of an AXI4 master: 32-bit addresses, `axi_data_bits` wide data.

    `arsize` and `arburst` are initialised to full-width INCR; a master that does not drive them is correct.
    """

    def __init__(self, config: TileConfig):
        super().__init__(_read(config))


class AxiWrite(Signature):
    """AW, W and B channels of an AXI4 master; as `AxiRead`."""

    def __init__(self, config: TileConfig):
        super().__init__(_write(config))


class AxiMaster(Signature):
    """All five channels of an AXI4 master: the members of `AxiRead` and `AxiWrite`."""

    def __init__(self, config: TileConfig):
        super().__init__({**_read(config), **_write(config)})


class AxiLite(Signature):
    """AXI4-Lite with 32-bit data, seen from the master; a register file has `s_axil: In(AxiLite(bits))`."""

    def __init__(self, addr_bits: int):
        super().__init__({
            "awvalid": Out(1), "awready": In(1), "awaddr": Out(addr_bits),
            "wvalid": Out(1), "wready": In(1), "wdata": Out(32), "wstrb": Out(4),
            "bvalid": In(1), "bready": Out(1), "bresp": In(2),
            "arvalid": Out(1), "arready": In(1), "araddr": Out(addr_bits),
            "rvalid": In(1), "rready": Out(1), "rdata": In(32), "rresp": In(2),
        })
