"""The user's own data sets, loaders and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from odn_hybrid.data import (
    choose_preprocess,
    load_data,
    make_loader,
    user,
)
from odn_hybrid.errors import DataError


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *(shape or (8, 8))), dtype=np.uint8)


class Pictures(Dataset[Any]):
    """PIL images; labels only in the items."""

    def __init__(self, n: int = 40, convert: Callable[[Image.Image], Any] = lambda image: image) -> None:
        self.n, self.convert = n, convert
        self.reads = 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads += 1
        if not 0 <= index < self.n:
            raise IndexError(index)
        return self.convert(Image.fromarray(images(index + 1, 28, 28, 3)[0])), index % 2


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float() / 128.0 - 1.0


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        np.asarray,
        lambda image: torch.from_numpy(np.array(image)),
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
        lambda image: np.asarray(image) / 255.0,
    ],
)
def test_a_single_data_set_of_images(
    convert: Callable[[Image.Image], Any], read_all: Callable[..., torch.Tensor]
) -> None:
    data = load_data(Pictures(convert=convert))
    assert data.image_shape == (28, 28, 3) and not data.ready and data.name == "Pictures"
    assert sum(map(len, data.splits.values())) == 40
    torch.testing.assert_close(
        read_all(data, "train"), read_all(load_data(Pictures()), "train"), atol=1e-4, rtol=0
    )


def test_ready_made_tensors_pass_as_they_are() -> None:
    data = load_data((Pictures(convert=to_tensor), Pictures(30, to_tensor)))
    assert data.ready and data.image_shape == (28, 28, 3)
    preprocess = choose_preprocess(data, image_size=None, fixed_size=None, default_size=None, channels=3)
    batch, labels, indices = next(iter(make_loader(data.splits["train"], preprocess, batch_size=4)))
    assert torch.equal(batch[3], to_tensor(Pictures()[int(indices[3])][0])) and labels.tolist() == [
        0,
        1,
        0,
        1,
    ]
    for wrong in ({"channels": 1}, {"image_size": 32}, {"fixed_size": (224, 224)}):
        options = {"image_size": None, "fixed_size": None, "default_size": None, "channels": 3, **wrong}
        with pytest.raises(DataError, match="28x28"):
            choose_preprocess(data, **options)  # type: ignore[arg-type]


def test_data_sets_loaders_subsets_and_streams_agree(read_all: Callable[..., torch.Tensor]) -> None:
    x = torch.from_numpy(images(60, 8, 8, 3)).permute(0, 3, 1, 2).float()
    whole = TensorDataset(x, torch.arange(60) % 3)

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([whole[i] for i in range(60)])

    sources = [
        whole,
        DataLoader(whole, batch_size=7, shuffle=True),
        DataLoader(Stream(), batch_size=7),
        Stream(),
        Subset(whole, range(60)),
        [whole[i] for i in range(60)],
    ]
    expected = read_all(load_data(whole), "selection")
    for source in sources:
        data = load_data(source)
        assert data.ready and data.num_classes == 3
        assert torch.equal(read_all(data, "selection"), expected)


def test_labels_are_found_without_decoding_and_checked_against_the_items() -> None:
    known = Pictures(2000)
    known.targets = [k % 2 for k in range(2000)]  # type: ignore[attr-defined]
    train, val = random_split(known, [1900, 100], generator=torch.Generator().manual_seed(0))
    data = load_data((train, val))
    assert known.reads < 100
    np.testing.assert_array_equal(data.splits["train"].labels, np.asarray(train.indices) % 2)
    lying = Pictures(40)
    lying.targets = [1 - k % 2 for k in range(40)]  # type: ignore[attr-defined]
    split = load_data(lying).splits["train"]
    np.testing.assert_array_equal(split.labels, split.indices % 2)


def test_class_names_come_from_the_data_set() -> None:
    source = Pictures()
    source.classes = ["even", "odd", "neither"]  # type: ignore[attr-defined]
    data = load_data(Subset(source, range(40)))
    assert data.classes == ["even", "odd", "neither (no images)"] and data.num_classes == 3


def test_digest_of_users_data_is_stable_even_if_it_answers_at_random() -> None:
    first, second = load_data(Pictures()), load_data(Pictures())
    assert first.splits["train"].digest == second.splits["train"].digest
    darker = load_data(Pictures(convert=lambda image: np.asarray(image) // 2))
    assert darker.splits["train"].digest != first.splits["train"].digest
    rng = np.random.default_rng(0)

    def jitter(image: Image.Image) -> np.ndarray:
        return np.asarray(image) // 2 + rng.integers(0, 9, dtype=np.uint8)

    assert load_data(Pictures(convert=jitter)).describe() == load_data(Pictures(convert=jitter)).describe()


class Shown(Dataset[Any]):
    """A wrapper, as people write them to transform images."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


