"""What the scheduler needs of a model on a device: one segment at a time, on rows it puts together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.stopping import Looker

__all__ = ["Held", "Stages"]

#: States of several inputs after some segment (or before the first), one row each: its own business.
Held = Any


class Stages(Protocol):
    """A model in segments, on its device. Called from one thread at a time.

    Attributes:
        looker: decides at the policy's exits.
        numbers: per segment, the number in the policy (from 1) of the exit where it ends.
        exits, units: of the policy's exits 1..P: the network's exit numbers, and units run to reach them.
        image_shape, classes: (channels, height, width) of float32 images, and how many classes there are.
        shares: (segments,) share of inputs that reach each segment, as seen when the policy was made; the
            first is 1.
        runtime: as certificates name it.
    """

    looker: Looker
    numbers: tuple[int, ...]
    exits: tuple[int, ...]
    units: tuple[int, ...]
    image_shape: tuple[int, int, int]
    classes: int
    shares: tuple[float, ...]
    runtime: str

    @property
    def certified(self) -> bool:
        """Whether a certificate speaks of the answers that the policy gives here, as things are now."""

    def enter(self, images: NDArray[np.float32]) -> Held:
        """Images (n, channels, height, width), checked by the caller, before the first segment."""

    def gather(self, parts: Sequence[tuple[Held, NDArray[np.intp]]], segment: int) -> Held:
        """Rows of several states, all of them before segment `segment` (from 0), as one in this order."""

    def step(self, segment: int, held: Held) -> tuple[Held, NDArray[np.float32]]:
        """Run segment `segment` (from 0): the state after it, and logits (n, classes) at its exit."""

    def measure(self, largest: int) -> SegmentTimes:
        """Prepare for batches of up to `largest` rows (allocate, compile), and time every segment."""

    def close(self) -> None:
        """Give back what the device holds."""
