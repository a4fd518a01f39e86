"""Which units stay: laws of the plans, and what a thinner network computes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from odn_hybrid import MultiExit, Trunk
from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.trunk import prefix, thin, thinnings

Build = Callable[[str], tuple[nn.Module, int | None]]


# --- laws -------------------------------------------------------------------------------------------


@dataclass
class Outline:
    """What plans ask of a trunk: stages of some lengths, in which some units cannot be removed."""

    lengths: list[int]
    fixed: set[int]

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        return tuple(pairwise([0, *accumulate(self.lengths)]))

    @property
    def removable(self) -> tuple[int, ...]:
        firsts = {start for start, _ in self.stages}
        return tuple(u for u in range(len(self)) if u not in firsts and u not in self.fixed)


outlines = st.builds(
    Outline, st.lists(st.integers(1, 8), min_size=1, max_size=5), st.sets(st.integers(0, 20), max_size=3)
)


@given(outlines, st.floats(0, 1), st.floats(0, 1))
def test_laws_of_thin(trunk: Outline, one: float, other: float) -> None:
    if not trunk.removable:
        with pytest.raises(ConfigError, match="no unit of this network can be removed"):
            thin(1.0, trunk)
        return
    less, more = sorted((one, other))
    plan, every = thin(less, trunk), range(len(trunk))
    assert plan.kind == "thin"
    assert list(plan.keep) == sorted(set(plan.keep))
    assert set(thin(more, trunk).keep) <= set(plan.keep)
    assert {start for start, _ in trunk.stages} <= set(plan.keep)
    assert set(every) - set(plan.keep) <= set(trunk.removable)
    assert plan.units == len(plan.keep)
    if less == 0 or less > 1e-6:  # between them rounding decides
        assert (plan.units < len(trunk)) == (less > 0)
    assert thin(0, trunk).keep == tuple(every)
    assert set(every) - set(thin(1, trunk).keep) == set(trunk.removable)


@given(outlines, st.integers(1, 6))
def test_laws_of_thinnings(trunk: Outline, step: int) -> None:
    if not trunk.removable:
        with pytest.raises(ConfigError, match="no unit of this network can be removed"):
            thinnings(trunk, step)
        return
    plans = thinnings(trunk, step)
    assert plans[0] == thin(1, trunk)
    assert plans[-1] == thin(0, trunk)
    for thinner, thicker in pairwise(plans):
        assert set(thinner.keep) < set(thicker.keep)
        assert thicker.units - thinner.units <= step
    finest = thinnings(trunk, 1)
    assert set(plans) <= set(finest)
    for plan in finest:  # the removable units of all stages go at one pace
        shares = []
        for start, stop in trunk.stages:
            spare = [u for u in trunk.removable if start <= u < stop]
            left = [u for u in spare if u in plan.keep]
            assert left == spare[: len(left)]  # the last of a stage first
            shares += [(len(left) / len(spare), 1 / len(spare))] if spare else []
        assert max(share for share, _ in shares) <= min(share + unit for share, unit in shares) + 1e-9


def test_thin_by_hand() -> None:
    trunk = Outline([3, 4, 6, 3], set())  # a ResNet-50
    assert thin(0.5, trunk).keep == (0, 1, 3, 4, 7, 8, 9, 13, 14)
    assert thin(0.01, trunk).keep == (0, 1, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14)
    assert [plan.units for plan in thinnings(trunk, 5)] == [4, 9, 14, 16]


def test_laws_of_prefix() -> None:
    trunk = Outline([2, 3], set())
    assert [prefix(k, trunk).keep for k in (1, 2, 5)] == [(0,), (0, 1), (0, 1, 2, 3, 4)]
    for depth in (0, 6, -1):
        with pytest.raises(ConfigError, match=rf"prefix\({depth}\): the trunk has 5 units; keep 1 to 5"):
            prefix(depth, trunk)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(
        ConfigError, match=r"thin\(.*\): the share of removable units is a fraction from 0 to 1"
    ):
        thin(share, Outline([3], set()))


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_steps_that_are_none(step: Any) -> None:
    with pytest.raises(ConfigError, match="it must be a whole number of 1 or more"):
        thinnings(Outline([3], set()), step)


# --- what a thinner network computes ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vit_tiny", "vit, shared relative positions", "swin",
             "torchvision resnet18", "torchvision vit"],
)  # fmt: skip
@torch.no_grad()
def test_units_left_out_are_identities(build: Build, name: str) -> None:
    model, size = build(name)
    trunk = Trunk(model.eval(), image_size=size)
    images = torch.rand(3, *trunk.image_shape)
    for plan in (thin(0.4, trunk), thin(1.0, trunk)):
        silenced = copy.deepcopy(model)
        for unit in sorted(set(range(len(trunk))) - set(plan.keep)):
            for module in trunk.unit_names[unit]:
                silenced.set_submodule(module, Passing())
        state = trunk.follow(trunk.stem(images), plan)
        assert state.depth == len(trunk)
        torch.testing.assert_close(trunk.tail(state), silenced(images), rtol=1e-4, atol=1e-5)
        part = trunk.follow(trunk.stem(images), plan, 3)
        assert part.depth == 3
        torch.testing.assert_close(trunk.follow(part, plan).x, state.x)


class Passing(nn.Module):
    """An identity that does not mind what else a unit was given."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


