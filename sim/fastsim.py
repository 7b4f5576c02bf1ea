"""The fast simulator: a Verilated tile, its DRAM and its host in one process, called from Python.

Everything that happens per cycle is C++ (sim/harness.cpp, sim/dram.h); Python rings the bell and reads
results. The same seed gives the same run, cycle for cycle.
"""

import ctypes
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sim.train import TRAINING, train
from sim.trace import INTERVAL, Trace, tile_probes
from sim.unit import SimTimeout, Stall, Unit, split_stall
from sim.verilate import cached_verilog, compile_verilog, parse_ports, register_reset

__all__ = ["BusError", "FastSim", "SimTimeout"]

CHANNELS = ("ar", "r", "aw", "w", "b")
RESPONSES = {"slverr": 2, "decerr": 3}
VIOLATIONS = (
    "AR changed while waiting",
    "AW changed while waiting",
    "W changed while waiting",
    "burst crosses 4 KB",
    "illegal burst",
    "beat wider than the bus",
    "WLAST not at the last beat",
)
AXIL_TIMEOUT = 10_000
MIN_BANDWIDTH = 2.0**-16
PROFILED = 256  # MACs of a tile from which a build that is optimised for what runs most is worth its time
STATS = (  # DramStats of dram.h, field by field
    *("ar", "r_beats", "aw", "w_beats", "w_bytes", "b", "ar_to_r_sum", "ar_to_r_min", "ar_to_r_max"),
    *("r_errors", "b_errors", "violations", "violation_cycle"),
)


class BusError(RuntimeError):
    """A CSR access that was answered with an error, or not at all."""


