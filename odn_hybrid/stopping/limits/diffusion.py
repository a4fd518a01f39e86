"""Drift and diffusion of a score over depth, estimated from recorded exits.

The scores of one input at exits 1..K are read as a diffusion looked at K times, at depths given by the exits'
costs. The mean of what a segment adds, over its depth, estimates the drift; the mean square about it, the
diffusion. Both are smoothed over the score (drift by a local line, Fan and Gijbels 1996). What it finds and
where it fails: theory/continuous_depth.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.limits.continuous import StoppingProblem

__all__ = ["DiffusionEstimate", "estimate_diffusion"]

Floats = NDArray[np.float64]
CELLS = 512  # of the score's range, into which inputs are counted before smoothing
TAILS = (0.001, 0.999)  # quantiles of the scores between which the default grid lies


@dataclass(frozen=True)
class DiffusionEstimate:
    """What the recorded scores say. K exits, K - 1 segments, m scores on the grid.

    Attributes:
        depths: (K,) cumulative cost at each exit.
        scores: (m,) the grid.
        drift: (K - 1, m) mean change of the score per depth, in each segment.
        diffusion: (K - 1, m) standard deviation of the change per square root of depth.
        drift_error: (K - 1, m) standard error of `drift`, its smoothing bias not counted.
        inputs: (K - 1, m) how many inputs each estimate rests on; where too few, the nearest good one is
            taken.
        loss: (K, m) mean loss of stopping at an exit given the score, or None.
        memory: (K - 2,) correlation of what two successive segments add beyond the drift, in standard
            deviations: 0 for a diffusion, else the score does not say all that its past does.
        excess: (K - 1,) excess kurtosis of what a segment adds beyond the drift: 0 for a thin layer of a
            diffusion, large where scores jump.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import estimate_diffusion, solve_stopping
        >>> added = np.random.default_rng(0).normal(0.5, 0.2, size=(4000, 4))
        >>> scores = np.cumsum(added, axis=1)
        >>> found = estimate_diffusion(scores, [1.0, 2.0, 3.0, 4.0], losses=scores < 1.0)
        >>> solve_stopping(found.problem(price=0.05), found.depths).stop.shape  # 4 exits, 81 scores
        (4, 81)
    """

    depths: Floats
    scores: Floats
    drift: Floats
    diffusion: Floats
    drift_error: Floats
    inputs: Floats
    loss: Floats | None
    memory: Floats
    excess: Floats

    def problem(self, price: float) -> StoppingProblem:
        """The stopping problem of this score: its mean loss, and `price` per depth; from the first exit on.

        The score stays on its grid: both edges reflect, and a drift out of them is dropped. Solve it over
        depths between the first and the last of `depths`. Raises `ConfigError` without losses or for a
        negative price.
        """
        if self.loss is None:
            raise ConfigError("stopping needs a loss; give losses to estimate_diffusion")
        if not (np.isfinite(price) and price >= 0):
            raise ConfigError(f"price is {price!r}; it must be 0 or more")
        loss, inward = self.loss, self.drift.copy()
        inward[:, 0], inward[:, -1] = np.maximum(inward[:, 0], 0), np.minimum(inward[:, -1], 0)

        def segment(depth: float) -> int:
            found = np.searchsorted(self.depths, depth, side="right") - 1
            return int(np.clip(found, 0, len(self.depths) - 2))

        def stopping(depth: float) -> Floats:
            k = segment(depth)
            part = (depth - self.depths[k]) / (self.depths[k + 1] - self.depths[k])
            part = float(np.clip(part, 0, 1))
            return np.asarray((1 - part) * loss[k] + part * loss[k + 1])

        return StoppingProblem(
            axes=(self.scores,),
            drift=(lambda depth: inward[segment(depth)],),
            diffusion=(lambda depth: self.diffusion[segment(depth)],),
            stopping=stopping,
            cost=price,
        )


def estimate_diffusion(
    scores: ArrayLike,
    costs: ArrayLike,
    *,
    losses: ArrayLike | None = None,
    grid: ArrayLike | int = 81,
    bandwidth: float | None = None,
    depth_bandwidth: float = 0.0,
    least: int = 30,
) -> DiffusionEstimate:
    """Drift and diffusion of a score over depth, and the loss given the score.

    Args:
        scores: (n, K) the score of each input at each exit; all inputs ran all exits.
        costs: (K,) cumulative cost to each exit, strictly ascending: the depth that the result speaks of.
        losses: (n, K) what stopping at each exit loses, e.g. 1 where its answer is wrong.
        grid: (g,) ascending scores at which to estimate, or how many, equally spaced between the 0.001 and
            0.999 quantiles of all scores. Inputs outside are left out.
        bandwidth: standard deviation of the smoothing over the score; by default 1.06 s n^(-1/5) with s the
            scores' standard deviation within exits (Silverman 1986).
        depth_bandwidth: of the smoothing over depth, in units of cost; 0 keeps segments apart.
        least: inputs that an estimate must rest on.

    Raises `InputError` for arrays that do not fit or are not finite and for segments with fewer than `least`
    inputs anywhere, `ConfigError` for bandwidths out of range.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import estimate_diffusion
        >>> added = np.random.default_rng(0).normal(0.5, 0.2, size=(4000, 4))  # by each of four segments
        >>> found = estimate_diffusion(np.cumsum(added, axis=1), [1.0, 2.0, 3.0, 4.0])
        >>> round(float(found.drift.mean()), 2), round(float(found.diffusion.mean()), 2)
        (0.45, 0.2)
    """
    seen, paid, lost = _checked(scores, costs, losses)
    at = _grid(seen, grid)
    width = 1.06 * float(seen.std(axis=0).mean()) * len(seen) ** -0.2 if bandwidth is None else bandwidth
    if not (np.isfinite(width) and width > 0):
        raise ConfigError(f"bandwidth is {width!r}; it must be positive (are all scores equal?)")
    if not (np.isfinite(depth_bandwidth) and depth_bandwidth >= 0):
        raise ConfigError(f"depth_bandwidth is {depth_bandwidth!r}; it must be 0 or more")
    smooth = _Smoother(at, width, least)
    steps, change = np.diff(paid), np.diff(seen, axis=1)
    links = _links((paid[1:] + paid[:-1]) / 2, depth_bandwidth)
    cells = [smooth.cells(seen[:, k]) for k in range(len(paid))]
    counts = np.stack([smooth.sums(cells[k]) for k in range(len(steps))])
    added = np.stack([smooth.sums(cells[k], change[:, k]) for k in range(len(steps))]) / steps[:, None]
    inputs = smooth.inputs(links @ counts, links**2 @ counts)
    drift = smooth.line(links @ counts, links @ added, inputs)
    rest = change - np.stack([smooth.read(drift[k], seen[:, k]) for k in range(len(steps))], 1) * steps
    squares = np.stack([smooth.sums(cells[k], rest[:, k] ** 2) for k in range(len(steps))]) / steps[:, None]
    diffusion = np.sqrt(smooth.mean(links @ counts, links @ squares, inputs))
    error = diffusion / np.sqrt(np.maximum(smooth.inputs(links @ counts, links**2 / steps @ counts), 1e-300))
    spread = np.stack([smooth.read(diffusion[k], seen[:, k]) for k in range(len(steps))], 1) * np.sqrt(steps)
    memory, excess = _not_diffusive(rest, spread)
    loss = None if lost is None else _loss(smooth, cells, lost, _links(paid, depth_bandwidth))
    return DiffusionEstimate(paid, at, drift, diffusion, error, inputs, loss, memory, excess)


class _Smoother:
    """Kernel means over the score, from counts and sums in cells."""

    def __init__(self, at: Floats, width: float, least: int) -> None:
        self.at, self.least = at, least
        self.edges = np.linspace(at[0], at[-1], CELLS + 1)
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        self.apart = middle[None] - at[:, None]
        self.weight = np.exp(-((self.apart / width) ** 2) / 2)

    def cells(self, score: Floats) -> NDArray[np.int64]:
        """The cell of each input; CELLS for one outside."""
        found = np.searchsorted(self.edges, score, side="right") - 1
        found[score == self.edges[-1]] = CELLS - 1
        return np.where((found < 0) | (found >= CELLS), CELLS, found)

    def sums(self, cell: NDArray[np.int64], values: Floats | None = None) -> Floats:
        """Sum of `values` in each cell, or the count."""
        return np.bincount(cell, values, minlength=CELLS + 1)[:CELLS].astype(np.float64)

    def inputs(self, counts: Floats, squares: Floats) -> Floats:
        """How many inputs of full weight an estimate is worth; `squares` for counts of squared weights."""
        return np.asarray((counts @ self.weight.T) ** 2 / np.maximum(squares @ (self.weight**2).T, 1e-300))

    def mean(self, counts: Floats, sums: Floats, inputs: Floats) -> Floats:
        """Weighted mean at each score of the grid."""
        return self._filled((sums @ self.weight.T) / np.maximum(counts @ self.weight.T, 1e-300), inputs)

    def line(self, counts: Floats, sums: Floats, inputs: Floats) -> Floats:
        """Height of the weighted local line at each score of the grid; a mean where inputs have one score."""
        w0, w1, w2 = (self.weight * self.apart**p for p in range(3))
        s0, s1, s2 = (counts @ w.T for w in (w0, w1, w2))
        t0, t1 = sums @ w0.T, sums @ w1.T
        below = s0 * s2 - s1**2
        flat = below <= 1e-9 * s0 * s2
        safe = np.where(flat, 1.0, below)
        found = np.where(flat, t0 / np.maximum(s0, 1e-300), (s2 * t0 - s1 * t1) / safe)
        return self._filled(found, inputs)

    def read(self, row: Floats, score: Floats) -> Floats:
        """An estimate at given scores."""
        return np.interp(score, self.at, row)

    def _filled(self, found: Floats, inputs: Floats) -> Floats:
        """Where too few inputs lie, what the nearest good scores of the grid have."""
        good = inputs >= self.least
        poor = ~good.any(axis=1)
        if poor.any():
            raise InputError(
                f"segment or exit {int(poor.argmax()) + 1} has fewer than {self.least} inputs around every"
                " score; record more inputs, or widen bandwidth"
            )
        return np.stack([np.interp(self.at, self.at[g], row[g]) for row, g in zip(found, good, strict=True)])


def _links(places: Floats, width: float) -> Floats:
    """Weight of what was seen at depth j in the estimate at depth k: 1 for its own."""
    if width == 0:
        return np.eye(len(places))
    weight = np.exp(-(((places[:, None] - places[None]) / width) ** 2) / 2)
    return np.asarray(weight / weight.max(axis=1, keepdims=True))


def _loss(smooth: _Smoother, cells: list[NDArray[np.int64]], lost: Floats, links: Floats) -> Floats:
    counts = np.stack([smooth.sums(cell) for cell in cells])
    sums = np.stack([smooth.sums(cell, lost[:, k]) for k, cell in enumerate(cells)])
    low, high = lost.min(axis=0)[:, None], lost.max(axis=0)[:, None]
    inputs = smooth.inputs(links @ counts, links**2 @ counts)
    return np.clip(
        smooth.line(links @ counts, links @ sums, inputs), low, high
    )  # a line may leave the range at its ends


def _not_diffusive(rest: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Correlation of successive segments' standardised changes, and their excess kurtosis."""
    unit = rest / np.where(spread > 0, spread, 1.0)
    unit = unit - unit.mean(axis=0)
    scale = np.sqrt((unit**2).mean(axis=0))
    unit = unit / np.where(scale > 0, scale, 1.0)
    return (unit[:, 1:] * unit[:, :-1]).mean(axis=0), (unit**4).mean(axis=0) - 3.0


