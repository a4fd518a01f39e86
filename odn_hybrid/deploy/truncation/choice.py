"""Which exit is meant: the fit's own choice, and what a user asks for by depth or by budget."""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from odn_hybrid.backbone import evaluating
from odn_hybrid.config import ChoiceConfig
from odn_hybrid.cost import Costs, measure
from odn_hybrid.errors import BudgetError, ConfigError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.stopping import choose_depth

__all__ = ["check_latency", "choose_exit", "deepest_within", "static_choice"]

#: Budgets that are known before training: fields of `ChoiceConfig`, and a report's keys.
COUNTED = {"max_macs": "macs_static", "max_params": "params", "max_bytes": "bytes"}


def choose_exit(
    network: MultiExit,
    costs: Costs,
    rows: list[dict[str, Any]],
    chosen: int,
    *,
    depth: int | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    max_bytes: float | None = None,
    max_latency_ms: float | None = None,
) -> int:
    """The exit 1..K asked for; `chosen` if nothing was. Raises `ConfigError`, `ModelError`, `BudgetError`."""
    wishes = {
        "depth": depth,
        "max_macs": max_macs,
        "max_params": max_params,
        "max_bytes": max_bytes,
        "max_latency_ms": max_latency_ms,
    }
    asked: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
    if len(asked) > 1:
        raise ConfigError(f"ask for one thing at a time, not {' and '.join(asked)}")
    if depth is not None:
        return network.exit_of(depth)
    if not asked:
        return chosen
    ((name, wish),) = asked.items()
    if isinstance(wish, bool) or not isinstance(wish, Real) or not float(wish) > 0:
        raise ConfigError(f"{name} is {wish!r}; it must be a number above 0")
    limit = float(wish)
    used = _used(name, network, costs, rows)
    fitting = [row for row in rows if row["trained"] and used[row["exit"]] <= limit]
    if not fitting:
        least = min((used[row["exit"]], row["exit"]) for row in rows if row["trained"])
        raise BudgetError(
            f"no trained exit has {name} <= {limit:g}; the least is {least[0]:g} at exit {least[1]}"
        )
    best = max(fitting, key=lambda row: (row["accuracy"]["selection"]["value"], -row["exit"]))
    return int(best["exit"])


def _used(name: str, network: MultiExit, costs: Costs, rows: list[dict[str, Any]]) -> dict[int, float]:
    if name == "max_latency_ms":
        return _latencies(network, [row["exit"] for row in rows if row["trained"]])
    return {row["exit"]: row[COUNTED[name]] for row in rows}


def deepest_within(choice: ChoiceConfig, costs: Costs) -> int:
    """The deepest exit within the budgets that are known before training; the last where there are none.

    Raises `BudgetError` where no exit is within them.
    """
    rows = _counted(costs)
    fitting = [row["exit"] for row in rows if all(row[COUNTED[k]] <= v for k, v in _limits(choice).items())]
    if not fitting:
        limits = ", ".join(f"choice.{name} <= {limit:g}" for name, limit in _limits(choice).items())
        least = ", ".join(f"{min(row[COUNTED[name]] for row in rows):g}" for name in _limits(choice))
        raise BudgetError(f"no exit has {limits}; the least of any is {least}")
    return max(fitting)


def check_latency(network: MultiExit, choice: ChoiceConfig) -> None:
    """Raise `BudgetError` where even the first exit is measured to be slower than the budget."""
    if choice.max_latency_ms is None:
        return
    taken = _latencies(network, [1])[1]
    if taken > choice.max_latency_ms:
        raise BudgetError(
            f"no exit has choice.max_latency_ms <= {choice.max_latency_ms:g}; the first takes {taken:.3g}"
        )


