"""The optimizer of a fit: timm's, with rates that follow batch size and regime."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn

from odn_hybrid.config import FitConfig
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit

__all__ = ["layer_groups", "make_optimizer"]

#: timm's names of SGD, whose rates and decays are not those of Adam and its kin.
SGD = ("sgd", "nesterov", "momentum", "sgdw", "nesterovw", "momentumw", "sgdp")


def make_optimizer(
    network: MultiExit, objective: nn.Module, recipe: FitConfig, maps: bool, images: int | None = None
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer of network and objective, and each parameter group's full rate.

    `maps`: the network's states are feature maps, for which "auto" is SGD. `images`: of the training split; a
    batch has no more. Raises `ConfigError` for a name that timm does not know.
    """
    config = recipe.optim
    published = recipe.expansion.procedure == "reload"  # plain momentum at 0.01, decay of every parameter
    auto = "momentum" if published else ("sgd" if maps else "adamw")
    name = (config.name if config.name != "auto" else auto).lower()  # as timm reads it
    base = name.rpartition("_")[2]  # timm wraps: "lookahead_sgd"
    sgd = base in SGD
    scale = min(config.batch_size, images or config.batch_size) / 128
    scale *= 0.1 if recipe.regime == "finetune" else 1.0
    full = (0.01 if published else 0.1) if sgd else 1e-3
    rate = config.lr if config.lr is not None else full * scale
    decay = config.weight_decay if config.weight_decay is not None else (5e-4 if sgd else 0.05)
    extra: dict[str, Any] = {"momentum": config.momentum} if _has_momentum(base) else {}
    extra |= _options(config.args)
    if published:
        extra["filter_bias_and_bn"] = False
    if config.layer_decay is not None:
        groups = layer_groups(network, rate, decay, config.layer_decay)
        extra["param_group_fn"] = lambda _: groups
    try:
        optimizer = create_optimizer_v2(network, opt=name, lr=rate, weight_decay=decay, **extra)
    except (ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"optimizer {name!r} cannot be made: {' '.join(str(error).split())}") from None
    own = [p for p in objective.parameters() if p.numel()]
    if own:
        optimizer.add_param_group({"params": own, "weight_decay": 0.0})
    return optimizer, [group["lr"] for group in optimizer.param_groups]


def _options(args: dict[str, Any]) -> dict[str, Any]:
    """Options of the optimizer's own; raises `ConfigError` for what the recipe has a field for."""
    told = {**dict.fromkeys(("lr", "momentum", "weight_decay", "layer_decay")), "opt": "name"}
    for name in args:
        if name in told:
            raise ConfigError(f"optim.args has {name!r}: set optim.{told[name] or name}")
        if name in ("param_group_fn", "filter_bias_and_bn"):
            raise ConfigError(f"optim.args has {name!r}, which the fit decides: leave it out")
    return dict(args)


def _has_momentum(name: str) -> bool:
    try:
        return bool(get_optimizer_info(name).has_momentum)
    except ValueError:  # unknown: making it will say so
        return False


def layer_groups(network: MultiExit, rate: float, decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose rates fall by `layer_decay` from unit to unit towards the stem.

    The exit heads and the backbone's own have the full `rate`, the last unit `layer_decay` times that, the
    stem the lowest; the first group has the full rate. As in timm, vectors, biases and what the model's
    `no_weight_decay` names have no weight decay.
    (timm's grouping goes by the names of a bare backbone of its own; the trunk knows the units of any.)
    """
    trunk = network.trunk
    last = len(trunk) + 1  # the stem is layer 0, unit u is layer u + 1
    layer_of = dict.fromkeys(trunk.after_names, last)
    layer_of |= {name: unit + 1 for unit, names in enumerate(trunk.unit_names) for name in names}
    layer_of |= dict.fromkeys(trunk.stem_names, 0)

    def layer(name: str) -> int:
        if not name.startswith("backbone."):
            return last
        parts = name.removeprefix("backbone.").split(".")
        owners = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        # What belongs to no module of a unit is an embedding: of positions, or a class token.
        return next((layer_of[owner] for owner in owners if owner in layer_of), 0)

    exempt = network.no_weight_decay()
    grouped: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, one) for one in exempt)
            grouped.setdefault((layer(name), plain), []).append(parameter)
    return [
        {"params": found, "lr": rate * layer_decay ** (last - at), "weight_decay": 0.0 if plain else decay}
        for (at, plain), found in sorted(grouped.items(), key=lambda item: (-item[0][0], item[0][1]))
    ]