class Evens(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([0, 2, 4])


SAME = Pictures()


def test_a_loader_that_draws_from_a_subset_means_that_subset(read_all: Callable[..., torch.Tensor]) -> None:
    whole = TensorDataset(torch.rand(80, 3, 8, 8), torch.arange(80) % 2)
    loader = DataLoader(whole, batch_size=7, sampler=SubsetRandomSampler(range(20, 80)))
    drawn, asked = load_data(loader), load_data(Subset(whole, range(20, 80)))
    for name in asked.splits:
        assert torch.equal(read_all(drawn, name), read_all(asked, name))
    parts = (Shown(Subset(whole, range(20, 80))), Subset(Shown(whole), range(20)))
    assert len(load_data(parts).splits["train"]) == 60


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "empty"),
        (iter([]), "empty"),
        ([1, 2, 3], "must be"),
        ([{"image": 1, "label": 2}], "a dict"),
        ([("cat.png", 0)] * 40, "kind str"),
        ([(images(1)[0], "cat")] * 40, "label 'cat'"),
        ([(images(1)[0], np.eye(3)[0])] * 40, "label array"),
        ([(images(1)[0], -1)] * 40, "label -1"),
        ([(images(1)[0], 0.5)] * 40, "label 0.5"),
        ([(images(1)[0], 1)] * 40, "one class only"),
        ([(images(1)[0].astype(np.int32), k % 2) for k in range(40)], "int32"),
        ([(torch.full((3, 8, 8), float("nan")), k % 2) for k in range(40)], "NaN"),
        ([(torch.zeros(3, 8, 8 + k), k % 2) for k in range(40)], "resize them"),
        ([(images(1, 2, 2, 2, 2)[0], k % 2) for k in range(40)], "ndarray of uint8"),
        ((SAME, SAME), "share images"),
        ((Subset(SAME, range(30)), Subset(SAME, range(29, 40))), "share images"),
        ((SAME, Subset(SAME, range(30))), "share images"),
        ((DataLoader(SAME, sampler=SubsetRandomSampler(range(30))), Subset(SAME, [3, 35])), "share images"),
        ((Subset(Subset(SAME, range(5, 40)), range(20)), Subset(SAME, range(24, 40))), "share images"),
        ((ConcatDataset([SAME, Pictures()]), Subset(SAME, [-1])), "share images"),
        ((Shown(SAME), Subset(SAME, range(3))), "share images"),
        (DataLoader(SAME, sampler=Evens()), "by a Evens"),
        (DataLoader(SAME, batch_sampler=Evens()), "by a Evens"),
        ((Pictures(), Pictures(convert=to_tensor)), "different kinds"),
    ],
)
def test_malformed_user_data(source: Any, says: str, refused: Callable[..., None]) -> None:
    refused(source, says)


def test_endless_streams_are_cut_off(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield images(1)[0], 0

    monkeypatch.setattr(user, "MAX_STREAMED", 50)
    refused(endless(), "more than 50")


def test_an_item_that_turns_bad_later_is_named(read_all: Callable[..., torch.Tensor]) -> None:
    items = [(torch.zeros(1, 8, 8), k % 2) for k in range(400)]
    items[57] = (torch.full((1, 8, 8), float("inf")), 1)
    data = load_data(items)
    with pytest.raises(DataError, match="item 57 of the data set"):
        for name in data.splits:
            read_all(data, name)
