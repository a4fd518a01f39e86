"""Families of halting policies: each a path of policies from strict (dear, safe) to loose (cheap), as tables.

Thresholds on a score, agreement of exits in a row, a fixed depth, one-step look-ahead and the Snell policy
share one interface: `policy_path` fits a family on recorded exit outputs, and whoever needs one policy takes
the loosest that meets a promise (certificates) or the most accurate that meets a mean cost (`within_cost`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.calibration import as_temperatures, fit_temperature
from odn_hybrid.stopping.checks import as_labels, as_logits
from odn_hybrid.stopping.induction import backward_induction, one_step_ahead
from odn_hybrid.stopping.scores import agreement, readiness
from odn_hybrid.stopping.tables import HaltingTable

__all__ = ["FAMILIES", "Member", "oracle", "policy_path", "within_cost"]

#: The families, and what their one setting means.
FAMILIES = {
    "confidence": "least calibrated probability of the answer",
    "margin": "least difference of the two largest probabilities",
    "entropy": "least 1 - entropy / log C",
    "patience": "exits in a row that must agree",
    "fixed": "the exit, the same for every input",
    "lookahead": "price: loss that the full cost is worth",
    "snell": "price: loss that the full cost is worth",
}
NEVER = 2.0  # no score reaches it
PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 3.0, 47)])


@dataclass(frozen=True)
class Member:
    """One policy of a family.

    Attributes:
        family, setting: which, and its one setting; see `FAMILIES`.
        table: what it compiles to.
    """

    family: str
    setting: float
    table: HaltingTable

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"family": self.family, "setting": self.setting, "table": self.table.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> Member:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        if not isinstance(values, dict) or set(values) != {"family", "setting", "table"}:
            raise ConfigError(f"not a halting policy: {values!r}")
        if values["family"] not in FAMILIES or not isinstance(values["setting"], (int, float)):
            raise ConfigError(f"not a halting policy: family {values['family']!r}")
        table = HaltingTable.from_dict(values["table"])
        return cls(values["family"], float(values["setting"]), table)


def policy_path(
    family: str,
    logits: ArrayLike,
    labels: ArrayLike,
    costs: ArrayLike,
    *,
    temperatures: ArrayLike | None = None,
    recall: bool = False,
    count: int = 48,
) -> list[Member]:
    """The members of a family fitted on recorded outputs, from strict to loose.

    Args:
        family: a name of `FAMILIES`.
        logits, labels, costs: (n, K, C), (n,) and (K,) cumulative costs, rising; of the calibration split.
        temperatures: (K,); fitted here if not given.
        recall: answer with the most confident exit seen so far.
        count: members at most (thresholds and prices).

    Raises `ConfigError` for an unknown family, `InputError` for arrays that do not fit.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown policy {family!r}; known: {', '.join(FAMILIES)}")
    table = as_logits(logits, 3)
    n, exits, classes = table.shape
    wanted = as_labels(labels, n, classes)
    price = _relative(costs, exits)
    if temperatures is None:
        temperatures = [fit_temperature(table[:, k], wanted) for k in range(exits)]
    scale = tuple(float(t) for t in as_temperatures(temperatures, exits))
    if family == "fixed":
        return [Member(family, exit, _fixed(exit, scale)) for exit in range(exits, 0, -1)]
    if family == "patience":
        return [
            Member(family, p, HaltingTable.of_thresholds([p - 0.5] * exits, scale, "streak"))
            for p in range(exits, 0, -1)
        ]
    if family in ("lookahead", "snell"):
        return _priced(family, table, wanted, price, scale, recall, count)
    return _thresholds(family, table, scale, recall, count)


def _relative(costs: ArrayLike, exits: int) -> NDArray[np.float64]:
    """Costs as shares of the last exit's."""
    paid = np.asarray(costs, dtype=np.float64)
    rising = paid.shape == (exits,) and np.isfinite(paid).all() and (np.diff(paid) >= 0).all()
    if not rising or paid[-1] <= 0:
        raise InputError(
            f"costs are {costs!r}; expected {exits} finite numbers that never fall, the last above 0"
        )
    return paid / paid[-1]


def _fixed(exit: int, scale: tuple[float, ...]) -> HaltingTable:
    rows = tuple((((), (k == exit,)),) * 2 for k in range(1, len(scale) + 1))
    return HaltingTable("confidence", scale, rows)


