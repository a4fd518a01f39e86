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
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from halting_policies import hull_at
from record import write_record
from torch import Tensor, nn

import odn_hybrid as odn
from odn_hybrid import fitting
from odn_hybrid.backbone import build_backbone, load_checkpoint, spec_of
from odn_hybrid.config import load_recipe
from odn_hybrid.cost import count_macs
from odn_hybrid.data import Data, Preprocess, Split, load_data, make_loader
from odn_hybrid.run import Run
from odn_hybrid.training.devices.precision import resolve_precision

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"
GRID = np.arange(0.3, 1.001, 0.05)
DROPS = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12)
FORWARD_BATCH, PEER_BATCH = 256, 128
FEW = 4


class Watch:
    """Seconds of the wall clock and of this process's processors."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """What has passed since it was made."""
        return {
            "wall": round(time.perf_counter() - self.wall, 3),
            "cpu": round(time.process_time() - self.cpu, 3),
        }


def limited(data: Data, limit: int | None) -> Data:
    """`data` with at most `limit` training images, the other splits cut in proportion."""
    if limit is None or limit >= len(data.splits["train"]):
        return data
    share = limit / len(data.splits["train"])
    return replace(
        data, splits={name: split.subset(round(share * len(split))) for name, split in data.splits.items()}
    )


def batches(
    split: Split, preprocess: Preprocess, size: int, **options: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, channels last, and labels."""
    for images, labels, _ in make_loader(split, preprocess, batch_size=size, **options):
        yield images.contiguous(memory_format=torch.channels_last), labels


