"""Certificates for any bounded loss, and the one place that decides which test a comparison gets.

Proofs: theory/certificate.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import CertificateError, ConfigError, InputError
from odn_hybrid.stopping.checks import check_probability, is_whole
from odn_hybrid.stopping.promises.betting import BettingTest, data_order
from odn_hybrid.stopping.promises.certificate import Certificate, certify_paired, in_confidence

__all__ = ["BoundedCertificate", "certify", "certify_bounded", "read_certificate"]

BETTING = "betting test"


@dataclass(frozen=True, kw_only=True)
class BoundedCertificate:
    """What was promised about a bounded loss, on what evidence, and whether it was earned.

    `drop`, `delta`: the promise, mean loss of the policy less mean loss of the reference <= drop with
    confidence 1 - delta, in the units of the loss, whose range is `low` to `high`. `n`, `difference`: the
    evidence, images and the mean difference seen; `digest`: SHA-256 of the sorted differences, which fixes
    the order of the test too. `p_value`, `upper_bound`: of the betting test; `certified` is
    `upper_bound <= drop`. `needed_n`, `reference`, `data`, `statement`, `measure`, `method`: as in
    `Certificate`.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_bounded
        >>> told = certify_bounded(np.zeros(2000), np.zeros(2000), low=0.0, high=1.0, drop=0.02, delta=0.05)
        >>> type(told).__name__, told.certified
        ('BoundedCertificate', True)
    """

    drop: float
    delta: float
    n: int
    difference: float
    p_value: float
    upper_bound: float
    certified: bool
    needed_n: int | None
    reference: str
    data: str
    statement: str
    measure: str
    low: float
    high: float
    digest: str
    method: str = BETTING

    def require(self) -> BoundedCertificate:
        """This certificate if it was earned; raises `CertificateError` with the refusal otherwise."""
        if not self.certified:
            raise CertificateError(self.statement)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> BoundedCertificate:
        """Read `to_dict`'s data and check what can be checked without the losses themselves.

        That is: the numbers' ranges, that bound, p-value and claim agree, and the statement, which is written
        again. Whoever has the losses certifies again and compares `digest`. Raises `CertificateError`.
        """
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise CertificateError(f"not a certificate of a bounded loss: {values!r}; certify again")
        try:
            read = cls(**{**values, "certified": bool(values["certified"])})
            usable = _usable(read)
        except (TypeError, ValueError, ConfigError):
            usable = False
        if not usable:
            raise CertificateError(f"a certificate with unusable fields: {values!r}; certify again")
        earned = read.upper_bound <= read.drop
        if earned != (read.p_value <= read.delta) or earned != read.certified:
            raise CertificateError(
                f"the certificate claims certified={read.certified}; its bound {read.upper_bound:.6g} and "
                f"p-value {read.p_value:.6g} do not bear that out; certify again"
            )
        return cls(**{**asdict(read), "statement": _statement(read)})


def certify_bounded(
    losses_reference: ArrayLike,
    losses_policy: ArrayLike,
    *,
    low: float,
    high: float,
    drop: float,
    delta: float,
    measure: str = "loss",
    reference: str = "the reference",
    data: str = "the certification images",
) -> BoundedCertificate:
    """Test the promise "the mean loss rises by at most `drop`" at level `delta` on paired losses.

    `losses_reference`, `losses_policy`: (n,), the same images in the same order, every loss from `low` to
    `high` by its nature (a range read off the data is no range); smaller is better. Brier score: 0 to 2. For
    i.i.d. images, a rise above `drop` is certified with probability at most `delta`, whatever the
    distribution; the order of the images does not matter. For losses that are 0 or 1 use `certify_paired`,
    which has more power. `measure`, `reference`, `data`: words for the statement. Raises `InputError` for
    losses that do not fit and `ConfigError` for numbers out of range.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_bounded
        >>> loss = np.linspace(0.0, 0.5, 2000)
        >>> certify_bounded(loss, loss + 0.001, low=0.0, high=2.0, drop=0.02, delta=0.05).certified
        True
    """
    change, low, high = differences(losses_reference, losses_policy, low, high)
    test = BettingTest(change, high - low, float(drop), check_probability(delta, "delta"))
    bound = test.upper_bound()
    certified = bound <= test.drop
    found = BoundedCertificate(
        drop=test.drop, delta=test.delta, n=change.size, difference=math.fsum(change) / change.size,
        p_value=test.p_value(), upper_bound=bound, certified=certified,
        needed_n=None if certified else test.needed_images(), reference=reference, data=data, statement="",
        measure=measure, low=low, high=high, digest=data_order(change)[1],
    )  # fmt: skip
    return BoundedCertificate(**{**asdict(found), "statement": _statement(found)})


def certify(
    reference: ArrayLike,
    policy: ArrayLike,
    /,
    *,
    drop: float,
    delta: float,
    low: float | None = None,
    high: float | None = None,
    **words: str,
) -> Certificate | BoundedCertificate:
    """`certify_bounded` where the range of a loss is given, else `certify_paired` on right and wrong answers.

    Decided by what the caller says the numbers are, never by the data. `words`: `reference`, `data` and
    `measure`.
    """
    if low is None and high is None:
        return certify_paired(reference, policy, drop=drop, delta=delta, **words)
    if low is None or high is None:
        raise ConfigError(f"the loss runs from {low!r} to {high!r}; give both ends of its range")
    return certify_bounded(reference, policy, low=low, high=high, drop=drop, delta=delta, **words)


def read_certificate(values: Any) -> Certificate | BoundedCertificate:
    """Read either kind's `to_dict`, given as `values`; raises `CertificateError` for anything else.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_paired, read_certificate
        >>> right = np.ones(1000, dtype=bool)
        >>> told = certify_paired(right, right, drop=0.01, delta=0.05)
        >>> read_certificate(told.to_dict()) == told
        True
    """
    if isinstance(values, dict) and values.get("method") == BETTING:
        return BoundedCertificate.from_dict(values)
    return Certificate.from_dict(values)


def differences(
    losses_reference: ArrayLike, losses_policy: ArrayLike, low: float, high: float
) -> tuple[NDArray[np.float64], float, float]:
    """Loss of the policy less that of the reference, image by image, and the range as floats; all checked."""
    try:
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        raise ConfigError(f"the loss runs from {low!r} to {high!r}; both must be numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"the loss runs from {low} to {high}; expected finite numbers, low below high")
    before = _as_losses(losses_reference, "losses_reference", low, high)
    after = _as_losses(losses_policy, "losses_policy", low, high)
    if before.shape != after.shape:
        raise InputError(
            f"losses_reference has {len(before)} losses, losses_policy {len(after)}; they must be paired"
        )
    return after - before, low, high


def _as_losses(losses: ArrayLike, name: str, low: float, high: float) -> NDArray[np.float64]:
    try:
        array = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not an array of numbers; expected one loss per image") from None
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; expected (n,), one loss per image")
    if not np.isfinite(array).all():
        raise InputError(f"{array.size - int(np.isfinite(array).sum())} of {name} are NaN or infinite")
    if array.min() < low or array.max() > high:
        raise InputError(
            f"{name} runs from {array.min():g} to {array.max():g}, outside its range {low:g} to {high:g}; "
            "give the range that the loss has by its nature"
        )
    return array


def _usable(read: BoundedCertificate) -> bool:
    span = read.high - read.low
    check_probability(read.delta, "delta")
    words = (read.reference, read.data, read.measure, read.statement, read.digest)
    return (
        math.isfinite(span) and 0 <= read.drop < span
        and is_whole(read.n) and read.n >= 1
        and (read.needed_n is None or (is_whole(read.needed_n) and not read.certified))
        and -span <= read.difference <= span and -span <= read.upper_bound <= span
        and 0 <= read.p_value <= 1
        and read.method == BETTING and all(isinstance(word, str) for word in words)
    )  # fmt: skip


def _statement(found: BoundedCertificate) -> str:
    """The promise or the refusal in one line."""
    promise = f"mean {found.measure} rises against {found.reference} by at most {found.drop:.4g}"
    counts = f"{found.n} images, mean change {found.difference:+.4g}"
    kind = f"{found.measure} lies between {found.low:g} and {found.high:g}"
    confidence = in_confidence(found.delta)
    if found.certified:
        return (
            f"{promise} with confidence {confidence}, for data exchangeable with {found.data} "
            f"({counts}; {kind})"
        )
    advice = (
        "so no number of images would do at this rate: allow a larger rise or choose a stricter policy"
        if found.needed_n is None
        else f"at this rate about {found.needed_n} images would be needed: bring more, or allow a larger rise"
    )
    return (
        f"not certified: that the {promise} is not shown with confidence {confidence} by {counts}, of "
        f"{found.data} (upper bound {_up(found.upper_bound)}; {kind}); {advice}"
    )


def _up(value: float) -> str:
    """Four digits, rounded up: never a smaller claim."""
    if value == 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return f"{math.ceil(value / unit - 1e-9) * unit:.4g}"
