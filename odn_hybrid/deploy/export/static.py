"""Static models as files: written, run, compared with the model, and described in `export.json`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating, unwrapped
from odn_hybrid.data import Preprocess, Split
from odn_hybrid.deploy.export.folders import described_files, new_folder, versions
from odn_hybrid.deploy.export.graphs import BATCHES, OPSET, difference
from odn_hybrid.deploy.export.quantised import CALIBRATION_IMAGES, accuracy, answers, write_quantised
from odn_hybrid.deploy.export.timm_folder import write_timm
from odn_hybrid.deploy.export.writers import (
    INPUT,
    OUTPUT,
    Running,
    write_graph,
    write_openvino,
    write_program,
)
from odn_hybrid.deploy.truncation.cutting import CutPlan
from odn_hybrid.errors import ConfigError, ExportError
from odn_hybrid.rundir import write_json

__all__ = ["MANIFEST", "QUANTISED", "STATIC_FORMATS", "Known", "export_static"]

MANIFEST = "export.json"
QUANTISED = "onnx-int8"
WRITERS = {"pt2": write_program, "onnx": write_graph, "openvino": write_openvino, "timm": write_timm}
STATIC_FORMATS = (*WRITERS, QUANTISED)
#: Largest difference of logits, relative to the largest logit where that exceeds 1.
ALLOWED = {"pt2": 1e-5, "onnx": 1e-5, "openvino": 1e-4, "timm": 1e-4}


@dataclass(frozen=True)
class Known:
    """What a run knows of the model that is exported from it.

    Attributes:
        accuracy: of the model on the selection and the test split, as reports hold it.
        splits: the data by split, which quantization needs.
    """

    accuracy: dict[str, Any] | None = None
    splits: dict[str, Split] | None = None


def export_static(
    model: nn.Module, path: str | Path, format: str, known: Known | None = None
) -> dict[str, Any]:
    """Write a static model (of `run.truncate()` or `cut`) into a new folder; gives what `export.json` holds.

    What was written is run on batches of 1, 3 and 16 random images and compared with the model; int8 graphs
    are run on the selection and test split beside the fp32 graph.

    Raises:
        ConfigError: an unknown format; a library that is missing; no data to calibrate on.
        ModelError: something the format cannot express. RunDirError: `path` is taken.
        ExportError: what was written gives other logits; nothing of it is left.
        StorageError: the disk refuses.
    """
    if format not in STATIC_FORMATS:
        raise ConfigError(f"unknown format {format!r}; static models go to {', '.join(STATIC_FORMATS)}")
    model, known = _plain(model), known or Known()
    plan: CutPlan = model.__dict__["_odn_plan"]
    images = _random_images(2, plan)
    with new_folder(Path(path)) as folder, evaluating(model):
        if format == QUANTISED:
            more = _quantised(model, images, folder, known)
        else:
            run = WRITERS[format](model, images, folder)
            checked = _checked(run, model, plan, ALLOWED[format])
            more = {"checked": checked, "accuracy": known.accuracy}
        manifest = {**_described(model, plan, format), **more, "files": described_files(folder)}
        write_json(folder / MANIFEST, manifest)
    return manifest


def _plain(model: nn.Module) -> nn.Module:
    """The model as it is exported: what `torch.compile` wraps, on the CPU, in fp32."""
    model = unwrapped(model)
    if "_odn_plan" not in model.__dict__:
        raise ConfigError(
            f"cannot export a {type(model).__name__}: export takes a run, run.truncate(), cut() or "
            "run.dynamic()"
        )
    parts = [*model.parameters(), *model.buffers()]
    low = next(
        (part.dtype for part in parts if part.is_floating_point() and part.dtype != torch.float32), None
    )
    if low is not None:
        raise ConfigError(f"the model is {low}; export takes fp32: model.float()")
    if any(part.device.type != "cpu" for part in parts):
        return copy.deepcopy(model).cpu()
    return model


def _described(model: nn.Module, plan: CutPlan, format: str) -> dict[str, Any]:
    preprocess: Preprocess | None = model.__dict__.get("transform")
    return {
        "format": format,
        "kind": "static",
        "model": plan.spec.to_dict(),
        "exit": plan.exit,
        "units": plan.depth,
        "plan": {"kind": plan.kind, "keep": list(plan.keep)},
        "classes": plan.num_classes,
        "image_shape": list(plan.image_shape),
        "input": {"name": INPUT, "type": "float32", "shape": ["batch", *plan.image_shape]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", plan.num_classes]},
        "preprocess": None if preprocess is None else preprocess.to_dict(),
        "opset": OPSET if format.startswith("onnx") else None,
        "versions": versions(),
    }


def _random_images(count: int, plan: CutPlan) -> Tensor:
    return torch.randn(count, *plan.image_shape, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def _checked(run: Running, model: nn.Module, plan: CutPlan, allowed: float) -> dict[str, Any]:
    """Run it beside the model; `ExportError` where logits differ."""
    worst = 0.0
    for size in BATCHES:
        images = _random_images(size, plan)
        worst = max(worst, difference(_tried(run, images), model(images)))
    if not worst <= allowed:
        raise ExportError(
            f"not exported: logits differ from the model's by {worst:.2g}, more than the "
            f"{allowed:g} allowed; please report this architecture"
        )
    return {"batches": list(BATCHES), "difference": worst, "allowed": allowed}


def _tried(run: Running, images: Tensor) -> Any:
    try:
        return run(images)
    except Exception as error:  # each runtime has its own
        line = " ".join(str(error).split())[:300]
        raise ExportError(
            f"not exported: what was written cannot run on a batch of {len(images)} ({line})"
        ) from None


def _quantised(model: nn.Module, images: Tensor, folder: Path, known: Known) -> dict[str, Any]:
    """Write the int8 graph, and measure it beside the fp32 one on the same images."""
    preprocess = model.__dict__.get("transform")
    if known.splits is None or preprocess is None:
        raise ConfigError(
            f"{QUANTISED} needs images to find ranges on: export the run (odn.export(run, path, "
            f"{QUANTISED!r}, depth=...)), which knows its calibration split"
        )
    run, plain = write_quantised(model, images, folder, known.splits["calibration"], preprocess)
    plan: CutPlan = model.__dict__["_odn_plan"]
    for size in BATCHES:
        found = _tried(run, _random_images(size, plan))
        if found.shape != (size, plan.num_classes):
            raise ExportError(f"not exported: {size} images gave logits {found.shape}")
    measured: dict[str, dict[str, Any]] = {"accuracy": {}, "accuracy_fp32": {}, "agreement": {}}
    for name in ("selection", "test"):
        split = known.splits[name]
        said, right = (answers(each, split, preprocess) for each in (run, plain))
        measured["accuracy"][name] = accuracy(said, split)
        measured["accuracy_fp32"][name] = accuracy(right, split)
        measured["agreement"][name] = float((said == right).mean())
    calibration = known.splits["calibration"]
    used = min(CALIBRATION_IMAGES, len(calibration))
    return {**measured, "calibration": {"split": "calibration", "n": used, "digest": calibration.digest}}
