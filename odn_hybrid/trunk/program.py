"""A forward written down as steps, and the machine that runs some of them.

A step calls one of the model's modules or one torch function. Its arguments are written as what they were
made of: a value of an earlier step, a parameter of the model, a number that grows with the batch, a constant.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

__all__ = ["Device", "Named", "Program", "Rows", "Step", "Training", "Value", "rebuilt", "switchable"]

Environment = dict[int, Any]


@dataclass(frozen=True)
class Value:
    """What an earlier step made; number 0 is the images."""

    number: int


@dataclass(frozen=True)
class Named:
    """A parameter or buffer of the model, by its name."""

    name: str


@dataclass(frozen=True)
class Rows:
    """An integer that grows with the batch: `per * batch + plus`."""

    per: int
    plus: int


@dataclass(frozen=True)
class Training:
    """Whether a module is in training mode: the `training` argument of a function that its code calls."""

    module: str


@dataclass(frozen=True)
class Device:
    """The device of the images."""


@dataclass(frozen=True, eq=False)
class Step:
    """One call.

    Attributes:
        module: name of the module that is called, or None for a function.
        func: the torch function, or None.
        args, kwargs: with `Value`, `Named`, `Rows` where they are not constant.
        outputs: numbers of the values it makes, nested as its output is; None for what is no tensor.
        blocks: whether it is a block, or the addition that ends one.
    """

    module: str | None
    func: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    blocks: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        return self  # never changed; what it is bound to is the program's

    @property
    def reads(self) -> set[int]:
        """Numbers of the values it takes."""
        return set(_numbers((self.args, self.kwargs), Value))

    @property
    def makes(self) -> tuple[int, ...]:
        """Numbers of the values it makes."""
        return tuple(_numbers(self.outputs, int))


def _numbers(value: Any, kind: type) -> list[int]:
    if isinstance(value, kind):
        return [value.number if isinstance(value, Value) else value]  # type: ignore[list-item]
    if isinstance(value, (tuple, list)):
        return [number for item in value for number in _numbers(item, kind)]
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item, kind)]
    if isinstance(value, slice):
        return _numbers((value.start, value.stop, value.step), kind)
    return []


@cache
def switchable(func: Callable[..., Any]) -> int | None:
    """Position of the argument `training` of a torch function, if it has one."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("training") if "training" in names else None


class Program:
    """Steps of a model: `run(values, batch)` carries them out and leaves in `values` what is to be kept."""

    def __init__(self, steps: Sequence[Step], model: nn.Module, keep: Collection[int] = ()) -> None:
        self.steps = tuple(steps)
        self.model = model
        self.keep = frozenset(keep)
        ended = _ended(self.steps, self.keep)
        self._calls = [
            (step, _path(step.module or ""), _only_value(step), done)
            for step, done in zip(self.steps, ended, strict=True)
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return Program(self.steps, copy.deepcopy(self.model, memo), self.keep)

    def run(self, values: Environment, batch: int) -> None:
        """Carry out the steps on `values`, number -> tensor, in place; what no later step takes is let go."""
        fill: _Filler | None = None
        for step, path, only, done in self._calls:
            # Looked up in every run: modules may have been replaced since (another head, converted norms).
            callee = step.func or _inside(self.model, path)
            if only is not None:
                made = callee(values[only])
            else:
                fill = fill or _Filler(values, batch, self.model)
                made = callee(*fill(step.args), **fill(step.kwargs))
            if isinstance(step.outputs, int):
                values[step.outputs] = made
            else:
                _store(step.outputs, made, values)
            made = None
            for number in done:
                values.pop(number, None)


def _ended(steps: Sequence[Step], keep: frozenset[int]) -> list[tuple[int, ...]]:
    """Per step, the values that nobody takes after it."""
    seen = set(keep)
    ended: list[tuple[int, ...]] = []
    for step in reversed(steps):
        mine = {*step.reads, *step.makes} - seen
        ended.append(tuple(sorted(mine)))
        seen |= mine
    return ended[::-1]


def _path(name: str) -> tuple[str, ...]:
    return tuple(name.split(".")) if name else ()


def _inside(model: nn.Module, path: tuple[str, ...]) -> nn.Module:
    for part in path:
        model = model._modules[part]  # type: ignore[assignment]
    return model


def _only_value(step: Step) -> int | None:
    """The usual step takes one value and nothing else."""
    if not step.kwargs and len(step.args) == 1 and isinstance(step.args[0], Value):
        return step.args[0].number
    return None


def rebuilt(like: Any, parts: list[Any]) -> Any:
    """A tuple (named ones included), list or dictionary of the kind of `like`, with other parts."""
    if isinstance(like, dict):
        if type(like) is dict:
            return dict(zip(like, parts, strict=True))
        filled = copy.copy(like)
        for key, part in zip(like, parts, strict=True):
            filled[key] = part
        return filled
    if hasattr(like, "_make"):
        return like._make(parts)
    return parts if isinstance(like, list) else tuple(parts)


class _Filler:
    """Puts values in the place of their descriptions."""

    def __init__(self, values: Environment, batch: int, model: nn.Module) -> None:
        self.values, self.batch, self.model = values, batch, model
        self.device = next(iter(values.values())).device

    def __call__(self, item: Any) -> Any:
        if isinstance(item, Value):
            return self.values[item.number]
        if isinstance(item, (tuple, list)):
            return rebuilt(item, [self(part) for part in item])
        if isinstance(item, dict):
            return rebuilt(item, [self(part) for part in item.values()])
        if isinstance(item, Rows):
            return item.per * self.batch + item.plus
        if isinstance(item, Named):
            *path, leaf = item.name.split(".")
            return getattr(_inside(self.model, tuple(path)), leaf)
        if isinstance(item, Training):
            return _inside(self.model, _path(item.module)).training
        if isinstance(item, Device):
            return self.device
        if isinstance(item, slice):
            return slice(self(item.start), self(item.stop), self(item.step))
        return item.to(self.device) if isinstance(item, Tensor) else item


def _store(outputs: Any, made: Any, values: Environment) -> None:
    if isinstance(outputs, int):
        values[outputs] = made
    elif isinstance(outputs, (tuple, list)) and isinstance(made, (tuple, list)):
        for output, part in zip(outputs, made, strict=True):
            _store(output, part, values)
    elif isinstance(outputs, dict) and isinstance(made, dict):
        for key, output in outputs.items():
            _store(output, made[key], values)
