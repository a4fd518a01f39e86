"""The numerical self-check: what the pieces compute against what the whole computed."""

from __future__ import annotations

import torch
from torch import Tensor

from odn_hybrid.errors import ModelError
from odn_hybrid.trunk.flow import Flow
from odn_hybrid.trunk.route import Route
from odn_hybrid.trunk.state import State
from odn_hybrid.trunk.tracing import UNFIT, Trace

__all__ = ["check_route", "close"]

# A resumed run repeats the same kernels on the same numbers, so it is normally exact; the tolerance
# (relative to the largest value) leaves room for kernels that are chosen by memory layout or batch size.
TOLERANCE = 1e-4


@torch.no_grad()
def check_route(route: Route, flow: Flow, first: Trace, alone: Trace, kind: str) -> None:
    """Resumed run against the forward, each stop against what the trace saw, some inputs against all.

    `alone` is the trace of the last images of `first` in a batch of their own. Raises `ModelError`.
    """
    try:
        _check(route, flow, first, alone, kind)
    except (*UNFIT, AttributeError, KeyError) as error:
        what = f"its steps cannot be run again ({' '.join(str(error).split())[:200]})"
        raise ModelError(_failed(kind, what)) from None


def _check(route: Route, flow: Flow, first: Trace, alone: Trace, kind: str) -> None:
    state = route.begin(first.images)
    rows = torch.arange(len(first.images), device=first.images.device)
    rows = rows[-len(alone.images) :]
    some = route.begin(alone.images)
    for depth, cut in enumerate(route.split.cuts):
        if depth:
            state = route.advance(state, depth)
            some = route.advance(some, depth)
        where = repr(route.split.units[depth - 1][-1]) if depth else "the stem"
        seen, views = flow.tensors[cut.main], route.views[depth]
        if seen._version == flow.versions[cut.main] and not close(state.x, views[0].show(seen)):
            raise ModelError(_failed(kind, f"stopping after {where} gives another activation"))
        plain = len(views) == 1 and views[0].plain
        if not plain and not _same_rows(state.select(rows), some):
            raise ModelError(_failed(kind, f"the rows after {where} don't lie together by image"))
    if not close(route.finish(state), first.logits):
        raise ModelError(_failed(kind, "the resumed run gives other logits than the forward"))
    if not close(route.finish(some), alone.logits) or not close(
        alone.logits, first.logits[-len(alone.images) :]
    ):
        raise ModelError(_failed(kind, "one image alone gives other logits than in its batch"))


def _same_rows(left: State, right: State) -> bool:
    pairs = zip((left.x, *left.streams), (right.x, *right.streams), strict=True)
    return all(close(mine, other) for mine, other in pairs)


def close(left: Tensor, right: Tensor) -> bool:
    """Of one type, and equal within the tolerance, relative to the largest value where that exceeds 1."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    loose = 1 if right.dtype == torch.float32 else 100
    left, right = left.float(), right.float()
    scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
    return bool((left - right).abs().max() <= TOLERANCE * loose * scale)


def _failed(kind: str, what: str) -> str:
    return f"{kind} failed the self-check: {what}; it cannot be split safely"
