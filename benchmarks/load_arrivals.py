"""When requests are meant to be sent: Poisson arrivals, steady or in bursts.

A seed stands for one sequence of arrivals at every rate: at twice the rate the same requests come in half the
time. So servers and rates are compared on the same traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bursts", "arrivals"]


@dataclass(frozen=True)
class Bursts:
    """On and off in turns (a Markov-modulated Poisson process): nothing comes while off.

    Attributes:
        share: of the time that is on, on average; while on, the rate is the mean rate over this.
        on_seconds: mean length of an on period; lengths are exponential.
    """

    share: float = 0.5
    on_seconds: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"on_share": self.share, "mean_on_seconds": self.on_seconds}


def arrivals(rate: float, seconds: float, seed: int, bursts: Bursts | None = None) -> NDArray[np.float64]:
    """Ascending seconds in [0, `seconds`) at a mean of `rate` a second."""
    steps, periods = (np.random.default_rng([seed, part]) for part in (0, 1))
    # Work is what a process of rate 1 would take; an arrival comes when the rate has added up to its work.
    if bursts is None:
        return _unit(steps, rate * seconds) / rate
    edges = _edges(periods, seconds, bursts)
    lengths = np.diff(edges)
    on = np.arange(len(lengths)) % 2 == 0
    done = np.append(0.0, np.cumsum(np.where(on, lengths * rate / bursts.share, 0.0)))
    work = _unit(steps, float(done[-1]))
    # Where the sum stands still (off) an arrival belongs to neither side: none falls exactly there.
    times = np.interp(work, done, edges)
    return times[times < seconds]


def _unit(random: np.random.Generator, until: float) -> NDArray[np.float64]:
    """Arrivals of a Poisson process of rate 1 before `until`."""
    found: list[NDArray[np.float64]] = []
    last = 0.0
    while last < until:
        found.append(last + np.cumsum(random.exponential(size=256)))
        last = float(found[-1][-1])
    every = np.concatenate(found) if found else np.empty(0)
    return every[every < until]


def _edges(random: np.random.Generator, seconds: float, bursts: Bursts) -> NDArray[np.float64]:
    """Where periods begin and end, on and off in turns, on first; the last one ends after `seconds`."""
    off = bursts.on_seconds * (1 - bursts.share) / bursts.share
    edges = [0.0]
    while edges[-1] < seconds:
        mean = bursts.on_seconds if len(edges) % 2 else off
        edges.append(edges[-1] + random.exponential(mean))
    return np.array(edges)
