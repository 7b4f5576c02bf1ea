"""The DMA engines: N-D strided copies between DRAM (AXI4) and SRAM, any byte alignment on both sides.

```
command -> Bursts -> AR ----------------------> memory        command -> Bursts -> AW -------------------------> memory
             |                                    |                        |-> word reader -> SRAM -> words        ^
             v                                    v R                      v                            v          |
           FIFO of bursts -> Beats -> plan -> rotate -> word -> SRAM     FIFO -> Beats -> plan -> rotate -> W -----+
```
`hw/dma_bursts.py` walks descriptors, `hw/dma_load.py` and `hw/dma_store.py` are the two data paths.
"""
from .dma_bursts import boot_layout
from .dma_load import LoadEngine
from .dma_store import StoreEngine

__all__ = ["LoadEngine", "StoreEngine", "boot_layout"]
