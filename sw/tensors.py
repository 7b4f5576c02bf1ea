"""What a checkpoint directory holds: its JSON configuration and the tensors of its safetensors file(s).

Everything that is wrong with either is a `CheckpointError` that names the file, the tensor or key, what was
given and what is allowed. Files are mapped, and a tensor is read when it is taken.
Source: the safetensors format (8 bytes of header length, JSON header, data).
"""

import json
import math
import mmap
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_REQUIRED = object()
_LARGEST = (1 << 31) - 1
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 3, 36, 36, 80


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded: names the file, the tensor or key, what is given and allowed."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: no readable JSON file: {e}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds {type(data).__name__}: allowed is a JSON object")
    return data


def shown(value: Any) -> str:
    """A value for an error message: as Python writes it, long and deep ones abbreviated."""
    return _SHORT.repr(value)


class Config:
    """The keys of a configuration (or of a dictionary inside one, `where` says which)."""

    def __init__(self, data: dict[str, Any], where: str):
        self.data, self.where = data, where

    def fail(self, key: str, allowed: str) -> CheckpointError:
        """The error for a key whose value is not allowed."""
        given = shown(self.data[key]) if key in self.data else "missing"
        return CheckpointError(f"{self.where}: {key} = {given}: allowed is {allowed}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is absent or null."""
        value = self.data.get(key)
        return default if value is None else value

    def integer(self, key: str, default: Any = _REQUIRED, least: int = 1) -> int:
        """An integer from `least` to the largest of 32 bits."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise self.fail(key, f"an integer in {least}..{_LARGEST}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, least: float = _TINY, most: float = _HUGE) -> float:
        """A number in least..most, by default one that is a positive normal float32."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise self.fail(key, f"{'a positive' if least > 0 else 'a'} number in {least:.6g}..{most:.6g}")
        return float(value)

    def ids(self, key: str, vocab: int) -> list[int]:
        """Token ids: one, a list of them, or none where it is absent or null."""
        value = self.get(key, [])
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab for i in ids):
            raise self.fail(key, f"an id in 0..{vocab - 1}, a list of them or null")
        return ids

    def one_of(self, key: str, allowed: Sequence[Any], default: Any) -> Any:
        value = self.get(key, default)
        if value not in allowed:
            raise self.fail(key, " or ".join(map(repr, allowed)))
        return value

    def inner(self, key: str) -> "Config | None":
        """A dictionary inside this one."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, "an object")
        return None if value is None else Config(value, f"{self.where}: {key}")


class _Entry(NamedTuple):
    file: Path
    data: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
          "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_BYTE_TYPES = ("U8", "F8_E8M0")


def _read_header(path: Path) -> dict[str, _Entry]:
    """name -> entry of one safetensors file, checked against the file's size."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            if size < 8:
                raise CheckpointError(f"{path}: truncated: {size} bytes, no header")
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from None
    base = 8 + int.from_bytes(data[:8], "little")
    if base > size:
        raise CheckpointError(f"{path}: truncated: header ends at byte {base}, the file has {size}")
    try:
        header = json.loads(data[8:base])
        entries = {name: _Entry(path, data, str(t["dtype"]), tuple(map(int, t["shape"])),
                                base + int(t["data_offsets"][0]), base + int(t["data_offsets"][1]))
                   for name, t in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError(f"{path}: the first {base} bytes are no safetensors header") from None
    for name, t in entries.items():
        if not base <= t.start <= t.end <= size:
            raise CheckpointError(f"{path}: truncated: tensor {name} is bytes {t.start}..{t.end}, "
                                  f"the file has {size}")
        need = math.prod(t.shape) * _BYTES.get(t.dtype, 0)
        if t.dtype in _BYTES and t.end - t.start != need:
            raise CheckpointError(f"{path}: tensor {name}: {t.end - t.start} bytes: allowed is {need} "
                                  f"for {t.dtype} {list(t.shape)}")
    at = base
    for name, t in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if t.start != at:
            raise CheckpointError(f"{path}: tensor {name} begins at byte {t.start}: allowed is {at}, "
                                  "where the one before it ends")
        at = t.end
    if at != size:
        raise CheckpointError(f"{path}: extra data: {size - at} bytes after the last tensor: allowed is none")
    return entries


class Tensors:
    """The tensors of a directory: in model.safetensors, or in the files of model.safetensors.index.json.

    `rename` maps a stored name to the name used to take it, or to None: not needed, never an extra tensor.
    """

    def __init__(self, directory: Path, rename: Callable[[str], str | None] = lambda name: name):
        index, single = (directory / f"model.safetensors{end}" for end in (".index.json", ""))
        self._where = directory
        self._entries: dict[str, _Entry] = {}
        if index.exists() and not single.exists():
            stored = self._sharded(index)
        elif single.exists():
            stored = _read_header(single)
        else:
            raise CheckpointError(f"{directory}: no weights: allowed is {single.name} or {index.name}")
        for name, entry in stored.items():
            if (as_taken := rename(name)) is not None:
                if as_taken in self._entries:
                    raise CheckpointError(f"{entry.file}: tensor {name}: {as_taken} is stored twice")
                self._entries[as_taken] = entry
        self._taken: set[str] = set()

    @staticmethod
    def _sharded(index: Path) -> dict[str, _Entry]:
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
            raise CheckpointError(f"{index}: weight_map: allowed is an object of file names")
        stored: dict[str, _Entry] = {}
        for file in sorted(set(files.values())):
            if Path(file).name != file:
                raise CheckpointError(f"{index}: file {file!r}: allowed is a file beside the index")
            stored |= _read_header(index.parent / file)
        for name, file in files.items():
            if name not in stored or stored[name].file.name != file:
                raise CheckpointError(f"{index}: tensor {name} is not in {file}")
        return stored

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored, for tensors whose shape says something that no configuration does."""
        return self._find(name).shape

    def take(self, name: str, *shape: int) -> np.ndarray:
        """A float tensor of that shape as float32 (exact). It must be finite."""
        e = self._check(name, shape, tuple(_FLOATS))
        raw = np.frombuffer(e.data, np.uint8, e.end - e.start, e.start).view(_FLOATS[e.dtype]).reshape(shape)
        x = (raw.astype(np.uint32) << 16).view(np.float32) if e.dtype == "BF16" else raw.astype(np.float32)
        if not np.isfinite(x).all():
            raise CheckpointError(f"{e.file}: tensor {name}: holds NaN or infinity: allowed are numbers")
        return x

    def take_bytes(self, name: str, *shape: int) -> np.ndarray:
        """A tensor of bytes of that shape as uint8, untouched."""
        e = self._check(name, shape, _BYTE_TYPES)
        return np.frombuffer(e.data, np.uint8, math.prod(shape), e.start).reshape(shape)

    def finish(self) -> None:
        """CheckpointError if a tensor was not taken."""
        if extra := sorted(set(self._entries) - self._taken):
            more = f" and {len(extra) - 4} more" if len(extra) > 4 else ""
            file = self._entries[extra[0]].file
            raise CheckpointError(f"{file}: extra tensor {', '.join(extra[:4])}{more}: "
                                  "the configuration has no place for it")

    def _find(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self._where}: missing tensor {name}")
        return self._entries[name]

    def _check(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> _Entry:
        e = self._find(name)
        if e.shape != shape:
            raise CheckpointError(f"{e.file}: tensor {name}: shape {list(e.shape)}: allowed is {list(shape)}")
        if e.dtype not in dtypes:
            raise CheckpointError(f"{e.file}: tensor {name}: {e.dtype}: allowed is {', '.join(dtypes)}")
        self._taken.add(name)
        return e
