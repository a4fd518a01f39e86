"""Betting on ranks: capital that grows when a stream stops looking like its reference sample.

One order of the inputs, many bets. Construction and proofs: theory/drift.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError

__all__ = ["Hit", "RankBets", "bets", "uniforms"]

Floats = NDArray[np.float64]

LEVELS = 256  # ranks are told apart this finely; a bet is a step function on so many steps
TILTS = (0.0, 0.15, -0.15, 0.45, -0.45, 1.2, -1.2)
BINS, BIN_GAIN = 8, 3.0
EMPTY = -1e300  # log of no capital: finite, because JSON knows no infinity
CHUNK = 2048  # inputs at a time: bounds the memory of a large batch
RESTING = 1_000  # inputs an order lets pass after an alarm before it looks for the next
FIRST_SHARE, SLOWNESS = 0.5, 100.0  # half of the capital is staked at once, the rest ever more slowly


@dataclass(frozen=True)
class Hit:
    """The capital reached the limit after `at` inputs; the best bet has been winning since input `since`."""

    at: int
    since: int


@lru_cache(maxsize=8)
def bets(levels: int) -> tuple[Floats, Floats, Floats]:
    """Values (levels, E) of the bets, their logs, and the log of the capital given to each (E,).

    With u the middle of a level: exp(a x + b y), x = sqrt(12) (u - 1/2) for location and
    y = sqrt(180) ((u - 1/2)^2 - 1/12) for spread, a and b from `TILTS`, not both 0; u^(-1/2) and
    (1 - u)^(-1/2) for the tails; `BIN_GAIN` inside one of `BINS` equal bins and 1 outside. The tilts have
    half of the capital. Only the shape of a bet matters: the martingale divides by its predicted mean.
    """
    u = (np.arange(levels) + 0.5) / levels
    x, y = np.sqrt(12) * (u - 0.5), np.sqrt(180) * ((u - 0.5) ** 2 - 1 / 12)
    tilts = [a * x + b * y for a in TILTS for b in TILTS if a or b]
    tails = [-0.5 * np.log(u), -0.5 * np.log(1 - u)]
    bins = [np.log(BIN_GAIN) * ((u * BINS).astype(int) == k) for k in range(BINS)]
    logs = np.column_stack([*tilts, *tails, *bins])
    others = len(tails) + len(bins)
    shares = np.repeat([-np.log(2 * len(tilts)), -np.log(2 * others)], [len(tilts), others])
    for array in (logs, values := np.exp(logs), shares):
        array.flags.writeable = False  # shared by all monitors
    return values, logs, shares


def uniforms(seed: int, start: int, n: int) -> Floats:
    """Numbers `start` .. `start + n - 1` of the seed's sequence in [0, 1): the same however it is cut up."""
    source = np.random.PCG64(seed)
    source.advance(start)
    return np.asarray(source.random_raw(n) >> np.uint64(11), dtype=np.float64) * 2.0**-53


def _pairs(keys: Floats, ties: Floats) -> NDArray[np.complex128]:
    """Complex numbers, which numpy sorts by real part and, where those are equal, by imaginary part."""
    pairs = np.empty(len(keys), dtype=np.complex128)
    pairs.real, pairs.imag = keys, ties
    return pairs


