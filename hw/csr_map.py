"""The control and status registers: one table gives the AXI4-Lite register file, the C header and
docs/registers.md.

Imports no Amaranth. Byte offsets from the tile's base; every register is 32 bits wide and accessed as a
whole.
"""
from dataclasses import dataclass

from .config import TileConfig
from .isa import ARGS, Error, Field

ADDR_BITS = 12
ID = 0x5352_524E  # "SRRN"
VERSION = 0x0001_0000
STATES = ("IDLE", "START", "LOAD", "RUN", "DRAIN", "CLEAR")
"""Values of STATUS.state (hw/tile.py)."""


@dataclass(frozen=True)
class Register:
    """`access`: ro (the tile drives it), rw, w1c (write 1 to clear), wo (a pulse for each bit written as 1,
    reads 0)."""
    name: str
    offset: int
    access: str
    doc: str
    fields: tuple[Field, ...] = ()
    reset: int = 0


@dataclass(frozen=True)
class Counter:
    """A 48-bit event counter: registers `name`_LO and `name`_HI. `source`: "unit.member" that is added in
    each cycle, `bits` wide."""
    name: str
    source: str
    doc: str
    bits: int = 1


COUNTER_BITS = 48
COUNTERS: tuple[Counter, ...] = (
    Counter("CYCLES", "tile.count_cycles", "cycles from doorbell to done"),
    Counter("WORDS", "sequencer.count_words", "instruction words read"),
    Counter("BLOCKS", "matmul.count_block", "blocks streamed through the array"),
    Counter("MACS", "matmul.count_macs", "multiply-accumulates on rows that are present", 11),
    Counter("ELEMENTS", "vector.count_elements", "vector elements (of C lanes each)"),
    Counter("READ_BEATS", "load.count_read_beat", "AXI read data beats"),
    Counter("WRITE_BEATS", "store.count_write_beat", "AXI write data beats"),
    Counter("FLITS_IN", "noc.count_in", "NoC flits received"),
    Counter("FLITS_OUT", "noc.count_out", "NoC flits sent"),
    Counter("MATMUL_WAIT_STREAM", "matmul.count_wait_stream", "cycles the array waited for streamed blocks"),
    Counter("MATMUL_WAIT_STAT", "matmul.count_wait_stat", "cycles the array waited for stationary blocks"),
    Counter("MATMUL_WAIT_DRAIN", "matmul.count_wait_drain",
            "cycles the array waited for room for its results"),
    Counter("VECTOR_WAIT_SOURCE", "vector.count_wait_source", "cycles the lanes waited for operands"),
    Counter("VECTOR_WAIT_SINK", "vector.count_wait_sink", "cycles the lanes waited for room for results"),
    Counter("LOAD_WAIT_AR", "load.count_wait_ar", "cycles a read address waited"),
    Counter("LOAD_WAIT_R", "load.count_wait_r", "cycles the read engine waited for data"),
    Counter("LOAD_WAIT_SRAM", "load.count_wait_sram", "cycles the read engine waited for the SRAM"),
    Counter("STORE_WAIT_AW", "store.count_wait_aw", "cycles a write address waited"),
    Counter("STORE_WAIT_W", "store.count_wait_w", "cycles write data waited"),
    Counter("STORE_WAIT_SRAM", "store.count_wait_sram", "cycles the write engine waited for the SRAM"),
    Counter("SRAM_WAIT", "tile.count_sram_wait", "requests that waited for their bank, summed over ports",
            4),
    *(Counter(f"THREAD_WAIT_{name}", f"tile.count_thread_wait_{k}",
              f"cycles that the {name} thread waited for a semaphore")
      for k, name in enumerate(("LOAD", "STORE", "MATMUL", "VECTOR", "SEND"))),
)
COUNTER_BASE = 0x100

_EVENTS = (Field("done", 0, 1, "the program is complete"), Field("error", 1, 1,
                                                                 "the tile stopped with an error"),
           Field("aborted", 2, 1, "the tile stopped after CTRL.abort"))

