"""Losses per image from logits, for certificates about more than the first answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.stopping.checks import as_labels, as_logits, is_whole

__all__ = ["BRIER_RANGE", "brier_scores", "top_k_correct"]

BRIER_RANGE = (0.0, 2.0)  # smallest and largest Brier score of one image, as `brier_scores` gives it


def top_k_correct(logits: ArrayLike, labels: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Whether the label is among the `k` largest logits: `logits` (n, C), `labels` (n,) -> (n,) bool.

    A tie counts against the label: it is in only if fewer than `k` other classes have a logit at least as
    large. Raises `InputError` for arrays that do not fit and `ConfigError` unless 1 <= k <= C.

    Example:
        >>> from odn_hybrid.stopping import top_k_correct
        >>> top_k_correct([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], [1, 2], k=2).tolist()
        [True, False]
    """
    scores = as_logits(logits, 2)
    n, classes = scores.shape
    wanted = as_labels(labels, n, classes)
    if not is_whole(k) or not 1 <= k <= classes:
        raise ConfigError(f"k is {k!r}; with {classes} classes it must be from 1 to {classes}")
    own = scores[np.arange(n), wanted]
    return np.asarray((scores >= own[:, None]).sum(axis=1) <= int(k))


def brier_scores(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Brier score of every image (Brier 1950): sum over classes of (softmax - one-hot)^2.

    `logits` (n, C), `labels` (n,) -> (n,), each in [0, 2], `BRIER_RANGE`. Raises `InputError` for arrays that
    do not fit.

    Example:
        >>> from odn_hybrid.stopping import BRIER_RANGE, brier_scores
        >>> brier_scores([[0.0, 0.0], [9.0, -9.0]], [0, 1]).round(3).tolist()
        [0.5, 2.0]
        >>> BRIER_RANGE
        (0.0, 2.0)
    """
    scores = as_logits(logits, 2)
    n, classes = scores.shape
    wanted = as_labels(labels, n, classes)
    share = np.exp(scores - scores.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    share[np.arange(n), wanted] -= 1
    return np.asarray(np.clip(np.square(share).sum(axis=1), *BRIER_RANGE))
