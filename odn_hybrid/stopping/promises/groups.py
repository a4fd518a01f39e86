"""One promise per class, per halting exit or per any group of images, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from odn_hybrid.errors import CertificateError, InputError
from odn_hybrid.stopping.checks import check_probability
from odn_hybrid.stopping.promises.betting import BettingTest
from odn_hybrid.stopping.promises.bounded import BoundedCertificate, certify, read_certificate
from odn_hybrid.stopping.promises.certificate import Certificate, in_confidence, in_points, smallest_drop
from odn_hybrid.stopping.promises.paired import PairedTest

__all__ = ["GroupPromise", "GroupsCertificate", "certify_groups"]


@dataclass(frozen=True, kw_only=True)
class GroupPromise:
    """One group's part.

    `name`, `n`: the group and its images. `certificate`: the group tested by itself at delta over the number
    of groups, None for a group without images. `p_value`: of "the drop exceeds the promise". `certified`:
    whether Holm's procedure over all groups certifies it. `upper_bound`: valid for all groups at once: the
    promise itself where earned (less only if all groups earned it), else the bound at delta over the number
    of groups. `too_small`: even with no answer changed so few images could not earn it. `needed_n`: images of
    this group that about would.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_groups
        >>> right = np.ones(1000, dtype=bool)
        >>> small = certify_groups(right, right, np.arange(1000) < 50, drop=0.01, delta=0.05).groups[1]
        >>> small.name, small.n, small.certified, small.too_small
        ('True', 50, False, True)
    """

    name: str
    n: int
    certificate: Certificate | BoundedCertificate | None
    p_value: float
    certified: bool
    upper_bound: float
    too_small: bool
    needed_n: int | None


@dataclass(frozen=True, kw_only=True)
class GroupsCertificate:
    """Promises that hold for all groups named as certified, together, with confidence 1 - delta.

    `drop`, `delta`: of each promise, and of all together. `certified`: every group earned it. `groups` in the
    caller's order. `statement`: all of it in one line.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_groups
        >>> right = np.ones(1000, dtype=bool)
        >>> told = certify_groups(right, right, np.arange(1000) % 2, drop=0.02, delta=0.05)
        >>> len(told.groups)
        2
    """

    drop: float
    delta: float
    groups: tuple[GroupPromise, ...]
    certified: bool
    statement: str

    def require(self) -> GroupsCertificate:
        """This certificate if every group earned it; `CertificateError` with the statement otherwise."""
        if not self.certified:
            raise CertificateError(self.statement)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_dict(cls, values: Any) -> GroupsCertificate:
        """Read `to_dict`'s data and work it out again from the groups' certificates; `CertificateError`."""
        try:
            named = [
                (row["name"], row["certificate"] and read_certificate(row["certificate"]))
                for row in values["groups"]
            ]
            again = _conclude(named, float(values["drop"]), check_probability(values["delta"], "delta"))
            alike = again.to_dict()
            claims = [values["certified"], *(row["certified"] for row in values["groups"])]
            bounds = [float(row["upper_bound"]) for row in values["groups"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CertificateError(f"not a certificate of groups: {values!r}; certify again") from None
        if claims != [alike["certified"], *(row["certified"] for row in alike["groups"])] or any(
            abs(bound - row["upper_bound"]) > 1e-6 for bound, row in zip(bounds, alike["groups"], strict=True)
        ):
            raise CertificateError(
                "the certificate of groups claims more than its counts give; certify again"
            )
        return again


def certify_groups(
    reference: ArrayLike,
    policy: ArrayLike,
    groups: ArrayLike,
    /,
    *,
    drop: float,
    delta: float,
    names: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    **words: str,
) -> GroupsCertificate:
    """Test "drop at most `drop`" within every group, simultaneously at level `delta`.

    `reference`, `policy`: (n,) right and wrong answers, or losses with their range `low` to `high`; `groups`:
    (n,), a whole number or a string per image, known for an image before its label's answers are compared:
    the exit it halts at, its class, its camera. `names`: the groups promised, fixed beforehand; by default
    those that occur. Holm's procedure on the groups' p-values: of the groups called certified, with
    probability at least 1 - delta none exceeds the drop, under any dependence (theory/certificate.md).
    `words`: `reference`, `data`, `measure`, of the statement, and `low`, `high` for losses. Raises
    `InputError` and `ConfigError` as `certify_paired` and `certify_bounded` do, and `InputError` for groups
    that do not fit; a promise that is not earned raises nothing (`require` raises `CertificateError`).

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_groups
        >>> right, group = np.ones(4000, dtype=bool), np.arange(4000) % 2
        >>> certify_groups(right, right, group, drop=0.01, delta=0.05).certified
        True
    """
    labels = np.asarray(groups)
    before, after = np.asarray(reference), np.asarray(policy)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iubUS":
        raise InputError(
            f"groups have type {labels.dtype} and shape {labels.shape}; expected one whole number or name "
            "per image"
        )
    if before.shape != labels.shape or after.shape != labels.shape:
        raise InputError(
            f"{labels.size} groups for answers of shapes {before.shape} and {after.shape}; give one per image"
        )
    check_probability(delta, "delta")
    present = np.unique(labels)
    wanted = list(present) if names is None else list(names)
    missing = sorted({str(name) for name in present} - {str(name) for name in wanted})
    if not wanted or missing or len({str(name) for name in wanted}) != len(wanted):
        raise InputError(
            f"names must hold every group once; {', '.join(missing) or 'nothing'} lacks there: {wanted!r}"
        )
    found: list[tuple[str, Certificate | BoundedCertificate | None]] = []
    for name in wanted:
        rows = labels.astype(str) == str(name)
        one = None
        if rows.any():
            one = certify(
                before[rows], after[rows], drop=drop, delta=delta / len(wanted), low=low, high=high, **words
            )
        found.append((str(name), one))
    return _conclude(found, float(drop), float(delta))


def _conclude(
    found: list[tuple[str, Certificate | BoundedCertificate | None]], drop: float, delta: float
) -> GroupsCertificate:
    """Holm's procedure on the groups' p-values, and what each may say."""
    if all(one is None for _, one in found):
        raise CertificateError("no group has images; certify again")
    p_values = np.array([1.0 if one is None else _p_value(one) for _, one in found])
    for _, one in found:
        if one is not None and not (one.drop == drop and math.isclose(one.delta, delta / len(found))):
            raise CertificateError("the groups' certificates are not of one promise; certify again")
    earned = np.zeros(len(found), bool)
    for rank, row in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[row] > delta / (len(found) - rank):
            break
        earned[row] = True
    everything = bool(earned.all())
    widest = max((_widest(one) for _, one in found if one is not None), default=1.0)
    rows = []
    for (name, one), p_value, passed in zip(found, p_values, earned, strict=True):
        own = math.inf if one is None else one.upper_bound
        rows.append(
            GroupPromise(
                name=name, n=0 if one is None else one.n, certificate=one, p_value=float(p_value),
                certified=bool(passed),
                upper_bound=(min(own, drop) if everything else drop) if passed else min(own, widest),
                too_small=not passed and (one is None or _too_small(one)),
                needed_n=None if passed or one is None else one.needed_n,
            )
        )  # fmt: skip
    return GroupsCertificate(
        drop=drop, delta=delta, groups=tuple(rows), certified=everything,
        statement=_statement(rows, drop, delta),
    )  # fmt: skip


def _p_value(one: Certificate | BoundedCertificate) -> float:
    if isinstance(one, BoundedCertificate):
        return one.p_value
    return PairedTest(one.n, one.newly_wrong, one.newly_right, one.drop, one.delta).p_value()


def _widest(one: Certificate | BoundedCertificate | None) -> float:
    return one.high - one.low if isinstance(one, BoundedCertificate) else 1.0


def _too_small(one: Certificate | BoundedCertificate) -> bool:
    """Whether so many images could not earn the promise if nothing changed."""
    if isinstance(one, BoundedCertificate):
        return not BettingTest(np.zeros(one.n), one.high - one.low, one.drop, one.delta).rejects()
    return smallest_drop(one.n, one.delta) > one.drop


def _statement(rows: list[GroupPromise], drop: float, delta: float) -> str:
    some = next((row.certificate for row in rows if row.certificate is not None), None)
    if isinstance(some, BoundedCertificate):
        promise = f"mean {some.measure} rises against {some.reference} by at most {drop:.4g}"
    else:
        assert some is not None  # `_conclude` has seen to it
        promise = f"{some.measure} drop against {some.reference} is at most {in_points(drop)}"
    passed = [row.name for row in rows if row.certified]
    head = "not certified for any group" if not passed else f"{promise} in each of {', '.join(passed)}"
    if not passed:
        head = f"{head}: that the {promise} is not shown"
    text = f"{head}, for all {len(rows)} groups together, with confidence {in_confidence(delta)}"
    if passed:
        text += f", for data exchangeable with {some.data}"
    rest = "; ".join(_reason(row) for row in rows if not row.certified)
    return f"{text}; not shown: {rest}" if rest else text


def _reason(row: GroupPromise) -> str:
    if row.n == 0:
        return f"{row.name} (no images)"
    why = f"{row.n} images" + (", too few even if no answer changed" if row.too_small else "")
    if row.needed_n is None:
        return f"{row.name} ({why}; no number would do at these rates)"
    return f"{row.name} ({why}; about {row.needed_n} needed at these rates)"
