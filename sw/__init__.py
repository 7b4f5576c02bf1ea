"""Software for the tile: assembler, compiler, loaders, runtime.

`load`, `generate`, `Session`, `Token` and `Device` are the Python API (sw/runtime.py, sw/device.py).
"""

from typing import Any

__all__ = ["Device", "Session", "Token", "generate", "load"]  # noqa: F822 (looked up below)


def __getattr__(name: str) -> Any:
    """Loaded when asked for: the assembler alone needs no tokenizer."""
    if name == "Device":
        from .device import Device

        return Device
    if name in __all__:
        from . import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
