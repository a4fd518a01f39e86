"""Thin networks or prefixes: accuracy against MACs of both on CIFAR-10, and which the default should be.

    python benchmarks/thin.py trial NAME --data cifar10.npz --into TRIALS [--network small] [--seed 0]
    python benchmarks/thin.py record TRIALS

A trial fits the shared small network (configs/cifar10_small.yaml), or a deeper one in which removing units
leaves more of a choice, on a shorter schedule (--epochs) and writes every exit's row and which test images it
gets right. Of thin networks it also says what they would do with statistics of batch normalisation estimated
anew for each of them after training (`recalibrated`). `record` takes on each side the objective that is best
on the selection split and compares, at the MACs of each thin network, test accuracy with that of prefixes,
interpolated between neighbouring exits.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import commit, gathered, write_record

import odn_hybrid as odn
from odn_hybrid.data import make_loader
from odn_hybrid.outputs import record_outputs
from odn_hybrid.run import Run
from odn_hybrid.rundir import environment

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"
Z = 1.96

#: Name -> changes to the recipe; both sides get the same objectives.
TRIALS: dict[str, dict[str, Any]] = {
    "prefix_joint": {"exits.plan": "prefix", "objective.name": "joint"},
    "prefix_distill": {"exits.plan": "prefix", "objective.name": "distill"},
    "thin_joint": {"exits.plan": "thin", "objective.name": "joint"},
    "thin_distill": {"exits.plan": "thin", "objective.name": "distill"},
    # what normalisation of their own is worth
    "thin_shared": {"exits.plan": "thin", "objective.name": "joint", "exits.norms": "shared"},
    "thin_affine": {"exits.plan": "thin", "objective.name": "joint", "exits.norms": "affine"},
}
SIDES = {side: (f"{side}_joint", f"{side}_distill") for side in ("thin", "prefix")}
NETWORKS: dict[str, dict[str, Any]] = {
    "small": {},
    # of much the same MACs, with three removable units in each of four stages
    "deep": {"model.args": {"layers": [4, 4, 4, 4], "channels": [16, 32, 48, 64]}, "exits.every": 2},
    # to try the program out
    "tiny": {"model.args": {"layers": [1, 2, 1, 2], "channels": [8, 8, 16, 16]}, "data.image_size": 16},
}


# --- a trial ----------------------------------------------------------------------------------------


def trial(args: argparse.Namespace) -> None:
    """Fit and write what it came to."""
    schedule = {"max_looks": args.epochs, "settle_patience": args.epochs, "cooldown": 1.0, "start": 99}
    changes = {
        **{f"expansion.{name}": value for name, value in schedule.items()},
        **NETWORKS[args.network],
        **TRIALS[args.name],
        "seed": args.seed,
    }
    started = time.monotonic()
    args.into.mkdir(parents=True, exist_ok=True)
    data = subset(args.data, args.train, args.into) if args.train else args.data
    run = odn.fit(
        RECIPE, data, overrides=changes, listener=lambda row: print(row["epoch"], row["loss"], flush=True)
    )
    correct = run.parts.records["test"].correct
    result = {
        "name": args.name,
        "network": args.network,
        "epochs": args.epochs,
        "seed": args.seed,
        "train_images": args.train,
        "changes": changes,
        "seconds": time.monotonic() - started,
        "commit": commit(),
        "environment": environment(),
        "exits": run.exits_,
        "search": run.report_["search"],
        "bytes_of_all": held_bytes(run),
        "recalibrated": recalibrated(run) if run.network.norms else None,
        "history": run.history_,
        "correct_bits": base64.b64encode(np.packbits(correct, axis=0).tobytes()).decode(),
    }
    stem = f"{args.network}-{args.name}-{args.epochs}-{args.seed}"
    (args.into / f"{stem}.json").write_text(json.dumps(result))
    for row in run.exits_:
        print(row["macs_static"], row["accuracy"]["selection"]["value"], row["accuracy"]["test"]["value"])


def subset(data: str, images: int, into: Path) -> str:
    """The first `images` training images and a fifth as many test images, for trying the program out."""
    held = np.load(data)
    path = into / f"first-{images}.npz"
    part = {name: held[name][: images if name.endswith("train") else images // 5] for name in held.files}
    np.savez(path, **part)
    return str(path)


def held_bytes(run: Run) -> int:
    """fp32 bytes of everything that serves all exits: shared weights, heads, statistics."""
    return sum(
        value.numel() * (4 if value.is_floating_point() else value.element_size())
        for value in run.network.state_dict().values()
    )


def recalibrated(run: Run) -> dict[str, Any]:
    """Accuracy with statistics that are means over a plain pass of the training images, per thin network."""
    network, images = run.network.copy(), 0
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a mean over all batches
    for buffer in network.norms.buffers():
        buffer.zero_()
    network.train()
    assert run.data is not None
    loader = make_loader(run.data.splits["train"], run.transform, batch_size=256, drop_last=True)
    with torch.no_grad():
        for batch, _, _ in loader:
            network(batch)
            images += len(batch)
    found: dict[str, Any] = {"images": images}
    for split in ("selection", "test"):
        found[split] = (
            record_outputs(network.eval(), run.data.splits[split], run.transform).correct.mean(0).tolist()
        )
    return found


# --- the record -------------------------------------------------------------------------------------


def at_equal_macs(thin: dict[str, Any], prefix: dict[str, Any]) -> list[dict[str, float]]:
    """At the MACs of each thin network: by how much it is right more often than prefixes of as many MACs."""
    rows = []
    for row, right in zip(thin["exits"], thin["correct"].T, strict=True):
        like = interpolated(prefix, row["macs_static"])
        if like is not None:
            rows.append({"macs": row["macs_static"], "units": row["units"], **difference(right - like)})
    return rows


def interpolated(trial: dict[str, Any], macs: float) -> NDArray[np.float64] | None:
    """Per test image, the share of right answers at `macs` between two exits; None outside their range."""
    for number, (one, two) in enumerate(pairwise(trial["exits"])):
        low, high = one["macs_static"], two["macs_static"]
        if low <= macs <= high:
            part = (macs - low) / (high - low)
            mixed: NDArray[np.float64] = (1 - part) * trial["correct"][:, number] + part * trial["correct"][
                :, number + 1
            ]
            return mixed
    return None


def difference(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of paired differences with its 95 % interval (normal), and their number."""
    mean, half = float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"difference": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def compared(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Thin against prefix in one network, schedule and seed; of each side the best on the selection split."""
    best = {}
    for side, names in SIDES.items():
        kin = [one for one in trials if one["name"] in names]
        best[side] = max(
            kin, key=lambda one: np.mean([row["accuracy"]["selection"]["value"] for row in one["exits"]])
        )
    thin, prefix = best["thin"], best["prefix"]
    mean = np.mean([thin["correct"][:, k] - like for k, like in shared_range(thin, prefix)], axis=0)
    return {
        **{key: thin[key] for key in ("network", "epochs", "seed")},
        "thin": thin["name"],
        "prefix": prefix["name"],
        "train_macs": {side: one["search"]["train_macs"] for side, one in best.items()},
        "train_macs_ratio": thin["search"]["train_macs"] / prefix["search"]["train_macs"],
        "at_equal_macs": at_equal_macs(thin, prefix),
        "mean_over_thin_networks": difference(mean),
    }


def shared_range(thin: dict[str, Any], prefix: dict[str, Any]) -> list[tuple[int, NDArray[np.float64]]]:
    """Thin networks that lack units, and prefixes of their MACs; the whole is no test of a plan."""
    found = []
    for k, row in enumerate(thin["exits"][:-1]):
        like = interpolated(prefix, row["macs_static"])
        if like is not None:
            found.append((k, like))
    return found


def correct_of(trial: dict[str, Any]) -> NDArray[np.float64]:
    """Whether each test image was answered rightly at each exit, (n, exits), out of its packed bits."""
    exits, n = trial["exits"], trial["exits"][0]["accuracy"]["test"]["n"]
    bits = np.frombuffer(base64.b64decode(trial["correct_bits"]), dtype=np.uint8).reshape(-1, len(exits))
    return np.unpackbits(bits, axis=0, count=n).astype(np.float64)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which of the two is better in every seed, its interval included."""
    means = [row["mean_over_thin_networks"] for row in rows]
    if all(mean["low"] > 0 for mean in means):
        return "thin"
    if all(mean["high"] < 0 for mean in means):
        return "prefix"
    return "undecided"


def record(trials: Path) -> None:
    """Add trials to the record, and compare all that it holds."""
    new = [json.loads(path.read_text()) for path in sorted(trials.glob("*.json"))]
    raw = gathered(
        "thin", "trials", new, lambda one: [one[key] for key in ("network", "epochs", "seed", "name")]
    )
    found = [{**one, "correct": correct_of(one)} for one in raw]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault(f"{one['network']}, {one['epochs']} epochs, seed {one['seed']}", []).append(one)
    comparisons = [
        compared(group)
        for group in groups.values()
        if all(any(one["name"] in names for one in group) for names in SIDES.values())
    ]
    settings = sorted({(row["network"], row["epochs"]) for row in comparisons})
    verdicts = {
        f"{network}, {epochs} epochs": verdict(
            [r for r in comparisons if (r["network"], r["epochs"]) == (network, epochs)]
        )
        for network, epochs in settings
    }
    summary = {"verdicts": verdicts, "comparisons": comparisons}
    claim = "thin networks against prefixes of as many MACs on CIFAR-10, as many epochs of training for both"
    print(write_record("thin", claim, {"summary": summary, "trials": raw}))
    for row in comparisons:
        mean = row["mean_over_thin_networks"]
        print(
            f"{row['network']}, {row['epochs']} epochs, seed {row['seed']}: {row['thin']} over "
            f"{row['prefix']}: {100 * mean['difference']:+.2f} points "
            f"({100 * mean['low']:+.2f} to {100 * mean['high']:+.2f}), "
            f"training MACs x {row['train_macs_ratio']:.2f}"
        )
    print(verdicts)


def main() -> None:
    """Run a trial, or gather them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("trial")
    one.add_argument("name", choices=TRIALS)
    one.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    one.add_argument("--into", type=Path, required=True)
    one.add_argument("--network", choices=NETWORKS, default="small")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--epochs", type=int, default=12)
    one.add_argument("--train", type=int, help="only so many training images, to try the program out")
    verbs.add_parser("record").add_argument("trials", type=Path)
    args = parser.parse_args()
    if args.verb == "trial":
        trial(args)
    else:
        record(args.trials)


if __name__ == "__main__":
    main()
