"""What stages that torch runs have in common: images to the device, logits back, the way of computing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.execution import Execution
from odn_hybrid.serve.stages.measuring import measured_times
from odn_hybrid.serve.stages.protocol import Stages

__all__ = ["as_entered", "computing", "images_on", "plain", "times_on"]


@contextmanager
def computing(execution: Execution, device: torch.device) -> Iterator[None]:
    """As halting models compute: without gradients, in `execution`'s precision, whatever stands around it.

    Not in inference mode: what a network keeps for later calls could not be written outside.
    """
    with torch.inference_mode(False), torch.no_grad(), execution.casting(device):
        yield


def as_entered(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images before the first segment: they stay numpy's until their batch is put together."""
    return np.ascontiguousarray(images, dtype=np.float32)


def images_on(
    device: torch.device, images: NDArray[np.float32], layout: torch.memory_format, dtype: torch.dtype
) -> Tensor:
    """Images as the network takes them: one copy to the device for the whole batch."""
    # Bodies of requests are read-only memory, of which torch wants a copy.
    own = images if images.flags.writeable else images.copy()
    return torch.from_numpy(own).to(device=device, dtype=dtype).contiguous(memory_format=layout)


def plain(logits: Tensor) -> NDArray[np.float32]:
    """Logits on the host, as float32: the one copy from the device of a step."""
    found: NDArray[np.float32] = logits.float().cpu().numpy()
    return found


def times_on(device: torch.device, stages: Stages, largest: int) -> SegmentTimes:
    """What `measured_times` finds on a device of torch's."""
    if device.type == "cpu":
        return measured_times(stages, largest, "cpu")
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else device.type
    wait = (lambda: torch.cuda.synchronize(device)) if cuda else (lambda: None)
    return measured_times(stages, largest, name, wait=wait, clock=time.perf_counter)
