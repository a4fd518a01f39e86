"""Training objectives over the exits of one forward, in a registry.

An objective sees the logits of the active exits (1 to m), the labels, and what reaching each exit
costs; it returns a scalar. A function of one's own is registered in three lines:

    @register_objective("mine")
    def mine(outputs, *, power=2.0):
        return outputs.losses().pow(power).mean()

and named as any other: `fit(model, loss="mine")`. It is called with one exit or several, of prefixes or of
thin networks. `ExitCriterion` makes any objective a criterion for timm's tasks or a loop of one's own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid.errors import ConfigError

__all__ = [
    "OBJECTIVES",
    "PLAIN",
    "ExitOutputs",
    "build_objective",
    "check_distillation",
    "exit_losses",
    "register_objective",
]


@dataclass(frozen=True)
class ExitOutputs:
    """What an objective sees.

    Attributes:
        logits: one tensor (batch, classes) for each active exit 1..m, from the shallowest.
        labels: (batch,) class indices; with mixup or cutmix soft targets (batch, classes), rows of sum 1.
        costs: (m,) MACs of an input that stops at each exit over those of the whole network, in (0, 1].
        smoothing: the part of every target that is spread evenly over the classes.
        class_weights: (classes,) weights of the targets' classes; None weighs all alike.
        whole: in a training over several processes, each sees all of the batch; else each sees its own part.

    Example:
        >>> import torch
        >>> from odn_hybrid.training import ExitOutputs
        >>> logits = [torch.zeros(2, 5), torch.zeros(2, 5)]
        >>> seen = ExitOutputs(logits, torch.tensor([0, 1]), torch.tensor([0.5, 1.0]))
        >>> seen.losses().shape
        torch.Size([2, 2])
    """

    logits: list[Tensor]
    labels: Tensor
    costs: Tensor
    smoothing: float = 0.0
    class_weights: Tensor | None = None
    whole: bool = False

    def losses(self) -> Tensor:
        """Cross-entropy in nats of each exit on each input, (m, batch), by the recipe's targets."""
        return torch.stack([self._loss(z) for z in self.logits])

    def deepest_loss(self) -> Tensor:
        """The mean of the last row of `losses()`, without computing the others."""
        if self.class_weights is None:
            return self._loss(self.logits[-1], "mean")
        return self._loss(self.logits[-1]).mean()

    def _loss(self, logits: Tensor, reduction: str = "none") -> Tensor:
        # Means over a batch are not divided by its weights: "balanced" weights have mean 1 over the data.
        return F.cross_entropy(
            logits.float(),
            self.labels,
            weight=self.class_weights,
            reduction=reduction,
            label_smoothing=self.smoothing,
        )


Objective = nn.Module
PLAIN = "cross_entropy"  # the objective that trains the deepest exit alone
#: Objectives by the names that recipes use: functions `(outputs, **args)`, or classes `(exits, **args)`.
OBJECTIVES: dict[str, Callable[..., Any]] = {}


