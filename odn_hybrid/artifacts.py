"""Save and load whatever a user keeps: run directories, static models, halting models.

Weights are safetensors, everything else JSON; no code and no pickle. `save` rebuilds what it wrote in
memory and compares outputs before it says it is done, so that what is saved is known to load.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, build_backbone, evaluating, spec_of
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs
from odn_hybrid.data import Preprocess
from odn_hybrid.deploy.cutting import CutPlan, build_cut
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.errors import ConfigError, ModelError, RunDirError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.run import Run, RunParts
from odn_hybrid.rundir import (
    SCHEMA,
    RunDir,
    make_folders,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from odn_hybrid.stopping import DriftMonitor, HaltingTable
from odn_hybrid.trunk import Trunk

__all__ = ["load", "load_run", "save", "write_run"]

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
EXITS_FILE = "exits.safetensors"
OUTPUTS_FILE = "outputs.safetensors"
REFERENCE_FILE = "reference.safetensors"  # what a halting model's drift monitor compares with
#: What building from a damaged description may raise, whatever of it was changed.
GARBLED = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
MAX_OUTPUT_BYTES = 256 << 20  # recorded outputs beyond this are recomputed from the data when needed


def save(thing: Any, path: str | Path) -> Path:
    """Save a run, a static model (of `run.truncate()` or `cut()`) or a halting one (`run.dynamic()`).

    Raises:
        RunDirError: the directory at `path` holds something already. StorageError: the disk refuses.
        ConfigError: not something of ours.
    """
    path = Path(path)
    if isinstance(thing, Run):
        rundir = RunDir.create(path, thing.parts.config, resume=False)
        rundir.begin(thing.parts.config)
        write_run(rundir, replace(thing.parts, policy={**thing.parts.policy, "ledger": thing.ledger}))
        return path
    if isinstance(thing, HaltingModel):
        files, description = _halting_files(thing)
    elif isinstance(thing, nn.Module) and "_odn_plan" in thing.__dict__:
        files, description = {WEIGHTS_FILE: thing.state_dict()}, _static_description(thing)
    else:
        raise ConfigError(
            f"cannot save a {type(thing).__name__}: save takes a run, run.truncate(), run.dynamic() or cut()"
        )
    _check_rebuilds(thing, files, description)
    _write(path, files, description)
    return path


def _write(path: Path, files: dict[str, dict[str, Tensor]], description: dict[str, Any]) -> None:
    """All of the files or none: what fails half-way is taken away again."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirError(f"{path} exists and is not empty; choose another directory")
    made = make_folders(path)
    try:
        for name, tensors in files.items():
            write_tensors(path / name, tensors)
        write_json(path / MODEL_FILE, description)  # last: a directory without it is known to be unfinished
    except BaseException:
        with suppress(OSError):
            for name in files:
                (path / name).unlink(missing_ok=True)
            for folder in reversed(made):
                folder.rmdir()
        raise


