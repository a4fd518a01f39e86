"""Data sets by name: scikit-learn's digits, which come with the library, and torchvision's."""

from __future__ import annotations

import os
import string
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from odn_hybrid.data.items import ArrayItems, Items
from odn_hybrid.data.labels import check_labels
from odn_hybrid.errors import DataError

__all__ = ["TORCHVISION_NAMES", "default_root", "read_digits", "read_torchvision"]

TORCHVISION_NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "emnist_letters": "EMNIST",
}
_BROKEN = (OSError, RuntimeError, ValueError, EOFError, AssertionError, tarfile.TarError, zipfile.BadZipFile)


def default_root() -> Path:
    """Where data sets are downloaded to unless the caller says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "odn_hybrid" / "data"


def read_digits() -> tuple[dict[str, Items], list[str]]:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; pixels 0..16 are scaled to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    return {"train": ArrayItems(images, bunch.target.astype(np.int64))}, list(string.digits)


def read_torchvision(name: str, root: str | Path | None) -> tuple[dict[str, Items], list[str]]:
    """A torchvision data set below `root`, downloaded if it is not there.

    Pixels and labels are torchvision's own, except that the labels of emnist_letters start at 0.
    """
    place = Path(root) if root is not None else default_root()
    pools: dict[str, Items] = {}
    classes: list[str] = list(string.ascii_lowercase) if name == "emnist_letters" else []
    for part in ("train", "test"):
        found = _open(name, part, place)
        labels = np.asarray(found.labels if name == "svhn" else found.targets)
        images = np.asarray(found.data)
        images = images.transpose(0, 2, 3, 1) if name == "svhn" else images
        labels = check_labels(
            labels - 1 if name == "emnist_letters" else labels, f"{name} ({part})", len(images)
        )
        pools[part] = ArrayItems(np.ascontiguousarray(images), labels)
        classes = classes or [str(c) for c in getattr(found, "classes", range(10))]
    return pools, classes


def _open(name: str, part: str, place: Path) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION_NAMES[name])
    which: dict[str, Any] = {"split": part} if name == "svhn" else {"train": part == "train"}
    if name == "emnist_letters":
        which["split"] = "letters"
    # torchvision unpickles CIFAR's files, but only after their MD5 sums have been found right.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return kind(place, download=False, **which)
        except _BROKEN as error:
            if "not found" not in str(error):
                raise DataError(
                    f"cannot read {name} in {place} ({_line(error)}); remove it to download it anew"
                ) from None
        try:
            return kind(place, download=True, **which)
        except _BROKEN as error:
            raise DataError(
                f"{name} is not in {place} and cannot be downloaded ({_line(error)});"
                " name the folder that holds it as root, or give an .npz file"
            ) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
