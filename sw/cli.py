"""The command line: `serrano generate | embed | inspect | bench`.

Bad input ends in one line on stderr and exit status 2.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from golden.machine import MachineError
from hw import boards, config_file
from hw.config import CONFIGS

from .engine import BACKENDS, BOARDS, check_backend
from .runtime import BURST, DEFAULT_TOKENS, Session, load

WEIGHTS = ("mxint8", "mxfp6", "mxfp4")
MEMORIES: dict[str, dict[str, Any]] = {"ideal": {}, "stall20": {"stall": 0.2, "seed": 5}}
"""DRAM models of bench: device options by name."""


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _backend(name: str) -> str:
    try:
        check_backend(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="serrano", description="Run language models on the Serrano tile.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="generate | embed | inspect | bench"
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=text, description=text)
        p.add_argument("model", metavar="MODEL", help="checkpoint directory, or a llama2.c .bin file")
        names = ", ".join([*CONFIGS, *boards.BOARDS])
        p.add_argument("--config", default="base", help=f"tile: {names}, or a file (default %(default)s)")
        p.add_argument("--weights", default="mxint8", choices=WEIGHTS, help="format of the weights")
        p.add_argument("--context", type=int, metavar="N", help="positions to make room for (the model's)")
        p.add_argument("--tokenizer", metavar="FILE", help="tokenizer of a llama2.c file (found beside it)")
        p.add_argument("--chunk", type=int, metavar="N", help="tokens of a prefill (the most that fits)")
        p.add_argument(
            "--dram", type=int, default=1024, metavar="MIB", help="DRAM size (default %(default)s)"
        )
        return p

    def device(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--backend",
            default="rtl",
            type=_backend,
            help=f"{', '.join(BACKENDS + BOARDS)} (docs/boards.md)",
        )
        p.add_argument("--latency", type=int, metavar="CYCLES", help="DRAM latency of the RTL's memory (40)")
        p.add_argument(
            "--stall", type=float, metavar="F", help="fraction of cycles each AXI channel stalls (0)"
        )
        p.add_argument("--trace", type=Path, metavar="OUT.json", help="trace for ui.perfetto.dev (rtl)")
        p.add_argument("--roofline", type=Path, metavar="OUT.png", help="roofline chart of this run (rtl)")

    p = command("generate", "continue a prompt; text appears as tokens come")
    p.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="several: decoded together"
    )
    p.add_argument(
        "--tokens", type=int, metavar="N", help=f"at most so many ({DEFAULT_TOKENS}, or the context)"
    )
    p.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the likeliest token")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (0: all)")
    p.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="... whose probabilities reach P (1: all)"
    )
    p.add_argument("--seed", type=int, default=0, help="of the draws")
    p.add_argument(
        "--burst", type=int, default=BURST, metavar="N", help="greedy tokens per doorbell (%(default)s)"
    )
    p.add_argument("--ignore-end", action="store_true", help="go on after the end of text")
    device(p)
    p = command("embed", "a vector for a text, from an encoder")
    p.add_argument("--text", action="append", required=True, help="several: one vector each")
    p.add_argument("--pooling", default="mean", choices=("mean", "cls", "pooler"))
    p.add_argument("--out", type=Path, metavar="OUT.npy", help="write float32 here instead of printing")
    device(p)
    p = command("inspect", "the plan: tensors, DRAM, SRAM, programs, predicted cycles")
    p.add_argument("--users", type=int, default=1, metavar="N", help="sequences decoded together")
    p = command("bench", "cycles on the RTL against their bound, with ideal DRAM and with 20 %% stalls")
    p.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="prefill (default %(default)s)"
    )
    p.add_argument("--tokens", type=int, default=8, metavar="N", help="decode (default %(default)s)")
    p.add_argument("--out", type=Path, metavar="OUT.json", help="the numbers")
    p.add_argument("--roofline", type=Path, metavar="OUT.png", help="roofline chart (ideal DRAM)")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _open(args: argparse.Namespace, users: int = 1, **options: Any) -> Session:
    backend = getattr(args, "backend", "rtl")
    for name in ("latency", "stall"):
        if getattr(args, name, None) is not None:
            options[name] = getattr(args, name)
    if getattr(args, "trace", None):
        options["trace"] = True
    if backend != "rtl" and (wrong := sorted({*options, *(["roofline"] if args.roofline else [])})):
        raise ValueError(f"--{wrong[0]} with backend {backend!r}: allowed is 'rtl'")
    if args.dram < 1:
        raise ValueError(f"dram = {args.dram}: allowed is 1 MiB or more")
    _say(f"compiling {args.model} for {args.config}, backend {backend}")
    session = load(
        args.model,
        config=args.config,
        backend=backend,
        weights=args.weights,
        context=args.context,
        users=users,
        tokenizer=args.tokenizer,
        chunk=args.chunk,
        dram_bytes=args.dram << 20,
        **options,
    )
    if not session.engine.image.chunk:
        reason = session.engine.image.no_prefill or f"no chunk of 32 tokens fits config {args.config}"
        _say(f"no prefill, prompts go through decode: {reason}")
    return session


def _positive(args: argparse.Namespace, **least: int) -> None:
    """ValueError where a number of the command line is too small."""
    for name, low in least.items():
        if getattr(args, name) < low:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {getattr(args, name)}: allowed is {low} or more")


def _writable(*paths: Path | None) -> None:
    """ValueError, before anything runs, where a file could not be written."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ValueError(f"{path}: allowed is a file in a directory that exists")


