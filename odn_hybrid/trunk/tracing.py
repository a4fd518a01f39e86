"""One traced forward: every module call and, between them, every operation, in the order they ran.

A model's own names tell little about where its blocks are; who calls what, and who hands which tensor to
whom, tells all. Tracing patches `nn.Module.__call__` for this thread (as `torch.fx` does) and watches torch's
functions, so it works on any device, the meta device included, and leaves the model as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["UNFIT", "Call", "Op", "Trace", "leaves", "patching", "trace"]

#: What running a model on images that it does not take may raise.
UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)

_ADDS = {
    torch.add,
    torch.addcmul,
    torch.Tensor.add,
    torch.Tensor.add_,
    torch.Tensor.addcmul,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
}
_CATS = {torch.cat, torch.concat, torch.concatenate}

patching = threading.RLock()  # held while classes or modules are patched


@dataclass(eq=False)
class Op:
    """One call of a torch function made by a module's own code; `inside` is that module's name."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    versions: tuple[int, ...]
    inside: str
    adds: bool = False


@dataclass(eq=False)
class Call:
    """One call of one module: what went in, what came out, and what ran inside it.

    Attributes:
        name, module: the model's own name of it; the root's is "".
        nodes: calls and operations inside, in order; empty where nothing inside is of interest.
        versions: in-place version of every tensor of `output` when the call ended.
        adds: how often it adds two activations of one shape itself.
        cats: whether it concatenates activations itself.
        blocks: names of the blocks inside.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    nodes: list[Call | Op] = field(default_factory=list)
    versions: tuple[int, ...] = ()
    adds: int = 0
    cats: bool = False
    blocks: list[str] = field(default_factory=list)
    _concats: bool = False  # a block inside concatenates only

    @property
    def is_block(self) -> bool:
        """It joins activations by addition (residual) or, with no such block inside it, by concatenation.

        What gives one vector per image is a pooling or a head, not a block.
        """
        spatial = any(tensor.dim() >= 3 for tensor in leaves(self.output))
        only_cats = self.cats and (not self.blocks or self._concats)
        return bool(self.name) and spatial and (self.adds > 0 or only_cats)

    @property
    def is_unit(self) -> bool:
        """A block, or one member of a list of blocks that is made of several."""
        return self.is_block or (bool(self.blocks) and self.is_atomic)

    @property
    def is_loop(self) -> bool:
        """Its own code runs members of a numbered list and adds after each: blocks without a module."""
        return len(self._members()) >= 2 and self.adds >= len(self._members())

    @property
    def is_atomic(self) -> bool:
        """Whether it is one step of the network, or a container whose inside is looked at."""
        if not self.name:
            return False
        if not self.blocks:
            return not self.is_loop
        numbered = [block for block in self.blocks if _number_after(block, self.name) is not None]
        if self.name.rpartition(".")[2].isdigit() and not numbered:
            return True  # a block of a numbered list that is made of several kinds of residual parts
        if self.adds:
            return len(set(numbered)) < 2 and not self.is_loop
        return self.is_block

    def _members(self) -> set[str]:
        inside = (node.name for node in self.nodes if isinstance(node, Call))
        found = (_number_after(name, self.name) for name in inside)
        return {member for member in found if member is not None}


@dataclass(eq=False)
class Trace:
    """The root call of one forward, the images it was given, and the logits it gave."""

    root: Call
    images: Tensor
    logits: Any


def _number_after(name: str, container: str) -> str | None:
    """`layers.0` of `layers.0.1.fn` in the root: the first numbered member on the way from the container."""
    parts = name.split(".")
    start = len(container.split(".")) if container else 0
    for place in range(start, len(parts)):
        if parts[place].isdigit():
            return ".".join(parts[: place + 1])
    return None


def leaves(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dictionaries and slices, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))


class _Recorder(TorchFunctionMode):
    """Writes down the running calls and what they do; one per traced forward."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.batch = images.shape[0]
        self.root: Call | None = None
        self.stack: list[Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.stack:
            self._operation(func, args, kwargs, output)
        return output

    def _operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mutates = getattr(func, "__name__", "") in ("__setitem__", "copy_")
        made = tuple(leaves(output))
        if not made and not mutates:
            return
        call = self.stack[-1]
        op = Op(func, args, kwargs, output, tuple(tensor._version for tensor in made), call.name)
        if func in _ADDS:
            op.adds = self._joins([value for value in args if isinstance(value, Tensor)])
            call.adds += op.adds
        elif func in _CATS:
            call.cats |= sum(map(self._is_activation, leaves(args[0] if args else kwargs))) >= 2
        call.nodes.append(op)

    def _is_activation(self, tensor: Tensor) -> bool:
        rows = tensor.dim() >= 3 and tensor.shape[0] % self.batch == 0
        rows = rows or (tensor.dim() == 3 and tensor.shape[1] == self.batch)
        return rows and tensor.shape[0] > 0 and not isinstance(tensor, nn.Parameter)

    def _joins(self, terms: list[Tensor]) -> bool:
        if len(terms) < 2 or not all(map(self._is_activation, terms[:1])):
            return False
        return any(other.shape == terms[0].shape and self._is_activation(other) for other in terms[1:])

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = Call(self.names[module], module, args, kwargs)
        if self.stack:
            self.stack[-1].nodes.append(call)
        else:
            self.root = call
        self.stack.append(call)
        return call

    def own(self, output: Any, inputs: Any) -> Any:
        """The output as a tensor of its own, where a module hands its input through.

        Dropout does so in evaluation only: what came before it and what comes after are two values.
        """
        if not isinstance(output, Tensor) or all(output is not tensor for tensor in leaves(inputs)):
            return output
        stack, self.stack = self.stack, []  # not an operation of the model
        try:
            return output.view_as(output)
        finally:
            self.stack = stack

    def drop(self, call: Call) -> None:
        """A call that failed leaves nothing behind."""
        while self.stack and self.stack.pop() is not call:
            pass
        if self.stack:
            self.stack[-1].nodes.remove(call)

    def leave(self, call: Call, output: Any) -> None:
        self.stack.pop()
        call.output = output
        call.versions = tuple(tensor._version for tensor in leaves(output))
        inner = [node for node in call.nodes if isinstance(node, Call)]
        call.blocks = [name for node in inner for name in ([node.name] if node.is_unit else node.blocks)]
        call._concats = all(not n.adds if n.is_block else n._concats for n in inner if n.is_unit or n.blocks)
        if call.is_atomic:
            call.nodes = []  # lets the activations inside it go


_recording = threading.local()
_plain_call = nn.Module.__call__


def _recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    recorder: _Recorder | None = getattr(_recording, "by", None)
    if recorder is None or module not in recorder.names:
        return _plain_call(module, *args, **kwargs)
    call = recorder.enter(module, args, kwargs)
    try:
        output = recorder.own(_plain_call(module, *args, **kwargs), (args, kwargs))
    except BaseException:
        recorder.drop(call)  # the model may catch it and go on
        raise
    recorder.leave(call, output)
    return output


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run `model(images)` once, recording every module call. Works on the meta device too.

    Activations between the blocks stay alive while the trace does: their identities are the evidence.
    """
    recorder = _Recorder(model, images)
    with patching, torch.no_grad(), _plain(model):
        nn.Module.__call__ = _recorded_call  # type: ignore[method-assign]
        _recording.by = recorder
        try:
            with recorder:
                logits = model(images)
        finally:
            _recording.by = None
            nn.Module.__call__ = _plain_call  # type: ignore[method-assign]
    assert recorder.root is not None
    return Trace(recorder.root, images, logits)


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Without what hides calls from a trace: compiled calls, and checkpointing that re-runs blocks."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    wrappers = [m for m in model.modules() if "_orig_mod" in m._modules]  # torch.compile(block)
    hidden = [(m, m.__dict__.pop("forward", None)) for m in wrappers]
    saving = [m for m in model.modules() if getattr(m, "grad_checkpointing", False) is True]
    try:
        for module, _ in compiled:
            module._compiled_call_impl = None
        for module in wrappers:
            module.__dict__["forward"] = module._modules["_orig_mod"]
        for module in saving:
            module.__dict__["grad_checkpointing"] = False
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
        for module, forward in hidden:
            module.__dict__["forward"] = forward
        for module in saving:
            module.__dict__["grad_checkpointing"] = True
