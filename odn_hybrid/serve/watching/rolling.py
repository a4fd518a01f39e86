"""The last minute of one model, in bounded memory: what the status page shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock

__all__ = ["LastMinute", "Rolling", "percentile"]

SECONDS = 60  # that are looked back on
STEP = math.log(1.01)  # latencies are kept to 1 %
SHORTEST = 1.0  # seconds that a rate is taken over, at least
LEAST, MOST = 1e-6, 1e5  # seconds; what lies outside counts as these


@dataclass
class Second:
    """What happened in one second: latencies by bin, images by exit, refusals by kind."""

    number: int = -1
    requests: int = 0
    images: int = 0
    units: int = 0
    certified: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class LastMinute:
    """A sum of seconds.

    Attributes:
        seconds: how long that was: less than 60 of a server that has just started.
        requests, images: answered, and `certified` images among them.
        units: run for these images.
        latencies: how many requests, by bin.
        exits, refused: images by the exit where they stopped, requests by why they were refused.
    """

    seconds: float
    requests: int
    images: int
    units: int
    certified: int
    latencies: Mapping[int, int]
    exits: Mapping[int, int]
    refused: Mapping[str, int]

    def percentile(self, share: float) -> float | None:
        """Seconds within which that share of requests was answered, to 1 %; None where there were none."""
        return percentile(self.latencies, share)


class Rolling:
    """Counts by the second, in a ring: what is older than a minute is overwritten.

    Args:
        clock: seconds that never go back; default: the system's monotonic one, which knows nothing of changes
            of the time of day. Should one go back all the same, what comes counts as of the latest second.
        begun: when counting began, on that clock; default: now.
    """

    def __init__(self, clock: Callable[[], float], begun: float | None = None) -> None:
        self._clock = clock
        self._lock = Lock()
        self._latest = clock()
        self._begun = self._latest if begun is None else begun
        self._ring = [Second() for _ in range(SECONDS + 1)]

    def answered(
        self, seconds: float, exits: Iterable[int], images: int, units: int, certified: bool
    ) -> None:
        """A request of `images` has its answer, `seconds` after it arrived."""
        place = latency_bin(seconds)
        with self._lock:
            now = self._second()
            now.requests += 1
            now.images += images
            now.units += units
            now.certified += images if certified else 0
            now.latencies[place] += 1
            for exit in exits:
                now.exits[exit] += 1

    def refused(self, why: str) -> None:
        """A request gets no answer."""
        with self._lock:
            self._second().refused[why] += 1

    def last(self) -> LastMinute:
        """The last 60 seconds: 59 whole ones and the one that has begun."""
        with self._lock:
            now, number = self._now(), int(self._latest)
            kept = [second for second in self._ring if number - SECONDS < second.number <= number]
            # Only the latest still changes; the others are summed up while the next ones are counted.
            kept = [_copy(second) if second.number == number else second for second in kept]
        oldest = max(float(number - SECONDS + 1), self._begun)
        total = Second()
        for second in kept:
            total.requests += second.requests
            total.images += second.images
            total.units += second.units
            total.certified += second.certified
            total.latencies.update(second.latencies)
            total.exits.update(second.exits)
            total.refused.update(second.refused)
        return LastMinute(
            max(now - oldest, SHORTEST), total.requests, total.images, total.units, total.certified,
            total.latencies, total.exits, total.refused,
        )  # fmt: skip

    def _now(self) -> float:
        self._latest = max(self._latest, self._clock())
        return self._latest

    def _second(self) -> Second:
        number = int(self._now())
        place = number % len(self._ring)
        if self._ring[place].number != number:
            self._ring[place] = Second(number)
        return self._ring[place]


def _copy(second: Second) -> Second:
    return replace(
        second,
        latencies=second.latencies.copy(),
        exits=second.exits.copy(),
        refused=second.refused.copy(),
    )


def latency_bin(seconds: float) -> int:
    """The number of the bin, 1 % wide, in which so many seconds lie."""
    return math.floor(math.log(min(max(seconds, LEAST), MOST)) / STEP)


def percentile(bins: Mapping[int, int], share: float) -> float | None:
    """As numpy's of all values, with each at the (geometric) middle of its bin: within 0.5 % of exact."""
    count = sum(bins.values())
    if not count:
        return None
    place = share * (count - 1)
    below, above = _ranked(bins, math.floor(place)), _ranked(bins, math.ceil(place))
    return below + (above - below) * (place - math.floor(place))


def _ranked(bins: Mapping[int, int], rank: int) -> float:
    """The value of that rank, from 0."""
    passed = 0
    for place in sorted(bins):
        passed += bins[place]
        if passed > rank:
            return math.exp((place + 0.5) * STEP)
    raise IndexError(rank)
