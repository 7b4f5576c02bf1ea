"""How far a model's outputs are from another's."""

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
    """(..., vocab) logits -> float64 log-probabilities."""
    x = x.astype(float) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence of each row of logits (..., vocab) from the reference's, in nats."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows (..., features)."""
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
