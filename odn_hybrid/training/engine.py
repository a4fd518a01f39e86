"""The training loop: one epoch at a time, driven by the expansion rules, on accelerate.

Everything random in an epoch (order, augmentation, dropout) is a function of the seed and the epoch's
number, and the checkpoint holds all that training changes. A fit that is killed and resumed therefore
ends, on a CPU, with the same digits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from odn_hybrid.config import FitConfig
from odn_hybrid.cost import Costs
from odn_hybrid.data import Preprocess, Split, make_loader
from odn_hybrid.errors import TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.rundir import RunDir, flatten_state, unflatten_state
from odn_hybrid.training.expansion import Expansion, Progress
from odn_hybrid.training.stepping import Stepper

__all__ = ["Engine", "Listener", "own_randomness", "train_macs_per_image"]

#: Called with one history row at the end of each epoch.
Listener = Callable[[dict[str, Any]], None]


def train_macs_per_image(costs: Costs, active: int, *, alone: bool = False) -> float:
    """Training MACs of one image: three times the forward (design.md's convention).

    Of exits 1..active together; `alone`: of exit `active` only, see `stepping.trains_alone`.
    """
    return 3.0 * (costs.static(active) if alone else costs.joint(active))


class Engine:
    """Trains a multi-exit network by the expansion rules.

    Args:
        network: trained in place; at the end it holds the averaged weights.
        objective: maps `ExitOutputs` to a loss; its own parameters are trained too.
        rules: the expansion procedure.
        train, selection: the two splits that training may see.
        preprocess: the images' transform.
        config: the recipe.
        costs: MACs of the network.
        rundir: where checkpoints and history go; None keeps them in memory only.
        listener: told each history row.
    """

    def __init__(
        self,
        network: MultiExit,
        objective: nn.Module,
        rules: Expansion,
        *,
        train: Split,
        selection: Split,
        preprocess: Preprocess,
        config: FitConfig,
        costs: Costs,
        accelerator: Accelerator,
        rundir: RunDir | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.rules, self.config, self.costs = rules, config, costs
        self.train_split, self.selection, self.preprocess = train, selection, preprocess
        self.accelerator, self.rundir, self.listener = accelerator, rundir, listener
        self.stepper = Stepper(
            network,
            objective,
            config=config,
            cost_shares=[c / costs.cumulative[-1] for c in costs.cumulative],
            accelerator=accelerator,
            average_steps=self._average_steps(),
        )
        self.progress = rules.first()
        self.history: list[dict[str, Any]] = []

    def _average_steps(self) -> float | None:
        """Horizon of the average of the weights, in steps."""
        if self.config.optim.ema_epochs == 0:
            return None
        steps = max(1, len(self.train_split) // self.config.optim.batch_size)
        return max(1.0, self.config.optim.ema_epochs * steps * self.rules.look_every)

    @property
    def network(self) -> MultiExit:
        """The network in training."""
        return self.stepper.network

    @property
    def evaluated(self) -> MultiExit:
        """The network that is looked at and kept."""
        return self.stepper.evaluated

    # --- the procedure ----------------------------------------------------------------------------

    def run(self) -> Progress:
        """Train until the rules say done; afterwards `network` holds the kept weights."""
        try:
            while self.progress.phase != "done":
                self._epoch()
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"the device's memory is too small for batches of {self.config.optim.batch_size} images; "
                "lower optim.batch_size, or the image_size"
            ) from None
        self.stepper.keep()
        return self.progress

    def _epoch(self) -> None:
        before, started = self.progress, time.monotonic()
        torch.manual_seed(self.config.seed * 1_000_003 + before.epoch)
        share = self.rules.share(before)
        loss, images = self._train(before, share)
        active = self.rules.active(before)
        macs = before.train_macs + train_macs_per_image(self.costs, active, alone=self.stepper.alone) * images
        done = self.rules.count(before, share, time.monotonic() - started)
        done = replace(done, train_macs=macs)  # of the images really seen: a last short batch is left out
        accuracies: list[float] | None = None
        if self.rules.looks(done):
            accuracies = self._look(active)
            self.progress = self.rules.observe(done, accuracies)
        else:
            self.progress = done
        self._note(before, done, active, images, loss, accuracies)

    def _train(self, progress: Progress, share: float) -> tuple[float, int]:
        """One epoch, or its first part; returns the mean loss and the number of images seen."""
        active = self.rules.active(progress)
        loader = self.accelerator.prepare_data_loader(
            make_loader(
                self.train_split,
                self.preprocess,
                batch_size=self.config.optim.batch_size,
                augment=self.config.data.augment,
                shuffle=True,
                seed=self.config.seed,
                epoch=progress.epoch,
                workers=self.config.data.workers,
                drop_last=len(self.train_split) > self.config.optim.batch_size,
            )
        )
        steps = max(1, round(share * len(loader)))
        self.network.train()
        total, seen = torch.zeros((), device=self.accelerator.device), 0
        for step, (images, labels, _) in enumerate(loader):
            if step >= steps:
                break
            self.stepper.set_rate(self.rules.rate(progress, (step + 1) / len(loader)))
            total += self.stepper.step(images, labels, active)
            seen += len(labels)
        mean = float(total) / steps
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is {mean} in epoch {progress.epoch + 1}: training has diverged; "
                f"use a lower learning rate than {self.stepper.base_rates[0]:g} (optim.lr)"
            )
        return mean, seen

    def _look(self, active: int) -> list[float]:
        recorded = record_outputs(self.evaluated, self.selection, self.preprocess, upto=active)
        return [float(value) for value in recorded.correct.mean(0)]

    # --- records and checkpoints ------------------------------------------------------------------

    def _note(
        self,
        before: Progress,
        done: Progress,
        active: int,
        images: int,
        loss: float,
        accuracies: list[float] | None,
    ) -> None:
        row = {
            "epoch": done.epoch,
            "phase": before.phase,
            "current": before.current,
            "active": active,
            "images": images,
            "loss": loss,
            "lr": self.stepper.optimizer.param_groups[0]["lr"],
            "selection": accuracies,
            "train_macs": done.train_macs,
            "seconds": round(done.seconds, 3),
            "next": self.progress.phase,
        }
        self.history.append(row)
        if self.rundir is not None:
            self.rundir.append_history(row)
            if accuracies is not None:
                self._save()
        if self.listener is not None:
            self.listener(row)

    def _save(self) -> None:
        assert self.rundir is not None
        tensors, layout = flatten_state(self.stepper.state())
        ema = self.stepper.ema
        state = {"progress": self.progress.to_dict(), "layout": layout, "steps": ema.steps if ema else 0}
        self.rundir.save_checkpoint(tensors, state)

    def resume(self) -> bool:
        """Load the checkpoint of an interrupted fit; False if there is none yet."""
        found = self.rundir.load_checkpoint() if self.rundir is not None else None
        if found is None or self.rundir is None:
            return False
        tensors, state = found
        self.stepper.load_state(unflatten_state(tensors, state["layout"]), state["steps"])
        self.progress = Progress(**state["progress"])
        self.rundir.trim_history(self.progress.epoch)
        self.history = self.rundir.read_history()
        return True


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch for a fit and give the caller's random state back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
