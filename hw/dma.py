"""The DMA engines: N-D strided copies between DRAM (AXI4) and SRAM, any byte alignment on both sides.

```
LOAD   command -> Bursts -> AR          R -> rotate -> gather words -> SRAM
                    +-> FIFO -> Beats -> plan -^

STORE  command -> Bursts -> word reader -> SRAM -> words -> rotate -> W
                    +-> FIFO -> Beats -> plan (AW) ---------^      B -> answers
```
`hw/dma_bursts.py` walks descriptors, `hw/dma_load.py` and `hw/dma_store.py` are the two data paths.
"""

from .dma_bursts import boot_layout
from .dma_load import LoadEngine
from .dma_store import StoreEngine

__all__ = ["LoadEngine", "StoreEngine", "boot_layout"]
