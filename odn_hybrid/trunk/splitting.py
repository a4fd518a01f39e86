"""From a trace to `stem -> units -> tail`: the residual run that holds most of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odn_hybrid.errors import ModelError
from odn_hybrid.trunk.tracing import Call, Link, Trace

__all__ = ["GLUES", "Split", "splits"]

#: Parameterless operations that models apply between modules on the way to the classifier.
GLUES = {
    "none": lambda x: x,
    "flatten": lambda x: torch.flatten(x, 1),
    "first token": lambda x: x[:, 0],
    "mean over tokens": lambda x: x.mean(1),
    "mean over space": lambda x: x.mean((2, 3)),
    "mean over space, channels last": lambda x: x.mean((1, 2)),
    "channels first": lambda x: x.permute(0, 3, 1, 2),
}


@dataclass(frozen=True)
class Split:
    """Where the trunk lies, in names of the model's own modules.

    Attributes:
        units: for each unit the modules that run in order.
        stem: modules that, run one after another on the images, give the state at depth 0; None if the
            model does more than that before its first unit (the model is then stopped at that unit).
        post: modules of timm's `forward_features` after the last unit (then `forward_head` follows);
            None for models of other libraries.
        tail: (glue, module) pairs from the last unit to the logits; None where `post` serves.
        extras: "none", "shared" or "own": what units get beside the activation.
        after: all modules that run after the last unit, outermost names; a cut removes them.
    """

    units: tuple[tuple[str, ...], ...]
    stem: tuple[str, ...] | None
    post: tuple[str, ...] | None
    tail: tuple[tuple[str, str], ...] | None
    extras: str
    after: tuple[str, ...]


def splits(found: Trace) -> Iterator[Split]:
    """What could be the trunk in a trace, the heaviest run of blocks first.

    Raises `ModelError` if there is none, naming the module where the chain breaks.
    """
    runs = [run for run in _runs(found.root) if sum(call.is_residual for call in run) >= 2]
    if not runs:
        raise ModelError(_why_not(found.root))
    for run in sorted(runs, key=_weight, reverse=True):
        yield _split(found, run)


def _split(found: Trace, run: list[Call]) -> Split:
    names = [call.name for call in run]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"module {twice!r} runs more than once in a forward: shared units cannot be split")
    return Split(
        units=_merge_weightless(run),
        stem=_stem(found, run[0]),
        post=_post(found.root, run[-1]),
        tail=_tail(found, run[-1]),
        extras=_extras_kind(run),
        after=tuple(dict.fromkeys(call.name for call in _calls_after(run[-1]))),
    )


def _runs(call: Call) -> list[list[Call]]:
    """All linked runs of calls below `call`, each cut to go from its first to its last residual."""
    segments: list[list[Call]] = [[]]
    runs: list[list[Call]] = []
    for child in call.children:
        linked = (
            bool(segments[-1]) and child.source is not None and child.source.same(segments[-1][-1].target)
        )
        if not linked:
            segments.append([])
        if not child.is_residual and not child.is_chain and _holds_residual(child):
            runs += _runs(child)  # a container with glue of its own: its inside may hold a run
            segments.append([])
        else:
            segments[-1].append(child)
    for segment in segments:
        atoms = [atom for child in segment for atom in _expand(child)]
        places = [i for i, atom in enumerate(atoms) if atom.is_residual]
        if places:
            runs.append(atoms[places[0] : places[-1] + 1])
    return runs


def _expand(call: Call) -> list[Call]:
    if call.is_chain and _holds_residual(call):
        return [atom for child in call.children for atom in _expand(child)]
    return [call]


def _holds_residual(call: Call) -> bool:
    return any(inner.is_residual for inner in call.walk() if inner is not call)


def _weight(run: list[Call]) -> int:
    """Parameters in the run: the depth worth cutting is where the weights are."""
    return sum(p.numel() for call in run for p in call.module.parameters())


def _merge_weightless(run: list[Call]) -> tuple[tuple[str, ...], ...]:
    """Activations and identities between blocks belong to the block before them."""
    units: list[list[str]] = []
    for call in run:
        if units and next(call.module.parameters(), None) is None:
            units[-1].append(call.name)
        else:
            units.append([call.name])
    return tuple(tuple(unit) for unit in units)


def _stem(found: Trace, first: Call) -> tuple[str, ...] | None:
    """The modules before the first unit, if they alone lead from the images to it."""
    before: list[Call] = []
    stopped = _calls_before(found.root, first, before)
    if not stopped:
        return None
    link = Link(found.images, found.images._version)
    for call in before:
        if not link.same(call.source) or call.target is None or len(call.args) + len(call.kwargs) != 1:
            return None
        link = call.target
    return tuple(call.name for call in before) if link.same(first.source) else None


def _calls_before(call: Call, first: Call, before: list[Call]) -> bool:
    for child in call.children:
        if child is first:
            return True
        if any(inner is first for inner in child.walk()):
            return _calls_before(child, first, before)
        before.append(child)
    return False


def _calls_after(last: Call) -> list[Call]:
    """What runs after the last unit, in order: later siblings of it and of all that contain it."""
    after: list[Call] = []
    call = last
    while call.parent is not None:
        siblings = call.parent.children
        place = next(i for i, sibling in enumerate(siblings) if sibling is call)
        after += siblings[place + 1 :]
        call = call.parent
    return after


def _post(root: Call, last: Call) -> tuple[str, ...] | None:
    if not last.in_features:
        return None
    names: list[str] = []
    link = last.target
    for call in _calls_after(last):
        if not call.in_features:
            break
        if link is None or not link.same(call.source):
            return None
        names.append(call.name)
        link = call.target
    return tuple(names)


def _tail(found: Trace, last: Call) -> tuple[tuple[str, str], ...] | None:
    """Modules after the trunk with the glue between them, recognised on the recorded tensors."""
    if last.target is None or not isinstance(found.logits, Tensor):
        return None
    steps: list[tuple[str, str]] = []
    value = last.target.tensor
    for call in _calls_after(last):
        if call.source is None or call.target is None:
            return None
        glue = _glue_between(value, call.source.tensor)
        if glue is None:
            return None
        steps.append((glue, call.name))
        value = call.target.tensor
    return tuple(steps) if value is found.logits else None


def _glue_between(value: Tensor, wanted: Tensor) -> str | None:
    if value is wanted:
        return "none"
    for name, glue in GLUES.items():
        try:
            made = glue(value)
        except (RuntimeError, IndexError):
            continue
        if made.shape == wanted.shape and (value.is_meta or torch.equal(made, wanted)):
            return name
    return None


def _extras_kind(run: list[Call]) -> str:
    extras = [(call.args[1:], tuple(sorted(call.kwargs.items()))) for call in run]
    if all(_all_none(args) and _all_none([v for _, v in kwargs]) for args, kwargs in extras):
        return "none"
    return "shared" if all(_identical(extras[0], other) for other in extras[1:]) else "own"


def _all_none(values: Any) -> bool:
    return all(value is None or value is False for value in values)


def _identical(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return left is right
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(_identical(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _why_not(root: Call) -> str:
    residual = [call for call in root.walk() if call.is_residual]
    kind = type(root.module).__name__
    if not residual:
        return (
            f"{kind} has no residual or transformer blocks that a trace can see; "
            "a network without repeated blocks has no depth to cut"
        )
    first = residual[0]
    return (
        f"{kind}: the chain of blocks breaks after {first.name!r} ({type(first.module).__name__}): what it "
        "gives does not reach the next block unchanged, so the network cannot be stopped and resumed there"
    )
