"""What real networks hand from block to block, where inputs lie in it, modules that run more than once."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid import Trunk
from odn_hybrid.errors import ModelError

Prove = Callable[..., Trunk]


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Any, *_: Any) -> Any:
        return x + self.b(F.relu(self.a(x)))


class Net(nn.Module):
    """Stem, three blocks, head; the networks below change `walk`, which runs the blocks."""

    def __init__(self, block: type[nn.Module] = Block, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.fc = nn.Linear(8, 10)

    def walk(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.walk(self.stem(images)).mean((2, 3)))


THREE = (("blocks.0",), ("blocks.1",), ("blocks.2",))


# --- what blocks take and give ----------------------------------------------------------------------


class TupleBlock(Block):
    def forward(self, x: Any, *_: Any) -> Any:
        return (super().forward(x),)


class TupleNet(Net):
    def walk(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)[0]
        return x


class AttentionsBlock(Block):
    def forward(self, x: Any, *_: Any) -> Any:
        return super().forward(x), x.mean((2, 3))


class UnusedAttentionsNet(Net):
    def walk(self, x: Any) -> Any:
        every: tuple[Tensor, ...] = ()
        for block in self.blocks:
            x, attention = block(x)
            every += (attention,)
        return x


class Named(NamedTuple):
    hidden: Tensor
    step: int


class NamedBlock(Block):
    def forward(self, x: Any, *_: Any) -> Any:
        return Named(super().forward(x.hidden), x.step + 1)


class NamedNet(Net):
    def walk(self, x: Any) -> Any:
        return super().walk(Named(x, 0)).hidden


class Output(OrderedDict):  # type: ignore[type-arg]
    """As in transformers: a dictionary with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class OutputBlock(Block):
    def forward(self, x: Any, *_: Any) -> Any:
        return Output(hidden=super().forward(x.hidden))


class OutputNet(Net):
    def walk(self, x: Any) -> Any:
        return super().walk(Output(hidden=x))["hidden"]


class PairBlock(nn.Module):
    """Two branches of different sizes that exchange what they know."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = Block(), Block()

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = self.fine(fine), self.coarse(coarse)
        return fine + F.interpolate(coarse, scale_factor=2.0), coarse + F.avg_pool2d(fine, 2)


class PairNet(Net):
    def walk(self, x: Any) -> Any:
        coarse = F.max_pool2d(x, 2)
        for block in self.blocks:
            x, coarse = block(x, coarse)
        return x + F.interpolate(coarse, scale_factor=2.0)


@pytest.mark.parametrize(
    ("block", "net", "streams"),
    [
        (TupleBlock, TupleNet, 0),
        (AttentionsBlock, UnusedAttentionsNet, 0),
        (NamedBlock, NamedNet, 0),
        (OutputBlock, OutputNet, 0),
        (PairBlock, PairNet, 1),
    ],
)
def test_states_that_are_more_than_a_tensor(
    prove: Prove, block: type[nn.Module], net: type[Net], streams: int
) -> None:
    trunk = prove(net(block), 16)
    assert trunk.unit_names == THREE
    assert len(trunk.run(trunk.stem(torch.rand(2, 3, 16, 16)), 0, 1).streams) == streams
    assert 1 in trunk.removable


class DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.dense1 = nn.Sequential(*(DenseLayer(8 + 4 * i, 4) for i in range(3)))
        self.transition = nn.Sequential(nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.dense2 = nn.Sequential(*(DenseLayer(10 + 4 * i, 4) for i in range(3)))
        self.fc = nn.Linear(22, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense2(self.transition(self.dense1(self.stem(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_dense_layers(prove: Prove) -> None:
    trunk = prove(DenseNet(), 16)
    flat = [name for unit in trunk.unit_names for name in unit]
    assert flat == ["dense1.0", "dense1.1", "dense1.2", "transition", "dense2.0", "dense2.1", "dense2.2"]
    assert trunk.removable == ()


# --- where the inputs lie ---------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Windows lie in the rows; `order` says what runs faster there, windows or images."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.axes = (0, 2, 4, 3, 5, 1) if order == "by image" else (2, 4, 0, 3, 5, 1)
        self.stem, self.fc = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 10)
        self.blocks = nn.Sequential(*(Tokens() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(self.axes).reshape(-1, 16, c)
        x = self.blocks(x).mean(1)
        x = x.unflatten(0, (b, -1)) if self.axes[0] == 0 else x.unflatten(0, (-1, b)).transpose(0, 1)
        return self.fc(x.mean(1))  # type: ignore[no-any-return]


def test_windows_in_the_rows(prove: Prove) -> None:
    trunk = prove(Windows("by image"), 32)
    assert trunk.unit_names == THREE
    state = trunk.run(trunk.stem(torch.rand(3, 3, 32, 32)), 0, 1)
    assert state.x.shape == (3, 16 * 16, 8)  # 16 windows of 16 tokens
    layout = trunk.layout(1)
    assert (layout.kind, layout.tokens, layout.channels) == ("NLC", 256, 8)
    with pytest.raises(ModelError, match=r"rows after .* don't lie together by image"):
        Trunk(Windows("by window"), image_size=32)


class SequenceFirst(nn.Module):
    """`nn.TransformerEncoder` takes (length, batch, channels) unless told otherwise."""

    def __init__(self, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.first = batch_first
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, **options)
        self.patch, self.pos = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 17, 8))
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.repeat(len(x), 1, 1), x], 1) + self.pos
        x = self.encoder(x) if self.first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.fc(x[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("batch_first", "options"),
    [(True, {}), (True, {"norm_first": True, "activation": "gelu"}), (False, {})],
)
def test_torchs_own_transformer(prove: Prove, batch_first: bool, options: dict[str, Any]) -> None:
    """In evaluation without gradients its layers take a fused path, which a trace does not see."""
    trunk = prove(SequenceFirst(batch_first, **options), 16)
    assert trunk.unit_names == tuple((f"encoder.layers.{i}",) for i in range(3))
    assert trunk.run(trunk.stem(torch.rand(2, 3, 16, 16)), 0, 1).x.shape == (2, 17, 8)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(trunk.tail(trunk.run(trunk.stem(images), 0, 3)), trunk.model(images))


# --- modules that run more than once ----------------------------------------------------------------


class SharedActivation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def walk(self, x: Any) -> Any:
        x = self.relu(x)
        for block in self.blocks:
            x = self.relu(block(x))
        return x


class TwiceInside(Block):
    def forward(self, x: Any, *_: Any) -> Any:
        return x + self.a(F.relu(self.a(x)))


class Tied(Net):
    def walk(self, x: Any) -> Any:
        for _ in range(2):
            x = super().walk(x)
        return x


def test_modules_that_run_more_than_once(prove: Prove) -> None:
    assert prove(SharedActivation(), 16).unit_names[0][0] == "blocks.0"
    assert prove(Net(TwiceInside), 16).unit_names == THREE
    with pytest.raises(ModelError, match=r"module 'blocks.0' runs more than once in a forward"):
        Trunk(Tied(), image_size=16)
