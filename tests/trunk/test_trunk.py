"""A backbone stopped, resumed, divided, copied and shared between threads gives what it gave before."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from odn_hybrid import MultiExit, State, Trunk
from odn_hybrid.errors import InputError, ModelError

TABLES = ("vit_tiny", "vit, shared relative positions", "vit, shared rope", "vit, own rope")


def assert_close(left: Tensor, right: Tensor) -> None:
    assert left.shape == right.shape
    scale = max(1.0, float(right.detach().abs().max()))
    assert float((left - right).detach().abs().max()) <= 1e-5 * scale


# --- stopping and resuming --------------------------------------------------------------------------


@torch.no_grad()
def test_resumed_run_equals_the_forward(case: Any) -> None:
    trunk, last = case.trunk, len(case.trunk)
    for depth in {0, 1, last // 2, last}:
        state = trunk.run(trunk.stem(case.images), 0, depth)
        assert (state.depth, len(state)) == (depth, 5)
        assert_close(trunk.tail(trunk.run(state, depth, last)), case.logits)


@torch.no_grad()
def test_every_stop_equals_what_a_hook_saw(case: Any) -> None:
    seen: list[Tensor] = []
    hooks = [
        case.model.get_submodule(unit[-1]).register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
        for unit in case.trunk.unit_names
    ]
    case.model(case.images)
    for hook in hooks:
        hook.remove()
    state = case.trunk.stem(case.images)
    for depth, wanted in enumerate(seen, start=1):
        state = case.trunk.run(state, depth - 1, depth)
        assert_close(state.x, wanted)
    assert state.depth == len(case.trunk) == len(seen)


@torch.no_grad()
def test_survivors_run_on_alone(case: Any) -> None:
    trunk, last = case.trunk, len(case.trunk)
    state = trunk.run(trunk.stem(case.images), 0, 1)
    mask = torch.tensor([True, False, False, True, True])
    for rows in (torch.tensor([4, 0]), torch.tensor([2]), mask):
        logits = trunk.tail(trunk.run(state.select(rows), 1, last))
        assert_close(logits, case.logits[rows])
    parts = [state.select(mask), state.select(~mask)]
    joined = State.cat(parts)
    assert torch.equal(joined.x, torch.cat([state.x[mask], state.x[~mask]]))
    back = joined.select(torch.tensor([0, 3, 4, 1, 2]))
    assert torch.equal(back.x, state.x)
    assert_close(trunk.tail(trunk.run(back, 1, last)), case.logits)


@given(st.permutations(range(5)), st.integers(1, 4), st.integers(0, 4))
@settings(max_examples=20)
def test_any_division_of_a_batch_gives_the_same_answers(
    make_case: Callable[[str], Any], order: list[int], cut: int, depth: int
) -> None:
    case = make_case("vit, own rope")
    trunk, last = case.trunk, len(case.trunk)
    with torch.no_grad():
        state = trunk.run(trunk.stem(case.images), 0, depth)
        parts = [state.select(torch.tensor(rows)) for rows in (order[:cut], order[cut:])]
        ended = State.cat([trunk.run(part, depth, last) for part in parts])
    assert_close(trunk.tail(ended), case.logits[order])


def test_gradients_reach_every_unit_through_the_exits(case: Any) -> None:
    network = MultiExit(copy.deepcopy(case.trunk)).train()
    images = torch.rand(3, *case.trunk.image_shape)
    sum(logits.square().mean() for logits in network(images)).backward()  # type: ignore[union-attr]
    for unit in network.trunk.unit_names:
        for name in unit:
            for key, parameter in network.backbone.get_submodule(name).named_parameters():
                assert parameter.grad is not None, f"{name}.{key}"
    assert all(p.grad is not None for p in network.heads.parameters())
    # Learnt tables reach the units beside the activation: they must learn too.
    tables = [p for n, p in network.backbone.named_parameters() if "rope" in n or n.startswith("shared_rel")]
    assert all(p.grad is not None and bool(p.grad.any()) for p in tables)
    assert bool(tables) == (case.name in ("vit, own rope", "vit, shared relative positions"))


@pytest.mark.parametrize("name", ["resnet18", "torchvision resnet18"])
@torch.no_grad()
def test_images_of_another_size(make_case: Callable[[str], Any], name: str) -> None:
    case = make_case(name)
    images = torch.rand(2, 3, 40, 64)
    state = case.trunk.run(case.trunk.stem(images), 0, 3)
    assert_close(case.trunk.tail(case.trunk.run(state, 3, 8)), case.model(images))


def test_a_state_is_not_changed_by_running_on() -> None:
    trunk = Trunk(Chain(InPlace(), InPlace()), image_size=8)
    state = trunk.stem(torch.randn(2, 3, 8, 8))
    kept = state.x.clone()
    once, again = (trunk.tail(trunk.run(state, 0, 2)) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(state.x, kept)


# --- the model stays as it was ----------------------------------------------------------------------


def test_wrapping_leaves_no_trace(case: Any, build: Callable[..., Any]) -> None:
    model, size = build(case.name)
    frozen = next(m for m in model.train().modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()

    trunk = Trunk(model, image_size=size)

    assert torch.equal(random, torch.random.get_rng_state())
    assert trunk.model is model
    assert not frozen.training
    assert modes == {name: module.training for name, module in model.named_modules()}
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    first = model.get_submodule(trunk.unit_names[0][0])
    for module in model.modules():
        assert not module._forward_hooks
        assert len(module._forward_pre_hooks) <= (module is first)
        assert not {"forward", "forward_features", "forward_head"} & set(module.__dict__)


@torch.no_grad()
def test_a_copy_is_independent(case: Any) -> None:
    twin = copy.deepcopy(case.trunk)
    assert twin.model is not case.trunk.model
    state = twin.stem(case.images)
    assert_close(twin.tail(twin.run(state, 0, len(twin))), case.logits)
    for parameter in twin.model.parameters():
        parameter.zero_()
    assert not twin.tail(twin.run(twin.stem(case.images), 0, len(twin))).any()
    trunk = case.trunk
    assert_close(trunk.tail(trunk.run(trunk.stem(case.images), 0, len(trunk))), case.logits)


@pytest.mark.parametrize("name", TABLES)
def test_threads_share_a_model(make_case: Callable[[str], Any], name: str) -> None:
    case = make_case(name)
    trunk, last = case.trunk, len(case.trunk)
    wrong: list[Any] = []

    @torch.no_grad()
    def resumed(row: int) -> Tensor:
        state = trunk.stem(case.images[row : row + 1])
        return trunk.tail(trunk.run(state, 0, last))

    @torch.no_grad()
    def plain(row: int) -> Tensor:
        return case.model(case.images[row : row + 1])  # type: ignore[no-any-return]

    def work(run: Callable[[int], Tensor], row: int) -> None:
        try:
            for _ in range(8):
                assert_close(run(row), case.logits[row : row + 1])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(run, row)) for run in (resumed, plain) for row in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


# --- wrong use --------------------------------------------------------------------------------------


def test_states_that_do_not_fit(make_case: Callable[[str], Any]) -> None:
    trunk, images = make_case("resnet18").trunk, make_case("resnet18").images
    state = trunk.stem(images)
    with pytest.raises(InputError, match=r"run\(state, 1, 2\) on a state at depth 0"):
        trunk.run(state, 1, 2)
    with pytest.raises(InputError, match="trunk with 8 units"):
        trunk.run(state, 0, 9)
    with pytest.raises(InputError, match="depth 8, this one stands at 0"):
        trunk.tail(state)
    with pytest.raises(InputError, match=r"at depths \[0, 1\]"):
        State.cat([state, trunk.run(state, 0, 1)])
    with pytest.raises(InputError, match="images of one size"):
        State.cat([state, trunk.stem(torch.rand(1, 3, 64, 64))])
    with pytest.raises(InputError, match="at least one state"):
        State.cat([])
    with pytest.raises(InputError, match=r"mask has shape \(4,\), the state holds 5"):
        state.select(torch.ones(4, dtype=torch.bool))


def test_images_that_do_not_fit(make_case: Callable[[str], Any]) -> None:
    trunk = make_case("vit_tiny").trunk
    for images in (torch.rand(3, 32, 32), torch.rand(2, 1, 32, 32), [1, 2]):
        with pytest.raises(InputError, match=r"the model takes \(batch, 3, height, width\)"):
            trunk.stem(images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"images are 48 x 48; the model takes \[32, 32\]"):
        trunk.stem(torch.rand(2, 3, 48, 48))


class Block(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.relu_()
        return x + self.conv(x)


class Noisy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) + torch.rand_like(x)


class Coupled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) - x.mean(0, keepdim=True)


class Chain(nn.Module):
    """Stem, blocks, pool, classifier: what every one of the networks below deviates from."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class Pair(Chain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Maps(Chain):
    def forward(self, x: Tensor) -> Any:
        return self.blocks(self.stem(x))


