"""Signatures and layouts shared by the units: SRAM ports, commands, semaphore signals, errors."""
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature

from .config import TileConfig
from .isa import Instruction

SEM_BITS = 6
PC_BITS = 14


class SramRead(Signature):
    """Read port, seen from the requestor.

    `req` is a stream of SRAM word indices; the data of an accepted request comes back in order on `data`
    with `valid` high for one cycle, a fixed `sram.READ_LATENCY` cycles or more after it; the requestor must
    always take it.
    """

    def __init__(self, config: TileConfig):
        super().__init__({
            "req": Out(stream.Signature(config.sram_addr_bits)),
            "valid": In(1),
            "data": In(8 * config.word_bytes),
        })


class SramWrite(Signature):
    """Write port, seen from the requestor.

    `busy` is high while an accepted write is not yet visible to reads.
    """

    def __init__(self, config: TileConfig):
        super().__init__({
            "req": Out(stream.Signature(data.StructLayout({
                "addr": config.sram_addr_bits, "data": 8 * config.word_bytes, "strb": config.word_bytes}))),
            "busy": In(1),
        })


def command_layout(ins: Instruction) -> data.StructLayout:
    """A decoded unit instruction: every operand (defaults filled in, 32 bits), the mask of those present,
    where to signal, and the program counter of the instruction for error reports."""
    return data.StructLayout({
        **{o.name: 32 for o in ins.operands}, "mask": len(ins.operands),
        "sig_a": SEM_BITS, "sig_b": SEM_BITS, "sig_c": SEM_BITS, "pc": PC_BITS})


def flags_layout(operand_fields: tuple) -> data.FlexibleLayout:
    """A raw flags word as named fields."""
    return data.FlexibleLayout(32, {f.name: data.Field(f.width, f.lo) for f in operand_fields})


error_layout = data.StructLayout({"valid": 1, "code": 4, "pc": PC_BITS, "value": 32})
"""A unit's error report; `valid` is held, with the first error's values, until the unit is cleared
(reset)."""


def unit_members(config: TileConfig, ins: Instruction) -> dict:
    """Members that every unit has."""
    return {
        "command": In(stream.Signature(command_layout(ins))),
        "signal": Out(stream.Signature(SEM_BITS)),
        "error": Out(error_layout),
        "busy": Out(1),
    }
