"""From recorded exit outputs to a halting policy and, if the data allow it, a certificate.

The calibration split fits temperatures and picks the threshold; the certification split is looked at once
per promise. Every attempt is entered in a ledger and the t-th is tested at the level
delta * 6 / (pi t)^2, so that all attempts together keep the promised confidence.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.stopping import ConfidencePolicy, certify_paired, choose_threshold, look_level

__all__ = ["DynamicResult", "evaluate_policy", "make_dynamic", "uncertified_policy", "weights_digest"]

#: What a certificate speaks of besides data, model and policy: this runtime in this precision.
RUNTIME = "eager fp32"


@dataclass(frozen=True)
class DynamicResult:
    """A policy for exits 1..reference, what was promised for it, and the ledger with this attempt."""

    policy: ConfidencePolicy
    certificate: dict[str, Any]
    ledger: list[dict[str, Any]]


def make_dynamic(
    network: MultiExit,
    *,
    reference: int,
    calibration: ExitRecord,
    certification: ExitRecord,
    drop: float,
    delta: float,
    ledger: list[dict[str, Any]],
) -> DynamicResult:
    """Choose a confidence threshold on `calibration` and try to certify it on `certification`.

    Args:
        network: its weights' digest enters the certificate.
        reference: exit 1..K that `drop` is measured against; deeper exits are not used.
        drop, delta: the promise: accuracy lower by at most `drop` with confidence 1 - `delta`.
        ledger: earlier attempts on this certification split.
    """
    seen = calibration.upto(reference)
    promise = {
        "drop": drop,
        "delta": delta,
        "reference": reference,
        "model": weights_digest(network),
        "data": certification.digest,
        "outputs": certification.outputs_digest,
        "runtime": RUNTIME,
    }
    for entry in ledger:  # the same promise again is not a new look at the data
        if entry["promise"] == promise:
            return DynamicResult(ConfidencePolicy.from_dict(entry["policy"]), entry["certificate"], ledger)
    attempt = len(ledger) + 1
    level = look_level(delta, attempt)
    size = len(certification.labels)
    policy = choose_threshold(seen.logits, seen.labels, drop=drop, delta=level, n_certification=size).policy
    held = certification.upto(reference)
    taken, right = policy.halt(held.logits), held.correct
    certificate = certify_paired(
        right[:, reference - 1],
        right[np.arange(size), taken - 1],
        drop=drop,
        delta=level,
        reference=f"exit {reference}",
    )
    digests = {
        **{k: promise[k] for k in ("model", "data", "outputs", "runtime")},
        "policy": _digest(policy.to_dict()),
    }
    spent = f"attempt {attempt} on this split spends {level:.2g} of delta {delta:g}"
    stated = {**certificate.to_dict(), "statement": f"{certificate.statement} ({spent})"}
    found = {**stated, "asked_delta": delta, "attempt": attempt, "digests": digests}
    entry = {"promise": promise, "policy": policy.to_dict(), "certificate": found}
    return DynamicResult(policy, found, [*ledger, entry])


def uncertified_policy(
    calibration: ExitRecord, reference: int, drop: float, delta: float
) -> ConfidencePolicy:
    """The loosest threshold that loses at most `drop` on the calibration split; no promise."""
    seen = calibration.upto(reference)
    return choose_threshold(seen.logits, seen.labels, drop=drop, delta=delta, power=None).policy


def evaluate_policy(policy: ConfidencePolicy, record: ExitRecord, costs: tuple[int, ...]) -> dict[str, Any]:
    """Correct answers, mean cost and halting shares of a policy on recorded outputs."""
    last = len(policy.thresholds)
    held = record.upto(last)
    taken = policy.halt(held.logits)
    right = held.correct[np.arange(len(taken)), taken - 1]
    return {
        "correct": int(right.sum()),
        "n": len(taken),
        "mean_macs": float(np.asarray(costs)[taken - 1].mean()),
        "halting": [float((taken == k).mean()) for k in range(1, last + 1)],
        "taken": taken,
    }


def weights_digest(network: MultiExit) -> str:
    """sha256 over all weights and their names."""
    h = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        h.update(name.encode())
        h.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
