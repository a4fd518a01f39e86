"""Forwards with habits: what they do beside running blocks, and what cannot be followed."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid import Trunk
from odn_hybrid.errors import ModelError

Prove = Callable[..., Trunk]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Any, *_: Any) -> Any:
        return x + self.b(F.relu(self.a(x)))


class Net(nn.Module):
    """Stem, three blocks, head."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.fc = nn.Linear(8, 10)

    def walk(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.walk(self.stem(images)).mean((2, 3)))


THREE = (("blocks.0",), ("blocks.1",), ("blocks.2",))


class Auxiliary(Net):
    """Another head in training mode, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Any:
        x = self.blocks[0](self.stem(images))
        early = self.aux(x.mean((2, 3))) if self.training else None
        x = self.fc(self.blocks[2](self.blocks[1](x)).mean((2, 3)))
        return (x, early) if self.training else x


class Arguments(Net):
    def forward(self, images: Tensor, mask: Tensor | None = None, *, features: bool = False) -> Any:
        x = self.walk(self.stem(images))
        x = x if mask is None else x * mask
        return x if features else self.fc(x.mean((2, 3)))


class Caching(Net):
    """Makes a table once, in its first forward."""

    table: Tensor | None = None

    def walk(self, x: Any) -> Any:
        if self.table is None:
            self.table = torch.linspace(0.5, 1, x.shape[-1], device=x.device)
        for block in self.blocks:
            x = block(x) * self.table
        return x


class Squeezing(Net):
    """Cannot take a batch of one image."""

    def forward(self, images: Tensor) -> Any:
        x = self.walk(self.stem(images))
        return self.fc(F.adaptive_avg_pool2d(x, 1).squeeze())


class Catching(Net):
    """Tries a module that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Conv2d(5, 5, 1)

    def walk(self, x: Any) -> Any:
        try:
            x = self.fused(x)
        except RuntimeError:
            x = x * 2
        return super().walk(x)


class InPlace(Net):
    def walk(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
            x.mul_(0.5)
            x[:, 0] += 1
        return x


class Numbered(Net):
    """Blocks reached by other ways than calling them, with numbers computed from shapes."""

    def walk(self, x: Any) -> Any:
        b, c, h, w = x.shape
        scale = x.new_full((b, 1, 1, 1), 1 / h)
        for block in self.blocks:
            x = block.forward(x.reshape(b, c, -1).view(b, c, h, w)) + scale.expand(b, c, h, w)
        return x


@pytest.mark.parametrize(
    "model",
    [Auxiliary(), Arguments(), Caching(), Squeezing(), Catching(), InPlace(), Numbered()],
    ids=lambda model: type(model).__name__,
)
def test_habits(prove: Prove, model: nn.Module) -> None:
    trunk = prove(model, 16)
    assert len(trunk) == 3
    assert all(f"blocks.{i}" in unit[0] for i, unit in enumerate(trunk.unit_names))


@dataclass
class Carrier:
    hidden: Tensor


class CarrierBlock(Block):
    def forward(self, x: Any, *_: Any) -> Any:
        return Carrier(super().forward(x.hidden))


class CarrierNet(Net):
    def walk(self, x: Any) -> Any:
        return super().walk(Carrier(x)).hidden


def test_objects_that_carry_tensors_are_refused() -> None:
    with pytest.raises(ModelError, match="CarrierNet hands a tensor on inside a Carrier") as caught:
        Trunk(CarrierNet(CarrierBlock), image_size=16)
    assert "use tensors, tuples, lists or dictionaries" in str(caught.value)


def test_a_graph_of_a_model_is_split_as_the_model(prove: Prove) -> None:
    trunk = prove(torch.fx.symbolic_trace(Net()), 16)
    assert trunk.unit_names == tuple((f"blocks.{i}.a", f"blocks.{i}.b") for i in range(3))


def test_scripted_and_exported_models_are_refused() -> None:
    images = torch.rand(2, 3, 16, 16)
    exported = torch.export.export(Net().eval(), (images,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scripting is deprecated, and still met
        scripted = torch.jit.trace(Net().eval(), images, check_trace=False)
    for model in (scripted, exported):
        with pytest.raises(ModelError, match=r"scripted or exported.*wrap the model that it was made from"):
            Trunk(model, image_size=16)


class Failing(Net):
    def walk(self, x: Any) -> Any:
        x = super().walk(x)
        raise RuntimeError("out of luck")


def test_a_forward_that_fails_leaves_everything_as_it_was() -> None:
    call, model = nn.Module.__call__, Failing().train()
    model.blocks[0].compile(backend="eager")
    compiled = model.blocks[0]._compiled_call_impl
    with pytest.raises(ModelError, match=r"Failing cannot run images of shape \(3, 16, 16\): out of luck"):
        Trunk(model, image_size=16)
    assert nn.Module.__call__ is call
    assert all(module.training for module in model.modules())
    assert model.blocks[0]._compiled_call_impl is compiled
    assert Trunk(Net(), image_size=16).unit_names == THREE
