"""Recall: an input may be given the answer of an exit that it has passed.

The deeper exit knows more, so the earlier answer is kept only where it is more confident by a handicap, which
is fitted exit by exit on right and wrong answers. With no handicap at all (the most confident exit answers),
early exits that are sure and wrong would overrule deeper ones (theory/stopping_problem.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.stopping.policies.induction import crossing

__all__ = ["NO_RECALL", "answering", "fit_handicaps"]

NO_RECALL = 2.0  # a handicap that no difference of probabilities reaches


def answering(sure: NDArray[np.float64], handicaps: Sequence[float]) -> NDArray[np.int64]:
    """Which exit answers if an input stops at each exit: confidences (n, K) -> (n, K), numbered from 0.

    `handicaps` (K,): at exit k the answer so far is kept if it is surer by at least the k-th of them;
    the first has no effect.
    """
    place = np.zeros(sure.shape, dtype=np.int64)
    best = sure[:, 0]
    for exit in range(1, sure.shape[1]):
        keeps = best - sure[:, exit] >= handicaps[exit]
        place[:, exit] = np.where(keeps, place[:, exit - 1], exit)
        best = np.where(keeps, best, sure[:, exit])
    return place


def fit_handicaps(
    sure: NDArray[np.float64], wrong: NDArray[np.float64], answers: NDArray[np.int64]
) -> tuple[float, ...]:
    """The handicaps of fewest wrong answers on these inputs, from the first exit on.

    `sure` (n, K): confidences, `wrong` (n, K): 1 where an exit is wrong, `answers` (n, K). Only inputs for
    which the two answers differ say anything. An edge must save a standard error more than nothing, else
    `NO_RECALL`.
    """
    rows = np.arange(len(sure))
    best = np.zeros(len(sure), dtype=np.int64)
    found = [NO_RECALL]
    for exit in range(1, sure.shape[1]):
        gap = sure[rows, best] - sure[:, exit]
        differs = answers[rows, best] != answers[:, exit]
        gain = wrong[rows, best] - wrong[:, exit]
        handicap = NO_RECALL
        if differs.any():
            edges, keeps = crossing(gap[differs], gain[differs])
            always = keeps[0] and bool(gain.any())
            handicap = float(edges[0]) if edges else (-NO_RECALL if always else NO_RECALL)
        found.append(handicap)
        best = np.where(gap >= handicap, best, exit)
    return tuple(found)
