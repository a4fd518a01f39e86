"""Optimal stopping of a diffusion: the Hamilton-Jacobi-Bellman variational inequality on a grid.

The limit of many thin layers. A state X of one or two dimensions (scores of an input) moves with depth t as
dX = drift dt + diffusion dW; going on costs `cost` per depth, stopping costs `stopping`. The least expected
cost

    V = min over stopping times T of E[ integral of e^(-r t) cost dt + e^(-r T) stopping(X_T) ]

solves min(V_t + L V - r V + cost, stopping - V) = 0, where L is the diffusion's generator; where
V = stopping it is best to stop, and the edge of that region is the free boundary. Statements and proofs:
theory/continuous_depth.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.limits.generator import EDGES, Level, check_hold
from odn_hybrid.stopping.limits.obstacle import (
    Obstacle,
    ObstacleSolution,
    boundary_points,
    policy_iteration,
    projected_relaxation,
)

__all__ = ["StoppingProblem", "StoppingSolution", "solve_stopping"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Field = float | ArrayLike | Callable[[float], ArrayLike]
Edges = str | Sequence[tuple[str, str]]
METHODS = ("policy", "relaxation")
SCHEMES = ("implicit", "crank-nicolson")
DAMPED = 2  # first intervals of Crank-Nicolson, each taken as two implicit halves (Rannacher 1984)


@dataclass(frozen=True, kw_only=True)
class StoppingProblem:
    """What is stopped, and what it costs.

    A field is a number, an array on the grid, or a function from depth to one of these.

    Attributes:
        axes: one or two strictly ascending grids (at least 3 points each, any steps): `(x,)` or `(x, y)`.
            Arrays on the grid have the shape (len(x),) or (len(x), len(y)); `mesh()` gives such.
        drift: per axis, a field: mean change of the state per depth.
        diffusion: per axis, a field, 0 or more: standard deviation of the change per square root of depth.
        stopping: a field: what stopping costs (with `maximise`: what it earns).
        cost: a field, 0 or more: running cost per depth.
        discount: rate r per depth, 0 or more.
        correlation: a field between -1 and 1, of the two axes' noise; it needs grids of equal steps, in
            about the ratio of the diffusions.
        edges: what happens at the ends of the axes, "reflect" or "stop", for all or per axis as
            `((low, high), ...)`. "reflect": the state is kept inside, dV/dx = 0. "stop": it must stop there
            and pays `stopping`; that is also how to give the value at an edge.
        maximise: look for the largest E[e^(-r T) stopping(X_T) - running cost] instead.

    Raises `InputError` and `ConfigError` as `solve_stopping` says.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import StoppingProblem
        >>> x = np.linspace(0.0, 1.0, 41)  # the probability that the first of two answers is right
        >>> wrong = np.minimum(x, 1 - x)  # what stopping costs: the chance of a mistake
        >>> problem = StoppingProblem(axes=(x,), drift=(0.0,), diffusion=(0.2,), stopping=wrong, cost=0.1)
        >>> problem.kinds()
        (('reflect', 'reflect'),)
    """

    axes: Sequence[ArrayLike]
    drift: Sequence[Field]
    diffusion: Sequence[Field]
    stopping: Field
    cost: Field = 0.0
    discount: float = 0.0
    correlation: Field = 0.0
    edges: Edges = "reflect"
    maximise: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.axes, Sequence) or len(self.axes) not in (1, 2):
            raise InputError("axes must be one or two grids in a tuple: (x,) or (x, y)")
        for name in ("drift", "diffusion"):
            entries = getattr(self, name)
            if not isinstance(entries, Sequence) or len(entries) != len(self.axes):
                raise InputError(f"{name} must be a tuple with one entry for each of {len(self.axes)} axes")
        for x in self.grids():
            if x.ndim != 1 or len(x) < 3 or not np.isfinite(x).all() or (np.diff(x) <= 0).any():
                raise InputError(
                    "each axis must be 3 or more finite numbers that strictly ascend; sort the grid"
                )
        if not (
            isinstance(self.discount, float | int) and math.isfinite(self.discount) and self.discount >= 0
        ):
            raise ConfigError(f"discount is {self.discount!r}; it must be 0 or more")
        try:
            known = len(self.kinds()) == len(self.axes) and {k for pair in self.kinds() for k in pair} <= set(
                EDGES
            )
        except (TypeError, ValueError):
            known = False
        if not known:
            raise ConfigError(
                f'edges are {self.edges!r}; give "reflect" or "stop", or a pair of them per axis'
            )

    def grids(self) -> tuple[Floats, ...]:
        """The axes as arrays."""
        try:
            return tuple(np.asarray(axis, dtype=np.float64) for axis in self.axes)
        except (TypeError, ValueError):
            raise InputError("axes hold something that is not a number") from None

    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Per axis, the kinds of the lower and the upper edge."""
        if isinstance(self.edges, str):
            return ((self.edges, self.edges),) * len(self.axes)
        return tuple((str(low), str(high)) for low, high in self.edges)

    def mesh(self) -> tuple[Floats, ...]:
        """Per axis, its coordinate at every point of the grid."""
        return tuple(np.meshgrid(*self.grids(), indexing="ij"))