def _finish(args: argparse.Namespace, session: Session) -> None:
    """Statistics, on standard error behind vectors, and the files that were asked for."""
    print(session.stats, file=sys.stderr if args.command == "embed" else sys.stdout, flush=True)
    if args.trace:
        session.write_trace(args.trace)
        _say(f"trace in {args.trace}: open it at ui.perfetto.dev")
    if args.roofline:
        _roofline(args.roofline, session)


def _roofline(path: Path, session: Session) -> None:
    from .roofline import roofline

    roofline(path, session.config, {"prefill": session.stats.prefill, "decode": session.stats.decode})
    _say(f"roofline in {path}")


def _generate(args: argparse.Namespace) -> None:
    _writable(args.trace, args.roofline)
    with _open(args, users=len(args.prompt)) as session:
        tokens = session.generate_batch(
            args.prompt,
            args.tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            burst=args.burst,
            stop=not args.ignore_end,
        )
        texts = list(args.prompt)
        if len(texts) == 1:
            print(texts[0], end="", flush=True)
        for token in tokens:
            texts[token.user] += token.text
            if len(texts) == 1:
                print(token.text, end="", flush=True)
            else:  # as they come, a line for each
                print(f"[{token.user}] {token.text!r}", file=sys.stderr, flush=True)
        print("\n" if len(texts) == 1 else "".join(f"[{u}] {t}\n\n" for u, t in enumerate(texts)), end="\n")
        print(f"{session.stats.generated} tokens generated")
        _finish(args, session)


def _embed(args: argparse.Namespace) -> None:
    _writable(args.trace, args.roofline, args.out)
    with _open(args) as session:
        vectors = session.embed_batch(args.text, args.pooling)
        if args.out:
            np.save(args.out, vectors)
        else:
            for v in vectors:
                print(json.dumps([float(f"{x:.7g}") for x in v]))
        _finish(args, session)


def _inspect(args: argparse.Namespace) -> None:
    from .checkpoint import load_checkpoint
    from .plan import plan

    config = config_file.load(args.config)
    c = load_checkpoint(args.model, weights=args.weights, context=args.context, tokenizer=args.tokenizer)
    lines, problems = plan(
        config, c.spec, c.params, users=args.users, chunk=args.chunk, dram_bytes=args.dram << 20
    )
    print("\n".join(lines))
    if problems:
        raise ValueError("does not fit: " + "; ".join(problems))


def _bench(args: argparse.Namespace) -> None:
    _positive(args, prompt_tokens=1, tokens=1)
    _writable(args.out, args.roofline)
    results = []
    print(
        f"{'phase':10s}{'memory':10s}{'tokens':>7s}{'cycles':>11s}{'bound':>11s}{'ratio':>8s}{'MACs':>8s}"
        f"{'port':>8s}{'moved/need':>11s}{'cycles/s':>10s}"
    )
    for memory, options in MEMORIES.items():
        with _open(args, **options) as session:
            spec, chunk = session.spec, session.engine.image.chunk
            steps = min(args.tokens, spec.context - 1) if spec.decoder else 0
            n = min(args.prompt_tokens, chunk, spec.context - max(1, steps))
            ids = np.random.default_rng(7).integers(0, spec.vocab, n + 1 if spec.decoder else n)
            if spec.decoder:
                for _ in session.generate(ids.tolist(), steps, stop=False):
                    pass
            else:
                session.encode(ids.tolist())
            for name, p in (("prefill", session.stats.prefill), ("decode", session.stats.decode)):
                if not p.tokens:
                    continue
                ratio, simulated = p.bound / p.cycles, p.counters["SIMULATED"] / max(p.seconds, 1e-9)
                print(
                    f"{name:10s}{memory:10s}{p.tokens:7d}{p.cycles:11d}{p.bound:11.0f}{ratio:8.3f}"
                    f"{p.mac_utilisation:8.1%}{p.port_utilisation:8.1%}{p.moved / p.need.bytes:11.3f}"
                    f"{simulated:10.0f}",
                    flush=True,
                )
                results.append(
                    {
                        "phase": name,
                        "memory": memory,
                        "tokens": p.tokens,
                        "cycles": p.cycles,
                        "bound_cycles": round(p.bound, 1),
                        "macs": p.need.macs,
                        "bytes_moved": p.moved,
                        "bytes_needed": p.need.bytes,
                        "ratio": round(ratio, 4),
                    }
                )
            if args.roofline and memory == "ideal":
                _roofline(args.roofline, session)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    run = {"generate": _generate, "embed": _embed, "inspect": _inspect, "bench": _bench}[args.command]
    try:
        run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (ValueError, MemoryError, OSError, RuntimeError, MachineError) as error:
        _say(f"serrano: {' '.join(str(error).split()) or type(error).__name__}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
