"""Units that start as the identity: which do, which can be made to, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from odn_hybrid.backbone import with_small_stem
from odn_hybrid.config import FitConfig, replace_fields
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.procedure.preserving import identity_units, start_as_identity
from odn_hybrid.trunk import Trunk


def resnet(**options: Any) -> Trunk:
    model = timm.create_model(
        "resnet18", layers=[2, 2, 1, 1], channels=[8, 8, 16, 16], num_classes=3, **options
    )
    return Trunk(with_small_stem(model), image_size=16)


def vit() -> Trunk:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=3, embed_dim=24, num_heads=2, num_classes=3
    )
    return Trunk(model, image_size=16)


def mobilenet() -> Trunk:
    return Trunk(timm.create_model("mobilenetv2_035", num_classes=3), image_size=32)


def test_timms_resnets_start_so() -> None:
    assert identity_units(resnet()) == [1, 3], "transitions and the first unit of a stage change the shape"
    assert identity_units(resnet(zero_init_last=False)) == []


@pytest.mark.parametrize("make", [vit, mobilenet, lambda: resnet(zero_init_last=False)])
def test_what_can_be_the_identity_is_made_so_and_the_rest_left_alone(make: Any) -> None:
    torch.manual_seed(0)
    trunk = make()
    before = {name: value.clone() for name, value in trunk.model.state_dict().items()}
    assert identity_units(trunk) == []
    found = start_as_identity(MultiExit(trunk))
    assert found and found == identity_units(trunk)
    assert all(trunk.preserving[unit] for unit in found)
    inside = tuple(f"{name}." for unit in found for name in trunk.unit_names[unit])
    for name, value in trunk.model.state_dict().items():
        if not value.equal(before[name]):
            assert name.startswith(inside) and not value.any(), "closed, not merely changed"


def test_such_a_unit_learns() -> None:
    trunk = vit()
    network = MultiExit(trunk)
    start_as_identity(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images)[-1], labels).backward()
        optimizer.step()
    assert identity_units(trunk) == []
    assert all(parameter.grad is not None for parameter in trunk.model.blocks.parameters())


def test_it_is_refused_for_weights_that_are_not_fresh() -> None:
    for name, value in (("regime", "finetune"), ("model.pretrained", True), ("model.checkpoint", "weights")):
        with pytest.raises(ConfigError, match=r"expansion\.preserve is True; it must be false where weights"):
            replace_fields(FitConfig(), {"expansion.preserve": True, name: value})
