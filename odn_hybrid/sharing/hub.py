"""Models in Hugging Face's convention: a folder with a model card, pushed to the hub and loaded from it.

Names are those of huggingface_hub's `ModelHubMixin`. What goes up and comes down are the files that `save`
writes, safetensors and JSON, and the card; nothing else is asked for, and nothing is unpickled.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from odn_hybrid.artifacts import load, save
from odn_hybrid.errors import ConfigError, RunDirError, StorageError
from odn_hybrid.run import Run
from odn_hybrid.rundir import write_bytes
from odn_hybrid.sharing.card import model_card

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

CARD = "README.md"
#: Every file that `save` writes, and no other.
FILES = (
    "config.json", "report.json", "policy.json", "history.jsonl", "model.json", "model.safetensors",
    "exits.safetensors", "outputs.safetensors", "reference.safetensors",
)  # fmt: skip


def save_pretrained(
    thing: Run | nn.Module,
    path: str | Path,
    *,
    run: Run | None = None,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Save a run, a static or a halting model with a model card; paths of this machine are left out.

    Args:
        thing: what `odn_hybrid.save` takes.
        path: a folder that is not there yet, or is empty.
        run: the run a static or halting model came from, for the card's figures.
        repo_id: what the card says it is loaded as; default: the folder's name.
        license: the card's licence, one of the hub's identifiers ("apache-2.0").

    Returns:
        The folder.

    Raises:
        ConfigError, ModelError, RunDirError, StorageError: as `odn_hybrid.save`.

    Example:
        >>> import odn_hybrid as odn
        >>> # `run` is a finished fit, `folder` an empty folder
        >>> path = odn.save_pretrained(run, folder / "mine", license="apache-2.0")
        >>> sorted(file.name for file in path.iterdir())[:3]
        ['README.md', 'config.json', 'exits.safetensors']
    """
    path = Path(path)
    if run is not None and not isinstance(run, Run):
        raise ConfigError(f"run is a {type(run).__name__}; give the Run that the model came from")
    if run is not None:
        model_card(thing, run=run, name=repo_id or path.name, license=license)  # may refuse: before writing
    save(_shared(thing) if isinstance(thing, Run) else thing, path)
    card = model_card(thing, run=run, name=repo_id or path.name, license=license)
    write_bytes(path / CARD, card.encode())
    return path


def push_to_hub(
    thing: Run | nn.Module,
    repo_id: str,
    *,
    run: Run | None = None,
    license: str | None = None,
    commit_message: str = "Upload with odn_hybrid",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Save a run, a static or a halting model with its card and upload it; gives the commit's address.

    A whole run brings the recorded outputs and labels of its splits along.

    Args:
        thing, run, license: as for `save_pretrained`.
        repo_id: the repository, "NAME/MODEL"; made if it is not there.
        commit_message, private, token, branch, create_pr: as for huggingface_hub's
            `ModelHubMixin.push_to_hub`.

    Raises:
        ConfigError: not a name for a repository. StorageError: the hub refuses or cannot be reached.

    Example:
        >>> import odn_hybrid as odn
        >>> # `run` is a finished fit; this needs a token of yours
        >>> odn.push_to_hub(run, "me/stripes", private=True)
        'https://huggingface.co/me/stripes/commit/1'
    """
    from huggingface_hub import HfApi

    with TemporaryDirectory() as scratch:
        folder = save_pretrained(
            thing, Path(scratch) / "model", run=run, repo_id=_checked(repo_id), license=license
        )
        api = HfApi(token=token)
        try:
            name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            found = api.upload_folder(
                repo_id=name,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=[*FILES, CARD],
            )
        except _hub_errors() as error:
            raise StorageError(
                f"cannot push to {repo_id!r} on the Hugging Face hub: {_line(error)}"
            ) from None
    return str(found)


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    backbone: nn.Module | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Any:
    """Load a run, a static or a halting model from a folder or from the Hugging Face hub.

    Args:
        name: a folder, or else a repository ("name/model").
        revision: branch, tag or commit of the repository.
        backbone: see `odn_hybrid.load`.
        token, cache_dir, force_download, local_files_only: see `huggingface_hub.snapshot_download`.

    A run from the hub is held in memory: what it certifies is entered nowhere, so save it (`odn_hybrid.save`)
    before trying for promises.

    Raises:
        RunDirError: no such folder or repository, it cannot be reached, or it holds no model of ours.
        ConfigError: a folder has no revisions; not a name for a repository.

    Example:
        >>> import odn_hybrid as odn
        >>> # `run` is a finished fit, `folder` an empty folder
        >>> path = odn.save_pretrained(run, folder / "mine")
        >>> len(odn.from_pretrained(path).exits_) == len(run.exits_)
        True
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ConfigError(f"{name} is a folder, which has no revision {revision!r}")
        return load(name, backbone=backbone)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo_id=_checked(str(name)),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=list(FILES),
        )
    except _hub_errors() as error:
        raise RunDirError(
            f"there is no folder {str(name)!r}, and the Hugging Face hub does not give it: {_line(error)}"
        ) from None
    found = load(folder, backbone=backbone)
    return Run(found.parts) if isinstance(found, Run) else found


def _checked(repo_id: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ConfigError(
            f"{repo_id!r} is neither a folder nor the name of a repository; write NAME/MODEL"
        ) from None
    return repo_id


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError)


def _shared(run: Run) -> Run:
    """The run as others may have it: of paths only the last part is left."""
    parts = run.parts
    policy = {**parts.policy, "ledger": run.ledger}
    config, report = _without_paths(parts.config), _without_paths(parts.report)
    return Run(replace(parts, config=config, report=report, policy=policy))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        windows = PureWindowsPath(value)
        if windows.is_absolute():
            return windows.name
        if os.path.isabs(value) or value.startswith("~"):
            return Path(value).name
    return value


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
