"""An exact upper bound on an accuracy drop from paired right/wrong answers.

n i.i.d. images, each answered by a reference and by a cheaper model: B are newly wrong (reference right,
model wrong), C newly right. (B, C) is trinomial with rates (b, c) and the drop is b - c; the rate of
disagreement q = b + c is a nuisance. The test orders outcomes by a score-like statistic and takes the worst
case over q, restricted to a confidence interval for q (Berger and Boos 1994). No normal approximation
enters, and the grid over q bounds the worst case from above. Statement and proof: theory/certificate.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, betainc, gammaln, xlog1py, xlogy

from odn_hybrid.stopping.promises.intervals import clopper_pearson

__all__ = ["PairedTest"]

NUISANCE_SHARE = 0.02  # share of delta spent on the interval for q; fixed before any data
RESOLUTION = 1e-2  # the worst case over q is bounded from above to within this share of delta
ROUNDING = 1e-10  # allowance for floating point in sums of probabilities
Rates = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """The exact paired test for one outcome.

    `n` images, `newly_wrong` and `newly_right` of them; `drop` is the promise, which fixes the order of
    outcomes and therefore must be chosen before looking; `delta` is the level.

    Example:
        >>> from odn_hybrid.stopping import PairedTest
        >>> PairedTest(n=2000, newly_wrong=4, newly_right=0, drop=0.01, delta=0.05).rejects()
        True
    """

    n: int
    newly_wrong: int
    newly_right: int
    drop: float
    delta: float

    def p_value(self) -> float:
        """p-value of H0: b - c >= `drop`, an upper bound to within a hundredth of `delta`."""
        return self._p_value(self.drop, self._region(), self._disagreement())

    def rejects(self) -> bool:
        """Whether the p-value is at most `delta`; cheaper than the p-value where the answer is clear."""
        return self._rejects(self.drop, self._region(), self._disagreement())

    def upper_bound(self) -> float:
        """Upper 1 - delta confidence bound on b - c, in [-1, 1].

        Rounded up by about 1 % of the standard error. It is at most `drop` exactly when `rejects()` is true.
        """
        region, rates = self._region(), self._disagreement()
        if self._rejects(self.drop, region, rates):
            low, high = -rates[1], self.drop
        else:
            low, high = self.drop, min(1.0, float(np.nextafter(max(rates[1], self.drop), 2.0)))
            if not self._rejects(high, region, rates):
                return 1.0  # only where nearly every image disagrees
        resolution = 0.01 * math.sqrt(self.newly_wrong + self.newly_right + 1) / self.n
        while high - low > resolution:
            middle = (low + high) / 2
            if self._rejects(middle, region, rates):
                high = middle
            else:
                low = middle
        return float(high)

    def _disagreement(self) -> tuple[float, float]:
        """Confidence interval for q = b + c; misses with at most the share of delta spent on it."""
        level = 1 - NUISANCE_SHARE * self.delta
        return clopper_pearson(self.newly_wrong + self.newly_right, self.n, level)

    def _rejects(self, theta: float, region: NDArray[np.int64], rates: tuple[float, float]) -> bool:
        return self._p_value(theta, region, rates, enough=self.delta) <= self.delta

    def _p_value(
        self,
        theta: float,
        region: NDArray[np.int64],
        rates: tuple[float, float],
        enough: float | None = None,
    ) -> float:
        """p-value of H0: b - c >= `theta`; refined only until it is on one side of `enough`, if given."""
        spent = NUISANCE_SHARE * self.delta
        if theta > rates[1]:
            return spent  # no rates with b - c >= theta lie within the interval for q
        limit = None if enough is None else enough - spent
        worst = _worst_case(region, self.n, theta, rates, RESOLUTION * self.delta, limit)
        return min(1.0, spent + worst)

    def _region(self) -> NDArray[np.int64]:
        """For every count of newly right images, the most newly wrong ones that are no worse evidence.

        Integers (n + 1,), -1 where no count qualifies: the outcomes at least as favourable as the
        observed one. Monotone by construction, which is what the worst-case bound needs.
        """
        right = np.arange(self.n + 1)
        seen = float(self._statistic(np.array(self.newly_wrong), np.array(self.newly_right)))
        low, high = np.full(self.n + 1, -1), self.n - right
        while (low < high).any():
            middle = (low + high + 1) // 2
            # Ties count as at least as favourable; the allowance makes rounding err towards a larger region.
            good = self._statistic(middle, right) <= seen + 1e-9 * (1 + abs(seen))
            low, high = np.where(good, middle, low), np.where(good, high, middle - 1)
        # Monotone in exact arithmetic; kept so against rounding, because the worst-case bound relies on it.
        return np.minimum(np.maximum.accumulate(low), self.n - right)

    def _statistic(self, wrong: NDArray[np.int64], right: NDArray[np.int64]) -> Rates:
        """(B - C - n drop) over its standard deviation at the boundary: strictly rising in B, falling in C.

        The variance is n times the most likely rate of disagreement with b - c = drop, in Poisson form (a
        score statistic, after Tango 1998). Beyond the boundary, where the promise is never certified, the
        variance is frozen, which keeps the statistic monotone.
        """
        expected = self.n * self.drop
        excess, disagree = wrong - right - expected, wrong + right
        root = np.sqrt((2 * expected - disagree) ** 2 + 8 * right * expected)
        variance = np.where(excess < 0, (disagree + root) / 2, max(expected, 1.0))
        return np.asarray(excess / np.sqrt(np.maximum(variance, 1e-12)))


def _worst_case(
    region: NDArray[np.int64],
    n: int,
    theta: float,
    rates: tuple[float, float],
    slack: float,
    limit: float | None,
) -> float:
    """Upper bound on the largest probability of `region` over b - c = `theta`, b + c within `rates`.

    On a cell [q0, q1] the region, being monotone, is no likelier than at the corner of fewest newly wrong
    (q0 + theta) / 2 and most newly right (q1 - theta) / 2. Cells whose bound is within `slack` of a value
    really attained are settled; the others are split, if `limit` is given only until the bound is on
    one side of it.
    """
    edges = np.linspace(min(max(abs(theta), rates[0]), rates[1]), rates[1], 9)
    low, high = edges[:-1], edges[1:]
    attained = settled = float(_probability(region, n, (edges + theta) / 2, (edges - theta) / 2).max())
    bound = np.array([attained])
    for _ in range(12):
        bound = _probability(region, n, (low + theta) / 2, (high - theta) / 2) + ROUNDING
        is_open = bound > attained + slack
        settled = max(settled, float(bound[~is_open].max(initial=0.0)))
        bound, low, high = bound[is_open], low[is_open], high[is_open]
        if bound.size == 0:
            break
        if limit is not None and (max(settled, float(bound.max())) <= limit or attained > limit):
            break
        parts = np.linspace(low, high, 5)
        low, high = parts[:-1].ravel(), parts[1:].ravel()
        attained = max(attained, float(_probability(region, n, (low + theta) / 2, (low - theta) / 2).max()))
    return min(1.0, max(settled, float(bound.max(initial=0.0))))


def _probability(region: NDArray[np.int64], n: int, wrong: Rates, right: Rates) -> Rates:
    """P(B <= region[C]) for trinomial (B, C) at rates `wrong` (r,) and `right` (r,) -> (r,), rounded up.

    C is binomial; given C, so is B with n - C trials. Far tails of C are not summed but counted in full.
    """
    wrong, right = np.maximum(wrong, 0.0), np.maximum(right, 0.0)
    reach = 7 * math.sqrt(n * right.max()) + 30
    first = max(0, math.floor(n * right.min() - reach))
    last = min(n, math.ceil(n * right.max() + reach))
    count = np.arange(first, last + 1)
    rate = right[:, None]
    log_ways = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
    mass = np.exp(log_ways + xlogy(count, rate) + xlog1py(n - count, -rate))
    share = np.minimum(wrong / np.maximum(1 - right, 1e-300), 1.0)
    inside = _binomial_cdf(region[first : last + 1], n - count, share[:, None])
    tails = (bdtr(first - 1, n, right) if first > 0 else 0.0) + (bdtrc(last, n, right) if last < n else 0.0)
    return np.asarray((mass * inside).sum(axis=1) + tails)


def _binomial_cdf(k: NDArray[np.int64], n: NDArray[np.int64], p: Rates) -> Rates:
    safe = np.clip(k, 0, np.maximum(n - 1, 0))
    inner = betainc(np.maximum(n - safe, 1), safe + 1, 1 - p)
    return np.asarray(np.where(k < 0, 0.0, np.where(k >= n, 1.0, inner)))
