"""Is a confidence of 0.8 right in 8 cases of 10? Reliability curves and the expected calibration error (ECE).

All of it works on the confidence of an answer and whether that answer was right, so it also fits answers that
are not the most likely class of the calibrated probabilities.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_correct, as_labels, as_logits, check_probability, is_whole
from odn_hybrid.stopping.promises.intervals import wilson

__all__ = [
    "BINNINGS",
    "CalibrationError",
    "ReliabilityCurve",
    "ece_interval",
    "expected_calibration_error",
    "reliability_curve",
]

#: width: bins of equal width on [0, 1]. mass: bins of equally many inputs, equal confidences kept together.
BINNINGS = ("width", "mass")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy against confidence, bin by bin; plain numbers, None where a bin holds no input.

    Attributes:
        edges: of the bins of confidence, one more than bins, never falling.
        counts: inputs per bin.
        confidence, accuracy: means per bin.
        low, high: Wilson interval of each bin's accuracy.
        level: of the intervals.

    Example:
        >>> from odn_hybrid.stopping import reliability_curve
        >>> curve = reliability_curve([0.6, 0.9, 0.95, 0.9], [False, True, True, True], bins=2)
        >>> round(curve.error, 3)
        0.088
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    level: float

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap between the two, each bin weighed by its inputs."""
        gaps = [
            count * abs(right - said)
            for count, said, right in zip(self.counts, self.confidence, self.accuracy, strict=True)
            if said is not None and right is not None
        ]
        return float(sum(gaps) / sum(self.counts))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class CalibrationError:
    """An expected calibration error and how sure it is; see `ece_interval`.

    Attributes:
        value: as measured; biased upwards, the more the fewer inputs a bin holds.
        debiased: less the bias that resampling finds, at least 0; part of the bias remains.
        low, high: interval for the error without sampling noise in the answers.
        n, level: inputs, and the confidence of the interval.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import ece_interval
        >>> found = ece_interval(np.full(400, 0.8), np.arange(400) % 5 != 0, resamples=50)
        >>> found.low <= found.high
        True
    """

    value: float
    debiased: float
    low: float
    high: float
    n: int
    level: float


