"""`.npz` files with x_train, y_train, x_test, y_test: size, layout and pixels checked before use."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from odn_hybrid.data.decoding import MAX_CHANNELS
from odn_hybrid.data.items import ArrayItems, Items
from odn_hybrid.data.labels import check_labels
from odn_hybrid.errors import DataError

__all__ = ["MAX_NPZ_BYTES", "image_array", "read_npz"]

MAX_NPZ_BYTES = 16 << 30  # uncompressed; a small zip can unpack to any size
_NEEDED = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> tuple[dict[str, Items], list[str] | None]:
    """The pools train and test of an `.npz`, and its class names if it has an array `classes`."""
    arrays = _load(path)
    pools: dict[str, Items] = {}
    for part in ("train", "test"):
        images = image_array(arrays[f"x_{part}"], f"x_{part} of {path}")
        labels = check_labels(arrays[f"y_{part}"], f"y_{part} of {path}", len(images))
        pools[part] = ArrayItems(images, labels)
    shapes = [items.shape for items in pools.values()]
    if shapes[0] != shapes[1]:
        raise DataError(f"{path}: x_train holds {shapes[0]} images, x_test {shapes[1]}; both must agree")
    if "classes" not in arrays:
        return pools, None
    if arrays["classes"].ndim != 1 or arrays["classes"].dtype.kind != "U":
        raise DataError(f"classes of {path} must be a list of strings, not {arrays['classes'].dtype}")
    return pools, [str(name) for name in arrays["classes"]]


def image_array(images: np.ndarray, where: str) -> np.ndarray:
    """uint8 or float32 (N, H, W, C) of an array as a user gives it; `DataError` naming `where` otherwise."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"{where} has dtype {images.dtype}; give uint8 (0..255) or float (0..1)")
    shape = images.shape
    if images.ndim not in (3, 4):
        raise DataError(f"{where} has shape {shape}; give NxHxW or NxHxWxC")
    if images.ndim == 4 and shape[3] > MAX_CHANNELS:
        hint = "; it looks channels first, use transpose(0, 2, 3, 1)" if shape[1] <= MAX_CHANNELS else ""
        raise DataError(f"{where} has shape {shape}; give NxHxWxC with at most {MAX_CHANNELS} channels{hint}")
    if 0 in shape:
        raise DataError(f"{where} is empty (shape {shape}); give at least one image per class")
    if images.dtype == np.uint8:
        return images[..., None] if images.ndim == 3 else images
    images = images.astype(np.float32)
    low, high = float(images.min()), float(images.max())  # both NaN as soon as one pixel is
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int(np.argmax(~np.isfinite(images).reshape(len(images), -1).all(1)))
        raise DataError(
            f"{where} has NaN or infinite pixels (first in image {bad}); mend or leave out those images"
        )
    if low < 0.0 or high > 1.0:
        raise DataError(
            f"{where} has float pixels from {low:g} to {high:g}; scale them to 0..1, or store uint8"
        )
    return images[..., None] if images.ndim == 3 else images


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in _NEEDED if name not in members]
            if missing:
                found = ", ".join(sorted(members)[:8]) or "nothing"
                raise DataError(
                    f"{path} lacks {', '.join(missing)} (it has {found}); it needs {', '.join(_NEEDED)}"
                )
            wanted = [members[name] for name in (*_NEEDED, "classes") if name in members]
            size = sum(info.file_size for info in wanted)
            if size > MAX_NPZ_BYTES:
                raise DataError(
                    f"{path} unpacks to {size} bytes, above the limit of {MAX_NPZ_BYTES}; use a folder"
                )
            for info in wanted:
                with archive.open(info) as stream:
                    _check_header(stream, info.file_size, f"{info.filename.removesuffix('.npy')} of {path}")
            return {i.filename.removesuffix(".npy"): _read(archive, i) for i in wanted}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"cannot read {path} as .npz ({_line(error)}); write it with numpy.savez") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory; use a folder of images") from None
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma"):  # damaged compressed data; not OSErrors
            raise DataError(f"{path} is damaged ({_line(error)}); copy or write it again") from None
        raise


def _check_header(stream: IO[bytes], size: int, where: str) -> None:
    """Refuse before reading: object arrays (pickle), and a shape that promises more bytes than there are."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where} is of .npy version {version}; write it with numpy.savez")
    read: Any = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            f"{where} has dtype object; store plain numbers (rows of unequal length make object arrays)"
        )
    if math.prod(shape) * dtype.itemsize > size:
        raise DataError(f"{where} promises shape {shape} but holds only {size} bytes; it is damaged")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
