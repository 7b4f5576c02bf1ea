"""Loaded models against the float32 outputs of other programs.

Reference checkpoints: sw/reference (`transformers`). stories260K: llama2.c's trained model, where it is
there. Bounds are about twice what was measured, which is beside them; random models have flat distributions,
so their argmax says less than that of a trained one.
"""

from pathlib import Path

import numpy as np
import pytest

import golden.test_model
import sw.source
from golden import formats
from golden.compare import cosine, kl, log_softmax
from golden.model import Model
from golden.spec import MxTensor
from golden.test_model import float_model
from sw.checkpoint import load_checkpoint

REFERENCE = Path(__file__).parent / "reference"
STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K"


def exact(w: np.ndarray, fmt: int) -> MxTensor:
    """A matrix as an MxTensor that decodes to exactly w: its integers are no integers."""
    n, k = w.shape
    blocks = np.zeros((n, -(-k // 32) * 32))
    blocks[:, :k] = w
    return MxTensor(blocks.reshape(n, -1, 32) * 64, np.full((n, -(-k // 32)), 127, np.uint8), formats.INT8, k)


@pytest.fixture
def unquantised(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Loads weights without rounding, for float models; published blocks are what they are."""
    monkeypatch.setattr(MxTensor, "quantise", exact)
    monkeypatch.setattr(sw.source, "bf16", lambda x: x)
    return monkeypatch


# ---------------------------------------------------------------- the loader alone

@pytest.mark.parametrize("name", ["llama", "llama-sharded", "gpt-oss", "gpt2"])
def test_loader_is_exact(unquantised: pytest.MonkeyPatch, name: str):
    """A float64 model of what is loaded is the float32 model of the other program: measured 2e-5."""
    c, expected = load_checkpoint(REFERENCE / name), np.load(REFERENCE / name / "expected.npz")
    y, _ = float_model(c.spec, c.params, expected["ids"])
    assert np.abs(y - expected["logits"]).max() < 5e-5
    assert expected["logits"].std() > 1


def test_bert_loader_is_exact(unquantised: pytest.MonkeyPatch):
    c, expected = load_checkpoint(REFERENCE / "bert"), np.load(REFERENCE / "bert" / "expected.npz")
    for row, length in enumerate(expected["mask"].sum(axis=1)):
        unquantised.setattr(golden.test_model, "types", lambda n: expected["types"][row, :n])
        y, _ = float_model(c.spec, c.params, expected["ids"][row, :length])
        assert np.abs(y - expected["hidden"][row, :length]).max() < 5e-5
        pooled = Model(c.spec, c.params).pool(y.astype(np.float32), "pooler")
        assert np.abs(pooled - expected["pooled"][row]).max() < 5e-5


# ---------------------------------------------------------------- golden

KL = {  # mean KL in nats of MXINT8, MXFP6 and MXFP4 weights, as measured
    "llama": (0.0040, 0.0237, 0.213),
    "llama-sharded": (0.0050, 0.0361, 0.366),
    "gpt-oss": (0.0102, 0.0317, 0.251),
    "gpt2": (0.0017, 0.0091, 0.120),
}


@pytest.mark.parametrize("weights", ["mxint8", "mxfp6", "mxfp4"])
@pytest.mark.parametrize("name", KL)
def test_decoders(name: str, weights: str):
    c = load_checkpoint(REFERENCE / name, weights=weights)
    expected = np.load(REFERENCE / name / "expected.npz")
    y = Model(c.spec, c.params).forward(expected["ids"], 0)
    measured = KL[name][("mxint8", "mxfp6", "mxfp4").index(weights)]
    assert kl(expected["logits"], y).mean() < 2 * measured
    if weights == "mxint8":
        agree = (y.argmax(axis=1) == expected["logits"].argmax(axis=1)).mean()
        assert agree >= 0.75  # measured 0.875, 0.875, 0.825, 0.95


@pytest.mark.parametrize("weights, bound", [("mxint8", 0.998), ("mxfp6", 0.99), ("mxfp4", 0.9)])
def test_bert(weights: str, bound: float):
    """Cosine of every token and of the pooled embedding; measured at least 0.9992, 0.9950, 0.9550.

    A padded sequence is the sequence without its padding.
    """
    c = load_checkpoint(REFERENCE / "bert", weights=weights)
    expected = np.load(REFERENCE / "bert" / "expected.npz")
    model = Model(c.spec, c.params)
    for row, length in enumerate(expected["mask"].sum(axis=1)):
        y = model.hidden(expected["ids"][row, :length], expected["types"][row, :length])
        assert cosine(y, expected["hidden"][row, :length]).min() > bound
        assert cosine(model.pool(y, "pooler"), expected["pooled"][row]) > bound


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not there")
def test_stories260k():
    """Cross-entropy on the float32 model's greedy text, and the argmax along it.

    Measured: 0.4734 nats in float32, 0.4810 here; argmax 95.0 %.
    """
    c, expected = load_checkpoint(STORIES / "stories260K.bin"), np.load(STORIES / "expected_fp32.npz")
    ids, reference = expected["bos_ids"], expected["bos_logits"]
    y = Model(c.spec, c.params).forward(ids[:200], 0)
    rows = np.arange(200)
    loss, loss32 = (-log_softmax(z)[rows, ids[1:]].mean() for z in (y, reference))
    print(f"cross-entropy {loss:.4f}, float32 {loss32:.4f}")
    assert abs(loss - loss32) < 0.02
    assert (y.argmax(axis=1) == reference.argmax(axis=1)).mean() >= 0.95
    assert kl(reference, y).mean() < 0.01  # measured 0.0047
