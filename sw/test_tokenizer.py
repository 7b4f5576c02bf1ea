"""Tokenizers: ids against the packages' and llama2.c's own, round trips, streams equal to whole decodes."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from sw.checkpoint import CheckpointError
from sw.tokenizer import HuggingFaceTokenizer, Llama2cTokenizer

REFERENCE = Path(__file__).parent / "reference"
STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K"
TEXTS = ["", "The little tile", " two  spaces ", "ends in newline\n",
         "caf\u00e9 \u2014 \u65e5\u672c \U0001f642!", "\U0001f469\u200d\U0001f680 zwj"]
DECODERS = {"llama": 288, "llama-sharded": 352, "gpt-oss": 264, "gpt2": 288}


def hugging_face(name: str) -> HuggingFaceTokenizer:
    config = json.loads((REFERENCE / name / "config.json").read_text())
    return HuggingFaceTokenizer(REFERENCE / name, config, config["vocab_size"])


def llama2c_file(path: Path) -> tuple[Path, int]:
    """A vocabulary of BOS, EOS, bytes, some letters and merges that only the right order applies."""
    special = [(p, 0.0) for p in (b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256)))]
    pieces = [*special, (b" ", -1.0), (b"a", -2.0), (b"b", -3.0), (b"c", -4.0), (b"ab", -6.0), (b"bc", -5.0),
              (b"abc", -9.0), (b" a", -10.0)]
    path.write_bytes(struct.pack("<i", 8) + b"".join(struct.pack("<fi", s, len(p)) + p for p, s in pieces))
    return path, len(pieces)


def streamed(tokenizer, ids) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(int(i)) for i in ids), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", DECODERS)
def test_text_survives(name: str, text: str):
    t = hugging_face(name)
    for bos in (True, False):
        ids = t.encode(text, bos=bos)
        assert t.decode(ids) == text
        assert "".join(streamed(t, ids)) == text
    assert all(isinstance(i, int) for i in ids)


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_lone_surrogates(name: str, tmp_path: Path):
    """What a terminal or a JSON text may hold and UTF-8 may not: replaced, as for llama2.c."""
    for t in (hugging_face(name), Llama2cTokenizer(*llama2c_file(tmp_path / "tokenizer.bin"))):
        assert t.encode("h\udcff \ud800e") == t.encode("h? ?e")


def test_bos_and_eos():
    """Llama tokenizers put BOS first themselves, the others only stand it for an empty text."""
    for name, bos, eos, first in (("llama", 0, (1,), True), ("llama-sharded", 1, (2,), True),
                                  ("gpt-oss", 0, (1,), False), ("gpt2", 1, (1,), False)):
        t = hugging_face(name)
        assert (t.bos_id, t.eos_ids) == (bos, eos)
        assert t.encode("") == [bos] and t.encode("", bos=False) == []
        assert (t.encode("tile")[0] == bos) == first
        assert t.encode("tile")[first:] == t.encode("tile", bos=False)


def test_eos_of_all_files_and_add_bos(tmp_path: Path):
    shutil.copytree(REFERENCE / "gpt-oss", tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 5, "eos_token_id": [7, 9]}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<|eos|>"}, "bos_token": "<|bos|>", "add_bos_token": true}')
    t = HuggingFaceTokenizer(tmp_path, {"bos_token_id": 0, "eos_token_id": 9}, 264)
    assert (t.bos_id, t.eos_ids) == (5, (7, 9, 1))
    assert t.encode("tile") == [5, *t.encode("tile", bos=False)]


def test_bert_special_tokens():
    t = hugging_face("bert")
    ids = t.encode("The little tiles")
    assert ids[0] == 2 and ids[-1] == 3 and ids[1:-1] == t.encode("The little tiles", bos=False)
    assert t.decode(ids) == "the little tiles"
    assert (t.bos_id, t.eos_ids) == (None, ())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-oss"])
def test_stream_of_any_ids(name: str, seed: int):
    """Byte-level ids in random order, most no UTF-8: nothing is lost, added or out of order."""
    t = hugging_face(name)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, DECODERS[name], 300)
    for part in range(0, 300, 40):  # broken and whole characters beside each other
        smile = t.encode("\U0001f642", bos=False)
        ids = np.insert(ids, part, smile[:int(rng.integers(1, len(smile) + 1))])
    assert "".join(streamed(t, ids)) == t.decode(ids)


def test_stream_holds_incomplete_characters():
    for t in (hugging_face("gpt2"), hugging_face("llama-sharded")):
        ids = t.encode("a\U0001f642b", bos=False)
        pieces = streamed(t, ids)
        assert "".join(pieces) == "a\U0001f642b"
        assert "\U0001f642" in pieces and pieces.count("") >= 3
        assert "".join(streamed(t, ids[:-2])) == t.decode(ids[:-2]) != "a"


def test_llama2c_encoding(tmp_path: Path):
    t = Llama2cTokenizer(*llama2c_file(tmp_path / "tokenizer.bin"))
    space, a, b, c, ab, bc, abc, sp_a = range(259, 267)
    assert t.encode("abc", bos=False) == [space, abc]  # bc first (-5), then a + bc
    assert t.encode("ab c") == [1, space, ab, space, c]
    assert t.encode("a a", bos=False) == [sp_a, sp_a]
    assert t.encode("") == [1] and t.encode("", bos=False) == []
    assert t.encode("\u00e9", bos=False) == [space, 0xC3 + 3, 0xA9 + 3]


@pytest.mark.parametrize("text", TEXTS)
def test_llama2c_text_survives(tmp_path: Path, text: str):
    """With BOS; without, the dummy space stays, as in llama2.c."""
    t = Llama2cTokenizer(*llama2c_file(tmp_path / "tokenizer.bin"))
    assert t.decode(t.encode(text)) == "".join(streamed(t, t.encode(text))) == text
    assert t.decode(t.encode(text, bos=False)) == (" " + text if text else "")
    pieces = streamed(t, t.encode("\U0001f642"))
    assert pieces[-2:] == ["\U0001f642", ""] and not "".join(pieces[:-2])


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not there")
def test_llama2c_prompts():
    t = Llama2cTokenizer(STORIES / "tok512.bin", 512)
    expected = np.load(STORIES / "expected_fp32.npz")
    for i in range(4):
        assert t.encode(str(expected[f"prompt{i}_text"])) == expected[f"prompt{i}_ids"].tolist()
        assert t.decode(expected[f"prompt{i}_ids"].tolist()) == str(expected[f"prompt{i}_text"])


@pytest.mark.parametrize("cut, message", [(-1, "truncated at token 266"), (3, "truncated at token 0")])
def test_llama2c_truncated(tmp_path: Path, cut: int, message: str):
    file, vocab = llama2c_file(tmp_path / "t.bin")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=rf"t\.bin: {message}"):
        Llama2cTokenizer(file, vocab)


def test_llama2c_wrong_vocabulary(tmp_path: Path):
    file, vocab = llama2c_file(tmp_path / "t.bin")
    with pytest.raises(CheckpointError, match="bytes: allowed is"):
        Llama2cTokenizer(file, vocab - 1)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Llama2cTokenizer(tmp_path / "none.bin", vocab)
