"""The published procedure (arXiv 2510.10764), for comparison: one depth after another, each from the start.

After a warm-up that sums the cross-entropy of all depths, ONE depth trains with its own head: shallower
heads idle and deeper units do not run. A depth that has not reached the goal after `patience` epochs
without a gain of validation accuracy is given up: the next one starts from the warm-up's weights with a fresh
optimizer. One that reaches it goes on until `patience` epochs bring no gain. The weights of the best
validation accuracy are what is kept. There is no average of weights and no cooldown.

Details are those of the authors' programs (github.com/saktx/Optimally_Deep_Networks): accuracies are rounded
to a tenth of a point before the goal is reached and to a hundredth afterwards; the rate falls by
`rate_factor` at every `rate_patience`-th epoch without a gain; depths after the first start at `later_rate`
times its rate; the last depth is fine-tuned from its first epoch on. Their programs forget the best accuracy
when they go deeper; their logs were written by a version that did not (`carry_best`). Two things differ
here. The warm-up sums the losses in one shared forward, theirs in one forward per depth: the gradient is the
same, running statistics of batch normalisation take in each batch once. A last short batch of an epoch is
left out, as everywhere.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from odn_hybrid.training.objectives import ExitOutputs
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.procedure.progress import BEST, RELOAD, START, Look, Progress

__all__ = ["Reloading", "SummedCrossEntropy"]

COARSE, FINE = 1, 2  # decimals of an accuracy in percent before and after the goal is reached
ROUNDING = 1e-9
DRAWS = 100_000  # more than any depth has epochs


class SummedCrossEntropy(nn.Module):
    """The sum of the mean cross-entropies of the exits that ran: of all in the warm-up, of one afterwards."""

    def forward(self, outputs: ExitOutputs) -> Tensor:
        """Scalar, in nats."""
        return torch.stack([loss.mean() for loss in outputs.losses()]).sum()


class Reloading(Expansion):
    """The rules of the published procedure; see the module.

    Phase "expand" is a depth below the goal, "settle" its fine-tuning; a look follows each epoch. Needs a
    target accuracy.
    """

    def first(self) -> Progress:
        """The start of a fit."""
        current = min(self.config.start, self.exits)
        if self.config.reload.warmup_epochs > 0:
            return Progress(phase="warmup", current=current)
        return Progress(phase="expand", current=current, then=START)

    def alone(self, progress: Progress) -> bool:
        """Only the deepest active exit trains, the warm-up apart."""
        return progress.phase != "warmup"

    def active(self, progress: Progress) -> int:
        """All depths in the warm-up, then the one in training."""
        return self.exits if progress.phase == "warmup" else progress.current

    def draw(self, progress: Progress) -> int:
        """The same for an epoch of a depth however long the depths before took, as its first weights are."""
        if progress.phase == "warmup":
            return progress.phase_epochs
        return progress.current * DRAWS + progress.phase_epochs

    def share(self, progress: Progress) -> float:
        """The part of an epoch to run."""
        if progress.phase == "warmup":
            return min(1.0, self.config.reload.warmup_epochs - progress.phase_epochs)
        return 1.0

    def rate(self, progress: Progress, inside: float) -> float:
        """Learning-rate factor; it changes from epoch to epoch only."""
        reload = self.config.reload
        if progress.phase == "warmup":
            falling = (1 + math.cos(math.pi * progress.phase_epochs / reload.warmup_epochs)) / 2
            return reload.warmup_rate * falling
        first = progress.current == min(self.config.start, self.exits)
        return progress.rate * (1.0 if first else reload.later_rate)

    def looks(self, progress: Progress) -> bool:
        """After every epoch, and at the end of the warm-up."""
        return progress.phase != "warmup" or progress.phase_epochs >= self.config.reload.warmup_epochs

    def observe(self, progress: Progress, look: Look) -> Progress:
        """The next state after a look."""
        if progress.phase == "warmup":
            return replace(progress, phase="expand", phase_epochs=0, then=START)
        progress = self._gained(progress, look.accuracies[progress.current - 1])
        if progress.stale >= self.config.reload.patience:
            if progress.phase == "settle":
                return replace(progress, phase="done")
            if self._over(progress, 1, self.alone_macs[progress.current]):
                return replace(progress, phase="done", stopped_by="budget")
            deeper = replace(progress, current=progress.current + 1, phase_epochs=0)
            best = progress.best if self.config.reload.carry_best else -1.0
            progress = replace(deeper, best=best, stale=0, rate=1.0, then=RELOAD)
        if progress.phase == "expand" and self._arrived(progress):
            progress = replace(progress, phase="settle")
        return self._within_budget(progress)

    def _gained(self, progress: Progress, accuracy: float) -> Progress:
        seen = round(100 * accuracy, COARSE if progress.phase == "expand" else FINE) / 100
        if seen > progress.best:
            return replace(progress, best=seen, stale=0, then=BEST)
        stale, reload = progress.stale + 1, self.config.reload
        rate = progress.rate * (reload.rate_factor if stale % reload.rate_patience == 0 else 1.0)
        return replace(progress, stale=stale, rate=rate, then=None)

    def _arrived(self, progress: Progress) -> bool:
        """Whether nothing deeper will be tried."""
        assert self.goal is not None
        return progress.current == self.exits or progress.best >= self.goal - ROUNDING

    def _within_budget(self, progress: Progress) -> Progress:
        """`progress`, or its end where the next epoch cannot be paid for.

        A depth that has just begun has no weights to keep; whether its first epoch can be paid for was asked
        before.
        """
        if progress.then == RELOAD or not self._over(progress, 1, self.alone_macs[progress.current - 1]):
            return progress
        return replace(progress, phase="done", stopped_by="budget")
