"""The Snell rule of a network in training: an online backward induction over its exits.

Solves, for the network as it stands, the stopping problem by which `depth_reg` weighs its exits; theory and
check: theory/depth_regularizer.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["StoppingRule"]


class StoppingRule(nn.Module):
    """Says which exit each input of a batch would stop at, and learns from the batch.

    Stopping at exit k is expected to cost 1 - p_k, p_k the probability that the exit gives its answer. Going
    on costs V_{k+1} + lam (C_{k+1} - C_k), V the cost under the rule from there. What stopping saves is kept
    as a running average over inputs of similar margin at exit k (`BINS` bins of the margin's logit, `HORIZON`
    inputs); they stop where it is 0 or more. What is learnt counts from the next batch on.

    The rule is adapted: it sees neither the label nor a deeper exit when it stops. All inputs teach all
    exits, whoever would have stopped before. It has no parameters; its averages are buffers, and the same in
    all processes of a distributed training.

    Args:
        exits: number of exits K.
        lam: price of one run of the whole network, in errors (0.1: a tenth of an answer).
    """

    BINS = 40
    HORIZON = 1000.0
    RANGE = 9.0  # logits of the margin beyond +-9 (margins nearer than 1e-4 to 0 or 1) share the outer bins
    saved: Tensor
    seen: Tensor

    def __init__(self, exits: int, lam: float) -> None:
        super().__init__()
        self.lam = lam
        self.register_buffer("saved", torch.zeros(max(exits - 1, 0), self.BINS))
        self.register_buffer("seen", torch.zeros(max(exits - 1, 0), self.BINS))

    @torch.no_grad()
    def shares(self, logits: list[Tensor], costs: Tensor, *, whole: bool = False) -> Tensor:
        """Part of the batch, over all processes, that stops at each of exits 1..m; sums to 1.

        `logits`: (batch, classes) each; `costs` (m,) cumulative, the whole network's being 1. `whole`: they
        are the same in all processes already, see `ExitOutputs`.
        """
        loss, bins = self._expected(logits)
        stop = self._stops(bins)
        steps = self.lam * costs.diff().to(loss)
        saved = torch.empty_like(loss[:-1])  # by stopping at each exit instead of going on under the rule
        value = loss[-1]
        for k in range(len(loss) - 2, -1, -1):
            going = value + steps[k]
            saved[k] = going - loss[k]
            value = torch.where(stop[k], loss[k], going)
        taken = torch.zeros(len(loss), device=loss.device)
        taken.scatter_add_(0, stop.int().argmax(0), torch.ones_like(value))
        count, total = self._binned(bins[:-1], saved)
        if not whole:
            taken, count, total = _over_processes(taken, count, total)
        if self.training:
            self._learn(count, total)
        return taken / taken.sum()

    def stops(self, logits: list[Tensor]) -> Tensor:
        """Whom the rule would stop at each of exits 1..m, (m, batch) bool; all at the last."""
        return self._stops(self._expected(logits)[1])

    def _expected(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Expected loss (m, batch) of stopping, and bins (m, batch) of the margin."""
        wanted = min(2, logits[0].shape[1])
        tops = torch.stack([z.detach().float().softmax(1).topk(wanted, dim=1).values for z in logits])
        margin = tops[..., 0] - tops[..., 1] if wanted == 2 else tops[..., 0]
        place = (torch.logit(margin, eps=1e-6) / self.RANGE + 1) / 2  # 0 to 1 within the range
        return 1 - tops[..., 0], (place * self.BINS).long().clamp(0, self.BINS - 1)

    def _stops(self, bins: Tensor) -> Tensor:
        m = len(bins) - 1
        stop = (self.seen[:m] > 0) & (self.saved[:m] >= 0)  # of what it has not seen it stops nothing
        return torch.cat([stop.gather(1, bins[:-1]), torch.ones_like(bins[-1:], dtype=torch.bool)])

    def _binned(self, bins: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.zeros(len(bins), self.BINS, device=bins.device)
        return (
            count.scatter_add(1, bins, torch.ones_like(saved)),
            torch.zeros_like(count).scatter_add(1, bins, saved),
        )

    def _learn(self, count: Tensor, total: Tensor) -> None:
        m = len(count)
        before = self.seen[:m].clamp(max=self.HORIZON)
        weight = count / (before + count).clamp(min=1.0)
        self.saved[:m] += weight * (total / count.clamp(min=1.0) - self.saved[:m])
        self.seen[:m] = before + count


def _over_processes(*parts: Tensor) -> list[Tensor]:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(parts)
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    found = flat.split([part.numel() for part in parts])
    return [one.view_as(part) for one, part in zip(found, parts, strict=True)]
