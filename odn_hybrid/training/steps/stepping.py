"""One optimizer step: a forward of the active exits, the objective, the weights and their average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from odn_hybrid.config import FitConfig
from odn_hybrid.errors import TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.devices.compiling import CompiledForward, check_compiler
from odn_hybrid.training.devices.parallel import Parallel
from odn_hybrid.training.devices.precision import resolve_precision
from odn_hybrid.training.devices.processes import Processes
from odn_hybrid.training.objectives import PLAIN, ExitOutputs
from odn_hybrid.training.procedure.progress import BEST, RELOAD, START
from odn_hybrid.training.steps.averaging import WeightAverage
from odn_hybrid.training.steps.optimizing import make_optimizer

__all__ = ["Stepper", "trains_alone"]


def trains_alone(network: MultiExit, config: FitConfig) -> bool:
    """Whether every step runs the deepest active exit only (the published procedure's warm-up runs all).

    The plain objective asks for no other. With prefix plans the shallower exits cost their heads only and run
    all the same; thinner networks would cost a forward each, and their activations would enter the statistics
    of batch normalisation of a network that is trained without them.
    """
    plain = config.objective.name == PLAIN and config.expansion.procedure != "reload"
    return plain and not network.shares_prefix


class Stepper:
    """Holds what a step changes: network, objective, optimizer, and the average of the weights.

    Args:
        network, objective: moved to the accelerator's device and trained in place.
        config: the recipe.
        cost_shares: (K,) MACs to each exit over those of the last.
        average_steps: horizon of the average of the weights in steps; None for no average.
        class_weights: (classes,) weights of the classes in the loss; None for none.
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
        class_weights: Tensor | None = None,
        images: int | None = None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        self.alone = trains_alone(network, config)
        self.dtype = resolve_precision(config.precision, device, network)
        self.maps = network.trunk.layout(1).kind == "NCHW"
        self.network = network.to(device)
        if self.maps:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.objective = objective.to(device)
        self.processes = Processes(accelerator)
        self.processes.align(self.network)  # a user's module may have other first weights in each process
        self.processes.align(self.objective)
        self.network = self._to_train(self.network)
        self.optimizer, self.base_rates = make_optimizer(
            self.network, self.objective, config, self.maps, images
        )
        self.ema = None if average_steps is None else self._averaged(average_steps)
        self._cost_shares = torch.tensor(list(cost_shares), device=device)
        self.class_weights = None if class_weights is None else class_weights.to(device)
        if config.compile:
            check_compiler(device)
        compiled = CompiledForward(self.network) if config.compile else None
        self.parallel = self._in_parallel(compiled)
        self.held: dict[str, dict[str, Tensor]] = {}  # weights to return to

    # --- what sharded weights need otherwise (`sharded.ShardedStepper`) ------------------------------

    def _to_train(self, network: MultiExit) -> MultiExit:
        return network

    def _averaged(self, horizon: float) -> WeightAverage:
        return WeightAverage(self.network, horizon)

    def _in_parallel(self, compiled: CompiledForward | None) -> Parallel:
        return Parallel(self.network, self.objective, self.processes, compiled=compiled)

    def _clip(self, norm: float) -> None:
        self.accelerator.clip_grad_norm_([*self.network.parameters(), *self.objective.parameters()], norm)

    # --- training ---------------------------------------------------------------------------------

    @property
    def evaluated(self) -> MultiExit:
        """The network that is looked at and kept: the average, where there is one."""
        return self.ema.network if self.ema is not None else self.network

    def step(
        self, images: Tensor, labels: Tensor, active: int, *, alone: bool = False, size: int | None = None
    ) -> Tensor:
        """Train exits 1..active on a batch, or the last of them alone; returns the loss, detached.

        `labels` are class indices (batch,) or soft targets (batch, classes). The recipe's `accumulate`
        forwards share the batch evenly; of an objective that is a mean over inputs the gradient is the same
        (batch normalisation, and what an objective takes from a whole batch, see their own part). `size`:
        images of the batch in all processes together, of which `images` are this one's.

        Raises `TrainingError`.
        """
        if self.maps:
            images = images.contiguous(memory_format=torch.channels_last)
        only, size = alone or self.alone, size or len(images)
        # A forward of one image has no variance for batch normalisation.
        parts = max(1, min(self.config.optim.accumulate, len(images) // 2))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=images.device)
        for number, (some, theirs) in enumerate(
            zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True), start=1
        ):
            with self.parallel.gradients(active, alone=only, last=number == parts):
                with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    logits = self.parallel.forward(some, active, alone=only)
                logits, theirs = self.parallel.whole(logits, theirs, size, number - 1, parts)
                loss = self._loss(logits, theirs, active) * (len(theirs) / size)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.parallel.finish()
        if self.config.optim.clip_grad is not None:
            self._clip(self.config.optim.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network, active)
        return total

    def _loss(self, logits: list[Tensor], labels: Tensor, active: int) -> Tensor:
        loss: object = self.objective(
            ExitOutputs(
                logits,
                labels,
                self._cost_shares[active - len(logits) : active],
                smoothing=self.config.optim.label_smoothing,
                class_weights=self.class_weights,
                whole=True,
            )
        )
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
            raise TrainingError(
                f"objective {self.config.objective.name!r} gave {_kind(loss)}; it must return one number, a "
                "0-dimensional tensor computed from the logits"
            )
        return loss

    def set_rate(self, factor: float) -> None:
        """Each group's rate as a multiple of its full rate."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def settle(self) -> None:
        """Make the networks the same in all processes, before they are looked at or kept."""
        self.parallel.average_buffers(self.network, *([self.ema.network] if self.ema is not None else []))

    def keep(self) -> None:
        """Put the averaged or the best weights into the network: training is over."""
        if BEST in self.held:
            self.network.load_state_dict(self.held[BEST])
        if self.ema is not None:
            self.network.load_state_dict(self.ema.network.state_dict())

    def follow(self, order: str | None) -> None:
        """Hold the weights as START or BEST, or RELOAD: those of the start again, and a fresh optimizer."""
        if order == RELOAD:
            self.held.pop(BEST, None)  # of another depth: in a network of this one they would be a mixture
            self.network.load_state_dict(self.held[START])
            self.optimizer.state.clear()
        elif order is not None:
            weights = self.network.state_dict()
            self.held[order] = {name: value.detach().cpu().clone() for name, value in weights.items()}

    def state(self) -> dict[str, dict[str, object]]:
        """State dictionaries by part."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"held": dict(self.held)}

    def load_state(self, states: dict[str, dict[str, object]], steps: int) -> None:
        """Take up `state()` of another process; `steps` that the average has seen."""
        for name, part in self._parts().items():
            part.load_state_dict(states[name])
        self.held = cast(dict[str, dict[str, Tensor]], states.get("held", {}))
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
