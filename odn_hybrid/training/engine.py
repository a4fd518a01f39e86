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
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from odn_hybrid.config import FitConfig
from odn_hybrid.cost import Costs
from odn_hybrid.data import Preprocess, Split, check_policy, make_loader
from odn_hybrid.data.loading import Batch
from odn_hybrid.errors import TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.rundir import RunDir, flatten_state, unflatten_state
from odn_hybrid.training.devices.device import shards_weights
from odn_hybrid.training.devices.processes import Processes
from odn_hybrid.training.devices.sharing import check_batch, shared_loader
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.procedure.progress import Look, Progress
from odn_hybrid.training.steps.stepping import Stepper
from odn_hybrid.training.steps.targets import Mixing, class_weights

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
        rundir: where checkpoints and history go; None keeps them in memory only. Given in the main process.
        listener: told each history row, in the main process.
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
        self.processes = Processes(accelerator)
        check_batch(config, len(train), self.processes.count)
        self.kept: bool = self.processes.agreed(rundir is not None)
        self.stepper = _stepper_class(config, self.processes.count)(
            network,
            objective,
            config=config,
            cost_shares=[c / costs.cumulative[-1] for c in costs.cumulative],
            accelerator=accelerator,
            average_steps=self._average_steps(),
            class_weights=class_weights(train.labels, network.trunk.num_classes)
            if config.optim.class_weights == "balanced"
            else None,
            images=len(train),
        )
        mixes = config.data.mixup > 0 or config.data.cutmix > 0
        self.mixing = Mixing(config.data, network.trunk.num_classes, config.seed) if mixes else None
        check_policy(config.data.rand_augment, preprocess)
        self.progress = rules.first()
        self.history: list[dict[str, Any]] = []

    def _average_steps(self) -> float | None:
        """Horizon of the average of the weights, in steps."""
        if self.config.optim.ema_epochs == 0 or self.config.expansion.procedure == "reload":
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
        if self.progress.epoch == 0:
            self.stepper.follow(self.progress.then)
        try:
            while self.progress.phase != "done":
                self._epoch()
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"the device's memory is too small for batches of {self.config.optim.batch_size} images; "
                "lower optim.batch_size or the image_size, or raise optim.accumulate"
            ) from None
        self.stepper.settle()
        self.stepper.keep()
        return self.progress

    def _epoch(self) -> None:
        before, started = self.progress, time.monotonic()
        # What is random inside a forward (dropout) differs by process; the first has that of a single one.
        own = self.processes.rank << 53
        torch.manual_seed(self.config.seed * 1_000_003 + self.rules.draw(before) + own)
        share = self.rules.share(before)
        loss, images = self._train(before, share)
        active = self.rules.active(before)
        alone = self.stepper.alone or self.rules.alone(before)
        macs = before.train_macs + train_macs_per_image(self.costs, active, alone=alone) * images
        done = self.rules.count(before, share, self.processes.agreed(time.monotonic() - started))
        done = replace(done, train_macs=macs)  # of the images really seen: a last short batch is left out
        accuracies: list[float] | None = None
        if self.rules.looks(done):
            look = self._look(active)
            accuracies = list(look.accuracies)
            # One process decides: what another measures (a latency) could be on the other side of a limit.
            decided = self.processes.agreed(self.rules.observe(done, look).to_dict())
            self.progress = Progress(**decided)
            self.stepper.follow(self.progress.then)
        else:
            self.progress = done
        self._note(before, done, active, images, loss, accuracies)

    def _train(self, progress: Progress, share: float) -> tuple[float, int]:
        """One epoch, or its first part; returns the mean loss and the number of images seen."""
        active, batch = self.rules.active(progress), self.config.optim.batch_size
        loader = self._prepared(
            make_loader(
                self.train_split,
                self.preprocess,
                batch_size=batch,
                augment=self.config.data.augment,
                rand_augment=self.config.data.rand_augment,
                erase=self.config.data.erase,
                shuffle=True,
                seed=self.config.seed,
                epoch=self.rules.draw(progress),
                workers=self.config.data.workers,
                drop_last=len(self.train_split) > batch,
            )
        )
        steps = max(1, round(share * len(loader)))
        self.network.train()
        total, seen = torch.zeros((), device=self.accelerator.device), 0
        for step, (images, labels, _) in enumerate(loader):
            if step >= steps:
                break
            self.stepper.set_rate(self.rules.rate(progress, (step + 1) / len(loader)))
            if self.mixing is not None:
                epoch = self.rules.draw(progress)
                images, labels = self.mixing(images, labels, epoch=epoch, step=step)
            size = min(batch, len(self.train_split) - step * batch)
            total += self.stepper.step(images, labels, active, alone=self.rules.alone(progress), size=size)
            seen += size
        mean = float(total) / steps
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is {mean} in epoch {progress.epoch + 1}: training has diverged; "
                f"use a lower learning rate than {self.stepper.base_rates[0]:g} (optim.lr)"
            )
        return mean, seen

    def _prepared(self, loader: DataLoader[Batch]) -> DataLoader[Batch]:
        """This process's part of every batch, on its device."""
        mine = shared_loader(loader, self.processes.rank, self.processes.count)
        found: DataLoader[Batch] = prepare_data_loader(
            mine, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return found

    def _look(self, active: int) -> Look:
        self.stepper.settle()
        recorded = record_outputs(
            self.evaluated,
            self.selection,
            self.preprocess,
            upto=active,
            workers=self.config.data.workers,
            sharing=self.processes,
        )
        return Look.of(recorded.correct)

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
        state = self._kept_state(done, looked=accuracies is not None)
        self.processes.on_main(lambda: self._write(row, state))
        if self.listener is not None and self.processes.main:
            self.listener(row)

    def _kept_state(self, done: Progress, *, looked: bool) -> dict[str, dict[str, object]] | None:
        """What goes into a checkpoint after an epoch; None where none is due.

        Phases that are looked at only when they are over (a cooldown, for one) have checkpoints as often.
        """
        if not self.kept or not (looked or done.phase_epochs % self.rules.look_every == 0):
            return None
        if not looked:
            self.stepper.settle()
        return self.stepper.state()

    def _write(self, row: dict[str, Any], state: dict[str, dict[str, object]] | None) -> None:
        if self.rundir is None:
            return
        self.rundir.append_history(row)
        if state is not None:
            tensors, layout = flatten_state(state)
            ema = self.stepper.ema
            steps = ema.steps if ema else 0
            note = {"progress": self.progress.to_dict(), "layout": layout, "steps": steps}
            self.rundir.save_checkpoint(tensors, note)

    def resume(self) -> bool:
        """Load the checkpoint of an interrupted fit; False if there is none yet.

        The number of processes need not be that of the fit that wrote it.
        """
        found = self.processes.on_main(self._read)
        told = self.processes.agreed(None if found is None else found[1:])
        if told is None:
            return False
        state, self.history = told
        tensors = self.processes.share_tensors({} if found is None else found[0])
        self.stepper.load_state(unflatten_state(tensors, state["layout"]), state["steps"])
        self.progress = Progress(**state["progress"])
        return True

    def _read(self) -> tuple[dict[str, Tensor], Any, list[dict[str, Any]]] | None:
        found = self.rundir.load_checkpoint() if self.rundir is not None else None
        if found is None or self.rundir is None:
            return None
        tensors, state = found
        self.rundir.trim_history(state["progress"]["epoch"])
        return tensors, state, self.rundir.read_history()


def _stepper_class(config: FitConfig, count: int) -> type[Stepper]:
    if not shards_weights(config, count):
        return Stepper
    from odn_hybrid.training.devices.sharded import ShardedStepper  # FSDP takes a while to import

    return ShardedStepper


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch for a fit and give the caller's random state back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
