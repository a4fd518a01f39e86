"""`save` and `load`, for whatever a user keeps.

`save` rebuilds what it wrote in memory and compares outputs before it says it is done, so that what is saved
is known to load.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.artifacts.models import (
    MODEL_FILE,
    REFERENCE_FILE,
    halting_files,
    rebuild,
    static_description,
)
from odn_hybrid.artifacts.parts import EXITS_FILE, WEIGHTS_FILE
from odn_hybrid.artifacts.runs import load_run, write_run
from odn_hybrid.backbone import evaluating, unwrapped
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.errors import ConfigError, ModelError, RunDirError
from odn_hybrid.run import Run
from odn_hybrid.rundir import RunDir, make_folders, read_json, read_tensors, write_json, write_tensors

__all__ = ["load", "save"]


def save(thing: Any, path: str | Path) -> Path:
    """Save a run, a static model (of `run.truncate()` or `cut()`) or a halting one (`run.dynamic()`).

    Of a compiled model what is inside is saved; a folded one is loaded folded.

    Args:
        thing: the run or model.
        path: a directory that is not there yet, or is empty; given back.

    Raises:
        RunDirError: the directory at `path` holds something already. StorageError: the disk refuses.
        ConfigError: not something of ours. ModelError: built again from its name it gives other logits.

    Example:
        >>> import tempfile
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> small = odn.cut(trunk, odn.thin(1.0, trunk))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = odn.save(small, folder + "/small")
        ...     again = odn.load(path)
        >>> sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())
        True
    """
    path = Path(path)
    thing = unwrapped(thing) if isinstance(thing, nn.Module) else thing
    if isinstance(thing, Run):
        rundir = RunDir.create(path, thing.parts.config, resume=False)
        rundir.begin(thing.parts.config)
        write_run(rundir, replace(thing.parts, policy={**thing.parts.policy, "ledger": thing.ledger}))
        return path
    if isinstance(thing, HaltingModel):
        files, description = halting_files(thing)
    elif isinstance(thing, nn.Module) and "_odn_plan" in thing.__dict__:
        files, description = {WEIGHTS_FILE: thing.state_dict()}, static_description(thing)
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

    Example:
        >>> from odn_hybrid import load, OdnError
        >>> try:
        ...     load("no/such/folder")
        ... except OdnError as error:
        ...     print(type(error).__name__)
        RunDirError
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
    return rebuild({name: read_tensors(path / name)[0] for name in names}, description, backbone)


def _check_rebuilds(
    thing: nn.Module, files: dict[str, dict[str, Tensor]], description: dict[str, Any]
) -> None:
    """A model whose backbone has a name must come back with the same logits; one without needs a module."""
    spec = description["plan"]["spec"] if "plan" in description else description["backbone"]
    if spec["library"] == "module":
        return
    twin = rebuild(files, description, None)
    like = next(thing.parameters())
    images = torch.rand(2, *description["image_shape"], generator=torch.Generator().manual_seed(0))
    images, twin = images.to(like.device, like.dtype), twin.to(like.device)
    with torch.no_grad(), evaluating(thing):
        wanted, got = thing(images), twin(images)
    if isinstance(thing, HaltingModel):
        wanted, got = wanted.logits, got.logits
    if not torch.allclose(wanted, got, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise ModelError(
            f"not saved: {spec['library']} model {spec['name']!r}, built again, gives other logits; "
            "it was changed in a way that its name does not tell"
        )
