"""The prefill program of a whole model: a chunk of a prompt through all layers, C tokens at a time.

Arguments: ARG0 position of the first token (a multiple of 32; encoders: 0), ARG1 tokens n (1..image.chunk,
ARG0 + n <= cap), ARG2 user. x comes as lane words from image.x_in. Keys and values go to the user's cache,
positions ARG0 .. ARG0 + n - 1. Bare images and encoders get x behind the last layer in image.x_out; the other
models stop when the last layer's keys and values are made, for nothing else of it is ever needed: decode
takes the last token of the prompt as its first input.

x stays in SRAM. Every weight is loaded once, as a panel into one of two slots, and streamed once for each
group of C tokens. All layers run the same code (a hardware loop); the next layer's first norm follows the
last residual of each group and the next layer's first panel is loaded ahead, so the array has no pause
between layers. Keys and values of the tokens in sight are in SRAM while a layer's attention runs.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from golden.spec import ModelParams, ModelSpec
from hw.config import TileConfig
from hw.isa import ENTRY_WORDS, R, THREADS

from .assembler import Program, Thread
from .cost import layer_need
from .layout import align
from .model_image import Constants, Linear, ModelImage
from .ops import first_in_sight
from .prefill_matmul import MatmulThread, count_groups, toggle
from .prefill_plan import Plan, fit
from .prefill_vector import VectorThread

BASE, FROM, KV, SLOT, TMP, START, LENGTH, CONST_C, EXPERT, NEXT, LAYER, GROUPS = (R(i) for i in range(1, 13))
"""LOAD and STORE: DRAM addresses of the layer, of the panel, of the layer's KV cache; offset of the slot; 4 *
layer; groups of rows."""


class ModelPrefill:
    """Builds the program; `program.image()` goes to image.program_at['prefill'].

    sram: what is where. cap: keys that its buffers hold, so that ARG0 + ARG1 <= cap. labels: word index in
    the program -> text ("{layer}" for the layer). marks: word index of the instruction that begins a layer in
    each thread -> ("layer", layers computed in full). ValueError, with the sizes, when it does not fit.
    """

    def __init__(self, image: ModelImage):
        self.image, self.spec = image, image.spec.block
        self.plan: Plan = fit(image, image.chunk)
        self.sram, self.cap = self.plan.sram, self.plan.cap
        self.stores_x = image.bare or not self.spec.causal
        self.program = pr = Program(image.config)
        names = "x final rope panel panel_free act out out_free k v past scores p o y a_free b_free c_free"
        self.sem = {
            n: pr.semaphore(n)
            for n in (
                *names.split(),
                *(f"const {x}" for x in "abc"),
                *(f"windows {x}" for x in ("load", "matmul", "vector")),
                "kv stored",
            )
        }
        self._starts: list[tuple[int, int]] = []
        self._load(pr.load)
        self._store(pr.store)
        vector = VectorThread(pr.vector, image, self.plan, self.sem, tail=not self.stores_x, y=self.stores_x)
        for t, thread in (
            (pr.matmul, MatmulThread(pr.matmul, image, self.plan, self.sem)),
            (pr.vector, vector),
        ):
            thread.begin()
            with self._layers(t):
                thread.layer()
            if not self.stores_x:
                with self._last_layer(t):
                    thread.keys_values()
        pr.image()  # says so if it is too long
        self.labels = pr.labels

    @property
    def marks(self) -> dict[int, tuple[str, int]]:
        entries = self.program.image()[:ENTRY_WORDS]
        return {int(entries[t]) + at: ("layer", max(1, self._loop_layers)) for t, at in self._starts}

    @property
    def _loop_layers(self) -> int:
        """Layers that are computed in full."""
        return self.image.spec.layers - (not self.stores_x)

    @contextmanager
    def _layers(self, t: Thread) -> Iterator[None]:
        """A loop over the layers that are computed in full.

        Each turn begins with an instruction that does nothing, so that a trace can count the layers.
        """
        pr = self.program
        with t.label("layer {layer}"), t.loop(self._loop_layers):
            self._starts.append((THREADS.index(t.name), len(t.words)))
            with t.label("begin"):
                if t is pr.matmul:
                    t.matmul(n=0)
                elif t is pr.vector:
                    t.vector(n0=0, a=0)
                else:
                    (t.load if t is pr.load else t.store)(src=0, dst=0, len=0)
            yield

    def _last_layer(self, t: Thread) -> AbstractContextManager[None]:
        """Label of the layer of which only keys and values are made."""
        return t.label(f"layer {self._loop_layers}")

    # ---- load thread

    def _load(self, t: Thread) -> None:
        im, p, sem, s = self.image, self.plan, self.sem, self.spec
        count_groups(t, GROUPS, im.config.columns)
        t.signal(sem["panel_free"], GROUPS)
        t.signal(sem["panel_free"], GROUPS)
        t.li(BASE, im.layers_at)
        if p.windowed:
            t.li(TMP, im.windows_at)
            t.load(
                src=TMP,
                dst=p.windows,
                len=im.windows_bytes,
                sig_b=sem["windows load"],
                sig_c=sem["windows matmul"],
            )
        if p.embed_norm:
            t.li(TMP, im.final.address)
            t.load(src=TMP, dst=p.const_final, len=im.final.bytes, sig_b=sem["final"])
        self._constants(t, BASE, im.const_a, p.const_a, "a")
        group = s.hidden * im.config.lane_bytes
        t.li(FROM, im.x_in)
        t.load(src=FROM, dst=p.x, len=group, sig_b=sem["x"])
        self._panels(t, im.wk, BASE, 0, 1)
        if s.rope != "none":
            t.arg(TMP, 0)
            t.mul(TMP, TMP, s.head_dim * 4)
            t.li(START, im.rope_lanes)
            t.add(TMP, TMP, START)
            t.mul(LENGTH, GROUPS, s.head_dim * im.config.lane_bytes)
            t.load(src=TMP, dst=p.rope, len=LENGTH, sig_b=sem["rope"])
        t.li(FROM, im.x_in)
        t.li(TMP, 0)
        with t.loop(GROUPS + -1):
            t.add(FROM, FROM, group)
            t.add(TMP, TMP, group)
            t.load(src=FROM, dst=TMP + p.x, len=group, sig_b=sem["x"])
        if p.windowed:
            t.wait(sem["windows load"])
        if im.const_b.bytes:
            t.signal(sem["b_free"], GROUPS)
        if p.const_c_bytes:
            for _ in range(p.const_c_buffers):
                t.signal(sem["c_free"], GROUPS)
        self._cache(t)
        with self._layers(t):
            self._layer(t)
        if not self.stores_x:
            with self._last_layer(t):
                self._rest_of_keys_values(t)

    def _cache(self, t: Thread) -> None:
        """KV = the user's cache of layer 0."""
        t.arg(KV, 2)
        t.mul(KV, KV, self.image.kv_user_bytes)
        t.li(TMP, self.image.kv_base)
        t.add(KV, KV, TMP)

    def _constants(self, t: Thread, base: R, constants: Constants, dst: "int | R", name: str) -> None:
        if constants.bytes:
            sem = self.sem[f"const {name}"]
            t.load(src=base + constants.address, dst=dst, len=constants.bytes, sig_b=sem)

    def _panels(self, t: Thread, lin: Linear, base: R, first: int = 0, end: int | None = None) -> None:
        """Load panels first .. end - 1 of a linear layer, each when a slot is free."""
        p, sem, panels = self.plan, self.sem, lin.panels[first:end]
        if not panels:
            return

        def one(size: int) -> None:
            t.wait(sem["panel_free"], GROUPS)
            t.load(src=FROM, dst=SLOT + p.slots, len=size, sig_b=sem["panel"])
            toggle(t, SLOT, p.slot_bytes)

        with t.label(lin.name):
            t.add(FROM, base, panels[0].address)
            count = sum(panel.bytes == panels[0].bytes for panel in panels)
            if count > 1:
                with t.loop(count):
                    one(panels[0].bytes)
                    t.add(FROM, FROM, panels[0].bytes)
            else:
                one(panels[0].bytes)
                if len(panels) > 1:
                    t.add(FROM, FROM, panels[0].bytes)
            if count < len(panels):
                one(panels[-1].bytes)

    def _rest_of_keys_values(self, t: Thread) -> None:
        """All panels but the first, which was loaded ahead."""
        self._panels(t, self.image.wk, BASE, 1)
        self._panels(t, self.image.wv, BASE)

    def _layer(self, t: Thread) -> None:
        im, p, sem, s = self.image, self.plan, self.sem, self.spec
        self._rest_of_keys_values(t)
        with t.label("past keys and values"):
            self._past(t)
        self._panels(t, im.wq, BASE)
        if im.const_b.bytes:
            t.wait(sem["b_free"], GROUPS)
            self._constants(t, BASE, im.const_b, p.const_b, "b")
        self._panels(t, im.wo, BASE)
        if im.router:
            self._panels(t, im.router, BASE)
            t.add(EXPERT, BASE, im.experts_at)
            with t.loop(s.experts):
                self._expert(t)
                t.add(EXPERT, EXPERT, im.expert_bytes)
        else:
            t.add(EXPERT, BASE, im.experts_at)
            self._expert(t)
        t.add(KV, KV, im.kv_layer_bytes)
        t.add(BASE, BASE, im.layer_bytes)
        t.add(LAYER, LAYER, 4)
        if self.stores_x:
            t.sub(NEXT, R(0), LAYER + -4 * im.spec.layers)
            t.min_(NEXT, NEXT, 1)
            with t.loop(NEXT):
                self._ahead(t)
        else:
            self._ahead(t)

    def _ahead(self, t: Thread) -> None:
        """What the next layer needs first."""
        im, p = self.image, self.plan
        if im.const_a.bytes:
            for _ in range(p.batches):
                t.wait(self.sem["a_free"], GROUPS)
            self._constants(t, BASE, im.const_a, p.const_a, "a")
        self._panels(t, im.wk, BASE, 0, 1)

    def _expert(self, t: Thread) -> None:
        im, p = self.image, self.plan
        if p.const_c_bytes:
            t.wait(self.sem["c_free"], GROUPS)
            self._constants(t, EXPERT, im.const_c, CONST_C + p.const_c, "c")
            if p.const_c_buffers > 1:
                toggle(t, CONST_C, p.const_c_bytes)
        self._panels(t, im.gate_up, EXPERT)
        self._panels(t, im.down, EXPERT)

    def _past(self, t: Thread) -> None:
        """Keys and values of earlier chunks, from the first that the first row sees.

        They go where hidden activations of the layer before were: its down products are complete, because
        two panels have been loaded since into the slots of the last of theirs.
        """
        im, p, sem, s = self.image, self.plan, self.sem, self.spec
        if not s.causal:
            t.signal(sem["past"])
            return
        t.arg(LENGTH, 0)
        if p.windowed:
            t.lds(TMP, LAYER + p.windows)
            first_in_sight(t, LENGTH, TMP, START)
        else:
            t.li(START, 0)
        t.sub(LENGTH, LENGTH, START)
        for x, scales, sig in (("k", "ks", 0), ("v", "vs", sem["past"])):
            at, at_scales = (p.k, p.ks) if x == "k" else (p.v, p.vs)
            t.shl(TMP, START, 5)
            t.shl(NEXT, LENGTH, 5)
            t.add(FROM, KV, TMP)
            t.load(
                src=FROM + im.kv_at[x],
                dst=TMP + at,
                len=NEXT,
                n1=s.kv_words,
                src1=s.max_tokens * 32,
                dst1=p.cap * 32,
            )
            t.add(FROM, KV, START)
            t.load(
                src=FROM + im.kv_at[f"{x} scales"],
                dst=START + at_scales,
                len=LENGTH,
                n1=s.kv_scales,
                src1=s.max_tokens,
                dst1=p.cap,
                sig_b=sig,
            )

    # ---- store thread

    def _store(self, t: Thread) -> None:
        im, sem, s = self.image, self.sem, self.spec
        count_groups(t, GROUPS, im.config.columns)
        self._cache(t)
        with self._layers(t):
            self._store_cache(t)
            t.add(KV, KV, im.kv_layer_bytes)
        if not self.stores_x:
            with self._last_layer(t):
                self._store_cache(t)
            return
        group = s.hidden * im.config.lane_bytes
        turns = im.spec.layers * (s.experts if s.experts and not s.post_norm else 1) - 1
        t.li(FROM, im.x_out)
        t.li(TMP, 0)
        if turns:
            with t.loop(turns):
                t.wait(sem["y"], GROUPS)
        with t.label("x"), t.loop(GROUPS):
            t.wait(sem["y"])
            t.store(src=TMP + self.plan.x, dst=FROM, len=group)
            t.add(TMP, TMP, group)
            t.add(FROM, FROM, group)

    def _store_cache(self, t: Thread) -> None:
        """The chunk's own keys and values to the cache; tells when they have been read."""
        im, p, sem, s = self.image, self.plan, self.sem, self.spec
        t.arg(START, 0)
        t.arg(LENGTH, 1)
        for x, at, at_scales, sig in (("k", p.k, p.ks, 0), ("v", p.v, p.vs, sem["kv stored"])):
            t.shl(TMP, START, 5)
            t.shl(NEXT, LENGTH, 5)
            t.add(FROM, KV, TMP)
            t.wait(sem[x], GROUPS)
            t.store(
                src=TMP + at,
                dst=FROM + im.kv_at[x],
                len=NEXT,
                n1=s.kv_words,
                src1=p.cap * 32,
                dst1=s.max_tokens * 32,
            )
            t.add(FROM, KV, START)
            t.store(
                src=START + at_scales,
                dst=FROM + im.kv_at[f"{x} scales"],
                len=LENGTH,
                n1=s.kv_scales,
                src1=p.cap,
                dst1=s.max_tokens,
                sig_a=sig,
            )


