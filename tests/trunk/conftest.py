"""Small instances of real architectures, with weights that make every block matter."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from odn_hybrid import Trunk

_SMALL_VIT = {"embed_dim": 48, "num_heads": 3, "depth": 4, "img_size": 32}
_named = partial(timm.create_model, num_classes=10)
_vit = partial(_named, **_SMALL_VIT)

#: name -> how to build it, and the image size to wrap it at (None: its own).
ZOO: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "resnet18": (partial(_named, "resnet18", channels=[8, 16, 16, 16]), 32),
    "resnet50": (partial(_named, "resnet50", channels=[8, 8, 16, 16]), 32),
    "resnetv2_50": (partial(_named, "resnetv2_50", channels=[16, 16, 32, 32], stem_chs=16), 32),
    "vit_tiny": (partial(_vit, "vit_tiny_patch16_224"), None),
    "deit_tiny_distilled": (partial(_vit, "deit_tiny_distilled_patch16_224"), None),
    "vit, shared relative positions": (partial(_vit, "vit_srelpos_small_patch16_224"), None),
    "vit, shared rope": (partial(_vit, "vit_small_patch16_rope_224"), None),
    "vit, own rope": (partial(_vit, "vit_small_patch16_rope_mixed_224"), None),
    "vit, attention pool": (partial(_vit, "vit_base_patch16_siglip_224"), None),
    "vit, residual pool": (partial(_vit, "vit_pe_core_tiny_patch16_384"), None),
    "vit on a resnet": (partial(_vit, "vit_tiny_r_s16_p8_224"), None),
    "swin": (
        partial(
            _named, "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 2), num_heads=(3, 6)
        ),
        None,
    ),
    "torchvision resnet18": (partial(torchvision.models.resnet18, num_classes=10), 32),
    "torchvision vit": (
        partial(
            torchvision.models.VisionTransformer,
            image_size=32,
            patch_size=8,
            num_layers=3,
            num_heads=3,
            hidden_dim=48,
            mlp_dim=96,
            num_classes=10,
        ),
        None,
    ),
}


def enliven(model: nn.Module) -> nn.Module:
    """Fresh networks are near-identities (zero last norms, tiny layer scales): a test would see little."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not name.endswith("bias"):
                parameter.uniform_(0.3, 1.0, generator=random)
            else:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return model


@dataclass
class Case:
    """A wrapped model in evaluation mode, five images for it, and its logits."""

    name: str
    model: nn.Module
    trunk: Trunk
    images: Tensor
    logits: Tensor


@cache
def _case(name: str) -> Case:
    torch.manual_seed(0)
    build, size = ZOO[name]
    model = enliven(build()).eval()
    trunk = Trunk(model, image_size=size)
    images = torch.rand(5, *trunk.image_shape)
    with torch.no_grad():
        return Case(name, model, trunk, images, model(images))


@pytest.fixture(params=list(ZOO))
def case(request: pytest.FixtureRequest) -> Case:
    return _case(request.param)


@pytest.fixture(scope="session")
def make_case() -> Callable[[str], Case]:
    return _case


@pytest.fixture
def build() -> Callable[[str], tuple[nn.Module, int | None]]:
    """A fresh, unwrapped model of the zoo, and the size to wrap it at."""

    def fresh(name: str) -> tuple[nn.Module, int | None]:
        make, size = ZOO[name]
        return enliven(make()), size

    return fresh


def _settle(model: nn.Module, images: Tensor) -> None:
    """Give norms the statistics of these images: with fresh ones signals die out within a few blocks."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    if norms:
        with torch.no_grad():
            model(images)
    model.eval()


def _prove(model: nn.Module, size: int | None = None, batch: int = 3) -> Trunk:
    """Wrap it and see: to stop after any unit, to go on, or to go on with some images changes nothing."""
    trunk = Trunk(enliven(model).eval(), image_size=size)
    random = torch.Generator().manual_seed(3)
    images = torch.randn(batch, trunk.image_shape[0], 1, 1, generator=random)
    images = images + torch.randn(batch, *trunk.image_shape, generator=random)
    _settle(model, images)
    rows = torch.tensor([batch - 1, 0])
    with torch.no_grad():
        wanted = model(images)
        scale = max(1.0, float(wanted.abs().max()))
        assert float((wanted - wanted[0]).abs().max()) > 1e-3 * scale, "all images get the same logits"
        state = trunk.stem(images)
        for depth in range(len(trunk) + 1):
            state = trunk.run(state, state.depth, depth)
            assert (state.depth, len(state)) == (depth, batch)
            if depth % max(1, len(trunk) // 6):
                continue
            some = trunk.tail(trunk.run(state.select(rows), depth, len(trunk)))
            assert float((some - wanted[rows]).abs().max()) <= 1e-4 * scale, depth
        assert float((trunk.tail(state) - wanted).abs().max()) <= 1e-5 * scale
    return trunk


@pytest.fixture(scope="session")
def prove() -> Callable[..., Trunk]:
    """`prove(model, image_size)`: the trunk of a model for which the promise was seen to hold."""
    return _prove
