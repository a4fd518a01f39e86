"""Labels as they come, checked and made int64."""

from __future__ import annotations

from typing import Any

import numpy as np

from odn_hybrid.data.items import Items
from odn_hybrid.errors import DataError

__all__ = ["check_labels", "name_classes"]


def check_labels(values: Any, where: str, count: int | None = None) -> np.ndarray:
    """int64 (N,) of class numbers from 0; else `DataError` naming `where`. `count` images go with them."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; take the argmax of one-hot rows" if array.ndim == 2 else ""
        raise DataError(f"{where} has labels of shape {array.shape}; give one class number per image{hint}")
    if count is not None and len(array) != count:
        raise DataError(f"{where} has {count} images but {len(array)} labels; each image needs one")
    if len(array) == 0:
        raise DataError(f"{where} is empty; give at least one image per class")
    if array.dtype.kind not in "iufb":
        raise DataError(f"{where} has labels of dtype {array.dtype}; give class numbers 0, 1, 2, ...")
    if array.dtype.kind == "f":
        wrong = array[~(np.isfinite(array) & (array == np.floor(array)))]
        if len(wrong):
            raise DataError(f"{where} has the label {wrong[0]}; class numbers are whole, 0, 1, 2, ...")
    low = array.min()
    if low < 0:
        raise DataError(f"{where} has the label {int(low)}; class numbers start at 0")
    if array.max() >= 2**31:
        raise DataError(
            f"{where} has the label {int(array.max())}; class numbers run from 0 to the class count - 1"
        )
    return array.astype(np.int64)


def name_classes(
    pools: dict[str, Items], names: list[str] | None, num_classes: int | None, source: str
) -> list[str]:
    """One name per class; a class that no image has is marked. Checks the labels of all pools together."""
    train = pools["train"].labels
    top = max(int(items.labels.max()) for items in pools.values())
    total = num_classes or len(names or ()) or top + 1
    if top >= total:
        raise DataError(f"{source} has the label {top}, out of range for {total} classes (0 to {total - 1})")
    if names is not None and len(names) != total:
        raise DataError(
            f"{source} names {len(names)} classes, but {total} were asked for; make the two agree"
        )
    present = np.unique(train)
    if len(present) < 2:
        raise DataError(
            f"{source} has images of one class only (label {present[0]}); classifying needs two or more"
        )
    if len(train) < total:
        raise DataError(f"{source} has {len(train)} training images for {total} classes; give more images")
    seen = np.zeros(total, dtype=bool)
    for part, items in pools.items():
        extra = np.setdiff1d(items.labels, present)
        if len(extra):
            raise DataError(f"{source}: class {extra[0]} has images in {part} but none to train on")
        seen[items.labels] = True
    labels = names or [str(k) for k in range(total)]
    return [str(n) if seen[k] else f"{n} (no images)" for k, n in enumerate(labels)]
