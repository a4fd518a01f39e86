"""Depth plans: which units of a trunk stay.

`prefix(k)` keeps the first k units (Optimally Deep Networks, arXiv 2510.10764). `thin` keeps every stage and
removes the last units inside each (Adaptive Depth Networks, arXiv 2312.16392), so that later stages, with
their small maps and wide channels, go on to work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from odn_hybrid.errors import ConfigError

__all__ = ["DepthPlan", "prefix", "thin", "thinnings"]


class Units(Protocol):
    """What a plan asks of a `Trunk`."""

    def __len__(self) -> int: ...

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Runs of units (start, stop) that work at one shape."""
        ...

    @property
    def removable(self) -> tuple[int, ...]:
        """Units that may be removed."""
        ...


@dataclass(frozen=True)
class DepthPlan:
    """Which units stay.

    Attributes:
        kind: "prefix" (an exit head stands after the last) or "thin" (the backbone's own head stands there).
        keep: numbers of the units that stay, from 0, ascending.

    Example:
        >>> from odn_hybrid import DepthPlan
        >>> DepthPlan("thin", (0, 2, 4, 6)).units
        4
    """

    kind: str
    keep: tuple[int, ...]

    @property
    def units(self) -> int:
        """Number of units that run."""
        return len(self.keep)


def prefix(depth: int, trunk: Units) -> DepthPlan:
    """The first `depth` units of `trunk`; raises `ConfigError` if there are not so many.

    Example:
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> odn.prefix(3, trunk).keep
        (0, 1, 2)
    """
    if not 1 <= depth <= len(trunk):
        raise ConfigError(f"prefix({depth!r}): the trunk has {len(trunk)} units; keep 1 to {len(trunk)}")
    return DepthPlan("prefix", tuple(range(depth)))


def thin(share: float, trunk: Units) -> DepthPlan:
    """Remove `share` (0 to 1) of the removable units of every stage of `trunk`, the last of a stage first.

    A unit is removable if it keeps the shape of its input and is not the first of its stage. Rounded up, so
    that any share above 0 removes something wherever something can be removed. Raises `ConfigError` for
    another share, and where nothing can be removed.

    Example:
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> odn.thin(1.0, trunk).keep
        (0, 2, 4, 6)
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"thin({share!r}): the share of removable units is a fraction from 0 to 1")
    if share and not trunk.removable:
        raise ConfigError(
            "thin: no unit of this network can be removed, since each changes the shape of its input; "
            "use prefix plans"
        )
    gone: set[int] = set()
    for start, stop in trunk.stages:
        spare = [unit for unit in range(start, stop) if unit in trunk.removable]
        gone.update(spare[len(spare) - math.ceil(share * len(spare) - 1e-9) :])
    return DepthPlan("thin", tuple(unit for unit in range(len(trunk)) if unit not in gone))


def thinnings(trunk: Units, step: int = 1) -> tuple[DepthPlan, ...]:
    """Nested thin plans from the thinnest to the whole trunk, `step` units apart.

    Each removes its next unit from the stage that has the largest share of its removable units left (of equal
    ones the deepest), so all stages thin out at one pace and every plan's units are among the next one's.
    Raises `ConfigError` where nothing can be removed.
    """
    if not isinstance(step, int) or step < 1:
        raise ConfigError(f"thin plans stand {step!r} units apart; it must be a whole number of 1 or more")
    thin(1.0, trunk)
    spare = [[u for u in range(a, b) if u in trunk.removable] for a, b in trunk.stages]
    totals = [len(units) for units in spare]
    order: list[int] = []
    while any(spare):
        stage = max((s for s in range(len(spare)) if spare[s]), key=lambda s: (len(spare[s]) / totals[s], s))
        order.append(spare[stage].pop())
    sizes = sorted({*range(len(order), 0, -step), 0}, reverse=True)
    every = range(len(trunk))
    return tuple(DepthPlan("thin", tuple(u for u in every if u not in set(order[:gone]))) for gone in sizes)
