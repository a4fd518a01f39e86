"""The optimizer of a fit: timm's, with rates that follow batch size and regime."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from odn_hybrid.config import FitConfig
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit

__all__ = ["make_optimizer"]


def make_optimizer(
    network: MultiExit, objective: nn.Module, recipe: FitConfig, maps: bool
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer of network and objective, and each parameter group's full rate.

    `maps`: the network's states are feature maps, for which "auto" is SGD. Raises `ConfigError` for a name
    that timm does not know.
    """
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
