"""Confidence intervals for one proportion: Wilson for tables, Clopper-Pearson for promises."""

from __future__ import annotations

import math
from typing import Literal

from scipy.special import betaincinv, ndtri

from odn_hybrid.errors import ConfigError
from odn_hybrid.stopping.checks import check_counts, check_probability

__all__ = ["clopper_pearson", "wilson"]


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a proportion, two-sided, as fractions `(low, high)`.

    Its coverage is `level` on average over proportions, not at each: right for the figures of a table.
    `successes` of `n` trials; `InputError` for impossible counts, `ConfigError` for `level` outside (0, 1).

    Example:
        >>> from odn_hybrid.stopping import wilson
        >>> [round(end, 3) for end in wilson(95, 100)]
        [0.888, 0.978]
    """
    successes, n = check_counts(successes, n)
    z = float(ndtri(0.5 + check_probability(level, "level") / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n the end point is 0 or 1 exactly; rounding would miss it by an ulp.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def clopper_pearson(
    successes: int,
    n: int,
    level: float = 0.95,
    side: Literal["two-sided", "lower", "upper"] = "two-sided",
) -> tuple[float, float]:
    """Clopper and Pearson's exact interval (1934) for a proportion, as fractions `(low, high)`.

    `successes` of `n` trials. Coverage is at least `level` for every proportion and every `n`. `side="upper"`
    gives `(0, high)` and `side="lower"` gives `(low, 1)`, each one-sided bound holding with probability
    `level` by itself. `InputError` for impossible counts, `ConfigError` for `level` outside (0, 1) or an
    unknown `side`.

    Example:
        >>> from odn_hybrid.stopping import clopper_pearson
        >>> [round(end, 3) for end in clopper_pearson(0, 100, side="upper")]
        [0.0, 0.03]
    """
    successes, n = check_counts(successes, n)
    alpha = 1 - check_probability(level, "level")
    if side not in ("two-sided", "lower", "upper"):
        raise ConfigError(f"side is {side!r}; choose one of two-sided, lower, upper")
    tail = alpha / 2 if side == "two-sided" else alpha
    low, high = 0.0, 1.0
    if side != "upper" and successes > 0:
        low = float(betaincinv(successes, n - successes + 1, tail))
    if side != "lower" and successes < n:
        high = float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high
