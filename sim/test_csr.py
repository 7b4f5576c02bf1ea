"""Register file over AXI4-Lite with stalls on every channel, counters, interrupt; the generated pages are up
to date."""
import random
import shutil
import subprocess

import pytest
from amaranth.sim import Simulator

from hw import csr_map
from hw.config import BASE, CONFIGS, TINY
from hw.csr import CsrFile
from hw.csr_map import COUNTER_BASE, COUNTERS, REGISTERS, offset
from hw.isa_docs import PAGES, ROOT


class Host:
    """AXI4-Lite master that delays each channel at random and checks that nothing moves early."""

    def __init__(self, ctx, bus, rng, stall):
        self.ctx, self.bus, self.rng, self.stall = ctx, bus, rng, stall

    async def _pause(self):
        while self.rng.random() < self.stall:
            await self.ctx.tick()

    async def _wait(self, signal):
        for _ in range(50):
            if self.ctx.get(signal):
                return
            await self.ctx.tick()
        raise TimeoutError("no handshake")

    async def write(self, address, data, strb=15):
        ctx, bus = self.ctx, self.bus
        halves = [(bus.awvalid, bus.awready, bus.awaddr, address), (bus.wvalid, bus.wready, bus.wdata, data)]
        self.rng.shuffle(halves)
        ctx.set(bus.wstrb, strb)
        for valid, _, payload, value in halves:
            ctx.set(payload, value)
            ctx.set(valid, 1)
            if valid is halves[0][0]:
                await self._pause()
        left = list(halves)
        for _ in range(50):
            taken = [h for h in left if ctx.get(h[1])]
            await ctx.tick()
            for h in taken:
                ctx.set(h[0], 0)
                left.remove(h)
            if not left:
                break
        assert not left
        await self._pause()
        await self._wait(bus.bvalid)
        assert ctx.get(bus.bresp) == 0
        ctx.set(bus.bready, 1)
        await ctx.tick()
        ctx.set(bus.bready, 0)

    async def read(self, address):
        ctx, bus = self.ctx, self.bus
        ctx.set(bus.araddr, address)
        ctx.set(bus.arvalid, 1)
        await self._wait(bus.arready)
        await ctx.tick()
        ctx.set(bus.arvalid, 0)
        ctx.set(bus.araddr, 0)
        await self._wait(bus.rvalid)
        data = ctx.get(bus.rdata)
        while self.rng.random() < self.stall:
            await ctx.tick()
            assert ctx.get(bus.rvalid) and ctx.get(bus.rdata) == data
        ctx.set(bus.rready, 1)
        await ctx.tick()
        ctx.set(bus.rready, 0)
        assert not ctx.get(bus.rvalid)
        return data


def simulate(main, stall=0.0, seed=0, config=TINY):
    dut = CsrFile(config)

    async def bench(ctx):
        await main(ctx, dut, Host(ctx, dut.s_axil, random.Random(seed), stall))
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("stall", (0.0, 0.6))
def test_every_register(stall):
    async def main(ctx, dut, host):
        constants, rng = csr_map.constants(TINY), random.Random(1)
        writable = {r.name: r for r in REGISTERS if r.access == "rw"}
        for r in REGISTERS:
            value = await host.read(r.offset)
            assert value == (constants[r.name] if r.name in constants else r.reset if r.name in writable
                             else 0), r.name
        values = {name: rng.getrandbits(32) & (7 if name == "IRQ_ENABLE" else 0xFFFFFFFF)
                  for name in writable}
        for name in rng.sample(sorted(values), len(values)):
            await host.write(offset(name), values[name])
        await host.write(offset("ID"), 0)
        await host.write(0xF00, 0xFFFFFFFF)
        await host.write(offset("ARG3"), 1, strb=0)
        for name, value in values.items():
            assert await host.read(offset(name)) == value, name
            assert ctx.get(getattr(dut, name.lower())) == value
        assert await host.read(offset("ID")) == 0x5352524E
        assert await host.read(0xF00) == 0
        ctx.set(dut.err_value, 0x89ABCDEF)
        ctx.set(dut.status_state, 5)
        ctx.set(dut.status_halted, 0b10101)
        assert await host.read(offset("ERR_VALUE")) == 0x89ABCDEF
        assert await host.read(offset("STATUS")) == 5 << 8 | 0b10101 << 16
    simulate(main, stall)


