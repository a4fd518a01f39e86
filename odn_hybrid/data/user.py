"""The user's own data sets and loaders, yielding (image, label)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from odn_hybrid.data.arrays import image_array
from odn_hybrid.data.items import ArrayItems, ItemError, Items
from odn_hybrid.data.labels import check_labels
from odn_hybrid.errors import DataError, InputError, OdnError
from odn_hybrid.imaging import pil_array

__all__ = ["MAX_STREAMED", "class_names", "read_user", "without_loader"]

MAX_STREAMED = 1_000_000  # images taken from a data set that can only be iterated
#: Samplers that mean all of a data set; a fit has an order of its own, and shares batches itself.
WHOLE = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
_PROBES = 16  # images looked at when a data set is opened
_SHAPE_HINT = "give a PIL image, a uint8 array HxW or HxWxC, or a float tensor CxHxW"


class UserItems(Items):
    """A map-style data set, read item by item."""

    lazy = True

    def __init__(self, source: Any, labels: np.ndarray, where: str) -> None:
        self.source = source
        self.labels = labels
        self.where = where
        probes = [self._read(int(i)) for i in _evenly(len(labels))]
        self.ready = _is_ready(probes[0])
        shapes = {_shape(image) for image in probes}
        if self.ready and len(shapes) > 1:
            raise DataError(f"{where} yields tensors of shapes {min(shapes)} and {max(shapes)}; resize them")
        self.shape = shapes.pop() if len(shapes) == 1 else None

    def fetch(self, indices: np.ndarray) -> list[Any]:
        images = [self._read(int(i)) for i in indices]
        for index, image in zip(indices, images, strict=True):
            if _is_ready(image) != self.ready or (self.ready and _shape(image) != self.shape):
                raise ItemError(
                    f"{self.name(index)} is {_kind(image)}, unlike the first one; make all items alike"
                )
        return images

    def _read(self, index: int) -> Any:
        return _plain(_pair(self.source[index], self.name(index))[0], self.name(index))

    def name(self, index: int) -> str:
        return f"item {index} of {self.where}"

    @cached_property
    def digest(self) -> str:  # computed once: it reads images
        """Of the labels and, unless the data set answers at random, of a few evenly spaced images."""
        total = hashlib.sha256(self.labels.tobytes())
        first, second = self._sample(), self._sample()
        total.update(first if first == second else b"random")
        return total.hexdigest()

    def _sample(self) -> bytes:
        images = [np.asarray(self._read(int(i))) for i in _evenly(len(self))]
        return b"".join(str(image.shape).encode() + image.tobytes() for image in images)


def without_loader(source: Any) -> Any:
    """What a loader over a map-style data set reads, without its batching, order and collate function.

    That is the data set (of a loader over a stream, the stream), or the subset that a `SubsetRandomSampler`
    draws from. Raises `DataError` for a sampler that is not torch's own: nobody knows which images it means.
    Anything else is given back.
    """
    if not (isinstance(source, DataLoader) and hasattr(source.dataset, "__getitem__")):
        return source
    if isinstance(source.dataset, IterableDataset):
        return source.dataset
    sampler: Any = source.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if sampler is None:
        sampler = source.sampler  # of a loader that does not make batches
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(source.dataset, [int(index) for index in sampler.indices])
    if type(sampler) not in WHOLE:
        raise DataError(
            f"a loader draws its images by a {type(sampler).__name__}, which a fit could not follow: give "
            "the data set itself, or a torch.utils.data.Subset of it"
        )
    return source.dataset


def read_user(source: Any, where: str) -> Items:
    """Items of a data set or loader, see `without_loader`; what can only be iterated is kept in memory."""
    source = without_loader(source)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        if len(source) == 0:
            raise DataError(f"{where} is empty; give at least one image per class")
        return UserItems(source, _labels(source, where), where)
    if isinstance(source, Iterable):
        return _streamed(
            source, where, batched=isinstance(source, DataLoader) and source.batch_size is not None
        )
    raise DataError(f"{where} is a {type(source).__name__}; give a data set or loader of (image, label)")


def class_names(source: Any) -> list[str] | None:
    """The `classes` of a data set, looked for below loaders and subsets; None if it has none."""
    while not hasattr(source, "classes") and hasattr(source, "dataset"):
        source = source.dataset
    names = getattr(source, "classes", None)
    return [str(name) for name in names] if isinstance(names, (list, tuple)) and names else None


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ItemError(f"{where} is a {type(item).__name__}; each item must be (image, label)")
    return item[0], item[1]


def _plain(image: Any, where: str) -> Any:
    """uint8 HxW[xC], float HxW[xC] in 0..1, or a float tensor CxHxW (ready-made)."""
    try:
        if isinstance(image, Image.Image):
            return pil_array(image)
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            if image.ndim == 3 and image.is_floating_point():
                if not torch.isfinite(image).all():
                    raise InputError("it has NaN or infinite values")
                return image.float()
            if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
                image = image.permute(1, 2, 0)  # torch's own order of axes
            image = image.numpy()
        if isinstance(image, np.ndarray) and image.ndim in (2, 3):
            return image_array(image[None], "it")[0]
    except OdnError as error:
        raise ItemError(f"{where}: {error}") from None
    raise ItemError(f"{where} has an image of kind {_kind(image)}; {_SHAPE_HINT}")


def _kind(image: Any) -> str:
    shape = getattr(image, "shape", None)
    name = type(image).__name__
    return name if shape is None else f"{name} of {image.dtype} and shape {tuple(shape)}"


def _is_ready(image: Any) -> bool:
    return isinstance(image, Tensor)


def _shape(image: Any) -> tuple[int, int, int]:
    if _is_ready(image):
        return (int(image.shape[1]), int(image.shape[2]), int(image.shape[0]))
    return (image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1)


def _evenly(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _PROBES)).astype(np.int64))


# --- labels without decoding every image -----------------------------------------------------------


def _labels(source: Any, where: str) -> np.ndarray:
    known = _known_labels(source)
    if known is not None and known.shape == (len(source),):
        ends = [(0, source[0]), (-1, source[len(source) - 1])]
        # An attribute may be there and mean something else; the items decide.
        if all(_label(_pair(item, where)[1], where) == known[at] for at, item in ends):
            return check_labels(known, where)
    values = [_label(_pair(source[i], f"item {i} of {where}")[1], where) for i in range(len(source))]
    return check_labels(values, where)


def _known_labels(source: Any) -> np.ndarray | None:
    if isinstance(source, TensorDataset):
        return source.tensors[-1].detach().cpu().numpy()
    if isinstance(source, Subset):
        parent = _known_labels(source.dataset)
        return None if parent is None else parent[np.asarray(source.indices, dtype=np.int64)]
    if isinstance(source, ConcatDataset):
        parts = [_known_labels(part) for part in source.datasets]
        return None if any(p is None for p in parts) else np.concatenate([p for p in parts if p is not None])
    if getattr(source, "target_transform", None) is not None:
        return None
    for attribute in ("targets", "labels"):
        values = getattr(source, attribute, None)
        if isinstance(values, (np.ndarray, Tensor)) or (
            isinstance(values, (list, tuple)) and all(isinstance(v, (int, float, np.number)) for v in values)
        ):
            array = np.asarray(values)
            return array if array.ndim == 1 and array.dtype.kind in "iuf" else None
    return None


def _label(value: Any, where: str) -> Any:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iufb":
        raise DataError(f"{where} has the label {value!r}; class numbers are whole, 0, 1, 2, ...")
    return array.reshape(()).item()


def _streamed(source: Iterable[Any], where: str, batched: bool) -> Items:
    images: list[Any] = []
    labels: list[Any] = []
    for entry in source:
        pairs: Sequence[Any] = list(zip(*_pair(entry, where), strict=False)) if batched else [entry]
        for item in pairs:
            image, label = _pair(item, f"item {len(labels)} of {where}")
            images.append(_plain(image, f"item {len(labels)} of {where}"))
            labels.append(_label(label, where))
        if len(images) > MAX_STREAMED:
            raise DataError(f"{where} yields more than {MAX_STREAMED} images; give a map-style data set")
    if not images:
        raise DataError(f"{where} is empty; give at least one image per class")
    if len({(_shape(image), _is_ready(image)) for image in images}) > 1:
        raise DataError(
            f"{where} yields images of different shapes; resize them, or give a map-style data set"
        )
    ready = _is_ready(images[0])
    stacked = torch.stack(images).numpy() if ready else np.stack(images)
    return ArrayItems(stacked, check_labels(labels, where), ready=ready)
