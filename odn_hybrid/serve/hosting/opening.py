"""From a folder to stages: a run directory, a saved model, or an exported one; nothing is earned anew.

A certificate costs a part of the run's confidence each time that it is tried for. A server takes what the run
has, and never tries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from odn_hybrid.artifacts import load
from odn_hybrid.data import Preprocess
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import weights_digest
from odn_hybrid.run import Run
from odn_hybrid.runner import load as load_export
from odn_hybrid.runner.running import SegmentsRunner
from odn_hybrid.serve.hosting.hosted import KINDS, Opened, Transform
from odn_hybrid.serve.hosting.runs import dynamic_of_run, labels_of, model_digest, plain_of_run
from odn_hybrid.serve.stages.exported import ExportedStages
from odn_hybrid.serve.stages.halting import HaltingStages
from odn_hybrid.serve.stages.plain import PlainStages
from odn_hybrid.stopping import Calibration
from odn_hybrid.stopping.promises.speaking import policy_digest

__all__ = ["open_path"]

EXPORT, STATIC_EXPORT = "manifest.json", "export.json"


def open_path(
    path: str | Path,
    kind: str = "dynamic",
    *,
    uncertified: bool = False,
    device: str | None = None,
    threads: int | None = None,
) -> Opened:
    """What stands at `path`, ready to be measured.

    Args:
        path: a run directory, a saved static or halting model, or an export of segments.
        kind: of a run, or a halting model's network: one of `KINDS`. A static model is "static", an export
            "dynamic".
        uncertified: serve a dynamic model although no certificate speaks of it here.
        device: "cpu" (the default), "cuda"; exports run on the CPU.
        threads: of an export's sessions; default: OMP_NUM_THREADS, else the processors there are.

    Raises:
        ConfigError: not that kind; no certificate; a device that is not there. RunDirError, ExportError,
            ModelError: see `odn_hybrid.load` and `odn_hybrid.runner.load`.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    path = Path(path)
    if (path / EXPORT).is_file():
        return _export(path, kind, uncertified, device, threads)
    if (path / STATIC_EXPORT).is_file():
        raise ConfigError(
            f"{path} is an export for other runtimes; serve the run or the saved model that it was made from"
        )
    found = load(path)
    if isinstance(found, Run):
        return _run(path, found, kind, uncertified, device)
    _move(found, device)
    if isinstance(found, HaltingModel):
        transform, what = _transform(found), str(path)
        if kind == "dynamic":
            return _halting(what, found, uncertified, transform, None)
        if kind == "full":
            return _whole(found, transform)
        raise ConfigError(f"{path} is a halting model, which has no static choice; serve dynamic or full")
    if kind != "static":
        raise ConfigError(f"{path} is a static model; serve it as kind 'static', not {kind!r}")
    return _static(found)


def _run(path: Path, run: Run, kind: str, uncertified: bool, device: str | None) -> Opened:
    if device is not None:
        run.to(device)
    transform, labels = _from_files(run.transform), labels_of(run)
    if kind == "dynamic":
        return _halting(str(path), dynamic_of_run(run), uncertified, transform, labels)
    stages, digest = plain_of_run(run, kind)
    return Opened(stages=stages, kind=kind, digest=digest, transform=transform, labels=labels)


def _halting(
    what: str,
    model: HaltingModel,
    uncertified: bool,
    transform: Transform | None,
    labels: list[str] | None,
) -> Opened:
    void = model.void
    if not uncertified:
        _check_promise(what, void)
    monitor = None if model.reference is None else model.drift_monitor()
    digest = _digest(weights_digest(model.network), policy_digest(model.policy), model.exits)
    return Opened(
        stages=HaltingStages(model),
        kind="dynamic",
        digest=digest,
        transform=transform,
        labels=labels,
        certificate=model.certificate,
        void=void,
        drift=monitor,
    )


def _whole(model: HaltingModel, transform: Transform | None) -> Opened:
    """The last exit of a halting model's network, for every input."""
    network, exit = model.network, model.last
    scale = model.policy.calibration
    stages = PlainStages(
        _AtExit(network, exit).eval(),
        image_shape=network.trunk.image_shape,
        classes=network.trunk.num_classes,
        exit=exit,
        units=network.units[exit - 1],
        calibration=Calibration(scale.kind, scale.scales[-1:], scale.shifts[-1:]),
        execution=model.execution,
    )
    digest = _digest(weights_digest(network), f"full {exit}", ())
    return Opened(stages=stages, kind="full", digest=digest, transform=transform)


class _AtExit(nn.Module):
    def __init__(self, network: MultiExit, exit: int) -> None:
        super().__init__()
        self.network, self.exit = network, exit

    def forward(self, images: Any) -> Any:
        return self.network.at(images, self.exit)


def _static(model: nn.Module) -> Opened:
    plan = model.__dict__["_odn_plan"]
    stages = PlainStages(
        model,
        image_shape=plan.image_shape,
        classes=plan.num_classes,
        exit=plan.exit or 1,
        units=len(plan.keep),
    )
    digest = model_digest(model)
    return Opened(stages=stages, kind="static", digest=digest, transform=_transform(model))


def _export(path: Path, kind: str, uncertified: bool, device: str | None, threads: int | None) -> Opened:
    if kind != "dynamic":
        raise ConfigError(f"{path} is an export of a halting model; it can be served as dynamic only")
    if device not in (None, "cpu"):
        raise ConfigError(f"exports run on the CPU, not on {device!r}; serve the run there")
    runner = load_export(path, threads=threads)
    if not isinstance(runner, SegmentsRunner):
        raise ConfigError(
            f"{path} is one graph that decides by itself, one image at a time, so that nothing can be "
            "batched; export the model in the format onnx-segments"
        )
    if not uncertified:
        _check_promise(str(path), runner.void)
    manifest = runner.manifest
    told = manifest.preprocess
    return Opened(
        stages=ExportedStages(runner),
        kind="dynamic",
        digest=_digest(manifest.digest, policy_digest(manifest.policy), manifest.exits),
        transform=None if told is None else _from_files(Preprocess.from_dict(told)),
        certificate=manifest.certificate,
        void=runner.void,
    )


def _check_promise(what: str, void: str | None) -> None:
    if void is not None:
        raise ConfigError(
            f"no certificate speaks of the dynamic model of {what} here: {void}; earn one (odn certify), "
            "serve it without (uncertified), or serve a run as kind 'full' or 'static'"
        )


def _move(model: nn.Module, device: str | None) -> None:
    if device is None:
        return
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def _transform(model: nn.Module) -> Transform | None:
    told = model.__dict__.get("transform")
    return None if told is None else _from_files(told)


def _from_files(preprocess: Preprocess) -> Transform | None:
    """The transform in numpy; None where the data came as tensors, of which no image file can be made."""
    if preprocess.ready:
        return None
    return lambda images: preprocess(images).numpy()


def _digest(weights: str, policy: str, exits: Sequence[int]) -> str:
    return hashlib.sha256(f"{weights} {policy} {list(exits)}".encode()).hexdigest()
