"""Folders in ImageFolder layout: one subfolder per class, optionally below train/, val/ and test/."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from odn_hybrid.data.items import FileItems, Items, shared_shape
from odn_hybrid.errors import DataError, InputError
from odn_hybrid.imaging import check_mode, open_image

__all__ = ["read_folder"]

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
MAX_HEADERS = 100_000  # beyond, only so many evenly spaced files are looked at when the folder is opened
_VAL = ("val", "valid", "validation")


def read_folder(path: Path) -> tuple[dict[str, Items], list[str]]:
    """The pools of a folder and its class names, sorted.

    `path/train/CLASS/*.png` with optional `path/val` (or valid, validation) and `path/test`, or
    `path/CLASS/*.png`. Files' headers are read (of `MAX_HEADERS` at most): what is no image, or of no known
    range of pixels, shows before training starts.
    """
    try:
        parts = _parts(path)
        classes = _subfolders(parts["train"])
        if not classes:
            raise DataError(
                f"{parts['train']} has no class folders; put the images of each class into its own folder"
            )
        return {part: _pool(folder, classes) for part, folder in parts.items()}, classes
    except OSError as error:
        raise DataError(f"cannot read the folder {path} ({error.strerror or error})") from None


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _parts(path: Path) -> dict[str, Path]:
    # "train" may also be the name of a class; then it holds images, not folders.
    names = _subfolders(path)
    if "train" not in names or not _subfolders(path / "train"):
        return {"train": path}
    parts = {"train": path / "train"}
    val = next((name for name in _VAL if name in names), None)
    parts |= {"val": path / val} if val else {}
    parts |= {"test": path / "test"} if "test" in names else {}
    return parts


def _pool(folder: Path, classes: list[str]) -> Items:
    strange = sorted(set(_subfolders(folder)) - set(classes))
    if strange:
        raise DataError(f"{folder} has the class folder {strange[0]!r}, which the training images lack")
    files: list[tuple[str, int]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(folder, name) if (folder / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}) in its class folders")
    items = FileItems(folder, files, np.array(labels, dtype=np.int64))
    items.shape = _shared_shape(items)
    return items


def _images(folder: Path, name: str) -> list[tuple[str, int]]:
    found = []
    for place, folders, names in os.walk(folder / name):
        folders.sort()
        for file in sorted(names):
            path = Path(place, file)
            if path.suffix.lower() in EXTENSIONS and not file.startswith("."):
                found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    return found


def _shared_shape(items: FileItems) -> tuple[int, int, int] | None:
    shapes: set[tuple[int, int, int]] = set()
    step = -(-len(items) // MAX_HEADERS)
    for index in range(0, len(items), step):
        try:
            image = open_image(items.root / items.files[index], header_only=True)
            check_mode(image, items.name(index))
        except InputError as error:
            raise DataError(str(error)) from None
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
        shapes.add((image.height, image.width, 1 if grey else 3))
    return shared_shape(shapes)
