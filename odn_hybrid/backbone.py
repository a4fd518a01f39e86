"""Build a backbone by name, and find the name that would build one a user brought.

A saved model holds weights and a `BackboneSpec`, never code, so loading needs to build the same
architecture again. timm and torchvision names are enough for that; a module that no name rebuilds is
saved with `library="module"` and loads only into a module the user hands over.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from odn_hybrid.errors import ModelError

__all__ = [
    "BackboneSpec",
    "build_backbone",
    "checkpoint_channels",
    "default_image_size",
    "evaluating",
    "fixed_image_size",
    "input_channels",
    "is_published",
    "load_checkpoint",
    "published_config",
    "spec_of",
    "unwrapped",
]


# Arguments that make timm read a file or an address. Weights come in as safetensors (`load_checkpoint`), and
# nothing that a saved model or a recipe says may make the library unpickle anything.
FORBIDDEN = (
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "weights",
)
BUILT_AS = "_odn_built_as"


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """How to build an architecture: library, name, keyword arguments, stem, classes, channels."""

    library: str
    name: str
    args: dict[str, Any] = field(default_factory=dict)
    stem: str = "native"
    num_classes: int = 1000
    in_chans: int = 3

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)


def parse_name(name: str) -> tuple[str, str]:
    """`"torchvision/resnet18"` -> `("torchvision", "resnet18")`; a bare name is timm's."""
    library, slash, rest = name.partition("/")
    if slash and library in ("timm", "torchvision"):
        return library, rest
    return "timm", name


def build_backbone(spec: BackboneSpec, *, pretrained: bool = False) -> nn.Module:
    """Build the architecture of `spec` with random (or, by name, pretrained) weights.

    Raises `ModelError` for an unknown name or arguments the model does not take.
    """
    if spec.library == "module":
        raise ModelError(
            f"this model was made from a module of class {spec.name} that no timm or torchvision name "
            "rebuilds; pass a freshly built one: odn_hybrid.load(path, backbone=MODULE)"
        )
    _check_known(spec)
    refused = sorted(set(spec.args) & set(FORBIDDEN))
    if refused:
        raise ModelError(
            f"model argument {refused[0]!r} is not taken; weights come with pretrained=true or with "
            "checkpoint=FILE.safetensors"
        )
    try:
        if spec.library == "timm":
            import timm

            model = timm.create_model(
                spec.name,
                pretrained=pretrained,
                num_classes=spec.num_classes,
                in_chans=spec.in_chans,
                **spec.args,
            )
        else:
            import torchvision

            make = partial(torchvision.models.get_model, spec.name, **spec.args)
            if pretrained:  # their classes are the weights' own, and no others can be asked for
                model = _with_classes(make(weights="DEFAULT"), spec.num_classes)
            else:
                model = make(weights=None, num_classes=spec.num_classes)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ModelError(f"cannot build {spec.library} model {spec.name!r}: {_line(error)}") from None
    if spec.stem == "small":
        with_small_stem(model)
    model.__dict__[BUILT_AS] = spec  # arguments cannot be read off a built model; copies keep this
    return model


def _with_classes(model: nn.Module, num_classes: int) -> nn.Module:
    """A torchvision classifier, its last layer replaced by a new one where the classes are others."""
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    if isinstance(last, nn.Linear):
        if last.out_features == num_classes:
            return model
        fresh: nn.Module = nn.Linear(last.in_features, num_classes)
    else:  # SqueezeNet's
        if last.out_channels == num_classes:
            return model
        fresh = nn.Conv2d(last.in_channels, num_classes, kernel_size=1)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, fresh)
    return model


def published_config(model: nn.Module, spec: BackboneSpec | None = None) -> dict[str, Any]:
    """What is known of the weights published for a model; {} of a model of one's own.

    `mean`, `std`: by which their images were normalised; `interpolation`: by which they were resized, and
    `num_classes`.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    spec = spec or model.__dict__.get(BUILT_AS)
    if cfg or spec is None or spec.library != "torchvision":
        return dict(cfg or {})
    import torchvision

    weights = torchvision.models.get_model_weights(spec.name).DEFAULT
    transform = weights.transforms()
    return {
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
        "interpolation": transform.interpolation.value,
        "num_classes": len(weights.meta["categories"]),
    }


def _check_known(spec: BackboneSpec) -> None:
    if spec.library not in ("timm", "torchvision"):
        raise ModelError(f"unknown library {spec.library!r}; models come from timm or torchvision")
    if spec.library == "timm":
        import timm

        names = timm.list_models()
        known = timm.is_model(spec.name)
    else:
        names = _torchvision_names()
        known = spec.name in names
    if not known:
        near = difflib.get_close_matches(spec.name, names, n=3)
        hint = f"; close names: {', '.join(near)}" if near else ""
        raise ModelError(f"unknown {spec.library} model {spec.name!r}{hint}")


def _torchvision_names(module: str | None = None) -> list[str]:
    """Names of torchvision's classifiers; those whose builder stands in the module of that name."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)  # without it: detection and segmentation too
    return [n for n in names if module is None or models.get_model_builder(n).__module__ == module]


def with_small_stem(model: nn.Module) -> nn.Module:
    """Replace a ResNet's 7x7 stride-2 stem and max-pool by a 3x3 stride-1 convolution, in place."""
    first = getattr(model, "conv1", None)
    if not (isinstance(first, nn.Conv2d) and isinstance(getattr(model, "maxpool", None), nn.Module)):
        raise ModelError(
            f"stem='small' needs a ResNet whose conv1 is one convolution followed by maxpool; "
            f"{type(model).__name__} has another stem, use stem='native'"
        )
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = small, nn.Identity()
    return model


