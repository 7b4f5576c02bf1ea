"""Sampling on the host: against definitions written out, and against frequencies."""

import numpy as np
import pytest

from sw.sampling import Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))


def test_temperature() -> None:
    assert np.allclose(Sampling(1.0).probabilities(LOGITS), [0.1, 0.4, 0.05, 0.25, 0.2], atol=1e-6)
    p = np.array([0.1, 0.4, 0.05, 0.25, 0.2]) ** 2
    assert np.allclose(Sampling(0.5).probabilities(LOGITS), p / p.sum(), atol=1e-6)


def test_top_k_keeps_the_largest() -> None:
    p = Sampling(1.0, top_k=2).probabilities(LOGITS)
    assert np.allclose(p, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-6)
    assert (Sampling(1.0, top_k=99).probabilities(LOGITS) > 0).all()


def test_top_k_takes_the_lower_index_of_equals() -> None:
    p = Sampling(1.0, top_k=2).probabilities(np.array([1, 3, 1, 1], np.float32))
    assert p[0] > 0 and p[1] > 0 and not p[2:].any()


@pytest.mark.parametrize(
    "top_p, kept", [(0.3, [1]), (0.41, [1, 3]), (0.84, [1, 3, 4]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    p = Sampling(1.0, top_p=top_p).probabilities(LOGITS)
    assert np.flatnonzero(p).tolist() == kept
    want = np.exp(LOGITS[kept].astype(float))
    assert np.allclose(p[kept], want / want.sum(), atol=1e-6)


def test_top_p_counts_what_top_k_left() -> None:
    """0.4 of the 0.65 that top_k = 2 leaves is 0.615: one token reaches 0.6, and two are needed for 0.62."""
    assert np.flatnonzero(Sampling(1.0, top_k=2, top_p=0.6).probabilities(LOGITS)).tolist() == [1]
    assert np.flatnonzero(Sampling(1.0, top_k=2, top_p=0.62).probabilities(LOGITS)).tolist() == [1, 3]


def test_greedy_is_the_first_largest() -> None:
    logits = np.array([0.0, 2.0, 2.0, -1.0], np.float32)
    assert Sampling().choose(logits, np.random.default_rng(0)) == 1
    assert Sampling().probabilities(logits).tolist() == [0, 1, 0, 0]


def test_frequencies() -> None:
    rng, sampling = np.random.default_rng(3), Sampling(0.8, top_k=4)
    counts = np.bincount([sampling.choose(LOGITS, rng) for _ in range(4000)], minlength=5)
    p = sampling.probabilities(LOGITS)
    assert counts[p == 0].sum() == 0
    assert (abs(counts - 4000 * p) < 4 * np.sqrt(4000 * p * (1 - p)) + 1e-9).all()


def test_same_seed_same_tokens() -> None:
    draws = [
        [Sampling(1.0).choose(LOGITS, rng) for _ in range(50)]
        for rng in (np.random.default_rng(seed) for seed in (5, 5, 6))
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "options, what",
    [
        ({"temperature": -1}, "temperature = -1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -3}, "top_k = -3"),
        ({"top_p": 0}, "top_p = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
    ],
)
def test_wrong_options(options: dict, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}: allowed"):
        Sampling(**options)
