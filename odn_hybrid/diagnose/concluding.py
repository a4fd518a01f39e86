"""From what was measured to decay, bounds and a verdict; numpy only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.diagnose.findings import Diagnosis, StepRow, UnitRow
from odn_hybrid.diagnose.measuring import Measured
from odn_hybrid.diagnose.wording import verdict_of
from odn_hybrid.stopping.limits.decay import LEAST, Decay, better_decay
from odn_hybrid.stopping.limits.depth_bound import (
    LARGEST,
    depth_bound,
    mean_excess,
    possible_gains,
    separated_depth,
)
from odn_hybrid.stopping.policies.induction import backward_induction

__all__ = ["conclude", "price_of_choice"]

Floats = NDArray[np.float64]


def conclude(
    found: Measured,
    shares: Floats,
    report: dict[str, Any] | None,
    *,
    price: float | None,
    quantile: float,
    taken: NDArray[np.int64] | None,
) -> Diagnosis:
    """The diagnosis; `shares` (K,) is the cost up to each exit as a share of a full run."""
    static = None if report is None else int(report["static"]["units"])
    halting = None if report is None else report.get("dynamic")
    worth, source = price_of_choice(found.losses.mean(0), shares, found.depths, static)
    if price is not None:
        worth, source = float(price), "given"
    units, steps = _units(found), _steps(found, shares, worth, quantile)
    absolute, relative = (_decay(units, name) for name in ("norm", "relative"))
    decay = relative if found.normalised else absolute
    paid = found.losses + worth * shares
    best = found.depths[paid.argmin(1)]
    snell = backward_induction(found.losses, found.scores, shares, price=worth)
    used = None if taken is None else float(paid[np.arange(len(paid)), taken - 1].mean())
    diagnosis = Diagnosis(
        images=len(paid),
        labels="given" if found.labelled else "the deepest exit's answers",
        quantile=quantile,
        normalised=found.normalised,
        units=units,
        steps=steps,
        absolute=absolute,
        relative=relative,
        price=worth,
        price_from=source,
        bounds=_bounds(steps, found.depths, decay),
        best_fixed=int(found.depths[paid.mean(0).argmin()]),
        hindsight={"mean": float(best.mean()), "largest": float(best.max())},
        snell={"units": float(found.depths[snell.taken - 1].mean()), "value": snell.value},
        static_units=static,
        dynamic_units=None if halting is None else float(halting["mean_units"]),
        policy_gap=None if used is None else used - snell.value,
        holds=None if decay is None else decay.falls,
    )
    return replace(diagnosis, verdict=verdict_of(diagnosis))


def price_of_choice(
    means: Floats, shares: Floats, depths: NDArray[np.int64], static: int | None
) -> tuple[float, str]:
    """A price per full run, and its source, from mean losses (K,) at costs `shares` (K,).

    Where the depth `static` is given and some prices make it the best fixed depth: the middle of them. Else
    the price at which the first exit and the deepest are equally good.
    """
    if static is not None and static in depths:
        s = int(np.flatnonzero(depths == static)[0])
        low = float(((means[s] - means[s + 1 :]) / (shares[s + 1 :] - shares[s])).max(initial=0.0))
        high = float(((means[:s] - means[s]) / (shares[s] - shares[:s])).min(initial=np.inf))
        middle = 2 * low if np.isinf(high) else high / 2 if low == 0 else float(np.sqrt(low * max(high, 0)))
        if low < high and middle > 0:
            return middle, "at which the static choice is the best fixed depth"
    even = float((means[0] - means[-1]) / (shares[-1] - shares[0]))
    if even > 0:
        return even, "at which the first exit and the deepest are equally good"
    return max(float(means[0]), 1e-6), "the first exit's mean loss, as depth gains nothing"


def _units(found: Measured) -> tuple[UnitRow, ...]:
    rows = []
    for unit, (norm, relative) in enumerate(zip(found.norms.T, found.relative.T, strict=True)):
        kept = not np.isnan(norm).any()
        rows.append(
            UnitRow(
                unit=unit,
                preserving=kept,
                norm=float(norm.mean()) if kept else None,
                largest=float(norm.max()) if kept else None,
                relative=float(relative.mean()) if kept else None,
            )
        )
    return tuple(rows)


def _decay(units: tuple[UnitRow, ...], name: str) -> Decay | None:
    known = [(row.unit, getattr(row, name)) for row in units if getattr(row, name)]
    if len(known) < LEAST:
        return None
    return better_decay([size for _, size in known], [unit for unit, _ in known])


def _steps(found: Measured, shares: Floats, price: float, quantile: float) -> tuple[StepRow, ...]:
    fell = np.maximum(found.losses[:, :-1] - found.losses[:, 1:], 0)
    rows = []
    for j, cost in enumerate(price * np.diff(shares)):
        jump = bool(np.isnan(found.residual[:, j]).any())
        gain = float(np.quantile(fell[:, j], quantile))
        residual = lipschitz = drift = None
        most = gain
        if not jump:
            columns = (found.residual[:, j], found.lipschitz[:, j], np.maximum(found.drift[:, j], 0))
            residual, lipschitz, drift = (float(np.quantile(column, quantile)) for column in columns)
            most = float(possible_gains([residual], lipschitz, drift=drift)[0])
        rows.append(
            StepRow(
                exit=j + 1,
                units=(int(found.depths[j]), int(found.depths[j + 1])),
                transition=jump,
                residual=residual,
                lipschitz=lipschitz,
                drift=drift,
                most=most,
                gain=gain,
                mean_gain=float(fell[:, j].mean()),
                cost=float(cost),
            )
        )
    return tuple(rows)


def _bounds(
    steps: tuple[StepRow, ...], depths: NDArray[np.int64], decay: Decay | None
) -> dict[str, float | None]:
    costs = [step.cost for step in steps]
    least = min(step.cost / (step.units[1] - step.units[0]) for step in steps)
    excess = np.append(mean_excess([step.mean_gain for step in steps], least), 0.0)
    return {
        "observed": int(depths[depth_bound([step.gain for step in steps], costs)]),
        "residual": int(depths[depth_bound([step.most for step in steps], costs)]),
        "fitted": _fitted(steps, decay, least),
        "mean": float((depths + excess).min()),
    }


def _fitted(steps: tuple[StepRow, ...], decay: Decay | None, cost: float) -> int | None:
    """The bound were the network to go on as fitted, each unit at `cost`: its decay, and all other gains."""
    inner = [step for step in steps if not step.transition]
    if decay is None or not inner:
        return None
    sizes = [float(decay.at(np.arange(*step.units)).sum()) for step in inner]
    slope = max((step.most - (step.drift or 0.0)) / size for step, size in zip(inner, sizes, strict=True))
    extra = sum(step.most if step.transition else step.drift or 0.0 for step in steps)

    def depth_of(price: float) -> int:
        found = decay.depth(slope, price)
        return LARGEST if found is None else found

    bound = separated_depth(depth_of, extra, cost)
    return bound if bound < LARGEST else None
