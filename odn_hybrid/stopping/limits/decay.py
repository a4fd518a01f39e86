"""How fast a sequence of sizes falls: geometric or as a power, with an interval for the rate; arrays only.

What the bounds of `depth_bound.py` ask for; the assumption is in `theory/finite_depth.md`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import check_probability
from odn_hybrid.stopping.limits.depth_bound import LARGEST, geometric_depth, power_depth

__all__ = ["KINDS", "LEAST", "Decay", "better_decay", "fit_decay"]

KINDS = ("geometric", "power")
LEAST = 4  # sizes: a line through three leaves its interval to one degree of freedom


@dataclass(frozen=True, kw_only=True)
class Decay:
    """A fitted decay: sizes `scale` * `rate`**k (geometric) or `scale` * (k + 1)**-`rate` (power).

    Attributes:
        kind: "geometric" or "power".
        scale: size at depth 0.
        rate, low, high: the rate and its interval: a factor per unit, or an exponent.
        confidence: of the interval (Student's t on the logarithms, units taken as independent).
        error: root mean square of the logarithms' residuals.
        n: sizes fitted.

    Example:
        >>> from odn_hybrid.stopping import fit_decay
        >>> fit = fit_decay([8.0, 4.1, 2.0, 1.0, 0.5])
        >>> fit.kind, fit.n
        ('geometric', 5)
    """

    kind: str
    scale: float
    rate: float
    low: float
    high: float
    confidence: float
    error: float
    n: int

    @property
    def falls(self) -> bool | None:
        """Whether the sizes fall; None where the interval leaves it open."""
        return _settled(
            self.kind == "geometric", self.low, self.high, 1.0 if self.kind == "geometric" else 0.0
        )

    @property
    def summable(self) -> bool | None:
        """Whether their sum stays bounded as depth grows; None where the interval leaves it open."""
        return _settled(self.kind == "geometric", self.low, self.high, 1.0)

    def at(self, depth: ArrayLike) -> NDArray[np.float64]:
        """Fitted size at these depths."""
        k = np.asarray(depth, dtype=np.float64)
        if self.kind == "geometric":
            return np.asarray(self.scale * self.rate**k)
        return np.asarray(self.scale * (k + 1) ** -self.rate)

    def depth(self, lipschitz: float, cost: float) -> int | None:
        """First depth with `lipschitz` * size at most `cost`, for good; None if there is none to speak of."""
        first = lipschitz * self.scale
        if self.kind == "geometric":
            return geometric_depth(first, self.rate, cost) if self.rate < 1 else None
        if self.rate <= 0 or (first > cost and math.log(first / cost) >= self.rate * math.log(LARGEST)):
            return None
        return power_depth(first, self.rate, cost)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "falls": self.falls, "summable": self.summable}


def fit_decay(
    sizes: ArrayLike, depths: ArrayLike | None = None, *, kind: str = "geometric", confidence: float = 0.95
) -> Decay:
    """Least squares on logarithms: of `sizes` (n,) at `depths` (n,) from 0 (default 0, 1, ..).

    `kind`: "geometric" or "power". `confidence`: of the interval of the rate, between 0 and 1. Raises
    `InputError` for fewer than four sizes or one that is not above 0, `ConfigError` for another kind or
    confidence.

    Example:
        >>> from odn_hybrid.stopping import fit_decay
        >>> round(fit_decay([8.0, 4.1, 2.0, 1.0, 0.5]).rate, 2)
        0.5
    """
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    level = check_probability(confidence, "confidence")
    y = np.asarray(sizes, dtype=np.float64)
    k = np.arange(y.size, dtype=np.float64) if depths is None else np.asarray(depths, dtype=np.float64)
    if y.ndim != 1 or k.shape != y.shape or y.size < LEAST or not (np.isfinite(y).all() and (y > 0).all()):
        raise InputError(f"sizes of shape {y.shape}: a decay takes {LEAST} or more finite numbers above 0")
    if not (k >= 0).all() or len(np.unique(k)) < 2:
        raise InputError("depths must be 0 or more, and not all equal")
    x = k if kind == "geometric" else np.log(k + 1)
    logs = np.log(y)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * logs).sum() / spread)
    start = float(logs.mean() - slope * x.mean())
    left = float(((logs - start - slope * x) ** 2).sum())
    reach = float(stdtrit(y.size - 2, 0.5 + level / 2)) * math.sqrt(left / (y.size - 2) / spread)
    rates = [slope, slope - reach, slope + reach]
    if kind == "geometric":
        rate, low, high = (math.exp(min(value, 700.0)) for value in rates)
    else:
        rate, high, low = (-value for value in rates)
    return Decay(
        kind=kind,
        scale=math.exp(min(start, 700.0)),
        rate=rate,
        low=low,
        high=high,
        confidence=level,
        error=math.sqrt(left / y.size),
        n=int(y.size),
    )


def better_decay(sizes: ArrayLike, depths: ArrayLike | None = None, *, confidence: float = 0.95) -> Decay:
    """Of the two kinds the one that leaves the smaller error.

    `sizes`, `depths`, `confidence`: see `fit_decay`; `InputError` and `ConfigError` as there.

    Example:
        >>> from odn_hybrid.stopping import better_decay
        >>> better_decay([1.0, 0.5, 0.33, 0.25, 0.2]).kind
        'power'
    """
    fits = [fit_decay(sizes, depths, kind=kind, confidence=confidence) for kind in KINDS]
    return min(fits, key=lambda fit: fit.error)


def _settled(below: bool, low: float, high: float, limit: float) -> bool | None:
    """Whether the rate lies on the falling side of a limit: below it, or above it."""
    if below:
        return True if high < limit else False if low >= limit else None
    return True if low > limit else False if high <= limit else None
