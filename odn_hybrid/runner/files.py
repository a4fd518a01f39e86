"""Reading an export's folder: nothing outside it, nothing too large, nothing but what the manifest names."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from odn_hybrid.errors import ExportError

__all__ = ["MANIFEST", "MAX_GRAPH_BYTES", "export_folder", "graph_name", "read_graph", "read_manifest"]

MANIFEST = "manifest.json"
#: A graph is one protobuf message, which can have no more.
MAX_GRAPH_BYTES = (2 << 30) - 1
MAX_MANIFEST_BYTES = 16 << 20
AGAIN = "copy the folder again, or repeat the export"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.onnx")


def export_folder(path: str | Path) -> Path:
    """The folder at `path`, resolved; `ExportError` where none is."""
    try:
        folder = Path(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # a null byte; a circle of links
        raise ExportError(f"no export at {str(path)!r}: there is no such folder") from None
    if not folder.is_dir():
        raise ExportError(f"no export at {path}: it is not a folder")
    return folder


def read_manifest(folder: Path) -> Any:
    """What manifest.json holds, as JSON data."""
    text = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    try:
        return json.loads(text.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ExportError(f"{folder / MANIFEST} is damaged (nested too deeply): {AGAIN}") from None
    except ValueError as error:
        raise ExportError(f"{folder / MANIFEST} is damaged ({error}): {AGAIN}") from None


def graph_name(name: Any) -> str:
    """`name` back if it is that of a graph in the same folder; `ValueError` otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"file {name!r}: expected a plain name that ends in .onnx")
    return name


def read_graph(folder: Path, name: str, size: int, sha256: str) -> bytes:
    """The bytes of a graph, which must be those that the manifest tells of."""
    data = _read(folder, graph_name(name), MAX_GRAPH_BYTES)
    if len(data) != size:
        raise ExportError(
            f"{folder / name} is damaged: it has {len(data)} bytes, {MANIFEST} says {size}: {AGAIN}"
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ExportError(f"{folder / name} is damaged: it has another sha256 than {MANIFEST} says: {AGAIN}")
    return data


def _read(folder: Path, name: str, most: int) -> bytes:
    path = folder / name
    try:
        # A link may stay inside; a pipe or a device is no file.
        inside = path.resolve(strict=True).is_relative_to(folder.resolve()) and path.is_file()
        if not inside:
            raise ExportError(f"{path} is a link out of the folder or not a file: copy the file itself there")
        size = path.stat().st_size
        if size > most:
            raise ExportError(f"{path} has {size} bytes, more than the {most} allowed: not of an export")
        with open(path, "rb") as file:
            return file.read(most + 1)
    except FileNotFoundError:
        raise ExportError(f"{path} is missing: {AGAIN}") from None
    except (OSError, RuntimeError) as error:
        raise ExportError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not standard JSON")
