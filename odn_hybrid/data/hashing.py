"""Random numbers that are a pure function of (words, index), for ever.

Splits, order and augmentation are recorded by digest and repeated after an interruption, so they must not
depend on a generator's state, on the number of workers or on numpy's release. SplitMix64's finaliser
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) on a counter is
enough: it passes BigCrush and needs only 64-bit integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["permutation", "random_bits", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    # Arrays, not scalars: numpy wraps unsigned array arithmetic silently and warns about scalars.
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def random_bits(words: Sequence[int], index: np.ndarray) -> np.ndarray:
    """64 random bits (uint64) for every entry of `index`, keyed by the integers `words`."""
    key = np.zeros(1, dtype=np.uint64)
    for word in words:
        key = _mix(key + _GOLDEN + np.array([word % 2**64], dtype=np.uint64))
    return _mix(_mix(key + _GOLDEN * (np.asarray(index).astype(np.uint64) + np.uint64(1))))


def uniforms(words: Sequence[int], index: np.ndarray, draws: int) -> np.ndarray:
    """Uniform numbers in [0, 1), shape (len(index), draws), float64."""
    columns = [random_bits([*words, draw], index) >> np.uint64(11) for draw in range(draws)]
    return np.stack(columns, axis=-1).astype(np.float64) * 2.0**-53


def permutation(words: Sequence[int], count: int) -> np.ndarray:
    """A random order of 0 .. count - 1 (int64)."""
    return np.argsort(random_bits(words, np.arange(count)), kind="stable").astype(np.int64)
