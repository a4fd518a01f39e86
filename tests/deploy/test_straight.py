"""What is called in place of a network's modules does what they do, while they are what they were."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.deploy.halting.straight import Direct, straightened
from odn_hybrid.stopping import Calibration, HaltingTable

#: Of several make: folded or with normalisation, squeezed and excited, depthwise, tokens.
MAPS = ["test_resnet", "test_convnext", "mobilenetv3_small_050", "test_byobnet"]
FAMILIES = [*MAPS, "test_vit"]


X = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))


def images(rows: int, seed: int = 0, side: int = 64) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def halting(name: str, *, fold: bool = True, side: int = 64) -> HaltingModel:
    """Random weights, exits at four depths, at which some of the inputs leave."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # the last of a block begins at 0, so that it does nothing
    network = MultiExit(Trunk(model, image_size=None if "vit" in name else side)).eval()
    if fold:
        network.fold()
    count = len(network)
    exits = sorted({round(count * part) for part in (0.25, 0.5, 0.75, 1)})
    limits = [0.3, 0.4, *[0.5] * (len(exits) - 3), 0.0]
    table = HaltingTable.of_thresholds(limits, Calibration.of_temperatures([1.0] * len(exits)))
    return HaltingModel(network, table, exits=exits)


def straights(model: HaltingModel) -> list[Any]:
    return [segment._straight for segment in model._flows.segments]


def hold(model: HaltingModel) -> list[bool]:
    return [straight is not None and straight.holds(straight_like(straight)) for straight in straights(model)]


def straight_like(straight: Any) -> Tensor:
    shape, dtype, device = straight._like
    return torch.zeros(1, *shape, dtype=dtype, device=device)


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one.logits, other.logits) and torch.equal(one.exit, other.exit)


@pytest.fixture
def warm() -> HaltingModel:
    model = halting("test_resnet")
    model.warm_up((1, 2), rounds=1)
    assert all(hold(model))
    return model


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_the_modules_to_the_last_bit(name, fold):
    model = halting(name, fold=fold)
    side = model.network.trunk.image_shape[1]
    before = [model(images(rows, rows, side)) for rows in (1, 2, 5, 8)]
    model.warm_up((1,), rounds=1)
    written = [straight is not None for straight in straights(model)]
    assert all(written) if name in MAPS else sum(written) >= len(written) // 2
    assert all(map(equal, before, [model(images(rows, rows, side)) for rows in (1, 2, 5, 8)]))


def test_weights_changed_in_place_are_seen(warm):
    before = warm(images(4))
    with torch.no_grad():
        for weight in warm.network.parameters():
            weight.mul_(1.5)
    after = warm(images(4))
    assert all(hold(warm))
    assert not torch.equal(before.logits, after.logits)
    assert equal(after, HaltingModel(warm.network, warm.policy, exits=warm.exits, gather="always")(images(4)))


def test_a_replaced_module_is_run(warm):
    block = warm.network.backbone.layer2[0]
    block.conv1 = nn.Conv2d(32, 48, 3, stride=2, padding=1)
    fresh = HaltingModel(warm.network, warm.policy, exits=warm.exits)
    assert equal(warm(images(4)), fresh(images(4)))
    assert not all(hold(warm))
    warm.warm_up((1,), rounds=1)
    assert all(hold(warm))
    assert equal(warm(images(4)), fresh(images(4)))


def test_a_replaced_weight_is_run(warm):
    head = warm.network.backbone.fc
    head.weight = nn.Parameter(torch.zeros_like(head.weight))
    nn.init.zeros_(head.bias)
    never = HaltingTable.of_thresholds([1.0] * 3 + [0.0], Calibration.of_temperatures([1.0] * 4))
    fresh = HaltingModel(warm.network, never, exits=warm.exits)
    fresh.warm_up((1,), rounds=1)
    head.weight = nn.Parameter(torch.ones_like(head.weight))
    assert fresh(images(1)).logits.abs().min() > 1  # not the zeros of before


def test_hooks_are_heard(warm):
    heard = []
    handle = warm.network.backbone.layer1[0].conv1.register_forward_hook(lambda *_: heard.append(1))
    warm(images(2))
    assert heard == [1]
    handle.remove()
    warm(images(2))
    assert heard == [1]
    assert all(hold(warm))


def test_hooks_on_every_module_are_heard(warm):
    heard = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: heard.append(module))
    try:
        warm(images(2))
    finally:
        handle.remove()
    assert warm.network.backbone.layer1[0].conv1 in heard


def test_models_made_elsewhere_change_nothing(warm):
    nn.Sequential(nn.Linear(2, 2)).register_buffer("b", torch.zeros(1))
    assert all(hold(warm))


def test_in_training_mode_modules_are_called(warm):
    # Folded away, normalisation knows no training mode: dropout put in shows whether it is asked.
    warm.network.backbone.layer1[0].drop_block = nn.Dropout(0.9).eval()
    warm.warm_up((1,), rounds=1)
    quiet = warm(images(4))
    warm.network.train()
    assert not torch.equal(warm(images(4)).logits, quiet.logits)
    warm.network.eval()
    assert equal(warm(images(4)), quiet)


class Looking(nn.Module):
    """Asks for values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


class Counting(nn.Module):
    """Does something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Batched(nn.Module):
    """Computes something from the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * x.shape[0]


class Cut(nn.Module):
    """Keeps as many rows as there are, as a plain number: none of few rows tells it from a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.shape[0])] * 2


