"""The way into the vector unit: checks commands, asks for their scalars, walks through their sources."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import TileConfig
from .fetch import request_layout
from .glue import lowest, onehot_mux
from .isa import BY_OP, VECTOR_FLAGS, VECTOR_FLAGS2, Error, Op
from .ports import PC_BITS, SEM_BITS, command_layout, error_layout, flags_layout
from .vector_writer import COUNT_BITS, writer_layout

__all__ = ["CONSTANTS", "INSTRUCTION", "SCALARS", "VectorFront", "issue_layout"]

LANE_F32, LANE_BF16, F32, BF16, E8M0 = range(5)
"""Source types."""

INSTRUCTION = BY_OP[Op.VECTOR]
SCALARS = ("s0", "s1", "s2", "s4", "s5")
CONSTANTS = {"s0": "c0", "s1": "c1", "s2": "c2", "s4": "c2", "s5": "c3"}

issue_layout = data.StructLayout(
    {
        "flags": flags_layout(VECTOR_FLAGS),
        "mode": 2,
        "red_op": 3,
        "block": 2,
        "use_b": 1,
        "use_d": 1,
        "empty": 1,
        "scalars": len(SCALARS),
        "tag": 1,
        "c0": 32,
        "c1": 32,
        "c2": 32,
        "c3": 32,
        "sig_a": SEM_BITS,
    }
)


def _element_size(kind: Value, columns: int) -> Value:
    return Mux(
        kind == LANE_F32,
        4 * columns,
        Mux(kind == LANE_BF16, 2 * columns, Mux(kind == F32, 4, Mux(kind == BF16, 2, 1))),
    )


class VectorFront(wiring.Component):
    """Starts one instruction after the other, in the order and with the overlap that the architecture allows.

    Members: `command`; `a`, `b`, `d`: requests of the sources, in lockstep, on `b` after those of the scalar
    lane words (each of them a sequence of its own); `issue`, `write`, `finish`: the instruction for the
    stages below, all three when the command is taken; `in_flight`: instructions that are not complete;
    `stop`: take no step; `error`: held; `fetch_pc`: the instruction of the request that was accepted in the
    cycle before. Timing: a command waits for two cycles of checks; it is taken in the cycle after the walk of
    the one before has ended and its scalars are asked for, and its first addresses are on `a`, `b`, `d` in
    the next cycle. `command.ready` is a register.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(INSTRUCTION))),
                "a": Out(stream.Signature(request_layout)),
                "b": Out(stream.Signature(request_layout)),
                "d": Out(stream.Signature(request_layout)),
                "issue": Out(stream.Signature(issue_layout)),
                "write": Out(stream.Signature(writer_layout)),
                "finish": Out(stream.Signature(2 * SEM_BITS)),
                "in_flight": In(2),
                "stop": In(1),
                "error": Out(error_layout),
                "fetch_pc": Out(PC_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, columns = self.config, self.config.columns
        c = self.command.payload
        flags, flags2 = Signal(flags_layout(VECTOR_FLAGS)), Signal(flags_layout(VECTOR_FLAGS2))
        m.d.comb += [flags.eq(c.flags), flags2.eq(c.flags2)]

        def present(name):
            return c.mask[INSTRUCTION.index(name)]

        # One cycle for the checks and everything that is derived from the flags.
        use_b = (flags.x1 == 2) | (flags.x2 == 1) | (flags.x3 == 1) | (flags.x4 == 1)
        use_d = (flags.x2 == 2) | (flags.x3 == 2) | (flags.x4 == 2)
        wanted = {
            "s0": flags.x1 == 3,
            "s1": flags.x2 == 3,
            "s2": flags.x3 == 3,
            "s4": flags.lo | flags.where,
            "s5": flags.hi | flags.where,
        }
        rows = Mux(flags2.rows == 0, columns, flags2.rows)
        lane_end = flags2.lane0 + Mux(flags2.pack, 1, rows)
        bad_flags = (
            (flags.a_type > E8M0)
            | (use_b & (flags.b_type > E8M0))
            | (use_d & (flags.d_type > E8M0))
            | (flags.x3 > 4)
        )
        bad_flags2 = (
            (flags2.red_op > 4)
            | (flags2.block > 2)
            | (rows > columns)
            | ((flags2.out_mode.any() & ~flags2.out_mode.all()) & (lane_end > columns))
        )
        checked, legal, zero = Signal(), Signal(), Signal()
        ones = Signal(3)  # n == 1
        uses_b, uses_d, scalars = Signal(), Signal(), Signal(len(SCALARS))
        m.d.sync += [
            checked.eq(self.command.valid & ~self.command.ready),
            uses_b.eq(use_b),
            uses_d.eq(use_d),
            legal.eq(~bad_flags & ~bad_flags2),
            ones.eq(Cat(c[n] == 1 for n in ("n0", "n1", "n2"))),
            zero.eq((c.n0 == 0) | (c.n1 == 0) | (c.n2 == 0)),
            scalars.eq(Cat(wanted[s] & present(s) for s in SCALARS)),
        ]
        too_many = [c[n][COUNT_BITS:].any() for n in ("n0", "n1", "n2")]
        illegal = Signal(3)
        m.d.sync += illegal.eq(Cat(too_many))

        # Start: the order between instructions, then scalars, then the walk.
        walking, go, tag = Signal(), Signal(), Signal()
        able, accept = Signal(), Signal()
        b = self.b
        m.d.sync += able.eq(
            checked
            & ~accept
            & legal
            & ~illegal.any()
            & ~self.stop
            & self.issue.ready
            & self.write.ready
            & self.finish.ready
            & Mux(flags2.overlap, self.in_flight <= 1, self.in_flight == 0)
        )
        m.d.comb += self.command.ready.eq(accept)
        with m.If(accept):
            m.d.sync += [tag.eq(~tag), walking.eq(~zero)]
        # The scalar to ask for next waits in registers; `behind` are those after it.
        scalar_addr, scalar_bad, pending = Signal(32), Signal(), Signal()
        behind = Signal(len(SCALARS))
        choice = Mux(able, behind, scalars)
        chosen = lowest(choice)
        asking, taken = Signal(), Signal()
        m.d.comb += [
            scalar_bad.eq((scalar_addr & (config.lane_bytes - 1)).any()),
            asking.eq(able & ~walking & pending),
            taken.eq(asking & b.ready & ~scalar_bad),
        ]
        with m.If(~able | taken):
            m.d.sync += [
                scalar_addr.eq(onehot_mux(chosen, [c[name] for name in SCALARS])),
                pending.eq(Mux(able, behind.any(), scalars.any() & ~zero)),
                behind.eq(choice & ~chosen),
            ]

        # The walk.
        left, reload = (
            [Signal(COUNT_BITS, name=f"left{k}", reset_less=True) for k in range(3)],
            [Signal(COUNT_BITS, name=f"n{k}", reset_less=True) for k in range(2)],
        )
        ends, reload_ends = Signal(3), Signal(2)  # whether left == 1 and n == 1
        end0, end1, end2 = ends
        last = end0 & end1 & end2
        # `accept` is a register: in the cycle after the last request of the one before. `go` comes late.
        accepts = able & ~accept & ~pending
        m.d.sync += accept.eq(
            (accepts & ~walking) | (taken & ~accept & ~behind.any()) | (accepts & last & go)
        )
        used = {"a": Const(1), "b": Signal(name="walk_b"), "d": Signal(name="walk_d")}
        addrs, misaligned = {}, {}
        for name in "abd":
            kind = flags[f"{name}_type"]
            size = _element_size(kind, columns)
            addr, low = (
                Signal(32, name=f"addr_{name}", reset_less=True),
                Signal(exact_log2(config.word_bytes), name=f"align_{name}", reset_less=True),
            )
            jumps = [Signal(32, name=f"jump_{name}{k}", reset_less=True) for k in range(3)]
            addrs[name], misaligned[name] = addr, used[name] & (addr & low).any()
            with m.If(accept):
                m.d.sync += low.eq(size - 1)
            with m.If(~walking):  # up to `accept`
                m.d.sync += addr.eq(c[name])
            with m.Elif(go):
                m.d.sync += addr.eq(addr + Mux(end0, Mux(end1, jumps[2], jumps[1]), jumps[0]))
            for k, jump in enumerate(jumps):
                given, n = present(f"{name}{k}"), len(size)
                with m.If(accept & ~given):  # outermost: the register's reset
                    m.d.sync += jump[n:].eq(0)
                with m.Elif(accept):
                    m.d.sync += jump[n:].eq(c[f"{name}{k}"][n:])
                with m.If(accept):
                    m.d.sync += jump[:n].eq(Mux(given, c[f"{name}{k}"][:n], size))
            source = getattr(self, name)
            m.d.comb += [
                source.payload.addr.eq(addr),
                source.payload.last.eq(last),
                source.valid.eq(go & used[name]),
            ]
        bad = Cat(misaligned.values())
        m.d.comb += go.eq(
            walking
            & ~bad.any()
            & ~self.stop
            & Cat(getattr(self, name).ready | ~used[name] for name in "abd").all()
        )
        with m.If(asking):
            m.d.comb += [b.payload.addr.eq(scalar_addr), b.payload.last.eq(1), b.valid.eq(~scalar_bad)]
        pc, pc_before = Signal(PC_BITS), Signal(PC_BITS)
        asked = Signal()
        m.d.sync += [pc_before.eq(pc), asked.eq(asking)]  # a fetcher reports the address of the cycle before
        with m.If(accept):
            m.d.sync += [
                pc.eq(c.pc),
                *(count.eq(c[f"n{k}"]) for k, count in enumerate(reload)),
                reload_ends.eq(ones[:2]),
                used["b"].eq(uses_b),
                used["d"].eq(uses_d),
            ]
        with m.If(~walking):
            m.d.sync += [*(count.eq(c[f"n{k}"]) for k, count in enumerate(left)), ends.eq(ones)]
        with m.Elif(go):
            m.d.sync += left[0].eq(Mux(end0, reload[0], left[0] - 1))
            m.d.sync += ends[0].eq(Mux(end0, reload_ends[0], left[0] == 2))
            with m.If(end0):
                m.d.sync += left[1].eq(Mux(end1, reload[1], left[1] - 1))
                m.d.sync += ends[1].eq(Mux(end1, reload_ends[1], left[1] == 2))
                with m.If(end1):
                    m.d.sync += [left[2].eq(left[2] - 1), ends[2].eq(left[2] == 2), walking.eq(~end2)]

        # Hand the instruction on.
        element = Mux(flags2.pack, Const(4, 8), Const(4 * columns, 8))
        element = Mux(flags2.out_mode == 2, element >> 1, element)
        quantise = flags2.out_mode == 3
        steps = [
            Mux(present(f"o{k}"), c[f"o{k}"], Mux(quantise, default, element))
            for k, default in enumerate((32, 32 * columns, columns))
        ]
        p, q = self.issue.payload, self.write.payload
        m.d.comb += [
            self.issue.valid.eq(accept),
            p.flags.eq(flags),
            p.mode.eq(flags2.out_mode),
            p.red_op.eq(flags2.red_op),
            p.block.eq(flags2.block),
            p.use_b.eq(uses_b),
            p.use_d.eq(uses_d),
            p.empty.eq(zero),
            p.tag.eq(tag),
            p.scalars.eq(scalars & ~zero.replicate(len(SCALARS))),
            p.sig_a.eq(c.sig_a),
            *(p[name].eq(c[name]) for name in ("c0", "c1", "c2", "c3")),
            self.write.valid.eq(accept),
            q.mode.eq(flags2.out_mode),
            q.red_op.eq(flags2.red_op),
            q.block.eq(flags2.block),
            q.zfill.eq(flags2.zfill),
            q.pack.eq(flags2.pack),
            q.lane0.eq(flags2.lane0),
            q.rows.eq(rows),
            q.tag.eq(tag),
            q.empty.eq(zero),
            q.n0.eq(c.n0),
            q.n1.eq(c.n1),
            q.out.eq(c.out),
            q.red.eq(c.red),
            q.qs.eq(c.qs),
            q.pc.eq(c.pc),
            *(q[f"o{k}"].eq(step) for k, step in enumerate(steps)),
            self.finish.valid.eq(accept),
            self.finish.payload.eq(Cat(c.sig_b, c.sig_c)),
        ]

        m.d.comb += self.fetch_pc.eq(Mux(asked, c.pc, pc_before))

        # The first error; of several in one cycle, that of the instruction in front. At most one address is
        # looked at beside an illegal operand: scalars are asked for between walks. That of the walk is late.
        operand, walk_bad = checked & ~(legal & ~illegal.any()), walking & bad.any()
        walk_addr = Mux(misaligned["a"], addrs["a"], Mux(misaligned["b"], addrs["b"], addrs["d"]))
        choices = [
            (scalar_addr, asking & scalar_bad),
            (c.flags, operand & ~legal & bad_flags),
            (c.flags2, operand & ~legal & ~bad_flags),
            (c.n0, operand & legal & illegal[0]),
            (c.n1, operand & legal & illegal[1] & ~illegal[0]),
            (c.n2, operand & legal & ~illegal[0] & ~illegal[1]),
        ]
        is_operand = Signal()
        outside = self.error.value[exact_log2(config.sram_bytes) :].any()
        m.d.comb += self.error.code.eq(
            Mux(is_operand, Error.ILLEGAL_OPERAND, Mux(outside, Error.SRAM_RANGE, Error.ALIGNMENT))
        )
        with m.If(~self.error.valid):
            m.d.sync += [
                self.error.valid.eq(~self.stop & (operand | walk_bad | (asking & scalar_bad))),
                is_operand.eq(operand & ~walk_bad),
                self.error.pc.eq(Mux(walk_bad, pc, c.pc)),
                self.error.value.eq(
                    Mux(
                        walk_bad,
                        walk_addr,
                        onehot_mux([here for _, here in choices], [value for value, _ in choices]),
                    )
                ),
            ]
        return m
