"""How long segments take as the scheduler runs them: gathered, with head and decision."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.deploy.halting.timing import sizes_upto
from odn_hybrid.serve.stages.protocol import Stages
from odn_hybrid.stopping import Seen

__all__ = ["measured_times"]

SECONDS = 20.0  # that measuring may take, roughly, unless the fewest rounds take longer
FEWEST, MOST = 4, 20  # rounds

#: Runs something, and gives the seconds that it took.
Clocked = Callable[[Callable[[], object]], float]


def measured_times(
    stages: Stages,
    largest: int,
    device: str,
    *,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.thread_time,
) -> SegmentTimes:
    """The shortest of several rounds, in which segments take turns, at batch sizes up to `largest`.

    Not the median: what disturbs a measurement only ever adds to it, a busy machine adds much, and what the
    scheduler chooses by is how times compare. For the same reason no batch takes longer than a larger one.
    The first segment's time is with putting its batch together from single images.

    Args:
        wait: until the device is done: copying rows does not wait by itself.
        clock: seconds. By default the processor's for this thread, which takes part in all that the CPU
            computes here: what others do meanwhile does not count. For another device, real time.
    """
    sizes = sizes_upto(largest)
    images = np.random.default_rng(0).standard_normal((largest, *stages.image_shape), dtype=np.float32)
    count = len(stages.numbers)
    found = np.zeros((2, count, len(sizes)))

    def clocked(thing: Callable[[], object]) -> float:
        start = clock()
        thing()
        wait()
        return clock() - start

    for place in reversed(range(len(sizes))):  # the largest first: what allocates or compiles does so for it
        size = sizes[place]
        shortest = _shortest(_things(stages, images[:size]), SECONDS / len(sizes), clocked)
        found[0, :, place], found[1, :-1, place] = shortest[:count], shortest[count:]
    found = np.minimum.accumulate(found[..., ::-1], axis=-1)[..., ::-1]
    segments, gathers = (tuple(tuple(row) for row in table.tolist()) for table in found)
    return SegmentTimes(sizes, segments, gathers, device, stages.runtime)


def _shortest(things: list[Callable[[], object]], seconds: float, clocked: Clocked) -> NDArray[np.float64]:
    """Seconds of each, after a round that does not count."""
    shortest = np.full(len(things), np.inf)
    spent = 0.0
    for number in range(MOST + 1):
        now = np.array([clocked(thing) for thing in things])
        if number:
            shortest = np.minimum(shortest, now)
        spent += float(now.sum())
        if number >= FEWEST and spent > seconds:
            break
    return shortest


def _things(stages: Stages, images: np.ndarray) -> list[Callable[[], object]]:
    """What is timed on a batch like `images`: every segment, then gathering after each but the last."""
    zero, count = np.zeros(1, dtype=np.intp), len(images)
    single = [(stages.enter(image[None]), zero) for image in images]
    runs: list[Callable[[], object]] = []
    gathers: list[Callable[[], object]] = []
    held, seen = stages.gather(single, 0), None
    for segment, number in enumerate(stages.numbers):

        def run(
            segment: int = segment, number: int = number, held: object = held, seen: Seen | None = seen
        ) -> object:
            entry = held if segment else stages.gather(single, 0)
            after, logits = stages.step(segment, entry)
            return after, stages.looker.look(number, logits, seen)[1]

        held, seen = run()  # type: ignore[misc]
        runs.append(run)
        if segment == len(stages.numbers) - 1:
            break

        def gather(segment: int = segment, held: object = held) -> object:
            order = np.arange(count, dtype=np.intp)
            halves = [order[0::2], order[1::2]]  # of two batches, as mostly in service
            return stages.gather([(held, rows) for rows in halves if len(rows)], segment + 1)

        gathers.append(gather)
    return runs + gathers
