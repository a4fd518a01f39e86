"""An objective as a criterion: for timm's `TrainingTask`, or a training loop of one's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odn_hybrid.cost import count_costs
from odn_hybrid.errors import InputError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.objectives.registry import ExitOutputs, build_objective

__all__ = ["ExitCriterion"]


class ExitCriterion(nn.Module):
    """Maps what a multi-exit network answers, and labels, to the loss of a registered objective.

    Args:
        network: the network in training; its costs are counted once.
        objective: a name in the registry.
        **args: the objective's options.

    Its parameters (those of the objective, if it has any) are to be trained with the network's; a task that
    holds it as its criterion lists them. Raises `ConfigError` as `build_objective` does.

    Example:
        >>> import timm, torch, odn_hybrid as odn
        >>> from timm.task import ClassificationTask
        >>> from odn_hybrid.training.objectives.criterion import ExitCriterion
        >>> network = odn.MultiExit(odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32))
        >>> task = ClassificationTask(network, ExitCriterion(network, "distill"), verbose=False)
        >>> task(torch.rand(2, 3, 32, 32), torch.tensor([3, 7]))["loss"].backward()
    """

    shares: Tensor

    def __init__(self, network: MultiExit, objective: str = "joint", **args: object) -> None:
        super().__init__()
        self.objective = build_objective(objective, len(network), **args)
        costs = count_costs(network).cumulative
        self.register_buffer("shares", torch.tensor([cost / costs[-1] for cost in costs]), persistent=False)

    def forward(self, logits: list[Tensor], labels: Tensor) -> Tensor:
        """Logits of exits 1..m, each (batch, classes), and labels (batch,) or soft targets -> the loss.

        Raises `InputError` for what is not a list of that kind.
        """
        if not isinstance(logits, (list, tuple)) or not 1 <= len(logits) <= len(self.shares):
            kind = f"{len(logits)} tensors" if isinstance(logits, (list, tuple)) else type(logits).__name__
            raise InputError(
                f"the criterion got {kind}; give the list of logits that a network of {len(self.shares)} "
                "exits returns"
            )
        loss: Tensor = self.objective(ExitOutputs(list(logits), labels, self.shares[: len(logits)]))
        return loss