def _grid(seen: Floats, grid: ArrayLike | int) -> Floats:
    if isinstance(grid, int):
        if grid < 3:
            raise ConfigError(f"grid is {grid!r}; it needs at least 3 points")
        low, high = np.quantile(seen, TAILS)
        if not low < high:
            raise InputError("the scores are (nearly) all equal: there is no change to estimate")
        return np.linspace(low, high, grid)
    at = np.asarray(grid, dtype=np.float64)
    if at.ndim != 1 or len(at) < 3 or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise InputError("grid must be 3 or more finite scores that strictly ascend, or how many")
    return at


def _checked(
    scores: ArrayLike, costs: ArrayLike, losses: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    seen, paid = np.asarray(scores, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    lost = None if losses is None else np.asarray(losses, dtype=np.float64)
    if seen.ndim != 2 or seen.shape[0] < 2 or seen.shape[1] < 2:
        raise InputError(f"scores have shape {seen.shape}; expected (inputs, exits), at least 2 of each")
    if lost is not None and lost.shape != seen.shape:
        raise InputError(f"losses have shape {lost.shape}; expected that of scores, {seen.shape}")
    if not np.isfinite(seen).all() or (lost is not None and not np.isfinite(lost).all()):
        raise InputError("scores or losses are NaN or infinite; mend the model or its inputs first")
    if paid.shape != seen.shape[1:] or not np.isfinite(paid).all() or (np.diff(paid) <= 0).any():
        raise InputError(
            f"costs are {paid.tolist()}; expected {seen.shape[1]} finite numbers that strictly ascend"
        )
    return seen, paid, lost
