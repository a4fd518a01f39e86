"""Seconds of every segment by batch size, measured on the device where a halting model runs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from odn_hybrid.cost import measure
from odn_hybrid.deploy.halting.hostflow import Part
from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.execution import Execution

__all__ = ["Timed", "segment_times", "sizes_upto"]


class Timed(Protocol):
    """A flow that can run its parts one by one."""

    def parts(self, images: Tensor) -> list[Part]:
        """Per segment: run it on a batch as large as `images`, and gather as many survivors after it."""


def sizes_upto(batch: int) -> tuple[int, ...]:
    """Powers of two below `batch`, and `batch`."""
    return (*(2**k for k in range(batch.bit_length()) if 2**k < batch), batch)


def segment_times(flow: Timed, images: Tensor, execution: Execution, *, rounds: int) -> SegmentTimes:
    """Time all segments of `flow` at batch sizes up to `len(images)`: medians of `rounds`, in turn."""
    sizes = sizes_upto(len(images))
    segments: list[list[float]] = []
    gathers: list[list[float]] = []
    for size in reversed(sizes):  # the largest first: what allocates or compiles does so for it
        parts = flow.parts(images[:size])
        things = {f"run {k}": part.run for k, part in enumerate(parts)}
        things |= {f"gather {k}": part.gather for k, part in enumerate(parts[:-1])}
        found = measure(things, rounds=rounds, warmup=2, device=images.device.type)
        segments.insert(0, [found[f"run {k}"].median for k in range(len(parts))])
        gathers.insert(0, [*(found[f"gather {k}"].median for k in range(len(parts) - 1)), 0.0])
    device = images.device.type
    name = torch.cuda.get_device_name(images.device) if device == "cuda" else device
    return SegmentTimes(
        sizes,
        tuple(zip(*segments, strict=True)),
        tuple(zip(*gathers, strict=True)),
        name,
        execution.name(images.device),
    )
