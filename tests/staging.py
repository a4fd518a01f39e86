"""Images through `Stages` in groups that change from step to step, as a scheduler might choose them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.stopping import Seen


def through(
    stages: Any, images: NDArray[np.float32], random: np.random.Generator | None = None
) -> RunnerOutput:
    """Answers of all images: with `random` in groups and orders by chance, else all at once.

    Images come in requests of one to four; what waits before a segment may be taken in any part.
    """
    count = len(images)
    logits = np.full((count, stages.classes), np.nan, dtype=np.float32)
    confidence = np.full(count, np.nan, dtype=np.float32)
    taken, answered = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    waiting: list[list[tuple[Any, Seen | None, int, int]]] = [[] for _ in stages.numbers]
    start = 0
    while start < count:
        size = count if random is None else int(random.integers(1, 5))
        held = stages.enter(images[start : start + size])
        rows = range(start, min(start + size, count))
        waiting[0] += [(held, None, place, row) for place, row in enumerate(rows)]
        start += size
    while any(waiting):
        segment = next(k for k in range(len(waiting)) if waiting[k])
        if random is not None:
            segment = int(random.choice([k for k, queue in enumerate(waiting) if queue]))
            random.shuffle(waiting[segment])  # type: ignore[arg-type]
        size = len(waiting[segment]) if random is None else int(random.integers(1, len(waiting[segment]) + 1))
        group, waiting[segment] = waiting[segment][:size], waiting[segment][size:]
        group = _in_runs(group)
        held = stages.gather([(part[0][0], _places(part)) for part in group], segment)
        memories = [(part[0][1], _places(part)) for part in group]
        before = None if segment == 0 else Seen.join(memories)  # type: ignore[arg-type]
        after, found = stages.step(segment, held)
        members = [row for part in group for *_, row in part]
        assert found.shape == (len(members), stages.classes) and found.dtype == np.float32
        number = stages.numbers[segment]
        stops, seen = stages.looker.look(number, found, before)
        for place, row in enumerate(members):
            if not stops[place]:
                waiting[segment + 1].append((after, seen, place, row))
                continue
            assert taken[row] == 0, "answered twice"
            logits[row], confidence[row], taken[row] = seen.logits[place], seen.confidence[place], number
            answered[row] = number if seen.exit is None else seen.exit[place]
    exits, units = np.array(stages.exits), np.array(stages.units)
    return RunnerOutput(
        logits, exits[taken - 1], units[taken - 1], confidence, stages.certified, exits[answered - 1]
    )


def _places(part: list[Any]) -> NDArray[np.intp]:
    return np.array([place for _, _, place, _ in part], dtype=np.intp)


def _in_runs(group: list[Any]) -> list[list[Any]]:
    """Those of one state together, each in the order of its rows, as the server does."""
    found: dict[int, list[Any]] = {}
    for member in group:
        found.setdefault(id(member[0]), []).append(member)
    return [sorted(part, key=lambda member: member[2]) for part in found.values()]