class Epochs:
    """A loader that shuffles anew in every pass; its length is that of a pass."""

    def __init__(self, split: Split, preprocess: Preprocess) -> None:
        self.split, self.preprocess, self.epoch = split, preprocess, -1

    def __len__(self) -> int:
        return -(-len(self.split) // PEER_BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        yield from batches(self.split, self.preprocess, PEER_BATCH, shuffle=True, epoch=self.epoch)


class Fixed(list[tuple[Tensor, Tensor]]):
    """A split's batches in memory, in its order."""


@torch.no_grad()
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
    watch = Watch()
    with (
        mock.patch.object(fitting, "record_outputs", record),
        mock.patch.object(fitting, "conclude", conclude),
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
        found[family] = {"share": cost.tolist(), "accuracy": right.tolist(), "at": _at(cost, right)}
    calibrated = (
        "features",
        "features of selection, and heads",
        "outputs of selection",
        "outputs of calibration",
    )
    return run, {
        "head": head,
        "args": args,
        "seconds": parts,
        "seconds_to_calibrated_exits": sum(parts[name]["wall"] for name in calibrated),
        "search": run.report_["search"],
        "heads": run.history_[-1],
        "exits": run.exits_,
        "certificate": run.report_["dynamic"]["certificate"],
        "policy_in_force": run.report_["dynamic"]["accuracy"]
        | {"mean_macs": run.report_["dynamic"]["mean_macs"]},
        "curves": found,
    }


def _at(cost: Any, right: Any) -> list[float | None]:
    order = np.argsort(cost)
    found = hull_at(np.asarray(cost)[order], np.asarray(right)[order], GRID)
    return [None if np.isnan(value) else float(value) for value in found]


# --- the peer ---------------------------------------------------------------------------------------


def peer(model: nn.Module, data: Data, run: Run, epochs: int, seed: int) -> dict[str, Any]:
    """earlyon's own way from a pretrained network to calibrated exits."""
    from earlyon import __version__
    from earlyon.models import custom_ee
    from earlyon.training import stage2_train_exits

    names = [unit[0] for unit in run.network.trunk.unit_names]
    shape = (1, *run.network.trunk.image_shape)
    torch.manual_seed(seed)
    watch = Watch()
    wrapped = custom_ee(model, names[:-1], data.num_classes, input_shape=shape)
    log: list[dict[str, Any]] = []
    held: dict[int, dict[str, Tensor]] = {}

    def note(row: Any) -> None:
        log.append({"epoch": row.epoch + 1, "loss": row.loss, **watch.read()})
        if row.epoch + 1 in (FEW, epochs):
            held[row.epoch + 1] = {k: v.clone() for k, v in wrapped.exit_heads.state_dict().items()}

    with torch.enable_grad():
        stage2_train_exits(
            wrapped, Epochs(data.splits["train"], run.transform), epochs=epochs, on_epoch_end=note
        )
    results = {}
    for after, weights in held.items():
        wrapped.exit_heads.load_state_dict(weights)
        for which, layers in (("all blocks", names[:-1]), ("its factory's", _stage_ends(names))):
            results[f"{which}, {after} epochs"] = peer_curves(wrapped, data, run, names, layers, shape)
    trained = {row["epoch"]: row["wall"] for row in log}
    for name, result in results.items():
        after = int(name.split()[-2])
        result["seconds_to_calibrated_exits"] = trained[after] + result["seconds"]["calibration"]["wall"]
    return {"version": __version__, "epochs": log, "results": results}


def _stage_ends(names: list[str]) -> list[str]:
    """The last blocks of layer2 and layer3, where `resnet18_ee` has its exits."""
    return [[name for name in names if name.startswith(stage)][-1] for stage in ("layer2", "layer3")]


def peer_curves(
    trained: Any, data: Data, run: Run, names: list[str], layers: list[str], shape: tuple[int, ...]
) -> dict[str, Any]:
    """Temperatures, thresholds and their accuracy on the test split, for exits at `layers`."""
    from earlyon.core import thresholds
    from earlyon.models import custom_ee

    wrapped = custom_ee(trained.backbone, layers, data.num_classes, input_shape=shape).eval()
    for number, layer in enumerate(layers):
        source = trained.exit_heads[f"e{names.index(layer)}"]
        wrapped.exit_heads[f"e{number}"].load_state_dict(source.state_dict())
    splits = {
        name: Fixed(batches(data.splits[name], run.transform, FORWARD_BATCH))
        for name in ("selection", "calibration", "test")
    }
    collected: dict[int, Any] = {}
    collect = thresholds.collect_head_logits
    seconds: dict[str, Any] = {}

    def once(model: Any, loader: Any, device: str) -> Any:
        if id(loader) not in collected:  # one pass over a split serves all of its calibrations
            collected[id(loader)] = collect(model, loader, device)
        return collected[id(loader)]

    points: list[dict[str, Any]] = []
    watch = Watch()
    with mock.patch.object(thresholds, "collect_head_logits", once), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of budgets that cannot be met
        for kind, call, values in (
            ("drop", thresholds.calibrate_thresholds, DROPS),
            ("budget", thresholds.calibrate_thresholds_for_budget, GRID),
        ):
            for value in values:
                call(
                    wrapped, splits["calibration"], float(value),
                    fit_temperature=True, temperature_loader=splits["selection"],
                )  # fmt: skip
                seconds.setdefault("calibration", watch.read())  # of the first, which a user would do
                points.append(
                    {
                        kind: float(value),
                        **_tested(wrapped, once(wrapped, splits["test"], "cpu"), run, names, layers),
                    }
                )
        alone = collected[id(splits["test"])]
    accuracies = [float((z.argmax(1) == alone.targets).float().mean()) for z in alone.logits]
    cost, right = (np.array([point[key] for point in points]) for key in ("share", "accuracy"))
    return {
        "layers": layers,
        "seconds": seconds,
        "exit_accuracy": accuracies,
        "points": points,
        "at": _at(cost, right),
    }


def _tested(wrapped: Any, logits: Any, run: Run, names: list[str], layers: list[str]) -> dict[str, Any]:
    """Accuracy and mean MACs, heads included, of the thresholds in force."""
    from earlyon.core.thresholds import simulate_policy

    costs, on = run.parts.costs, wrapped.config.enabled_exits
    whole, passed, paid = costs.static(len(names)), 0.0, []
    for number, layer in enumerate(layers):
        width = run.network.trunk.layout(names.index(layer) + 1).channels
        if on[number]:
            passed += count_macs(lambda k=number, w=width: wrapped.exit_heads[f"e{k}"](torch.zeros(1, w)))  # type: ignore[misc]
        paid.append((costs.prefix(names.index(layer) + 1) + passed) / whole)
    paid.append((whole + passed) / whole)
    seen = simulate_policy(replace(logits, flops=torch.tensor(paid, dtype=torch.float64)), wrapped)
    return {
        "accuracy": seen.accuracy,
        "share": seen.avg_flops_fraction,
        "halting": seen.exit_distribution,
        "enabled": list(on),
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
