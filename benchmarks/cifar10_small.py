"""The shared small network: fit it, pack it into benchmarks/assets/, and make a run directory of the pack.

    python benchmarks/cifar10_small.py --data cifar10.npz              # fits (an hour on 2 cores), packs
    python benchmarks/cifar10_small.py --data cifar10.npz --run RUN    # packs a finished fit of the recipe
    python benchmarks/cifar10_small.py --unpack DIR                    # the pack as a run directory

The pack holds weights of convolutions and linear layers in 8 bits (a factor per output channel), so that it
stays small. The network of the pack is the one with these rounded weights: every exit output and every
figure of its report are of that network, the outputs rounded to half precision before anything is concluded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record
from torch import Tensor

import odn_hybrid as odn
from odn_hybrid.config import FitConfig, from_dict, to_dict
from odn_hybrid.data import Data, load_data
from odn_hybrid.deploy.conclusion import conclude
from odn_hybrid.outputs import record_outputs
from odn_hybrid.run import Run
from odn_hybrid.rundir import RunDir, read_json, read_tensors, write_json, write_tensors
from odn_hybrid.training.procedure.expansion import Progress

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "cifar10_small.yaml"
ASSET = ROOT / "benchmarks" / "assets" / "cifar10_small"
SPLITS = ("selection", "calibration", "certification", "test")
FILES = {"model.safetensors": "backbone", "exits.safetensors": "heads"}


# --- rounding ---------------------------------------------------------------------------------------


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of two axes or more as int8 `NAME` with `NAME.factor` per output; the others as they are."""
    packed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.dim() < 2 or not value.is_floating_point():
            packed[name] = value
            continue
        factor = value.abs().flatten(1).amax(1).clamp(min=1e-12) / 127
        shape = (-1,) + (1,) * (value.dim() - 1)
        packed[name] = (value / factor.view(shape)).round().to(torch.int8)
        packed[f"{name}.factor"] = factor
    return packed


def restored(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """`rounded`'s weights as float32."""
    found = {}
    for name, value in packed.items():
        if value.dtype == torch.int8:
            factor = packed[f"{name}.factor"]
            value = value.float() * factor.view((-1,) + (1,) * (value.dim() - 1))
        if not name.endswith(".factor"):
            found[name] = value
    return found


# --- packing ----------------------------------------------------------------------------------------


def of_rounded_weights(run: Run, data: Data) -> Run:
    """The run again with rounded weights: outputs recorded, report and policy concluded anew."""
    parts, network = run.parts, run.network
    network.load_parts(
        restored(rounded(network.backbone.state_dict())), restored(rounded(network.heads.state_dict()))
    )
    reference = run.report_["reference"]["exit"]
    records = {}
    for name in SPLITS:
        found = record_outputs(network, data.splits[name], run.transform, upto=reference)
        half = found.logits.astype(np.float16).astype(np.float32)
        records[name] = replace(found, logits=half)
    search = run.report_["search"]
    progress = Progress(
        phase="done",
        current=reference,
        epoch=search["epochs"],
        train_macs=search["train_macs"],
        seconds=search["seconds"],
        by_depth=search["by_depth"],
        stopped_by=search["stopped_by"],
    )
    recipe = {**parts.config["recipe"], "dynamic": {}}  # today's defaults
    recipe["data"] = {**recipe["data"], "source": "cifar10"}
    config = from_dict(FitConfig, recipe)
    parts.config = {**parts.config, "recipe": to_dict(config)}
    parts.records = records
    parts.report, parts.policy = conclude(
        network, config, data, parts.costs, progress, records, name=parts.spec.name
    )
    return run


def pack(run: Run) -> None:
    """Write the asset."""
    ASSET.mkdir(parents=True, exist_ok=True)
    network = run.network
    for file, part in FILES.items():
        write_tensors(ASSET / file, rounded(getattr(network, part).state_dict()))
    held = {}
    for name, record in run.parts.records.items():
        held[f"{name}.logits"] = torch.from_numpy(record.logits).half()
        held[f"{name}.labels"] = torch.from_numpy(record.labels).to(torch.uint8)
    held["macs"] = torch.tensor(run.parts.costs.cumulative)
    write_tensors(ASSET / "outputs.safetensors", held)
    made = run.parts.records["test"]
    write_json(ASSET / "config.json", run.parts.config)
    write_json(
        ASSET / "policy.json", {**run.parts.policy, "runtime": made.runtime, "recorded_with": made.model}
    )
    write_json(ASSET / "report.json", run.report_)


def unpack(out: Path) -> Run:
    """Make a run directory of the asset, which `odn.load` and the command line read."""
    rundir = RunDir.create(out, read_json(ASSET / "config.json")["recipe"], resume=False)
    rundir.begin(read_json(ASSET / "config.json"))
    for file in FILES:
        rundir.save_tensors(file, restored(read_tensors(ASSET / file)[0]))
    held = read_tensors(ASSET / "outputs.safetensors")[0]
    outputs = {name: value.float() for name, value in held.items() if name.endswith(".logits")}
    outputs |= {name: value.long() for name, value in held.items() if name.endswith(".labels")}
    rundir.save_tensors("outputs.safetensors", outputs)
    for name in ("policy.json", "report.json"):
        rundir.write_json(name, read_json(ASSET / name))
    run: Run = odn.load(out)
    return run


def main() -> None:
    """Fit or take a fit, round, pack, record; or unpack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as .npz")
    parser.add_argument("--run", type=Path, help="a finished fit of the recipe")
    parser.add_argument("--unpack", type=Path, help="make a run directory of the asset here")
    args = parser.parse_args()
    if args.unpack:
        print(unpack(args.unpack))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.run or Path(folder) / "run"
        wall = None
        if args.run is None:
            begun = time.perf_counter()
            odn.fit(RECIPE, args.data, out=path, listener=lambda row: print(row, flush=True))
            wall = time.perf_counter() - begun
        run: Run = odn.load(path)
        fitted = run.report_
        data = load_data(args.data, root=None, seed=run.parts.config["recipe"]["seed"])
        pack(of_rounded_weights(run, data))
    sizes = {path.name: path.stat().st_size for path in sorted(ASSET.iterdir())}
    summary: dict[str, Any] = {
        "test_accuracy_as_fitted": fitted["exits"][-1]["accuracy"]["test"],
        "test_accuracy_rounded": run.exits_[-1]["accuracy"]["test"],
        "macs": run.exits_[-1]["macs_static"],
        "params": run.exits_[-1]["params"],
        "minutes": (wall or fitted["search"]["seconds"]) / 60,
        "minutes_are": "of training only" if wall is None else "of the whole fit",
        "bytes_of_files": sizes,
    }
    claim = (
        "a ResNet of at most 60 MMAC with at least 90 % on CIFAR-10, trained on 2 cores in at most 90 minutes"
    )
    fit_commit = {"recipe": RECIPE.read_text(), "fit_environment": fitted["environment"]}
    chosen = {key: run.report_[key] for key in ("reference", "static", "dynamic")}
    data_ = {"summary": summary, **fit_commit, "exits": run.exits_, **chosen, "history": run.history_}
    print(write_record("cifar10_small", claim, data_), summary)


if __name__ == "__main__":
    main()
