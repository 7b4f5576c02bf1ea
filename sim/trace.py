"""What the units of a tile did and why they waited: recorded by the fast simulator, shown by Perfetto.

`tile_probes` names the signals inside the exported Verilog, sim/trace.h turns them into intervals while the
simulation runs, `write_perfetto` writes the file that https://ui.perfetto.dev opens.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hw.csr_map import COUNTERS
from hw.isa import LOAD, MATMUL, STORE, THREADS, VECTOR

__all__ = [
    "CAUSES",
    "INSTRUCTION",
    "INTERVAL",
    "RUN",
    "STALL",
    "WAIT",
    "Trace",
    "tile_probes",
    "write_perfetto",
]

INTERVAL = np.dtype(  # Interval of trace.h, field by field
    [("begin", "u8"), ("end", "u8"), ("value", "u4"), ("detail", "u2"), ("kind", "u1"), ("unit", "u1")],
    align=True,
)
RUN, INSTRUCTION, WAIT, STALL = range(4)
UNFINISHED = 0x80
CAUSES: dict[int, tuple[str, ...]] = {  # unit -> causes, bit 0 first; the counter is UNIT_WAIT_CAUSE
    LOAD: ("AR", "R", "SRAM"),
    STORE: ("AW", "W", "SRAM"),
    MATMUL: ("STREAM", "STAT", "DRAIN"),
    VECTOR: ("SOURCE", "SINK"),
}
Labels = Mapping[int, str]
Marks = Mapping[int, tuple[str, int]]


@dataclass(frozen=True)
class Trace:
    """Intervals of a recording, in the order in which they ended; cycles are the simulator's.

    intervals: INTERVAL records, half open. By kind, `value` and `detail` are
        RUN: nothing; from the doorbell to the end of the run, as counter CYCLES counts it.
        INSTRUCTION: cycles queued, pc. It begins when it was issued, or when the one before it in its unit
        was complete, whatever came later (a unit completes in order, so they never overlap; work of a later
        one that overlaps an earlier one's shows as the earlier one's time); ends with its last signal.
        WAIT: semaphore, pc. A thread is blocked.
        STALL: cycles stalled, bits of CAUSES. A unit has work and cannot go on; equal stalls at most `gap`
        cycles apart are one interval.
    An UNFINISHED bit in `kind`: an error or abort ended it.
    dropped: intervals beyond the limit, the first of which began in cycle `cut`.
    """

    intervals: np.ndarray
    dropped: int = 0
    cut: int | None = None

    def of(self, kind: int, unit: int | None = None) -> np.ndarray:
        """The intervals of a kind, and of a unit (thread)."""
        own = self.intervals["kind"] & ~np.uint8(UNFINISHED) == kind
        return self.intervals[own if unit is None else own & (self.intervals["unit"] == unit)]

    def stalled(self, unit: int, cause: str) -> int:
        """Cycles that a unit stalled for a cause: what the counter of that name has counted."""
        stalls = self.of(STALL, unit)
        return int(stalls["value"][stalls["detail"] >> CAUSES[unit].index(cause) & 1 == 1].sum())


def tile_probes(verilog: str, top: str) -> dict[str, tuple[int, str]]:
    """Outputs for the recorder: port -> (width, expression), for `sim.verilate.register_reset`.

    Raises ValueError when the exported Verilog has no such signal.
    """
    body = re.search(rf"^module {re.escape(top)}\b.*?^endmodule", verilog, re.M | re.S)
    modules = re.findall(
        rf"^  \\{re.escape(top)}\.(\w+)(?:\$\d+)?  (\\\S+ |\w+) \(", body[0] if body else "", re.M
    )
    instances = dict(modules)  # a name that is also a port's gets a number behind a dollar

    def inside(module: str, instance: str, port: str) -> str:
        """A port of an instance in a module of the tile. It is looked up: one whose name another signal has
        carries a number."""
        header = re.search(
            rf"^module \\{re.escape(top)}\.{module}(?:\$\d+)?\.{instance}(?:\$\d+)? \(([^;]*)\);",
            verilog,
            re.M,
        )
        found = header and re.search(rf"(?:^|,\s+)({port}|\\{port}\$\d+ )(?:,|$)", header[1])
        if not found:
            raise ValueError(f"no port {port} of {module}.{instance} in the Verilog of {top}")
        return f"tile.{instances[module]}.{instance}.{found[1]}"

    missing = {"csr", "control", "sequencer", "load", "store", "matmul", "vector", "noc"} - set(instances)
    if missing:
        raise ValueError(f"no instances {sorted(missing)} in the Verilog of {top}")
    at = {name: f"tile.{instance}" for name, instance in instances.items()}
    units = range(len(THREADS))
    popped = " & ".join(inside("matmul", "signals_commands", port) for port in ("o__valid", "o__ready"))
    done = [  # instructions that become complete in a cycle; SEND: one is at work
        f"6'd0, {at['load']}.signals.complete",
        f"6'd0, {at['store']}.done_signals.complete",
        f"7'd0, {popped}",
        f"6'd0, {inside('vector', 'writer', 'done')}",
        f"7'd0, {at['noc']}.busy",
    ]
    stalls = [
        f"{at['csr']}.count_{c.name.lower()}"
        for u in CAUSES
        for cause in CAUSES[u]
        for c in COUNTERS
        if c.name == f"{THREADS[u].upper()}_WAIT_{cause}"
    ]

    def packed(fields: Sequence[str]) -> str:
        return f"{{{', '.join(reversed(fields))}}}"

    sequencer = at["sequencer"]
    return {
        "trace_clear": (1, f"{at['csr']}.count_clear"),
        "trace_enable": (1, f"{at['csr']}.count_enable"),
        "trace_issue": (len(units), f"{sequencer}.going"),
        "trace_pc": (16 * len(units), packed([f"2'd0, {sequencer}.go_value_{k}[31:18]" for k in units])),
        "trace_done": (8 * len(units), packed(done)),
        "trace_wait": (len(units), f"{sequencer}.waiting"),
        "trace_wait_pc": (16 * len(units), packed([f"2'd0, {sequencer}.wait_pc_{k}" for k in units])),
        "trace_sem": (8 * len(units), packed([f"2'd0, {sequencer}.wait__{k}__payload[5:0]" for k in units])),
        "trace_stall": (len(stalls), packed(stalls)),
    }


def write_perfetto(
    path: str | Path,
    trace: Trace,
    labels: Labels | Sequence[Labels],
    marks: Marks | Sequence[Marks] | None = None,
    clock_mhz: float = 100.0,
) -> None:
    """Write a trace as Chrome trace-event JSON (ui.perfetto.dev opens it); time 0 is its first cycle.

    One process `tile`; tracks: the runs, and by unit its instructions, the waits of its thread, its stalls.

    labels: pc -> text (`Program.labels`), or one such mapping per run. marks: pc -> (name, modulo): whenever
    a thread issues the unit instruction at pc, the thread's counter of that name goes up by one, modulo
    `modulo`, and is 0 after the first time; "{name}" in the labels of that thread shows it. Both restart with
    each run.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write('{"displayTimeUnit": "ns", "otherData": ')
        file.write(json.dumps({"clock_mhz": clock_mhz, "dropped_intervals": trace.dropped}))
        file.write(', "traceEvents": [\n')
        file.write(",\n".join(map(json.dumps, _events(trace, labels, marks or {}, clock_mhz))))
        file.write("\n]}\n")


