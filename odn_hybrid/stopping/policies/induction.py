"""Backward induction on recorded inputs: continuation values by regression, and where to stop.

The forward pass as an optimal stopping problem: stopping at exit k costs its loss and the price of its
depth, and the Snell envelope is the better of stopping and of the expected cost of going on. Expectations are
regressed on a score of the exits so far, after Longstaff and Schwartz 2001 (doi 10.1093/rfs/14.1.113): the
losses that the inputs really met under the decisions taken later, not their regressed values. Proofs, and
what errors of the regression cost: theory/stopping_problem.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from odn_hybrid.errors import ConfigError, InputError

__all__ = ["Induction", "backward_induction", "crossing", "halfway", "one_step_ahead"]

SHAPES = ("crossing", "isotonic", "binned")
Floats = NDArray[np.float64]
Rule = tuple[tuple[float, ...], tuple[bool, ...]]


@dataclass(frozen=True)
class Induction:
    """What the induction found.

    Attributes:
        rules: per exit and group: ascending edges of the score, and one decision (stop?) more than edges.
        value: mean loss plus price of depth over the inputs, under these rules.
        taken: exit at which each input stops, (n,) from 1.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import backward_induction
        >>> found = backward_induction(np.zeros((50, 2)), np.ones((50, 2)), [1.0, 2.0], price=0.1)
        >>> len(found.rules), found.taken[:3].tolist()
        (2, [1, 1, 1])
    """

    rules: tuple[tuple[Rule, ...], ...]
    value: float
    taken: NDArray[np.int64]


def backward_induction(
    losses: ArrayLike,
    scores: ArrayLike,
    costs: ArrayLike,
    *,
    price: float,
    groups: ArrayLike | None = None,
    shape: str = "crossing",
    least: int = 20,
    caution: float = 1.0,
) -> Induction:
    """Stopping rules of smallest mean loss plus `price` times cost, on the inputs given.

    Args:
        losses: (n, K) what stopping at each exit loses, e.g. 1 where its answer is wrong.
        scores: (n, K) what may be looked at, at each exit; larger should mean readier to stop.
        costs: (K,) cumulative cost to each exit, not falling.
        price: loss that one unit of cost is worth, 0 or more.
        groups: (n, K) small integers from 0, also seen at each exit; each has rules of its own.
        shape: "crossing" stops above one edge, the one that saves most; "isotonic" takes stopping losses and
            continuation values to fall with the score and may stop in several intervals; "binned" takes means
            of neighbouring inputs and assumes nothing.
        least: inputs that one interval of a rule must hold ("isotonic" and "binned").
        caution: standard errors by which stopping must save more than nothing ("crossing"): 1 for losses that
            are right or wrong, 0 for expected losses, which hold no such noise.

    Raises `InputError` for arrays that do not fit or are not finite, `ConfigError` for another `shape`
    or a negative price.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import backward_induction
        >>> losses = np.array([[0.0, 0.0], [1.0, 0.0]] * 50)  # half of the inputs gain by going on
        >>> scores = np.array([[0.9, 0.9], [0.1, 0.9]] * 50)
        >>> backward_induction(losses, scores, [1.0, 2.0], price=0.1).taken[:4].tolist()
        [1, 2, 1, 2]
    """
    problem = _checked(losses, scores, costs, price, groups, shape)
    return _induced(problem, shape, least, caution, nearest=False)


def one_step_ahead(
    losses: ArrayLike,
    scores: ArrayLike,
    costs: ArrayLike,
    *,
    price: float,
    groups: ArrayLike | None = None,
    shape: str = "crossing",
    least: int = 20,
    caution: float = 1.0,
) -> Induction:
    """Stop where stopping is no worse than stopping at the next exit.

    `losses`, `scores`, `costs`, `price`, `groups`, `shape`, `least`, `caution`: see `backward_induction`;
    `InputError` and `ConfigError` as there. Optimal in the monotone case (Chow, Robbins and Siegmund 1971):
    where it once calls for stopping it always would. Else it stops too early, at a plateau before a late
    gain.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import one_step_ahead
        >>> losses, scores = np.array([[0.0, 0.0], [1.0, 0.0]] * 50), np.array([[0.9, 0.9], [0.1, 0.9]] * 50)
        >>> one_step_ahead(losses, scores, [1.0, 2.0], price=0.1).taken[:4].tolist()
        [1, 2, 1, 2]
    """
    problem = _checked(losses, scores, costs, price, groups, shape)
    return _induced(problem, shape, least, caution, nearest=True)


def _induced(
    problem: tuple[Floats, Floats, Floats, NDArray[np.int64]],
    shape: str,
    least: int,
    caution: float,
    *,
    nearest: bool,
) -> Induction:
    """From the last exit back: stopping against the next exit (`nearest`) or what was decided later."""
    lost, seen, paid, kind = problem
    n, exits = lost.shape
    total = lost + paid
    value = total[:, -1].copy()
    taken = np.full(n, exits, dtype=np.int64)
    rules: list[tuple[Rule, ...]] = [_always(int(kind.max()) + 1)]
    for exit in range(exits - 2, -1, -1):
        later = total[:, exit + 1] if nearest else value
        rule = partial(_rule, shape=shape, least=least, caution=caution)
        row, stops = _decided(seen[:, exit], kind[:, exit], total[:, exit], later, kind.max(), rule)
        rules.append(row)
        value = np.where(stops, total[:, exit], value)
        taken = np.where(stops, exit + 1, taken)
    return Induction(tuple(reversed(rules)), float(value.mean()), taken)


def _decided(
    score: Floats,
    kind: NDArray[np.int64],
    now: Floats,
    later: Floats,
    kinds: int,
    find: Callable[[Floats, Floats, Floats], Rule],
) -> tuple[tuple[Rule, ...], NDArray[np.bool_]]:
    """The rules of one exit, and what they say of each input."""
    row: list[Rule] = []
    stops = np.zeros(len(score), dtype=bool)
    for group in range(int(kinds) + 1):
        mine = kind == group
        rule = find(score[mine], now[mine], later[mine])
        row.append(rule)
        edges, decisions = np.asarray(rule[0]), np.asarray(rule[1])
        stops[mine] = decisions[np.searchsorted(edges, score[mine], side="right")]
    return tuple(row), stops


def _rule(score: Floats, now: Floats, later: Floats, shape: str, least: int, caution: float) -> Rule:
    """Where on the axis of the score stopping costs no more, in expectation, than going on."""
    if len(score) == 0:
        return ((), (False,))
    if shape == "crossing":
        return crossing(score, now - later, caution)
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    weights = counts.astype(np.float64)
    stop_now = np.bincount(place, now) / weights
    go_on = np.bincount(place, later) / weights
    if shape == "isotonic":
        gain = _falling(stop_now, weights) - _falling(go_on, weights)
    else:
        gain = _smoothed(stop_now - go_on, weights, least)
    return _intervals(values, counts, gain <= 0, least)


def crossing(score: Floats, gain: Floats, caution: float = 1.0) -> Rule:
    """The one edge above which stopping saves most in all, less `caution` standard errors of what it saves.

    `gain` (n,): what stopping costs more than going on. Without caution, at a price near 0, an edge is taken
    wherever the inputs at hand happen to lose less early.
    """
    order = np.argsort(-score, kind="stable")
    values, ordered = score[order], gain[order]
    total, square = np.cumsum(ordered), np.cumsum(ordered**2)
    cautious = total + caution * np.sqrt(square)
    last = np.append(values[1:] != values[:-1], True)  # inputs of one score stop together
    cautious = np.where(last, cautious, np.inf)
    best = int(cautious.argmin())
    if not cautious[best] < 0:
        # What costs nothing either way (a free copy of an exit) stops.
        return ((), (not gain.any(),))
    if best == len(values) - 1:
        return ((), (True,))
    # Half way to the next lower score: an input on an edge could go either way by its last digit.
    return ((halfway(values[best + 1], values[best]),), (False, True))


def halfway(low: float, high: float) -> float:
    """An edge between two scores, above the lower one."""
    middle = (float(low) + float(high)) / 2
    return middle if low < middle <= high else float(high)


def _falling(means: Floats, weights: Floats) -> Floats:
    return np.asarray(isotonic_regression(means, weights=weights, increasing=False).x)


def _smoothed(means: Floats, weights: Floats, least: int) -> Floats:
    """Means over neighbouring values that together hold some share of the inputs."""
    size = max(least, int(np.sqrt(weights.sum()) * 2))
    block = np.minimum((np.cumsum(weights) - weights) // size, max(0, weights.sum() // size - 1)).astype(int)
    block = np.unique(block, return_inverse=True)[1]  # heavily tied scores leave numbers out
    sums = np.bincount(block, means * weights) / np.bincount(block, weights)
    return np.asarray(sums[block])


def _intervals(values: Floats, counts: NDArray[np.int64], stop: NDArray[np.bool_], least: int) -> Rule:
    """Runs of equal decisions; one of too few inputs joins its left neighbour (the first its right)."""
    starts = [0, *(np.flatnonzero(stop[1:] != stop[:-1]) + 1)]
    runs = [[start, bool(stop[start])] for start in starts]
    sizes = [int(part.sum()) for part in np.split(counts, starts[1:])]
    kept: list[list[int | bool]] = []
    for run, size in zip(runs, sizes, strict=True):
        small = size < least and len(runs) > 1
        if kept and (small or kept[-1][1] == run[1]):
            continue
        if not kept and small:
            continue
        kept.append(run)
    if not kept:
        kept = [runs[int(np.argmax(sizes))]]
    edges = tuple(halfway(values[int(start) - 1], values[int(start)]) for start, _ in kept[1:])
    return edges, tuple(bool(decision) for _, decision in kept)


def _always(groups: int) -> tuple[Rule, ...]:
    return (((), (True,)),) * groups


def _checked(
    losses: ArrayLike,
    scores: ArrayLike,
    costs: ArrayLike,
    price: float,
    groups: ArrayLike | None,
    shape: str,
) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    lost, seen, paid = (np.asarray(array, dtype=np.float64) for array in (losses, scores, costs))
    if lost.ndim != 2 or lost.size == 0 or seen.shape != lost.shape:
        raise InputError(
            f"losses {lost.shape} and scores {seen.shape} must both be (inputs, exits), not empty"
        )
    if not (np.isfinite(lost).all() and np.isfinite(seen).all()):
        raise InputError("losses or scores are NaN or infinite; mend the model or its inputs first")
    if paid.shape != lost.shape[1:] or not np.isfinite(paid).all() or (np.diff(paid) < 0).any():
        raise InputError(
            f"costs are {paid.tolist()}; expected {lost.shape[1]} finite numbers that never fall"
        )
    if not (np.isfinite(price) and price >= 0):
        raise ConfigError(f"price is {price!r}; it must be 0 or more")
    if shape not in SHAPES:
        raise ConfigError(f"shape is {shape!r}; choose one of {', '.join(SHAPES)}")
    kind = np.zeros(lost.shape, dtype=np.int64) if groups is None else np.asarray(groups).astype(np.int64)
    if kind.shape != lost.shape or kind.min() < 0:
        raise InputError(f"groups have shape {kind.shape}; expected integers from 0, {lost.shape}")
    return lost, seen, price * paid, kind
