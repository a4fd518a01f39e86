"""The rules of a fit's depth search, from its recipe."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from odn_hybrid.config import FitConfig
from odn_hybrid.cost import Costs
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.engine import train_macs_per_image
from odn_hybrid.training.objectives import PLAIN, build_objective
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.procedure.growing import Growing
from odn_hybrid.training.procedure.reloading import Reloading, SummedCrossEntropy
from odn_hybrid.training.steps.stepping import trains_alone

__all__ = ["make_objective", "make_rules", "one_exit_only"]

BACKBONE_EPOCHS = 3.0  # of the deepest exit alone, when fine-tuning


def make_rules(
    config: FitConfig,
    network: MultiExit,
    costs: Costs,
    images: int,
    *,
    deepest: int,
    start: int | None = None,
) -> Expansion:
    """The procedure that `config.expansion` names, for `images` training images.

    `deepest`: exits beyond it are not trained. `start`: the exit another fit found, if one is to seed this.
    """
    growth, plain = config.expansion, config.objective.name == PLAIN
    tuned = BACKBONE_EPOCHS if config.regime == "finetune" else 0.0
    epochs = tuned if growth.backbone_epochs is None else growth.backbone_epochs
    growth = replace(growth, backbone_epochs=epochs, start=growth.start if start is None else start)
    exits, alone = range(1, deepest + 1), trains_alone(network, config)
    grow = Growing if growth.decide == "test" else Expansion
    kind = Reloading if growth.procedure == "reload" else grow
    return kind(
        growth,
        config.choice,
        exits=deepest,
        steps_per_epoch=max(1, images // config.optim.batch_size),
        epoch_macs=[train_macs_per_image(costs, m, alone=alone) * images for m in exits],
        alone_macs=[train_macs_per_image(costs, m, alone=True) * images for m in exits],
        plain=plain,
        schedule=config.optim.schedule,
        seeded=start is not None,
    )


def make_objective(config: FitConfig, exits: int) -> nn.Module:
    """The objective of the recipe; the published procedure has its own."""
    if config.expansion.procedure == "reload":
        return SummedCrossEntropy()
    return build_objective(config.objective.name, exits, **config.objective.args)


def one_exit_only(config: FitConfig) -> bool:
    """Whether a fit ends with one trained exit, so that shallower ones mean nothing."""
    if config.regime == "frozen":
        return False  # each head has an objective of its own
    return config.objective.name == PLAIN or config.expansion.procedure == "reload"