def _events(
    trace: Trace, labels: Labels | Sequence[Labels], marks: Marks | Sequence[Marks], clock_mhz: float
) -> Iterator[dict]:
    """Metadata, then the slices of each track in order of time."""
    runs = np.sort(trace.of(RUN)["begin"])
    every = trace.intervals
    zero = int(every["begin"].min()) if len(every) else 0
    if trace.dropped and trace.cut is not None:
        zero = min(zero, trace.cut)

    def time(cycle: int) -> float:
        return round((int(cycle) - zero) / clock_mhz, 6)

    def slice_(track: int, name: str, interval: np.void, **args: object) -> dict:
        begin, end = time(interval["begin"]), time(interval["end"])
        if interval["kind"] & UNFINISHED:
            args["unfinished"] = True
        cycles = int(interval["end"] - interval["begin"])
        return {
            **{"ph": "X", "pid": 1, "tid": track, "name": name, "ts": begin, "dur": round(end - begin, 6)},
            "args": {"cycles": cycles, **args},
        }

    def named(what: str, name: str, track: int | None = None) -> dict:
        where = {} if track is None else {"tid": track}
        return {"ph": "M", "pid": 1, **where, "name": what, "args": {"name": name}}

    yield named("process_name", "tile")
    yield named("thread_name", "runs", 1)
    for number, run in enumerate(np.sort(trace.of(RUN), order="begin")):
        yield slice_(1, f"run {number}", run)
    for unit, thread in enumerate(THREADS):
        track = 10 * (unit + 1)
        for offset, suffix in enumerate(("", " thread waits", " stalls")):
            yield named("thread_name", thread.upper() + suffix, track + offset)
            sort = {"sort_index": track + offset}
            yield {"ph": "M", "pid": 1, "tid": track + offset, "name": "thread_sort_index", "args": sort}
        yield from _thread(trace, unit, track, runs, labels, marks, slice_)
        for stall in np.sort(trace.of(STALL, unit), order="begin"):
            causes = [c for bit, c in enumerate(CAUSES[unit]) if stall["detail"] >> bit & 1]
            yield slice_(track + 2, "+".join(causes), stall, stalled=int(stall["value"]))
    if trace.dropped and trace.cut is not None:
        text = f"cut here: {trace.dropped} more intervals were not recorded"
        yield {"ph": "i", "s": "g", "pid": 1, "tid": 1, "name": text, "ts": time(trace.cut)}


def _thread(trace, unit, track, runs, labels, marks, slice_) -> Iterator[dict]:
    """Instructions and waits of a thread in program order, so that the marks count along."""
    work = np.concatenate([trace.of(INSTRUCTION, unit), trace.of(WAIT, unit)])
    waits = work["kind"] & ~np.uint8(UNFINISHED) == WAIT
    issued = work["begin"] - np.where(waits, 0, work["value"])
    run_of = np.maximum(np.searchsorted(runs, issued, side="right"), 1) - 1
    counters: dict[str, int] = {}
    current = None
    for i in np.lexsort((work["begin"], issued)):
        x, run, pc = work[i], int(run_of[i]), int(work["detail"][i])
        if run != current:
            current, counters = run, {}
            texts = labels if isinstance(labels, Mapping) else labels[run] if run < len(labels) else {}
            counts = marks if isinstance(marks, Mapping) else marks[run] if run < len(marks) else {}
        if not waits[i] and pc in counts:
            name, modulo = counts[pc]
            counters[name] = (counters.get(name, -1) + 1) % modulo
        label = texts.get(pc, f"{THREADS[unit].upper()} at {pc}")
        for name, value in counters.items():
            label = label.replace(f"{{{name}}}", str(value))
        if waits[i]:
            yield slice_(
                track + 1, f"semaphore {x['value']}", x, pc=pc, label=label, semaphore=int(x["value"])
            )
        else:
            yield slice_(track, label, x, pc=pc, label=label, queued=int(x["value"]))
