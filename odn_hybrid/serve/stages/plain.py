"""A network without halting as one segment: full depth, or a static model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.deploy.halting.straight import Direct
from odn_hybrid.execution import Execution
from odn_hybrid.serve.stages.protocol import Held
from odn_hybrid.serve.stages.rows import Rows, gathered
from odn_hybrid.serve.stages.tensors import as_entered, computing, images_on, plain, times_on
from odn_hybrid.stopping import Calibration, HaltingTable, Looker

__all__ = ["PlainStages"]


class PlainStages:
    """One segment, in which everything stops; see `Stages`. No certificate speaks of it.

    Args:
        model: images (batch, channels, height, width) -> logits (batch, classes), on its device, in
            evaluation mode; nobody else runs or changes it.
        image_shape, classes: what it takes and gives.
        exit, units: as answers name them.
        calibration: of the confidences, a single exit's; None: they are the softmax as it comes.
        execution: precision; what is folded is so already.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        exit: int,
        units: int,
        calibration: Calibration | None = None,
        execution: Execution | None = None,
    ) -> None:
        like = next(model.parameters())
        self._device, self._dtype = like.device, like.dtype
        self._model: nn.Module | None = Direct(model) if self._device.type == "cpu" else model
        self._layout = _layout(model)
        self._execution = execution or Execution()
        if calibration is None:
            calibration = Calibration.of_temperatures([1.0])
        self.looker = Looker(HaltingTable.of_thresholds([0.0], calibration))
        self.numbers: tuple[int, ...] = (1,)
        self.exits: tuple[int, ...] = (exit,)
        self.units: tuple[int, ...] = (units,)
        self.shares: tuple[float, ...] = (1.0,)
        self.image_shape, self.classes = image_shape, classes
        self.runtime, self.certified = self._execution.name(self._device), False

    def enter(self, images: NDArray[np.float32]) -> Held:
        """See `Stages`."""
        return as_entered(images)

    def gather(self, parts: Sequence[tuple[Held, Rows]], segment: int) -> Held:
        """See `Stages`."""
        return gathered(parts)

    def step(self, segment: int, held: Held) -> tuple[Held, NDArray[np.float32]]:
        """See `Stages`."""
        assert self._model is not None
        with computing(self._execution, self._device):
            return None, plain(self._model(images_on(self._device, held, self._layout, self._dtype)))

    def measure(self, largest: int) -> SegmentTimes:
        """See `Stages`."""
        return times_on(self._device, self, largest)

    def close(self) -> None:
        """See `Stages`."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _layout(model: nn.Module) -> torch.memory_format:
    """Channels last for models whose convolutions have them so, as folded ones do."""
    last = torch.channels_last
    maps = (weight for weight in model.parameters() if weight.dim() == 4)
    found = any(not weight.is_contiguous() and weight.is_contiguous(memory_format=last) for weight in maps)
    return last if found else torch.contiguous_format
