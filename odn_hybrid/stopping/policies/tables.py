"""Halting tables: per exit, where on the axis of a score inputs stop. Every policy compiles to one.

A table needs nothing but the exits' logits, looks at no later exit, and is a few numbers per exit, so a
runtime can hold it on its device and decide there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_logits
from odn_hybrid.stopping.policies.calibration import Calibration
from odn_hybrid.stopping.policies.recall import answering
from odn_hybrid.stopping.policies.scores import SCORES, agreement, readiness

__all__ = ["NEVER", "HaltingTable", "Rows"]

NEVER = 2.0  # an edge that no probability reaches; finite, because JSON knows no infinity

Rows = tuple[tuple[tuple[float, ...], tuple[bool, ...]], ...]


@dataclass(frozen=True)
class HaltingTable:
    """Where inputs stop.

    Attributes:
        score: what is looked at, one of `SCORES`; larger means readier to stop.
        calibration: of the exits 1..K; it informs decisions and confidences, answers are the raw logits'.
        rows: per exit, for inputs whose answer differs from the previous exit's and for those whose answer is
            the same: ascending edges e_1 < ... < e_m of the score, and m + 1 decisions; decision j holds for
            scores in [e_j, e_(j+1)). The last exit stops whatever its row says.
        recall: None, or a handicap per exit: the answer so far is kept, and looked at, where it is more
            confident than the exit's by at least that; see `recall.py`.

    Raises `ConfigError` for a score that does not exist, `InputError` for rows, handicaps or logits of
    another number of exits than the calibration's.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import Calibration, HaltingTable
        >>> table = HaltingTable.of_thresholds([0.9, 0.9], Calibration.of_temperatures([1.0, 1.0]))
        >>> logits = np.array([[[4.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]])  # two images, two exits
        >>> table.decide(logits)[0].tolist()
        [1, 2]
    """

    score: str
    calibration: Calibration
    rows: tuple[Rows, ...]
    recall: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ConfigError(f"unknown score {self.score!r}; known: {', '.join(SCORES)}")
        if not self.rows or len(self.calibration) != len(self.rows):
            raise InputError(
                f"the halting table has {len(self.rows)} exits, its calibration {len(self.calibration)}; "
                "it needs one row per exit"
            )
        if self.recall is not None and not (
            len(self.recall) == len(self.rows) and np.isfinite(self.recall).all()
        ):
            raise InputError(f"recall is {self.recall!r}; expected one finite handicap per exit, or None")
        for number, row in enumerate(self.rows, start=1):
            if len(row) != 2 or not all(_fits(edges, stops) for edges, stops in row):
                raise InputError(
                    f"exit {number} of the halting table has the rows {row!r}; expected two, each of finite "
                    "rising edges and one decision more than edges"
                )

    def __len__(self) -> int:
        """Number of exits K."""
        return len(self.rows)

    def decide(self, logits: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each input stops and which exit answers, (n, K, C) -> (n,) and (n,), numbered 1 to K."""
        table = self._fitting(logits)
        sure = readiness(table, "confidence", self.calibration) if self.recall else None
        return self.decide_scores(readiness(table, self.score, self.calibration), agreement(table), sure)

    def decide_scores(
        self, scores: NDArray[np.float64], same: NDArray[np.bool_], sure: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `decide`, from every exit's own score, agreement and, with recall, confidence, (n, K) each."""
        place = None
        if self.recall is not None:
            assert sure is not None
            place = answering(sure, self.recall)
            scores = np.take_along_axis(scores, place, 1)
        stops = np.zeros(scores.shape, dtype=bool)
        for exit, row in enumerate(self.rows):
            for group, (edges, decisions) in enumerate(row):
                interval = np.searchsorted(np.asarray(edges), scores[:, exit], side="right")
                mine = same[:, exit] == bool(group)
                stops[mine, exit] = np.asarray(decisions)[interval[mine]]
        stops[:, -1] = True
        taken = stops.argmax(axis=1).astype(np.int64)
        answers = taken if place is None else place[np.arange(len(taken)), taken]
        return taken + 1, answers + 1

    def scores(self, logits: ArrayLike) -> NDArray[np.float64]:
        """What is looked at, (n, K, C) -> (n, K)."""
        table = self._fitting(logits)
        found = readiness(table, self.score, self.calibration)
        if self.recall is None:
            return found
        sure = readiness(table, "confidence", self.calibration)
        return np.take_along_axis(found, answering(sure, self.recall), 1)

    def confidence(self, logits: ArrayLike, answered: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probability of the answers given by exits `answered` (n,), (n, K, C) -> (n,)."""
        table = self._fitting(logits)
        place = np.asarray(answered)[:, None] - 1
        return np.take_along_axis(readiness(table, "confidence", self.calibration), place, 1)[:, 0]

    def _fitting(self, logits: ArrayLike) -> NDArray[np.float64]:
        table = as_logits(logits, 3)
        if table.shape[1] != len(self):
            raise InputError(f"logits have shape {table.shape}; the table is for {len(self)} exits")
        return table

    def decisions(self, exit: int, same: bool) -> frozenset[bool]:
        """What an input may be told at exit 1..K, given whether its answer is the previous exit's."""
        if exit == len(self):
            return frozenset({True})
        low, high = (1.0, float(exit)) if self.score == "streak" else (-1.0, 1.0)
        edges, said = self.rows[exit - 1][same]
        intervals = zip((-np.inf, *edges), (*edges, np.inf), said, strict=True)
        return frozenset(decision for start, end, decision in intervals if start <= high and end > low)

    @property
    def needed(self) -> tuple[int, ...]:
        """The exits whose answers matter, ascending: at the others, no input stops and nothing is remembered.

        With recall, or a score that counts exits in a row that agree, every answer matters. Where a rule asks
        whether the exit before gave the same answer, that one matters too.
        """
        if self.recall is not None or self.score == "streak":
            return tuple(range(1, len(self) + 1))
        found: set[int] = set()
        for exit in range(1, len(self) + 1):
            groups = [self.decisions(exit, same) for same in ((False, True) if exit > 1 else (False,))]
            if any(True in said for said in groups):
                found.add(exit)
                if exit > 1 and exit < len(self) and self._asks(exit):
                    found.add(exit - 1)
        return tuple(sorted(found))

    def _asks(self, exit: int) -> bool:
        """Whether the rule for agreeing answers is another one; rules that say the same are written alike."""
        return self.rows[exit - 1][0] != self.rows[exit - 1][1]

    def replaced(self, **changes: Any) -> HaltingTable:
        """A copy with other fields."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [[{"edges": list(edges), "stops": list(stops)} for edges, stops in row] for row in self.rows]
        return {
            "score": self.score,
            "calibration": self.calibration.to_dict(),
            "rows": rows,
            "recall": None if self.recall is None else list(self.recall),
        }

    @classmethod
    def from_dict(cls, values: Any) -> HaltingTable:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        try:
            if set(values) != {"score", "calibration", "rows", "recall"}:
                raise ValueError(f"fields {sorted(values)}")
            rows = tuple(
                tuple((_numbers(part["edges"]), _decisions(part["stops"])) for part in row)
                for row in values["rows"]
            )
            recall = None if values["recall"] is None else _numbers(values["recall"])
            return cls(str(values["score"]), Calibration.from_dict(values["calibration"]), rows, recall)
        except (TypeError, ValueError, KeyError, OverflowError, InputError) as error:
            raise ConfigError(f"not a halting table: {error}") from None

    @classmethod
    def of_thresholds(
        cls, thresholds: Sequence[float], calibration: Calibration, score: str = "confidence",
        *, recall: tuple[float, ...] | None = None,
    ) -> HaltingTable:  # fmt: skip
        """Stop at the first exit whose score reaches its own threshold; `NEVER` is never reached.

        Example:
            >>> from odn_hybrid.stopping import NEVER, Calibration, HaltingTable
            >>> table = HaltingTable.of_thresholds([NEVER, 0.9], Calibration.of_temperatures([1.0, 1.0]))
            >>> table.decide([[[9.0, 0.0], [9.0, 0.0]]])[0].tolist()  # however sure exit 1 is
            [2]
        """
        rows = tuple((((float(t),), (False, True)),) * 2 for t in thresholds)
        return cls(score, calibration, rows, recall)


def _fits(edges: tuple[float, ...], stops: tuple[bool, ...]) -> bool:
    rising = all(a < b for a, b in pairwise(edges))
    return rising and len(stops) == len(edges) + 1 and bool(np.isfinite(edges).all())


def _numbers(values: Any) -> tuple[float, ...]:
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise TypeError(f"expected numbers, got {values!r}")
    return tuple(float(value) for value in values)


def _decisions(values: Any) -> tuple[bool, ...]:
    if not all(isinstance(value, bool) for value in values):
        raise TypeError(f"expected decisions true or false, got {values!r}")
    return tuple(values)
