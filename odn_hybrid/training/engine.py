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
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from odn_hybrid.config import FitConfig
from odn_hybrid.cost import Costs
from odn_hybrid.data import Preprocess, Split, make_loader
from odn_hybrid.errors import ConfigError, TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.rundir import RunDir, flatten_state, unflatten_state
from odn_hybrid.training.averaging import WeightAverage
from odn_hybrid.training.expansion import Expansion, Progress
from odn_hybrid.training.objectives import PLAIN, ExitOutputs
from odn_hybrid.training.precision import resolve_precision

__all__ = ["Engine", "Listener", "own_randomness", "train_macs_per_image", "trains_alone"]

#: Called with one history row at the end of each epoch.
Listener = Callable[[dict[str, Any]], None]


def train_macs_per_image(costs: Costs, active: int, *, alone: bool = False) -> float:
    """Training MACs of one image: three times the forward (design.md's convention).

    Of exits 1..active together; `alone`: of exit `active` only, see `trains_alone`.
    """
    return 3.0 * (costs.static(active) if alone else costs.joint(active))


def trains_alone(network: MultiExit, objective: str) -> bool:
    """Whether a step runs the deepest active exit only.

    The plain objective asks for no other. With prefix plans the shallower exits cost their heads only and run
    all the same; thinner networks would cost a forward each, and their activations would enter the statistics
    of batch normalisation of a network that is trained without them.
    """
    return objective == PLAIN and not network.shares_prefix


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
        self.alone = trains_alone(network, config.objective.name)
        self.train_split, self.selection, self.preprocess = train, selection, preprocess
        self.accelerator, self.rundir, self.listener = accelerator, rundir, listener
        self.device = accelerator.device
        self.dtype = resolve_precision(config.precision, self.device, network)
        self.maps = network.trunk.layout(1).kind == "NCHW"
        self.network = network.to(self.device)
        if self.maps:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.objective = objective.to(self.device)
        self.optimizer, self.base_rates = _optimizer(self.network, self.objective, config, self.maps)
        self.ema = self._average()
        self.progress = rules.first()
        self.history: list[dict[str, Any]] = []
        self._cost_shares = torch.tensor(
            [c / costs.cumulative[-1] for c in costs.cumulative], device=self.device
        )

    def _average(self) -> WeightAverage | None:
        if self.config.optim.ema_epochs == 0:
            return None
        steps = max(1, len(self.train_split) // self.config.optim.batch_size)
        horizon = max(1.0, self.config.optim.ema_epochs * steps * self.rules.look_every)
        return WeightAverage(self.network, horizon)

    @property
    def evaluated(self) -> MultiExit:
        """The network that is looked at and kept: the average, where there is one."""
        return self.ema.network if self.ema is not None else self.network

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
        if self.ema is not None:
            self.network.load_state_dict(self.ema.network.state_dict())
        return self.progress

    def _epoch(self) -> None:
        before, started = self.progress, time.monotonic()
        torch.manual_seed(self.config.seed * 1_000_003 + before.epoch)
        share = self.rules.share(before)
        loss, images = self._train(before, share)
        active = self.rules.active(before)
        macs = before.train_macs + train_macs_per_image(self.costs, active, alone=self.alone) * images
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
        total, seen = torch.zeros((), device=self.device), 0
        for step, (images, labels, _) in enumerate(loader):
            if step >= steps:
                break
            self._set_rate(self.rules.rate(progress, (step + 1) / len(loader)))
            total += self._step(images, labels, active)
            seen += len(labels)
        mean = float(total) / steps
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is {mean} in epoch {progress.epoch + 1}: training has diverged; "
                f"use a lower learning rate than {self.base_rates[0]:g} (optim.lr)"
            )
        return mean, seen

    def _step(self, images: Tensor, labels: Tensor, active: int) -> Tensor:
        if self.maps:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = [self.network.at(images, active)] if self.alone else self.network(images, active)
        loss = self.objective(ExitOutputs(logits, labels, self._cost_shares[active - len(logits) : active]))
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
            raise TrainingError(
                f"objective {self.config.objective.name!r} gave {_kind(loss)}; it must return one number, a "
                "0-dimensional tensor computed from the logits"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if self.config.optim.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network, active)
        return loss.detach()

    def _set_rate(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

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
            "lr": self.optimizer.param_groups[0]["lr"],
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

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "network": self.network,
            "objective": self.objective,
            "optimizer": self.optimizer,
        }
        return parts | ({"ema": self.ema.network} if self.ema is not None else {})

    def _save(self) -> None:
        assert self.rundir is not None
        states = {name: part.state_dict() for name, part in self._parts().items()}
        tensors, layout = flatten_state(states)
        state = {
            "progress": self.progress.to_dict(),
            "layout": layout,
            "steps": self.ema.steps if self.ema is not None else 0,
        }
        self.rundir.save_checkpoint(tensors, state)

    def resume(self) -> bool:
        """Load the checkpoint of an interrupted fit; False if there is none yet."""
        found = self.rundir.load_checkpoint() if self.rundir is not None else None
        if found is None or self.rundir is None:
            return False
        tensors, state = found
        states = unflatten_state(tensors, state["layout"])
        for name, part in self._parts().items():
            part.load_state_dict(states[name])
        if self.ema is not None:
            self.ema.steps = state["steps"]
        self.progress = Progress(**state["progress"])
        self.rundir.trim_history(self.progress.epoch)
        self.history = self.rundir.read_history()
        return True


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" + (
            "" if value.requires_grad else " without gradient"
        )
    return f"a {type(value).__name__}"


def _optimizer(
    network: MultiExit, objective: nn.Module, recipe: FitConfig, maps: bool
) -> tuple[torch.optim.Optimizer, list[float]]:
    config = recipe.optim
    name = config.name if config.name != "auto" else ("sgd" if maps else "adamw")
    sgd = name in ("sgd", "nesterov", "momentum")
    scale = config.batch_size / 128 * (0.1 if recipe.regime == "finetune" else 1.0)
    rate = config.lr if config.lr is not None else (0.1 if sgd else 1e-3) * scale
    decay = config.weight_decay if config.weight_decay is not None else (5e-4 if sgd else 0.05)
    extra: dict[str, Any] = {"momentum": config.momentum} if sgd else {}
    try:
        optimizer = create_optimizer_v2(network, opt=name, lr=rate, weight_decay=decay, **extra)
    except (ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"optimizer {name!r} cannot be made: {' '.join(str(error).split())}") from None
    own = [p for p in objective.parameters() if p.numel()]
    if own:
        optimizer.add_param_group({"params": own, "weight_decay": 0.0})
    return optimizer, [group["lr"] for group in optimizer.param_groups]


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch for a fit and give the caller's random state back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
