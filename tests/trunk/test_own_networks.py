"""Networks that nobody tuned the library to, written as a user might: split as a person would, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid import Trunk
from odn_hybrid.errors import ModelError

Prove = Callable[..., Trunk]


# --- a CIFAR ResNet whose shortcuts have no parameters (option A) -----------------------------------


class LambdaLayer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1:
            pad = (0, 0, 0, 0, width // 4, width // 4)
            self.shortcut = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], pad))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.width = 16
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, blocks, 1)
        self.layer2 = self._layer(32, blocks, 2)
        self.layer3 = self._layer(64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def _layer(self, width: int, blocks: int, stride: int) -> nn.Sequential:
        layers = []
        for step in [stride] + [1] * (blocks - 1):
            layers.append(BasicBlock(self.width, width, step))
            self.width = width
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))  # type: ignore[no-any-return]


def test_a_cifar_resnet_with_shortcuts_that_pad(prove: Prove) -> None:
    trunk = prove(CifarResNet(9), 32)
    assert trunk.unit_names == tuple((f"layer{i}.{j}",) for i in (1, 2, 3) for j in range(9))
    assert trunk.stages == ((0, 9), (9, 18), (18, 27))
    assert len(trunk.removable) == 24  # all but the first of each stage
    assert (trunk.stem_names, trunk.after_names) == (("conv1", "bn1"), ("linear",))
    assert trunk.classifier_name == "linear"
    assert [trunk.layout(unit).channels for unit in (1, 10, 27)] == [16, 32, 64]


# --- a pre-norm Transformer, its blocks in a list ---------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        b, n, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = q * rope, k * rope
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(out.transpose(1, 2).reshape(b, n, width))  # type: ignore[no-any-return]


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
    )


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.ff, self.drop = Attention(width), feed_forward(width), nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        x = x + self.drop(self.attn(x, mask, rope))
        return x + self.drop(self.ff(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The blocks are pairs in a list, and the additions stand in the loop."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width), feed_forward(width)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for attn, ff in self.layers:  # type: ignore[attr-defined, misc]
            x = attn(x) + x
            x = ff(x) + x
        return self.norm(x)  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """Patches, a class token and positions in the root's own forward; `run` says how the blocks are run."""

    def __init__(self, run: str, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.run = run
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.dropout = nn.Dropout(0.1)
        if run == "module":
            self.transformer = Transformer(width, depth)
        elif run == "pairs":
            self.layers = Transformer(width, depth).layers
        else:
            self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
        self.register_buffer("frequencies", torch.linspace(0.1, 1, width // 2), persistent=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = getattr(self, f"_{self.run}")(self.dropout(x), images)
        return self.head(x[:, 0])  # type: ignore[no-any-return]

    def _module(self, x: Tensor, _: Tensor) -> Tensor:
        return self.transformer(x)  # type: ignore[no-any-return]

    def _pairs(self, x: Tensor, _: Tensor) -> Tensor:
        for attn, ff in self.layers:  # type: ignore[attr-defined, misc]
            x = attn(x) + x
            x = ff(x) + x
        return x

    def _blocks(self, x: Tensor, _: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def _mask(self, x: Tensor, _: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu()
        for block in self.blocks:
            x = block(x, mask=mask)
        return x

    def _rope(self, x: Tensor, _: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[1], device=x.device), self.frequencies)
        for number, block in enumerate(self.blocks):
            x = block(x, None, (angles * (1 + number)).cos())
        return x

    def _padding(self, x: Tensor, images: Tensor) -> Tensor:
        """Every image has a mask of its own: dark patches are not attended to."""
        seen = F.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1) > 0.45
        seen = torch.cat([torch.ones_like(seen[:, :1]), seen], 1)
        for block in self.blocks:
            x = block(x, seen[:, None, None])
        return x


@pytest.mark.parametrize(
    ("run", "units"),
    [
        ("blocks", [(f"blocks.{i}",) for i in range(4)]),
        ("pairs", [(f"layers.{i}.0", f"layers.{i}.1") for i in range(4)]),
        ("module", [(f"transformer.layers.{i}.0", f"transformer.layers.{i}.1") for i in range(4)]),
    ],
)
def test_a_transformer_in_a_loop(prove: Prove, run: str, units: Any) -> None:
    trunk = prove(TinyViT(run), 16)
    assert trunk.unit_names == tuple(units)
    assert trunk.stem_names == ("patch", "dropout")
    assert trunk.stages == ((0, 4),)
    assert trunk.removable == (1, 2, 3)
    layout = trunk.layout(1)
    assert (layout.kind, layout.tokens, layout.prefix, layout.height) == ("NLC", 17, 1, 4)
    assert trunk.classifier_name == "head"


@pytest.mark.parametrize("run", ["mask", "rope", "padding"])
def test_what_the_roots_forward_makes_for_all_blocks(prove: Prove, run: str) -> None:
    trunk = prove(TinyViT(run), 16)
    assert trunk.unit_names == tuple((f"blocks.{i}",) for i in range(4))
    state = trunk.stem(torch.rand(2, 3, 16, 16))
    assert bool(state.streams) == (run == "padding")
    assert bool(state.tables) == (run != "padding")
    assert trunk.removable == (1, 2, 3)


# --- U-shaped: the state at its bottom is not all that is needed ------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.enc1, self.down1 = Residual(width), nn.Conv2d(width, 2 * width, 2, 2)
        self.enc2, self.down2 = Residual(2 * width), nn.Conv2d(2 * width, 4 * width, 2, 2)
        self.middle = Residual(4 * width)
        self.up2, self.join2 = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.Conv2d(4 * width, 2 * width, 1),
        )
        self.dec2 = Residual(2 * width)
        self.up1, self.join1 = nn.ConvTranspose2d(2 * width, width, 2, 2), nn.Conv2d(2 * width, width, 1)
        self.dec1 = Residual(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(self.stem(x))
        two = self.enc2(self.down1(one))
        x = self.middle(self.down2(two))
        x = self.dec2(self.join2(torch.cat([self.up2(x), two], 1)))
        x = self.dec1(self.join1(torch.cat([self.up1(x), one], 1)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class UNetOfLists(nn.Module):
    def __init__(self, width: int = 8, levels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.encoders = nn.ModuleList(nn.Sequential(Residual(w), Residual(w)) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, 2) for w in widths[:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[:-1])
        self.decoders = nn.ModuleList(nn.Sequential(nn.Conv2d(2 * w, w, 1), Residual(w)) for w in widths[:-1])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        for level in reversed(range(len(self.ups))):
            x = self.decoders[level](torch.cat([self.ups[level](x), skips.pop()], 1))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (UNet(), "after 'enc2': what 'enc1' (Residual) gives is taken again by 'join1' (Conv2d)"),
        (UNetOfLists(), "after 'encoders.1.0': what 'encoders.0.1' (Residual) gives is taken again by "
                        "'decoders.0.0' (Conv2d)"),
    ],
)  # fmt: skip
def test_a_u_shaped_network_is_refused(model: nn.Module, says: str) -> None:
    keys = list(model.state_dict())
    with pytest.raises(ModelError) as caught:
        Trunk(model, image_size=16)
    said = str(caught.value)
    assert said.startswith(
        f"{type(model).__name__}: the chain of blocks breaks {says}, past the blocks between"
    )
    assert "train it as it is, or wrap its encoder alone" in said
    assert "\n" not in said
    assert list(model.state_dict()) == keys
