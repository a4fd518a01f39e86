"""Names, paths and folders: what is taken, and what is refused in one line."""

from __future__ import annotations

import gzip
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from odn_hybrid import imaging
from odn_hybrid.data import load_data
from odn_hybrid.errors import DataError


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *(shape or (8, 8))), dtype=np.uint8)


# --- names and paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("CIFAR-10", "did you mean 'cifar10'"),
        ("zebra", "known names: digits, mnist"),
        ("no/such/folder", "no file or folder at no/such/folder"),
        ("absent.npz", "no file or folder at absent.npz"),
        (Path("absent"), "no file or folder"),
        (3, "give a data set or loader"),
        (None, "NoneType"),
        ((), "tuple of 0"),
        (("mnist", "mnist"), "holds a str"),
        ((np.zeros((4, 8, 8)), np.zeros(4)), "TensorDataset"),
        (({"image": 1}, {"image": 1}), "holds a dict"),
    ],
)
def test_unknown_sources(source: Any, says: str, refused: Callable[..., None]) -> None:
    refused(source, says)


def idx(path: Path, array: np.ndarray, packed: bool = False) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(contents) if packed else contents)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_torchvision_name_with_the_files_at_hand(
    tmp_path: Path,
    npz: Callable[..., Path],
    name: str,
    folder: str,
    good_arrays: Callable[..., dict[str, np.ndarray]],
) -> None:
    made = good_arrays()
    for part, word in (("train", "train"), ("t10k", "test")):
        idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", made[f"x_{word}"])
        idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", made[f"y_{word}"])
    data = load_data(name, root=tmp_path)
    assert len(data.splits["test"]) == 12 and data.num_classes == 10
    # The same pixels from another kind of source have the same digests.
    assert data.describe()["splits"] == load_data(npz()).describe()["splits"]


def test_emnist_labels_start_at_zero(tmp_path: Path) -> None:
    labels = np.arange(26 * 8) % 26 + 1
    for part in ("train", "test"):
        stem = tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}"
        idx(Path(f"{stem}-images-idx3-ubyte"), images(len(labels)))
        idx(Path(f"{stem}-labels-idx1-ubyte"), labels)
    data = load_data("emnist_letters", root=tmp_path)
    assert data.num_classes == 26 and data.classes[0] == "a" and data.classes[25] == "z"
    assert data.splits["test"].labels.min() == 0


class FakeVision:
    """A torchvision data set without its download."""

    def __init__(self, root: Path, download: bool, train: bool = True, split: str = "train") -> None:
        n = 60 if train and split == "train" else 12
        self.data: np.ndarray = images(n, 8, 8, 3)
        self.targets = [k % 3 for k in range(n)]
        self.labels = np.array(self.targets)
        self.classes = ["x", "y", "z"]


def test_cifar_and_svhn_become_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeSvhn(FakeVision):
        def __init__(self, root: Path, download: bool, split: str) -> None:
            super().__init__(root, download, split=split)
            self.data = self.data.transpose(0, 3, 1, 2)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeVision)
    monkeypatch.setattr("torchvision.datasets.SVHN", FakeSvhn)
    cifar, svhn = load_data("cifar10"), load_data("svhn", num_classes=None)
    assert cifar.image_shape == svhn.image_shape == (8, 8, 3)
    assert cifar.describe()["splits"] == svhn.describe()["splits"]


def test_a_failed_download_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    def offline(*args: object, download: bool, **which: object) -> None:
        if download:
            raise urllib.error.URLError("no route\nto host")
        raise RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    refused("cifar10", "cannot be downloaded .*no route to host.* as root, or give an .npz", root=tmp_path)


