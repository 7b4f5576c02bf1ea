"""Front end of the matmul unit: checks MATMUL instructions and splits them into the commands of its parts."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Out
from amaranth.utils import ceil_log2, exact_log2

from .config import MX_BLOCK, TileConfig
from .drain import LIMIT_BITS, clamp_limit, drain_layout
from .edge import COUNT_BITS, FP4, FP6, FRACTION_BITS, INT8, PASS_BITS, edge_command
from .glue import exceeds
from .isa import BY_OP, MATMUL_FLAGS, Error, Op
from .ports import SEM_BITS, error_layout, flags_layout, unit_members
from .stationary import loader_layout
from .walk import pass_layout, stationary_layout

__all__ = ["MatmulFrontEnd", "issue_layout", "signal_layout"]

signal_layout = data.StructLayout(
    {"sig_a": SEM_BITS, "sig_b": SEM_BITS, "sig_c": SEM_BITS, "runs": 1, "emits": 1}
)
"""`runs`: the instruction streams blocks; `emits`: it also writes lane words."""


def issue_layout(config: TileConfig) -> data.StructLayout:
    """`exp`: exponent of the product of two blocks with scale 0."""
    return data.StructLayout(
        {
            "n": COUNT_BITS,
            "k": PASS_BITS,
            "psum": ceil_log2(config.psum_depth),
            "first": 1,
            "last": 1,
            "has_scale": 1,
            "exp": signed(10),
            "rows": 6,
        }
    )


class MatmulFrontEnd(wiring.Component):
    """Checks an instruction and splits it into the commands of the parts; one instruction in three cycles.

    Members: `command`; one command stream per part, all of which take theirs in the same cycle; `error`.
    An instruction with n = 0 or k <= 0 only reaches `signals`. k is limited to 65535.
    """

    def __init__(self, config: TileConfig):
        self.config = config
        ins = BY_OP[Op.MATMUL]
        self.parts = {
            "walk_stream": pass_layout,
            "walk_scale": pass_layout,
            "walk_stat": stationary_layout,
            "edge": edge_command,
            "loader": loader_layout,
            "issue": issue_layout(config),
            "drain": drain_layout,
            "signals": signal_layout,
        }
        super().__init__(
            {
                "command": unit_members(config, ins)["command"],
                "error": Out(error_layout),
                **{name: Out(stream.Signature(layout)) for name, layout in self.parts.items()},
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.command.payload
        flags = data.View(flags_layout(MATMUL_FLAGS), c.flags)
        n, rows = c.n[:COUNT_BITS], flags.rows
        has_scale = c.mask[BY_OP[Op.MATMUL].index("scale")]

        # Cycle 1: checks and sums into registers. Cycle 2: may it go? Second sums. Cycle 3: hand out.
        checked = Signal()
        runs, exp = Signal(reset_less=True), Signal(signed(10), reset_less=True)
        lo, hi = (Signal(signed(LIMIT_BITS), name=name, reset_less=True) for name in ("lo", "hi"))
        above, over = (
            Signal(signed(LIMIT_BITS + 1), name=name, reset_less=True) for name in ("above", "over")
        )
        more, chunks = Signal(COUNT_BITS + 1, reset_less=True), Signal(COUNT_BITS, reset_less=True)
        fp_operands = Signal(2)
        illegal = (
            (flags.stream_fmt == 3)
            | (flags.stat_fmt == 3)
            | (rows == 0)
            | (rows > config.columns)
            | (flags.transpose & (flags.stream_fmt != INT8))
        )
        # All sizes are powers of two: a sum's bits tell whether it is greater, without a second carry chain.
        turned = c.n[:6] + flags.offset
        too_long = c.n[6:].any() | exceeds(turned, exact_log2(MX_BLOCK))
        sums = c.psum[:COUNT_BITS] + c.n[:COUNT_BITS]
        too_wide = exceeds(sums, exact_log2(config.psum_depth))
        lane_mask = exact_log2(config.lane_bytes)
        nothing = (c.n == 0) | (c.k == 0) | c.k[31]
        faults = (  # first one holds; all but the first only if the instruction runs
            (c.n[31], Error.ILLEGAL_OPERAND, c.n),
            (illegal, Error.ILLEGAL_OPERAND, c.flags),
            (flags.transpose & too_long, Error.ILLEGAL_OPERAND, c.flags),
            (c.psum[COUNT_BITS:].any() | c.n[COUNT_BITS:].any(), Error.ILLEGAL_OPERAND, c.n),
            (too_wide, Error.ILLEGAL_OPERAND, c.n),
            (c.k[PASS_BITS:].any(), Error.ILLEGAL_OPERAND, c.k),
            (flags.last & c.out[:lane_mask].any(), Error.ALIGNMENT, c.out),
            (flags.last & flags.max & c.max_out[:lane_mask].any(), Error.ALIGNMENT, c.max_out),
        )
        found = Signal(len(faults), reset_less=True)
        bad = found[0] | (runs & found[1:].any())
        m.d.comb += fp_operands.eq((flags.stream_fmt != INT8) + (flags.stat_fmt != INT8))
        saved = FRACTION_BITS[INT8] - FRACTION_BITS[FP6]
        m.d.sync += [
            found.eq(Cat(fault for fault, _, _ in faults)),
            runs.eq(~nothing),
            more.eq(n + 1),
            chunks.eq(
                Mux(
                    flags.transpose,
                    MX_BLOCK,
                    Mux(
                        flags.stream_fmt == FP4,
                        more >> 1,
                        Mux(flags.stream_fmt == FP6, (more + (more << 1)) >> 2, n),
                    ),
                )
            ),
            lo.eq(clamp_limit(c.lo)),
            hi.eq(clamp_limit(c.hi)),
            above.eq(-lo),
            over.eq(-hi),
            exp.eq(
                Mux(
                    fp_operands == 0,
                    -254 - 12,
                    Mux(fp_operands == 1, -254 - 12 + saved, -254 - 12 + 2 * saved),
                )
            ),
        ]

        common = {"n": n, "k": c.k[:PASS_BITS], "pc": c.pc}
        commands = {
            "walk_stream": {"base": c.data, "step": c.data_pass, **common, "n": chunks},
            "walk_scale": {"base": c.scale, "step": c.scale_pass, **common},
            "walk_stat": {
                "stat": c.stat,
                "stat_pass": c.stat_pass,
                "stat_row": c.stat_row,
                "scale": c.stat_scale,
                "scale_pass": c.stat_scale_pass,
                "scale_row": c.stat_scale_row,
                "fmt": flags.stat_fmt,
                "rows": rows,
                "k": common["k"],
                "pc": c.pc,
            },
            "edge": {
                "fmt": flags.stream_fmt,
                "transpose": flags.transpose,
                "offset": flags.offset,
                "n": n,
                "k": common["k"],
            },
            "loader": {"fmt": flags.stat_fmt, "rows": rows, "k": common["k"]},
            "issue": {
                "n": n,
                "k": common["k"],
                "psum": c.psum,
                "first": flags.first,
                "last": flags.last,
                "has_scale": has_scale,
                "exp": exp,
                "rows": rows,
            },
            "drain": {
                "out": c.out,
                "max_out": c.max_out,
                "above": above,
                "over": over,
                "step": flags.step,
                "mask": flags.mask,
                "max": flags.max,
                "max_first": flags.max_first,
                "emit": flags.last,
                "n": n,
                "pc": c.pc,
            },
            "signals": {
                "sig_a": c.sig_a,
                "sig_b": c.sig_b,
                "sig_c": c.sig_c,
                "runs": runs,
                "emits": runs & flags.last,
            },
        }
        ports = {name: getattr(self, name) for name in self.parts}
        go, fail, good, room = Signal(), Signal(), Signal(), Signal()  # room: in every part, and it stays
        failed = self.error.valid
        m.d.comb += [
            good.eq(checked & ~bad & ~failed & room),
            fail.eq(checked & bad),
            self.command.ready.eq(go),
        ]
        m.d.sync += [
            room.eq(Cat(port.ready for port in ports.values()).all()),
            checked.eq(Mux(checked, ~good, self.command.valid & ~go)),
            go.eq(good),
        ]
        for name, port in ports.items():
            wanted = {"signals": 1, "walk_scale": runs & has_scale}.get(name, runs)
            m.d.comb += port.valid.eq(go & wanted)
            m.d.comb += [port.payload[field].eq(source) for field, source in commands[name].items()]
        with m.If(~failed):  # `fail` is late, nothing wide waits for it
            _, code, value = faults[-1]
            m.d.sync += [self.error.valid.eq(fail), self.error.pc.eq(c.pc)]
            m.d.sync += [self.error.code.eq(code), self.error.value.eq(value)]
            for k, (_, code, value) in reversed(list(enumerate(faults[:-1]))):
                with m.If(found[k]):
                    m.d.sync += [self.error.code.eq(code), self.error.value.eq(value)]
        return m
