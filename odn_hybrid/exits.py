"""Exit heads, and `MultiExit`: a trunk and the depths at which it answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid.config import ExitConfig
from odn_hybrid.errors import ConfigError, InputError, ModelError
from odn_hybrid.trunk import DepthPlan, State, Trunk, prefix, thinnings
from odn_hybrid.trunk.layout import Layout

__all__ = ["HEADS", "MultiExit", "build_head", "forks_of", "register_head", "unused_modules"]

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
    """A trunk with its exits: exits 1 to K are depth plans from the shallowest to the whole network.

    With prefix plans an exit head stands after the units of each exit but the last, which has the backbone's
    own, and all exits share one forward. With thin plans each exit is a thinner version of the network, with
    the backbone's own head, and goes its own way from the first unit that it runs and the exit before does
    not. All share one set of weights, and with them the statistics of batch normalisation, a mixture over
    those that train: figures and cut models are of networks with these statistics.

    Args:
        trunk: the backbone as stem, units, tail.
        config: which plans, which head, its options, and after every how many units.

    Attributes:
        backbone: the user's model, its state-dict keys untouched.
        plans: per exit, which units run.
        heads: one head for each of exits 1 to K - 1 (none with thin plans).
        units: per exit, the number of units it needs; the last is len(trunk).
        forks: per exit, how many leading units of the trunk it has in common with the exit before.

    Raises:
        ConfigError: an unknown kind of plan, or thin plans of a network none of whose units can be removed.
    """

    def __init__(self, trunk: Trunk, config: ExitConfig | None = None) -> None:
        super().__init__()
        config = config or ExitConfig()
        self.trunk = trunk
        self.config = config
        self.plans = _plans(trunk, config)
        self.units: tuple[int, ...] = tuple(plan.units for plan in self.plans)
        self.forks = forks_of([plan.keep for plan in self.plans])
        self.backbone = trunk.model
        self.heads = nn.ModuleList(
            _initialised(build_head(config.head, trunk.layout(plan.units), trunk.num_classes, **config.args))
            for plan in self.plans[:-1]
            if plan.kind == "prefix"
        )
        like = next(self.backbone.parameters())
        self.heads.to(device=like.device, dtype=like.dtype)

    def __len__(self) -> int:
        """Number of exits K."""
        return len(self.units)

    @property
    def shares_prefix(self) -> bool:
        """Whether a deeper exit goes on from the state of a shallower one, so that inputs can halt."""
        return self.config.plan == "prefix"

    def own_head(self, number: int) -> bool:
        """Whether exit `number` answers with the backbone's own head."""
        return number == len(self) or not self.shares_prefix

    def states(self, images: Tensor, upto: int | None = None) -> Iterator[tuple[int, State]]:
        """Walk the network: (exit, state) for exits 1 to `upto`.

        The stem runs once, and so do the leading units that an exit has in common with the one before.
        """
        last = len(self) if upto is None else self.check_exit(upto)
        held = {0: self.trunk.stem(images)}  # by depth, on the way of the exit before
        for number in range(1, last + 1):
            fork, stops = self.forks[number - 1], self._stops(number, last)
            state, held = held[fork], {depth: held[depth] for depth in stops if depth <= fork}
            for depth in stops:
                if depth > fork:
                    held[depth] = state = self.trunk.follow(state, self.plans[number - 1], depth)
            yield number, self.advance(state, number)

    def _stops(self, number: int, last: int) -> list[int]:
        """Depths on the way of exit `number` from which exits up to `last` go on, ascending."""
        stops: list[int] = []
        for fork in self.forks[number:last]:
            if not stops or fork < stops[0]:  # a fork further on lies on another exit's way
                stops.insert(0, fork)
        return stops

    def advance(self, state: State, number: int) -> State:
        """From a state on the way to exit `number` (or at depth 0) to where that exit's head stands."""
        plan = self.plans[self.check_exit(number) - 1]
        if self.shares_prefix:
            return self.trunk.run(state, state.depth, plan.units)
        return self.trunk.follow(state, plan)

    def classify(self, number: int, state: State) -> Tensor:
        """Logits (batch, classes) of exit `number` on a state at its depth."""
        depth = self.units[self.check_exit(number) - 1] if self.shares_prefix else len(self.trunk)
        if state.depth != depth:
            raise InputError(f"exit {number} stands after {depth} units, not {state.depth}")
        if self.own_head(number):
            return self.trunk.tail(state)
        logits: Tensor = self.heads[number - 1](state.x)
        return logits

    def forward(self, images: Tensor, upto: int | None = None) -> list[Tensor]:
        """Logits of exits 1 to `upto` (default: all), each (batch, classes), in one walk."""
        return [self.classify(number, state) for number, state in self.states(images, upto)]

    def at(self, images: Tensor, number: int) -> Tensor:
        """Logits (batch, classes) of one exit; only the units it needs are run."""
        return self.classify(number, self.advance(self.trunk.stem(images), number))

    def check_exit(self, number: int) -> int:
        """The number back if it is that of an exit; raises `ConfigError` otherwise."""
        if not 1 <= number <= len(self):
            raise ConfigError(f"there is no exit {number!r}; exits are numbered 1 to {len(self)}")
        return number

    def exit_of(self, depth: int) -> int:
        """The exit that runs `depth` units; raises `ModelError` naming the depths that exist."""
        if depth not in self.units:
            if self.shares_prefix:
                raise ModelError(f"no exit after {depth!r} units; exits stand after {list(self.units)} units")
            raise ModelError(f"no exit has {depth!r} units; the thin networks have {list(self.units)} units")
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


def forks_of(plans: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Per plan (units from 0, ascending), how many leading units of the trunk it treats as the one before.

    The first has none before it, and 0.
    """
    return (0, *(min(set(before) ^ set(plan)) for before, plan in pairwise(plans)))


def unused_modules(trunk: Trunk, plan: DepthPlan, *, own_head: bool) -> tuple[list[str], list[str]]:
    """Modules that a network cut by `plan` does without: of its units, and of the backbone's own head.

    A module that the stem or a unit which stays calls too is not among them.
    """
    stay = {*trunk.stem_names, *(name for number in plan.keep for name in trunk.unit_names[number])}
    gone = [name for number, unit in enumerate(trunk.unit_names) if number not in plan.keep for name in unit]
    after = [] if own_head else trunk.after_names
    return [name for name in gone if name not in stay], [name for name in after if name not in stay]


def _plans(trunk: Trunk, config: ExitConfig) -> tuple[DepthPlan, ...]:
    if config.plan == "thin":
        return thinnings(trunk, config.every)
    if config.plan != "prefix":
        raise ConfigError(f"exits.plan is {config.plan!r}; choose 'prefix' or 'thin'")
    depths = [*range(config.every, len(trunk), config.every), len(trunk)]
    return tuple(prefix(depth, trunk) for depth in depths)
