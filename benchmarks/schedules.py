"""The schedule of a fit that trains all exits for a fixed number of epochs."""

from __future__ import annotations

from typing import Any

__all__ = ["short_schedule"]


def short_schedule(epochs: int) -> dict[str, Any]:
    """One epoch of warm-up, then as many at the full rate as fall to zero: changes to a recipe."""
    return {"expansion.max_looks": epochs, "expansion.settle_patience": epochs, "expansion.cooldown": 1.0}
