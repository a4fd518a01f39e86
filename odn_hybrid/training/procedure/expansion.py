"""Progressive depth expansion as a decision procedure: which exits train now, and what comes next.

Pure bookkeeping: it sees answers on the selection split, never a network, so that its rules can be tested on
made-up curves. The phases:

- **backbone** (fine-tuning only): the deepest exit trains alone, the mixed regime of arXiv 2407.14320;
- **warmup**: all depths train in one shared forward while the learning rate rises;
- **expand**: exits up to the current one and a look-ahead train together; what was learnt is kept. With a
  target, a depth is left after `patience` looks without a gain; without one, as soon as the look-ahead is
  better or a look brings no gain;
- **settle**: the chosen depth (with a target) or the whole network (without) trains until it stops gaining;
- **cooldown**: the rate falls to zero over a share of the epochs that trained the depth in question.

All exits up to the deepest in training are trained together, so that the procedure can go back at any look:
to the shallowest exit that meets the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from odn_hybrid.config import ChoiceConfig, ExpansionConfig
from odn_hybrid.training.procedure.progress import Look, Progress

__all__ = ["Expansion", "Progress"]

MIN_LOOK_STEPS = 50  # on tiny data sets an epoch is a few steps: looking after each would see only noise
MIN_COOLDOWN_LOOKS = 2


class Expansion:
    """The rules. `observe` turns a look at the selection split into the next `Progress`.

    Args:
        config, choice: the options.
        exits: number of exits K.
        steps_per_epoch: optimizer steps in an epoch.
        epoch_macs: for m = 1..K, training MACs of one epoch with exits 1..m active.
        alone_macs: the same with exit m alone; `epoch_macs` if left out.
        plain: the objective trains only the deepest exit (no growth: straight to the whole network).
        schedule: shape in which the rate falls in the cooldown, "linear" or "cosine".
        seeded: `config.start` was found by another fit: a backbone phase does not change it.
    """

    def __init__(
        self,
        config: ExpansionConfig,
        choice: ChoiceConfig,
        *,
        exits: int,
        steps_per_epoch: int,
        epoch_macs: Sequence[float],
        alone_macs: Sequence[float] | None = None,
        plain: bool = False,
        schedule: str = "linear",
        seeded: bool = False,
    ) -> None:
        self.config, self.choice, self.exits = config, choice, exits
        self.epoch_macs = list(epoch_macs)
        self.alone_macs = list(epoch_macs if alone_macs is None else alone_macs)
        self.look_every = max(1, math.ceil(MIN_LOOK_STEPS / steps_per_epoch))
        self.plain, self.seeded = plain, seeded
        self.schedule = schedule
        target = choice.target_accuracy
        self.goal = None if target is None else target - choice.tolerance

    # --- what trains now --------------------------------------------------------------------------

    def first(self) -> Progress:
        """The start of a fit."""
        tuned = bool(self.config.backbone_epochs)
        whole = self.plain or (tuned and not self.seeded)
        start = Progress(current=self.exits if whole else min(self.config.start, self.exits))
        if tuned and not self.plain:
            return replace(start, phase="backbone")
        return self._start(start)

    def _start(self, progress: Progress) -> Progress:
        return self._warm(progress) if self.config.warmup_epochs <= 0 else self._enter(progress, "warmup")

    def _warm(self, progress: Progress) -> Progress:
        """What follows the warm-up."""
        return self._enter(progress, "settle" if self.plain else "expand")

    def active(self, progress: Progress) -> int:
        """The deepest exit that trains in this epoch; all shallower ones train with it."""
        if progress.phase in ("backbone", "warmup"):
            return self.exits
        if progress.phase == "expand":
            return min(progress.current + self.config.look_ahead, self.exits)
        return progress.current

    def alone(self, progress: Progress) -> bool:
        """Whether the deepest active exit runs and trains alone, without the heads before it."""
        return progress.phase == "backbone"

    def draw(self, progress: Progress) -> int:
        """The number that, with the seed, decides the order and augmentation of the present epoch."""
        return progress.epoch

    def share(self, progress: Progress) -> float:
        """The part of an epoch to run: backbone phase and warm-up may be, or end with, a fraction."""
        length = self._length(progress)
        return 1.0 if length is None else min(1.0, length - progress.phase_epochs)

    def _length(self, progress: Progress) -> float | None:
        """Epochs of the phase, where they are settled beforehand."""
        lengths = {"backbone": self.config.backbone_epochs or 0.0, "warmup": self.config.warmup_epochs}
        return lengths.get(progress.phase)

    def rate(self, progress: Progress, inside: float) -> float:
        """Learning-rate factor at the point `inside` (0 to 1) of the present epoch."""
        done = progress.phase_epochs + inside
        if progress.phase in ("backbone", "warmup"):
            return max(min(1.0, done / max(self.config.warmup_epochs, 1e-9)), 0.01)
        if progress.phase == "cooldown":
            left = max(0.0, 1 - done / progress.cooldown_epochs)
            return left if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
        return 1.0

    def looks(self, progress: Progress) -> bool:
        """Whether the selection split is looked at after an epoch just counted in `progress`."""
        length = self._length(progress)
        if length is not None:
            return progress.phase_epochs >= length
        if progress.phase == "cooldown":
            return progress.phase_epochs >= progress.cooldown_epochs
        return progress.phase_epochs % self.look_every == 0 or self._spent(progress)

    def count(self, progress: Progress, share: float, seconds: float) -> Progress:
        """`progress` after an epoch (or its part) was trained."""
        active = self.active(progress)
        by_depth = dict(progress.by_depth)
        by_depth[str(active)] = by_depth.get(str(active), 0.0) + share
        macs = self.alone_macs if self.alone(progress) else self.epoch_macs
        return replace(
            progress,
            epoch=progress.epoch + 1,
            phase_epochs=progress.phase_epochs + 1,
            train_macs=progress.train_macs + share * macs[active - 1],
            seconds=progress.seconds + seconds,
            by_depth=by_depth,
        )

    # --- what comes next --------------------------------------------------------------------------

    def observe(self, progress: Progress, look: Look) -> Progress:
        """The next state after a look at exits 1..active on the selection split."""
        if progress.phase == "backbone":
            return self._start(progress)
        if progress.phase == "warmup":
            return self._warm(progress)
        if progress.phase == "cooldown":
            return replace(progress, phase="done")
        progress = self._note(progress, self._noted(progress, look))
        grown = self._grow(progress, look) if progress.phase == "expand" else self._settled(progress, look)
        if self._spent(grown):  # what comes next can't be paid for: anneal what there is
            kept = grown if grown.current <= progress.current else progress
            return self._cool(replace(kept, stopped_by="budget"))
        if grown.phase == "settle" and grown.stale >= self.config.settle_patience:
            return self._cool(grown)
        return grown

    def _noted(self, progress: Progress, look: Look) -> float:
        """The accuracy whose gains are waited for."""
        return look.accuracies[progress.current - 1]

    def _settled(self, progress: Progress, look: Look) -> Progress:
        """What a look changes while the chosen depth trains; here nothing."""
        return progress

    def _note(self, progress: Progress, accuracy: float) -> Progress:
        if accuracy >= progress.best + self.config.min_gain:
            return replace(progress, best=accuracy, stale=0)
        return replace(progress, stale=progress.stale + 1)

    def _grow(self, progress: Progress, look: Look) -> Progress:
        current, accuracies = progress.current, look.accuracies
        if self.goal is not None:
            for number in range(1, current + 1):
                if accuracies[number - 1] >= self.goal:
                    return self._enter(replace(progress, current=number), "settle")
            deeper = progress.stale >= self.config.patience
        else:
            ahead = accuracies[current:]
            gain = max(ahead, default=0.0) - accuracies[current - 1]
            # The end will be reached anyway, so a depth that has stopped gaining isn't waited for.
            deeper = gain >= self.config.min_gain or progress.stale >= 1
        return self._deeper(progress) if deeper else progress

    def _deeper(self, progress: Progress) -> Progress:
        if progress.current == self.exits:
            return self._enter(progress, "settle")
        return self._enter(replace(progress, current=progress.current + 1), "expand")

    def _enter(self, progress: Progress, phase: str) -> Progress:
        if phase == "expand" and self.goal is None and progress.current >= self.exits:
            phase = "settle"
        return replace(progress, phase=phase, phase_epochs=0, best=-1.0, stale=0, before=-1.0)

    def _cool(self, progress: Progress) -> Progress:
        # Going back to a shallower exit may make it longer than what the looks before have left for it.
        length = self.cooldown_length(progress)
        while length > MIN_COOLDOWN_LOOKS * self.look_every and self._too_long(progress, length):
            length -= 1
        return replace(self._enter(progress, "cooldown"), cooldown_epochs=length)

    def _too_long(self, progress: Progress, length: int) -> bool:
        """Whether a cooldown of so many epochs that begins now goes over the budget."""
        if progress.epoch + length > self.config.max_looks * self.look_every:
            return True
        return self._over(progress, length, self.epoch_macs[progress.current - 1] * length)

    def cooldown_length(self, progress: Progress) -> int:
        """Epochs of a cooldown that would begin now: a share of those that trained the current exit."""
        at_least = MIN_COOLDOWN_LOOKS * self.look_every
        trained = sum(n for active, n in progress.by_depth.items() if int(active) >= progress.current)
        return max(at_least, math.ceil(self.config.cooldown * trained))

    def _spent(self, progress: Progress) -> bool:
        """Whether one more look, and the cooldown after it, would go over the budget."""
        length = self.cooldown_length(progress) + math.ceil(self.config.cooldown * self.look_every)
        if progress.epoch + self.look_every + length > self.config.max_looks * self.look_every:
            return True
        now = self.epoch_macs[self.active(progress) - 1] * self.look_every
        cooling = self.epoch_macs[progress.current - 1] * length
        return self._over(progress, self.look_every + length, now + cooling)

    def _over(self, progress: Progress, epochs: int, macs: float) -> bool:
        """Whether so many more epochs and MACs go over a budget; time is foreseen by the pace so far."""
        limits = self.config
        if limits.max_epochs is not None and progress.epoch + epochs > limits.max_epochs:
            return True
        if limits.max_minutes is not None and progress.train_macs > 0:
            pace = progress.seconds / progress.train_macs
            if progress.seconds + pace * macs > 60 * limits.max_minutes:
                return True
        limit = limits.max_train_macs
        return limit is not None and progress.train_macs + macs > limit
