"""From recorded exit outputs to a halting policy and, if the data allow it, a certificate.

The calibration split calibrates confidences, fits the policies and settles the order in which they are tried;
the certification split is looked at once per promise. Every attempt is entered in a ledger and the t-th is
tested at the level delta * 6 / (pi t)^2, so that all attempts together keep the promised confidence. (Of
attempts that were chosen for what earlier ones showed, theory/certificate.md says what remains.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.promising.promise import (
    BoundedLoss,
    Promise,
    losses_digest,
    policy_digest,
    values_by_exit,
)
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, weights_digest
from odn_hybrid.stopping import (
    GroupsCertificate,
    Member,
    PairedTest,
    SequenceCertificate,
    certify_groups,
    certify_sequence,
    fit_calibration,
    held_out_path,
    look_level,
    order_candidates,
    outcomes,
    predicted_power,
    within_cost,
)

__all__ = ["DynamicResult", "Looks", "evaluate_policy", "make_dynamic", "uncertified_policy"]

SURE = 0.95  # predicted chance that a promise by group holds in every group


@dataclass(frozen=True)
class Looks:
    """At which exits a policy looks, and what that costs.

    Attributes:
        exits: ascending, the last is the reference.
        macs: of an input that stops at each of them.
        prices: what policies are to spend little of: the MACs, or seconds.
    """

    exits: tuple[int, ...]
    macs: tuple[float, ...]
    prices: tuple[float, ...]

    @classmethod
    def all_of(cls, costs: Sequence[float], reference: int) -> Looks:
        """Every exit up to the reference, at the price of its MACs."""
        macs = tuple(costs[:reference])
        return cls(tuple(range(1, reference + 1)), macs, macs)


@dataclass(frozen=True)
class DynamicResult:
    """A policy for `exits`, what was promised for it, and the ledger with this attempt."""

    policy: Member
    certificate: dict[str, Any]
    ledger: list[dict[str, Any]]
    exits: tuple[int, ...]


@dataclass(frozen=True)
class _Candidates:
    """Policies of one family and what they do on the calibration split, on inputs they were not fitted on.

    `taken` (m, n), `values` (m, n) of the answers given, `reference` (n,) of the reference's, `cost` (m,) in
    prices, `macs` (m,); `exits`: the network's.
    """

    path: list[Member]
    taken: NDArray[np.int64]
    values: NDArray[Any]
    reference: NDArray[Any]
    cost: NDArray[np.float64]
    macs: NDArray[np.float64]
    exits: tuple[int, ...]
    labels: NDArray[np.int64]
    classes: int


def make_dynamic(
    network: MultiExit,
    promise: Promise,
    *,
    reference: int,
    costs: Sequence[int],
    calibration: ExitRecord,
    certification: ExitRecord,
    ledger: list[dict[str, Any]],
    looks: Callable[[], Looks] | None = None,
    wish: dict[str, Any] | None = None,
) -> DynamicResult:
    """Choose a halting policy on `calibration` and try to certify it on `certification`.

    Args:
        network: its weights' digest enters the certificate.
        reference: exit 1..K that the drop is measured against; deeper exits are not used.
        costs: MACs of an input that stops at each exit.
        ledger: earlier attempts on this certification split.
        looks: finds at which exits to look, if this promise is new; default: at all.
        wish: what else makes two promises the same, beside promise, reference, data, network and runtime.
    """
    digests = {
        "data": certification.digest,
        "outputs": certification.outputs_digest,
        "model": weights_digest(network),
        "runtime": certification.runtime,
    }
    if isinstance(promise.measure, BoundedLoss):  # another function of the same name is another promise
        digests["losses"] = losses_digest(promise.measure, certification.upto(reference))
    asked = {**promise.to_dict(), "reference": reference, **digests, **(wish or {})}
    for entry in ledger:  # the same promise again is not a new look at the data
        if entry["promise"] == asked:
            member, exits = Member.from_dict(entry["policy"]), entry.get("exits", range(1, reference + 1))
            return DynamicResult(member, entry["certificate"], ledger, tuple(exits))
    attempt = len(ledger) + 1
    level = look_level(promise.delta, attempt)
    at = looks() if looks is not None else Looks.all_of(costs, reference)
    held = certification.of(at.exits)
    candidates = _candidates(promise, calibration.of(at.exits), at)
    order = _order(promise, candidates, level, len(held.labels))
    member, found = _certified(promise, candidates, order, held, level)
    mean_macs = evaluate_policy(member, held, at.macs)["mean_macs"]
    certificate = {
        "kind": "sequence" if promise.by is None else "groups",
        **_told(found),
        "asked_delta": promise.delta,
        "attempt": attempt,
        "promise": promise.to_dict(),
        "policy": {"family": member.family, "setting": member.setting},
        "mean_macs": mean_macs,
        "share": mean_macs / costs[reference - 1],
        "exits": list(at.exits),
        "digests": {**digests, "policy": policy_digest(member.table)},
        "evidence": found.to_dict(),
    }
    spent = f"attempt {attempt} on this split spends {level:.2g} of delta {promise.delta:g}"
    certificate["statement"] = f"{found.statement} ({spent})"
    entry = {
        "promise": asked, "policy": member.to_dict(), "exits": list(at.exits), "certificate": certificate,
    }  # fmt: skip
    return DynamicResult(member, certificate, [*ledger, entry], at.exits)


def _told(found: SequenceCertificate | GroupsCertificate) -> dict[str, Any]:
    """What readers ask first."""
    told: dict[str, Any] = {"drop": found.drop, "delta": found.delta, "certified": found.certified}
    if isinstance(found, SequenceCertificate):
        return {
            **told, "n": found.tested[0].n, "upper_bound": found.upper_bound, "needed_n": found.needed_n,
        }  # fmt: skip
    return {
        **told,
        "n": sum(group.n for group in found.groups),
        "upper_bound": max(group.upper_bound for group in found.groups),
        "needed_n": None,
    }


def _candidates(promise: Promise, seen: ExitRecord, looks: Looks) -> _Candidates:
    scale = fit_calibration(seen.logits, seen.labels, promise.scaling)
    path, taken, answered = held_out_path(
        promise.policy, seen.logits, seen.labels, looks.prices, calibration=scale, recall=promise.recall
    )
    values = values_by_exit(promise.measure, seen, scale)
    # Of the policies themselves, not of their held-out stand-ins: a cost looks at no label.
    stops = outcomes(path, seen.logits)[0] - 1
    return _Candidates(
        path=path,
        taken=taken,
        values=values[np.arange(len(values)), answered - 1],
        reference=values[:, -1],
        cost=np.asarray(looks.prices, dtype=np.float64)[stops].mean(axis=1),
        exits=looks.exits,
        macs=np.asarray(looks.macs, dtype=np.float64)[stops].mean(axis=1),
        labels=seen.labels,
        classes=seen.logits.shape[2],
    )


def _order(promise: Promise, candidates: _Candidates, level: float, size: int) -> NDArray[np.int64]:
    """The candidates to test, in this order; one only within a budget or by group."""
    if promise.max_macs is not None:
        rise = _rises(promise, candidates).mean(axis=1)
        return np.array([within_cost(candidates.macs, -rise, promise.max_macs)])
    if promise.by is not None:
        return np.array([_safe_for_all(promise, candidates, level, size)])
    low, high = promise.bounds
    return order_candidates(
        candidates.reference, candidates.values, candidates.cost,
        drop=promise.drop, delta=level, n_certification=size, low=low, high=high,
    )  # fmt: skip


def _safe_for_all(promise: Promise, candidates: _Candidates, level: float, size: int) -> int:
    """The cheapest candidate predicted to hold in every group; the likeliest if none is."""
    chances = []
    for member, change, taken in zip(
        candidates.path, _rises(promise, candidates), candidates.taken, strict=True
    ):
        groups = _groups(promise, candidates.labels, taken, candidates.exits)
        names = _names(promise, candidates.classes, member, candidates.exits)
        alone = [
            _chance(promise, change[groups == name], size / len(groups), level / len(names)) for name in names
        ]
        chances.append(min(alone))
    chance = np.array(chances)
    safe = np.flatnonzero(chance >= SURE)
    return int(safe[candidates.cost[safe].argmin()]) if safe.size else int(chance.argmax())


def _chance(promise: Promise, change: NDArray[np.float64], scale: float, delta: float) -> float:
    """Predicted chance that a group passes with `scale` times the images it has on the calibration split."""
    drop, there = promise.drop / promise.span, round(scale * len(change))
    if there < 1 or (promise.bounds[0] is None and not PairedTest(there, 0, 0, drop, delta).rejects()):
        return 0.0  # too few images even if no answer changes
    mean, square = change.mean(keepdims=True), np.square(change).mean(keepdims=True)
    return float(predicted_power(mean, square, len(change), there, drop, delta)[0])


def _rises(promise: Promise, candidates: _Candidates) -> NDArray[np.float64]:
    """By how much each candidate is worse on each image, (m, n), in units of the largest possible drop."""
    one, two = candidates.reference.astype(np.float64), candidates.values.astype(np.float64)
    return np.asarray(one - two if promise.bounds[0] is None else (two - one) / promise.span)


def _certified(
    promise: Promise, candidates: _Candidates, order: NDArray[np.int64], held: ExitRecord, level: float
) -> tuple[Member, SequenceCertificate | GroupsCertificate]:
    """The one look at the certification split."""
    tried, exits = [candidates.path[m] for m in order], candidates.exits
    taken, answered = outcomes(tried, held.logits)
    values = values_by_exit(promise.measure, held, tried[0].table.calibration)
    given = values[np.arange(len(values)), answered - 1]
    low, high = promise.bounds
    words = {"reference": f"exit {exits[-1]}", "measure": promise.measured}
    if promise.by is None:
        sequence = certify_sequence(
            values[:, -1], given, drop=promise.drop, delta=level, low=low, high=high, **words
        )
        return tried[sequence.chosen or 0], sequence
    groups = _groups(promise, held.labels, taken[0], exits)
    found = certify_groups(
        values[:, -1], given[0], groups, drop=promise.drop, delta=level,
        low=low, high=high, names=_names(promise, held.logits.shape[2], tried[0], exits), **words,
    )  # fmt: skip
    return tried[0], found


def _groups(
    promise: Promise, labels: NDArray[np.int64], taken: NDArray[np.int64], exits: tuple[int, ...]
) -> NDArray[np.str_]:
    """The name of every image's group, (n,)."""
    numbers = labels if promise.by == "class" else np.asarray(exits)[taken - 1]
    return np.array([f"{promise.by} {number}" for number in numbers])


