"""The ranges of a recipe's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from odn_hybrid.errors import ConfigError

__all__ = ["check_ranges"]


def check_ranges(config: Any, version: int) -> None:
    """Raise `ConfigError` for the first number of a `FitConfig` that is out of range."""

    def need(ok: bool, name: str, value: object, what: str) -> None:
        if not ok:
            raise ConfigError(f"{name} is {value!r}; it must be {what}")

    if config.version != version:
        raise ConfigError(f"the recipe says version {config.version!r}; this release reads version {version}")
    choice, growth, optim = config.choice, config.expansion, config.optim
    if choice.target_accuracy is not None:
        need(
            0 < choice.target_accuracy <= 1,
            "target_accuracy",
            choice.target_accuracy,
            "a fraction above 0 and at most 1 (0.995 is 99.5 %)",
        )
    need(0 <= choice.tolerance < 1, "tolerance", choice.tolerance, "a fraction from 0 to below 1")
    need(0 < choice.delta < 1, "delta", choice.delta, "a probability between 0 and 1")
    need(0 <= config.dynamic.drop < 1, "drop", config.dynamic.drop, "a fraction from 0 to below 1")
    need(0 < config.dynamic.delta < 1, "delta", config.dynamic.delta, "a probability between 0 and 1")
    need(growth.warmup_epochs >= 0, "warmup_epochs", growth.warmup_epochs, "0 or more")
    need(growth.start >= 1, "expansion.start", growth.start, "1 or more (exits are numbered from 1)")
    need(growth.look_ahead >= 0, "look_ahead", growth.look_ahead, "0 or more")
    need(0 <= growth.min_gain < 1, "min_gain", growth.min_gain, "a fraction from 0 to below 1")
    need(growth.patience >= 1, "patience", growth.patience, "1 or more")
    need(growth.settle_patience >= 1, "settle_patience", growth.settle_patience, "1 or more")
    need(growth.cooldown > 0, "cooldown", growth.cooldown, "above 0")
    need(growth.max_looks >= 1, "max_looks", growth.max_looks, "1 or more")
    need(
        growth.backbone_epochs is None or growth.backbone_epochs >= 0,
        "backbone_epochs",
        growth.backbone_epochs,
        "0 or more",
    )
    fresh = config.regime == "scratch" and not config.model.pretrained and config.model.checkpoint is None
    need(fresh or not growth.preserve, "expansion.preserve", True, "false where weights are not fresh")
    twins = config.exits.plan == "thin" and config.exits.norms == "affine"
    need(not (twins and growth.preserve), "expansion.preserve", True, "false where exits.norms is affine")
    check_reload(config, need)
    for name in ("max_macs", "max_params", "max_bytes", "max_latency_ms"):
        limit = getattr(choice, name)
        need(limit is None or limit > 0, f"choice.{name}", limit, "above 0")
    for name in ("max_epochs", "max_train_macs", "max_minutes"):
        limit = getattr(growth, name)
        need(limit is None or limit > 0, name, limit, "above 0")
    need(optim.batch_size >= 2, "batch_size", optim.batch_size, "2 or more")
    need(
        1 <= optim.accumulate <= optim.batch_size // 2,
        "accumulate",
        optim.accumulate,
        f"1 to {optim.batch_size // 2}, so that each forward has 2 of a batch's {optim.batch_size} images",
    )
    need(0 <= optim.label_smoothing < 1, "label_smoothing", optim.label_smoothing, "from 0 to below 1")
    decay = optim.layer_decay
    need(decay is None or 0 < decay <= 1, "layer_decay", decay, "above 0 and at most 1")
    need(optim.clip_grad is None or optim.clip_grad > 0, "clip_grad", optim.clip_grad, "above 0")
    need(0 <= optim.momentum < 1, "momentum", optim.momentum, "from 0 to below 1")
    need(
        optim.weight_decay is None or optim.weight_decay >= 0, "weight_decay", optim.weight_decay, "0 or more"
    )
    need(optim.ema_epochs >= 0, "ema_epochs", optim.ema_epochs, "0 or more")
    if optim.lr is not None:
        need(optim.lr > 0, "lr", optim.lr, "above 0")
    if config.data.image_size is not None:
        need(8 <= config.data.image_size <= 2048, "image_size", config.data.image_size, "8 to 2048 pixels")
    need(0 <= config.data.erase <= 1, "erase", config.data.erase, "a probability from 0 to 1")
    for name in ("mixup", "cutmix"):
        need(getattr(config.data, name) >= 0, name, getattr(config.data, name), "0 or more")
    frozen = config.frozen
    need(frozen.passes >= 1, "frozen.passes", frozen.passes, "1 or more")
    need(frozen.epochs >= 1, "frozen.epochs", frozen.epochs, "1 or more")
    need(frozen.max_bytes > 0, "frozen.max_bytes", frozen.max_bytes, "above 0")
    need(0 <= config.data.workers <= 64, "workers", config.data.workers, "0 to 64")
    need(config.exits.every >= 1, "exits.every", config.exits.every, "1 or more")
    need(0 <= config.seed < 2**31, "seed", config.seed, "0 to 2147483647")


def check_reload(config: Any, need: Callable[[bool, str, object, str], None]) -> None:
    """Raise `ConfigError` for what the published procedure cannot do."""
    reload, where = config.expansion.reload, "expansion.reload"
    need(reload.warmup_epochs >= 0, f"{where}.warmup_epochs", reload.warmup_epochs, "0 or more")
    need(reload.patience >= 1, f"{where}.patience", reload.patience, "1 or more")
    need(reload.rate_patience >= 1, f"{where}.rate_patience", reload.rate_patience, "1 or more")
    for name in ("warmup_rate", "rate_factor", "later_rate"):
        value = getattr(reload, name)
        need(0 < value <= 1, f"{where}.{name}", value, "above 0 and at most 1")
    if config.expansion.procedure != "reload":
        return
    need(
        config.choice.target_accuracy is not None,
        "target_accuracy",
        None,
        "given for expansion: reload, which trains depth after depth until one reaches it",
    )
    need(config.regime != "frozen", "regime", config.regime, "scratch or finetune for expansion: reload")
