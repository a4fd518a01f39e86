"""Build a backbone by name, and find the name that would build one a user brought.

A saved model holds weights and a `BackboneSpec`, never code, so loading needs to build the same
architecture again. timm and torchvision names are enough for that; a module that no name rebuilds is
saved with `library="module"` and loads only into a module the user hands over.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from odn_hybrid.errors import ModelError

__all__ = [
    "BackboneSpec",
    "build_backbone",
    "default_image_size",
    "fixed_image_size",
    "input_channels",
    "load_checkpoint",
    "spec_of",
]


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

            weights = "DEFAULT" if pretrained else None
            model = torchvision.models.get_model(
                spec.name, weights=weights, num_classes=spec.num_classes, **spec.args
            )
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ModelError(f"cannot build {spec.library} model {spec.name!r}: {_line(error)}") from None
    return with_small_stem(model) if spec.stem == "small" else model


def _check_known(spec: BackboneSpec) -> None:
    if spec.library == "timm":
        import timm

        names = timm.list_models()
        known = timm.is_model(spec.name)
    else:
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        known = spec.name in names
    if not known:
        near = difflib.get_close_matches(spec.name, names, n=3)
        hint = f"; close names: {', '.join(near)}" if near else ""
        raise ModelError(f"unknown {spec.library} model {spec.name!r}{hint}")


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
    """Channels of the image the model takes: those of its first convolution (3 if it has none)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def fixed_image_size(model: nn.Module) -> tuple[int, int] | None:
    """The only (height, width) the model takes, or None if it takes many."""
    patch = getattr(model, "patch_embed", None)
    size = getattr(patch, "img_size", None) or getattr(model, "image_size", None)
    if size is not None and not getattr(model, "dynamic_img_size", False):
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if cfg.get("fixed_input_size"):
        return int(cfg["input_size"][-2]), int(cfg["input_size"][-1])
    return None


def default_image_size(model: nn.Module) -> int:
    """The side of the square image the model was designed for (224 where it does not say)."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return int(cfg.get("input_size", (3, 224, 224))[-1])


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a local .safetensors file of pretrained weights; a classifier of another size is left as it is.

    Raises `ModelError` if the file cannot be read, or if anything but the classifier does not fit.
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
    for candidate in _candidates(model, num_classes, channels):
        for stem in ("native", "small"):
            spec = replace(candidate, stem=stem)
            try:
                with torch.device("meta"):
                    twin = build_backbone(spec)
            except (ModelError, NotImplementedError):
                continue
            if _same_structure(model, twin):
                return spec
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return BackboneSpec(library="module", name=kind, num_classes=num_classes, in_chans=channels)


def _candidates(model: nn.Module, num_classes: int, channels: int) -> list[BackboneSpec]:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture")
    if name:
        base = BackboneSpec(library="timm", name=name, num_classes=num_classes, in_chans=channels)
        size = fixed_image_size(model)
        sized = [replace(base, args={"img_size": list(size)})] if size else []
        return [base, *sized]
    if type(model).__module__.startswith("torchvision.models."):
        import torchvision

        module = type(model).__module__.rpartition(".")[2]
        names = torchvision.models.list_models(module=getattr(torchvision.models, module))
        return [
            BackboneSpec(library="torchvision", name=n, num_classes=num_classes, in_chans=channels)
            for n in names
        ]
    return []


def _same_structure(model: nn.Module, twin: nn.Module) -> bool:
    if repr(model) != repr(twin):
        return False
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return shapes == {key: tuple(value.shape) for key, value in twin.state_dict().items()}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
