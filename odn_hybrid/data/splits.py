"""The five splits: sizes, stratified division, digests.

train          weights are fitted here
selection      epochs, expansion, static depth
calibration    temperatures, policies, order of candidates
certification  spent once per attempt at a certificate
test           touched once, at the end
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from odn_hybrid.data.hashing import random_bits
from odn_hybrid.data.items import Items
from odn_hybrid.errors import ConfigError, DataError

__all__ = ["SPLIT_NAMES", "Split", "divide", "pool_sizes", "stratified"]

SPLIT_NAMES = ("train", "selection", "calibration", "certification", "test")
MIN_POOL = 15  # below, a calibration split of n/15 would be empty
_STREAM = {"test": 1, "pool": 2, "val": 3, "subset": 4}


@dataclass(frozen=True, eq=False)
class Split:
    """Some of a source's images. `indices` (int64, ascending) point into `items`."""

    name: str
    items: Items
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (len(self),), in the order of the indices that loaders yield."""
        return self.items.labels[self.indices]

    @cached_property
    def digest(self) -> str:
        """sha256 of the source's digest and the indices: equal digests mean the same images."""
        total = hashlib.sha256(self.items.digest.encode())
        total.update(self.indices.astype("<i8").tobytes())
        return total.hexdigest()

    def subset(self, n: int) -> Split:
        """`n` of the images, stratified by class, always the same; the split itself if it has no more."""
        if n < 1:
            raise ConfigError(f"a subset of {n} images was asked for; ask for 1 or more")
        if n >= len(self):
            return self
        picked = stratified(self.labels, {"take": n}, "leave", (0, _STREAM["subset"]))["take"]
        return Split(self.name, self.items, self.indices[picked])


def pool_sizes(n: int) -> dict[str, int]:
    """Sizes cut from a training pool of `n` images (after the test split); the rest, at least 60 %, trains.

    selection = min(n/5, max(500, n/15)), calibration = min(n/15, max(300, n/30)),
    certification = min(2n/15, max(1000, n/15)): 60,000 -> 4,000 / 2,000 / 4,000 and 50,000 to train on.
    """
    return {
        "selection": min(n // 5, max(500, n // 15)),
        "calibration": min(n // 15, max(300, n // 30)),
        "certification": min(2 * n // 15, max(1000, n // 15)),
    }


def divide(pools: Mapping[str, Items], seed: int, source: str) -> dict[str, Split]:
    """The five splits of pools `train` and, where the source has them, `val` and `test`.

    Without `val`: a source without `test` first gives up n // 6 of its images as test, then the rest is cut
    by `pool_sizes`; every class keeps at least one image in train and one in selection. With `val`: train
    stays whole, and val is divided 30/10/30/30 % into selection / calibration / certification / test, or,
    where the source has a test set, 40/20/40 % into the first three. All cuts are stratified by class and a
    function of the seed.
    """
    train = pools["train"]
    splits: dict[str, Split] = {}
    if "val" in pools:
        splits["train"] = Split("train", train, np.arange(len(train)))
        splits |= _divide_val(pools["val"], "test" in pools, seed, source)
    else:
        splits |= _divide_pool(train, "test" in pools, seed, source)
    if "test" in pools:
        splits["test"] = Split("test", pools["test"], np.arange(len(pools["test"])))
    return {name: splits[name] for name in SPLIT_NAMES}


def _divide_val(val: Items, has_test: bool, seed: int, source: str) -> dict[str, Split]:
    n = len(val)
    if has_test:
        least, rest = 5, "certification"
        sizes = {"selection": 2 * n // 5, "calibration": n // 5}
    else:
        least, rest = 10, "test"
        sizes = {"selection": 3 * n // 10, "calibration": n // 10, "certification": 3 * n // 10}
    if n < least:
        raise DataError(f"the validation set of {source} has {n} images; dividing it needs at least {least}")
    parts = stratified(val.labels, sizes, rest, (seed, _STREAM["val"]))
    return {name: Split(name, val, indices) for name, indices in parts.items()}


def _divide_pool(pool: Items, has_test: bool, seed: int, source: str) -> dict[str, Split]:
    labels, rows = pool.labels, np.arange(len(pool))
    needed = 2 if has_test else 3  # an image of a class for train, for selection, and one to spare for test
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        scarce = classes[counts.argmin()]
        raise DataError(
            f"class {scarce} of {source} has {counts.min()} image; each class needs at least 2"
            f" (train, selection), better {needed} or more"
        )
    parts: dict[str, np.ndarray] = {}
    if not has_test:
        cut = stratified(labels, {"test": len(rows) // 6}, "pool", (seed, _STREAM["test"]), {"pool": 2})
        parts["test"], rows = cut["test"], cut["pool"]
    sizes = pool_sizes(len(rows))
    if len(rows) < MIN_POOL or not all(map(len, [rows, *parts.values()])):
        raise DataError(
            f"{source} has {len(pool)} training images, too few to divide; give {MIN_POOL * 6 // 5} or more"
        )
    if sizes["selection"] < len(classes):
        raise DataError(
            f"{source} has {len(pool)} training images for {len(classes)} classes: the selection split of"
            f" {sizes['selection']} cannot hold one of each;"
            f" give at least {5 if has_test else 6} images per class"
        )
    inner = stratified(labels[rows], sizes, "train", (seed, _STREAM["pool"]), {"train": 1, "selection": 1})
    parts |= {name: rows[picked] for name, picked in inner.items()}
    return {name: Split(name, pool, indices) for name, indices in parts.items()}


def stratified(
    labels: np.ndarray,
    sizes: Mapping[str, int],
    rest: str,
    words: tuple[int, ...],
    least: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Ascending positions per part: disjoint, together everything, exactly `sizes`, what is left in `rest`.

    Each class's share of a part is its proportional share of what is left, rounded up or down, except where
    `least` images per class (a part's, or the rest's) ask for more. `words` key the choice of images.
    """
    least = least or {}
    classes, member = np.unique(labels, return_inverse=True)
    left = np.bincount(member, minlength=len(classes))
    order = np.lexsort((random_bits(words, np.arange(len(labels))), member))
    start = np.concatenate(([0], np.cumsum(left)[:-1]))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*sizes, rest)}
    for name, size in sizes.items():
        # Images that later parts cannot do without are not up for division.
        kept = np.minimum(left, least.get(rest, 0))
        take = _allocate(left, size, np.minimum(left - kept, least.get(name, 0)), left - kept)
        for k, amount in enumerate(take):
            parts[name].append(order[start[k] : start[k] + amount])
        start, left = start + take, left - take
    for k, amount in enumerate(left):
        parts[rest].append(order[start[k] : start[k] + amount])
    return {name: np.sort(np.concatenate(pieces)) for name, pieces in parts.items()}


def _allocate(counts: np.ndarray, size: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whole numbers near counts * size / sum(counts), within low..high, that add up to `size`."""
    share = counts * (size / max(1, counts.sum()))
    take = np.clip(np.floor(share).astype(np.int64), low, high)
    while (short := size - int(take.sum())) != 0:
        step = 1 if short > 0 else -1
        open_ = np.flatnonzero(take < high if step > 0 else take > low)
        if len(open_) == 0:
            raise DataError(
                f"{int(counts.sum())} images are too few per class to cut {size} off; give more images"
            )
        furthest = open_[np.argsort(-step * (share - take)[open_], kind="stable")]
        take[furthest[: abs(short)]] += step
    return take
