"""One published row by this library: fit a recipe within a time limit and record accuracy and bytes.

    python benchmarks/training_row.py fashion_resnet34 --data fashion_mnist.npz --minutes 6 --device cuda
    python benchmarks/training_row.py cifar10_resnet50 --data cifar10.npz --minutes 7 --device cuda

The time limit bounds the training; the record has the wall time of the whole fit, which may be 8 minutes at
most. The static choice is the recipe's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from record import write_record

import odn_hybrid as odn

ROOT = Path(__file__).parent.parent
WALL = 8 * 60.0  # seconds of the whole fit
#: Published accuracy, and half the published bytes (Optimally Deep Networks, arXiv 2510.10764).
TARGETS = {"fashion_resnet34": (0.9354, 4.18e6), "cifar10_resnet50": (0.9335, 12.6e6)}


def main() -> None:
    """Fit and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=TARGETS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=NUMBER")
    args = parser.parse_args()
    more = {
        name: float(value) if "." in value else int(value)
        for name, value in (s.split("=") for s in args.settings)
    }
    begun = time.perf_counter()
    run = odn.fit(
        ROOT / "configs" / f"{args.recipe}.yaml",
        args.data,
        seed=args.seed,
        device=args.device,
        overrides={"expansion.max_minutes": args.minutes, "data.workers": 8, **more},
        listener=lambda row: print(row["epoch"], row["loss"], flush=True),
    )
    wall = time.perf_counter() - begun
    kept = next(row for row in run.exits_ if row["exit"] == run.depth_["exit"])
    accuracy, size = TARGETS[args.recipe]
    met = kept["accuracy"]["test"]["value"] >= accuracy and kept["bytes"] <= size and wall <= WALL
    data = {
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "target": {"accuracy": accuracy, "bytes": size},
        "met": met,
        "wall_seconds": round(wall, 1),
        "static": run.depth_,
        "kept": kept,
        "exits": run.exits_,
        "search": run.report_["search"],
        "recipe": run.parts.config["recipe"],
        "history": run.history_,
    }
    claim = f"{args.recipe}: at least {accuracy:.2%} in at most {size / 1e6:g} MB"
    print(write_record(f"training_{args.recipe}_{args.device.split(':')[0]}", claim, data))


if __name__ == "__main__":
    main()