def reliability_curve(
    confidence: ArrayLike, right: ArrayLike, bins: int = 15, *, binning: str = "width", level: float = 0.95
) -> ReliabilityCurve:
    """How often answers were right, by how sure they were.

    Args:
        confidence: (n,) probability from 0 to 1 that the answer is right.
        right: (n,) bool, whether it was.
        bins: number of bins; "mass" makes fewer where confidences are tied.
        binning: one of `BINNINGS`.
        level: of the Wilson intervals.

    Raises `InputError` for arrays that do not fit, `ConfigError` for settings that do not exist.

    Example:
        >>> from odn_hybrid.stopping import reliability_curve
        >>> reliability_curve([0.6, 0.9, 0.95, 0.9], [False, True, True, True], bins=2).counts
        (0, 4)
    """
    edges, counts, said, hits = _binned(*_checked(confidence, right), bins, binning)
    check_probability(level, "level")
    filled = counts > 0
    share = np.where(filled, hits / np.maximum(counts, 1), np.nan)
    limits = [
        wilson(int(h), int(c), level) if c else (np.nan, np.nan) for h, c in zip(hits, counts, strict=True)
    ]
    low, high = np.array(limits).T
    return ReliabilityCurve(
        tuple(float(edge) for edge in edges),
        tuple(int(count) for count in counts),
        _or_none(np.where(filled, said / np.maximum(counts, 1), np.nan)),
        _or_none(share),
        _or_none(low),
        _or_none(high),
        float(level),
    )


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over `bins` equal-width bins of confidence, in [0, 1].

    `probabilities` (n, C) with rows that sum to 1, `labels` (n,). Naeini et al. 2015, as in arXiv 1706.04599.
    A figure to look at, biased upwards for small n (see `ece_interval`); nothing is promised from it. Raises
    `InputError` for arrays that do not fit, `ConfigError` for a number of bins below 1.

    Example:
        >>> from odn_hybrid.stopping import expected_calibration_error
        >>> round(expected_calibration_error([[0.8, 0.2]] * 4, [0, 0, 0, 1]), 3)
        0.05
    """
    rows = as_logits(probabilities, 2)
    wanted = as_labels(labels, *rows.shape)
    if rows.min() < 0 or not np.allclose(rows.sum(axis=1), 1.0, atol=1e-4):
        raise InputError(
            "probabilities must be rows from 0 to 1 that sum to 1; pass them through softmax first"
        )
    score = np.minimum(rows.max(axis=1), 1.0)
    _, _, said, hits = _binned(score, rows.argmax(axis=1) == wanted, bins, "width")
    return float(np.abs(hits - said).sum() / len(score))


def ece_interval(
    confidence: ArrayLike,
    right: ArrayLike,
    bins: int = 15,
    *,
    binning: str = "width",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> CalibrationError:
    """The expected calibration error with its bias and an interval.

    `confidence`, `right`, `bins`, `binning`: see `reliability_curve`; `InputError` and `ConfigError` as
    there. `level`: of the interval. `resamples`: draws of each bin's noise.

    What is estimated: E = sum_j w_j |g_j|, where w_j is the share of inputs in bin j and g_j the gap between
    the probability of a right answer and the confidence there, given these inputs' confidences. A bin's
    accuracy misses that probability by noise e_j of mean 0, so the measured error is sum_j w_j |g_j + e_j|:
    too large on average, most of all for a network that is well calibrated, where each bin's noise is counted
    as a gap (Roelofs et al. 2022, arXiv 2012.08668).

    `debiased` takes off the mean of sum_j w_j (|g_j + e_j| - |g_j|) at the measured gaps, as Kumar, Liang and
    Ma 2019 (arXiv 1909.10155) debias binned errors, with e_j drawn from each bin's binomial. The interval is
    our construction. Its lower end takes off the (1 + level) / 2 quantile of sum_j w_j |e_j|, because
    |g + e| <= |g| + |e|; its upper end, because |g + e| >= |g| + sign(g) e, adds the normal
    quantile times the deviation of sum_j w_j sign(g_j) e_j, which is the same for all signs. Both ends hold
    whatever the gaps are, up to the noise being estimated: from each bin's share with two more right and two
    more wrong (Agresti and Coull 1998), so that a bin without mistakes has noise too. A percentile bootstrap
    would almost always exclude 0, also for a perfectly calibrated network.

    Gaps that cancel within one bin are not seen. Deterministic for a `seed`.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import ece_interval
        >>> found = ece_interval(np.full(400, 0.8), np.arange(400) % 5 != 0, resamples=50)
        >>> found.low <= 0.01
        True
    """
    score, hit = _checked(confidence, right)
    alpha = 1 - check_probability(level, "level")
    if not is_whole(resamples) or resamples < 1:
        raise ConfigError(f"resamples is {resamples!r}; it must be a whole number, 1 or more")
    _, counts, said, hits = _binned(score, hit, bins, binning)
    filled = counts > 0
    counts, said, hits = counts[filled], said[filled], hits[filled]
    n, weight, gap = len(score), counts / len(score), (hits - said) / counts
    value = float(weight @ np.abs(gap))
    share = (hits + 2) / (counts + 4)
    drawn = np.random.default_rng(seed).binomial(counts, share, size=(int(resamples), len(counts)))
    noise = drawn / counts - share
    bias = float(((np.abs(gap + noise) - np.abs(gap)) @ weight).mean())
    low = value - float(np.quantile(np.abs(noise) @ weight, 1 - alpha / 2))
    deviation = float(np.sqrt((weight**2 * share * (1 - share) / counts).sum()))
    high = value + float(ndtri(1 - alpha / 2)) * deviation
    return CalibrationError(
        value, min(max(value - bias, 0.0), value), max(low, 0.0), min(high, 1.0), n, float(level)
    )


def _checked(confidence: ArrayLike, right: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    hit = as_correct(right, 1, "right")
    try:
        score = np.asarray(confidence, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("confidence is not an array of numbers; expected one per answer") from None
    if score.shape != hit.shape:
        raise InputError(f"confidence has shape {score.shape}; expected {hit.shape}, one per answer")
    if not ((score >= 0) & (score <= 1)).all():
        raise InputError("confidence must lie from 0 to 1 and not be NaN; pass logits through softmax first")
    return score, hit


def _binned(
    score: Floats, hit: NDArray[np.bool_], bins: int, binning: str
) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    """Edges (B + 1,), and per bin: inputs, sum of confidence, number right."""
    if not is_whole(bins) or bins < 1:
        raise ConfigError(f"bins is {bins!r}; it must be a whole number, 1 or more")
    if binning not in BINNINGS:
        raise ConfigError(f"binning is {binning!r}; choose one of {', '.join(BINNINGS)}")
    share = np.arange(int(bins) + 1) / int(bins)
    if binning == "width":
        edges, side = share, "right"  # [low, high), the last one closed
    else:
        upper = np.unique(np.quantile(score, share[1:], method="inverted_cdf"))
        edges, side = np.concatenate([[score.min()], upper]), "left"  # (low, high], the first one closed
    place = np.searchsorted(edges[1:-1], score, side=side)  # type: ignore[call-overload]
    size = len(edges) - 1
    counts = np.bincount(place, minlength=size).astype(np.int64)
    said, hits = (np.bincount(place, each, size).astype(np.float64) for each in (score, hit))
    return edges, counts, said, hits


def _or_none(values: Floats) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in values)
