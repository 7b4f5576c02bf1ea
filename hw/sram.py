"""Banked SRAM: single-port banks behind a crossbar with round-robin arbitration in each bank.

Word w lives in bank w mod banks, so a sequential stream visits all banks in turn. Two streams that meet in a
bank part for good: one waits a cycle and is a bank behind from then on. Up to `banks` sequential streams at
one word per cycle therefore lose start-up cycles only (sim/test_sram.py has the figures).
"""

from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from .config import TileConfig
from .glue import RoundRobin, encode, mux, onehot_mux
from .memory import SinglePortRam
from .ports import SramRead, SramWrite

__all__ = ["READ_LATENCY", "Sram"]

READ_LATENCY = 6
"""Cycles from the acceptance of a read to its data when no other port competes: accepted in cycle t, `valid`
in cycle t + 6. Each cycle that the request or an earlier one of its port waits for its bank adds one."""

PATIENCE = 7
"""Grants in a row that the port named `first` may take from a bank while others wait for it."""


class _Turns(wiring.Component):
    """Merges the requests of readers that share a port: `tag` counts the readers.

    A reader is served while it has the turn, which is a register: nothing late hangs on `ready`. The turn
    stays where it is while nobody else asks, and moves on with every request taken while somebody does: one
    request per cycle, round robin. `o.valid` may fall again without having been taken.
    """

    def __init__(self, config: TileConfig, count: int):
        self.bits, self.count = config.sram_addr_bits, count
        address = stream.Signature(self.bits)
        super().__init__({"i": In(address).array(count),
                          "o": Out(stream.Signature(self.bits + ceil_log2(count)))})

    def elaborate(self, platform):
        m = Module()
        turn, number = Signal(self.count, init=1), Signal(ceil_log2(self.count))
        asking = Cat(i.valid for i in self.i)
        m.submodules.next = next_turn = RoundRobin(self.count)
        move = self.o.ready | ~self.o.valid
        m.d.comb += [
            self.o.valid.eq((asking & turn).any()),
            self.o.payload.eq(Cat(onehot_mux(turn, [i.payload for i in self.i]), number)),
            *(i.ready.eq(turn[k] & self.o.ready) for k, i in enumerate(self.i)),
            next_turn.requests.eq(asking & ~turn), next_turn.advance.eq(move),
        ]
        with m.If(move & next_turn.requests.any()):
            m.d.sync += [turn.eq(next_turn.grant), number.eq(encode(next_turn.grant))]
        return m


class _Requests(wiring.Component):
    """Two-entry buffer of the requests of one port, made for a late `grant`.

    Members: `i`, where requests arrive (`i.ready` is a register); `valid`, `addr` of the request in front (of
    a shared port, the reader's number above it), and `bank`, its bank one-hot (0 without a request), all
    registers; `grant` takes it. Of a write port, `store` is its data and strobes: the wide part stays where
    it arrived, so that `grant` moves an address and a pointer only.
    """

    def __init__(self, config: TileConfig, request: stream.Signature, wide: int = 0):
        self.config, self.wide = config, wide
        shape = request.members["payload"].shape
        self.addr_bits = config.sram_addr_bits if wide else shape
        super().__init__({
            "i": In(request), "grant": In(1), "valid": Out(1),
            "addr": Out(self.addr_bits), "bank": Out(config.sram_banks), "store": Out(wide),
        })

    def elaborate(self, platform):
        m = Module()
        payload = self.i.payload
        addr = payload.addr if self.wide else payload
        bank = Cat(addr[:exact_log2(self.config.sram_banks)] == b for b in range(self.config.sram_banks))
        full, skid_addr, skid_bank = Signal(), Signal.like(self.addr), Signal.like(self.bank)
        m.d.comb += self.i.ready.eq(~full)
        with m.If(~self.valid | self.grant):
            with m.If(full | self.i.valid):  # an address at rest toggles nothing
                m.d.sync += self.addr.eq(Mux(full, skid_addr, addr))
            m.d.sync += [
                self.valid.eq(full | self.i.valid), full.eq(0),
                self.bank.eq(Mux(full, skid_bank, bank & self.i.valid.replicate(len(bank)))),
            ]
        with m.Elif(self.i.valid & ~full):
            m.d.sync += [skid_addr.eq(addr), skid_bank.eq(bank), full.eq(1)]
        if self.wide:
            put, take = Signal(), Signal()  # slot of the next request, slot of the one in front
            slots = [Signal(self.wide, name=f"slot_{k}", reset_less=True) for k in range(2)]
            push = self.i.valid & ~full
            m.d.sync += [put.eq(put ^ push), take.eq(take ^ (self.valid & self.grant))]
            for k, slot in enumerate(slots):
                with m.If(~full & (put == k)):  # whether or not anything arrives: `i.valid` comes late
                    m.d.sync += slot.eq(Cat(payload.data, payload.strb))
            m.d.comb += self.store.eq(Mux(take, slots[1], slots[0]))
        return m


