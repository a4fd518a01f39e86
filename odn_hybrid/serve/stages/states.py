"""Rows of several states as one state, each row copied once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from odn_hybrid.errors import InputError
from odn_hybrid.serve.stages.rows import Rows, run_of
from odn_hybrid.trunk import State

__all__ = ["gathered_states"]


@torch.no_grad()
def gathered_states(parts: Sequence[tuple[State, Rows]]) -> State:
    """As `State.select` and `State.cat` give it; the only part itself, if all of it is wanted.

    A part of one state is copied, so that it does not keep the rest of it in memory. Raises `InputError` for
    states of different depths or networks.
    """
    first, rows = parts[0]
    if len(parts) == 1 and len(rows) == len(first) and run_of(rows) is not None:
        return first
    if any(state.depth != first.depth or state.route is not first.route for state, _ in parts):
        raise InputError("states of different depths or networks cannot be one batch")
    where = [_where(rows, first.x.device) for _, rows in parts]
    total = sum(len(rows) for _, rows in parts)
    streams = zip(*((state.x, *state.streams) for state, _ in parts), strict=True)
    x, *others = (_joined(tensors, where, total) for tensors in streams)
    return replace(first, x=x, streams=tuple(others))


def _where(rows: Rows, device: torch.device) -> slice | Tensor:
    run = run_of(rows)
    return torch.tensor(rows, device=device) if run is None else run


def _joined(tensors: Sequence[Tensor], where: Sequence[slice | Tensor], total: int) -> Tensor:
    """Rows of tensors (batch, ...), in their own memory format."""
    last = tensors[0].dim() == 4 and not tensors[0].is_contiguous()
    # Whole rows are copied at once only where they lie in one piece.
    rows = [tensor.permute(0, 2, 3, 1) if last else tensor for tensor in tensors]
    if not all(tensor.is_contiguous() for tensor in rows):
        return torch.cat([tensor[at] for tensor, at in zip(tensors, where, strict=True)])
    joined = rows[0].new_empty((total, *rows[0].shape[1:]))
    start = 0
    for tensor, at in zip(rows, where, strict=True):
        stop = start + (at.stop - at.start if isinstance(at, slice) else len(at))
        if isinstance(at, slice):
            joined[start:stop] = tensor[at]
        else:
            torch.index_select(tensor, 0, at, out=joined[start:stop])
        start = stop
    return joined.permute(0, 3, 1, 2) if last else joined
