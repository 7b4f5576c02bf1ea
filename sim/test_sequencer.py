"""Program memory, sequencer, semaphores and command ports together, against golden.machine's view of the same
program."""
import random
from functools import cache

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from golden.machine import Machine, MachineError
from hw.command import CommandPort
from hw.config import TINY
from hw.isa import (BY_OP, ENTRY_WORDS, LOAD, MATMUL, SEND, STORE, UNIT_OPS, VECTOR, Alu, Error, Op, R,
                    encode_seq,
                    encode_unit)
from hw.semaphores import Semaphores
from hw.sequencer import ProgramMemory, Sequencer

CONFIG = TINY
UNITS = {ins.unit: ins for ins in UNIT_OPS}


class Bench(wiring.Component):
    """The sequencer with everything it talks to, but the units."""

    def __init__(self, config):
        super().__init__({})
        self.program, self.sequencer = ProgramMemory(config), Sequencer(config)
        self.semaphores = Semaphores(config)
        self.ports = [CommandPort(UNITS[t]) for t in range(5)]

    def elaborate(self, platform):
        m = Module()
        m.submodules.program, m.submodules.sequencer = self.program, self.sequencer
        m.submodules.semaphores = self.semaphores
        q, p = self.sequencer, self.program
        m.submodules += self.ports
        m.d.comb += [p.addr.eq(q.addr), q.data.eq(p.data), q.loaded.eq(p.loaded), q.complete.eq(p.complete)]
        for t in range(5):
            wiring.connect(m, q.beats[t], self.ports[t].i)
            wiring.connect(m, q.wait[t], self.semaphores.wait[t])
            m.d.comb += [q.levels[t].eq(self.ports[t].level), q.entries[t].eq(p.entries[t])]
        wiring.connect(m, q.add, self.semaphores.add[0])
        return m


def link(threads: dict[int, list[int]]) -> list[int]:
    """Program image from the code of each thread."""
    image = [0] * ENTRY_WORDS
    for t, code in threads.items():
        image[t] = len(image)
        image += code
    return image


