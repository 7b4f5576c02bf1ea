"""Where the blocks lie that a tile's words go through, on an LFE5U-85F.

Every column of the array has a strip of the part from left to right, with its adder tree among its
multipliers, half of them on either side: what is left for the vector unit is in the middle, where words of
SRAM come from both sides. Of the SRAM, the block RAMs of all banks that hold the same bytes of a word lie
next to each other. nextpnr places logic well, but not hundreds of blocks into the few rows that a part has
for them: left alone, these take a third more wire. Places that are not taken here are left to nextpnr.
"""

import re
from collections.abc import Iterator

__all__ = ["floorplan", "ram_sites", "spread"]

BLOCKS = (*range(4, 59, 9), *range(69, 115, 9))
"""Columns in which blocks of four multipliers begin, and groups of four block RAMs (Project Trellis)."""
MULTIPLIERS, RAMS = (0, 1, 4, 5), (0, 2, 4, 6)
"""Columns within."""
ARRAY_ROWS, SRAM_ROWS, RAM_ROWS = (34, 58, 10), (46, 70), (22, 46, 70, 82)
"""Of the array, rows are taken in this order until there are enough places; all rows of block RAMs."""
NO_RAM = 69, 70  # the clock's block takes the place
PRODUCT = re.compile(r"\bmatmul\.array\.column_(\d+)\.sum0_(\d+)_")
RAM = re.compile(r"\bsram\.bank_(\d+)\.mem\.\d+\.(\d+)$")


def _array_sites(columns: int, blocks: int) -> list[list[tuple[int, int]]]:
    """For each column of so many blocks the places in its strip of the part; spare strips in the middle."""
    wide = max(1, len(BLOCKS) // max(1, columns))
    spare = max(0, len(BLOCKS) - columns * wide)
    rows = sorted(ARRAY_ROWS[: -(-blocks // wide)])
    strips = [c * wide + (spare if 2 * c >= columns else 0) for c in range(columns)]
    return [[(x, y) for x in BLOCKS[first : first + wide] for y in rows] for first in strips]


def ram_sites(rows: tuple[int, ...] = RAM_ROWS) -> list[tuple[int, int, int]]:
    """x, y, number in its group of every place for a block RAM."""
    return [(x + dx, y, k) for x in BLOCKS for k, dx in enumerate(RAMS) for y in rows
            if (x + dx, y) != NO_RAM]


def spread(items: list, sites: list) -> Iterator[tuple]:
    """(item, site) pairs in order, evenly spread over the sites; none at all if there are too few."""
    if len(items) <= len(sites):
        for k, item in enumerate(items):
            yield item, sites[k * len(sites) // len(items)]


def floorplan(netlist: dict) -> int:
    """Places of the array's multipliers and the SRAM's block RAMs into a JSON netlist, in place; how many."""
    products: dict[tuple[int, int], list[tuple[int, dict]]] = {}
    rams: dict[tuple[int, int], dict] = {}
    for module in netlist["modules"].values():
        for name, cell in module["cells"].items():
            if cell["type"] == "MULT18X18D" and (found := PRODUCT.search(name)):
                column, element = map(int, found.groups())
                products.setdefault((column, element // 4), []).append((element % 4, cell))
            elif cell["type"] == "DP16KD" and (found := RAM.search(name)):
                bank, part = map(int, found.groups())
                rams[part, bank] = cell
    count, columns = 0, sorted({column for column, _ in products})
    blocks = [sorted(block for block in products if block[0] == column) for column in columns]
    for own, sites in zip(blocks, _array_sites(len(blocks), max(map(len, blocks), default=0)), strict=True):
        for block, (x, y) in spread(own, sites):
            for k, cell in products[block]:
                cell["attributes"]["BEL"] = f"X{x + MULTIPLIERS[k]}/Y{y}/MULT18_{MULTIPLIERS[k]}"
                count += 1
    for place, (x, y, k) in spread(sorted(rams), ram_sites(SRAM_ROWS)):
        rams[place]["attributes"]["BEL"] = f"X{x}/Y{y}/EBR{k}"
        count += 1
    return count
