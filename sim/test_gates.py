"""Gate netlists in sim/gates.h equal the RTL, of small circuits in both cell sets and of the tile `tiny`.

What makes a netlist unfit is found: latches, derived clocks, state that reset leaves undefined.
"""

import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import TINY
from hw.export import verilog
from hw.memory import DualPortRam, SinglePortRam, rom
from sim.gates import TOP, build, divergence, netlist, program, run_block, tile_verilog
from sim.unit import Unit
from sim.verilate import compile_verilog, parse_ports


class Circuit(wiring.Component):
    """Every kind of cell: RAMs of several shapes, a ROM, a signed product, a carry chain, registers."""

    def __init__(self):
        super().__init__(
            {"a": In(16), "b": In(16), "we": In(1), "go": In(1), "o": Out(32), "p": Out(32), "q": Out(36)}
        )

    def elaborate(self, platform):
        m = Module()
        rng = np.random.default_rng(5)
        m.submodules.single = single = SinglePortRam(width=32, depth=256)
        m.submodules.dual = dual = DualPortRam(width=36, depth=512)
        m.submodules.small = small = DualPortRam(width=12, depth=16)
        m.submodules.table = table = rom(width=20, init=rng.integers(0, 1 << 20, 600).tolist())
        product, total = Signal(signed(32)), Signal(32)
        # Rows that nothing has written are undefined: all are written first.
        known = [Signal(len(r.addr if r is single else r.waddr)) for r in (single, dual, small)]
        done = [Signal() for _ in known]
        for k, d in zip(known, done):
            with m.If(~d):
                m.d.sync += [k.eq(k + 1), d.eq(k.all())]
        a, b = self.a.as_signed(), self.b.as_signed()
        m.d.comb += [
            single.en.eq(self.go | ~done[0]),
            single.we.eq(self.we | ~done[0]),
            single.wdata.eq(self.a * self.b),
            single.addr.eq(done[0].replicate(8) & self.a[:8] | known[0]),
            single.wstrb.eq(self.b[:4] | ~done[0].replicate(4)),
            dual.waddr.eq(done[1].replicate(9) & self.a[:9] | known[1]),
            dual.wdata.eq(total * 5),
            dual.wstrb.eq(self.we | ~done[1]),
            dual.raddr.eq(self.a[:9] + 1),
            dual.ren.eq(self.go & done[1]),
            small.waddr.eq(done[2].replicate(4) & self.b[:4] | known[2]),
            small.wdata.eq(self.a),
            small.wstrb.eq(self.we | ~done[2]),
            small.raddr.eq(self.b[:4] ^ 9),
            small.ren.eq(self.go & done[2]),
            table.addr.eq(self.b[:10]),
        ]
        seen = [Signal() for _ in known]
        m.d.sync += [
            product.eq(a * b),
            seen[0].eq(seen[0] | (done[0] & self.go & ~self.we)),
            seen[1].eq(seen[1] | dual.ren),
            seen[2].eq(seen[2] | small.ren),
        ]
        with m.If(self.go):
            m.d.sync += total.eq(total + product)
        listed = Signal()
        m.d.sync += listed.eq(self.b[:10] < 600)
        with m.If(seen[0]):
            m.d.comb += self.o.eq(single.rdata)
        m.d.comb += self.p.eq(total ^ product ^ listed.replicate(20) & table.rdata)
        with m.If(seen[1] & seen[2]):
            m.d.comb += self.q.eq(dual.rdata ^ small.rdata)
        return m


def gate_unit(text: str, top: str, cells: str, seed: int = 3) -> tuple[Unit, object]:
    library = build(program(netlist(text, top, cells)), parse_ports(text, top), top)
    return Unit(library, parse_ports(text, top), seed=seed, random_init=True), library


@pytest.mark.parametrize("cells", ["generic", "ecp5"])
def test_circuit(cells: str) -> None:
    text = verilog(Circuit(), "circuit")
    gates, library = gate_unit(text, "circuit", cells)
    rtl = Unit(compile_verilog(text, "circuit", opt="-O1"), parse_ports(text, "circuit"))
    rng = np.random.default_rng(1)
    for cycle in range(2000):
        for port, high in (("a", 1 << 16), ("b", 1 << 16), ("we", 2), ("go", 2)):
            value = int(rng.integers(0, high))
            gates.set(port, value), rtl.set(port, value)
        for port in ("o", "p", "q"):
            assert gates.get(port) == rtl.get(port), f"cycle {cycle}, {port}"
        gates.step(), rtl.step()
    checked, cycle, lanes, port = divergence(library)
    assert checked > 5000 and lanes == 0, (cycle, hex(lanes), port)


def test_power_up_state_is_seen() -> None:
    """A register that reset does not define reaches an output, and goes away once it is written."""
    text = """module leak(clk, rst, d, load, o);
  input clk;
  input rst;
  input d;
  input load;
  output o;
  reg o;
  always @(posedge clk) if (load) o <= d & ~rst;
endmodule
"""
    unit, library = gate_unit(text, "leak", "generic")
    unit.step()
    checked, _, lanes, port = divergence(library)
    assert checked and 0 < bin(lanes).count("1") < 64 and port == "o"


@pytest.mark.parametrize(
    "body,says",
    [
        ("always @* if (load) o = d;", "DLATCH"),
        ("wire gated = clk & load; always @(posedge gated) o <= d;", "not clocked by clk itself"),
        ("always @(negedge clk) o <= d;", "clk"),
        ("always @(posedge clk or posedge rst) if (rst) o <= 0; else o <= d;", "DFF"),
        ("wire x = ~(x & d); always @(posedge clk) o <= x;", "loops"),
    ],
)
def test_unfit(body: str, says: str) -> None:
    text = f"module unfit(input clk, input rst, input d, input load, output reg o);\n{body}\nendmodule\n"
    with pytest.raises((ValueError, RuntimeError), match=says):
        program(netlist(text, "unfit"))


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="allowed is one of generic, ecp5"):
        netlist("", "t", "asic")


def test_tiny() -> None:
    """Two blocks on the netlist of the whole tile; two minutes, nearly all of it in Yosys."""
    text = tile_verilog(TINY)
    library = build(program(netlist(text, TOP)), parse_ports(text, TOP))
    for seed in (1, 2):
        assert run_block(TINY, library, seed) > 5000, f"seed {seed}"
