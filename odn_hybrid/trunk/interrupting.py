"""Forwards that end early: stopped at a unit, or run with idle units to hear what each would be given.

Both touch one thread only: others may be running the same model at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from odn_hybrid.errors import ModelError

__all__ = ["Arguments", "forget_stops", "listen", "stop_at"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Reached(Exception):
    """Carries the first unit's arguments out of a forward that is stopped there."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.arguments: Arguments = (args, kwargs)


_stopping = threading.local()  # which module this thread wants to stop at
_patching = threading.Lock()  # held while a hook is added or units' forwards are replaced


def _stop_here(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if getattr(_stopping, "at", None) is module:
        raise _Reached(args, kwargs)


def stop_at(unit: nn.Module, forward: Callable[[Tensor], Any], images: Tensor) -> Arguments:
    """Run `forward(images)` until it calls `unit`; the arguments it would have given that unit.

    One hook stays on the unit; it does nothing in any other forward.
    """
    with _patching:
        if _stop_here not in unit._forward_pre_hooks.values():
            unit.register_forward_pre_hook(_stop_here, with_kwargs=True)
    before = getattr(_stopping, "at", None)
    _stopping.at = unit
    try:
        forward(images)
    except _Reached as reached:
        return reached.arguments
    finally:
        _stopping.at = before
    raise ModelError(f"the forward no longer reaches its first unit ({type(unit).__name__})")


def forget_stops(model: nn.Module) -> None:
    """Take the hooks of `stop_at` off a model that is never stopped again."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _stop_here:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def listen(units: Sequence[nn.Module], forward: Callable[[Tensor], Any], images: Tensor) -> list[Arguments]:
    """The arguments each unit would be given by `forward(images)`, with units that pass their input on.

    Right where what a unit gets beside the activation does not depend on the activation.
    """
    heard: list[Arguments] = []

    def idle(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heard.append(((x, *args), kwargs))
        if len(heard) == len(units):
            raise _Reached(*heard[0])
        return x

    with _patching, _idling(units, idle):
        try:
            forward(images)
        except _Reached:
            return heard
    raise ModelError(f"the forward no longer reaches its last unit ({type(units[-1]).__name__})")


@contextmanager
def _idling(modules: Sequence[nn.Module], idle: Callable[..., Tensor]) -> Iterator[None]:
    here = threading.get_ident()

    def here_only(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kw: (idle if threading.get_ident() == here else real)(*args, **kw)

    before = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module in modules:
            module.__dict__["forward"] = here_only(module.forward)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward
