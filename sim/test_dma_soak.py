"""100 thousand random queued DMA transfers: none hangs, none is wrong (a million: `make dma-soak`)."""

import pytest

from hw.config import TINY
from sim.dma_soak import run


@pytest.mark.parametrize("seed", [1])
def test_hundred_thousand(seed: int) -> None:
    run(TINY, 100_000, seed)
