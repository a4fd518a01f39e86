"""Which exit a user means: by depth, by budget, or the fit's own choice."""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import Any

import torch

from odn_hybrid.backbone import evaluating
from odn_hybrid.cost import Costs, measure
from odn_hybrid.errors import BudgetError, ConfigError
from odn_hybrid.exits import MultiExit

__all__ = ["choose_exit"]


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
    key = {"max_macs": "macs_static", "max_params": "params", "max_bytes": "bytes"}[name]
    return {row["exit"]: row[key] for row in rows}


@torch.no_grad()
def _latencies(network: MultiExit, exits: list[int]) -> dict[int, float]:
    """Milliseconds of each exit at batch 1, measured side by side."""
    like = next(network.parameters())
    images = torch.zeros(1, *network.trunk.image_shape, device=like.device, dtype=like.dtype)
    with evaluating(network):
        timings = measure({str(k): partial(network.at, images, k) for k in exits}, device=like.device.type)
    return {k: 1000 * timings[str(k)].median for k in exits}
