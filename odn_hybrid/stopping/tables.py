"""Halting tables: per exit, where on the axis of a score inputs stop. Every policy compiles to one.

A table needs nothing but the exits' logits, looks at no later exit, and is a few numbers per exit, so a
runtime can hold it on its device and decide there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.calibration import as_temperatures
from odn_hybrid.stopping.scores import SCORES, agreement, readiness

__all__ = ["HaltingTable"]

Rows = tuple[tuple[tuple[float, ...], tuple[bool, ...]], ...]


@dataclass(frozen=True)
class HaltingTable:
    """Where inputs stop.

    Attributes:
        score: what is looked at, one of `SCORES`; larger means readier to stop.
        temperatures: one per exit, above 0; logits are divided by them.
        rows: per exit, for inputs whose answer differs from the previous exit's and for those whose answer is
            the same: ascending edges e_1 < ... < e_m of the score, and m + 1 decisions; decision j holds for
            scores in [e_j, e_(j+1)). The last exit stops whatever its row says.
        recall: answer with the most confident exit seen so far, and score that one.
    """

    score: str
    temperatures: tuple[float, ...]
    rows: tuple[Rows, ...]
    recall: bool = False

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ConfigError(f"unknown score {self.score!r}; known: {', '.join(SCORES)}")
        as_temperatures(self.temperatures, len(self.rows))
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
        table = np.asarray(logits, dtype=np.float64)
        if table.ndim != 3 or table.shape[1] != len(self):
            raise InputError(f"logits have shape {table.shape}; the table is for {len(self)} exits")
        scores = readiness(table, self.score, self.temperatures, recall=self.recall)
        same = agreement(table)
        stops = np.zeros(scores.shape, dtype=bool)
        for exit, row in enumerate(self.rows):
            for group, (edges, decisions) in enumerate(row):
                place = np.searchsorted(np.asarray(edges), scores[:, exit], side="right")
                mine = same[:, exit] == bool(group)
                stops[mine, exit] = np.asarray(decisions)[place[mine]]
        stops[:, -1] = True
        taken = stops.argmax(axis=1)
        answers = taken
        if self.recall:
            sure = readiness(table, "confidence", self.temperatures)
            sure = np.where(np.arange(len(self)) <= taken[:, None], sure, -1.0)
            answers = sure.argmax(axis=1)
        return taken.astype(np.int64) + 1, answers.astype(np.int64) + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [[{"edges": list(edges), "stops": list(stops)} for edges, stops in row] for row in self.rows]
        return {
            "score": self.score,
            "temperatures": list(self.temperatures),
            "rows": rows,
            "recall": self.recall,
        }

    @classmethod
    def from_dict(cls, values: Any) -> HaltingTable:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        try:
            if set(values) != {"score", "temperatures", "rows", "recall"}:
                raise ValueError(f"fields {sorted(values)}")
            rows = tuple(
                tuple((_numbers(part["edges"]), _decisions(part["stops"])) for part in row)
                for row in values["rows"]
            )
            recall = values["recall"]
            if not isinstance(recall, bool):
                raise TypeError(f"recall {recall!r}")
            return cls(str(values["score"]), _numbers(values["temperatures"]), rows, recall)
        except (TypeError, ValueError, KeyError, InputError) as error:
            raise ConfigError(f"not a halting table: {error}") from None

    @classmethod
    def of_thresholds(
        cls, thresholds: Sequence[float], temperatures: Sequence[float], score: str = "confidence"
    ) -> HaltingTable:
        """Stop at the first exit whose score reaches its threshold."""
        rows = tuple((((float(t),), (False, True)),) * 2 for t in thresholds)
        return cls(score, tuple(float(t) for t in temperatures), rows)


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
