"""Requests, and the jobs (single images) that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.stages.protocol import Held
from odn_hybrid.stopping import Seen

__all__ = ["Job", "Request", "by_state"]


@dataclass(eq=False, slots=True)
class Request:
    """What a client waits for.

    Attributes:
        arrived, deadline: on the monotonic clock; no deadline is infinity.
        final: the segment after which its inputs stop in any case.
        future: gets the answer or the refusal; cancelled by who does not want it any more.
        left: inputs without an answer.
        plain: whether all answers so far are those that the policy gives by itself.
        over: answered or given up: what still waits of it is dropped.
    """

    images: NDArray[np.float32]
    options: Options
    arrived: float
    deadline: float
    final: int
    future: Future[RunnerOutput]
    left: int
    logits: NDArray[np.float32]
    confidence: NDArray[np.float32]
    taken: NDArray[np.int64]  # the policy's exits, as is `answered`
    answered: NDArray[np.int64]
    plain: bool = True
    over: bool = False
    held: Held = None

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.over and not self.future.cancelled()

    def write(self, row: int, seen: Seen, at: int, number: int, *, plain: bool) -> bool:
        """Row `row` has its answer, row `at` of `seen`, from exit `number`; whether it was the last."""
        self.logits[row], self.confidence[row] = seen.logits[at], seen.confidence[at]
        self.taken[row] = number
        self.answered[row] = number if seen.exit is None else seen.exit[at]
        self.plain &= plain
        self.left -= 1
        return self.left == 0


@dataclass(eq=False, slots=True)
class Job:
    """One image on its way.

    Attributes:
        request, row: whose, and which of its images.
        segment: before which it waits.
        since, due: when it came there, and when it is served before others, on the monotonic clock.
        held, seen, place: a state, the memory of answers that goes with it, and its row in both. No state
            before the first segment, no memory before the first exit.
        plain: whether only the policy has had a say in where it stops.
    """

    request: Request
    row: int
    segment: int = 0
    since: float = 0.0
    due: float = 0.0
    held: Held = None
    seen: Seen | None = None
    place: int = 0
    plain: bool = True


def by_state(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs, those whose rows are of one state together and in the order of these rows."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        groups.setdefault(id(job.held), []).append(job)
    for members in groups.values():
        members.sort(key=attrgetter("place"))
    return list(groups.values())
