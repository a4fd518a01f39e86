"""The folder of an export: there whole or not at all, and described file by file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from odn_hybrid.errors import RunDirError
from odn_hybrid.rundir import make_folders

__all__ = ["described_files", "new_folder", "versions"]

LIBRARIES = ("odn-hybrid", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder at `path` to write into; if that fails, what was written is taken away again.

    Raises:
        RunDirError: something is there already. StorageError: the folder cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirError(f"{path} exists and is not empty; choose another folder")
    made = make_folders(path)
    try:
        yield path
    except BaseException:  # Ctrl-C included
        with suppress(OSError):
            for entry in path.iterdir():  # it was empty: all of it is ours
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            for folder in reversed(made):
                folder.rmdir()
        raise


def described_files(folder: Path) -> list[dict[str, Any]]:
    """Name, size and sha256 of every file in `folder`, by name."""
    return [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.iterdir())
    ]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that an export is made with, as far as they are installed."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name.replace("-", "_")] = metadata.version(name)
    return found