class Reshaped(nn.Module):
    """Passes the batch size on, and collects what it cats in a list that goes on growing."""

    def forward(self, x: Tensor) -> Tensor:
        seen = [x.reshape(x.shape[0], 2, 1)]
        seen.append(torch.cat(seen, 1)[:, -2:])
        return torch.cat(seen, 2).reshape(x.size(0), -1) @ torch.ones(4, 2)


class Holding(nn.Module):
    """Adds a tensor that is neither parameter nor buffer, so that nothing tells when it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [torch.ones(2)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.kept[0]


class Frozen(nn.Module):
    """Computes with buffers only, as frozen batch normalisation does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((2,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale * 2)


def written(*modules: nn.Module) -> Any:
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(2, 2), *modules).eval()
    return root, straightened(root, root.modules(), root, torch.rand(1, 2))


@pytest.mark.parametrize("odd", [Looking(), Counting(), Batched(), Cut(), Holding(), nn.Dropout().train()])
def test_what_cannot_be_written_down_is_left_to_the_modules(odd):
    training = odd.training
    root, _ = written(odd)
    odd.train(training and isinstance(odd, nn.Dropout))
    assert straightened(root, root.modules(), root, torch.rand(1, 2)) is None


def test_what_is_computed_from_buffers_follows_them():
    root, straight = written(Frozen())
    x = torch.rand(5, 2)
    with torch.no_grad():
        root[1].scale.mul_(10)
        assert straight.holds(X)
        assert torch.equal(straight.function(x), root(x))


def test_the_batch_size_is_passed_on():
    root, straight = written(Reshaped())
    for rows in (1, 2, 5, 9):
        assert torch.equal(straight.function(X[:1].repeat(rows, 1)), root(X[:1].repeat(rows, 1)))


def test_inputs_of_another_kind_are_left_to_the_modules():
    _, straight = written(nn.ReLU())
    assert straight.holds(X)
    assert not straight.holds(X.double())
    assert not straight.holds(torch.rand(5, 3, 2))
    root = nn.Sequential(nn.Linear(2, 2)).eval()
    assert straightened(root, root.modules(), root, X[:0]) is None


def test_buffers_that_were_cast_are_no_longer_its_own():
    root, straight = written(Frozen())
    root.double().float()
    assert not straight.holds(X)
    assert straight.gone


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root.append(nn.ReLU()),
        lambda root: setattr(root[1], "bias", nn.Parameter(torch.ones(2))),
        lambda root: root[1].register_buffer("more", torch.ones(2)),
        lambda root: root.__setitem__(1, nn.Identity()),
        lambda root: setattr(root[0], "bias", None),
        lambda root: root.__delitem__(1),
        lambda root: root.pop(1),
        lambda root: root._modules.__setitem__("1", nn.Identity()),
        lambda root: root.insert(1, nn.ReLU()),
    ],
)
def test_whatever_is_added_replaced_or_removed_ends_it(change):
    root, straight = written(nn.Linear(2, 2, bias=False))
    assert straight.holds(X)
    change(root)
    assert not straight.holds(X)
    assert straight.gone


def test_a_head_used_in_several_places_is_found():
    shared = nn.Linear(2, 2)
    root, straight = written(shared, nn.ReLU(inplace=True), shared, nn.Dropout(), nn.Softmax(1))
    x = torch.randn(6, 2)
    with torch.no_grad():
        assert torch.equal(straight.function(x), root(x))


def test_activations_are_let_go():
    _, straight = written(*[nn.Linear(2, 2) for _ in range(20)])
    made: list[Any] = []
    alive: list[int] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            made.append(weakref.ref(out))
            alive.append(sum(ref() is not None for ref in made))
            return out

    with torch.no_grad(), Counted():
        straight.function(torch.rand(4, 2))
    assert 0 < max(alive) <= 4


def test_other_threads_go_on_while_it_is_written_down():
    model, other = halting("test_resnet"), timm.create_model("resnet18", num_classes=5).eval()
    done = threading.Event()

    def call() -> int:
        calls = 0
        with torch.no_grad():
            while not done.is_set() or not calls:
                other(images(1))
                calls += 1
        return calls

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(call)
        try:
            for _ in range(3):
                model._flows.straighten()
        finally:
            done.set()
        assert calling.result() > 0
    assert all(hold(model))


@pytest.mark.parametrize("name", [*FAMILIES, "resnet18", "densenet121"])
def test_plain_models_are_written_down(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    side = 160 if name == "test_vit" else 64
    direct = Direct(model).eval()
    with torch.no_grad():
        for rows in (2, 1, 7):
            assert torch.equal(direct(images(rows, rows, side)), model(images(rows, rows, side)))
    assert direct._straight is not None
    assert direct._straight.holds(images(1, 0, side))


def test_a_plain_model_that_changes_is_followed():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    direct = Direct(model).eval()
    calls = []
    with torch.no_grad():
        direct(images(0))
        direct(images(4))
        assert direct._straight is not None
        assert torch.equal(direct(images(2, side=96)), model(images(2, side=96)))
        hook = model.layer1[0].register_forward_hook(lambda *_: calls.append(1))
        direct(images(1))
        assert calls == [1]
        hook.remove()
        hook = model.register_forward_hook(lambda *_: calls.append(2))
        direct(images(1))
        assert calls == [1, 2]
        hook.remove()
        model.layer1.train()
        direct(images(2))
    assert int(model.layer1[0].bn1.num_batches_tracked) == 1
