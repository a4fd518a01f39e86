"""Many candidates, one promise: fixed-sequence testing from strict to loose, at no price in delta.

The order is settled on the calibration split (`order_candidates`), the tests are made on the certification
split (`certify_sequence`), each at the full level, up to the first failure. Proof, and why the bound of the
chosen candidate is the promise itself: theory/certificate.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from odn_hybrid.errors import CertificateError, ConfigError, InputError
from odn_hybrid.stopping.checks import as_correct, check_fraction, check_probability, is_whole
from odn_hybrid.stopping.promises.bounded import BoundedCertificate, certify, differences, read_certificate
from odn_hybrid.stopping.promises.certificate import Certificate

__all__ = ["SequenceCertificate", "certify_sequence", "order_candidates"]

SURE = 0.95  # predicted power of the candidate with which the sequence starts
STEPS = 12  # most candidates in a sequence


@dataclass(frozen=True, kw_only=True)
class SequenceCertificate:
    """The loosest candidate certified, with the certificate of the whole procedure.

    `order`: the candidates' indices from strict to loose, as handed in. `tested`: the certificates of the
    first of them up to the first failure, each by itself. `chosen`: index of the loosest certified one, None
    if the first failed. `upper_bound`: what may be claimed of the chosen one's drop after such a choice: the
    promise, or the largest bound of all if every candidate passed; the first one's bound if none did. `drop`,
    `delta`, `certified`, `needed_n`, `reference`, `data`, `statement`, `method`: as in `Certificate`, about
    the first candidate where none passed.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_sequence
        >>> right = np.ones(500, dtype=bool)
        >>> told = certify_sequence(right, [right, right], drop=0.01, delta=0.05)
        >>> told.certified, told.chosen
        (True, 1)
    """

    drop: float
    delta: float
    order: tuple[int, ...]
    tested: tuple[Certificate | BoundedCertificate, ...]
    chosen: int | None
    upper_bound: float
    certified: bool
    needed_n: int | None
    reference: str
    data: str
    statement: str
    method: str

    def require(self) -> SequenceCertificate:
        """This certificate if it was earned; raises `CertificateError` with the refusal otherwise."""
        if not self.certified:
            raise CertificateError(self.statement)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "order": list(self.order), "tested": [asdict(one) for one in self.tested]}

    @classmethod
    def from_dict(cls, values: Any) -> SequenceCertificate:
        """Read `to_dict`'s data and conclude again from the tests; raises `CertificateError` as they do."""
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise CertificateError(f"not a certificate of a sequence: {values!r}; certify again")
        if not isinstance(values["tested"], list) or not isinstance(values["order"], list):
            raise CertificateError("a sequence without its order or its tests; certify again")
        again = _conclude(values["order"], [read_certificate(one) for one in values["tested"]])
        told = (values["chosen"], values["certified"], values["drop"], values["delta"])
        bound = values["upper_bound"]
        if told != (again.chosen, again.certified, again.drop, again.delta) or not (
            isinstance(bound, float | int) and abs(bound - again.upper_bound) <= 1e-6
        ):
            raise CertificateError("the sequence claims more than its tests give; certify again")
        return again


