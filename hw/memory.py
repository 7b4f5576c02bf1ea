"""Every memory of the design, and the one seam for vendor or ASIC macros.

All reads are synchronous (data one cycle after the address, held while the port is idle) and none is
transparent: a read that meets a write to the same row in the same cycle returns an undefined mixture on real
macros, so users never do that.

Seam: a platform with a method `get_ram(ram)` gets the component (`SinglePortRam`, `DualPortRam` or `Rom`) and
returns whatever should be elaborated in its place; it connects to the members of the component that it was
given.
"""

from amaranth import Module, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["SinglePortRam", "DualPortRam", "Rom", "ram", "rom"]


class _Storage(wiring.Component):
    """Geometry, contents and the macro seam; subclasses give the ports. `block`: in block RAM on FPGAs,
    though small (its output is late in the cycle: a register belongs right behind it)."""

    def __init__(
        self, signature, *, width: int, depth: int, granularity: int = 0, init=(), block: bool = False
    ):
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be positive, not {width} x {depth}")
        if granularity and width % granularity:
            raise ValueError(f"width {width} is no multiple of the write granularity {granularity}")
        self.width, self.depth, self.granularity = width, depth, granularity or width
        self.init = [int(row) for row in init]
        self.attributes = {"ram_style": "block"} if block else {}
        super().__init__(signature)

    def elaborate(self, platform):
        if hasattr(platform, "get_ram"):
            return platform.get_ram(self)
        m = Module()
        m.submodules.mem = mem = memory.Memory(
            shape=unsigned(self.width), depth=self.depth, init=self.init, attrs=self.attributes
        )
        self._connect(m, mem)
        return m


class SinglePortRam(_Storage):
    """Single-port SRAM: one read or one write per cycle.

    Members: `en` starts an access at `addr`; `we` selects a write of the lanes of `wdata` (each `granularity`
    bits) whose bit of `wstrb` is set, else the row appears on `rdata` one cycle later and stays until the
    next access (what `rdata` shows after a write is undefined).
    """

    def __init__(self, *, width: int, depth: int, granularity: int = 8, init=()):
        super().__init__(
            self.members(width, depth, granularity),
            width=width,
            depth=depth,
            granularity=granularity,
            init=init,
        )

    @staticmethod
    def members(width: int, depth: int, granularity: int = 8) -> dict[str, wiring.Member]:
        """Members of the port."""
        return {
            "en": In(1),
            "we": In(1),
            "addr": In(ceil_log2(depth)),
            "wdata": In(width),
            "wstrb": In(width // granularity),
            "rdata": Out(width),
        }

    def _connect(self, m, mem):
        read = mem.read_port()
        write = mem.write_port(granularity=self.granularity)
        m.d.comb += [
            read.addr.eq(self.addr),
            read.en.eq(self.en),  # also in a write: then the enable of a block RAM is `en` alone
            self.rdata.eq(read.data),
            write.addr.eq(self.addr),
            write.data.eq(self.wdata),
            write.en.eq(self.wstrb & (self.en & self.we).replicate(len(self.wstrb))),
        ]


class DualPortRam(_Storage):
    """Simple dual-port SRAM: one write port (`waddr`, `wdata`, `wstrb` = one enable per `granularity` bits)
    and one read port (`raddr`, `ren`; `rdata` one cycle later, held while `ren` is low). The two addresses
    must differ when both are active."""

    def __init__(self, *, width: int, depth: int, granularity: int = 0, init=(), block: bool = False):
        super().__init__(
            {
                "waddr": In(ceil_log2(depth)),
                "wdata": In(width),
                "wstrb": In(width // (granularity or width)),
                "raddr": In(ceil_log2(depth)),
                "ren": In(1, init=1),
                "rdata": Out(width),
            },
            width=width,
            depth=depth,
            granularity=granularity,
            init=init,
            block=block,
        )

    def _connect(self, m, mem):
        read = mem.read_port()
        write = mem.write_port(granularity=self.granularity)
        m.d.comb += [
            read.addr.eq(self.raddr),
            read.en.eq(self.ren),
            self.rdata.eq(read.data),
            write.addr.eq(self.waddr),
            write.data.eq(self.wdata),
            write.en.eq(self.wstrb),
        ]


class Rom(_Storage):
    """Read-only table: `rdata` holds row `addr` one cycle later. With two `ports`, `rdata2` that of
    `addr2`."""

    def __init__(self, *, width: int, init, ports: int = 1):
        init = list(init)
        self.names = [("addr", "rdata"), ("addr2", "rdata2")][:ports]
        super().__init__(
            {
                name: member
                for addr, rdata in self.names
                for name, member in ((addr, In(ceil_log2(len(init)))), (rdata, Out(width)))
            },
            width=width,
            depth=len(init),
            init=init,
        )

    def _connect(self, m, mem):
        for addr, rdata in self.names:
            read = mem.read_port()
            m.d.comb += [read.addr.eq(getattr(self, addr)), getattr(self, rdata).eq(read.data)]


def ram(*, width: int, depth: int, ports: int = 1, granularity: int = 8, init=()) -> _Storage:
    """SRAM of `depth` rows of `width` bits: `ports` = 1 is a `SinglePortRam`, 2 a `DualPortRam`."""
    if ports not in (1, 2):
        raise ValueError(f"ports must be 1 or 2, not {ports}")
    return (SinglePortRam if ports == 1 else DualPortRam)(
        width=width, depth=depth, granularity=granularity, init=init
    )


def rom(*, width: int, init, ports: int = 1) -> Rom:
    """ROM of `len(init)` rows of `width` bits, with one read port or two."""
    if ports not in (1, 2):
        raise ValueError(f"ports must be 1 or 2, not {ports}")
    return Rom(width=width, init=init, ports=ports)
