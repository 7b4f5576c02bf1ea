"""NoC port: packets against literal bytes, transfers in both directions under stalls, errors, cutting a SEND
short."""
import random
import struct

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.config import TINY
from hw.isa import Error
from hw.noc import FLIT_BYTES, MAX_FLITS, NocPort

CONFIG = TINY
HEAD, LAST = 1 << 8 * FLIT_BYTES + 1, 1 << 8 * FLIT_BYTES
WRITE, SIGNAL, READ = range(3)
TILE = 0x0203


def head(kind, dst=TILE, src=0x0101, sem=0, count=0, addr=0, length=0, reply=(0, 0, 0)):
    """Head flit from literal bytes, as docs/noc.md has them; reply = (tile, semaphore, address)."""
    body = struct.pack("<HHBBHIIHBBI", dst, src, kind, sem, count, addr, length, reply[0], reply[1], 0,
                       reply[2])
    return HEAD | int.from_bytes(body.ljust(32, b"\0"), "little")


def write(addr, data, **fields):
    """Flits of a WRITE packet."""
    flits = [head(WRITE, addr=addr, length=len(data), **fields)]
    flits += [int.from_bytes(data[k:k + 32], "little") for k in range(0, len(data), 32)]
    return [*flits[:-1], flits[-1] | LAST]


class Harness:
    """A port between a memory with delays, a link with stalls and a user; everything it emits is logged."""

    def __init__(self, config=CONFIG, stall=0.0, seed=0):
        self.config, self.dut, self.stall, self.rng = config, NocPort(config), stall, random.Random(seed)
        print(f"seed {seed}")
        self.memory = np.random.default_rng(seed).integers(0, 256, config.sram_bytes, np.uint8)
        self.flits_in, self.flits_out, self.adds, self.signals, self.commands = [], [], [], [], []
        self.reads, self.pending = [], []
        self.cycle = 0
        self.stamps = []

    def _pause(self):
        return self.rng.random() < self.stall

    async def tick(self, ctx):
        dut, w = self.dut, self.config.word_bytes
        # Memory: reads answered in order after some cycles, writes visible after some.
        port = dut.read
        ctx.set(port.valid, 0)
        if self.reads and self.reads[0][0] <= self.cycle:
            word = self.reads.pop(0)[1]
            ctx.set(port.valid, 1)
            ctx.set(port.data, int.from_bytes(self.memory[word * w:word * w + w].tobytes(), "little"))
        ready = not self._pause()
        ctx.set(port.req.ready, ready)
        if ready and ctx.get(port.req.valid):
            due = max(self.cycle + 5 + self.rng.randrange(3 if self.stall else 1), self.reads[-1][0] + 1
                      if self.reads else 0)
            self.reads.append((due, ctx.get(port.req.payload)))
        port = dut.write
        while self.pending and self.pending[0][0] <= self.cycle:
            _, word, data, strobe = self.pending.pop(0)
            for b in range(w):
                if strobe >> b & 1:
                    self.memory[word * w + b] = data >> 8 * b & 255
        ready = not self._pause()
        ctx.set(port.req.ready, ready)
        if ready and ctx.get(port.req.valid):
            p = ctx.get(port.req.payload)
            self.pending.append((self.cycle + 1 + self.rng.randrange(4 if self.stall else 1), p["addr"],
                                 p["data"], p["strb"]))
        ctx.set(port.busy, bool(self.pending))
        # Streams.
        ready = not self._pause()
        ctx.set(dut.noc_out.ready, ready)
        if ready and ctx.get(dut.noc_out.valid):
            p = ctx.get(dut.noc_out.payload)
            self.flits_out.append(p["data"] | p["last"] * LAST | p["head"] * HEAD)
            self.stamps.append(self.cycle)
        ready = not self._pause()
        ctx.set(dut.add.ready, ready)
        if ready and ctx.get(dut.add.valid):
            p = ctx.get(dut.add.payload)
            assert not self.pending, "signalled before the data was visible"
            self.adds.append((p["sem"], p["count"]))
        ready = not self._pause()
        ctx.set(dut.signal.ready, ready)
        if ready and ctx.get(dut.signal.valid):
            self.signals.append(ctx.get(dut.signal.payload))
        for port, queue, fill in ((dut.noc_in, self.flits_in, self._flit),
                                  (dut.command, self.commands, self._command)):
            if queue and (ctx.get(port.valid) or not self._pause()):
                ctx.set(port.valid, 1)
                fill(ctx, queue[0])
                if ctx.get(port.ready):
                    queue.pop(0)
            else:
                ctx.set(port.valid, 0)
        self.cycle += 1
        await ctx.tick()

    def _flit(self, ctx, flit):
        ctx.set(self.dut.noc_in.payload, {"data": flit & LAST - 1, "last": flit >> 256 & 1,
                                          "head": flit >> 257})

    def _command(self, ctx, command):
        ctx.set(self.dut.command.payload, {"mask": 0, "pc": 77, "sig_a": 0, "sig_b": 0, "sig_c": 0, "sem": 0,
                                           **command})

    async def settle(self, ctx, quiet=60, limit=20000):
        """Run until nothing has happened for a while."""
        last, still = None, 0
        for _ in range(limit):
            await self.tick(ctx)
            now = (len(self.flits_in), len(self.flits_out), len(self.adds), len(self.signals),
                   len(self.commands),
                   len(self.reads), len(self.pending))
            still = still + 1 if now == last else 0
            last = now
            if still > quiet:
                return
        raise TimeoutError(str(last))

    def error(self, ctx):
        e = self.dut.error
        return (ctx.get(e.code), ctx.get(e.pc), ctx.get(e.value)) if ctx.get(e.valid) else None

    def run(self, main):
        async def bench(ctx):
            ctx.set(self.dut.tile_id, TILE)
            await main(ctx)
        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()
        return self


