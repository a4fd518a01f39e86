"""Candidate relaxations of the stopping problem, as objectives: the field that `depth_reg` was chosen from.

Each weighs the exits' losses by who stops where. `kind` says how that is decided:

- `power`: not at all; weights rise as a power of the cost (0 is the plain joint objective);
- `confidence`: the share of inputs that a fixed confidence threshold stops at each exit;
- `snell`: the share that the Snell rule of the moment stops there, from an online backward induction
  (which compares an input's own loss with its bin's mean; `depth_reg` compares means);
- `hindsight`: per input, soft-Bellman stop weights that know the label;
- `own`: per input, the Snell rule's own choice;
- `hinge`: per input, how much going on would gain beyond its price.

All have a joint part, a part for the deepest exit and a part for the halting weights, and may add
self-distillation from the deepest exit. `decoupled`: the weights are for the trunk's gradient only, and every
head learns from its own loss in full.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid.exits import register_head
from odn_hybrid.exits.heads import LinearHead
from odn_hybrid.training import ExitOutputs, register_objective

BINS = 32
MEMORY = 0.98  # of the running averages, per step
TAU = 0.3


@register_objective("relaxation")
class Relaxation(nn.Module):
    """See the module's text. `lam` is the price of the whole network, in errors (nats for `hindsight`)."""

    def __init__(
        self,
        exits: int,
        *,
        kind: str = "power",
        deepest: float = 0.3,
        halting: float = 0.3,
        lam: float = 0.1,
        power: float = 0.0,
        threshold: float = 0.9,
        distill: float = 0.0,
        temperature: float = 2.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__()
        self.decoupled = decoupled
        self.kind, self.deepest, self.halting, self.lam = kind, deepest, halting, lam
        self.power, self.threshold, self.distill, self.temperature = power, threshold, distill, temperature
        self.going: Tensor
        self.register_buffer("going", torch.full((exits, BINS), 1.0))

    def forward(self, outputs: ExitOutputs) -> Tensor:
        losses = outputs.losses()
        m = len(outputs.logits)
        costs = outputs.costs.to(losses)
        base = costs**self.power
        base = base / base.sum()
        if self.kind == "power":
            weights, halting = base.clone(), 0.0
        else:
            halting = self.halting
            weights = (1 - self.deepest - halting) * base
        if self.kind == "power":
            weights = (1 - self.deepest) * weights
        weights[-1] = weights[-1] + self.deepest
        taught = losses
        if self.distill and m > 1:
            taught = (1 - self.distill) * losses + self.distill * self._from_deepest(outputs.logits)
        if self.decoupled:
            if halting:
                weights = weights + halting * self._taken(outputs.logits, costs).mean(1)
            Scaled.weights = weights[:-1].tolist()
            return taught[:-1].mean(1).sum() + weights[-1] * taught[-1].mean()
        total = (weights * taught.mean(1)).sum()
        if halting:
            total = total + halting * self._halting(outputs, taught, losses.detach(), costs)
        return total

    def _from_deepest(self, logits: list[Tensor]) -> Tensor:
        t = self.temperature
        teacher = (logits[-1].detach().float() / t).log_softmax(1)
        rows = [
            F.kl_div((z.float() / t).log_softmax(1), teacher, reduction="none", log_target=True).sum(1)
            * t
            * t
            for z in logits[:-1]
        ]
        return torch.stack([*rows, torch.zeros_like(rows[0])])

    def _halting(self, outputs: ExitOutputs, taught: Tensor, losses: Tensor, costs: Tensor) -> Tensor:
        if self.kind == "hindsight":
            return (_hindsight(losses, costs, self.lam) * taught).sum(0).mean()
        if self.kind == "hinge":
            later = losses + self.lam * costs[:, None]
            best = later.flip(0).cummin(0).values.flip(0)
            return (
                torch.relu(taught[:-1] - (best[1:] - self.lam * costs[:-1, None])).mean() + taught[-1].mean()
            )
        taken = self._taken(outputs.logits, costs)  # (m, batch) one-hot
        if self.kind == "own":
            return (taken * taught).sum(0).mean()
        return (taken.mean(1) * taught.mean(1)).sum()

    @torch.no_grad()
    def _taken(self, logits: list[Tensor], costs: Tensor) -> Tensor:
        tops = torch.stack([z.detach().float().softmax(1).topk(2, dim=1).values for z in logits])
        if self.kind == "confidence":
            stop = tops[..., 0] >= self.threshold
        else:
            stop = self._snell(1 - tops[..., 0], tops[..., 0] - tops[..., 1], costs)
        stop[-1] = True
        first = stop.float().cumsum(0).eq(1) & stop
        return first.float()

    def _snell(self, loss: Tensor, margin: Tensor, costs: Tensor) -> Tensor:
        """Whom the rule stops, (m, batch); the rule is brought up to date with this batch."""
        m = len(loss)
        stop = torch.ones_like(loss, dtype=torch.bool)
        value = loss[-1]
        bins = (margin * BINS).long().clamp(0, BINS - 1)
        for k in range(m - 2, -1, -1):
            on = value + self.lam * (costs[k + 1] - costs[k])
            count = torch.zeros(BINS, device=on.device).index_add_(0, bins[k], torch.ones_like(on))
            total = torch.zeros(BINS, device=on.device).index_add_(0, bins[k], on)
            keep = MEMORY ** count.clamp(max=8)
            self.going[k] = torch.where(
                count > 0, keep * self.going[k] + (1 - keep) * total / count.clamp(min=1), self.going[k]
            )
            stop[k] = loss[k] <= self.going[k][bins[k]]
            value = torch.where(stop[k], loss[k], on)
        return stop


class Scaled(torch.autograd.Function):
    """Its input as it is; the gradient of exit k's features times that exit's weight (of the step before)."""

    weights: ClassVar[list[float]] = []
    heads: ClassVar[dict[int, int]] = {}

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: int) -> Tensor:
        ctx.number = number
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        known = Scaled.weights
        return grad * (known[ctx.number] if ctx.number < len(known) else 1.0), None


