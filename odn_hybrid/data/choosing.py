"""Which `Preprocess` fits a data set and a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from odn_hybrid.data.preprocess import LUMA, Preprocess
from odn_hybrid.data.sources import Data
from odn_hybrid.data.splits import Split
from odn_hybrid.errors import ConfigError, DataError

__all__ = ["channel_stats", "choose_preprocess"]

_STATS_IN_MEMORY = 5_000
_STATS_DECODED = 500  # decoding large files for two numbers per channel is not worth more
SMALL_SIDE = 28  # images with a shorter side are enlarged ...
SMALL_TARGET = 32  # ... to this many pixels
THUMBNAIL = 64  # image files all of one size up to this are data of that size; larger ones are photographs
FALLBACK_SIZE = 224


def channel_stats(split: Split, channels: int | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels per channel, for pixels in 0..1.

    From at most 5,000 images (500 where they must be decoded), always the same ones. `channels` converts to
    grey or colour first. A channel that never varies gets std 1.
    """
    if split.items.ready:
        count = channels or (split.items.shape or (0, 0, 3))[2]
        return (0.0,) * count, (1.0,) * count
    part = split.subset(_STATS_DECODED if split.items.lazy else _STATS_IN_MEMORY)
    if channels is None:
        first = part.items.fetch(part.indices[:1])[0]
        channels = first.shape[2] if first.ndim == 3 else 1
    reader = Preprocess(size=(1, 1), mean=(0.0,) * channels, std=(1.0,) * channels, channels=channels)
    count = 0
    total, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(part), 500):
        for planes in reader.planes(part.items.fetch(part.indices[start : start + 500])):
            pixels = planes.double() / 255.0 if planes.dtype == torch.uint8 else planes.double()
            count += pixels.numel() // channels
            total += pixels.sum((0, 2, 3)).numpy()
            squares += pixels.square().sum((0, 2, 3)).numpy()
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return tuple(mean.round(6).tolist()), tuple(np.where(std < 1e-4, 1.0, std).round(6).tolist())


def choose_preprocess(
    data: Data,
    *,
    image_size: int | None,
    fixed_size: tuple[int, int] | None,
    default_size: int | None,
    channels: int,
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Preprocess:
    """The transform for `data` and a model.

    Args:
        image_size: the user's choice of a square size, or None for the rule below.
        fixed_size: the only (height, width) the model takes, or None.
        default_size: the model's usual size, for images of differing sizes.
        channels: what the model takes.
        mean_std: the model's own, if it was pretrained (one entry, or one per channel); else the training
            split's.

    The rule: the model's size where it is fixed; else the data's own size if all images share one with sides
    of at least 28 pixels; smaller ones are enlarged so that the shorter side has 32; else, and for image
    files above 64 pixels, the model's default size, or 224. Ready-made tensors keep their shape.

    Raises `ConfigError` if the choices contradict each other, `DataError` if ready-made tensors don't fit.
    """
    if fixed_size is not None and image_size is not None and tuple(fixed_size) != (image_size, image_size):
        raise ConfigError(
            f"image_size is {image_size}, but the model takes {fixed_size[0]}x{fixed_size[1]} only;"
            " leave image_size out"
        )
    asked = fixed_size or ((image_size, image_size) if image_size else None)
    if data.ready:
        return _ready_preprocess(data, asked, channels)
    mean, std = mean_std if mean_std is not None else channel_stats(data.splits["train"], channels)
    if len(mean) != channels or len(std) != channels:
        mean, std = _recoloured(mean, channels), _recoloured(std, channels)
    return Preprocess(
        size=asked or _own_size(data, default_size),
        mean=tuple(mean),
        std=tuple(std),
        channels=channels,
        interpolation=interpolation,
    )


def _own_size(data: Data, default_size: int | None) -> tuple[int, int]:
    default = default_size or FALLBACK_SIZE
    if data.image_shape is None:
        return default, default
    height, width, _ = data.image_shape
    if data.folder and max(height, width) > THUMBNAIL:
        return default, default
    shorter = min(height, width)
    if shorter >= SMALL_SIDE:
        return height, width
    return round(height * SMALL_TARGET / shorter), round(width * SMALL_TARGET / shorter)


def _recoloured(values: Sequence[float], channels: int) -> Sequence[float]:
    """Statistics of grey images for a colour model, or the other way round."""
    if len(values) == 1:
        return tuple(values) * channels
    if len(values) == 3 and channels == 1:
        return (sum(weight * value for weight, value in zip(LUMA, values, strict=True)),)
    raise ConfigError(f"mean and std have {len(values)} entries; the model takes {channels} channels")


def _ready_preprocess(data: Data, asked: tuple[int, int] | None, channels: int) -> Preprocess:
    height, width, found = data.image_shape or (0, 0, 0)
    if found != channels or (asked is not None and asked != (height, width)):
        size = "x".join(map(str, asked or (height, width)))
        raise DataError(
            f"{data.name} yields tensors of {found} channels, {height}x{width}, but the model takes"
            f" {channels} channels, {size}; change the data set's transform, or let it yield PIL images"
        )
    return Preprocess(
        size=(height, width), mean=(0.0,) * found, std=(1.0,) * found, channels=found, ready=True
    )
