"""The command line: output, files, and errors in one line with exit status 2."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from golden.model import Model
from hw.config import BASE, TINY
from sw import generate, load
from sw.assembler import Program, R
from sw.checkpoint import load_checkpoint
from sw.cli import main
from sw.cost import Need
from sw.device import Run
from sw.plan import parts, plan, table
from sw.roofline import point, roofline
from sw.stats import Phase, Stats

REFERENCE = Path(__file__).parent / "reference"
LLAMA, BERT, GPTOSS = (str(REFERENCE / name) for name in ("llama", "bert", "gpt-oss"))
GOLDEN = ["--backend", "golden", "--config", "tiny"]


def run(*args: str) -> int:
    try:
        return main(args)
    except SystemExit as end:  # argparse
        return int(end.code or 0)


@pytest.fixture(scope="module")
def llama() -> tuple[list[int], str]:
    """Ids and text that the golden model continues the prompt with."""
    c = load_checkpoint(LLAMA)
    prompt = c.tokenizer.encode("hello")
    ids = list(Model(c.spec, c.params).generate(prompt, 4, stop=c.tokenizer.eos_ids))
    whole = c.tokenizer.decode([*prompt, *(i for i in ids if i not in c.tokenizer.eos_ids)])
    return ids, whole[len(c.tokenizer.decode(prompt)) :]


def test_generate(llama: tuple[list[int], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", LLAMA, "--prompt", "hello", "--tokens", "4", *GOLDEN) == 0
    out = capsys.readouterr().out
    assert out.startswith("hello" + llama[1])
    assert f"\n{len(llama[0])} tokens generated\n" in out
    assert re.search(r"decode: \d+ tokens? in", out) and "no cycles: the golden model has no clock" in out
    assert re.search(r"bytes moved per token, \d+ needed \(ratio 1\.\d+\)", out)


def test_generate_function(llama: tuple[list[int], str]) -> None:
    assert "".join(generate(LLAMA, "hello", 4, config="tiny", backend="golden")) == llama[1]


def test_python_api(llama: tuple[list[int], str]) -> None:
    with load(LLAMA, config="tiny", backend="golden") as session:
        tokens = list(session.generate("hello", 4))
    assert [t.id for t in tokens] == llama[0]
    assert "".join(t.text for t in tokens) == llama[1]


def test_batch_and_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--tokens", "2", "--temperature", "0.8", "--top-k", "9", "--top-p", "0.9", "--seed", "4", *GOLDEN]
    assert run("generate", LLAMA, "--prompt", "one", "--prompt", "two", *args, "--ignore-end") == 0
    out = capsys.readouterr().out
    assert "[0] one" in out and "[1] two" in out and "\n4 tokens generated\n" in out


def test_embed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    c = load_checkpoint(BERT)
    golden = Model(c.spec, c.params)
    texts = ["a b", "c"]
    want = np.stack([golden.pool(golden.hidden(c.tokenizer.encode(t)), "cls") for t in texts])
    args = ["embed", BERT, "--text", texts[0], "--text", texts[1], "--pooling", "cls", *GOLDEN]
    assert run(*args, "--out", str(tmp_path / "v.npy")) == 0
    assert np.array_equal(np.load(tmp_path / "v.npy"), want)
    assert run(*args) == 0
    out, err = capsys.readouterr()
    assert np.allclose([json.loads(line) for line in out.splitlines()], want, rtol=1e-5)
    assert f"prefill: {sum(len(c.tokenizer.encode(t)) for t in texts)} tokens in 2 chunks" in err


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", LLAMA, "--config", "tiny") == 0
    out = capsys.readouterr().out
    for part in (
        "model llama",
        "config tiny",
        "DRAM:",
        "every layer",
        "program prefill",
        "program decode",
        "program logits",
        "layers (predicted cycles)",
        "SRAM region",
    ):
        assert part in out
    c = load_checkpoint(LLAMA)
    s = c.spec.block
    assert re.search(rf"wq +MXINT8 +{s.heads * s.head_dim} x {s.hidden} ", out)
    rows = re.findall(r"^  (?:prefill of|decode at).*?(\d+) +(\d+) +(\d+) +(\d+) +[\d.]+$", out, re.M)
    assert len(rows) == 3
    for _, _, bound, predicted in rows:
        assert int(bound) <= int(predicted) < 3 * int(bound)


def test_inspect_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", LLAMA, "--config", "tiny", "--users", "3") == 2
    out, err = capsys.readouterr()
    assert "model llama" in out and re.search("does not fit: .*users = 3", err)
    c = load_checkpoint(LLAMA)
    small = TINY.replace(imem_words=512)
    lines, problems = plan(small, c.spec, c.params)
    assert len(problems) == 3 and all("words" in p and "allowed is 512" in p for p in problems)


def test_instructions_by_part() -> None:
    """Also the first instruction of a thread counts for its own thread."""
    p = Program(TINY)
    for thread, count in ((p.load, 2), (p.vector, 3)):
        with thread.label("first"):
            for _ in range(count):
                thread.li(R(1), 0)
    got = parts(SimpleNamespace(program=p, labels=p.labels))
    assert got == (["load", "vector"], [["first", 2, 3]])


def test_table() -> None:
    assert table(["a", "number"], [["x", 1], ["long", 22]]) == [
        "  a     number",
        "  x          1",
        "  long      22",
    ]


@pytest.mark.parametrize(
    "args, what",
    [
        (["generate", "missing", "--prompt", "x"], "missing"),
        (["generate", LLAMA, "--prompt", "x", "--config", "huge"], "config 'huge': allowed is one of tiny"),
        (["generate", LLAMA, "--prompt", "x", "--backend", "fpga"], "fpga"),
        (["generate", LLAMA], "--prompt"),
        (["generate", LLAMA, "--prompt", "x", "--tokens", "many"], "many"),
        (["generate", LLAMA, "--prompt", "x", "--tokens", "9999", *GOLDEN], "9999 tokens after a prompt of"),
        (["generate", LLAMA, "--prompt", "x", "--temperature", "-1", *GOLDEN], "temperature = -1.0"),
        (["generate", LLAMA, "--prompt", "x", "--context", "100000"], "100000"),
        (["generate", LLAMA, *["--prompt", "x"] * 3, *GOLDEN], "users = 3: allowed is 1..2"),
        (["generate", LLAMA, "--prompt", "x", "--chunk", "31", *GOLDEN], "chunk = 31"),
        (["generate", LLAMA, "--prompt", "x", "--dram", "0"], "dram = 0"),
        (["generate", LLAMA, "--prompt", "x", "--trace", "t.json", *GOLDEN], "trace"),
        (["generate", LLAMA, "--prompt", "x", "--stall", "0.1", *GOLDEN], "stall"),
        (["generate", LLAMA, "--prompt", "x", "--roofline", "r.png", *GOLDEN], "roofline"),
        (["generate", BERT, "--prompt", "x", *GOLDEN], "is an encoder"),
        (["embed", LLAMA, "--text", "x", *GOLDEN], "writes text"),
        (["bench", LLAMA, "--tokens", "-1"], "--tokens -1: allowed is 1 or more"),
        (["bench", LLAMA, "--prompt-tokens", "0"], "--prompt-tokens 0: allowed is 1 or more"),
        (["generate", LLAMA, "--prompt", "x", "--trace", "."], ".: allowed is a file in a directory"),
        (["embed", BERT, "--text", "x", "--out", "none/x.npy", *GOLDEN], "none/x.npy: allowed is a file"),
        (["inspect", LLAMA, "--dram", "8192"], "allowed is at most 4294967296"),
        (["inspect", "missing"], "missing"),
        (["launch", LLAMA], "launch"),
    ],
)
def test_bad_input(args: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert what in lines[-1] and lines[-1].startswith("serrano")
    assert len(lines) <= 2 and all(line.startswith("compiling") for line in lines[:-1])


def test_a_broken_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "llama"
    shutil.copytree(LLAMA, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run("generate", str(broken), "--prompt", "x") == 2
    assert "model.safetensors" in capsys.readouterr().err.splitlines()[-1]


def test_entry_point() -> None:
    """As a program, with the environment's Python."""
    done = subprocess.run(
        [sys.executable, "-m", "sw.cli", "inspect", "missing"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("serrano: ") and done.stderr.count("\n") == 1


# ---------------------------------------------------------------- RTL


def test_rtl(llama: tuple[list[int], str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same text as golden, with cycles, a trace and a roofline chart."""
    files = ["--trace", str(tmp_path / "t.json"), "--roofline", str(tmp_path / "r.png")]
    assert run("generate", LLAMA, "--prompt", "hello", "--tokens", "4", "--config", "tiny", *files) == 0
    out = capsys.readouterr().out
    assert out.startswith("hello" + llama[1])
    assert re.search(r"decode: .*\n +\d+ cycles, \d+ per token \(bound \d+, bound/cycles 0\.\d+\)", out)
    assert re.search(r"MAC utilisation [\d.]+%, bandwidth utilisation [\d.]+%", out)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    labels = {e["args"]["label"] for e in events if e["ph"] == "X" and "label" in e["args"]}
    assert "head" in labels
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_trace_names_the_layers(tmp_path: Path) -> None:
    """Decode goes through all layers: labels with the number of each, none left open."""
    with load(LLAMA, config="tiny", trace=True) as session:
        list(session.generate([5], 2))
        session.write_trace(tmp_path / "t.json")
        layers = session.spec.layers
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    labels = {e["args"]["label"] for e in events if e["ph"] == "X" and "label" in e["args"]}
    assert not [label for label in labels if "{" in label]
    for i in range(layers):
        assert any(f"layer {i} / wq" in label for label in labels)


def test_rtl_goes_on_after_a_stopped_burst(llama: tuple[list[int], str]) -> None:
    with load(LLAMA, config="tiny", stall=0.3, seed=2) as session:
        tokens = session.generate("hello", 40)
        assert next(tokens).id == llama[0][0]
        assert [t.id for t in session.generate("hello", 4)] == llama[0]
        assert session.stats.decode.tokens == len(llama[0])
        assert 0.3 < session.stats.decode.bound / session.stats.decode.cycles < 0.7


def test_bench(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = ["--config", "tiny", "--prompt-tokens", "9", "--tokens", "2", "--out", str(tmp_path / "b.json")]
    assert run("bench", LLAMA, *args) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    results = json.loads((tmp_path / "b.json").read_text())
    assert [(r["phase"], r["memory"], r["tokens"]) for r in results] == [
        ("prefill", "ideal", 9),
        ("decode", "ideal", 2),
        ("prefill", "stall20", 9),
        ("decode", "stall20", 2),
    ]
    assert all(0.05 < r["ratio"] < 1 for r in results)
    assert results[3]["cycles"] > 1.1 * results[1]["cycles"]


# ---------------------------------------------------------------- statistics and roofline


def phase() -> Phase:
    p = Phase(BASE)
    counters = {"READ_BEATS": 800, "WRITE_BEATS": 50, "SIMULATED": 2000}
    p.add(Run(1000, counters=counters, seconds=0.5), Need(64_000, 12_000, 400), 2, 2)
    return p


def test_statistics() -> None:
    p = phase()
    p.add(Run(1000, counters={"READ_BEATS": 800, "WRITE_BEATS": 50}), Need(64_000, 12_000, 400), 2, 2)
    assert (p.tokens, p.cycles, p.cycles_per_token, p.bound) == (4, 2000, 500, 1500)
    assert p.mac_utilisation == 128_000 / 256 / 2000 and p.port_utilisation == 0.8
    assert (p.read, p.written, p.moved) == (25_600, 1_600, 27_200)
    assert p.time == 20e-6
    stats = Stats(BASE)
    stats.decode = p
    text = str(stats)
    for part in (
        "4 tokens in 4 steps",
        "2000 cycles, 500 per token (bound 375, bound/cycles 0.750)",
        "MAC utilisation 25.0%",
        "bandwidth utilisation 80.0%",
        "6800 bytes moved per token, 6200 needed",
    ):
        assert part in text


def test_roofline(tmp_path: Path) -> None:
    p = phase()
    assert point(p) == (64_000 / 12_800, 64.0)
    roofline(tmp_path / "r.png", BASE, {"decode": p, "prefill": Phase(BASE)})
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "r.png"
    ).stat().st_size > 10_000
    with pytest.raises(ValueError, match="without measured cycles"):
        roofline(tmp_path / "s.png", BASE, {"decode": Phase(BASE)})
