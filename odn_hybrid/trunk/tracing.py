"""One traced forward: which modules hand which tensor object to which.

A *chain* is a module whose called children pass the same tensor object, at the same in-place version,
from its input to its output. Names of attributes differ between families; this does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Call", "Trace", "trace"]

_ADDS = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}


@dataclass(eq=False)
class Link:
    """A tensor object at one moment of its life (in-place operations raise its version)."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, value: Any) -> Link | None:
        return cls(value, value._version) if isinstance(value, Tensor) else None

    def same(self, other: Link | None) -> bool:
        return other is not None and self.tensor is other.tensor and self.version == other.version


@dataclass(eq=False)
class Call:
    """One call of one module: what went in, what came out, and the calls made inside it."""

    name: str
    module: nn.Module
    parent: Call | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: Link | None
    target: Link | None = None
    children: list[Call] = field(default_factory=list)
    adds: bool = False
    in_features: bool = False

    @property
    def is_chain(self) -> bool:
        """The children pass one tensor from this call's input to its output, nothing in between."""
        links = [self.source, *(child.target for child in self.children)]
        starts = [child.source for child in self.children]
        if not self.children or any(link is None for link in links):
            return False
        joined = all(link.same(start) for link, start in zip(links, starts, strict=False) if link)
        last = links[-1]
        return joined and last is not None and last.same(self.target)

    @property
    def is_residual(self) -> bool:
        """It adds two activations of the same shape itself, and is more than a chain of its children.

        What gives one vector per image is a pooling with a residual inside, not a block.
        """
        ends = (self.source, self.target)
        return self.adds and all(end and end.tensor.dim() >= 3 for end in ends) and not self.is_chain

    def walk(self) -> Iterator[Call]:
        """This call and all calls inside it, in order."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(eq=False)
class Trace:
    """The root call of one forward and the logits it gave."""

    root: Call
    images: Tensor
    logits: Any


class _AddWatcher(TorchDispatchMode):
    """Marks the innermost running call when two batch activations of one shape are added in it."""

    def __init__(self, stack: list[Call], batch: int) -> None:
        super().__init__()
        self.stack, self.batch = stack, batch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in _ADDS and self.stack and len(args) > 1:
            left, right = args[0], args[1]
            if isinstance(left, Tensor) and isinstance(right, Tensor):
                same = left.shape == right.shape and left.dim() >= 3 and left.shape[0] == self.batch
                self.stack[-1].adds |= same and not isinstance(right, nn.Parameter)
        return func(*args, **(kwargs or {}))


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run `model(images)` once, recording every module call. Works on the meta device too.

    The batch should hold at least two images, so that per-batch tables (batch 1) are told apart.
    All intermediate activations stay alive while the trace does: their identities are the evidence.
    """
    roots: list[Call] = []
    stack: list[Call] = []
    inside = {"features": False}
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parent = stack[-1] if stack else None
        first = args[0] if args else next(iter(kwargs.values()), None)
        call = Call(names[module], module, parent, args, kwargs, Link.of(first))
        call.in_features = inside["features"]
        (parent.children if parent else roots).append(call)
        stack.append(call)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        stack.pop().target = Link.of(output)

    with ExitStack() as cleanup, torch.no_grad():
        for module in names:
            cleanup.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            cleanup.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        cleanup.enter_context(_marked_features(model, inside))
        cleanup.enter_context(_AddWatcher(stack, images.shape[0]))
        logits = model(images)
    return Trace(roots[0], images, logits)


@contextmanager
def _marked_features(model: nn.Module, inside: dict[str, bool]) -> Iterator[None]:
    """Know which calls happen inside timm's `forward_features`: what follows is `forward_head`."""
    original = getattr(model, "forward_features", None)
    if original is None or not hasattr(model, "forward_head"):
        yield
        return

    def marked(*args: Any, **kwargs: Any) -> Any:
        inside["features"] = True
        try:
            return original(*args, **kwargs)
        finally:
            inside["features"] = False

    shadowed = "forward_features" in model.__dict__
    model.__dict__["forward_features"] = marked
    try:
        yield
    finally:
        if shadowed:
            model.__dict__["forward_features"] = original
        else:
            del model.__dict__["forward_features"]
