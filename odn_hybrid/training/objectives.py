"""Training objectives over the exits of one forward, in a registry.

An objective sees the logits of the active exits (1 to m), the labels, and what reaching each exit
costs; it returns a scalar. A function of one's own is registered in three lines:

    @register_objective("mine")
    def mine(outputs, *, power=2.0):
        return outputs.losses().mean()
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid.errors import ConfigError

__all__ = ["OBJECTIVES", "PLAIN", "ExitOutputs", "build_objective", "register_objective"]


@dataclass(frozen=True)
class ExitOutputs:
    """What an objective sees.

    Attributes:
        logits: one tensor (batch, classes) for each active exit 1..m, from the shallowest.
        labels: (batch,) class indices.
        costs: (m,) MACs of an input that stops at each exit over those of the whole network, in (0, 1].
    """

    logits: list[Tensor]
    labels: Tensor
    costs: Tensor

    def losses(self) -> Tensor:
        """Cross-entropy in nats of each exit on each input, (m, batch)."""
        return torch.stack([F.cross_entropy(z.float(), self.labels, reduction="none") for z in self.logits])


Objective = nn.Module
PLAIN = "cross_entropy"  # the objective that trains the deepest exit alone
OBJECTIVES: dict[str, Callable[..., Any]] = {}


class _FunctionObjective(nn.Module):
    def __init__(self, function: Callable[..., Tensor], args: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args = function, args

    def forward(self, outputs: ExitOutputs) -> Tensor:
        return self.function(outputs, **self.args)


def register_objective(name: str) -> Callable[[Any], Any]:
    """Register a function `(outputs, **args) -> scalar`, or a Module class `(exits, **args)`."""

    def add(thing: Any) -> Any:
        OBJECTIVES[name] = thing
        return thing

    return add


def build_objective(name: str, exits: int, **args: Any) -> nn.Module:
    """Build a registered objective for K = `exits` exits.

    Raises `ConfigError` for an unknown name or options that it does not take.
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
    return F.cross_entropy(outputs.logits[-1].float(), outputs.labels)


@register_objective("joint")
def joint(outputs: ExitOutputs, *, deepest: float = 0.0) -> Tensor:
    """Mean cross-entropy of all active exits; `deepest` is extra weight moved to the deepest of them."""
    if not 0 <= deepest <= 1:
        raise ConfigError(f"objective 'joint': deepest is {deepest!r}; it must be from 0 to 1")
    losses = outputs.losses().mean(1)
    return (1 - deepest) * losses.mean() + deepest * losses[-1]


@register_objective("depth_reg")
class DepthRegularised(nn.Module):
    r"""The optimal-stopping objective: train the exits for the depth at which inputs really stop.

    Our construction after Qi 2025 (Optimal Depth of Neural Networks, arXiv 2506.16862), derived in
    `theory/depth_regularizer.md`. Each exit k sends a stop signal :math:`s_k(x) \in (0, 1)`: a linear gate
    on three statistics of its own logits (largest probability, margin, entropy), so it is adapted: it
    sees neither the label nor a deeper exit. The signals define a randomised stopping time,

    .. math:: p_k = s_k \prod_{j<k} (1 - s_j), \qquad p_m = \prod_{j<m} (1 - s_j),

    and with exit losses :math:`l_k` and cumulative costs :math:`C_k` the relaxed stopping problem is to
    minimise :math:`E \sum_k p_k (l_k + \lambda C_k)`. It is split by who can act on it:

    - the gates minimise it for the losses as they are (no gradient to the network: confidence is not bent
      to please a gate);
    - the network minimises :math:`\sum_k w_k E[l_k]` with
      :math:`w_k = a/m + b [k = m] + c E[p_k]`: a joint term, one that keeps the deepest exit strong, the
      halting distribution of the population. Weights per input would take the training signal from the
      inputs an early exit still gets wrong.

    Where the exits are thin networks nothing halts: an input is given to one of them. The price is then that
    network's own, and the halting distribution only weighs how much each of them trains.

    Args:
        exits: number of exits K (the gates; the last has none).
        lam: price :math:`\lambda` of one run of the whole network, in nats of cross-entropy.
        deepest: b, weight of the deepest active exit.
        halting: c, weight of the halting distribution; a = 1 - b - c is the joint term's.
    """

    #: Gradient steps on the gates are cheap but their inputs lie in [0, 1]: this scale sets their pace.
    SCALE = 4.0
    #: Signals stay within [FLOOR, 1 - FLOOR]: a gate that closed on everything would starve those behind it
    #: of gradient and never learn that going on has become worth while (theory/depth_regularizer.md).
    FLOOR = 0.02

    def __init__(self, exits: int, *, lam: float = 0.1, deepest: float = 0.3, halting: float = 0.3) -> None:
        super().__init__()
        if lam < 0:
            raise ConfigError(f"objective 'depth_reg': lam is {lam!r}; a price must be 0 or more")
        if deepest < 0 or halting < 0 or deepest + halting > 1:
            raise ConfigError(
                f"objective 'depth_reg': deepest {deepest!r} and halting {halting!r} must be 0 or more, "
                "their sum at most 1"
            )
        self.lam, self.deepest, self.halting = lam, deepest, halting
        self.slope = nn.Parameter(torch.zeros(max(exits - 1, 0), 3))
        self.offset = nn.Parameter(torch.full((max(exits - 1, 0),), -1.0))

    def stop_signals(self, logits: list[Tensor]) -> Tensor:
        """Stop signals (m - 1, batch) of the exits before the deepest active one; no gradient to logits."""
        features = torch.stack([_statistics(z.detach().float()) for z in logits[:-1]])
        m = len(logits) - 1
        score = torch.einsum("kbf,kf->kb", features, self.slope[:m]) * self.SCALE
        return self.FLOOR + (1 - 2 * self.FLOOR) * torch.sigmoid(score + self.offset[:m, None])

    def halting_distribution(self, logits: list[Tensor]) -> Tensor:
        """Probabilities (m, batch) of stopping at each active exit; they sum to 1 over exits."""
        if len(logits) == 1:
            return torch.ones(1, logits[0].shape[0], device=logits[0].device)
        stop = self.stop_signals(logits)
        going = torch.cumprod(1 - stop, dim=0)
        before = torch.cat([torch.ones_like(going[:1]), going[:-1]])
        return torch.cat([stop * before, going[-1:]])

    def forward(self, outputs: ExitOutputs) -> Tensor:
        losses = outputs.losses()
        m = losses.shape[0]
        halting = self.halting_distribution(outputs.logits)
        price = self.lam * outputs.costs.to(losses)
        gates = (halting * (losses.detach() + price[:, None])).sum(0).mean()
        weights = (1 - self.deepest - self.halting) / m + self.halting * halting.detach().mean(1)
        weights[-1] = weights[-1] + self.deepest
        return (weights * losses.mean(1)).sum() + gates


def _statistics(logits: Tensor) -> Tensor:
    """Largest probability, margin between the two largest, entropy over log classes: (batch, 3) in [0, 1]."""
    probabilities = logits.softmax(1)
    top = probabilities.topk(2, dim=1).values
    entropy = -(probabilities * logits.log_softmax(1)).sum(1) / math.log(logits.shape[1])
    return torch.stack([top[:, 0], top[:, 0] - top[:, 1], entropy], dim=1)