class FastSim(Unit):
    """A tile between an AXI4 DRAM model and an AXI4-Lite host.

    config: a TileConfig or its name. dram_bytes: rounded up to 4096, addresses from 0, zero at the start;
    an access beyond gets DECERR. latency: cycles from the read address taken to the first beat offered, and
    write_latency (default the same) from the last write beat to its response, both at least 1. stall:
    fraction of cycles that each AXI channel stalls, or (fraction, cycles per stall), or a dict by channel
    ("ar", "r", "aw", "w", "b"). outstanding: bursts that the memory accepts per direction (up to 255).
    bandwidth: beats per cycle, 0 < b <= 1, of each direction for itself (a bucket of one token: evenly spaced
    beats). refresh: (period, cycles) of gaps in which no data beat moves, unless AXI demands it because the
    memory offered it before. waves: trace file, .vcd or .fst. trace: a build that can record what the tile's
    units do (`trace_start`; slower). component: simulate this instead of the config's tile (any component
    with flat m_axi_*, s_axil_*, irq, noc_in_*, noc_out_* ports or some of them). library: a build of this
    very design to use, not the cache's.

    dram: uint8 view of the whole memory, zero-copy, read and write at any time; valid until `close`. numpy
    views of other types (``sim.dram[a:b].view(np.float32)``) work as well.
    """

    def __init__(
        self,
        config: Any = "base",
        dram_bytes: int = 64 << 20,
        latency: int = 40,
        stall: Stall | Mapping[str, Stall] = 0.0,
        seed: int = 0,
        waves: str | Path | None = None,
        *,
        write_latency: int | None = None,
        outstanding: int = 64,
        bandwidth: float = 1.0,
        refresh: tuple[int, int] = (0, 0),
        random_init: bool = False,
        trace: bool = False,
        component: Any = None,
        name: str = "serrano_tile",
        opt: str = "-O3",
        library: Path | None = None,
    ) -> None:
        from hw.export import verilog

        if component is None:
            from hw.config import named

            config = named(config) if isinstance(config, str) else config

            def tile() -> Any:
                from hw.tile import Tile

                return Tile(config)

            text = cached_verilog(tile, name, repr(config))
            text, name = register_reset(text, name, tile_probes(text, name) if trace else None)
        else:
            text = verilog(component, name)
        if library is None:
            kind = Path(waves).suffix.lstrip(".") if waves else ""
            profiled = component is None and config.macs >= PROFILED and not (waves or trace or random_init)
            library = compile_verilog(
                text,
                name,
                waves=kind,
                random_init=random_init,
                opt=opt,
                train=partial(train, config) if profiled else None,
                trained_by=TRAINING.read_text() if profiled else "",
            )
        super().__init__(
            library,
            parse_ports(text, name),
            dram_bytes=dram_bytes,
            seed=seed,
            random_init=random_init,
            waves=waves,
        )
        size = ctypes.c_uint64()
        base = self._lib.sim_dram(self._sim, ctypes.byref(size))
        self.dram: np.ndarray = np.zeros(0, np.uint8)
        if base:
            self.dram = np.ctypeslib.as_array(
                ctypes.cast(base, ctypes.POINTER(ctypes.c_uint8)), (size.value,)
            )
        self.timing(latency, write_latency, outstanding, refresh, bandwidth)
        self.stall(stall)

    def close(self) -> None:
        """Free the instance, its memory and the view of it; finish the trace."""
        self.dram = np.zeros(0, np.uint8)
        super().close()

    def timing(
        self,
        latency: int,
        write_latency: int | None = None,
        outstanding: int = 64,
        refresh: tuple[int, int] = (0, 0),
        bandwidth: float = 1.0,
    ) -> None:
        """Change the memory's timing; parameters as of the class. Also queued bursts obey at once."""
        write_latency = latency if write_latency is None else write_latency
        if latency < 1 or write_latency < 1 or not 1 <= outstanding <= 255:
            raise ValueError(
                f"latency {latency}, write_latency {write_latency} are >= 1, outstanding {outstanding} 1..255"
            )
        period, gap = refresh
        if tuple(refresh) != (0, 0) and not 0 <= gap < period:
            raise ValueError(
                f"refresh = {refresh}: allowed is (0, 0) or (period, cycles), 0 <= cycles < period"
            )
        if not MIN_BANDWIDTH <= bandwidth <= 1:
            raise ValueError(f"bandwidth = {bandwidth}: allowed is {MIN_BANDWIDTH}..1 beats per cycle")
        tokens = round(bandwidth * (1 << 32))
        values = (ctypes.c_uint64 * 6)(latency, write_latency, outstanding, period, gap, tokens)
        self._lib.sim_dram_timing(self._sim, values)

    def stall(self, stall: Stall | Mapping[str, Stall]) -> None:
        """Change the random stalls of the memory's channels; a channel left out of a dict runs free."""
        if isinstance(stall, Mapping) and (unknown := set(stall) - set(CHANNELS)):
            raise ValueError(f"unknown AXI channels {sorted(unknown)}; there are {CHANNELS}")
        for number, channel in enumerate(CHANNELS):
            value = stall.get(channel, 0.0) if isinstance(stall, Mapping) else stall
            self._lib.sim_dram_stall(self._sim, number, *split_stall(value))

    def inject_error(self, start: int, end: int, response: str = "slverr", on: str = "rw") -> None:
        """Answer beats that touch bytes start..end-1 with an error: "slverr" or "decerr", on "r", "w" or
        "rw".

        Such a read beat carries junk, such a write changes nothing. Ranges add up; the first match counts.
        """
        if response not in RESPONSES or on not in ("r", "w", "rw"):
            raise ValueError(f"response {response!r} is one of {list(RESPONSES)}, on {on!r} is r, w or rw")
        self._lib.sim_dram_fault(self._sim, start, end, RESPONSES[response], ("r" in on) + 2 * ("w" in on))

    def clear_errors(self) -> None:
        """Forget all injected errors."""
        self._lib.sim_dram_fault(self._sim, 0, 0, 0, 0)

    def run_until_irq(self, max_cycles: int) -> int:
        """Advance until irq is high; the cycles that took (0 if it is already). Raises SimTimeout."""
        passed = self.run(max_cycles, until="irq")
        if not self.get("irq"):
            raise SimTimeout(f"no interrupt in {max_cycles} cycles (seed {self.seed}); {self.stats()}")
        return passed

    def csr_write(self, address: int, value: int) -> None:
        """Write a 32-bit register over AXI4-Lite; cycles pass until the response. Raises BusError."""
        self._axil(True, address, value)

    def csr_read(self, address: int) -> int:
        """Read a 32-bit register over AXI4-Lite; cycles pass until the response. Raises BusError."""
        return self._axil(False, address, 0)

    def _axil(self, write: bool, address: int, value: int) -> int:
        data = ctypes.c_uint32(value & 0xFFFFFFFF)
        response = self._lib.sim_axil(self._sim, write, address, ctypes.byref(data), AXIL_TIMEOUT)
        if response:
            answer = f"no answer in {AXIL_TIMEOUT} cycles" if response < 0 else f"response {response}"
            raise BusError(f"CSR {'write' if write else 'read'} at {address:#05x}: {answer}")
        return data.value

    def write(self, address: int, data: Any) -> None:
        """Copy an array or bytes into the memory."""
        flat = (
            np.frombuffer(data, np.uint8)
            if isinstance(data, bytes | bytearray)
            else np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        )
        if address < 0 or address + len(flat) > len(self.dram):
            raise ValueError(
                f"{len(flat)} bytes at {address:#x} do not fit into {len(self.dram)} bytes of DRAM"
            )
        self.dram[address : address + len(flat)] = flat

    def read(self, address: int, size: int) -> bytes:
        """Copy bytes out of the memory."""
        if address < 0 or address + size > len(self.dram):
            raise ValueError(f"{size} bytes at {address:#x} are beyond {len(self.dram)} bytes of DRAM")
        return self.dram[address : address + size].tobytes()

    def noc_push(self, items: Any) -> None:
        """Queue flits for the tile's NoC input; integers or byte rows, as in `Unit.run_streams`."""
        self.push("noc_in", items)

    def noc_pop(self, items: int | None = None) -> np.ndarray:
        """Flits that left the tile (ready is low until the first call, which returns none)."""
        return self.pop("noc_out", items)

    def trace_start(self, limit: int, gap: int = 0) -> None:
        """Record at most `limit` intervals from here on (0: stop); parameters as of `sim.trace.Trace`.

        Needs an instance made with trace=True.
        """
        self._traced()
        if limit < 0 or gap < 0:
            raise ValueError(f"limit = {limit}, gap = {gap}: allowed is >= 0")
        self._lib.sim_trace_start.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self._lib.sim_trace_start(self._sim, limit, gap)

    def _traced(self) -> None:
        if "trace_enable" not in self.ports:
            raise ValueError("trace = False: allowed is an instance made with trace=True")

    def trace_take(self) -> Trace:
        """What was recorded since `trace_start` or the last take; what is open now comes with a later one."""
        self._traced()
        state = (ctypes.c_uint64 * 4)()
        take = self._lib.sim_trace_take
        take.argtypes = [ctypes.c_void_p] * 3
        take(self._sim, None, state)
        intervals = np.zeros(state[0], INTERVAL)
        take(self._sim, intervals.ctypes.data, state)
        if state[3]:
            raise RuntimeError(f"{state[3]} completions of instructions that were never issued")
        return Trace(intervals, int(state[1]), int(state[2]) if state[1] else None)

    def stats(self, clear: bool = False) -> dict[str, int]:
        """Bus counters since the last clear, plus cycles and what follows from them.

        cycles is since the start; r_bytes counts whole beats, w_bytes only strobed bytes; ar_to_r_* are
        cycles from the read address taken to the first beat taken, per burst.
        """
        where = self._lib.sim_dram_stats(self._sim, 0)
        values = (ctypes.c_uint64 * len(STATS)).from_address(where) if where else [0] * len(STATS)
        result = {"cycles": self.cycles, **dict(zip(STATS, map(int, values), strict=True))}
        width = next((self.ports[p][1] for p in ("m_axi_rdata", "m_axi_wdata") if p in self.ports), 0)
        result["r_bytes"] = result["r_beats"] * width // 8
        if not result["ar"]:
            result["ar_to_r_min"] = 0
        if clear and where:
            self._lib.sim_dram_stats(self._sim, 1)
        return result

    def check_protocol(self) -> None:
        """Raises BusError when the design broke an AXI4 master rule since the counters were cleared."""
        stats = self.stats()
        broken = [text for bit, text in enumerate(VIOLATIONS) if stats["violations"] >> bit & 1]
        if broken:
            raise BusError(f"AXI4, first in cycle {stats['violation_cycle']}: {', '.join(broken)}")


def waves_path(default: str = "build/waves.vcd") -> str | None:
    """Trace file that the environment asks for: WAVES=1 gives the default, WAVES=<path> that path."""
    value = os.environ.get("WAVES", "")
    return None if value in ("", "0") else default if value == "1" else value
