"""The optimal-stopping objective: exits trained for the depth at which inputs would stop."""

from __future__ import annotations

import math

from torch import Tensor, nn

from odn_hybrid.errors import ConfigError
from odn_hybrid.training.objectives.registry import (
    ExitOutputs,
    check_distillation,
    exit_losses,
    register_objective,
)
from odn_hybrid.training.objectives.stopping_rule import StoppingRule

__all__ = ["DepthRegularised"]


@register_objective("depth_reg")
class DepthRegularised(nn.Module):
    r"""The optimal-stopping objective: train the exits for the depth at which inputs really stop.

    Our construction after Qi 2025 (Optimal Depth of Neural Networks, arXiv 2506.16862), derived in
    `theory/depth_regularizer.md`. With exit losses :math:`l_k` and cumulative costs :math:`C_k` the stopping
    problem is to minimise :math:`E[l_\tau + \lambda C_\tau]` over rules :math:`\tau` that see only what the
    exits passed have said. It is split by who can act on it:

    - a `StoppingRule` solves it for the network as it stands, by an online backward induction;
    - the network minimises :math:`\sum_k w_k E[l_k]` with
      :math:`w_k = a/m + b [k = m] + c P(\tau = k)`: a joint term, so that every exit stays a candidate, one
      that keeps the deepest exit strong, and the part of the population that stops at each exit. By the
      envelope theorem the last is how the optimal value changes with the mean loss of exit k. Weights per
      input would take the training signal from the inputs an early exit still gets wrong.

    Where the exits are thin networks nothing halts: an input is given to one of them. The price is then that
    network's own, and the shares only weigh how much each of them trains.

    Args:
        exits: number of exits K.
        lam: price :math:`\lambda` of one run of the whole network, in errors (0.1: a tenth of an answer).
        deepest: b, weight of the deepest active exit.
        halting: c, weight of the shares that stop; a = 1 - b - c is the joint term's.
        distill, temperature: self-distillation from the deepest exit, see `exit_losses`.
    """

    def __init__(
        self,
        exits: int,
        *,
        lam: float = 0.1,
        deepest: float = 0.3,
        halting: float = 0.3,
        distill: float = 0.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        if not (isinstance(lam, (int, float)) and 0 <= lam < math.inf):
            raise ConfigError(f"objective 'depth_reg': lam is {lam!r}; a price must be 0 or more")
        numbers = all(isinstance(part, (int, float)) for part in (deepest, halting))
        if not (numbers and deepest >= 0 and halting >= 0 and deepest + halting <= 1):
            raise ConfigError(
                f"objective 'depth_reg': deepest {deepest!r} and halting {halting!r} must be 0 or more, "
                "their sum at most 1"
            )
        check_distillation("depth_reg", distill, temperature)
        self.deepest, self.halting = deepest, halting
        self.distill, self.temperature = distill, temperature
        self.rule = StoppingRule(exits, lam)

    def weights(self, outputs: ExitOutputs) -> Tensor:
        """Weights (m,) of the exits' mean losses; they sum to 1. The rule learns from the batch."""
        shares = self.rule.shares(outputs.logits, outputs.costs, whole=outputs.whole)
        weights = (1 - self.deepest - self.halting) / len(shares) + self.halting * shares
        weights[-1] += self.deepest
        return weights

    def forward(self, outputs: ExitOutputs) -> Tensor:
        """The loss, a scalar tensor."""
        losses = exit_losses(outputs, distill=self.distill, temperature=self.temperature)
        return (self.weights(outputs) * losses.mean(1)).sum()
