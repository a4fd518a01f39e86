"""Which relaxation `depth_reg` is best built on, and whether it beats a tuned joint objective.

    python benchmarks/depth_reg.py trial NAME --data cifar10.npz --into TRIALS [--seed 0] [--epochs 12]
    python benchmarks/depth_reg.py record TRIALS

A trial trains the shared small network (configs/cifar10_small.yaml) on a shorter schedule. It writes its
history, and accuracy against mean MACs of two families of policies, fitted on the calibration split,
on the test split and on the development images (selection and certification, which neither training nor
policies use). Trials are ranked on the development images alone. `record` adds them to the record.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import relaxations  # noqa: F401  (registers the candidates)
from halting_policies import hull_at
from record import commit, gathered, write_record
from safetensors.numpy import save_file
from schedules import short_schedule

import odn_hybrid as odn
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.rundir import environment
from odn_hybrid.stopping import curve, policy_path

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"
POLICIES = ("snell", "confidence")
RECORD = "depth_reg_trials"


def relaxed(kind: str, **args: Any) -> dict[str, Any]:
    """A trial of one candidate."""
    return {"objective.name": "relaxation", "objective.args": {"kind": kind, **args}}


HEADS = {"exits.head": "decoupled"}
#: Name -> changes to the recipe. Who compares two sides takes as many trials of both.
TRIALS: dict[str, dict[str, Any]] = {
    # the joint objective: its weights, then its schedule
    "joint_equal": relaxed("power", deepest=0.0),
    "joint_deepest": relaxed("power", deepest=0.4),
    "joint_cost": relaxed("power", power=1.0, deepest=0.0),
    "joint_cost_deepest": relaxed("power", power=1.0, deepest=0.3),
    "joint_cost2": relaxed("power", power=2.0, deepest=0.0),
    "joint_deepest_half": relaxed("power", deepest=0.55),
    "joint_deepest_most": relaxed("power", deepest=0.7),
    "joint_deepest_nearly": relaxed("power", deepest=0.85),
    "joint_most_cost": relaxed("power", power=1.0, deepest=0.6),
    "joint_most_fast": {**relaxed("power", deepest=0.7), "optim.lr": 0.2},
    "joint_most_slow": {**relaxed("power", deepest=0.7), "optim.lr": 0.05},
    "joint_most_heads": {**relaxed("power", deepest=0.7, decoupled=True), **HEADS},
    "joint_cost2_fast": {**relaxed("power", power=2.0, deepest=0.3), "optim.lr": 0.2},
    "joint_cost2_slow": {**relaxed("power", power=2.0, deepest=0.3), "optim.lr": 0.05},
    "joint_cost2_faster": {**relaxed("power", power=2.0, deepest=0.3), "optim.lr": 0.4},
    "joint_cost_fast": {**relaxed("power", power=1.0, deepest=0.3), "optim.lr": 0.2},
    "joint_cost_heads_fast": {
        **relaxed("power", power=1.0, deepest=0.3, decoupled=True),
        **HEADS,
        "optim.lr": 0.2,
    },
    "joint_equal_heads_fast": {**relaxed("power", deepest=0.0, decoupled=True), **HEADS, "optim.lr": 0.2},
    # population weights
    "gates": {"objective.name": "gates"},
    "snell": relaxed("snell"),
    "snell_mid": relaxed("snell", halting=0.45),
    "snell_more": relaxed("snell", halting=0.6),
    "snell_fast": {**relaxed("snell"), "optim.lr": 0.2},
    "snell_cost2_fast": {**relaxed("snell", power=2.0), "optim.lr": 0.2},
    "snell_cost2_faster": {**relaxed("snell", power=2.0), "optim.lr": 0.4},
    "snell_heads": {**relaxed("snell", decoupled=True), **HEADS},
    "snell_cost2_heads_fast": {
        **relaxed("snell", power=2.0, decoupled=True),
        **HEADS,
        "optim.lr": 0.2,
    },
    "snell_more_heads": {**relaxed("snell", halting=0.6, decoupled=True), **HEADS},
    "snell_cheap": relaxed("snell", lam=0.03, halting=0.6),
    "snell_dear": relaxed("snell", lam=0.3, halting=0.6),
    "snell_cost": relaxed("snell", halting=0.5, deepest=0.2, power=1.0),
    "confidence": relaxed("confidence"),
    "depth_reg": {"objective.name": "depth_reg"},
    "depth_reg_more": {"objective.name": "depth_reg", "objective.args": {"halting": 0.6}},
    "depth_reg_dear": {"objective.name": "depth_reg", "objective.args": {"halting": 0.6, "lam": 0.3}},
    "depth_reg_distilled": {"objective.name": "depth_reg", "objective.args": {"distill": 0.5}},
    # per input
    "hindsight": relaxed("hindsight", lam=0.3),
    "own": relaxed("own"),
    "own_cost2_fast": {**relaxed("own", power=2.0), "optim.lr": 0.2},
    "hinge": relaxed("hinge", lam=0.1),
    # with self-distillation
    "joint_distilled": relaxed("power", deepest=0.4, distill=0.5),
    "snell_distilled": relaxed("snell", halting=0.5, deepest=0.2, distill=0.5),
}


def trial(name: str, data: str, seed: int, epochs: int, into: Path) -> None:
    """Train one candidate and write what it came to."""
    changes = {**short_schedule(epochs), **TRIALS[name], "seed": seed}
    started = time.monotonic()
    run = odn.fit(
        RECIPE, data, overrides=changes, listener=lambda row: print(row["epoch"], row["loss"], flush=True)
    )
    records = run.parts.records
    cost = [row["macs_dynamic"] for row in run.report_["exits"]]
    development = joined(records["selection"], records["certification"])
    calibration = records["calibration"]
    curves = {}
    for family in POLICIES:
        path = policy_path(family, calibration.logits, calibration.labels, cost)
        curves[family] = {
            "development": curve(path, development.logits, development.labels, cost),
            "test": curve(path, records["test"].logits, records["test"].labels, cost),
        }
    into.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{epochs}-{seed}"
    result = {
        "name": name,
        "changes": changes,
        "seconds": time.monotonic() - started,
        "commit": commit(),
        "environment": environment(),
        "macs": cost,
        "static": run.report_["static"],
        "exits": {split: records[split].correct.mean(0).tolist() for split in ("selection", "test")},
        "development": development.correct.mean(0).tolist(),
        "curves": curves,
        "search": run.report_["search"],
        "history": run.history_,
    }
    arrays = {
        f"{split}.{what}": getattr(records[split], what) for split in records for what in ("logits", "labels")
    }
    save_file(
        {key: np.ascontiguousarray(value) for key, value in arrays.items()}, into / f"{stem}.safetensors"
    )
    (into / f"{stem}.json").write_text(json.dumps(result))


def joined(one: ExitRecord, two: ExitRecord) -> ExitRecord:
    """Two splits as one."""
    return ExitRecord(
        np.concatenate([one.logits, two.logits]),
        np.concatenate([one.labels, two.labels]),
        one.digest + two.digest,
    )


TARGETS = (0.80, 0.82, 0.84, 0.85, 0.86, 0.87, 0.88)  # accuracies at which networks are compared


def gather(folder: Path) -> None:
    """Add the trials in `folder` to the record."""
    new = [without_settings(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    trials = gathered(RECORD, "trials", new, lambda one: (one["name"], len(one["history"]), seed_of(one)))
    summary = [
        {
            "name": trial["name"],
            "epochs": len(trial["history"]),
            "seed": seed_of(trial),
            "best": {split: best(trial, split) for split in ("development", "test")},
            "exits": trial["development"],
            "share_needed": {split: needed(trial, split) for split in ("development", "test")},
        }
        for trial in trials
    ]
    claim = "what networks trained by depth_reg, its candidates and tuned joint objectives need in mean MACs"
    print(write_record(RECORD, claim, {"targets": TARGETS, "summary": summary, "trials": trials}))


def seed_of(trial: dict[str, Any]) -> int:
    """Of splits, weights and batches."""
    return int(trial["changes"]["seed"])


def points(trial: dict[str, Any], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean costs (shares of the whole network's) and accuracies of the Snell policies."""
    cost, accuracy = np.array(trial["curves"]["snell"][split]).T
    return cost, accuracy


