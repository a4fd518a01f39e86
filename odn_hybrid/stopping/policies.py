"""Halting policies: what the exits said so far -> stop or go on; and how a threshold is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.calibration import as_temperatures, confidence, fit_temperature
from odn_hybrid.stopping.checks import as_labels, as_logits, check_fraction, check_probability

__all__ = [
    "NEVER",
    "ConfidencePolicy",
    "HaltingPolicy",
    "ThresholdChoice",
    "choose_threshold",
    "confidence_candidates",
    "evaluate",
]

NEVER = 2.0  # a threshold no confidence reaches; finite, because JSON knows no infinity


class HaltingPolicy(Protocol):
    """What the runtime and the certificate ask of a policy."""

    def scores(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Readiness to stop at each exit, (n, K, C) -> (n, K); column k looks at exits 1..k only."""
        ...

    def halt(self, logits: ArrayLike) -> NDArray[np.int64]:
        """The exit each image takes, (n, K, C) -> (n,), numbered 1..K."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        ...


@dataclass(frozen=True, eq=False)
class ConfidencePolicy:
    """Halt at the first exit whose largest softmax probability reaches its threshold; the last always halts.

    `thresholds` (K,): above 1 the exit never halts; the last entry has no effect. `temperatures` (K,):
    above 0. Raises `InputError` for shapes and values that do not fit.
    """

    thresholds: NDArray[np.float64]
    temperatures: NDArray[np.float64]

    def __post_init__(self) -> None:
        limits = np.array(self.thresholds, dtype=np.float64)
        if limits.ndim != 1 or limits.size == 0 or not np.isfinite(limits).all():
            raise InputError(f"thresholds are {self.thresholds!r}; expected one finite number per exit")
        object.__setattr__(self, "thresholds", limits)
        object.__setattr__(self, "temperatures", as_temperatures(self.temperatures, limits.size).copy())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfidencePolicy) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.thresholds.tobytes(), self.temperatures.tobytes()))

    def scores(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Calibrated confidence of every exit, `logits` (n, K, C) -> (n, K) in (0, 1]."""
        return confidence(logits, self.temperatures)

    def halt(self, logits: ArrayLike) -> NDArray[np.int64]:
        """The exit each image takes, `logits` (n, K, C) -> (n,) from 1 to K."""
        return _first_reached(self.scores(logits), self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": "confidence",
            "thresholds": self.thresholds.tolist(),
            "temperatures": self.temperatures.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Any) -> ConfidencePolicy:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        fields = {"kind", "thresholds", "temperatures"}
        if not isinstance(values, dict) or set(values) != fields or values["kind"] != "confidence":
            raise ConfigError(
                f"not a confidence policy: {values!r}; expected kind 'confidence' and fields {sorted(fields)}"
            )
        try:
            return cls(values["thresholds"], values["temperatures"])
        except (TypeError, ValueError):
            raise ConfigError(f"a confidence policy with unusable numbers: {values!r}") from None


