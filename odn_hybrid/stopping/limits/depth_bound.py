"""How deep optimal stopping can go: bounds from what one more unit can gain and what it costs.

With gains r_k (the loss falls by at most r_k from depth k to k + 1) and costs c_k of the units, no path, and
so no stopping time of any adapted problem, gains by going on from the first maximiser N of
sum_{j<k} (r_j - c_j): the smallest optimal stopping time is at most N. Proofs and checks:
`theory/finite_depth.md`; for normalised heads `theory/transformers.md`; machine-checked core
`theory/formal/`. Our construction after Qi 2025 (arXiv 2506.16862).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError

__all__ = [
    "LARGEST",
    "depth_bound",
    "geometric_depth",
    "head_drift",
    "head_lipschitz",
    "mean_excess",
    "possible_gains",
    "power_depth",
    "relative_residuals",
    "separated_depth",
    "summable_depth",
]

Floats = NDArray[np.float64]
SHARES = tuple(i / 20 for i in range(1, 20))
LARGEST = 10**12  # units: a bound beyond this says nothing


# --- what a unit can gain -----------------------------------------------------------------------------


def possible_gains(
    norms: ArrayLike,
    lipschitz: ArrayLike,
    *,
    drift: ArrayLike | None = None,
    jumps: Mapping[int, float] | None = None,
) -> Floats:
    """Most that the loss can fall over each unit, (K,): `lipschitz` * `norms` + `drift`, or the jump.

    Args:
        norms: (K,) bounds a_k on the residual norm ||f_k(x_k)||; ignored where there is a jump.
        lipschitz: Lipschitz constant of the loss after the head of exit k, (K,) or one for all.
        drift: (K,) bounds h_k on what the next exit's head does better on the same state; default 0.
        jumps: per stage transition k (the state changes shape, there is no residual), its possible gain.

    Raises `InputError` for negative or NaN values, or shapes that do not fit.
    """
    sizes = _line(norms, "norms")
    jump = dict(jumps or {})
    wrong = [k for k in jump if not 0 <= k < len(sizes)]
    if wrong:
        raise InputError(f"jumps name unit {wrong[0]!r}; units are 0 to {len(sizes) - 1}")
    sizes[list(jump)] = 0.0
    slopes = _as_long(lipschitz, len(sizes), "lipschitz")
    gains = slopes * sizes + _as_long(0.0 if drift is None else drift, len(sizes), "drift")
    for unit, gain in jump.items():
        gains[unit] = gain
    if not (gains >= 0).all() or (sizes < 0).any() or (slopes < 0).any():
        raise InputError("norms, lipschitz, drift and jumps must be 0 or more, and no NaN")
    return gains


def head_lipschitz(weight: ArrayLike, scale: ArrayLike | None = None) -> float:
    """Lipschitz constant (2-norm) of cross-entropy after a linear head, for every label.

    `weight` (C, d). The gradient at x is sum_j p_j (w_j - w_y), so its norm is at most the largest distance
    of two rows. With `scale` (d,) the head sees a layer norm of that scale, and the constant is in terms of
    what `relative_residuals` measures: sqrt(d) times the largest ||(w_i - w_j) * scale||.
    """
    rows = _matrix(weight, "weight")
    factor = 1.0
    if scale is not None:
        rows = rows * _as_long(scale, rows.shape[1], "scale")
        factor = math.sqrt(rows.shape[1])
    return factor * float(_distances(rows).max())


def head_drift(
    weight: ArrayLike, bias: ArrayLike, weight_next: ArrayLike, bias_next: ArrayLike, radius: float
) -> float:
    """Most by which cross-entropy differs between two linear heads on one state with ||x|| <= `radius`.

    Weights (C, d), biases (C,). Cross-entropy moves by at most the largest difference of two entries of the
    change of the logits, which is at most `radius` * ||dw_i - dw_j|| + |db_i - db_j|.
    """
    before, after = _matrix(weight, "weight"), _matrix(weight_next, "weight_next")
    if before.shape != after.shape:
        raise InputError(
            f"the heads' weights have shapes {before.shape} and {after.shape}; expected the same"
        )
    change, classes = after - before, len(before)
    shift = _as_long(bias_next, classes, "bias_next") - _as_long(bias, classes, "bias")
    if not radius >= 0:
        raise InputError(f"radius is {radius!r}; it must be 0 or more")
    return float((radius * _distances(change) + np.abs(shift[:, None] - shift)).max())


def relative_residuals(states: ArrayLike, *, eps: float = 1e-6) -> Floats:
    """How far each unit turns what a layer norm sees: (K + 1, ..., d) states -> (K, ...).

    2 ||P (x' - x)|| / (n(x) + n(x')), where P takes the mean over the last axis away and
    n(x) = sqrt(||P x||^2 + d `eps`). The normalised state moves by at most sqrt(d) times this.
    """
    x = np.asarray(states, dtype=np.float64)
    if x.ndim < 2 or x.shape[0] < 2 or not np.isfinite(x).all():
        raise InputError(f"states have shape {x.shape}; expected finite (depths of 2 or more, ..., channels)")
    if not eps >= 0:
        raise InputError(f"eps is {eps!r}; it must be 0 or more")
    centred = x - x.mean(-1, keepdims=True)
    sizes = np.sqrt((centred**2).sum(-1) + x.shape[-1] * eps)
    moved = np.linalg.norm(np.diff(centred, axis=0), axis=-1)
    both = sizes[1:] + sizes[:-1]
    return np.asarray(np.divide(2 * moved, both, out=np.zeros_like(moved), where=both > 0))


# --- bounds on the depth ------------------------------------------------------------------------------


def depth_bound(gains: ArrayLike, costs: ArrayLike) -> int:
    """Depth that no smallest optimal stopping time exceeds: the first maximiser of sum_{j<k} (r_j - c_j).

    The best bound that these numbers allow: the deterministic problem with exactly these gains meets it.

    Args:
        gains: (K,) r_k, most that the loss can fall from depth k to k + 1.
        costs: (K,) c_k, price of unit k in units of the loss, or one for all.

    Raises `InputError` for NaN, infinite costs, a negative cost, or shapes that do not fit.
    """
    most = _line(gains, "gains")
    paid = _as_long(costs, len(most), "costs")
    if np.isnan(most).any() or not np.isfinite(paid).all() or (paid < 0).any():
        raise InputError("gains must be numbers and costs finite numbers of 0 or more")
    if np.isposinf(most).any():  # anything may happen at that unit: only what follows it can be bounded
        last = int(np.flatnonzero(np.isposinf(most))[-1]) + 1
        return last + depth_bound(most[last:], paid[last:]) if last < len(most) else last
    return int(np.argmax(np.concatenate([[0.0], np.cumsum(most - paid)])))


def geometric_depth(first: float, rate: float, cost: float) -> int:
    """Bound for gains `first` * `rate`**k: the smallest k with gain at most `cost`.

    Raises `ConfigError` for a rate outside (0, 1) or a cost that is not above 0, `InputError` for a first
    gain that is negative or not finite.

    Example:
        >>> from odn_hybrid.stopping import geometric_depth
        >>> geometric_depth(first=1.0, rate=0.5, cost=0.1)
        4
    """
    if not 0 < rate < 1:
        raise ConfigError(f"rate is {rate!r}; it must be between 0 and 1: without decay there is no bound")
    _checked(first, cost)
    if first <= cost:
        return 0
    guess = math.ceil((math.log(first) - math.log(cost)) / -math.log(rate))
    return _settled(guess, lambda k: math.log(first) + k * math.log(rate) <= math.log(cost))


def power_depth(first: float, exponent: float, cost: float) -> int:
    """Bound for gains `first` * (k + 1)**-`exponent`, any exponent above 0 (summable or not).

    `cost`: of a unit, in the units of the gains. Raises `ConfigError` for an exponent or a cost that is not
    above 0 and for a bound too large to be of use, `InputError` for a first gain that is negative or not
    finite.

    Example:
        >>> from odn_hybrid.stopping import power_depth
        >>> power_depth(first=1.0, exponent=2.0, cost=0.01)
        9
    """
    if not exponent > 0:
        raise ConfigError(f"exponent is {exponent!r}; it must be above 0: without decay there is no bound")
    _checked(first, cost)
    if first <= cost:
        return 0
    logarithm = (math.log(first) - math.log(cost)) / exponent
    if logarithm > math.log(LARGEST):
        raise ConfigError(f"the bound is about exp({logarithm:.0f}) units: too many to be of use")
    guess = math.ceil(math.exp(logarithm)) - 1
    return _settled(guess, lambda k: math.log(first) - exponent * math.log(k + 1) <= math.log(cost))


def summable_depth(total: float, cost: float) -> int:
    """Bound for gains of sum at most `total`, in any order: below total / cost.

    `cost`: of a unit, in the units of the gains. Raises `InputError` for a total that is negative or not
    finite, `ConfigError` for a cost not above 0.

    Example:
        >>> from odn_hybrid.stopping import summable_depth
        >>> summable_depth(total=1.0, cost=0.1)
        9
    """
    _checked(total, cost)
    return max(0, math.ceil(total / cost) - 1)


def separated_depth(
    depth_of: Callable[[float], int], extra: float, cost: float, *, shares: Sequence[float] = SHARES
) -> int:
    """Bound that adds heads and stages: `depth_of((1 - s) cost)` + extra / (s cost), best of the shares s.

    Args:
        depth_of: bound of the residual part alone at a cost, not rising with the cost, e.g.
            `lambda c: geometric_depth(first, rate, c)`.
        extra: sum of all other gains: drift between heads and what stage transitions may gain.
        cost: least price of a unit.
        shares: candidates for the part of the cost that must outweigh `extra`, each between 0 and 1.

    Raises `InputError` for an `extra` that is negative or not finite, `ConfigError` for a cost that is not
    above 0 or a share outside (0, 1).

    Example:
        >>> from odn_hybrid.stopping import geometric_depth, separated_depth
        >>> separated_depth(lambda cost: geometric_depth(1.0, 0.5, cost), extra=0.2, cost=0.1)
        8
    """
    _checked(extra, cost)
    if extra == 0:
        return depth_of(cost)
    if not shares or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"shares are {shares!r}; each must be between 0 and 1")
    return min(depth_of((1 - share) * cost) + math.floor(extra / (share * cost)) for share in shares)


def mean_excess(mean_gains: ArrayLike, cost: float) -> Floats:
    """Bound on E[(tau - n)+] for n = 0..K-1 from gains that hold in the mean: tail sums over `cost`.

    `mean_gains` (K,): E[(l_k - l_{k+1})+] or bounds on it. P(tau > n) is at most the same number.
    """
    gains = _line(mean_gains, "mean_gains")
    _checked(0.0, cost)
    if not np.isfinite(gains).all() or (gains < 0).any():
        raise InputError("mean gains must be finite and 0 or more")
    return np.asarray(np.cumsum(gains[::-1])[::-1] / cost)


# --- what they share ----------------------------------------------------------------------------------


def _settled(guess: int, enough: Callable[[int], bool]) -> int:
    """The smallest depth that is enough: logarithms may be off by a rounding."""
    while guess > 0 and enough(guess - 1):
        guess -= 1
    while not enough(guess):
        guess += 1
    return guess


def _checked(gain: float, cost: float) -> None:
    if not (math.isfinite(gain) and gain >= 0):
        raise InputError(f"the possible gain is {gain!r}; it must be finite and 0 or more")
    if not (math.isfinite(cost) and cost > 0):
        raise ConfigError(f"cost is {cost!r}; it must be above 0: where depth is free nothing bounds it")


def _line(values: ArrayLike, name: str) -> Floats:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} have shape {array.shape}; expected one number per unit")
    return array


def _as_long(values: ArrayLike, length: int, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != length):
        raise InputError(f"{name} has shape {array.shape}; expected one number or {length}")
    return np.broadcast_to(array, (length,)).copy()


def _matrix(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise InputError(f"{name} has shape {array.shape}; expected finite numbers (classes, channels)")
    return array


def _distances(rows: Floats) -> Floats:
    """Distances of all pairs of rows, (C, C)."""
    squares = (rows**2).sum(1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0)))
