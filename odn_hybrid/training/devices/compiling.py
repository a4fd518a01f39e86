"""The forward of a training step through `torch.compile`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odn_hybrid.backbone import evaluating
from odn_hybrid.errors import ConfigError, TrainingError
from odn_hybrid.exits import MultiExit

__all__ = ["CompiledForward", "check_compiler"]

#: One graph for each depth in training; torch's own limit is 8, after which it runs eagerly with a warning.
MOST_GRAPHS = 256


def check_compiler(device: torch.device) -> None:
    """Raise `ConfigError` where `torch.compile` lacks what it needs: on a CPU, a C++ compiler."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device.type == "cpu" and sys.platform != "win32" and not any(map(shutil.which, wanted)):
        raise ConfigError(
            f"compile needs a C++ compiler on a CPU and finds none ({', '.join(wanted)}); install g++, or "
            "leave compile out"
        )


class CompiledForward:
    """Compiled versions of a network's forward, made when they are first needed.

    The network itself is left as it is: its modules, its state-dict keys, and how it is evaluated.
    """

    def __init__(self, network: MultiExit) -> None:
        self.network = network
        self._known: set[tuple[int, ...]] = set()  # sizes of images whose route is known
        self._every: Callable[..., list[Tensor]] = torch.compile(network.forward, dynamic=False)
        self._one: Callable[..., Tensor] = torch.compile(network.at, dynamic=False)

    def every(self, images: Tensor, active: int) -> list[Tensor]:
        """Logits of exits 1..active. Raises `TrainingError` where torch cannot compile them."""
        found: list[Tensor] = self._call(self._every, images, active)
        return found

    def one(self, images: Tensor, active: int) -> Tensor:
        """Logits of exit `active` alone. Raises `TrainingError` where torch cannot compile them."""
        found: Tensor = self._call(self._one, images, active)
        return found

    def _call(self, function: Callable[..., Any], images: Tensor, active: int) -> Any:
        from torch._dynamo import config
        from torch._dynamo.exc import TorchDynamoException

        # How the model runs such images is found out eagerly, if it is not known; a graph must not do that.
        if tuple(images.shape[1:]) not in self._known:
            with torch.no_grad(), evaluating(self.network):
                self.network.trunk.stem(images[:1])
            self._known.add(tuple(images.shape[1:]))
        try:
            with config.patch(recompile_limit=MOST_GRAPHS):
                return function(images, active)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"torch.compile failed on this network ({type(error).__name__}: {reason}); leave compile out"
            ) from None
