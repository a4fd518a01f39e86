"""Exits for a pretrained network that stays as it is: what they cost, and the installable peer beside it.

    uv pip install --target PEER --no-deps earlyon==0.3.0 fvcore iopath portalocker yacs tabulate termcolor
    export PYTHONPATH=PEER
    python benchmarks/frozen.py --data cifar10.npz --run RUN       # a finished fit's backbone
    python benchmarks/frozen.py --data cifar10.npz --checkpoint F  # weights of cifar10_small.yaml's model

Measured on one network, one data set and one machine, in one process: a plain forward pass over the training
split (evaluation mode, without gradients, in batches of 256, channels last), before and after everything
else; the frozen fit, whole and in parts; and earlyon as it is documented: `custom_ee` at the ends of blocks,
`stage2_train_exits` with its defaults (20 epochs, Adam, 1e-3), temperatures on the selection split and
`calibrate_thresholds` / `calibrate_thresholds_for_budget` on the calibration split. It gets batches of 128 in
the same memory format, and exits at all blocks, of which its own factory for a ResNet-18 takes two (after
layer2 and layer3); both are read off one training, after 4 epochs (its README says "a few") and at the end.

Accuracy at equal MACs: on the test split, with each one's own policies, at shares of the whole network's
MACs. Heads that an input passes count; of earlyon's those that are switched on. Between policies the upper
hull is taken for both, as any point on it is reached by drawing one of two at random.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from earlyon_peer import peer
from measuring import FORWARD_BATCH, GRID, Watch, at_shares, batches
from record import write_record
from torch import nn

import odn_hybrid as odn
from odn_hybrid import fitting
from odn_hybrid.backbone import build_backbone, load_checkpoint, spec_of
from odn_hybrid.config import load_recipe
from odn_hybrid.data import Data, Preprocess, Split, load_data
from odn_hybrid.deploy import conclusion
from odn_hybrid.run import Run
from odn_hybrid.training.devices.precision import resolve_precision

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"


def limited(data: Data, limit: int | None) -> Data:
    """`data` with at most `limit` training images, the other splits cut in proportion."""
    if limit is None or limit >= len(data.splits["train"]):
        return data
    share = limit / len(data.splits["train"])
    return replace(
        data, splits={name: split.subset(round(share * len(split))) for name, split in data.splits.items()}
    )


def forward_pass(
    model: nn.Module, split: Split, preprocess: Preprocess, dtype: torch.dtype
) -> dict[str, float]:
    """A plain pass over a split."""
    watch = Watch()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for images, _ in batches(split, preprocess, FORWARD_BATCH):
            model(images)
    return watch.read()


# --- ours -------------------------------------------------------------------------------------------


def frozen_fit(
    model: nn.Module, data: Data, head: str, args: dict[str, Any], seed: int, precision: str
) -> tuple[Run, Any]:
    """A frozen fit, and the seconds of its parts."""
    parts: dict[str, Any] = {}

    def timed(name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **options: Any) -> Any:
            watch = Watch()
            found = function(*values, **options)
            parts[name(*values)] = watch.read()
            return found

        return call

    rows: list[dict[str, Any]] = []
    record = timed(lambda network, split, *_: f"outputs of {split.name}", fitting.record_outputs)
    conclude = timed(lambda *_: "conclusion", fitting.conclude)
    curves = timed(lambda *_: "curves on the test split", conclusion.policy_curves)
    watch = Watch()
    with (
        mock.patch.object(fitting, "record_outputs", record),
        mock.patch.object(fitting, "conclude", conclude),
        mock.patch.object(conclusion, "policy_curves", curves),
    ):
        run = odn.fit(
            model, data, regime="frozen", head=head, seed=seed, precision=precision, listener=rows.append,
            overrides={"exits.args": args, "data.normalise": "data"},
        )  # fmt: skip
    parts["whole fit"] = watch.read()
    parts["features"] = {"wall": rows[-2]["seconds"]}
    parts["features of selection, and heads"] = {"wall": round(rows[-1]["seconds"] - rows[-2]["seconds"], 3)}
    return run, parts


def ours(
    model: nn.Module, data: Data, head: str, args: dict[str, Any], seed: int, precision: str
) -> tuple[Run, dict[str, Any]]:
    """Times, exits, and the curve of every family of policies on the test split."""
    run, parts = frozen_fit(model, data, head, args, seed, precision)
    whole = run.parts.costs.static(len(run.exits_))
    curves = run.report_["curves"]["families"]
    found: dict[str, Any] = {}
    for family, rows in curves.items():
        cost = np.array([row["mean_cost"] for row in rows]) / whole
        right = np.array([row["accuracy"]["value"] for row in rows])
        found[family] = {"share": cost.tolist(), "accuracy": right.tolist(), "at": at_shares(cost, right)}
    # Whatever a fit does but what only a promise or a report needs.
    later = ("outputs of certification", "outputs of test", "curves on the test split")
    return run, {
        "head": head,
        "args": args,
        "seconds": parts,
        "seconds_to_calibrated_exits": parts["whole fit"]["wall"]
        - sum(parts[name]["wall"] for name in later),
        "search": run.report_["search"],
        "heads": run.history_[-1],
        "exits": run.exits_,
        "certificate": run.report_["dynamic"]["certificate"],
        "policy_in_force": run.report_["dynamic"]["accuracy"]
        | {"mean_macs": run.report_["dynamic"]["mean_macs"]},
        "curves": found,
    }


# --- all of it --------------------------------------------------------------------------------------


def network(args: argparse.Namespace, data: Data) -> nn.Module:
    """The pretrained backbone, channels last."""
    if args.run is not None:
        model = odn.load(args.run).network.backbone
    else:
        recipe = load_recipe(RECIPE).model
        like = timm_spec(recipe, data)
        model = build_backbone(like)
        load_checkpoint(model, args.checkpoint)
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def timm_spec(recipe: Any, data: Data) -> Any:
    """The recipe's model for this data set."""
    from odn_hybrid.backbone import BackboneSpec

    return BackboneSpec(
        library="timm",
        name=recipe.name,
        args=dict(recipe.args),
        stem=recipe.stem,
        num_classes=data.num_classes,
    )


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--run", type=Path, help="a finished fit, whose backbone is taken")
    where.add_argument(
        "--checkpoint", type=Path, help="weights (.safetensors) of the model of cifar10_small.yaml"
    )
    parser.add_argument("--heads", nargs="*", default=["linear={}", 'grid={"grid": 2, "hidden": 128}'])
    parser.add_argument(
        "--peer-epochs", type=int, default=20, help="earlyon's default is 20; 0 leaves it out"
    )
    parser.add_argument("--precision", default="auto", help="of the features: auto, fp32 or bf16")
    parser.add_argument("--limit", type=int, help="training images, to try the program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="frozen", help="of the record")
    args = parser.parse_args()
    data = limited(load_data(args.data, seed=args.seed), args.limit)
    model = network(args, data)
    auto, train = resolve_precision(args.precision, torch.device("cpu")), data.splits["train"]
    forwards: dict[str, list[dict[str, float]]] = {}
    fits: list[dict[str, Any]] = []
    run: Run | None = None

    def forward(preprocess: Preprocess) -> None:
        for dtype in dict.fromkeys((torch.float32, auto)):
            seconds = forward_pass(model, train, preprocess, dtype)
            forwards.setdefault(str(dtype).removeprefix("torch."), []).append(seconds)

    for asked in args.heads:
        head, _, options = asked.partition("=")
        if run is not None:
            forward(run.transform)
        run, found = ours(model, data, head, json.loads(options or "{}"), args.seed, args.precision)
        fits.append(found)
        print(head, found["seconds"], flush=True)
        forward(run.transform)
    assert run is not None
    other = peer(model, data, run, args.peer_epochs, args.seed) if args.peer_epochs else None
    forward(run.transform)
    summary = summarised(forwards, fits, other)
    record = {
        "summary": summary,
        "backbone": spec_of(model, data.num_classes).to_dict(),
        "threads": torch.get_num_threads(),
        "precision_of_features": str(auto).removeprefix("torch."),
        "data": data.describe(),
        "seed": args.seed,
        "shares": GRID.tolist(),
        "forward_seconds": forwards,
        "ours": fits,
        "earlyon": other,
    }
    claim = "frozen costs at most 1.5 forward passes over the training set; earlyon beside it"
    print(json.dumps(summary, indent=1))
    print(write_record(args.name, claim, record))


def summarised(
    forwards: dict[str, list[dict[str, float]]], fits: list[dict[str, Any]], other: dict[str, Any] | None
) -> dict[str, Any]:
    """The figures that are asked for."""
    medians = {name: float(np.median([one["wall"] for one in seconds])) for name, seconds in forwards.items()}
    found: dict[str, Any] = {"forward_seconds": medians, "shares": GRID.round(2).tolist()}
    for fit in fits:
        seconds = {
            "features and heads": fit["seconds"]["features"]["wall"]
            + fit["seconds"]["features of selection, and heads"]["wall"],
            "to calibrated exits": fit["seconds_to_calibrated_exits"],
            "whole fit": fit["seconds"]["whole fit"]["wall"],
        }
        ratios = {
            f"{name}, in {dtype} forward passes": value / median
            for name, value in seconds.items()
            for dtype, median in medians.items()
        }
        name = f"ours, {fit['head']} {json.dumps(fit['args'])}"
        found[name] = {"seconds": seconds, **ratios, "accuracy_at_shares": fit["curves"]["snell"]["at"]}
    for name, result in (other or {"results": {}})["results"].items():
        seconds = result["seconds_to_calibrated_exits"]
        found[f"earlyon, {name}"] = {
            "seconds to calibrated exits": seconds,
            **{f"in {dtype} forward passes": seconds / median for dtype, median in medians.items()},
            "accuracy_at_shares": result["at"],
        }
    return found


if __name__ == "__main__":
    main()
