"""From dataflow to `stem -> units -> tail`: where between the blocks the network narrows to one state.

The network can be stopped after a block if all that later blocks need was made by that block (or is the same
for all inputs). A skip connection past a block, as in a U-shaped network, breaks that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from odn_hybrid.errors import ModelError
from odn_hybrid.trunk.cuts import Cut, best_cut, start_of
from odn_hybrid.trunk.flow import Flow
from odn_hybrid.trunk.program import Step

__all__ = ["Split", "split"]


@dataclass(frozen=True)
class Split:
    """Where the trunk lies in a flow.

    Attributes:
        cuts: before the first unit, and after each of them.
        stem: the modules that run before the first unit.
        units: the modules that each unit calls, in order.
        after: the modules that run after the last unit; a cut removes them.
    """

    cuts: tuple[Cut, ...]
    stem: tuple[str, ...]
    units: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]


@dataclass
class _Group:
    """Neighbouring steps that belong together: a block, or another module with weights."""

    name: str
    first: int
    last: int
    block: bool
    weight: int


@dataclass
class _Span:
    """Groups between two places where the network can be stopped."""

    groups: list[_Group] = field(default_factory=list)
    cut: Cut | None = None  # where it ends; None after the last
    following: int = 0  # the step where the next span's first group begins

    @property
    def blocks(self) -> list[_Group]:
        return [group for group in self.groups if group.block]

    @property
    def weight(self) -> int:
        return sum(max(1, group.weight) for group in self.blocks)

    def tangled(self) -> bool:
        """Blocks that cannot be told apart and that are not the inside of one module."""
        names = [group.name for group in self.blocks]
        if len(names) < 2 or _common(names):
            return False
        numbers = {next((part for part in name.split(".") if part.isdigit()), None) for name in names}
        return len(numbers) > 1 or None in numbers  # one number: members of lists that run side by side


def split(flow: Flow, model: nn.Module) -> Split:
    """Find the trunk. Raises `ModelError`, naming the module where the chain of blocks breaks."""
    kind = type(model).__name__
    groups = _groups(flow)
    if not any(group.block for group in groups):
        raise ModelError(
            f"{kind} has no residual or transformer blocks that a trace can see; "
            "a network without repeated blocks has no depth to cut"
        )
    spans = _spans(flow, groups)
    run = max(_runs(spans, flow), key=lambda run: sum(span.weight for span in run), default=[])
    total = sum(span.weight for span in spans)
    if len([span for span in run if span.blocks]) < 2 or 2 * sum(span.weight for span in run) < total:
        raise ModelError(_why_not(flow, spans, kind))
    return _split(flow, spans, run)


# --- groups and spans -------------------------------------------------------------------------------


def _groups(flow: Flow) -> list[_Group]:
    """Steps with weights that work on the inputs, put together where a loop runs them as one block."""
    loops = _loops(flow)
    groups: list[_Group] = []
    for place, (step, call) in enumerate(zip(flow.steps, flow.calls, strict=True)):
        if call is None:
            if step.blocks and groups and groups[-1].name in loops:
                groups[-1].block, groups[-1].last = True, place
            continue
        weight = sum(p.numel() for p in call.module.parameters())
        works = any(flow.derived[number] and flow.folds[number] for number in step.makes)
        if not works or not (weight or step.blocks):
            continue
        name = next((loop for loop in loops if call.name.startswith(f"{loop}.")), call.name)
        if name in loops and groups and groups[-1].name == name:
            groups[-1].last = place
            groups[-1].weight += weight
            groups[-1].block |= step.blocks
        else:
            # What works on the images themselves is a stem, though it adds something.
            groups.append(_Group(name, place, place, step.blocks and 0 not in step.reads, weight))
    return groups


def _loops(flow: Flow) -> set[str]:
    """Members of numbered lists that the root or an opened container runs and adds up itself."""
    added = [place for place, step in enumerate(flow.steps) if step.func is not None and step.blocks]
    found: set[str] = set()
    for place in added:
        before = next((c for c in reversed(flow.calls[:place]) if c is not None and c.name), None)
        if before is None or before.is_unit:
            continue
        parts = before.name.split(".")
        numbers = [at for at, part in enumerate(parts) if part.isdigit()]
        if numbers:
            found.add(".".join(parts[: numbers[0] + 1]))
    return found


def _spans(flow: Flow, groups: Sequence[_Group]) -> list[_Span]:
    spans = [_Span()]
    mains = {0}  # the images, and every activation that went from one span to the next
    for number, group in enumerate(groups):
        spans[-1].groups.append(group)
        later = groups[number + 1] if number + 1 < len(groups) else None
        following = later.first if later else len(flow.steps)
        side = _side_inputs(flow, group, later, mains) if later else frozenset()
        cut = best_cut(flow, spans[-1].groups[0].first, group.last, following, side)
        if cut is not None:
            mains.add(cut.main)
            spans[-1].cut, spans[-1].following = cut, following
            spans.append(_Span())
    return [span for span in spans if span.groups]


def _side_inputs(flow: Flow, group: _Group, later: _Group, mains: set[int]) -> frozenset[int]:
    """Older values that may stay alive after a group: what every block is given beside the activation.

    A mask, a position or a global query for each input is taken by block after block. An activation that was
    itself handed from block to block before, and is taken again, is a skip connection.
    """
    read = {v for step in flow.steps[group.last + 1 : later.last + 1] for v in step.reads}
    return frozenset(v for v in flow.alive(group.last) if v in read and v not in mains)


# --- the trunk --------------------------------------------------------------------------------------


def _runs(spans: Sequence[_Span], flow: Flow) -> list[list[_Span]]:
    """Neighbouring spans without a tangled one, cut to go from the first block to the last."""
    runs: list[list[_Span]] = [[]]
    for span in spans:
        if span.tangled():
            runs.append([])
        else:
            runs[-1].append(span)
    return [trimmed for run in runs if (trimmed := _trimmed(run, flow))]


def _trimmed(run: list[_Span], flow: Flow) -> list[_Span]:
    places = [number for number, span in enumerate(run) if span.blocks]
    if not places:
        return []
    first, last = places[0], places[-1]
    lists = _stage_lists(run)
    while first > 0 and _is_kin(run[first - 1], lists, flow):
        first -= 1
    while last + 1 < len(run) and _is_kin(run[last + 1], lists, flow):
        last += 1
    if run[last].cut is None:
        last -= 1
    return run[first : last + 1]


def _stage_lists(run: list[_Span]) -> set[str]:
    """Lists of stages, each a list of blocks: `blocks` of `blocks.3.1`."""
    names = [group.name.split(".") for span in run for group in span.blocks]
    return {parts[0] for parts in names if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit()}


def _is_kin(span: _Span, lists: set[str], flow: Flow) -> bool:
    """A stage whose only block has no shortcut, at the ends of a list of stages: depth like the others."""
    group = span.groups[0]
    call = flow.calls[group.first]
    parts = group.name.split(".")
    if len(span.groups) != 1 or span.cut is None or call is None or parts[0] not in lists:
        return False
    if len(parts) == 3:
        return True
    children = list(call.module.children())
    return bool(children) and all(not type(child).__module__.startswith("torch.nn") for child in children)


def _split(flow: Flow, spans: Sequence[_Span], run: list[_Span]) -> Split:
    start = start_of(flow, (run[0].blocks or run[0].groups)[0].first)
    # What follows the last unit belongs to the tail, pools of one cell included.
    groups = run[-1].groups
    end = best_cut(flow, groups[0].first, groups[-1].last, run[-1].following, join=False)
    places = [start, *(span.cut for span in run[:-1] if span.cut), *([end] if end else [])]
    units = tuple(tuple(_called(flow.steps[a.place + 1 : b.place + 1])) for a, b in pairwise(places))
    after = tuple(_called(flow.steps[places[-1].place + 1 :]))
    _refuse_shared(units, flow)
    stem = tuple(_called(flow.steps[: places[0].place + 1]))
    return Split(tuple(places), stem, units, after)


def _called(steps: Sequence[Step]) -> list[str]:
    return list(dict.fromkeys(step.module for step in steps if step.module is not None))


def _refuse_shared(units: Sequence[tuple[str, ...]], flow: Flow) -> None:
    heavy = {call.name for call in flow.calls if call and next(call.module.parameters(), None) is not None}
    seen: set[str] = set()
    for name in (name for unit in units for name in unit if name in heavy):
        if name in seen:
            raise ModelError(
                f"module {name!r} runs more than once in a forward: shared units cannot be split"
            )
        seen.add(name)


def _common(names: Sequence[str]) -> str:
    parts = [name.split(".") for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _why_not(flow: Flow, spans: Sequence[_Span], kind: str) -> str:
    """Name the module that takes something from far back, and who made it."""
    tangles = [span for span in spans if len(span.blocks) >= 2] or list(spans)
    span = max(tangles, key=lambda span: span.weight)
    group = (span.blocks or span.groups)[0]
    alive = [v for v in flow.alive(group.last) if flow.derived[v] and flow.folds[v] != 0]
    stale = [v for v in alive if flow.made[v] < group.first]
    for value in sorted(stale, key=lambda v: flow.used[v], reverse=True):
        taker = next((c for c in flow.calls[flow.used[value] :] if c is not None), None)
        maker = next((c for c in reversed(flow.calls[: flow.made[value] + 1]) if c is not None), None)
        if maker is not None:
            by = f"{taker.name!r} ({type(taker.module).__name__})" if taker else f"the forward of {kind}"
            return (
                f"{kind}: the chain of blocks breaks after {group.name!r}: what {maker.name!r} "
                f"({type(maker.module).__name__}) gives is taken again by {by}, past the blocks between "
                "them, so the network cannot be stopped there; train it as it is, or wrap its encoder alone"
            )
    return f"{kind} has fewer than two blocks with a place to stop between them (the first is {group.name!r})"
