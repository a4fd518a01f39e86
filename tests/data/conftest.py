"""Made-up images in every form that is taken as data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from odn_hybrid.data import Data, choose_preprocess, load_data, make_loader
from odn_hybrid.errors import DataError


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *(shape or (8, 8))), dtype=np.uint8)


@pytest.fixture
def good_arrays() -> Callable[..., dict[str, np.ndarray]]:
    def make(n: int = 60, *shape: int) -> dict[str, np.ndarray]:
        return {
            "x_train": images(n, *shape),
            "y_train": np.arange(n) % 3,
            "x_test": images(12, *shape),
            "y_test": np.arange(12) % 3,
        }

    return make


@pytest.fixture
def npz(tmp_path: Path, good_arrays: Callable[..., dict[str, np.ndarray]]) -> Callable[..., Path]:
    def write(**changes: np.ndarray | None) -> Path:
        path = tmp_path / "data.npz"
        contents = {k: v for k, v in {**good_arrays(), **changes}.items() if v is not None}
        np.savez_compressed(path, **contents)
        return path

    return write


@pytest.fixture
def refused() -> Callable[..., None]:
    def make(source: Any, says: str, **options: Any) -> None:
        with pytest.raises(DataError, match=says) as caught:
            load_data(source, **options)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_status == 1

    return make


@pytest.fixture
def read_all() -> Callable[..., torch.Tensor]:
    def make(data: Data, split: str, workers: int = 0) -> torch.Tensor:
        channels = data.image_shape[2] if data.image_shape else 3
        preprocess = choose_preprocess(
            data, image_size=None, fixed_size=None, default_size=16, channels=channels
        )
        loader = make_loader(data.splits[split], preprocess, batch_size=7, workers=workers)
        return torch.cat([batch for batch, _, _ in loader])

    return make


@pytest.fixture
def picture_folder() -> Callable[..., Path]:
    def make(place: Path, n: int = 18, classes: tuple[str, ...] = ("cat", "dog"), side: int = 30) -> Path:
        for label, name in enumerate(classes):
            (place / name).mkdir(parents=True, exist_ok=True)
            for k in range(n):
                Image.fromarray(images(label * 100 + k + 1, side, side, 3)[0]).save(
                    place / name / f"{k:03}.png"
                )
        return place

    return make
