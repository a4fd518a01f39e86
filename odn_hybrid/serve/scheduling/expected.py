"""What running a segment is expected to gain: how long it takes, who will stop there, what is then left.

The scheduler's question is a stopping problem again. An input before segment k will leave after it, or go
on, with known odds; the Gittins index (Gittins 1979; optimal for mean latency on one server that may change
between jobs) is the largest rate, over all depths to run it to, of expected leaving per second of work.
Inputs close to their exit come first, as in "shortest remaining time first".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes

__all__ = ["Expected"]

PRIOR = 500.0  # inputs that the shares known beforehand weigh as much as
MEMORY = 5000.0  # inputs after which older ones weigh half as much, roughly
AFRESH = 256  # inputs after which indices are computed again


class Expected:
    """Times, odds and indices of one model's segments.

    Args:
        times: seconds by segment and batch size.
        shares: (K,) share of inputs that reach each segment, the first 1; brought up to date by `saw`.
        largest: batch size.

    Attributes:
        remaining: (K,) expected seconds of work, at the most efficient batch sizes, from before a segment
            until an input leaves.
        index: (K,) Gittins index of an input before each segment, per second.
    """

    def __init__(self, times: SegmentTimes, shares: Sequence[float], largest: int) -> None:
        count, sizes = len(times.segments), range(1, largest + 1)
        table = np.zeros((count, largest + 1))
        for k in range(count):
            for b in sizes:
                copying = times.gather(k - 1, b) if k else 0.0
                table[k, b] = max(times.segment(k, b) + copying, 1e-9)
        self._table = table
        each = table[:, 1:] / np.arange(1, largest + 1)
        self._efficient: NDArray[np.float64] = each.min(1)  # seconds an input at best
        reach = np.clip(np.asarray(shares, dtype=np.float64), 1e-6, 1.0)
        self._stay = np.append(np.clip(reach[1:] / reach[:-1], 0.0, 1.0), 0.0)
        self._weight = np.full(count, PRIOR)
        self._sizes: dict[tuple[int, int, int], int] = {}
        self._unseen = 0
        self.pace = 1.0
        self._compute()

    def seconds(self, segment: int, batch: int) -> float:
        """Of a segment on so many inputs, gathering them included."""
        return float(self._table[segment, batch])

    def batch(self, segment: int, waiting: int, others: int = 0) -> int:
        """The batch size that serves all who wait soonest on average: `waiting` here, `others` elsewhere.

        In equal batches of b, which take T(b) each until the last of them has left, those here leave after
        (waiting / b + 1) / 2 T(b) on average, and everybody else waits for waiting / b T(b) longer. Where T
        is flat that is everybody at once; where it grows in proportion, one after another; and the more
        others there are, the nearer to the most efficient size.
        """
        behind = 1 << others.bit_length() if others else 0  # roughly, so that few answers need be known
        key = (segment, waiting, behind)
        found = self._sizes.get(key)
        if found is None:
            most = min(waiting, self._table.shape[1] - 1)
            sizes = np.arange(1, most + 1)
            rounds = np.maximum(waiting / sizes, 1.0)
            weight = waiting * (rounds + 1) / 2 + behind * rounds
            found = int(sizes[np.argmin(weight * self._path[segment, 1 : most + 1])])
            self._sizes[key] = found
        return found

    def saw(self, segment: int, entered: int, stayed: int) -> None:
        """Of `entered` inputs of a segment `stayed` went on."""
        if segment < len(self._stay) - 1:
            weight = min(self._weight[segment] + entered, MEMORY)
            self._weight[segment] = weight
            self._stay[segment] += (stayed / entered - self._stay[segment]) * min(entered / weight, 1.0)
        self._unseen += entered
        if self._unseen >= AFRESH:
            self._compute()

    def took(self, segment: int, batch: int, seconds: float) -> None:
        """A segment took so long: `pace` is how many times longer than measured beforehand, lately."""
        self.pace += 0.02 * (min(seconds / self.seconds(segment, batch), 20.0) - self.pace)

    def _compute(self) -> None:
        count, self._unseen = len(self._stay), 0
        self._sizes.clear()
        self._path = self._paths()
        self.remaining, self.index = np.zeros(count), np.zeros(count)
        ahead = 0.0
        for k in reversed(range(count)):
            ahead = self._efficient[k] + self._stay[k] * ahead
            self.remaining[k] = ahead
            here, left, work = 1.0, 0.0, 0.0
            for j in range(k, count):
                work += here * self._efficient[j]
                left += here * (1.0 - self._stay[j])
                here *= self._stay[j]
                self.index[k] = max(self.index[k], left / work)

    def _paths(self) -> NDArray[np.float64]:
        """(K, batch sizes from 0) expected seconds from before a segment until the last of a batch has left.

        Where less than one input is expected to be left, the time of one counts as often as there is one.
        """
        found = self._table.copy()
        sizes = np.arange(self._table.shape[1])
        for k in range(len(found)):
            reach = 1.0
            for j in range(k + 1, len(found)):
                reach *= self._stay[j - 1]
                found[k] += np.interp(sizes * reach, sizes, self._table[j])
        return found
