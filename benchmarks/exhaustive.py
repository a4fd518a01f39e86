"""One fit of all depths against every depth trained alone, on the shared small network.

    python benchmarks/exhaustive.py alone DEPTH --data cifar10.npz --into RUNS [--seeds 0] [--epochs 12]
    python benchmarks/exhaustive.py joint --data cifar10.npz --into RUNS [--seeds 0] [--epochs 12]
    python benchmarks/exhaustive.py record --into RUNS [--seeds 0]

A depth alone is the network up to there with that exit's head, trained from scratch by cross-entropy with the
same schedule, optimizer, augmentation and splits as the fit. The exhaustive search then takes the
shallowest depth that is non-inferior to the deepest on the selection split, by the same test as the fit does.
Both have the same epochs, so the ratio of MACs says what sharing one network saves, whatever is learnt; what
is measured is the depth that is picked and the accuracy at each depth.
Parts are run one by one, so that they can be spread over processes and days.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from alone import train_alone
from record import commit, write_record
from safetensors.numpy import load_file, save_file
from schedules import short_schedule

import odn_hybrid as odn
from odn_hybrid.config import load_recipe, replace_fields, to_dict
from odn_hybrid.data import load_data
from odn_hybrid.outputs import record_outputs
from odn_hybrid.rundir import environment
from odn_hybrid.stopping import choose_depth, wilson

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"


def alone(depth: int, data: str, seed: int, epochs: int) -> dict[str, Any]:
    """One depth by itself, and what it gets right."""
    config = replace_fields(
        load_recipe(RECIPE), {**short_schedule(epochs), "seed": seed, "objective.name": "cross_entropy"}
    )
    loaded = load_data(data, seed=seed)
    found = train_alone(config, loaded, depth, listener=say)
    records = {
        name: record_outputs(found.network, loaded.splits[name], found.preprocess, upto=found.exit)
        for name in ("selection", "test")
    }
    images = sum(row["images"] for row in found.history)
    macs = 3.0 * found.costs.static(found.exit) * images
    return {
        "right": {name: record.correct[:, -1] for name, record in records.items()},
        "units": depth,
        "search": {"train_macs": macs, "epochs": len(found.history)},
        "recipe": to_dict(config),
        "history": found.history,
    }


def train_joint(data: str, seed: int, epochs: int) -> dict[str, Any]:
    """The fit: all depths at once, the recipe's objective."""
    run = odn.fit(RECIPE, data, overrides={**short_schedule(epochs), "seed": seed}, listener=say)
    return {
        "right": {split: run.parts.records[split].correct for split in ("selection", "test")},
        "units": [row["units"] for row in run.exits_],
        "static": run.report_["static"],
        "search": run.report_["search"],
        "recipe": run.parts.config["recipe"],
        "history": run.history_,
    }


def say(row: dict[str, Any]) -> None:
    """One line an epoch."""
    print(row["epoch"], row["loss"], row["selection"], flush=True)


def keep(found: dict[str, Any], name: str, seed: int, epochs: int, into: Path) -> None:
    """Write what a part came to: figures, history, right and wrong on selection and test."""
    into.mkdir(parents=True, exist_ok=True)
    stem = into / f"{name}-{epochs}-{seed}"
    right = {split: np.ascontiguousarray(rows, dtype=np.uint8) for split, rows in found.pop("right").items()}
    save_file(right, stem.with_suffix(".safetensors"))
    figures = {
        "name": name,
        "seed": seed,
        "epochs": epochs,
        "commit": commit(),
        "environment": environment(),
        **found,
    }
    stem.with_suffix(".json").write_text(json.dumps(figures))


# --- the record -------------------------------------------------------------------------------------


def compare(into: Path, seed: int, epochs: int, tolerance: float, delta: float) -> dict[str, Any]:
    """Both searches of one seed."""

    def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        stem = into / f"{name}-{epochs}-{seed}"
        return json.loads(stem.with_suffix(".json").read_text()), load_file(stem.with_suffix(".safetensors"))

    joint, together = read("joint")
    depths = joint["units"]
    by_itself = [read(f"alone{depth}") for depth in depths]
    selection = np.stack([right["selection"] for _, right in by_itself], axis=1).astype(bool)
    everything = np.ones(len(depths), dtype=bool)
    best = choose_depth(selection, len(depths), everything, tolerance, delta)
    macs = sum(figures["search"]["train_macs"] for figures, _ in by_itself)
    rows = [
        {
            "units": depth,
            "alone": accuracy(right["test"]),
            "joint": accuracy(together["test"][:, k]),
            "joint_less_alone": paired(together["test"][:, k], right["test"]),
        }
        for k, (depth, (_, right)) in enumerate(zip(depths, by_itself, strict=True))
    ]
    return {
        "seed": seed,
        "exhaustive": {"units": depths[best.exit - 1], "reason": best.reason, "train_macs": macs},
        "ours": {
            "units": joint["static"]["units"],
            "reason": joint["static"]["reason"],
            "train_macs": joint["search"]["train_macs"],
        },
        "macs_ratio": joint["search"]["train_macs"] / macs,
        "exits": rows,
        "runs": [joint, *(figures for figures, _ in by_itself)],
    }


def accuracy(right: np.ndarray) -> dict[str, float]:
    """Accuracy with Wilson's 95 % interval."""
    low, high = wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()), "n": len(right), "low": float(low), "high": float(high)}


def paired(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Mean difference on the same images, with its standard error."""
    apart = one.astype(float) - other.astype(float)
    return {"value": float(apart.mean()), "standard_error": float(apart.std(ddof=1) / len(apart) ** 0.5)}


def main() -> None:
    """Run a part, or write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("alone", "joint", "record"))
    parser.add_argument("depth", type=int, nargs="?", help="for `alone`")
    parser.add_argument("--data", help="the .npz")
    parser.add_argument("--into", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if args.part == "record":
        config = load_recipe(RECIPE).choice
        found = [compare(args.into, seed, args.epochs, config.tolerance, config.delta) for seed in seeds]
        claim = "one fit finds the depth of an exhaustive search for at most a quarter of its MACs"
        print(write_record("exhaustive_cifar10", claim, {"epochs": args.epochs, "seeds": found}))
        return
    for seed in seeds:
        if args.part == "joint":
            keep(train_joint(args.data, seed, args.epochs), "joint", seed, args.epochs, args.into)
        else:
            found = alone(args.depth, args.data, seed, args.epochs)
            keep(found, f"alone{args.depth}", seed, args.epochs, args.into)


if __name__ == "__main__":
    main()
