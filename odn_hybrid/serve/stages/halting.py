"""A halting model in segments, on the CPU or a GPU, through the very steps that its own flow takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.halting.choosing import image_layout
from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.deploy.halting.segments import segments_of, steps_of, straighten
from odn_hybrid.deploy.halting.standing import Standing
from odn_hybrid.serve.stages.protocol import Held
from odn_hybrid.serve.stages.rows import Rows, gathered, shares_of
from odn_hybrid.serve.stages.states import gathered_states
from odn_hybrid.serve.stages.tensors import as_entered, computing, images_on, plain, times_on
from odn_hybrid.stopping import Looker
from odn_hybrid.trunk import State

__all__ = ["HaltingStages"]


class HaltingStages:
    """Segments of a `HaltingModel`; see `Stages`.

    On a GPU the segments run eagerly, and logits are copied to the host once per step, where the policy
    decides. What `HaltingModel` does there and this does not: CUDA graphs of fixed buffers, decisions on the
    device. A batch of the server has rows of any number of states, which have no fixed buffer.

    Args:
        model: on the device where it is to run; nobody else runs or changes it.
        shares: of inputs that reach each segment; default: by the certification images, if the model knows
            where these stopped.
    """

    def __init__(self, model: HaltingModel, shares: Sequence[float] | None = None) -> None:
        network, policy = model.network, model.policy
        like = next(network.parameters())
        self._device, self._dtype = like.device, like.dtype
        self._execution, self._layout = model.execution, image_layout(network)
        self._standing: Standing | None = Standing(
            network, model.certificate, policy, model.execution, model.exits
        )
        self._certified: bool | None = None
        self.looker = Looker(policy)
        self.numbers = policy.needed
        self.exits = model.exits
        self.units = tuple(network.units[exit - 1] for exit in model.exits)
        self.image_shape: tuple[int, int, int] = network.trunk.image_shape
        self.classes = network.trunk.num_classes
        ends = [model.exits[number - 1] for number in self.numbers]
        if shares is None:
            shares = shares_of(ends, None if model.reference is None else model.reference[1])
        self.shares = tuple(shares)
        self.runtime = model.execution.name(self._device)
        segments = segments_of(network, ends)
        straighten(segments, self._layout, model.execution)
        self._steps = steps_of(segments, model.execution, self._device)

    @property
    def certified(self) -> bool:
        """Whether the certificate speaks of the network in evaluation, as it is now, where it is now.

        Judged again after every step of the first segment: to ask every weight takes 0.1 ms.
        """
        if self._certified is None:
            standing = self._standing
            usual = standing is not None and self._dtype == torch.float32 and not standing.training
            self._certified = usual and standing is not None and standing.void is None
        return self._certified

    def enter(self, images: NDArray[np.float32]) -> Held:
        """See `Stages`."""
        return as_entered(images)

    def gather(self, parts: Sequence[tuple[Held, Rows]], segment: int) -> Held:
        """See `Stages`."""
        if segment == 0:
            return gathered(parts)
        return gathered_states(parts)

    def step(self, segment: int, held: Held) -> tuple[Held, NDArray[np.float32]]:
        """See `Stages`."""
        entry: State | Tensor = held
        if segment == 0:
            self._certified = None
        with computing(self._execution, self._device):
            if segment == 0:
                entry = images_on(self._device, held, self._layout, self._dtype)
            state, logits = self._steps[segment](entry)
            return state, plain(logits)

    def measure(self, largest: int) -> SegmentTimes:
        """See `Stages`."""
        return times_on(self._device, self, largest)

    def close(self) -> None:
        """See `Stages`."""
        self._steps, self._standing, self._certified = [], None, False
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