@dataclass(frozen=True)
class StoppingSolution:
    """The value and where to stop. With depths, all have one entry per depth in front, shallowest first.

    Attributes:
        axes: the grids, (g,) points of each axis.
        depths: (T,) ascending, or None for a stationary problem.
        value: the grid's shape, (g, ...), or (T, g, ...) with depths.
        stop: (g, ...) or (T, g, ...) bool, like `value`: the stopping region, where stopping is no worse than
            going on.
        boundary: per depth (one entry if stationary) the points where the free boundary cuts the lines of the
            grid, between its points: (m,) ascending in one dimension, (m, 2) in two.
        iterations: policies evaluated on this grid, or sweeps of relaxation, over all depths.
        residual: largest |min(cost of going on, cost of stopping) - value| of the discrete equations, in
            units of the value.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import StoppingProblem, solve_stopping
        >>> x = np.linspace(0.0, 1.0, 41)
        >>> problem = StoppingProblem(
        ...     axes=(x,), drift=(0.0,), diffusion=(0.2,), stopping=np.minimum(x, 1 - x), cost=0.1
        ... )
        >>> found = solve_stopping(problem, [0.0, 0.5, 1.0])
        >>> found.value.shape, bool(found.stop[0].all()), bool(found.stop[-1].all())
        ((3, 41), False, True)
    """

    axes: tuple[Floats, ...]
    depths: Floats | None
    value: Floats
    stop: Bools
    boundary: tuple[Floats, ...]
    iterations: int
    residual: float


