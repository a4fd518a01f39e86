"""Which flow runs batches, for a device and the way things are at the moment."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from odn_hybrid.deploy.halting.deciding import Decider
from odn_hybrid.deploy.halting.deviceflow import DeviceFlow
from odn_hybrid.deploy.halting.graphflow import GraphFlow
from odn_hybrid.deploy.halting.hostflow import Answers, HostFlow, Part
from odn_hybrid.deploy.halting.profit import Gathering
from odn_hybrid.deploy.halting.segments import Step, segments_of
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
        graphs: CUDA graphs on CUDA.
    """

    def __init__(
        self,
        network: MultiExit,
        policy: HaltingTable,
        exits: tuple[int, ...],
        execution: Execution,
        gathers: Gathering,
        *,
        graphs: bool = True,
    ) -> None:
        self.network, self.execution, self.graphs = network, execution, graphs
        self.policy, self.gathers = policy, gathers
        self.numbers = policy.needed
        self.segments = segments_of(network, [exits[number - 1] for number in self.numbers])
        self.layout = image_layout(network)
        self._steps: list[Step] = []
        self._made: dict[Any, Flow] = {}

    def of(self, weight: Tensor, *, training: bool = False) -> Flow:
        """The flow for a network whose weights are like this one of them.

        In training mode, or inside somebody's autocast, nothing is compiled or captured.
        """
        device = weight.device
        plain = training or torch.is_autocast_enabled(device.type)
        key = (device, weight.dtype, weight.data_ptr(), plain)
        if key not in self._made:
            # What was made for where the network was is of no use any more, and holds memory.
            self._made = {known: flow for known, flow in self._made.items() if known[:3] == key[:3]}
            self._made[key] = self._make(device, plain)
        return self._made[key]

    def _make(self, device: torch.device, plain: bool) -> Flow:
        steps = [segment.step(compiled=self.execution.compile and not plain) for segment in self.segments]

        def casting() -> AbstractContextManager[Any]:
            return self.execution.casting(device)

        if device.type == "cpu":
            return HostFlow(steps, self.numbers, self.policy, self.gathers, self.layout, casting)
        decider = Decider(self.policy)
        if device.type == "cuda" and self.graphs and not plain:
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
