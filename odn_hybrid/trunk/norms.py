"""Normalisation of one way through a trunk, kept beside the backbone and put into it while that way runs.

Batch normalisation remembers the mean and variance of what it saw. In a network with fewer units it sees
something else, so each way has memories of its own, as the widths of slimmable networks do (Yu et al., ICLR
2019, arXiv 1812.08928) and the skip patterns of Adaptive Depth Networks (NeurIPS 2024, arXiv 2312.16392).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor, nn

__all__ = ["OwnNorms", "norm_owners", "worn", "worn_again"]

#: Which normalisations stand in a model at the moment: (its module, the one whose memories it holds).
Pairs = Sequence[tuple[nn.Module, nn.Module]]
_WORN: list[Pairs] = []  # the last; no context variable, which torch.compile cannot set


class Parts(Protocol):
    """What is asked of a `Trunk`."""

    model: nn.Module

    def __len__(self) -> int: ...

    @property
    def stem_names(self) -> tuple[str, ...]:
        """Modules before the first unit."""
        ...

    @property
    def unit_names(self) -> tuple[tuple[str, ...], ...]:
        """Modules of each unit."""
        ...

    @property
    def after_names(self) -> tuple[str, ...]:
        """Modules after the last unit."""
        ...


def norm_owners(
    trunk: Parts, plans: Sequence[tuple[int, ...]], forks: Sequence[int]
) -> list[list[tuple[str, int]]]:
    """Per plan of a nested sequence, the normalisations on its way after the stem, and which plan keeps them.

    What a unit sees depends on the units before it. So a plan has the same as the next, which has more units,
    up to where they part: `forks`, per plan, how many units of the trunk it treats as the one before.
    """
    stem = {path for name in trunk.stem_names for path in _norms_under(trunk.model, name)}
    groups = [*enumerate(trunk.unit_names), (len(trunk), trunk.after_names)]
    found: list[list[tuple[str, int]]] = []
    for number, keep in enumerate(plans):
        owners: dict[str, int] = {}
        for unit, names in groups:
            owner = number
            while owner + 1 < len(plans) and unit < forks[owner + 1]:
                owner += 1
            if unit in keep or unit == len(trunk):
                paths = (path for name in names for path in _norms_under(trunk.model, name))
                owners |= {path: owner for path in paths if path not in stem}
        found.append(list(owners.items()))
    return found


def _norms_under(model: nn.Module, name: str) -> list[str]:
    """Names of the modules at or below `name` that keep running statistics."""
    below = model.get_submodule(name).named_modules(prefix=name)
    return [path for path, module in below if isinstance(module._buffers.get("running_mean"), Tensor)]


class OwnNorms(nn.Module):
    """Running statistics of some of a model's normalisations, under the model's own keys.

    Args:
        model: they start as copies of its.
        names: its normalisations.
        affine: scale and shift too, which are then trained.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, affine: bool = False) -> None:
        super().__init__()
        for name in names:
            theirs, mine = model.get_submodule(name), nn.Module()
            for key, buffer in theirs.named_buffers(recurse=False):
                mine.register_buffer(key, buffer.detach().clone())
            for key, parameter in theirs.named_parameters(recurse=False) if affine else ():
                twin = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                mine.register_parameter(key, twin)
            parent: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, mine)


@contextmanager
def worn(pairs: Pairs) -> Iterator[None]:
    """While it lasts, each module of `pairs` has the buffers and parameters of the other beside it.

    The modules are changed for everybody, so two threads cannot run ways of one network at a time.
    """
    own = [
        ({k: m._buffers[k] for k in o._buffers}, {k: m._parameters[k] for k in o._parameters})
        for m, o in pairs
    ]
    _WORN.append(pairs)
    try:
        for module, other in pairs:
            module._buffers.update(other._buffers)
            module._parameters.update(other._parameters)
        yield
    finally:
        _WORN.pop()
        for (module, other), (buffers, parameters) in zip(pairs, own, strict=True):
            other._buffers.update({key: module._buffers[key] for key in buffers})  # if not changed in place
            module._buffers.update(buffers)
            module._parameters.update(parameters)


def worn_again() -> Callable[[], AbstractContextManager[None]] | None:
    """What puts back, later, the normalisations that are worn now; None where none are."""
    if not _WORN:
        return None
    pairs = _WORN[-1]
    return lambda: worn(pairs)
