"""Costs against figures worked out by hand, and against the models they speak of."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from odn_hybrid import MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import Costs, count_costs, count_macs, measure, size_of
from odn_hybrid.errors import ConfigError


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = nn.Sequential(*(Block(4) for _ in range(3)))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


@cache
def published(name: str) -> Costs:
    with torch.device("meta"):
        model = timm.create_model(name)
        return count_costs(MultiExit(Trunk(model)))


# --- MACs -------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Images 3x8x8, a map of 4x4x4 after the stem; a linear exit head of 4 x 10."""
    costs = count_costs(MultiExit(Trunk(Toy(), image_size=8)))
    assert costs.stem == 4 * 4 * (3 * 3 * 3) * 4
    assert costs.units == (4 * 4 * (3 * 3 * 4) * 4,) * 3
    assert costs.heads == (4 * 10,) * 3
    stem, block = 16 * 27 * 4, 16 * 36 * 4
    assert [costs.static(k) for k in (1, 2, 3)] == [stem + k * block + 40 for k in (1, 2, 3)]
    assert [costs.dynamic(k) for k in (1, 2, 3)] == [stem + k * (block + 40) for k in (1, 2, 3)]
    # parameters: stem with bias, block (convolution, two per norm channel), head; the cut has one head.
    params = [3 * 4 * 9 + 4 + k * (4 * 4 * 9 + 8) + 50 for k in (1, 2, 3)]
    assert list(costs.params) == params
    # fp32 buffers: two per norm channel, and an int64 counter per norm.
    assert list(costs.bytes) == [4 * p + k * (2 * 4 * 4 + 8) for k, p in enumerate(params, start=1)]


@pytest.mark.parametrize(
    ("name", "gmacs", "mparams"),
    [
        ("resnet18", 1.814, 11.69),
        ("resnet50", 4.09, 25.56),
        ("vit_tiny_patch16_224", 1.254, 5.72),  # attention included: without it, 1.080
    ],
)
def test_against_published_figures(name: str, gmacs: float, mparams: float) -> None:
    costs = published(name)
    assert costs.static(len(costs.units)) / 1e9 == pytest.approx(gmacs, abs=0.006)
    assert costs.params[-1] / 1e6 == pytest.approx(mparams, abs=0.006)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny_patch16_224"])
def test_costs_grow_with_depth(name: str) -> None:
    costs = published(name)
    exits = range(1, len(costs.units) + 1)
    static, dynamic = [costs.static(k) for k in exits], [costs.dynamic(k) for k in exits]
    assert static == sorted(static)
    assert dynamic == sorted(set(dynamic)) == list(costs.cumulative)
    assert list(costs.params) == sorted(costs.params)
    assert list(costs.bytes) == sorted(costs.bytes)
    assert all(d - s == sum(costs.heads[: k - 1]) for k, s, d in zip(exits, static, dynamic, strict=True))
    assert costs.prefix(1) == costs.stem + costs.units[0]


def test_exits_at_every_second_unit() -> None:
    every = count_costs(MultiExit(Trunk(Toy(), image_size=8)))
    second = count_costs(MultiExit(Trunk(Toy(), image_size=8), ExitConfig(every=2)))
    assert second.plans == ((0, 1), (0, 1, 2))
    assert second.units == every.units
    assert second.static(1) == every.static(2)
    assert second.dynamic(2) == every.dynamic(3) - 40  # one head fewer was passed


def test_thin_networks_by_hand() -> None:
    """Toy's blocks are alike: a network that runs k of them costs k blocks and the backbone's own head."""
    costs = count_costs(MultiExit(Trunk(Toy(), image_size=8), ExitConfig(plan="thin")))
    assert costs.plans == ((0,), (0, 1), (0, 1, 2))
    stem, block = 16 * 27 * 4, 16 * 36 * 4
    assert [costs.static(k) for k in (1, 2, 3)] == [stem + k * block + 40 for k in (1, 2, 3)]
    assert [costs.dynamic(k) for k in (1, 2, 3)] == [costs.static(k) for k in (1, 2, 3)]  # no head is passed
    assert list(costs.params) == [3 * 4 * 9 + 4 + k * (4 * 4 * 9 + 8) + 50 for k in (1, 2, 3)]