def test_literal_offsets():
    """What software outside this repository relies on."""
    assert [(n, offset(n)) for n in ("ID", "CTRL", "STATUS", "IRQ_STATUS", "PROG_ADDR", "ERR_CODE", "ARG0",
                                     "CYCLES_LO")] == [
        ("ID", 0), ("CTRL", 0x20), ("STATUS", 0x24), ("IRQ_STATUS", 0x2C), ("PROG_ADDR", 0x30),
                                         ("ERR_CODE", 0x50),
        ("ARG0", 0x60), ("CYCLES_LO", 0x100)]
    used = [r.offset for r in REGISTERS]
    assert len(set(used)) == len(used) and all(o % 4 == 0 and o < 1 << 12 for o in used)
    for config in CONFIGS.values():
        assert all(v < 1 << 32 for v in csr_map.constants(config).values())
    fields = {f.name: f for f in csr_map.BY_NAME["CONFIG"].fields}
    config = csr_map.constants(BASE)["CONFIG"]
    assert {n: config >> f.lo & (1 << f.width) - 1 for n, f in fields.items()} == {
        "columns": 8, "banks": 8, "word_bytes": 32, "axi_bytes": 16}


def test_doorbell_is_a_pulse():
    async def main(ctx, dut, host):
        seen = []

        async def watched(address, data):
            tick = ctx.tick

            async def spy():
                seen.append((ctx.get(dut.ctrl_doorbell), ctx.get(dut.ctrl_abort)))
                await tick()
            host.ctx = type("Spy", (), {"get": ctx.get, "set": ctx.set, "tick": staticmethod(spy)})()
            await host.write(address, data)
        await watched(offset("CTRL"), 1)
        await watched(offset("CTRL"), 2)
        await watched(offset("STATUS"), 3)
        assert [s for s in seen if s != (0, 0)] == [(1, 0), (0, 1)]
    simulate(main)


def test_interrupt():
    async def main(ctx, dut, host):
        async def event(k):
            member = (dut.irq_status_done, dut.irq_status_error, dut.irq_status_aborted)[k]
            ctx.set(member, 1)
            await ctx.tick()
            ctx.set(member, 0)
            await ctx.tick()
        for k in range(3):
            assert not ctx.get(dut.irq)
            await event(k)
            await ctx.tick()
            assert ctx.get(dut.irq) and await host.read(offset("IRQ_STATUS")) == 1 << k
            await host.write(offset("IRQ_STATUS"), 7 & ~(1 << k))
            assert await host.read(offset("IRQ_STATUS")) == 1 << k
            await host.write(offset("IRQ_STATUS"), 1 << k)
            await ctx.tick()
        await host.write(offset("IRQ_ENABLE"), 0b101)
        await event(1)
        await ctx.tick().repeat(3)
        assert not ctx.get(dut.irq) and await host.read(offset("IRQ_STATUS")) == 2
        await event(2)
        await ctx.tick()
        assert ctx.get(dut.irq)
    simulate(main)