def solve_stopping(
    problem: StoppingProblem,
    depths: ArrayLike | None = None,
    *,
    method: str = "policy",
    scheme: str = "implicit",
    relaxation: float = 1.5,
) -> StoppingSolution:
    """Value, stopping region and free boundary of `problem`.

    Args:
        problem: the problem.
        depths: (T,) strictly ascending depths at which to solve; at the last one all must stop. None: no
            depth ends, nothing depends on depth (stationary).
        method: "policy" (Howard's policy iteration) or "relaxation" (projected over-relaxation, a check).
        scheme: over depth, "implicit" (first order, monotone for any step) or "crank-nicolson" (second order
            where the value is smooth; its first two intervals are implicit, after Rannacher; not monotone for
            steps much longer than (cell / diffusion)^2, where the boundary is only good to a cell or so).
        relaxation: factor of over-relaxation, between 0 and 2.

    Raises `InputError` for fields that are not finite or do not fit the grid, negative cost or diffusion,
    grids or depths that do not ascend, and drift that the grid cannot hold; `ConfigError` for unknown choices
    and for a stationary problem without cost, discount or edge that stops, which has no unique solution.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import StoppingProblem, solve_stopping
        >>> x = np.linspace(0.0, 1.0, 401)
        >>> problem = StoppingProblem(
        ...     axes=(x,), drift=(0.0,), diffusion=(0.2,), stopping=np.minimum(x, 1 - x), cost=0.1
        ... )
        >>> found = solve_stopping(problem)  # go on within diffusion^2 / (2 cost) = 0.2 of the middle
        >>> found.boundary[0].round(2).tolist()
        [0.3, 0.7]
    """
    for name, choice, known in (("method", method, METHODS), ("scheme", scheme, SCHEMES)):
        if choice not in known:
            raise ConfigError(f"{name} is {choice!r}; choose one of {', '.join(known)}")
    solver = _Solver(problem, method, relaxation)
    if depths is None:
        return solver.stationary()
    times = np.asarray(depths, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise InputError("depths must be 2 or more finite numbers that strictly ascend")
    return solver.over(times, scheme)


class _Solver:
    """Solves one problem; `sign` is -1 where it maximises."""

    def __init__(self, problem: StoppingProblem, method: str, relaxation: float) -> None:
        self.problem, self.method, self.relaxation = problem, method, relaxation
        self.sign = -1.0 if problem.maximise else 1.0
        self.axes = problem.grids()
        self.shape = tuple(len(x) for x in self.axes)
        spots = np.indices(self.shape)
        colour = sum(2**axis * (spots[axis].ravel() % 2) for axis in range(len(self.shape)))
        self.colours = [np.flatnonzero(colour == c) for c in range(2 ** len(self.shape))]
        self.fixed: tuple[Level, Any] | None = None

    def level(self, depth: float) -> tuple[Level, Any]:
        """The problem at a depth and its operator; made once where nothing depends on depth."""
        if self.fixed is not None:
            return self.fixed
        p = self.problem
        fields = [*p.drift, *p.diffusion, p.correlation, p.cost, p.stopping]
        n = len(self.axes)
        names = ["drift"] * n + ["diffusion"] * n + ["correlation", "cost", "stopping"]
        found = [self._field(f, depth, name) for f, name in zip(fields, names, strict=True)]
        drift, diffusion, (correlation, cost, stopping) = tuple(found[:n]), tuple(found[n:-3]), found[-3:]
        if np.abs(correlation).max() > 1:
            raise InputError(f"correlation reaches {np.abs(correlation).max():.3g}; it lies between -1 and 1")
        level = Level(self.axes, p.kinds(), drift, diffusion, correlation, cost, self.sign * stopping)
        check_hold(self.axes, drift, diffusion, level.kinds)
        made = (level, level.operator(p.discount))
        if not any(callable(f) for f in fields):
            self.fixed = made
        return made

    def _field(self, field: Field, depth: float, name: str) -> Floats:
        given = field(depth) if callable(field) else field
        try:
            array = np.broadcast_to(np.asarray(given, dtype=np.float64), self.shape)
        except (TypeError, ValueError):
            shape = np.shape(given)
            raise InputError(f"{name} has shape {shape}; the grid has {self.shape}") from None
        if not np.isfinite(array).all():
            raise InputError(f"{name} is NaN or infinite somewhere on the grid; end the grid before that")
        if name in ("diffusion", "cost") and array.min() < 0:
            raise InputError(f"{name} is {float(array.min()):.3g} somewhere; it must be 0 or more")
        return array

    def stationary(self) -> StoppingSolution:
        """No last depth."""
        level, operator = self.level(0.0)
        forced = level.forced()
        if not (self.problem.discount > 0 or level.cost.any() or forced.any()):
            raise ConfigError(
                "cost and discount are 0 and no depth or edge ends the wait: every constant below the least"
                ' cost of stopping is a solution; give a cost, a discount, depths, or edges "stop"'
            )
        obstacle = Obstacle(operator, level.cost.ravel(), level.stopping.ravel(), forced)
        found = self._solved(obstacle, lambda: self._coarse_start(level))
        return self._packed(None, [(level, found)], found.iterations, obstacle.residual(found.value))

    def _coarse_start(self, level: Level) -> Bools | None:
        """The policy of a grid with every other point: a boundary moves but a cell or two in each round."""
        coarse = level.coarser()
        if coarse is None:
            return None
        problem = Obstacle(
            coarse.operator(self.problem.discount),
            coarse.cost.ravel(),
            coarse.stopping.ravel(),
            coarse.forced(),
        )
        stop = policy_iteration(problem, start=self._coarse_start(coarse)).stop.reshape(coarse.cost.shape)
        for axis, (x, few) in enumerate(zip(level.axes, coarse.axes, strict=True)):
            below = np.searchsorted(few, x, side="right") - 1
            above = np.searchsorted(few, x, side="left")
            stop = stop.take(below, axis) & stop.take(above, axis)
        return stop.ravel()

    def over(self, depths: Floats, scheme: str) -> StoppingSolution:
        """From the last depth back."""
        level, operator = self.level(float(depths[-1]))
        value = level.stopping.ravel().copy()
        none = np.zeros(len(value), dtype=bool)
        last = ObstacleSolution(value, ~none, none, 0)
        levels, residual, iterations = [(level, last)], 0.0, 0
        for k in range(len(depths) - 2, -1, -1):
            early = len(depths) - 2 - k < DAMPED and scheme == "crank-nicolson"
            cuts = np.linspace(depths[k + 1], depths[k], 3 if early else 2)
            weight = 0.5 if scheme == "crank-nicolson" and not early else 1.0
            for later, depth in pairwise(cuts):
                before = (level, last, operator)
                level, operator = self.level(float(depth))
                last, missed = self._step(level, operator, before, float(later - depth), weight)
                residual, iterations = max(residual, missed), iterations + last.iterations
            levels.append((level, last))
        return self._packed(depths, levels[::-1], iterations, residual)

    def _step(
        self,
        level: Level,
        operator: Any,
        before: tuple[Level, ObstacleSolution, Any],
        step: float,
        weight: float,
    ) -> tuple[ObstacleSolution, float]:
        """One step back by the theta scheme; `weight` 1 is implicit, 0.5 Crank-Nicolson."""
        old_level, old, old_operator = before
        source = old.value / step + weight * level.cost.ravel()
        if weight < 1:
            source += (1 - weight) * (old_level.cost.ravel() - old_operator @ old.value)
        matrix = sparse.csr_array(sparse.eye_array(len(source)) / step + weight * operator)
        obstacle = Obstacle(matrix, source, level.stopping.ravel(), level.forced())

        def start() -> Bools:
            if old.iterations:
                return old.stop
            return obstacle.going_on(old.value) > obstacle.obstacle  # ties go on

        found = self._solved(obstacle, start)
        return found, obstacle.residual(found.value)

    def _solved(self, obstacle: Obstacle, start: Callable[[], Bools | None]) -> ObstacleSolution:
        if self.method == "policy":
            return policy_iteration(obstacle, start=start())
        return projected_relaxation(obstacle, self.colours, relaxation=self.relaxation)

    def _packed(
        self,
        depths: Floats | None,
        levels: list[tuple[Level, ObstacleSolution]],
        iterations: int,
        residual: float,
    ) -> StoppingSolution:
        boundary = tuple(
            boundary_points(
                self.axes,
                (level.stopping.ravel() - found.value).reshape(self.shape),
                ~found.stop.reshape(self.shape),
                found.strict.reshape(self.shape),
            )
            for level, found in levels
        )
        value = np.stack([self.sign * found.value.reshape(self.shape) for _, found in levels])
        stop = np.stack([found.stop.reshape(self.shape) for _, found in levels])
        if depths is None:
            value, stop = value[0], stop[0]
        return StoppingSolution(self.axes, depths, value, stop, boundary, iterations, residual)
