"""A recipe's network trained by itself, without exits: what halting_speed.py compares a fit of it with.

    python benchmarks/plain_twin.py configs/cifar10_deep.yaml --data cifar10.npz --epochs 30 --into PLAIN

Same splits, seed, schedule, optimizer and augmentation as a fit of the recipe; cross-entropy at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from alone import train_alone
from record import commit
from schedules import short_schedule

import odn_hybrid as odn
from odn_hybrid.config import FitConfig, load_recipe, replace_fields
from odn_hybrid.data import load_data
from odn_hybrid.deploy.truncation.truncate import truncate


def main() -> None:
    """Train, and keep the network as static models are kept, with how it was trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--units", type=int, help="[default: all]")
    args = parser.parse_args()
    config: FitConfig = replace_fields(
        load_recipe(args.recipe),
        {**short_schedule(args.epochs), "objective.name": "cross_entropy", "objective.args": {}},
    )
    data = load_data(args.data, seed=config.seed)
    begun = time.perf_counter()
    found = train_alone(
        config,
        data,
        args.units,
        listener=lambda row: print(row["epoch"], row["loss"], flush=True),
    )
    odn.save(truncate(found.network, found.exit), args.into)
    told = {
        "recipe": str(args.recipe),
        "units": found.network.units[found.exit - 1],
        "epochs": args.epochs,
        "seed": config.seed,
        "commit": commit(),
        "seconds": round(time.perf_counter() - begun),
        "splits": {name: split.digest for name, split in data.splits.items()},
        "history": found.history,
    }
    (args.into / "training.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
