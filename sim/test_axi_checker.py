"""The AXI checker against hand-written waveforms: legal ones pass, each rule is broken once and named."""

import pytest
from amaranth.sim import Simulator

from hw.axi_checker import AxiChecker, Violation
from hw.config import TileConfig

CONFIG = TileConfig(columns=2, sram_banks=4, sram_bytes=8192, axi_data_bits=32, axi_burst_beats=16,
                    axi_outstanding=2)


def channel(name, **fields):
    """One cycle of a channel: valid, ready (unless given) and payload."""
    fields = {"valid": 1, "ready": 1, **({"size": 2, "burst": 1} if name in ("aw", "ar") else {}), **fields}
    return {name + field: value for field, value in fields.items()}


def ar(**fields):
    return channel("ar", **fields)


def aw(**fields):
    return channel("aw", **fields)


def r(**fields):
    return channel("r", **fields)


def w(**fields):
    return channel("w", **{"strb": 15, **fields})


def b(**fields):
    return channel("b", **fields)


LEGAL = {
    "read of 3 beats": [{}, ar(addr=0x100, len=2), r(), r(ready=0), r(), r(last=1)],
    "read up to a page end": [{}, ar(addr=0xFF1, len=3)],
    "two reads, the second asked while the first is answered":
        [{}, ar(len=0, id=1), ar(len=1, id=2) | r(last=1, id=1), r(id=2), r(id=2, last=1)],
    "a slot is free after the last beat": [{}, ar(), ar(), r(last=1), ar() | r(last=1), r(last=1)],
    "write": [{}, aw(len=1), w(), w(last=1), {}, b()],
    "response in the next cycle": [{}, aw(id=3) | w(last=1), b(id=3), aw(id=2) | w(last=1), b(id=2)],
    "data before address": [{}, w(), w(last=1), aw(len=1), b()],
    "unaligned write": [{}, aw(addr=0x203, len=1), w(strb=8), w(strb=7, last=1), b()],
    "no strobes": [{}, aw(), w(strb=0, last=1), b()],
    "waiting": [{}, aw(ready=0, addr=64), aw(ready=0, addr=64) | w(ready=0, data=5, last=1),
                aw(addr=64) | w(data=5, last=1)],
    "error responses": [{}, ar() | aw() | w(last=1), r(resp=2, last=1) | b(resp=3)],
    "256 beats": [{}, aw(len=255), *[w()] * 255, w(last=1), b()],
}
BROKEN = [
    (Violation.AW_STABLE, [{}, aw(ready=0), {}]),
    (Violation.AW_STABLE, [{}, aw(ready=0), aw(addr=4)]),
    (Violation.AW_STABLE, [{}, aw(ready=0), aw(len=1)]),
    (Violation.AR_STABLE, [{}, ar(ready=0), {}]),
    (Violation.AR_STABLE, [{}, ar(ready=0), ar(id=1)]),
    (Violation.W_STABLE, [{}, w(ready=0), {}]),
    (Violation.W_STABLE, [{}, w(ready=0), w(data=1)]),
    (Violation.W_STABLE, [{}, w(ready=0), w(strb=7)]),
    (Violation.R_STABLE, [{}, ar(len=1), r(ready=0), {}]),
    (Violation.R_STABLE, [{}, ar(len=1), r(ready=0), r(data=1)]),
    (Violation.B_STABLE, [{}, aw() | w(last=1), b(ready=0), b(resp=2)]),
    (Violation.RESET_VALID, [ar()]),
    (Violation.RESET_VALID, [w()]),
    (Violation.RESET_VALID, [aw()]),
    (Violation.AW_SHAPE, [{}, aw(size=1)]),
    (Violation.AR_SHAPE, [{}, ar(burst=2)]),
    (Violation.AW_4K, [{}, aw(addr=0xFF0, len=4)]),
    (Violation.AR_4K, [{}, ar(addr=0x7FFFFFFD, len=1)]),
    (Violation.W_LAST, [{}, aw(len=1), w(last=1), {}]),
    (Violation.W_LAST, [{}, aw(len=0), w(), w()]),
    (Violation.W_LAST, [{}, w(), w(last=1), aw(len=2), {}]),
    (Violation.W_LAST, [{}, *[w()] * 256]),
    (Violation.W_STROBE, [{}, aw(addr=2, len=1), w(strb=14), w(last=1), {}]),
    (Violation.W_STROBE, [{}, w(strb=15, last=1), aw(addr=1), {}]),
    (Violation.OUTSTANDING, [{}, ar(), ar(), ar()]),
    (Violation.OUTSTANDING, [{}, aw(), aw(), aw()]),
    (Violation.R_UNASKED, [{}, r(last=1)]),
    (Violation.R_UNASKED, [{}, ar(), r(last=1), r(last=1)]),
    (Violation.R_LAST, [{}, ar(len=1), r(last=1)]),
    (Violation.R_LAST, [{}, ar(len=1), r(), r()]),
    (Violation.R_ID, [{}, ar(id=2), r(id=1, last=1)]),
    (Violation.B_UNASKED, [{}, aw(len=1), w(), b()]),
    (Violation.B_UNASKED, [{}, w(last=1), b()]),
    (Violation.B_UNASKED, [{}, aw() | w(last=1), b(), b()]),
    (Violation.B_ID, [{}, aw(id=1) | w(last=1), b(id=2)]),
]


def verdict(wave):
    """(ok, violation, cycles after the last one of the wave in which a side is accused)."""
    dut, result = AxiChecker(CONFIG), []
    names = dut.axi.signature.members

    async def bench(ctx):
        accused = []
        for cycle in wave:
            for name in names:
                ctx.set(getattr(dut.axi, name), cycle.get(name, 0))
            accused.append((ctx.get(dut.master), ctx.get(dut.memory)))
            await ctx.tick()
        result.append((ctx.get(dut.ok), ctx.get(dut.violation), accused))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return result[0]


@pytest.mark.parametrize("name", LEGAL)
def test_legal(name):
    ok, violation, _ = verdict(LEGAL[name])
    assert ok and violation == Violation.NONE


@pytest.mark.parametrize("rule, wave", BROKEN)
def test_broken(rule, wave):
    """Named, in the last cycle of the wave and not before, and blamed on the right side."""
    ok, violation, accused = verdict(wave)
    assert not ok and violation == rule
    none = Violation.NONE
    assert accused[-1] == ((rule, none) if rule < Violation.R_STABLE else (none, rule))
    assert all(pair == (none, none) for pair in accused[:-1])


def test_every_rule_is_broken_once():
    assert {rule for rule, _ in BROKEN} == set(Violation) - {Violation.NONE}