class Recorder(Machine):
    """Golden machine that logs unit instructions instead of executing them, and signals."""

    def __init__(self, image, args=()):
        super().__init__(CONFIG, np.zeros(1 << 16, np.uint8))
        self.image, self.arguments, self.log = image, args, {t: [] for t in range(5)}
        self.sram[:] = np.arange(CONFIG.sram_bytes // 4, dtype=np.uint32).astype("<u4").view(np.uint8) ^ 0x5A

    def _execute(self, u, o):
        d = u.decoded
        self.log[d.ins.unit].append((d.pc, dict(o), d.imm, dict(d.fields)))
        for sem in d.fields.values():
            self._signal(sem, 1, d.pc)

    def go(self):
        self.dram[:4 * len(self.image)] = np.array(self.image, "<u4").view(np.uint8)
        self.run(0, len(self.image), self.arguments)


class Driver:
    """What surrounds the bench in one cycle after the other: program load, LDS memory, units."""

    def __init__(self, bench, image, sram, rng, slow, load_stall):
        self.bench, self.sram, self.rng, self.slow, self.load_stall = bench, sram, rng, slow, load_stall
        self.words = list(image)
        self.log = {t: [] for t in range(5)}
        self.signals = {t: [] for t in range(5)}
        self.read, self.delay, self.loading = None, 0, False
        self.order = []  # threads, in the order in which their commands were taken

    def load(self, ctx):
        """Program words, with pauses."""
        program = self.bench.program
        valid = self.loading and bool(self.words) and self.rng.random() >= self.load_stall
        ctx.set(program.words.valid, valid)
        if valid:
            ctx.set(program.words.payload, self.words.pop(0))

    def memory(self, ctx):
        """One read at a time, answered some cycles later."""
        port, w = self.bench.sequencer.lds, CONFIG.word_bytes
        ctx.set(port.valid, 0)
        ctx.set(port.req.ready, self.read is None)
        if self.read is not None:
            self.delay -= 1
            if self.delay == 0:
                ctx.set(port.data, int.from_bytes(self.sram[self.read * w:self.read * w + w].tobytes(),
                                                  "little"))
                ctx.set(port.valid, 1)
                self.read = None
        elif ctx.get(port.req.valid):
            self.read, self.delay = ctx.get(port.req.payload), self.rng.randrange(1, 6)

    def unit(self, ctx, t):
        """Takes commands, then gives their signals, with pauses."""
        port, out, queue = self.bench.ports[t], self.bench.semaphores.signal[t], self.signals[t]
        if ctx.get(out.valid) and self.taken[t]:
            queue.pop(0)
        free = not queue and self.rng.random() >= self.slow
        ctx.set(out.valid, bool(queue))
        if queue:
            ctx.set(out.payload, queue[0])
        ctx.set(port.o.ready, free)
        if free and ctx.get(port.o.valid):
            command = ctx.get(port.o.payload)
            sigs = {f: command[f] for f in ("sig_a", "sig_b", "sig_c")}
            self.log[t].append((command["pc"], {o.name: command[o.name] for o in UNITS[t].operands},
                                command["mask"], sigs))
            self.order.append(t)
            queue += [sem for sem in sigs.values() if sem]

    async def tick(self, ctx):
        self.load(ctx)
        self.memory(ctx)
        for t in range(5):
            self.unit(ctx, t)
        self.taken = [ctx.get(self.bench.semaphores.signal[t].ready) for t in range(5)]
        await ctx.tick()

    taken = [0] * 5


class Runs:
    """One compiled simulation for all programs of a config; `job` is the run that the testbench executes."""

    def __init__(self, config):
        self.bench, self.job = Bench(config), None
        self.sim = Simulator(self.bench)
        self.sim.add_clock(1e-6)
        self.sim.add_testbench(self.main)

    async def main(self, ctx):
        image, args, driver, cycles = self.job
        q, sems, ports = self.bench.sequencer, self.bench.semaphores, self.bench.ports
        for k, arg in enumerate(args):
            ctx.set(q.args[k], arg)
        while not ctx.get(q.ready):
            await ctx.tick()
        ctx.set(self.bench.program.load, 1)
        ctx.set(self.bench.program.load_words, len(image))
        await ctx.tick()
        ctx.set(self.bench.program.load, 0)
        driver.loading = True
        ctx.set(q.start, 1)
        await driver.tick(ctx)
        ctx.set(q.start, 0)
        quiet = 0
        for cycle in range(cycles):
            await driver.tick(ctx)
            if ctx.get(q.error.valid):
                self.result = tuple(ctx.get(getattr(q.error, f)) for f in ("code", "pc", "value")), cycle
                return
            if ctx.get(sems.error):
                self.result = (int(Error.SEM_OVERFLOW), 0, ctx.get(sems.error_sem)), cycle
                return
            over = ctx.get(q.done) and ctx.get(sems.idle) and not any(ctx.get(p.busy) for p in ports)
            quiet = quiet + 1 if over and not any(driver.signals.values()) else 0
            if quiet > 8:
                self.result = None, cycle - quiet
                return
        raise TimeoutError(f"threads {ctx.get(q.halted):05b} halted, {ctx.get(q.waiting):05b} waiting, "
                           f"first at {ctx.get(q.stuck_pc)}")


runs = cache(Runs)


def run(image, args=(), *, seed=0, slow=0.0, cycles=6000, load_stall=0.0):
    """RTL log as of Recorder.log, error (code, pc, value) or None, and cycles taken."""
    print(f"seed {seed}")
    it = runs(CONFIG)
    driver = Driver(it.bench, image, Recorder(image).sram, random.Random(seed), slow, load_stall)
    it.job = image, args, driver, cycles
    it.sim.reset()
    it.sim.run()
    return driver.log, *it.result


def check(image, args=(), **options):
    """RTL and golden issue the same commands and end alike."""
    golden, expected = Recorder(image, args), None
    try:
        golden.go()
    except MachineError as error:
        expected = (int(error.code), error.pc, error.value)
    log, error, cycles = run(image, args, **options)
    assert error == expected
    if expected is None:
        assert log == golden.log
    return cycles


def alu(func, rd, rs=0, rt=0, imm=0):
    return encode_seq(Op.ALU, imm, rd=rd, rs=rs, rt=rt, func=func)


def li(rd, imm):
    return encode_seq(Op.LI, imm, rd=rd)


def dump(*registers):
    """SEND whose operands show up to five registers."""
    return encode_unit(Op.SEND, {name: R(r, 3 * r) for name, r in zip(("tile", "src", "dst", "len", "sem"),
                                                                      registers)})


HALT = encode_seq(Op.HALT)


@pytest.mark.parametrize("func", list(Alu))
def test_alu(func):
    rng = random.Random(int(func))
    code = []
    for _ in range(8):
        a, b, imm = (rng.choice((0, 1, 31, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32)))
                     for _ in range(3))
        code += li(1, a) + li(2, b) + alu(func, 3, 1, 2, imm) + alu(func, 4, 1, 0, imm)
        code += alu(func, 0, 1, 2, imm) + dump(3, 4, 0)
    check(link({SEND: code + HALT}))


