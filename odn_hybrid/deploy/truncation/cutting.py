"""A model with parts taken out, by a plan that is plain data: truncation makes it, loading makes it again.

The model stays of the backbone's own class, or a child of it. The forms:

- "whole": the model's own forward runs what is left, as in a shallower model of its class;
- "features": a timm model whose own `forward_features` runs what is left;
- "chain": stem, units and head are modules that run one after another;
- "program": the steps that a trace found between the images and the head (for images of the traced size).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, build_backbone
from odn_hybrid.errors import InputError, ModelError
from odn_hybrid.exits import build_head
from odn_hybrid.folding import apply_fold
from odn_hybrid.trunk import Trunk
from odn_hybrid.trunk.layout import Layout
from odn_hybrid.trunk.route import Route

__all__ = ["CutPlan", "apply_plan", "build_cut", "quicken"]


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """Everything needed to build a cut model again, without code.

    Attributes:
        spec: the whole backbone.
        exit: the exit it was cut at; None where there was none (`cut`).
        kind, keep: the depth plan: "prefix" or "thin", and the units that stay, from 0.
        form: "whole", "features", "chain" or "program"; see the module.
        remove: modules that are taken out (units that do not stay).
        silence: modules after the trunk that become identities (form "features") or go (the others).
        classifier: where the head goes.
        stem, units: the modules to run (form "chain"), and what each unit is called (form "program").
        head, head_args, layout: the exit head; `head` None means the backbone's own.
        image_shape: (channels, height, width) it was traced at.
        folded: (layer, batch normalisation) that were made one after the cut, see `folding`.
        channels_last: whether weights lie in memory with their channels last.
    """

    spec: BackboneSpec
    exit: int | None
    kind: str
    keep: tuple[int, ...]
    form: str
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
    folded: tuple[tuple[str, str], ...] = ()
    channels_last: bool = False

    @property
    def depth(self) -> int:
        """Number of units that run."""
        return len(self.keep)

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
            for name in ("keep", "remove", "silence", "stem", "image_shape"):
                values[name] = tuple(values[name])
            values["units"] = tuple(tuple(unit) for unit in values["units"])
            values["folded"] = tuple(_two_names(pair) for pair in values.get("folded", ()))
            if values["form"] not in FORMS:
                raise ValueError(f"form {values['form']!r}")
            if not isinstance(values.get("channels_last", False), bool):
                raise ValueError(f"channels_last {values['channels_last']!r}")
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"the description of the saved model is damaged: {error}") from None


def _two_names(pair: Any) -> tuple[str, str]:
    layer, norm = pair
    if not isinstance(layer, str) or not isinstance(norm, str):
        raise ValueError(f"folded {pair!r}")
    return layer, norm


class _CutFeatures:
    """Mixed into a timm model's class: features go straight to the exit head."""

    _odn_plan: CutPlan

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.get_submodule(self._odn_plan.classifier)(x)  # type: ignore[attr-defined]


class _CutChain:
    """Mixed into any other model's class: stem, units, exit head."""

    _odn_plan: CutPlan

    def forward(self, images: Tensor) -> Tensor:
        plan, x = self._odn_plan, images
        for name in (*plan.stem, *(n for unit in plan.units for n in unit), plan.classifier):
            x = self.get_submodule(name)(x)  # type: ignore[attr-defined]
        return x


class _CutProgram:
    """Mixed into a model that does more than call modules: its traced steps run."""

    _odn_plan: CutPlan
    _odn_route: Route

    def forward(self, images: Tensor) -> Tensor:
        plan, route = self._odn_plan, self._odn_route
        if tuple(images.shape[1:]) != plan.image_shape:
            raise InputError(
                f"images have shape {tuple(images.shape[1:])}; this cut model takes {plan.image_shape}"
            )
        state = route.begin(images)
        for unit in range(plan.keep[-1] + 1 if plan.head else len(route.units)):
            state = route.advance(state, unit + 1) if unit in plan.keep else route.idle(state)
        if plan.head is None:
            return route.finish(state)
        return self.get_submodule(plan.classifier)(state.x)  # type: ignore[attr-defined]


FORMS: dict[str, type | None] = {
    "whole": None,
    "features": _CutFeatures,
    "chain": _CutChain,
    "program": _CutProgram,
}


def build_cut(plan: CutPlan, backbone: nn.Module | None = None) -> nn.Module:
    """Build a cut model from its plan, with weights yet to be loaded."""
    model = backbone if backbone is not None else build_backbone(plan.spec)
    if plan.head is None:
        head = None
    elif plan.layout is None:
        raise ModelError("the description of the saved model is damaged: its head has no layout")
    else:
        head = build_head(plan.head, plan.layout, plan.num_classes, **plan.head_args)
    try:
        return apply_plan(model, plan, head)
    except (AttributeError, KeyError) as error:
        raise ModelError(f"{type(model).__name__} is not the architecture that was saved: {error}") from None


def apply_plan(model: nn.Module, plan: CutPlan, head: nn.Module | None) -> nn.Module:
    """Cut `model` in place by its plan, and fold; `head` is the exit's, None where the backbone's own stays.

    Raises `AttributeError`, `KeyError` or `ModelError` for a module that the plan does not fit.
    """
    if plan.form == "program":
        model.__dict__["_odn_route"] = _route(model, plan)
    model.__dict__["_odn_plan"] = plan
    for name in plan.remove:
        _remove(model, name)
    for name in plan.silence:
        model.set_submodule(name, nn.Identity().train(model.training))
    if head is not None:
        _put(model, plan.classifier, head)
    mixin = FORMS[plan.form]
    if mixin is not None:
        kind = type(model)
        model.__class__ = type(f"Cut{kind.__name__}", (mixin, kind), {"__module__": __name__})
    return quicken(model, plan)


def quicken(model: nn.Module, plan: CutPlan) -> nn.Module:
    """Fold a cut model by its plan, and lay its weights out, in place."""
    apply_fold(model, plan.folded)
    return model.to(memory_format=torch.channels_last) if plan.channels_last else model


def _route(model: nn.Module, plan: CutPlan) -> Route:
    """The steps of the whole model, before parts of it go; bound to its modules."""
    trunk = Trunk(model, image_size=plan.image_shape[1:], check=False)
    if trunk.unit_names != plan.units:
        raise ModelError(f"{type(model).__name__} splits into other units than those of the saved model")
    return trunk.route.pruned(plan.keep, with_tail=plan.head is None)


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