def test_counters():
    """Increments of every width, enable, clear; HI is latched by reading LO, across the carry."""
    async def main(ctx, dut, host):
        steps = {c.name: 1 << c.bits - 1 for c in COUNTERS} | {"SRAM_WAIT": 11}
        for name, step in steps.items():
            ctx.set(getattr(dut, f"count_{name.lower()}"), step)
        ctx.set(dut.count_enable, 1)
        await ctx.tick().repeat(10)
        ctx.set(dut.count_enable, 0)
        for name, step in steps.items():
            assert await host.read(offset(f"{name}_LO")) == 10 * step, name
        ctx.set(dut.count_clear, 1)
        await ctx.tick()
        ctx.set(dut.count_clear, 0)
        for name in steps:
            assert await host.read(offset(f"{name}_LO")) == 0
            assert await host.read(offset(f"{name}_HI")) == 0
        assert await host.read(offset("CYCLES_LO") + 8 * len(COUNTERS)) == 0
        assert await host.read(offset("CYCLES_LO") + 8 * len(COUNTERS) + 4) == 0
    simulate(main)


@pytest.mark.parametrize("reading", (False, True))
def test_counters_lose_nothing(reading):
    """Every event counts, however often the counters are read and whenever they are cleared; a total that is
    read lies between what had happened before the read and what had happened after it."""
    async def main(ctx, dut, host):
        rng, sums = random.Random(2), dict.fromkeys((c.name for c in COUNTERS), 0)
        tick = ctx.tick

        async def busy(clear=0):
            ctx.set(dut.count_clear, clear)
            for c in COUNTERS:
                step = rng.getrandbits(c.bits) if rng.random() < 0.5 else (1 << c.bits) - 1
                ctx.set(getattr(dut, f"count_{c.name.lower()}"), step)
                sums[c.name] = 0 if clear else sums[c.name] + step
            await tick()
            ctx.set(dut.count_clear, 0)
        host.ctx = type("Busy", (), {"get": ctx.get, "set": ctx.set, "tick": staticmethod(busy)})()
        ctx.set(dut.count_enable, 1)
        for wait in (1, 2, 3, 80, 300):
            await busy(clear=1)
            for _ in range(wait):
                name = rng.choice(COUNTERS).name
                if not reading:
                    await busy()
                    continue
                before = dict(sums)
                value = await host.read(offset(f"{name}_LO"))
                lag = 2 << next(c.bits for c in COUNTERS if c.name == name)
                assert before[name] - lag <= value <= sums[name]
            ctx.set(dut.count_enable, 0)
            totals = dict(sums)
            for name, total in totals.items():
                assert await host.read(offset(f"{name}_LO")) == total, (wait, name)
            ctx.set(dut.count_enable, 1)
    simulate(main)


def test_counter_high_part():
    """A 48-bit counter near 2^32, watched while it runs: LO and HI belong together."""
    dut = CsrFile(TINY)
    assert COUNTER_BASE == offset("CYCLES_LO")
    macs = [c.name for c in COUNTERS].index("MACS")
    dut.counters.totals.init = [0] * macs + [(1 << 32) - 1024 * 60]

    async def bench(ctx):
        host = Host(ctx, dut.s_axil, random.Random(0), 0)
        ctx.set(dut.counters.written, (1 << 32) - 1)
        ctx.set(dut.count_macs, 1024)
        ctx.set(dut.count_enable, 1)
        seen = []
        for _ in range(8):
            low = await host.read(offset("MACS_LO"))
            seen.append(low | await host.read(offset("MACS_HI")) << 32)
        assert seen == sorted(seen) and seen[0] < 1 << 32 < seen[-1] < (1 << 32) + (1 << 20)
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("name", [n for n in PAGES if n.startswith("docs")])
def test_pages_are_up_to_date(name):
    assert (ROOT / name).read_text() == PAGES[name](), "run `make docs`"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_header(tmp_path):
    (tmp_path / "r.h").write_text(csr_map.c_header())
    (tmp_path / "t.c").write_text(
        '#include "r.h"\n_Static_assert(SERRANO_CTRL == 0x20 && SERRANO_STATUS_STATE_MASK == 0x700 && '
        'SERRANO_STATUS_STATE_SHIFT == 8 && SERRANO_ERROR_WATCHDOG == 8, "registers");\n')
    subprocess.run(["cc", "-Wall", "-Werror", "-fsyntax-only", "t.c"], cwd=tmp_path, check=True)
