"""What a run directory has to serve: its dynamic model as certified, its reference, its static choice."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from odn_hybrid.deploy.comparing.in_force import model_in_force
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError
from odn_hybrid.outputs import served, weights_digest
from odn_hybrid.run import Run
from odn_hybrid.serve.stages.plain import PlainStages
from odn_hybrid.stopping import Calibration, Member, fit_calibration

__all__ = ["dynamic_of_run", "labels_of", "model_digest", "plain_of_run"]


def dynamic_of_run(run: Run) -> HaltingModel:
    """The latest model whose certificate speaks of this device; else the fit's own, and it does not.

    With what the run knows of the certification images, for shares and the drift monitor. Raises
    `ConfigError` for a run without a dynamic model.
    """
    policy = {**run.parts.policy, "ledger": run.ledger}
    if policy["policy"] is None:
        raise ConfigError(f"{run.path} has {policy['reason']}; serve it as kind 'full' or 'static'")
    execution = run.execution_
    model = model_in_force(served(run.network, execution), policy, run.report_, execution)
    assert model is not None
    held = run.parts.records.get("certification")
    if held is not None and held.model == weights_digest(model.network):
        seen = held.of(model.exits).logits
        taken, answered = model.policy.decide(seen)
        model.reference = (model.policy.confidence(seen, answered), np.array(model.exits)[taken - 1])
    return model


def plain_of_run(run: Run, kind: str) -> tuple[PlainStages, str]:
    """The reference ("full") or the static choice ("static") as one segment, and its digest."""
    exit = run.depth_["exit"] if kind == "static" else run.report_["reference"]["exit"]
    execution = run.execution_
    model = truncate(run.network, exit, run.parts.spec, fold=execution.fold).eval()
    stages = PlainStages(
        model,
        image_shape=run.network.trunk.image_shape,
        classes=run.network.trunk.num_classes,
        exit=exit,
        units=run.network.units[exit - 1],
        calibration=_calibration(run, exit),
        execution=execution,
    )
    return stages, model_digest(model)


def _calibration(run: Run, exit: int) -> Calibration | None:
    """Of one exit: as its policy has it, else fitted on the recorded calibration split."""
    told = run.parts.policy["policy"]
    if told is not None:
        scale = Member.from_dict(told).table.calibration
        if exit <= len(scale):
            return Calibration(scale.kind, scale.scales[exit - 1 : exit], scale.shifts[exit - 1 : exit])
    held = run.parts.records.get("calibration")
    if held is None or exit > held.logits.shape[1]:
        return None
    return fit_calibration(held.logits[:, exit - 1 : exit], held.labels, "temperature")


def labels_of(run: Run) -> list[str] | None:
    """Names of the classes, as the data had them; their numbers where it had none."""
    names = run.parts.config.get("data", {}).get("classes")
    count = run.network.trunk.num_classes
    fine = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    return list(names) if fine else None


def model_digest(model: nn.Module) -> str:
    """sha256 over weights, their names, and the modules' classes and settings as they print them."""
    h = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode())
        h.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
