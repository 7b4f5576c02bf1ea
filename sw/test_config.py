"""Configs that cannot be built are refused, with the field, the value given and what is allowed."""

import pytest

from hw.config import BASE, CONFIGS, TileConfig, named


@pytest.mark.parametrize(
    "change,message",
    [
        ({"columns": 3}, "columns = 3: allowed is 2, 4, 8, 16 or 32"),
        ({"vector_fold": 4}, "vector_fold = 4: allowed is 1 or 2"),
        ({"psum_depth": 48}, "psum_depth = 48: allowed is a power of two, 32 to 1024"),
        ({"sram_banks": 6}, "sram_banks = 6: allowed is a power of two, 2 to 32"),
        ({"sram_bytes": 1000}, "sram_bytes = 1000: allowed is a power of two"),
        ({"sram_bytes": 4096, "sram_banks": 32}, "at least 16 words of 32 bytes in each of 32 banks"),
        ({"axi_data_bits": 48}, "axi_data_bits = 48: allowed is 32, 64, 128, 256 or 512"),
        ({"axi_data_bits": 512}, "at most the SRAM word of 256 bits"),
        ({"axi_id_bits": 9}, "axi_id_bits = 9: allowed is 1 to 8"),
        ({"axi_outstanding": 3}, "axi_outstanding = 3: allowed is a power of two, 1 to 32"),
        ({"axi_burst_beats": 512}, "axi_burst_beats = 512: allowed is"),
        ({"imem_words": 100}, "imem_words = 100: allowed is a power of two, 256 to 16384"),
        ({"semaphores": 20}, "semaphores = 20: allowed is 16, 32 or 64"),
        ({"clock_mhz": 0}, "clock_mhz = 0: allowed is a positive number"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match="allowed is") as e:
        BASE.replace(**change)
    assert message in str(e.value)


def test_names() -> None:
    assert named("base") is BASE
    assert all(isinstance(c, TileConfig) and c.name == n for n, c in CONFIGS.items())
    with pytest.raises(ValueError, match="'huge': allowed is one of tiny, base, ecp5, big"):
        named("huge")