def best(trial: dict[str, Any], split: str) -> float:
    """The highest accuracy on the curve."""
    return float(points(trial, split)[1].max())


def needed(trial: dict[str, Any], split: str) -> dict[str, float | None]:
    """Least mean cost on the curve's upper hull for each target accuracy; None where it is not reached."""
    cost, accuracy = points(trial, split)
    grid = np.linspace(0.05, 1, 951)
    reached = hull_at(cost, accuracy, grid)
    found: dict[str, float | None] = {}
    for target in TARGETS:
        enough = grid[np.nan_to_num(reached) >= target]
        found[f"{target:g}"] = float(enough[0]) if len(enough) else None
    return found


def without_settings(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial as it is kept: curves as bare points, the rest whole."""
    curves = {
        family: {
            split: [[row["share"], row["accuracy"]["value"]] for row in rows]
            for split, rows in by_split.items()
        }
        for family, by_split in trial["curves"].items()
    }
    return {**trial, "curves": curves}


def main() -> None:
    """Run a trial, or gather them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("trial")
    one.add_argument("name", choices=TRIALS)
    one.add_argument("--data", required=True)
    one.add_argument("--into", type=Path, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--epochs", type=int, default=12)
    all_of_them = verbs.add_parser("record")
    all_of_them.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.verb == "record":
        gather(args.folder)
        return
    trial(args.name, args.data, args.seed, args.epochs, args.into)


if __name__ == "__main__":
    main()
