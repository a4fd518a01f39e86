"""Exit heads and `MultiExit`: one shared forward gives every exit's logits."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from odn_hybrid import MultiExit, Trunk, register_head
from odn_hybrid.config import ExitConfig
from odn_hybrid.errors import ConfigError, InputError, ModelError
from odn_hybrid.exits import HEADS, build_head
from odn_hybrid.trunk.layout import Layout

LAYOUTS = {
    "map": Layout("NCHW", 8, 6, 5),
    "map, channels last": Layout("NHWC", 8, 6, 5),
    "tokens with prefix": Layout("NLC", 8, 3, 3, 2, 11),
    "tokens of no grid": Layout("NLC", 8, 0, 0, 1, 8),
    "a small map": Layout("NCHW", 8, 2, 2),
}
HEAD_CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("grid", {}),
    ("grid", {"grid": 2, "rank": 3}),
    ("grid", {"hidden": 5}),
    ("attention", {"heads": 2}),
]


def activation(layout: Layout, n: int = 3) -> Tensor:
    if layout.kind == "NLC":
        return torch.randn(n, layout.tokens, layout.channels)
    plane = (layout.height, layout.width)
    return torch.randn(
        n, *((layout.channels, *plane) if layout.kind == "NCHW" else (*plane, layout.channels))
    )


def tiny(every: int = 1, head: str = "linear", **args: Any) -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5, channels=[8, 8, 16, 16])
    return MultiExit(Trunk(model, image_size=32), ExitConfig(head=head, args=args, every=every)).eval()


@pytest.fixture(scope="module")
def network() -> MultiExit:
    return tiny()


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# --- heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("name", "args"), HEAD_CHOICES)
def test_heads_give_logits_for_every_layout(layout: Layout, name: str, args: dict[str, Any]) -> None:
    x = activation(layout)
    head = build_head(name, layout, 7, **args)
    kept = x.clone()
    logits = head(x)
    assert logits.shape == (3, 7)
    assert torch.equal(x, kept)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    torch.testing.assert_close(head.eval()(x)[1:2], head(x[1:2]))  # alone as in a batch


def test_channels_first_and_last_are_the_same_head() -> None:
    first, last = (build_head("grid", LAYOUTS[k], 7, grid=2) for k in ("map", "map, channels last"))
    first.norm = nn.Identity()
    last.norm = nn.Identity()
    last.load_state_dict(first.state_dict())
    x = activation(LAYOUTS["map"])
    torch.testing.assert_close(first(x), last(x.permute(0, 2, 3, 1)))


def test_grid_keeps_what_the_average_throws_away() -> None:
    x = activation(LAYOUTS["map"])
    mirrored = x.flip(3)
    linear, grid = (build_head(name, LAYOUTS["map"], 7) for name in ("linear", "grid"))
    torch.testing.assert_close(linear(x), linear(mirrored))
    assert not torch.allclose(grid(x), grid(mirrored), atol=1e-2)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("deep", {}, "unknown exit head 'deep'; known heads: attention, grid, linear"),
        ("linear", {"grid": 4}, "exit head 'linear': .*grid"),
        ("grid", {"grid": 0}, "exit head 'grid': grid is 0"),
        ("grid", {"rank": 1.5}, "exit head 'grid': rank is 1.5"),
        ("attention", {"heads": 3}, "exit head 'attention': heads is 3; it must divide the 8 channels"),
    ],
)
def test_heads_that_do_not_exist(name: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_head(name, LAYOUTS["map"], 7, **args)


def test_lazy_layers_are_refused_with_advice() -> None:
    register_head("lazy")(lambda layout, classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)))
    try:
        with pytest.raises(ConfigError, match=r"holds lazy layers, .*: take sizes from its layout"):
            tiny(head="lazy")
    finally:
        del HEADS["lazy"]


@pytest.fixture
def centre_head() -> Iterator[str]:
    @register_head("centre")
    class Centre(nn.Module):
        def __init__(self, layout: Layout, num_classes: int, bias: bool = True) -> None:
            super().__init__()
            self.layout, self.fc = layout, nn.Linear(layout.channels, num_classes, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            full = self.layout.to_map(x)
            return self.fc(full[:, :, full.shape[2] // 2, full.shape[3] // 2])  # type: ignore[no-any-return]

    yield "centre"
    del HEADS["centre"]


def test_a_head_of_the_users_own(centre_head: str) -> None:
    network = tiny(head=centre_head, bias=False)
    assert [z.shape for z in network(IMAGES)] == [(3, 5)] * 8
    assert network.heads[0].fc.bias is None  # type: ignore[union-attr]


# --- the network of exits ---------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "units"), [(1, range(1, 9)), (3, (3, 6, 8)), (4, (4, 8)), (99, (8,))])
def test_where_exits_stand(every: int, units: Any) -> None:
    network = tiny(every)
    assert network.units == tuple(units)
    assert len(network) == len(network.heads) + 1 == len(network(IMAGES))
    assert [network.exit_of(d) for d in units] == list(range(1, len(network) + 1))


@torch.no_grad()
def test_one_forward_runs_each_unit_once(network: MultiExit) -> None:
    seen: Counter[str] = Counter()
    hooks = [
        network.backbone.get_submodule(name).register_forward_hook(
            lambda _m, _i, _o, n=name: seen.update([n])
        )
        for unit in network.trunk.unit_names
        for name in unit
    ]
    logits = network(IMAGES)
    everything = dict(seen)
    seen.clear()
    shallow = network(IMAGES, upto=3)
    assert everything == {name: 1 for unit in network.trunk.unit_names for name in unit}
    assert dict(seen) == {name: 1 for unit in network.trunk.unit_names[:3] for name in unit}
    for hook in hooks:
        hook.remove()
    assert len(shallow) == 3
    assert all(torch.equal(a, b) for a, b in zip(shallow, logits, strict=False))
    assert all(torch.equal(network.at(IMAGES, k), z) for k, z in enumerate(logits, start=1))
    torch.testing.assert_close(logits[-1], network.backbone(IMAGES), rtol=0, atol=1e-5)


def test_exits_that_do_not_exist(network: MultiExit) -> None:
    for call in (
        lambda: network(IMAGES, upto=0),
        lambda: network(IMAGES, upto=9),
        lambda: network.at(IMAGES, 0),
        lambda: network.at(IMAGES, 9),
    ):
        with pytest.raises(ConfigError, match=r"there is no exit [09]; exits are numbered 1 to 8"):
            call()
    with pytest.raises(InputError, match="exit 2 stands after 2 units, not 0"):
        network.classify(2, network.trunk.stem(IMAGES))
    with pytest.raises(ModelError, match=r"no exit after 9 units; exits stand after \[1, 2, .* 8\] units"):
        network.exit_of(9)


@torch.no_grad()
def test_exits_of_thin_plans_are_networks_of_their_own() -> None:
    model = timm.create_model("resnet18", num_classes=5, channels=[8, 8, 16, 16])
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(plan="thin", every=2)).eval()
    assert [plan.keep for plan in network.plans] == [
        (0, 2, 4, 6), (0, 1, 2, 3, 4, 6), (0, 1, 2, 3, 4, 5, 6, 7),
    ]  # fmt: skip
    assert (network.units, len(network.heads), network.shares_prefix) == ((4, 6, 8), 0, False)
    logits = network(IMAGES)
    for exit, wanted in enumerate(logits, start=1):
        torch.testing.assert_close(network.at(IMAGES, exit), wanted)
        twin = copy.deepcopy(network.backbone)
        for unit in set(range(8)) - set(network.plans[exit - 1].keep):
            twin.set_submodule(network.trunk.unit_names[unit][0], nn.Identity())
        torch.testing.assert_close(twin(IMAGES), wanted)
    assert network.exit_of(6) == 2
    with pytest.raises(InputError, match="exit 1 stands after 8 units, not 4"):
        network.classify(1, network.trunk.run(network.trunk.stem(IMAGES), 0, 4))


def test_a_plan_that_does_not_exist() -> None:
    trunk = Trunk(timm.create_model("resnet18", num_classes=5, channels=[8, 8, 16, 16]), image_size=32)
    with pytest.raises(ConfigError, match=r"exits.plan is 'fat'; choose 'prefix' or 'thin'"):
        MultiExit(trunk, ExitConfig(plan="fat"))  # type: ignore[arg-type]


def test_backbone_keys_and_mode_are_untouched(network: MultiExit) -> None:
    twin = timm.create_model("resnet18", num_classes=5, channels=[8, 8, 16, 16])
    assert list(network.backbone.state_dict()) == list(twin.state_dict())
    keys = list(network.state_dict())
    assert {key.split(".")[0] for key in keys} == {"backbone", "heads"}
    assert len(set(map(id, network.parameters()))) == len(list(network.parameters()))


@torch.no_grad()
def test_a_copy_is_independent(network: MultiExit) -> None:
    before = network(IMAGES)
    twin = network.copy()
    assert twin.trunk.model is twin.backbone
    for parameter in twin.parameters():
        parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, network(IMAGES), strict=True))
    assert not torch.allclose(twin(IMAGES)[-1], before[-1])


def test_parts_are_loaded_strictly(network: MultiExit) -> None:
    backbone = copy.deepcopy(network.backbone.state_dict())
    heads = copy.deepcopy(network.heads.state_dict())
    twin = tiny()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_parts(backbone, heads)
    assert all(torch.equal(a, b) for a, b in zip(network(IMAGES), twin(IMAGES), strict=True))
    del heads["3.fc.bias"]
    with pytest.raises(ModelError, match=r"do not fit the exit heads: .*3.fc.bias"):
        twin.load_parts(backbone, heads)
    with pytest.raises(ModelError, match=r"do not fit the backbone: .*extra"):
        twin.load_parts({**backbone, "extra": torch.zeros(1)}, heads)
