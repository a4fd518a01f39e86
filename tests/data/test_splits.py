"""The five splits: exact sizes, disjoint, stratified, a function of the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odn_hybrid.data import SPLIT_NAMES, load_data
from odn_hybrid.data.hashing import permutation, random_bits, uniforms
from odn_hybrid.data.items import ArrayItems
from odn_hybrid.data.splits import divide, pool_sizes, stratified
from odn_hybrid.errors import ConfigError, DataError


def pool(labels: np.ndarray) -> ArrayItems:
    images = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2)
    return ArrayItems(images, labels.astype(np.int64))


def random_labels(n: int, classes: int, seed: int) -> np.ndarray:
    # Uneven classes, six of each at least.
    rng = np.random.default_rng(seed)
    extra = rng.choice(classes, n - 6 * classes, p=rng.dirichlet(np.ones(classes)))
    return rng.permutation(np.concatenate([np.repeat(np.arange(classes), 6), extra]))


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 40),
    per_class=st.integers(6, 300),
    seed=st.integers(0, 2**31 - 1),
    test=st.booleans(),
)
def test_a_pool_is_cut_into_disjoint_stratified_parts_of_the_promised_sizes(
    classes: int, per_class: int, seed: int, test: bool
) -> None:
    labels = random_labels(max(18, classes * per_class), classes, seed % 1000)
    pools = {"train": pool(labels)} | ({"test": pool(labels[:7])} if test else {})
    splits = divide(pools, seed, "made-up data")
    assert tuple(splits) == SPLIT_NAMES
    cut = [s for s in splits.values() if s.items is pools["train"]]
    joined = np.sort(np.concatenate([s.indices for s in cut]))
    np.testing.assert_array_equal(joined, np.arange(len(labels)))  # disjoint and complete

    n = len(labels) if test else len(labels) - len(labels) // 6
    sizes = pool_sizes(n)
    assert {name: len(splits[name]) for name in sizes} == sizes
    assert len(splits["train"]) == n - sum(sizes.values()) >= 0.6 * n
    counts = np.bincount(labels, minlength=classes)
    for split in cut:
        found = np.bincount(split.labels, minlength=classes)
        share = counts * len(split) / len(labels)
        # Rounded once per cut at most; the rest collects the roundings of four cuts.
        assert (np.abs(found - share) <= (4.01 if split.name == "train" else 2.01)).all()
    assert set(splits["train"].labels) == set(splits["selection"].labels) == set(range(classes))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 400), classes=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_stratified_shares_are_rounded_up_or_down(n: int, classes: int, share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, n)
    size = int(share * n)
    parts = stratified(labels, {"some": size}, "rest", (seed,))
    assert len(parts["some"]) == size
    exact = np.bincount(labels, minlength=classes) * size / n
    assert (np.abs(np.bincount(labels[parts["some"]], minlength=classes) - exact) < 1 + 1e-9).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(n))


@pytest.mark.parametrize(
    ("n", "sizes"), [(60_000, (4_000, 2_000, 4_000)), (1_498, (299, 99, 199)), (6_000, (500, 300, 800))]
)
def test_pool_sizes_by_hand(n: int, sizes: tuple[int, int, int]) -> None:
    assert tuple(pool_sizes(n).values()) == sizes


@pytest.mark.parametrize(
    ("has_test", "expected"),
    [
        (False, {"train": 60, "selection": 30, "calibration": 10, "certification": 30, "test": 30}),
        (True, {"train": 60, "selection": 40, "calibration": 20, "certification": 40, "test": 50}),
    ],
)
def test_a_validation_set_is_divided_and_train_stays_whole(has_test: bool, expected: dict[str, int]) -> None:
    labels = np.arange(100) % 2
    pools = {"train": pool(np.arange(60) % 2), "val": pool(labels)}
    if has_test:
        pools["test"] = pool(np.arange(50) % 2)
    splits = divide(pools, 0, "made-up data")
    assert {name: len(split) for name, split in splits.items()} == expected
    parts = [split for split in splits.values() if split.items is pools["val"]]
    np.testing.assert_array_equal(np.sort(np.concatenate([p.indices for p in parts])), np.arange(100))


def test_a_rare_class_is_in_train_and_selection() -> None:
    labels = np.array([0] * 1000 + [1] * 1000 + [2] * 2)
    for has_test in (False, True):
        pools = {"train": pool(labels)} | ({"test": pool(labels)} if has_test else {})
        splits = divide(pools, 3, "made-up data")
        assert 2 in splits["train"].labels and 2 in splits["selection"].labels


def test_the_seed_decides_and_the_digest_tells() -> None:
    items = pool(np.arange(300) % 3)
    one, again, other = (divide({"train": items}, seed, "d") for seed in (1, 1, 2))
    for name in SPLIT_NAMES:
        np.testing.assert_array_equal(one[name].indices, again[name].indices)
        assert one[name].digest == again[name].digest != other[name].digest
    assert len({split.digest for split in one.values()}) == 5
    changed = ArrayItems(items.images.copy(), items.labels)
    changed.images[0, 0, 0, 0] ^= 1
    assert divide({"train": changed}, 1, "d")["train"].digest != one["train"].digest


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0] * 50 + [1]), "class 1 .* has 1 image"),
        (np.arange(14) % 2, "too few to divide"),
        (np.arange(40) % 10, "at least 6 images per class"),
        (np.arange(20) % 10, "too few per class|at least 6"),
    ],
)
def test_too_few_images_are_refused_with_the_number_needed(labels: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        divide({"train": pool(labels)}, 0, "made-up data")


def test_a_validation_set_too_small_to_divide() -> None:
    with pytest.raises(DataError, match="at least 10"):
        divide({"train": pool(np.arange(60) % 2), "val": pool(np.arange(9) % 2)}, 0, "made-up data")


def test_subset_is_stratified_and_repeatable() -> None:
    split = load_data("digits").splits["train"]
    part = split.subset(100)
    assert len(part) == 100 and np.isin(part.indices, split.indices).all()
    assert np.bincount(part.labels).min() >= 9
    np.testing.assert_array_equal(part.indices, split.subset(100).indices)
    assert part.digest != split.digest
    assert split.subset(10**6) is split
    with pytest.raises(ConfigError):
        split.subset(0)


def test_digits_as_loaded() -> None:
    data = load_data("digits", seed=5)
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 901, "selection": 299, "calibration": 99, "certification": 199, "test": 299}
    described = data.describe()
    assert described["seed"] == 5 and described["image_shape"] == [8, 8, 1] and described["num_classes"] == 10
    # Pinned: a certificate names its data by these digests, so they must not change between releases.
    assert described["splits"]["certification"]["digest"].startswith("8c30a4eea8c6d4ce")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_mnist_sizes(data_dir: Path, name: str) -> None:
    path = data_dir / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no {name}.npz in {data_dir}")
    data = load_data(path)
    sizes = {key: len(split) for key, split in data.splits.items()}
    expected = {
        "train": 50_000,
        "selection": 4_000,
        "calibration": 2_000,
        "certification": 4_000,
        "test": 10_000,
    }
    assert sizes == expected
    assert data.image_shape == (28, 28, 1) and data.num_classes == 10


def test_random_numbers_are_uniform_and_fixed_for_ever() -> None:
    assert random_bits((0,), np.arange(2)).tolist() == [13013912499580732898, 10494766521532579762]
    assert sorted(permutation((1, 2), 1000)) == list(range(1000))
    values = uniforms((7, 3), np.arange(20_000), 3)
    assert values.min() >= 0.0 and values.max() < 1.0
    assert abs(values.mean() - 0.5) < 0.005 and abs(values.var() - 1 / 12) < 0.001
    assert np.abs(np.corrcoef(values, rowvar=False) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 0.03
