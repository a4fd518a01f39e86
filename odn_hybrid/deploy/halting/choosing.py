"""Which flow runs batches, for a device and the way things are at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from odn_hybrid.deploy.halting.deciding import Decider
from odn_hybrid.deploy.halting.deviceflow import DeviceFlow
from odn_hybrid.deploy.halting.graphflow import GraphFlow
from odn_hybrid.deploy.halting.hostflow import Answers, HostFlow, Part
from odn_hybrid.deploy.halting.profit import Gathering
from odn_hybrid.deploy.halting.segments import Step, segments_of, steps_of, straighten
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.stopping import HaltingTable

__all__ = ["Flow", "Flows", "image_layout"]


class Flow(Protocol):
    """Runs a batch through the segments, or its parts one by one."""

    def __call__(self, images: Tensor) -> Answers:
        """Answers of images (batch, channels, height, width), in their order."""

    def parts(self, images: Tensor) -> list[Part]:
        """See `timing.Timed`."""


def image_layout(network: MultiExit) -> torch.memory_format:
    """Channels last for networks of maps, as outputs are recorded."""
    maps = network.trunk.layout(1).kind == "NCHW"
    return torch.channels_last if maps else torch.contiguous_format


class Flows:
    """The flows of one model, each made when it is first needed, and made anew where the network has moved.

    Args:
        network, policy, execution: of the model.
        exits: the network's exits that the policy's exits are.
        gathers: when survivors are gathered; see `profit`.
    """

    def __init__(
        self,
        network: MultiExit,
        policy: HaltingTable,
        exits: tuple[int, ...],
        execution: Execution,
        gathers: Gathering,
    ) -> None:
        self.network, self.execution = network, execution
        self.policy, self.gathers = policy, gathers
        self.numbers = policy.needed
        self.segments = segments_of(network, [exits[number - 1] for number in self.numbers])
        self.layout = image_layout(network)
        self._tabled = any(cut.tables for cut in network.trunk.route.split.cuts)
        self._made: dict[Any, Flow] = {}

    def of(self, weights: Sequence[Tensor], *, made_of: int = 0, training: bool = False) -> Flow:
        """The flow for the network with its weights where they are now, and modules that `made_of` tells of.

        In training mode, or inside somebody's autocast, nothing is compiled or captured.
        """
        weight = weights[0]
        device = weight.device
        plain = training or torch.is_autocast_enabled(device.type)
        # Graphs read weights where they lay when they were captured, by the modules and in the precision of
        # that time; tables are computed from weights before. Elsewhere one weight tells a moved network.
        where: Any = weight.data_ptr()
        if weight.is_cuda:
            values = tuple(w._version for w in weights) if self._tabled else ()
            where = (tuple(w.data_ptr() for w in weights), values, made_of, self.execution.name(device))
        key = (where, weight.dtype, plain)
        if key not in self._made:
            # What was made for where the network was is of no use any more, and holds memory.
            self._made = {known: flow for known, flow in self._made.items() if known[:2] == key[:2]}
            self._made[key] = self._make(device, plain)
        return self._made[key]

    def straighten(self) -> None:
        """Spare segments the calls of their modules, where that can be: see `straight`."""
        straighten(self.segments, self.layout, self.execution)

    def _make(self, device: torch.device, plain: bool) -> Flow:
        times = self.gathers.times
        if times is not None and times.form != self.execution.name(device):
            self.gathers.times = None  # measured elsewhere
        steps: list[Step] = [segment.run for segment in self.segments]
        if not plain:
            steps = steps_of(self.segments, self.execution, device)

        def casting() -> AbstractContextManager[Any]:
            return self.execution.casting(device)

        if device.type == "cpu":
            return HostFlow(steps, self.numbers, self.policy, self.gathers, self.layout, casting)
        decider = Decider(self.policy)
        if device.type == "cuda" and not plain:
            return GraphFlow(
                self.segments,
                steps,
                self.numbers,
                decider,
                self.gathers,
                device=device,
                layout=self.layout,
                casting=casting,
            )
        return DeviceFlow(steps, self.numbers, decider, self.gathers, self.layout, casting)
