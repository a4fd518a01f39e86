"""Feeds the drift monitors, away from the device thread.

A monitor's promise about false alarms needs a stream of which nothing was chosen by looking at it
(theory/drift.md, assumption 2). Answers leave the server in another order than requests came, the sure ones
first, and a request's own options end some inputs early: the answers as they leave would look surer than the
reference without any drift. So what is fed is settled when a request comes, by its options alone, and answers
are fed in the order in which their requests came.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.watching.events import say
from odn_hybrid.stopping import DriftMonitor, DriftState

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting.hosted import Hosted
    from odn_hybrid.serve.scheduling import Lane

__all__ = ["Drifting", "monitored"]

log = logging.getLogger("odn_hybrid.serve.drift")

MOST = 8192  # requests of a model that wait to be fed
AT_ONCE = 256  # inputs: about 2 ms


class _Ticket:
    """A request's place in the stream: filled when it ends."""

    __slots__ = ("confidence", "exit", "over", "why")

    def __init__(self) -> None:
        self.over = False
        self.why = ""  # it has nothing to feed; "" where it has
        self.confidence: NDArray[np.float32] | None = None
        self.exit: NDArray[np.int64] | None = None

    def fill(self, done: Future[RunnerOutput]) -> None:
        if done.cancelled() or done.exception() is not None:
            self.why = "unanswered"
        elif not (output := done.result()).certified:
            self.why = "uncertified"
        else:
            self.confidence, self.exit = output.confidence, output.exit
        self.over = True


class _Line:
    """The stream of one version of a model."""

    def __init__(self, name: str, version: str, monitor: DriftMonitor) -> None:
        self.name, self.version, self.monitor = name, version, monitor
        self.tickets: deque[_Ticket] = deque()
        self.alarms = 0


class Drifting:
    """The streams of all models.

    Args:
        models: those that are served now.
        left_out: told of each request that a monitor is not shown: model, why.
        most: requests that may wait to be fed, per model; more are left out.

    Attributes:
        patience: a deadline this far, in milliseconds, is the server's own, no wish of the request's.
    """

    def __init__(
        self,
        models: Callable[[], Iterable[Hosted]],
        left_out: Callable[[str, str], None],
        *,
        most: int = MOST,
    ) -> None:
        self._models, self._left_out, self._most = models, left_out, most
        self.patience = 0.0
        # Weakly: a model that was replaced is let go at once, not when the streams are looked at again.
        self._lines: WeakKeyDictionary[Lane, _Line | None] = WeakKeyDictionary()
        self._lock = Lock()  # held by who feeds or reads a monitor

    def accepted(self, lane: Lane, options: Options, future: Future[RunnerOutput]) -> None:
        """A request entered `lane`; to be told in the order in which they came. Microseconds."""
        line = self._lines[lane] if lane in self._lines else self._begin(lane)
        if line is None:
            return
        if not self._plain(options):
            self._left_out(line.name, "options")
        elif len(line.tickets) >= self._most:
            self._left_out(line.name, "full")
        else:
            ticket = _Ticket()
            line.tickets.append(ticket)
            future.add_done_callback(ticket.fill)

    def feed(self) -> None:
        """Show the monitors the answers that have come, and forget models that are gone."""
        serving = {hosted.lane for hosted in self._models()}
        for lane, line in list(self._lines.items()):
            if lane not in serving:
                self._lines.pop(lane, None)
            elif line is not None:
                while self._some(line):
                    pass

    def state(self, hosted: Hosted) -> DriftState | None:
        """What there is to say of a model; None where it is not watched."""
        if not monitored(hosted) or hosted.drift is None:
            return None
        with self._lock:
            return hosted.drift.state

    def _plain(self, options: Options) -> bool:
        late = options.deadline_ms
        return (
            options.max_depth is None
            and options.min_confidence is None
            and (late is None or late >= self.patience)
        )

    def _begin(self, lane: Lane) -> _Line | None:
        for hosted in self._models():
            if hosted.lane is lane:
                monitor = hosted.drift if monitored(hosted) else None
                fresh = None if monitor is None else _Line(hosted.name, hosted.version, monitor)
                return self._lines.setdefault(lane, fresh)
        return None

    def _some(self, line: _Line) -> bool:
        """Feed a few, up to the first request that is still in work; whether there may be more."""
        with self._lock:
            confidence, exit, count = [], [], 0
            while line.tickets and line.tickets[0].over and count < AT_ONCE:
                ticket = line.tickets.popleft()
                if ticket.confidence is None or ticket.exit is None:
                    self._left_out(line.name, ticket.why)
                    continue
                confidence.append(ticket.confidence)
                exit.append(ticket.exit)
                count += len(ticket.exit)
            if not count:
                return False
            state = line.monitor.update(np.concatenate(confidence), np.concatenate(exit))
        if state.alarms > line.alarms:
            line.alarms = state.alarms
            say(
                log,
                "drift",
                level=logging.WARNING,
                model=line.name,
                version=line.version,
                says=state.sentence,
            )
        return count >= AT_ONCE


def monitored(hosted: Any) -> bool:
    """Whether a monitor watches its answers: only where a certificate speaks is there a promise to watch.

    Without one no answer is certified, and which of them a request's options had an influence on cannot be
    told.
    """
    return hosted.drift is not None and hosted.certificate is not None and hosted.void is None
