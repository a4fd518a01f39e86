"""A folder of images such as a reader has, made from a CIFAR-10 .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TEST_SHARE = 6  # a test image for so many training images


def make_pictures(source: Path, folder: Path, classes: list[str], per_class: int) -> None:
    """Write `folder`/train/CLASS/*.png and `folder`/test/CLASS/*.png.

    `source` holds x_train, y_train, x_test, y_test and the names, `classes`.
    """
    with np.load(source) as packed:
        arrays = {name: packed[name] for name in packed.files}  # an .npz unpacks anew whenever it is asked
    names = [str(name) for name in arrays["classes"]]
    for part, count in (("train", per_class), ("test", per_class // TEST_SHARE)):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        for name in classes:
            place = folder / part / name
            place.mkdir(parents=True)
            for index in np.flatnonzero(labels == names.index(name))[:count]:
                Image.fromarray(images[index]).save(place / f"{index:05}.png")


def make_photo(folder: Path, path: Path) -> str:
    """Copy a test image of the first class as a JPEG file to `path`; the class's name."""
    place = min((folder / "test").iterdir())
    Image.open(min(place.iterdir())).convert("RGB").save(path, quality=95)
    return place.name