def test_counting_is_of_one_image_and_leaves_no_trace() -> None:
    network = MultiExit(Trunk(Toy(), image_size=8)).train()
    network.backbone.blocks[0].norm.eval()  # type: ignore[index, union-attr]
    network.backbone.stem.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    asked = [p.requires_grad for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    count_costs(network)
    assert [p.requires_grad for p in network.parameters()] == asked
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_count_macs_of_a_product() -> None:
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    assert count_macs(lambda: left @ right) == 3 * 5 * 7


def test_layers_that_torch_does_in_one_call_are_counted() -> None:
    """In evaluation without gradients; 9 tokens of 32 channels, and 5 steps of 16."""
    tokens, steps = torch.rand(1, 9, 32), torch.rand(5, 1, 16)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    attention = 9 * 32 * 96 + 2 * 9 * 9 * 32 + 9 * 32 * 32
    assert count_macs(lambda: layer(tokens)) == attention + 2 * 9 * 32 * 64
    attend = nn.MultiheadAttention(32, 2, batch_first=True).eval()
    assert count_macs(lambda: attend(tokens, tokens, tokens)) == attention
    assert count_macs(lambda: attend(tokens, tokens, tokens, need_weights=False)) == attention
    lstm = nn.LSTM(16, 32, num_layers=2, bidirectional=True).eval()
    assert count_macs(lambda: lstm(steps)) == 5 * 2 * (128 * (16 + 32) + 128 * (64 + 32))
    gru = nn.GRU(16, 32).eval()
    assert count_macs(lambda: gru(steps)) == 5 * 96 * (16 + 32)
    assert torch.backends.mha.get_fastpath_enabled()


def test_weights_that_stay_in_another_unit_are_not_taken_off() -> None:
    """Blocks that share a convolution: the first unit alone has it, and so has every network."""
    model = Toy()
    for block in model.blocks[1:]:
        block.conv.weight = model.blocks[0].conv.weight  # type: ignore[union-attr]
    network = MultiExit(Trunk(model, image_size=16))
    costs = count_costs(network)
    for number, units in enumerate(network.units, start=1):
        kept = [model.stem, *model.blocks[:units]]
        head = model.fc if network.own_head(number) else network.heads[number - 1]
        assert (costs.params[number - 1], costs.bytes[number - 1]) == size_of([*kept, head])


# --- sizes ------------------------------------------------------------------------------------------


def test_each_tensor_counts_once_and_in_fp32() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert size_of([layer, layer, nn.Sequential(layer)]) == (16, 64)
    assert size_of([layer.to(torch.bfloat16)]) == (16, 64)
    assert size_of([nn.BatchNorm1d(2)]) == (4, 4 * 8 + 8)
    assert size_of([]) == (0, 0)


# --- time -------------------------------------------------------------------------------------------


def test_measure_takes_turns() -> None:
    order: list[str] = []
    found = measure({n: lambda n=n: order.append(n) for n in "abc"}, rounds=3, warmup=1)  # type: ignore[misc]
    assert order == list("abc") * 4
    assert list(found) == list("abc")
    for timing in found.values():
        assert len(timing.seconds) == 3
        assert min(timing.seconds) >= 0
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
        assert timing.quantile(0) <= timing.median <= timing.quantile(1)
    assert (found["a"].ratio, found["a"].ratio_low, found["a"].ratio_high) == (1, 1, 1)


def test_measure_tells_slow_from_fast() -> None:
    matrix = torch.rand(300, 300)

    def work(times: int) -> Any:
        return lambda: [matrix @ matrix for _ in range(times)]

    found = measure({"one": work(1), "many": work(40)}, rounds=5)
    assert found["many"].ratio_low > 2


def test_measure_needs_a_round() -> None:
    with pytest.raises(ConfigError, match="rounds is 0; measure 1 or more times"):
        measure({"a": lambda: None}, rounds=0)
