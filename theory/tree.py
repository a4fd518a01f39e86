"""A stopping problem small enough to be exact: exits that put out one of a few signals, all tabulated.

Used by stopping_problem.md, depth_regularizer.md and their tests. A path is the sequence of signals of exits
1 to m - 1; exit k knows the first k of them (the last one must stop and decides nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
COSTS = (0.2, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Tree:
    """A problem with m exits and S signals.

    Attributes:
        weight: probability of each path, (S,) * (m - 1), all positive; need not sum to 1.
        losses: E[loss of exit k | path], (m, S, ..., S).
        costs: (m,) cumulative cost to each exit, not falling.
    """

    weight: Floats
    losses: Floats
    costs: Floats

    @classmethod
    def random(cls, seed: int, *, signals: int = 3, costs: Sequence[float] = COSTS) -> Tree:
        """Paths and losses without any structure; an exit's loss may depend on what it cannot see."""
        rng = np.random.default_rng(seed)
        shape = (signals,) * (len(costs) - 1)
        weight = rng.dirichlet(np.ones(signals ** len(shape))).reshape(shape)
        return cls(weight, rng.gamma(1.0, 1.0, size=(len(costs), *shape)), np.array(costs))

    @property
    def exits(self) -> int:
        """m."""
        return len(self.costs)

    @property
    def signals(self) -> int:
        """S."""
        return self.weight.shape[0]

    def totals(self, price: float) -> Floats:
        """Loss plus price of the cost, of stopping at each exit, (m, S, ..., S)."""
        return self.losses + price * self.costs.reshape(-1, *[1] * self.weight.ndim)

    def mean(self, values: Floats) -> float:
        """Expectation of a function of the path."""
        return float((self.weight * values).sum() / self.weight.sum())

    def chance(self, k: int) -> Floats:
        """Probability of each history of the first k signals, (S,) * k."""
        return np.asarray(self.weight.sum(axis=tuple(range(k, self.weight.ndim))) / self.weight.sum())

    def given(self, values: Floats, k: int) -> Floats:
        """E[values | first k signals], (S,) * k."""
        rest = tuple(range(k, self.weight.ndim))
        return np.asarray((self.weight * values).sum(axis=rest) / self.weight.sum(axis=rest))

    def spread(self, values: Floats, k: int) -> Floats:
        """A function of the first k signals (after any leading axes) as one of the path."""
        return np.asarray(values).reshape(np.shape(values) + (1,) * (self.weight.ndim - k))

    def snell(self, price: float) -> tuple[float, list[Floats]]:
        """Backward induction: the value; per exit before the last, what stopping costs more than going on."""
        totals = self.totals(price)
        gains: list[Floats] = []
        value = totals[-1]
        for k in range(self.exits - 1, 0, -1):
            going, stopping = self.given(value, k), self.given(totals[k - 1], k)
            gains.insert(0, stopping - going)
            value = self.spread(np.minimum(stopping, going), k) + np.zeros_like(self.weight)
        return self.mean(value), gains

    def law(self, stops: Sequence[Floats]) -> Floats:
        """Probability of stopping at each exit on each path, (..., m, S, ..., S), of signals in [0, 1].

        `stops`: one array (..., (S,) * k) per exit k = 1..m - 1, with the same leading axes.
        """
        reach, parts = np.ones_like(self.weight), []
        for k, stop in enumerate(stops, start=1):
            wide = self.spread(stop, k)
            parts.append(reach * wide)
            reach = reach * (1 - wide)
        axis = -self.weight.ndim - 1
        return np.stack(np.broadcast_arrays(*parts, reach), axis=axis)

    def objective(self, stops: Sequence[Floats], price: float) -> Floats:
        """Expected loss plus price of the cost, of randomised stopping; one value per leading index."""
        paths = tuple(range(-self.weight.ndim - 1, 0))
        share = self.weight / self.weight.sum()
        return np.asarray((self.law(stops) * self.totals(price) * share).sum(axis=paths))

    def shares(self, stops: Sequence[Floats]) -> Floats:
        """Probability of stopping at each exit, (..., m)."""
        paths = tuple(range(-self.weight.ndim, 0))
        return np.asarray((self.law(stops) * (self.weight / self.weight.sum())).sum(axis=paths))

    def shifted(self, added: ArrayLike) -> Tree:
        """The same problem with something (m,) added to each exit's loss, for everybody."""
        wide = np.asarray(added, dtype=np.float64).reshape(-1, *[1] * self.weight.ndim)
        return replace(self, losses=self.losses + wide)

    def spent(self, stops: Sequence[Floats]) -> tuple[float, float]:
        """Expected loss and expected cost."""
        loss = float(self.objective(stops, 0.0))
        return loss, float(self.objective(stops, 1.0)) - loss

    def gradient(self, stops: Sequence[Floats], price: float) -> list[Floats]:
        """Derivatives of the objective: chance of a history, times that of getting there, times the gain."""
        totals = self.totals(price)
        slopes: list[Floats] = []
        after, law = totals[-1], self.law(stops)
        reach = 1 - np.concatenate([np.zeros_like(law[:1]), law.cumsum(axis=0)])
        for k in range(self.exits - 1, 0, -1):
            going, stopping = self.given(after, k), self.given(totals[k - 1], k)
            slopes.insert(0, self.chance(k) * self.given(reach[k - 1], k) * (stopping - going))
            mixed = stops[k - 1] * stopping + (1 - stops[k - 1]) * going
            after = self.spread(mixed, k) + np.zeros_like(self.weight)
        return slopes

    def split(self, flat: Floats) -> list[Floats]:
        """A vector of signals (..., number of histories) as one array per exit before the last."""
        sizes = [self.signals**k for k in range(1, self.exits)]
        parts = np.split(flat, np.cumsum(sizes)[:-1], axis=-1)
        return [part.reshape(*flat.shape[:-1], *(self.signals,) * k) for k, part in enumerate(parts, start=1)]

    @property
    def histories(self) -> int:
        """Number of histories at which one may decide: the number of signals to be chosen."""
        return sum(self.signals**k for k in range(1, self.exits))

    def pure_rules(self) -> list[Floats]:
        """Every stopping rule, as signals 0 or 1 with one leading axis; for few histories only."""
        assert self.histories <= 16
        codes = np.arange(2**self.histories)[:, None] >> np.arange(self.histories) & 1
        return self.split(codes.astype(np.float64))

    def prophet(self, price: float) -> float:
        """E[min over exits]: the value in hindsight."""
        return self.mean(self.totals(price).min(axis=0))

    def sampled(self) -> tuple[Floats, NDArray[np.int64]]:
        """Inputs in proportion to whole-number weights: losses (n, m), and which history each exit sees."""
        counts = self.weight.astype(np.int64).ravel()
        rows = np.repeat(np.arange(counts.size), counts)
        seen = [rows // self.signals ** (self.exits - 1 - k) for k in range(1, self.exits)]
        return self.losses.reshape(self.exits, -1).T[rows], np.stack([*seen, np.zeros_like(rows)], axis=1)


def stops_of(gains: Sequence[Floats]) -> list[Floats]:
    """The rule that stops where stopping costs no more than going on: the smallest optimal one if exact."""
    return [(gain <= 0).astype(np.float64) for gain in gains]
