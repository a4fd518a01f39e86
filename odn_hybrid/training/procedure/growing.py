"""Growth decided by paired tests (`expansion.decide: test`): leave a depth early, stop early, go back.

The exits of one look answer the same images, so that two of them are compared on the images that they answer
differently, with the exact test of the certificate. Look number t spends delta * 6 / (pi^2 t^2) on all its
tests together, delta in all: the tests are valid at any time one looks
(theory/target_to_depth.md, which also says what remains once looks have steered the training).

With a target, a depth is left before its patience is used up when an exit ahead is shown to be better by
more than the tolerance, and the goal is out of reach: a learning curve that bends down gains at most its last
gain with every further look, and `HORIZON` times the patience of such looks would not lead there from the
upper confidence bound of its accuracy. That curves bend down is an assumption, not a theorem; where it
fails, a shallower exit that reaches the goal later is gone back to, also while the deeper one settles.

Without a target, growth goes on as soon as an exit ahead is shown to be better, and stops when none of those
in training has gained for `patience` looks and the current one is shown to be no worse than each ahead,
within the tolerance. The most accurate of them is the reference then; the rest of the network stays
untrained. What cannot be shown either way goes deeper.
"""

from __future__ import annotations

from dataclasses import replace

from odn_hybrid.stopping import PairedTest, clopper_pearson, look_level
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.procedure.progress import Look, Progress

__all__ = ["Growing"]

HORIZON = 2.0


class Growing(Expansion):
    """The library's procedure with tests; see the module."""

    def _noted(self, progress: Progress, look: Look) -> float:
        if self.goal is None and progress.phase == "expand":
            return max(look.accuracies[progress.current - 1 :])
        return super()._noted(progress, look)

    def _grow(self, progress: Progress, look: Look) -> Progress:
        progress = replace(progress, looks=progress.looks + 1)
        now = replace(progress, before=look.accuracies[progress.current - 1])
        ahead = range(progress.current + 1, len(look.accuracies) + 1)
        if self.goal is None:
            return self._untargeted(now, look, ahead)
        grown = super()._grow(now, look)
        stays = grown.phase == "expand" and grown.current == progress.current
        return self._deeper(now) if stays and self._hopeless(progress, look, ahead) else grown

    def _settled(self, progress: Progress, look: Look) -> Progress:
        """Back to the shallowest exit that meets the target by now."""
        if self.goal is not None and not self.plain:
            for number in range(1, progress.current):
                if look.accuracies[number - 1] >= self.goal:
                    return self._enter(replace(progress, current=number), "settle")
        return progress

    def _untargeted(self, progress: Progress, look: Look, ahead: range) -> Progress:
        if not ahead or not look.n:
            return super()._grow(progress, look)
        current = progress.current
        level = look_level(self.choice.delta, progress.looks) / (2 * len(ahead))
        if any(_surplus(look, number, current, self.choice.tolerance, level) > 0 for number in ahead):
            return self._deeper(progress)
        if progress.stale < self.config.patience:
            return progress
        if all(_no_worse(look, current, number, self.choice.tolerance, level) for number in ahead):
            best = max([current, *ahead], key=lambda number: (look.accuracies[number - 1], -number))
            return self._enter(replace(progress, current=best), "settle")
        return self._deeper(progress)

    def _hopeless(self, progress: Progress, look: Look, ahead: range) -> bool:
        """Whether the goal is out of the current exit's reach and an exit ahead is better.

        `progress.before` is of the look before this one.
        """
        if not look.n or not ahead or progress.before < 0:
            return False
        assert self.goal is not None
        level = look_level(self.choice.delta, progress.looks) / (1 + len(ahead))
        accuracy = look.accuracies[progress.current - 1]
        highest = clopper_pearson(round(accuracy * look.n), look.n, 1 - level, "upper")[1]
        pace = max(0.0, accuracy - progress.before)
        if highest + HORIZON * self.config.patience * pace >= self.goal:
            return False
        tolerance = self.choice.tolerance
        return any(_surplus(look, n, progress.current, tolerance, level) > tolerance for n in ahead)


def _surplus(look: Look, better: int, worse: int, tolerance: float, level: float) -> float:
    """Lower 1 - level confidence bound on the accuracy of exit `better` less that of `worse`."""
    return -_paired(look, worse, better, tolerance, level).upper_bound()


def _no_worse(look: Look, exit: int, other: int, tolerance: float, level: float) -> bool:
    """Whether `exit` is shown to lose less than the tolerance against `other`."""
    return _paired(look, other, exit, tolerance, level).rejects()


def _paired(look: Look, before: int, after: int, tolerance: float, level: float) -> PairedTest:
    wrong, right = look.lost[before - 1][after - 1], look.lost[after - 1][before - 1]
    return PairedTest(look.n, wrong, right, tolerance, level)
