"""The units on their exported Verilog, from cocotb; each module's docstring says what it compares with."""

import pytest

from tb import runner
from tb.designs import CONFIG, Units

TESTS = {"array": 2, "matmul": 6, "sram": 8, "dma": 14, "vector": 6}


@pytest.mark.parametrize("unit", TESTS)
def test_unit(unit: str) -> None:
    assert runner.run(Units, "tb_units", f"tb.cocotb_{unit}", facts=(repr(CONFIG),)) == TESTS[unit]