class Sram(wiring.Component):
    """`config.sram_banks` single-port banks; every port may move one word per cycle.

    Members: one `SramRead` port for each name in `reads`, one `SramWrite` port for each in `writes`
    (directions seen from the SRAM); `count_wait`: bit p is high in each cycle in which a request of port p
    (reads first, then writes) waits for its bank.

    * A tuple of names in `reads` is one port of the crossbar that these readers share: one word per cycle for
      all of them, round robin. `ready` tells which of them has the turn (it is not a register, but next to
      one); a reader that finds the turn elsewhere waits a cycle more.
    * `first` names a port that goes before all others in every bank (the array's stream, which needs a word
      in every cycle and can never catch up; everybody else has slack), for at most PATIENCE grants in a row
      while others wait.
    * Within a port, requests are served in order; across ports, in the order in which the banks grant them. A
      port waits for at most ports - 1 grants of its bank.
    * A read returns every write that was no longer `busy` when the read was accepted, and every write granted
      before it.
    * Requests are registered on arrival (`req.ready` of a port that is not shared is a register); `valid` and
      `data` are registers too. Data keeps its value until the next response of the port.
    * Pipeline: request register | grant | multiplexer of the bank's operands | bank access | bank output
      register | port multiplexer and its register.
    * Reset drops requests and responses in flight; contents stay.
    """

    def __init__(self, config: TileConfig, reads: Sequence[str | tuple[str, ...]], writes: Sequence[str],
                 first: str | None = None):
        self.groups = tuple((names,) if isinstance(names, str) else tuple(names) for names in reads)
        names = [name for group in self.groups for name in group] + list(writes)
        alone = [group[0] for group in self.groups if len(group) == 1] + list(writes)
        if first is not None and first not in alone:
            raise ValueError(f"first = {first!r}: allowed is one of {', '.join(alone)}")
        self.config, self.first = config, first
        self.reads, self.writes = tuple(names[:len(names) - len(writes)]), tuple(writes)
        super().__init__({
            **{name: In(SramRead(config)) for name in self.reads},
            **{name: In(SramWrite(config)) for name in self.writes},
            "count_wait": Out(len(self.groups) + len(self.writes)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        bank_bits, addr_bits = exact_log2(config.sram_banks), config.sram_addr_bits
        n_reads = len(self.groups)
        ports = [*self.groups, *((name,) for name in self.writes)]
        names = ["_".join(group) for group in ports]

        # Request registers.
        requests = []
        for group, name in zip(self.groups, names):
            inputs = [getattr(self, member).req for member in group]
            if len(group) == 1:
                source = wiring.flipped(inputs[0])
            else:
                m.submodules[f"{name}_turns"] = turns = _Turns(config, len(group))
                for k, req in enumerate(inputs):
                    wiring.connect(m, wiring.flipped(req), turns.i[k])
                source = turns.o
            m.submodules[f"{name}_request"] = request = _Requests(
                config, stream.Signature(addr_bits + ceil_log2(len(group))))
            wiring.connect(m, request.i, source)
            requests.append(request)
        for name in self.writes:
            port = getattr(self, name)
            m.submodules[f"{name}_request"] = request = _Requests(
                config, SramWrite(config).members["req"].signature, 9 * config.word_bytes)
            wiring.connect(m, request.i, wiring.flipped(port.req))
            m.d.comb += port.busy.eq(request.valid)  # a granted write is ahead of every read granted later
            requests.append(request)

        # Grants: one port per bank, one bank per port. This is the longest path of the crossbar, so what can
        # be known early is: requests are one-hot by bank, and the turns are taken as if nothing were urgent.
        grants = []
        for b in range(config.sram_banks):
            m.submodules[f"turns_{b}"] = turns = RoundRobin(len(ports))
            asking = Signal(len(ports), name=f"asking_{b}")
            m.d.comb += asking.eq(Cat(request.bank[b] for request in requests))
            if self.first is None:
                m.d.comb += turns.requests.eq(asking)
                grants.append(turns.grant)
                continue
            index = names.index(self.first)
            others = asking & ~(1 << index)
            passed_over = Signal(range(PATIENCE), name=f"passed_over_{b}")
            urgent, patient = Signal(name=f"urgent_{b}"), Signal(name=f"patient_{b}", init=1)
            m.d.comb += [
                urgent.eq(asking[index] & patient),
                turns.requests.eq(others), turns.advance.eq(~urgent),
            ]
            m.d.sync += [passed_over.eq(0), patient.eq(1)]
            with m.If(urgent & others.any()):
                m.d.sync += [passed_over.eq(passed_over + 1), patient.eq(passed_over != PATIENCE - 1)]
            grants.append((turns.grant & ~urgent.replicate(len(ports))) | (urgent << index))
        granted = Signal(len(ports))
        m.d.comb += granted.eq(Cat(Cat(grant[p] for grant in grants).any() for p in range(len(ports))))
        for p, request in enumerate(requests):
            m.d.comb += [request.grant.eq(granted[p]), self.count_wait[p].eq(request.valid & ~granted[p])]

        # Operands of each port, for the bank that grants it; without a grant nobody looks at them.
        rows, stores = [], []
        for p, request in enumerate(requests):
            row = Signal(config.sram_addr_bits - bank_bits, name=f"row_{p}")
            m.d.sync += row.eq(request.addr[bank_bits:addr_bits])
            rows.append(row)
            if p >= n_reads:
                store = Signal(len(request.store), name=f"store_{p}")
                m.d.sync += store.eq(request.store)
                stores.append(store)

        # Banks.
        words = []
        for b in range(config.sram_banks):
            m.submodules[f"bank_{b}"] = bank = SinglePortRam(width=8 * config.word_bytes,
                                                             depth=config.bank_words)
            select = Signal(len(ports), name=f"select_{b}")
            m.d.sync += select.eq(grants[b])
            # The registers of a bank's inputs have the way to its block RAMs, which lie far apart, for
            # themselves.
            en, we = Signal(name=f"en_{b}"), Signal(name=f"we_{b}")
            row = Signal.like(bank.addr, name=f"bank_row_{b}")
            m.d.sync += [en.eq(select.any()), we.eq(select[n_reads:].any()), row.eq(onehot_mux(select, rows))]
            m.d.comb += [bank.en.eq(en), bank.we.eq(we), bank.addr.eq(row)]
            if stores:
                writer = Signal(ceil_log2(len(stores)), name=f"writer_{b}")
                store = Signal.like(stores[0], name=f"bank_store_{b}", reset_less=True)
                m.d.sync += [writer.eq(encode(grants[b][n_reads:])), store.eq(mux(writer, stores))]
                m.d.comb += Cat(bank.wdata, bank.wstrb).eq(store)
            word, fresh = Signal(8 * config.word_bytes, name=f"word_{b}"), Signal(name=f"fresh_{b}")
            m.d.sync += fresh.eq(en & ~we)
            with m.If(fresh):
                m.d.sync += word.eq(bank.rdata)
            words.append(word)

        # Responses: each port remembers which bank answers in which cycle, and whom.
        for p, group in enumerate(self.groups):
            addr = requests[p].addr
            valid, source = granted[p], Cat(addr[:bank_bits], addr[addr_bits:])
            for stage in range(READ_LATENCY - 2):
                next_valid, next_source = (Signal(name=f"valid_{p}_{stage}"),
                                           Signal(len(source), name=f"source_{p}_{stage}"))
                m.d.sync += [next_valid.eq(valid), next_source.eq(source)]
                valid, source = next_valid, next_source
            word = Signal(8 * config.word_bytes, name=f"data_{p}")
            with m.If(valid):
                m.d.sync += word.eq(mux(source, words))
            for k, name in enumerate(group):
                port = getattr(self, name)
                mine = source[bank_bits:] == k if len(group) > 1 else 1
                m.d.sync += port.valid.eq(valid & mine)
                m.d.comb += port.data.eq(word)
        return m
