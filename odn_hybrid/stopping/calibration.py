"""Turning logits into confidences that mean something: temperature scaling, one temperature per exit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from odn_hybrid.errors import InputError
from odn_hybrid.stopping.checks import as_labels, as_logits

__all__ = [
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "as_temperatures",
    "confidence",
    "expected_calibration_error",
    "fit_temperature",
    "softmax",
]

# Perfectly separated calibration data drive T to 0 and useless logits drive it to infinity; both ends would
# make every confidence 1 or 1/C, so the search stays where a confidence still tells inputs apart.
MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
# A hundred images all answered rightly would still drive T to its bound. A weak prior on log T (normal
# around 0) keeps such small splits sane; against a thousand images it weighs nothing.
PRIOR_DEVIATION = 0.5


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that best explains labels as draws from softmax(logits / T).

    `logits` (n, C) and `labels` (n,). The mode of the likelihood (unimodal in log T: convex in 1/T) times a
    normal prior on log T of deviation 0.5, found by a bounded scalar search in log T between
    `MIN_TEMPERATURE` and `MAX_TEMPERATURE`. Returns 1.0 where T does not matter (all logits of each image
    equal, or one class). Temperature scaling is Guo et al. 2017 (arXiv 1706.04599), the prior is ours.
    Raises `InputError` for NaN or infinite logits and for labels that do not fit.
    """
    scores = as_logits(logits, 2)
    wanted = as_labels(labels, *scores.shape)
    scores = scores - scores.max(axis=1, keepdims=True)
    if not scores.any():
        return 1.0
    own = scores[np.arange(len(wanted)), wanted]

    def loss(log_t: float) -> float:
        beta = math.exp(-log_t)
        prior = (log_t / PRIOR_DEVIATION) ** 2 / 2
        return float(np.sum(logsumexp(scores * beta, axis=1) - own * beta) + prior)

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    # The search never evaluates its end points, and a flat likelihood should not move anything.
    best = min((0.0, float(found.x), *bounds), key=loss)
    return math.exp(best)


def softmax(logits: ArrayLike, temperature: ArrayLike = 1.0) -> NDArray[np.float64]:
    """softmax(logits / temperature) over the last axis, in float64; `temperature` broadcasts over the others.

    Raises `InputError` for NaN or infinite logits and for temperatures that are not above 0.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim == 0 or scores.shape[-1] == 0 or not np.isfinite(scores).all():
        raise InputError(
            f"logits of shape {scores.shape} are empty, NaN or infinite; expected finite (..., classes)"
        )
    scale = np.asarray(temperature, dtype=np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(f"temperature is {temperature!r}; it must be finite and above 0")
    scores = (scores - scores.max(axis=-1, keepdims=True)) / scale[..., None]
    weights = np.exp(scores)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def as_temperatures(temperatures: ArrayLike, exits: int) -> NDArray[np.float64]:
    """`temperatures` as float64 of shape (exits,), finite and above 0; `InputError` otherwise."""
    array = np.asarray(temperatures, dtype=np.float64)
    if array.shape != (exits,):
        raise InputError(f"temperatures have shape {array.shape}; expected ({exits},), one per exit")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise InputError(f"temperatures are {array.tolist()}; each must be finite and above 0")
    return array


def confidence(logits: ArrayLike, temperatures: ArrayLike) -> NDArray[np.float64]:
    """Largest softmax probability: `logits` (n, K, C), `temperatures` (K,) -> (n, K) in (0, 1]."""
    scores = as_logits(logits, 3)
    scale = as_temperatures(temperatures, scores.shape[1])
    # max softmax = 1 / sum exp(z - max z): one pass, no (n, K, C) of probabilities kept.
    shifted = (scores - scores.max(axis=2, keepdims=True)) / scale[:, None]
    return np.asarray(1.0 / np.exp(shifted).sum(axis=2))


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over `bins` equal-width bins of confidence, in [0, 1].

    `probabilities` (n, C) with rows that sum to 1, `labels` (n,). Naeini et al. 2015, as in arXiv 1706.04599.
    A figure to look at, biased upwards for small n; nothing is promised from it.
    """
    rows = as_logits(probabilities, 2)
    wanted = as_labels(labels, *rows.shape)
    if rows.min() < 0 or not np.allclose(rows.sum(axis=1), 1.0, atol=1e-4):
        raise InputError(
            "probabilities must be rows from 0 to 1 that sum to 1; pass them through softmax first"
        )
    if bins < 1:
        raise InputError(f"bins is {bins}; it must be 1 or more")
    score = rows.max(axis=1)
    gap = (rows.argmax(axis=1) == wanted) - score
    place = np.minimum((score * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(gap))
