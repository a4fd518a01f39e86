"""What a fit comes to: table of exits, static choice and dynamic model, as `report.json` holds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from odn_hybrid.config import FitConfig
from odn_hybrid.cost import Costs, size_of
from odn_hybrid.data import Data
from odn_hybrid.deploy.halting import NO_HALTING
from odn_hybrid.deploy.promising.curves import calibration_figures, policy_curves
from odn_hybrid.deploy.promising.dynamic import Looks, evaluate_policy, make_dynamic, uncertified_policy
from odn_hybrid.deploy.promising.promise import promise_of
from odn_hybrid.deploy.truncation.choice import static_choice
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.rundir import SCHEMA, environment
from odn_hybrid.stopping import wilson
from odn_hybrid.training.procedure.progress import Progress
from odn_hybrid.training.procedure.rules import one_exit_only

__all__ = ["conclude"]


def conclude(
    network: MultiExit,
    config: FitConfig,
    data: Data,
    costs: Costs,
    progress: Progress,
    records: dict[str, ExitRecord],
    *,
    name: str,
    seed: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`report.json` and `policy.json` of a finished fit, from the recorded outputs.

    Args:
        progress: where training ended; its `current` exit is the reference.
        records: outputs of exits 1..reference on selection, calibration, certification and test. The static
            depth is chosen on selection, the policy on calibration; test gives figures only.
        name: what the report calls the model.
        seed: the other run that the search started from, see `training.procedure.seeding.Seed`.
    """
    reference = progress.current
    only = one_exit_only(config)
    trained = [k == reference if only else k <= reference for k in range(1, len(network) + 1)]
    look = progress.looks + 1  # tests that steered the training have spent their part of delta
    static = static_choice(network, config.choice, costs, records["selection"], reference, trained, look)
    missing = _no_dynamic(network, reference, trained)
    dynamic, policy = (
        _dynamic(network, config, costs, reference, records)
        if missing is None
        else (None, _no_policy(missing))
    )
    report = {
        "schema": SCHEMA,
        "model": name,
        "data": data.describe(),
        "reference": {
            "exit": reference,
            "units": network.units[reference - 1],
            "full": reference == len(network),
            "chance": _largest_share(records["selection"]),
        },
        "exits": [_exit_row(k, network, costs, trained[k - 1], records) for k in range(1, len(network) + 1)],
        "static": {**static, "units": network.units[static["exit"] - 1]},
        "dynamic": dynamic,
        "no_dynamic": missing,
        "calibration": None if missing else calibration_figures(records["calibration"], records["test"]),
        "curves": None
        if missing
        else policy_curves(
            records["calibration"],
            records["test"],
            costs.cumulative[:reference],
            recall=config.dynamic.recall,
            scaling=config.dynamic.scaling,
        ),
        "comparison": None,
        "search": {
            "epochs": progress.epoch,
            "train_macs": progress.train_macs,
            "seconds": round(progress.seconds, 3),
            "by_depth": progress.by_depth,
            "stopped_by": progress.stopped_by or "rule",
            "start_from": seed,
        },
        "environment": environment(),
    }
    made = records["selection"]
    return report, {**policy, "runtime": made.runtime, "recorded_with": made.model}


def _dynamic(
    network: MultiExit,
    config: FitConfig,
    costs: Costs,
    reference: int,
    records: dict[str, ExitRecord],
) -> tuple[dict[str, Any], dict[str, Any]]:
    promise = promise_of(config.dynamic)
    made = make_dynamic(
        network,
        promise,
        reference=reference,
        costs=costs.cumulative,
        calibration=records["calibration"],
        certification=records["certification"],
        ledger=[],
    )
    certified = made.certificate["certified"]
    # Without a promise to keep there is no reason to halt as late as the promise would have needed.
    in_force = (
        made.policy
        if certified
        else uncertified_policy(promise, records["calibration"], Looks.all_of(costs.cumulative, reference))
    )
    seen = evaluate_policy(in_force, records["selection"], costs.cumulative)
    tested = evaluate_policy(in_force, records["test"], costs.cumulative)
    dynamic = {
        "policy": in_force.to_dict(),
        "accuracy": {
            "selection": _accuracy(seen["correct"], seen["n"]),
            "test": _accuracy(tested["correct"], tested["n"]),
        },
        "mean_macs": tested["mean_macs"],
        **_size_upto(network, costs, reference),
        "mean_units": float(np.asarray(network.units)[tested["taken"] - 1].mean()),
        "halting": tested["halting"],
        "certificate": made.certificate if certified else None,
        "refusal": None if certified else made.certificate["statement"],
    }
    policy = {
        "schema": SCHEMA,
        "policy": in_force.to_dict(),
        "continuation_values": None,
        "certificate": made.certificate,
        "reference": reference,
        "ledger": made.ledger,
    }
    return dynamic, policy


def _no_dynamic(network: MultiExit, reference: int, trained: list[bool]) -> str | None:
    """Why inputs cannot halt; None where they can."""
    if not network.shares_prefix:
        return NO_HALTING
    if reference == 1:
        return "one exit only"
    return None if all(trained[:reference]) else "the objective trains one exit only"


def _no_policy(why: str) -> dict[str, Any]:
    return {"schema": SCHEMA, "policy": None, "reason": f"no dynamic halting: {why}", "ledger": []}


def _size_upto(network: MultiExit, costs: Costs, reference: int) -> dict[str, int]:
    """Parameters and bytes of a dynamic model: the reference's static model and every head before it."""
    params, size = costs.params[reference - 1], costs.bytes[reference - 1]
    more, extra = size_of(list(network.heads[: reference - 1]))
    return {"params": params + more, "bytes": size + extra}


def _exit_row(
    k: int, network: MultiExit, costs: Costs, trained: bool, records: dict[str, ExitRecord]
) -> dict[str, Any]:
    def accuracy(name: str) -> dict[str, Any] | None:
        if not trained:
            return None  # and not even recorded, where it is deeper than the reference
        right = records[name].correct[:, k - 1]
        return _accuracy(int(right.sum()), len(right))

    plan = network.plans[k - 1]
    return {
        "exit": k,
        "units": plan.units,
        "plan": plan.kind,
        "keep": list(plan.keep),
        "trained": trained,
        "macs_static": costs.static(k),
        "macs_dynamic": costs.dynamic(k),
        "macs_joint": costs.joint(k),
        "params": costs.params[k - 1],
        "bytes": costs.bytes[k - 1],
        "accuracy": {"selection": accuracy("selection"), "test": accuracy("test")},
    }


def _largest_share(record: ExitRecord) -> float:
    """Accuracy of always answering the most frequent class."""
    return float(np.bincount(record.labels).max() / len(record.labels))


def _accuracy(correct: int, n: int) -> dict[str, Any]:
    low, high = wilson(correct, n)
    return {"value": correct / n, "n": n, "low": float(low), "high": float(high)}