def _first_reached(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    stops = scores >= thresholds
    stops[:, -1] = True
    return np.asarray(stops.argmax(axis=1) + 1, dtype=np.int64)


def evaluate(
    exits_taken: ArrayLike, logits: ArrayLike, labels: ArrayLike, costs: ArrayLike
) -> dict[str, Any]:
    """What a policy's choices come to: `accuracy`, `mean_cost` (unit of `costs`), `histogram` (K counts).

    `exits_taken` (n,) from 1 to K, `logits` (n, K, C), `labels` (n,), `costs` (K,) cumulative to each exit.
    Raises `InputError` for arrays that do not fit each other.
    """
    scores = as_logits(logits, 3)
    n, exits, classes = scores.shape
    wanted, taken, price = (
        as_labels(labels, n, classes),
        np.asarray(exits_taken),
        np.asarray(costs, dtype=np.float64),
    )
    if (
        taken.shape != (n,)
        or not np.issubdtype(taken.dtype, np.integer)
        or taken.min() < 1
        or taken.max() > exits
    ):
        raise InputError(f"exits_taken must be {n} whole numbers from 1 to {exits}; got shape {taken.shape}")
    if price.shape != (exits,) or not np.isfinite(price).all():
        raise InputError(f"costs are {costs!r}; expected {exits} finite numbers, one per exit")
    answers = scores[np.arange(n), taken - 1].argmax(axis=1)
    return {
        "accuracy": float((answers == wanted).mean()),
        "mean_cost": float(price[taken - 1].mean()),
        "histogram": np.bincount(taken - 1, minlength=exits).tolist(),
    }


def confidence_candidates(scores: ArrayLike, count: int = 64) -> NDArray[np.float64]:
    """Shared thresholds from strict to loose, starting with `NEVER`: at most `count`, strictly falling.

    `scores` (n, K): calibrated confidences on the calibration split. The thresholds are evenly spaced
    quantiles of the confidences of all exits but the last, so each step lets about equally many more
    answers pass. With one exit there is nothing to choose: `[NEVER]`.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise InputError(f"scores have shape {table.shape}; expected finite numbers (images, exits)")
    if count < 1:
        raise ConfigError(f"count is {count}; it must be 1 or more")
    early = table[:, :-1].ravel()
    if early.size == 0 or count == 1:
        return np.array([NEVER])
    levels = np.quantile(early, np.linspace(1, 0, count - 1), method="inverted_cdf")
    return np.concatenate([[NEVER], np.unique(levels)[::-1]])


@dataclass(frozen=True, kw_only=True)
class ThresholdChoice:
    """A policy chosen on the calibration split, and why.

    `drop` is its drop against the last exit on that split, an estimate, not a promise; `margin` is what the
    rule kept free below the drop allowed. Both are fractions.
    """

    policy: ConfidencePolicy
    drop: float
    margin: float
    reason: str


def choose_threshold(
    logits: ArrayLike,
    labels: ArrayLike,
    temperatures: ArrayLike | None = None,
    *,
    drop: float,
    delta: float,
    n_certification: int | None = None,
    power: float | None = 0.8,
    count: int = 64,
) -> ThresholdChoice:
    """The loosest shared threshold that has a fair chance of being certified; the reference is the last exit.

    `logits` (n, K, C) and `labels` (n,) of the calibration split; `temperatures` (K,) are fitted there if
    not given. Rule: walk the candidates from strict to loose while d + margin <= drop, where d is the drop
    and q the share of changed answers (newly wrong or newly right) on the calibration split, and margin =
    (z(1 - delta) + z(power)) sqrt(max(q, drop) / n_certification): were the calibration rates the true
    ones, `n_certification` images (default: n) would certify about `power` of the time. The walk ends at
    the first candidate that fails, so that one lucky loose threshold is not picked. `power=None` drops the
    margin: for use without a certificate. If even the strictest early threshold fails, the policy never
    halts early.
    """
    table = as_logits(logits, 3)
    n, exits, classes = table.shape
    wanted = as_labels(labels, n, classes)
    drop, delta = check_fraction(drop, "drop"), check_probability(delta, "delta")
    size = n if n_certification is None else n_certification
    if size < 1:
        raise ConfigError(f"n_certification is {size}; it must be 1 or more")
    reach = 0.0
    if power is not None:
        reach = max(0.0, float(ndtri(1 - delta) + ndtri(check_probability(power, "power"))))
    if temperatures is None:
        temperatures = [fit_temperature(table[:, k], wanted) for k in range(exits)]
    scales = as_temperatures(temperatures, exits)
    scores = confidence(table, scales)
    right = table.argmax(axis=2) == wanted[:, None]
    best, lost, margin = _walk(
        confidence_candidates(scores, count), scores, right, drop, reach / math.sqrt(size)
    )
    policy = ConfidencePolicy(np.full(exits, best), scales)
    reason = _reason(best, lost, margin, drop, n, size, exits)
    return ThresholdChoice(policy=policy, drop=lost, margin=margin, reason=reason)


def _walk(
    candidates: NDArray[np.float64],
    scores: NDArray[np.float64],
    right: NDArray[np.bool_],
    drop: float,
    reach: float,
) -> tuple[float, float, float]:
    """Last candidate before the first that fails, with its drop and its margin; see `choose_threshold`."""
    rows, exits = np.arange(len(scores)), scores.shape[1]
    best, lost, margin = NEVER, 0.0, reach * math.sqrt(drop)
    for threshold in candidates[1:]:
        taken = _first_reached(scores, np.full(exits, threshold))
        change = right[:, -1].astype(int) - right[rows, taken - 1]
        d, q = float(change.mean()), float(np.abs(change).mean())
        needed = reach * math.sqrt(max(q, drop))
        if d + needed > drop:
            break
        best, lost, margin = float(threshold), d, needed
    return best, lost, margin


def _reason(best: float, lost: float, margin: float, drop: float, n: int, size: int, exits: int) -> str:
    if exits == 1:
        return "one exit: nothing to choose"
    room = f"{100 * drop:g} points less a margin of {100 * margin:.2f} for certification on {size} images"
    if best != NEVER:
        return (
            f"threshold {best:.4f} is the loosest within {room}: "
            f"it loses {100 * lost:.2f} on {n} calibration images"
        )
    return f"never halts early: on {n} calibration images no threshold lies within {room}"
