"""`load_data`: whatever a user calls data -> `Data`, five splits with classes and digests."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from odn_hybrid.data.arrays import read_npz
from odn_hybrid.data.folders import read_folder
from odn_hybrid.data.items import Items, shared_shape
from odn_hybrid.data.labels import name_classes
from odn_hybrid.data.named import TORCHVISION_NAMES, read_digits, read_torchvision
from odn_hybrid.data.splits import Split, divide
from odn_hybrid.data.user import class_names, read_user, without_loader
from odn_hybrid.errors import ConfigError, DataError

__all__ = ["DATA_NAMES", "Data", "load_data"]

DATA_NAMES = ("digits", *TORCHVISION_NAMES)
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, divided.

    `image_shape` is (height, width, channels) in the files, None if they differ in size; of 3 channels where
    some are grey and some in colour. `classes` has one name per
    class; one without images says so. `folder`: it came from image files. `ready`: its images are float
    tensors that the model takes as they are.
    """

    name: str
    num_classes: int
    classes: list[str]
    image_shape: tuple[int, int, int] | None
    splits: dict[str, Split]
    seed: int = 0
    folder: bool = False
    ready: bool = False

    def describe(self) -> dict[str, Any]:
        """What a run directory records: JSON-able, without paths."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape) if self.image_shape else None,
            "seed": self.seed,
            "splits": {name: {"size": len(s), "digest": s.digest} for name, s in self.splits.items()},
        }


def load_data(
    source: Any, *, root: str | Path | None = None, seed: int = 0, num_classes: int | None = None
) -> Data:
    """Read, check and divide a data set.

    Args:
        source: one of `DATA_NAMES`; a folder in ImageFolder layout (with or without train/, val/, test/); an
            `.npz` with x_train, y_train, x_test, y_test (and class names in `classes`); a data set or loader
            of (image, label), or a tuple (train, val) or (train, val, test) of them. An image is a PIL image,
            a uint8 array, or a float tensor (C, H, W) that the model takes as it is. A name wins over a
            folder of the same name; write `./mnist` for the folder.
        root: where torchvision data sets lie or are downloaded to; the user's cache folder by default.
        seed: of the division into splits (0 or more).
        num_classes: labels must be below it; by default one more than the highest, or as many as are named.

    Sizes: a source without a test set gives up 1/6. Of the remaining n training images, selection gets
    min(n/5, max(500, n/15)), calibration min(n/15, max(300, n/30)), certification min(2n/15, max(1000, n/15))
    and training the rest (60,000 -> 4,000 / 2,000 / 4,000 / 50,000). A validation set of the user's own is
    divided instead, and train stays whole: 30/10/30/30 % selection / calibration / certification / test, or
    40/20/40 % where there is a test set. See `splits.divide`.

    Raises `DataError` for data that is missing, malformed or too small, `ConfigError` for an impossible seed.
    """
    if isinstance(source, Data):
        return source
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    if num_classes is not None and num_classes < 2:
        raise ConfigError(f"num_classes is {num_classes!r}; classification needs 2 or more")
    name, pools, names, folder = _open(source, root)
    classes = name_classes(pools, names, num_classes, name)
    shapes = {items.shape for items in pools.values()}
    ready = {items.ready for items in pools.values()}
    if len(ready) > 1 or (ready == {True} and len(shapes) > 1):
        found = ", ".join(f"{part} {items.shape}" for part, items in pools.items())
        raise DataError(
            f"{name}: train, val and test yield images of different kinds ({found}); make them alike"
        )
    return Data(
        name=name,
        num_classes=len(classes),
        classes=classes,
        image_shape=shared_shape(shapes),
        splits=divide(pools, seed, name),
        seed=seed,
        folder=folder,
        ready=ready.pop(),
    )


def _open(source: Any, root: str | Path | None) -> tuple[str, dict[str, Items], list[str] | None, bool]:
    """Name, pools, class names (if known) and whether it is a folder."""
    if isinstance(source, str) and source == "digits":
        return (source, *read_digits(), False)
    if isinstance(source, str) and source in TORCHVISION_NAMES:
        return (source, *read_torchvision(source, root), False)
    if isinstance(source, (str, Path)):
        return _open_path(source)
    parts = source if isinstance(source, tuple) else (source,)
    if len(parts) not in (1, 2, 3):
        raise DataError(f"data is a tuple of {len(parts)}; give (train, val) or (train, val, test)")
    for part in parts:
        if (
            part is None
            or isinstance(part, (str, bytes, dict, np.ndarray))
            or hasattr(part, "is_floating_point")
        ):
            raise DataError(
                f"data holds a {type(part).__name__}; give a name, a path or data sets of (image, label)"
                " (arrays: torch.utils.data.TensorDataset, or an .npz file)"
            )
    _check_disjoint(parts)
    wheres = dict(zip(("train", "val", "test"), parts, strict=False))
    pools = {
        part: read_user(value, f"the {part} set" if len(parts) > 1 else "the data set")
        for part, value in wheres.items()
    }
    inner = parts[0]
    while hasattr(inner, "dataset"):
        inner = inner.dataset
    return type(inner).__name__, pools, class_names(parts[0]), False


def _open_path(source: str | Path) -> tuple[str, dict[str, Items], list[str] | None, bool]:
    path = Path(source).expanduser()
    text = str(source)
    if path.is_dir():
        return (path.resolve().name, *read_folder(path), True)
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise DataError(
                f"{text} is neither a folder nor an .npz file; see odn_hybrid.load_data for what is taken"
            )
        return (path.name, *read_npz(path), False)
    if path.exists():
        raise DataError(f"{text} is neither a folder nor a regular file")
    if isinstance(source, Path) or "/" in text or "\\" in text or path.suffix:
        raise DataError(f"no file or folder at {text}; check the path")
    near = difflib.get_close_matches(text.lower().replace("-", "_"), DATA_NAMES, n=2)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known names: {', '.join(DATA_NAMES)}"
    )
    raise DataError(f"unknown data set {text!r}; {hint} (or give the path of a folder or .npz)")


def _check_disjoint(parts: tuple[Any, ...]) -> None:
    found = [_origins(part) for part in parts]
    for number, one in enumerate(found):
        for other in found[:number]:
            for owner in set(one) & set(other):
                if len(np.intersect1d(one[owner], other[owner])):
                    raise DataError(
                        "train, val and test share images; give data sets that have none in common"
                    )


def _origins(part: Any) -> dict[int, Indices]:
    """Which items of which data sets (by `id`) lie below loaders, subsets and wrappers."""
    owners, items = _origin(part)
    return {int(owner): items[owners == owner] for owner in np.unique(owners)}


def _origin(part: Any) -> tuple[Indices, Indices]:
    """Of every item the data set that it comes from at last, and its index there."""
    part = without_loader(part)
    if isinstance(part, Subset):
        owners, items = _origin(part.dataset)
        chosen = np.asarray(part.indices, dtype=np.int64)
        return owners[chosen], items[chosen]
    if isinstance(part, ConcatDataset):
        found = [_origin(one) for one in part.datasets]
        return np.concatenate([owners for owners, _ in found]), np.concatenate([items for _, items in found])
    size = len(part) if hasattr(part, "__len__") else 1  # what can only be iterated is one whole
    inner: Any = getattr(part, "dataset", None)
    if hasattr(inner, "__len__") and len(inner) == size:  # a wrapper, such as one that transforms
        return _origin(inner)
    return np.full(size, id(part), dtype=np.int64), np.arange(size)
