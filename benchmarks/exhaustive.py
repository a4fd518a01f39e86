"""One fit of all depths against every depth trained alone, on the shared small network.

    python benchmarks/exhaustive.py alone DEPTH --data cifar10.npz --into RUNS [--seed 0] [--epochs 12]
    python benchmarks/exhaustive.py joint --data cifar10.npz --into RUNS [--seed 0] [--epochs 12]
    python benchmarks/exhaustive.py record RUNS

A depth alone is the network up to there with that exit's head, trained from scratch by cross-entropy with the
same schedule, optimizer, augmentation and splits as the fit. The exhaustive search then takes the
shallowest depth that is non-inferior to the deepest on the selection split, by the same test as the fit does.
Parts are run one by one, so that they can be spread over processes and days.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from record import commit, write_record
from safetensors.numpy import load_file, save_file
from schedules import short_schedule

import odn_hybrid as odn
from odn_hybrid.asking import make_backbone, make_preprocess
from odn_hybrid.config import load_recipe, replace_fields, to_dict
from odn_hybrid.data import load_data
from odn_hybrid.outputs import record_outputs
from odn_hybrid.rundir import environment
from odn_hybrid.stopping import choose_depth, wilson
from odn_hybrid.training import build_objective
from odn_hybrid.training.devices.device import accelerator_on
from odn_hybrid.training.engine import Engine, own_randomness, train_macs_per_image
from odn_hybrid.training.procedure.expansion import Expansion

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"


def train_alone(depth: int, data: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train one depth by itself: the network's first `depth` units and that exit's head, nothing else."""
    config = replace_fields(
        load_recipe(RECIPE), {**short_schedule(epochs), "seed": seed, "objective.name": "cross_entropy"}
    )
    loaded = load_data(data, seed=seed)
    with own_randomness(seed):
        backbone, *_ = make_backbone(config, None, loaded)
        preprocess = make_preprocess(config, backbone, loaded)
        network = odn.MultiExit(odn.Trunk(backbone, image_size=preprocess.size), config.exits)
        exit, costs = network.exit_of(depth), odn.count_costs(network)
        train = loaded.splits["train"]
        rules = Expansion(
            config.expansion,
            config.choice,
            exits=exit,  # there is no deeper one
            steps_per_epoch=len(train) // config.optim.batch_size,
            epoch_macs=[train_macs_per_image(costs, m, alone=True) * len(train) for m in range(1, exit + 1)],
            plain=True,
        )
        engine = Engine(
            network,
            build_objective("cross_entropy", exit),
            rules,
            train=train,
            selection=loaded.splits["selection"],
            preprocess=preprocess,
            config=config,
            costs=costs,
            accelerator=accelerator_on("cpu"),
            listener=say,
        )
        engine.run()
        records = {
            name: record_outputs(network, loaded.splits[name], preprocess, upto=exit)
            for name in ("selection", "test")
        }
    images = sum(row["images"] for row in engine.history)
    return {
        "right": {name: record.correct[:, -1] for name, record in records.items()},
        "units": depth,
        "search": {"train_macs": 3.0 * costs.static(exit) * images, "epochs": len(engine.history)},
        "recipe": to_dict(config),
        "history": engine.history,
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
    alone = [read(f"alone{depth}") for depth in depths]
    selection = np.stack([right["selection"] for _, right in alone], axis=1).astype(bool)
    everything = np.ones(len(depths), dtype=bool)
    best = choose_depth(selection, len(depths), everything, tolerance, delta)
    macs = sum(figures["search"]["train_macs"] for figures, _ in alone)
    rows = [
        {
            "units": depth,
            "alone": accuracy(right["test"]),
            "joint": accuracy(together["test"][:, k]),
            "joint_less_alone": paired(together["test"][:, k], right["test"]),
        }
        for k, (depth, (_, right)) in enumerate(zip(depths, alone, strict=True))
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
        "runs": [joint, *(figures for figures, _ in alone)],
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
            found = train_alone(args.depth, args.data, seed, args.epochs)
            keep(found, f"alone{args.depth}", seed, args.epochs, args.into)


if __name__ == "__main__":
    main()
