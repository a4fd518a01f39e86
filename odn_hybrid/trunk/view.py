"""How a state shows a value of a running network: the inputs on the first axis, each with all its rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odn_hybrid.trunk.flow import Flow

__all__ = ["View", "view_of"]


@dataclass(frozen=True)
class View:
    """From a value to what a state holds, and back.

    Attributes:
        axis: the axis of the value that runs over inputs.
        fold: rows per input; more than one where windows or patches lie in the rows.
        row: shape of one row.
        joined: whether the rows of an input are shown as one longer sequence.
    """

    axis: int
    fold: int
    row: tuple[int, ...]
    joined: bool

    @property
    def plain(self) -> bool:
        """Whether a state holds the value as it is."""
        return self.axis == 0 and self.fold == 1

    def show(self, value: Tensor) -> Tensor:
        """The value as (batch, ...)."""
        if self.axis:
            value = value.transpose(0, self.axis)
        if self.fold > 1:
            value = value.unflatten(0, (-1, self.fold))
            value = value.flatten(1, 2) if self.joined else value
        return value

    def hide(self, shown: Tensor) -> Tensor:
        """What the next step takes, from what `show` gave (or rows of it)."""
        if self.fold > 1:
            shown = shown.reshape(-1, *self.row)
        return shown.transpose(0, self.axis) if self.axis else shown


def view_of(flow: Flow, value: int, *, main: bool) -> View:
    """The view of one value of a flow; `main`: it is the activation that exit heads see."""
    row = tuple(flow.tensors[value].shape[1:])
    return View(flow.axes[value], flow.folds[value], row, joined=main)
