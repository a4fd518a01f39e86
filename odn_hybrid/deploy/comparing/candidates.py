"""The models that are compared: all cut from one network and run in one way, or given by the user."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, evaluating
from odn_hybrid.cost import count_macs, size_of
from odn_hybrid.data import Preprocess, Split, make_loader
from odn_hybrid.deploy.comparing.forms import formed
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.halting.choosing import image_layout
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.folding import apply_fold, fold_pairs
from odn_hybrid.stopping import wilson

__all__ = ["Candidate", "accuracy_of", "equal_exit", "first_images", "given_candidate", "own_candidates"]

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison.

    Attributes:
        name: how its row is called; of the run's own "full", "static", "static_equal", "dynamic".
        kind: "full", "static", "dynamic" or "given".
        model: in evaluation mode, on the device, in the form that is measured.
        exit: of the network, or None.
        accuracy: on the test split, as reports hold it, or None.
        certified: of a dynamic model, whether its certificate speaks of it as it is measured; else None.
        note: what a reader must know about its figures, or None.
        images: (n, channels, height, width) as this model takes them, or None for those of the others.
    """

    name: str
    kind: str
    model: nn.Module
    exit: int | None
    accuracy: dict[str, Any] | None
    mean_macs: float
    params: int
    bytes: int
    certified: bool | None = None
    note: str | None = None
    images: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its row in a comparison, before anything is measured."""
        names = ("name", "kind", "exit", "accuracy", "mean_macs", "params", "bytes", "certified", "note")
        return {name: getattr(self, name) for name in names}


def own_candidates(
    network: MultiExit,
    report: dict[str, Any],
    halting: HaltingModel | None,
    told: dict[str, Any] | None,
    execution: Execution,
    spec: BackboneSpec | None = None,
) -> list[Candidate]:
    """The reference, the static choice, the static model as accurate as the dynamic one, and that.

    Args:
        told: what the report says of the dynamic model (`report["dynamic"]`, or of another policy the same).
    """
    rows = {row["exit"]: row for row in report["exits"]}
    device = next(network.parameters()).device

    def cut(name: str, exit: int) -> Candidate:
        row = rows[exit]
        return Candidate(
            name=name,
            kind="full" if name == "full" else "static",
            model=formed(truncate(network, exit, spec, fold=execution.fold), execution, device),
            exit=exit,
            accuracy=(row["accuracy"] or {}).get("test"),
            mean_macs=row["macs_static"],
            params=row["params"],
            bytes=row["bytes"],
        )

    reference, static = report["reference"]["exit"], report["static"]["exit"]
    found = [cut("full", reference), cut("static", static)]
    if halting is None or told is None:
        return found
    equal = equal_exit(report, told)
    if equal is not None and equal not in (reference, static):
        found.append(cut("static_equal", equal))
    dynamic = Candidate(
        name="dynamic",
        kind="dynamic",
        model=halting,
        exit=None,
        accuracy=told["accuracy"]["test"],
        mean_macs=told["mean_macs"],
        params=told["params"],
        bytes=told["bytes"],
        certified=halting.void is None,
        note=halting.void,
    )
    return [*found, dynamic]


def equal_exit(report: dict[str, Any], told: dict[str, Any]) -> int | None:
    """The shallowest trained exit at least as accurate as the dynamic model on the selection split."""
    goal = (told["accuracy"] or {}).get("selection")
    if not goal:
        return None
    for row in report["exits"]:
        if row["trained"] and row["accuracy"]["selection"]["value"] >= goal["value"]:
            return int(row["exit"])
    return None


def given_candidate(
    name: str,
    model: Any,
    test: Split,
    count: int,
    transform: Preprocess,
    execution: Execution,
    *,
    network: MultiExit,
    note: str | None = None,
) -> Candidate:
    """A model that the user brought, with its accuracy measured on all of the test split.

    Args:
        model: a plain classifier; the `transform` that it carries, if any, else the run's, makes its images.
        count: how many images of the test split are timed.
        network: the run's, on the device.
    """
    if not isinstance(model, nn.Module) or isinstance(model, (HaltingModel, MultiExit)):
        raise ConfigError(
            f"cannot compare with {name!r}, a {type(model).__name__}: give a run or a plain model "
            "(odn.load(...), run.truncate(), a timm model)"
        )
    own = model.__dict__.get("transform", transform)
    if not isinstance(own, Preprocess):
        raise ConfigError(f"the transform of {name!r} is a {type(own).__name__}; it must be a Preprocess")
    device = next(network.parameters()).device
    model = copy.deepcopy(model).to(device).eval()
    images = first_images(test, own, count).to(device).contiguous(memory_format=image_layout(network))
    _check_answers(name, model, images[:1], network.trunk.num_classes)
    macs = count_macs(lambda: model(images[:1]))
    params, size = size_of([model])
    if execution.fold:
        apply_fold(model, fold_pairs(model, images[:2]))
    model.to(memory_format=image_layout(network))
    return Candidate(
        name=name,
        kind="given",
        model=formed(model, execution, device),
        exit=None,
        accuracy=accuracy_of(model, test, own, device),
        mean_macs=macs,
        params=params,
        bytes=size,
        note=note,
        images=None if own == transform else images,
    )


@torch.no_grad()
def _check_answers(name: str, model: nn.Module, images: Tensor, classes: int) -> None:
    try:
        answers = model(images)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name!r} does not take images of shape {tuple(images.shape)}: {why}; set its `transform`"
        ) from None
    if not isinstance(answers, Tensor) or answers.shape != (1, classes):
        got = tuple(answers.shape)[1:] if isinstance(answers, Tensor) else type(answers).__name__
        raise ConfigError(f"{name!r} answers with {got}, the run has {classes} classes: it is of other data")


def first_images(split: Split, preprocess: Preprocess, count: int) -> Tensor:
    """The first `count` images of a split, transformed: (count, channels, height, width)."""
    loader = make_loader(split.subset(min(count, len(split))), preprocess, batch_size=EVALUATION_BATCH)
    return torch.cat([batch[0] for batch in loader])


@torch.no_grad()
def accuracy_of(
    model: nn.Module, split: Split, transform: Preprocess, device: torch.device
) -> dict[str, Any]:
    """Accuracy of a plain or halting model on a split, with its 95 % interval."""
    right = 0
    with evaluating(model):
        for images, labels, _ in make_loader(split, transform, batch_size=EVALUATION_BATCH):
            found = model(images.to(device))
            logits = found if isinstance(found, Tensor) else found.logits
            right += int((logits.argmax(1).cpu() == labels).sum())
    low, high = wilson(right, len(split))
    return {"value": right / len(split), "n": len(split), "low": float(low), "high": float(high)}
