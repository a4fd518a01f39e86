"""Which rows of states are wanted: all, a run of them, or some; and how many inputs come how far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["gathered", "run_of", "shares_of"]

Rows = NDArray[np.intp]


def run_of(rows: Rows) -> slice | None:
    """`rows` as a slice, where they are one after another; else None."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first != count - 1 or (count > 2 and bool((np.diff(rows) != 1).any())):
        return None
    return slice(first, first + count)


def gathered(parts: Sequence[tuple[NDArray[Any], Rows]]) -> NDArray[Any]:
    """Rows of several arrays as one array in this order: the only part itself, if all of it is wanted.

    A part of one array is copied, so that it does not keep the rest of it in memory.
    """
    if len(parts) == 1:
        array, rows = parts[0]
        whole = len(rows) == len(array) and run_of(rows) is not None
        return array if whole else array[rows]
    runs = [(array, rows, run_of(rows)) for array, rows in parts]
    return np.concatenate([array[rows if run is None else run] for array, rows, run in runs])


def shares_of(ends: Sequence[int], taken: NDArray[np.int64] | None) -> tuple[float, ...]:
    """Share of inputs that reach each segment, the first 1.

    Args:
        ends: per segment, the exit where it ends, ascending.
        taken: (n,) exits where inputs stopped, numbered alike; None: as if equally many stopped at each end.
    """
    if taken is None or not len(taken):
        return tuple(1.0 - k / len(ends) for k in range(len(ends)))
    return (1.0, *(float((taken > end).mean()) for end in ends[:-1]))
