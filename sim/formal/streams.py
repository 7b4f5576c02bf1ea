"""Properties of streams, stated on the interfaces alone."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import Assert, Cover

from hw.glue import raw

__all__ = ["in_order", "stable"]


def stable(m: Module, s, rule=Assert) -> None:
    """Stream rule: once valid, valid and payload hold until taken."""
    waiting, held = Signal(), Signal.like(raw(s.payload))
    m.d.sync += [waiting.eq(s.valid & ~s.ready), held.eq(raw(s.payload))]
    with m.If(waiting):
        m.d.comb += [rule(s.valid), rule(raw(s.payload) == held)]


def in_order(m: Module, i, o, pick, *, depth: int, capacity: int, latency: int) -> None:
    """What `o` gives is what `i` took: nothing lost, duplicated, reordered or made up.

    pick: free input; the item accepted while it is high becomes the tracked token, any item of any execution.
    depth: while fewer items are held, another is accepted. capacity: at most so many items are held. latency:
    a non-empty buffer is valid after so many cycles without output.
    """
    push, pull = i.valid & i.ready, o.valid & o.ready
    held, ahead = Signal(range(capacity + 2)), Signal(range(capacity + 2))
    token, tracked, passed = Signal.like(raw(i.payload)), Signal(), Signal()
    empty_for = Signal(range(latency + 1))
    m.d.sync += [
        held.eq(held + push - pull),
        empty_for.eq(Mux((held != 0) & ~o.valid & (empty_for != latency), empty_for + 1, 0)),
    ]
    with m.If(~tracked & ~passed & push & pick):
        m.d.sync += [tracked.eq(1), token.eq(raw(i.payload)), ahead.eq(held - pull)]
    with m.If(tracked & pull):
        with m.If(ahead == 0):
            m.d.sync += [tracked.eq(0), passed.eq(1)]
        with m.Else():
            m.d.sync += ahead.eq(ahead - 1)
    m.d.comb += [
        Assert(held <= capacity),
        Assert(i.ready | (held >= depth)),
        Assert(~o.valid | (held != 0)),
        Assert(empty_for != latency),
        Assert(~(tracked & (ahead == 0) & o.valid) | (raw(o.payload) == token)),
        Cover(passed & (held == capacity)),
        Cover(tracked & (ahead == capacity - 1) & ~pull),
    ]