REGISTERS: tuple[Register, ...] = (
    Register("ID", 0x000, "ro", f"{ID:#010x}"),
    Register("VERSION", 0x004, "ro", "major [31:16], minor [15:0]"),
    Register("CONFIG", 0x008, "ro", "parameters of the tile", (
        Field("columns", 0, 8, "array columns C"), Field("banks", 8, 8, "SRAM banks"),
        Field("word_bytes", 16, 8, "bytes of an SRAM word"), Field("axi_bytes", 24, 8,
                                                                   "bytes of an AXI beat"))),
    Register("CONFIG2", 0x00C, "ro", "more of them", (
        Field("psum_depth", 0, 12, "partial sums per column"), Field("semaphores", 12, 8, "semaphores"),
        Field("clock_mhz", 20, 12, "clock that the tile was built for"))),
    Register("SRAM_BYTES", 0x010, "ro", "bytes of SRAM"),
    Register("IMEM_WORDS", 0x014, "ro", "words of instruction memory"),
    Register("CTRL", 0x020, "wo", "commands", (
        Field("doorbell", 0, 1, "run the program; ignored while one runs"),
        Field("abort", 1, 1, "stop the running program"))),
    Register("STATUS", 0x024, "ro",
             "what the tile does; done, error and aborted tell how the last run ended", (
        Field("busy", 0, 1, "a run has not ended"), Field("done", 1, 1, "it ended well"),
        Field("error", 2, 1, "an error ended it: see ERR_*"), Field("aborted", 3, 1, "CTRL.abort ended it"),
        Field("loaded", 4, 1, "a complete program is in the instruction memory"),
        Field("state", 8, 3, ", ".join(f"{k} {name}" for k, name in enumerate(STATES))),
        Field("halted", 16, 5, "threads that do not run"), Field("waiting", 24, 5,
                                                                 "threads that wait for a semaphore"))),
    Register("IRQ_ENABLE", 0x028, "rw", "events that raise irq", _EVENTS, 7),
    Register("IRQ_STATUS", 0x02C, "w1c", "events since they were cleared", _EVENTS),
    Register("PROG_ADDR", 0x030, "rw", "DRAM byte address of the program, multiple of 4"),
    Register("PROG_WORDS", 0x034, "rw", "its words; 0 runs the program loaded before"),
    Register("DRAM_BASE", 0x038, "rw", "first DRAM byte that the tile may touch"),
    Register("DRAM_SIZE", 0x03C, "rw", "bytes that it may touch", reset=0xFFFF_FFFF),
    Register("WATCHDOG", 0x040, "rw", "cycles without progress that stop the tile; 0: never", reset=1 << 20),
    Register("TILE_ID", 0x044, "rw", "own NoC address, y << 8 | x"),
    Register("UNITS", 0x048, "ro", "units at work", (
        Field("busy", 0, 5, "LOAD, STORE, MATMUL, VECTOR, SEND has work"),
        Field("queued", 8, 5, "its command port holds words"))),
    Register("ERR_CODE", 0x050, "ro", "why the last run stopped: "
             + ", ".join(f"{e.value} {e.name}" for e in Error)),
    Register("ERR_PC", 0x054, "ro", "word index of the failing instruction"),
    Register("ERR_VALUE", 0x058, "ro", "offending address, word or operand"),
    Register("UNIT_CYCLES", 0x05C, "ro",
             "cycles from the issue of the first unit instruction to the completion of the last"),
    *(Register(f"ARG{k}", 0x060 + 4 * k, "rw", "argument of the program") for k in range(ARGS)),
    *(Register(f"{c.name}_{part}", COUNTER_BASE + 8 * k + 4 * high, "ro", doc)
      for k, c in enumerate(COUNTERS)
      for high, part, doc in ((0, "LO", f"{c.doc}; reading it latches the high part"),
                              (1, "HI", "bits 47..32"))),
)
BY_NAME: dict[str, Register] = {r.name: r for r in REGISTERS}


def offset(name: str) -> int:
    """Byte offset of a register; KeyError if there is none of that name."""
    return BY_NAME[name].offset


def constants(config: TileConfig) -> dict[str, int]:
    """Values of the registers that never change."""
    return {
        "ID": ID, "VERSION": VERSION, "SRAM_BYTES": config.sram_bytes, "IMEM_WORDS": config.imem_words,
        "CONFIG": config.columns | config.sram_banks << 8 | config.word_bytes << 16 | config.axi_bytes << 24,
        "CONFIG2": config.psum_depth | config.semaphores << 12 | round(config.clock_mhz) << 20,
    }


def c_header() -> str:
    """The table as C: offsets, and position and mask of every field."""
    lines = ["/* Generated from hw/csr_map.py. */", "#ifndef SERRANO_REGISTERS_H",
             "#define SERRANO_REGISTERS_H", ""]
    for r in REGISTERS:
        lines.append(f"#define SERRANO_{r.name} 0x{r.offset:03x}u")
        for f in r.fields:
            lines += [f"#define SERRANO_{r.name}_{f.name.upper()}_SHIFT {f.lo}",
                      f"#define SERRANO_{r.name}_{f.name.upper()}_MASK 0x{(1 << f.width) - 1 << f.lo:08x}u"]
    lines += ["", *(f"#define SERRANO_ERROR_{e.name} {e.value}" for e in Error), "", "#endif", ""]
    return "\n".join(lines)


def markdown() -> str:
    """docs/registers.md."""
    lines = ["# Registers", "",
             "Generated from `hw/csr_map.py` (`make docs`). AXI4-Lite, 32 bits, byte offsets; whole-word",
             "accesses (a write with no strobe set is ignored). Unmapped offsets read 0 and ignore writes.",
             "Counters are cleared by the doorbell and stand still when the run has ended.", "",
             "Run a program: write PROG_ADDR, PROG_WORDS, ARG0.., then CTRL.doorbell; wait for irq; read",
             "STATUS; write 1 to IRQ_STATUS. After an error or abort the tile is ready for the next doorbell",
             "as soon as STATUS.busy is 0.", "",
             "| offset | name | access | reset | |", "| --- | --- | --- | --- | --- |"]
    for r in REGISTERS:
        reset = "" if r.access in ("ro", "wo") else f"{r.reset:#x}"
        lines.append(f"| 0x{r.offset:03x} | {r.name} | {r.access} | {reset} | {r.doc} |")
        for f in r.fields:
            bits = f"[{f.lo + f.width - 1}:{f.lo}]" if f.width > 1 else f"[{f.lo}]"
            lines.append(f"| | {bits} {f.name} | | | {f.doc} |")
    return "\n".join([*lines, ""])
