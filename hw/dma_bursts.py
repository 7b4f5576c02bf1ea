"""What both DMA engines share: descriptors to bursts, bursts to beats, completions to semaphore signals.

The DRAM side of a transfer is called *far*, the SRAM side *near*. A run is cut where `far` crosses a
multiple of the largest burst (`axi_burst_beats` beats, a divisor of 4 KB), so no burst crosses a 4 KB page.
"""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from .config import TileConfig
from .glue import Fifo, SkidBuffer, exceeds, lowest, onehot_mux, raw
from .isa import Instruction
from .ports import PC_BITS, SEM_BITS, command_layout

__all__ = [
    "AddressChannel",
    "Beats",
    "Bursts",
    "Fault",
    "Signals",
    "beat_layout",
    "boot_layout",
    "burst_depth",
    "burst_layout",
    "fifo_depth",
]

boot_layout = data.StructLayout({"src": 32, "words": PC_BITS + 1})
"""Program load: DRAM byte address (multiple of 4) and number of 32-bit words."""


class Fault(enum.Enum, shape=2):
    """Why a run was refused."""

    NONE = 0
    DRAM = 1
    SRAM = 2


def fifo_depth(config: TileConfig) -> int:
    """Instructions and answers queued inside an engine: covers SRAM and bus round trips of one-beat
    transfers."""
    return max(32, 2 * config.axi_outstanding)


def burst_depth(config: TileConfig) -> int:
    """Bursts queued between their address and their data: those in flight, or the SRAM's round trip."""
    return max(16, 2 * config.axi_outstanding)


def _run_fields(config: TileConfig) -> dict:
    lanes = exact_log2(config.axi_bytes)
    return {
        "far": 32,  # first byte of the burst; of a refused run, the offending address
        "near": exact_log2(config.sram_bytes),  # SRAM address of the run's first byte
        "rot": lanes,  # (near - far) mod axi_bytes, the same for every beat of a run
        "borrow": 1,  # near mod axi_bytes < far mod axi_bytes
        "tail": lanes,  # lane of the run's last byte
        "first": 1,
        "last": 1,  # first, last burst (beat) of the run
        "end": 1,  # the last one of the instruction
        "null": 1,  # instruction that copies nothing: no beats
        "boot": 1,
        "fault": Fault,
        "pc": PC_BITS,
    }


def burst_layout(config: TileConfig) -> data.StructLayout:
    """One burst of `beats` + 1 beats, or a marker without beats (null, fault)."""
    return data.StructLayout({**_run_fields(config), "beats": exact_log2(config.axi_burst_beats)})


def beat_layout(config: TileConfig) -> data.StructLayout:
    """One beat; `begin` and `final` mark the first and the last beat of its burst."""
    return data.StructLayout(
        {**_run_fields(config), "beats": exact_log2(config.axi_burst_beats), "begin": 1, "final": 1}
    )


