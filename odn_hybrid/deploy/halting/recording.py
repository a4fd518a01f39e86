"""The torch operations of one forward, written down as the source of a function.

What a mode for torch functions sees while the modules run (in this thread only, and nothing is patched) is
turned into lines such as `v7 = f3(v6, t12, (1, 1))`. Of the numbers in them only the batch size is known as
such, where it is passed on as it is; whether the others hold for other batches is for the caller to try.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from odn_hybrid.trunk.tracing import leaves

__all__ = ["NotWritten", "recorded"]

#: Functions of torch.nn that drop something in training and do nothing in evaluation.
DROPS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
#: What may be asked of a tensor: it does not depend on values.
ASKED = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad")
    ),
    *(
        getattr(Tensor, name).__get__
        for name in ("is_cuda", "is_mps", "is_meta", "is_quantized", "is_sparse")
    ),
    *(
        Tensor.size,
        Tensor.dim,
        Tensor.ndimension,
        Tensor.numel,
        Tensor.nelement,
        Tensor.stride,
        Tensor.__len__,
    ),
    *(Tensor.is_contiguous, Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex),
    *(Tensor.element_size, Tensor.get_device, Tensor.storage_offset, torch._assert),
}


class NotWritten(Exception):
    """A forward that can't be written down."""


class _Rows(int):
    """The batch size, asked of a tensor; what is computed from it is a plain number."""


def recorded(
    call: Callable[[Tensor], Any], within: nn.Module, given: Tensor
) -> tuple[Callable[[Tensor], Any], list[Tensor]]:
    """`call(given)` as a function of one tensor, and the tensors of `within` that it uses.

    Raises:
        NotWritten: a value of a tensor was asked for, or a tensor came from somewhere else.
    """
    recorder = _Recorder(len(given))
    with recorder:
        result = call(given)
    held = [t for m in within.modules() for t in (*m._parameters.values(), *m._buffers.values())]
    source = _Source(given, {id(tensor): tensor for tensor in held if tensor is not None})
    for func, args, kwargs, made in recorder.calls:
        source.add(func, args, kwargs, made)
    return source.function(result)


class _Recorder(TorchFunctionMode):
    """Keeps calls and all that went in and out: their identities say what is what."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if next(leaves(made), None) is not None or func is Tensor.__setitem__:
            self.calls.append(
                (func, _copied(args), {k: _copied(v) for k, v in kwargs.items()}, _copied(made))
            )
        elif func not in ASKED:
            raise NotWritten(f"{getattr(func, '__name__', func)} gives no tensor")
        elif isinstance(made, torch.Size) and len(made) and made[0] == self.batch:
            return torch.Size((_Rows(made[0]), *made[1:]))
        elif func is Tensor.size and made == self.batch and 0 in (*args[1:], *kwargs.values()):
            return _Rows(made)
        return made


def _copied(value: Any) -> Any:
    """Lists as they are now: their owners may go on with them."""
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


class _Source:
    """Lines of a function, of the tensor `x` and tensors that the modules hold (by `id` in `held`)."""

    def __init__(self, given: Tensor, held: dict[int, Tensor]) -> None:
        self._names = {id(given): "x"}
        self._held = held
        self._used: dict[str, Tensor] = {}
        self._space: dict[str, Any] = {}
        self._sized = False
        self._lines: list[tuple[str, str, set[str]]] = []  # what is set, the expression, what it reads

    def add(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """One call, and what it made."""
        if (
            func in DROPS
            and isinstance(made, Tensor)
            and _argument(args, kwargs, 2, "training", True) is False
        ):
            self._names[id(made)] = self._name(_argument(args, kwargs, 0, "input"), set())
            return
        if func is F.relu:  # what it calls in the end
            func = torch.relu_ if _argument(args, kwargs, 1, "inplace", False) else torch.relu
            args, kwargs = (_argument(args, kwargs, 0, "input"),), {}
        reads: set[str] = set()
        words = [self._word(arg, reads) for arg in args]
        words += [f"{name}={self._word(value, reads)}" for name, value in kwargs.items()]
        mine = f"v{len(self._lines)}"
        self._lines.append((mine, f"{self._constant(func)}({', '.join(words)})", reads))
        self._called(mine, made)

    def function(self, result: Any) -> tuple[Callable[[Tensor], Any], list[Tensor]]:
        """The function that gives `result`, bound to the tensors that it uses, and these."""
        reads: set[str] = set()
        last = self._word(result, reads)
        lines = [f"return {last}"]
        for mine, expression, read in reversed(self._lines):
            # What nobody reads after this line is let go, as the modules let it go: its memory is used again.
            ended = sorted((read | {mine}) - reads)
            lines.insert(0, "; ".join([f"{mine} = {expression}", *(f"{name} = None" for name in ended)]))
            reads |= read
        if self._sized:
            lines.insert(0, "n = len(x)")
        header = f"def written({', '.join([*self._used, 'x'])}):"
        space = dict(self._space)
        exec(compile("\n    ".join([header, *lines]), "<modules written down>", "exec"), space)
        tensors = list(self._used.values())
        return partial(space["written"], *tensors), tensors

    def _called(self, name: str, made: Any) -> None:
        """What the tensors in `made` are called from now on."""
        if isinstance(made, Tensor):
            self._names[id(made)] = name
        elif isinstance(made, (tuple, list)):
            for place, part in enumerate(made):
                self._called(f"{name}[{place}]", part)
        elif made is not None:
            raise NotWritten(f"a {type(made).__name__} of tensors")

    def _name(self, tensor: Tensor, reads: set[str]) -> str:
        if id(tensor) in self._names:
            name = self._names[id(tensor)]
            reads.add(name.partition("[")[0])
            return name
        if id(tensor) not in self._held:
            raise NotWritten("a tensor that no module holds")  # nor does any call make it
        name = next((name for name, known in self._used.items() if known is tensor), f"t{len(self._used)}")
        self._used[name] = tensor
        return name

    def _word(self, value: Any, reads: set[str]) -> str:
        """How a value is written."""
        if isinstance(value, Tensor):
            return self._name(value, reads)
        if isinstance(value, (tuple, list)):
            inside = "".join(f"{self._word(part, reads)}, " for part in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        if isinstance(value, slice):
            return f"slice({', '.join(self._word(v, reads) for v in (value.start, value.stop, value.step))})"
        if isinstance(value, dict):
            raise NotWritten("a dictionary")
        if isinstance(value, _Rows):
            self._sized = True
            return "n"
        return repr(value) if value is None or type(value) in (bool, int) else self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._space)}"
        self._space[name] = value
        return name


def _argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any = None
) -> Any:
    return args[place] if place < len(args) else kwargs.get(name, default)