def static_choice(
    network: MultiExit,
    choice: ChoiceConfig,
    costs: Costs,
    selection: ExitRecord,
    reference: int,
    trained: list[bool],
    look: int = 1,
) -> dict[str, Any]:
    """The static depth as a report holds it, from the selection split only (theory/target_to_depth.md).

    `look`: which look at the split this is, if it is tested.
    """
    ready = [k for k in range(1, reference + 1) if trained[k - 1]]
    accuracies = selection.correct.mean(0)
    asked = _asked(choice)
    allowed = _within_budget(network, choice, costs, ready) if asked else ready
    best = max(allowed, key=lambda k: (accuracies[k - 1], -k), default=ready[0])
    if not allowed:
        reason = f"no trained exit is within {asked}; the shallowest, {accuracies[best - 1]:.2%}, is kept"
        return {"exit": best, "reason": reason, "rule": "budget", "reached": False}
    if choice.target_accuracy is not None:
        return _by_target(choice, accuracies, allowed, best if asked else reference, asked)
    if asked:
        found = f"it has {accuracies[best - 1]:.2%} on the selection split"
        reason = f"the most accurate exit within {asked}: {found}"
        return {"exit": best, "reason": reason, "rule": "budget", "reached": True}
    shown = choose_depth(
        selection.correct,
        reference=reference,
        trained=np.array(trained[:reference]),
        tolerance=choice.tolerance,
        delta=choice.delta,
        look=look,
    )
    return {"exit": int(shown.exit), "reason": shown.reason, "rule": "non-inferior", "reached": True}


def _by_target(
    choice: ChoiceConfig, accuracies: NDArray[np.float64], allowed: list[int], otherwise: int, asked: str
) -> dict[str, Any]:
    assert choice.target_accuracy is not None
    goal = choice.target_accuracy - choice.tolerance
    reached = [k for k in allowed if accuracies[k - 1] >= goal]
    if reached:
        reason = (
            f"the shallowest exit with at least {goal:.2%} on the selection split "
            f"(target {choice.target_accuracy:.2%} less {choice.tolerance:.2%}): "
            f"it has {accuracies[reached[0] - 1]:.2%}"
        )
        return {"exit": reached[0], "reason": reason, "rule": "target", "reached": True}
    kept = f"the most accurate one within {asked}" if asked else "the deepest trained one"
    reason = (
        f"no exit reached {goal:.2%} on the selection split; {kept}, {accuracies[otherwise - 1]:.2%}, is kept"
    )
    return {"exit": otherwise, "reason": reason, "rule": "target", "reached": False}


def _within_budget(network: MultiExit, choice: ChoiceConfig, costs: Costs, trained: list[int]) -> list[int]:
    """Those of the exits `trained` that are within all of `choice`'s budgets; latency is measured here."""
    rows = _counted(costs)
    fitting = [k for k in trained if all(rows[k - 1][COUNTED[n]] <= v for n, v in _limits(choice).items())]
    if choice.max_latency_ms is None or not fitting:
        return fitting
    taken = _latencies(network, fitting)
    return [k for k in fitting if taken[k] <= choice.max_latency_ms]


def _asked(choice: ChoiceConfig) -> str:
    """The budgets in words; empty without any."""
    limits = _limits(choice)
    if choice.max_latency_ms is not None:
        limits["max_latency_ms"] = choice.max_latency_ms
    return " and ".join(f"{name} {limit:.4g}" for name, limit in limits.items())


def _limits(choice: ChoiceConfig) -> dict[str, float]:
    values = {name: getattr(choice, name) for name in COUNTED}
    return {name: value for name, value in values.items() if value is not None}


def _counted(costs: Costs) -> list[dict[str, int]]:
    sizes = zip(costs.params, costs.bytes, strict=True)
    return [
        {"exit": k, "macs_static": costs.static(k), "params": params, "bytes": size}
        for k, (params, size) in enumerate(sizes, 1)
    ]


@torch.no_grad()
def _latencies(network: MultiExit, exits: list[int]) -> dict[int, float]:
    """Milliseconds of each exit at batch 1, measured side by side."""
    like = next(network.parameters())
    images = torch.zeros(1, *network.trunk.image_shape, device=like.device, dtype=like.dtype)
    with evaluating(network):
        timings = measure({str(k): partial(network.at, images, k) for k in exits}, device=like.device.type)
    return {k: 1000 * timings[str(k)].median for k in exits}
