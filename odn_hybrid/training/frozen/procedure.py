"""The procedure of the "frozen" regime: features in one pass, then every head by itself.

A fit that is killed and resumed starts the pass again. All of it is a function of the seed, the data and the
weights, so it ends with the same digits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from odn_hybrid.config import FitConfig, ObjectiveConfig
from odn_hybrid.cost import Costs
from odn_hybrid.data import Preprocess, Split, check_policy
from odn_hybrid.errors import ConfigError, ModelError, TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.rundir import RunDir
from odn_hybrid.training.devices.precision import resolve_precision
from odn_hybrid.training.frozen.caching import FeaturePass
from odn_hybrid.training.frozen.classifier import OwnClassifier
from odn_hybrid.training.frozen.heads import Examples, Fitted, HeadPlan, fit_head
from odn_hybrid.training.frozen.store import ITEM_BYTES, FeatureStore, check_room
from odn_hybrid.training.objectives import build_objective
from odn_hybrid.training.procedure.progress import Progress
from odn_hybrid.training.steps.targets import class_weights

__all__ = ["Frozen"]

#: Objectives that weigh the exits' own losses: heads that share nothing learn the same from any weights.
ALIKE = ("cross_entropy", "joint", "depth_reg")
SKILL = 0.5  # a classifier with less of the best head's skill is not one for these classes


class Frozen:
    """Trains exit heads on features of a backbone that stays as it is, weights and statistics.

    The backbone's own classifier is kept, unless it is new (`fresh`: its class count is not that of the
    weights), or on the selection split shows less than half the skill of the best head, that is, its classes
    are others or it was never trained: then that one linear layer is trained as any head, and the rest of the
    backbone stays.

    Args:
        network: its heads are trained in place. deepest: exits beyond it are left alone.
        train, selection: the two splits that training may see. preprocess: the images' transform.
        config: the recipe; `expansion` and most of `optim` have no say, nor has `objective`: those that would
            make a difference are refused.
        costs: MACs of the network.
        fresh: the backbone's classifier has random weights.
        rundir: where history goes. listener: told each history row.

    Raises, before anything is computed or written:
        ConfigError: what cannot be done on kept features, or the features exceed `frozen.max_bytes`.
        ModelError: the classifier is new, and isn't one linear layer. (Of a module that was handed over
            nobody knows whether its classifier fits: there it may show only after the pass, in `run`.)
        StorageError: the disk has no room for the features.
    """

    def __init__(
        self,
        network: MultiExit,
        *,
        deepest: int,
        train: Split,
        selection: Split,
        preprocess: Preprocess,
        config: FitConfig,
        costs: Costs,
        accelerator: Accelerator,
        fresh: bool = False,
        rundir: RunDir | None = None,
        listener: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        _check(config, accelerator)
        check_policy(config.data.rand_augment, preprocess)
        _check_objective(config.objective, len(network))
        self.deepest, self.train, self.selection = deepest, train, selection
        self.config, self.costs, self.fresh = config, costs, fresh
        self.rundir, self.listener = rundir, listener
        self.device = accelerator.device
        self.network = network.to(self.device).eval()
        dtype = resolve_precision(config.precision, self.device)  # there are no gradients to go wrong
        if network.trunk.layout(1).kind == "NCHW":
            self.network = self.network.to(memory_format=torch.channels_last)
        self.own = OwnClassifier(self.network) if network.own_head(deepest) else None
        if self.own is not None and self.own.layer is None and fresh:
            raise ModelError(_no_layer(network))
        self.caching = FeaturePass(
            self.network, deepest, self.own, config=config, preprocess=preprocess, dtype=dtype
        )
        self.rows = config.frozen.passes * len(train) + len(selection)
        self.shapes = self.caching.shapes()
        self.folder = check_room(config.frozen.folder, self._size())
        self.history: list[dict[str, Any]] = []
        self.progress = Progress(phase="features", current=deepest)
        self.train_macs, self.started = 0.0, 0.0

    def _size(self) -> float:
        """Bytes of all features; raises `ConfigError` where they exceed the limit."""
        sizes = {k: self.rows * math.prod(shape) * ITEM_BYTES for k, shape in self.shapes.items()}
        total, limit = sum(sizes.values()), self.config.frozen.max_bytes
        if total > limit:
            worst = max(sizes, key=lambda k: sizes[k])
            raise ConfigError(
                f"the features of {self.rows} images take {_gigabytes(total)} ({_gigabytes(sizes[worst])} of "
                f"it for exit {worst}, {self.shapes[worst]} an image), and frozen.max_bytes allows "
                f"{_gigabytes(limit)}: raise it, or choose a head that needs less (linear), exits after "
                "fewer units (exits.every) or fewer passes"
            )
        return total

    def resume(self) -> bool:
        """Nothing of an interrupted pass is kept: it starts again."""
        return False

    # --- the procedure ----------------------------------------------------------------------------

    def run(self) -> Progress:
        """Compute the features and train the heads; afterwards `network` holds them."""
        self.started = time.monotonic()
        with FeatureStore(self.shapes, self.rows, self.folder) as store:
            right = self._features(store)
            fitted = self._heads(store)
            kept = self._own(store, right / len(self.selection), fitted)
        self._note_heads(fitted, kept)
        return self.progress

    def _features(self, store: FeatureStore) -> int:
        """All passes; how many images of the selection split the own classifier answers rightly."""
        passes, start = self.config.frozen.passes, 0
        forward = self.costs.static(self.deepest) if self.own is not None else self.costs.prefix(self.deepest)
        for number in range(passes):
            self.caching.run(self.train, store, start, number=number)
            start += len(self.train)
            self.train_macs += forward * len(self.train)
            last = number == passes - 1
            self._advance("heads" if last else "features", number + 1)
            self._note("features", images=len(self.train), loss=None, selection=None)
        right, _ = self.caching.run(self.selection, store, start)
        return right

    def _heads(self, store: FeatureStore) -> dict[int, Fitted]:
        numbers = [k for k in self.shapes if not self.network.own_head(k)]
        return {k: self._fit(self.network.heads[k - 1], store, k) for k in numbers}

    def _own(self, store: FeatureStore, accuracy: float, fitted: dict[int, Fitted]) -> bool:
        """Train the backbone's own classifier if it must be; whether it was kept."""
        if self.own is None:
            return True
        guess = np.bincount(self.selection.labels).max() / len(self.selection)
        best = max((found.accuracy for found in fitted.values()), default=guess)
        kept = not self.fresh and accuracy - guess >= SKILL * max(0.0, best - guess)
        if kept:
            fitted[self.deepest] = Fitted(math.nan, accuracy, 0, 0)
            return True
        if self.own.layer is None:
            raise ModelError(_no_layer(self.network))
        asked = [parameter.requires_grad for parameter in self.own.layer.parameters()]
        fitted[self.deepest] = self._fit(self.own.layer.requires_grad_(True), store, self.deepest)
        for parameter, wanted in zip(self.own.layer.parameters(), asked, strict=True):
            parameter.requires_grad_(wanted)
        return False

    def _fit(self, head: nn.Module, store: FeatureStore, number: int) -> Fitted:
        labels = [*[self.train.labels] * self.config.frozen.passes, self.selection.labels]
        try:
            examples = Examples(
                store.held(number),
                store.factors[number],
                torch.from_numpy(np.concatenate(labels)),
                self.rows - len(self.selection),
                self.device,
            )
            found = fit_head(head, examples, self._plan(), number)
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"the device's memory is too small to train the head of exit {number}; choose a head that "
                "needs less (linear), or device cpu"
            ) from None
        self.train_macs += 3.0 * self.costs.heads[number - 1] * found.images
        return found

    def _plan(self) -> HeadPlan:
        optim, weights = self.config.optim, None
        if optim.class_weights == "balanced":
            weights = class_weights(self.train.labels, self.network.trunk.num_classes).to(self.device)
        return HeadPlan(self.config.frozen.epochs, self.config.seed, optim.label_smoothing, weights)

    # --- records ----------------------------------------------------------------------------------

    def _advance(self, phase: str, epoch: int) -> None:
        self.progress = Progress(
            phase=phase,
            current=self.deepest,
            epoch=epoch,
            train_macs=self.train_macs,
            seconds=time.monotonic() - self.started,
            by_depth={str(self.deepest): float(epoch)},
        )

    def _note_heads(self, fitted: Mapping[int, Fitted], kept: bool) -> None:
        self._advance("done", self.progress.epoch)
        found = [fitted[k] for k in sorted(fitted)]
        losses = [head.loss for head in found if math.isfinite(head.loss)]
        self._note(
            "heads",
            images=0,
            loss=sum(losses) / len(losses) if losses else None,
            selection=[head.accuracy for head in found],
            head_epochs=[head.epochs for head in found],
            classifier="kept" if kept else "trained",
        )

    def _note(self, phase: str, **more: Any) -> None:
        row = {
            "epoch": self.progress.epoch,
            "phase": phase,
            "current": self.deepest,
            "active": self.deepest,
            "lr": None,
            "train_macs": self.progress.train_macs,
            "seconds": round(self.progress.seconds, 3),
            "next": self.progress.phase,
            **more,
        }
        self.history.append(row)
        if self.rundir is not None:
            self.rundir.append_history(row)
        if self.listener is not None:
            self.listener(row)


