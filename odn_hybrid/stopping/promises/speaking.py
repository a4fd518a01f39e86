"""What a certificate speaks of, and when it does not speak of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from odn_hybrid.errors import CertificateError
from odn_hybrid.stopping.policies.tables import HaltingTable
from odn_hybrid.stopping.promises.groups import GroupsCertificate
from odn_hybrid.stopping.promises.sequence import SequenceCertificate

__all__ = ["policy_digest", "why_void"]

MOST_IMAGES, MOST_PARTS = 2_000_000, 2_000  # of evidence that is worked out again when a model is loaded


def policy_digest(table: HaltingTable) -> str:
    """sha256 of a halting table."""
    return hashlib.sha256(json.dumps(table.to_dict(), sort_keys=True).encode()).hexdigest()


def why_void(
    certificate: dict[str, Any],
    model: str,
    table: HaltingTable,
    runtime: str,
    exits: Sequence[int] | None = None,
) -> str | None:
    """Why `certificate` does not speak of a model; None where it does.

    `model`: the weights' digest. `exits`: which of the network's the table's are, default 1, 2, ...
    Certified is what its own evidence bears out, for these weights, this policy and this runtime and
    precision; the data it was earned on are named in it, and the drift monitor watches whether inputs are
    still like them.
    """
    digests = certificate.get("digests")
    if certificate.get("certified") is not True:
        return "it was refused"
    if not isinstance(digests, dict):
        return "it does not say what it speaks of"
    now = {"runtime": runtime, "model": model, "policy": policy_digest(table)}
    for name, value in now.items():
        if digests.get(name) != value:
            detail = f": {value}, earned with {digests.get(name)}" if name == "runtime" else ""
            return f"the {name} is another than it was earned with{detail}"
    first = list(range(1, len(table) + 1))
    if list(exits or first) != certificate.get("exits", first):
        return "it was earned for other exits"
    return _unfounded(certificate)


def _unfounded(certificate: dict[str, Any]) -> str | None:
    """Why a certificate's own evidence does not bear it out, or None."""
    evidence = certificate.get("evidence")
    kind = certificate.get("kind")
    if kind not in ("sequence", "groups") or not isinstance(evidence, dict):
        return "its evidence is missing"
    if not _plausible(evidence, kind):
        return "its evidence is damaged (numbers of images)"
    found: SequenceCertificate | GroupsCertificate
    try:
        if kind == "sequence":
            found = SequenceCertificate.from_dict(evidence)
        else:
            found = GroupsCertificate.from_dict(evidence)
    except (CertificateError, MemoryError, OverflowError) as error:
        return f"its evidence is damaged ({error})"
    if (
        not found.certified
        or found.drop != certificate.get("drop")
        or found.delta != certificate.get("delta")
    ):
        return "it claims more than its evidence gives"
    return None


def _plausible(evidence: dict[str, Any], kind: str) -> bool:
    """Whether numbers of images are such that working the tests out again takes seconds at most."""
    parts = evidence.get("tested" if kind == "sequence" else "groups")
    if not isinstance(parts, list) or len(parts) > MOST_PARTS:
        return False
    counts = [part.get("n") if isinstance(part, dict) else None for part in parts]
    for part in parts:
        inner = part.get("certificate") if isinstance(part, dict) else None
        counts += [inner.get("n")] if isinstance(inner, dict) else []
    return all(isinstance(n, int) and 0 <= n <= MOST_IMAGES for n in counts)
