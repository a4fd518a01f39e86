"""Heads learn on features of mean 0 and deviation 1 per channel, and take mean and deviation in afterwards.

Averages of what a ReLU gives have a mean of several deviations, and channels differ in scale by orders: with
these taken out one learning rate fits every exit of every network, and few steps are enough.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odn_hybrid.exits.heads import AttentionHead, GridHead, LinearHead

__all__ = ["Standard", "absorb", "channel_axis", "standard_of"]

SAMPLE = 8192  # images: enough for a mean and a deviation
LEAST = 1e-4  # of the mean deviation: a channel that moves less says nothing, and must not be blown up


class Standard:
    """(x - mean) / deviation along one axis of a batch; `mean`, `deviation` are (channels,) float32.

    `still` (channels,) bool: which channels do not move. Their deviation is that of the others, and a head
    that takes the standard in pays no heed to them.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, axis: int, dims: int, still: Tensor | None = None
    ) -> None:
        self.mean, self.deviation = mean, deviation
        self.still = torch.zeros_like(mean, dtype=torch.bool) if still is None else still
        shape = [1] * dims
        shape[axis] = -1
        self._axis, self._mean, self._scale = axis, mean.view(shape), (1 / deviation).view(shape)

    def __call__(self, values: Tensor) -> Tensor:
        """Standardised values, of the same shape."""
        return (values - self._mean) * self._scale

    def apply_(self, values: Tensor) -> Tensor:
        """The same in place: values may fill most of a device's memory."""
        return values.sub_(self._mean).mul_(self._scale)

    def uncentred(self) -> Standard:
        """The same without taking the mean out."""
        return Standard(self.mean * 0, self.deviation, self._axis, self._mean.dim(), self.still)


def channel_axis(head: nn.Module) -> int | None:
    """The axis of `head.features`' channels (0 is the batch); None where a head can't take a standard in."""
    if isinstance(head, AttentionHead):
        return 2
    return 1 if isinstance(head, (GridHead, LinearHead, nn.Linear)) else None


def standard_of(values: Tensor, axis: int) -> Standard:
    """Mean and deviation of features (rows, ...) per channel."""
    moved = values.double().movedim(axis, -1).flatten(0, -2)
    mean, deviation = moved.mean(0), moved.std(0, correction=0)
    usual = float(deviation.mean())
    still = deviation <= max(LEAST * usual, 1e-12)
    deviation = deviation.masked_fill(still, usual if usual > 1e-12 else 1.0)
    return Standard(mean.float(), deviation.float(), axis, values.dim(), still)


@torch.no_grad()
def absorb(head: nn.Module, standard: Standard) -> None:
    """Change `head` so that it gives for features what it gave for standardised ones."""
    mean, deviation = standard.mean, standard.deviation
    norm = getattr(head, "norm", None)
    if isinstance(norm, nn.LayerNorm):
        norm.bias.sub_(norm.weight * mean / deviation)
        norm.weight.div_(deviation)
        return
    layer, batch_norm = _first(head)
    cells = layer.weight.shape[1] // len(mean)  # of a grid, flattened channel by channel
    mean, deviation = mean.repeat_interleave(cells), deviation.repeat_interleave(cells)
    layer.weight[:, standard.still.repeat_interleave(cells)] = 0.0  # it learnt nothing of them
    layer.weight /= deviation.view(1, -1, *[1] * (layer.weight.dim() - 2))
    moved = layer.weight.flatten(1) @ mean
    if batch_norm is not None:
        assert batch_norm.running_mean is not None
        batch_norm.running_mean += moved
    elif layer.bias is not None:
        layer.bias -= moved


def _first(head: nn.Module) -> tuple[nn.Linear | nn.Conv2d, nn.BatchNorm1d | nn.BatchNorm2d | None]:
    """The layer that sees the features, and the batch normalisation after it."""
    if isinstance(head, nn.Linear):
        return head, None
    if isinstance(head, AttentionHead):
        return head.pool.kv, None
    if isinstance(head, GridHead):
        for block in (head.mix, head.hidden):
            if isinstance(block, nn.Sequential):
                return block[0], block[1]  # type: ignore[return-value]
    assert isinstance(head, (GridHead, LinearHead))
    return head.fc, None