def test_registers_are_private_and_zero():
    code = dump(1, 7, 15) + li(15, 0xDEADBEEF) + dump(15, 0)
    load = li(1, 5) + encode_unit(Op.LOAD, {"src": R(1), "dst": R(7), "len": R(15)})
    check(link({SEND: code + HALT, LOAD: load + HALT}))


def test_every_unit_all_operands_and_defaults():
    rng = random.Random(5)
    threads = {}
    for t, ins in UNITS.items():
        code = li(3, 1000)
        for present in (ins.operands, (), ins.operands[::3], ins.operands[-1:]):
            values = {o.name: rng.getrandbits(32) if o.raw else R(rng.choice((0, 3)), rng.randrange(-9, 9))
                      for o in present}
            code += encode_unit(ins.op, values, sig_a=0, sig_b=rng.randrange(1, 9), sig_c=0)
        threads[t] = code + HALT
    check(link(threads), slow=0.8)


def loop(body, count=0, reg=0):
    return encode_seq(Op.LOOP, count, reg=reg, skip=2 + len(body) + 1) + body + encode_seq(Op.END)


def test_loops():
    inner = loop(alu(Alu.ADD, 2, 2, 0, 1) + loop(alu(Alu.ADD, 3, 3, 2), 2), 3)
    code = loop(inner + loop(li(9, 1), 0) + loop(li(9, 2), -5) + dump(2, 3, 9), 2)
    code += li(5, 3) + loop(alu(Alu.ADD, 6, 6, 0, 7), 1, reg=5)
    code += loop(loop(loop(loop(alu(Alu.ADD, 7, 7, 0, 1), 2), 2), 2), 2)
    check(link({SEND: code + dump(6, 7) + HALT, VECTOR: loop(alu(Alu.ADD, 1, 1, 0, 1), 5) + HALT}))


def test_wait_signal():
    """A ring of threads, each handing a token to the next; units' signals join in."""
    threads = {}
    for t, ins in UNITS.items():
        body = encode_seq(Op.WAIT, sem=10 + t, count=2) + alu(Alu.ADD, 1, 1, 0, 1)
        body += encode_unit(ins.op, {ins.operands[-1].name: 5 if ins.operands[-1].raw else R(1)}, sig_b=10
                            + (t + 1) % 5)
        body += encode_seq(Op.SIGNAL, sem=10 + (t + 1) % 5, count=1)
        start = encode_seq(Op.SIGNAL, sem=10, count=2) if t == 0 else []
        threads[t] = start + loop(body, 6) + encode_seq(Op.WAIT, sem=0, count=7) + HALT
    check(link(threads), slow=0.5)