class _FunctionObjective(nn.Module):
    def __init__(self, function: Callable[..., Tensor], args: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args = function, args

    def forward(self, outputs: ExitOutputs) -> Tensor:
        return self.function(outputs, **self.args)


def register_objective(name: str) -> Callable[[Any], Any]:
    """Register a function `(outputs, **args) -> scalar`, or a Module class `(exits, **args)`, under `name`.

    Example:
        >>> from odn_hybrid.training import OBJECTIVES, build_objective, register_objective
        >>> @register_objective("worst")
        ... def worst(outputs):
        ...     return outputs.losses().max()
        >>> "worst" in OBJECTIVES, build_objective("worst", exits=4).training
        (True, True)
    """

    def add(thing: Any) -> Any:
        OBJECTIVES[name] = thing
        return thing

    return add


def build_objective(name: str, exits: int, **args: Any) -> nn.Module:
    """Build the objective registered as `name` for K = `exits` exits, with options `args` of its own.

    Raises `ConfigError` for an unknown name or options that it does not take.

    Example:
        >>> import torch
        >>> from odn_hybrid.training import ExitOutputs, build_objective
        >>> seen = ExitOutputs([torch.zeros(2, 5)] * 3, torch.tensor([0, 1]), torch.tensor([0.3, 0.6, 1.0]))
        >>> round(float(build_objective("joint", exits=3)(seen)), 3)
        1.609
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"unknown objective {name!r}; known objectives: {', '.join(sorted(OBJECTIVES))}")
    thing = OBJECTIVES[name]
    try:
        inspect.signature(thing).bind(None, **args)
    except TypeError as error:
        raise ConfigError(f"objective {name!r}: {error}") from None
    if inspect.isclass(thing):
        built: nn.Module = cast(Any, thing)(exits, **args)
        return built
    return _FunctionObjective(thing, args)


@register_objective(PLAIN)
def cross_entropy(outputs: ExitOutputs) -> Tensor:
    """Cross-entropy of the deepest active exit alone: plain training of a network of that depth."""
    return outputs.deepest_loss()


def exit_losses(outputs: ExitOutputs, *, distill: float = 0.0, temperature: float = 2.0) -> Tensor:
    r"""What each exit is to lower on each input, (m, batch): its loss, or in part d = `distill` a teacher's.

    The teacher is the deepest active exit m, as it stands (no gradient): Hinton et al. 2015 (arXiv
    1503.02531) within one network, after Phuong & Lampert 2019 ("Distillation-based training for multi-exit
    architectures", ICCV). With :math:`q_k = softmax(z_k / T)` and losses :math:`l_k`,

    .. math:: (1 - d) l_k + d T^2 KL(q_m \| q_k) \quad (k < m), \qquad l_m.

    The factor :math:`T^2` keeps the gradient's size as T changes. Raises `ConfigError` for numbers that
    `check_distillation` refuses.
    """
    check_distillation("exit_losses", distill, temperature)
    losses = outputs.losses()
    if distill == 0 or len(losses) == 1:
        return losses
    *taught, teacher = [(z.float() / temperature).log_softmax(1) for z in outputs.logits]
    target = teacher.detach()
    apart = [F.kl_div(z, target, reduction="none", log_target=True).sum(1) for z in taught]
    mixed = (1 - distill) * losses[:-1] + distill * temperature**2 * torch.stack(apart)
    return torch.cat([mixed, losses[-1:]])


def check_distillation(name: str, distill: float, temperature: float) -> None:
    """Raise `ConfigError`, in the name of objective `name`, for numbers that `exit_losses` cannot use."""
    _within(name, "distill", distill, 0, 1)
    if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise ConfigError(f"objective {name!r}: temperature is {temperature!r}; it must be above 0")


def _within(name: str, option: str, value: float, low: float, high: float) -> None:
    if not (isinstance(value, (int, float)) and low <= value <= high):
        raise ConfigError(f"objective {name!r}: {option} is {value!r}; it must be from {low:g} to {high:g}")


@register_objective("joint")
class Joint(nn.Module):
    """The losses of all active exits, weighted by exit.

    Args:
        exits: number of exits K.
        deepest: part (0 to 1) of the weight that goes to the deepest active exit alone.
        power: the rest is divided in proportion to an exit's cost to this power (0 or above): 0 is the mean;
            larger ones leave shallow exits, which few inputs will stop at, less of a say in the trunk.
    """

    name: ClassVar[str] = "joint"

    def __init__(self, exits: int, *, deepest: float = 0.0, power: float = 0.0) -> None:
        super().__init__()
        _within(self.name, "deepest", deepest, 0, 1)
        _within(self.name, "power", power, 0, 8)
        self.deepest, self.power = deepest, power

    def forward(self, outputs: ExitOutputs) -> Tensor:
        return self._mean(outputs.losses(), outputs.costs)

    def _mean(self, losses: Tensor, costs: Tensor) -> Tensor:
        each = losses.mean(1)
        shared = costs.to(each) ** self.power
        return (1 - self.deepest) * (shared / shared.sum() * each).sum() + self.deepest * each[-1]


@register_objective("distill")
class Distilled(Joint):
    """`joint`, and the deepest active exit teaches the others; see `exit_losses` for formula and sources.

    Args:
        exits: number of exits K; of one exit alone it is `joint`.
        weight: d, the part (0 to 1) of an exit's loss that is the teacher's answer instead of the label.
        temperature: T above 0; larger values tell more of what the teacher holds possible beside its answer.
        deepest, power: as for `joint`.
    """

    name: ClassVar[str] = "distill"

    def __init__(
        self,
        exits: int,
        *,
        weight: float = 0.5,
        temperature: float = 2.0,
        deepest: float = 0.0,
        power: float = 0.0,
    ) -> None:
        super().__init__(exits, deepest=deepest, power=power)
        _within("distill", "weight", weight, 0, 1)
        check_distillation("distill", weight, temperature)
        self.weight, self.temperature = weight, temperature

    def forward(self, outputs: ExitOutputs) -> Tensor:
        taught = exit_losses(outputs, distill=self.weight, temperature=self.temperature)
        return self._mean(taught, outputs.costs)
