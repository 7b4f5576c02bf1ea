"""Pages and C headers from the tables: docs/isa.md, docs/registers.md, build/serrano_registers.h and
build/serrano_isa.h (`make docs`), and the header beside an exported tile (hw/export.py)."""
from dataclasses import asdict
from pathlib import Path

from . import csr_map
from .config import TileConfig
from .isa import ARGS, LOOP_DEPTH, REGISTERS, TABLE, THREADS, Alu, Error, Field

__all__ = ["PAGES", "c_header", "isa_header", "isa_page", "main"]

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


def _c_field(prefix: str, f: Field) -> list[str]:
    return [f"#define {prefix}_{f.name.upper()}_SHIFT {f.lo}",
            f"#define {prefix}_{f.name.upper()}_MASK 0x{(1 << f.width) - 1 << f.lo:08x}u"]


def isa_header() -> str:
    """The instruction table as C: opcodes, position and mask of fields, index and default of operands.

    SERRANO_<instruction>_<field>_SHIFT and _MASK belong to word 0; operand k of a unit instruction is bit k
    (SERRANO_<instruction>_OPERAND_<operand>) of word 1, and fields of a raw operand are named after it.
    """
    lines = ["/* Generated from hw/isa.py; docs/isa.md. */", "#ifndef SERRANO_ISA_H",
             "#define SERRANO_ISA_H", "",
             f"#define SERRANO_THREADS {len(THREADS)}", f"#define SERRANO_ARGS {ARGS}",
             f"#define SERRANO_LOOP_DEPTH {LOOP_DEPTH}", f"#define SERRANO_THREAD_REGISTERS {REGISTERS}",
             *(f"#define SERRANO_THREAD_{name.upper()} {k}" for k, name in enumerate(THREADS)),
             "#define SERRANO_OPCODE_MASK 0x3fu",
             "/* A reg operand word: signed immediate and the register that is added to it. */",
             "#define SERRANO_REG_OPERAND(reg, imm) ((((reg) & 0xfu) << 28) | ((imm) & 0x0fffffffu))"]
    for i in TABLE:
        lines += ["", f"/* {i.name}: {i.doc.replace('*/', '* /')} */",
                  f"#define SERRANO_OP_{i.name} 0x{int(i.op):02x}u",
                  f"#define SERRANO_{i.name}_WORDS {2 if i.unit is not None else i.words}"
                  + (" /* and one for each operand present */" if i.unit is not None else "")]
        for f in i.fields:
            lines += _c_field(f"SERRANO_{i.name}", f)
        for k, o in enumerate(i.operands):
            lines += [f"#define SERRANO_{i.name}_OPERAND_{o.name.upper()} {k}",
                      f"#define SERRANO_{i.name}_DEFAULT_{o.name.upper()} {o.default & 0xFFFFFFFF}u"]
            for f in o.fields:
                lines += _c_field(f"SERRANO_{i.name}_{o.name.upper()}", f)
        if i.operands:
            lines.append(f"#define SERRANO_{i.name}_RAW_OPERANDS 0x{i.raw_mask:08x}u")
    lines += ["", *(f"#define SERRANO_ALU_{a.name} {a.value}" for a in Alu), "", "#endif", ""]
    return "\n".join(lines)


def c_header(config: TileConfig) -> str:
    """All that a driver of a tile of this config needs: parameters, registers, instructions."""
    lines = [f"/* Serrano tile, config {config.name}. */", "#ifndef SERRANO_PARAM_H",
             "#define SERRANO_PARAM_H", ""]
    for name, value in asdict(config).items():
        text = f'"{value}"' if isinstance(value, str) else f"{value}"
        lines.append(f"#define SERRANO_PARAM_{name.upper()} {text}")
    lines += [f"#define SERRANO_EXPECT_{name} 0x{value:08x}u"  # what the register of that name reads
              for name, value in csr_map.constants(config).items()]
    lines += ["", "#endif", ""]
    return "\n".join(lines) + csr_map.c_header() + isa_header()


PAGES = {"docs/isa.md": isa_page, "docs/registers.md": csr_map.markdown,
         "build/serrano_registers.h": csr_map.c_header,
         "build/serrano_isa.h": isa_header}


def main() -> None:
    for name, page in PAGES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page())


if __name__ == "__main__":
    main()