def test_wait_holds_the_command_but_not_its_operands():
    """The command is complete only when the wait is over; a later wait and LDS come after it."""
    send = encode_seq(Op.WAIT, sem=1, count=1) + dump(1, 2) + encode_seq(Op.WAIT, sem=2, count=3) + HALT
    delay = loop(alu(Alu.MUL, 1, 1, 0, 3), 20)
    delay += encode_seq(Op.SIGNAL, sem=1, count=1) + encode_seq(Op.SIGNAL, sem=2, count=3)
    check(link({SEND: send, LOAD: delay + HALT}))


def test_order_across_threads():
    """What follows a WAIT happens after what precedes the SIGNAL: commands, and signals passed on."""
    image = link({
        LOAD: loop(alu(Alu.MUL, 1, 1, 0, 3), 20) + encode_unit(Op.LOAD, {})
        + encode_seq(Op.SIGNAL, sem=1, count=2) + HALT,
        SEND: encode_seq(Op.WAIT, sem=1, count=1) + dump(1, 2) + HALT,
        STORE: encode_seq(Op.WAIT, sem=1, count=1) + encode_seq(Op.SIGNAL, sem=2, count=1) + HALT,
        VECTOR: encode_seq(Op.WAIT, sem=2, count=1) + encode_unit(Op.VECTOR, {"n0": 1}) + HALT})
    check(image)
    driver = runs(CONFIG).job[2]
    assert driver.order[0] == LOAD and sorted(driver.order) == [LOAD, VECTOR, SEND]


def test_full_command_port():
    """Bursts wait for room in the port of a unit that does not take its commands; other threads go on."""
    full = encode_unit(Op.VECTOR, {o.name: 7 for o in BY_OP[Op.VECTOR].operands})
    check(link({VECTOR: full * 8 + HALT, SEND: dump(1) * 3 + HALT}), slow=0.99)


def test_lds_and_arg():
    code = []
    for k in range(8):
        code += encode_seq(Op.ARG, rd=1, index=k) + encode_seq(Op.LDS, 1 << 28 | 0xFFFFFFC, rd=2) + dump(1, 2)
    check(link({SEND: code + HALT, STORE: code[:3] + code[:3] + HALT}), args=[4 + 36 * k for k in range(8)])


@pytest.mark.parametrize("seed", range(4))
def test_random_threads(seed):
    """Random straight code, loops and unit instructions in five threads at once, program still loading."""
    rng = random.Random(seed)

    def body(ins, depth):
        code = []
        for _ in range(rng.randrange(1, 5)):
            kind = rng.randrange(8)
            if kind < 3:
                code += alu(rng.choice(list(Alu)), *(rng.randrange(16) for _ in range(3)),
                            rng.getrandbits(32))
            elif kind == 3:
                code += li(rng.randrange(16), rng.getrandbits(32))
            elif kind == 4:
                code += encode_seq(Op.LDS, rng.randrange(0, CONFIG.sram_bytes, 4), rd=rng.randrange(16))
            elif kind == 5 and depth < 3:
                code += loop(body(ins, depth + 1), rng.randrange(-1, 4))
            elif kind == 6:
                code += encode_seq(Op.SIGNAL, sem=rng.randrange(1, 60), count=rng.randrange(1, 9))
            else:
                present = rng.sample(ins.operands, rng.randrange(len(ins.operands) + 1))
                values = {o.name: rng.getrandbits(32) if o.raw
                          else R(rng.randrange(16), rng.randrange(-99, 99))
                          for o in present}
                code += encode_unit(ins.op, values, sig_a=rng.choice((0, 61)),
                                    sig_b=rng.choice((0, 62)))
        return code
    threads = {t: body(ins, 0) + body(ins, 0) + HALT for t, ins in UNITS.items()}
    check(link(threads), slow=rng.choice((0, 0.9)), seed=seed, load_stall=rng.choice((0, 0.7)))


