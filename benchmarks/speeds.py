"""Models timed side by side over the same images, and what their times say of one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.deploy.comparing.turns import Clocked, batches_of, interval, ratio, take_turns, waiter
from odn_hybrid.stopping import wilson

__all__ = ["Entry", "accuracy", "agreement", "batches_for", "difference", "ratios", "timed"]

RESAMPLES = 500
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Entry:
    """One model of a comparison.

    Attributes:
        name: what tables call it.
        kind: "full", "static", "dynamic", "plain" or "peer".
        model: maps images to answers.
        right: by the batch sizes at which it takes part, (n,) whether it gets each test image right.
        macs: by batch size, mean MACs of a test image, heads that it passes included.
        exit: of a static model.
        last: whether it is given images with their channels last.
    """

    name: str
    kind: str
    model: nn.Module
    right: dict[int, Right]
    macs: dict[int, float]
    exit: int | None = None
    last: bool = True


def batches_for(entry: Entry, images: Tensor, size: int) -> list[Tensor]:
    """All of the images (n, channels, height, width) in batches, in the layout that the model takes."""
    layout = torch.channels_last if entry.last else torch.contiguous_format
    return batches_of(images.contiguous(memory_format=layout), size, len(images) // size)


def timed(entries: Sequence[Entry], images: Tensor, size: int, rounds: int) -> dict[str, Clocked]:
    """All entries that take part at this batch size, in turns; every round runs all images."""
    here = [entry for entry in entries if size in entry.right]
    batches = {entry.name: batches_for(entry, images, size) for entry in here}
    models = {entry.name: entry.model for entry in here}
    with torch.inference_mode():
        for name, model in models.items():  # what is made on first use is there before the clock runs
            for batch in batches[name][:2]:
                model(batch)
    return take_turns(models, batches, rounds=rounds, wait=waiter(images.device))


@torch.inference_mode()
def agreement(entry: Entry, images: Tensor, labels: NDArray[np.int64], size: int) -> float:
    """Share of the images timed that the model gets right or wrong as recorded outputs say it does."""
    answers = [entry.model(batch) for batch in batches_for(entry, images, size)]
    logits = torch.cat([found if isinstance(found, Tensor) else found.logits for found in answers])
    right = logits.argmax(1).cpu().numpy() == labels[: len(logits)]
    return float((right == entry.right[size][: len(logits)]).mean())


def ratios(slow: Clocked, fast: Clocked) -> dict[str, Any]:
    """How many times as fast `fast` is: throughput, and the medians and 99 % points of single calls.

    Each with its 95 % interval, rounds being resampled in pairs.
    """
    return {
        "throughput": ratio(slow.rounds.tolist(), fast.rounds.tolist()),
        **{f"p{q}": _quantiles(slow, fast, q / 100) for q in (50, 99)},
    }


def _quantiles(slow: Clocked, fast: Clocked, q: float) -> dict[str, float]:
    rounds = len(slow.rounds)
    one, two = (clocked.calls.reshape(rounds, -1) for clocked in (slow, fast))
    picks = np.random.default_rng(0).integers(0, rounds, (RESAMPLES, rounds))
    again = [np.quantile(one[pick], q) / np.quantile(two[pick], q) for pick in picks]
    return interval(float(np.quantile(one, q) / np.quantile(two, q)), np.array(again))


def accuracy(right: Right) -> dict[str, Any]:
    """Share right, with Wilson's 95 % interval."""
    low, high = wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()), "n": len(right), "low": float(low), "high": float(high)}


def difference(one: Right, other: Right) -> dict[str, float]:
    """Accuracy of `one` less that of `other` on the same images, with its 95 % interval."""
    apart = one.astype(np.float64) - other
    value, error = float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5)
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}
