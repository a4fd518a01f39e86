"""What policies come to on recorded outputs: exits taken, accuracy against cost, the best in a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_labels, as_logits
from odn_hybrid.stopping.policies.calibration import Calibration, fit_calibration
from odn_hybrid.stopping.policies.families import FITTED, Member, policy_path, relative_costs
from odn_hybrid.stopping.policies.scores import agreement, readiness
from odn_hybrid.stopping.promises.intervals import wilson

__all__ = ["curve", "evaluate", "held_out_path", "outcomes", "within_cost"]

FOLDS = 5
Exits = NDArray[np.int64]


def outcomes(members: Sequence[Member], logits: ArrayLike) -> tuple[Exits, Exits]:
    """Where inputs stop and which exit answers, (m, n) each, for m policies and `logits` (n, K, C).

    `members`: the policies, e.g. of `policy_path`. Raises `InputError` for logits that are not of as many
    exits as the policies.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import outcomes, policy_path
        >>> logits = np.random.default_rng(0).normal(size=(50, 3, 5))
        >>> path = policy_path("fixed", logits, logits[:, 2].argmax(1), [1.0, 2.0, 3.0])
        >>> taken, answered = outcomes(path, logits)
        >>> taken[:, 0].tolist()
        [3, 2, 1]
    """
    table = as_logits(logits, 3)
    same = agreement(table)
    seen: dict[tuple[str, int], NDArray[np.float64]] = {}

    def scores(member: Member, score: str) -> NDArray[np.float64]:
        # A path's members share one score: the logits are gone through once, not once a member.
        calibration = member.table.calibration
        key = (score, id(calibration))
        if key not in seen:
            seen[key] = readiness(table, score, calibration)
        return seen[key]

    found = []
    for member in members:
        if len(member.table) != table.shape[1]:
            raise InputError(f"logits have shape {table.shape}; the policy is for {len(member.table)} exits")
        sure = scores(member, "confidence") if member.table.recall else None
        found.append(member.table.decide_scores(scores(member, member.table.score), same, sure))
    return np.stack([taken for taken, _ in found]), np.stack([answered for _, answered in found])


def held_out_path(
    family: str,
    logits: ArrayLike,
    labels: ArrayLike,
    costs: ArrayLike,
    *,
    calibration: Calibration | None = None,
    recall: bool = False,
    count: int = 48,
) -> tuple[list[Member], Exits, Exits]:
    """`policy_path`, and what its members would do on the same inputs had they not been fitted on them.

    Returns the path, and (m, n) exits taken and exits that answer. Families with one number per policy decide
    as they are; of those that are regressed (`FITTED`), each input is decided by policies fitted on the other
    four fifths, for else a policy's loss on its own inputs looks better than it is. The folds depend on the
    inputs' logits, not on their order.

    `family`, `logits`, `labels`, `costs`, `calibration`, `recall`, `count`: see `policy_path`; `InputError`
    and `ConfigError` as there.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import held_out_path
        >>> logits = np.random.default_rng(0).normal(size=(100, 3, 5))
        >>> labels, costs = logits[:, 2].argmax(1), [1.0, 2.0, 3.0]
        >>> path, taken, answered = held_out_path("confidence", logits, labels, costs, count=4)
        >>> len(path) == len(taken)
        True
    """
    table = as_logits(logits, 3)
    wanted = as_labels(labels, table.shape[0], table.shape[2])
    scale = fit_calibration(table, wanted) if calibration is None else calibration
    path = policy_path(family, table, wanted, costs, calibration=scale, recall=recall, count=count)
    taken, answered = outcomes(path, table)
    folds = min(FOLDS, len(table))
    if family not in FITTED or folds < 2:
        return path, taken, answered
    place = _folds(table, folds)
    for fold in range(folds):
        mine = place == fold
        others = policy_path(
            family, table[~mine], wanted[~mine], costs, calibration=scale, recall=recall,
            prices=[member.setting for member in path],
        )  # fmt: skip
        taken[:, mine], answered[:, mine] = outcomes(others, table[mine])
    return path, taken, answered


def _folds(table: NDArray[np.float64], folds: int) -> NDArray[np.int64]:
    ends = np.concatenate([table[:, 0], table[:, -1]], axis=1)
    rank = np.empty(len(table), dtype=np.int64)
    rank[np.lexsort(ends.T)] = np.arange(len(table))
    return rank % folds


def within_cost(mean_costs: ArrayLike, worth: ArrayLike, limit: float) -> int:
    """Index of the policy of highest `worth` among those whose mean cost is at most `limit`.

    `mean_costs` and `worth` (accuracy, say): (m,) each. Of equally good ones the cheapest. Raises
    `ConfigError` if even the cheapest costs more, saying what that is.

    Example:
        >>> from odn_hybrid.stopping import within_cost
        >>> within_cost([10.0, 15.0, 20.0], [0.80, 0.88, 0.90], limit=16.0)
        1
    """
    price, value = np.asarray(mean_costs, dtype=np.float64), np.asarray(worth, dtype=np.float64)
    fitting = np.flatnonzero(price <= limit * (1 + 1e-12))
    if not fitting.size:
        raise ConfigError(f"no policy has a mean cost of {limit:g}; the cheapest has {price.min():g}")
    return int(min(fitting, key=lambda m: (-value[m], price[m])))


def evaluate(
    exits_taken: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike,
    costs: ArrayLike,
    answered: ArrayLike | None = None,
) -> dict[str, Any]:
    """What a policy's choices come to: `accuracy`, `mean_cost` (unit of `costs`), `histogram` (K counts).

    `exits_taken` (n,) from 1 to K, `logits` (n, K, C), `labels` (n,), `costs` (K,) cumulative to each exit;
    `answered` (n,): exits whose answers were given, with recall. Raises `InputError` for arrays that do not
    fit each other.

    Example:
        >>> from odn_hybrid.stopping import evaluate
        >>> logits = [[[1.0, 0.0], [0.0, 1.0]]] * 2  # two images, two exits, two classes
        >>> evaluate([1, 2], logits, [0, 1], [10.0, 20.0])["mean_cost"]
        15.0
    """
    scores = as_logits(logits, 3)
    n, exits, classes = scores.shape
    wanted, price = as_labels(labels, n, classes), np.asarray(costs, dtype=np.float64)
    taken = _as_exits(exits_taken, "exits_taken", n, exits)
    gave = taken if answered is None else _as_exits(answered, "answered", n, exits)
    if price.shape != (exits,) or not np.isfinite(price).all():
        raise InputError(f"costs are {costs!r}; expected {exits} finite numbers, one per exit")
    return {
        "accuracy": float((scores[np.arange(n), gave - 1].argmax(axis=1) == wanted).mean()),
        "mean_cost": float(price[taken - 1].mean()),
        "histogram": np.bincount(taken - 1, minlength=exits).tolist(),
    }


def _as_exits(exits: ArrayLike, name: str, n: int, count: int) -> Exits:
    array = np.asarray(exits)
    fits = array.shape == (n,) and np.issubdtype(array.dtype, np.integer)
    if not fits or array.min() < 1 or array.max() > count:
        raise InputError(f"{name} must be {n} whole numbers from 1 to {count}; got shape {array.shape}")
    return array.astype(np.int64)


def curve(
    path: Sequence[Member], logits: ArrayLike, labels: ArrayLike, costs: ArrayLike
) -> list[dict[str, Any]]:
    """Accuracy against mean cost along a path, dearest first.

    One row per different point: `setting`, `mean_cost` (unit of `costs`), `share` of the last exit's cost,
    and `accuracy` {value, n, low, high} with Wilson's 95 % interval.

    `path`: policies, e.g. of `policy_path`; `logits` (n, K, C), `labels` (n,), `costs` (K,) cumulative.
    Raises `InputError` for arrays that do not fit.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import curve, policy_path
        >>> logits = np.random.default_rng(0).normal(size=(50, 3, 5))
        >>> labels = logits[:, 2].argmax(1)
        >>> path = policy_path("fixed", logits, labels, [1.0, 2.0, 3.0])
        >>> [row["mean_cost"] for row in curve(path, logits, labels, [1.0, 2.0, 3.0])]
        [3.0, 2.0, 1.0]
    """
    table = as_logits(logits, 3)
    n, exits, classes = table.shape
    wanted, price = as_labels(labels, n, classes), np.asarray(costs, dtype=np.float64)
    right = table.argmax(axis=2) == wanted[:, None]
    share = relative_costs(costs, exits)
    taken, answered = outcomes(path, table)
    rows: list[dict[str, Any]] = []
    for member, stop, gave in zip(path, taken, answered, strict=True):
        correct = int(right[np.arange(n), gave - 1].sum())
        low, high = wilson(correct, n)
        row = {
            "setting": member.setting,
            "mean_cost": float(price[stop - 1].mean()),
            "share": float(share[stop - 1].mean()),
            "accuracy": {"value": correct / n, "n": n, "low": float(low), "high": float(high)},
        }
        if not rows or {**rows[-1], "setting": 0} != {**row, "setting": 0}:
            rows.append(row)
    return sorted(rows, key=lambda row: -float(row["mean_cost"]))
