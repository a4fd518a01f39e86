"""Where between two steps a network can be stopped, and what its state is there."""

from __future__ import annotations

from dataclasses import dataclass

from odn_hybrid.errors import ModelError
from odn_hybrid.trunk.flow import Flow

__all__ = ["Cut", "best_cut", "start_of"]

MOST_STREAMS = 4  # tensors in one state: multi-branch networks have two to four


@dataclass(frozen=True)
class Cut:
    """A place between steps where the network can be stopped.

    Attributes:
        place: the last step that is run.
        main: number of the activation that exit heads see.
        streams: other values with rows per input that later steps take.
        tables: values shared by all inputs that later steps take.
    """

    place: int
    main: int
    streams: tuple[int, ...]
    tables: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The activation first, then the other streams."""
        return (self.main, *self.streams)


def best_cut(
    flow: Flow,
    begins: int,
    last: int,
    following: int,
    side: frozenset[int] = frozenset(),
    *,
    join: bool = True,
) -> Cut | None:
    """The narrowest place from step `last` on before step `following`.

    Of equally narrow ones the first; but with `join` activation functions and identities that follow it stay
    with the block before them.
    """
    best: Cut | None = None
    for place in range(last, following):
        found = cut_at(flow, place, begins, side)
        if found is None:
            continue
        if best is None or len(found.rows) < len(best.rows):
            best = found
        elif join and flow.calls[place] is not None and len(found.rows) == len(best.rows):
            if flow.tensors[found.main].shape != flow.tensors[best.main].shape:
                break
            best = found
    return best


def _width(flow: Flow, cut: Cut) -> tuple[bool, int]:
    """How much flows on after a cut; windows in the rows come last, since no head sees a map of them."""
    return flow.folds[cut.main] != 1, len(cut.rows)


def cut_at(flow: Flow, place: int, begins: int, side: frozenset[int] = frozenset()) -> Cut | None:
    """The state after step `place`, if all of it was made at or after step `begins` or is in `side`."""
    alive = flow.alive(place)
    rows = [v for v in alive if flow.folds[v] != 0]
    if any(flow.folds[v] < 0 for v in rows):
        return None
    fresh = [v for v in rows if flow.made[v] >= begins and flow.derived[v]]
    if any(flow.derived[v] and v not in fresh and v not in side for v in rows) or len(rows) > MOST_STREAMS:
        return None
    # Windows of tokens that lie in the rows are one longer sequence; windows of maps would not be one map.
    spatial = [
        v for v in fresh if flow.tensors[v].dim() == 3 or (flow.tensors[v].dim() > 3 and flow.folds[v] == 1)
    ]
    if not spatial:
        return None
    # The last call's, rather one without windows.
    main = max(spatial, key=lambda v: (flow.folds[v] == 1, flow.made[v], flow.tensors[v].numel()))
    others = tuple(v for v in rows if v != main)
    return Cut(place, main, others, tuple(v for v in alive if flow.folds[v] == 0))


def start_of(flow: Flow, first: int) -> Cut:
    """The narrowest place before step `first`; of equal ones the last, so that pools stay in the stem.

    The images themselves count only where the first block takes them.
    """
    best: Cut | None = None
    for place in range(first):
        found = cut_at(flow, place, -1)
        if found is None or 0 in found.rows:
            continue
        if best is None or _width(flow, found) <= _width(flow, best):
            best = found
    best = best or cut_at(flow, -1, -1)
    if best is None:
        raise ModelError("the blocks start before the images have become one activation")
    return best
