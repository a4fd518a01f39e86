"""MNIST with the paper's ResNet-18: depth, accuracy, bytes and training MACs against the published run.

    python benchmarks/mnist_resnet18.py --data ../shared/data/mnist.npz --seeds 0,1,2

Each seed is one `odn fit configs/mnist_resnet18.yaml`. The test split is evaluated once per fit, at its end,
for every trained exit; all those values are in the record.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
from record import write_record

import odn_hybrid as odn
from odn_hybrid.backbone import with_small_stem
from odn_hybrid.config import ExitConfig

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "mnist_resnet18.yaml"
PAPER = {
    "source": "arXiv 2510.10764, table of results and the training logs in the authors' repository",
    "test_accuracy": 0.9931,
    "bytes": 610_000,
    "units": 2,
    "epochs": {"warmup_all_depths": 3, "depth_1": 82, "depth_2": 80},
    "train_images": 50_000,
}


def published_macs() -> float:
    """Training MACs of the published run: 3 x forward x images, its linear heads, epochs as logged."""
    backbone = with_small_stem(timm.create_model("resnet18", num_classes=10, in_chans=1))
    costs = odn.count_costs(odn.MultiExit(odn.Trunk(backbone, image_size=28), ExitConfig(head="linear")))
    epochs = PAPER["epochs"]
    forward = epochs["warmup_all_depths"] * costs.dynamic(8)
    forward += epochs["depth_1"] * costs.static(1) + epochs["depth_2"] * costs.static(2)
    return 3.0 * forward * PAPER["train_images"]


def one_seed(data: str, seed: int, folder: Path) -> dict[str, Any]:
    """Fit with one seed; its figures, and the wall time of the whole fit."""
    out, begun = folder / f"seed{seed}", time.perf_counter()
    run = odn.fit(RECIPE, data, seed=seed, out=out, listener=lambda row: print(row, flush=True))
    return {**figures(run), "wall_seconds": round(time.perf_counter() - begun, 1)}


def figures(run: odn.Run) -> dict[str, Any]:
    """What the record keeps of a run: the figures and the whole history."""
    report = run.report_
    kept = next(row for row in report["exits"] if row["exit"] == report["static"]["exit"])
    return {
        "seed": run.parts.config["recipe"]["seed"],
        "static": report["static"],
        "test_accuracy": kept["accuracy"]["test"],
        "selection_accuracy": kept["accuracy"]["selection"],
        "bytes": kept["bytes"],
        "params": kept["params"],
        "macs": kept["macs_static"],
        "search": report["search"],
        "evaluations_on_test": [
            {"exit": row["exit"], "accuracy": row["accuracy"]["test"]}
            for row in report["exits"]
            if row["trained"]
        ],
        "splits": report["data"],
        "history": run.history_,
    }


def main() -> None:
    """Run the seeds and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the .npz, unless --runs")
    parser.add_argument("--runs", nargs="+", help="record finished runs of the recipe instead of fitting")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--name", default="mnist_resnet18")
    parser.add_argument("--out", help="keep the run directories here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds, out = args.seeds.split(","), Path(args.out or folder)
        runs = [figures(odn.load(path)) for path in args.runs or ()]
        runs = runs or [one_seed(args.data, int(seed), out) for seed in seeds]
    published = published_macs()
    accuracies = [run["test_accuracy"]["value"] for run in runs]
    summary = {
        "mean_test_accuracy": statistics.mean(accuracies),
        "test_accuracy_by_seed": accuracies,
        "largest_bytes": max(run["bytes"] for run in runs),
        "units_by_seed": [run["static"]["units"] for run in runs],
        "train_macs_over_published": [run["search"]["train_macs"] / published for run in runs],
        "minutes": [run.get("wall_seconds", run["search"]["seconds"]) / 60 for run in runs],
    }
    claim = "the paper's accuracy on MNIST at no more bytes, for at most a tenth of its training MACs"
    path = write_record(
        args.name,
        claim,
        {
            "recipe": RECIPE.read_text(),
            "paper": {**PAPER, "train_macs": published},
            "summary": summary,
            "runs": runs,
        },
    )
    print(path, summary)


if __name__ == "__main__":
    main()
