"""How plain models are run in a comparison: as the dynamic one is, so that nothing but the model differs.

On CUDA a halting model runs as CUDA graphs; then the plain ones do, too, one graph per batch size. On the CPU
neither calls its modules one by one (`halting.straight`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.deploy.halting.graphflow import Replay
from odn_hybrid.deploy.halting.straight import Direct
from odn_hybrid.deploy.truncation.truncate import compiled
from odn_hybrid.execution import Execution

__all__ = ["Captured", "captured_call", "formed"]


class _Cast(nn.Module):
    """A model whose computations are done in an execution's precision."""

    def __init__(self, model: nn.Module, execution: Execution, device: torch.device) -> None:
        super().__init__()
        self.model, self._execution, self._device = model, execution, device

    def forward(self, images: Tensor) -> Any:
        with self._execution.casting(self._device):
            return self.model(images)


class Captured(nn.Module):
    """A plain model with fixed buffers, captured once per batch size; on the CPU it is called each time."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self._device = model, device
        self._known: dict[int, tuple[Tensor, Callable[[], Any]]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """The model's answers (batch, classes)."""
        if len(images) not in self._known:
            held = images.clone()
            self._known[len(images)] = held, captured_call(lambda: self.model(held), self._device)
        held, call = self._known[len(images)]
        held.copy_(images)
        answers: Tensor = call()
        return answers.clone()


def captured_call(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """`call`, of buffers that never move, as a CUDA graph; itself on other devices."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # captures are refused on the default stream
        replay = Replay(call, device, torch.cuda.graph_pool_handle())
    torch.cuda.current_stream(device).wait_stream(stream)
    return replay


def formed(model: nn.Module, execution: Execution, device: torch.device) -> nn.Module:
    """A plain model, folded already if it is to be, compiled, cast and captured as `execution` says."""
    model = model.to(device).eval()
    if execution.compile:
        model = compiled(model)
    elif device.type == "cpu":
        model = Direct(model)
    if execution.precision != "fp32":
        model = _Cast(model, execution, device)
    return (Captured(model, device) if device.type == "cuda" else model).eval()
