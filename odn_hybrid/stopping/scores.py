"""Scores: what a halting policy looks at, from the logits of the exits so far; larger is readier to stop."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.stopping.calibration import as_temperatures
from odn_hybrid.stopping.checks import as_logits

__all__ = ["SCORES", "agreement", "readiness", "streak"]

#: confidence: largest probability. margin: largest less second largest. entropy: 1 less entropy over log C.
#: streak: number of exits in a row, this one included, that give the same answer.
SCORES = ("confidence", "margin", "entropy", "streak")


def readiness(
    logits: ArrayLike, score: str, temperatures: ArrayLike, *, recall: bool = False
) -> NDArray[np.float64]:
    """Scores (n, K) of logits (n, K, C) at temperatures (K,).

    With `recall` an exit's score is the best among it and the exits before it. Raises `ConfigError` for an
    unknown score and `InputError` for arrays that do not fit.
    """
    table = as_logits(logits, 3)
    if score not in SCORES:
        raise ConfigError(f"unknown score {score!r}; known: {', '.join(SCORES)}")
    if score == "streak":
        found = streak(table).astype(np.float64)
    else:
        scale = as_temperatures(temperatures, table.shape[1])
        found = _of_probabilities(table, scale, score)
    return np.maximum.accumulate(found, axis=1) if recall else found


def _of_probabilities(
    table: NDArray[np.float64], scale: NDArray[np.float64], score: str
) -> NDArray[np.float64]:
    shifted = (table - table.max(axis=2, keepdims=True)) / scale[:, None]
    weights = np.exp(shifted)
    total = weights.sum(axis=2)
    if score == "confidence":
        return np.asarray(1.0 / total)
    if table.shape[2] == 1:
        return np.ones(total.shape)
    if score == "margin":
        second = np.partition(weights, -2, axis=2)[..., -2]
        return np.asarray((1.0 - second) / total)
    entropy = np.log(total) - (weights * shifted).sum(axis=2) / total
    return np.asarray(1.0 - entropy / np.log(table.shape[2]))


def agreement(logits: ArrayLike) -> NDArray[np.bool_]:
    """Whether each exit gives the answer of the one before it, (n, K, C) -> (n, K); False at the first."""
    answers = as_logits(logits, 3).argmax(axis=2)
    same = np.zeros(answers.shape, dtype=bool)
    same[:, 1:] = answers[:, 1:] == answers[:, :-1]
    return same


def streak(logits: ArrayLike) -> NDArray[np.int64]:
    """How many exits in a row, this one included, give this one's answer, (n, K, C) -> (n, K), 1 to K."""
    same = agreement(logits)
    run = np.ones(same.shape, dtype=np.int64)
    for exit in range(1, same.shape[1]):
        run[:, exit] = np.where(same[:, exit], run[:, exit - 1] + 1, 1)
    return run
