"""Turning logits into confidences that mean something: temperature and vector scaling, per exit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_labels, as_logits, is_whole

__all__ = [
    "KINDS",
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "Calibration",
    "as_temperatures",
    "confidence",
    "fit_calibration",
    "fit_temperature",
    "softmax",
]

#: temperature: one scale per exit. vector: a scale and a shift per exit and class.
KINDS = ("temperature", "vector")
# Perfectly separated calibration data drive T to 0 and useless logits drive it to infinity; both ends would
# make every confidence 1 or 1/C, so the search stays where a confidence still tells inputs apart.
MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
# A hundred images all answered rightly would still drive T to its bound. A weak prior on log T (normal
# around 0) keeps such small splits sane; against a thousand images it weighs nothing.
PRIOR_DEVIATION = 0.5
# Vector scaling has 2 C numbers where temperature scaling has one. Normal priors around temperature scaling:
# on each class's scale relative to 1 / T, and on its shift (in nats) at the class's mean logit. Wider ones
# overfit splits of a few hundred images and gain next to nothing on thousands.
SCALE_DEVIATION = 0.1
SHIFT_DEVIATION = 0.25
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What makes the logits of a network's K exits comparable: calibrated = logits * scale + shift.

    It informs decisions to stop and the confidence reported. The ANSWER stays the largest raw logit, also
    where vector scaling finds another class likelier.

    Attributes:
        kind: one of `KINDS`.
        scales, shifts: (K, 1) for "temperature", scales 1 / T above 0 and shifts 0; (K, C) for "vector".

    Raises `ConfigError` for another kind and `InputError` for numbers that do not fit it.

    Example:
        >>> from odn_hybrid.stopping import Calibration
        >>> Calibration.of_temperatures([1.0, 2.0]).temperatures.tolist()
        [1.0, 2.0]
    """

    kind: str
    scales: Floats
    shifts: Floats

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown calibration {self.kind!r}; known: {', '.join(KINDS)}")
        scales = np.array(self.scales, dtype=np.float64)
        shifts = np.array(self.shifts, dtype=np.float64)
        fits = scales.ndim == 2 and scales.size > 0 and shifts.shape == scales.shape
        if not fits or not (np.isfinite(scales).all() and np.isfinite(shifts).all()):
            raise InputError(
                f"scales {scales.shape} and shifts {shifts.shape} of a calibration must be finite numbers, "
                "(exits, classes), or (exits, 1) for temperatures"
            )
        if self.kind == "temperature":
            if scales.shape[1] != 1 or not (scales > 0).all() or shifts.any():
                raise InputError("a calibration by temperature has one scale above 0 and no shift per exit")
            # Rounded through T, so that writing temperatures and reading them back changes no bit.
            scales = 1.0 / as_temperatures(1.0 / scales[:, 0], len(scales))[:, None]
        for name, array in (("scales", scales), ("shifts", shifts)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def of_temperatures(cls, temperatures: ArrayLike) -> Calibration:
        """One temperature per exit, (K,); logits are divided by them."""
        scale = np.asarray(temperatures, dtype=np.float64)
        scale = 1.0 / as_temperatures(scale, scale.size)[:, None]
        return cls("temperature", scale, np.zeros(scale.shape))

    @property
    def temperatures(self) -> Floats:
        """Temperatures (K,); `ConfigError` for vector scaling, which has none."""
        if self.kind != "temperature":
            raise ConfigError(
                f"a calibration of kind {self.kind!r} has no temperatures; use scales and shifts"
            )
        return np.asarray(1.0 / self.scales[:, 0])

    def __len__(self) -> int:
        """Number of exits K."""
        return len(self.scales)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Calibration) or self.kind != other.kind:
            return False
        return np.array_equal(self.scales, other.scales) and np.array_equal(self.shifts, other.shifts)

    def __hash__(self) -> int:
        return hash((self.kind, self.scales.shape, self.scales.tobytes(), self.shifts.tobytes()))

    def apply(self, logits: ArrayLike) -> Floats:
        """Calibrated logits, (n, K, C) -> (n, K, C); `InputError` for arrays that do not fit or overflow."""
        table = self._taken(logits)
        with np.errstate(over="ignore"):
            found = table * self.scales + self.shifts
        if not np.isfinite(found).all():
            raise InputError(
                f"logits of up to {np.abs(table).max():g} overflow when calibrated; mend the model"
            )
        return np.asarray(found)

    def upto(self, exit: int) -> Calibration:
        """The calibration of exits 1 to `exit`; `ConfigError` for an exit that there is not."""
        if not is_whole(exit) or not 1 <= exit <= len(self):
            raise ConfigError(f"exit is {exit!r}; the calibration is for exits 1 to {len(self)}")
        return Calibration(self.kind, self.scales[: int(exit)], self.shifts[: int(exit)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        if self.kind == "temperature":
            return {"kind": self.kind, "temperatures": self.temperatures.tolist()}
        return {"kind": self.kind, "scales": self.scales.tolist(), "shifts": self.shifts.tolist()}

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        fields = set(values) if isinstance(values, dict) else None
        try:
            if fields == {"kind", "temperatures"} and values["kind"] == "temperature":
                return cls.of_temperatures(_numbers(values["temperatures"]))
            if fields == {"kind", "scales", "shifts"} and values["kind"] == "vector":
                scales, shifts = ([_numbers(row) for row in values[name]] for name in ("scales", "shifts"))
                return cls("vector", np.array(scales), np.array(shifts))
        except (TypeError, ValueError, OverflowError, InputError) as error:
            raise ConfigError(f"a calibration with unusable numbers: {error}") from None
        raise ConfigError(
            "not a calibration; expected kind 'temperature' with temperatures, or kind 'vector' "
            "with scales and shifts"
        )

    def _taken(self, logits: ArrayLike) -> Floats:
        table = as_logits(logits, 3)
        classes = self.scales.shape[1] if self.kind == "vector" else table.shape[2]
        if table.shape[1:] != (len(self), classes):
            raise InputError(
                f"logits have shape {table.shape}; the calibration is for {len(self)} exits"
                + (f" and {classes} classes" if self.kind == "vector" else "")
            )
        return table


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"expected a list of numbers, got {values!r}")
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise TypeError(f"expected numbers, got {values!r}")
    return [float(value) for value in values]


def fit_calibration(logits: ArrayLike, labels: ArrayLike, kind: str = "temperature") -> Calibration:
    """The calibration of every exit that best explains the labels, each exit by itself.

    `logits` (n, K, C) and `labels` (n,), of the calibration split. `kind` "temperature" is
    `fit_temperature`, "vector" is vector scaling (Guo et al. 2017, arXiv 1706.04599): a scale and a shift per
    class, by maximum likelihood with normal priors around temperature scaling (ours): scale_c * T around 1
    with deviation 0.1, and the class's mean logit, calibrated, around its value at temperature T with
    deviation 0.25 nats. Convex, so there is one answer, and it is finite for classes without a calibration
    image and for perfectly separated data. Raises `InputError` for arrays that do not fit, `ConfigError` for
    another kind.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import fit_calibration
        >>> logits = np.random.default_rng(0).normal(size=(200, 3, 5))  # 200 images, 3 exits, 5 classes
        >>> len(fit_calibration(logits, logits[:, 2].argmax(1)))
        3
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown calibration {kind!r}; known: {', '.join(KINDS)}")
    table = as_logits(logits, 3)
    wanted = as_labels(labels, table.shape[0], table.shape[2])
    exits = range(table.shape[1])
    temperatures = [fit_temperature(table[:, exit], wanted) for exit in exits]
    if kind == "temperature":
        return Calibration.of_temperatures(temperatures)
    found = [_fit_vector(table[:, exit], wanted, temperatures[exit]) for exit in exits]
    return Calibration(
        "vector", np.array([scale for scale, _ in found]), np.array([shift for _, shift in found])
    )


def _fit_vector(scores: Floats, wanted: NDArray[np.int64], temperature: float) -> tuple[Floats, Floats]:
    """Scale and shift per class, (C,) each, of one exit's logits (n, C)."""
    n, classes = scores.shape
    base = scores / temperature
    centre = base.mean(axis=0)
    rows = np.arange(n)
    start = softmax(base)
    spare = start * (1 - start)
    # In units of the (diagonal) posterior deviation at the start the problem is well conditioned, whatever
    # the size of the logits and however few images a class has.
    steps = 1 / np.sqrt(
        [
            (spare * (base - centre) ** 2).sum(axis=0) + SCALE_DEVIATION**-2,
            spare.sum(axis=0) + SHIFT_DEVIATION**-2,
        ]
    )
    prior = np.array([[SCALE_DEVIATION], [SHIFT_DEVIATION]])

    def numbers(point: Floats) -> tuple[Floats, Floats, Floats]:
        change = point.reshape(2, classes) * steps  # relative scale, shift at the mean logit
        return change, 1 + change[0], change[1] - change[0] * centre

    def loss(point: Floats) -> tuple[float, Floats]:
        change, scale, shift = numbers(point)
        moved = base * scale + shift
        moved -= moved.max(axis=1, keepdims=True)
        own = float(moved[rows, wanted].sum())
        weights = np.exp(moved)
        total = weights.sum(axis=1)
        excess = weights / total[:, None]
        excess[rows, wanted] -= 1.0
        shifts = excess.sum(axis=0)
        scales = np.einsum("nc,nc->c", excess, base) - centre * shifts
        slope = np.stack([scales, shifts]) + change / prior**2
        value = float(np.log(total).sum()) - own + float(((change / prior) ** 2).sum()) / 2
        return value, (slope * steps).ravel()

    still = np.zeros(2 * classes)
    options = {"gtol": 1e-5, "ftol": 1e-13, "maxiter": 500}
    found = minimize(loss, still, jac=True, method="L-BFGS-B", options=options)
    better = np.isfinite(found.x).all() and loss(found.x)[0] <= loss(still)[0]
    _, scale, shift = numbers(found.x if better else still)
    return scale / temperature, shift


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that best explains labels as draws from softmax(logits / T).

    `logits` (n, C) and `labels` (n,). The mode of the likelihood (unimodal in log T: convex in 1/T) times a
    normal prior on log T of deviation 0.5, found by a bounded scalar search in log T between
    `MIN_TEMPERATURE` and `MAX_TEMPERATURE`. Returns 1.0 where T does not matter (all logits of each image
    equal, or one class). Temperature scaling is Guo et al. 2017 (arXiv 1706.04599), the prior is ours.
    Raises `InputError` for NaN or infinite logits and for labels that do not fit.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import fit_temperature
        >>> sure = np.tile([[4.0, 0.0]], (100, 1))  # says 98 %, is right 3 times of 4
        >>> fit_temperature(sure, (np.arange(100) % 4 == 0).astype(int)) > 2
        True
    """
    scores = as_logits(logits, 2)
    wanted = as_labels(labels, *scores.shape)
    scores = scores - scores.max(axis=1, keepdims=True)
    if not scores.any():
        return 1.0
    own = scores[np.arange(len(wanted)), wanted]

    def loss(log_t: float) -> float:
        beta = math.exp(-log_t)
        prior = (log_t / PRIOR_DEVIATION) ** 2 / 2
        # Each row's largest score is 0, so its sum of exponentials is at least 1.
        return float(np.log(np.exp(scores * beta).sum(axis=1)).sum() - own.sum() * beta + prior)

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    # The search never evaluates its end points, and a flat likelihood should not move anything.
    best = min((0.0, float(found.x), *bounds), key=loss)
    return math.exp(best)


def softmax(logits: ArrayLike, temperature: ArrayLike = 1.0) -> NDArray[np.float64]:
    """softmax(logits / temperature) over the last axis, in float64.

    `logits` (..., C); `temperature` (...,) or one number, which broadcasts over the axes before the last.
    Raises `InputError` for NaN or infinite logits and for temperatures that are not above 0.

    Example:
        >>> from odn_hybrid.stopping import softmax
        >>> softmax([0.0, 2.0], temperature=2.0).round(3).tolist()
        [0.269, 0.731]
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim == 0 or scores.shape[-1] == 0 or not np.isfinite(scores).all():
        raise InputError(
            f"logits of shape {scores.shape} are empty, NaN or infinite; expected finite (..., classes)"
        )
    scale = np.asarray(temperature, dtype=np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(f"temperature is {temperature!r}; it must be finite and above 0")
    scores = (scores - scores.max(axis=-1, keepdims=True)) / scale[..., None]
    weights = np.exp(scores)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def as_temperatures(temperatures: ArrayLike, exits: int) -> NDArray[np.float64]:
    """`temperatures` as float64 of shape (exits,), finite and above 0; `InputError` otherwise."""
    array = np.asarray(temperatures, dtype=np.float64)
    if array.shape != (exits,):
        raise InputError(f"temperatures have shape {array.shape}; expected ({exits},), one per exit")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise InputError(f"temperatures are {array.tolist()}; each must be finite and above 0")
    return array


def confidence(logits: ArrayLike, temperatures: ArrayLike) -> NDArray[np.float64]:
    """Largest softmax probability: `logits` (n, K, C), `temperatures` (K,) -> (n, K) in (0, 1]."""
    scores = as_logits(logits, 3)
    scale = as_temperatures(temperatures, scores.shape[1])
    # max softmax = 1 / sum exp(z - max z): one pass, no (n, K, C) of probabilities kept.
    shifted = (scores - scores.max(axis=2, keepdims=True)) / scale[:, None]
    return np.asarray(1.0 / np.exp(shifted).sum(axis=2))