def _check(config: FitConfig, accelerator: Accelerator) -> None:
    """Raise `ConfigError` for what kept features cannot do."""
    if config.exits.plan == "thin":
        raise ConfigError(
            "regime frozen trains exit heads, and the exits of thin plans have none: choose plan prefix"
        )
    for name in ("mixup", "cutmix"):
        if getattr(config.data, name) > 0:
            raise ConfigError(
                f"data.{name} mixes images anew in every epoch, and regime frozen computes features once: "
                "leave it out, or choose regime finetune"
            )
    for name, value in (("rand_augment", config.data.rand_augment), ("erase", config.data.erase)):
        if value and config.frozen.passes == 1:
            raise ConfigError(
                f"data.{name} is {value!r}, and regime frozen augments no image of its first pass: set "
                "frozen.passes to 2 or more, or leave it out"
            )
    if config.compile:
        raise ConfigError("compile is for training the backbone, which regime frozen does not: leave it out")
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"regime frozen runs in one process, not in {accelerator.num_processes}: start it without a "
            "launcher"
        )


def _check_objective(objective: ObjectiveConfig, exits: int) -> None:
    """Raise `ConfigError` for one that does not exist, or would have a say."""
    build_objective(objective.name, exits, **objective.args)
    if objective.name not in ALIKE or objective.args.get("distill"):
        told = f"{objective.name} {objective.args}" if objective.args else objective.name
        raise ConfigError(
            f"regime frozen trains every head by its own cross-entropy, and objective {told} would not be "
            f"followed: choose {' or '.join(ALIKE)}, without distill, or regime finetune"
        )


def _no_layer(network: MultiExit) -> str:
    kind = type(network.backbone).__name__
    return (
        f"the classifier of {kind} does not fit these classes, and is not one linear layer that could be "
        "trained alone: choose regime finetune"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
