"""A diffusion on a grid: finite differences whose coefficients are rates of a Markov chain.

Every off-diagonal entry is a rate (0 or more) and rows sum to 0, so the discrete problem is itself a stopping
problem, of a chain that jumps between neighbours: it is monotone and stable whatever the steps, as Barles and
Souganidis 1991 ask (theory/continuous_depth.md). Drift is differenced centrally (second order) where that
leaves rates positive, else upwind (first order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from odn_hybrid.errors import InputError

__all__ = ["EDGES", "Level", "check_hold", "generator_matrix"]

EDGES = ("reflect", "stop")
HOLD = 50  # a drift that piles the state up within 1/50 of the axis at a reflecting edge is refused
COARSEST = 24  # cells of an axis below which a start from a coarser grid gains nothing
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rates = tuple[Floats, Floats]


def generator_matrix(
    axes: Sequence[Floats],
    drift: Sequence[Floats],
    diffusion: Sequence[Floats],
    correlation: Floats,
    edges: Sequence[tuple[str, str]],
) -> Any:
    """Rates of the chain that stands for dX = drift dt + diffusion dW: (N, N), sparse, rows sum to 0.

    Args:
        axes: one or two ascending grids; N is the product of their sizes, the last axis runs fastest.
        drift: per axis, the grid's shape, state per depth.
        diffusion: per axis, the grid's shape, 0 or more, state per square root of depth.
        correlation: the grid's shape, of the two noises; it needs equal steps on each axis.
        edges: per axis, what happens at its lower and upper end. "reflect": the state stays inside, dV/dx = 0
            there (a drift that points out is dropped, one that points in is kept, so that an edge without
            diffusion is treated as the equation says). "stop": the row is left 0, its value is given.

    Raises `InputError` for a correlation that no rates on these steps can have.
    """
    shape = tuple(len(axis) for axis in axes)
    cross = _cross_rates(axes, diffusion, correlation)
    index = np.arange(int(np.prod(shape))).reshape(shape)
    entries = []
    for axis, grid in enumerate(axes):
        b, v, q = (np.moveaxis(a, axis, 0) for a in (drift[axis], diffusion[axis] ** 2, cross))
        down, up = _axis_rates(grid, b, v, q)
        _check_correlation(down, up, axes, q)
        here = np.moveaxis(index, axis, 0)
        entries += [(here[1:], here[:-1], down[1:]), (here[:-1], here[1:], up[:-1])]
    if len(axes) == 2 and cross.any():
        entries += _diagonal_entries(index, cross, correlation)
    return _assembled(entries, held_states(shape, edges))


def held_states(shape: tuple[int, ...], edges: Sequence[tuple[str, str]]) -> Bools:
    """(N,) where the value is given: on edges of kind "stop"."""
    held = np.zeros(shape, dtype=bool)
    for axis, kinds in enumerate(edges):
        for end, kind in zip((0, -1), kinds, strict=True):
            if kind == "stop":
                np.moveaxis(held, axis, 0)[end] = True
    return held.ravel()


def check_hold(
    axes: Sequence[Floats],
    drift: Sequence[Floats],
    diffusion: Sequence[Floats],
    edges: Sequence[tuple[str, str]],
) -> None:
    """`InputError` where drift presses the state against a reflecting edge; arguments as `generator_matrix`.

    That is explosive as far as a grid can tell: the outward drift is so much stronger than the diffusion that
    the state would sit within a cell, or a fiftieth of the axis, of an edge that is only there because a
    grid must end.
    """
    for axis, (x, kinds) in enumerate(zip(axes, edges, strict=True)):
        pulls, spreads = np.moveaxis(drift[axis], axis, 0), np.moveaxis(diffusion[axis], axis, 0)
        for end, sign, step in ((0, -1.0, x[1] - x[0]), (-1, 1.0, x[-1] - x[-2])):
            pull, variance = sign * pulls[end], spreads[end] ** 2
            bad = pull * max(step, (x[-1] - x[0]) / HOLD) > variance
            if kinds[end] == "reflect" and bad.any():
                raise InputError(
                    f"drift {float(pull[bad].max()):.3g} points out of the reflecting edge {x[end]:.3g} of"
                    f" axis {axis}: more than diffusion {float(variance[bad].min()) ** 0.5:.3g} holds (is it"
                    ' explosive?); widen the axis to where drift points in, or use edges "stop"'
                )


def _axis_rates(x: Floats, drift: Floats, variance: Floats, cross: Floats) -> Rates:
    """Rates down and up along the first axis of (m, ...) arrays, less what the diagonal moves already do."""
    steps = np.diff(x).reshape(-1, *[1] * (drift.ndim - 1))
    low, high = steps[:-1], steps[1:]
    down, up = np.zeros_like(drift), np.zeros_like(drift)
    inner = slice(1, -1)
    b, v, q = drift[inner], variance[inner], cross[inner]
    plain_down, plain_up = v / (low * (low + high)) - q, v / (high * (low + high)) - q
    central_down = plain_down - b * high / (low * (low + high))
    central_up = plain_up + b * low / (high * (low + high))
    central = (central_down >= 0) & (central_up >= 0)
    down[inner] = np.where(central, central_down, plain_down + np.maximum(-b, 0) / low)
    up[inner] = np.where(central, central_up, plain_up + np.maximum(b, 0) / high)
    up[0] = variance[0] / steps[0] ** 2 + np.maximum(drift[0], 0) / steps[0]
    down[-1] = variance[-1] / steps[-1] ** 2 + np.maximum(-drift[-1], 0) / steps[-1]
    return down, up


def _cross_rates(axes: Sequence[Floats], diffusion: Sequence[Floats], correlation: Floats) -> Floats:
    """Rate of each of the two diagonal moves; none on edges, where a reflected value has no mixed slope."""
    cross = np.zeros_like(correlation)
    if len(axes) == 1 or not correlation.any():
        return cross
    steps = [np.diff(axis) for axis in axes]
    if any(np.ptp(step) > 1e-9 * step.mean() for step in steps):
        raise InputError("correlated axes need grids of equal steps (numpy.linspace); these are not")
    inner = (slice(1, -1), slice(1, -1))
    rate = np.abs(correlation) * diffusion[0] * diffusion[1] / (2 * steps[0][0] * steps[1][0])
    cross[inner] = rate[inner]
    return cross


def _diagonal_entries(
    index: NDArray[np.int64], cross: Floats, correlation: Floats
) -> list[tuple[Any, Any, Any]]:
    """Moves along the diagonal that the sign of the correlation names."""
    here, rate, sign = index[1:-1, 1:-1], cross[1:-1, 1:-1], correlation[1:-1, 1:-1]
    same = [(index[2:, 2:], sign > 0), (index[:-2, :-2], sign > 0)]
    opposite = [(index[2:, :-2], sign < 0), (index[:-2, 2:], sign < 0)]
    return [(here[mask], there[mask], rate[mask]) for there, mask in same + opposite]


def _assembled(entries: Sequence[tuple[Any, Any, Any]], held: NDArray[np.bool_]) -> Any:
    rows, columns, rates = (np.concatenate([np.ravel(e[k]) for e in entries]) for k in range(3))
    rates = np.where(held[rows], 0.0, rates)
    n = len(held)
    moves = sparse.csr_array(sparse.coo_array((rates, (rows, columns)), shape=(n, n)))
    return sparse.csr_array(moves - sparse.diags_array(np.asarray(moves.sum(axis=1)).ravel()))


def _check_correlation(down: Floats, up: Floats, axes: Sequence[Floats], cross: Floats) -> None:
    lowest = min(float(down.min()), float(up.min()))
    if lowest < -1e-12 * float(cross.max(initial=1.0)):
        ratio = (axes[0][1] - axes[0][0]) / (axes[1][1] - axes[1][0])
        raise InputError(
            f"no positive rates have this correlation with steps in the ratio {ratio:.3g}; it may be at most"
            " the smaller of s0 k / (s1 h) and s1 h / (s0 k) for diffusions s0, s1 and steps h, k:"
            " choose steps in the ratio of the diffusions"
        )
    np.maximum(down, 0.0, out=down)
    np.maximum(up, 0.0, out=up)


@dataclass(frozen=True)
class Level:
    """The problem at one depth, in minimising form; all arrays on the grid."""

    axes: tuple[Floats, ...]
    kinds: tuple[tuple[str, str], ...]
    drift: tuple[Floats, ...]
    diffusion: tuple[Floats, ...]
    correlation: Floats
    cost: Floats
    stopping: Floats

    def coarser(self) -> Level | None:
        """On every other point; None where that gains nothing or breaks equal steps that are needed."""
        keep = [np.unique(np.append(np.arange(0, len(x), 2), len(x) - 1)) for x in self.axes]
        odd = any(len(x) % 2 == 0 for x in self.axes)
        if max(len(k) for k in keep) <= COARSEST or min(len(k) for k in keep) < 3:
            return None
        if self.correlation.any() and odd:
            return None
        at = np.ix_(*keep)
        return Level(
            tuple(x[k] for x, k in zip(self.axes, keep, strict=True)),
            self.kinds,
            tuple(a[at] for a in self.drift),
            tuple(a[at] for a in self.diffusion),
            self.correlation[at],
            self.cost[at],
            self.stopping[at],
        )

    def operator(self, discount: float) -> Any:
        """Discount less generator: (N, N)."""
        rates = generator_matrix(self.axes, self.drift, self.diffusion, self.correlation, self.kinds)
        return sparse.csr_array(discount * sparse.eye_array(rates.shape[0]) - rates)

    def forced(self) -> Bools:
        """(N,) where the state must stop."""
        return held_states(self.cost.shape, self.kinds)
