"""One step on the device: put the batch together, run its segment, sort out who stops and who goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.serve.refusals import BadRequest, Failed, Refusal
from odn_hybrid.serve.scheduling.lane import Lane, Work
from odn_hybrid.serve.scheduling.observing import Observer
from odn_hybrid.serve.scheduling.work import Job, Request, by_state
from odn_hybrid.serve.stages.protocol import Held
from odn_hybrid.stopping import Seen

__all__ = ["Ended", "run_step"]

log = logging.getLogger("odn_hybrid.serve")

#: A request of a lane that has all its answers, or is refused.
Ended = tuple[Lane, Request, Refusal | None]
NOT_FINITE = "the model gives no finite answer for this image"


def run_step(
    work: Work, lock: AbstractContextManager[Any], observer: Observer, clock: Callable[[], float]
) -> list[Ended]:
    """Run `work`; survivors are back in their lane's queues. `lock` guards these.

    A step that fails ends the requests of its batch, and nothing else.
    """
    lane, segment = work.lane, work.segment
    begun = clock()
    try:
        jobs, before, held = _together(lane, segment, work.jobs)
        after, logits = lane.stages.step(segment, held)
        fine: NDArray[np.bool_] = np.all(np.isfinite(logits), axis=1)
        if not fine.all():  # its answers mean nothing, those of its neighbours are their own
            logits = np.where(fine[:, None], logits, 0.0).astype(np.float32)
        stops, seen = lane.stages.looker.look(lane.stages.numbers[segment], logits, before)
        now = clock()
        ended, staying = _sorted_out(lane, segment, jobs, stops, seen, fine, now)
        after, seen = _compacted(lane, segment, after, seen, staying, len(jobs))
    except Exception:
        log.exception("a step of model %s failed", lane.name)
        return [(lane, job.request, Failed("the model failed on this request")) for job in work.jobs]
    with lock:
        lane.expected.took(segment, len(jobs), now - begun)
        # Who was stopped by a depth or deadline of its own would have gone on; who was sent on, does.
        lane.expected.saw(segment, len(jobs), max(len(staying), len(jobs) - int(stops.sum())))
        for job in staying:
            job.held, job.seen = after, seen
            lane.push(job, segment + 1, now)
    observer.stepped(lane.name, segment, len(jobs), now - begun)
    return ended


def _together(lane: Lane, segment: int, jobs: Sequence[Job]) -> tuple[list[Job], Seen | None, Held]:
    """The batch: its jobs in the order of its rows, what is remembered of them, and their state."""
    if segment == 0:
        for job in jobs:
            if job.request.held is None:
                job.request.held = lane.stages.enter(job.request.images)
            job.held = job.request.held
    groups = by_state(jobs)
    rows = [np.array([job.place for job in group], dtype=np.intp) for group in groups]
    ordered = [job for group in groups for job in group]
    held = lane.stages.gather([(g[0].held, r) for g, r in zip(groups, rows, strict=True)], segment)
    if segment == 0:
        return ordered, None, held
    memories = [(g[0].seen, r) for g, r in zip(groups, rows, strict=True)]
    return ordered, Seen.join(memories), held  # type: ignore[arg-type]


def _sorted_out(
    lane: Lane,
    segment: int,
    jobs: Sequence[Job],
    stops: NDArray[np.bool_],
    seen: Seen,
    fine: NDArray[np.bool_],
    now: float,
) -> tuple[list[Ended], list[Job]]:
    """Write the answers of those who stop: the requests that have all of theirs, and the jobs that go on."""
    ended: list[Ended] = []
    staying: list[Job] = []
    number = lane.stages.numbers[segment]
    ahead = lane.expected.pace * lane.expected.seconds(min(segment + 1, lane.last), 1)
    late = now + ahead
    for place, (job, stop, good) in enumerate(zip(jobs, stops.tolist(), fine.tolist(), strict=True)):
        request = job.request
        if not good:
            ended.append((lane, request, BadRequest(NOT_FINITE)))
            continue
        sure = request.options.min_confidence
        if stop and segment < lane.last and sure is not None and _told(seen, place) < sure:
            stop, job.plain = False, False
        if not stop and (segment >= request.final or request.deadline <= late):
            stop, job.plain = True, False  # the answer there is, before the time is up
        if not stop:
            job.place = place
            staying.append(job)
        elif request.write(job.row, seen, place, number, plain=job.plain):
            ended.append((lane, request, None))
    return ended, staying


def _told(seen: Seen, place: int) -> float:
    """The confidence of an answer as the client reads it: with the digits of float32."""
    return float(np.float32(seen.confidence[place]))


def _compacted(
    lane: Lane, segment: int, after: Held, seen: Seen, staying: Sequence[Job], count: int
) -> tuple[Held, Seen]:
    """State and memory of those who go on, without the rows of the others where these are the most.

    Otherwise rows are copied once, when the next batch is put together. So a batch leaves at most twice the
    memory that those who wait need; it is held until the last of them has gone on.
    """
    if not staying or 2 * len(staying) > count:
        return after, seen
    rows = np.array([job.place for job in staying], dtype=np.intp)
    for place, job in enumerate(staying):
        job.place = place
    return lane.stages.gather([(after, rows)], segment + 1), seen.select(rows)
