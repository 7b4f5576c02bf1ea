"""What a model takes on a tile, as text: tensors, DRAM, SRAM, programs, predicted cycles; what does not fit.

The prediction for a layer is the largest of: blocks that the array streams, one per cycle, of whole panels
for whole groups of C rows; whole panels and words read over the port; the same written. It leaves out all
waiting: measured cycles are some percent more, and far more where a layer is too small to hide the vector
unit's work behind its weights. The bound is that of the model's own sizes (sw/cost.py).
"""

from collections.abc import Sequence
from typing import Any

from golden.spec import ModelParams, ModelSpec
from hw.config import TileConfig
from hw.isa import ENTRY_WORDS, THREADS

from .cost import Need, decode_need, prefill_need
from .engine import DRAM_BYTES, build_image
from .layout import Panel, align
from .model_decode import ModelDecode
from .model_image import Linear, ModelImage
from .model_prefill import ModelPrefill

FORMATS = ("MXINT8", "MXFP6", "MXFP4")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Aligned lines: numbers to the right, text to the left."""
    cells = [list(header), *([str(c) for c in row] for row in rows)]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  " + "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric)).rstrip()
        for row in cells
    ]


def _passes(linear: Linear | None) -> int:
    """Blocks that one group of rows streams."""
    return 0 if linear is None else sum(p.n * p.k for p in linear.panels)


class Prediction:
    """Predicted cycles of the layers and of the head, for one image."""

    def __init__(self, image: ModelImage):
        self.image = image
        self.attention = [image.wk, image.wv, image.wq, image.wo, *([image.router] if image.router else [])]
        self.fixed_bytes = image.const_a.bytes + image.const_b.bytes + sum(w.bytes for w in self.attention)
        self.kv_bytes = 2 * (32 * image.block.kv_words + image.block.kv_scales)
        """Keys and values of one token and layer."""

    def _row_bytes(self, element: int) -> int:
        """The row of x and the row of the RoPE table that a token reads."""
        s = self.image.block
        return element * s.hidden + (0 if s.rope == "none" else 4 * s.head_dim)

    def _cycles(self, blocks: int, read: int, written: int) -> int:
        port = self.image.config.axi_bytes
        return max(blocks, -(-read // port), -(-written // port))

    def _experts(self, tokens: int) -> int:
        """Experts that are streamed: the chosen ones for one token, all for several."""
        s = self.image.block
        return max(1, s.top_k if tokens == 1 else s.experts)

    def _attend(self, keys: int) -> int:
        """Blocks of one group of rows: scores, then values; keys is a multiple of 32."""
        s = self.image.block
        return keys * s.slices + keys // 32 * s.head_dim

    def _window(self, layer: int) -> int:
        return self.image.spec.windows[layer] or self.image.spec.context

    def decode_layer(self, layer: int, position: int) -> int:
        """One step of all users at a position."""
        im = self.image
        keys = align(min(position + 1, self._window(layer) + 31), 32)
        experts = self._experts(im.users)
        blocks = sum(map(_passes, self.attention)) + experts * (_passes(im.gate_up) + _passes(im.down))
        blocks += im.users * len(im.query_groups) * self._attend(keys)
        read = self.fixed_bytes + experts * im.expert_bytes + im.users * keys * self.kv_bytes
        return self._cycles(blocks, read, im.users * self.kv_bytes)

    def decode(self, position: int) -> int:
        head = self.image.head
        layers = sum(self.decode_layer(i, position) for i in range(self.image.spec.layers))
        rows = self.image.users * self._row_bytes(2 * (2 if self.image.params.positions is not None else 1))
        own = self._cycles(0, rows + self.image.final.bytes, 0)
        return layers + own + (self._cycles(_passes(head), head.bytes, 0) if head else 0)

    def prefill_layer(self, layer: int, tokens: int) -> int:
        """The first chunk, `tokens` tokens. Of a decoder's last layer only keys and values."""
        im, s, c = self.image, self.image.block, self.image.config.columns
        if s.causal and layer == im.spec.layers - 1:
            blocks = -(-tokens // c) * (_passes(im.wk) + _passes(im.wv))
            return self._cycles(blocks, im.const_a.bytes + im.wk.bytes + im.wv.bytes, tokens * self.kv_bytes)
        groups, experts = -(-tokens // c), max(1, s.experts)
        blocks = sum(map(_passes, self.attention)) + experts * (_passes(im.gate_up) + _passes(im.down))
        blocks *= groups
        for g in range(groups):
            last = min((g + 1) * c, tokens) if s.causal else tokens
            blocks += s.heads * self._attend(align(min(last, self._window(layer) + c), 32))
        read = self.fixed_bytes + experts * im.expert_bytes
        return self._cycles(blocks, read, tokens * self.kv_bytes)

    def prefill(self, tokens: int) -> int:
        layers = sum(self.prefill_layer(i, tokens) for i in range(self.image.spec.layers))
        return layers + self._cycles(0, tokens * self._row_bytes(4), 0)


def facts(config: TileConfig, spec: ModelSpec, params: ModelParams) -> list[str]:
    """The model and the tile in a few lines."""
    s = spec.block
    mlp = f"{s.experts} experts, {s.top_k} chosen, of {s.ffn}" if s.experts else f"MLP of {s.ffn}"
    layer = params.layers[0]
    matrices = [layer.wq, layer.wk, layer.wv, layer.wo, *([layer.router] if layer.router else [])]
    matrices += [w for e in layer.experts for w in (e.gate, e.up, e.down) if w is not None]
    weights = spec.layers * sum(w.outputs * w.inputs for w in matrices)
    needed = spec.layers * sum(w.needed_bytes for w in matrices)
    head = params.head.needed_bytes if params.head else 0
    return [
        f"model {spec.name}: {spec.architecture}, {spec.layers} layers, hidden {s.hidden}, {s.heads} heads "
        f"on {s.kv_heads} KV heads of {s.head_dim}, {mlp}, vocabulary {spec.vocab}, context {spec.context}",
        f"  weights: {weights} in the layers, {needed} bytes with their scales; head {head} bytes",
        f"config {config.name}: {config.macs} MACs per cycle, {config.sram_bytes} bytes of SRAM, "
        f"{config.axi_bytes} bytes per beat, {config.imem_words} instruction words, {config.clock_mhz:g} MHz",
    ]


def _panels(panels: Sequence[Panel]) -> str:
    runs: list[tuple[int, int]] = []
    for p in panels:
        if runs and runs[-1][1] == p.n:
            runs[-1] = (runs[-1][0] + 1, p.n)
        else:
            runs.append((1, p.n))
    return " + ".join(f"{count} x {n}" for count, n in runs)


def _tensors(image: ModelImage) -> list[str]:
    """Every layer has these."""
    experts = max(1, image.block.experts)
    each = f" of {experts} experts" if experts > 1 else ""
    parts: list[tuple[str, Any]] = [("constants a", image.const_a)]
    parts += [(w.name, w) for w in (image.wk, image.wv, image.wq)]
    parts += [("constants b", image.const_b), ("wo", image.wo)]
    parts += [("router", image.router)] if image.router else []
    parts += [
        ("constants c" + each, image.const_c),
        ("gate_up" + each, image.gate_up),
        ("down" + each, image.down),
    ]
    rows: list[list[object]] = []
    for name, part in parts:
        if isinstance(part, Linear):
            p = part.panels[0]
            shape = f"{part.outputs} x {32 * p.k}"
            rows.append([name, FORMATS[p.fmt], shape, _panels(part.panels), part.bytes])
        elif part.bytes:
            rows.append([name, "float32", ", ".join(part.offsets), "", part.bytes])
    return [
        f"every layer: {image.layer_bytes} bytes at layers + layer * {image.layer_bytes}",
        *table(["tensor", "format", "outputs x inputs", "panels", "bytes"], rows),
    ]


def _dram(image: ModelImage) -> list[str]:
    rows = [[f"{at:#010x}", size, name] for name, (at, size) in image.dram.regions.items() if size]
    return [
        f"DRAM: {image.dram.top} of {len(image.dram.data)} bytes",
        *table(["address", "bytes", "region"], rows),
    ]


def _program(name: str, compiled: Any, config: TileConfig) -> list[str]:
    threads = {t.name: len(t.words) for t in compiled.program.threads if t.words}
    names, by_part = parts(compiled)
    total = len(compiled.program.image())
    rows = [
        [f"{at:#08x}", size, what]
        for what, (at, size) in sorted(compiled.sram.regions.items(), key=lambda r: r[1])
    ]
    return [
        f"program {name}: {total} of {config.imem_words} words "
        f"({', '.join(f'{t} {n}' for t, n in threads.items())}), "
        f"{len(compiled.program.semaphores)} semaphores; "
        f"{compiled.sram.used} of {config.sram_bytes} bytes of SRAM",
        *table(["address", "bytes", "SRAM region"], rows),
        *table(["instructions", *names], by_part),
    ]


def parts(compiled: Any) -> tuple[list[str], list[list[object]]]:
    """Instructions by label: threads with code, rows of label and one count per thread."""
    entries = [int(e) for e in compiled.program.image()[:ENTRY_WORDS]]
    threads = [i for i, e in enumerate(entries) if e]
    counts: dict[str, list[object]] = {}
    for pc, label in compiled.labels.items():
        thread = max(i for i in threads if entries[i] <= pc)
        name = label.replace("{layer}", "i")  # all layers run the same code
        row = counts.setdefault(name, [name, *[0] * len(threads)])
        column = threads.index(thread) + 1
        row[column] = row[column] + 1  # type: ignore[operator]
    return [THREADS[i] for i in threads], list(counts.values())


def _layers(image: ModelImage) -> list[str]:
    spec, predict = image.spec, Prediction(image)
    last = spec.context - 1
    rows: list[list[object]] = []
    for i in range(spec.layers):
        row: list[object] = [i, spec.windows[i] or "-", image.layer_bytes, image.users * image.kv_layer_bytes]
        row += [predict.decode_layer(i, last)] if spec.decoder else []
        row += [predict.prefill_layer(i, image.chunk)] if image.chunk else []
        rows.append(row)
    header = ["layer", "window", "bytes", "KV cache"]
    header += [f"decode at {last}"] if spec.decoder else []
    header += [f"prefill of {image.chunk}"] if image.chunk else []
    return ["layers (predicted cycles)", *table(header, rows)]


def _predictions(image: ModelImage, params: ModelParams) -> list[str]:
    spec, config, predict = image.spec, image.config, Prediction(image)
    rows: list[tuple[str, Need, int]] = []
    if image.chunk:
        need = prefill_need(spec, params, 0, image.chunk)
        rows.append((f"prefill of {image.chunk} tokens", need, predict.prefill(image.chunk)))
    for p in (0, spec.context - 1) if spec.decoder else ():
        need = decode_need(spec, params, [p] * image.users)
        users = f", {image.users} users" if image.users > 1 else ""
        rows.append((f"decode at position {p}{users}", need, predict.decode(p)))
    return [
        "cycles",
        *table(
            ["phase", "MACs", "bytes", "bound", "predicted", "ms"],
            [
                [
                    name,
                    n.macs,
                    n.bytes,
                    round(n.bound(config.macs, config.axi_bytes)),
                    cycles,
                    round(cycles / config.clock_mhz / 1e3, 2),
                ]
                for name, n, cycles in rows
            ],
        ),
    ]


def plan(
    config: TileConfig,
    spec: ModelSpec,
    params: ModelParams,
    *,
    users: int = 1,
    chunk: int | None = None,
    dram_bytes: int = DRAM_BYTES,
) -> tuple[list[str], list[str]]:
    """(the plan's lines, what does not fit: empty if the model runs)."""
    lines = facts(config, spec, params)
    try:
        image = build_image(config, spec, params, users=users, chunk=chunk, dram_bytes=dram_bytes)
    except (ValueError, MemoryError) as error:
        return lines, [str(error)]
    lines += ["", *_dram(image), "", *_tensors(image)]
    problems: list[str] = []
    kinds: list[tuple[str, Any]] = []
    if image.chunk:
        kinds.append(("prefill", lambda: ModelPrefill(image)))
    else:
        reason = image.no_prefill or f"no chunk of 32 tokens fits config {config.name}"
        lines += ["", f"no prefill, prompts go through decode: {reason}"]
    if spec.decoder:
        kinds += [("decode", lambda: ModelDecode(image)), ("logits", lambda: ModelDecode(image, logits=True))]
    for name, build in kinds:
        try:
            lines += ["", *_program(name, build(), config)]
        except ValueError as error:
            problems.append(f"program {name}: {error}")
    return [*lines, "", *_layers(image), "", *_predictions(image, params)], problems
