"""What the frozen regime and its peer are measured with alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from halting_policies import hull_at
from torch import Tensor

from odn_hybrid.data import Preprocess, Split, make_loader

__all__ = ["FORWARD_BATCH", "GRID", "Watch", "at_shares", "batches"]

GRID = np.arange(0.3, 1.001, 0.05)
FORWARD_BATCH = 256


class Watch:
    """Seconds of the wall clock and of this process's processors."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """What has passed since it was made."""
        return {
            "wall": round(time.perf_counter() - self.wall, 3),
            "cpu": round(time.process_time() - self.cpu, 3),
        }


def batches(
    split: Split, preprocess: Preprocess, size: int, **options: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, channels last, and labels."""
    for images, labels, _ in make_loader(split, preprocess, batch_size=size, **options):
        yield images.contiguous(memory_format=torch.channels_last), labels


def at_shares(cost: Any, right: Any) -> list[float | None]:
    """Accuracy of the upper hull at mean costs `GRID`; None below the cheapest policy."""
    order = np.argsort(cost)
    found = hull_at(np.asarray(cost)[order], np.asarray(right)[order], GRID)
    return [None if np.isnan(value) else float(value) for value in found]
