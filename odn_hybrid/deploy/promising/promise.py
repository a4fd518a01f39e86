"""What is promised of a halting model, what a certificate speaks of, and what makes it void."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.config import DynamicConfig, to_dict
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.stopping import (
    BRIER_RANGE,
    FAMILIES,
    Calibration,
    brier_scores,
    top_k_correct,
)
from odn_hybrid.stopping.promises.speaking import policy_digest, why_void

__all__ = [
    "BoundedLoss",
    "Promise",
    "losses_digest",
    "policy_digest",
    "promise_of",
    "values_by_exit",
    "why_void",
]

GROUPINGS = (None, "class", "exit")
Loss = Callable[[NDArray[np.float64], NDArray[np.int64]], Any]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, Real) and math.isfinite(float(value))


@dataclass(frozen=True)
class BoundedLoss:
    """A loss of one's own, smaller is better.

    `function` takes logits (n, C) and labels (n,), numpy arrays, and gives (n,) losses. `name` is what
    statements call it. `low` and `high` are the range that it has by its nature; a range read off the data is
    no range.
    Raises `ConfigError` unless they are numbers, `low` below `high`.

    Example:
        >>> import odn_hybrid as odn
        >>> wrong = odn.BoundedLoss("wrong", lambda logits, labels: logits.argmax(1) != labels, 0.0, 1.0)
        >>> wrong.name, wrong.high
        ('wrong', 1.0)
    """

    name: str
    function: Loss
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (_is_number(self.low) and _is_number(self.high) and self.low < self.high):
            raise ConfigError(f"a loss from {self.low!r} to {self.high!r}; give two numbers, low below high")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What is asked for: a measure that falls by at most `drop`, with confidence 1 - `delta`.

    Attributes:
        policy: family of halting policies, a name of `odn_hybrid.stopping.FAMILIES`.
        recall: answer with the most confident exit seen so far.
        scaling: of the exits' confidences, "temperature" or "vector".
        max_macs: mean MACs per image to stay within on the calibration split, heads included, or None.
        measure: "accuracy", "top-K accuracy" written top-2, top-5, ..., "brier", or a `BoundedLoss`.
        by: None for one promise about all images; "class" or "exit" for one per class or halting exit,
            all of them together.

    Raises `ConfigError` for a value out of range or a name that does not exist; `InputError` comes later,
    from a loss of one's own that gives something else than a number per image.

    Example:
        >>> import odn_hybrid as odn
        >>> odn.Promise(drop=0.01, delta=0.05).policy
        'snell'
    """

    drop: float
    delta: float
    policy: str = "snell"
    recall: bool = False
    scaling: str = "temperature"
    max_macs: float | None = None
    measure: str | BoundedLoss = "accuracy"
    by: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.policy not in FAMILIES:
            raise ConfigError(f"unknown policy {self.policy!r}; known: {', '.join(FAMILIES)}")
        if self.scaling not in ("temperature", "vector"):
            raise ConfigError(f"scaling is {self.scaling!r}; choose temperature or vector")
        if self.by not in GROUPINGS:
            raise ConfigError(f"by is {self.by!r}; a promise can be given by class or by exit")
        if self.max_macs is not None and not self.max_macs > 0:
            raise ConfigError(f"max_macs is {self.max_macs!r}; it must be a number above 0")
        values_by_exit(self.measure, None, None)
        high = self.span
        if not 0 <= self.drop < high or not 0 < self.delta < 1:
            raise ConfigError(
                f"drop is {self.drop!r} and delta {self.delta!r}: they must be in [0, {high:g}) and (0, 1)"
            )

    def _check_types(self) -> None:
        """Numbers are numbers, and a measure is a name or a loss: 5 is not top-5."""
        for name in ("drop", "delta", "max_macs"):
            value = getattr(self, name)
            if (value is None and name == "max_macs") or _is_number(value):
                continue
            raise ConfigError(f"{name} is {value!r}; it must be a number")
        for name, kind in (("policy", str), ("scaling", str), ("recall", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {kind.__name__}")
        if not isinstance(self.measure, str | BoundedLoss):
            raise ConfigError(f"measure is {self.measure!r}; give its name, e.g. top-5, or a BoundedLoss")

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Smallest and largest value of the loss; None and None for what is right or wrong."""
        if isinstance(self.measure, BoundedLoss):
            return self.measure.low, self.measure.high
        return BRIER_RANGE if self.measure == "brier" else (None, None)

    @property
    def span(self) -> float:
        """The largest drop that there can be."""
        low, high = self.bounds
        return 1.0 if low is None or high is None else high - low

    @property
    def measured(self) -> str:
        """The measure's name in sentences."""
        if isinstance(self.measure, BoundedLoss):
            return self.measure.name
        return {"accuracy": "accuracy", "brier": "Brier score"}.get(self.measure, f"{self.measure} accuracy")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what makes two promises the same."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.measure, BoundedLoss):
            values["measure"] = f"{self.measure.name}, {self.measure.low:g} to {self.measure.high:g}"
        return values


def promise_of(config: DynamicConfig, **said: Any) -> Promise:
    """The promise that a recipe asks for, with other answers where something was said."""
    asked = {name: value for name, value in to_dict(config).items() if name in Promise.__dataclass_fields__}
    return Promise(**{**asked, **{name: value for name, value in said.items() if value is not None}})


def values_by_exit(
    measure: str | BoundedLoss, record: ExitRecord | None, calibration: Calibration | None
) -> NDArray[Any]:
    """What every exit's answer is worth on each image, (n, K): right or wrong, or losses.

    Losses other than one's own are of calibrated logits. Raises `ConfigError` for an unknown measure (also
    without a record, then for nothing else).
    """
    top = re.fullmatch(r"top-([1-9]\d{0,3})", measure) if isinstance(measure, str) else None
    if isinstance(measure, str) and top is None and measure not in ("accuracy", "brier"):
        raise ConfigError(
            f"measure is {measure!r}; choose accuracy, top-2, top-5, ..., brier or a BoundedLoss"
        )
    if record is None or calibration is None:
        return np.zeros((0, 0))
    if measure == "accuracy":
        return record.correct
    exits = range(record.logits.shape[1])
    columns: list[NDArray[Any]]
    if isinstance(measure, BoundedLoss):
        columns = [_own(measure, record.logits[:, k].astype(np.float64), record.labels) for k in exits]
    elif top is not None:
        columns = [top_k_correct(record.logits[:, k], record.labels, int(top[1])) for k in exits]
    else:
        scaled = calibration.apply(record.logits)
        columns = [brier_scores(scaled[:, k], record.labels) for k in exits]
    return np.stack(columns, axis=1)


def _own(loss: BoundedLoss, logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    try:  # on copies: a function that writes into its arguments must not change what was recorded
        values = np.asarray(loss.function(logits.copy(), labels.copy()), dtype=np.float64)
    except Exception as error:  # whatever a function of the user's may raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(
            f"loss {loss.name!r} gave no numbers ({said}); logits (n, C) and labels (n,) come as numpy arrays"
        ) from error
    if values.shape != labels.shape:
        raise InputError(f"loss {loss.name!r} gave shape {values.shape} for {len(labels)} images")
    return values


# --- what a certificate speaks of -------------------------------------------------------------------


def losses_digest(loss: BoundedLoss, record: ExitRecord) -> str:
    """sha256 of a user's losses of every exit on a split: what its function is, as far as it matters here."""
    values = [
        _own(loss, record.logits[:, k].astype(np.float64), record.labels)
        for k in range(record.logits.shape[1])
    ]
    return hashlib.sha256(np.ascontiguousarray(np.stack(values), dtype="<f8").tobytes()).hexdigest()
