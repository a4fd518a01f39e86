"""torchvision's classifiers, narrow and on small images: units as a person would count them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from odn_hybrid import Trunk
from odn_hybrid.errors import ModelError

Build = Callable[..., nn.Module]

# name -> how to build it, image size, units, how many of them are removable, first and last unit
SMALL: dict[str, tuple[Build, int | None, int, int, str, str]] = {
    "resnet50": (models.resnet50, 32, 16, 12, "layer1.0", "layer4.2"),
    "vit": (
        partial(models.VisionTransformer, image_size=32, patch_size=8, num_layers=3, num_heads=2,
                hidden_dim=32, mlp_dim=64),
        None, 3, 2, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2",
    ),
    "swin": (
        partial(models.SwinTransformer, patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 2],
                window_size=[4, 4]),
        32, 5, 3, "features.1.0", "features.3.1",
    ),
    "convnext": (
        partial(models.ConvNeXt, [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]),
        32, 5, 3, "features.1.0", "features.3.1",
    ),
    "efficientnet": (models.efficientnet_b0, 32, 16, 9, "features.1", "features.7"),
    "mobilenet_v3": (models.mobilenet_v3_small, 32, 9, 5, "features.3", "features.11"),
    "regnet": (
        models.regnet_y_400mf, 32, 16, 12,
        "trunk_output.block1.block1-0", "trunk_output.block4.block4-5",
    ),
    "maxvit": (
        partial(models.MaxVit, input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16],
                block_layers=[2, 2], head_dim=4, stochastic_depth_prob=0.2),
        32, 4, 2, "blocks.0.layers.0", "blocks.1.layers.1",
    ),
    "densenet": (
        partial(models.DenseNet, growth_rate=8, block_config=(2, 2, 2), num_init_features=16),
        32, 5, 0, "features.denseblock1", "features.denseblock3",
    ),
    "shufflenet": (models.shufflenet_v2_x0_5, 32, 16, 13, "stage2.0", "stage4.3"),
    "googlenet": (partial(models.googlenet, init_weights=False), 64, 9, 2, "inception3a", "inception5b"),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_classifiers(prove: Callable[..., Trunk], name: str) -> None:
    build, size, units, removable, first, last = SMALL[name]
    trunk = prove(build(num_classes=10), size)
    assert (len(trunk), len(trunk.removable)) == (units, removable)
    assert (trunk.unit_names[0][-1], trunk.unit_names[-1][-1]) == (first, last)
    assert trunk.num_classes == 10
    head: Any = trunk.model.get_submodule(trunk.classifier_name)
    assert [m.out_features for m in head.modules() if isinstance(m, nn.Linear)][-1] == 10


@pytest.mark.parametrize("name", ["vgg11", "alexnet"])
def test_plain_stacks_have_no_depth_to_cut(name: str) -> None:
    with pytest.raises(ModelError, match="has no residual or transformer blocks"):
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        Trunk(model, image_size=64)
