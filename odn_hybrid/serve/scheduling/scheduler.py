"""The order of work: pure bookkeeping, told the time, knowing neither threads nor devices.

A step goes to the queue whose inputs have the largest Gittins index (`expected`): those that are expected to
leave soonest. As a rule these are the deepest, so a batch is seen through to its end while new arrivals
gather before the first segment; who is left over deep in the network meets the next batch there. How many
of a queue are taken is what serves all of them soonest on average, by measured times: one after another where
time grows with the batch, everybody where it does not. The device never waits while there is work.

**Nobody starves.** An input is due `patience_ms` after it arrived. Who is due comes before all others, the
earliest due first, and what arrives later is due later. So from the moment it is due until it leaves an input
waits, at every place, at most for the step that is running, and all in all for one step at every place of
each input that was due before it. Of these there are fewer than the `queue`s of all models hold together,
and the requests that had arrived then, but whose bodies were still on their way.
"""

from __future__ import annotations

import math

from odn_hybrid.serve.scheduling.lane import Lane, Work
from odn_hybrid.serve.scheduling.work import Job

__all__ = ["Scheduler"]

SWEEP = 0.05  # seconds between looks for inputs whose time is up


class Scheduler:
    """Lanes and what to do next for them."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self._swept = -math.inf

    def pick(self, now: float) -> Work | None:
        """The next step, its inputs taken from their queue; None where nothing may run now."""
        best: tuple[bool, float] | None = None
        chosen: tuple[Lane, int] | None = None
        for lane in self.lanes:
            for segment, queue in enumerate(lane.queues):
                head = lane.head(segment, now) if queue else None
                if head is None or not self._ready(lane, segment, head, now):
                    continue
                due = head.due <= now
                rank = (due, -head.due if due else float(lane.expected.index[segment]))
                if best is None or rank > best:
                    best, chosen = rank, (lane, segment)
        if chosen is None:
            return None
        lane, segment = chosen
        here = len(lane.queues[segment])
        size = lane.expected.batch(segment, here, self.waiting - here)
        return Work(lane, segment, lane.take(segment, size, now))

    @staticmethod
    def _ready(lane: Lane, segment: int, head: Job, now: float) -> bool:
        """Whether a first segment has waited long enough for a full batch."""
        if segment or not lane.wait or len(lane.queues[0]) >= lane.settings.max_batch:
            return True
        return now >= min(head.since + lane.wait, head.due)

    def wake(self) -> float:
        """When something that waits for a full batch may run; infinity where nothing does."""
        heads = (lane.head(0) for lane in self.lanes)
        times = [
            min(head.since + lane.wait, head.due)
            for lane, head in zip(self.lanes, heads, strict=True)
            if head is not None
        ]
        return min(times, default=math.inf)

    def late(self, now: float) -> list[tuple[Lane, Job]]:
        """Takes out inputs whose deadline has passed: those come upon, and now and then all there are."""
        if now - self._swept >= SWEEP:
            self._swept = now
            for lane in self.lanes:
                lane.sweep(now)
        found = [(lane, job) for lane in self.lanes for job in lane.late]
        for lane in self.lanes:
            lane.late = []
        return found

    @property
    def waiting(self) -> int:
        """Images in all queues."""
        return sum(len(queue) for lane in self.lanes for queue in lane.queues)

    @property
    def backlog(self) -> float:
        """Expected seconds of work that waits in all lanes."""
        return sum(lane.backlog for lane in self.lanes)
