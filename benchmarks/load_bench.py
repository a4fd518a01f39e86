"""Servers on one core, traffic from another: the runs that serve_load.py is made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from load_arrivals import Bursts
from load_generator import LAG, Generator, Traffic, Watched
from load_goodput import Goal, Search, goodput, told
from load_servers import Batching, Server, Up, started
from load_subjects import Subjects

__all__ = ["PATTERNS", "Bench", "Lengths", "size_seen"]

PATTERNS: dict[str, Bursts | None] = {"poisson": None, "bursty": Bursts()}
UNLOADED = 200  # requests, one after another
PRECISION = 1.08  # of the runs that tune
CONFIRMING = 10_000  # seeds of runs that no search has seen begin here


@dataclass(frozen=True)
class Lengths:
    """Seconds of a run that counts, of one that tunes, and of what comes before and does not count."""

    seconds: float
    tuning: float
    warm: float


@dataclass
class Bench:
    """Runs load on servers.

    Attributes:
        subjects: what takes part.
        generator: sends.
        core: where servers run.
        goal: what is good; its limit is known once `unloaded` was called.
        largest_lag: see `load_generator.Watched.valid`.
    """

    subjects: Subjects
    generator: Generator
    core: int | None
    lengths: Lengths
    goal: Goal | None = None
    largest_lag: float = LAG

    def aim(self, up: Up) -> None:
        """Send to this server from now on, some requests first."""
        self.generator.aim(up.port, up.server.wire, self.subjects.images)
        self.generator.alone(20, seed=1)

    def unloaded(self, server: Server, times: float) -> dict[str, Any]:
        """Latency of one request at a time, which sets the limit: `times` as much."""
        with started(server, Batching(1, 0.0), self.core) as up:
            self.aim(up)
            seconds = self.generator.alone(UNLOADED)
        median = float(np.median(seconds))
        self.goal = Goal(times * median)
        p10, p90, p99 = (1000 * float(np.quantile(seconds, q)) for q in (0.1, 0.9, 0.99))
        return {"p50_ms": 1000 * median, "p10_ms": p10, "p90_ms": p90, "p99_ms": p99, "requests": UNLOADED}

    def load(self, rate: float, seed: int, pattern: str, seconds: float) -> Watched:
        """One run; it is cut where it cannot be good any more."""
        assert self.goal is not None
        bursts, limit = PATTERNS[pattern], self.goal.limit
        return self.generator.load(Traffic(rate, seconds, seed, self.lengths.warm, bursts, limit))

    def search(self, start: float, seed: int, pattern: str, seconds: float, **how: float) -> Search:
        """The highest good rate of a server that runs."""
        assert self.goal is not None
        return goodput(
            lambda rate: self.load(rate, seed, pattern, seconds),
            self.goal,
            start,
            seconds=seconds,
            largest_lag=self.largest_lag,
            **how,  # type: ignore[arg-type]
        )

    def tuned(self, server: Server, grid: Sequence[Batching], start: float) -> dict[str, Any]:
        """The batching with the highest goodput, by short runs; all that were tried.

        Of those between which the search can't tell, the first in the grid.
        """
        tried = []
        for batching in grid:
            with started(server, batching, self.core) as up:
                self.aim(up)
                found = self.search(start, 0, "poisson", self.lengths.tuning, precision=PRECISION)
            tried.append({**batching.to_dict(), **found.to_dict()})
            start = found.rate or start
            of = f"{server.name} {batching.max_batch}:{batching.wait_ms:g}"
            print(f"  {of}: {found.good:.1f} /s", flush=True)
        most = max(one["goodput"] for one in tried)
        best = next(one for one in tried if PRECISION * one["goodput"] >= most)
        return {"chosen": {key: best[key] for key in ("max_batch", "wait_ms", "rate")}, "tried": tried}

    def round(
        self, server: Server, tuned: dict[str, Any], seed: int, patterns: Sequence[str], half: float | None
    ) -> dict[str, Any]:
        """Goodput under each pattern, what a run at that rate is like, and one at the rate `half`.

        `half` None: of the full model half of what was found just now, of others no such run.
        """
        seconds, begun = self.lengths.seconds, time.perf_counter()
        found: dict[str, Any] = {}
        with started(server, Batching(tuned["max_batch"], tuned["wait_ms"]), self.core) as up:
            self.aim(up)
            start = max(tuned["rate"], 0.1)
            for pattern in patterns:
                here = start if pattern == "poisson" else start / 2
                search = self.search(here, seed, pattern, seconds, step=1.25)
                found[pattern] = search.to_dict()
                if search.rate:
                    found[pattern]["at_that_rate"] = self.watched(up, search.rate, seed, pattern)
                if half is None and server.name == "full" and pattern == "poisson":
                    half = search.rate / 2
            if half:
                found["half"] = {"rate": half, **self.watched(up, half, seed, "poisson")}
        found["seconds"] = round(time.perf_counter() - begun)
        return found

    def watched(self, up: Up, rate: float, seed: int, pattern: str) -> dict[str, Any]:
        """A run in full, with accuracy and batch sizes."""
        assert self.goal is not None
        before = up.batches()
        run = self.load(rate, CONFIRMING + seed, pattern, self.lengths.seconds)
        figures = told(run, self.goal.limit, self.lengths.seconds, self.subjects.labels)
        batches = {}
        for segment, (steps, images) in up.batches().items():
            earlier = before.get(segment, (0.0, 0.0))
            if steps > earlier[0]:
                batches[segment] = {
                    "steps": int(steps - earlier[0]),
                    "mean_batch": (images - earlier[1]) / (steps - earlier[0]),
                }
        return {**figures, "valid": run.valid(self.largest_lag), "batches": batches}


def size_seen(rounds: Sequence[dict[str, Any]]) -> int:
    """The batch size of the first segment at goodput, on average over its images' rounds; at least 1."""
    seen = [
        one["poisson"]["at_that_rate"]["batches"]["0"]["mean_batch"]
        for one in rounds
        if one.get("poisson", {}).get("at_that_rate", {}).get("batches", {}).get("0")
    ]
    return max(1, round(float(np.mean(seen)))) if seen else 1
