"""`export`: a run, a static or a halting model as files for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from odn_hybrid.backbone import unwrapped
from odn_hybrid.deploy.export.halting import HALTING_FORMATS, export_halting
from odn_hybrid.deploy.export.static import QUANTISED, STATIC_FORMATS, Known, export_static
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.errors import ConfigError
from odn_hybrid.run import Run

__all__ = ["FORMATS", "export"]

FORMATS = (*STATIC_FORMATS, *HALTING_FORMATS)


def export(
    thing: Run | nn.Module,
    path: str | Path,
    format: str | None = None,
    *,
    exit: int | None = None,
    depth: int | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    max_bytes: float | None = None,
    max_latency_ms: float | None = None,
    data: Any = None,
) -> Path:
    """Write a model for another runtime into a new folder, run what was written, and compare.

    Args:
        thing: a run (its static model is exported), `run.truncate()`, `cut()`, or `run.dynamic()`.
        path: a folder that is not there yet, or is empty.
        format: of static models "onnx" (the default), "onnx-int8", "openvino", "pt2" (`torch.export`) or
            "timm" (a folder that timm loads); of halting models "onnx-segments" (the default) or "onnx-if".
        exit, depth, max_macs, max_params, max_bytes, max_latency_ms: of a run: which of its exits; see
            `Run.truncate`.
        data: of a run whose data moved or were handed over as objects: the data again, for "onnx-int8".

    Returns:
        The folder. `export.json` (static) or `manifest.json` (halting) in it says what the files are.

    Raises:
        ConfigError: an unknown format, or one for models of the other kind; a missing library.
        ExportError: what was written answers otherwise than the model; nothing of it is left.
        ModelError: something that the format cannot express. RunDirError: `path` is taken.
        StorageError: the disk refuses.

    Example:
        >>> import tempfile
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> small = odn.cut(trunk, odn.thin(1.0, trunk)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = odn.export(small, folder + "/pt2", "pt2")
    """
    wishes = {
        "depth": depth,
        "max_macs": max_macs,
        "max_params": max_params,
        "max_bytes": max_bytes,
        "max_latency_ms": max_latency_ms,
    }
    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    if isinstance(thing, Run):
        _check_kind(format, HALTING_FORMATS, "halting models: odn.export(run.dynamic(), ...)")
        return _export_run(thing, path, format or "onnx", {"exit": exit, **wishes}, data)
    asked = sorted(
        name for name, value in {"exit": exit, "data": data, **wishes}.items() if value is not None
    )
    if asked:
        raise ConfigError(f"{asked[0]} is for runs; this is a model already, exported as it is")
    if isinstance(thing, HaltingModel):
        _check_kind(format, STATIC_FORMATS, "static models: odn.export(run, ...) or run.truncate()")
        return export_halting(thing, path, format=format or HALTING_FORMATS[0])
    if not isinstance(thing, nn.Module) or "_odn_plan" not in unwrapped(thing).__dict__:
        raise ConfigError(
            f"cannot export a {type(thing).__name__}: export takes a run, run.truncate(), cut() or "
            "run.dynamic()"
        )
    _check_kind(format, HALTING_FORMATS, "halting models: run.dynamic()")
    export_static(thing, path, format or "onnx")
    return Path(path)


def _check_kind(format: str | None, others: tuple[str, ...], advice: str) -> None:
    if format in others:
        raise ConfigError(f"format {format!r} is for {advice}")


def _export_run(run: Run, path: str | Path, format: str, wishes: dict[str, Any], data: Any) -> Path:
    exit = wishes.pop("exit")
    if exit is not None:
        if isinstance(exit, bool) or not isinstance(exit, int):
            raise ConfigError(f"exit is {exit!r}; exits are numbered 1 to {len(run.network)}")
        more = sorted(name for name, value in wishes.items() if value is not None)
        if more:
            raise ConfigError(f"ask for one thing at a time, not exit and {more[0]}")
        wishes["depth"] = run.network.units[run.network.check_exit(exit) - 1]
    model = run.truncate(**wishes)
    splits = None
    if format == QUANTISED:
        run.use_data(data)
        assert run.data is not None
        splits = run.data.splits
    row = run.exits_[model.__dict__["_odn_plan"].exit - 1]
    export_static(model, path, format, Known(row["accuracy"], splits))
    return Path(path)
