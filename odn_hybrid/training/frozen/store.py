"""Features on disk: one memory-mapped array per exit, in files without a name.

A file that has no name is gone when it is closed, however the process ends (on Linux; elsewhere tempfile
removes it), so nothing is left behind by an error, Ctrl-C or a kill.

Features are kept in half precision. Heads are trained on their own scale (see `standardising`), for which a
relative rounding of 2^-11 is below what bf16 arithmetic leaves uncertain. What half precision lacks is range,
so each array has a factor, a power of two, that puts the first batch's largest value at 64 at most: a
thousandth of what can be stored, and small values keep their digits down to a millionth of it.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odn_hybrid.errors import ConfigError, StorageError, TrainingError

__all__ = ["ITEM_BYTES", "FeatureStore", "check_room"]

ITEM_BYTES = 2
AIM = 64.0  # the largest value of the first batch, as stored, is in (AIM / 2, AIM]
LARGEST = float(np.finfo(np.float16).max)


def check_room(folder: str | None, size: float) -> Path:
    """The folder in which features of `size` bytes are to be kept; None is the system's temporary folder.

    Raises `ConfigError` where there is no such folder, `StorageError` where it cannot hold them.
    """
    place = Path(folder or tempfile.gettempdir())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"frozen.folder is {str(place)!r}; give a folder that exists and can be written")
    free = shutil.disk_usage(place).free
    if size > free:
        raise StorageError(
            f"the features take {size / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free: set "
            "frozen.folder to a folder on a larger disk, or put exits after fewer units (exits.every)"
        )
    return place


class FeatureStore:
    """Arrays (rows, *shape) of half-precision numbers, by exit; a context manager that takes them away.

    Args:
        shapes: per exit, the shape of one image's features.
        rows: images in all.
        folder: where the files are.

    Raises `StorageError` where the disk refuses.
    """

    def __init__(self, shapes: Mapping[int, tuple[int, ...]], rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.factors: dict[int, float] = {}
        self._files: list[IO[bytes]] = []
        self._arrays: dict[int, npt.NDArray[np.float16]] = {}
        try:
            for number, shape in shapes.items():
                self._arrays[number] = self._made(shape)
        except BaseException:
            self.close()
            raise

    def _made(self, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
        size = self.rows * math.prod(shape) * ITEM_BYTES
        try:
            file: Any = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed by `close`)
            self._files.append(file)
            if hasattr(os, "posix_fallocate"):  # a mapped file that outgrows its disk kills the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, np.float16, "r+", shape=(self.rows, *shape))
        except OSError as error:
            raise StorageError(
                f"cannot keep features in {self.folder}: {error.strerror or error}; set frozen.folder to a "
                "folder on a larger disk"
            ) from None

    def write(self, number: int, start: int, values: Tensor) -> None:
        """Features (batch, *shape) of the images from row `start` on; raises `TrainingError` for NaN."""
        values = values.float()
        if number not in self.factors:
            top = float(values.abs().amax())
            usable = math.isfinite(top) and top > 0
            self.factors[number] = 2.0 ** math.ceil(math.log2(top / AIM)) if usable else 1.0
        small = values / self.factors[number]
        if not bool((small.abs() <= LARGEST).all()):  # NaN is not, either
            raise TrainingError(
                f"the backbone's activations at exit {number} are not finite, or a thousand times larger for "
                "some images than for others: check the weights and the normalisation of the images "
                "(data.normalise)"
            )
        self._arrays[number][start : start + len(values)] = small.to(torch.float16).cpu().numpy()

    def held(self, number: int) -> Tensor:
        """All features of an exit as they are stored, (rows, *shape) float16 on the CPU, still on disk."""
        return torch.from_numpy(self._arrays[number])

    def nbytes(self, number: int) -> int:
        """Bytes of one exit's features."""
        return int(self._arrays[number].nbytes)

    def close(self) -> None:
        """Take the files away. What `held` gave must not be used afterwards."""
        self._arrays.clear()
        for file in self._files:
            file.close()
        self._files.clear()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
