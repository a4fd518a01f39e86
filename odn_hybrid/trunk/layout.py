"""What the axes of an activation mean: channels first, channels last, or a sequence of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from odn_hybrid.errors import ModelError

__all__ = ["Layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """An activation without its batch axis.

    Attributes:
        kind: "NCHW", "NHWC" or "NLC" (tokens).
        channels: size of the channel axis.
        height, width: size of the map; of the token grid for "NLC" (0, 0 if the tokens form none).
        prefix: tokens before the grid (class, distillation and register tokens).
        tokens: length of the sequence, 0 for maps.
    """

    kind: str
    channels: int
    height: int
    width: int
    prefix: int = 0
    tokens: int = 0

    def to_map(self, x: Tensor) -> Tensor:
        """The activation as (batch, channels, height, width); prefix tokens are dropped."""
        if self.kind == "NCHW":
            return x
        if self.kind == "NHWC":
            return rearrange(x, "n h w c -> n c h w")
        grid = x[:, self.prefix :]
        if not self.height:
            return rearrange(grid, "n l c -> n c l 1")
        return rearrange(grid, "n (h w) c -> n c h w", h=self.height)

    def to_tokens(self, x: Tensor) -> Tensor:
        """The activation as (batch, positions, channels); prefix tokens are kept."""
        if self.kind == "NCHW":
            return rearrange(x, "n c h w -> n (h w) c")
        if self.kind == "NHWC":
            return rearrange(x, "n h w c -> n (h w) c")
        return x


def layout_of(x: Tensor, unit: nn.Module, model: nn.Module) -> Layout:
    """Read the layout of `x` (batch, ...) as `unit` left it. Raises `ModelError` for other ranks."""
    if x.dim() == 3:
        prefix = getattr(model, "num_prefix_tokens", None)
        length, channels = int(x.shape[1]), int(x.shape[2])
        if prefix is None:
            prefix = length - math.isqrt(length) ** 2
        height, width = _token_grid(length - int(prefix), model)
        return Layout("NLC", channels, height, width, int(prefix), length)
    if x.dim() != 4:
        raise ModelError(
            f"the activation after a block has shape {tuple(x.shape)}; "
            "maps (batch, c, h, w), (batch, h, w, c) and tokens (batch, length, channels) are supported"
        )
    _, a, b, c = (int(size) for size in x.shape)
    if _channels_last(a, b, c, unit):
        return Layout("NHWC", c, a, b)
    return Layout("NCHW", a, b, c)


def _token_grid(patches: int, model: nn.Module) -> tuple[int, int]:
    """(height, width) of the patch grid; (0, 0) where it is not known: heads then see a plain sequence."""
    known = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(known, tuple) and math.prod(known) == patches:
        return int(known[0]), int(known[1])
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else (0, 0)


def _channels_last(a: int, b: int, c: int, unit: nn.Module) -> bool:
    """Ask the unit's convolutions, then the map's squareness, then whether the last axis is normalised."""
    widths = {m.out_channels for m in unit.modules() if isinstance(m, nn.Conv2d)}
    if (a in widths) != (c in widths):
        return c in widths
    if a == b != c:
        return True
    if b == c != a:
        return False
    sizes = {tuple(m.normalized_shape) for m in unit.modules() if isinstance(m, nn.LayerNorm)}
    convolutions = any(isinstance(m, nn.Conv2d) for m in unit.modules())
    return (c,) in sizes and not convolutions