def _thresholds(
    family: str, table: NDArray[np.float64], scale: tuple[float, ...], recall: bool, count: int
) -> list[Member]:
    """One threshold for all exits, at evenly spaced quantiles of the scores of all but the last."""
    exits = table.shape[1]
    early = readiness(table, family, scale, recall=recall)[:, :-1].ravel()
    levels = np.array([])
    if early.size:
        levels = np.unique(np.quantile(early, np.linspace(0, 1, count - 1), method="inverted_cdf"))[::-1]
    return [
        Member(family, float(t), _recalling(HaltingTable.of_thresholds([t] * exits, scale, family), recall))
        for t in (NEVER, *levels)
    ]


def _priced(
    family: str,
    table: NDArray[np.float64],
    wanted: NDArray[np.int64],
    costs: NDArray[np.float64],
    scale: tuple[float, ...],
    recall: bool,
    count: int,
) -> list[Member]:
    scores = readiness(table, "confidence", scale, recall=recall)
    losses = _losses(table, wanted, scale, recall)
    groups = agreement(table).astype(np.int64)
    solve = backward_induction if family == "snell" else one_step_ahead
    prices = PRICES if count >= len(PRICES) else PRICES[np.linspace(0, len(PRICES) - 1, count).astype(int)]
    members = [Member(family, 0.0, _recalling(_fixed(len(scale), scale), recall))]  # never stops early
    for price in prices[1:]:
        found = solve(losses, scores, costs, price=float(price), groups=groups)
        rows = tuple(rules if len(rules) == 2 else rules * 2 for rules in found.rules)
        members.append(Member(family, float(price), HaltingTable("confidence", scale, rows, recall)))
    return members


def _losses(
    table: NDArray[np.float64], wanted: NDArray[np.int64], scale: tuple[float, ...], recall: bool
) -> NDArray[np.float64]:
    """1 where the answer given on stopping at an exit is wrong, (n, K)."""
    wrong = (table.argmax(axis=2) != wanted[:, None]).astype(np.float64)
    if not recall:
        return wrong
    sure = readiness(table, "confidence", scale)
    best = np.zeros(sure.shape, dtype=np.int64)
    for exit in range(1, sure.shape[1]):
        better = sure[:, exit] > np.take_along_axis(sure, best[:, exit - 1 : exit], 1)[:, 0]
        best[:, exit] = np.where(better, exit, best[:, exit - 1])
    return np.asarray(np.take_along_axis(wrong, best, 1))


def _recalling(table: HaltingTable, recall: bool) -> HaltingTable:
    return HaltingTable(table.score, table.temperatures, table.rows, recall)


def within_cost(
    path: Sequence[Member], logits: ArrayLike, labels: ArrayLike, costs: ArrayLike, mean_cost: float
) -> Member:
    """The most accurate member whose mean cost on these inputs is at most `mean_cost` (unit of `costs`).

    Raises `ConfigError` if even the cheapest costs more, saying what that is.
    """
    table, paid = as_logits(logits, 3), np.asarray(costs, dtype=np.float64)
    wanted = as_labels(labels, table.shape[0], table.shape[2])
    right = table.argmax(axis=2) == wanted[:, None]
    best: tuple[float, float, Member] | None = None
    cheapest = np.inf
    for member in path:
        taken, answered = member.table.decide(table)
        cost = float(paid[taken - 1].mean())
        accuracy = float(right[np.arange(len(taken)), answered - 1].mean())
        cheapest = min(cheapest, cost)
        if cost <= mean_cost and (best is None or (accuracy, -cost) > best[:2]):
            best = (accuracy, -cost, member)
    if best is None:
        raise ConfigError(f"no policy has a mean cost of {mean_cost:g}; the cheapest has {cheapest:g}")
    return best[2]


def oracle(logits: ArrayLike, labels: ArrayLike, costs: ArrayLike, *, price: float) -> NDArray[np.int64]:
    """Hindsight: the exit of smallest loss plus price, knowing the label, (n,) from 1; for reports only."""
    table = as_logits(logits, 3)
    wanted = as_labels(labels, table.shape[0], table.shape[2])
    paid = _relative(costs, table.shape[1])
    wrong = table.argmax(axis=2) != wanted[:, None]
    return np.asarray((wrong + price * paid).argmin(axis=1) + 1, dtype=np.int64)
