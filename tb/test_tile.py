"""The tile end to end on its exported Verilog, from cocotb: tb/cocotb_tile.py."""

import pytest

from tb import runner
from tb.designs import CONFIG, tile

TESTS = {
    "test_random_programs": 6,
    "test_block": 1,
    "test_bus_errors": 4,
    "test_reset_in_a_run": 2,
    "test_noc": 2,
}


@pytest.mark.parametrize("case", TESTS)
def test_tile(case: str) -> None:
    assert runner.run(tile, "tb_tile", "tb.cocotb_tile", facts=(repr(CONFIG),), testcase=case) == TESTS[case]
