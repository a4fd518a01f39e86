"""One model's queues: an input waits before the segment that it needs next."""

from __future__ import annotations

import heapq
import math
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count

import numpy as np

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import BadRequest
from odn_hybrid.serve.scheduling.expected import Expected
from odn_hybrid.serve.scheduling.work import Job, Request
from odn_hybrid.serve.settings import LaneSettings
from odn_hybrid.serve.stages.protocol import Stages

__all__ = ["Lane", "Work"]

ORDER = count()  # among those due at the same time: who came first


class Lane:
    """A model in the engine.

    Attributes:
        inside: images accepted and not answered yet.
        backlog: expected seconds of work for them.
        retired: set when no more requests come; done when the last is answered.
        late: taken out because their deadline has passed, and not told of yet.
    """

    def __init__(self, name: str, stages: Stages, times: SegmentTimes, settings: LaneSettings) -> None:
        self.name, self.stages, self.settings = name, stages, settings
        self.expected = Expected(times, stages.shares, settings.max_batch)
        self.patience, self.wait = settings.patience_ms / 1e3, settings.wait_ms / 1e3
        self.queues: list[list[tuple[float, int, Job]]] = [[] for _ in stages.numbers]
        self.inside = 0
        self.retired: Future[None] | None = None
        self.late: list[Job] = []
        self._depths = [stages.units[number - 1] for number in stages.numbers]

    @property
    def last(self) -> int:
        """The last segment's number, from 0."""
        return len(self.queues) - 1

    @property
    def backlog(self) -> float:
        """Expected seconds of work that waits, at the pace of late."""
        work = sum(
            len(queue) * float(ahead)
            for queue, ahead in zip(self.queues, self.expected.remaining, strict=True)
            if queue
        )
        return work * self.expected.pace

    def final(self, options: Options) -> int:
        """The segment after which an input stops in any case; `BadRequest` if no exit is so shallow."""
        depth = options.max_depth
        if depth is None or depth >= self._depths[-1]:
            return self.last
        found = int(np.searchsorted(self._depths, depth, side="right")) - 1
        if found < 0:
            raise BadRequest(
                f"max_depth is {depth}; the first exit of {self.name} comes after {self._depths[0]} units"
            )
        return found

    def push(self, job: Job, segment: int, now: float) -> None:
        """`job` waits before `segment` from `now` on."""
        job.segment, job.since = segment, now
        job.due = min(job.request.arrived + self.patience, job.request.deadline)
        heapq.heappush(self.queues[segment], (job.due, next(ORDER), job))

    def head(self, segment: int, now: float = -math.inf) -> Job | None:
        """Who is due first of those that are still wanted; whose deadline has passed is `late` instead."""
        queue = self.queues[segment]
        while queue:
            job = queue[0][2]
            if job.request.wanted:
                if job.request.deadline > now:
                    return job
                self.late.append(job)
            heapq.heappop(queue)
        return None

    def take(self, segment: int, most: int, now: float) -> list[Job]:
        """Up to `most` inputs, those due first."""
        found: list[Job] = []
        while len(found) < most and (job := self.head(segment, now)) is not None:
            heapq.heappop(self.queues[segment])
            found.append(job)
        return found

    @property
    def crowded(self) -> bool:
        """Whether those that nobody wants any more may be as many as the queue holds."""
        return sum(map(len, self.queues)) > self.inside + self.settings.queue

    def sweep(self, now: float = -math.inf) -> None:
        """Takes out who is not wanted any more, and as `late` those whose deadline has passed."""
        for number, queue in enumerate(self.queues):
            kept = [
                entry for entry in queue if entry[2].request.wanted and not entry[2].request.deadline <= now
            ]
            if len(kept) == len(queue):
                continue
            self.late += [e[2] for e in queue if e[2].request.wanted and e[2].request.deadline <= now]
            heapq.heapify(kept)
            self.queues[number] = kept

    def empty(self) -> list[Request]:
        """Takes everybody out: the requests that are still wanted."""
        jobs = [entry[2] for queue in self.queues for entry in queue]
        self.queues = [[] for _ in self.queues]
        return list({id(job.request): job.request for job in jobs if job.request.wanted}.values())


@dataclass(eq=False, slots=True)
class Work:
    """One step for the device: a segment of a lane's model, and who is in the batch."""

    lane: Lane
    segment: int
    jobs: list[Job]
