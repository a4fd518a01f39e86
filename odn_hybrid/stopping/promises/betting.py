"""A betting test of "the mean is at least m" for bounded observations, for losses that are not just 0 or 1.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024, arXiv
2010.09686). A gambler who stakes on the observations being smaller than m cannot expect to gain if their mean
is m or more: large capital is evidence against it (Ville's inequality). Statement, proof and the
role of the order: theory/certificate.md. For 0/1 losses `PairedTest` is exact and has more power.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import check_probability

__all__ = ["BettingTest", "data_order"]

MOST = 0.6  # share of the capital that a single worst observation may take; chosen by power, before any data
LARGEST = 100_000  # images up to which the advice on sample size is worked out with the test itself
Values = NDArray[np.float64]


def data_order(values: ArrayLike) -> tuple[Values, str]:
    """`values` (n,) in an order that depends on what they are and not on how they came, and their digest.

    Sorted, then shuffled by a seed taken from the SHA-256 of the sorted values (float64, little endian). The
    bit stream of Philox is the same in every release of numpy, and so is the order.
    """
    ordered = np.sort(np.asarray(values, dtype="<f8") + 0.0)  # + 0.0: there is one zero
    digest = hashlib.sha256(ordered.tobytes()).hexdigest()
    keys = np.random.Philox(key=int(digest[:32], 16)).random_raw(ordered.size)
    return ordered[np.argsort(keys, kind="stable")].astype(np.float64), digest


@dataclass(frozen=True, eq=False)
class BettingTest:
    """The betting test of one sample of paired differences.

    `differences` (n,): loss of the policy less loss of the reference, image by image, each within
    [-span, span], where `span` is the width of the loss's range. `drop`: the promise, mean difference at most
    `drop`, 0 <= drop < span. `delta`: the level, for which the stakes are chosen; the p-value is valid at
    every level. Raises `InputError` for values that are not finite or out of range, `ConfigError` for numbers
    out of range.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import BettingTest
        >>> BettingTest(np.zeros(2000), span=1.0, drop=0.01, delta=0.05).p_value() < 0.05
        True
    """

    differences: Values
    span: float
    drop: float
    delta: float

    def __post_init__(self) -> None:
        values = np.asarray(self.differences, dtype=np.float64)
        if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
            raise InputError(
                f"differences have shape {values.shape}; expected finite numbers (n,), one per image"
            )
        if not (math.isfinite(self.span) and self.span > 0):
            raise ConfigError(f"span is {self.span!r}; the range of a loss must be finite and not empty")
        if not 0 <= self.drop < self.span:
            raise ConfigError(f"drop is {self.drop!r}; it must be from 0 to below the span, {self.span:g}")
        check_probability(self.delta, "delta")
        if np.abs(values).max() > self.span * (1 + 1e-12):
            raise InputError(
                f"a difference of {np.abs(values).max():g} is not within +-{self.span:g}: give the true range"
            )
        object.__setattr__(self, "differences", values)

    def p_value(self) -> float:
        """p-value of H0: mean difference >= `drop`: one over the largest capital the gambler ever had."""
        return math.exp(-self._log_capital(self.drop / self.span))

    def rejects(self) -> bool:
        """Whether the p-value is at most `delta`."""
        return self._rejects(self.drop / self.span)

    def upper_bound(self) -> float:
        """Upper 1 - delta confidence bound on the mean difference, in [-span, span].

        Rounded up by about 1 % of the standard error; at most `drop` exactly when `rejects()` is true.
        """
        promise = self.drop / self.span
        low, high = (-1.0, promise) if self._rejects(promise) else (promise, 1.0)
        if high == 1.0 and not self._rejects(1.0):
            return self.span
        scaled = self._scaled
        resolution = 0.01 * math.sqrt(float(np.square(scaled).sum()) + 1) / scaled.size
        while high - low > resolution:
            middle = (low + high) / 2
            low, high = (low, middle) if self._rejects(middle) else (middle, high)
        return self.drop if high == promise else high * self.span

    def needed_images(self) -> int | None:
        """About how many images would earn the promise if the observed differences were typical of all.

        None if none would do: the observed mean is the promise or more. A guide, not a guarantee: at that
        number the promise is earned about every second time.
        """
        scaled, m = np.sort(self._scaled), self.drop / self.span
        gap = m - float(scaled.mean())
        if gap <= 1e-12:
            return None
        evidence = math.log(1 / self.delta)
        # The capital grows by about rate * gap - rate^2 variance / 2 a step, for rates within the limit.
        rate = min(gap / max(float(scaled.var()), 1e-12), MOST / (1 - m))
        guess = math.ceil(evidence / (rate * gap / 2 if rate < MOST / (1 - m) else math.log1p(rate * gap)))

        def passes(n: int) -> bool:
            typical = scaled[((np.arange(n) + 0.5) * scaled.size / n).astype(np.int64)]
            return BettingTest(typical, 1.0, m, self.delta).rejects()

        low, high = 0, max(1, guess)
        while high <= LARGEST and not passes(high):
            low, high = high, math.ceil(1.2 * high)
        if high > LARGEST:
            return max(guess, self.differences.size + 1)
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        return max(high, self.differences.size + 1)

    @cached_property
    def _scaled(self) -> Values:
        """The differences over the span, within [-1, 1], in the order that their digest fixes."""
        return np.clip(data_order(self.differences)[0] / self.span, -1.0, 1.0)

    @cached_property
    def _rates(self) -> Values:
        """The gambler's rate at each step, from the steps before only: sqrt(2 log(1 / delta) / (n variance)).

        Best for a sample of n that just suffices. The running variance starts at its largest possible value
        with a weight of one observation (equation 15 of the paper, on [-1, 1]).
        """
        values = self._scaled
        n = np.arange(1, values.size + 1)
        spread = np.square(values - np.cumsum(values) / (n + 1))
        before = np.concatenate([[1.0], 1.0 + np.cumsum(spread)[:-1]]) / n
        return np.asarray(np.sqrt(2 * math.log(1 / self.delta) / (values.size * before)))

    def _rejects(self, m: float) -> bool:
        return self._log_capital(m) >= math.log(1 / self.delta)

    def _log_capital(self, m: float) -> float:
        """Logarithm of the largest capital against "mean >= m" (scaled), at least 0; does not fall in m."""
        limit = MOST / (1 - m) if m < 1 else math.inf
        gains = np.log1p(np.minimum(self._rates, limit) * (m - self._scaled))
        return max(0.0, float(np.cumsum(gains).max()))