def _names(promise: Promise, classes: int, member: Member, exits: tuple[int, ...]) -> list[str]:
    """Every group promised, also those without an image: fixed before the certification split is seen."""
    if promise.by == "class":
        return [f"class {c}" for c in range(classes)]
    found = []
    table = member.table
    for exit in range(1, len(table)):
        said = table.decisions(exit, False) | table.decisions(exit, True)
        if True in said:
            found.append(f"exit {exits[exit - 1]}")
        if False not in said:
            return found  # all that come here stop here
    return [*found, f"exit {exits[-1]}"]


def uncertified_policy(promise: Promise, calibration: ExitRecord, looks: Looks) -> Member:
    """The cheapest policy that loses at most the drop on the calibration split; no promise."""
    candidates = _candidates(promise, calibration.of(looks.exits), looks)
    rise = _rises(promise, candidates).mean(axis=1)
    if promise.max_macs is not None:
        return candidates.path[within_cost(candidates.macs, -rise, promise.max_macs)]
    fitting = np.flatnonzero(rise * promise.span <= promise.drop)
    if not fitting.size:
        return candidates.path[int(candidates.cost.argmax())]
    return candidates.path[int(fitting[candidates.cost[fitting].argmin()])]


def evaluate_policy(policy: Member, record: ExitRecord, costs: Sequence[float]) -> dict[str, Any]:
    """Correct answers, mean cost and halting shares of a policy on recorded outputs."""
    last = len(policy.table)
    held = record.upto(last)
    (taken,), (answered,) = outcomes([policy], held.logits)
    right = held.correct[np.arange(len(taken)), answered - 1]
    return {
        "correct": int(right.sum()),
        "n": len(taken),
        "mean_macs": float(np.asarray(costs)[taken - 1].mean()),
        "halting": [float((taken == k).mean()) for k in range(1, last + 1)],
        "taken": taken,
        "confidence": policy.table.confidence(held.logits, answered),
    }
