"""What a diagnosis consists of; relative norms are those of `theory/transformers.md`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from odn_hybrid.stopping.limits.decay import Decay

__all__ = ["Diagnosis", "StepRow", "UnitRow"]


@dataclass(frozen=True, kw_only=True)
class UnitRow:
    """Residual of one unit over images; None where the unit changes the shape of the state.

    Attributes:
        unit: number from 0.
        preserving: whether it keeps the shape.
        norm, largest: mean and largest of ||x' - x|| over the whole state.
        relative: mean of 2 ||x' - x|| / (||x|| + ||x'||); for tokens and channels-last maps of every position
            without its mean, as a layer norm sees it, averaged over positions.
    """

    unit: int
    preserving: bool
    norm: float | None
    largest: float | None
    relative: float | None


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """From one exit to the next; quantiles over images, unless called a mean. Losses in nats.

    Attributes:
        exit: the exit that the step starts from; `units`: depths of both exits.
        transition: whether the state changes shape on the way, so that there is no residual.
        residual: norm of the change of state; None at a transition, as the next two.
        lipschitz: local Lipschitz constant of loss after this exit's head: the largest of the gradient's norm
            at both states and the secant between them.
        drift: what the next exit's head does better on the same state.
        most: possible gain r_k: lipschitz * residual + drift; at a transition, what was gained.
        gain, mean_gain: how far the loss really fell from exit to exit.
        cost: price of the step.
    """

    exit: int
    units: tuple[int, int]
    transition: bool
    residual: float | None
    lipschitz: float | None
    drift: float | None
    most: float
    gain: float
    mean_gain: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was measured, and what the theory makes of it. Losses are cross-entropies in nats; depths units.

    Attributes:
        images, labels: how many, and whose labels: "given" or "the deepest exit's answers".
        quantile: over images, of what should hold for all of them.
        normalised: whether heads look through a layer norm, so that relative norms decide.
        units, steps: what was measured.
        absolute, relative: decay over units of the mean residual norms; None with too few to fit.
        price, price_from: loss that a full run is worth, and where that comes from.
        bounds: on the optimal depth of any image like these: "observed" from falls of the loss that occurred,
            "residual" from Lipschitz constants, residual norms and drift, "fitted" from the fitted decay were
            the network to go on (None if it does not decay); "mean": on the mean optimal depth.
        best_fixed: depth with the smallest mean loss plus price.
        hindsight: mean and largest of the best depth per image, were its losses known.
        snell: mean depth and value of rules by backward induction, fitted on these images.
        static_units, dynamic_units: the run's static choice, and mean depth of its halting; None if unknown.
        policy_gap: mean loss plus price of the exits taken, less Snell's value; None if they were not given.
        holds: whether the assumption holds; None if the interval leaves it open.
        verdict: all of this in plain words.
    """

    images: int
    labels: str
    quantile: float
    normalised: bool
    units: tuple[UnitRow, ...]
    steps: tuple[StepRow, ...]
    absolute: Decay | None
    relative: Decay | None
    price: float
    price_from: str
    bounds: dict[str, float | None]
    best_fixed: int
    hindsight: dict[str, float]
    snell: dict[str, float]
    static_units: int | None
    dynamic_units: float | None
    policy_gap: float | None
    holds: bool | None
    verdict: str = ""

    @property
    def decay(self) -> Decay | None:
        """The decay that matters for these heads."""
        return self.relative if self.normalised else self.absolute

    @property
    def depth(self) -> int:
        """Units of the deepest exit looked at."""
        return self.steps[-1].units[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        fits = {"absolute": self.absolute, "relative": self.relative}
        return {**asdict(self), **{name: fit.to_dict() if fit else None for name, fit in fits.items()}}
