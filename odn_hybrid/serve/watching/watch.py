"""`Watch`: sees what the engine does, and knows what to say about it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import LONGEST, Options
from odn_hybrid.serve.refusals import Refusal
from odn_hybrid.serve.watching.drifting import Drifting
from odn_hybrid.serve.watching.gauges import gauges
from odn_hybrid.serve.watching.metrics import OTHER, Bounded, Gauges, Metrics
from odn_hybrid.serve.watching.rolling import LastMinute, Rolling

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting import Host
    from odn_hybrid.serve.hosting.hosted import Hosted
    from odn_hybrid.serve.scheduling import Lane

__all__ = ["Watch"]

MODELS = 256  # names that are told apart; those beyond are watched together
FEEDING = 1.0  # seconds between two looks of the drift monitors


class Watch:
    """The engine's `Observer`: metrics, the last minute, drift.

    Args:
        host: the models; may come later, with `follow`.
        clock: monotonic seconds, of the last minute.

    What the engine tells takes some microseconds, waits for no more than another thread's counting, and never
    raises: an error of the watch's own is a number in `odn_watch_errors_total`.
    """

    def __init__(
        self,
        host: Host | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = Metrics()
        self.metrics.registry.register(Gauges(lambda: gauges(self)))
        self.begun = clock()
        self.clock = clock
        self.lost: Counter[str] = Counter()  # log lines; `Logs.lost` in its place where there are logs
        self._host: Host | None = None
        self._models: dict[str, _Model] = {}
        self._lock = threading.Lock()
        left_out = Bounded(self.metrics.unwatched)
        self.drifting = Drifting(self.models, lambda model, why: left_out(model, why).inc())
        self._responses = Bounded(self.metrics.responses)
        self._feeder: threading.Thread | None = None
        self._stop = threading.Event()
        if host is not None:
            self.follow(host)

    def follow(self, host: Host) -> None:
        """Read models from `host` from now on."""
        self._host = host
        self.drifting.patience = min(1e3 * host.settings.request_seconds, LONGEST)

    def start(self) -> None:
        """Start the thread that feeds the drift monitors."""
        if self._feeder is None:
            self._feeder = threading.Thread(target=self._feed, name="odn-drift", daemon=True)
            self._feeder.start()

    def close(self) -> None:
        """Stop it."""
        self._stop.set()
        if self._feeder is not None:
            self._feeder.join()

    def models(self) -> list[Hosted]:
        """The models that are served now."""
        return [] if self._host is None else self._host.models()

    @property
    def ready(self) -> bool:
        """Whether the host says so."""
        return self._host is not None and bool(self._host.ready)

    def queues(self) -> dict[tuple[str, int], int]:
        """Images that wait, by model and segment (from 0)."""
        return {} if self._host is None else self._host.engine.queues()

    def last(self, model: str) -> LastMinute:
        """The last minute of a model."""
        return self._of(model).rolling.last()

    # --- told by the engine ---------------------------------------------------------------------------

    def stepped(self, model: str, segment: int, batch: int, seconds: float) -> None:
        """See `Observer`."""
        try:
            self._of(model).stepped(segment, batch, seconds)
        except Exception:
            self._failed()

    def answered(self, model: str, output: RunnerOutput, seconds: float) -> None:
        """See `Observer`."""
        try:
            self._of(model).answered(output, seconds)
        except Exception:
            self._failed()

    def refused(self, model: str, why: type[Refusal]) -> None:
        """See `Observer`."""
        try:
            self._of(model).refused(why.__name__)
        except Exception:
            self._failed()

    def accepted(self, lane: Lane, options: Options, future: Future[RunnerOutput]) -> None:
        """A request was taken; in the order in which they come."""
        try:
            self.drifting.accepted(lane, options, future)
        except Exception:
            self._failed()

    def responded(self, status: int) -> None:
        """An HTTP response left, whatever it was asked for; 499: the client had gone."""
        self._responses(status).inc()

    def _of(self, model: str) -> _Model:
        found = self._models.get(model)
        if found is None:
            with self._lock:
                name = model if len(self._models) < MODELS else OTHER
                found = self._models.get(name)
                if found is None:
                    found = self._models[name] = _Model(name, self.metrics, Rolling(self.clock, self.begun))
        return found

    def _failed(self) -> None:
        self.metrics.errors.inc()

    # --- drift ----------------------------------------------------------------------------------------

    def _feed(self) -> None:
        while not self._stop.wait(FEEDING):
            try:
                self.drifting.feed()
            except Exception:
                self._failed()


class _Model:
    """Counts of one model, each found once."""

    def __init__(self, name: str, metrics: Metrics, rolling: Rolling) -> None:
        self.rolling = rolling
        self._seconds = metrics.seconds.labels(name)
        self._requests, self._images = metrics.requests.labels(name), metrics.images.labels(name)
        self._units, self._certified = metrics.units.labels(name), metrics.certified.labels(name)
        self._exits, self._refusals = Bounded(metrics.exits), Bounded(metrics.refusals)
        self._batches, self._busy = Bounded(metrics.batches), Bounded(metrics.busy)
        self.name = name

    def stepped(self, segment: int, batch: int, seconds: float) -> None:
        self._batches(self.name, segment).observe(batch)
        self._busy(self.name, segment).inc(seconds)

    def answered(self, output: RunnerOutput, seconds: float) -> None:
        exits: list[int] = output.exit.tolist()
        images, units = len(exits), sum(output.units_run.tolist())
        self._seconds.observe(seconds)
        self._requests.inc()
        self._images.inc(images)
        self._units.inc(units)
        if output.certified:
            self._certified.inc(images)
        if images == 1:
            self._exits(self.name, exits[0]).inc()
        else:
            for exit, count in Counter(exits).items():
                self._exits(self.name, exit).inc(count)
        self.rolling.answered(seconds, exits, images, units, output.certified)

    def refused(self, why: str) -> None:
        self._refusals(self.name, why).inc()
        self.rolling.refused(why)
