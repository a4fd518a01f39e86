"""Cut models in timm's own words: which `timm.create_model` call, if any, builds the same network.

A call is proposed from what is left of the backbone (how many blocks, which stages), and holds only if the
cut model's weights load into what it builds strictly and the logits are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import FORBIDDEN, evaluating
from odn_hybrid.deploy.truncation.cutting import CutPlan

__all__ = ["TimmForm", "timm_form"]

# Largest difference of logits, relative to the largest where that exceeds 1. The layer normalisation of exit
# heads adds 1e-5 to the variance where timm's transformers add 1e-6: that alone comes to about 2e-5.
TOLERANCE = 1e-4
UNBUILT = "timm cannot build it"
DIFFERS = "the logits of timm's model differ by"
#: Where a timm model may keep the normalisation that an exit head brings along.
NORMS = ("norm.", "fc_norm.", "head.norm.")
#: An exit head averages all tokens, class token included, after normalising them.
TOKENS = {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True}


@dataclass(frozen=True, kw_only=True)
class TimmForm:
    """`timm.create_model(name, **kwargs)`, and which of the cut model's keys have other names there.

    Attributes:
        renamed: beginnings of keys, ours -> timm's; the first that fits a key holds.
        difference: of logits on random images, relative to the largest where that exceeds 1.
    """

    name: str
    kwargs: dict[str, Any]
    renamed: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0

    def build(self) -> nn.Module:
        """The model, with random weights."""
        import timm

        model: nn.Module = timm.create_model(self.name, **self.kwargs)
        return model

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of the cut model under timm's keys."""
        return {self._key(key): value for key, value in model.state_dict().items()}

    def _key(self, key: str) -> str:
        for ours, timms in self.renamed.items():
            if key.startswith(ours):
                return timms + key.removeprefix(ours)
        return key

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)


def timm_form(model: nn.Module) -> tuple[TimmForm | None, str]:
    """How timm builds this cut model; None and what prevents it, where timm cannot."""
    plan: CutPlan = model.__dict__["_odn_plan"]
    if plan.spec.library != "timm":
        return None, f"it is not one of timm's models but {plan.spec.library}'s"
    if plan.spec.stem != "native":
        return None, "its stem was replaced by a small one"
    if plan.folded:
        return None, "its batch normalisations are folded"
    if plan.head not in (None, "linear"):
        return None, f"timm has no head like the exit head {plan.head!r}"
    reasons = ["timm has no argument for what is left of it"]
    for kwargs in _arguments(model, plan):
        args = {**plan.spec.args, **kwargs}
        if set(args) & set(FORBIDDEN):
            return None, "its arguments make timm read files"
        args |= {"num_classes": plan.num_classes, "in_chans": plan.spec.in_chans}
        for renamed in _renamings(model, plan):
            form = TimmForm(name=plan.spec.name, kwargs=args, renamed=renamed)
            found = _fitted(model, form, plan)
            if isinstance(found, TimmForm):
                return found, ""
            reasons.append(found)
    return None, max(reasons, key=_telling)


def _telling(reason: str) -> int:
    """How far a try got: logits, weights, a constructor that knew its arguments."""
    if reason.startswith(DIFFERS):
        return 3
    if "argument" in reason:
        return 0
    return 1 if reason.startswith(UNBUILT) else 2


def _arguments(model: nn.Module, plan: CutPlan) -> Iterator[dict[str, Any]]:
    """Arguments that may give what is left, the likeliest first."""
    if plan.form == "whole" and not plan.remove:
        yield {}
        return
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, (nn.Sequential, nn.ModuleList)) and not hasattr(model, "stages"):
        yield {"depth": len(blocks), **(TOKENS if plan.head else {})}
        if plan.head:
            yield {"depth": len(blocks), "global_pool": "avg", "fc_norm": False}
        yield {"num_blocks": len(blocks)}
    if isinstance(getattr(model, "layer1", None), nn.Module):
        yield _resnet(model, plan)
    for name in ("stages", "layers"):
        stages = getattr(model, name, None)
        if isinstance(stages, (nn.Sequential, nn.ModuleList)):
            counts = [len(getattr(stage, "blocks", ())) for stage in stages]
            pool = {"global_pool": "avg"} if plan.head else {}
            yield from ({key: counts, **pool} for key in ("depths", "layers"))


def _resnet(model: nn.Module, plan: CutPlan) -> dict[str, Any]:
    """Blocks per stage; where the last stages are gone, the classifier has the width of the last one left."""
    stages = [getattr(model, f"layer{number}", None) for number in range(1, 5)]
    counts = [len(stage) if isinstance(stage, nn.Sequential) else 0 for stage in stages]
    channels = list(plan.spec.args.get("channels", (64, 128, 256, 512)))
    left = max((number for number, count in enumerate(counts, 1) if count), default=1)
    if left == len(counts):
        return {"layers": counts}
    return {"layers": counts, "channels": channels[:left] + [channels[left - 1]] * (len(channels) - left)}


def _renamings(model: nn.Module, plan: CutPlan) -> Iterator[dict[str, str]]:
    """Beginnings of our keys -> timm's: blocks counted without gaps, the head's layers in timm's places."""
    counted: dict[str, str] = {}
    for name, module in model.named_modules():
        inside = f"{name}." if name else ""
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for place, child in enumerate(module._modules):
                if re.fullmatch(r"\d+", child) and int(child) != place:
                    counted[f"{inside}{child}."] = f"{inside}{place}."
    if plan.head is None:
        yield counted
        return
    head = f"{plan.classifier}."
    normed = any(key.startswith(f"{head}norm.") for key in model.state_dict())
    for norm in NORMS if normed else NORMS[:1]:
        yield {**counted, f"{head}fc.": head, **({f"{head}norm.": norm} if normed else {})}


@torch.no_grad()
def _fitted(model: nn.Module, form: TimmForm, plan: CutPlan) -> TimmForm | str:
    """The form, with its difference, where it holds; else what is wrong with it."""
    weights = form.weights(model)
    try:
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in form.build().state_dict().items()}
        ours = {key: value.shape for key, value in weights.items()}
        for key in (*shapes, *ours):
            if shapes.get(key) != ours.get(key):
                return f"{key} is {_shape(ours.get(key))} here and {_shape(shapes.get(key))} in timm's model"
        twin = form.build().eval()
        twin.load_state_dict(weights, strict=True)
    except Exception as error:  # a constructor may raise anything for arguments it was not made for
        return f"{UNBUILT}: {' '.join(str(error).split())[:200] or type(error).__name__}"
    like = next(model.parameters())
    images = torch.rand(2, *plan.image_shape, generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        wanted = model(images.to(like.device, like.dtype)).cpu().float()
    got = twin(images)
    apart = float((wanted - got).abs().max()) / max(1.0, float(wanted.abs().max()))
    return replace(form, difference=apart) if apart <= TOLERANCE else f"{DIFFERS} {apart:.2g}"


def _shape(shape: Any) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
