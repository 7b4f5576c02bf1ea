"""A compiled model on a device: prefill, decode steps and encoding of token ids, with what they cost."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from golden.arith import fadd
from golden.spec import ModelParams, ModelSpec
from hw.config import TileConfig, named

from .cost import Need, decode_need, layer_need, prefill_need
from .device import Device, MachineDevice
from .layout import align, lane_words, unlane
from .model_decode import ModelDecode
from .model_image import ModelImage
from .model_prefill import ModelPrefill, best_chunk
from .stats import Stats

UNWRITTEN = 0xFFFFFFFF
DRAM_BYTES = 1 << 30
ADDRESSES = 1 << 32
"""Bytes that the tile can address."""
BACKENDS = ("rtl", "golden")
BOARDS = ("uart:PORT[:BAUD]", "mmap:REGISTERS,MEMORY")
"""Backends on hardware: docs/boards.md."""


def build_image(
    config: TileConfig,
    spec: ModelSpec,
    params: ModelParams,
    *,
    users: int = 1,
    chunk: int | None = None,
    dram_bytes: int = DRAM_BYTES,
) -> ModelImage:
    """The DRAM image with the largest prefill that fits; where none does, prompts go through decode.

    MemoryError and ValueError name what does not fit, with sizes.
    """
    check_dram(spec, params, users, dram_bytes)
    try:
        most = best_chunk(config, spec, params)
        if chunk is not None and (chunk % 32 or not 0 <= chunk <= most):
            raise ValueError(f"chunk = {chunk}: allowed is a multiple of 32, 0..{most}")
        chunk = most if chunk is None else chunk
        image = ModelImage(config, spec, params, users=users, chunk=chunk, dram_bytes=dram_bytes)
    except (MemoryError, ValueError) as error:
        kind = MemoryError if isinstance(error, MemoryError) else ValueError  # not numpy's subclass
        raise kind(f"model {spec.name} on config {config.name}: {error}") from None
    if not spec.decoder and not chunk:
        raise ValueError(
            f"model {spec.name}: an encoder needs prefill, and no chunk of 32 tokens fits config "
            f"{config.name}{': ' + image.no_prefill if image.no_prefill else ''}"
        )
    return image


def check_dram(spec: ModelSpec, params: ModelParams, users: int, dram_bytes: int) -> None:
    """MemoryError, before any image is made, when weights, tables and KV caches alone are too large."""
    if dram_bytes > ADDRESSES:
        raise MemoryError(f"a DRAM of {dram_bytes} bytes: allowed is at most {ADDRESSES}, 32-bit addresses")
    s = spec.block
    layers = [layer_need(s, p, [0] * max(1, s.experts), 0).read for p in params.layers]
    weights = sum(layers) + (params.head.needed_bytes if params.head else 0)
    tables = 2 * spec.vocab * s.hidden
    cache = users * spec.layers * s.max_tokens * 2 * (32 * s.kv_words + s.kv_scales)
    if weights + tables + cache > dram_bytes:
        raise MemoryError(
            f"model {spec.name}: weights of {weights} bytes, embedding of {tables}, KV cache of {cache} "
            f"({users} x {s.max_tokens} positions) do not fit a DRAM of {dram_bytes} bytes"
        )


def check_backend(backend: str) -> None:
    """ValueError unless it is one of BACKENDS or BOARDS."""
    kind, _, where = backend.partition(":")
    if backend in BACKENDS or kind == "mmap" and len([w for w in where.split(",") if w]) == 2:
        return
    port, _, baud = where.rpartition(":")
    if kind == "uart" and where and (not port or baud.isdigit() and int(baud)):
        return
    raise ValueError(f"backend {backend!r}: allowed is one of {', '.join(BACKENDS + BOARDS)}")


def open_device(backend: str, config: TileConfig, dram_bytes: int, **options: Any) -> Device:
    """A device by name; options as its class takes them.

    'golden' (numpy), 'rtl' (the Verilated tile), 'uart:PORT[:BAUD]' or 'mmap:REGISTERS,MEMORY' (a board).
    """
    check_backend(backend)
    if backend == "golden":
        return MachineDevice(config, **options)
    if backend == "rtl":
        from sim.tile import RtlDevice  # sim depends on sw, not the other way round

        device: Device = RtlDevice(config, dram_bytes=dram_bytes, **options)
        return device
    kind, _, where = backend.partition(":")
    if kind == "uart":
        from .uart import BAUD, UartDevice

        port, _, baud = where.rpartition(":")
        return UartDevice(config, port or where, int(baud) if port else BAUD, dram_bytes, **options)
    from .mapped import MappedDevice

    registers, memory = where.split(",")
    return MappedDevice(config, registers, memory, dram_bytes, **options)


class Engine:
    """A model's programs on a device. Positions, users and lengths are the caller's to keep.

    ValueError or MemoryError says what does not fit: the DRAM, the SRAM, the instruction memory.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: ModelParams,
        *,
        config: TileConfig | str = "base",
        backend: str = "rtl",
        users: int = 1,
        chunk: int | None = None,
        dram_bytes: int = DRAM_BYTES,
        **options: Any,
    ):
        """chunk: tokens of a prefill, a multiple of 32; None: the most that fits, 0: no prefill.

        options go to the device.
        """
        self.config = named(config) if isinstance(config, str) else config
        self.spec, self.params = spec, params
        self.image = build_image(self.config, spec, params, users=users, chunk=chunk, dram_bytes=dram_bytes)
        self.programs: dict[str, Any] = {}
        """name -> ModelPrefill or ModelDecode, of those that were needed so far."""
        self.stats = Stats(self.config)
        self._loaded = ""
        self._runs: list[str] = []
        self._words: dict[str, int] = {}
        if self.image.chunk:
            self.programs["prefill"] = ModelPrefill(self.image)
        if spec.decoder:
            self.programs["decode"] = ModelDecode(self.image)
        size = align(self.image.dram.top, 4096)
        self.device = open_device(backend, self.config, size, **options)
        self.device.attach(self.image.dram.data[:size])
        for name in self.programs:
            self._install(name)

    @property
    def reach(self) -> int:
        """Tokens of a text that prefill can do: the keys that its buffers hold."""
        return self.programs["prefill"].cap if "prefill" in self.programs else 0

    def _install(self, name: str) -> None:
        words = self.programs[name].program.image()
        self.device.write_dram(self.image.program_at[name], words)
        self._words[name] = len(words)

    def _start(self, name: str, args: Sequence[int]) -> None:
        """The program that is in the tile already is not loaded again."""
        words = 0 if name == self._loaded else self._words[name]
        self._loaded = ""
        self.device.start(self.image.program_at[name], words, args)
        self._loaded = name
        self._runs.append(name)

    def write_trace(self, path: str | Path) -> None:
        """What the units did since the last call, for ui.perfetto.dev. The device has trace=True."""
        if not hasattr(self.device, "take_trace"):
            raise ValueError("a trace of a device without one: allowed is backend 'rtl' with trace=True")
        from sim.trace import write_perfetto

        labels = {name: p.labels for name, p in self.programs.items()}
        marks = {name: p.marks for name, p in self.programs.items()}
        runs, self._runs = self._runs, []
        trace = self.device.take_trace()
        clock = self.config.clock_mhz
        write_perfetto(path, trace, [labels[n] for n in runs], [marks[n] for n in runs], clock)

    # ---- prefill

    def prefill(self, user: int, ids: Sequence[int], first: int, types: Sequence[int] | None = None) -> None:
        """One chunk: 1..chunk tokens at positions first.. of a user; first is a multiple of 32.

        types: rows of the table of token types, where the model has one; None: all 0.
        """
        p, n = self.params, len(ids)
        x = p.embedding[np.asarray(ids)]
        if p.positions is not None:
            x = fadd(x, p.positions[first : first + n])
        if p.token_types is not None:
            x = fadd(x, p.token_types[np.zeros(n, int) if types is None else np.asarray(types)])
        self.device.write_dram(self.image.x_in, lane_words(x, self.config.columns))
        self._start("prefill", (first, n, user))
        try:
            while not self.device.poll(100_000):
                pass
        except KeyboardInterrupt:  # the session goes on
            self.device.abort()
            self._loaded = ""
            raise
        run = self.device.finish()
        self.stats.prefill.add(run, prefill_need(self.spec, p, first, n), n)

    def encode(self, ids: Sequence[int], types: Sequence[int] | None = None) -> np.ndarray:
        """An encoder's output (tokens, hidden) float32. types: as in prefill."""
        if len(ids) > self.image.chunk:
            raise ValueError(
                f"{len(ids)} tokens: allowed is at most {self.image.chunk}, an encoder's one chunk "
                f"(config {self.config.name})"
            )
        self.prefill(0, ids, 0, types)
        groups, hidden = -(-len(ids) // self.config.columns), self.spec.block.hidden
        raw = self.device.read_dram(self.image.x_out, groups * hidden * self.config.lane_bytes)
        return unlane(raw.view(np.float32).reshape(groups, hidden, -1), len(ids))

    # ---- decode

    def decode(
        self, inputs: dict[int, tuple[int, int]], steps: int = 1, logits: bool = False
    ) -> Generator[list[int], None, None]:
        """Ring for `steps` greedy steps; yields every user's token of each step as soon as it is in DRAM.

        inputs: user -> token and its position; the other users decode token 0 from position 0, and what comes
        out means nothing. Closing the iterator early stops the tile. logits: read them before the next step.
        """
        c, image = self.config.columns, self.image
        name = "logits" if logits else "decode"
        if name not in self.programs:
            self.programs[name] = ModelDecode(image, logits=logits)
            self._install(name)
        state = np.zeros((2, c), np.uint32)
        for user, pair in inputs.items():
            state[:, user] = pair
        self.device.write_dram(image.state_at, state)
        self.device.write_dram(image.chosen_at, np.full(2 * c * steps, UNWRITTEN, np.uint32))
        needs = [
            decode_need(self.spec, self.params, [p + i for _, p in inputs.values()], logits)
            for i in range(steps)
        ]
        patience = int(min(50_000, max(1_000, needs[0].bound(self.config.macs, self.config.axi_bytes) / 8)))
        self._start(name, (steps,))
        done, ended, run = 0, False, None
        try:
            while done < steps:
                raw = self.device.read_dram(image.chosen_at + done * 8 * c, 8 * c)
                row = raw.view(np.uint32).reshape(2, c)[:, : image.users]
                if (row != UNWRITTEN).all():
                    if run is None and (ended or steps == done + 1):
                        run = self.device.finish()
                    done += 1
                    yield self._tokens(row)
                elif ended:
                    raise RuntimeError(f"decode wrote {done} of {steps} tokens")
                else:
                    ended = self.device.poll(patience)
        except (GeneratorExit, KeyboardInterrupt):  # the session goes on
            if run is None:
                run, self._loaded = self.device.abort(), ""
            raise
        finally:
            if run is not None:
                self.stats.decode.add(run, sum(needs[:done], Need()), done * len(inputs), done)

    def _tokens(self, row: np.ndarray) -> list[int]:
        """(2, users) panel numbers and features within them -> token ids."""
        assert self.image.head is not None
        width = self.image.head.panels[0].n
        return [int(panel) * width + int(feature) for panel, feature in row.T]

    def logits(self, user: int) -> np.ndarray:
        """(vocab,) float32 of the last step, which was decoded with logits=True."""
        address = self.image.logits_at + user * self.image.logit_row
        return self.device.read_dram(address, 4 * self.spec.vocab).view(np.float32)
