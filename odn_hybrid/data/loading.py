"""Batches for training and evaluation, repeatable to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from odn_hybrid.data.augmenting import DRAWS, random_crop, shift_flip
from odn_hybrid.data.hashing import permutation, uniforms
from odn_hybrid.data.items import ItemError
from odn_hybrid.data.policies import apply_policy, erase_boxes, make_policy
from odn_hybrid.data.preprocess import Preprocess
from odn_hybrid.data.splits import Split
from odn_hybrid.errors import ConfigError, InputError

__all__ = ["AUGMENTATIONS", "Augmentation", "Batch", "make_loader"]

Augmentation = Literal["none", "shift", "shift_flip", "crop_flip"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)
Batch = tuple[Tensor, Tensor, Tensor]
_ORDER, _AUGMENT, _POLICY, _ERASE = 1, 2, 3, 4  # independent streams of random numbers


class Clock:
    """The epoch, shared by the sampler (order) and the data set (augmentation)."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.epoch = first


class EpochSampler(Sampler[int]):
    """All indices, in an order that is a function of (seed, epoch)."""

    def __init__(self, count: int, shuffle: bool, seed: int, clock: Clock) -> None:
        self.count, self.shuffle, self.seed, self.clock = count, shuffle, seed, clock

    def set_epoch(self, passes: int) -> None:
        """`passes` counts from the epoch the loader was made for, as accelerate counts a loader's passes."""
        self.clock.epoch = self.clock.first + passes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.count))
        return iter(permutation((self.seed, _ORDER, self.clock.epoch), self.count).tolist())


class Batches(Dataset[Batch]):
    """A split as the model takes it; whole batches at a time."""

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        augment: str,
        seed: int,
        clock: Clock,
        rand_augment: str | None = None,
        erase: float = 0.0,
    ) -> None:
        self.split, self.preprocess, self.augment = split, preprocess, augment
        self.seed, self.clock = seed, clock
        self.policy, self.erase = make_policy(rand_augment, preprocess), erase

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Batch:
        images, labels, indices = self.__getitems__([index])
        return images[0], labels[0], indices[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        raw = self.split.items.fetch(self.split.indices[rows])
        try:
            images = self._transform(raw, rows)
        except InputError as error:
            raise ItemError(self._blame(raw, rows) or str(error)) from None
        return images, torch.from_numpy(self.split.labels[rows]), torch.from_numpy(rows)

    def _transform(self, raw: Any, rows: np.ndarray) -> Tensor:
        pixels = self._moved(raw, rows)
        if self.policy is not None:
            pixels = apply_policy(self.policy, pixels, (self.seed, _POLICY, self.clock.epoch), rows)
        images = self.preprocess.normalise(pixels).contiguous()
        if self.erase:
            return erase_boxes(images, self.erase, (self.seed, _ERASE, self.clock.epoch), rows)
        return images

    def _moved(self, raw: Any, rows: np.ndarray) -> Tensor:
        if self.augment == "none":
            return self.preprocess.pixels(raw)
        random = uniforms((self.seed, _AUGMENT, self.clock.epoch), rows, DRAWS)
        if self.augment == "crop_flip":
            return shift_flip(random_crop(self.preprocess, raw, random), random, shift=False, flip=True)
        return shift_flip(self.preprocess.pixels(raw), random, shift=True, flip=self.augment == "shift_flip")

    def _blame(self, raw: Any, rows: np.ndarray) -> str | None:
        """Which image of a batch the transform refuses."""
        for image, row in zip(raw, rows, strict=True):
            try:
                self.preprocess([image])
            except InputError as error:
                return f"{self.split.items.name(int(self.split.indices[row]))}: {error}"
        return None


def _as_it_is(batch: Any) -> Batch:
    return batch


def make_loader(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int,
    augment: Augmentation = "none",
    rand_augment: str | None = None,
    erase: float = 0.0,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    drop_last: bool = False,
) -> DataLoader[Batch]:
    """Batches (images float32 (B, C, H, W), labels int64 (B,), indices within `split` int64 (B,)).

    The order is a function of (seed, epoch) and each image's augmentation of (seed, epoch, index): neither
    depends on batch size, workers or sharding, and torch's and numpy's global generators are left alone.
    Every pass over the loader repeats `epoch`; `loader.sampler.set_epoch(k)` makes it epoch + k, which
    accelerate does by itself from pass to pass.

    `augment`: "none" (evaluation), "shift" by up to 1/14 of the side, "shift_flip" also mirrors, "crop_flip"
    is a random resized crop of 8 to 100 % of the area, mirrored half of the time. `rand_augment` is a policy
    of timm in its own words, applied after that; `erase` the probability that a rectangle becomes noise.

    Raises `ConfigError` for an impossible choice; while iterating, `DataError` for an unreadable image.
    """
    if augment not in AUGMENTATIONS:
        raise ConfigError(f"augment is {augment!r}; choose one of {', '.join(AUGMENTATIONS)}")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("epoch", epoch, 0)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number, {least} or more")
    clock = Clock(epoch)
    return DataLoader(
        Batches(split, preprocess, augment, seed, clock, rand_augment, erase),
        batch_size=batch_size,
        sampler=EpochSampler(len(split), shuffle, seed, clock),
        num_workers=workers,
        collate_fn=_as_it_is,  # `__getitems__` made the batch already
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(seed),  # else every pass draws from the global generator
    )
