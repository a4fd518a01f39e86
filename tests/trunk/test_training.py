"""Training through a trunk is training the model: same noise, same gradients, same memory saved."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid import MultiExit, Trunk

_TINY = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 3, "num_classes": 5}
_NOISE = {"drop_rate": 0.3, "proj_drop_rate": 0.2, "drop_path_rate": 0.5}

NOISY: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: timm.create_model(
        "resnet18", channels=[8, 8, 8, 8], num_classes=5, drop_rate=0.5, drop_path_rate=0.5
    ),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", patch_drop_rate=0.5, pos_drop_rate=0.3, **_NOISE, **_TINY
    ),
    "vit, own rope": lambda: timm.create_model("vit_small_patch16_rope_mixed_224", **_NOISE, **_TINY),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 2), num_heads=(2, 2),
        num_classes=5, **_NOISE,
    ),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=5,
        dropout=0.3, attention_dropout=0.2,
    ),
    "torchvision efficientnet": lambda: torchvision.models.efficientnet_b0(
        num_classes=5, stochastic_depth_prob=0.5
    ),
    "densenet": lambda: timm.create_model(
        "densenet121", growth_rate=8, block_config=(2, 2, 2, 2), num_classes=5, drop_rate=0.4
    ),
}  # fmt: skip


def logits_of(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    torch.manual_seed(7)
    return run(images)


def whole(trunk: Trunk) -> Callable[[Tensor], Tensor]:
    return lambda images: trunk.tail(trunk.run(trunk.stem(images), 0, len(trunk)))


@pytest.mark.parametrize("name", NOISY)
def test_the_same_noise_gives_the_models_own_logits_and_gradients(name: str) -> None:
    model = NOISY[name]().train()
    nn.init.normal_(list(model.parameters())[-2], std=0.2)  # some heads start at zero
    trunk = Trunk(copy.deepcopy(model), image_size=56 if name == "swin" else 32)
    images = torch.rand(4, *trunk.image_shape)
    mine, own = logits_of(whole(trunk), images), logits_of(model, images)
    torch.testing.assert_close(mine, own)
    buffers = zip(trunk.model.named_buffers(), model.buffers(), strict=True)
    assert all(torch.allclose(left.double(), right.double()) for (_, left), right in buffers)
    for logits in (mine, own):
        logits.square().mean().backward()
    for (key, left), right in zip(trunk.model.named_parameters(), model.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), key
        if left.grad is not None and right.grad is not None:
            torch.testing.assert_close(left.grad, right.grad)
    assert not torch.allclose(mine, whole(trunk)(images))  # noise there was


# --- noise in the code between the blocks -----------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class Stages(nn.Module):
    """Drops in a container's code, by functions and by modules, and goes on with what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.drop = nn.ModuleList(Block() for _ in range(2)), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            dropped = self.drop(x)
            x = x + block(F.dropout(dropped, 0.3, self.training)) - F.dropout2d(x, training=self.training)
        return x


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.first, self.second = Stages(), Stages()

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.stem(x), p=0.3, training=self.training)
        x = self.second(self.first(x)).mean((2, 3))
        return self.fc(F.dropout(x, training=self.training))  # type: ignore[no-any-return]


@pytest.mark.parametrize("frozen", [(), ("first",), ("first", "second")])
def test_functions_follow_the_mode_of_the_module_that_calls_them(frozen: tuple[str, ...]) -> None:
    model = Dropping()
    trunk, images = Trunk(model, image_size=16), torch.rand(4, 3, 16, 16)
    assert len(trunk) == 4
    model.train()
    for name in frozen:
        model.get_submodule(name).eval()
    torch.testing.assert_close(logits_of(whole(trunk), images), logits_of(model, images))
    assert not torch.equal(whole(trunk)(images), whole(trunk)(images))
    model.eval()
    torch.testing.assert_close(whole(trunk)(images), model(images))
    assert torch.equal(whole(trunk)(images), whole(trunk)(images))


# --- memory -----------------------------------------------------------------------------------------


def runs(modules: dict[str, nn.Module]) -> tuple[Counter[str], list[Any]]:
    seen: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda _m, _i, _o, name=name: seen.update([name]))
        for name, module in modules.items()
    ]
    return seen, hooks


@pytest.mark.parametrize("name", ["resnet", "vit", "vit, own rope", "swin"])
def test_gradient_checkpointing(name: str) -> None:
    network = MultiExit(Trunk(NOISY[name](), image_size=56 if name == "swin" else 32)).train()
    images = torch.rand(4, *network.trunk.image_shape)
    inner = {n: m for n, m in network.backbone.named_modules() if n.endswith((".conv2", ".mlp.fc1"))}
    assert len(inner) >= len(network) - 1

    def gradients() -> tuple[list[Tensor], Counter[str]]:
        network.zero_grad()
        seen, hooks = runs(inner)
        torch.manual_seed(7)
        sum(logits.square().mean() for logits in network(images)).backward()  # type: ignore[union-attr]
        for hook in hooks:
            hook.remove()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None], seen

    plain, once = gradients()
    network.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    saved, twice = gradients()
    assert set(once.values()) == {1}
    assert set(twice.values()) == {2}  # what is inside the units was not kept, but computed again
    assert len(plain) == len(saved)
    for left, right in zip(plain, saved, strict=True):
        torch.testing.assert_close(left, right)
    with torch.no_grad():
        seen, hooks = runs(inner)
        network(images)
        assert set(seen.values()) == {1}
    for hook in hooks:
        hook.remove()
    network.backbone.set_grad_checkpointing(False)  # type: ignore[operator]
    assert set(gradients()[1].values()) == {1}


def test_wrapping_a_checkpointed_model_leaves_it_checkpointed() -> None:
    model = NOISY["vit"]()
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    trunk = Trunk(model)
    assert model.grad_checkpointing is True
    assert trunk.unit_names == (("blocks.0",), ("blocks.1",), ("blocks.2",))
