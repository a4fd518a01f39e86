"""Static truncation: the backbone cut after some units, as a plain module with its own keys.

The cut model is the backbone's own class with later units and everything that served the old classifier
gone, and the exit's head where the classifier stood. For timm models only `forward_head` changes, so the
library's own `forward_features` runs the prefix; other models run stem, units and head one after another.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, build_backbone, evaluating, spec_of
from odn_hybrid.errors import ModelError
from odn_hybrid.exits import MultiExit, build_head
from odn_hybrid.trunk.interrupting import forget_stops, stop_at
from odn_hybrid.trunk.layout import Layout

__all__ = ["CutPlan", "build_cut", "plan_of", "truncate"]

TOLERANCE = 1e-5  # largest difference of logits between the cut model and the exit it was cut at


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """Everything needed to build a cut model again, without tracing and without code.

    Attributes:
        spec: the whole backbone.
        exit, depth: where it is cut; `depth` counts units.
        remove: modules that are taken out (units past the cut).
        silence: modules after the trunk that become identities.
        classifier: where the head goes.
        stem, units: the modules to run, for models without timm's `forward_features`; else empty.
        head, head_args, layout: the exit head; `head` None means the backbone's own (nothing is cut).
        image_shape: (channels, height, width) it was traced at.
    """

    spec: BackboneSpec
    exit: int
    depth: int
    remove: tuple[str, ...]
    silence: tuple[str, ...]
    classifier: str
    stem: tuple[str, ...]
    units: tuple[tuple[str, ...], ...]
    head: str | None
    head_args: dict[str, Any]
    layout: Layout | None
    num_classes: int
    image_shape: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CutPlan:
        """Read back what `to_dict` (by way of JSON) gave; raises `ModelError` for anything else."""
        try:
            values = dict(data)
            values["spec"] = BackboneSpec(**values["spec"])
            values["layout"] = Layout(**values["layout"]) if values["layout"] else None
            for name in ("remove", "silence", "stem", "image_shape"):
                values[name] = tuple(values[name])
            values["units"] = tuple(tuple(unit) for unit in values["units"])
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"the description of the saved model is damaged: {error}") from None


class _CutHead:
    """Mixed into a timm model's class: features go straight to the exit head."""

    _odn_plan: CutPlan

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.get_submodule(self._odn_plan.classifier)(x)  # type: ignore[attr-defined]


class _CutForward:
    """Mixed into any other model's class: stem, units, exit head."""

    _odn_plan: CutPlan

    def forward(self, images: Tensor) -> Tensor:
        plan, x = self._odn_plan, images
        for name in (*plan.stem, *(n for unit in plan.units for n in unit), plan.classifier):
            x = self.get_submodule(name)(x)  # type: ignore[attr-defined]
        return x


class _CutStopped:
    """Mixed into a model whose stem is more than modules: its own forward runs until the first unit."""

    _odn_plan: CutPlan

    def forward(self, images: Tensor) -> Tensor:
        plan = self._odn_plan
        first = self.get_submodule(plan.units[0][0])  # type: ignore[attr-defined]
        (x, *_), _ = stop_at(first, super().forward, images)  # type: ignore[misc]
        for name in (*(n for unit in plan.units for n in unit), plan.classifier):
            x = self.get_submodule(name)(x)  # type: ignore[attr-defined]
        return x


def plan_of(network: MultiExit, exit: int, spec: BackboneSpec | None = None) -> CutPlan:
    """The plan that cuts `network` at exit 1..K."""
    trunk = network.trunk
    depth = network.units[network.check_exit(exit) - 1]
    whole = exit == len(network)
    timms = trunk.split.post is not None
    if not whole and not timms and trunk.split.extras != "none":
        raise ModelError(
            f"{type(network.backbone).__name__} gives its blocks tables of its own; "
            "it cannot be cut into a plain module"
        )
    return CutPlan(
        spec=spec or spec_of(network.backbone, trunk.num_classes),
        exit=exit,
        depth=depth,
        remove=() if whole else tuple(n for unit in trunk.unit_names[depth:] for n in unit),
        silence=() if whole else trunk.after_names,
        classifier=trunk.classifier_name,
        stem=trunk.split.stem or (),
        units=() if timms else trunk.unit_names[:depth],
        head=None if whole else network.config.head,
        head_args={} if whole else dict(network.config.args),
        layout=None if whole else trunk.layout(depth),
        num_classes=trunk.num_classes,
        image_shape=trunk.image_shape,
    )


