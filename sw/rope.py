"""Rotary embedding: the frequencies that a Hugging Face configuration names.

Both spellings are read: rope_parameters (transformers 5) and rope_theta with rope_scaling (before).
"""

import math
from typing import NamedTuple

import numpy as np

from sw.tensors import Config

TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
_LEAST, _MOST = 1e-3, 1e5
"""Of the factors of scaled frequencies, and of what else YaRN has; published ones are far inside."""


class Rope(NamedTuple):
    """inv_freq (head_dim / 2) float64 radians per position; `factor` multiplies cosines and sines.

    `theta` is the base if inv_freq is just theta^(-2i / head_dim), else None.
    """

    inv_freq: np.ndarray
    factor: float
    theta: float | None


def read_rope(config: Config, head_dim: int, default_theta: float) -> Rope:
    """The frequencies of a configuration. CheckpointError for a type or an option that is not supported.

    'dynamic' changes nothing up to max_position_embeddings, the longest context that the loader allows.
    """
    p = config.inner("rope_parameters") or config.inner("rope_scaling") or Config({}, config.where)
    for k, v in p.data.items():
        if isinstance(v, dict):
            raise p.fail(k, "a number or a text: one set of frequencies for all layers")
    base = _holder("rope_theta", p, config)
    theta = base.number("rope_theta", default_theta)
    key = "type" if p.get("rope_type") is None and p.get("type") is not None else "rope_type"
    kind = p.one_of(key, TYPES, "default")
    for where in (config, p):
        where.one_of("partial_rotary_factor", (1,), 1)
    inv = theta ** (-np.arange(head_dim // 2, dtype=np.float64) * 2 / head_dim)
    if kind in ("default", "dynamic"):
        return Rope(inv, 1.0, theta)
    factor = p.number("factor", least=1, most=_MOST)
    if kind == "linear":
        return Rope(inv / factor, 1.0, None)
    key = "original_max_position_embeddings"
    longest = config.get("max_position_embeddings") if kind == "yarn" else None
    original = _holder(key, p, config).number(key, longest, least=1)
    if kind == "llama3":
        return Rope(_llama3(p, inv, factor, original), 1.0, None)
    if theta <= 1:
        raise base.fail("rope_theta", "more than 1 where rope_type = 'yarn'")
    return Rope(*_yarn(p, inv, theta, factor, original), None)


def _holder(key: str, inner: Config, outer: Config) -> Config:
    """Of two configurations that may have a key the one that counts."""
    return outer if inner.get(key) is None and outer.get(key) is not None else inner


def _llama3(p: Config, inv: np.ndarray, factor: float, original: float) -> np.ndarray:
    """Wavelengths above original / low_freq_factor are stretched, below original / high_freq_factor kept."""
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    if high <= low:
        raise p.fail("high_freq_factor", f"more than low_freq_factor = {low}")
    keep = np.clip((original * inv / (2 * math.pi) - low) / (high - low), 0, 1)
    return inv * (keep + (1 - keep) / factor)


def _yarn(p: Config, inv: np.ndarray, theta: float, factor: float,
          original: float) -> tuple[np.ndarray, float]:
    """YaRN by parts: dimensions that turn more than beta_fast times within `original` are kept."""
    half = len(inv)
    fast, slow = p.number("beta_fast", 32, _LEAST, _MOST), p.number("beta_slow", 1, _LEAST, _MOST)
    if fast < slow:
        raise p.fail("beta_fast", f"at least beta_slow = {slow}")

    def dimension(turns: float) -> float:
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = dimension(fast), dimension(slow)
    if p.one_of("truncate", (True, False), True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    keep = 1 - np.clip((np.arange(half) - low) / (high - low or 0.001), 0, 1)
    m, m_all = (p.number(key, 0, 0, 100) for key in ("mscale", "mscale_all_dim"))
    scale = _mscale(factor, m) / _mscale(factor, m_all) if m and m_all else _mscale(factor, 1)
    return inv * (keep + (1 - keep) / factor), p.number("attention_factor", scale, _LEAST, _MOST)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1
