"""What the axes of an activation mean: channels first, channels last, or a sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def layout_of(x: Tensor, unit: Sequence[nn.Module], model: nn.Module) -> Layout:
    """The layout of `x` (batch, ...) as the modules of `unit` left it; `ModelError` for other ranks."""
    if x.dim() == 3:
        length, channels = int(x.shape[1]), int(x.shape[2])
        prefix, height, width = _tokens(length, model)
        return Layout("NLC", channels, height, width, prefix, length)
    if x.dim() != 4:
        raise ModelError(
            f"the activation after a block has shape {tuple(x.shape)}; "
            "maps (batch, c, h, w), (batch, h, w, c) and tokens (batch, length, channels) are supported"
        )
    _, a, b, c = (int(size) for size in x.shape)
    if _channels_last(a, b, c, unit):
        return Layout("NHWC", c, a, b)
    return Layout("NCHW", a, b, c)


def _tokens(length: int, model: nn.Module) -> tuple[int, int, int]:
    """(prefix tokens, height, width): what the model says, unless it adds those tokens only later."""
    said = getattr(model, "num_prefix_tokens", None)
    guesses = [length - math.isqrt(length) ** 2] if said is None else [int(said), 0]
    for prefix in guesses:
        height, width = _token_grid(length - prefix, model)
        if height:
            return prefix, height, width
    return guesses[0], 0, 0


def _token_grid(patches: int, model: nn.Module) -> tuple[int, int]:
    """(height, width) of the patch grid; (0, 0) where it is not known: heads then see a plain sequence."""
    known = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(known, tuple) and math.prod(known) == patches:
        return int(known[0]), int(known[1])
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else (0, 0)


def _channels_last(a: int, b: int, c: int, unit: Sequence[nn.Module]) -> bool:
    """Ask the unit's convolutions, then the map's squareness, then whether the last axis is normalised."""
    modules = [inner for module in unit for inner in module.modules()]
    widths = {m.out_channels for m in modules if isinstance(m, nn.Conv2d)}
    if widths and not any(isinstance(m, (nn.Linear, nn.LayerNorm)) for m in modules):
        return False  # nothing in it works on a last axis
    if (a in widths) != (c in widths):
        return c in widths
    if a == b != c:
        return True
    if b == c != a:
        return False
    sizes = {tuple(m.normalized_shape) for m in modules if isinstance(m, nn.LayerNorm)}
    return (c,) in sizes and not widths
