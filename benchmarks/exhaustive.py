"""One fit of all depths against every depth trained alone, on the shared small network.

    python benchmarks/exhaustive.py alone DEPTH --data cifar10.npz --into RUNS [--seed 0] [--epochs 12]
    python benchmarks/depth_reg.py trial NAME --data cifar10.npz --into TRIALS [--seed 0] [--epochs 12]
    python benchmarks/exhaustive.py record --into RUNS --trials TRIALS NAME...

A depth alone is the network up to there with that exit's head, trained from scratch by cross-entropy with the
same schedule, optimizer, augmentation and splits as the fits, which are trials of depth_reg.py. These may
have another learning rate, and so may a depth alone (--lr): of several runs of one depth the record takes
the best on the selection split, and counts the MACs of that one alone. The exhaustive search then takes the
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

from odn_hybrid.config import load_recipe, replace_fields, to_dict
from odn_hybrid.data import load_data
from odn_hybrid.outputs import ExitRecord, record_outputs
from odn_hybrid.rundir import environment
from odn_hybrid.stopping import choose_depth, wilson

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"


def alone(depth: int, data: str, seed: int, epochs: int, lr: float | None) -> dict[str, Any]:
    """One depth by itself, and what it gets right."""
    changes = {**short_schedule(epochs), "seed": seed, "objective.name": "cross_entropy"}
    if lr is not None:
        changes["optim.lr"] = lr
    config, loaded = replace_fields(load_recipe(RECIPE), changes), load_data(data, seed=seed)
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


def say(row: dict[str, Any]) -> None:
    """One line an epoch."""
    print(row["epoch"], row["loss"], row["selection"], flush=True)


def keep(found: dict[str, Any], stem: str, args: argparse.Namespace) -> None:
    """Write what a part came to: figures, history, right and wrong on selection and test."""
    args.into.mkdir(parents=True, exist_ok=True)
    right = {split: np.ascontiguousarray(rows, dtype=np.uint8) for split, rows in found.pop("right").items()}
    save_file(right, args.into / f"{stem}.safetensors")
    figures = {"seed": args.seed, "epochs": args.epochs, "commit": commit(), "environment": environment()}
    (args.into / f"{stem}.json").write_text(json.dumps({**figures, **found}))


# --- the record -------------------------------------------------------------------------------------


Part = tuple[dict[str, Any], dict[str, np.ndarray]]


def read(stem: Path) -> Part:
    """A part's figures, and which images of selection and test it gets right."""
    # not with_suffix: a rate in a name may hold a dot
    figures = json.loads(stem.with_name(f"{stem.name}.json").read_text())
    arrays = load_file(stem.with_name(f"{stem.name}.safetensors"))
    if "test.logits" in arrays:  # a trial
        arrays = {
            split: record_of(arrays[f"{split}.logits"], arrays[f"{split}.labels"])
            for split in ("selection", "test")
        }
    return figures, {split: rows.astype(bool) for split, rows in arrays.items()}


def record_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each exit answers each image rightly, (n, exits)."""
    return ExitRecord(logits, labels, "").correct


def best_of_each(runs: list[Part]) -> list[Part]:
    """From the shallowest depth: of each the run that is best on the selection split."""
    depths = sorted({figures["units"] for figures, _ in runs})
    return [
        max((run for run in runs if run[0]["units"] == depth), key=lambda run: run[1]["selection"].mean())
        for depth in depths
    ]


def compare(by_itself: list[Part], fit: Part, tolerance: float, delta: float) -> dict[str, Any]:
    """The search over depths trained alone, and one fit."""
    figures, together = fit
    depths = [part["units"] for part, _ in by_itself]
    selection = np.stack([right["selection"] for _, right in by_itself], axis=1)
    everything = np.ones(len(depths), dtype=bool)
    best = choose_depth(selection, len(depths), everything, tolerance, delta)
    macs = sum(part["search"]["train_macs"] for part, _ in by_itself)
    rows = [
        {
            "units": depth,
            "alone": accuracy(right["test"]),
            "joint": accuracy(together["test"][:, k]),
            "joint_less_alone": paired(together["test"][:, k], right["test"]),
        }
        for k, (depth, (_, right)) in enumerate(zip(depths, by_itself, strict=True))
    ]
    picked = depths.index(figures["static"]["units"])
    return {
        "name": figures["name"],
        "seed": figures["changes"]["seed"],
        "exhaustive": {"units": depths[best.exit - 1], "reason": best.reason, "train_macs": macs},
        "ours": {
            "units": figures["static"]["units"],
            "reason": figures["static"]["reason"],
            "train_macs": figures["search"]["train_macs"],
            # what was picked, against what the exhaustive search would have delivered
            "less_than_exhaustive": paired(together["test"][:, picked], by_itself[best.exit - 1][1]["test"]),
        },
        "macs_ratio": figures["search"]["train_macs"] / macs,
        "exits": rows,
        "fit": {key: value for key, value in figures.items() if key != "curves"},
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
    """Train a depth alone, or write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("alone")
    one.add_argument("depth", type=int)
    one.add_argument("--data", required=True, help="the .npz")
    one.add_argument("--lr", type=float, help="learning rate, if not the recipe's")
    record = verbs.add_parser("record")
    record.add_argument("names", nargs="+", help="trials of depth_reg.py")
    record.add_argument("--trials", type=Path, required=True, help="their folder")
    for verb in (one, record):
        verb.add_argument("--into", type=Path, required=True, help="folder of the depths alone")
        verb.add_argument("--seed", type=int, default=0)
        verb.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    kind = f"{args.epochs}-{args.seed}"
    if args.verb == "alone":
        rate = "" if args.lr is None else f"-lr{args.lr:g}"
        found = alone(args.depth, args.data, args.seed, args.epochs, args.lr)
        keep(found, f"alone{args.depth}{rate}-{kind}", args)
        return
    choice = load_recipe(RECIPE).choice
    runs = [
        read(path.parent / path.name.removesuffix(".json")) for path in args.into.glob(f"alone*-{kind}.json")
    ]
    by_itself = best_of_each(runs)
    fits = [
        compare(by_itself, read(args.trials / f"{name}-{kind}"), choice.tolerance, choice.delta)
        for name in args.names
    ]
    claim = "one fit finds the depth of an exhaustive search for at most a quarter of its MACs"
    data = {"epochs": args.epochs, "fits": fits, "alone": [figures for figures, _ in runs]}
    print(write_record("exhaustive_cifar10", claim, data))


if __name__ == "__main__":
    main()
