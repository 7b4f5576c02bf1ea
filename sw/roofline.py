"""Roofline chart: what the array and the DRAM port allow, and measured runs.

Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52 (2009).
"""

from collections.abc import Mapping
from pathlib import Path

from hw.config import TileConfig

from .stats import Phase


def point(phase: Phase) -> tuple[float, float]:
    """(MACs per byte over the busier direction of the port, MACs per cycle) of a measured phase."""
    return phase.need.macs / max(phase.read, phase.written), phase.need.macs / phase.cycles


def roofline(path: str | Path, config: TileConfig, phases: Mapping[str, Phase]) -> None:
    """Draw the phases that ran, by name, into a PNG. ValueError when none has cycles."""
    points = {name: point(p) for name, p in phases.items() if p.cycles and p.need.macs}
    if not points:
        raise ValueError("roofline without measured cycles: allowed is backend 'rtl'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    knee = config.macs / config.axi_bytes
    low = min(0.25, *(x / 2 for x, _ in points.values()))
    high = max(16 * knee, *(2 * x for x, _ in points.values()))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.loglog([low, knee, high], [low * config.axi_bytes, config.macs, config.macs], color="black")
    axes.annotate(
        f"array: {config.macs} MACs/cycle",
        (high, config.macs),
        (-4, 4),
        ha="right",
        textcoords="offset points",
    )
    axes.annotate(
        f"port: {config.axi_bytes} bytes/cycle",
        (2 * low, low * config.axi_bytes),
        (8, 0),
        textcoords="offset points",
    )
    axes.set_ylim(top=2 * config.macs)
    for name, (x, y) in points.items():
        roof = min(config.macs, x * config.axi_bytes)
        axes.plot(x, y, "o", label=f"{name}: {y:.1f} MACs/cycle, {y / roof:.0%} of the roof")
    axes.set(
        xlabel="MACs per byte of the busier port direction",
        ylabel="MACs per cycle",
        title=f"config {config.name}, {config.clock_mhz:g} MHz",
    )
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