class RankBets:
    """The capital of all bets on one order: a few hundred numbers, however much has been seen.

    Args:
        keys: (m,) the reference, in any order; m >= 1.
        ties: (m,) in [0, 1), for the sorted keys: the order among equal ones.
        limit: log of the capital that is an alarm.
        forever: whether the promise is about all time: capital 1, part of it staked before each input, and
            the first alarm counts. Otherwise 1 is added and staked before every input, and an alarm takes
            all away.
    """

    def __init__(self, keys: Floats, ties: Floats, *, limit: float, forever: bool) -> None:
        m = len(keys)
        levels = min(LEVELS, m + 1)
        edges = (
            np.arange(levels + 1) * (m + 1) // levels
        )  # in level g, edges[g] to edges[g + 1] - 1 are below
        value, _, shares = bets(levels)
        self.bounds = np.sort(_pairs(np.sort(keys), ties))[edges[1:-1] - 1]
        self.m, self.limit, self.forever = m, limit, forever
        self.seen, self.rest, self.alarms = 0, 0, 0
        self.sums: Floats = (value * np.diff(edges)[:, None]).sum(axis=0)
        self.path: Floats = np.zeros_like(shares)  # log of what 1 in each bet at the start has become
        self.staked: Floats = np.full_like(shares, EMPTY)  # log of the sum of stake / path at its time
        self.low: Floats = np.full_like(shares, -EMPTY)  # smallest path since the last alarm,
        self.low_at: Floats = np.zeros_like(shares)  # and after how many inputs
        self.wealth = 0.0 if forever else EMPTY

    def feed(self, keys: Floats, ties: Floats) -> list[Hit]:
        """Take (b,) inputs in stream order; every alarm among them."""
        levels = np.searchsorted(self.bounds, _pairs(keys, ties))
        return [hit for i in range(0, len(levels), CHUNK) for hit in self._feed(levels[i : i + CHUNK])]

    def _feed(self, levels: NDArray[np.intp]) -> list[Hit]:
        # All sums run on from the state and add in order, so that batches of any size give the same.
        gains = bets(len(self.bounds) + 1)[1][levels] - self._predict(levels)
        path = np.cumsum(np.vstack([self.path, gains]), axis=0)
        self.path = path[-1]
        hits, end = [], len(levels)
        start = min(self.rest, end)
        self.rest -= start
        while start < end:
            hit, start = self._stake(path, start)
            if hit is not None:
                hits.append(hit)
                self.alarms += 1
            if hit is not None and not self.forever:
                self.staked, self.low = np.full_like(self.staked, EMPTY), np.full_like(self.low, -EMPTY)
                self.wealth = EMPTY
                skipped = min(RESTING, end - start)
                start, self.rest = start + skipped, RESTING - skipped
        self.seen += end
        return hits

    def _predict(self, levels: NDArray[np.intp]) -> Floats:
        """Log of the mean of each bet (b, E) as the urn of reference and stream so far predicts it."""
        totals = np.cumsum(np.vstack([self.sums, bets(len(self.bounds) + 1)[0][levels]]), axis=0)
        self.sums = totals[-1]
        size = self.m + 1.0 + self.seen + np.arange(len(levels))
        return np.asarray(np.log(totals[:-1]) - np.log(size)[:, None])

    def _stake(self, path: Floats, start: int) -> tuple[Hit | None, int]:
        """Stake before each input from `start` up to the next alarm or the end; the alarm, and where."""
        before = self.seen + np.arange(start, len(path) - 1)
        stakes = self._stakes(before)[:, None] - path[start:-1]
        staked = np.logaddexp.accumulate(np.vstack([self.staked, stakes]), axis=0)[1:]
        each = path[start + 1 :] + staked + bets(len(self.bounds) + 1)[2]
        # All capital is at most E times the largest part plus 1: only where that might do is it worked out.
        bound = np.logaddexp(each.max(axis=1) + np.log(each.shape[1]), 0.0)
        near = np.flatnonzero(bound >= self.limit)
        reached = near[self._total(each[near], before[near]) >= self.limit]
        alarm = len(reached) > 0 and not (self.forever and self.alarms)
        stop = int(reached[0]) + 1 if alarm else len(each)
        part = path[start : start + stop]
        lowest = part.min(axis=0)
        self.low_at = np.where(lowest < self.low, before[0] + part.argmin(axis=0), self.low_at)
        self.low = np.minimum(lowest, self.low)
        self.staked = staked[stop - 1]
        self.wealth = float(self._total(each[stop - 1 : stop], before[stop - 1 : stop])[0])
        best = each[stop - 1].argmax()
        hit = Hit(at=int(before[0]) + stop, since=int(self.low_at[best]) + 1) if alarm else None
        return hit, start + stop

    def _stakes(self, before: NDArray[np.intp]) -> Floats:
        """Log of the capital staked before the next input, where `before` have been seen."""
        if not self.forever:
            return np.zeros(len(before))
        return np.asarray(np.log(np.maximum(_kept(before) - _kept(before + 1), 1e-300)))

    def _total(self, each: Floats, before: NDArray[np.intp]) -> Floats:
        """Log of all capital: what the bets hold (b, E) and what is not yet staked."""
        held = np.logaddexp.reduce(each, axis=1)
        return np.asarray(np.logaddexp(held, np.log(_kept(before + 1)))) if self.forever else held

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, all that is needed to go on."""
        arrays = {name: getattr(self, name).tolist() for name in ARRAYS}
        bounds = {"keys": self.bounds.real.tolist(), "ties": self.bounds.imag.tolist()}
        return {**bounds, **arrays, **{name: getattr(self, name) for name in (*COUNTS, "wealth")}}

    @classmethod
    def from_dict(cls, values: Any, *, limit: float, forever: bool) -> RankBets:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        fields = {"keys", "ties", *ARRAYS, *COUNTS, "wealth"}
        if not isinstance(values, dict) or set(values) != fields:
            raise ConfigError(f"not the state of a drift monitor: expected the fields {sorted(fields)}")
        bets_here = cls(np.zeros(1), np.zeros(1), limit=limit, forever=forever)
        try:
            floats = {name: np.array(values[name], dtype=np.float64) for name in ("keys", "ties", *ARRAYS)}
            wealth = float(values["wealth"])
        except (TypeError, ValueError, OverflowError):
            raise ConfigError("the state of a drift monitor holds something else than numbers") from None
        counts = [values[name] for name in COUNTS]
        fits = (
            floats["keys"].ndim == 1
            and floats["ties"].shape == floats["keys"].shape
            and all(floats[name].shape == bets_here.path.shape for name in ARRAYS)
            and all(np.isfinite([wealth, *np.concatenate(list(floats.values()))]))
            and all(type(count) is int and count >= 0 for count in counts)
            and len(floats["keys"]) == min(LEVELS, counts[0] + 1) - 1 > 0
            and (floats["sums"] > 0).all()
        )
        if not fits:
            raise ConfigError("the state of a drift monitor is damaged: its numbers do not fit each other")
        bets_here.bounds = _pairs(floats["keys"], floats["ties"])
        for name, value in [*((n, floats[n]) for n in ARRAYS), *zip(COUNTS, counts, strict=True)]:
            setattr(bets_here, name, value)
        bets_here.wealth = wealth
        return bets_here


ARRAYS = ("sums", "path", "staked", "low", "low_at")
COUNTS = ("m", "seen", "rest", "alarms")


def _kept(seen: NDArray[np.intp]) -> Floats:
    """The part of the capital not yet staked after so many inputs: from 1 to 0, slowly."""
    later = (1 - FIRST_SHARE) / (1 + np.log1p(seen / SLOWNESS))
    return np.where(seen == 0, 1.0, later)
