"""Goodput: the highest rate at which answers come within a limit; what one run of load comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from load_generator import LAG, Watched
from numpy.typing import NDArray

from odn_hybrid.stopping import wilson

__all__ = ["Goal", "LateGenerator", "Search", "goodput", "spread", "told"]

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


class LateGenerator(SystemExit):
    """The generator did not keep its times, again and again: it can't, or its core is not its own."""


@dataclass(frozen=True)
class Goal:
    """What makes a rate good.

    Attributes:
        limit: seconds that the 99 % point of the latencies may reach.
        refused: share of the requests that may be refused.
    """

    limit: float
    refused: float = 0.01

    def met(self, run: Watched) -> bool:
        """Whether a run was good."""
        if run.cut or not len(run.status):
            return False
        answered = run.status == 200
        late = answered & (run.latency > self.limit)
        lost = (~answered & (run.status != 503)).any()  # an error or a lost answer is no refusal
        few = (~answered).sum() <= self.refused * len(answered)
        return bool(few and not lost and late.sum() <= 0.01 * answered.sum())


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        rate: highest rate that was good; 0 where none was.
        good: answers within the limit, a second, at that rate.
        tried: every run: rate, whether good, and what it came to.
    """

    rate: float
    good: float
    tried: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"rate": self.rate, "goodput": self.good, "runs": self.tried}


def goodput(
    load: Callable[[float], Watched],
    goal: Goal,
    start: float,
    *,
    seconds: float,
    precision: float = 1.04,
    step: float = 1.5,
    most: int = 16,
    again: int = 2,
    largest_lag: float = LAG,
) -> Search:
    """The highest rate that meets a goal, between two rates whose ratio is `precision`.

    Args:
        load: runs a rate; a run of which the generator was late is repeated.
        goal: what is good.
        start: rate to begin with.
        seconds: how long requests come in a run.
        step: by which the rate is changed until it is known where to bisect.
        most, again: runs at most, and repetitions of one that was not valid.
        largest_lag: seconds by which the generator may be late, see `Watched.valid`.

    Raises:
        LateGenerator: the generator is late again and again.
    """
    low, high = 0.0, float("inf")
    good, rate = 0.0, start
    tried: list[dict[str, Any]] = []
    while len(tried) < most and high > precision * low and high > 0.01 * start:
        for _ in range(again + 1):
            run = load(rate)
            if run.valid(largest_lag):
                break
        else:
            late = f"more than {1000 * largest_lag:g} ms at {rate:.1f} requests a second"
            raise LateGenerator(f"the load generator is late by {late}: its core is not its own")
        met = goal.met(run)
        tried.append({"rate": rate, "met": met, **told(run, goal.limit, seconds)})
        if met:
            low, good = rate, tried[-1]["good_per_second"]
        else:
            high = rate
        rate = _next(low, high, step)
    return Search(low, good, tried)


def _next(low: float, high: float, step: float) -> float:
    if high == float("inf"):
        return low * step
    return high / step if low == 0 else float(np.sqrt(low * high))


def told(
    run: Watched, limit: float, seconds: float, labels: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """One run in figures: milliseconds, counts, and with the images' labels accuracy."""
    answered = run.status == 200
    latency = run.latency[answered]
    codes, counts = np.unique(run.status[~answered], return_counts=True)
    found = {
        "requests": len(run.status),
        "cut": run.cut,
        "answered": int(answered.sum()),
        "others_by_status": {str(code): int(n) for code, n in zip(codes, counts, strict=True)},
        "late": int((latency > limit).sum()),
        "good_per_second": float((latency <= limit).sum() / seconds),
        "latency_ms": _quantiles(latency),
        "lag_ms": {"p99": _ms(run.lag, 0.99), "max": _ms(run.lag, 1.0)},
        "connections": run.connections,
        "resent": run.resent,
        "most_under_way": run.peak,
    }
    exits, taken = np.unique(run.exit[answered & (run.exit > 0)], return_counts=True)
    if len(exits):
        found["exits"] = {str(e): int(n) for e, n in zip(exits, taken, strict=True)}
    if labels is not None and answered.any():
        right = run.said[answered] == labels[run.image[answered]]
        low, high = wilson(int(right.sum()), len(right))
        found["accuracy"] = {
            "value": float(right.mean()), "n": len(right), "low": float(low), "high": float(high)
        }  # fmt: skip
    return found


def _quantiles(latency: NDArray[np.float64]) -> dict[str, float | None]:
    """Milliseconds, by name."""
    names = [f"p{100 * q:g}" for q in QUANTILES]
    return {name: _ms(latency, q) for name, q in zip(names, QUANTILES, strict=True)} | {
        "mean": round(1000 * float(latency.mean()), 4) if len(latency) else None,
        "max": _ms(latency, 1.0),
    }


def _ms(seconds: NDArray[np.float64], q: float) -> float | None:
    if not len(seconds):
        return None
    # A value that was seen, so that p99 is within the limit where at most 1 % are beyond it.
    return round(1000 * float(np.quantile(seconds, q, method="inverted_cdf")), 4)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Of rounds."""
    return {"median": float(np.median(values)), "rounds": [float(value) for value in values]}
