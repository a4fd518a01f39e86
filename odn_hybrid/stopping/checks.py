"""What the rooms of `stopping/` ask of the arrays they are given, said once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError

__all__ = [
    "as_correct",
    "as_labels",
    "as_logits",
    "check_counts",
    "check_fraction",
    "check_probability",
    "is_whole",
]


def check_probability(value: float, name: str) -> float:
    """`value` as a float strictly between 0 and 1; `ConfigError` otherwise."""
    number = _number(value, name)
    if not 0.0 < number < 1.0:
        raise ConfigError(f"{name} is {value!r}; it must be a probability between 0 and 1")
    return number


def check_fraction(value: float, name: str) -> float:
    """`value` as a float from 0 to below 1 (an accuracy drop); `ConfigError` otherwise."""
    number = _number(value, name)
    if not 0.0 <= number < 1.0:
        raise ConfigError(f"{name} is {value!r}; it must be a fraction from 0 to below 1 (0.01 is one point)")
    return number


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}; it must be a number") from None


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number: an int, numpy integer or integral float, not a bool, NaN or text."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return math.isfinite(value) and value == int(value)


def check_counts(successes: int, n: int) -> tuple[int, int]:
    """`successes` of `n` as whole numbers with 0 <= successes <= n and n >= 1; `InputError` otherwise."""
    if not (is_whole(n) and is_whole(successes)):
        raise InputError(f"{successes!r} of {n!r}: counts must be whole numbers")
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n}: need at least one trial and from 0 to n successes")
    return int(successes), int(n)


def as_logits(logits: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """Logits as float64 of shape (n, C) for `ndim=2` or (n, K, C) for `ndim=3`, all finite.

    Raises `InputError` for another shape, an empty axis, or NaN and infinite values.
    """
    shape = {2: "(images, classes)", 3: "(images, exits, classes)"}[ndim]
    try:
        array = np.asarray(logits, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"logits are not an array of numbers; expected shape {shape}") from None
    if array.ndim != ndim:
        raise InputError(f"logits have shape {array.shape}; expected {shape}")
    if 0 in array.shape:
        raise InputError(
            f"logits have shape {array.shape}: an axis is empty; give at least one of each of {shape}"
        )
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(
            f"{bad} of {array.size} logits are NaN or infinite; mend the model or its inputs first"
        )
    return array


def as_labels(labels: ArrayLike, n: int, classes: int) -> NDArray[np.int64]:
    """Labels as int64 of shape (n,), each from 0 to `classes - 1`; `InputError` otherwise."""
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InputError(f"labels have shape {array.shape}; expected ({n},), one per image")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"labels have type {array.dtype}; expected whole numbers")
    if array.min() < 0 or array.max() >= classes:
        raise InputError(
            f"labels run from {array.min()} to {array.max()}; "
            f"with {classes} classes they must be from 0 to {classes - 1}"
        )
    return array.astype(np.int64)


def as_correct(correct: ArrayLike, ndim: int, name: str) -> NDArray[np.bool_]:
    """Right/wrong answers as a non-empty boolean array of `ndim` axes; `InputError` otherwise."""
    array = np.asarray(correct)
    if array.dtype != np.bool_ or array.ndim != ndim or array.size == 0:
        raise InputError(
            f"{name} has type {array.dtype} and shape {array.shape}; expected a non-empty boolean array "
            f"with {ndim} axes, one row per image"
        )
    return array