def expected_send(h, c):
    """Flits of a SEND command, from the definition."""
    flits, left, src, dst = [], c["len"], c["src"], c["dst"]
    while left:
        n = min(left, 32 * MAX_FLITS)
        final = {"sem": c.get("sem", 0), "count": 1} if n == left else {}
        flits += write(dst, h.memory[src:src + n].tobytes(), src=TILE, **{"dst": c["tile"], **final})
        left, src, dst = left - n, src + n, dst + n
    if not flits and c.get("sem", 0):
        flits = [head(SIGNAL, dst=c["tile"], src=TILE, sem=c["sem"], count=1, addr=dst) | LAST]
    return flits


@pytest.mark.parametrize("stall", (0.0, 0.5))
@pytest.mark.parametrize("columns", (2, 16))
def test_send(stall, columns):
    config = CONFIG.replace(columns=columns)
    h = Harness(config, stall, seed=columns)
    lengths = (32, 0, 512, 544, 0, 1056, 96)
    h.commands = [{"tile": 0x0500 + k, "src": 32 * (3 * k + 1), "dst": 4096 + 32 * k, "len": n, "sem": k % 4,
                   "sig_a": k + 1, "sig_b": k % 2 * 20, "sig_c": 30 + k} for k, n in enumerate(lengths)]
    flits = [f for c in h.commands for f in expected_send(h, c)]
    signals = [s for c in h.commands for s in (c["sig_a"], c["sig_b"], c["sig_c"]) if s]
    h.run(h.settle)
    assert h.flits_out == flits
    assert h.signals == signals


@pytest.mark.parametrize("stall", (0.0, 0.5))
@pytest.mark.parametrize("columns", (2, 32))
def test_receive(stall, columns):
    """Writes of every length with signals, bare signals, a long packet; data before signal."""
    h = Harness(CONFIG.replace(columns=columns), stall, seed=3)
    rng, model, adds = random.Random(8), h.memory.copy(), []
    for k in range(12):
        n, addr = 32 * rng.choice((1, 2, 5, 40)), 32 * rng.randrange(500)
        data, sem = rng.randbytes(n), rng.choice((0, 5, 63))
        h.flits_in += write(addr, data, sem=sem, count=k)
        model[addr:addr + n] = np.frombuffer(data, np.uint8)
        adds += [(sem, k)] * (sem != 0 and k != 0)
        if k % 3 == 0:
            h.flits_in.append(head(SIGNAL, sem=9, count=1000) | LAST)
            adds.append((9, 1000))
    h.run(h.settle)
    assert (h.memory == model).all()
    assert h.adds == adds


def test_read_requests_while_sending():
    h = Harness(stall=0.3, seed=4)
    requests = [(64 * k, 32 * (k + 1) * (k != 2)) for k in range(6)]
    h.flits_in = [head(READ, addr=a, length=n, reply=(0x0700 + k, k, 32 * k)) | LAST for k,
                  (a, n) in enumerate(requests)]
    h.commands = [{"tile": 1, "src": 0, "dst": 0, "len": 640, "sig_b": 7}] * 2
    packets = [expected_send(h, {"tile": 0x0700 + k, "src": a, "dst": 32 * k, "len": n, "sem": k}) for k,
               (a, n) in enumerate(requests)]
    sends = expected_send(h, h.commands[0])
    h.run(h.settle)
    out, replies = h.flits_out, []
    while out:
        n = next(k for k, f in enumerate(out) if f & LAST) + 1
        (replies if out[0] >> 8 & 255 == 7 else replies).append(out[:n])
        out = out[n:]
    flat = [f for p in replies if p[0] >> 8 & 255 == 7 for f in p]
    assert flat == [f for p in packets for f in p]
    assert [f for p in replies if p[0] & 0xFFFF == 1 for f in p] == sends * 2
    assert h.signals == [7, 7]


