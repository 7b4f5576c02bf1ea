"""Timing closure on an LFE5U: nextpnr places, cells move by timing (sim/refine.py), long nets get relays
(sim/relay.py), nextpnr routes, and late paths are repaired (sim/repair.py) until every clock is met or a
number of turns is over."""

import json
import math
import re
from pathlib import Path

from sim.hold import hold, permuted
from sim.netlist import nextpnr
from sim.refine import refine
from sim.relay import relay
from sim.repair import repair

__all__ = ["PLACE", "constrained", "place_and_route", "slack"]

PLACE, ROUTE = ("--placer", "static"), ("--no-pack", "--placer", "heap", "--router", "router1")
"""How nextpnr places and routes: its default placer (heap) leaves a fifth more wire; its other router stops
short of a full part, with some thousand wires used twice for ever, where router1 takes its time and ends.
When it routes, all places are given (sim/hold.py); heap then has the least to do."""
AGAIN = 40
"""Sweeps of moves with relays; the first ones are without."""
KINDS = ("json", "routed.json", "sdf", "config", "log")
"""Files of a routed netlist: report, netlist, delays of its wires, configuration for ecppack, log."""
REPAIRS = 12
"""Turns of repair at most."""
HARDER = (0.99, 0.15), (0.99, 0.45), (0.97, 1.35)
"""What is repaired, by the turns without a better clock before, after the last of which it is left at that:
paths longer than a share of the shortest clock period, and their wires that are slower than usual by so much
(ns). A wire that came out slow again stays as it is, and the cells at its ends move instead."""


def place_and_route(command: list[str], netlist: Path, seed: int, enough: float = math.inf) -> dict:
    """nextpnr's report (JSON) of one seed, of the best turn.

    command: nextpnr with its options for part, constraints and clock, and --timing-allow-fail.
    enough: MHz that no clock has to exceed, whatever it is constrained to for the placement.
    In the netlist's folder are left seed<n>.placed.json (as nextpnr placed it), seed<n>.place.log and, of
    the best turn, seed<n>. and each of KINDS. RuntimeError where nextpnr fails; a clock that is too slow is
    only reported."""
    folder, name = netlist.parent, f"seed{seed}"
    placed, relayed, unrouted, routed = (
        folder / f"{name}.{kind}.json" for kind in ("placed", "relayed", "unrouted", "routed"))
    nextpnr([*command, "--json", netlist.name, *PLACE, "--no-route", "--write", placed.name,
             "--seed", str(seed)], folder, f"{name}.place.log")
    log = (folder / f"{name}.place.log").read_text()
    clocks = {net: min(mhz, enough) for net, mhz in constrained(log).items()}
    refine(placed, unrouted, seed=seed)
    relay(unrouted, relayed)
    refine(relayed, unrouted, sweeps=AGAIN, seed=seed)
    best: dict = {}
    gained = 0
    for turn in range(1 + REPAIRS):
        try:
            report = _route([*command, "--seed", str(seed + turn)], unrouted, f"{name}.turn", clocks)
        except RuntimeError as error:  # of what was to be better; there is a result
            if not best:
                raise
            print(error, flush=True)
        else:
            speeds = ", ".join(f"{fmax['achieved']:.1f} MHz" for fmax in report["fmax"].values())
            print(f"{name}: {speeds}", flush=True)
            if not best or slack(report) > slack(best):
                best, gained = report, turn
                for kind in KINDS:
                    (folder / f"{name}.turn.{kind}").replace(folder / f"{name}.{kind}")
        if slack(best) >= 1 or turn == REPAIRS or turn == gained + len(HARDER):
            break
        period = 1000 / max(fmax["constraint"] for fmax in best["fmax"].values())
        late, slow = HARDER[turn - gained]
        repair(routed, folder / f"{name}.sdf", unrouted, late * period, slow, seed=1 + turn)
    return best


def _route(command: list[str], netlist: Path, name: str, clocks: dict[str, float]) -> dict:
    """Report of one run of the router, with what the clocks have to reach. The netlist's places become
    constraints. RuntimeError where nextpnr fails or its router permuted inputs that are not alike."""
    held = json.loads(netlist.read_text())
    hold(held)
    netlist.write_text(json.dumps(held))
    files = zip(("--report", "--write", "--sdf", "--textcfg"), KINDS, strict=False)
    options = [word for option, kind in files for word in (option, f"{name}.{kind}")]
    nextpnr([*command, "--json", netlist.name, *ROUTE, *options], netlist.parent, f"{name}.log")
    if wrong := permuted(json.loads((netlist.parent / f"{name}.routed.json").read_text())):
        raise RuntimeError(f"{name}: {len(wrong)} inputs permuted that are not alike, first {wrong[0]}")
    report = json.loads((netlist.parent / f"{name}.json").read_text())
    for net, mhz in clocks.items():
        for clock, fmax in report["fmax"].items():
            if f"{clock.removeprefix('$glbnet$')}$".startswith(f"{net}$"):
                fmax["constraint"] = mhz
    (netlist.parent / f"{name}.json").write_text(json.dumps(report))
    return report


def slack(report: dict) -> float:
    """MHz that a report's clocks reach over those they have to, at least; 1 without clocks."""
    return min((fmax["achieved"] / fmax["constraint"] for fmax in report["fmax"].values()), default=1.0)


def constrained(log: str) -> dict[str, float]:
    """Clock net -> MHz that it has to reach, by nextpnr's log of the placement; a placed netlist that is read
    again has lost them."""
    given = re.findall(r"constraining clock net '(.+)' to ([\d.]+) MHz", log)
    derived = re.findall(r"Derived frequency constraint of ([\d.]+) MHz for net (.+)", log)
    return {net: float(mhz) for net, mhz in [*given, *((net, mhz) for mhz, net in derived)]}
