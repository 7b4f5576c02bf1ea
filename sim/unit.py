"""One simulated instance of a Verilated component, driven from Python: ports, clock, streams at C++ speed."""

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SimTimeout", "Stall", "Unit", "split_stall"]

Stall = float | tuple[float, int]


class SimTimeout(RuntimeError):
    """The design did not finish in the cycles that it was given."""


def split_stall(stall: Stall) -> tuple[float, int]:
    """(fraction of cycles stalled, length of each stall) from a fraction or such a pair."""
    fraction, burst = stall if isinstance(stall, tuple) else (stall, 1)
    if not 0 <= fraction <= 1 or burst < 1:
        raise ValueError(f"stall is a fraction in 0..1 and a length >= 1, not {stall!r}")
    return float(fraction), int(burst)


@cache
def _load(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    pointer, u64, i32, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p
    for name, result, *arguments in (
        ("new", pointer, u64, u64, i32, text),
        ("free", None),
        ("cycles", u64),
        ("reset", None, u64),
        ("set", None, i32, text),
        ("get", None, i32, text),
        ("port_bytes", ctypes.c_uint32, i32),
        ("run", u64, u64, i32),
        ("axil", i32, i32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), u64),
        ("stream", i32, i32, i32, i32, i32),
        ("stream_stall", None, i32, ctypes.c_double, ctypes.c_uint32),
        ("stream_push", None, i32, pointer, u64),
        ("stream_want", None, i32, u64),
        ("stream_stamps", u64, i32, pointer),
        ("stream_items", u64, i32),
        ("stream_take", None, i32, pointer, u64),
        ("run_streams", i32, u64),
        ("dram", pointer, ctypes.POINTER(u64)),
        ("dram_stats", pointer, i32),
        ("dram_timing", None, ctypes.POINTER(u64)),
        ("dram_stall", None, i32, ctypes.c_double, ctypes.c_uint32),
        ("dram_fault", None, u64, u64, i32, i32),
    ):
        function = getattr(lib, f"sim_{name}")
        function.restype = result
        function.argtypes = arguments if name == "new" else [pointer, *arguments]
    return lib


