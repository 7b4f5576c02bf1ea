"""Writes docs/isa.md, docs/registers.md and build/serrano_registers.h from the tables; `make docs` runs
it."""
from pathlib import Path

from . import csr_map
from .isa import ARGS, LOOP_DEPTH, REGISTERS, TABLE, THREADS, Alu, Error, Field

__all__ = ["PAGES", "isa_page", "main"]

ROOT = Path(__file__).resolve().parent.parent


def _bits(field: Field) -> str:
    return f"[{field.lo + field.width - 1}:{field.lo}]" if field.width > 1 else f"[{field.lo}]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def isa_page() -> str:
    """docs/isa.md."""
    lines = [
        "# Instruction set", "",
        "Generated from `hw/isa.py` (`make docs`). Exact semantics: [architecture](architecture.md).", "",
        f"Words are 32 bits, little endian. Words 0..{len(THREADS) - 1} of a program are the entry points "
        "(word index) of the threads "
        f"{', '.join(t.upper() for t in THREADS)}; 0: the thread does not run.",
        f"Each thread has {REGISTERS} registers (r0 reads 0, all are 0 at the start), "
        f"loops nest {LOOP_DEPTH} deep, and there are {ARGS} arguments from the host.", "",
        "Word 0: opcode in [5:0]; undefined bits are 0. Unit instructions: word 1 is the mask of the",
        "operands present, then one word for each, in ascending index. A *reg* operand is a signed 28-bit",
        "immediate in [27:0] plus the register named in [31:28]; a *raw* operand is the 32-bit value",
        "itself. Absent operands have their default.", "",
        "| opcode | instruction | thread | words | |", "| --- | --- | --- | --- | --- |"]
    for i in TABLE:
        thread = THREADS[i.unit].upper() if i.unit is not None else "any"
        words = "2 + operands" if i.unit is not None else str(i.words)
        link = f"[{i.name}](#{i.name.lower()})"
        lines.append(f"| {int(i.op):#04x} | {link} | {thread} | {words} | {_cell(i.doc)} |")
    for i in TABLE:
        lines += ["", f"## {i.name}", "", i.doc]
        if i.fields:
            lines += ["", "| bits of word 0 | field | |", "| --- | --- | --- |"]
            lines += [f"| {_bits(f)} | {f.name} | {_cell(f.doc)} |" for f in i.fields]
        if i.operands:
            lines += ["", "| index | operand | class | default | |", "| --- | --- | --- | --- | --- |"]
            lines += [f"| {k} | {o.name} | {'raw' if o.raw else 'reg'} | {o.default} | {_cell(o.doc)} |"
                      for k, o in enumerate(i.operands)]
        for o in i.operands:
            if o.fields:
                lines += ["", f"| bits of {o.name} | field | |", "| --- | --- | --- |"]
                lines += [f"| {_bits(f)} | {f.name} | {_cell(f.doc)} |" for f in o.fields]
    lines += ["", "## ALU functions", "", (Alu.__doc__ or "").strip(), "", "| func | |", "| --- | --- |"]
    lines += [f"| {a.value} | {a.name} |" for a in Alu]
    lines += ["", "## Errors", "", (Error.__doc__ or "").strip(), "", "| code | |", "| --- | --- |"]
    lines += [f"| {e.value} | {e.name} |" for e in Error]
    return "\n".join([*lines, ""])


PAGES = {"docs/isa.md": isa_page, "docs/registers.md": csr_map.markdown,
         "build/serrano_registers.h": csr_map.c_header}


def main() -> None:
    for name, page in PAGES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page())


if __name__ == "__main__":
    main()
