"""Gradient-boosted trees as an offline reference: how much a table of one score leaves undone.

For reports and studies only. Trees look at everything the exits so far have said, so they show what the cheap
scores of the halting tables miss; they do not compile to tables and no runtime evaluates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_logits, is_whole
from odn_hybrid.stopping.policies.calibration import Calibration
from odn_hybrid.stopping.policies.scores import agreement, readiness, streak

__all__ = ["FEATURES", "TreeInduction", "exit_features", "tree_induction"]

#: What `exit_features` gives of each exit, in this order.
FEATURES = ("confidence", "margin", "entropy", "agreement", "streak")
# Small trees and few: what is regressed is mostly the noise of single right and wrong answers.
ROUNDS = 80  # of boosting at most; how many are used is chosen by what their decisions cost
TREES: dict[str, Any] = {"learning_rate": 0.1, "max_leaf_nodes": 4, "early_stopping": False}
PARTS = 3  # of the inputs outside a fold, each decided by trees grown on the others
LEAST_LEAF = 20  # inputs
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Boosted:
    """The first `rounds` rounds of boosted `trees`; with 0 rounds, the `mean`."""

    trees: Any
    mean: float
    rounds: int

    def gain(self, known: Floats) -> Floats:
        """What stopping costs more than going on, (n, features so far) -> (n,)."""
        if self.rounds == 0:
            return np.full(len(known), self.mean)
        stages = self.trees.staged_predict(known)
        return np.asarray(next(islice(stages, self.rounds - 1, None)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class TreeInduction:
    """What the induction found.

    Attributes:
        value: mean loss plus price of depth over the inputs, each decided by trees that were grown without
            its losses: not optimistic.
        deviation: standard error of `value`.
        taken: exit at which each input stops under these decisions, (n,) from 1.
        trees: per exit but the last, regressors of what stopping costs more than going on; all vote in
            `decide`.
        shape: exits K and features F that `decide` takes.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import tree_induction
        >>> losses = np.array([[0.0, 0.0], [1.0, 0.0]] * 200)  # half of the inputs gain by going on
        >>> features = (1 - losses)[:, :, None]  # one feature, which says which half
        >>> found = tree_induction(losses, features, [1.0, 2.0], price=0.1, folds=2)
        >>> found.decide([[[1.0], [1.0]], [[0.0], [1.0]]]).tolist()
        [1, 2]
    """

    value: float
    deviation: float
    taken: Rows
    trees: tuple[tuple[_Boosted, ...], ...]
    shape: tuple[int, int]

    def decide(self, features: ArrayLike) -> Rows:
        """Where each of other inputs stops, features (n, K, F) -> (n,) from 1 to K, by the mean of all trees.

        For inputs that the trees were grown on, use `taken`: this would be optimistic. Raises `InputError`
        for features that do not fit.
        """
        table = _as_features(features)
        if table.shape[1:] != self.shape:
            raise InputError(
                f"features have shape {table.shape}; expected (inputs, {self.shape[0]}, "
                f"{self.shape[1]}) as the trees were grown on"
            )
        seen = table.reshape(len(table), -1)
        stops = np.ones((len(table), self.shape[0]), dtype=bool)
        with _one_thread():
            for exit, grown in enumerate(self.trees):
                stops[:, exit] = _mean_gain(grown, seen[:, : (exit + 1) * self.shape[1]]) <= 0
        return np.asarray(stops.argmax(axis=1) + 1, dtype=np.int64)


def exit_features(logits: ArrayLike, calibration: Calibration) -> Floats:
    """What each exit says, as `FEATURES` names it: `logits` (n, K, C) -> (n, K, 5).

    Confidence, margin and entropy are those of the calibrated probabilities (`SCORES`, `calibration` of the K
    exits); agreement with the exit before and the streak are those of the answers, which are the raw logits'.
    Raises `InputError` for logits that do not fit.

    Example:
        >>> from odn_hybrid.stopping import Calibration, exit_features
        >>> logits = [[[1.0, 0.0], [3.0, 0.0]]]  # one image, two exits, two classes
        >>> exit_features(logits, Calibration.of_temperatures([1.0, 1.0])).round(2)[0, :, [0, 4]].tolist()
        [[0.73, 0.95], [1.0, 2.0]]
    """
    table = as_logits(logits, 3)
    scores = [readiness(table, score, calibration) for score in FEATURES[:3]]
    return np.stack([*scores, agreement(table), streak(table)], axis=2).astype(np.float64)


def tree_induction(
    losses: ArrayLike,
    features: ArrayLike,
    costs: ArrayLike,
    *,
    price: float,
    folds: int = 5,
    seed: int = 0,
) -> TreeInduction:
    """Backward induction with boosted trees on the features of all exits so far; an offline reference.

    Longstaff and Schwartz 2001 (doi 10.1093/rfs/14.1.113), as `backward_induction`: from the last exit back,
    what stopping costs more than going on is regressed on what has been seen, where going on costs what the
    input really lost under the decisions taken later. An input stops where that is not above 0.

    Cross-fitted twice. Each fold of the inputs is decided by trees grown on the others only, so `value` is an
    honest figure for policies grown on that many inputs. Of those others, each of three parts is decided by
    trees grown on the other two, so that going on is not priced by trees that know the losses; and boosting
    goes on for as many rounds as make these decisions cheapest. The folds depend on the inputs and the seed,
    not on the order in which inputs come.

    No bound: where one score says all there is to know, a table, which has less to learn, is nearer the best
    value; the trees' loss from noise grows with the number of exits and shrinks with the number of inputs.

    Args:
        losses: (n, K) what stopping at each exit loses, e.g. 1 where its answer is wrong.
        features: (n, K, F) what is seen at each exit, e.g. `exit_features`.
        costs: (K,) cumulative cost to each exit, not falling.
        price: loss that one unit of cost is worth, 0 or more.
        folds: 2 or more; needs at least three times as many inputs.
        seed: of the folds.

    Runs on one thread. Raises `InputError` for arrays that do not fit, `ConfigError` for other settings.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import tree_induction
        >>> losses = np.array([[0.0, 0.0], [1.0, 0.0]] * 200)  # half of the inputs gain by going on
        >>> features = (1 - losses)[:, :, None]  # one feature, which says which half
        >>> tree_induction(losses, features, [1.0, 2.0], price=0.1, folds=2).taken[:4].tolist()
        [1, 2, 1, 2]
    """
    seen, total = _checked(losses, features, costs, price, folds, seed)
    n, exits = total.shape
    size = seen.shape[1] // exits
    order = np.lexsort(np.concatenate([seen, total], axis=1).T)
    seen, total = seen[order], total[order]
    place = np.random.default_rng(int(seed)).permutation(n)
    fold, part = place % int(folds), place // int(folds) % PARTS
    met, taken = np.empty(n), np.empty(n, dtype=np.int64)
    grown: list[list[_Boosted]] = [[] for _ in range(exits - 1)]
    with _one_thread():
        for number in range(int(folds)):
            held = np.flatnonzero(fold == number)
            parts = [np.flatnonzero((fold != number) & (part == other)) for other in range(PARTS)]
            trees, paid, where = _walk(seen, total, size, held, parts)
            met[order[held]], taken[order[held]] = paid[held], where[held]
            for exit, voters in enumerate(trees):
                grown[exit].extend(voters)
    deviation = float(met.std() / np.sqrt(n))
    shape = (exits, size)
    return TreeInduction(float(met.mean()), deviation, taken, tuple(tuple(row) for row in grown), shape)


def _walk(
    seen: Floats, total: Floats, size: int, held: Rows, parts: Sequence[Rows]
) -> tuple[list[list[_Boosted]], Floats, Rows]:
    """From the last exit back without the losses of `held`: trees per exit, and what each input comes to."""
    n, exits = total.shape
    later = total[:, -1].copy()
    taken = np.full(n, exits, dtype=np.int64)
    trees: list[list[_Boosted]] = []
    for exit in range(exits - 2, -1, -1):
        now, known = total[:, exit], seen[:, : (exit + 1) * size]
        voters, said = _grown(known, now - later, parts)
        gain = np.empty(n)
        gain[np.concatenate(parts)] = said
        gain[held] = _mean_gain(voters, known[held])
        later = np.where(gain <= 0, now, later)
        taken = np.where(gain <= 0, exit + 1, taken)
        trees.append(voters)
    return trees[::-1], later, taken


def _grown(known: Floats, gain: Floats, parts: Sequence[Rows]) -> tuple[list[_Boosted], Floats]:
    """Regressors of `gain`, for each part one grown on the others; and what it says of its part, in order.

    All with the number of rounds whose decisions on these parts would have cost least: 0 decides all inputs
    alike.
    """
    # Loaded here: the rest of `stopping` does without scikit-learn, which takes a second to import.
    from sklearn.ensemble import HistGradientBoostingRegressor

    grown, said = [], []
    for number, judged in enumerate(parts):
        rows = np.concatenate([part for other, part in enumerate(parts) if other != number])
        leaf = max(LEAST_LEAF, int(4 * np.sqrt(len(rows))))
        trees = HistGradientBoostingRegressor(max_iter=ROUNDS, min_samples_leaf=leaf, random_state=0, **TREES)
        one = _Boosted(trees.fit(known[rows], gain[rows]), float(gain[rows].mean()), ROUNDS)
        grown.append(one)
        said.append(np.stack([np.full(len(judged), one.mean), *trees.staged_predict(known[judged])]))
    told = np.concatenate(said, axis=1)
    rounds = int(np.where(told <= 0, gain[np.concatenate(parts)], 0.0).sum(axis=1).argmin())
    return [replace(one, rounds=rounds) for one in grown], told[rounds]


def _mean_gain(trees: Sequence[_Boosted], known: Floats) -> Floats:
    return np.asarray(sum(one.gain(known) for one in trees) / len(trees), dtype=np.float64)


def _one_thread() -> Any:
    # A dependency of scikit-learn's.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(limits=1)


def _as_features(features: ArrayLike) -> Floats:
    try:
        table = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("features are not an array of numbers; expected (inputs, exits, features)") from None
    if table.ndim != 3 or table.size == 0:
        raise InputError(f"features have shape {table.shape}; expected (inputs, exits, features), not empty")
    if not np.isfinite(table).all():
        raise InputError("features are NaN or infinite; mend the model or its inputs first")
    return table


def _checked(
    losses: ArrayLike, features: ArrayLike, costs: ArrayLike, price: float, folds: int, seed: int
) -> tuple[Floats, Floats]:
    """Features side by side (n, K F), and loss plus price of depth (n, K)."""
    table = _as_features(features)
    lost, paid = np.asarray(losses, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if lost.shape != table.shape[:2]:
        raise InputError(f"losses have shape {lost.shape}; expected {table.shape[:2]} as the features")
    if not np.isfinite(lost).all():
        raise InputError("losses are NaN or infinite; mend the model or its inputs first")
    if paid.shape != lost.shape[1:] or not np.isfinite(paid).all() or (np.diff(paid) < 0).any():
        raise InputError(
            f"costs are {paid.tolist()}; expected {lost.shape[1]} finite numbers that never fall"
        )
    if not (np.isfinite(price) and price >= 0):
        raise ConfigError(f"price is {price!r}; it must be 0 or more")
    for name, value, least in (("folds", folds, 2), ("seed", seed, 0)):
        if not is_whole(value) or value < least:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number, {least} or more")
    if len(lost) < PARTS * folds:
        raise InputError(
            f"{len(lost)} inputs are too few to grow trees on some and judge them on others in {folds} "
            f"folds; give at least {PARTS * int(folds)}"
        )
    return table.reshape(len(table), -1), lost + price * paid
