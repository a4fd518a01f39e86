"""A folded network answers as before at every exit; what cannot be folded exactly is left as it is."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from odn_hybrid import MultiExit, Trunk
from odn_hybrid.errors import ModelError
from odn_hybrid.folding import apply_fold, fold_pairs

Make = Callable[[], nn.Module]
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def named(name: str, **options: object) -> Make:
    return lambda: timm.create_model(name, num_classes=10, **options)


#: Networks, the side of their images, and how many of how many batch normalisations stand after a layer.
NETWORKS: dict[str, tuple[Make, int, int, int]] = {
    "resnet18": (named("resnet18", channels=[8, 8, 16, 16]), 32, 21, 21),
    "resnet50": (named("resnet50", channels=[4, 4, 8, 8], layers=[1, 1, 1, 1]), 32, 17, 17),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=10), 32, 20, 20),
    "activation inside the norm": (named("efficientnet_b0"), 32, 49, 49),
    "same padding": (named("tf_mobilenetv3_small_minimal_100"), 32, 34, 34),
    "norms beside convolutions": (named("repvgg_a0"), 32, 44, 61),
    "linear": (named("levit_128s"), 224, 50, 52),
    "norm before convolution": (named("densenet121"), 32, 59, 121),
    "no batch norm": (named("vit_tiny_patch16_224", img_size=32, depth=2), 32, 0, 0),
}


def norms_in(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]


@torch.no_grad()
def seasoned(model: nn.Module) -> nn.Module:
    """With normalisations as training leaves them: fresh ones are near identities."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms_in(model):
        norm.running_mean.normal_(0, 0.2, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.2, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


def network_of(name: str) -> tuple[MultiExit, Tensor]:
    torch.manual_seed(0)
    make, side, _, _ = NETWORKS[name]
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return MultiExit(Trunk(seasoned(make()), image_size=side)).eval(), images


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


# --- networks with exits ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_exit_answers_as_before(name: str) -> None:
    network, images = network_of(name)
    _, _, folds, norms = NETWORKS[name]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    wanted, whole = network(images), network.backbone(images)
    assert len(norms_in(network)) == norms
    pairs = fold_pairs(network, images)
    assert len(pairs) == folds
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert apply_fold(network, pairs) is network
    assert len(norms_in(network)) == norms - folds
    for found, logits in zip(network(images), wanted, strict=True):
        assert relative(found, logits) <= 1e-5
    assert relative(network.backbone(images), whole) <= 1e-5
    halves = network.trunk.run(network.trunk.stem(images), 0, 1)  # stopped and resumed
    assert relative(network.trunk.tail(network.trunk.run(halves, 1, len(network.trunk))), whole) <= 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert not any(module.training for module in network.modules())


@torch.no_grad()
def test_images_of_another_size_after_folding() -> None:
    network, _ = network_of("resnet18")
    images = torch.rand(2, 3, 48, 40)
    wanted = network.copy()(images)
    apply_fold(network, fold_pairs(network, IMAGES))
    for found, logits in zip(network(images), wanted, strict=True):
        assert relative(found, logits) <= 1e-5


@torch.no_grad()
def test_the_structure_depends_on_the_pairs_only() -> None:
    """What a saved folded model relies on."""
    make = NETWORKS["activation inside the norm"][0]
    model = seasoned(make())
    pairs = fold_pairs(model, IMAGES)
    wanted = model(IMAGES)
    weights = apply_fold(model, pairs).state_dict()
    fresh = apply_fold(make(), pairs).eval()
    assert list(fresh.state_dict()) == list(weights)
    fresh.load_state_dict(weights)
    assert relative(fresh(IMAGES), wanted) <= 1e-5
    assert repr(fresh) == repr(model)


@torch.no_grad()
def test_zeros_and_fresh_norms_hide_nothing() -> None:
    """The last norm of each block starts at zero, the head too: outputs would be right whatever one does."""
    model = timm.create_model("resnet18", channels=[8, 8, 16, 16], num_classes=10).eval()
    for block in (*model.layer1, *model.layer2):
        block.bn2.weight.zero_()
    nn.init.zeros_(model.fc.weight)
    assert len(fold_pairs(model, IMAGES)) == 21
    torch.manual_seed(0)
    odd = Block(lambda block, x: block.norm(block.conv(x)) + block.conv(x).mean())
    skip = Block(_skip)
    for block in (odd, skip):
        block.zero_head()
        assert fold_pairs(block.eval(), IMAGES) == ()


# --- what must not be folded -------------------------------------------------------------------------


class Block(nn.Module):
    """A convolution and a normalisation, used as `body` says, between others that may be folded."""

    def __init__(self, body: Callable[["Block", Tensor], Tensor], conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)
        self.body = body

    def zero_head(self) -> None:
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self, images).relu().mean((2, 3)))
        return out


def _skip(block: Block, x: Tensor) -> Tensor:
    made: Tensor = block.conv(x)
    return made + block.norm(made)


def _two_norms(block: Block, x: Tensor) -> Tensor:
    made = block.conv(x)
    out: Tensor = block.norm(made) * block.other(made)
    return out


