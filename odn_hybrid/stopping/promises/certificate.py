"""The certificate: a finite-sample promise about accuracy lost, or a refusal that says what is missing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import ArrayLike
from scipy.special import ndtri

from odn_hybrid.errors import CertificateError, InputError, OdnError
from odn_hybrid.stopping.checks import as_correct, check_counts, check_fraction, check_probability
from odn_hybrid.stopping.promises.paired import PairedTest

__all__ = ["ACCURACY", "METHOD", "Certificate", "certify_paired", "smallest_drop"]

ACCURACY = "accuracy"  # what is measured unless the caller says otherwise
METHOD = "exact paired test"
EXACT_SEARCH = 20_000  # images up to which the advice on sample size is worked out with the exact test


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was promised, on what evidence, and whether it was earned.

    `drop`, `delta`: the promise, accuracy(reference) - accuracy(policy) <= drop with confidence 1 - delta.
    `n`, `newly_wrong`, `newly_right`: the evidence, in images. `upper_bound`: exact upper 1 - delta
    confidence bound on the drop, a fraction in [-1, 1]; `certified` is `upper_bound <= drop`. `needed_n`:
    about how many images would earn the promise at the observed rates, None when it is earned or when no
    number would do. `reference`: what the drop is measured against. `data`: what the promise is
    exchangeable with. `statement`: the promise or the refusal in one line. `measure`: the accuracy meant,
    such as "top-5 accuracy". `method`: the test.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_paired
        >>> right = np.ones(500, dtype=bool)
        >>> certify_paired(right, right, drop=0.001, delta=0.05).needed_n  # too few images for so much
        3023
    """

    drop: float
    delta: float
    n: int
    newly_wrong: int
    newly_right: int
    upper_bound: float
    certified: bool
    needed_n: int | None
    reference: str
    data: str
    statement: str
    measure: str = ACCURACY
    method: str = METHOD

    def require(self) -> Certificate:
        """This certificate if it was earned; raises `CertificateError` with the refusal otherwise."""
        if not self.certified:
            raise CertificateError(self.statement)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Certificate:
        """Read `to_dict`'s data and work it out again from its counts.

        Raises `CertificateError` where a field is missing or unusable, or where the counts do not bear out
        what the record claims.
        """
        fields = ("n", "newly_wrong", "newly_right", "drop", "delta", "reference", "data", "measure")
        if isinstance(values, dict):
            values = {
                "measure": ACCURACY,
                "method": METHOD,
                **values,
            }  # records from before there were others
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise CertificateError(f"not a certificate: {values!r}; certify again")
        if values["method"] != METHOD:
            raise CertificateError(
                f"the certificate's method is {values['method']!r}, expected {METHOD!r}; read it with "
                "read_certificate or certify again"
            )
        try:
            again = _decide(**{name: values[name] for name in fields})
            agrees = bool(values["certified"]) == again.certified
            agrees = agrees and abs(float(values["upper_bound"]) - again.upper_bound) <= 1e-6
        except (TypeError, ValueError, OdnError):
            raise CertificateError(f"a certificate with unusable fields: {values!r}; certify again") from None
        if not agrees:
            raise CertificateError(
                f"the certificate claims certified={values['certified']!r}, bound {values['upper_bound']!r}; "
                f"its counts give certified={again.certified}, bound {again.upper_bound:.6f}; certify again"
            )
        return again


def certify_paired(
    correct_reference: ArrayLike,
    correct_policy: ArrayLike,
    *,
    drop: float,
    delta: float,
    reference: str = "the reference",
    data: str = "the certification images",
    measure: str = ACCURACY,
) -> Certificate:
    """Test the promise "accuracy drop at most `drop`" at level `delta` on paired answers.

    `correct_reference`, `correct_policy`: (n,) bool, the same images in the same order, used for nothing
    that the policy, the reference or `drop` depends on. `measure` names what "correct" means, such as
    "top-5 accuracy"; `data` names the images, `reference` what the drop is measured against. Exact for every
    n and all rates: for i.i.d. images, a drop above `drop` is certified with probability at most `delta`.
    Method and proof: theory/certificate.md. Raises `InputError` for arrays that are not paired booleans and
    `ConfigError` for `drop` or `delta` out of range.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_paired
        >>> right = np.arange(2000) % 10 != 0  # the reference: 90 %
        >>> told = certify_paired(right, right & (np.arange(2000) % 500 != 1), drop=0.01, delta=0.05)
        >>> told.certified, told.newly_wrong, round(told.upper_bound, 4)
        (True, 4, 0.0046)
    """
    before = as_correct(correct_reference, 1, "correct_reference")
    after = as_correct(correct_policy, 1, "correct_policy")
    if before.shape != after.shape:
        raise InputError(
            f"correct_reference has {len(before)} answers, correct_policy {len(after)}; they must be paired"
        )
    return _decide(
        n=len(before),
        newly_wrong=int((before & ~after).sum()),
        newly_right=int((~before & after).sum()),
        drop=drop,
        delta=delta,
        reference=reference,
        data=data,
        measure=measure,
    )