@register_head("decoupled")
class DecoupledHead(LinearHead):
    """The linear head; what it sends back to the trunk is scaled. Heads are numbered as they first speak."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = Scaled.apply(x, Scaled.heads.setdefault(id(self), len(Scaled.heads)))
        return super().forward(x)


def _hindsight(losses: Tensor, costs: Tensor, lam: float) -> Tensor:
    """Soft-Bellman stop weights (m, batch), knowing every exit's loss."""
    price = lam * costs[:, None]
    value, stops = losses[-1] + price[-1], [torch.ones_like(losses[-1])]
    for k in range(len(losses) - 2, -1, -1):
        now = losses[k] + price[k]
        stop = torch.sigmoid((value - now) / TAU)
        value = stop * now + (1 - stop) * value
        stops.insert(0, stop)
    left, weights = torch.ones_like(losses[0]), []
    for stop in stops:
        weights.append(left * stop)
        left = left * (1 - stop)
    return torch.stack(weights)


@register_objective("gates")
class Gates(nn.Module):
    """Population weights from a halting distribution of learned gates, which `depth_reg` was before.

    A gate at each exit is linear in three statistics of the exit's own logits; the gates alone minimise the
    expected loss plus price (nats), the network the losses weighed by the batch's mean halting distribution.
    """

    SCALE, FLOOR = 4.0, 0.02

    def __init__(self, exits: int, *, lam: float = 0.1, deepest: float = 0.3, halting: float = 0.3) -> None:
        super().__init__()
        self.lam, self.deepest, self.halting = lam, deepest, halting
        self.slope = nn.Parameter(torch.zeros(exits - 1, 3))
        self.offset = nn.Parameter(torch.full((exits - 1,), -1.0))

    def forward(self, outputs: ExitOutputs) -> Tensor:
        """The loss of network and gates."""
        losses = outputs.losses()
        m = len(losses)
        features = torch.stack([_statistics(z.detach().float()) for z in outputs.logits[:-1]])
        score = torch.einsum("kbf,kf->kb", features, self.slope[: m - 1]) * self.SCALE
        stop = self.FLOOR + (1 - 2 * self.FLOOR) * torch.sigmoid(score + self.offset[: m - 1, None])
        going = torch.cumprod(1 - stop, dim=0)
        halting = torch.cat([stop * torch.cat([torch.ones_like(going[:1]), going[:-1]]), going[-1:]])
        price = self.lam * outputs.costs.to(losses)
        gates = (halting * (losses.detach() + price[:, None])).sum(0).mean()
        weights = (1 - self.deepest - self.halting) / m + self.halting * halting.detach().mean(1)
        weights[-1] = weights[-1] + self.deepest
        return (weights * losses.mean(1)).sum() + gates


def _statistics(logits: Tensor) -> Tensor:
    """Largest probability, margin, entropy over log classes: (batch, 3) in [0, 1]."""
    probabilities = logits.softmax(1)
    top = probabilities.topk(2, dim=1).values
    entropy = -(probabilities * logits.log_softmax(1)).sum(1) / math.log(logits.shape[1])
    return torch.stack([top[:, 0], top[:, 0] - top[:, 1], entropy], dim=1)