class AddressChannel(wiring.Component):
    """AR or AW: a registered stream that lets `axi_outstanding` bursts into flight.

    Members: `i` -> `o` {addr of the first beat, len = beats - 1}; `retire`, a burst left the bus;
    `inflight`, some have not. `i.ready` is a register. Latency 1, one per cycle.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        layout = data.StructLayout({"addr": 32, "len": 8})
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "o": Out(stream.Signature(layout)),
                "retire": In(1),
                "inflight": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        count = Signal(range(self.config.axi_outstanding + 1))  # a power of two: the top bit says full
        lanes = exact_log2(self.config.axi_bytes)
        item, skid = Signal(self.i.payload.shape()), Signal(self.i.payload.shape(), reset_less=True)
        full, push, closed = Signal(), Signal(), Signal()  # closed: `full`, or all are in flight
        free = ~self.o.valid | self.o.ready
        m.d.comb += [
            self.i.ready.eq(~closed),
            push.eq(self.i.valid & self.i.ready),
            self.inflight.eq(count.any()),
            item.len.eq(self.i.payload.len),
            item.addr.eq(Cat(Const(0, lanes), self.i.payload.addr[lanes:])),
        ]
        # A skid buffer whose payloads load whatever `i.valid` says: it comes late, after the range check.
        with m.If(free):
            m.d.sync += self.o.payload.eq(Mux(full, raw(skid), raw(item)))
        with m.If(~full):
            m.d.sync += skid.eq(item)
        fills = ~free & (full | push)
        last_one = count == self.config.axi_outstanding - 1
        limit = ~self.retire & (count[-1] | (push & last_one))
        m.d.sync += [self.o.valid.eq(full | push | ~free), full.eq(fills), closed.eq(fills | limit)]
        with m.If(push ^ self.retire):
            m.d.sync += count.eq(Mux(self.retire, count - 1, count + 1))
        return m


class Bursts(wiring.Component):
    """Walks the descriptor and pushes one burst per cycle.

    far, near: names of the command's operands of the DRAM and the SRAM side ("src", "dst").

    Members
    * `command`, `boot`: work, taken in order of arrival (boot, which waits in a register for its turn, goes
      ahead of commands); `ticket`: semaphore numbers of each command taken.
    * `dram_base`, `dram_size`: window that every run must lie in (33-bit arithmetic, clamped to 2^32), else
      the run, and everything after it, is refused: a burst with `fault` is pushed in its place. DRAM is
      checked before SRAM.
    * `halt`: issue nothing more. `room`: the engine can take a burst; `push`: it has to, `burst` is valid;
      `bare`: it has no beats; `addr`: its first byte, unless `bare`; `length`: bytes of the run minus 1.
      `waiting`: a burst waits for `room`.

    A command accepted in cycle t has its first burst walked in cycle t + 1, checked and pushed in cycle
    t + 2; then one burst per cycle through runs and commands.
    """

    def __init__(self, config: TileConfig, ins: Instruction, far: str, near: str):
        self.config, self.ins, self.far, self.near = config, ins, far, near
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(ins))),
                "boot": In(stream.Signature(boot_layout)),
                "ticket": Out(stream.Signature(data.StructLayout({f"sig_{s}": SEM_BITS for s in "abc"}))),
                "dram_base": In(32),
                "dram_size": In(32),
                "room": In(1),
                "push": Out(1),
                "burst": Out(burst_layout(config)),
                "bare": Out(1),
                "addr": Out(32),
                "length": Out(32),
                "halt": In(1),
                "busy": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, cmd = self.config, self.command.payload
        lanes = exact_log2(config.axi_bytes)
        low = exact_log2(config.axi_bytes * config.axi_burst_beats)  # address bits inside the largest burst

        def register(shape=1, name=None):
            """Loaded in every cycle without an instruction: needs no reset."""
            return Signal(shape, name=name, reset_less=True, src_loc_at=1)

        # The instruction.
        valid, null, boot = Signal(), register(), register()
        done, accept = Signal(), Signal()  # it ends in this cycle or has; another may be taken
        pc = register(PC_BITS)
        length, one_burst = register(32), register()  # bytes - 1; they fit `low` bits
        too_long = register()  # for the SRAM
        n1, n1_is_1 = register(32), register()
        far1, far2, near1, near2 = (register(32, name) for name in ("far1", "far2", "near1", "near2"))
        top, far_limit = Signal(33), register(34)  # end of the window; highest legal address of a run
        # The run and the burst.
        run_far, run_near, row_far, row_near = (
            register(32, name) for name in ("run_far", "run_near", "row_far", "row_near")
        )
        # Numbers of the next run of the row and of the next row. They count up: a reset to 2 is free.
        next1, last1, n2, next2, last2 = register(32), register(), register(32), register(32), register()
        addr, rest_fits, first = register(32), register(), register()
        # Bytes of the run from addr on, - 1: `rest` in the lower bits, `length` - (`cuts` - 1) in the upper.
        rest, cuts = register(low), register(32 - low)

        # The program load that waits: its source is far away.
        boot_valid, boot_work = Signal(), register(boot_layout)
        with m.If(boot_valid):
            m.d.sync += boot_valid.eq(~accept)
        with m.Else():
            m.d.sync += [boot_valid.eq(self.boot.valid), boot_work.eq(self.boot.payload)]

        end = self.dram_base + self.dram_size
        m.d.sync += top.eq(Mux(end[32], 1 << 32, end))

        # The burst that is walked.
        top_near = exact_log2(config.sram_bytes)
        past_near = (run_near[:top_near] + length[:top_near])[top_near]
        total = Signal(low + 1)
        m.d.comb += total.eq(addr[:low] + rest)
        last, final = register(), Signal()  # last: registered, because everything that follows hangs on it
        m.d.comb += final.eq(null | (last & last1 & last2))

        # The burst that is checked, a cycle later. Limits are signed; addresses are not.
        walk, free, dead = Signal(), Signal(), Signal()
        pending, checked = Signal(), register(burst_layout(config))
        below, above, refused_near = register(), register(), register()
        checked_near, checked_length = register(32), register(32)
        advance = ~pending | self.room
        with m.If(advance):
            m.d.sync += [
                pending.eq(walk),
                below.eq(addr < self.dram_base),
                above.eq(addr.as_unsigned() > far_limit.as_signed()),
                refused_near.eq(~boot & (too_long | run_near[top_near:].any() | past_near)),
                checked_near.eq(run_near),
                checked_length.eq(length),
                checked.far.eq(addr),
                checked.rot.eq(run_near[:lanes] - run_far[:lanes]),
                checked.borrow.eq(run_near[:lanes] < run_far[:lanes]),
                checked.tail.eq(total[:lanes]),
                checked.beats.eq((total[lanes:low] | (~last).replicate(low - lanes)) - addr[lanes:low]),
                checked.first.eq(first),
                checked.last.eq(last),
                checked.end.eq(final),
                checked.null.eq(null),
                checked.boot.eq(boot),
                checked.pc.eq(pc),
            ]
        refused_far = below | above
        refused = checked.first & ~checked.null & (refused_far | refused_near)
        m.d.comb += [
            free.eq(advance & ~self.halt & ~dead),
            walk.eq(valid & free),
            self.push.eq(pending & self.room & ~self.halt & ~dead),
            self.busy.eq(valid | pending | boot_valid),
            self.waiting.eq(pending & ~self.room),
            self.addr.eq(checked.far),
            self.length.eq(checked_length),
            self.bare.eq(checked.null | (checked.first & (refused_far | refused_near))),
            raw(self.burst).eq(raw(checked)),
            self.burst.far.eq(Mux(refused_near & ~refused_far, checked_near, checked.far)),
            self.burst.near.eq(checked_near),
            self.burst.fault.eq(Mux(refused, Mux(refused_far, Fault.DRAM, Fault.SRAM), Fault.NONE)),
        ]
        with m.If(self.push):
            m.d.sync += dead.eq(refused)

        def fits(address, more):
            """`more` + 1 bytes, few enough for one burst, do not cross the end of the burst at
            `address`."""
            return ~(address[:low] + more[:low])[low]

        use_boot = boot_valid
        far, near = cmd[self.far], cmd[self.near]
        m.d.comb += [
            done.eq(~valid | (walk & final)),
            accept.eq(done & ~self.halt & ~dead),
            self.boot.ready.eq(~boot_valid),
            self.command.ready.eq(accept & ~use_boot & self.ticket.ready),
            self.ticket.valid.eq(accept & ~use_boot & self.command.valid),
            *(self.ticket.payload[f"sig_{s}"].eq(cmd[f"sig_{s}"]) for s in "abc"),
        ]
        start, size, small = Signal(32), Signal(32), Signal()
        m.d.comb += [
            start.eq(Mux(use_boot, Cat(Const(0, 2), boot_work.src[2:]), far)),
            size.eq(Mux(use_boot, boot_work.words << 2, cmd.len)),
            small.eq(~exceeds(size, low)),
        ]

        # Next burst, run, instruction. The run after `final` is the first one of the next command, whether
        # there is one or not: only `valid` waits for that.
        next_far, next_near = Signal(32), Signal(32)
        to_far, to_near = Signal(32), Signal(32)
        one_cut = cuts == length[low:]
        m.d.comb += [
            next_far.eq(Mux(last1, row_far, run_far) + Mux(last1, far2, far1)),
            next_near.eq(Mux(last1, row_near, run_near) + Mux(last1, near2, near1)),
            to_far.eq(Mux(done, start, next_far)),
            to_near.eq(Mux(done, Mux(use_boot, 0, near), next_near)),
        ]
        with m.If(walk):
            with m.If(last):
                m.d.sync += [next1.eq(next1 + 1), last1.eq(next1 == n1)]
                with m.If(last1):
                    m.d.sync += [
                        next1.eq(2),
                        last1.eq(n1_is_1),
                        next2.eq(next2 + 1),
                        last2.eq(next2 == n2),
                    ]
            with m.Else():
                m.d.sync += [
                    addr.eq(Cat(Const(0, low), addr[low:] + 1)),
                    first.eq(0),
                    rest.eq(total),
                    last.eq(Mux(total[low], rest_fits, one_cut)),
                ]
                with m.If(~total[low]):
                    m.d.sync += [cuts.eq(cuts + 1), rest_fits.eq(one_cut)]
        with m.If(done | (walk & last)):
            m.d.sync += [
                addr.eq(to_far),
                run_far.eq(to_far),
                run_near.eq(to_near),
                first.eq(1),
                rest.eq(Mux(done, (size - 1)[:low], length)),
                cuts.eq(1),
                rest_fits.eq(Mux(done, small, one_burst)),
                last.eq(Mux(done, small & fits(start, size - 1), one_burst & fits(next_far, length))),
            ]
        with m.If(done | (walk & last & last1)):
            m.d.sync += [row_far.eq(to_far), row_near.eq(to_near)]
        with m.If(done):
            m.d.sync += [
                # what `take` is in such a cycle, without waiting for `done`
                valid.eq(~self.halt & ~dead & (use_boot | (self.command.valid & self.ticket.ready))),
                boot.eq(use_boot),
                pc.eq(Mux(use_boot, 0, cmd.pc)),
                null.eq(~size.any() | (~use_boot & (~cmd.n1.any() | ~cmd.n2.any()))),
                length.eq(size - 1),
                too_long.eq(exceeds(size, top_near)),
                one_burst.eq(small),
                n1.eq(cmd.n1),
                n1_is_1.eq(use_boot | (cmd.n1 == 1)),
                last1.eq(use_boot | (cmd.n1 == 1)),
                next1.eq(2),
                n2.eq(cmd.n2),
                last2.eq(use_boot | (cmd.n2 == 1)),
                next2.eq(2),
                far1.eq(cmd[f"{self.far}1"]),
                far2.eq(cmd[f"{self.far}2"]),
                near1.eq(cmd[f"{self.near}1"]),
                near2.eq(cmd[f"{self.near}2"]),
                far_limit.eq(top - size),
            ]
        return m


class Beats(wiring.Component):
    """Cuts bursts into beats, one per cycle; a marker without beats (null, fault) passes as one item.

    `first` and `last` of a beat are those of its run. Latency 1, registered output.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {"i": In(stream.Signature(burst_layout(config))), "o": Out(stream.Signature(beat_layout(config)))}
        )

    def elaborate(self, platform):
        m = Module()
        burst, beat = self.i.payload, self.o.payload
        count, begun = Signal(len(burst.beats)), Signal()
        bare = burst.null | (burst.fault != Fault.NONE)
        final = bare | (count == burst.beats)
        advance = ~self.o.valid | self.o.ready
        m.d.comb += self.i.ready.eq(advance & final)
        with m.If(advance):
            m.d.sync += self.o.valid.eq(self.i.valid)
            m.d.sync += [
                *(Cat(beat[f]).eq(Cat(burst[f])) for f in _run_fields(self.config)),
                beat.first.eq(burst.first & ~begun),
                beat.last.eq(burst.last & final),
                beat.end.eq(burst.end & final),
                beat.begin.eq(~begun),
                beat.final.eq(final),
                beat.beats.eq(burst.beats),
            ]
            with m.If(self.i.valid):
                m.d.sync += [count.eq(Mux(final, 0, count + 1)), begun.eq(~final)]
        return m


