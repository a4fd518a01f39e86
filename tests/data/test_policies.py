"""timm's augmentation policies and random erasing: repeatable to the last bit, whoever asks for them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from odn_hybrid.data import Data, Preprocess, load_data, make_loader
from odn_hybrid.errors import ConfigError

POLICIES = ["rand-m9-mstd0.5-inc1", "augmix-m3-w2", "original", "3a"]
Images = dict[int, torch.Tensor]


def preprocess(channels: int) -> Preprocess:
    return Preprocess(size=(28, 28), mean=(0.5,) * channels, std=(0.25,) * channels, channels=channels)


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def data(request: pytest.FixtureRequest) -> Data:
    rng = np.random.default_rng(0)
    shape = (28, 28) if request.param == 1 else (28, 28, 3)
    return load_data(iter([(rng.integers(0, 256, shape, dtype=np.uint8), k % 3) for k in range(120)]))


def by_index(data: Data, **options: Any) -> Images:
    options = {"batch_size": 16, "seed": 3, "epoch": 2, **options}
    assert data.image_shape is not None
    loader = make_loader(data.splits["train"], preprocess(data.image_shape[2]), **options)
    return {int(k): image for xs, _, ks in loader for k, image in zip(ks, xs, strict=True)}


def same(one: Images, other: Images) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def changed(one: Images, other: Images) -> int:
    return sum(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("choice", [*({"rand_augment": policy} for policy in POLICIES), {"erase": 0.7}])
def test_they_are_a_function_of_seed_epoch_and_image(data: Data, choice: dict[str, Any]) -> None:
    first = by_index(data, **choice)
    assert same(first, by_index(data, **choice, batch_size=5, shuffle=True))
    for change in ({"seed": 4}, {"epoch": 3}):
        assert not same(first, by_index(data, **{**choice, **change}))
    plain = by_index(data)
    assert changed(first, plain) > len(plain) // 3
    assert all(image.shape == plain[k].shape and image.dtype == torch.float32 for k, image in first.items())


@pytest.mark.parametrize("choice", [{"rand_augment": POLICIES[0]}, {"erase": 1.0}])
def test_the_global_generators_are_left_alone(data: Data, choice: dict[str, Any]) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    by_index(data, **choice)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_policies_give_pixels_in_range(data: Data) -> None:
    for augment in ("none", "shift_flip", "crop_flip"):
        for image in by_index(data, rand_augment=POLICIES[0], augment=augment).values():
            pixels = image * 0.25 + 0.5
            assert float(pixels.min()) >= -1e-6 and float(pixels.max()) <= 1 + 1e-6


def test_erasing_is_as_frequent_as_asked_and_spares_the_rest(data: Data) -> None:
    plain = by_index(data)
    shares = []
    for k, image in by_index(data, erase=0.5).items():
        other = (image != plain[k]).any(0)
        if not other.any():
            continue
        rows, columns = torch.where(other.any(1))[0], torch.where(other.any(0))[0]
        box = other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert bool(box.all())  # one rectangle, all of it
        shares.append(box.numel() / other.numel())
    assert 0.3 * len(plain) < len(shares) < 0.7 * len(plain)
    assert min(shares) > 0.01 and max(shares) < 0.36
    assert changed(by_index(data, erase=1.0), plain) == len(plain)


def test_without_them_nothing_is_different(data: Data) -> None:
    for augment in ("none", "shift"):
        plain = by_index(data, augment=augment)
        assert same(plain, by_index(data, augment=augment, rand_augment=None, erase=0.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns when a threaded process forks
def test_workers_change_nothing(data: Data) -> None:
    choice = {"rand_augment": POLICIES[0], "erase": 0.5, "augment": "shift_flip"}
    assert same(by_index(data, **choice), by_index(data, **choice, workers=2))


@pytest.mark.parametrize("text", ["", "rand-z9", "rand-m9-tnonsense", "nonsense", "augmix-q", "rand-mx"])
def test_unknown_policies_are_named(data: Data, text: str) -> None:
    with pytest.raises(ConfigError, match=r"which timm does not know.*; write it like"):
        by_index(data, rand_augment=text)


def test_policies_need_pictures() -> None:
    ready = load_data([(torch.randn(1, 8, 8), k % 2) for k in range(60)])
    made = Preprocess(size=(8, 8), mean=(0.0,), std=(1.0,), channels=1, ready=True)
    with pytest.raises(ConfigError, match="grey or colour images, not ready-made tensors"):
        make_loader(ready.splits["train"], made, batch_size=4, rand_augment=POLICIES[0])
    two = Preprocess(size=(8, 8), mean=(0.0, 0.0), std=(1.0, 1.0), channels=2)
    with pytest.raises(ConfigError, match="not images of 2 channels"):
        make_loader(ready.splits["train"], two, batch_size=4, rand_augment=POLICIES[0])
    assert len(list(make_loader(ready.splits["train"], made, batch_size=4, erase=1.0))) > 0


@pytest.mark.parametrize(
    "policy", ["rand-m0-mstd0.5", "rand-m10-mstd0.5-inc1", "v0", "original", "augmix-m10-w3"]
)
def test_the_strongest_and_the_weakest_never_ask_for_what_pillow_refuses(data: Data, policy: str) -> None:
    for epoch in range(6):
        by_index(data, rand_augment=policy, epoch=epoch)
