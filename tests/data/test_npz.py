"""`.npz` files: what is taken, and every malformed one refused in one line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from odn_hybrid.data import (
    arrays,
    channel_stats,
    load_data,
)
from odn_hybrid.errors import ConfigError


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *(shape or (8, 8))), dtype=np.uint8)


def test_npz(npz: Callable[..., Path]) -> None:
    data = load_data(npz(classes=np.array(["ant", "bee", "cow"])))
    assert data.classes == ["ant", "bee", "cow"] and data.image_shape == (8, 8, 1) and data.name == "data.npz"
    assert len(data.splits["test"]) == 12
    described = json.loads(json.dumps(data.describe()))
    assert set(described["splits"]["train"]) == {"size", "digest"}
    assert load_data(data) is data
    assert load_data(str(npz()), seed=1).splits["train"].digest != data.splits["train"].digest


def test_npz_with_colour_floats_and_column_labels(
    npz: Callable[..., Path], read_all: Callable[..., torch.Tensor]
) -> None:
    x = images(60, 5, 9, 3)
    as_bytes = load_data(npz(x_train=x, x_test=x[:12]))
    digests = as_bytes.describe()["splits"]
    stats = channel_stats(as_bytes.splits["train"])
    as_floats = load_data(npz(x_train=x / 255.0, x_test=x[:12] / 255.0, y_train=(np.arange(60) % 3)[:, None]))
    assert as_bytes.image_shape == as_floats.image_shape == (5, 9, 3)
    np.testing.assert_allclose(channel_stats(as_floats.splits["train"]), stats, atol=1e-5)
    assert digests != as_floats.describe()["splits"]
    torch.testing.assert_close(read_all(as_bytes, "test"), read_all(as_floats, "test"), atol=1e-4, rtol=0)


def test_gaps_between_labels_are_allowed_and_stated(npz: Callable[..., Path]) -> None:
    data = load_data(npz(y_train=np.arange(60) % 2 * 3, y_test=np.zeros(12)))
    assert data.num_classes == 4
    assert data.classes == ["0", "1 (no images)", "2 (no images)", "3"]


N = 60
NAN = images(N).astype(np.float32) / 255.0
NAN[17, 2, 2] = np.nan
LABELS = np.arange(N) % 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_test": None, "y_test": None}, "lacks x_test, y_test"),
        ({"x_train": images(N).astype(np.int64)}, "x_train of .* dtype int64"),
        ({"x_train": images(N).astype(object)}, "x_train of .* object"),
        ({"x_train": images(N)[:, 0]}, r"shape \(60, 8\)"),
        ({"x_train": images(N, 3, 8, 8)}, "transpose"),
        ({"x_train": images(N, 8, 9)}, "both must agree"),
        ({"x_train": images(N)[:0], "y_train": LABELS[:0]}, "empty"),
        ({"x_train": NAN}, "NaN or infinite pixels .*image 17"),
        ({"x_train": np.where(np.isnan(NAN), np.inf, NAN)}, "infinite"),
        ({"x_train": images(N).astype(np.float32)}, "scale them to 0..1"),
        ({"y_train": LABELS[:-1]}, "60 images but 59 labels"),
        ({"y_train": LABELS - 1}, "label -1"),
        ({"y_train": LABELS + 0.5}, "label 0.5"),
        ({"y_train": LABELS * np.nan}, "label nan"),
        ({"y_train": np.eye(3)[LABELS]}, "argmax"),
        ({"y_train": LABELS.astype(str)}, "dtype <U"),
        ({"y_train": LABELS.astype(object)}, "object"),
        ({"y_train": LABELS.astype(np.uint64) + 2**40}, "class numbers run"),
        ({"y_train": np.ones(N, int), "y_test": np.ones(12, int)}, r"one class only \(label 1\)"),
        ({"y_train": LABELS * 1000}, "60 training images for 2001 classes"),
        ({"y_test": np.arange(12) % 4}, "class 3 has images in test but none to train on"),
        ({"classes": np.array(["a", "b"])}, "label 2, out of range for 2 classes"),
        ({"classes": np.array([1, 2, 3])}, "list of strings"),
    ],
)
def test_malformed_npz(
    npz: Callable[..., Path], changes: dict[str, Any], says: str, refused: Callable[..., None]
) -> None:
    refused(npz(**changes), says)


def test_labels_above_a_given_class_count(npz: Callable[..., Path], refused: Callable[..., None]) -> None:
    refused(npz(), "label 2, out of range for 2 classes", num_classes=2)
    assert load_data(npz(), num_classes=5).num_classes == 5
    refused(npz(classes=np.array(["a", "b", "c"])), "names 3 classes", num_classes=5)
    for options in ({"num_classes": 1}, {"seed": -1}):
        with pytest.raises(ConfigError):
            load_data("digits", **options)  # type: ignore[arg-type]


def test_files_that_are_not_npz(
    tmp_path: Path, npz: Callable[..., Path], refused: Callable[..., None]
) -> None:
    text = tmp_path / "text.npz"
    text.write_text("hello")
    refused(text, "cannot read")
    whole = npz().read_bytes()
    text.write_bytes(whole[: len(whole) // 2])
    refused(text, "cannot read")
    damaged = bytearray(whole)
    damaged[200:400] = bytes(200)
    text.write_bytes(damaged)
    refused(text, "cannot read|damaged")
    other = tmp_path / "data.csv"
    other.write_text("1,2")
    refused(other, "neither a folder nor an .npz")


def test_npz_that_would_unpack_to_too_much(
    npz: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 1000)
    refused(npz(), "above the limit of 1000")


def test_npz_whose_header_promises_more_than_there_is(
    tmp_path: Path, npz: Callable[..., Path], refused: Callable[..., None]
) -> None:
    source, target = npz(), tmp_path / "liar.npz"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            contents = old.read(name)
            if name == "x_train.npy":
                contents = contents.replace(b"(60, 8, 8), }" + b" " * 9, b"(60000000, 1000, 8), }")
            new.writestr(name, contents)
    refused(target, "promises shape")
