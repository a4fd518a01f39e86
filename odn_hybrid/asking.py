"""What a fit was asked for: its complete recipe, the backbone, and the transform of its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from odn_hybrid.backbone import (
    BackboneSpec,
    build_backbone,
    checkpoint_channels,
    default_image_size,
    fixed_image_size,
    input_channels,
    is_published,
    load_checkpoint,
    parse_name,
    published_config,
    spec_of,
)
from odn_hybrid.config import (
    FitConfig,
    ModelConfig,
    from_dict,
    load_recipe,
    recipe_path,
    replace_fields,
    to_dict,
)
from odn_hybrid.data import Data, Preprocess, channel_stats, choose_preprocess
from odn_hybrid.errors import ConfigError, RunDirError
from odn_hybrid.rundir import CONFIG, SCHEMA, environment, read_json
from odn_hybrid.training.procedure.seeding import Seed

__all__ = [
    "OWN",
    "asked_recipe",
    "completed",
    "described",
    "long_names",
    "make_backbone",
    "make_preprocess",
    "stored_recipe",
]

#: What a recipe says of data sets that were handed over as objects.
OWN = "own"

#: Keyword arguments of `fit` that are short for a recipe's field.
SHORT = {
    "loss": "objective.name",
    "head": "exits.head",
    "plan": "exits.plan",
    "target_accuracy": "choice.target_accuracy",
    "tolerance": "choice.tolerance",
    "data_root": "data.root",
    "regime": "regime",
    "precision": "precision",
    "device": "device",
    "seed": "seed",
    "start_from": "start_from",
}


def long_names(options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's fields for `fit`'s short options; raises `ConfigError` for one it does not have."""
    unknown = sorted(set(options) - set(SHORT))
    if unknown:
        raise ConfigError(
            f"fit has no option {unknown[0]!r}; short options: {', '.join(SHORT)}; "
            'any other field: overrides={"section.field": value}'
        )
    return {SHORT[name]: value for name, value in options.items() if value is not None}


def asked_recipe(
    model: nn.Module | str | Path | None, data: Any, config: FitConfig | None, changes: dict[str, Any]
) -> tuple[FitConfig, nn.Module | None]:
    """The complete recipe, and the user's module if there is one."""
    module: nn.Module | None = None
    if model is None and config is None:
        config = load_recipe(recipe_path("quickstart"))
    elif isinstance(model, (str, Path)):
        if str(model).endswith((".yaml", ".yml")):
            if config is not None:
                raise ConfigError("pass a recipe or config=, not both")
            config = load_recipe(model)
        else:
            changes = {"model.name": str(model), **changes}
    elif isinstance(model, nn.Module):
        module = model
        given = sorted(name for name in changes if name.startswith("model."))
        if given:
            raise ConfigError(
                f"{given[0]} is for models by name, and a module was passed, which is taken as it is: load "
                "the weights into it, or pass the model's name"
            )
        config = replace(config or FitConfig(), model=ModelConfig())  # the module is in the recipe's place
    elif model is not None:
        raise ConfigError(
            f"model is a {type(model).__name__}; pass a module, a model's name or a recipe's path"
        )
    if isinstance(data, (str, Path)):
        changes = {**changes, "data.source": str(data)}
    elif data is not None:
        changes = {**changes, "data.source": OWN}
    return replace_fields(config or FitConfig(), changes), module


def stored_recipe(out: Path, *, needed: bool) -> FitConfig | None:
    """The recipe of the run in `out`, so that resuming needs nothing but the directory.

    None without one; `RunDirError` if it is `needed`, for nothing else says what to fit.
    """
    if not (out / CONFIG).is_file():
        if needed:
            raise RunDirError(f"{out} holds no run to go on with: check the path, or say what to fit there")
        return None
    return from_dict(FitConfig, read_json(out / CONFIG).get("recipe"))


def completed(recipe: Any) -> Any:
    """A stored recipe with the defaults of fields that are younger than it."""
    try:
        return to_dict(from_dict(FitConfig, recipe))
    except ConfigError:  # damaged, or of a later release: what compares it will say so
        return recipe


