"""Run control, watchdog and semaphores of the tile, cycle by cycle. Whole programs: the tests on the fast
simulator."""
import pytest
from amaranth.sim import Simulator

from hw.config import TINY
from hw.isa import Error
from hw.semaphores import Semaphores
from hw.tile import CLEAR_CYCLES, QUIET_CYCLES, RunControl, Watchdog


def simulate(dut, main):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(main)
    sim.run()


class Control:
    """Drives RunControl: everything is ready and drained unless a test says otherwise."""

    def __init__(self):
        self.dut = RunControl(TINY)

    async def begin(self, ctx, words=0):
        for member in ("ready", "drained", "loaded"):
            ctx.set(getattr(self.dut, member), 1)
        ctx.set(self.dut.words, words)
        await ctx.tick()
        await self.pulse(ctx, self.dut.doorbell)

    async def pulse(self, ctx, signal):
        ctx.set(signal, 1)
        await ctx.tick()
        ctx.set(signal, 0)

    async def until(self, ctx, signal, limit=60):
        for cycle in range(limit):
            if ctx.get(signal):
                return cycle
            await ctx.tick()
        raise TimeoutError(signal.name)

    async def idle(self, ctx):
        """Cycles of `clear` on the way to IDLE, and the events seen."""
        clear = events = 0
        for _ in range(100):
            clear += ctx.get(self.dut.clear)
            events |= ctx.get(self.dut.events)
            if not ctx.get(self.dut.busy) and not ctx.get(self.dut.clear) and ctx.get(self.dut.state) == 0:
                return clear, events
            await ctx.tick()
        raise TimeoutError("busy")


def test_good_run():
    c = Control()
    dut = c.dut

    async def main(ctx):
        await c.begin(ctx)
        assert ctx.get(dut.fresh) and ctx.get(dut.busy)
        await c.until(ctx, dut.start)
        assert not ctx.get(dut.load_program)
        for _ in range(QUIET_CYCLES):  # a short pause is not the end
            ctx.set(dut.complete, 1)
            await ctx.tick()
        ctx.set(dut.complete, 0)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.running)
        ctx.set(dut.complete, 1)
        assert await c.until(ctx, dut.done) > QUIET_CYCLES
        assert ctx.get(dut.events) == 1 and not ctx.get(dut.busy) and not ctx.get(dut.enable)
        await c.pulse(ctx, dut.doorbell)  # during the clear: kept
        assert ctx.get(dut.busy)
        await c.until(ctx, dut.fresh)
        assert not ctx.get(dut.clear)
    simulate(dut, main)


@pytest.mark.parametrize("cause", ("error", "abort"))
def test_bad_end(cause):
    c = Control()
    dut = c.dut

    async def main(ctx):
        await c.begin(ctx)
        await c.until(ctx, dut.running)
        ctx.set(dut.drained, 0)
        if cause == "error":
            ctx.set(dut.error, {"valid": 1, "code": Error.AXI_SLVERR, "pc": 99, "value": 0x1234})
            await ctx.tick()
            ctx.set(dut.error, {"valid": 1, "code": Error.WATCHDOG, "pc": 1, "value": 2})  # too late
        else:
            await c.pulse(ctx, dut.abort)
        await c.until(ctx, dut.stop)
        await ctx.tick().repeat(50)
        assert ctx.get(dut.stop) and not ctx.get(dut.clear) and ctx.get(dut.busy) and not ctx.get(dut.events)
        await c.pulse(ctx, dut.doorbell)  # ignored
        ctx.set(dut.drained, 1)
        await c.until(ctx, dut.clear)
        ctx.set(dut.error, {"valid": 0, "code": 0, "pc": 0, "value": 0})
        clear, events = await c.idle(ctx)
        assert clear == CLEAR_CYCLES and events == (2 if cause == "error" else 4)
        record = ctx.get(dut.record)
        assert not ctx.get(dut.done) and not ctx.get(dut.stop)
        if cause == "error":
            assert ctx.get(dut.failed) and (record["code"], record["pc"],
                                            record["value"]) == (Error.AXI_SLVERR, 99, 0x1234)
        else:
            assert ctx.get(dut.aborted) and record["code"] == Error.NONE
        await ctx.tick().repeat(30)
        assert ctx.get(dut.state) == 0
    simulate(dut, main)


def test_program_load_and_its_failure():
    c = Control()
    dut = c.dut

    async def main(ctx):
        await c.begin(ctx, words=12)
        await c.until(ctx, dut.load_program)
        await c.until(ctx, dut.fetch.valid)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.fetch.valid) and not ctx.get(dut.running)
        await c.pulse(ctx, dut.fetch.ready)
        assert ctx.get(dut.start)
        ctx.set(dut.loaded, 0)
        await c.pulse(ctx, dut.abort)
        await c.until(ctx, dut.drop)
        await c.idle(ctx)
        ctx.set(dut.words, TINY.imem_words + 1)
        await ctx.tick()
        await c.pulse(ctx, dut.doorbell)
        clear, events = await c.idle(ctx)
        assert events == 2 and ctx.get(dut.record)["code"] == Error.PC_RANGE
    simulate(dut, main)