class Glued(Chain):
    """Something happens between the blocks that no module does."""

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) * 0.5
        return self.fc(self.pool(x).flatten(1))


class Skipping(Chain):
    """U-shaped: an early activation comes back after the last block."""

    def forward(self, x: Tensor) -> Any:
        early = self.stem(x)
        return self.fc(self.pool(torch.cat([self.blocks(early), early], 2)).flatten(1))


SHARED = Block()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Chain(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)), "has no residual or transformer blocks"),
        (Chain(Block()), r"fewer than two blocks with a place to stop .* \(the first is 'blocks.0'\)"),
        (
            Skipping(Block(), Block()),
            r"Skipping: the chain of blocks breaks after 'blocks.0': what 'stem' \(Conv2d\) gives is taken "
            r"again by 'pool' .*train it as it is, or wrap its encoder alone",
        ),
        (Chain(SHARED, SHARED), "module 'blocks.0' runs more than once"),
        (Pair(Block(), Block()), r"does not give logits \(batch, classes\)"),
        (Maps(Block(), Block()), r"does not give logits \(batch, classes\)"),
        (Chain(Noisy(), Noisy()), "failed the self-check: stopping after 'blocks.0'"),
        (Chain(Coupled(), Coupled()), "one image alone gives other logits"),
        (Chain(Block(4), Block(4)), r"cannot run images of shape \(3, 16, 16\)"),
        (nn.Identity(), "does not give logits"),
    ],
)
def test_refusals_name_the_reason(model: nn.Module, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        Trunk(model, image_size=16)
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks for m in model.modules())


@torch.no_grad()
def test_what_happens_between_blocks_is_done() -> None:
    trunk, images = Trunk(Glued(Block(), Block()), image_size=16), torch.rand(3, 3, 16, 16)
    assert trunk.unit_names == (("blocks.0",), ("blocks.1",))
    state = trunk.run(trunk.stem(images), 0, 1).select(torch.tensor([2, 0]))
    assert_close(trunk.tail(trunk.run(state, 1, 2)), trunk.model(images)[[2, 0]])


def test_a_vgg_has_no_depth_to_cut() -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model("vgg11")
    with pytest.raises(ModelError, match="VGG has no residual or transformer blocks"):
        Trunk(model, image_size=64)


def test_a_size_the_model_does_not_take(build: Callable[..., Any]) -> None:
    model, _ = build("vit_tiny")
    with pytest.raises(ModelError, match=r"VisionTransformer cannot run images of shape \(3, 48, 48\)"):
        Trunk(model, image_size=48)
