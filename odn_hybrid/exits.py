"""Exit heads, and `MultiExit`: a trunk with a classifier after its units, all in one forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid.config import ExitConfig
from odn_hybrid.errors import ConfigError, InputError, ModelError
from odn_hybrid.trunk import State, Trunk
from odn_hybrid.trunk.layout import Layout

__all__ = ["HEADS", "MultiExit", "build_head", "register_head"]

HeadFactory = Callable[..., nn.Module]
HEADS: dict[str, HeadFactory] = {}


def register_head(name: str) -> Callable[[HeadFactory], HeadFactory]:
    """Register an exit head: a callable `(layout, num_classes, **args) -> nn.Module`.

    The module maps the activation after a unit, (batch, ...) in the given layout, to logits
    (batch, num_classes).
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
        return HEADS[name](layout, num_classes, **args)
    except TypeError as error:
        raise ConfigError(f"exit head {name!r}: {error}") from None


class _Normed(nn.Module):
    """Token states leave a pre-norm block unnormalised; maps of channels-first networks do not."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.norm = nn.Identity() if layout.kind == "NCHW" else nn.LayerNorm(layout.channels)


@register_head("linear")
class LinearHead(_Normed):
    """Average over all positions, then a linear classifier: the Optimally Deep Networks paper's head."""

    def __init__(self, layout: Layout, num_classes: int) -> None:
        super().__init__(layout)
        self.fc = nn.Linear(layout.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Activation (batch, ...) -> logits (batch, num_classes)."""
        x = self.norm(x)
        pooled = x.mean((2, 3)) if self.layout.kind == "NCHW" else x.flatten(1, -2).mean(1)
        return self.fc(pooled)


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
        cells = F.adaptive_avg_pool2d(self.layout.to_map(self.norm(x)), self.cells)
        return self.fc(self.hidden(self.mix(cells).flatten(1)))


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


def _initialised(head: nn.Module) -> nn.Module:
    for module in head.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return head


class MultiExit(nn.Module):
    """A trunk with an exit head after its units; exit K is the backbone's own head.

    Exits are numbered 1 to K from the shallowest. `units` says after how many units each stands.

    Args:
        trunk: the backbone as stem, units, tail.
        config: which head, its options, and after every how many units.

    Attributes:
        backbone: the user's model, its state-dict keys untouched.
        heads: one head for each of exits 1 to K - 1.
        units: per exit, the number of units it needs; the last is len(trunk).
    """

    def __init__(self, trunk: Trunk, config: ExitConfig | None = None) -> None:
        super().__init__()
        config = config or ExitConfig()
        depths = [d for d in range(config.every, len(trunk), config.every)] + [len(trunk)]
        self.trunk = trunk
        self.config = config
        self.units: tuple[int, ...] = tuple(depths)
        self.backbone = trunk.model
        self.heads = nn.ModuleList(
            _initialised(build_head(config.head, trunk.layout(d), trunk.num_classes, **config.args))
            for d in depths[:-1]
        )
        like = next(self.backbone.parameters())
        self.heads.to(device=like.device, dtype=like.dtype)

    def __len__(self) -> int:
        """Number of exits K."""
        return len(self.units)

    def states(self, images: Tensor, upto: int | None = None) -> Iterator[tuple[int, State]]:
        """Walk the shared prefix: (exit, state) for exits 1 to `upto`, each unit run once."""
        last = len(self) if upto is None else self.check_exit(upto)
        state = self.trunk.stem(images)
        for number in range(1, last + 1):
            state = self.trunk.run(state, state.depth, self.units[number - 1])
            yield number, state

    def classify(self, number: int, state: State) -> Tensor:
        """Logits (batch, classes) of exit `number` on a state at its depth."""
        if state.depth != self.units[self.check_exit(number) - 1]:
            raise InputError(f"exit {number} stands after {self.units[number - 1]} units, not {state.depth}")
        if number == len(self):
            return self.trunk.tail(state)
        logits: Tensor = self.heads[number - 1](state.x)
        return logits

    def forward(self, images: Tensor, upto: int | None = None) -> list[Tensor]:
        """Logits of exits 1 to `upto` (default: all), each (batch, classes), in one shared forward."""
        return [self.classify(number, state) for number, state in self.states(images, upto)]

    def at(self, images: Tensor, number: int) -> Tensor:
        """Logits (batch, classes) of one exit; only the units it needs are run."""
        depth = self.units[self.check_exit(number) - 1]
        return self.classify(number, self.trunk.run(self.trunk.stem(images), 0, depth))

    def check_exit(self, number: int) -> int:
        """The number back if it is that of an exit; raises `ConfigError` otherwise."""
        if not 1 <= number <= len(self):
            raise ConfigError(f"there is no exit {number!r}; exits are numbered 1 to {len(self)}")
        return number

    def exit_of(self, depth: int) -> int:
        """The exit that stands after `depth` units; raises `ModelError` naming the depths that exist."""
        if depth not in self.units:
            raise ModelError(f"no exit after {depth!r} units; exits stand after {list(self.units)} units")
        return self.units.index(depth) + 1

    def copy(self) -> MultiExit:
        """An independent copy, weights included."""
        return copy.deepcopy(self)

    @torch.no_grad()
    def load_parts(self, backbone: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        """Load backbone and head weights, strictly; raises `ModelError` naming the first misfit."""
        for module, weights, what in (
            (self.backbone, backbone, "backbone"),
            (self.heads, heads, "exit heads"),
        ):
            try:
                module.load_state_dict(weights, strict=True)
            except RuntimeError as error:
                raise ModelError(
                    f"the weights do not fit the {what}: {' '.join(str(error).split())[:300]}"
                ) from None
