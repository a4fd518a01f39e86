"""Discrete obstacle problems: min(source - A v, obstacle - v) = 0 for an M-matrix A.

This is optimal stopping of a Markov chain: `A` is discount less generator (or a step of an implicit scheme),
`source` the running cost, `obstacle` the cost of stopping. `policy_iteration` is Howard's method (1960), the
one in use; `projected_relaxation` (Cryer 1971) is an independent check. Proofs: theory/continuous_depth.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

from odn_hybrid.errors import ConfigError

__all__ = ["Obstacle", "ObstacleSolution", "boundary_points", "policy_iteration", "projected_relaxation"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
TIE = 1e-13  # relative: a smaller advantage is rounding


@dataclass(frozen=True)
class Obstacle:
    """The problem min(source - matrix v, obstacle - v) = 0, and v = obstacle where stopping is forced.

    Attributes:
        matrix: (N, N) sparse, off-diagonal entries at most 0, row sums at least 0.
        source: (N,) running cost of a state.
        obstacle: (N,) cost of stopping there.
        forced: (N,) where the state may not go on. States that never move and pay no discount (zero
            diagonal) stop anyhow: going on there never ends.
    """

    matrix: Any
    source: Floats
    obstacle: Floats
    forced: Bools

    def held(self) -> Bools:
        """Where going on is no choice: forced, or a state without rate out and without discount."""
        return self.forced | (self.matrix.diagonal() <= 0)

    def going_on(self, value: Floats) -> Floats:
        """(N,) cost of one more move and of `value` after it: what the row says of its own state."""
        diagonal = self.matrix.diagonal()
        safe = np.where(diagonal > 0, diagonal, 1.0)
        moved = (self.source - self.matrix @ value) / safe + value
        return np.where(self.held(), np.inf, moved)

    def residual(self, value: Floats) -> float:
        """Largest |min(cost of going on, obstacle) - value|, in units of the value."""
        return float(np.abs(np.minimum(self.going_on(value), self.obstacle) - value).max())


@dataclass(frozen=True)
class ObstacleSolution:
    """What a method found.

    Attributes:
        value: (N,).
        stop: (N,) bool, the policy.
        strict: (N,) bool, where stopping is better than going on by more than rounding, and not forced.
        iterations: policies evaluated, or sweeps.
    """

    value: Floats
    stop: Bools
    strict: Bools
    iterations: int


def policy_iteration(
    problem: Obstacle, *, start: Bools | None = None, limit: int | None = None
) -> ObstacleSolution:
    """Howard's policy iteration: evaluate a policy exactly, change it where that is strictly better.

    Values fall from policy to policy, so no policy comes twice. With a non-negative `source` no policy after
    a proper one goes on for ever (theory/continuous_depth.md), also without discount.

    Args:
        problem: the obstacle problem.
        start: (N,) bool, where the first policy stops; everywhere by default. States from which it would
            never stop are made to stop. The nearer the solution the fewer rounds: boundaries move a cell
            or two in each.
        limit: most policies to evaluate, 10 N + 100 by default.

    Raises `ConfigError` when `limit` policies were not enough.
    """
    obstacle, held = problem.obstacle, problem.held()
    stop = np.ones_like(held) if start is None else start | held
    stop = stop | _never_stops(problem.matrix, stop)
    limit = 10 * len(obstacle) + 100 if limit is None else limit
    for rounds in range(1, limit + 1):
        value = _evaluated(problem, stop)
        onward = problem.going_on(value)
        margin = TIE * (np.abs(value) + np.abs(obstacle))
        wants_on, wants_stop = onward < obstacle - margin, value > obstacle + margin
        changed = np.where(stop, wants_on, wants_stop)
        if not changed.any():
            strict = stop & ~held & (onward > obstacle + margin)
            return ObstacleSolution(value, stop, strict, rounds)
        stop = stop ^ changed
    raise ConfigError(f"{limit} policies were not enough; raise limit or start nearer the solution")


def projected_relaxation(
    problem: Obstacle,
    colours: Sequence[NDArray[np.int64]],
    *,
    relaxation: float = 1.5,
    tolerance: float = 1e-12,
    limit: int = 100_000,
) -> ObstacleSolution:
    """Projected successive over-relaxation, from the obstacle down: slow and independent of the other method.

    Args:
        problem: the obstacle problem.
        colours: indices of the states, in groups without links inside a group; each group moves at once.
        relaxation: between 0 and 2; up to 1 convergence is certain, above it is for symmetric problems.
        tolerance: largest change in a sweep, relative to the largest value, at which to end.
        limit: most sweeps.

    Raises `ConfigError` for another `relaxation` and when `limit` sweeps were not enough.
    """
    if not 0 < relaxation < 2:
        raise ConfigError(f"relaxation is {relaxation!r}; it must lie between 0 and 2")
    held = problem.held()
    value = problem.obstacle.copy()
    diagonal = problem.matrix.diagonal()
    groups = [(group[~held[group]],) for group in colours]
    rows = [(group, problem.matrix[group], diagonal[group]) for (group,) in groups if len(group)]
    aim = tolerance * max(1.0, float(np.abs(value).max()))
    for sweep in range(1, limit + 1):
        largest = 0.0
        for group, matrix, weight in rows:
            moved = value[group] + relaxation * (problem.source[group] - matrix @ value) / weight
            moved = np.minimum(moved, problem.obstacle[group])
            largest = max(largest, float(np.abs(moved - value[group]).max()))
            value[group] = moved
        if largest <= aim:
            stop = value >= problem.obstacle
            return ObstacleSolution(
                value, stop, stop & ~held & (problem.going_on(value) > problem.obstacle), sweep
            )
    raise ConfigError(f"{limit} sweeps were not enough (last change {largest:.3g}); raise limit or tolerance")


def _evaluated(problem: Obstacle, stop: Bools) -> Floats:
    """Value of the policy: the obstacle where it stops, the linear equation elsewhere."""
    value = np.where(stop, problem.obstacle, 0.0)
    going = np.flatnonzero(~stop)
    if len(going):
        rows = problem.matrix[going]
        value[going] = spsolve(rows[:, going].tocsc(), problem.source[going] - rows @ value)
    return value


def _never_stops(matrix: Any, stop: Bools) -> Bools:
    """States from which this policy neither stops nor is discounted: the equation has no solution there."""
    links = sparse.csr_array(matrix)
    ends = stop | (np.asarray(links.sum(axis=1)).ravel() > 1e-12 * np.abs(links.diagonal()))
    links = (links != 0).astype(np.int64)
    while True:
        reached = ends | (links @ ends.astype(np.int64) > 0)
        if (reached == ends).all():
            return ~ends
        ends = reached


def boundary_points(axes: Sequence[Floats], gap: Floats, going: Bools, strict: Bools) -> Floats:
    """Where the free boundary cuts the lines of the grid, to second order in the steps.

    Between a state that stops and one that goes on, gap = obstacle - value starts like a parabola. The
    discrete one lies lower, but its vertex is right to second order (theory/continuous_depth.md): so the
    boundary is put where the *slope* of the gap extrapolates to 0. That is smooth fit; where it fails (a
    kinked obstacle) the point stays within a cell.

    Args:
        axes: one or two ascending grids.
        gap: the grid's shape, 0 or more.
        going: the grid's shape, where the policy goes on.
        strict: the grid's shape, where it is strictly better to stop.

    Returns (m,) ascending in one dimension, (m, 2) in two (lines of the first axis, then of the second).
    """
    if len(axes) == 1:
        return np.sort(np.asarray(_cuts(axes[0], gap, going, strict), dtype=np.float64))
    points: list[tuple[float, float]] = []
    for j, y in enumerate(axes[1]):
        points += [(x, float(y)) for x in _cuts(axes[0], gap[:, j], going[:, j], strict[:, j])]
    for i, x in enumerate(axes[0]):
        points += [(float(x), y) for y in _cuts(axes[1], gap[i], going[i], strict[i])]
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _cuts(x: Floats, gap: Floats, going: Bools, strict: Bools) -> list[float]:
    """Cuts along one line, from either side."""
    found = [_vertex(x[i:], gap[i:], going[i:]) for i in np.flatnonzero(strict[:-1] & going[1:])]
    back = [slice(i, None, -1) for i in np.flatnonzero(going[:-1] & strict[1:]) + 1]
    return found + [_vertex(x[part], gap[part], going[part]) for part in back]


def _vertex(x: Floats, gap: Floats, going: Bools) -> float:
    """Where the slope of `gap` meets 0; x[0] stops, x[1] goes on, and so on away from the boundary."""
    many = int(np.argmin(np.append(going[1:5], False)))  # states that go on, and slopes up to the last
    places = (x[:many] + x[1 : many + 1]) / 2
    slopes = np.diff(gap[: many + 1]) / np.diff(x[: many + 1])
    slopes = slopes * np.sign(x[1] - x[0])
    if many < 2 or not (np.diff(slopes) > 0).all():
        return float(places[0])
    # the place as a polynomial of the slope, at slope 0 (Lagrange)
    cut = 0.0
    for k in range(many):
        others = np.delete(slopes, k)
        cut += places[k] * float(np.prod(others / (others - slopes[k])))
    low, high = sorted((2 * x[0] - x[1], x[1]))
    return float(np.clip(cut, low, high))