def smallest_drop(n: int, delta: float) -> float:
    """The smallest drop, a fraction, that `n` images certify when no answer changes: about -ln(delta) / n.

    `delta`: the level of the test, of a first attempt `look_level(delta, 1)`. Rounded up. Only images that
    become newly right could show a smaller one. What that means for the choice of depth:
    theory/target_to_depth.md.

    Example:
        >>> from odn_hybrid.stopping import smallest_drop
        >>> round(smallest_drop(1000, 0.05), 4)
        0.003
    """
    n = check_counts(0, n)[1]
    delta = check_probability(delta, "delta")
    low, high = 0.0, 1.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if PairedTest(n, 0, 0, middle, delta).rejects():
            high = middle
        else:
            low = middle
    return high


def _decide(
    *,
    n: int,
    newly_wrong: int,
    newly_right: int,
    drop: float,
    delta: float,
    reference: str,
    data: str,
    measure: str,
) -> Certificate:
    newly_wrong, n = check_counts(newly_wrong, n)
    newly_right, _ = check_counts(newly_right, n - newly_wrong) if newly_right else (0, n)
    drop, delta = check_fraction(drop, "drop"), check_probability(delta, "delta")
    test = PairedTest(n, newly_wrong, newly_right, drop, delta)
    bound = test.upper_bound()
    certified = bound <= drop
    needed = None if certified else _needed_images(test)
    counts = f"{n} images, {newly_wrong} newly wrong and {newly_right} newly right"
    confidence = in_confidence(delta)
    promise = f"{measure} drop against {reference} is at most {in_points(drop)}"
    if certified:
        statement = f"{promise} with confidence {confidence}, for data exchangeable with {data} ({counts})"
    else:
        statement = (
            f"not certified: that the {promise} is not shown with confidence {confidence} "
            f"by {counts}, of {data} (upper bound {in_points(bound, up=True)}); {_advice(test, needed)}"
        )
    return Certificate(
        drop=drop, delta=delta, n=n, newly_wrong=newly_wrong, newly_right=newly_right, upper_bound=bound,
        certified=certified, needed_n=needed, reference=reference, data=data, statement=statement,
        measure=measure,
    )  # fmt: skip


def _advice(test: PairedTest, needed: int | None) -> str:
    if needed is None:
        return (
            f"the observed drop is {in_points((test.newly_wrong - test.newly_right) / test.n)}, so no number "
            "of images would do at these rates: allow a larger drop or choose a stricter policy"
        )
    return f"at these rates about {needed} images would be needed: bring more, or allow a larger drop"


def in_points(fraction: float, up: bool = False) -> str:
    """A fraction in percentage points; an upper bound is rounded up, never to a smaller claim."""
    value = math.ceil(fraction * 1e4 - 1e-9) / 100 if up else fraction * 100
    return f"{value:.4g} point{'' if value == 1 else 's'}"


def in_confidence(delta: float) -> str:
    """1 - `delta` in words' precision: rounded, but never to a larger claim."""
    return f"{math.floor((1 - delta) * 1e4 + 1e-9) / 1e4:g}"


def _needed_images(test: PairedTest) -> int | None:
    """About how many images would certify if the observed rates persisted; None if none would.

    At that number the promise is earned about every second time: a guide, not a guarantee. Worked out with
    the exact test from the normal approximation's answer on, or, where that is large, by the latter alone.
    """
    wrong, right = test.newly_wrong / test.n, test.newly_right / test.n
    gap = test.drop - (wrong - right)
    if gap <= 0:
        return None
    z = float(ndtri(1 - test.delta))
    guess = math.ceil(max(z, 0.0) ** 2 * max(wrong + right, test.drop) / gap**2)
    if guess > EXACT_SEARCH:
        return guess

    def passes(n: int) -> bool:
        scaled_wrong, scaled_right = math.ceil(wrong * n - 1e-9), math.floor(right * n + 1e-9)
        return PairedTest(n, scaled_wrong, scaled_right, test.drop, test.delta).rejects()

    low = max(test.n, int(0.8 * guess))
    high = low + 1
    while not passes(high):
        low, high = high, high + max(1, high // 30)
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
