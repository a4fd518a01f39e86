"""Where the trunk is found: in known networks, in awkward ones, and (long) in every name that is promised."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from odn_hybrid import Trunk
from odn_hybrid.trunk.layout import Layout, layout_of

UNITS = {
    "resnet18": 8, "resnet50": 16, "resnetv2_50": 16, "vit_tiny": 4, "deit_tiny_distilled": 4,
    "vit, shared relative positions": 4, "vit, shared rope": 4, "vit, own rope": 4, "vit, attention pool": 4,
    "vit, residual pool": 4, "vit on a resnet": 4, "swin": 5, "torchvision resnet18": 8, "torchvision vit": 3,
}  # fmt: skip
CLASSIFIERS = {"resnetv2_50": "head.fc", "swin": "head.fc", "torchvision vit": "heads"}


def test_units_and_classifier(case: Any) -> None:
    assert len(case.trunk) == UNITS[case.name]
    assert len(case.trunk.preserving) == len(case.trunk)
    fallback = "fc" if "resnet18" in case.name or case.name == "resnet50" else "head"
    assert case.trunk.classifier_name == CLASSIFIERS.get(case.name, fallback)
    assert case.trunk.num_classes == 10


def test_units_are_the_blocks_a_person_would_name(make_case: Callable[[str], Any]) -> None:
    for name in ("resnet18", "torchvision resnet18"):
        trunk = make_case(name).trunk
        assert trunk.unit_names == tuple((f"layer{i}.{j}",) for i in (1, 2, 3, 4) for j in (0, 1))
    trunk = make_case("torchvision resnet18").trunk
    assert trunk.preserving == (True, True, False, True, False, True, False, True)
    assert make_case("vit_tiny").trunk.unit_names == tuple((f"blocks.{i}",) for i in range(4))
    assert make_case("vit_tiny").trunk.preserving == (True,) * 4


def test_tables_that_are_learnt_or_computed_are_part_of_the_state(make_case: Callable[[str], Any]) -> None:
    states = {name: make_case(name).trunk.stem(make_case(name).images) for name in UNITS}
    with_tables = {name for name, state in states.items() if state.tables}
    assert with_tables == {"vit, shared relative positions", "vit, own rope"}  # other ropes are constants
    assert not any(state.streams for state in states.values())


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("resnet18", Layout("NCHW", 8, 8, 8)),
        ("vit_tiny", Layout("NLC", 48, 2, 2, 1, 5)),
        ("deit_tiny_distilled", Layout("NLC", 48, 2, 2, 2, 6)),
        ("vit, attention pool", Layout("NLC", 48, 2, 2, 0, 4)),
        ("torchvision vit", Layout("NLC", 48, 4, 4, 1, 17)),
        ("swin", Layout("NHWC", 24, 14, 14)),
    ],
)
def test_layouts(make_case: Callable[[str], Any], name: str, layout: Layout) -> None:
    trunk = make_case(name).trunk
    assert trunk.layout(1) == layout
    state = trunk.run(trunk.stem(make_case(name).images), 0, 1)
    assert layout.to_map(state.x).shape == (5, layout.channels, layout.height, layout.width)
    positions = layout.tokens or layout.height * layout.width
    assert layout.to_tokens(state.x).shape == (5, positions, layout.channels)


def test_tokens_of_images_that_are_not_square() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), embed_dim=48, num_heads=3, depth=2)
    assert Trunk(model).layout(1) == Layout("NLC", 48, 2, 4, 1, 9)


@pytest.mark.parametrize("shape", [(8, 8, 16), (16, 8, 8), (8, 16, 16), (16, 16, 8), (16, 16, 16)])
def test_convolutions_tell_where_the_channels_are(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    unit = nn.Conv2d(channels, channels, 1)
    assert layout_of(torch.zeros(2, *shape), [unit], unit) == Layout("NCHW", channels, height, width)


# --- awkward networks -------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Two(nn.Module):
    """Two runs of blocks with something unnamed between them."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, first, 1)
        self.early = nn.Sequential(*(Block(first) for _ in range(3)))
        self.squeeze = nn.Conv2d(first, second, 1)
        self.late = nn.Sequential(*(nn.Sequential(Block(second), nn.ReLU()) for _ in range(2)))
        self.fc = nn.Linear(second, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.early(self.stem(x)) * 0.5)
        return self.fc(self.late(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_two_runs_of_blocks_are_one_trunk() -> None:
    trunk = Trunk(Two(4, 16), image_size=8)
    flat = [name for unit in trunk.unit_names for name in unit]
    assert flat[:3] == ["early.0", "early.1", "early.2"]
    assert {"squeeze", "late.0.0", "late.1.0"} <= set(flat)
    assert trunk.preserving.count(False) == 1  # where the width changes
    assert trunk.stages[-1][1] == len(trunk)


def test_weightless_modules_belong_to_the_block_before() -> None:
    trunk = Trunk(Two(4, 16), image_size=8)
    assert ("late.0.0", "late.0.1") in trunk.unit_names
    assert trunk.unit_names[-1] == ("late.1.0",)
    assert trunk.after_names == ("late.1.1", "fc")


def test_meta_models_are_split_without_weights() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_giant_patch14_reg4_dinov2")
    trunk = Trunk(model)
    assert (len(trunk), trunk.image_shape) == (40, (3, 518, 518))
    assert trunk.layout(40) == Layout("NLC", 1536, 37, 37, 5, 1374)


# --- every name that is promised (minutes) ----------------------------------------------------------


def _names(library: str, pattern: str) -> list[str]:
    if library == "timm":
        return timm.list_models(pattern)
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if re.match(pattern, name)]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("library", "pattern", "least"),
    [
        ("timm", "resnet*", 60),
        ("timm", "vit_*", 200),
        ("torchvision", "(wide_)?resne(x)?t", 10),
        ("torchvision", "vit_", 5),
    ],
)
def test_every_promised_name_is_split(library: str, pattern: str, least: int) -> None:
    names, failures = _names(library, pattern), {}
    for name in names:
        with torch.device("meta"):
            model = (
                timm.create_model(name)
                if library == "timm"
                else torchvision.models.get_model(name, weights=None)
            )
        try:
            trunk = Trunk(model, check=False)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        inside = {
            id(p) for unit in trunk.unit_names for n in unit for p in model.get_submodule(n).parameters()
        }
        weights = sum(p.numel() for p in model.parameters() if id(p) in inside)
        if len(trunk) < 4 or weights < 0.5 * sum(p.numel() for p in model.parameters()):
            failures[name] = f"{len(trunk)} units with {weights} parameters"
    print(f"{library} {pattern}: {len(names) - len(failures)} of {len(names)} names")
    assert not failures
    assert len(names) >= least
