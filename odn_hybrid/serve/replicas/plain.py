"""What a replica is told, as plain JSON: nothing of ours travels as pickled code or objects."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.settings import LaneSettings, ServeSettings

__all__ = ["from_text", "to_text"]

PATHS = ("certfile", "keyfile", "log_file")


def to_text(loading: Loading, settings: ServeSettings) -> str:
    """Both as JSON. Paths become absolute: they are of files that every machine of the cluster has."""
    told: dict[str, Any] = {"loading": asdict(loading), "settings": asdict(settings)}
    told["loading"]["models"] = {name: _absolute(path) for name, path in loading.models.items()}
    for name in PATHS:
        path = told["settings"][name]
        told["settings"][name] = None if path is None else _absolute(path)
    return json.dumps(told)


def from_text(text: str) -> tuple[Loading, ServeSettings]:
    """What `to_text` wrote."""
    told = json.loads(text)
    loading, settings = told["loading"], told["settings"]
    loading["models"] = {name: Path(path) for name, path in loading["models"].items()}
    settings["lane"] = LaneSettings(**settings["lane"])
    for name in PATHS:
        settings[name] = None if settings[name] is None else Path(settings[name])
    return Loading(**loading), ServeSettings(**settings)


def _absolute(path: Path) -> str:
    return str(Path(path).absolute())