class Unit:
    """One simulated instance of a component, reset for two cycles when it is made.

    Port names are flat (``i_payload``); ``i.payload`` is accepted. Values are unsigned, negative ones wrap to
    the port's width. ``stamps[name]`` holds the cycle of each transfer of a stream in the last `run_streams`:
    throughput and latency are differences of these.

    library: from `compile_verilog`; ports: from `parse_ports`; dram_bytes: for ``m_axi_*`` ports;
    seed: of every random choice; waves: file to trace into (the library must have been built for it).
    """

    CHUNK = 1 << 20  # cycles between looks at the keyboard

    def __init__(
        self,
        library: Path,
        ports: Mapping[str, tuple[str, int]],
        *,
        dram_bytes: int = 1 << 20,
        seed: int = 0,
        random_init: bool = False,
        waves: str | Path | None = None,
    ) -> None:
        self.ports = dict(ports)
        self.seed = seed
        self.stamps: dict[str, np.ndarray] = {}
        self._index = {name: number for number, name in enumerate(self.ports)}
        self._streams: dict[str, int] = {}
        self._lib = _load(library)
        self._sim = self._lib.sim_new(
            dram_bytes, seed & (1 << 64) - 1, random_init, os.fsencode(waves) if waves else None
        )
        if not self._sim:
            raise MemoryError(f"no room for {dram_bytes} bytes of DRAM")
        self.reset()

    def close(self) -> None:
        """Free the instance and finish its trace; views of its DRAM are invalid from here on."""
        if getattr(self, "_sim", None):
            self._lib.sim_free(self._sim)
            self._sim = None

    __del__ = close

    @property
    def cycles(self) -> int:
        """Clock cycles since the instance was made, resets included."""
        return self._lib.sim_cycles(self._sim)

    def _port(self, name: str) -> tuple[int, int]:
        name = name.replace(".", "_")
        if name not in self._index:
            raise KeyError(f"no port {name!r}; ports: {', '.join(self.ports)}")
        return self._index[name], self.ports[name][1]

    def set(self, port: str, value: int) -> None:
        """Drive an input until it is set again."""
        index, width = self._port(port)
        if self.ports[port.replace(".", "_")][0] != "input":
            raise ValueError(f"{port} is an output")
        data = int(value) & (1 << width) - 1
        self._lib.sim_set(self._sim, index, data.to_bytes(self._bytes(index), "little"))

    def get(self, port: str) -> int:
        """Settled value of a port, inputs of this cycle included."""
        index, _ = self._port(port)
        data = ctypes.create_string_buffer(self._bytes(index))
        self._lib.sim_get(self._sim, index, data)
        return int.from_bytes(data.raw, "little")

    def _bytes(self, index: int) -> int:
        return self._lib.sim_port_bytes(self._sim, index)

    def reset(self, cycles: int = 2) -> None:
        """Assert rst for some cycles: drops queued items and bus transactions, keeps memory and settings."""
        self._lib.sim_reset(self._sim, cycles)

    def step(self, cycles: int = 1) -> None:
        """Advance the clock."""
        self.run(cycles)

    def run(self, cycles: int, until: str | None = None) -> int:
        """Advance until port ``until`` is not zero, at most ``cycles``; how many passed."""
        stop = -1 if until is None else self._port(until)[0]
        passed = 0
        while passed < cycles:  # in chunks, so that an interrupt from the keyboard is seen
            part = self._lib.sim_run(self._sim, min(self.CHUNK, cycles - passed), stop)
            passed += part
            if part < self.CHUNK:
                break
        return passed

    def _stream(self, name: str) -> tuple[int, int, bool]:
        """(C++ id, payload bytes, is an input) of a stream; the first use hands its ports to the C++ side."""
        name = name.replace(".", "_")
        index = [self._port(f"{name}_{part}")[0] for part in ("valid", "ready", "payload")]
        source = self.ports[f"{name}_valid"][0] == "input"
        if name not in self._streams:
            self._streams[name] = self._lib.sim_stream(self._sim, source, *index)
        return self._streams[name], self._bytes(index[2]), source

    def _pack(self, name: str, items: Any, size: int) -> np.ndarray:
        """Stream items as (n, size) bytes: from integers of any width, or from rows of bytes."""
        width = self._port(f"{name}_payload")[1]
        if isinstance(items, np.ndarray) and items.ndim == 2:
            if items.dtype != np.uint8 or items.shape[1] > size:
                raise ValueError(
                    f"{name}: rows must be uint8 and at most {size} wide, not {items.dtype} {items.shape}"
                )
            data = np.zeros((len(items), size), np.uint8)
            data[:, : items.shape[1]] = items
            spare = 8 * size - width
            high = np.unpackbits(data, axis=1, bitorder="little")[:, width:] if spare else data[:, :0]
            if high.any():
                raise ValueError(f"{name}: rows exceed the payload's {width} bits")
            return data
        if isinstance(items, np.ndarray) and items.dtype.kind in "iu" and size <= 8:
            words = items.astype(np.uint64) & np.uint64((1 << width) - 1)
            return np.ascontiguousarray(words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :size])
        mask = (1 << width) - 1
        joined = b"".join((int(item) & mask).to_bytes(size, "little") for item in items)
        return np.frombuffer(joined, np.uint8).reshape(-1, size)

    def push(self, stream: str, items: Any) -> None:
        """Queue items on an input stream; they go out while cycles pass. Items as in `run_streams`."""
        handle, size, source = self._stream(stream)
        if not source:
            raise ValueError(f"{stream} is an output stream")
        data = np.ascontiguousarray(self._pack(stream, items, size))
        self._lib.sim_stream_push(self._sim, handle, data.ctypes.data, len(data))

    def collect(self, stream: str) -> None:
        """Start to accept an output stream (ready is low until then)."""
        self._stream(stream)

    def pop(self, stream: str, items: int | None = None) -> np.ndarray:
        """Take what an output stream has delivered (at most ``items``), shaped as in `run_streams`."""
        handle, size, source = self._stream(stream)
        if source:
            raise ValueError(f"{stream} is an input stream")
        have = self._lib.sim_stream_items(self._sim, handle)
        count = have if items is None else min(items, have)
        data = np.empty((count, size), np.uint8)
        self._lib.sim_stream_take(self._sim, handle, data.ctypes.data, count)
        return data.view(f"<u{size}").reshape(count) if size <= 8 else data

    def stream_stall(self, stream: str, stall: Stall) -> None:
        """Stall a stream at random: a fraction of all cycles, or (fraction, cycles per stall)."""
        self._lib.sim_stream_stall(self._sim, self._stream(stream)[0], *split_stall(stall))

    def run_streams(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, int],
        *,
        stall: Stall | Mapping[str, Stall] = 0.0,
        max_cycles: int = 1_000_000,
    ) -> dict[str, np.ndarray]:
        """Drive input streams and collect output streams until every expected item has moved.

        inputs: items by stream: integers of any width, an integer array, or uint8 rows (little-endian, n x
        bytes).
        outputs: items to wait for, by stream; more may arrive and stay queued for `pop`.
        stall: for all streams, or by stream (others run free).
        Returns by output stream: unsigned integers (n,) up to 64 bits, else uint8 (n, bytes). Raises
        SimTimeout.
        """
        names = [*inputs, *outputs]
        for name in names:
            self.stream_stall(name, stall.get(name, 0.0) if isinstance(stall, Mapping) else stall)
            self._take_stamps(name)
        for name, items in inputs.items():
            self.push(name, items)
        for name, count in outputs.items():
            self._lib.sim_stream_want(self._sim, self._stream(name)[0], count)
        passed, done = 0, 0
        while not done and passed < max_cycles:
            part = min(self.CHUNK, max_cycles - passed)
            done = self._lib.sim_run_streams(self._sim, part)
            passed += part
        self.stamps = {name: self._take_stamps(name) for name in names}
        if not done:
            state = [
                f"{name} {len(self.stamps[name])}/{n}"
                for name, n in [*((k, len(v)) for k, v in inputs.items()), *outputs.items()]
            ]
            raise SimTimeout(f"after {max_cycles} cycles (seed {self.seed}): {', '.join(state)} items")
        for name in outputs:
            self._lib.sim_stream_want(self._sim, self._stream(name)[0], 0)
        return {name: self.pop(name, count) for name, count in outputs.items()}

    def _take_stamps(self, name: str) -> np.ndarray:
        handle = self._stream(name)[0]
        stamps = np.empty(self._lib.sim_stream_stamps(self._sim, handle, None), np.uint64)
        self._lib.sim_stream_stamps(self._sim, handle, stamps.ctypes.data)
        return stamps.astype(np.int64)
