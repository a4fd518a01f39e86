"""Stages that answer from a table of logits, on a clock of their own: models for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.stopping import Calibration, HaltingTable, Looker, Seen

SHAPE = (1, 2, 2)


def table_of(
    exits: int, edge: float = 0.7, *, score: str = "confidence", recall: bool = False
) -> HaltingTable:
    """Stops at a confidence of `edge`."""
    row = ((edge,), (False, True))
    return HaltingTable(
        score,
        Calibration("temperature", np.ones((exits, 1)), np.zeros((exits, 1))),
        ((row, row),) * exits,
        (0.0,) * exits if recall else None,
    )


def numbered(rows: Sequence[int]) -> NDArray[np.float32]:
    """Images that say which row of the table their answers are."""
    images = np.zeros((len(rows), *SHAPE), dtype=np.float32)
    images[:, 0, 0, 0] = rows
    return images


class Table:
    """Answers `logits` (N, P, classes); `before` is called with segment and batch size ahead of a step."""

    def __init__(
        self,
        logits: NDArray[np.float32],
        policy: HaltingTable | None = None,
        *,
        before: Callable[[int, int], None] = lambda segment, batch: None,
    ) -> None:
        self.logits, self.before = logits, before
        exits = logits.shape[1]
        self.policy = policy or table_of(exits)
        self.looker = Looker(self.policy)
        self.numbers = tuple(range(1, exits + 1))
        self.exits = tuple(2 * n for n in self.numbers)
        self.units = tuple(3 * n for n in self.numbers)
        self.image_shape, self.classes = SHAPE, logits.shape[2]
        self.shares = tuple(1.0 / n for n in self.numbers)
        self.runtime = "table"
        self.certified = True
        self.closed = 0
        self.ran: list[tuple[int, list[int]]] = []

    def enter(self, images: NDArray[np.float32]) -> Any:
        return images[:, 0, 0, 0].astype(np.int64)

    def gather(self, parts: Sequence[tuple[Any, NDArray[np.intp]]], segment: int) -> Any:
        return np.concatenate([held[rows] for held, rows in parts])

    def step(self, segment: int, held: Any) -> tuple[Any, NDArray[np.float32]]:
        assert not self.closed
        self.ran.append((segment, held.tolist()))
        self.before(segment, len(held))
        return held.copy(), self.logits[held, segment].copy()

    def measure(self, largest: int) -> SegmentTimes:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1

    def alone(self, row: int) -> tuple[NDArray[np.float32], int]:
        """Logits and exit that an input gets by itself."""
        seen: Seen | None = None
        for number in self.numbers:
            stops, seen = self.looker.look(number, self.logits[row : row + 1, number - 1], seen)
            if stops[0]:
                return seen.logits[0], self.exits[number - 1]
        raise AssertionError


def times_of(seconds: Sequence[Sequence[float]], sizes: tuple[int, ...]) -> SegmentTimes:
    """Segment times without any for gathering."""
    rows = tuple(tuple(row) for row in seconds)
    return SegmentTimes(sizes, rows, tuple((0.0,) * len(sizes) for _ in rows), "table", "table")