def certify_sequence(
    reference: ArrayLike,
    candidates: ArrayLike,
    /,
    *,
    drop: float,
    delta: float,
    order: ArrayLike | None = None,
    low: float | None = None,
    high: float | None = None,
    **words: str,
) -> SequenceCertificate:
    """Test "drop at most `drop`" for one candidate after another, each at level `delta`, until one fails.

    `reference` (n,), `candidates` (m, n): right and wrong answers on the certification split, or losses with
    their range `low` to `high`. `order` (k,): indices of candidates from strict to loose, at most m of them,
    from `order_candidates` on the calibration split; by default 0 to m - 1. If neither candidates nor order
    depend on these images, a candidate whose drop exceeds the promise is chosen with probability at most
    `delta`. `words`: `reference`, `data`, `measure`, of the statement. Raises `InputError` and `ConfigError`
    as `certify_paired` and `certify_bounded` do, and `InputError` for an order that does not fit; a promise
    that is not earned raises nothing (`require` raises `CertificateError`).

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import certify_sequence
        >>> right = np.ones(1000, dtype=bool)
        >>> strict, loose = right.copy(), right.copy()
        >>> strict[:1], loose[:100] = False, False
        >>> certify_sequence(right, [strict, loose], drop=0.01, delta=0.05).chosen
        0
    """
    table = _as_table(candidates)
    sequence = _as_order(np.arange(len(table)) if order is None else order, len(table))
    tested: list[Certificate | BoundedCertificate] = []
    for index in sequence:
        tested.append(certify(reference, table[index], drop=drop, delta=delta, low=low, high=high, **words))
        if not tested[-1].certified:
            break
    return _conclude(sequence, tested)


def order_candidates(
    reference: ArrayLike,
    candidates: ArrayLike,
    costs: ArrayLike,
    *,
    drop: float,
    delta: float,
    n_certification: int | None = None,
    low: float | None = None,
    high: float | None = None,
    sure: float = SURE,
    steps: int = STEPS,
) -> NDArray[np.int64]:
    """The sequence to test: where it starts, and which candidates follow, all from the calibration split.

    `reference` (n,), `candidates` (m, n) as in `certify_sequence`, on the calibration split; `costs` (m,):
    the mean cost of each, the looser the cheaper. `n_certification`: images there will be (default: n). Each
    candidate's chance of passing is predicted from its calibration differences (normal approximation, with
    the uncertainty of both samples: a guide to order, it enters no promise). The sequence starts with the
    loosest candidate up to which, from the dearest on, all are predicted to pass with `sure` or more; with
    the likeliest of all if even the dearest is not. From there at most `steps` candidates, evenly spread over
    the cheaper ones. Stricter candidates than the start are left out: each could only fail and end the walk.
    `drop`, `delta`, `low`, `high`: of the promise, as in `certify_sequence`. Raises `InputError` for arrays
    that do not fit, `ConfigError` for numbers out of range.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import order_candidates
        >>> right = np.ones(1000, dtype=bool)
        >>> loose = np.arange(1000) % 500 != 0
        >>> order_candidates(right, [right, loose], [2.0, 1.0], drop=0.01, delta=0.05).tolist()
        [0, 1]
    """
    table = _as_table(candidates)
    check_probability(delta, "delta")
    check_probability(sure, "sure")
    if not is_whole(steps) or steps < 1:
        raise ConfigError(f"steps is {steps!r}; it must be 1 or more")
    change, span = [], 1.0
    for row in table:
        if low is None or high is None:
            drop = check_fraction(drop, "drop")
            before, after = as_correct(reference, 1, "reference"), as_correct(row, 1, "candidates")
            if before.shape != after.shape:
                raise InputError(f"reference has {before.size} answers, a candidate {after.size}; pair them")
            change.append(before.astype(np.float64) - after)
        else:
            one, low, high = differences(reference, row, low, high)
            change.append(one)
            span = high - low
    moved = np.stack(change) / span
    n = moved.shape[1]
    size = n if n_certification is None else n_certification
    if not is_whole(size) or size < 1:
        raise ConfigError(f"n_certification is {size!r}; it must be 1 or more")
    price = np.asarray(costs, dtype=np.float64)
    if price.shape != (len(table),) or not np.isfinite(price).all():
        raise InputError(f"costs have shape {price.shape}; expected {len(table)} finite numbers")
    chance = predicted_power(
        moved.mean(axis=1), np.square(moved).mean(axis=1), n, int(size), drop / span, delta
    )
    return _sequence(chance, price, sure, int(steps))


