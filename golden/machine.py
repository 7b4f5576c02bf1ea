"""Instruction-level model of a tile: runs the program images that the RTL runs and gives the same bytes.

Functional, not timed: a unit instruction takes effect at once when its thread issues it, and signals at once.
A program that orders its units by semaphores gives the same result under every schedule; `run(schedule=rng)`
executes threads and unit queues in random order, so a result that changes shows a race in the program.
docs/architecture.md is the specification; golden/units.py has the unit instructions.
"""
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from golden.units import U32, Dram, Fault, MatmulState, Walk, dma, matmul, signed, vector
from hw.config import TileConfig
from hw.isa import (ARGS, BY_OP, ENTRY_WORDS, LOOP_DEPTH, REGISTERS, THREADS, Alu, Decoded, Error,
                    IllegalInstruction, Op, decode, unpack)

SEM_LIMIT = 65535

_ALU = {
    Alu.ADD: lambda a, b: a + b, Alu.SUB: lambda a, b: a - b, Alu.MUL: lambda a, b: a * b,
    Alu.SHL: lambda a, b: a << (b & 31), Alu.SHR: lambda a, b: a >> (b & 31),
    Alu.SRA: lambda a, b: signed(a) >> (b & 31), Alu.AND: lambda a, b: a & b, Alu.OR: lambda a, b: a | b,
    Alu.MIN: lambda a, b: min(signed(a), signed(b)), Alu.MAX: lambda a, b: max(signed(a), signed(b)),
}


class MachineError(Exception):
    """The tile stopped: what CSRs ERR_CODE, ERR_PC, ERR_VALUE would say."""

    def __init__(self, code: Error, pc: int, value: int, label: str = ""):
        super().__init__(f"{Error(code).name} at word {pc}{f' ({label})' if label else ''}, value {value:#x}")
        self.code, self.pc, self.value, self.label = Error(code), pc, value & U32, label


@dataclass(frozen=True)
class Event:
    """One executed unit instruction, for traces. `space` ("sram", "dram" or "remote") is what it wrote."""
    thread: str
    pc: int
    label: str
    operands: Mapping[str, int]
    space: str
    writes: tuple[Walk, ...]


@dataclass
class Packet:
    """What SEND hands to the network."""
    tile: int
    dst: int
    data: np.ndarray
    sem: int


@dataclass
class _Unit:
    """A unit instruction prepared once: constants filled in, `regs` to be resolved at issue."""
    decoded: Decoded
    constants: dict[str, int]
    regs: list[tuple[str, int, int]]
    flags: dict[str, int]
    present: frozenset[str]

    @classmethod
    def of(cls, d: Decoded) -> "_Unit":
        constants, regs, flags = {}, [], {}
        for o in d.ins.operands:
            word = d.operands.get(o.name)
            if word is None:
                constants[o.name] = o.default
            elif o.raw:
                constants[o.name] = word
            elif word >> 28:
                regs.append((o.name, word >> 28, _imm28(word)))
            else:
                constants[o.name] = _imm28(word)
            if o.fields:
                flags.update(unpack(o.fields, constants[o.name]))
        return cls(d, constants, regs, flags, frozenset(d.operands))


def _imm28(word: int) -> int:
    """Signed 28-bit immediate as an unsigned 32-bit value."""
    return ((word & 0xFFFFFFF ^ 1 << 27) - (1 << 27)) & U32


@dataclass
class _Thread:
    number: int
    pc: int = 0
    regs: list[int] = field(default_factory=lambda: [0] * REGISTERS)
    loops: list[list[int]] = field(default_factory=list)
    """[first word of the body, iterations left] of the open loops."""
    halted: bool = False


