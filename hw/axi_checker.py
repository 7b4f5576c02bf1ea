"""AXI4 rule checker: watches one master's five channels and tells who broke which rule. For simulation and
for proofs.

Scope: INCR bursts of full-width beats; bursts are answered in the order of their addresses (one ID per
direction, or a memory that never reorders). Source: AMBA AXI and ACE protocol specification, IHI 0022E,
chapters A3 to A5.
"""

from enum import IntEnum

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .axi import BURST_INCR, AxiMaster
from .config import TileConfig

__all__ = ["AxiChecker", "Violation"]


class Violation(IntEnum):
    """Broken rule; the master's first, then the memory's from R_STABLE on."""

    NONE = 0
    AW_STABLE = 1  # valid fell or the payload changed before ready
    W_STABLE = 2
    AR_STABLE = 3
    RESET_VALID = 4  # a valid in the first cycle after reset
    AW_SHAPE = 5  # not INCR, or not of the bus width
    AR_SHAPE = 6
    AW_4K = 7  # the burst crosses a 4096-byte boundary
    AR_4K = 8
    W_LAST = 9  # wlast is not on beat awlen
    W_STROBE = 10  # a strobe below the start address of an unaligned burst
    OUTSTANDING = 11  # more bursts than the checker was built for
    R_STABLE = 16
    B_STABLE = 17
    R_UNASKED = 18  # no read burst is open
    R_LAST = 19  # rlast is not on beat arlen
    R_ID = 20
    B_UNASKED = 21  # no write burst is complete, address and data
    B_ID = 22


class _Queue:
    """Shift queue of `depth` items in registers: `count`, `head`; push and pull in one cycle."""

    def __init__(self, m: Module, name: str, width: int, depth: int, push, item, pull):
        entries = [Signal(width, name=f"{name}_{n}") for n in range(depth)]
        self.count = Signal(range(depth + 2), name=f"{name}_count")
        self.head = entries[0]
        left = self.count - pull
        m.d.sync += self.count.eq(Mux(left + push > depth, depth, left + push))
        for n, entry in enumerate(entries):
            following = entries[n + 1] if n + 1 < depth else entry
            with m.If(push & (left == n)):
                m.d.sync += entry.eq(item)
            with m.Elif(pull):
                m.d.sync += entry.eq(following)


