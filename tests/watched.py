"""A host of simulated models that is watched, for tests of what people see of a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.hosting.hosted import Opened
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.stages.simulated import SimulatedStages
from odn_hybrid.serve.watching import Watch, WatchedEngine
from odn_hybrid.stopping import Calibration, DriftMonitor, HaltingTable

__all__ = ["CERTIFICATE", "EXITS", "TABLE", "answers", "logits_of", "model", "serving_watched"]

EXITS, CLASSES, UNITS = (1, 2, 4), 5, (2, 4, 9)
TABLE = HaltingTable.of_thresholds([0.9, 0.8, 0.0], Calibration.of_temperatures([1.0] * 3))
CERTIFICATE = {
    "certified": True,
    "statement": "accuracy drop against exit 4 at most 1 point with confidence 95 %, for data like these",
    "drop": 0.01,
    "delta": 0.05,
}


def logits_of(count: int, *, seed: int = 0, sure: float = 2.0) -> NDArray[np.float32]:
    """(count, P, classes): the deeper and the larger `sure`, the surer."""
    found = np.random.default_rng(seed).normal(0, 1, (count, len(EXITS), CLASSES))
    return (found * sure * np.array([1.0, 1.3, 1.6])[:, None]).astype(np.float32)


def answers(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Confidence and exit (the network's) of each, as the policy answers."""
    taken, answered = TABLE.decide(logits)
    return TABLE.confidence(logits, answered), np.array(EXITS)[taken - 1]


def model(
    logits: NDArray[np.float32],
    *,
    spend: Callable[[float], object] = lambda seconds: None,
    certificate: dict[str, Any] | None = CERTIFICATE,
    void: str | None = None,
    reference: NDArray[np.float32] | None = None,
    digest: str = "0123456789abcdef",
) -> Opened:
    """A simulated model of recorded `logits`; `reference`: those of its certification images."""
    rows = ((1e-3, 1e-2), (1e-3, 1e-2), (2e-3, 2e-2))
    times = SegmentTimes((1, 64), rows, ((0.0, 0.0),) * 3, "table", "none")
    stages = SimulatedStages(logits, TABLE, times, spend, exits=EXITS, units=UNITS)
    stages.certified = certificate is not None and void is None
    drift = None if reference is None else DriftMonitor(*answers(reference), exits=EXITS[-1])
    return Opened(
        stages=stages, kind="dynamic", digest=digest, certificate=certificate, void=void, drift=drift
    )  # fmt: skip


@contextmanager
def serving_watched(
    settings: ServeSettings | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[Watch, Host]]:
    """A watch and its host, without models yet."""
    watch = Watch(clock=clock)
    engine = WatchedEngine(watch)
    host = Host(engine, settings or ServeSettings())
    watch.follow(host)
    engine.start()
    try:
        yield watch, host
    finally:
        engine.close()
