"""A diagnosis in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from odn_hybrid.diagnose.findings import Diagnosis
from odn_hybrid.stopping.limits.decay import LEAST

__all__ = ["verdict_of"]

LEADS = {
    True: "The assumption holds",
    False: "The assumption does not hold",
    None: "Whether the assumption holds is open",
}


def verdict_of(found: Diagnosis) -> str:
    """Whether the assumption holds, the bound, and how it compares with the depth chosen."""
    return " ".join(_sentences(found))


def _sentences(found: Diagnosis) -> Iterator[str]:
    yield _assumption(found)
    bound, fitted = found.bounds["residual"], found.bounds["fitted"]
    onward = "" if fitted is None else f"; did the network go on as fitted, {fitted:.4g}"
    yield (
        f"At {found.price:.3g} nats a full run ({found.price_from}), no image should go deeper than "
        f"{bound:g} of {found.depth} units by its residual norms, or {found.bounds['observed']:g} by what "
        f"exits gained{onward}."
    )
    chosen, name = found.static_units, "static choice"
    if chosen is None:
        chosen, name = found.best_fixed, "best fixed depth"
    used = "" if found.dynamic_units is None else f", and halting runs {found.dynamic_units:.1f} on average"
    yield f"The {name} is {chosen} units{used}: {_judged(bound or 0, chosen, found.depth)}."


def _assumption(found: Diagnosis) -> str:
    decay = found.decay
    if decay is None:
        return f"The assumption cannot be tested: fewer than {LEAST} units keep the shape of their state."
    what = "relative residual norms" if found.normalised else "residual norms"
    how = "{:.3g} times a unit" if decay.kind == "geometric" else "the power -{:.3g} of the depth"
    return (
        f"{LEADS[found.holds]}: {what} go as {how.format(decay.rate)} "
        f"({decay.confidence:.0%} interval {decay.low:.3g} to {decay.high:.3g}, {decay.n} units)."
    )


def _judged(bound: float, chosen: int, depth: int) -> str:
    if bound >= depth:
        return "the bound is the whole network and says nothing"
    if bound <= 2 * chosen:
        return "the bound is within a factor of 2"
    return "the bound is more than twice that and predicts the depth badly"
