"""Loaders: batches that can be repeated to the last bit, whoever asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image

from odn_hybrid.data import AUGMENTATIONS, Data, Preprocess, choose_preprocess, load_data, make_loader
from odn_hybrid.errors import ConfigError

PLAIN = Preprocess(size=(28, 28), mean=(0.0,), std=(1.0,), channels=1)
Batches = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(1, 256, (28, 28), dtype=np.uint8)


@pytest.fixture(scope="module", params=["array", "lazy"])
def data(request: pytest.FixtureRequest) -> Data:
    pairs = [(picture(k), k % 3) for k in range(120)]
    # An iterator is kept in memory as one array; a list is read item by item.
    return load_data(iter(pairs) if request.param == "array" else [(Image.fromarray(p), y) for p, y in pairs])


def batches(data: Data, split: str = "train", **options: Any) -> Batches:
    return list(make_loader(data.splits[split], PLAIN, **{"batch_size": 16, **options}))


def same(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_evaluation_yields_every_image_once_in_order(data: Data) -> None:
    split = data.splits["train"]
    found = batches(data)
    assert torch.cat([i for _, _, i in found]).tolist() == list(range(len(split)))
    np.testing.assert_array_equal(torch.cat([y for _, y, _ in found]).numpy(), split.labels)
    for images, labels, indices in found:
        assert (images.dtype, labels.dtype, indices.dtype) == (torch.float32, torch.int64, torch.int64)
        assert images.shape[1:] == (1, 28, 28)
        for image, row in zip(images, indices, strict=True):
            expected = PLAIN(split.items.fetch(split.indices[row : row + 1])[0])[0]
            assert torch.equal(image, expected)  # nothing added by default: evaluation is never augmented
    assert same(found, batches(data, seed=5, epoch=9))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_training_batches_are_a_function_of_seed_and_epoch(data: Data, augment: str) -> None:
    options = {"shuffle": True, "augment": augment, "seed": 1, "epoch": 4}
    first = batches(data, **options)
    torch.manual_seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert same(first, batches(data, **options))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    assert sorted(torch.cat([i for _, _, i in first]).tolist()) == list(range(len(data.splits["train"])))
    for change in ({"seed": 2}, {"epoch": 5}):
        assert not same(first, batches(data, **{**options, **change}))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_an_images_augmentation_does_not_depend_on_its_batch(data: Data, augment: str) -> None:
    def by_index(**options: Any) -> dict[int, torch.Tensor]:
        found = batches(data, augment=augment, seed=3, epoch=2, **options)
        return {
            int(k): image for images, _, indices in found for k, image in zip(indices, images, strict=True)
        }

    one, other = by_index(batch_size=16, shuffle=True), by_index(batch_size=5)
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns when a threaded process forks
def test_workers_change_nothing(data: Data) -> None:
    options = {"shuffle": True, "augment": "shift_flip", "epoch": 1}
    assert same(batches(data, **options), batches(data, workers=2, **options))


def test_shift_moves_by_up_to_a_fourteenth_and_nothing_else(data: Data) -> None:
    clean = torch.cat([images for images, _, _ in batches(data)])
    moved = torch.cat([images for images, _, _ in batches(data, augment="shift")])
    seen = set()
    for image, other in zip(clean[:, 0], moved[:, 0], strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        found = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(padded[y : y + 28, x : x + 28], other)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


def test_flip_mirrors_about_half_of_the_images(data: Data) -> None:
    options = {"seed": 0, "epoch": 0}
    shifted = torch.cat([images for images, _, _ in batches(data, augment="shift", **options)])
    both = torch.cat([images for images, _, _ in batches(data, augment="shift_flip", **options)])
    kept = sum(torch.equal(a, b) for a, b in zip(shifted, both, strict=True))
    assert 0.25 * len(both) < kept < 0.75 * len(both)
    assert all(torch.equal(a, b) or torch.equal(a.flip(-1), b) for a, b in zip(shifted, both, strict=True))


def test_crops_stay_in_range_and_differ(data: Data) -> None:
    images = torch.cat([images for images, _, _ in batches(data, augment="crop_flip")])
    assert images.shape[1:] == (1, 28, 28)
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
    assert not torch.equal(images, torch.cat([images for images, _, _ in batches(data)]))


def test_augmentation_of_ready_made_tensors() -> None:
    rng = torch.Generator().manual_seed(0)
    ready = load_data([(torch.randn((2, 14, 14), generator=rng), k % 2) for k in range(60)])
    preprocess = choose_preprocess(ready, image_size=None, fixed_size=None, default_size=None, channels=2)
    for augment in AUGMENTATIONS:
        loader = make_loader(ready.splits["train"], preprocess, batch_size=8, augment=augment)  # type: ignore[arg-type]
        images = torch.cat([images for images, _, _ in loader])
        assert images.shape[1:] == (2, 14, 14) and float(images.min()) < 0.0


def test_drop_last_and_length(data: Data) -> None:
    n = len(data.splits["train"])
    loader = make_loader(data.splits["train"], PLAIN, batch_size=16, drop_last=True)
    assert len(loader) == n // 16 and all(len(images) == 16 for images, _, _ in loader)
    assert len(make_loader(data.splits["train"], PLAIN, batch_size=16)) == -(-n // 16)


def test_a_loader_repeats_its_epoch_until_told_otherwise(data: Data) -> None:
    options: dict[str, Any] = {"batch_size": 16, "shuffle": True, "augment": "shift"}
    loader = make_loader(data.splits["train"], PLAIN, epoch=2, **options)
    first = list(loader)
    assert same(first, list(loader))
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert same(list(loader), batches(data, epoch=3, **options))


def test_accelerate_goes_on_from_the_loaders_epoch(data: Data) -> None:
    options: dict[str, Any] = {"batch_size": 16, "shuffle": True, "augment": "shift"}
    prepared = prepare_data_loader(make_loader(data.splits["train"], PLAIN, epoch=2, **options))
    assert same(list(prepared), batches(data, epoch=2, **options))
    assert same(list(prepared), batches(data, epoch=3, **options))


def test_accelerate_shards_without_overlap(data: Data) -> None:
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "augment": "shift", "epoch": 1}
    whole = {int(k): x for xs, _, ks in batches(data, **options) for k, x in zip(ks, xs, strict=True)}
    count = len(data.splits["train"]) // 8 * 8
    seen: list[int] = []
    for process in range(2):
        loader = make_loader(data.splits["train"], PLAIN, drop_last=True, **options)
        shard = prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)
        for images, _, indices in shard.base_dataloader if hasattr(shard, "base_dataloader") else shard:
            seen += indices.tolist()
            assert all(torch.equal(whole[int(k)], x) for k, x in zip(indices, images, strict=True))
    assert len(seen) == len(set(seen)) == count


@pytest.mark.parametrize(
    "options", [{"augment": "mixup"}, {"batch_size": 0}, {"workers": -1}, {"epoch": -1}, {"batch_size": 2.5}]
)
def test_impossible_choices_are_refused(data: Data, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        batches(data, **options)
