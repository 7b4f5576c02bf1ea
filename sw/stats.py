"""What a generation cost, against what it needed."""

from dataclasses import dataclass, field

from hw.config import TileConfig

from .cost import Need
from .device import Run, moved


@dataclass
class Phase:
    """Prefill or decode, summed over runs. Ratios are 0 where nothing ran or the device has no clock."""

    config: TileConfig
    tokens: int = 0
    steps: int = 0
    """Passes over the weights: decode steps (one token for each user), prefill chunks."""
    cycles: int = 0
    seconds: float = 0.0
    """Processor time of the simulation."""
    need: Need = Need()
    read: int = 0
    written: int = 0
    """Bytes that crossed the DRAM port."""
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, run: Run, need: Need, tokens: int, steps: int = 1) -> None:
        read, written = moved(run, self.config)
        self.tokens += tokens
        self.steps += steps
        self.cycles += run.cycles
        self.seconds += run.seconds
        self.need += need
        self.read += read
        self.written += written
        for name, count in run.counters.items():
            self.counters[name] = self.counters.get(name, 0) + count

    @property
    def bound(self) -> float:
        """Cycles that no schedule can beat."""
        return self.need.bound(self.config.macs, self.config.axi_bytes)

    @property
    def cycles_per_token(self) -> float:
        return self.cycles / max(1, self.tokens)

    @property
    def mac_utilisation(self) -> float:
        """MACs that the model needs, of those that the array could have done."""
        return self.need.macs / self.config.macs / max(1, self.cycles) if self.cycles else 0.0

    @property
    def port_utilisation(self) -> float:
        """Beats of the busier direction per cycle."""
        return max(self.read, self.written) / self.config.axi_bytes / self.cycles if self.cycles else 0.0

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def time(self) -> float:
        """Seconds on a tile at the config's clock."""
        return self.cycles / (self.config.clock_mhz * 1e6)

    def lines(self, name: str) -> list[str]:
        """Text for people."""
        if not self.tokens:
            return []
        n, step = self.tokens, "step" if name == "decode" else "chunk"
        out = [f"{name}: {n} token{'s' * (n != 1)} in {self.steps} {step}{'s' * (self.steps != 1)}"]
        if self.cycles:
            out.append(
                f"  {self.cycles} cycles, {self.cycles_per_token:.0f} per token (bound {self.bound / n:.0f}, "
                f"bound/cycles {self.bound / self.cycles:.3f}); {n / self.time:.1f} tokens/s at "
                f"{self.config.clock_mhz:g} MHz"
            )
            out.append(
                f"  MAC utilisation {self.mac_utilisation:.1%}, "
                f"bandwidth utilisation {self.port_utilisation:.1%}"
            )
        if self.moved:
            out.append(
                f"  {self.moved / n:.0f} bytes moved per token, {self.need.bytes / n:.0f} needed "
                f"(ratio {self.moved / self.need.bytes:.3f})"
            )
        if simulated := self.counters.get("SIMULATED"):
            out.append(
                f"  simulated in {self.seconds:.1f} s of processor time, "
                f"{simulated / max(self.seconds, 1e-9) / 1e3:.0f} thousand cycles/s"
            )
        return out


class Stats:
    """Both phases of one generation."""

    def __init__(self, config: TileConfig):
        self.config = config
        self.prefill, self.decode = Phase(config), Phase(config)
        self.generated = 0
        """Tokens that the caller got."""

    def __str__(self) -> str:
        lines = self.prefill.lines("prefill") + self.decode.lines("decode")
        if lines and not self.prefill.cycles + self.decode.cycles:
            lines.append("no cycles: the golden model has no clock (--backend rtl counts them)")
        return "\n".join(lines)
