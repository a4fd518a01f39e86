"""Training one exit head on features that are computed already, in seconds.

Heads on a frozen backbone share nothing, so each is trained by itself, for its own cross-entropy: a sum over
exits with whatever weights (`joint`, `depth_reg`) has the same minimiser.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid.errors import TrainingError
from odn_hybrid.training.frozen.standardising import SAMPLE, Standard, absorb, channel_axis, standard_of

__all__ = ["Examples", "Fitted", "HeadPlan", "fit_head"]

# Rates at the start; a cosine brings them to zero. Tried on features of the shared small network.
LINEAR_RATE = 0.01  # of one layer on standardised features
LAYERED_RATE = 0.003  # of more than one
RAW_RATE = 0.001  # attention, and heads that cannot take a standard in
DECAY = 1e-3
LARGEST_BATCH, LEAST_BATCH, STEPS = 1024, 32, 40  # about 40 steps an epoch on small data sets
PATIENCE = 5  # epochs without a gain on the selection split
MIN_GAIN = 1e-4  # nats
AT_ONCE = 4096  # images of an evaluation
RESIDENT = 2 << 30  # features of up to so many bytes (fp32) are held in memory, or the device's
LOOSE = 256 << 20  # bytes (fp32) of features that are worked on at once: of token maps fewer rows


@dataclass(frozen=True)
class HeadPlan:
    """How heads are trained: at most `epochs` passes, for targets smoothed and weighed as the recipe says."""

    epochs: int
    seed: int
    smoothing: float = 0.0
    class_weights: Tensor | None = None


class Examples:
    """The features of one exit: training rows first, then those of the selection split.

    Args:
        held: (rows, ...) float16, maybe on disk. factor: what its numbers are to be multiplied by.
        labels: (rows,) int64. train: how many rows are for training.
        device: where batches go.
    """

    def __init__(self, held: Tensor, factor: float, labels: Tensor, train: int, device: torch.device) -> None:
        self.factor, self.labels, self.train, self.device = factor, labels.to(device), train, device
        self.resident = held.numel() * torch.float32.itemsize <= RESIDENT
        self.held = held.to(device, torch.float32, copy=True).mul_(factor) if self.resident else held
        self.scaled: Standard | None = None

    @property
    def rows(self) -> int:
        """Training and selection rows together."""
        return len(self.held)

    @property
    def at_once(self) -> int:
        """Rows that may be worked on at once."""
        return max(1, LOOSE // (max(1, self.held[:1].numel()) * torch.float32.itemsize))

    def standardise(self, axis: int, *, centred: bool) -> Standard:
        """From now on give features with deviation 1 (and mean 0) per channel, by a sample of them."""
        step = max(1, self.train // min(SAMPLE, self.at_once))
        standard = standard_of(self._ready(self.held[: self.train : step]), axis)
        if not centred:
            standard = standard.uncentred()
        if self.resident:
            standard.apply_(self.held)  # once, instead of in every batch
        else:
            self.scaled = standard
        return standard

    def _ready(self, found: Tensor) -> Tensor:
        return found if self.resident else found.to(self.device).float() * self.factor

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Features (float32) and labels of some rows."""
        values = self._ready(self.held[rows if isinstance(rows, slice) else rows.to(self.held.device)])
        labels = self.labels[rows if isinstance(rows, slice) else rows.to(self.device)]
        return (values if self.scaled is None else self.scaled(values)), labels


@dataclass(frozen=True)
class Fitted:
    """What came of a head: loss (nats) and accuracy on the selection split, epochs and images trained on."""

    loss: float
    accuracy: float
    epochs: int
    images: int


def fit_head(head: nn.Module, examples: Examples, plan: HeadPlan, number: int) -> Fitted:
    """Train the head of exit `number` in place, by AdamW; kept are the weights of the best selection loss.

    Raises `TrainingError` where no epoch gives a finite loss.
    """
    answer: Callable[[Tensor], Tensor] = getattr(head, "classify", head)
    axis = channel_axis(head)
    standard = None
    if axis is not None:
        standard = examples.standardise(axis, centred=getattr(head, "bias", True) is not None)
    torch.manual_seed(plan.seed * 1_000_003 + number)  # dropout in a user's head
    order = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    largest = min(LARGEST_BATCH, examples.at_once)
    batch = min(examples.train, max(LEAST_BATCH, min(largest, examples.train // STEPS)))
    steps, total = examples.train // batch, plan.epochs * (examples.train // batch)
    rate = _rate(head, axis)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=DECAY, fused=True)
    best, kept, stale, epoch = Fitted(math.inf, 0.0, 0, 0), copy.deepcopy(head.state_dict()), 0, 0
    while epoch < plan.epochs and stale < PATIENCE:
        head.train()
        for step, rows in enumerate(torch.randperm(examples.train, generator=order).split(batch)[:steps]):
            done = (epoch * steps + step) / total
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
            _step(answer, examples.take(rows), optimizer, plan)
        epoch += 1
        loss, accuracy = _look(head, answer, examples, plan)
        stale = 0 if loss < best.loss - MIN_GAIN else stale + 1
        if loss < best.loss:
            best, kept = Fitted(loss, accuracy, epoch, 0), copy.deepcopy(head.state_dict())
    if not math.isfinite(best.loss):
        raise TrainingError(
            f"the head of exit {number} did not learn: its loss is {best.loss} in every epoch"
        )
    head.load_state_dict(kept)
    head.eval()
    if standard is not None:
        absorb(head, standard)
    return Fitted(best.loss, best.accuracy, epoch, epoch * steps * batch)


def _rate(head: nn.Module, axis: int | None) -> float:
    if axis != 1:
        return RAW_RATE
    layers = sum(parameter.dim() > 1 for parameter in head.parameters())
    return LINEAR_RATE if layers == 1 else LAYERED_RATE


def _step(
    answer: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    plan: HeadPlan,
) -> None:
    values, labels = batch
    # Not divided by the weights in the batch, as in training: their mean over the data is 1.
    losses = F.cross_entropy(
        answer(values), labels, plan.class_weights, reduction="none", label_smoothing=plan.smoothing
    )
    optimizer.zero_grad(set_to_none=True)
    losses.mean().backward()
    optimizer.step()


@torch.no_grad()
def _look(
    head: nn.Module, answer: Callable[[Tensor], Tensor], examples: Examples, plan: HeadPlan
) -> tuple[float, float]:
    """Loss and accuracy on the selection split."""
    head.eval()
    loss, right, n = 0.0, 0, examples.rows - examples.train
    rows = min(AT_ONCE, examples.at_once)
    for start in range(examples.train, examples.rows, rows):
        values, labels = examples.take(slice(start, start + rows))
        logits = answer(values)
        losses = F.cross_entropy(
            logits, labels, plan.class_weights, reduction="sum", label_smoothing=plan.smoothing
        )
        loss += float(losses)
        right += int((logits.argmax(1) == labels).sum())
    return loss / n, right / n
