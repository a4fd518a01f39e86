"""A network, or a segment of one, as one function of torch's operations: no module calls in between.

A call of a module costs microseconds, and several times that behind a layer whose weights have just gone
through the caches. A small network at batch 1 has some fifty of them, which together cost more than looking
at its exits does. What is called instead are the same operations with the same tensors, written down while
the modules ran once (`recording`), so that answers stay as they are to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from odn_hybrid.deploy.halting.recording import NotWritten, recorded
from odn_hybrid.deploy.halting.registering import registered

__all__ = ["Direct", "Straight", "straightened"]

#: The batch size with which it is written down: one that no other axis is likely to have.
WRITTEN = 5
#: Batch sizes at which the function must do exactly what the modules do: below and above that.
TRIED = (1, 3, 8)


class Straight:
    """A function that stands for modules, for as long as these are what they were.

    Tensors were taken from the modules once: what changes their values in place is seen, and what puts
    others in their place ends `holds`, as do modules replaced, added or removed, and hooks, which would go
    unheard.
    Other attributes (a stride, an epsilon) are those of the time when it was written down.

    Args:
        function: (batch, ...) -> what the modules give.
        called: the modules whose calls it spares.
        within: where they are looked up: the network as a whole.
        used: the tensors of theirs that it takes.
        like: what it was written down with: shape but for the batch, dtype and device are to be the same.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        called: list[nn.Module],
        within: nn.Module,
        used: Iterable[Tensor],
        like: Tensor,
    ) -> None:
        self.function = function
        self.called = called
        self._hooks: list[Any] = [module._forward_hooks for module in called]
        self._hooks += [module._forward_pre_hooks for module in called]
        self._hooks += [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        self._like = (like.shape[1:], like.dtype, like.device)
        tables = [(m._modules, m._parameters, m._buffers) for m in within.modules()]
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (table, dict(table)) for three in tables for table in three
        ]
        # Asked every time: of a network that is moved or cast, or loses a bias or a module, nothing tells.
        self._parts = [module._modules for module in called if module._modules]
        self._had = [dict(parts) for parts in self._parts]
        ids = {id(tensor) for tensor in used}
        where = [(table, key) for table, then in self._tables for key in then if id(then[key]) in ids]
        self._held = [table for table, _ in where]
        self._keys = [key for _, key in where]
        self._used = [table[key] for table, key in where]
        self._registered = registered()
        self._gone = False

    def holds(self, given: Tensor) -> bool:
        """Whether the function still stands for the modules, and for such an input."""
        now = registered()
        if self._registered != now:  # something was set on some module of the process
            if not all(_alike(table, then) for table, then in self._tables):
                self._gone = True
            self._registered = now
        # Without a line of Python for each: cold caches make that a part of a small segment's time.
        if self._parts != self._had or not all(map(is_, map(dict.get, self._held, self._keys), self._used)):
            self._gone = True
        return (
            not self._gone
            and not any(self._hooks)
            and (given.shape[1:], given.dtype, given.device) == self._like
        )

    @property
    def gone(self) -> bool:
        """Whether it can never hold again; what it keeps of the modules is of no use."""
        return self._gone


def _alike(table: dict[str, Any], then: dict[str, Any]) -> bool:
    return table.keys() == then.keys() and all(table[key] is value for key, value in then.items())


def straightened(
    call: Callable[[Tensor], Any], called: Iterable[nn.Module], within: nn.Module, like: Tensor
) -> Straight | None:
    """What `call` does with a tensor (batch, ...), as one function; see `Straight`.

    `like` is an example of what it takes. None where it can't be written down (a module in training mode,
    code that asks for values), or where the function's answers are not the modules' to the last bit.
    """
    called = list(called)
    if not len(like) or any(module.training for module in called):
        return None
    first = like[:1]
    try:
        with torch.no_grad():
            function, used = recorded(call, within, torch.cat([first] * WRITTEN))
            for rows in TRIED:
                given = torch.cat([first] * rows)
                if not _same(call(given.clone()), function(given.clone())):
                    return None
    except (NotWritten, RuntimeError, ValueError, TypeError, AssertionError, IndexError):
        return None  # other people's code at a batch size, or in a way, that is not its own
    straight = Straight(function, called, within, used, first)
    return straight if straight.holds(first) else None


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, tuple):
        return len(wanted) == len(found) and all(map(_same, wanted, found))
    return torch.equal(wanted, found)


class Direct(nn.Module):
    """A plain model on the CPU, called as halting models are there: by one function, where that can be.

    Args:
        model: images (batch, channels, height, width) -> logits (batch, classes).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._straight: Straight | None = None
        self._tried = False

    def forward(self, images: Tensor) -> Any:
        """The model's answers."""
        if not self._tried and not self.model.training and len(images):
            called = list(self.model.modules())
            self._straight, self._tried = straightened(self.model, called, self.model, images), True
        straight = self._straight
        if (
            straight is None
            or any(module.training for module in straight.called)
            or not straight.holds(images)
        ):
            if straight is not None and straight.gone:
                self._straight = None
            return self.model(images)
        return straight.function(images)
