"""What flows between units: the activation, how deep it is, and what every unit gets beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odn_hybrid.errors import InputError

__all__ = ["State", "UnitExtras"]


@dataclass(frozen=True)
class UnitExtras:
    """The arguments of one unit beside the activation, e.g. a rope table; none depends on the batch."""

    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class State:
    """The activation after `depth` units.

    Attributes:
        x: the activation, shape (batch, ...).
        depth: number of units already run, 0 to len(trunk).
        extras: one `UnitExtras` per unit, or a single one that all units share.
    """

    x: Tensor
    depth: int
    extras: tuple[UnitExtras, ...] = (UnitExtras(),)

    def __len__(self) -> int:
        return self.x.shape[0]

    def select(self, rows: Tensor) -> State:
        """The state of some inputs only: `rows` is an index tensor (m,) or a boolean mask (batch,).

        Raises `InputError` for a mask of another length.
        """
        if rows.dtype == torch.bool:
            if rows.shape != (len(self),):
                raise InputError(
                    f"the mask has shape {tuple(rows.shape)}, the state holds {len(self)} inputs"
                )
            rows = rows.nonzero().squeeze(1)
        return replace(self, x=self.x.index_select(0, rows))

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """Join states of equal depth and shape into one batch; raises `InputError` for others."""
        if not states:
            raise InputError("State.cat needs at least one state")
        depths = sorted({state.depth for state in states})
        if len(depths) != 1:
            raise InputError(f"State.cat joins states at one depth, these stand at depths {depths}")
        shapes = sorted({tuple(state.x.shape[1:]) for state in states})
        if len(shapes) != 1:
            raise InputError(f"State.cat joins states of images of one size; these have shapes {shapes}")
        return replace(states[0], x=torch.cat([state.x for state in states]))

    def extras_of(self, unit: int) -> UnitExtras:
        """What `unit`, counted from 0, gets beside the activation."""
        return self.extras[0] if len(self.extras) == 1 else self.extras[unit]
