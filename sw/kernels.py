"""Programs of single operations, for `make bench`: products from SRAM and from DRAM.

Each `Kernel` carries its DRAM image, its phases (programs rung one after another; SRAM survives between them)
and what it needs.
"""

from dataclasses import dataclass, field

import numpy as np

from golden import formats
from golden.spec import MxTensor
from hw.config import TileConfig
from hw.isa import R

from .assembler import Program, Sram, Thread
from .layout import DramImage, align, panel_splits

RING = R(12)


@dataclass
class Kernel:
    """phases: name -> program. `measured` is the phase that counts; `from_sram`: count from first instruction
    to last completion."""

    name: str
    config: TileConfig
    dram: DramImage
    phases: dict[str, Program]
    measured: str
    macs: int
    bytes_read: int
    """That must be read from DRAM (for `from_sram`, the operands' size), without padding."""
    bytes_written: int
    from_sram: bool = False
    program_at: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, program in self.phases.items():
            self.program_at[name] = self.dram.put(f"program.{name}", program.image(), 4096)


def _activations(rng: np.random.Generator, m: int, k: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random MXINT8 rows: blocks (groups, kb, C, 32) and scales (groups, kb, C)."""
    t = MxTensor.quantise(rng.normal(0, 1, (align(m, columns), k)).astype(np.float32), formats.INT8)
    g, kb = t.ints.shape[0] // columns, t.ints.shape[1]
    return (
        np.ascontiguousarray(t.ints.reshape(g, columns, kb, 32).transpose(0, 2, 1, 3)),
        np.ascontiguousarray(t.scales.reshape(g, columns, kb).transpose(0, 2, 1)),
    )


def _weights(rng: np.random.Generator, n: int, k: int, fmt: int) -> MxTensor:
    return MxTensor.quantise(rng.normal(0, k**-0.5, (n, k)).astype(np.float32), fmt)


def gemm_sram(config: TileConfig, m: int, k: int, n: int, seed: int = 0) -> Kernel:
    """(m, k) x (k, n), MXINT8, operands and float32 result in SRAM."""
    rng = np.random.default_rng(seed)
    c, w = config.columns, config.lane_bytes
    d, sram = DramImage(8 << 20), Sram(config)
    x, xs = _activations(rng, m, k, c)
    groups, kb = x.shape[:2]
    x_at, xs_at = d.put("x", x), d.put("x scales", xs)
    panels = [
        d.panel(f"w{lo}", _weights(rng, hi - lo, k, formats.INT8))
        for lo, hi in panel_splits(n, config.psum_depth, 32)
    ]
    y_at = d.alloc("y", groups * n * w)
    sx, sxs = sram.alloc("x", x.nbytes, 128), sram.alloc("x scales", xs.nbytes, 128)
    sw = [sram.alloc(f"w{i}", p.bytes, 128) for i, p in enumerate(panels)]
    sy = sram.alloc("y", groups * n * w, 128)

    fill = Program(config)
    for src, dst, size in [(x_at, sx, x.nbytes), (xs_at, sxs, xs.nbytes)] + [
        (p.address, a, p.bytes) for p, a in zip(panels, sw)
    ]:
        fill.load.load(src=src, dst=dst, len=size)
    run = Program(config)
    t = run.matmul
    out = 0
    for p, at in zip(panels, sw):
        t.li(R(1), 0)
        t.li(R(2), 0)
        t.li(R(3), out)
        with t.loop(groups):
            t.matmul(
                n=p.n,
                k=kb,
                data=at,
                scale=at + p.data_bytes,
                data_pass=p.pass_bytes,
                scale_pass=p.pass_bytes,
                stat=R(1) + sx,
                stat_pass=32 * c,
                stat_row=32,
                stat_scale=R(2) + sxs,
                stat_scale_pass=c,
                out=R(3) + sy,
            )
            t.add(R(1), R(1), kb * c * 32)
            t.add(R(2), R(2), kb * c)
            t.add(R(3), R(3), n * w)
        out += p.n * w
    empty = Program(config)
    empty.store.store(src=sy, dst=y_at, len=groups * n * w)
    name = f"gemm-sram-{m}" if m == k == n else f"gemm-sram-{m}x{k}x{n}"
    return Kernel(
        name,
        config,
        d,
        {"load": fill, "run": run, "store": empty},
        "run",
        m * k * n,
        (m + n) * k * 33 // 32,
        4 * m * n,
        True,
    )


def gemm_dram(config: TileConfig, m: int, k: int, n: int, width: int = 64, seed: int = 0) -> Kernel:
    """(m, k) x (k, n), MXINT8 from DRAM, float32 result to DRAM.

    x stays in SRAM, panels of `width` columns of w pass through.
    """
    rng = np.random.default_rng(seed)
    c, w = config.columns, config.lane_bytes
    d, sram = DramImage(16 << 20), Sram(config)
    x, xs = _activations(rng, m, k, c)
    groups, kb = x.shape[:2]
    x_at, xs_at = d.put("x", x), d.put("x scales", xs)
    panels = [
        d.panel(f"w{lo}", _weights(rng, hi - lo, k, formats.INT8)) for lo, hi in panel_splits(n, width, 32)
    ]
    y_at = d.alloc("y", groups * n * w)
    sx, sxs = sram.alloc("x", x.nbytes, 128), sram.alloc("x scales", xs.nbytes, 128)
    slots = [sram.alloc(f"panel {i}", panels[0].bytes, 128) for i in range(2)]
    out_bytes, outs = align(width * w, 128), 4
    sy = sram.alloc("y", outs * out_bytes, 128)

    pr = Program(config)
    s = {name: pr.semaphore(name) for name in ("x", "panel", "panel_free", "out", "out_free")}
    t = pr.load
    t.signal(s["panel_free"], 2)
    group = kb * c * 32
    t.load(src=xs_at, dst=sxs, len=xs.nbytes, sig_b=s["x"])
    t.load(src=x_at, dst=sx, len=group, sig_b=s["x"])
    t.wait(s["panel_free"])
    first = panels[0]
    t.load(src=first.address, dst=slots[0], len=first.bytes, sig_b=s["panel"])
    t.li(R(1), 0)
    with t.loop(groups - 1):
        t.add(R(1), R(1), group)
        t.load(src=R(1) + x_at, dst=R(1) + sx, len=group, sig_b=s["x"])
    for i, p in list(enumerate(panels))[1:]:
        t.wait(s["panel_free"])
        t.load(src=p.address, dst=slots[i % 2], len=p.bytes, sig_b=s["panel"])
    t = pr.matmul
    t.signal(s["out_free"], outs)
    t.li(RING, 0)
    t.wait(s["x"])
    for i, p in enumerate(panels):
        at = slots[i % 2]

        def one(free: int) -> None:
            if i == 0:
                t.wait(s["x"])
            t.wait(s["out_free"])
            t.matmul(
                n=p.n,
                k=kb,
                data=at,
                scale=at + p.data_bytes,
                data_pass=p.pass_bytes,
                scale_pass=p.pass_bytes,
                stat=R(1) + sx,
                stat_pass=32 * c,
                stat_row=32,
                stat_scale=R(2) + sxs,
                stat_scale_pass=c,
                out=RING + sy,
                sig_a=free,
                sig_b=s["out"],
            )
            t.add(RING, RING, out_bytes)
            t.and_(RING, RING, outs * out_bytes - 1)

        t.li(R(1), 0)
        t.li(R(2), 0)
        t.wait(s["panel"])
        with t.loop(groups - 1):
            one(0)
            t.add(R(1), R(1), group)
            t.add(R(2), R(2), kb * c)
        one(s["panel_free"])
    t = pr.store
    t.li(RING, 0)
    at = y_at
    for p in panels:
        t.li(R(1), at)
        with t.loop(groups):
            t.wait(s["out"])
            t.store(src=RING + sy, dst=R(1), len=p.n * w, sig_a=s["out_free"])
            t.add(RING, RING, out_bytes)
            t.and_(RING, RING, outs * out_bytes - 1)
            t.add(R(1), R(1), n * w)
        at += p.n * w
    return Kernel(
        f"gemm-dram-{m}", config, d, {"run": pr}, "run", m * k * n, (m + n) * k * 33 // 32, 4 * m * n
    )


def gemv(config: TileConfig, k: int, n: int, fmt: int, seed: int = 0) -> Kernel:
    """1 x k x n with streamed weights, MXINT8 input, float32 output row."""
    rng = np.random.default_rng(seed)
    w = config.lane_bytes
    d, sram = DramImage(16 << 20), Sram(config)
    x, xs = _activations(rng, 1, k, config.columns)
    kb = x.shape[1]
    x_at, xs_at = d.put("x", x[0, :, 0]), d.put("x scales", xs[0, :, 0])
    panels = [
        d.panel(f"w{lo}", _weights(rng, hi - lo, k, fmt)) for lo, hi in panel_splits(n, config.psum_depth, 16)
    ]
    y_at = d.alloc("y", 4 * n)
    sx, sxs = sram.alloc("x", kb * 32, 128), sram.alloc("x scales", kb, 128)
    out_bytes, outs = config.psum_depth * w, 2
    sy, row = sram.alloc("y", outs * out_bytes, 128), sram.alloc("row", 4 * n, 128)
    p = panels[0]
    if len({q.n for q in panels}) > 1 or kb < 3:
        raise ValueError(
            f"{n} outputs: allowed is a multiple of {len(panels)} panels, contraction of at least 96"
        )
    passes = max(
        i
        for i in range(1, kb // 3 + 1)
        if kb % i == 0 and (i == 1 or i * p.pass_bytes <= config.sram_bytes // 24)
    )
    slot = passes * p.pass_bytes
    ring = min(16, (config.sram_bytes - sram.used - 1024) // slot)
    ring_at = sram.alloc("ring", ring * slot, 128)
    pr = Program(config)
    s = {name: pr.semaphore(name) for name in ("x", "chunk", "free", "out", "out_free", "y")}
    src, stat, scale, carry, out = R(1), R(2), R(3), R(4), R(5)

    def step(t: Thread, register: R, by: int, size: int) -> None:
        """register = (register + by) mod size."""
        t.add(register, register, by - size)
        t.sra(carry, register, 31)
        t.and_(carry, carry, size)
        t.add(register, register, carry)

    t = pr.load
    t.signal(s["free"], ring)
    t.load(src=x_at, dst=sx, len=kb * 32)
    t.load(src=xs_at, dst=sxs, len=kb, sig_b=s["x"])
    t.li(RING, 0)
    t.li(src, p.address)
    stride = panels[1].address - p.address if len(panels) > 1 else 0
    with t.loop(len(panels)):
        t.mov(stat, src)
        with t.loop(kb // passes):
            t.wait(s["free"])
            t.load(src=stat, dst=RING + ring_at, len=slot, sig_b=s["chunk"])
            t.add(stat, stat, slot)
            step(t, RING, slot, ring * slot)
        t.add(src, src, stride)
    t = pr.matmul
    t.signal(s["out_free"], outs)
    t.wait(s["x"])
    t.li(RING, 0)
    t.li(out, 0)

    def chunk(**flags: "int | R") -> None:
        t.wait(s["chunk"])
        t.matmul(
            n=p.n,
            k=passes,
            rows=1,
            stream_fmt=fmt,
            data=RING + ring_at,
            scale=RING + (ring_at + p.data_bytes),
            data_pass=p.pass_bytes,
            scale_pass=p.pass_bytes,
            stat=stat + sx,
            stat_pass=32,
            stat_scale=scale + sxs,
            stat_scale_pass=1,
            sig_a=s["free"],
            **flags,
        )
        t.add(stat, stat, 32 * passes)
        t.add(scale, scale, passes)
        step(t, RING, slot, ring * slot)

    with t.loop(len(panels)):
        t.li(stat, 0)
        t.li(scale, 0)
        chunk(last=0)
        with t.loop(kb // passes - 2):
            chunk(first=0, last=0)
        t.wait(s["out_free"])
        chunk(first=0, out=out + sy, sig_b=s["out"])
        step(t, out, out_bytes, outs * out_bytes)
    t = pr.vector
    t.li(out, 0)
    t.li(stat, 0)
    with t.loop(len(panels)):
        t.wait(s["out"])
        t.vector(n0=p.n, a=out + sy, out=stat + row, pack=1, sig_a=s["out_free"], sig_b=s["y"])
        t.add(stat, stat, 4 * p.n)
        step(t, out, out_bytes, outs * out_bytes)
    t = pr.store
    t.li(stat, 0)
    with t.loop(len(panels)):
        t.wait(s["y"])
        t.store(src=stat + row, dst=stat + y_at, len=4 * p.n)
        t.add(stat, stat, 4 * p.n)
    bits = {formats.INT8: 8, formats.FP6: 6, formats.FP4: 4}[fmt]
    needed = n * (k * bits // 8 + kb) + k * 33 // 32
    name = {formats.INT8: "mxint8", formats.FP6: "mxfp6", formats.FP4: "mxfp4"}[fmt]
    return Kernel(f"gemv-{name}-{n}", config, d, {"run": pr}, "run", k * n, needed, 4 * n)