LONG = encode_unit(Op.SEND, {"tile": 0, "src": 0})
ERRORS = {
    "opcode": [0x3F], "zero": [0], "undefined bits": [int(Op.HALT) | 1 << 20],
    "undefined ALU bits": [int(Op.ALU) | 1 << 25, 0],
    "mask": [int(Op.SEND), 0x20], "wrong thread": encode_unit(Op.LOAD, {}), "function": alu(10, 1),
    "wait sem 0 count 0": encode_seq(Op.WAIT, sem=0, count=0),
    "wait count": encode_seq(Op.WAIT, sem=1, reg=1, count=0xFFFF),
    "signal count 0": encode_seq(Op.SIGNAL, sem=3, count=0), "arg": encode_seq(Op.ARG, rd=1, index=9),
    "end": encode_seq(Op.END), "deep": loop(loop(loop(loop(loop(li(2, 2), 1), 1), 1), 1), 1),
    "lds alignment": encode_seq(Op.LDS, 6, rd=1), "lds range": encode_seq(Op.LDS, CONFIG.sram_bytes, rd=1),
    "skip": encode_seq(Op.LOOP, 0, skip=999),
    "overflow": encode_seq(Op.SIGNAL, sem=3, count=65535) * 2,
    "pc": [], "cut ALU": alu(Alu.ADD, 1)[:1], "cut mask": LONG[:1], "cut operands": LONG[:-1],
    "cut halt bits": LONG[:2],
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    image = link({SEND: li(1, 5) + ERRORS[name] + (HALT if not name.startswith(("cut", "pc")) else [])})
    golden = Recorder(image)
    with pytest.raises(MachineError) as caught:
        golden.go()
    e = caught.value
    error = run(image, cycles=500)[1]
    assert error == (int(e.code), 0 if e.code == Error.SEM_OVERFLOW else e.pc, e.value)


def test_entry_out_of_range():
    image = link({SEND: HALT})
    image[LOAD] = 1 << 20
    assert run(image, cycles=300)[1][0] == Error.PC_RANGE
    far = link({SEND: encode_seq(Op.LOOP, 0, skip=65535) + HALT})  # must not wrap to a word that exists
    assert run(far, cycles=300)[1][0] == Error.PC_RANGE


def test_semaphore_numbers():
    """With 16 semaphores, number 16 is illegal in WAIT, SIGNAL and unit instructions."""
    global CONFIG
    before, CONFIG = CONFIG, CONFIG.replace(semaphores=16)
    try:
        for code in (encode_seq(Op.SIGNAL, sem=16, count=1), encode_seq(Op.WAIT, sem=40, count=1),
                     encode_unit(Op.SEND, {}, sig_c=16)):
            check(link({SEND: code + HALT}))
    finally:
        CONFIG = before


def test_cycles():
    """A lone thread: 8 cycles an instruction; operand words stream one per cycle; five threads share the
    pipeline."""
    one = check(link({SEND: li(1, 1) * 20 + HALT})) - check(link({SEND: li(1, 1) * 10 + HALT}))
    assert one == 80
    many = len(BY_OP[Op.VECTOR].operands)
    full = encode_unit(Op.VECTOR, {o.name: 1 for o in BY_OP[Op.VECTOR].operands})
    none = encode_unit(Op.VECTOR, {BY_OP[Op.VECTOR].operands[0].name: 1})
    assert check(link({VECTOR: full * 3 + HALT})) - check(link({VECTOR: none * 3 + HALT})) == 3 * (many - 1)
    work = loop(li(1, 1) * 8, 12) + HALT
    alone = check(link({LOAD: work}))
    assert check(link({t: work for t in (LOAD, STORE, MATMUL)})) <= alone * 1.1 + 20
    words = 12 * (8 * 2 + 2)  # END reads a second word, too
    assert check(link({t: work for t in range(5)})) <= 5 * words * 1.1 + 60
