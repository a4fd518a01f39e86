"""Run directories: written when a fit is over, opened by everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odn_hybrid.artifacts.parts import EXITS_FILE, GARBLED, WEIGHTS_FILE, garbled, network_of
from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs
from odn_hybrid.data import Preprocess
from odn_hybrid.earning import RunParts
from odn_hybrid.errors import RunDirError
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.run import Run
from odn_hybrid.rundir import RunDir

__all__ = ["load_run", "write_run"]

OUTPUTS_FILE = "outputs.safetensors"
MAX_OUTPUT_BYTES = 256 << 20  # recorded outputs beyond this are recomputed from the data when needed


def write_run(rundir: RunDir, parts: RunParts) -> None:
    """Write a finished run; `report.json` comes last and marks it as finished."""
    rundir.save_tensors(WEIGHTS_FILE, parts.network.backbone.state_dict())
    rundir.save_tensors(EXITS_FILE, parts.network.exit_parts())
    outputs: dict[str, Tensor] = {}
    made = next(iter(parts.records.values()), None)
    for name, record in parts.records.items():
        if made is None or (record.runtime, record.model) != (made.runtime, made.model):
            continue  # one runtime is written for all
        outputs[f"{name}.logits"] = torch.from_numpy(record.logits)
        outputs[f"{name}.labels"] = torch.from_numpy(record.labels)
    if sum(value.numel() * value.element_size() for value in outputs.values()) <= MAX_OUTPUT_BYTES:
        rundir.save_tensors(OUTPUTS_FILE, outputs)
    if not rundir.read_history():  # a run that was fitted in memory and is saved now
        for row in parts.history:
            rundir.append_history(row)
    recorded = {"runtime": made.runtime if made else None, "recorded_with": made.model if made else None}
    rundir.write_json("policy.json", {**parts.policy, **recorded})
    rundir.write_json("report.json", parts.report)
    rundir.clear_checkpoint()


def load_run(path: str | Path, *, backbone: nn.Module | None = None) -> Run:
    """Open a finished run directory."""
    rundir = RunDir.open(path)
    config, report, policy = (
        rundir.read_json(name) for name in ("config.json", "report.json", "policy.json")
    )
    try:
        spec = BackboneSpec(**config["backbone"])
        preprocess = Preprocess.from_dict(config["preprocess"])
        exits = ExitConfig(**config["recipe"]["exits"])
        digests = {name: split["digest"] for name, split in config["data"]["splits"].items()}
        shape = (spec.in_chans, *preprocess.size)
        network = network_of(
            spec, exits, shape, rundir.load_tensors(WEIGHTS_FILE), rundir.load_tensors(EXITS_FILE), backbone
        )
    except GARBLED as error:
        raise RunDirError(garbled(rundir.path / "config.json", error)) from None
    _need(rundir.path / "report.json", report, ("model", "reference", "exits", "static", "dynamic"))
    _check_report(rundir.path / "report.json", report, len(network))
    _need(rundir.path / "policy.json", policy, ("policy", "ledger"))
    _check_policy(rundir.path / "policy.json", policy, len(network))
    parts = RunParts(
        network=network,
        spec=spec,
        costs=count_costs(network),
        config=config,
        report=report,
        policy=policy,
        records=_records(rundir, digests, policy),
        preprocess=preprocess,
        history=rundir.read_history(),
    )
    return Run(parts, path=rundir.path)


def _records(rundir: RunDir, digests: dict[str, str], policy: dict[str, Any]) -> dict[str, ExitRecord]:
    if not (rundir.path / OUTPUTS_FILE).exists():
        return {}
    tensors = rundir.load_tensors(OUTPUTS_FILE)
    names = sorted({key.split(".")[0] for key in tensors})
    try:
        return {
            name: ExitRecord(
                tensors[f"{name}.logits"].numpy(),
                tensors[f"{name}.labels"].numpy().astype(np.int64),
                digests[name],
                str(policy.get("runtime")),
                str(policy.get("recorded_with")),
            )
            for name in names
        }
    except GARBLED as error:
        raise RunDirError(garbled(rundir.path / OUTPUTS_FILE, error)) from None


def _check_policy(path: Path, policy: dict[str, Any], exits: int) -> None:
    """What later calls rely on; `RunDirError` names what is wrong."""
    ledger = policy["ledger"]
    whole = {"promise", "policy", "certificate"}
    if not isinstance(ledger, list) or not all(isinstance(e, dict) and whole <= set(e) for e in ledger):
        raise RunDirError(garbled(path, KeyError("ledger")))
    if policy["policy"] is None:
        if not isinstance(policy.get("reason"), str):
            raise RunDirError(garbled(path, KeyError("reason")))
        return
    reference = policy.get("reference")
    if isinstance(reference, bool) or not isinstance(reference, int) or not 1 <= reference <= exits:
        raise RunDirError(garbled(path, KeyError("reference")))


def _check_report(path: Path, report: dict[str, Any], exits: int) -> None:
    """The rows and the choice, which later calls rely on; `RunDirError` names what is wrong."""
    wanted = {"exit", "units", "trained", "macs_static", "params", "bytes", "accuracy"}
    try:
        if [row["exit"] for row in report["exits"]] != list(range(1, exits + 1)):
            raise KeyError("exits")
        missing = [name for row in report["exits"] for name in sorted(wanted - set(row))]
        if missing:
            raise KeyError(missing[0])
        for part in ("static", "reference"):
            chosen = report[part]["exit"] if isinstance(report[part], dict) else report[part]
            if chosen not in range(1, exits + 1):
                raise KeyError(f"{part}.exit")
    except GARBLED as error:
        raise RunDirError(garbled(path, error)) from None


def _need(path: Path, data: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in data:
            raise RunDirError(garbled(path, KeyError(name)))
