"""Which relaxation `depth_reg` is best built on, and whether it beats a tuned joint objective.

    python benchmarks/depth_reg.py trial NAME --data cifar10.npz --into TRIALS [--seed 0] [--epochs 12]
    python benchmarks/depth_reg.py record TRIALS

A trial trains the shared small network (configs/cifar10_small.yaml) on a shorter schedule. It writes its
history, and accuracy against mean MACs of two families of policies, fitted on the calibration split,
on the test split and on the development images (selection and certification, which neither training nor
policies use). Trials are ranked on the development images alone. `record` gathers them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import relaxations  # noqa: F401  (registers the candidates)
from safetensors.numpy import save_file

import odn_hybrid as odn
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.rundir import environment
from odn_hybrid.stopping import curve, policy_path

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"
POLICIES = ("snell", "confidence")


def relaxed(kind: str, **args: Any) -> dict[str, Any]:
    """A trial of one candidate."""
    return {"objective.name": "relaxation", "objective.args": {"kind": kind, **args}}


#: Name -> changes to the recipe. Joint and the candidates get equally many.
TRIALS: dict[str, dict[str, Any]] = {
    # the joint objective: its weights, then its schedule
    "joint_equal": relaxed("power", deepest=0.0),
    "joint_deepest": relaxed("power", deepest=0.4),
    "joint_cost": relaxed("power", power=1.0, deepest=0.0),
    "joint_cost_deepest": relaxed("power", power=1.0, deepest=0.3),
    "joint_cost2": relaxed("power", power=2.0, deepest=0.0),
    "joint_deepest_most": relaxed("power", deepest=0.7),
    "joint_cost2_fast": {**relaxed("power", power=2.0, deepest=0.3), "optim.lr": 0.2},
    "joint_cost2_slow": {**relaxed("power", power=2.0, deepest=0.3), "optim.lr": 0.05},
    # population weights
    "gates": {"objective.name": "gates"},
    "snell": relaxed("snell"),
    "snell_more": relaxed("snell", halting=0.6),
    "joint_decoupled": relaxed("power", deepest=0.4, decouple=True),
    "snell_decoupled": relaxed("snell", halting=0.6, decouple=True),
    "snell_cheap": relaxed("snell", lam=0.03, halting=0.6),
    "snell_dear": relaxed("snell", lam=0.3, halting=0.6),
    "snell_cost": relaxed("snell", halting=0.5, deepest=0.2, power=1.0),
    "confidence": relaxed("confidence"),
    # per input
    "hindsight": relaxed("hindsight", lam=0.3),
    "own": relaxed("own"),
    "hinge": relaxed("hinge", lam=0.1),
    # with self-distillation
    "joint_distilled": relaxed("power", deepest=0.4, distill=0.5),
    "snell_distilled": relaxed("snell", halting=0.5, deepest=0.2, distill=0.5),
}


def schedule(epochs: int) -> dict[str, Any]:
    """One epoch of warm-up, then as many at the full rate as fall to zero."""
    return {"expansion.max_looks": epochs, "expansion.settle_patience": epochs, "expansion.cooldown": 1.0}


def trial(name: str, data: str, seed: int, epochs: int, into: Path) -> None:
    """Train one candidate and write what it came to."""
    changes = {**schedule(epochs), **TRIALS[name], "seed": seed}
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
        "environment": environment(),
        "macs": cost,
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
    args = parser.parse_args()
    trial(args.name, args.data, args.seed, args.epochs, args.into)


if __name__ == "__main__":
    main()
