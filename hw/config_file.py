"""Configs by name (of hw/config.py, or a board of hw/boards.py) or from a file of the user's own: TOML, or
Python that sets CONFIG.

A TOML file holds fields of `TileConfig` (hw/config.py) at its top level, what it leaves out has the default,
and `base = "tiny"` starts from a named config instead:

    base = "ecp5"
    columns = 8
    sram_bytes = 524288

A Python file sets `CONFIG` to a TileConfig. The name is the file's, unless the file gives one.
Imports no Amaranth.
"""

import runpy
import tomllib
from dataclasses import fields
from pathlib import Path

from .boards import BOARDS
from .config import CONFIGS, TileConfig, named

__all__ = ["load"]

SUFFIXES = (".toml", ".py")


def load(name: str) -> TileConfig:
    """The named config, a board's, or one in a file. ValueError says what is wrong and what is allowed."""
    path = Path(name)
    if path.suffix not in SUFFIXES:
        if name in CONFIGS:
            return named(name)
        if name in BOARDS:
            return BOARDS[name].config
        raise ValueError(
            f"config {name!r}: allowed is one of {', '.join(CONFIGS)}, or a file *.toml or *.py, or a board: "
            f"{', '.join(BOARDS)}"
        )
    if not path.is_file():
        raise ValueError(f"config {name!r}: no such file")
    config = _toml(path) if path.suffix == ".toml" else _python(path)
    default = TileConfig.__dataclass_fields__["name"].default
    config = config if config.name != default else config.replace(name=path.stem)
    if not config.name.isidentifier():  # it names files and C macros
        raise ValueError(f"{name}: name = {config.name!r}: allowed are letters, digits and _")
    known = CONFIGS | {name: board.config for name, board in BOARDS.items()}
    if config.name in known and config != known[config.name]:
        raise ValueError(f"{name}: name = {config.name!r} is that of a config that comes with Serrano")
    return config


def _toml(path: Path) -> TileConfig:
    try:
        given = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    base = TileConfig()
    if "base" in given:
        base = named(str(given.pop("base"))).replace(name=base.name)
    known = {f.name: f.type for f in fields(TileConfig)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{path}: unknown field {key!r}: allowed are base, {', '.join(known)}")
        kind = known[key]
        right = isinstance(value, kind) or (kind is float and isinstance(value, int))  # type: ignore[arg-type]
        if not right or isinstance(value, bool):
            raise ValueError(f"{path}: {key} = {value!r}: allowed is a value of type {kind.__name__}")  # type: ignore[union-attr]
    try:
        return base.replace(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _python(path: Path) -> TileConfig:
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except Exception as error:  # whatever the user's own file raises
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, TileConfig):
        raise ValueError(f"{path}: CONFIG = {config!r}: allowed is a TileConfig")
    return config
