"""Which dynamic model of a run is compared, and what is known of it from recorded outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from odn_hybrid.cost import Costs
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.stopping import Member, wilson

__all__ = ["model_in_force", "told_of"]


def model_in_force(
    network: MultiExit, policy: dict[str, Any], report: dict[str, Any], execution: Execution
) -> HaltingModel | None:
    """The fit's own dynamic model; another that was certified since, where its certificate is void here.

    Certificates speak of one device and precision: the latest in the ledger that does is taken. Where none
    does it is the fit's own, and not certified. None where the run has no dynamic model.

    Args:
        network: folded, if `execution` says so.
        policy: what `policy.json` holds, with the whole ledger.
        report: the fit's.
    """
    if policy["policy"] is None:
        return None
    own = {"policy": policy["policy"], "certificate": (report["dynamic"] or {}).get("certificate")}
    for entry in (own, *reversed(policy["ledger"])):
        if entry["certificate"] is not None and entry["certificate"].get("certified"):
            model = _model(network, entry, execution)
            if model.void is None:
                return model
    return _model(network, own, execution)


def _model(network: MultiExit, entry: dict[str, Any], execution: Execution) -> HaltingModel:
    return HaltingModel(
        network,
        Member.from_dict(entry["policy"]).table,
        exits=entry.get("exits"),
        certificate=entry["certificate"],
        execution=execution,
    )


def told_of(
    model: HaltingModel,
    report: dict[str, Any],
    record: Callable[[str], ExitRecord],
    costs: Costs,
) -> dict[str, Any]:
    """What a report says of its dynamic model, of this one: accuracy, mean MACs, parameters, bytes, halting.

    Args:
        record: recorded outputs of a split by name.
        costs: of the network.
    """
    if model.policy.to_dict() == report["dynamic"]["policy"].get("table"):
        return dict(report["dynamic"])
    found: dict[str, Any] = {"accuracy": {}}
    exits = np.asarray(model.exits)
    for name in ("selection", "test"):
        seen = record(name)
        taken, answered = model.policy.decide(seen.logits[:, exits - 1])
        right = int(seen.correct[np.arange(len(taken)), exits[answered - 1] - 1].sum())
        low, high = wilson(right, len(taken))
        found["accuracy"][name] = {
            "value": right / len(taken), "n": len(taken), "low": float(low), "high": float(high),
        }  # fmt: skip
    found["mean_macs"] = float(np.asarray(costs.passing(model.exits))[taken - 1].mean())
    size = {key: report["dynamic"].get(key) for key in ("params", "bytes")}
    return {**found, **size}