def test_damaged_downloaded_files(tmp_path: Path, refused: Callable[..., None]) -> None:
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            idx(tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte", np.zeros(3))
    refused("mnist", "mnist", root=tmp_path)


# --- folders ----------------------------------------------------------------------------------------


def test_folder_without_parts(
    tmp_path: Path, picture_folder: Callable[..., Path], read_all: Callable[..., torch.Tensor]
) -> None:
    data = load_data(picture_folder(tmp_path / "pets"))
    assert data.name == "pets" and data.classes == ["cat", "dog"] and data.image_shape == (30, 30, 3)
    assert sum(map(len, data.splits.values())) == 36 and data.folder
    assert read_all(data, "train").shape[1:] == (3, 30, 30)
    first = data.splits["train"]
    np.testing.assert_array_equal(
        first.items.fetch(first.indices[:1])[0], images(first.indices[0] + 1, 30, 30, 3)[0]
    )
    Image.new("RGB", (30, 30)).save(tmp_path / "pets" / "cat" / "017.png")
    assert load_data(tmp_path / "pets").splits["train"].digest != first.digest


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_train_val_and_test(
    tmp_path: Path, val: str, picture_folder: Callable[..., Path]
) -> None:
    picture_folder(tmp_path / "train", 5)
    picture_folder(tmp_path / val, 10)
    sizes = {name: len(split) for name, split in load_data(tmp_path).splits.items()}
    assert sizes == {"train": 10, "selection": 6, "calibration": 2, "certification": 6, "test": 6}
    picture_folder(tmp_path / "test", 2)
    sizes = {name: len(split) for name, split in load_data(tmp_path).splits.items()}
    assert sizes == {"train": 10, "selection": 8, "calibration": 4, "certification": 8, "test": 4}


def test_a_class_may_be_called_train(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    data = load_data(picture_folder(tmp_path, classes=("bus", "train")))
    assert data.classes == ["bus", "train"]


def test_differing_sizes_and_grey_files(
    tmp_path: Path, picture_folder: Callable[..., Path], read_all: Callable[..., torch.Tensor]
) -> None:
    picture_folder(tmp_path)
    Image.fromarray(images(1, 50, 40)[0]).save(tmp_path / "cat" / "grey.jpg")
    data = load_data(tmp_path)
    assert data.image_shape is None
    assert read_all(data, "train").shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("grey", ["picture", "split"])
def test_a_grey_file_does_not_change_the_size(
    tmp_path: Path, grey: str, picture_folder: Callable[..., Path], read_all: Callable[..., torch.Tensor]
) -> None:
    if grey == "picture":
        picture_folder(tmp_path)
        Image.fromarray(images(1, 30, 30)[0]).save(tmp_path / "cat" / "007.png")
    else:
        picture_folder(tmp_path / "train")
        for file in (picture_folder(tmp_path / "val") / "cat").iterdir():
            Image.open(file).convert("L").save(file)
        for file in (tmp_path / "val" / "dog").iterdir():
            Image.open(file).convert("L").save(file)
    data = load_data(tmp_path)
    assert data.image_shape == (30, 30, 3)
    assert {read_all(data, name).shape[1:] for name in data.splits} == {(3, 30, 30)}


def test_pixels_of_unknown_range_are_refused_at_once(
    tmp_path: Path, picture_folder: Callable[..., Path], refused: Callable[..., None]
) -> None:
    picture_folder(tmp_path)
    Image.fromarray(np.zeros((30, 30), np.float32)).save(tmp_path / "cat" / "depth.tif")
    refused(tmp_path, "mode 'F' of unknown range")


def test_broken_pictures_are_named(
    tmp_path: Path,
    picture_folder: Callable[..., Path],
    read_all: Callable[..., torch.Tensor],
    refused: Callable[..., None],
) -> None:
    picture_folder(tmp_path)
    bad = tmp_path / "cat" / "zzz.png"
    bad.write_text("not a picture")
    refused(tmp_path, "zzz.png")
    bad.write_bytes((tmp_path / "cat" / "000.png").read_bytes()[:200])  # shows only when decoded
    data = load_data(tmp_path)
    holder = next(
        s for name, s in data.splits.items() if any(s.items.name(int(i)) == str(bad) for i in s.indices)
    )
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"zzz\.png") as caught:
            read_all(data, holder.name, workers)
        assert "\n" not in str(caught.value)


def test_decompression_bombs_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Callable[..., Path],
    refused: Callable[..., None],
) -> None:
    picture_folder(tmp_path)
    monkeypatch.setattr(imaging, "MAX_PIXELS", 899)
    refused(tmp_path, "30x30 pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    refused(tmp_path, "pixels")


def test_malformed_folders(
    tmp_path: Path, picture_folder: Callable[..., Path], refused: Callable[..., None]
) -> None:
    refused(tmp_path, "no class folders")
    (tmp_path / "cat").mkdir()
    refused(tmp_path, "holds no images")
    picture_folder(tmp_path, classes=("cat",))
    refused(tmp_path, "one class only")
    picture_folder(tmp_path / "parts" / "train")
    picture_folder(tmp_path / "parts" / "test", 1, ("cow",))
    refused(tmp_path / "parts", "class folder 'cow'")