BAD = {
    "wrong tile": [head(SIGNAL, dst=5, sem=1, count=1) | LAST], "kind": [head(3, sem=1, count=1) | LAST],
    "semaphore": [head(SIGNAL, sem=64, count=1) | LAST], "unaligned": write(16, bytes(32)),
    "beyond": write(CONFIG.sram_bytes - 32, bytes(64)),
    "read beyond": [head(READ, addr=CONFIG.sram_bytes, length=32) | LAST],
    "empty write": [head(WRITE, addr=0, length=0) | LAST], "length": [head(WRITE, length=33), 1, LAST],
    "no head": [1, 2, 3 | LAST], "short": [head(WRITE, length=96), 1, 2 | LAST],
    "long": [head(WRITE, length=32), 1, 2, 3 | LAST],
    "head inside": [head(WRITE, length=96), 1, head(SIGNAL, sem=1, count=1) | LAST],
    "signal with data": [head(SIGNAL, sem=1, count=1), 5 | LAST], "wrap": write(0xFFFFFFE0, bytes(64)),
}


@pytest.mark.parametrize("name", BAD)
def test_protocol_errors(name):
    """Reported once, dropped to its last flit; the packet after it is served."""
    h = Harness(seed=6)
    before = h.memory.copy()
    h.flits_in = [*BAD[name], *write(640, bytes(range(32)), sem=4, count=2)]

    async def main(ctx):
        await h.settle(ctx)
        code, pc, _ = h.error(ctx)
        assert (code, pc) == (Error.NOC_PROTOCOL, 0)
        assert h.adds == [(4, 2)] and not h.flits_out
        assert h.memory[640:672].tobytes() == bytes(range(32))
        if name not in ("short", "head inside"):
            before[640:672] = h.memory[640:672]
            assert (before == h.memory).all()
        ctx.set(h.dut.clear, 1)
        await h.tick(ctx)
        ctx.set(h.dut.clear, 0)
        await h.tick(ctx)
        assert h.error(ctx) is None
    h.run(main)


@pytest.mark.parametrize("command, code, value", (
    ({"src": 16}, Error.ALIGNMENT, 16), ({"dst": 8}, Error.ALIGNMENT, 8), ({"len": 31}, Error.ALIGNMENT, 31),
    ({"src": CONFIG.sram_bytes - 32, "len": 64}, Error.SRAM_RANGE, CONFIG.sram_bytes - 32),
    ({"src": 0xFFFFFFE0, "len": 64}, Error.SRAM_RANGE, 0xFFFFFFE0),
    ({"tile": 1 << 16}, Error.ILLEGAL_OPERAND, 1 << 16), ({"sem": 64}, Error.ILLEGAL_OPERAND, 64)))
def test_send_errors(command, code, value):
    h = Harness()
    h.commands = [{"tile": 1, "src": 0, "dst": 0, "len": 32, **command, "sig_b": 3}]

    async def main(ctx):
        await h.settle(ctx)
        assert h.error(ctx) == (code, 77, value)
        assert not h.flits_out and not h.signals
    h.run(main)


def test_stop_cuts_a_send_between_packets():
    h = Harness(stall=0.2, seed=9)
    h.commands = [{"tile": 1, "src": 0, "dst": 0, "len": 32 * MAX_FLITS * 8, "sig_b": 3}]

    async def main(ctx):
        while len(h.flits_out) < 40:
            await h.tick(ctx)
        ctx.set(h.dut.stop, 1)
        h.flits_in = [head(READ, addr=32, length=64, reply=(2, 1, 96)) | LAST]  # still served
        await h.settle(ctx)
        assert ctx.get(h.dut.idle)
        ctx.set(h.dut.stop, 0)
        h.commands = [{"tile": 3, "src": 320, "dst": 0, "len": 96}]
        await h.settle(ctx)
    h.run(main)
    whole = expected_send(h, {"tile": 1, "src": 0, "dst": 0, "len": 32 * MAX_FLITS * 8})
    rest = (expected_send(h, {"tile": 2, "src": 32, "dst": 96, "len": 64, "sem": 1})
            + expected_send(h, {"tile": 3, "src": 320, "dst": 0, "len": 96}))
    sent = h.flits_out[:-len(rest)]
    assert sent == whole[:len(sent)] and len(sent) % (MAX_FLITS + 1) == 0 and 40 <= len(sent) < len(whole)
    assert h.flits_out[-len(rest):] == rest
    assert h.signals == []


def test_rate():
    """A head and 16 data flits in 17 cycles, sent; a data flit per cycle and one cycle more per packet,
    received."""
    h = Harness()
    h.commands = [{"tile": 1, "src": 0, "dst": 0, "len": 32 * MAX_FLITS * 8}]
    h.run(h.settle)
    assert h.stamps[-1] - h.stamps[1 + MAX_FLITS] == 7 * (MAX_FLITS + 1) - 1
    h = Harness()
    h.flits_in = write(0, bytes(32 * MAX_FLITS)) * 8
    done = []

    async def main(ctx):
        while h.flits_in:
            await h.tick(ctx)
        done.append(h.cycle)
    h.run(main)
    assert done[0] <= 8 * (MAX_FLITS + 2) + 2
