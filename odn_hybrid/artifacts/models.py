"""Static and halting models as tensors and a description, and built again from these."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odn_hybrid.artifacts.parts import EXITS_FILE, GARBLED, WEIGHTS_FILE, garbled, network_of
from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.config import ExitConfig
from odn_hybrid.data import Preprocess
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.cutting import CutPlan, build_cut
from odn_hybrid.deploy.truncation.in_timm import timm_form
from odn_hybrid.errors import ModelError, RunDirError
from odn_hybrid.execution import Execution
from odn_hybrid.rundir import SCHEMA
from odn_hybrid.stopping import DriftMonitor, HaltingTable

__all__ = ["MODEL_FILE", "REFERENCE_FILE", "halting_files", "rebuild", "static_description"]

MODEL_FILE = "model.json"
REFERENCE_FILE = "reference.safetensors"  # what a halting model's drift monitor compares with


def rebuild(
    files: dict[str, dict[str, Tensor]], description: dict[str, Any], backbone: nn.Module | None
) -> Any:
    """The model that tensors by file and model.json tell of; `RunDirError` where they are damaged."""
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
        raise RunDirError(garbled(MODEL_FILE, error)) from None
    return model.eval()


# --- static models -----------------------------------------------------------------------------------


def static_description(model: nn.Module) -> dict[str, Any]:
    """What model.json says of a cut model."""
    plan: CutPlan = model.__dict__["_odn_plan"]
    preprocess = model.__dict__.get("transform")
    form, why = timm_form(model)
    return {
        "schema": SCHEMA,
        "format": "odn-static",
        "timm": None if form is None else form.to_dict(),  # how timm builds it, and the names of keys there
        "no_timm": why or None,
        "plan": plan.to_dict(),
        "image_shape": list(plan.image_shape),
        "preprocess": preprocess.to_dict() if preprocess is not None else None,
    }


def _rebuild_static(
    files: dict[str, dict[str, Tensor]], description: dict[str, Any], backbone: nn.Module | None
) -> nn.Module:
    model, stored = build_cut(CutPlan.from_dict(description["plan"]), backbone), files[WEIGHTS_FILE]
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in stored and tensor.is_floating_point() and stored[name].is_floating_point():
            # in the precision that it was saved in; in place, so that tied ones stay tied
            tensor.data = tensor.data.to(stored[name].dtype)
    try:
        model.load_state_dict(stored, strict=True)
    except RuntimeError as error:
        raise ModelError(f"the saved weights do not fit: {' '.join(str(error).split())[:300]}") from None
    return model


# --- halting models ----------------------------------------------------------------------------------


def halting_files(model: HaltingModel) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file, and what model.json says of a halting model."""
    network = model.network
    spec = network.spec
    preprocess = model.__dict__.get("transform")
    description = {
        "schema": SCHEMA,
        "format": "odn-halting",
        "backbone": spec.to_dict(),
        "exits": asdict(network.config),
        "image_shape": list(network.trunk.image_shape),
        "folds": [list(pair) for pair in network.folds],
        "execution": model.execution.to_dict(),
        "policy": model.policy.to_dict(),
        "policy_exits": list(model.exits),
        "gather": model.gather,
        "certificate": model.certificate,
        "preprocess": preprocess.to_dict() if preprocess is not None else None,
    }
    files = {WEIGHTS_FILE: network.backbone.state_dict(), EXITS_FILE: network.exit_parts()}
    if model.reference is not None:
        confidence, taken = (torch.from_numpy(np.ascontiguousarray(part)) for part in model.reference)
        files[REFERENCE_FILE] = {"confidence": confidence, "exit": taken}
    return files, description


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Names of layers and normalisations that were made one; `TypeError` for anything else."""
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        for pair in value
    ):
        raise TypeError(f"folds: {value!r}")
    return tuple((layer, norm) for layer, norm in value)


def _rebuild_halting(
    files: dict[str, dict[str, Tensor]], description: dict[str, Any], backbone: nn.Module | None
) -> HaltingModel:
    network = network_of(
        BackboneSpec(**description["backbone"]),
        ExitConfig(**description["exits"]),
        tuple(description["image_shape"]),
        files[WEIGHTS_FILE],
        files.get(EXITS_FILE, {}),
        backbone,
        _pairs(description.get("folds", [])),
    )
    policy = HaltingTable.from_dict(description["policy"])
    certificate = description["certificate"]
    if certificate is not None and not isinstance(certificate, dict):
        raise TypeError(f"certificate: {certificate!r}")
    reference = None
    if REFERENCE_FILE in files:
        held = files[REFERENCE_FILE]
        reference = (held["confidence"].double().numpy(), held["exit"].long().numpy())
        exits = description.get("policy_exits") or range(1, len(policy) + 1)
        DriftMonitor(*reference, exits=exits[-1])  # which checks them
    model = HaltingModel(
        network,
        policy,
        exits=description.get("policy_exits"),
        gather=description["gather"],
        certificate=certificate,
        reference=reference,
        execution=Execution.from_dict(description.get("execution", {})),
    )
    if certificate is not None and model.void is not None:
        warnings.warn(f"the certificate is void: {model.void}", UserWarning, stacklevel=4)
    return model
