"""`MultiExit`: a trunk and the depths at which it answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, spec_of
from odn_hybrid.config import ExitConfig
from odn_hybrid.errors import ConfigError, InputError, ModelError
from odn_hybrid.exits.heads import build_head, initialised
from odn_hybrid.folding import Pairs, apply_fold, fold_pairs
from odn_hybrid.trunk import DepthPlan, State, Trunk, prefix, thinnings
from odn_hybrid.trunk.norms import OwnNorms, norm_owners, worn

__all__ = ["MultiExit", "forks_of", "unused_modules"]

NORMS = ("own", "affine", "shared")


class MultiExit(nn.Module):
    """A trunk with its exits: exits 1 to K are depth plans from the shallowest to the whole network.

    With prefix plans an exit head stands after the units of each exit but the last, which has the backbone's
    own, and all exits share one forward. With thin plans each exit is a thinner version of the network, with
    the backbone's own head, and goes its own way from the first unit that it runs and the exit before does
    not. All share one set of weights. Statistics of batch normalisation are each network's own from the unit
    at which it parts from the next (`config.norms`); the whole network's are the backbone's.

    Args:
        trunk: the backbone as stem, units, tail.
        config: which plans, which head, its options, and after every how many units.

    Attributes:
        backbone: the user's model, its state-dict keys untouched.
        plans: per exit, which units run.
        heads: one head for each of exits 1 to K - 1 (none with thin plans).
        norms: normalisation of its own for each of thin networks 1 to K - 1 (empty where none has any).
        units: per exit, the number of units it needs; the last is len(trunk).
        folds: (layer, batch normalisation) that were made one, see `fold`; mostly none.
        forks: per exit, how many leading units of the trunk it has in common with the exit before.

    Raises:
        ConfigError: an unknown kind of plan, or thin plans of a network none of whose units can be removed.

    Example:
        >>> import torch
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> network = odn.MultiExit(trunk).eval()
        >>> [tuple(logits.shape) for logits in network(torch.rand(2, 3, 32, 32))][:2]
        [(2, 10), (2, 10)]
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
        self.folds: tuple[tuple[str, str], ...] = ()
        self._unfolded: BackboneSpec | None = None
        self.heads = nn.ModuleList(
            initialised(build_head(config.head, trunk.layout(plan.units), trunk.num_classes, **config.args))
            for plan in self.plans[:-1]
            if plan.kind == "prefix"
        )
        like = next(self.backbone.parameters())
        self.heads.to(device=like.device, dtype=like.dtype)
        own = not self.shares_prefix and config.norms != "shared"
        self._owners = norm_owners(trunk, [plan.keep for plan in self.plans], self.forks) if own else []
        mine = [[path for path, owner in found if owner == k] for k, found in enumerate(self._owners[:-1])]
        affine = config.norms == "affine"
        self.norms = nn.ModuleList(OwnNorms(trunk.model, names, affine=affine) for names in mine if any(mine))

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
                    held[depth] = state = self._follow(state, number, depth)
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
        return self._follow(state, number)

    def classify(self, number: int, state: State) -> Tensor:
        """Logits (batch, classes) of exit `number` on a state at its depth; `InputError` at another."""
        depth = self.units[self.check_exit(number) - 1] if self.shares_prefix else len(self.trunk)
        if state.depth != depth:
            raise InputError(f"exit {number} stands after {depth} units, not {state.depth}")
        if self.own_head(number):
            with self.as_exit(number):
                return self.trunk.tail(state)
        logits: Tensor = self.heads[number - 1](state.x)
        return logits

    def forward(self, images: Tensor, upto: int | None = None) -> list[Tensor]:
        """Logits of exits 1 to `upto` (default: all), each (batch, classes), in one walk."""
        return [self.classify(number, state) for number, state in self.states(images, upto)]

    def at(self, images: Tensor, number: int) -> Tensor:
        """Logits (batch, classes) of one exit; only the units it needs are run."""
        return self.classify(number, self.advance(self.trunk.stem(images), number))

    def _follow(self, state: State, number: int, stop: int | None = None) -> State:
        with self.as_exit(number):
            return self.trunk.follow(state, self.plans[number - 1], stop)

    def as_exit(self, number: int) -> AbstractContextManager[None]:
        """While it lasts, the backbone has the normalisation of exit `number`, under its own keys."""
        if not self.norms or number == len(self):
            return nullcontext()
        find = self.backbone.get_submodule
        owned = [(path, owner) for path, owner in self._owners[number - 1] if owner < len(self.norms)]
        return worn([(find(path), self.norms[owner].get_submodule(path)) for path, owner in owned])

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

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the backbone would not have decayed, such as position embeddings.

        timm's optimizers ask a model for these.
        """
        asked = getattr(self.backbone, "no_weight_decay", None)
        return {f"backbone.{name}" for name in asked()} if callable(asked) else set()

    def copy(self) -> MultiExit:
        """An independent copy, weights included."""
        return copy.deepcopy(self)

    def fold(self, pairs: Pairs | None = None) -> MultiExit:
        """Fold batch normalisation into the layers before it, in place, and give the network back.

        For evaluation only: the same logits, faster. Default: all `pairs` for which that is exact
        (`odn_hybrid.folding`). Thin networks, whose exits normalise one layer's output each in its own way,
        stay as they are.
        """
        if not self.shares_prefix or self.folds:
            return self
        if pairs is None:
            like = next(self.parameters())
            images = torch.rand(2, *self.trunk.image_shape, generator=torch.Generator().manual_seed(0))
            pairs = fold_pairs(self, images.to(device=like.device, dtype=like.dtype))
        self._unfolded = self.spec
        apply_fold(self, pairs)
        self.folds = tuple((layer, norm) for layer, norm in pairs)
        return self

    @property
    def spec(self) -> BackboneSpec:
        """How the backbone can be built again; of a folded network, before it was folded."""
        return self._unfolded or spec_of(self.backbone, self.trunk.num_classes)

    def exit_parts(self) -> dict[str, Tensor]:
        """What the exits have beside the backbone: the heads' weights and, under `norms.`, normalisation."""
        norms = {f"norms.{name}": value for name, value in self.norms.state_dict().items()}
        return {**self.heads.state_dict(), **norms}

    @torch.no_grad()
    def load_parts(self, backbone: dict[str, Tensor], exits: dict[str, Tensor]) -> None:
        """Load backbone and `exit_parts`, strictly; raises `ModelError` naming the first misfit.

        Thin networks kept without normalisation of their own had the backbone's, and get it.
        """
        heads = {name: value for name, value in exits.items() if not name.startswith("norms.")}
        norms = {name.removeprefix("norms."): v for name, v in exits.items() if name.startswith("norms.")}
        if not norms:
            held = self.norms.state_dict()
            norms = {name: backbone.get(name.partition(".")[2], value) for name, value in held.items()}
        for module, weights, what in (
            (self.backbone, backbone, "backbone"),
            (self.heads, heads, "exit heads"),
            (self.norms, norms, "normalisation of thin networks"),
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
    if config.norms not in NORMS:
        raise ConfigError(f"exits.norms is {config.norms!r}; choose one of {', '.join(NORMS)}")
    if config.plan == "thin":
        return thinnings(trunk, config.every)
    if config.plan != "prefix":
        raise ConfigError(f"exits.plan is {config.plan!r}; choose 'prefix' or 'thin'")
    depths = [*range(config.every, len(trunk), config.every), len(trunk)]
    return tuple(prefix(depth, trunk) for depth in depths)
