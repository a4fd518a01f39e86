"""Multi-exit training inside timm's own: a `TrainingTask`."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.objectives.criterion import ExitCriterion
from odn_hybrid.training.objectives.registry import PLAIN

__all__ = ["MultiExitTask"]

_Base: Any = nn.Module
try:
    from timm.task import TrainingTask

    if hasattr(TrainingTask, "get_trainable_module"):
        _Base = TrainingTask
except ImportError:  # timm before tasks: the class below says so when somebody makes one
    pass
HAS_TASKS = _Base is not nn.Module


class _Trained(nn.Module):
    """What an optimizer is made from: the network, and the objective with its own parameters."""

    def __init__(self, network: MultiExit, criterion: ExitCriterion) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = self.network(images)
        return self.criterion(logits, target), logits


class MultiExitTask(_Base):
    """Trains all exits of a network by an objective, in a training loop of timm's kind.

    What timm evaluates and keeps as the model is the backbone itself, with its own state-dict keys: the
    deepest exit. The exit heads and the objective's parameters are the task's state in timm's checkpoints.

    Args:
        network: all its exits are trained.
        loss: a name in the registry of objectives.
        loss_args: its options.
        device, dtype, verbose: as timm's tasks take them. The network is moved to the device.

    Raises `ConfigError` where the installed timm has no such tasks, or for an unknown objective.

    Example:
        >>> import timm, torch, odn_hybrid as odn
        >>> from odn_hybrid.training.objectives.task import MultiExitTask
        >>> network = odn.MultiExit(odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32))
        >>> task = MultiExitTask(network, loss="depth_reg", verbose=False)
        >>> optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1)
        >>> task(torch.rand(2, 3, 32, 32), torch.tensor([3, 7]))["loss"].backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        network: MultiExit,
        loss: str = "depth_reg",
        loss_args: dict[str, Any] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        if not HAS_TASKS:
            raise ConfigError(
                f"timm {timm.__version__} has no training tasks; install timm 1.0.31 or later, or use "
                "ExitCriterion in a loop of your own"
            )
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.loss = loss
        trained = _Trained(network, ExitCriterion(network, loss, **(loss_args or {})))
        self.trainable_module: nn.Module = trained.to(self.device)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """Images (batch, channels, height, width) and labels (batch,), or soft targets (batch, classes).

        Gives `loss`, `output`: logits (batch, classes) of the deepest exit, and `exits`: those of all.
        """
        loss, logits = self.trainable_module(input, target)
        return {"loss": loss, "output": logits[-1], "exits": logits}

    # --- what timm's loop asks for ----------------------------------------------------------------

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> MultiExitTask:
        """Wrap what trains in `DistributedDataParallel`."""
        from torch.nn.parallel import DistributedDataParallel

        ddp_kwargs.setdefault("find_unused_parameters", self.loss == PLAIN)
        self.trainable_module = DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: Any) -> nn.Module:
        """Compile the training forward in place, which leaves all keys as they are; gives the eval model."""
        self._trained().compile(backend=backend, mode=mode, **kwargs)
        return self.get_eval_model()

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        """The backbone, or the one of the average of the weights; None where there is no average."""
        if module is None and ema and not self.has_ema():
            return None
        return self._trained(module, ema).network.backbone

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """State of the exit heads, of thin networks' normalisation, and of the objective."""
        trained = self._trained(module, ema)
        parts = {name: getattr(trained.network, name).state_dict() for name in ("heads", "norms")}
        return {**parts, "criterion": trained.criterion.state_dict()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Take up `get_task_state`; nothing for None."""
        if state is not None:
            trained = self._trained(module, ema)
            trained.network.heads.load_state_dict(state["heads"], strict=strict)
            trained.network.norms.load_state_dict(state.get("norms", {}), strict=strict)
            trained.criterion.load_state_dict(state["criterion"], strict=strict)

    def _trained(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        """The pair of network and criterion inside timm's and torch's wrappers."""
        found: Any = self.get_trainable_module(ema=ema) if module is None else module
        while not isinstance(found, _Trained):
            found = found.module  # of DistributedDataParallel, or of timm's average
        return found
