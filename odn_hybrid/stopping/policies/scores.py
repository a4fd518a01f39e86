"""Scores: what a halting policy looks at, from the logits of the exits so far; larger is readier to stop."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.stopping.checks import as_logits
from odn_hybrid.stopping.policies.calibration import Calibration

__all__ = ["SCORES", "agreement", "readiness", "streak"]

#: Of the calibrated probabilities, p of the answer (the largest logit) among them: confidence: p. margin: p
#: less the largest other. entropy: 1 less entropy over log C. streak: number of exits in a row, this one
#: included, that give the same answer.
SCORES = ("confidence", "margin", "entropy", "streak")


def readiness(logits: ArrayLike, score: str, calibration: Calibration) -> NDArray[np.float64]:
    """Scores (n, K) of `logits` (n, K, C).

    `score`: one of `SCORES`. `calibration`: of the K exits, see `fit_calibration`. Raises `ConfigError` for
    an unknown score and `InputError` for arrays that do not fit.

    Example:
        >>> from odn_hybrid.stopping import SCORES, Calibration, readiness
        >>> SCORES
        ('confidence', 'margin', 'entropy', 'streak')
        >>> logits = [[[1.0, 0.0], [3.0, 0.0]]]  # one image, two exits, two classes
        >>> readiness(logits, "confidence", Calibration.of_temperatures([1.0, 1.0])).round(3).tolist()
        [[0.731, 0.953]]
    """
    table = as_logits(logits, 3)
    if score not in SCORES:
        raise ConfigError(f"unknown score {score!r}; known: {', '.join(SCORES)}")
    if score == "streak":
        return streak(table).astype(np.float64)
    return _of_probabilities(calibration.apply(table), table.argmax(axis=2), score)


def _of_probabilities(
    table: NDArray[np.float64], answers: NDArray[np.int64], score: str
) -> NDArray[np.float64]:
    shifted = table - table.max(axis=2, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=2)
    if score == "entropy":
        if table.shape[2] == 1:
            return np.ones(total.shape)
        entropy = np.log(total) - (weights * shifted).sum(axis=2) / total
        return np.asarray(1.0 - entropy / np.log(table.shape[2]))
    place = answers[..., None]
    own = np.take_along_axis(weights, place, 2)[..., 0]
    if score == "margin":
        np.put_along_axis(weights, place, 0.0, 2)
        own = own - weights.max(axis=2)
    return np.asarray(own / total)


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
