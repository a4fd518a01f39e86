"""A trunk follows its model: sizes, precisions, memory layouts, wrappers, compiled parts, swapped modules."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import Tensor, nn

from odn_hybrid import MultiExit, State, Trunk
from odn_hybrid.errors import InputError, ModelError

Build = Callable[[str], tuple[nn.Module, int | None]]
NAMES = ("resnet18", "vit_tiny", "vit, own rope", "torchvision vit")


def whole(trunk: Trunk, images: Tensor) -> Tensor:
    return trunk.tail(trunk.run(trunk.stem(images), 0, len(trunk)))


def assert_same(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    scale = max(1.0, float(right.detach().abs().max()))
    assert float((left - right).detach().abs().max()) <= tolerance * scale


# --- other images than those of the first trace -----------------------------------------------------


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224"]
)
@torch.no_grad()
def test_images_of_another_size(name: str) -> None:
    little = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 5}
    model = timm.create_model(name, dynamic_img_size=True, **little).eval()
    trunk = Trunk(model, image_size=32)
    for size in ((64, 48), (32, 32), (64, 48)):
        images = torch.rand(3, 3, *size)
        state = trunk.run(trunk.stem(images), 0, 1)
        assert_same(trunk.tail(trunk.run(state, 1, 2)), model(images))
    small, large = trunk.stem(torch.rand(1, 3, 32, 32)), trunk.stem(torch.rand(1, 3, 64, 48))
    with pytest.raises(InputError, match="images of one size"):
        State.cat([small, large])


def test_a_size_at_which_the_network_is_another() -> None:
    class Growing(nn.Module):
        """Another block for large images."""

        def __init__(self) -> None:
            super().__init__()
            block = timm.models.resnet.BasicBlock
            self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
            self.blocks = nn.ModuleList(block(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            large, x = x.shape[-1] > 16, self.stem(x)
            for block in self.blocks[: 3 if large else 2]:
                x = block(x)
            return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    trunk = Trunk(Growing().eval(), image_size=16)
    with pytest.raises(
        ModelError, match=r"other units for images of shape \(3, 32, 32\) than for \(3, 16, 16\)"
    ):
        trunk.stem(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("name", NAMES[:2])
@torch.no_grad()
def test_channels_last(build: Build, name: str) -> None:
    model, size = build(name)
    trunk = Trunk(model.eval().to(memory_format=torch.channels_last), image_size=size)
    images = torch.rand(3, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    wanted = model(images)
    assert_same(whole(trunk, images), wanted)
    state = trunk.stem(images).select(torch.tensor([2, 0]))
    assert_same(trunk.tail(trunk.run(state, 0, len(trunk))), wanted[[2, 0]])


def test_inference_mode(build: Build) -> None:
    model, size = build("resnet18")
    with torch.inference_mode():
        trunk = Trunk(model.eval(), image_size=size)
        for images in (torch.rand(2, 3, 32, 32), torch.rand(2, 3, 40, 40)):
            assert_same(whole(trunk, images), model(images))
    whole(trunk, torch.rand(2, 3, 40, 40)).sum().backward()


# --- precision and device ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_autocast(build: Build, name: str) -> None:
    model, size = build(name)
    trunk, images = Trunk(model.eval(), image_size=size), torch.rand(3, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        assert_same(whole(trunk, images), logits, 0.0)
        assert logits.dtype == torch.bfloat16
    assert_same(whole(trunk, images), model(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_precisions(build: Build, name: str, dtype: torch.dtype) -> None:
    model, size = build(name)
    later = Trunk(copy.deepcopy(model).eval(), image_size=size)
    later.model.to(dtype)
    images = torch.rand(3, 3, 32, 32).to(dtype)
    for trunk in (Trunk(model.to(dtype).eval(), image_size=size), later):
        assert_same(whole(trunk, images), trunk.model(images), 0.0)


def test_a_model_that_was_made_on_the_meta_device(build: Build) -> None:
    model, size = build("torchvision vit")
    with torch.device("meta"):
        empty = copy.deepcopy(model).to("meta")
    trunk = Trunk(empty.eval(), image_size=size)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert_same(whole(trunk, images), model.eval()(images))


# --- wrappers, compiled parts, swapped modules ------------------------------------------------------


@pytest.mark.parametrize("how", ["wrapper", "method", "blocks", "block wrappers", "data parallel"])
def test_wrapped_and_compiled_models(build: Build, how: str) -> None:
    """Backend "eager": what is compiled is traced and guarded as always, but runs as it was written."""
    plain, size = build("resnet18")
    keys, given = list(plain.state_dict()), plain.eval()
    if how == "wrapper":
        given = torch.compile(plain, backend="eager")  # type: ignore[assignment]
    elif how == "method":
        plain.compile(backend="eager")
    elif how == "data parallel":
        given = nn.DataParallel(plain)
    else:
        for stage in (plain.layer1, plain.layer2):
            for name, block in list(stage.named_children()):  # type: ignore[operator, union-attr]
                if how == "blocks":
                    block.compile(backend="eager")
                else:
                    setattr(stage, name, torch.compile(block, backend="eager"))
    compiled = plain._compiled_call_impl
    trunk, images = Trunk(given, image_size=size), torch.rand(2, 3, 32, 32)
    assert trunk.model is plain
    assert plain._compiled_call_impl is compiled
    assert how == "block wrappers" or list(trunk.model.state_dict()) == keys
    assert trunk.unit_names == tuple((f"layer{i}.{j}",) for i in (1, 2, 3, 4) for j in (0, 1))
    with torch.no_grad():
        assert_same(whole(trunk, images), given(images))


@pytest.mark.parametrize("name", ["vit_tiny", "torchvision vit"])
@torch.no_grad()
def test_a_network_of_exits_can_be_compiled(build: Build, name: str) -> None:
    model, size = build(name)
    network, images = MultiExit(Trunk(model, image_size=size)).eval(), torch.rand(2, 3, 32, 32)
    compiled = torch.compile(network, backend="eager")
    for mine, other in zip(compiled(images), network(images), strict=True):
        assert_same(mine, other)


@torch.no_grad()
def test_modules_and_parameters_can_be_swapped(build: Build) -> None:
    model, size = build("torchvision vit")
    trunk, images = Trunk(model.eval(), image_size=size), torch.rand(2, 3, 32, 32)
    before = whole(trunk, images)
    model.heads = nn.Linear(48, 3)
    model.class_token = nn.Parameter(torch.ones_like(model.class_token))  # type: ignore[arg-type]
    after = whole(trunk, images)
    assert before.shape == (2, 10)
    assert_same(after, model(images))


@pytest.mark.parametrize("name", ["cait", "torchvision vit"])
@torch.no_grad()
def test_a_copy_is_independent(build: Build, name: str) -> None:
    """What lies between the modules is copied without pickle, and looks for parameters in the copy."""
    if name == "cait":
        model = timm.create_model(
            "cait_xxs24_224", img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=5
        )
        size = None
    else:
        model, size = build(name)
    network = MultiExit(Trunk(model, image_size=size)).eval()
    images = torch.rand(2, 3, *network.trunk.image_shape[1:])
    before = network(images)
    twin = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.zero_()
    assert not network(images)[-1].any()
    assert all(torch.equal(a, b) for a, b in zip(twin(images), before, strict=True))
    assert twin.trunk.model is twin.backbone
    state = network.trunk.stem(images)
    assert torch.equal(copy.deepcopy(state).x, state.x)


# --- threads ----------------------------------------------------------------------------------------


def test_threads_that_meet_a_new_size_share_its_route(build: Build) -> None:
    model, size = build("resnet18")
    trunk = Trunk(model.eval(), image_size=size)
    images = torch.rand(4, 3, 40, 40)

    def work(row: int) -> State:
        with torch.no_grad():
            return trunk.run(trunk.stem(images[row : row + 1]), 0, 4)

    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(work, range(4)))  # raises what a thread raised
    with torch.no_grad():
        joined = State.cat(states)
        assert_same(trunk.tail(trunk.run(joined, 4, 8)), model(images))
