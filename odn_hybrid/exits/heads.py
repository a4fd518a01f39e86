"""Exit heads: from the activation after a unit to logits, in a registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from odn_hybrid.errors import ConfigError
from odn_hybrid.trunk.layout import Layout

__all__ = ["HEADS", "build_head", "initialised", "register_head"]

HeadFactory = Callable[..., nn.Module]
HEADS: dict[str, HeadFactory] = {}


def register_head(name: str) -> Callable[[HeadFactory], HeadFactory]:
    """Register an exit head under `name`: a callable `(layout, num_classes, **args) -> nn.Module`.

    The module maps the activation after a unit, (batch, ...) in the given layout, to logits
    (batch, num_classes). A head whose forward begins with something that has no trained parameters can say
    so by two methods, `features(x)` and `classify(features)`, which one after the other are its forward: the
    regime "frozen" then keeps its features instead of the whole activation.

    Example:
        >>> import odn_hybrid as odn
        >>> from odn_hybrid.exits import build_head
        >>> from odn_hybrid.trunk.layout import Layout
        >>> from torch import nn
        >>> @odn.register_head("largest")  # of feature maps: layout.kind is "NCHW"
        ... def largest(layout, num_classes):
        ...     pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        ...     return nn.Sequential(pool, nn.Linear(layout.channels, num_classes))
        >>> build_head("largest", Layout("NCHW", 64, 8, 8), 10)[1].in_features
        64
    """

    def add(factory: HeadFactory) -> HeadFactory:
        HEADS[name] = factory
        return factory

    return add


def build_head(name: str, layout: Layout, num_classes: int, **args: Any) -> nn.Module:
    """Build a registered head; raises `ConfigError` for an unknown name or options it does not take."""
    if name not in HEADS:
        raise ConfigError(f"unknown exit head {name!r}; known heads: {', '.join(sorted(HEADS))}")
    try:
        head = HEADS[name](layout, num_classes, **args)
    except TypeError as error:
        raise ConfigError(f"exit head {name!r}: {error}") from None
    if any(isinstance(parameter, UninitializedParameter) for parameter in head.parameters()):
        raise ConfigError(
            f"exit head {name!r} holds lazy layers, whose sizes nobody knows before an image comes by: take "
            "sizes from its layout"
        )
    return head


class _Normed(nn.Module):
    """Token states leave a pre-norm block unnormalised; maps of channels-first networks do not."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.norm = nn.Identity() if layout.kind == "NCHW" else nn.LayerNorm(layout.channels)

    def _fixed_norm(self, x: Tensor) -> Tensor:
        """The part of the normalisation that isn't trained; averaging may come before the other part."""
        if isinstance(self.norm, nn.LayerNorm):
            return F.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        return x

    def _trained_norm(self, features: Tensor, axis: int) -> Tensor:
        """The trained part: scale and shift of the channels, which lie along `axis`."""
        if not isinstance(self.norm, nn.LayerNorm):
            return features
        shape = [1] * features.dim()
        shape[axis] = -1
        return features * self.norm.weight.view(shape) + self.norm.bias.view(shape)


@register_head("linear")
class LinearHead(_Normed):
    """Average over all positions, then a linear classifier: the Optimally Deep Networks paper's head."""

    def __init__(self, layout: Layout, num_classes: int) -> None:
        super().__init__(layout)
        self.fc = nn.Linear(layout.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> logits (batch, num_classes)."""
        return self.fc(self._pooled(self.norm(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.layout.kind == "NCHW" else x.flatten(1, -2).mean(1)

    def features(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> its average over all positions, (batch, channels)."""
        return self._pooled(self._fixed_norm(x))

    def classify(self, features: Tensor) -> Tensor:
        """Features (batch, channels) -> logits (batch, num_classes)."""
        return self.fc(self._trained_norm(features, 1))


@register_head("grid")
class GridHead(_Normed):
    """Average within a coarse grid of cells, so that some spatial layout survives, then classify.

    An early unit sees small patches only; where in the image they lie is what a plain average throws
    away. `rank` first mixes the channels of every cell down to that many; `hidden` puts one hidden layer
    of that width before the classifier. Both cost few parameters. `grid` is the number of cells a side
    (at most the map's own size). For tokens the grid is the patch grid; prefix tokens are left out.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        grid: int = 4,
        rank: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__(layout)
        for name, value in (("grid", grid), ("rank", rank), ("hidden", hidden)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ConfigError(
                    f"exit head 'grid': {name} is {value!r}; it must be a whole number of 1 or more"
                )
        rows = min(grid, layout.height or layout.tokens - layout.prefix)
        columns = min(grid, layout.width or 1)
        self.cells = (rows, columns)
        width = layout.channels
        self.mix: nn.Module = nn.Identity()
        if rank is not None:
            self.mix = nn.Sequential(
                nn.Conv2d(width, rank, 1, bias=False), nn.BatchNorm2d(rank), nn.ReLU(inplace=True)
            )
            width = rank
        width *= rows * columns
        self.hidden: nn.Module = nn.Identity()
        if hidden is not None:
            self.hidden = nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)
            )
            width = hidden
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> logits (batch, num_classes)."""
        return self._answer(self._pooled(self.norm(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.layout.to_map(x), self.cells)

    def _answer(self, cells: Tensor) -> Tensor:
        return self.fc(self.hidden(self.mix(cells).flatten(1)))

    def features(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> its average within each cell, (batch, channels, rows, columns)."""
        return self._pooled(self._fixed_norm(x))

    def classify(self, features: Tensor) -> Tensor:
        """Features (batch, channels, rows, columns) -> logits (batch, num_classes)."""
        return self._answer(self._trained_norm(features, 1))


@register_head("attention")
class AttentionHead(_Normed):
    """One learned query attends to all positions (prefix tokens included), then a linear classifier."""

    def __init__(self, layout: Layout, num_classes: int, heads: int = 4) -> None:
        super().__init__(layout)
        if not isinstance(heads, int) or heads < 1 or layout.channels % heads:
            raise ConfigError(
                f"exit head 'attention': heads is {heads!r}; it must divide the {layout.channels} channels"
            )
        self.pool = AttentionPoolLatent(layout.channels, num_heads=heads, mlp_ratio=1.0)
        self.fc = nn.Linear(layout.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> logits (batch, num_classes)."""
        return self.fc(self.pool(self.layout.to_tokens(self.norm(x))))

    def features(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> (batch, positions, channels)."""
        return self.layout.to_tokens(self._fixed_norm(x))

    def classify(self, features: Tensor) -> Tensor:
        """Features (batch, positions, channels) -> logits (batch, num_classes)."""
        return self.fc(self.pool(self._trained_norm(features, 2)))


def initialised(head: nn.Module) -> nn.Module:
    """`head` with its linear layers' biases at zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return head
