"""Arrays of images to channel planes, with every refusal spelled out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from odn_hybrid.errors import InputError

__all__ = ["MAX_CHANNELS", "array_planes"]

MAX_CHANNELS = 4  # a third axis of at most this many entries is channels
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def array_planes(images: np.ndarray | Tensor, channels: int) -> Tensor:
    """(n, C, H, W), uint8 or float32 in 0..1, of a channels-last array; the model takes `channels`."""
    tensor = _as_tensor(images)
    shape = tuple(tensor.shape)
    is_channels = tensor.ndim > 2 and (shape[-1] <= MAX_CHANNELS or shape[-1] == channels)
    # Torch users hold one image as (3, H, W); silently reading three grey images would be a trap.
    first = isinstance(images, Tensor) and tensor.ndim == 3 and channels == 3 and shape[0] == 3
    if (tensor.ndim == 4 or first) and not is_channels:
        axes = "permute(0, 2, 3, 1)" if tensor.ndim == 4 else "permute(1, 2, 0)"
        hint = f"; if it is channels first, use {axes}" if shape[-3] in (1, 3) else ""
        raise InputError(f"image array has shape {shape}; it must be channels last, NxHxWxC{hint}")
    if tensor.ndim == 2:
        planes = tensor[None, None]
    elif tensor.ndim == 3:
        planes = tensor.permute(2, 0, 1)[None] if is_channels else tensor[:, None]
    elif tensor.ndim == 4:
        planes = tensor.permute(0, 3, 1, 2)
    else:
        raise InputError(f"image array has shape {shape}; give HxW, HxWxC, NxHxW or NxHxWxC")
    if 0 in planes.shape[1:]:
        raise InputError(f"image array has shape {shape}: images without pixels")
    return planes


def _as_tensor(images: np.ndarray | Tensor) -> Tensor:
    refuse = "images have dtype {}; give uint8 (0..255) or float (0..1)"
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise InputError(refuse.format(images.dtype))
        # A copy where torch would warn (read-only memory) or refuse (reversed axes, foreign byte order).
        plain = images.flags.writeable and images.flags.c_contiguous and images.dtype.isnative
        kind = np.uint8 if images.dtype == np.uint8 else np.float32
        tensor = torch.from_numpy(images if plain and images.dtype == kind else np.array(images, dtype=kind))
    else:
        if images.dtype != torch.uint8 and images.dtype not in _FLOATS:
            raise InputError(refuse.format(str(images.dtype).removeprefix("torch.")))
        tensor = images.detach().cpu()
    if tensor.dtype == torch.uint8:
        return tensor
    tensor = tensor.float()
    if tensor.numel():
        low, high = (float(v) for v in torch.aminmax(tensor))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("images hold NaN or infinite pixels; mend or leave out those images")
        if low < 0.0 or high > 1.0:
            raise InputError(f"float pixels run from {low:g} to {high:g}; scale them to 0..1, or give uint8")
    return tensor