def load(path: str | Path, *, backbone: nn.Module | None = None) -> Any:
    """Load what `save` or a fit wrote: a `Run`, a plain static module, or a `HaltingModel`.

    Args:
        path: the directory.
        backbone: a module of the saved architecture (a copy is filled), needed only where no timm or
            torchvision name rebuilds it.

    Raises:
        RunDirError: not a directory of ours, damaged, or of an unknown version. ModelError: does not fit.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunDirError(f"no saved model or run at {path}: not a directory")
    backbone = copy.deepcopy(backbone)
    if not (path / MODEL_FILE).exists():
        return load_run(path, backbone=backbone)
    description = read_json(path / MODEL_FILE)
    names = [WEIGHTS_FILE]
    if description.get("format") == "odn-halting":
        names += [EXITS_FILE, *([REFERENCE_FILE] if (path / REFERENCE_FILE).exists() else [])]
    return _rebuild({name: read_tensors(path / name)[0] for name in names}, description, backbone)


def _rebuild(
    files: dict[str, dict[str, Tensor]], description: dict[str, Any], backbone: nn.Module | None
) -> Any:
    kinds = {"odn-static": _rebuild_static, "odn-halting": _rebuild_halting}
    kind = description.get("format")
    if not isinstance(kind, str) or kind not in kinds:
        known = ", ".join(kinds)
        raise RunDirError(f"{MODEL_FILE} is damaged: its format is {kind!r}, this release reads {known}")
    try:
        model = kinds[kind](files, description, backbone)
        if description["preprocess"] is not None:
            model.__dict__["transform"] = Preprocess.from_dict(description["preprocess"])
    except GARBLED as error:
        raise RunDirError(_garbled(MODEL_FILE, error)) from None
    return model.eval()


def _garbled(name: str | Path, error: BaseException) -> str:
    what = " ".join(str(error).split())[:200]
    return f"{name} is damaged: it lacks or garbles {what}; copy the folder again"


def _check_rebuilds(
    thing: nn.Module, files: dict[str, dict[str, Tensor]], description: dict[str, Any]
) -> None:
    """A model whose backbone has a name must come back with the same logits; one without needs a module."""
    spec = description["plan"]["spec"] if "plan" in description else description["backbone"]
    if spec["library"] == "module":
        return
    twin = _rebuild(files, description, None)
    like = next(thing.parameters())
    images = torch.rand(2, *description["image_shape"], generator=torch.Generator().manual_seed(0))
    images, twin = images.to(like.device, like.dtype), twin.to(like.device, like.dtype)
    with torch.no_grad(), evaluating(thing):
        wanted, got = thing(images), twin(images)
    if isinstance(thing, HaltingModel):
        wanted, got = wanted.logits, got.logits
    if not torch.allclose(wanted, got, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise ModelError(
            f"not saved: {spec['library']} model {spec['name']!r}, built again, gives other logits; "
            "it was changed in a way that its name does not tell"
        )


# --- static models -----------------------------------------------------------------------------------


def _static_description(model: nn.Module) -> dict[str, Any]:
    plan: CutPlan = model.__dict__["_odn_plan"]
    preprocess = model.__dict__.get("transform")
    return {
        "schema": SCHEMA,
        "format": "odn-static",
        "plan": plan.to_dict(),
        "image_shape": list(plan.image_shape),
        "preprocess": preprocess.to_dict() if preprocess is not None else None,
    }


def _rebuild_static(
    files: dict[str, dict[str, Tensor]], description: dict[str, Any], backbone: nn.Module | None
) -> nn.Module:
    model = build_cut(CutPlan.from_dict(description["plan"]), backbone)
    try:
        model.load_state_dict(files[WEIGHTS_FILE], strict=True)
    except RuntimeError as error:
        raise ModelError(f"the saved weights do not fit: {' '.join(str(error).split())[:300]}") from None
    return model


# --- halting models ----------------------------------------------------------------------------------


def _halting_files(model: HaltingModel) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    network = model.network
    spec = spec_of(network.backbone, network.trunk.num_classes)
    preprocess = model.__dict__.get("transform")
    description = {
        "schema": SCHEMA,
        "format": "odn-halting",
        "backbone": spec.to_dict(),
        "exits": asdict(network.config),
        "image_shape": list(network.trunk.image_shape),
        "policy": model.policy.to_dict(),
        "gather": model.gather,
        "certificate": model.certificate,
        "preprocess": preprocess.to_dict() if preprocess is not None else None,
    }
    files = {WEIGHTS_FILE: network.backbone.state_dict(), EXITS_FILE: network.exit_parts()}
    if model.reference is not None:
        confidence, taken = (torch.from_numpy(np.ascontiguousarray(part)) for part in model.reference)
        files[REFERENCE_FILE] = {"confidence": confidence, "exit": taken}
    return files, description


def _rebuild_halting(
    files: dict[str, dict[str, Tensor]], description: dict[str, Any], backbone: nn.Module | None
) -> HaltingModel:
    network = _network(
        BackboneSpec(**description["backbone"]),
        ExitConfig(**description["exits"]),
        tuple(description["image_shape"]),
        files[WEIGHTS_FILE],
        files.get(EXITS_FILE, {}),
        backbone,
    )
    policy = HaltingTable.from_dict(description["policy"])
    certificate = description["certificate"]
    if certificate is not None and not isinstance(certificate, dict):
        raise TypeError(f"certificate: {certificate!r}")
    reference = None
    if REFERENCE_FILE in files:
        held = files[REFERENCE_FILE]
        reference = (held["confidence"].double().numpy(), held["exit"].long().numpy())
        DriftMonitor(*reference, exits=len(policy))  # which checks them
    model = HaltingModel(
        network, policy, gather=description["gather"], certificate=certificate, reference=reference
    )
    if certificate is not None and model.void is not None:
        warnings.warn(f"the certificate is void: {model.void}", UserWarning, stacklevel=4)
    return model


def _network(
    spec: BackboneSpec,
    exits: ExitConfig,
    image_shape: tuple[int, ...],
    weights: dict[str, Tensor],
    heads: dict[str, Tensor],
    backbone: nn.Module | None,
) -> MultiExit:
    model = backbone if backbone is not None else build_backbone(spec)
    network = MultiExit(Trunk(model, image_size=(image_shape[1], image_shape[2])), exits)
    network.load_parts(weights, heads)
    return network.eval()


# --- runs --------------------------------------------------------------------------------------------


def write_run(rundir: RunDir, parts: RunParts) -> None:
    """Write a finished run; `report.json` comes last and marks it as finished."""
    rundir.save_tensors(WEIGHTS_FILE, parts.network.backbone.state_dict())
    rundir.save_tensors(EXITS_FILE, parts.network.exit_parts())
    outputs: dict[str, Tensor] = {}
    for name, record in parts.records.items():
        outputs[f"{name}.logits"] = torch.from_numpy(record.logits)
        outputs[f"{name}.labels"] = torch.from_numpy(record.labels)
    if sum(value.numel() * value.element_size() for value in outputs.values()) <= MAX_OUTPUT_BYTES:
        rundir.save_tensors(OUTPUTS_FILE, outputs)
    if not rundir.read_history():  # a run that was fitted in memory and is saved now
        for row in parts.history:
            rundir.append_history(row)
    made = next(iter(parts.records.values()), None)
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
        network = _network(
            spec, exits, shape, rundir.load_tensors(WEIGHTS_FILE), rundir.load_tensors(EXITS_FILE), backbone
        )
    except GARBLED as error:
        raise RunDirError(_garbled(rundir.path / "config.json", error)) from None
    _need(rundir.path / "report.json", report, ("model", "reference", "exits", "static", "dynamic"))
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
        raise RunDirError(_garbled(rundir.path / OUTPUTS_FILE, error)) from None


def _check_policy(path: Path, policy: dict[str, Any], exits: int) -> None:
    """What later calls rely on; `RunDirError` names what is wrong."""
    ledger = policy["ledger"]
    whole = {"promise", "policy", "certificate"}
    if not isinstance(ledger, list) or not all(isinstance(e, dict) and whole <= set(e) for e in ledger):
        raise RunDirError(_garbled(path, KeyError("ledger")))
    if policy["policy"] is None:
        if not isinstance(policy.get("reason"), str):
            raise RunDirError(_garbled(path, KeyError("reason")))
        return
    reference = policy.get("reference")
    if isinstance(reference, bool) or not isinstance(reference, int) or not 1 <= reference <= exits:
        raise RunDirError(_garbled(path, KeyError("reference")))


def _need(path: Path, data: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in data:
            raise RunDirError(_garbled(path, KeyError(name)))