class Signals(wiring.Component):
    """Sends the semaphore numbers of completed instructions, in order, those that are 0 left out.

    Members: `ticket`, the `count` numbers of each instruction accepted; `complete`, instructions completed
    in this cycle (0 to 2; never more than tickets given); `signal`; `busy`, some ticket is not done. A
    ticket with at most one number takes one cycle.
    """

    def __init__(self, config: TileConfig, count: int):
        self.depth, self.count = fifo_depth(config), count
        super().__init__(
            {
                "ticket": In(stream.Signature(data.ArrayLayout(SEM_BITS, count))),
                "complete": In(2),
                "signal": Out(stream.Signature(SEM_BITS)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        numbers = self.ticket.payload.shape()
        item = data.StructLayout({"numbers": numbers, "any": self.count})  # any: which of them are not 0
        m.submodules.fifo = fifo = Fifo(item, self.depth)
        m.submodules.out = out = SkidBuffer(SEM_BITS)  # `signal.ready` comes from far away
        wiring.connect(m, out.o, wiring.flipped(self.signal))
        # Registered on the way in: a command is taken late in its cycle. `ready` leaves room for two more.
        pending, ready, ticket = Signal(), Signal(), Signal(numbers)
        m.d.sync += [
            ready.eq(fifo.level < self.depth - 3),
            pending.eq(self.ticket.valid & ready),
            raw(ticket).eq(raw(self.ticket.payload)),
        ]
        m.d.comb += [
            self.ticket.ready.eq(ready),
            fifo.i.valid.eq(pending),
            raw(fifo.i.payload.numbers).eq(raw(ticket)),
            fifo.i.payload.any.eq(Cat(ticket[k].any() for k in range(self.count))),
        ]
        due, sent = Signal(bits_for(self.depth + 2)), Signal(self.count)
        todo = Signal(self.count)
        m.d.comb += [
            todo.eq(fifo.o.payload.any & ~sent),
            self.busy.eq(pending | fifo.level.any() | self.signal.valid),
        ]
        # The lowest number is taken; `only`: none is left after it.
        now = lowest(todo)
        only = ~(todo & ~now).any()
        work, pop = Signal(), Signal()
        m.d.comb += [
            work.eq(fifo.o.valid & due.any() & (out.i.ready | ~todo.any())),
            pop.eq(work & only),
            fifo.o.ready.eq(pop),
            out.i.valid.eq(work & todo.any()),
            out.i.payload.eq(onehot_mux(now, [fifo.o.payload.numbers[k] for k in range(self.count)])),
        ]
        with m.If(work):
            m.d.sync += sent.eq(Mux(only, 0, sent | now))
        # One adder: `complete` - `pop`, -1 to 2, in bits.
        low, high = self.complete[0], self.complete[1]
        step = Cat(low ^ pop, high ^ (pop & ~low), pop & ~low & ~high)
        m.d.sync += due.eq(due + step.as_signed())
        return m
