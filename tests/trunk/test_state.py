"""Laws of states: inputs are picked, divided and joined at any depth, whatever flows beside them."""

from functools import cache

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid import State, Trunk
from odn_hybrid.errors import InputError

INPUTS = 5


class Exchange(nn.Module):
    """Two branches; the second is cut into quarters, which lie in the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = fine + self.fine(fine), coarse + self.coarse(coarse)
        return fine + coarse.mean((2, 3)).unflatten(0, (-1, 4)).mean(1)[:, :, None, None], coarse * 0.9


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Exchange() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        quarters = F.unfold(x, 4, stride=4).transpose(1, 2).reshape(-1, 8, 4, 4)
        for block in self.blocks:
            x, quarters = block(x, quarters)
        return self.fc(x.mean((2, 3)) + quarters.mean((2, 3)).unflatten(0, (-1, 4)).mean(1))  # type: ignore[no-any-return]


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))  # type: ignore[no-any-return]


NETWORKS = {
    "branches with quarters in the rows": (Branches, 8),
    "sequence first": (SequenceFirst, 16),
    "pit": (lambda: timm.create_model("pit_ti_224", img_size=32, num_classes=4), 32),
    "own rope": (
        lambda: timm.create_model(
            "vit_small_patch16_rope_mixed_224", img_size=32, embed_dim=24, num_heads=2, depth=3, num_classes=4
        ),
        32,
    ),
}


@cache
def walked(name: str) -> tuple[Trunk, tuple[State, ...], Tensor]:
    """A trunk, the states of five images at every depth, and their logits."""
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    trunk = Trunk(build().eval(), image_size=size)  # type: ignore[operator]
    images = torch.randn(INPUTS, *trunk.image_shape)
    with torch.no_grad():
        states = [trunk.stem(images)]
        for depth in range(len(trunk)):
            states.append(trunk.run(states[-1], depth, depth + 1))
        return trunk, tuple(states), trunk.model(images)


def same(left: State, right: State) -> bool:
    pairs = zip((left.x, *left.streams), (right.x, *right.streams), strict=True)
    return left.depth == right.depth and all(torch.equal(a, b) for a, b in pairs)


rows = st.lists(st.integers(0, INPUTS - 1), min_size=1, max_size=7)
names = st.sampled_from(list(NETWORKS))


@given(names, rows, st.data())
def test_to_pick_twice_is_to_pick_once(name: str, first: list[int], data: st.DataObject) -> None:
    trunk, states, _ = walked(name)
    state = states[data.draw(st.integers(0, len(trunk)))]
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=5))
    picked = state.select(torch.tensor(first))
    assert len(picked) == len(first)
    once = state.select(torch.tensor([first[row] for row in second]))
    assert same(picked.select(torch.tensor(second)), once)


@given(names, st.integers(0, INPUTS - 1), st.data())
def test_one_alone_is_a_pick_of_one(name: str, row: int, data: st.DataObject) -> None:
    trunk, states, _ = walked(name)
    state = states[data.draw(st.integers(0, len(trunk)))]
    assert same(state.only(row), state.select(torch.tensor([row])))


@given(names, st.lists(rows, min_size=1, max_size=4), st.data())
def test_to_join_what_was_picked_is_to_pick_all_of_it(
    name: str, parts: list[list[int]], data: st.DataObject
) -> None:
    trunk, states, _ = walked(name)
    state = states[data.draw(st.integers(0, len(trunk)))]
    joined = State.cat([state.select(torch.tensor(part)) for part in parts])
    assert same(joined, state.select(torch.tensor([row for part in parts for row in part])))


@given(names, st.lists(st.booleans(), min_size=INPUTS, max_size=INPUTS), st.data())
def test_a_mask_picks_as_numbers_do(name: str, mask: list[bool], data: st.DataObject) -> None:
    trunk, states, _ = walked(name)
    state = states[data.draw(st.integers(0, len(trunk)))]
    picked = state.select(torch.tensor(mask))
    assert len(picked) == sum(mask)
    assert same(picked, state.select(torch.tensor([i for i, taken in enumerate(mask) if taken]).long()))


@given(names, st.permutations(range(INPUTS)), st.integers(1, INPUTS - 1), st.data())
@settings(max_examples=40)
@torch.no_grad()
def test_any_division_at_any_depth_gives_the_same_answers(
    name: str, order: list[int], cut: int, data: st.DataObject
) -> None:
    trunk, states, logits = walked(name)
    depth = data.draw(st.integers(0, len(trunk)))
    stop = data.draw(st.integers(depth, len(trunk)))
    parts = [states[depth].select(torch.tensor(part)) for part in (order[:cut], order[cut:])]
    joined = State.cat([trunk.run(part, depth, stop) for part in parts])
    answers = trunk.tail(trunk.run(joined, stop, len(trunk)))
    torch.testing.assert_close(answers, logits[order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_a_state_holds() -> None:
    for state in walked("branches with quarters in the rows")[1][1:3]:
        assert state.x.shape == (5, 8, 8, 8)
        assert [tuple(stream.shape) for stream in state.streams] == [(5, 4, 8, 4, 4)]
    assert walked("sequence first")[1][1].x.shape == (5, 16, 8)
    assert len(walked("own rope")[1][0].tables) > 0


def test_what_cannot_be_joined_or_picked() -> None:
    trunk, states, _ = walked("pit")
    for wrong, says in (
        ([states[0], states[1]], r"at depths \[0, 1\]"),
        ([states[0], Trunk(trunk.model).stem(torch.rand(1, 3, 32, 32))], "images of one size"),
        ([], "at least one state"),
    ):
        with pytest.raises(InputError, match=says):
            State.cat(wrong)
    with pytest.raises(InputError, match=r"mask has shape \(4,\), the state holds 5"):
        states[0].select(torch.ones(4, dtype=torch.bool))
