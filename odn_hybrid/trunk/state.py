"""What flows between units: the activation and whatever else later units need, for some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odn_hybrid.errors import InputError

__all__ = ["State", "rows_of"]


def rows_of(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor (batch, ...), in its own memory format.

    `index_select` gives channels-first whatever it got, nine times slower than copying whole rows.
    """
    if tensor.dim() == 4 and not tensor.is_contiguous():
        last = tensor.permute(0, 2, 3, 1)
        if last.is_contiguous():
            return last.index_select(0, rows).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)


@dataclass(frozen=True)
class State:
    """The state after `depth` units.

    Attributes:
        x: the activation that exit heads see, shape (batch, ...).
        depth: number of units already run, 0 to len(trunk).
        streams: other tensors (batch, ...) of the inputs (a class token, a second branch); mostly none.
        tables: what all inputs share and later units need (rope or relative-position tables).
        route: the `Route` that made it: steps for one image size and precision.

    Example:
        >>> import torch
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> state = trunk.run(trunk.stem(torch.rand(4, 3, 32, 32)), 0, 2)
        >>> state.depth, len(state.select(torch.tensor([0, 3])).x)
        (2, 2)
    """

    x: Tensor
    depth: int
    streams: tuple[Tensor, ...] = ()
    tables: tuple[Any, ...] = ()
    route: Any = None

    def __len__(self) -> int:
        return self.batch

    @property
    def batch(self) -> int:
        """Number of inputs; a symbol while the model is exported, where `len` must be a number."""
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
        x, *streams = (rows_of(tensor, rows) for tensor in (self.x, *self.streams))
        return State(x, self.depth, tuple(streams), self.tables, self.route)  # `replace` takes its time

    def only(self, row: int) -> State:
        """The state of one input, 0 <= row < len(self); its tensors are views, nothing is copied."""
        x, *streams = (tensor.narrow(0, row, 1) for tensor in (self.x, *self.streams))
        return State(x, self.depth, tuple(streams), self.tables, self.route)

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """Join states of equal depth and shape into one batch; raises `InputError` for others."""
        if not states:
            raise InputError("State.cat needs at least one state")
        depths = sorted({state.depth for state in states})
        if len(depths) != 1:
            raise InputError(f"State.cat joins states at one depth, these stand at depths {depths}")
        shapes = sorted({tuple(state.x.shape[1:]) for state in states})
        if len(shapes) != 1 or any(state.route is not states[0].route for state in states):
            raise InputError(
                f"State.cat joins states of one trunk and images of one size; these have shapes {shapes}"
            )
        x, *streams = (
            torch.cat(parts) for parts in zip(*((state.x, *state.streams) for state in states), strict=True)
        )
        return replace(states[0], x=x, streams=tuple(streams))