def input_channels(model: nn.Module) -> int:
    """Channels of the image the model takes: what it says, else those of its first convolution, else 3."""
    if isinstance(getattr(model, "in_chans", None), int):
        return int(model.in_chans)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def fixed_image_size(model: nn.Module) -> tuple[int, int] | None:
    """The only (height, width) the model takes, or None if it takes many."""
    if getattr(model, "dynamic_img_size", False):
        return None
    patches = (getattr(model, name, None) for name in ("patch_embed", "stem"))
    sizes = [*(getattr(patch, "img_size", None) for patch in patches), getattr(model, "image_size", None)]
    size = next(filter(None, sizes), None)
    if size is not None:
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if cfg.get("fixed_input_size"):
        return int(cfg["input_size"][-2]), int(cfg["input_size"][-1])
    return None


def default_image_size(model: nn.Module) -> int:
    """The side of the square image the model was designed for (224 where it does not say)."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return int(cfg.get("input_size", (3, 224, 224))[-1])


def is_published(name: str) -> bool:
    """Whether timm knows where weights of this model can be had; true of names that it does not know."""
    import timm

    if not timm.is_model(name):
        return True
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return cfg is not None and bool(cfg.has_weights)


def checkpoint_channels(spec: BackboneSpec, path: str | Path) -> int:
    """Channels of the images that the weights in a .safetensors file are for: 1, or else 3."""
    from safetensors import SafetensorError, safe_open

    try:
        with torch.device("meta"):
            named = build_backbone(spec).named_modules()
        first = next(f"{name}.weight" for name, module in named if isinstance(module, nn.Conv2d))
        with safe_open(Path(path), "pt") as file:
            return 1 if file.get_slice(first).get_shape()[1] == 1 else 3
    except (ModelError, NotImplementedError, OSError, SafetensorError, StopIteration):
        return 3  # if something is wrong, building and loading will say what


def load_checkpoint(model: nn.Module, path: str | Path) -> bool:
    """Load a local .safetensors file of pretrained weights; a classifier of another size is left as it is.

    Returns whether the classifier's weights were all there. Raises `ModelError` if the file cannot be read,
    or if anything but the classifier does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path} is not a .safetensors file; pickled weights are not read, convert them first"
        )
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the weights {path}: {_line(error)}") from None
    own = model.state_dict()
    other = [key for key in weights if key in own and weights[key].shape != own[key].shape]
    missing = [key for key in own if key not in weights] + [key for key in weights if key not in own]
    heads = _classifier_prefixes(model)
    bad = [key for key in other + missing if not key.startswith(heads)]
    if bad:
        raise ModelError(f"{path} does not fit {type(model).__name__}: {bad[0]} (and {len(bad) - 1} more)")
    model.load_state_dict({k: v for k, v in weights.items() if k in own and k not in other}, strict=False)
    return not any(key in own for key in other + missing)


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ("fc", "head", "classifier", "heads")
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


# --- which name rebuilds this module? -------------------------------------------------------------


def spec_of(model: nn.Module, num_classes: int) -> BackboneSpec:
    """The spec that rebuilds `model`, proved by building it again and comparing structure and shapes.

    Falls back to `library="module"` (loadable only into a module the user brings).
    """
    channels = input_channels(model)
    for spec in _candidates(model, num_classes, channels):
        try:
            with torch.device("meta"):
                twin = build_backbone(spec)
                if _same_structure(model, twin):
                    return spec
                if spec.stem == "native" and _same_structure(model, with_small_stem(twin)):
                    return replace(spec, stem="small")
        except (ModelError, NotImplementedError):
            continue
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return BackboneSpec(library="module", name=kind, num_classes=num_classes, in_chans=channels)


def _candidates(model: nn.Module, num_classes: int, channels: int) -> list[BackboneSpec]:
    """What `model` may have been built as, the likeliest first."""
    likely: list[BackboneSpec] = []
    built = model.__dict__.get(BUILT_AS)
    if isinstance(built, BackboneSpec):
        likely.append(replace(built, num_classes=num_classes, in_chans=channels))
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = fixed_image_size(model)
    home = type(model).__module__
    plain: list[BackboneSpec] = []
    sized: dict[str, Any] = {}
    if cfg.get("architecture"):
        plain = [BackboneSpec(library="timm", name=cfg["architecture"])]
        sized = {"img_size": list(size)} if size else {}
    elif home.startswith("torchvision.models."):
        plain = [BackboneSpec(library="torchvision", name=name) for name in _torchvision_names(home)]
        sized = {"image_size": size[0]} if size else {}
    plain = [replace(spec, num_classes=num_classes, in_chans=channels) for spec in plain]
    return likely + plain + ([replace(spec, args=sized) for spec in plain] if sized else [])


def _same_structure(model: nn.Module, twin: nn.Module) -> bool:
    """The same classes, the same options that modules print, the same keys with the same shapes."""
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    if kinds != [(name, type(module)) for name, module in twin.named_modules()] or repr(model) != repr(twin):
        return False
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return shapes == {key: tuple(value.shape) for key, value in twin.state_dict().items()}


# --- wrappers and modes ---------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what `torch.compile`, DataParallel and the like put around it: with its own keys."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__module__.startswith(("torch.nn.parallel", "torch.distributed")):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