class Machine:
    """One tile and its DRAM.

    dram uint8, read and written in place; dram[0] has byte address `origin`. `sram`, the partial sums and the
    running maxima survive from run to run. `counters` (cleared by each run) has macs, blocks, elements,
    read_bytes, write_bytes, instructions and one count per instruction name. With trace=True `events` lists
    every unit instruction.
    """

    def __init__(self, config: TileConfig, dram: np.ndarray, *, origin: int = 0, trace: bool = False,
                 tile: int = 0):
        if dram.dtype != np.uint8 or dram.ndim != 1 or not dram.flags.c_contiguous:
            raise ValueError(f"dram {dram.dtype} {dram.shape}: allowed is a flat contiguous uint8 array")
        self.config, self.dram, self.origin, self.tile = config, dram, origin, tile
        self.sram = np.zeros(config.sram_bytes, np.uint8)
        self.state = MatmulState.of(config)
        self.counters: Counter[str] = Counter()
        self.events: list[Event] | None = [] if trace else None
        self.sent: list[Packet] = []
        """SEND packets for tiles that are not in `peers`, in order."""
        self.peers: dict[int, Machine] = {tile: self}
        self.semaphores = [0] * config.semaphores
        self.error: MachineError | None = None
        self._words: list[int] = []
        self._decoded: dict[int, Decoded | _Unit] = {}
        self._threads: list[_Thread] = []
        self._queues: list[deque[tuple[_Unit, dict[str, int]]]] = []

    # ------------------------------------------------------------ running

    def run(self, prog_addr: int, words: int, args: Sequence[int] = (), *,
            dram_window: tuple[int, int] | None = None, labels: Mapping[int, str] | None = None,
            schedule: np.random.Generator | None = None) -> None:
        """Ring the doorbell and run to the end. MachineError when the tile stops with an error.

        prog_addr DRAM byte address (multiple of 4) of `words` instruction words, words = 0 keeps the program;
        args CSR ARG0..7; dram_window (base, size), default everything; labels pc -> text for errors and
        traces; schedule: see the module docstring. WATCHDOG (a deadlock): pc of the first thread that waits,
        value bit t for each thread t that waits.
        """
        self.start(prog_addr, words, args, dram_window=dram_window, labels=labels,
                   deferred=schedule is not None)
        try:
            while self.advance(schedule):
                pass
            if not self.done:
                waiting = sum(1 << t.number for t in self._threads if not t.halted)
                first = next(t for t in self._threads if not t.halted)
                raise MachineError(Error.WATCHDOG, first.pc, waiting, self.labels.get(first.pc, ""))
        except MachineError as error:
            self.error = error
            raise

    def start(self, prog_addr: int, words: int, args: Sequence[int] = (), *,
              dram_window: tuple[int, int] | None = None, labels: Mapping[int, str] | None = None,
              deferred: bool = False) -> None:
        """Doorbell only; then `advance` until it returns False (for machines that talk to each other)."""
        if len(args) > ARGS:
            raise ValueError(f"{len(args)} arguments: allowed is at most {ARGS}")
        self.args = [int(a) & U32 for a in args] + [0] * (ARGS - len(args))
        self.labels = labels or {}
        self.error = None
        self.memory = Dram(self.dram, self.origin, dram_window or (0, 1 << 32))
        self.counters.clear()
        self.semaphores = [0] * self.config.semaphores
        if words:
            self._load(prog_addr, words)
        self._threads = [_Thread(i, pc, halted=pc == 0) for i, pc in enumerate(self._words[:ENTRY_WORDS])]
        self._queues = [deque() for _ in THREADS]
        self._deferred = deferred

    @property
    def done(self) -> bool:
        return all(t.halted for t in self._threads) and not any(self._queues)

    def advance(self, schedule: np.random.Generator | None = None) -> bool:
        """Let every thread run until it blocks (with `schedule`: one random step). False: nothing moved."""
        if schedule is None:
            moved = False
            for t in self._threads:
                while not t.halted and self._step(t):
                    moved = True
            return moved
        for i in schedule.permutation(2 * len(THREADS)):
            if i < len(THREADS):
                if not self._threads[i].halted and self._step(self._threads[i]):
                    return True
            elif self._queues[i - len(THREADS)]:
                self._execute(*self._queues[i - len(THREADS)].popleft())
                return True
        return False

    def writer_of(self, space: str, address: int) -> Event | None:
        """The last traced instruction that wrote the byte at `address` of space "sram" or "dram"."""
        if self.events is None:
            raise ValueError("trace = False: allowed is a Machine made with trace=True")
        for event in reversed(self.events):
            if event.space == space and any(w.contains(address) for w in event.writes):
                return event
        return None

    # ------------------------------------------------------------ sequencer

    def _load(self, address: int, words: int) -> None:
        fetch = Walk(address, (), 4 * words)
        base, size = self.memory.window
        if words > self.config.imem_words:
            raise ValueError(f"words = {words}: allowed is at most {self.config.imem_words}")
        for low, high, code in ((base, base + size, Error.DRAM_RANGE),
                                (self.origin, self.origin + len(self.dram), Error.AXI_DECERR)):
            if not fetch.within(low, high):
                self.error = MachineError(code, 0, address)
                raise self.error
        self._words = np.frombuffer(fetch.view(self.dram, origin=self.origin).tobytes(), "<u4").tolist()
        self._decoded = {}

    def _fail(self, code: Error, pc: int, value: int) -> MachineError:
        return MachineError(code, pc, value, self.labels.get(pc, ""))

    def _fetch(self, t: _Thread) -> "Decoded | _Unit":
        found = self._decoded.get(t.pc)
        if found is not None:
            return found
        if not 0 <= t.pc < len(self._words):
            raise self._fail(Error.PC_RANGE, t.pc, t.pc)
        try:
            d = decode(self._words, t.pc)
        except IndexError:
            unit = BY_OP[self._words[t.pc] & 63].unit
            if unit not in (None, t.number) and t.pc + 1 < len(self._words):
                raise self._fail(Error.ILLEGAL_OPCODE, t.pc, self._words[t.pc]) from None
            raise self._fail(Error.PC_RANGE, t.pc, len(self._words)) from None
        except IllegalInstruction as illegal:
            word = self._words[t.pc]
            if word & 63 not in Op._value2member_map_:
                raise self._fail(Error.ILLEGAL_OPCODE, t.pc, word) from illegal
            value = word if "undefined" in str(illegal) else self._words[t.pc + 1]
            raise self._fail(Error.ILLEGAL_OPERAND, t.pc, value) from illegal
        if d.pc + d.size > len(self._words):
            raise self._fail(Error.PC_RANGE, t.pc, len(self._words))
        found = self._decoded[t.pc] = _Unit.of(d) if d.ins.unit is not None else d
        return found

    def _signal(self, sem: int, count: int, pc: int) -> None:
        if sem:
            self.semaphores[sem] += count
            if self.semaphores[sem] > SEM_LIMIT:
                raise self._fail(Error.SEM_OVERFLOW, pc, sem)

    def _step(self, t: _Thread) -> bool:
        """One instruction; False if the thread waits."""
        d = self._fetch(t)
        if isinstance(d, _Unit):
            return self._issue(t, d)
        f, r, op = d.fields, t.regs, d.ins.op
        word = self._words[t.pc]
        next_pc = t.pc + d.size
        if op == Op.HALT:
            t.halted = True
        elif op in (Op.WAIT, Op.SIGNAL):
            sem, count = f["sem"], r[f["reg"]] + f["count"] & U32
            if sem >= self.config.semaphores or not 1 <= count <= SEM_LIMIT:
                raise self._fail(Error.ILLEGAL_OPERAND, t.pc, word)
            if op == Op.SIGNAL:
                self._signal(sem, count, t.pc)
            elif sem and self.semaphores[sem] < count:
                return False
            elif sem:
                self.semaphores[sem] -= count
        elif op == Op.LI:
            r[f["rd"]] = d.imm
        elif op == Op.ALU:
            if f["func"] not in _ALU:
                raise self._fail(Error.ILLEGAL_OPERAND, t.pc, word)
            r[f["rd"]] = _ALU[f["func"]](r[f["rs"]], r[f["rt"]] + d.imm & U32) & U32
        elif op == Op.LOOP:
            count = signed(r[f["reg"]] + d.imm)
            if count <= 0:
                next_pc = t.pc + f["skip"]
            elif len(t.loops) == LOOP_DEPTH:
                raise self._fail(Error.LOOP_DEPTH, t.pc, word)
            else:
                t.loops.append([next_pc, count])
        elif op == Op.END:
            if not t.loops:
                raise self._fail(Error.LOOP_DEPTH, t.pc, word)
            t.loops[-1][1] -= 1
            if t.loops[-1][1]:
                next_pc = t.loops[-1][0]
            else:
                t.loops.pop()
        elif op == Op.LDS:
            address = r[d.imm >> 28] + _imm28(d.imm) & U32
            if address % 4:
                raise self._fail(Error.ALIGNMENT, t.pc, address)
            if address + 4 > len(self.sram):
                raise self._fail(Error.SRAM_RANGE, t.pc, address)
            r[f["rd"]] = int(self.sram[address:address + 4].view("<u4")[0])
        elif op == Op.ARG:
            if f["index"] >= ARGS:
                raise self._fail(Error.ILLEGAL_OPERAND, t.pc, word)
            r[f["rd"]] = self.args[f["index"]]
        r[0] = 0
        t.pc = next_pc
        self.counters["instructions"] += 1
        return True

    # ------------------------------------------------------------ units

    def _issue(self, t: _Thread, u: _Unit) -> bool:
        d = u.decoded
        if d.ins.unit != t.number:
            raise self._fail(Error.ILLEGAL_OPCODE, t.pc, self._words[t.pc])
        if max(d.fields.values()) >= self.config.semaphores:
            raise self._fail(Error.ILLEGAL_OPERAND, t.pc, self._words[t.pc])
        o = dict(u.constants)
        for name, reg, imm in u.regs:
            o[name] = t.regs[reg] + imm & U32
        t.pc += d.size
        self.counters["instructions"] += 1
        if self._deferred:
            self._queues[t.number].append((u, o))
        else:
            self._execute(u, o)
        return True

    def _execute(self, u: _Unit, o: dict[str, int]) -> None:
        d, count = u.decoded, self.counters
        name, space, f = d.ins.name, "sram", u.flags
        count[name.lower()] += 1
        try:
            if name == "MATMUL":
                writes = matmul(self.config, self.sram, self.state, f, o, "scale" in u.present)
                blocks = max(signed(o["n"]), 0) * max(signed(o["k"]), 0)
                count["blocks"] += blocks
                count["macs"] += blocks * f["rows"] * 32
            elif name == "VECTOR":
                writes, elements = vector(self.config, self.sram, f, o, u.present)
                count["elements"] += elements
            elif name == "SEND":
                writes, space = self._send(o), "remote"
            else:
                store = name == "STORE"
                writes, moved = dma(self.sram, self.memory, o, store)
                count["write_bytes" if store else "read_bytes"] += moved
                space = "dram" if store else "sram"
        except Fault as fault:
            raise self._fail(fault.code, d.pc, fault.value) from None
        if self.events is not None:
            self.events.append(Event(name.lower(), d.pc, self.labels.get(d.pc, ""), o, space, tuple(writes)))
        for sem in d.fields.values():  # sig_a, sig_b, sig_c
            self._signal(sem, 1, d.pc)

    def _send(self, o: dict[str, int]) -> list[Walk]:
        for name in ("src", "dst", "len"):
            if o[name] % 32:
                raise Fault(Error.ALIGNMENT, o[name])
        data = Walk(o["src"], (), o["len"]).check(self.sram).view(self.sram).copy()
        packet = Packet(o["tile"], o["dst"], data, o["sem"])
        if packet.tile in self.peers:
            self.peers[packet.tile].receive(packet)
        else:
            self.sent.append(packet)
        return [Walk(o["dst"], (), o["len"])]

    def receive(self, packet: Packet) -> None:
        """Data into SRAM, then one count to the semaphore. NOC_PROTOCOL if either does not exist."""
        target = Walk(packet.dst, (), len(packet.data))
        if not target.within(0, len(self.sram)) or packet.sem >= self.config.semaphores:
            raise self._fail(Error.NOC_PROTOCOL, 0, packet.dst)
        target.write(self.sram, packet.data)
        self._signal(packet.sem, 1, 0)
