"""`Preprocess`: from images as files hold them to the tensor a model takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from odn_hybrid.data.decoding import array_planes
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.imaging import pil_array

__all__ = ["LUMA", "Images", "Preprocess"]

Images = Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray | Tensor]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL's "L" uses too


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Images as files hold them -> float32 tensor (N, channels, height, width); N = 1 for one image.

    Takes a PIL image, a uint8 array or tensor (0..255), a float one (0..1), or a list of those. Arrays are
    channels last: HxW, HxWxC, NxHxW or NxHxWxC; a third axis of at most 4 entries counts as channels. Grey
    becomes colour by repetition, colour becomes grey by ITU-R BT.601 luma. An image of another shape is cut
    centrally to the aspect ratio of `size` and then resized (antialiased).

    Args:
        size: (height, width) in pixels.
        mean, std: per channel, for pixels in 0..1.
        channels: what the model takes.
        interpolation: "bilinear" or "bicubic".
        ready: the images are already what the model takes, float tensors (C, H, W) or (N, C, H, W) of
            exactly this shape and any finite values, and pass unchanged.

    Raises `InputError` for images it cannot take (dtype, shape, range, NaN, broken files).
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    ready: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("size", int), ("mean", float), ("std", float)):
            value = getattr(self, name)
            if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
                raise ConfigError(f"preprocess {name} is {value!r}; it must be a list of numbers")
            try:
                object.__setattr__(self, name, tuple(kind(v) for v in value))
            except (TypeError, ValueError, OverflowError):
                raise ConfigError(f"preprocess {name} is {value!r}; it must be a list of numbers") from None
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(f"preprocess size is {self.size!r}; it must be (height, width) in pixels")
        if not isinstance(self.channels, int) or self.channels < 1:
            raise ConfigError(f"preprocess channels is {self.channels!r}; it must be 1 or more")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ConfigError(
                f"preprocess has {len(self.mean)} means and {len(self.std)} standard deviations"
                f" for {self.channels} channels; give one of each per channel"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ConfigError(
                f"preprocess mean {self.mean!r}, std {self.std!r}: give finite numbers, std > 0"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation is {self.interpolation!r}; choose bilinear or bicubic")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data, the `preprocess` of a run directory."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`; `ConfigError` for unknown, missing or impossible fields."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"preprocess must be a mapping of fields, not {values!r}")
        unknown = sorted(set(map(str, values)) - {f.name for f in fields(cls)})
        missing = sorted({"size", "mean", "std"} - set(values))
        if unknown or missing:
            what = f"unknown field {unknown[0]!r}" if unknown else f"no field {missing[0]!r}"
            raise ConfigError(f"preprocess has {what}; it needs size, mean, std, channels, interpolation")
        return cls(**dict(values))

    def __call__(self, images: Images) -> Tensor:
        """float32 (N, channels, height, width), normalised."""
        return self.normalise(self.pixels(images))

    def pixels(self, images: Images) -> Tensor:
        """The images at `size`, (N, channels, height, width), not yet normalised: uint8, or float in 0..1."""
        groups = [self.fit(group) for group in self.planes(images)]
        if not groups:
            return torch.zeros((0, self.channels, *self.size))
        if len(groups) == 1:
            return groups[0]
        return torch.cat([_unit(group) for group in groups])

    def planes(self, images: Images) -> list[Tensor]:
        """The images in the model's channels at their own size: tensors (n, channels, H, W), in order."""
        if self.ready:
            return [self._check_ready(images)]
        if isinstance(images, Image.Image):
            images = pil_array(images)
        if isinstance(images, (np.ndarray, Tensor)):
            return [self._recolour(array_planes(images, self.channels))]
        if not isinstance(images, (list, tuple)):
            raise InputError(
                f"cannot read images from {type(images).__name__}; give PIL images or uint8 arrays"
            )
        arrays = [pil_array(i) if isinstance(i, Image.Image) else i for i in images]
        for array in arrays:
            if not isinstance(array, (np.ndarray, Tensor)):
                raise InputError(
                    f"cannot read an image from {type(array).__name__}; give PIL images or uint8 arrays"
                )
        groups = [self._recolour(array_planes(array, self.channels)) for array in arrays]
        if any(len(group) != 1 for group in groups):
            raise InputError("a list of images holds a batch; give one image (HxW or HxWxC) per entry")
        # Resizing one batch is much faster than many single images.
        return [torch.cat(groups)] if len({(g.shape, g.dtype) for g in groups}) == 1 else groups

    def fit(self, planes: Tensor) -> Tensor:
        """(n, C, H, W) cut centrally to the aspect ratio of `size` and resized to it."""
        height, width = planes.shape[-2:]
        if self.ready or (height, width) == self.size:
            return planes
        rows = max(1, min(height, round(width * self.size[0] / self.size[1])))
        columns = max(1, min(width, round(height * self.size[1] / self.size[0])))
        top, left = (height - rows) // 2, (width - columns) // 2
        return self.resize(planes[..., top : top + rows, left : left + columns])

    def resize(self, planes: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C, *size) without keeping the aspect ratio; float in 0..1."""
        if len(planes) == 0:
            return torch.zeros((0, planes.shape[1], *self.size))
        unit = _unit(planes)
        if unit.shape[-2:] == self.size:
            return unit
        sized = F.interpolate(unit, self.size, mode=self.interpolation, align_corners=False, antialias=True)
        return sized if self.ready else sized.clamp_(0.0, 1.0)  # bicubic overshoots

    def normalise(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std, float32."""
        if self.ready:
            return pixels
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (_unit(pixels) - mean).div_(std)

    def _recolour(self, planes: Tensor) -> Tensor:
        found = planes.shape[1]
        if found == self.channels:
            return planes
        if found == 1 and self.channels == 3:
            return planes.expand(-1, 3, -1, -1)
        if found == 3 and self.channels == 1:
            return (_unit(planes) * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        raise InputError(f"images have {found} channels; the model takes {self.channels}")

    def _check_ready(self, images: Any) -> Tensor:
        want = (self.channels, *self.size)
        if isinstance(images, (list, tuple)):
            if not images:
                return torch.zeros((0, *want))
            return torch.cat([self._check_ready(image) for image in images])
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            images = torch.from_numpy(np.array(images, dtype=np.float32))
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, (Tensor, np.ndarray)) else type(images).__name__
            raise InputError(f"got {kind}; the data came ready-made, so give float tensors {want} as it did")
        batch = images.detach().cpu().float()
        batch = batch[None] if batch.ndim == 3 else batch
        if batch.ndim != 4 or batch.shape[1:] != want:
            raise InputError(
                f"image tensor has shape {tuple(images.shape)}; the model takes {want} per image"
            )
        if not torch.isfinite(batch).all():
            raise InputError("images hold NaN or infinite values; mend or leave out those images")
        return batch


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels
