"""Where a fit stands, and what a look at the selection split shows: plain data, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["BEST", "RELOAD", "START", "Look", "Progress"]

#: What the engine does with the weights after a look: keep them as those that every depth starts from, keep
#: them as the best so far, or start again from the former.
START, BEST, RELOAD = "start", "best", "reload"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a fit stands; plain data, kept in the checkpoint.

    Attributes:
        phase: "backbone", "warmup", "expand", "settle", "cooldown" or "done".
        current: the exit being grown (expand), or the deepest exit in training (settle, cooldown).
        epoch: epochs done in all; `phase_epochs` in this phase (with `reload`, at this depth).
        best, stale: best selection accuracy of the current exit in this phase, looks since it gained.
        looks, before: looks at which tests were made, which their levels are counted by, and the current
            exit's accuracy at the last of them in this phase (`expansion.decide: test`).
        cooldown_epochs: length of the cooldown once it has begun.
        rate: factor to which a plateau has brought the learning rate.
        then: START, BEST, RELOAD or None: what the last look asks the engine to do with the weights.
        train_macs, seconds: what the search has cost so far; `by_depth`: epochs per deepest active exit.
    """

    phase: str = "warmup"
    current: int = 1
    epoch: int = 0
    phase_epochs: int = 0
    best: float = -1.0
    stale: int = 0
    looks: int = 0
    before: float = -1.0
    cooldown_epochs: int = 0
    rate: float = 1.0
    then: str | None = None
    train_macs: float = 0.0
    seconds: float = 0.0
    by_depth: dict[str, float] = field(default_factory=dict)
    stopped_by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """One evaluation of exits 1..m on the selection split.

    `accuracies` (m,) are fractions of `n` images; `lost[i][j]`: images that exit i + 1 answers rightly and
    exit j + 1 wrongly, which is all that paired tests need. `n` 0: the images are not known.
    """

    accuracies: tuple[float, ...]
    n: int = 0
    lost: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, correct: ArrayLike) -> Look:
        """From right answers (n, m) bool."""
        right = np.asarray(correct, dtype=np.int64)
        lost = right.T @ (1 - right)
        return cls(
            tuple(float(value) for value in np.asarray(correct).mean(0)),
            len(right),
            tuple(tuple(int(count) for count in row) for row in lost),
        )

    @classmethod
    def plain(cls, accuracies: Sequence[float]) -> Look:
        """Accuracies alone."""
        return cls(tuple(float(value) for value in accuracies))
