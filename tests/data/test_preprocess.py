"""`Preprocess`: one transform for training, evaluation and deployment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odn_hybrid import imaging
from odn_hybrid.data import Preprocess
from odn_hybrid.errors import ConfigError, InputError

GREY = Preprocess(size=(12, 12), mean=(0.5,), std=(0.25,), channels=1)
COLOUR = Preprocess(size=(12, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), channels=3)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_values_are_normalised_per_channel() -> None:
    images = noise(2, 12, 12, 3)
    expected = (images.transpose(0, 3, 1, 2) / 255.0 - np.reshape(COLOUR.mean, (3, 1, 1))) / np.reshape(
        COLOUR.std, (3, 1, 1)
    )
    out = COLOUR(images)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side", [12, 8, 40])
@pytest.mark.parametrize("preprocess", [GREY, COLOUR])
def test_every_form_of_the_same_images_gives_the_same_tensor(side: int, preprocess: Preprocess) -> None:
    images = noise(3, side, side, 3)
    batch = preprocess(images)
    assert batch.shape == (3, preprocess.channels, 12, 12)
    forms = [
        torch.from_numpy(images),
        list(images),
        [Image.fromarray(image) for image in images],
        images.astype(np.float64) / 255.0,
        np.asfortranarray(images),
    ]
    for form in forms:
        torch.testing.assert_close(preprocess(form), batch, atol=1e-5, rtol=0)
    for one, image in zip(batch, images, strict=True):
        torch.testing.assert_close(preprocess(Image.fromarray(image))[0], one, atol=1e-6, rtol=0)
        torch.testing.assert_close(preprocess(image)[0], one, atol=1e-6, rtol=0)


def test_lists_may_mix_sizes_and_kinds() -> None:
    out = COLOUR([noise(9, 30), Image.fromarray(noise(20, 14, 3)), noise(12, 12, 3) / 255.0])
    assert out.shape == (3, 3, 12, 12)


def test_grey_repeats_and_colour_becomes_luma() -> None:
    plain = Preprocess(size=(5, 6), mean=(0.0,) * 3, std=(1.0,) * 3)
    grey = noise(5, 6)
    assert (plain(grey) == plain(grey)[:, :1]).all()
    to_grey = Preprocess(size=(5, 6), mean=(0.0,), std=(1.0,), channels=1)
    colour = noise(5, 6, 3)
    np.testing.assert_allclose(to_grey(colour)[0, 0], colour @ [0.299, 0.587, 0.114] / 255.0, atol=1e-6)


def test_other_aspect_ratios_are_cut_in_the_middle_not_squeezed() -> None:
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert (GREY.pixels(wide) == 1.0).all()
    assert (GREY.pixels(wide.T) == 1.0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_common_picture_modes_are_read(mode: str) -> None:
    image = Image.fromarray(noise(12, 12, 3)).convert(mode)
    assert COLOUR(image).shape == (1, 3, 12, 12)


def test_palette_with_transparency_and_sixteen_bits() -> None:
    palette = Image.fromarray(noise(12, 12, 3)).convert("P")
    palette.info["transparency"] = bytes(range(256))
    assert COLOUR(palette).shape == (1, 3, 12, 12)
    deep = Image.fromarray(np.full((12, 12), 65535, dtype=np.uint16))
    assert (GREY.pixels(deep) == 255).all()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf, dtype=np.float32), "infinite"),
        (np.full((4, 4), 37.0), "scale them to 0..1"),
        (np.full((4, 4), -1.0), "scale them to 0..1"),
        (np.zeros((4, 4), dtype=np.int64), "int64"),
        (np.zeros((4, 4), dtype=object), "object"),
        (torch.zeros((4, 4), dtype=torch.int32), "int32"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), "channels last"),
        (torch.zeros((3, 8, 8), dtype=torch.uint8), "permute"),
        (np.zeros((8, 8, 4), dtype=np.uint8), "4 channels"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "without pixels"),
        (np.zeros(7, dtype=np.uint8), "shape"),
        ("cat.png", "str"),
        (["cat.png"], "str"),
        ([np.zeros((2, 8, 8), dtype=np.uint8)], "one image"),
        (None, "NoneType"),
    ],
)
def test_what_it_cannot_take_is_an_input_error(images: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        COLOUR(images)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_images_give_an_empty_batch() -> None:
    assert COLOUR([]).shape == (0, 3, 12, 12)
    assert COLOUR(np.zeros((0, 8, 8), dtype=np.uint8)).shape == (0, 3, 12, 12)
    assert GREY(np.zeros((0, 8, 8, 3), dtype=np.uint8)).shape == (0, 1, 12, 12)


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="limit of 100"):
        COLOUR(Image.new("L", (20, 20)))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(noise(40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with Image.open(path) as image, pytest.raises(InputError, match=r"half\.png"):
        COLOUR(image)


def test_read_only_memory_is_left_as_it_is() -> None:
    images = noise(2, 12, 12)
    images.flags.writeable = False
    before = images.copy()
    GREY(images)
    np.testing.assert_array_equal(images, before)


def test_ready_made_tensors_pass_unchanged_and_others_are_refused() -> None:
    ready = Preprocess(size=(6, 7), mean=(0.0, 0.0), std=(1.0, 1.0), channels=2, ready=True)
    images = torch.randn((3, 2, 6, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ready(images), images)
    assert torch.equal(ready(list(images)), images)
    assert torch.equal(ready(images[0]), images[:1])
    wrong = [
        images[:, :1],
        images.to(torch.uint8),
        noise(6, 7),
        images * float("nan"),
        Image.new("L", (6, 7)),
    ]
    for other in wrong:
        with pytest.raises(InputError):
            ready(other)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_goes_to_json_and_back(interpolation: str) -> None:
    there = Preprocess.from_dict({**COLOUR.to_dict(), "interpolation": interpolation})
    back = Preprocess.from_dict(json.loads(json.dumps(there.to_dict())))
    assert back == there
    image = noise(30, 30)
    assert torch.equal(back(image), there(image))
    assert float(there.pixels(image).min()) >= 0.0 and float(there.pixels(image).max()) <= 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"size": [0, 4]},
        {"size": [4]},
        {"size": "big"},
        {"mean": [0.0]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [1.0, 1.0, float("nan")]},
        {"mean": ["x", 0, 0]},
        {"channels": 0},
        {"interpolation": "nearest"},
        {"crop": 1},
    ],
)
def test_impossible_descriptions_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Preprocess.from_dict({**COLOUR.to_dict(), **change})


def test_missing_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="mean"):
        Preprocess.from_dict({"size": [4, 4], "std": [1.0] * 3})
