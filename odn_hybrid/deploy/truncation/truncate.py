"""Static truncation: the backbone with fewer units, as a plain module with its own keys.

The units that a depth plan leaves out are gone and, for a prefix, the exit's head stands where the classifier
stood. Of the forms a cut model can have (`cutting.py`) the first that gives the right logits is taken. For
full speed batch normalisations can be folded into the layers before them (`folding`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, evaluating, spec_of
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.truncation.cutting import CutPlan, apply_plan, build_cut, quicken
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.exits import MultiExit, unused_modules
from odn_hybrid.folding import fold_pairs
from odn_hybrid.training.devices.compiling import check_compiler
from odn_hybrid.trunk import DepthPlan, Trunk

__all__ = ["CutPlan", "build_cut", "compiled", "cut", "truncate"]

TOLERANCE = 1e-5  # largest difference of logits between the cut model and what it was cut from
FOLDED = 1e-4  # and of a folded one, whose sums are rounded otherwise


def truncate(
    network: MultiExit, exit: int, spec: BackboneSpec | None = None, *, fold: bool = False
) -> nn.Module:
    """Cut `network` at exit 1..K: a plain, independent module with the logits of that exit.

    Its keys are the backbone's own (an exit's head stands under the classifier's name). The cut is checked on
    random images: raises `ModelError` if its logits differ from the exit's by more than 1e-5, relative to
    the largest where that exceeds 1.

    With `fold`, batch normalisations go into the layers before them where that is exact, which leaves those
    layers with a bias and the normalisations' keys out, and a network of image maps has its channels last in
    memory. The result is for evaluation, its logits within 1e-4 of the exit's.
    """
    kept = network.plans[network.check_exit(exit) - 1]
    with network.as_exit(exit):
        model = copy.deepcopy(network.backbone)
    head = None if network.own_head(exit) else network.heads[exit - 1]

    def wanted(images: Tensor) -> Tensor:
        with evaluating(network):
            return network.at(images, exit)

    made = _plain(network.trunk, kept, wanted, spec, model=model, exit=exit, head=head, config=network.config)
    return _folded(network.trunk, wanted, made) if fold else made


def cut(trunk: Trunk, plan: DepthPlan, spec: BackboneSpec | None = None, *, fold: bool = False) -> nn.Module:
    """The network that a thin plan leaves: a plain, independent module of the backbone's own class and keys.

    No fit is needed: this is for pruning a trained model, which one then tunes oneself; until then its
    answers are poor. `odn.save` takes it. A prefix cannot be cut so: another head would have to answer.

    Args:
        trunk: the model's; it stays as it is.
        plan: which units stay, see `thin`.
        spec: how to build the architecture again, for `save`; default: by the timm or torchvision name that
            gives the same structure, if there is one.
        fold: see `Run.truncate`; a folded model is not for tuning.

    Raises:
        ConfigError: not a thin plan, or one without a unit that must stay. ModelError: the check on random
            images fails, see `truncate`.

    Example:
        >>> import timm, odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> small = odn.cut(trunk, odn.thin(0.5, trunk))
        >>> len(trunk), len(odn.Trunk(small, image_size=32))
        (8, 4)
    """
    _check_plan(trunk, plan)

    def wanted(images: Tensor) -> Tensor:
        with evaluating(trunk.model):
            return trunk.tail(trunk.follow(trunk.stem(images), plan))

    made = _plain(trunk, plan, wanted, spec)
    return _folded(trunk, wanted, made) if fold else made


def _check_plan(trunk: Trunk, plan: DepthPlan) -> None:
    if not isinstance(trunk, Trunk) or not isinstance(plan, DepthPlan):
        raise ConfigError(
            f"cut takes a Trunk and a DepthPlan, not a {type(trunk).__name__} and a {type(plan).__name__}; "
            "see odn.Trunk and odn.thin"
        )
    if plan.kind != "thin" and plan.units != len(trunk):
        raise ConfigError(
            f"cut takes thin plans, not a {plan.kind} of {plan.units} units: the backbone's own head cannot "
            "answer there; fit trains a head for every depth, and run.truncate(depth=...) cuts at it"
        )
    if not plan.keep or sorted(set(plan.keep) & set(range(len(trunk)))) != list(plan.keep):
        raise ConfigError(
            f"the plan keeps {plan.keep!r}; give units 0 to {len(trunk) - 1} in ascending order"
        )
    for unit in sorted(set(range(len(trunk))) - set(plan.keep)):
        if not trunk.preserving[unit]:
            names = ", ".join(trunk.unit_names[unit])
            raise ConfigError(f"unit {unit} ({names}) changes the shape of what it gets: it must stay")


def _plain(
    trunk: Trunk,
    kept: DepthPlan,
    wanted: Callable[[Tensor], Tensor],
    spec: BackboneSpec | None,
    *,
    model: nn.Module | None = None,
    exit: int | None = None,
    head: nn.Module | None = None,
    config: ExitConfig | None = None,
) -> nn.Module:
    """The first form whose logits are `wanted(images)`, cut from `model` (default: the trunk's).

    `head` None is the backbone's own.
    """
    problem = ""
    spec = spec or spec_of(trunk.model, trunk.num_classes)
    for form in _forms(trunk, kept):
        plan = _cut_plan(trunk, kept, spec, form, exit, config if head is not None else None)
        try:
            made = apply_plan(copy.deepcopy(model or trunk.model), plan, copy.deepcopy(head))
        except (AttributeError, KeyError) as error:
            problem = problem or str(error)
            continue
        wrong = _difference(trunk, wanted, made, TOLERANCE)
        if not wrong:
            return made
        problem = problem or wrong
    where = f"after {kept.units} units" if kept.kind == "prefix" else f"to units {list(kept.keep)}"
    right = "the right logits" if exit is None else f"the logits of exit {exit}"
    raise ModelError(
        f"{type(trunk.model).__name__} cut {where} does not give {right} ({problem}): "
        "please report this architecture"
    )


def _forms(trunk: Trunk, kept: DepthPlan) -> list[str]:
    """Forms in which the plan could be cut, the plainest first."""
    if kept.units == len(trunk):
        return ["whole"]
    if kept.kind == "thin":
        return ["whole", "program"]
    forms = ["program"]
    if trunk.chain:
        forms.insert(0, "chain")
    if hasattr(trunk.model, "forward_features") and hasattr(trunk.model, "forward_head"):
        forms.insert(0, "features")
    return forms


def _cut_plan(
    trunk: Trunk, kept: DepthPlan, spec: BackboneSpec, form: str, exit: int | None, config: ExitConfig | None
) -> CutPlan:
    """How to cut in one form; `config` None: the backbone's own head stays."""
    remove, silence = unused_modules(trunk, kept, own_head=config is None)
    chain = trunk.chain if form == "chain" else None
    if form == "chain":
        units = tuple(trunk.unit_names[number] for number in kept.keep)
    else:
        units = trunk.unit_names if form == "program" else ()
    return CutPlan(
        spec=spec,
        exit=exit,
        kind=kept.kind,
        keep=kept.keep,
        form=form,
        remove=tuple(remove),
        silence=tuple(silence),
        classifier=trunk.classifier_name,
        stem=chain[0] if chain else (),
        units=units,
        head=None if config is None else config.head,
        head_args={} if config is None else dict(config.args),
        layout=None if config is None else trunk.layout(kept.units),
        num_classes=trunk.num_classes,
        image_shape=trunk.image_shape,
    )


def _folded(trunk: Trunk, wanted: Callable[[Tensor], Tensor], model: nn.Module) -> nn.Module:
    """A cut model, folded in place."""
    pairs = fold_pairs(model, _some_images(trunk))
    plan: CutPlan = model.__dict__["_odn_plan"]
    plan = replace(plan, folded=pairs, channels_last=trunk.layout(1).kind == "NCHW")
    model.__dict__["_odn_plan"] = plan
    wrong = _difference(trunk, wanted, quicken(model, plan), FOLDED)
    if wrong:
        raise ModelError(
            f"{type(trunk.model).__name__}, folded, does not give the logits it gave before ({wrong}): leave "
            "fold out"
        )
    return model


def compiled(model: nn.Module) -> nn.Module:
    """`model` through `torch.compile`: it compiles at the first call, and when the shape of images changes.

    Raises `ConfigError` where the device has no compiler.
    """
    check_compiler(next(model.parameters()).device)
    return cast(nn.Module, torch.compile(model))


def _some_images(trunk: Trunk) -> Tensor:
    like = next(trunk.model.parameters())
    images = torch.rand(2, *trunk.image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(device=like.device, dtype=like.dtype)


@torch.no_grad()
def _difference(trunk: Trunk, wanted: Callable[[Tensor], Tensor], model: nn.Module, tolerance: float) -> str:
    """What is wrong with a cut model's logits on random images; empty if nothing is."""
    images = _some_images(trunk)
    right = wanted(images)
    with evaluating(model):
        try:
            difference = float((right - model(images)).abs().max())
        except (RuntimeError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return " ".join(str(error).split())[:200] or type(error).__name__
    allowed = tolerance * max(1.0, float(right.abs().max()))
    if images.dtype == torch.float32 and not difference <= allowed:
        return f"difference {difference:.2g}"
    return ""
