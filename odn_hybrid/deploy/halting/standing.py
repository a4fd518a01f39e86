"""Whether a certificate speaks of a model as it is now, cheaply enough to ask with every batch."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.deploy.halting.registering import registered
from odn_hybrid.deploy.promising.promise import why_void
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import weights_digest
from odn_hybrid.stopping import HaltingTable

__all__ = ["Standing"]


#: Modules that do the same in training mode: nobody needs to ask each of them with every batch.
INERT = {nn.Conv2d, nn.Linear, nn.Identity, nn.Sequential, nn.ReLU, nn.GELU, nn.LayerNorm, nn.Flatten}
_TRAINS = attrgetter("training")


class Standing:
    """Judges a certificate again whenever weights change by what torch counts.

    Changes through `tensor.data` go unseen.

    Args:
        network: whose answers it speaks of.
        certificate: as `run.dynamic` gives it, or None.
        policy: the table in force.
        execution: what computes.
        exits: the network's exits that the policy's are.
    """

    def __init__(
        self,
        network: MultiExit,
        certificate: dict[str, Any] | None,
        policy: HaltingTable,
        execution: Execution,
        exits: tuple[int, ...],
    ) -> None:
        self.network, self.policy, self.execution, self.exits = network, policy, execution, exits
        self._certificate = copy.deepcopy(certificate)
        self._listed = -1
        self._tensors: list[Tensor] = []
        self._modules: list[nn.Module] = []
        self._made_of = 0
        self._judged: tuple[Any, str | None] | None = None

    @property
    def certificate(self) -> dict[str, Any] | None:
        """A copy of the certificate: what is promised cannot be edited."""
        return copy.deepcopy(self._certificate)

    @property
    def void(self) -> str | None:
        """Why the certificate does not speak of the model as it is now; None where it does."""
        if self._certificate is None:
            return "there is no certificate"
        self._list()
        device = self._tensors[0].device
        runtime = self.execution.name(device)
        known = self._known(runtime)
        if self._judged is None or self._judged[0] != known:
            self._listed = -1  # what was moved or cast may have been replaced as well
            self._list()
            digest = weights_digest(self.network)
            found = why_void(self._certificate, digest, self.policy, runtime, self.exits)
            self._judged = (self._known(runtime), found)
        return self._judged[1]

    def _known(self, runtime: str) -> Any:
        """Changes with every change of weights that torch counts, and where they are moved or cast."""
        versions = [-1 if t.is_inference() else t._version for t in self._tensors]
        return self._listed, versions, [t.data_ptr() for t in self._tensors], runtime

    @property
    def weights(self) -> list[Tensor]:
        """Parameters and buffers."""
        self._list()
        return self._tensors

    @property
    def made_of(self) -> int:
        """Changes when a module of the network is replaced."""
        self._list()
        return self._made_of

    @property
    def training(self) -> bool:
        """Whether any part of the network that knows a difference is in training mode."""
        self._list()
        return any(map(_TRAINS, self._modules))

    def speaks(self, images: Tensor) -> bool:
        """Whether answers to `images` are certified: in evaluation, fp32 images, no autocast around."""
        if self._certificate is None:
            return False
        usual = images.dtype == torch.float32 and not self.training
        return usual and not torch.is_autocast_enabled(images.device.type) and self.void is None

    def _list(self) -> None:
        now = registered()
        if now != self._listed:
            self._tensors = [*self.network.parameters(), *self.network.buffers()]
            self._modules = [m for m in self.network.modules() if type(m) not in INERT]
            self._made_of = hash(tuple(id(module) for module in self.network.modules()))
            self._listed = now