def best_chunk(config: TileConfig, spec: ModelSpec, params: ModelParams, prompt: int | None = None) -> int:
    """Tokens of a chunk for prompts of up to `prompt` tokens (default: max_tokens); 0: none fits.

    The largest multiple of 32 up to the prompt (decoders: and 256) whose buffers hold the keys of the prompt;
    where none does, the one of at least 64 tokens (else 32) that holds the most.
    """
    s = spec.block
    weights = layer_need(s, params.layers[0], [0] * max(1, s.experts), 0).read
    rows = s.max_tokens * (8 * s.hidden + 16 * s.head_dim + 66 * s.kv_words)
    one = ModelImage(
        config,
        replace(spec, windows=spec.windows[:1]),
        replace(params, layers=params.layers[:1]),
        bare=True,
        dram_bytes=2 * (weights + rows) + (1 << 20),
    )
    one.spec, one.windows_bytes = spec, 4 * align(spec.layers, 8)
    if one.no_prefill:
        return 0
    most = s.max_tokens
    want = min(most, prompt or most)
    best, best_cap = 0, 0
    for chunk in range(align(min(want, 256 if s.causal else want), 32), 0, -32):
        try:
            cap = fit(one, chunk).cap
        except ValueError:
            continue
        if chunk < 64 and best:
            break
        if cap > best_cap:
            best, best_cap = chunk, cap
        if cap >= (want if s.causal else align(chunk, 32)):
            break
    return best
