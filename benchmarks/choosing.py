"""What the library chooses at each accuracy tolerance, static and dynamic, from a run's recorded outputs.

    python benchmarks/choosing.py                              # the shared small network, from its pack
    python benchmarks/choosing.py --fit --name choosing_digits  # fits the embedded data set first

The page "Static or dynamic?" (docs/choose/) reads these records. Each tolerance is asked for as if it were
the only one: who asks for several of one run spends confidence on each (docs/halting.md). Static depths are
chosen on the selection split, certificates earned on the certification split; the test split gives figures
only.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cifar10_small import unpack
from record import write_record

import odn_hybrid as odn
from odn_hybrid.config import FitConfig, from_dict
from odn_hybrid.deploy.promising.dynamic import evaluate_policy, make_dynamic
from odn_hybrid.deploy.promising.promise import promise_of
from odn_hybrid.report.html.stopping_images import early_and_late
from odn_hybrid.run import Run
from odn_hybrid.stopping import Member, choose_depth, fit_calibration, outcomes, policy_path, wilson

POINTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5)
PICTURES = 12
KEPT = ("model", "data", "reference", "exits", "static", "dynamic", "curves", "search")


def at_tolerance(run: Run, points: float) -> dict[str, Any]:
    """The static choice and the promise for a loss of at most so many points."""
    tolerance, config = points / 100, from_dict(FitConfig, run.parts.config["recipe"])
    records, reference = run.parts.records, run.report_["reference"]["exit"]
    trained = [row["trained"] for row in run.exits_[:reference]]
    chosen = choose_depth(
        records["selection"].correct[:, :reference], reference, trained, tolerance, config.choice.delta
    )
    made = make_dynamic(
        run.network,
        promise_of(config.dynamic, drop=tolerance, policy="snell"),
        reference=reference,
        costs=run.parts.costs.cumulative,
        calibration=records["calibration"],
        certification=records["certification"],
        ledger=[],
    )
    static = {"exit": chosen.exit, "units": run.exits_[chosen.exit - 1]["units"], "reason": chosen.reason}
    return {"points": points, "static": static, "dynamic": halting(run, made.policy, made.certificate)}


def halting(run: Run, policy: Member, certificate: dict[str, Any]) -> dict[str, Any]:
    """What a policy comes to on the test split, if it is certified; else why it is not."""
    told = {"certified": certificate["certified"], "statement": certificate["statement"]}
    if not certificate["certified"]:
        return told
    seen = evaluate_policy(policy, run.parts.records["test"], run.parts.costs.cumulative)
    low, high = wilson(seen["correct"], seen["n"])
    units = np.array([row["units"] for row in run.exits_])
    return {
        **told,
        "policy": certificate["policy"],
        "accuracy": {"value": seen["correct"] / seen["n"], "n": seen["n"], "low": low, "high": high},
        "mean_macs": seen["mean_macs"],
        "mean_units": float(units[seen["taken"] - 1].mean()),
        "halting": seen["halting"],
    }


def shown_policy(run: Run) -> Member:
    """The policy in force; where it stops all images at one exit, a confidence threshold that does not."""
    policy = Member.from_dict(run.report_["dynamic"]["policy"])
    record, costs = run.parts.records["test"], np.asarray(run.parts.costs.cumulative)
    if len(set(outcomes([policy], record.logits[:, : len(policy.table)])[0][0])) > 1:
        return policy
    seen, reference = run.parts.records["calibration"], run.report_["reference"]["exit"]
    scale = fit_calibration(seen.logits, seen.labels, "temperature")
    path = policy_path("confidence", seen.logits, seen.labels, costs[:reference], calibration=scale)
    means = costs[outcomes(path, seen.logits)[0] - 1].mean(axis=1)
    middle = (costs[0] + costs[reference - 1]) / 2
    return path[int(np.abs(means - middle).argmin())]


def stops(run: Run) -> dict[str, Any]:
    """Which test images stop early and late: the first in the split's order, none picked by hand."""
    policy, record = shown_policy(run), run.parts.records["test"]
    (taken,), (answered,) = outcomes([policy], record.logits[:, : len(policy.table)])
    answers = record.logits[np.arange(len(taken)), answered - 1].argmax(1)
    early, late = early_and_late(taken, PICTURES)
    images = run.data.splits["test"].indices if run.data is not None else None

    def told(row: int) -> dict[str, Any]:
        place = {"row": int(row)} if images is None else {"row": int(row), "image": int(images[row])}
        right = {"label": int(record.labels[row]), "answer": int(answers[row])}
        return {**place, "exit": int(taken[row]), **right}

    classes = np.unique(record.labels)
    return {
        "policy": {"family": policy.family, "setting": policy.setting},
        "early": [told(row) for row in early],
        "late": [told(row) for row in late],
        "mean_exit_by_class": [float(taken[record.labels == label].mean()) for label in classes],
        "images_by_class": [int((record.labels == label).sum()) for label in classes],
    }


def main() -> None:
    """Take or make a run, ask at every tolerance, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished run with recorded outputs")
    parser.add_argument("--fit", action="store_true", help="fit the embedded data set")
    parser.add_argument("--name", default="choosing_cifar10_small", help="of the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.fit:
            run: Run = odn.fit()
        else:
            run = odn.load(args.run) if args.run else unpack(Path(folder) / "run")
        asked = [at_tolerance(run, points) for points in POINTS]
        report = {key: run.report_[key] for key in KEPT}
        data = {"report": report, "tolerances": asked, "stops": stops(run), "history": run.history_}
    claim = "the static depth and the certified halting that the library chooses at each accuracy tolerance"
    print(write_record(args.name, claim, data))


if __name__ == "__main__":
    main()
