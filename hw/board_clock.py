"""The clock of a board: dividers of a PLL for a wanted frequency, and the PLL itself as a vendor's primitive.

ECP5: EHXPLLL, whose feedback is its output, so out = reference / input x feedback, VCO = out x output.
7 series: PLLE2_BASE, whose feedback is the VCO, so VCO = reference / input x feedback, out = VCO / output.
Limits: ECP5 and ECP5-5G family data sheet (FPGA-DS-02012), sysCLOCK PLL timing; Artix-7 data sheet (DS181),
PLL switching characteristics, speed grade -1.
"""

from dataclasses import dataclass

from amaranth import Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["LIMITS", "ClockGenerator", "Dividers", "Limits", "dividers"]

Range = tuple[float, float]
TOLERANCE = 0.001
"""Of the wanted frequency."""


@dataclass(frozen=True)
class Limits:
    """Of a PLL, in MHz, ends included; and the largest dividers."""

    reference: Range
    detector: Range
    vco: Range
    output: Range
    input_div: int
    feedback_div: int
    output_div: int
    feedback_of_output: bool


LIMITS = {
    "ecp5": Limits((8, 400), (10, 400), (400, 800), (3.125, 400), 128, 128, 128, True),
    "xc7": Limits((19, 800), (19, 450), (800, 1600), (6.25, 800), 56, 64, 128, False),
}


@dataclass(frozen=True)
class Dividers:
    """input, feedback, output: the dividers; the rest, in MHz, is what they make."""

    input: int
    feedback: int
    output: int
    detector_mhz: float
    vco_mhz: float
    mhz: float


def dividers(family: str, reference_mhz: float, wanted_mhz: float) -> Dividers:
    """Dividers for exactly the wanted frequency (0.1 %), within the family's limits.

    Of several the least input divider (the fastest comparison), then the VCO nearest the middle of its range.
    ValueError names what is near.
    """
    limits = LIMITS[family]
    if not _within(reference_mhz, limits.reference):
        raise ValueError(f"reference = {reference_mhz:g} MHz: allowed is {_text(limits.reference)}")
    found, near = [], []
    for i in range(1, limits.input_div + 1):
        detector = reference_mhz / i
        if not _within(detector, limits.detector):
            continue
        for f in range(1, limits.feedback_div + 1):
            for o in range(1, limits.output_div + 1):
                vco = detector * f * (o if limits.feedback_of_output else 1)
                out = vco / o
                if vco > limits.vco[1] and limits.feedback_of_output:
                    break
                if not (_within(vco, limits.vco) and _within(out, limits.output)):
                    continue
                near.append(out)
                if abs(out / wanted_mhz - 1) <= TOLERANCE:
                    found.append(Dividers(i, f, o, detector, vco, out))
    if not found:
        close = sorted(set(near), key=lambda mhz: abs(mhz - wanted_mhz))[:3]
        raise ValueError(
            f"clock = {wanted_mhz:g} MHz from {reference_mhz:g} MHz: near it {family} has "
            f"{', '.join(f'{mhz:g}' for mhz in sorted(close))}"
        )
    middle = sum(limits.vco) / 2
    return min(found, key=lambda d: (d.input, abs(d.vco_mhz - middle)))


def _within(mhz: float, bounds: Range) -> bool:
    return bounds[0] <= mhz <= bounds[1]


def _text(bounds: Range) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g} MHz"


class ClockGenerator(wiring.Component):
    """`o`: the wanted clock, from the oscillator on `i`; `locked`: it is steady (asynchronous)."""

    def __init__(self, family: str, reference_mhz: float, wanted_mhz: float):
        self.family, self.reference_mhz = family, reference_mhz
        self.dividers = dividers(family, reference_mhz, wanted_mhz)
        super().__init__({"i": In(1), "o": Out(1), "locked": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.pll = self._ecp5() if self.family == "ecp5" else self._xc7(m)
        return m

    def _ecp5(self) -> Instance:
        d = self.dividers
        return Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{self.reference_mhz:g}", a_FREQUENCY_PIN_CLKOP=f"{d.mhz:g}",
            # Of the loop filter: what Lattice's own tool writes for these frequencies.
            a_ICP_CURRENT="12", a_LPF_RESISTOR="8", a_MFG_ENABLE_FILTEROPAMP="1", a_MFG_GMCREF_SEL="2",
            p_CLKI_DIV=d.input, p_CLKFB_DIV=d.feedback, p_FEEDBK_PATH="CLKOP",
            p_CLKOP_ENABLE="ENABLED", p_CLKOP_DIV=d.output, p_CLKOP_CPHASE=d.output - 1, p_CLKOP_FPHASE=0,
            p_OUTDIVIDER_MUXA="DIVA", p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED", p_DPHASE_SOURCE="DISABLED",
            i_CLKI=self.i, i_CLKFB=self.o, i_RST=0, i_STDBY=0, i_PLLWAKESYNC=0, i_ENCLKOP=0,
            i_PHASESEL0=0, i_PHASESEL1=0, i_PHASEDIR=1, i_PHASESTEP=1, i_PHASELOADREG=1,
            o_CLKOP=self.o, o_LOCK=self.locked,
        )

    def _xc7(self, m: Module) -> Instance:
        d = self.dividers
        feedback, clock = Signal(), Signal()
        m.submodules.buffer = Instance("BUFG", i_I=clock, o_O=self.o)
        return Instance(
            "PLLE2_BASE",
            p_CLKIN1_PERIOD=1000 / self.reference_mhz, p_DIVCLK_DIVIDE=d.input, p_CLKFBOUT_MULT=d.feedback,
            p_CLKOUT0_DIVIDE=d.output,
            i_CLKIN1=self.i, i_CLKFBIN=feedback, i_RST=0, i_PWRDWN=0,
            o_CLKFBOUT=feedback, o_CLKOUT0=clock, o_LOCKED=self.locked,
        )
