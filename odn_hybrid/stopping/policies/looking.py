"""A halting table put to work exit after exit, on the host: what `HaltingTable.decide` decides, in steps.

For runtimes: at one exit only the inputs that are still running are at hand, and the work per call must be
small beside a few units of a small network.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.stopping.policies.tables import HaltingTable

__all__ = ["Looker", "One", "Seen"]


#: What the methods `max` and `sum` of arrays call in the end.
_largest, _sum = np.maximum.reduce, np.add.reduce


class Seen(NamedTuple):
    """What is remembered of the inputs still running.

    `logits` (batch, classes) of the answer so far and `confidence` (batch,), its calibrated probability;
    `exit` (batch,), whose answer it is by its number in the table, None where it is the latest exit's for
    all; `said` (batch,), the latest exit's answer, and `streak` (batch,) exits in a row that gave it, both
    None where the table doesn't ask; `score` (batch,), readiness to stop.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import Calibration, HaltingTable, Looker
        >>> table = HaltingTable.of_thresholds([0.9, 0.9], Calibration.of_temperatures([1.0, 1.0]))
        >>> stops, seen = Looker(table).look(1, np.float32([[4.0, 0.0], [0.0, 1.0]]), None)
        >>> seen.confidence.round(3).tolist()
        [0.982, 0.731]
        >>> seen.select(np.flatnonzero(~stops)).confidence.round(3).tolist()  # of those that go on
        [0.731]
    """

    logits: NDArray[np.float32]
    confidence: NDArray[np.float64]
    exit: NDArray[np.int64] | None
    said: NDArray[np.int64] | None
    streak: NDArray[np.int64] | None
    score: NDArray[np.float64]

    def select(self, rows: NDArray[np.intp]) -> Seen:
        """Of some of the inputs, by their numbers."""
        return Seen(
            self.logits[rows],
            self.confidence[rows],
            None if self.exit is None else self.exit[rows],
            None if self.said is None else self.said[rows],
            None if self.streak is None else self.streak[rows],
            self.score[rows],
        )

    def one(self, number: int) -> One:
        """The only input that is left, after exit `number` (in the table) was looked at."""
        exit = number if self.exit is None else int(self.exit[0])
        said = -1 if self.said is None else int(self.said[0])
        streak = 1 if self.streak is None else int(self.streak[0])
        return One(self.logits[0], float(self.confidence[0]), exit, said, streak, float(self.score[0]))

    @classmethod
    def join(cls, parts: Sequence[tuple[Seen, NDArray[np.intp]]]) -> Seen:
        """Of some rows of several memories, in this order; all of one table and the same number of looks.

        A decision depends on an input's own row only, so inputs may be put together in any groups.
        """
        if not parts:
            raise ValueError("no memories to join")
        if len(parts) == 1:
            seen, rows = parts[0]
            return seen.select(rows)

        def together(of: Callable[[Seen], NDArray[Any] | None]) -> Any:
            columns = [(of(seen), rows) for seen, rows in parts]
            if any((column is None) != (columns[0][0] is None) for column, _ in columns):
                raise ValueError("memories of different tables cannot be joined")
            found = [column[rows] for column, rows in columns if column is not None]
            return np.concatenate(found) if found else None

        return cls(
            together(lambda seen: seen.logits),
            together(lambda seen: seen.confidence),
            together(lambda seen: seen.exit),
            together(lambda seen: seen.said),
            together(lambda seen: seen.streak),
            together(lambda seen: seen.score),
        )


class One(NamedTuple):
    """What is remembered of a single input: `Seen` in plain numbers, which are quicker to work with.

    `logits` (classes,), `confidence`, `exit`, `said`, `streak` and `score` mean what they mean there.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import Calibration, HaltingTable, Looker
        >>> table = HaltingTable.of_thresholds([0.9, 0.9], Calibration.of_temperatures([1.0, 1.0]))
        >>> stops, one = Looker(table).look_one(1, np.float32([4.0, 0.0]), None)
        >>> stops, one.said, round(one.confidence, 3)
        (True, 0, 0.982)
    """

    logits: NDArray[np.float32]
    confidence: float
    exit: int
    said: int
    streak: int
    score: float


class Looker:
    """Looks at one exit after another, at all that the `table` needs, and says which inputs stop there.

    It decides as `table.decide` does, but needs no input's later exits. Arrays are taken as they are, without
    checks: what calls it has checked the images.

    Attributes:
        recalls: whether an answer may be that of an exit before the latest.
        remembers: whether it asks for the memory of the look before; else None will do for `before`.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import Calibration, HaltingTable, Looker
        >>> looker = Looker(HaltingTable.of_thresholds([0.9, 0.9], Calibration.of_temperatures([1.0, 1.0])))
        >>> stops, seen = looker.look(1, np.float32([[4.0, 0.0], [0.0, 1.0]]), None)  # two inputs at exit 1
        >>> stops.tolist()
        [True, False]
        >>> left = seen.select(np.flatnonzero(~stops))
        >>> looker.look(2, np.float32([[2.0, 0.0]]), left)[0].tolist()  # the other one at exit 2, the last
        [True]
    """

    def __init__(self, table: HaltingTable) -> None:
        self.table = table
        scales, shifts = table.calibration.scales, table.calibration.shifts
        self._scales = [np.asarray(row, dtype=np.float64) for row in scales]
        self._shifts = [np.asarray(row, dtype=np.float64) if np.any(row) else None for row in shifts]
        # Where the calibration keeps the order of the classes, the answer's own weight is the largest.
        pairs = zip(self._scales, self._shifts, strict=True)
        self._ordered = [len(scale) == 1 and scale[0] > 0 and shift is None for scale, shift in pairs]
        self._alike = [row[0] == row[1] for row in table.rows]
        self._rules = [[_rule(*of) for of in row] for row in table.rows]
        # Every call of numpy that is spared here is a part of a small network's time.
        self._compares = table.score == "streak" or not all(self._alike)
        self.recalls = table.recall is not None
        self.remembers = self._compares or self.recalls
        self._said = [self._compares or table.score == "margin" or not ordered for ordered in self._ordered]

    def look(
        self, number: int, logits: NDArray[np.float32], before: Seen | None
    ) -> tuple[NDArray[np.bool_], Seen]:
        """Exit `number` (from 1) gave `logits` (batch, classes): who stops (batch,), and the memory."""
        said = logits.argmax(1) if self._said[number - 1] else None
        confidence, score = self._scored(number, logits, said)
        streak = None
        if self.table.score == "streak":
            streak = np.ones(len(logits), dtype=np.int64)
            if before is not None:
                assert before.streak is not None
                streak = np.where(said == before.said, before.streak + 1, 1)
            score = streak.astype(np.float64)
        seen = Seen(logits, confidence, None, said if self._compares else None, streak, score)
        if self.table.recall is not None:
            seen = self._recalled(number, before, seen)
        return self._decided(number, before, seen), seen

    def look_one(self, number: int, logits: NDArray[np.float32], before: One | None) -> tuple[bool, One]:
        """As `look`, for a single input: `logits` (classes,)."""
        said = int(logits.argmax())
        confidence, score = self._scored_one(number, logits, said)
        streak = 1 if before is None or said != before.said else before.streak + 1
        if self.table.score == "streak":
            score = float(streak)
        one = One(logits, confidence, number, said, streak, score)
        recall = self.table.recall
        if recall is not None and before is not None and before.confidence - confidence >= recall[number - 1]:
            one = before._replace(said=said, streak=streak)
        if number == len(self.table):
            return True, one
        edges, stops = self.table.rows[number - 1][before is not None and said == before.said]
        return stops[bisect_right(edges, one.score)], one

    def _scored_one(self, number: int, logits: NDArray[np.float32], said: int) -> tuple[float, float]:
        """As `_scored`, for a single input."""
        weights = logits * self._scales[number - 1]
        shift = self._shifts[number - 1]
        if shift is not None:
            weights += shift
        weights -= weights[said] if self._ordered[number - 1] else _largest(weights)
        kind, classes = self.table.score, len(weights)
        logs = weights.copy() if kind == "entropy" else weights
        np.exp(weights, weights)
        total, own = float(_sum(weights)), float(weights[said])
        sure = own / total
        if kind == "margin":
            weights[said] = 0.0
            return sure, (own - float(_largest(weights))) / total
        if kind == "entropy" and classes > 1:
            entropy = float(np.log(total)) - float(_sum(weights * logs)) / total
            return sure, 1.0 - entropy / math.log(classes)
        return sure, 1.0 if kind == "entropy" else sure

    def _scored(
        self, number: int, logits: NDArray[np.float32], said: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Calibrated probability of the answers, and the score; `said` is given where `_said` asks for it."""
        weights = logits * self._scales[number - 1]  # in float64: see deploy/halting/deciding.py
        shift = self._shifts[number - 1]
        if shift is not None:
            weights += shift
        weights -= _largest(weights, 1, keepdims=True)
        kind, classes = self.table.score, weights.shape[1]
        logs = weights.copy() if kind == "entropy" else weights
        np.exp(weights, weights)
        total = _sum(weights, 1)
        rows = None if said is None else np.arange(len(said))
        own: Any = 1.0 if self._ordered[number - 1] else weights[rows, said]
        sure = own / total
        if kind == "margin":
            weights[rows, said] = 0.0
            return sure, (own - _largest(weights, 1)) / total
        if kind == "entropy":
            entropy = np.log(total) - _sum(weights * logs, 1) / total
            return sure, 1.0 - entropy / math.log(classes) if classes > 1 else np.ones_like(sure)
        return sure, sure

    def _recalled(self, number: int, before: Seen | None, now: Seen) -> Seen:
        """The answer so far is kept where it is more confident by at least the exit's handicap."""
        assert self.table.recall is not None
        place = np.full(len(now.logits), number, dtype=np.int64)
        if before is None:
            return now._replace(exit=place)
        assert before.exit is not None
        keeps = before.confidence - now.confidence >= self.table.recall[number - 1]
        return now._replace(
            logits=np.where(keeps[:, None], before.logits, now.logits),
            confidence=np.where(keeps, before.confidence, now.confidence),
            exit=np.where(keeps, before.exit, place),
            score=np.where(keeps, before.score, now.score),
        )

    def _decided(self, number: int, before: Seen | None, seen: Seen) -> NDArray[np.bool_]:
        differs, same = self._rules[number - 1]
        if number == len(self.table):
            return np.ones(len(seen.logits), dtype=bool)
        stops = differs(seen.score)
        if before is None or self._alike[number - 1]:
            return stops
        return np.where(seen.said == before.said, same(seen.score), stops)


def _rule(
    edges: Sequence[float], stops: Sequence[bool]
) -> Callable[[NDArray[np.float64]], NDArray[np.bool_]]:
    """Scores -> who stops: `stops[i]` from edge i - 1 up to, not including, edge i."""
    limits, decided = np.asarray(edges, dtype=np.float64), np.asarray(stops, dtype=bool)
    if decided.tolist() == [False, True]:  # a threshold, by quicker calls
        limit = limits[0]
        return lambda score: ~(score < limit)
    return lambda score: decided[limits.searchsorted(score, side="right")]
