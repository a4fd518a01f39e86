"""Progressive depth expansion as a decision procedure: which exits train now, and what comes next.

Pure bookkeeping: it sees accuracies on the selection split, never a network, so that its rules can be
tested on made-up curves. The phases:

- **warmup**: all depths train in one shared forward while the learning rate rises;
- **expand**: exits up to the current one and a look-ahead train together; what was learnt is kept. With a
  target, a depth is left after `patience` looks without a gain; without one, as soon as the look-ahead is
  better or a look brings no gain;
- **settle**: the chosen depth (with a target) or the whole network (without) trains until it stops gaining;
- **cooldown**: the rate falls to zero over a share of the epochs that trained the depth in question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from odn_hybrid.config import ChoiceConfig, ExpansionConfig

__all__ = ["Expansion", "Progress"]

MIN_LOOK_STEPS = 50  # on tiny data sets an epoch is a few steps: looking after each would see only noise
MIN_COOLDOWN_LOOKS = 2


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a fit stands; plain data, kept in the checkpoint.

    Attributes:
        phase: "warmup", "expand", "settle", "cooldown" or "done".
        current: the exit being grown (expand), or the deepest exit in training (settle, cooldown).
        epoch: epochs done in all; `phase_epochs` in this phase.
        best, stale: best selection accuracy of the current exit in this phase, looks since it gained.
        cooldown_epochs: length of the cooldown once it has begun.
        train_macs, seconds: what the search has cost so far; `by_depth`: epochs per deepest active exit.
    """

    phase: str = "warmup"
    current: int = 1
    epoch: int = 0
    phase_epochs: int = 0
    best: float = -1.0
    stale: int = 0
    cooldown_epochs: int = 0
    train_macs: float = 0.0
    seconds: float = 0.0
    by_depth: dict[str, float] = field(default_factory=dict)
    stopped_by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)


class Expansion:
    """The rules. `observe` turns a look at the selection split into the next `Progress`.

    Args:
        config, choice: the options.
        exits: number of exits K.
        steps_per_epoch: optimizer steps in an epoch.
        epoch_macs: for m = 1..K, training MACs of one epoch with exits 1..m active.
        plain: the objective trains only the deepest exit (no growth: straight to the whole network).
    """

    def __init__(
        self,
        config: ExpansionConfig,
        choice: ChoiceConfig,
        *,
        exits: int,
        steps_per_epoch: int,
        epoch_macs: Sequence[float],
        plain: bool = False,
    ) -> None:
        self.config, self.choice, self.exits = config, choice, exits
        self.epoch_macs = list(epoch_macs)
        self.look_every = max(1, math.ceil(MIN_LOOK_STEPS / steps_per_epoch))
        self.plain = plain
        target = choice.target_accuracy
        self.goal = None if target is None else target - choice.tolerance

    # --- what trains now --------------------------------------------------------------------------

    def first(self) -> Progress:
        """The start of a fit."""
        start = self.exits if self.plain else min(self.config.start, self.exits)
        return self._enter(Progress(current=start), "warmup" if self.config.warmup_epochs > 0 else "expand")

    def active(self, progress: Progress) -> int:
        """The deepest exit that trains in this epoch; all shallower ones train with it."""
        if progress.phase == "warmup":
            return self.exits
        if progress.phase == "expand":
            return min(progress.current + self.config.look_ahead, self.exits)
        return progress.current

    def share(self, progress: Progress) -> float:
        """The part of an epoch to run: the warm-up may be, or end with, a fraction."""
        if progress.phase == "warmup":
            return min(1.0, self.config.warmup_epochs - progress.phase_epochs)
        return 1.0

    def rate(self, progress: Progress, inside: float) -> float:
        """Learning-rate factor at the point `inside` (0 to 1) of the present epoch."""
        done = progress.phase_epochs + inside
        if progress.phase == "warmup":
            return max(min(1.0, done / max(self.config.warmup_epochs, 1e-9)), 0.01)
        if progress.phase == "cooldown":
            return max(0.0, 1 - done / progress.cooldown_epochs)
        return 1.0

    def looks(self, progress: Progress) -> bool:
        """Whether the selection split is looked at after an epoch just counted in `progress`."""
        if progress.phase == "warmup":
            return progress.phase_epochs >= self.config.warmup_epochs
        if progress.phase == "cooldown":
            return progress.phase_epochs >= progress.cooldown_epochs
        return progress.phase_epochs % self.look_every == 0 or self._spent(progress)

    def count(self, progress: Progress, share: float, seconds: float) -> Progress:
        """`progress` after an epoch (or its part) was trained."""
        active = self.active(progress)
        by_depth = dict(progress.by_depth)
        by_depth[str(active)] = by_depth.get(str(active), 0.0) + share
        return replace(
            progress,
            epoch=progress.epoch + 1,
            phase_epochs=progress.phase_epochs + 1,
            train_macs=progress.train_macs + share * self.epoch_macs[active - 1],
            seconds=progress.seconds + seconds,
            by_depth=by_depth,
        )

    # --- what comes next --------------------------------------------------------------------------

    def observe(self, progress: Progress, accuracies: Sequence[float]) -> Progress:
        """The next state after a look; `accuracies` of exits 1..active on the selection split."""
        if progress.phase == "warmup":
            return self._enter(progress, "settle" if self.plain else "expand")
        if progress.phase == "cooldown":
            return replace(progress, phase="done")
        progress = self._note(progress, accuracies[progress.current - 1])
        grown = self._grow(progress, accuracies) if progress.phase == "expand" else progress
        if self._spent(grown):  # what comes next can't be paid for: anneal what there is
            kept = grown if grown.current <= progress.current else progress
            return self._cool(replace(kept, stopped_by="budget"))
        if grown.phase == "settle" and grown.stale >= self.config.settle_patience:
            return self._cool(grown)
        return grown

    def _note(self, progress: Progress, accuracy: float) -> Progress:
        if accuracy >= progress.best + self.config.min_gain:
            return replace(progress, best=accuracy, stale=0)
        return replace(progress, stale=progress.stale + 1)

    def _grow(self, progress: Progress, accuracies: Sequence[float]) -> Progress:
        current = progress.current
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
        if not deeper:
            return progress
        if current == self.exits:
            return self._enter(progress, "settle")
        return self._enter(replace(progress, current=current + 1), "expand")

    def _enter(self, progress: Progress, phase: str) -> Progress:
        if phase == "expand" and self.goal is None and progress.current >= self.exits:
            phase = "settle"
        return replace(progress, phase=phase, phase_epochs=0, best=-1.0, stale=0)

    def _cool(self, progress: Progress) -> Progress:
        length = self.cooldown_length(progress)
        return replace(self._enter(progress, "cooldown"), cooldown_epochs=length)

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
        limit = self.config.max_train_macs
        if limit is None:
            return False
        now = self.epoch_macs[self.active(progress) - 1] * self.look_every
        cooling = self.epoch_macs[progress.current - 1] * length
        return progress.train_macs + now + cooling > limit
