"""Tokenizers: text to ids and back, also one id at a time.

`HuggingFaceTokenizer` reads tokenizer.json through the `tokenizers` package, `Llama2cTokenizer` the binary
files of llama2.c. Both give `encode`, `decode`, `stream`, `bos_id` and `eos_ids`.
"""

import codecs
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as _Rust

from sw.tensors import CheckpointError, Config, read_json


class Stream(Protocol):
    """Text of ids that come one at a time: the concatenation of what is returned is their decoded text."""

    def push(self, token: int) -> str:
        """The text that this id completes; "" while a character is incomplete."""
        ...

    def finish(self) -> str:
        """What is left when no more ids come: U+FFFD for an incomplete character."""
        ...


class Tokenizer(Protocol):
    bos_id: int | None
    """The id that starts a text, None if the model has none."""
    eos_ids: tuple[int, ...]
    """Ids that end a text."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids of text. bos: with the special tokens that the model expects at the start (and end)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        ...

    def stream(self) -> Stream:
        """A new streaming decoder."""
        ...


# ---------------------------------------------------------------- Hugging Face

class HuggingFaceTokenizer:
    """tokenizer.json of a directory; BOS and EOS as its other files name them.

    EOS ids are those of generation_config.json, config.json and tokenizer_config.json together. A text starts
    as the tokenizer's own post-processor says; BOS comes first as well where add_bos_token says so, and alone
    stands for an empty text.
    """

    def __init__(self, directory: Path, config: dict[str, Any], vocab: int):
        file = directory / "tokenizer.json"
        if not file.exists():
            raise CheckpointError(f"{directory}: no tokenizer: allowed is {file.name}")
        try:
            self._rust = _Rust.from_str(file.read_text(encoding="utf-8"))
        except Exception as e:  # the package raises bare Exception
            raise CheckpointError(f"{file}: no readable tokenizer: {e}") from None
        self._rust.no_padding()
        self._rust.no_truncation()
        if (largest := max(self._rust.get_vocab().values(), default=0)) >= vocab:
            raise CheckpointError(f"{file}: token id {largest}: allowed is 0..{vocab - 1}, by the model's "
                                  "vocab_size")
        generation, own = (read_json(f) if (f := directory / n).exists() else {}
                           for n in ("generation_config.json", "tokenizer_config.json"))
        files = [Config(data, str(directory / name)) for data, name in (
            (generation, "generation_config.json"), (config, "config.json"))]
        bos, eos = ([*(i for f in files for i in f.ids(key + "_id", vocab)), *self._named(own.get(key))]
                    for key in ("bos_token", "eos_token"))
        self.bos_id: int | None = bos[0] if bos else None
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(eos))
        self._prepend = own.get("add_bos_token") is True

    def _named(self, token: Any) -> list[int]:
        """The id of a token of tokenizer_config.json: its text, or an object with its text."""
        text = token.get("content") if isinstance(token, dict) else token
        token_id = self._rust.token_to_id(text) if isinstance(text, str) else None
        return [] if token_id is None else [token_id]

    def encode(self, text: str, bos: bool = True) -> list[int]:
        text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no UTF-8
        ids = list(self._rust.encode(text, add_special_tokens=bos).ids)
        if bos and self.bos_id is not None and (not ids or self._prepend and ids[0] != self.bos_id):
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> Stream:
        return _WindowStream(self.decode)


class _WindowStream:
    """Decodes the ids since the last two returned pieces: a piece may depend on the one before it.

    Text that ends in U+FFFD may end in an incomplete character. It is held for up to three ids, after which
    only its last U+FFFD can still change: a character has at most four bytes, an id at least one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._seen = 0  # ids of the window whose text has been returned
        self._shown = 0  # characters of the window's text that have been returned
        self._waiting = 0  # ids since the text did not end in U+FFFD

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        self._waiting = self._waiting + 1 if text.endswith("\ufffd") else 0
        return "" if 0 < self._waiting < 4 else self._show(text, min(self._waiting, 1))

    def finish(self) -> str:
        return self._show(self._decode(self._ids), 0)

    def _show(self, text: str, held: int) -> str:
        new = text[self._shown:len(text) - held]
        if new:  # else keep the window, so that it never consists of ids without text
            del self._ids[:self._seen]
            self._seen = len(self._ids)
            self._shown = len(self._decode(self._ids)) - held
        return new


# ---------------------------------------------------------------- llama2.c

_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class Llama2cTokenizer:
    """tokenizer.bin of llama2.c: int32 longest piece, then float32 score, int32 length and bytes per token.

    Ids 1 and 2 are BOS and EOS (generation ends at either, as in llama2.c), id b + 3 is the byte b.
    """

    bos_id: int | None = 1
    eos_ids: tuple[int, ...] = (1, 2)

    def __init__(self, file: Path, vocab: int):
        try:
            data = file.read_bytes()
        except OSError as e:
            raise CheckpointError(f"{file}: no tokenizer: {e.strerror or e}") from None
        self.pieces: list[bytes] = []
        self._scores: list[float] = []
        at = 4
        for i in range(vocab):
            score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
            at += 8 + length
            if length < 0 or at > len(data):
                raise CheckpointError(f"{file}: truncated at token {i}: allowed is {vocab} tokens, "
                                      "as the model has")
            self.pieces.append(data[at - length:at])
            self._scores.append(score)
        if at != len(data):
            raise CheckpointError(f"{file}: {len(data)} bytes: allowed is {at} for {vocab} tokens, "
                                  "as the model has")
        self._index: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            self._index.setdefault(piece, i)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """A space first, characters (unknown: bytes), then pairs merged, best score first."""
        ids: list[int] = []
        for char in " " + text if text else "":
            raw = char.encode("utf-8", "replace")
            known = self._index.get(raw)
            ids += [known] if known is not None else [b + 3 for b in raw]
        while True:
            pairs = ((self._scores[m], -i, m) for i in range(len(ids) - 1)
                     if (m := self._index.get(self.pieces[ids[i]] + self.pieces[ids[i + 1]])) is not None)
            if (best := max(pairs, default=None)) is None:
                return [1, *ids] if bos else ids
            _, i, merged = best
            ids[-i:2 - i] = [merged]

    def piece(self, previous: int | None, token: int) -> bytes:
        """Bytes of a token after another; the space after BOS is dropped."""
        piece = b"" if token in self.eos_ids else self.pieces[token]
        if previous == self.bos_id and piece.startswith(b" "):
            piece = piece[1:]
        byte = _BYTE_TOKEN.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece

    def decode(self, ids: Sequence[int]) -> str:
        pieces = (self.piece(*pair) for pair in zip((None, *ids), ids))
        return b"".join(pieces).decode("utf-8", "replace")

    def stream(self) -> Stream:
        return _ByteStream(self.piece)


class _ByteStream:
    """UTF-8 from the bytes of one token after another."""

    def __init__(self, piece: Callable[[int | None, int], bytes]):
        self._piece = piece
        self._previous: int | None = None
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        text = self._utf8.decode(self._piece(self._previous, token))
        self._previous = token
        return text

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)
