"""earlyon 0.3.0, as it is documented, on a network, data and machine of ours; see frozen.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from measuring import FORWARD_BATCH, GRID, Watch, at_shares, batches
from torch import Tensor, nn

from odn_hybrid.cost import count_macs
from odn_hybrid.data import Data, Preprocess, Split
from odn_hybrid.run import Run

__all__ = ["peer"]

DROPS = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12)
PEER_BATCH = 128
FEW = 4


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
        "at": at_shares(cost, right),
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
