"""One optimizer step: a forward of the active exits, the objective, the weights and their average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from odn_hybrid.config import FitConfig
from odn_hybrid.errors import TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.averaging import WeightAverage
from odn_hybrid.training.objectives import PLAIN, ExitOutputs
from odn_hybrid.training.optimizing import make_optimizer
from odn_hybrid.training.precision import resolve_precision

__all__ = ["Stepper", "trains_alone"]


def trains_alone(network: MultiExit, objective: str) -> bool:
    """Whether a step runs the deepest active exit only.

    The plain objective asks for no other. With prefix plans the shallower exits cost their heads only and run
    all the same; thinner networks would cost a forward each, and their activations would enter the statistics
    of batch normalisation of a network that is trained without them.
    """
    return objective == PLAIN and not network.shares_prefix


class Stepper:
    """Holds what a step changes: network, objective, optimizer, and the average of the weights.

    Args:
        network, objective: moved to the accelerator's device and trained in place.
        config: the recipe.
        cost_shares: (K,) MACs to each exit over those of the last.
        average_steps: horizon of the average of the weights in steps; None for no average.
    """

    def __init__(
        self,
        network: MultiExit,
        objective: nn.Module,
        *,
        config: FitConfig,
        cost_shares: Sequence[float],
        accelerator: Accelerator,
        average_steps: float | None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        self.alone = trains_alone(network, config.objective.name)
        self.dtype = resolve_precision(config.precision, device, network)
        self.maps = network.trunk.layout(1).kind == "NCHW"
        self.network = network.to(device)
        if self.maps:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.objective = objective.to(device)
        self.optimizer, self.base_rates = make_optimizer(self.network, self.objective, config, self.maps)
        self.ema = None if average_steps is None else WeightAverage(self.network, average_steps)
        self._cost_shares = torch.tensor(list(cost_shares), device=device)

    @property
    def evaluated(self) -> MultiExit:
        """The network that is looked at and kept: the average, where there is one."""
        return self.ema.network if self.ema is not None else self.network

    def step(self, images: Tensor, labels: Tensor, active: int) -> Tensor:
        """Train exits 1..active on a batch; returns the loss, detached. Raises `TrainingError`."""
        if self.maps:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = [self.network.at(images, active)] if self.alone else self.network(images, active)
        loss = self.objective(ExitOutputs(logits, labels, self._cost_shares[active - len(logits) : active]))
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
            raise TrainingError(
                f"objective {self.config.objective.name!r} gave {_kind(loss)}; it must return one number, a "
                "0-dimensional tensor computed from the logits"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if self.config.optim.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network, active)
        return loss.detach()

    def set_rate(self, factor: float) -> None:
        """Each group's rate as a multiple of its full rate."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def keep(self) -> None:
        """Put the averaged weights into the network: training is over."""
        if self.ema is not None:
            self.network.load_state_dict(self.ema.network.state_dict())

    def state(self) -> dict[str, dict[str, object]]:
        """State dictionaries by part."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state(self, states: dict[str, dict[str, object]], steps: int) -> None:
        """Take up `state()` of another process; `steps` that the average has seen."""
        for name, part in self._parts().items():
            part.load_state_dict(states[name])
        if self.ema is not None:
            self.ema.steps = steps

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "network": self.network,
            "objective": self.objective,
            "optimizer": self.optimizer,
        }
        return parts | ({"ema": self.ema.network} if self.ema is not None else {})


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" + (
            "" if value.requires_grad else " without gradient"
        )
    return f"a {type(value).__name__}"
