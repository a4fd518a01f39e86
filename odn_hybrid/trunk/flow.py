"""From traces to dataflow: the steps of a forward, and which values are alive after each of them.

Two traces of different batch sizes are laid side by side. Sizes that differ grow with the batch; tensors
whose first axis does hold rows of inputs, others are tables that all inputs share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.errors import ModelError
from odn_hybrid.trunk.program import Device, Named, Rows, Step, Training, Value, rebuilt, switchable
from odn_hybrid.trunk.tracing import Call, Op, Trace, leaves

__all__ = ["Flow", "flow_of"]


@dataclass(eq=False)
class Flow:
    """The steps of one forward.

    Attributes:
        steps: in order.
        calls: the traced call of each step that calls a module, else None.
        tensors: what each value was in the first trace.
        versions: in-place version of each value when it was made.
        folds: rows per input of each value, 0 for a table, -1 if no axis is known to run over inputs.
        axes: the axis of each value that does: the first, or the second of (length, batch, channels).
        made, used: step that makes each value (-1: the images), last step that takes it.
        derived: values that depend on the images.
        output: number of the logits.
    """

    steps: list[Step]
    calls: list[Call | None]
    tensors: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    folds: list[int] = field(default_factory=list)
    axes: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    derived: list[bool] = field(default_factory=list)
    output: int = 0

    def alive(self, place: int) -> list[int]:
        """Values made up to step `place` that later steps take."""
        return [v for v, made in enumerate(self.made) if made <= place < self.used[v]]


def flow_of(first: Trace, second: Trace, model: nn.Module) -> Flow:
    """Lay two traces of different batch sizes side by side.

    Raises `ModelError` where the model does different things for different batches, or makes a tensor where
    a trace cannot look (in a compiled function, or from numbers read off the images).
    """
    return _Reader(first, second, model).flow


class _Reader:
    def __init__(self, first: Trace, second: Trace, model: nn.Module) -> None:
        self.kind = type(model).__name__
        self.device = first.images.device
        self.batches = (first.images.shape[0], second.images.shape[0])
        self.named = {id(t): name for name, t in [*model.named_buffers(), *model.named_parameters()]}
        self.flow = Flow([], [])
        self.known: dict[int, int] = {}
        self.twin: dict[int, int] = {}
        self._new_value(first.images, second.images, -1, first.images._version, derived=True)
        for mine, other in self._pairs(first.root, second.root):
            self._read(mine, other)
        if not isinstance(first.logits, Tensor) or id(first.logits) not in self.known:
            raise ModelError(f"{self.kind} does not give logits (batch, classes) that a trace can follow")
        self.flow.output = self.known[id(first.logits)]
        self.flow.used[self.flow.output] = len(self.flow.steps)

    def _pairs(self, mine: Call, other: Call) -> Iterator[tuple[Call | Op, Call | Op]]:
        if len(mine.nodes) != len(other.nodes):
            raise ModelError(f"{self._where(mine)} does different things for batches of different sizes")
        for left, right in zip(mine.nodes, other.nodes, strict=True):
            if isinstance(left, Call) and isinstance(right, Call) and left.name == right.name:
                if left.is_atomic:
                    yield left, right
                else:
                    yield from self._pairs(left, right)
            elif isinstance(left, Op) and isinstance(right, Op) and left.func == right.func:
                yield left, right
            else:
                raise ModelError(f"{self._where(mine)} does different things for batches of different sizes")

    def _where(self, call: Call) -> str:
        return f"{self.kind}: module {call.name!r} ({type(call.module).__name__})" if call.name else self.kind

    def _read(self, mine: Call | Op, other: Call | Op) -> None:
        place = len(self.flow.steps)
        args = self._template(tuple(mine.args), tuple(other.args))
        kwargs = self._template(dict(mine.kwargs), dict(other.kwargs))
        if isinstance(mine, Op):
            args, kwargs = self._switched(mine, args, kwargs)
        reads = Step(None, None, args, kwargs, None).reads
        for number in reads:
            self.flow.used[number] = place
        versions = iter(mine.versions)
        derived = any(self.flow.derived[number] for number in reads)
        outputs = self._outputs(mine.output, other.output, place, versions, derived)
        if isinstance(mine, Op):
            self._written(mine, derived)
            step = Step(None, mine.func, args, kwargs, outputs, mine.adds)
        else:
            step = Step(mine.name, None, args, kwargs, outputs, mine.is_unit)
        self.flow.steps.append(step)
        self.flow.calls.append(mine if isinstance(mine, Call) else None)

    def _written(self, op: Op, derived: bool) -> None:
        """`x[...] = y` makes no new value; x depends on what y depends on from now on."""
        if getattr(op.func, "__name__", "") in ("__setitem__", "copy_") and id(op.args[0]) in self.known:
            self.flow.derived[self.known[id(op.args[0])]] |= derived

    def _switched(self, op: Op, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What was told to do as in evaluation follows the mode of the module whose code says so."""
        place, mode = switchable(op.func), Training(op.inside)
        if place is not None and kwargs.get("training") is False:
            return args, {**kwargs, "training": mode}
        if place is not None and len(args) > place and args[place] is False:
            return (*args[:place], mode, *args[place + 1 :]), kwargs
        return args, kwargs

    def _template(self, mine: Any, other: Any) -> Any:
        """An argument of both traces -> its description."""
        if isinstance(mine, Tensor):
            return self._tensor(mine, other)
        kind = type(mine)
        if kind is torch.device and mine == self.device:
            return Device()
        if kind is int and mine != other and isinstance(other, int):
            return self._rows(mine, other)
        if isinstance(mine, (tuple, list)) and isinstance(other, (tuple, list)):
            if len(mine) != len(other):
                raise ModelError(f"{self.kind} takes different arguments for batches of different sizes")
            return rebuilt(mine, [self._template(a, b) for a, b in zip(mine, other, strict=True)])
        if isinstance(mine, dict) and isinstance(other, dict) and mine.keys() == other.keys():
            return rebuilt(mine, [self._template(value, other[key]) for key, value in mine.items()])
        if kind is slice and isinstance(other, slice):
            ends = ("start", "stop", "step")
            return slice(*(self._template(getattr(mine, end), getattr(other, end)) for end in ends))
        self._refuse_hidden(mine)
        return mine

    def _refuse_hidden(self, mine: Any) -> None:
        """An object of the model's own is handed on as it was, so it may not carry what a step made."""
        inside = {} if isinstance(mine, (nn.Module, type)) else getattr(mine, "__dict__", {})
        if any(id(tensor) in self.known for tensor in leaves(list(inside.values()))):
            raise ModelError(
                f"{self.kind} hands a tensor on inside a {type(mine).__name__}, where a trace cannot look; "
                "between its blocks use tensors, tuples, lists or dictionaries"
            )

    def _tensor(self, mine: Tensor, other: Any) -> Any:
        if id(mine) in self.known:
            return Value(self.known[id(mine)])
        if id(mine) in self.named:
            return Named(self.named[id(mine)])
        alike = isinstance(other, Tensor) and other.shape == mine.shape
        if alike and (mine.is_meta or torch.equal(mine, other)):
            return mine
        raise ModelError(
            f"{self.kind} makes a tensor of shape {tuple(mine.shape)} where a trace cannot look "
            "(a compiled or custom function between its blocks), so it cannot be stopped and resumed"
        )

    def _rows(self, mine: int, other: int) -> Rows:
        (a, b), difference = self.batches, mine - other
        per, rest = divmod(difference, a - b)
        if rest:
            raise ModelError(f"{self.kind} computes sizes that do not grow evenly with the batch")
        return Rows(per, mine - per * a)

    def _outputs(self, mine: Any, other: Any, place: int, versions: Iterator[int], derived: bool) -> Any:
        if isinstance(mine, Tensor):
            return self._new_value(mine, other, place, next(versions), derived)
        if isinstance(mine, (tuple, list)):
            pairs = zip(mine, other, strict=True)
            return [self._outputs(a, b, place, versions, derived) for a, b in pairs]
        if isinstance(mine, dict):
            return {k: self._outputs(v, other[k], place, versions, derived) for k, v in mine.items()}
        return None

    def _new_value(self, mine: Tensor, other: Any, place: int, version: int, derived: bool) -> int:
        flow = self.flow
        number = len(flow.tensors)
        flow.tensors.append(mine)
        flow.versions.append(version)
        fold, axis = self._rows_of(mine, other)
        flow.folds.append(fold)
        flow.axes.append(axis)
        flow.made.append(place)
        flow.used.append(place)
        flow.derived.append(derived)
        self.known[id(mine)] = number
        return number

    def _rows_of(self, mine: Tensor, other: Any) -> tuple[int, int]:
        """Rows per input, and the axis they lie on."""
        if not isinstance(other, Tensor) or mine.dim() != other.dim():
            return -1, 0
        if mine.shape == other.shape:
            return 0, 0
        if mine.dim() == 3 and mine.shape[::2] == other.shape[::2]:
            return (1, 1) if (mine.shape[1], other.shape[1]) == self.batches else (-1, 0)
        per, rest = divmod(mine.shape[0], self.batches[0])
        even = not rest and other.shape[0] == per * self.batches[1]
        return per if even and mine.shape[1:] == other.shape[1:] else -1, 0
