"""One depth of a recipe's network trained by itself: what a fit of all exits is measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from odn_hybrid import Costs, MultiExit, Trunk, count_costs
from odn_hybrid.asking import make_backbone, make_preprocess
from odn_hybrid.config import FitConfig
from odn_hybrid.data import Data, Preprocess
from odn_hybrid.training import build_objective
from odn_hybrid.training.devices.device import accelerator_on
from odn_hybrid.training.engine import Engine, Listener, own_randomness, train_macs_per_image
from odn_hybrid.training.procedure.expansion import Expansion

__all__ = ["Alone", "train_alone"]


@dataclass(frozen=True)
class Alone:
    """A network of which exit `exit` and the units before it were trained; the others are as they began."""

    network: MultiExit
    exit: int
    preprocess: Preprocess
    costs: Costs
    history: list[dict[str, Any]]


def train_alone(config: FitConfig, data: Data, depth: int | None = None, *, listener: Listener) -> Alone:
    """Train the network's first `depth` units (default: all) and that exit's head by cross-entropy.

    Schedule, optimizer, augmentation and splits are the recipe's; its objective and budgets are set aside.
    """
    with own_randomness(config.seed):
        backbone, *_ = make_backbone(config, None, data)
        preprocess = make_preprocess(config, backbone, data)
        network = MultiExit(Trunk(backbone, image_size=preprocess.size), config.exits)
        exit, costs = network.exit_of(depth or network.units[-1]), count_costs(network)
        train = data.splits["train"]
        rules = Expansion(
            replace(config.expansion, max_epochs=None, max_minutes=None, max_train_macs=None),
            config.choice,
            exits=exit,  # there is no deeper one
            steps_per_epoch=len(train) // config.optim.batch_size,
            epoch_macs=[train_macs_per_image(costs, m, alone=True) * len(train) for m in range(1, exit + 1)],
            plain=True,
            schedule=config.optim.schedule,
        )
        engine = Engine(
            network,
            build_objective("cross_entropy", exit),
            rules,
            train=train,
            selection=data.splits["selection"],
            preprocess=preprocess,
            config=config,
            costs=costs,
            accelerator=accelerator_on("cpu"),
            listener=listener,
        )
        engine.run()
    return Alone(network, exit, preprocess, costs, engine.history)