def make_backbone(
    config: FitConfig, module: nn.Module | None, data: Data
) -> tuple[nn.Module, BackboneSpec, bool]:
    """The backbone, its spec, and whether weights were loaded into all of it but the classifier."""
    if module is not None:
        return module, spec_of(module, data.num_classes), False
    if config.model.name is None:
        raise ConfigError("no model: pass a module, a model's name, or a recipe whose model.name is set")
    library, name = parse_name(config.model.name)
    grey = data.image_shape is not None and data.image_shape[2] == 1 and library == "timm"
    tuned = config.regime in ("finetune", "frozen")
    published = config.model.pretrained or (tuned and config.model.checkpoint is None)
    spec = BackboneSpec(
        library=library,
        name=name,
        args=dict(config.model.args),
        stem=config.model.stem,
        num_classes=data.num_classes,
    )
    if grey:
        spec = replace(spec, in_chans=_grey_channels(config, spec, published))
    if config.regime == "frozen":
        _check_frozen(config, spec, published)
    backbone = build_backbone(spec, pretrained=published)
    cfg = published_config(backbone)
    fresh = published and cfg.get("num_classes") not in (None, spec.num_classes)
    if config.model.checkpoint is not None:
        fresh = not load_checkpoint(backbone, config.model.checkpoint)
    return backbone, spec, fresh


def _grey_channels(config: FitConfig, spec: BackboneSpec, published: bool) -> int:
    """Channels of a network for grey images: those of its weights, 1 where there are none yet."""
    if config.model.checkpoint is not None:
        return checkpoint_channels(spec, config.model.checkpoint)
    return 3 if published else 1


def _check_frozen(config: FitConfig, spec: BackboneSpec, published: bool) -> None:
    """Raise `ConfigError` where a frozen backbone would have random weights."""
    if config.model.checkpoint is not None:
        return
    advice = "set model.checkpoint to a .safetensors file of its weights, or pass the model as a module"
    if spec.stem == "small":
        raise ConfigError(
            f"regime frozen leaves weights as they are, and a small stem would be random ones: {advice}"
        )
    if published and spec.library == "timm" and not is_published(spec.name):
        raise ConfigError(
            f"regime frozen needs pretrained weights, and none are published for {spec.name}: {advice}"
        )


def make_preprocess(
    config: FitConfig, backbone: nn.Module, data: Data, spec: BackboneSpec | None = None
) -> Preprocess:
    """The transform that goes with backbone and data; raises `ConfigError` for what neither can tell."""
    cfg = published_config(backbone, spec)
    wanted = config.data.normalise
    told = wanted == "pretrained" or (wanted == "auto" and config.regime in ("finetune", "frozen"))
    known = "mean" in cfg and "std" in cfg
    if wanted == "pretrained" and not known:
        raise ConfigError(
            "data.normalise is 'pretrained', but the model does not say by which mean and deviation: "
            "choose 'data'"
        )
    if wanted == "auto" and config.regime == "frozen" and not (known or data.ready):
        raise ConfigError(
            "a frozen backbone must see images as it did when it was trained, and the model does not say by "
            "which mean and deviation: set data.normalise to 'data' if it was by the data's own, else tell "
            'it by model.pretrained_cfg = {"mean": (...), "std": (...)}'
        )
    tuned = told and known
    bicubic = tuned and cfg.get("interpolation") == "bicubic"
    return choose_preprocess(
        data,
        image_size=config.data.image_size,
        fixed_size=fixed_image_size(backbone),
        default_size=default_image_size(backbone),
        channels=input_channels(backbone),
        mean_std=(tuple(cfg["mean"]), tuple(cfg["std"])) if tuned else channel_stats(data.splits["train"]),
        interpolation="bicubic" if bicubic else "bilinear",
    )


def described(
    config: FitConfig, spec: BackboneSpec, data: Data, preprocess: Preprocess, seed: Seed | None
) -> dict[str, Any]:
    """What `config.json` of the run holds."""
    return {
        "schema": SCHEMA,
        "recipe": to_dict(config),
        "backbone": spec.to_dict(),
        "data": data.describe(),
        "preprocess": preprocess.to_dict(),
        "environment": environment(),
    } | ({} if seed is None else {"start_from": seed.to_dict()})