def test_watchdog():
    dut = Watchdog()

    async def main(ctx):
        async def bark_after(limit, cycles):
            for cycle in range(cycles):
                if ctx.get(dut.bark):
                    return cycle
                await ctx.tick()
        ctx.set(dut.limit, 10)
        await ctx.tick().repeat(30)
        assert not ctx.get(dut.bark)
        ctx.set(dut.run, 1)
        for _ in range(5):
            assert await bark_after(10, 9) is None
            ctx.set(dut.progress, 1)
            await ctx.tick()
            ctx.set(dut.progress, 0)
        assert await bark_after(10, 20) in (10, 11)
        ctx.set(dut.run, 0)
        await ctx.tick().repeat(2)
        assert not ctx.get(dut.bark)
        ctx.set(dut.limit, 0)
        ctx.set(dut.run, 1)
        await ctx.tick().repeat(100)
        assert not ctx.get(dut.bark)
    simulate(dut, main)


def test_semaphores():
    """Latency of a lone signal, one winner per count, all sources served in turn, overflow, clear."""
    dut = Semaphores(TINY)

    async def main(ctx):
        wait, signal, add = dut.wait, dut.signal, dut.add
        ctx.set(wait[2].payload, {"sem": 7, "count": 2})
        ctx.set(wait[2].valid, 1)
        ctx.set(wait[3].payload, {"sem": 7, "count": 1})
        await ctx.tick().repeat(10)
        assert ctx.get(dut.idle) and not ctx.get(wait[2].ready)

        async def give(port, payload):
            ctx.set(port.payload, payload)
            ctx.set(port.valid, 1)
            for cycle in range(40):
                ready = ctx.get(port.ready)
                await ctx.tick()
                if ready:
                    ctx.set(port.valid, 0)
                    return cycle
            raise TimeoutError("never taken")
        await give(signal[0], 7)
        await ctx.tick().repeat(10)
        assert not ctx.get(wait[2].ready)
        await give(signal[4], 7)
        latency = 1
        while not ctx.get(wait[2].ready):
            await ctx.tick()
            latency += 1
        assert latency == 5
        await ctx.tick()
        ctx.set(wait[2].valid, 0)
        ctx.set(wait[3].valid, 1)  # nothing left
        for _ in range(10):
            assert not ctx.get(wait[3].ready)
            await ctx.tick()
        # A wait takes its count once.
        await give(add[1], {"sem": 7, "count": 3})
        while not ctx.get(wait[3].ready):
            await ctx.tick()
        await ctx.tick()
        ctx.set(wait[3].valid, 0)
        await ctx.tick().repeat(4)
        await give(wait[3], {"sem": 7, "count": 2})
        # All sources at once: one item of each is taken in, then each is served once in 2 * 7 cycles.
        for k, s in enumerate(signal):
            ctx.set(s.payload, 20 + k)
            ctx.set(s.valid, 1)
        for k, a in enumerate(add):
            ctx.set(a.payload, {"sem": 30 + k, "count": 1})
            ctx.set(a.valid, 1)
        assert all(ctx.get(s.ready) for s in [*signal, *add])
        await ctx.tick()
        for _ in range(3):
            served = []
            for _ in range(14):
                served += [k for k, s in enumerate([*signal, *add]) if ctx.get(s.ready)]
                await ctx.tick()
            assert sorted(served) == list(range(7))
        for s in [*signal, *add]:
            ctx.set(s.valid, 0)
        ctx.set(wait[3].valid, 0)
        await ctx.tick().repeat(16)
        assert ctx.get(dut.idle)
        # Nothing was lost: 4 of each, and no fifth (one at least is still waited for).
        for sem in (*range(20, 25), 30, 31):
            await give(wait[1], {"sem": sem, "count": 4})
        await give(add[0], {"sem": 5, "count": 65535})
        await ctx.tick().repeat(4)
        assert not ctx.get(dut.error)
        await give(add[1], {"sem": 5, "count": 1})
        await ctx.tick().repeat(4)
        assert ctx.get(dut.error) and ctx.get(dut.error_sem) == 5
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        ctx.set(wait[0].payload, {"sem": 5, "count": 1})
        ctx.set(wait[0].valid, 1)
        for _ in range(10):
            assert not ctx.get(wait[0].ready) and not ctx.get(dut.error)
            await ctx.tick()
    simulate(dut, main)
