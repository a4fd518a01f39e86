"""The engine, watched: what an observer is not told is taken from the requests as they come."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import Refusal
from odn_hybrid.serve.scheduling import Engine, Lane
from odn_hybrid.serve.watching.telling import told
from odn_hybrid.serve.watching.watch import Watch

__all__ = ["WatchedEngine"]


class WatchedEngine(Engine):
    """An engine that tells `watch` of everything, and the HTTP request at hand of its answer.

    It starts and stops the watch with itself.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch)
        self.watch = watch

    def start(self) -> None:
        """See `Engine`."""
        super().start()
        self.watch.start()

    def close(self) -> None:
        """See `Engine`."""
        super().close()
        self.watch.close()

    def submit(
        self, lane: Lane, images: NDArray[np.float32], options: Options, *, arrived: float | None = None
    ) -> Future[RunnerOutput]:
        """See `Engine`."""
        asking = told()
        try:
            future = super().submit(lane, images, options, arrived=arrived)
        except Refusal as refusal:
            if asking is not None:
                asking.model, asking.why = lane.name, type(refusal).__name__
            raise
        if asking is not None:
            asking.follow(lane.name, future)
        self.watch.accepted(lane, options, future)
        return future
