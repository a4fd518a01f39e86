"""Families of halting policies: each a path of policies from strict (dear, safe) to loose (cheap), as tables.

Thresholds on a score, agreement of exits in a row, a fixed depth, one-step look-ahead and the Snell policy
share one interface: `policy_path` fits a family on recorded exit outputs, and whoever needs one policy takes
the loosest that meets a promise (certificates) or the most accurate that meets a mean cost (`within_cost`).
Prices and budgets: theory/depth_regularizer.md; looking ahead and recall: theory/stopping_problem.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_labels, as_logits
from odn_hybrid.stopping.policies.calibration import Calibration, fit_calibration
from odn_hybrid.stopping.policies.induction import Induction, backward_induction, halfway, one_step_ahead
from odn_hybrid.stopping.policies.recall import fit_handicaps
from odn_hybrid.stopping.policies.scores import readiness
from odn_hybrid.stopping.policies.tables import NEVER, HaltingTable

__all__ = ["FAMILIES", "FITTED", "Member", "oracle", "policy_path", "relative_costs"]

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
FITTED = ("lookahead", "snell")  # whose tables are regressed on the inputs; the others have one number each
Handicaps = tuple[float, ...] | None
LOWEST_PRICE = 1e-4
FIRST_PRICES = 8  # then prices go where the mean cost jumps
CLOSE_PRICES, CLOSE_COSTS = 1.01, 0.003  # neighbours nearer than this are not told further apart


@dataclass(frozen=True)
class Member:
    """One policy of a family.

    Attributes:
        family, setting: which, and its one setting; see `FAMILIES`.
        table: what it compiles to.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import Member, policy_path
        >>> logits = np.random.default_rng(0).normal(size=(50, 3, 5))
        >>> path = policy_path("fixed", logits, logits[:, 2].argmax(1), [1.0, 2.0, 3.0])
        >>> [member.setting for member in path]
        [3, 2, 1]
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
        if isinstance(values, dict) and values.get("kind") == "confidence":
            values = _before_tables(values)
        if not isinstance(values, dict) or set(values) != {"family", "setting", "table"}:
            raise ConfigError(f"not a halting policy: {values!r}")
        family, setting = values["family"], values["setting"]
        if family not in FAMILIES or isinstance(setting, bool) or not isinstance(setting, (int, float)):
            raise ConfigError(f"not a halting policy: family {family!r}, setting {setting!r}")
        try:
            return cls(family, float(setting), HaltingTable.from_dict(values["table"]))
        except OverflowError:
            raise ConfigError(f"not a halting policy: setting {setting!r} is too large") from None


def _before_tables(values: dict[str, Any]) -> dict[str, Any]:
    """A policy as releases before 0.3 wrote it: thresholds on confidence, a temperature per exit."""
    try:
        calibration = Calibration.of_temperatures(values["temperatures"])
        table = HaltingTable.of_thresholds(values["thresholds"], calibration)
        setting = min(float(t) for t in values["thresholds"])
    except (InputError, KeyError, TypeError, ValueError):
        raise ConfigError(f"not a halting policy: {values!r}") from None
    return {"family": "confidence", "setting": setting, "table": table.to_dict()}


def policy_path(
    family: str,
    logits: ArrayLike,
    labels: ArrayLike,
    costs: ArrayLike,
    *,
    calibration: Calibration | None = None,
    recall: bool = False,
    count: int = 48,
    prices: Sequence[float] | None = None,
) -> list[Member]:
    """The members of a family fitted on recorded outputs, from strict to loose.

    Args:
        family: a name of `FAMILIES`.
        logits, labels, costs: (n, K, C), (n,) and (K,) cumulative costs, rising; of the calibration split.
        calibration: of the K exits; temperatures are fitted here if not given.
        recall: answers of exits passed may be kept; the handicaps of `recall.py` are fitted here.
        count: members at most (thresholds and prices).
        prices: of "lookahead" and "snell", instead of ones chosen here.

    Raises `ConfigError` for an unknown family, `InputError` for arrays that do not fit.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import FAMILIES, policy_path
        >>> "confidence" in FAMILIES
        True
        >>> logits = np.random.default_rng(0).normal(size=(200, 3, 5))
        >>> path = policy_path("confidence", logits, logits[:, 2].argmax(1), [1.0, 2.0, 3.0], count=8)
        >>> len(path), path[0].family
        (8, 'confidence')
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown policy {family!r}; known: {', '.join(FAMILIES)}")
    table = as_logits(logits, 3)
    n, exits, classes = table.shape
    wanted = as_labels(labels, n, classes)
    price = relative_costs(costs, exits)
    scale = fit_calibration(table, wanted) if calibration is None else calibration
    if len(scale) != exits:
        raise InputError(f"the calibration is of {len(scale)} exits, the logits of {exits}")
    kept = _handicaps(table, wanted, scale) if recall else None
    if family == "fixed":
        return [Member(family, exit, _fixed(exit, scale, kept)) for exit in range(exits, 0, -1)]
    if family == "patience":
        return [
            Member(family, p, HaltingTable.of_thresholds([p - 0.5] * exits, scale, "streak", recall=kept))
            for p in range(exits, 0, -1)
        ]
    if family in FITTED:
        return _priced(family, table, price, scale, kept, count, prices)
    return _thresholds(family, table, scale, kept, count)


def relative_costs(costs: ArrayLike, exits: int) -> NDArray[np.float64]:
    """Costs as shares of the last exit's."""
    paid = np.asarray(costs, dtype=np.float64)
    rising = paid.shape == (exits,) and np.isfinite(paid).all() and (np.diff(paid) >= 0).all()
    if not rising or paid[-1] <= 0:
        raise InputError(
            f"costs are {costs!r}; expected {exits} finite numbers that never fall, the last above 0"
        )
    return paid / paid[-1]


