"""A route: the programs of stem, units and tail for images of one size, precision and device."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odn_hybrid.errors import ModelError
from odn_hybrid.trunk.cuts import Cut
from odn_hybrid.trunk.flow import Flow
from odn_hybrid.trunk.norms import worn_again
from odn_hybrid.trunk.program import Program, Step
from odn_hybrid.trunk.splitting import Split
from odn_hybrid.trunk.state import State
from odn_hybrid.trunk.view import view_of

__all__ = ["Route"]


class Route:
    """How to run a model in pieces.

    Attributes:
        split: the cuts, and the modules between them.
        passes: per unit, which value after it stands for which before it if it does not run; None where it
            must run.
        views: per depth, how a state shows the activation and the streams.
    """

    def __init__(self, flow: Flow, split: Split, model: nn.Module) -> None:
        places = [cut.place for cut in split.cuts]
        self.split = split
        self.views = [tuple(view_of(flow, v, main=v == cut.main) for v in cut.rows) for cut in split.cuts]
        self.stem = Program(flow.steps[: places[0] + 1], model, _kept(split.cuts[0]))
        self.units = [
            Program(flow.steps[before.place + 1 : after.place + 1], model, _kept(after))
            for before, after in pairwise(split.cuts)
        ]
        self.tail = Program(flow.steps[places[-1] + 1 :], model, (flow.output,))
        self.output = flow.output
        self.passes = [_passed(flow, split.cuts, unit) for unit in range(len(self.units))]
        # What is changed in place after a cut would change a state that somebody still holds.
        self.spoiled = [
            tuple(v for v in cut.rows if flow.tensors[v]._version != flow.versions[v]) for cut in split.cuts
        ]

    def pruned(self, keep: Sequence[int], *, with_tail: bool) -> Route:
        """Only the programs that a cut model needs; the others hold on to modules that are gone."""
        slim = copy.copy(self)
        slim.units = [u if n in keep else Program((), u.model) for n, u in enumerate(self.units)]
        slim.tail = self.tail if with_tail else Program((), self.tail.model)
        return slim

    def begin(self, images: Tensor) -> State:
        """The state at depth 0."""
        values: dict[int, Any] = {0: images}
        self.stem.run(values, images.shape[0])
        return self._state(values, 0)

    def advance(self, state: State, stop: int, *, saving: bool = False) -> State:
        """Run units up to depth `stop`; with `saving`, what is inside units is computed again in backward."""
        values = self._values(state)
        for depth in range(state.depth, stop):
            if saving:
                values = self._saved(values, depth, state.batch)
            else:
                self.units[depth].run(values, state.batch)
                values = {v: values[v] for v in _kept(self.split.cuts[depth + 1])}
        return self._state(values, stop)

    def chain(self, start: int, stop: int, *, stem: bool) -> tuple[str, ...] | None:
        """Names of modules that, called one after another on a state's `x`, lead from depth to depth.

        With `stem` from the images. None where there is more to it: side inputs, other axes, views.
        """
        ends = [stop] if stem else [start, stop]
        for depth in ends:
            cut, views = self.split.cuts[depth], self.views[depth]
            if len(_kept(cut)) != 1 or not views[0].plain or self.spoiled[depth]:
                return None
        steps = [*(self.stem.steps if stem else ()), *(s for u in self.units[start:stop] for s in u.steps)]
        found = chain_of(steps, 0 if stem else self.split.cuts[start].main)
        return found[0] if found is not None and found[1] == self.split.cuts[stop].main else None

    def idle(self, state: State) -> State:
        """The state one unit deeper, without running that unit; only for units that keep all shapes."""
        passed = self.passes[state.depth]
        if passed is None:
            names = ", ".join(self.split.units[state.depth])
            raise ModelError(f"unit {state.depth + 1} ({names}) changes what the next one gets: it must run")
        values = self._values(state)
        return self._state({v: values[passed[v]] for v in passed}, state.depth + 1)

    def finish(self, state: State) -> Tensor:
        """Logits of a state at full depth."""
        values = self._values(state)
        self.tail.run(values, state.batch)
        logits: Tensor = values[self.output]
        return logits

    def _values(self, state: State) -> dict[int, Any]:
        cut = self.split.cuts[state.depth]
        shown = zip(self.views[state.depth], (state.x, *state.streams), strict=True)
        rows = [view.hide(tensor) for view, tensor in shown]
        values = dict(zip(_kept(cut), (*rows, *state.tables), strict=True))
        for number in self.spoiled[state.depth]:
            values[number] = values[number].clone()
        return values

    def _state(self, values: dict[int, Any], depth: int) -> State:
        cut = self.split.cuts[depth]
        x, *streams = (view.show(values[v]) for view, v in zip(self.views[depth], cut.rows, strict=True))
        return State(x, depth, tuple(streams), tuple(values[v] for v in cut.tables), self)

    def _saved(self, values: dict[int, Any], depth: int, batch: int) -> dict[int, Any]:
        numbers, kept = tuple(values), _kept(self.split.cuts[depth + 1])

        def unit(*given: Any) -> tuple[Any, ...]:
            inside = dict(zip(numbers, given, strict=True))
            self.units[depth].run(inside, batch)
            return tuple(inside[v] for v in kept)

        more: dict[str, Any] = {}
        if (again := worn_again()) is not None:  # backward comes when the model has its own norms back
            more["context_fn"] = lambda: (nullcontext(), again())
        made = checkpoint(unit, *values.values(), use_reentrant=False, **more)
        return dict(zip(kept, made, strict=True))


def _passed(flow: Flow, cuts: Sequence[Cut], unit: int) -> dict[int, int] | None:
    """Value after a unit -> value before it that takes its place: itself where it only goes past the unit."""
    before, after = cuts[unit], cuts[unit + 1]
    old = [v for v in before.rows if v not in after.rows]
    new = [v for v in after.rows if v not in before.rows]
    if len(new) > len(old) or not set(after.tables) <= set(before.tables):
        return None
    # Beside what takes the place of another, only what earlier units saw too (a mask) may end here.
    if any(not unit or flow.made[v] > cuts[unit - 1].place for v in old[len(new) :]):
        return None
    pairs = dict(zip(new, old, strict=False))
    if any(flow.tensors[a].shape != flow.tensors[b].shape for a, b in pairs.items()):
        return None
    return {v: v for v in _kept(after) if v not in pairs} | pairs


def _kept(cut: Cut) -> tuple[int, ...]:
    return (*cut.rows, *cut.tables)


def chain_of(steps: Sequence[Step], start: int) -> tuple[tuple[str, ...], int] | None:
    """The modules of steps that hand one value on, from `start`, and the value at the end; else None."""
    names: list[str] = []
    for step in steps:
        one = len(step.args) == 1 and not step.kwargs and step.reads == {start}
        if step.module is None or not one or not isinstance(step.outputs, int):
            return None
        names.append(step.module)
        start = step.outputs
    return tuple(names), start
