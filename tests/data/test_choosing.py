"""Which size, mean and standard deviation a data set and a model get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odn_hybrid.data import (
    Data,
    channel_stats,
    choose_preprocess,
    load_data,
)
from odn_hybrid.errors import ConfigError


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *(shape or (8, 8))), dtype=np.uint8)


def choose(data: Data, **options: Any) -> tuple[int, int]:
    defaults = {"image_size": None, "fixed_size": None, "default_size": 160, "channels": 3}
    return choose_preprocess(data, **{**defaults, **options}).size


def test_the_size_rule(npz: Callable[..., Path], tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    small = load_data("digits")
    assert choose(small) == (32, 32)
    assert choose(small, image_size=48) == (48, 48)
    assert choose(small, fixed_size=(224, 224)) == (224, 224)
    assert choose(small, fixed_size=(224, 224), image_size=224) == (224, 224)
    with pytest.raises(ConfigError, match="224x224 only"):
        choose(small, fixed_size=(224, 224), image_size=96)
    assert choose(load_data(npz(x_train=images(60, 28, 40), x_test=images(12, 28, 40)))) == (28, 40)
    assert choose(load_data(npz(x_train=images(60, 16, 24), x_test=images(12, 16, 24)))) == (32, 48)
    assert choose(load_data(picture_folder(tmp_path / "thumbnails", side=64))) == (64, 64)
    assert choose(load_data(picture_folder(tmp_path / "photos", side=65))) == (160, 160)
    assert choose(load_data(tmp_path / "photos"), default_size=None) == (224, 224)


def test_mean_and_std_are_the_models_or_the_training_splits() -> None:
    data = load_data("digits")
    mean, std = channel_stats(data.splits["train"])
    pixels = data.splits["train"].items.fetch(data.splits["train"].indices) / 255.0
    assert mean[0] == pytest.approx(pixels.mean(), abs=1e-5) and std[0] == pytest.approx(
        pixels.std(), abs=1e-5
    )
    options: dict[str, Any] = {"image_size": None, "fixed_size": None, "default_size": None}
    assert choose_preprocess(data, channels=3, **options).mean == mean * 3
    assert choose_preprocess(data, channels=3, mean_std=(mean, std), **options).std == std * 3
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert choose_preprocess(data, channels=3, mean_std=imagenet, **options).mean == imagenet[0]
    assert choose_preprocess(data, channels=1, mean_std=imagenet, **options).mean == pytest.approx(
        (0.459,), abs=1e-3
    )
    with pytest.raises(ConfigError, match="channels"):
        choose_preprocess(data, channels=4, mean_std=imagenet, **options)


def test_a_constant_channel_does_not_divide_by_zero(npz: Callable[..., Path]) -> None:
    black = np.zeros((60, 8, 8), dtype=np.uint8)
    assert channel_stats(load_data(npz(x_train=black)).splits["train"]) == ((0.0,), (1.0,))
