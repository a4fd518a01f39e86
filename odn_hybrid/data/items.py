"""Where a source's images lie: in memory as one array, in files, or in the user's own data set."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from odn_hybrid.errors import DataError, InputError
from odn_hybrid.imaging import open_image, pil_array

__all__ = ["ArrayItems", "FileItems", "ItemError", "Items", "hash_array", "shared_shape"]


class ItemError(DataError):
    """One item cannot be read. Stays a one-line message when a loader's worker process raised it."""

    def __init__(self, text: str) -> None:
        # torch raises a worker's error anew with the whole traceback as its text; its last line is ours.
        lines = str(text).strip().splitlines() or [""]
        super().__init__(lines[-1].rpartition("ItemError: ")[2] if len(lines) > 1 else lines[0])


class Items(ABC):
    """Images with labels.

    `shape` is (H, W, C) if all images share it; `lazy` images are decoded when asked for; `ready` ones are
    already what a model takes (float, channels first).
    """

    labels: np.ndarray  # int64 (N,)
    shape: tuple[int, int, int] | None = None
    lazy: bool = False
    ready: bool = False

    @abstractmethod
    def fetch(self, indices: np.ndarray) -> Any:
        """The images, as `Preprocess` takes them: one array, or a list."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """sha256 that tells this data from other data."""

    def name(self, index: int) -> str:
        """How to call item `index` in an error message."""
        return f"image {index}"

    def __len__(self) -> int:
        return len(self.labels)


def hash_array(*arrays: np.ndarray) -> str:
    """sha256 over shapes, dtypes and contents."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape}{array.dtype.str}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


class ArrayItems(Items):
    """All images in memory: `images` is uint8 or float32 (N, H, W, C); float (N, C, H, W) if `ready`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, ready: bool = False) -> None:
        self.images = images[..., None] if images.ndim == 3 else images
        self.labels = labels
        self.ready = ready
        first, second, third = self.images.shape[1:]
        self.shape = (second, third, first) if ready else (first, second, third)

    def fetch(self, indices: np.ndarray) -> Any:
        """See `Items.fetch`."""
        picked = self.images[indices]
        if self.ready:
            import torch

            return torch.from_numpy(picked)
        return picked

    @cached_property
    def digest(self) -> str:  # computed once: it reads every pixel
        """See `Items.digest`."""
        return hash_array(self.images, self.labels)


def shared_shape(shapes: Iterable[tuple[int, int, int] | None]) -> tuple[int, int, int] | None:
    """(height, width, channels) of images of all these shapes; None where they are not of one size.

    Of grey and colour ones it is that of colour: `Preprocess` makes them alike.
    """
    known = set(shapes)
    sizes = {shape if shape is None else shape[:2] for shape in known}
    if len(sizes) != 1 or None in known:
        return None
    return max(shape for shape in known if shape is not None)


class FileItems(Items):
    """One file per image, below `root`; `files` are paths relative to it, with their sizes in bytes.

    The digest covers paths, sizes and labels, not the pixels: reading a large folder twice costs too much.
    """

    lazy = True

    def __init__(self, root: Path, files: Sequence[tuple[str, int]], labels: np.ndarray) -> None:
        self.root = root
        self.files = [name for name, _ in files]
        self.labels = labels
        lines = "\n".join(f"{name}\t{size}" for name, size in files)
        self._digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape") + labels.tobytes()).hexdigest()

    def fetch(self, indices: np.ndarray) -> list[np.ndarray]:
        """See `Items.fetch`."""
        return [self._read(int(i)) for i in indices]

    def _read(self, index: int) -> np.ndarray:
        try:
            return pil_array(open_image(self.root / self.files[index]))
        except InputError as error:
            raise ItemError(str(error)) from None

    def name(self, index: int) -> str:
        """The path of the file."""
        return str(self.root / self.files[index])

    @property
    def digest(self) -> str:
        """See `Items.digest`."""
        return self._digest
