"""Augmentation of a batch from given random numbers, so that it is a pure function of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from odn_hybrid.data.preprocess import Preprocess

__all__ = ["DRAWS", "random_crop", "shift_flip"]

DRAWS = 5  # uniform numbers per image
SHIFT = 14  # an image moves by up to 1/14 of its side
_AREA = (0.08, 1.0)  # random resized crop of Szegedy et al. 2015, as in torchvision and timm
_RATIO = (3 / 4, 4 / 3)


def shift_flip(pixels: Tensor, random: np.ndarray, shift: bool, flip: bool) -> Tensor:
    """(N, C, H, W) moved by up to 1/14 of the side, black coming in, and mirrored half of the time.

    `random`: uniforms (N, DRAWS); columns 0 and 1 move, column 2 mirrors.
    """
    count, _, height, width = pixels.shape
    rows = np.tile(np.arange(height), (count, 1))
    columns = np.tile(np.arange(width), (count, 1))
    if flip:
        mirrored = random[:, 2] < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    if shift:
        down, across = round(height / SHIFT), round(width / SHIFT)
        pixels = F.pad(pixels, (across, across, down, down))
        rows += np.floor(random[:, 0] * (2 * down + 1)).astype(np.int64)[:, None]
        columns += np.floor(random[:, 1] * (2 * across + 1)).astype(np.int64)[:, None]
    image = torch.arange(count)[:, None, None]
    picked = pixels.permute(0, 2, 3, 1)[
        image, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None]
    ]
    return picked.permute(0, 3, 1, 2)


def random_crop(preprocess: Preprocess, images: Any, random: np.ndarray) -> Tensor:
    """(N, C, *size), float in 0..1: 8 to 100 % of each image's area, at a ratio of 3/4 to 4/3, resized.

    `random`: uniforms (N, DRAWS); columns 0, 1, 3, 4 say area, ratio, top and left.
    """
    single = [group[k : k + 1] for group in preprocess.planes(images) for k in range(len(group))]
    cut = []
    for planes, (area, ratio, _, top, left) in zip(single, random, strict=True):
        height, width = planes.shape[-2:]
        share = (_AREA[0] + area * (_AREA[1] - _AREA[0])) * height * width
        aspect = math.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
        rows = min(height, max(1, round(math.sqrt(share / aspect))))
        columns = min(width, max(1, round(math.sqrt(share * aspect))))
        first, second = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        cut.append(preprocess.resize(planes[..., first : first + rows, second : second + columns]))
    return torch.cat(cut)