class AxiChecker(wiring.Component):
    """Checks every cycle of an AXI4 port.

    Members: `axi` (all signals of `AxiMaster` as inputs; connect with `watch`), `master`, `memory`: rule
    broken in this cycle by that side (combinational, 0 = none); `ok`: no rule was ever broken; `violation`:
    the first one, held until reset.

    * Up to `outstanding` bursts per direction, counted from the address to the last response, write data
      ahead of its address included.
    * Write data may precede its address; the pair is compared when both are complete.
    """

    def __init__(self, config: TileConfig, outstanding: int = 0):
        self.config = config
        self.outstanding = outstanding or config.axi_outstanding
        super().__init__({
            "axi": In(wiring.Signature({name: Out(member.shape)
                                        for name, member in AxiMaster(config).members.items()})),
            "master": Out(Violation), "memory": Out(Violation),
            "ok": Out(1, init=1), "violation": Out(Violation),
        })

    def watch(self, m: Module, port) -> None:
        """Connects to a port; the signals that it lacks (a read-only or write-only master) stay 0."""
        for name in self.axi.signature.members:
            if hasattr(port, name):
                m.d.comb += getattr(self.axi, name).eq(getattr(port, name))

    def elaborate(self, platform):
        m = Module()
        axi, depth = self.axi, self.outstanding
        size = exact_log2(self.config.axi_bytes)
        broken = {}

        # Valid and payload hold until ready.
        fields = {"aw": ("id", "addr", "len", "size", "burst"), "ar": ("id", "addr", "len", "size", "burst"),
                  "w": ("data", "strb", "last"), "r": ("id", "data", "resp", "last"), "b": ("id", "resp")}
        fire = {}
        for channel, names in fields.items():
            valid, ready = getattr(axi, f"{channel}valid"), getattr(axi, f"{channel}ready")
            payload = Cat(getattr(axi, channel + name) for name in names)
            waiting, held = Signal(name=f"{channel}_waiting"), Signal(len(payload), name=f"{channel}_held")
            m.d.sync += [waiting.eq(valid & ~ready), held.eq(payload)]
            broken[Violation[f"{channel.upper()}_STABLE"]] = waiting & (~valid | (payload != held))
            fire[channel] = valid & ready
        first = Signal(init=1)
        m.d.sync += first.eq(0)
        broken[Violation.RESET_VALID] = first & (axi.awvalid | axi.wvalid | axi.arvalid)

        # Addresses.
        for channel in ("aw", "ar"):
            valid, addr, length = (getattr(axi, channel + name) for name in ("valid", "addr", "len"))
            shape = (getattr(axi, f"{channel}size") == size) & (getattr(axi, f"{channel}burst") == BURST_INCR)
            broken[Violation[f"{channel.upper()}_SHAPE"]] = valid & ~shape
            broken[Violation[f"{channel.upper()}_4K"]] = valid & (addr[size:12] + length >= 4096 >> size)

        # Reads: {len, id} of the open bursts, beats of the oldest.
        r_done = fire["r"] & axi.rlast
        reads = _Queue(m, "reads", 8 + len(axi.arid), depth, fire["ar"], Cat(axi.arlen, axi.arid),
                       r_done & (reads_open := Signal()))
        m.d.comb += reads_open.eq(reads.count != 0)
        beat = Signal(8)
        with m.If(fire["r"]):
            m.d.sync += beat.eq(Mux(axi.rlast, 0, beat + 1))
        broken[Violation.R_UNASKED] = axi.rvalid & ~reads_open
        broken[Violation.R_LAST] = axi.rvalid & reads_open & (axi.rlast != (beat == reads.head[:8]))
        broken[Violation.R_ID] = axi.rvalid & reads_open & (axi.rid != reads.head[8:])

        # Writes: addresses and data of complete bursts meet at the heads of two queues.
        w_beat, w_first = Signal(8), Signal(len(axi.wstrb))
        with m.If(fire["w"]):
            m.d.sync += w_beat.eq(Mux(axi.wlast, 0, w_beat + 1))
            with m.If(w_beat == 0):
                m.d.sync += w_first.eq(axi.wstrb)
        first_strobe = Mux(w_beat == 0, axi.wstrb, w_first)
        pair = Signal()
        addresses = _Queue(m, "addresses", 8 + size + len(axi.awid), depth, fire["aw"],
                           Cat(axi.awlen, axi.awaddr[:size], axi.awid), pair)
        bursts = _Queue(m, "bursts", 8 + len(axi.wstrb), depth, fire["w"] & axi.wlast,
                        Cat(w_beat, first_strobe), pair)
        m.d.comb += pair.eq((addresses.count != 0) & (bursts.count != 0))
        below = Array((1 << n) - 1 for n in range(self.config.axi_bytes))[addresses.head[8:8 + size]]
        # A burst that is too long is seen at its first surplus beat, as far as its address is known.
        surplus = axi.wvalid & (addresses.count != 0) & (bursts.count == 0) & (w_beat > addresses.head[:8])
        endless = axi.wvalid & (w_beat == 255) & ~axi.wlast
        broken[Violation.W_LAST] = (pair & (addresses.head[:8] != bursts.head[:8])) | surplus | endless
        broken[Violation.W_STROBE] = pair & (bursts.head[8:] & below).any()

        # Responses: ids of paired bursts.
        # A response may come right after the last of address and data: the pair then is still at the heads.
        b_done = fire["b"] & ((writes_open := Signal()) | pair)
        pair_id = addresses.head[8 + size:]
        writes = _Queue(m, "writes", len(axi.awid), depth, pair, pair_id, b_done)
        m.d.comb += writes_open.eq(writes.count != 0)
        broken[Violation.B_UNASKED] = axi.bvalid & ~writes_open & ~pair
        broken[Violation.B_ID] = (axi.bvalid & (writes_open | pair)
                                  & (axi.bid != Mux(writes_open, writes.head, pair_id)))
        held = addresses.count + writes.count
        broken[Violation.OUTSTANDING] = ((fire["ar"] & (reads.count == depth))
                                         | (fire["aw"] & (held >= depth))
                                         | (fire["w"] & axi.wlast & (bursts.count == depth)))

        for side, chosen in ((self.master, [v for v in broken if v < Violation.R_STABLE]),
                             (self.memory, [v for v in broken if v >= Violation.R_STABLE])):
            code = Violation.NONE
            for violation in sorted(chosen, reverse=True):
                code = Mux(broken[violation], violation, code)
            m.d.comb += side.eq(code)
        with m.If(self.ok & ((self.master != Violation.NONE) | (self.memory != Violation.NONE))):
            m.d.sync += [
                self.ok.eq(0),
                self.violation.eq(Mux(self.master != Violation.NONE, self.master, self.memory)),
            ]
        return m