def _handicaps(
    table: NDArray[np.float64], wanted: NDArray[np.int64], scale: Calibration
) -> tuple[float, ...]:
    answers = table.argmax(axis=2)
    wrong = (answers != wanted[:, None]).astype(np.float64)
    return fit_handicaps(readiness(table, "confidence", scale), wrong, answers)


def _fixed(exit: int, scale: Calibration, recall: Handicaps) -> HaltingTable:
    rows = tuple((((), (k == exit,)),) * 2 for k in range(1, len(scale) + 1))
    return HaltingTable("confidence", scale, rows, recall)


def _thresholds(
    family: str, table: NDArray[np.float64], scale: Calibration, recall: Handicaps, count: int
) -> list[Member]:
    """One threshold for all exits, at evenly spaced quantiles of the scores of all but the last."""
    exits = table.shape[1]
    early = _fixed(exits, scale, recall).replaced(score=family).scores(table)[:, :-1].ravel()
    levels = np.array([])
    if early.size:
        there = np.unique(early)
        picked = np.unique(np.quantile(early, np.linspace(0, 1, count - 1), method="inverted_cdf"))[::-1]
        below = np.concatenate([[there[0] - 1e-6], there])[np.searchsorted(there, picked)]
        levels = np.array([halfway(low, high) for low, high in zip(below, picked, strict=True)])
    return [
        Member(family, float(t), HaltingTable.of_thresholds([t] * exits, scale, family, recall=recall))
        for t in (NEVER, *levels)
    ]


def _priced(
    family: str,
    table: NDArray[np.float64],
    costs: NDArray[np.float64],
    scale: Calibration,
    recall: Handicaps,
    count: int,
    prices: Sequence[float] | None,
) -> list[Member]:
    """Rules regressed at a price each.

    What an answer loses is taken as 1 less its calibrated probability: the expected loss, as far as the
    calibration is right. Whether it was right or wrong has the same mean and much more noise, and so have
    rules regressed on it. Inputs are told apart by their margin, which says more of what going on will bring
    than the probability of the answer does.
    """
    by_confidence = _fixed(len(scale), scale, recall)
    losses = 1.0 - by_confidence.scores(table)
    scores = by_confidence.replaced(score="margin").scores(table)
    solve = partial(
        backward_induction if family == "snell" else one_step_ahead, losses, scores, costs, caution=0.0
    )
    members = [Member(family, 0.0, by_confidence)]  # never stops early
    for price, found in _solved(solve, costs, count - 1, prices):
        rows = tuple(rules * 2 for rules in found.rules)
        members.append(Member(family, price, HaltingTable("margin", scale, rows, recall)))
    return members


def _solved(
    solve: Callable[..., Induction], costs: NDArray[np.float64], count: int, prices: Sequence[float] | None
) -> list[tuple[float, Induction]]:
    """Solutions at `prices`, or at prices found such that mean costs lie close to each other."""
    if prices is not None:
        return [(float(price), solve(price=float(price))) for price in prices if price > 0]
    steps = np.diff(costs)
    highest = 2 / float(steps[steps > 0].min(initial=1.0))  # beyond it no later exit is worth its cost
    first = np.geomspace(LOWEST_PRICE, highest, max(min(count, FIRST_PRICES), 1))
    found = {float(price): solve(price=float(price)) for price in first}
    while len(found) < count:
        known = sorted(found)
        spent = [float(costs[found[price].taken - 1].mean()) for price in known]
        gaps = [
            (one - two, a, b)
            for (one, a), (two, b) in pairwise(zip(spent, known, strict=True))
            if b / a > CLOSE_PRICES
        ]
        gap, low, high = max(gaps, default=(0.0, 0.0, 0.0))
        if gap < CLOSE_COSTS:
            break
        price = float(np.sqrt(low * high))
        found[price] = solve(price=price)
    return sorted(found.items())


def oracle(logits: ArrayLike, labels: ArrayLike, costs: ArrayLike, *, price: float) -> NDArray[np.int64]:
    """Hindsight: the exit of smallest loss plus price, knowing the label, (n,) from 1; for reports only.

    `logits` (n, K, C), `labels` (n,), `costs` (K,) cumulative and never falling; `price`: loss that the cost
    of the whole network is worth. Raises `InputError` for arrays that do not fit.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import oracle
        >>> logits = np.array([[[0.0, 1.0], [1.0, 0.0]]])  # exit 1 says class 1, exit 2 class 0
        >>> oracle(logits, [0], [1.0, 2.0], price=0.1).tolist()
        [2]
    """
    table = as_logits(logits, 3)
    wanted = as_labels(labels, table.shape[0], table.shape[2])
    paid = relative_costs(costs, table.shape[1])
    wrong = table.argmax(axis=2) != wanted[:, None]
    return np.asarray((wrong + price * paid).argmin(axis=1) + 1, dtype=np.int64)