class Mixer(nn.Module):
    """Two branches of one shape that change places in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return b + self.one(a), a + self.two(b)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.blocks, self.fc = nn.ModuleList(Mixer() for _ in range(4)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        for block in self.blocks:
            a, b = block(a, b)
        return self.fc(torch.cat([a, b], 1).mean((2, 3)))  # type: ignore[no-any-return]


@torch.no_grad()
def test_branches_keep_their_places_where_a_unit_is_left_out() -> None:
    model = Mixing().eval()
    trunk, images = Trunk(model, image_size=8), torch.rand(2, 3, 8, 8)
    plan = thin(0.5, trunk)
    assert plan.units < 4
    a, b = model.a(images), model.b(images)
    for unit in plan.keep:
        a, b = model.blocks[unit](a, b)
    wanted = model.fc(torch.cat([a, b], 1).mean((2, 3)))
    torch.testing.assert_close(trunk.tail(trunk.follow(trunk.stem(images), plan)), wanted)


@torch.no_grad()
def test_a_unit_that_must_run_is_not_left_out(build: Build) -> None:
    trunk = Trunk(build("resnet18")[0].eval(), image_size=32)
    state = trunk.run(trunk.stem(torch.rand(1, 3, 32, 32)), 0, 2)
    with pytest.raises(ModelError, match=r"unit 3 \(layer2.0\) changes what the next one gets: it must run"):
        trunk.follow(state, prefix(2, trunk))


# --- thin networks cut out of their backbone --------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny", "vit, own rope", "vit, shared relative positions", "swin",
             "torchvision resnet18", "torchvision vit"],
)  # fmt: skip
@torch.no_grad()
def test_thin_networks_are_cut_to_plain_modules(build: Build, name: str) -> None:
    model, size = build(name)
    network = MultiExit(Trunk(model, image_size=size), ExitConfig(plan="thin")).eval()
    assert len(network.heads) == 0
    images = torch.rand(2, *network.trunk.image_shape)
    keys, logits = set(model.state_dict()), network(images)
    spec = BackboneSpec(library="module", name=name)  # to look for a name that rebuilds it takes seconds
    assert [plan.units for plan in network.plans] == sorted({plan.units for plan in network.plans})
    for exit, wanted in enumerate(logits, start=1):
        cut = truncate(network, exit, spec)
        torch.testing.assert_close(cut(images), wanted, rtol=1e-4, atol=1e-5)
        assert isinstance(cut, type(model))
        assert set(cut.state_dict()) <= keys
        size_of_it = sum(p.numel() for p in cut.parameters())
        assert (size_of_it < sum(p.numel() for p in model.parameters())) == (exit < len(network))
    assert torch.equal(logits[-1], model(images))


def test_a_thinned_vit_is_a_vit_and_nothing_else(build: Build) -> None:
    model, _ = build("vit_tiny")
    network = MultiExit(Trunk(model), ExitConfig(plan="thin")).eval()
    cut = truncate(network, 1)
    assert type(cut) is type(model)
    assert len(cut.blocks) == network.units[0] == 1  # type: ignore[arg-type]


def test_what_cannot_be_thinned_says_so() -> None:
    model = timm.create_model("densenet121", growth_rate=8, block_config=(2, 2, 2, 2), num_classes=5)
    trunk = Trunk(model, image_size=32)
    assert trunk.removable == ()
    for ask in (
        lambda: thin(0.5, trunk),
        lambda: thinnings(trunk),
        lambda: MultiExit(trunk, ExitConfig(plan="thin")),
    ):
        with pytest.raises(
            ConfigError, match=r"no unit of this network can be removed, since each changes the shape"
        ):
            ask()
    assert thin(0, trunk).units == len(trunk)