def _changed_in_place(block: Block, x: Tensor) -> Tensor:
    out: Tensor = block.norm(block.conv(x).relu_())
    return out


def _twice(block: Block, x: Tensor) -> Tensor:
    out: Tensor = block.norm(block.conv(x)) + block.conv(x + 1)
    return out


def _weight_read(block: Block, x: Tensor) -> Tensor:
    out: Tensor = block.norm(block.conv(x)) + block.conv.weight.sum()
    return out


def _straight(block: Block, x: Tensor) -> Tensor:
    out: Tensor = block.norm(block.conv(x))
    return out


class Standardised(nn.Conv2d):
    """A convolution of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@torch.no_grad()
@pytest.mark.parametrize(
    "body", [_skip, _two_norms, _changed_in_place, _twice, _weight_read], ids=lambda body: body.__name__
)
def test_a_layer_that_something_else_reads(body: Callable[[Block, Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), Block(body)).eval()
    assert fold_pairs(model, IMAGES) == (("0", "1"),)
    wanted = seasoned(model)(IMAGES)
    assert relative(apply_fold(model, (("0", "1"),))(IMAGES), wanted) <= 1e-5


def test_layers_that_are_not_plain() -> None:
    assert fold_pairs(Block(_straight), IMAGES) == (("conv", "norm"),)
    assert fold_pairs(Block(_straight, Standardised(3, 4, 3)), IMAGES) == ()
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    assert fold_pairs(Block(_straight, normed), IMAGES) == ()
    hooked = Block(_straight)
    hooked.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    assert fold_pairs(hooked, IMAGES) == ()
    batch = Block(_straight)
    batch.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert fold_pairs(batch, IMAGES) == ()


def test_what_is_shared() -> None:
    first = Block(_straight)
    second = Block(lambda block, x: block.norm(block.conv(x)))
    second.conv.weight = first.conv.weight
    both = nn.ModuleList([first, second])
    both.forward = lambda x: first(x) + second(x)  # type: ignore[assignment]
    assert fold_pairs(both, IMAGES) == ()
    third = Block(_straight)
    third.alias = third.conv
    assert fold_pairs(third, IMAGES) == ()


def test_scales_that_no_number_holds() -> None:
    model = Block(_straight)
    model.norm.running_var.zero_()
    model.norm.eps = 1e-90
    with torch.no_grad():
        model.norm.weight.fill_(1e30)
    assert fold_pairs(model, IMAGES) == ()


# --- kinds of layer and norm ---------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [freeze_batch_norm_2d, "torchvision"])
@torch.no_grad()
def test_frozen_norms(frozen: Callable[[nn.Module], nn.Module] | str) -> None:
    if callable(frozen):
        model = frozen(seasoned(timm.create_model("mobilenetv3_small_050", num_classes=10)))
    else:
        model = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d, num_classes=10)
        seasoned(model)
    model.eval()
    pairs, wanted = fold_pairs(model, IMAGES), model(IMAGES)
    assert len(pairs) == len(norms_in(model)) > 0
    assert relative(apply_fold(model, pairs)(IMAGES), wanted) <= 1e-5
    assert norms_in(model) == []


@torch.no_grad()
def test_norms_without_weights_and_layers_with_a_bias() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 4)
    )
    seasoned(model)
    wanted = model(IMAGES)
    assert relative(apply_fold(model, fold_pairs(model, IMAGES))(IMAGES), wanted) <= 1e-5
    assert type(model[2]) is nn.Identity


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_precisions(dtype: torch.dtype) -> None:
    model = seasoned(NETWORKS["resnet18"][0]()).to(dtype)
    images = IMAGES.to(dtype)
    wanted, pairs = model(images), fold_pairs(model, images)
    assert len(pairs) == 21
    assert {p.dtype for p in apply_fold(model, pairs).parameters()} == {dtype}
    assert relative(model(images), wanted) <= (1e-12 if dtype == torch.float64 else 0.1)


@torch.no_grad()
def test_modes_gradients_and_layouts_are_kept() -> None:
    model = seasoned(NETWORKS["resnet18"][0]()).to(memory_format=torch.channels_last)
    model.train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    pairs = fold_pairs(model, IMAGES)
    modes = {name: module.training for name, module in model.named_modules()}
    weights = model.layer1[0].conv1.weight
    kept = weights.clone()
    apply_fold(model, pairs)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not model.conv1.bias.requires_grad and model.layer1[0].conv1.bias.requires_grad
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights, kept)  # a state dict taken before holds what it held


def test_folding_in_inference_mode() -> None:
    model = seasoned(NETWORKS["resnet18"][0]())
    with torch.inference_mode():
        wanted = model(IMAGES)
        pairs = fold_pairs(model, IMAGES.clone())
        apply_fold(model, pairs)
        assert len(pairs) == 21 and relative(model(IMAGES), wanted) <= 1e-5
    assert not any(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.parametrize("pair", [("conv1", "no"), ("no", "bn1"), ("bn1", "conv1"), ("fc", "bn1"), ("", "")])
def test_pairs_that_are_none(pair: tuple[str, str]) -> None:
    model = NETWORKS["resnet18"][0]()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="fold"):
        apply_fold(model, [pair])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