def truncate(network: MultiExit, exit: int, spec: BackboneSpec | None = None) -> nn.Module:
    """Cut `network` at exit 1..K: a plain, independent module with the logits of that exit.

    Its keys are the backbone's own (the head stands under the classifier's name). The cut is checked on
    random images: raises `ModelError` if its logits differ from the exit's by more than 1e-5, relative to
    the largest where that exceeds 1.
    """
    plan = plan_of(network, exit, spec)
    head = None if plan.head is None else copy.deepcopy(network.heads[exit - 1])
    model = _cut(copy.deepcopy(network.backbone), plan, head)
    _check(network, exit, model)
    return model


def build_cut(plan: CutPlan, backbone: nn.Module | None = None) -> nn.Module:
    """Build a cut model from its plan, with weights yet to be loaded."""
    model = backbone if backbone is not None else build_backbone(plan.spec)
    if plan.head is None:
        return _cut(model, plan, None)
    if plan.layout is None:
        raise ModelError("the description of the saved model is damaged: its head has no layout")
    head = build_head(plan.head, plan.layout, plan.num_classes, **plan.head_args)
    try:
        return _cut(model, plan, head)
    except (AttributeError, KeyError) as error:
        raise ModelError(f"{type(model).__name__} is not the architecture that was saved: {error}") from None


def _cut(model: nn.Module, plan: CutPlan, head: nn.Module | None) -> nn.Module:
    forget_stops(model)
    model.__dict__["_odn_plan"] = plan
    if head is None:
        return model
    for name in plan.remove:
        _remove(model, name)
    for name in plan.silence:
        model.set_submodule(name, nn.Identity().train(model.training))
    _put(model, plan.classifier, head)
    mixin: type = _CutHead if not plan.units else (_CutForward if plan.stem else _CutStopped)
    kind = type(model)
    model.__class__ = type(f"Cut{kind.__name__}", (mixin, kind), {"__module__": __name__})
    return model


def _remove(model: nn.Module, name: str) -> None:
    """Take a unit out; what other code calls by its name (a stage's `downsample`) becomes an identity."""
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    if isinstance(parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        del parent._modules[leaf]
    else:
        model.set_submodule(name, nn.Identity().train(model.training))


def _put(model: nn.Module, name: str, head: nn.Module) -> None:
    """Set `head` at a dotted name, making plain containers on the way where a cut left identities."""
    parent = model
    *path, leaf = name.split(".")
    for part in path:
        child = parent._modules.get(part)
        if child is None or isinstance(child, nn.Identity):
            child = nn.Module().train(model.training)
            parent._modules[part] = child
        parent = child
    parent._modules[leaf] = head


@torch.no_grad()
def _check(network: MultiExit, exit: int, model: nn.Module) -> None:
    like = next(network.parameters())
    images = torch.rand(2, *network.trunk.image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device=like.device, dtype=like.dtype)
    with evaluating(network), evaluating(model):
        wanted = network.at(images, exit)
        try:
            got = model(images)
            difference = float((wanted - got).abs().max())
        except (RuntimeError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise ModelError(_failed(network, exit, " ".join(str(error).split())[:200])) from None
    allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if like.dtype == torch.float32 and not difference <= allowed:
        raise ModelError(_failed(network, exit, f"difference {difference:.2g}"))


def _failed(network: MultiExit, exit: int, why: str) -> str:
    return (
        f"{type(network.backbone).__name__} cut after {network.units[exit - 1]} units does not give "
        f"the logits of exit {exit} ({why}): please report this architecture"
    )
