"""Blocks of the array and of the SRAM have places of their own, slice by slice."""

import re

import pytest

from sim.floorplan import floorplan, spread


def placed(columns: int, banks: int, parts: int) -> dict[str, tuple[int, int, str]]:
    """Cell -> (x, y, kind and number) of a tile's blocks; parts: block RAMs of a bank."""
    names = {f"inner.matmul.array.column_{c}.sum0_{k}_TRELLIS_FF_Q_DI_MULT18X18D_P": "MULT18X18D"
             for c in range(columns) for k in range(32)}
    names |= {f"inner.sram.bank_{b}.mem.0.{k}": "DP16KD" for b in range(banks) for k in range(parts)}
    cells = {name: {"type": kind, "attributes": {}} for name, kind in names.items()}
    cells |= {"inner.program.ram.mem.0.1": {"type": "DP16KD", "attributes": {}},
              "inner.sram.bank_0.mem.0.1_LUT4": {"type": "LUT4", "attributes": {}}}
    assert floorplan({"modules": {"top": {"cells": cells}}}) == len(names)
    places = {name: re.fullmatch(r"X(\d+)/Y(\d+)/(\w+)", cells[name]["attributes"]["BEL"]) for name in names}
    assert sum("BEL" in cell["attributes"] for cell in cells.values()) == len(names)
    return {name: (int(at[1]), int(at[2]), at[3]) for name, at in places.items() if at}


@pytest.mark.parametrize("columns, banks, parts", [(4, 4, 16), (2, 2, 8)])
def test_places(columns, banks, parts):
    """All different, of the right kind; the array's columns, and the SRAM's bytes of a word, from left to
    right."""
    places = placed(columns, banks, parts)
    assert len(set(places.values())) == len(places)
    for kind, rows in (("MULT18", {10, 34, 58} if columns == 4 else {34, 58}), ("EBR", {46, 70})):
        of_kind = {name: at for name, at in places.items() if at[2].startswith(kind)}
        assert {y for _, y, _ in of_kind.values()} == rows
        strips = columns if kind == "MULT18" else parts
        for name, (x, _, _) in of_kind.items():
            strip = int(re.findall(r"\d+", name)[0 if kind == "MULT18" else -1])
            assert abs(x - (4 + (strip + 0.5) * 114 / strips)) < 12 + 57 / strips, (name, x)
    middle = {x for x, _, kind in places.values() if kind.startswith("MULT18") and 58 <= x <= 63}
    assert not middle  # of thirteen blocks one is left


def test_a_block_has_one_column():
    """Four multipliers share their block's enables: one column's."""
    columns = {}
    for name, (x, y, kind) in placed(4, 4, 16).items():
        if kind.startswith("MULT18"):
            columns.setdefault((x - int(kind[7:]), y), set()).add(re.findall(r"column_(\d)", name)[0])
    assert len(columns) == 32 and all(len(found) == 1 for found in columns.values())


def test_too_many():
    assert not list(spread([1, 2, 3], ["a", "b"]))
    assert list(spread([1, 2], "abcd")) == [(1, "a"), (2, "c")]