def predicted_power(
    lost: NDArray[np.float64], moved: NDArray[np.float64], n: int, size: int, drop: float, delta: float
) -> NDArray[np.float64]:
    """Chance (m,) that `size` images certify, from mean and mean square of `n` calibration differences.

    `lost`, `moved`: (m,) that mean and that mean square. `drop`, `delta`: of the promise, in units of a range
    of 1. A normal approximation with the uncertainty of both samples: a guide to order, it enters no promise.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import predicted_power
        >>> lost, moved = np.array([0.0, 0.02]), np.array([0.005, 0.03])
        >>> predicted_power(lost, moved, 1000, 2000, 0.01, 0.05).round(2).tolist()
        [0.98, 0.01]
    """
    edge = drop - max(float(ndtri(1 - delta)), 0.0) * np.sqrt(np.maximum(moved, drop) / size)
    return np.asarray(ndtr((edge - lost) / np.sqrt((moved + 1 / n) * (1 / n + 1 / size))))


def _sequence(
    chance: NDArray[np.float64], price: NDArray[np.float64], sure: float, steps: int
) -> NDArray[np.int64]:
    """See `order_candidates`; ties in cost go to the likelier, then to the smaller index."""
    strict = np.lexsort((np.arange(len(price)), -chance, -price))
    safe = chance[strict] >= sure
    start = int(safe.argmin()) - 1 if not safe.all() else len(strict) - 1
    if start < 0:
        start = int(chance[strict].argmax())
    left = len(strict) - start
    picks = np.unique(np.round(np.linspace(0, left - 1, min(steps, left))).astype(np.int64))
    return np.asarray(strict[start + picks], dtype=np.int64)


def _conclude(
    order: Sequence[int] | NDArray[np.int64], tested: list[Certificate | BoundedCertificate]
) -> SequenceCertificate:
    """What the tests of the first candidates of `order` allow to say."""
    if not tested or len(tested) > len(order):
        raise CertificateError(f"{len(tested)} tests for {len(order)} candidates; certify again")
    passed = [one.certified for one in tested]
    failed = not passed[-1]
    if not all(passed[:-1]) or (not failed and len(tested) < len(order)):
        raise CertificateError("the sequence was not tested up to its first failure; certify again")
    first, count = tested[0], sum(passed)
    if any((one.drop, one.delta, one.n) != (first.drop, first.delta, first.n) for one in tested):
        raise CertificateError("the tests are not of one promise on one sample; certify again")
    chosen = int(order[count - 1]) if count else None
    if not count:
        bound = first.upper_bound
        statement = f"none of {len(order)} candidates is certified; of the first: {first.statement}"
    else:
        bound = first.drop if failed else max(one.upper_bound for one in tested)
        place = f"candidate {count} of {len(order)} from strict to loose"
        statement = f"{tested[count - 1].statement}; {place}, in a sequence fixed beforehand"
        if failed:
            statement += ", the next failed"
    return SequenceCertificate(
        drop=first.drop, delta=first.delta, order=tuple(int(index) for index in order), tested=tuple(tested),
        chosen=chosen, upper_bound=bound, certified=count > 0, needed_n=None if count else first.needed_n,
        reference=first.reference, data=first.data, statement=statement,
        method=f"fixed sequence of {first.method}s",
    )  # fmt: skip


def _as_table(candidates: ArrayLike) -> NDArray[Any]:
    table = np.asarray(candidates)
    if table.ndim != 2 or table.size == 0:
        raise InputError(f"candidates have shape {table.shape}; expected (candidates, images), neither empty")
    return table


def _as_order(order: ArrayLike, count: int) -> NDArray[np.int64]:
    array = np.asarray(order)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"order is {order!r}; expected whole numbers, the candidates' indices")
    if array.min() < 0 or array.max() >= count or len(np.unique(array)) != array.size:
        raise InputError(f"order is {array.tolist()}; expected different indices from 0 to {count - 1}")
    return array.astype(np.int64)
