"""Diagnosis measures what the theory assumes, and says plainly whether it holds.

What it assumes behind layer norms stands in theory/transformers.md; theory/diagnosis.md has trained networks.
"""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from odn_hybrid import MultiExit, Trunk, fit
from odn_hybrid.config import ExitConfig
from odn_hybrid.diagnose import Diagnosis, diagnose_network
from odn_hybrid.diagnose.concluding import price_of_choice
from odn_hybrid.errors import ConfigError, InputError

N = 24
IMAGES = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = np.random.default_rng(0).integers(0, 5, N)


def vit(factor: float = 1.0, depth: int = 8) -> MultiExit:
    """A Transformer whose block k writes `factor`**k times what it would at random."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        num_classes=5,
        embed_dim=24,
        depth=depth,
        num_heads=3,
    )
    with torch.no_grad():
        for k, block in enumerate(model.blocks):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.normal_(std=0.05).mul_(factor**k)
                layer.bias.mul_(factor**k)
    return _spread(MultiExit(Trunk(model, image_size=16)))


def resnet(every: int = 1) -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5, channels=[8, 8, 16, 16])
    return _spread(MultiExit(Trunk(model, image_size=32), ExitConfig(every=every)))


def _spread(network: MultiExit) -> MultiExit:
    """Heads large enough that exits disagree."""
    with torch.no_grad():
        for head in network.heads:
            for layer in head.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.normal_(std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return diagnose_network(vit(), IMAGES, LABELS, price=0.3)


# --- what is measured ---------------------------------------------------------------------------------


@torch.no_grad()
def test_norms_are_those_of_the_states(found: Diagnosis) -> None:
    network = vit()
    state = network.trunk.stem(IMAGES)
    for row in found.units:
        before, state = state.x, network.trunk.run(state, row.unit, row.unit + 1)
        norms = (state.x - before).flatten(1).norm(dim=1)
        assert row.norm == pytest.approx(norms.mean().item(), rel=1e-5)
        assert row.largest == pytest.approx(norms.max().item(), rel=1e-5)
        x, y = (v - v.mean(-1, keepdim=True) for v in (before, state.x))
        relative = 2 * (y - x).norm(dim=-1) / (x.norm(dim=-1) + y.norm(dim=-1))
        assert row.relative == pytest.approx(relative.mean().item(), rel=1e-2)


@torch.no_grad()
def test_a_step_gains_what_losses_fall_and_never_more_than_its_terms_allow(found: Diagnosis) -> None:
    losses = losses_of(vit())
    for j, step in enumerate(found.steps):
        fell = (losses[:, j] - losses[:, j + 1]).clamp_min(0)
        assert step.gain == pytest.approx(fell.max().item(), rel=1e-4)
        assert step.mean_gain == pytest.approx(fell.mean().item(), rel=1e-4)
        assert step.residual is not None and step.lipschitz is not None and step.drift is not None
        assert step.most == pytest.approx(step.lipschitz * step.residual + step.drift)
        assert step.most >= step.gain


def losses_of(network: MultiExit, images: Tensor = IMAGES) -> Tensor:
    wanted = torch.from_numpy(LABELS)
    return torch.stack([nn.functional.cross_entropy(z, wanted, reduction="none") for z in network(images)], 1)


@torch.no_grad()
def test_no_image_does_better_beyond_the_bounds_even_in_hindsight(found: Diagnosis) -> None:
    network = vit()
    costs = np.cumsum([0.0, *(step.cost for step in found.steps)])
    paid = losses_of(network).numpy() + costs
    best = np.asarray(network.units)[paid.argmin(1)]
    assert found.hindsight["largest"] == best.max()
    assert best.max() <= found.bounds["observed"] <= found.bounds["residual"]
    assert found.hindsight["mean"] == pytest.approx(best.mean())
    assert found.hindsight["mean"] <= found.bounds["mean"] + 1e-9
    assert found.best_fixed == network.units[paid.mean(0).argmin()]


def test_a_shape_that_changes_is_a_transition_without_a_residual() -> None:
    images = torch.nn.functional.interpolate(IMAGES, size=32)
    found = diagnose_network(resnet(), images, LABELS, price=0.3)
    network = resnet()
    changes = [not kept for kept in network.trunk.preserving]
    assert [row.norm is None for row in found.units] == changes
    assert [step.transition for step in found.steps] == changes[1:]
    for step in found.steps:
        if step.transition:
            assert (step.residual, step.lipschitz, step.drift) == (None, None, None)
            assert step.most == step.gain
    assert not found.normalised
    assert found.decay is found.absolute
    wide = diagnose_network(resnet(every=3), images, LABELS, price=0.3)
    assert [step.units for step in wide.steps] == [(3, 6), (6, 8)]


def test_relative_norms_decide_for_heads_behind_a_layer_norm(found: Diagnosis) -> None:
    assert found.normalised
    assert found.decay is found.relative


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_branches_are_bounded_whatever_the_stream(scale: float) -> None:
    width, heads = 24, 3
    block = Block(width, heads, qkv_bias=True, norm_layer=nn.LayerNorm).eval()
    for parameter in block.parameters():
        parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))

    def norm(weight: Tensor) -> float:
        return torch.linalg.matrix_norm(weight, 2).item()

    def normed(layer: nn.LayerNorm) -> float:
        return width**0.5 * layer.weight.abs().max().item() + layer.bias.norm().item()

    values, shifts = block.attn.qkv.weight[2 * width :], block.attn.qkv.bias[2 * width :]
    sizes = [
        norm(w) * normed(block.norm1) + b.norm().item()
        for w, b in zip(values.chunk(heads), shifts.chunk(heads), strict=True)
    ]
    most = norm(block.attn.proj.weight) * float(np.linalg.norm(sizes)) + block.attn.proj.bias.norm().item()
    inner = norm(block.mlp.fc1.weight) * normed(block.norm2) + block.mlp.fc1.bias.norm().item()
    most += norm(block.mlp.fc2.weight) * inner + block.mlp.fc2.bias.norm().item()
    x = scale * torch.randn(50, 7, width, generator=torch.Generator().manual_seed(1))
    assert (block(x) - x).norm(dim=-1).max().item() <= most


# --- the verdict --------------------------------------------------------------------------------------


def test_a_planted_decay_is_found_and_the_assumption_said_to_hold() -> None:
    found = diagnose_network(vit(factor=0.7), IMAGES, LABELS, price=0.3)
    assert found.absolute is not None and found.absolute.kind == "geometric"
    assert found.absolute.rate == pytest.approx(0.7, abs=0.05)
    assert found.holds is True
    assert found.verdict.startswith("The assumption holds: relative residual norms")
    assert found.bounds["fitted"] is not None


def test_growing_residuals_are_said_not_to_hold() -> None:
    found = diagnose_network(vit(factor=2.0), IMAGES, LABELS, price=0.3)
    assert found.holds is False
    assert found.verdict.startswith("The assumption does not hold")
    assert found.bounds["fitted"] is None


def test_too_few_units_to_tell() -> None:
    found = diagnose_network(vit(depth=3), IMAGES, LABELS, price=0.3)
    assert found.holds is None and found.decay is None
    assert "cannot be tested" in found.verdict


def test_dearer_depth_never_deepens_a_bound() -> None:
    network = vit()
    bounds = [diagnose_network(network, IMAGES, LABELS, price=p).bounds for p in (0.01, 0.3, 5.0, 500.0)]
    for name in ("observed", "residual", "mean"):
        values = [bound[name] for bound in bounds]
        assert values == sorted(values, reverse=True)
    assert bounds[-1]["observed"] == bounds[-1]["residual"] == 1  # nothing is worth going on


def test_without_labels_the_deepest_exit_answers() -> None:
    network = vit()
    with torch.no_grad():
        answers = network(IMAGES)[-1].argmax(1).numpy()
    without, given = (diagnose_network(network, IMAGES, y, price=0.3, batch=7) for y in (None, answers))
    assert without.labels == "the deepest exit's answers" and given.labels == "given"
    assert without.bounds == pytest.approx(given.bounds)
    assert without.steps == given.steps


# --- runs ---------------------------------------------------------------------------------------------


def run_of(network: MultiExit, static: int, reference: int | None = None) -> Any:
    report = {
        "reference": {"exit": reference or len(network)},
        "static": {"units": static},
        "dynamic": {"mean_units": 2.5},
    }
    return SimpleNamespace(network=network, report_=report)


def test_a_run_is_measured_up_to_its_reference_and_compared_with_its_choices() -> None:
    found = diagnose_network(run_of(vit(), 3, reference=6), IMAGES, LABELS)
    assert len(found.units) == 6 and len(found.steps) == 5
    assert (found.static_units, found.dynamic_units) == (3, 2.5)
    assert "The static choice is 3 units, and halting runs 2.5 on average" in found.verdict
    assert found.price > 0


@pytest.mark.long
def test_a_real_fit_is_measured(tiny: dict[str, Any]) -> None:
    longer = {**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 12}}
    run = fit(**longer)
    images = torch.rand(20, *run.network.trunk.image_shape, generator=torch.Generator().manual_seed(0))
    found = diagnose_network(run, images)
    assert found.static_units == run.depth_["units"]
    assert found.depth == run.exits_[run.report_["reference"]["exit"] - 1]["units"]
    assert f"The static choice is {found.static_units} units" in found.verdict


@pytest.mark.parametrize("static", [1, 2, 4])
def test_the_price_is_one_at_which_the_static_choice_is_best(static: int) -> None:
    means, depths = np.array([2.0, 1.2, 1.1, 0.5]), np.arange(1, 5)
    shares = np.array([0.25, 0.5, 0.75, 1.0])
    price, source = price_of_choice(means, shares, depths, static)
    assert depths[(means + price * shares).argmin()] == static
    assert "static choice" in source


def test_a_choice_that_no_price_makes_best_leaves_the_price_of_breaking_even() -> None:
    means, shares = np.array([2.0, 1.2, 1.1, 0.5]), np.array([0.25, 0.5, 0.75, 1.0])
    price, source = price_of_choice(means, shares, np.arange(1, 5), 3)  # above the line from 2 to 4
    assert price == pytest.approx(2.0) and "equally good" in source
    price, source = price_of_choice(means[::-1], shares, np.arange(1, 5), None)
    assert price > 0 and "gains nothing" in source


def test_a_policy_in_use_is_compared_with_snells_value(found: Diagnosis) -> None:
    assert found.policy_gap is None
    costs = np.cumsum([0.0, *(step.cost for step in found.steps)])
    with torch.no_grad():
        paid = losses_of(vit()).numpy()
    shift = diagnose_network(vit(), IMAGES, LABELS, price=0.3, taken=np.full(N, 1)).policy_gap
    deep = diagnose_network(vit(), IMAGES, LABELS, price=0.3, taken=np.full(N, 8)).policy_gap
    assert shift is not None and deep is not None
    assert deep - shift == pytest.approx(paid[:, 7].mean() - paid[:, 0].mean() + costs[-1], rel=1e-4)


# --- what it leaves behind ----------------------------------------------------------------------------


def test_it_is_plain_data_and_leaves_the_network_as_it_was() -> None:
    network = vit().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = diagnose_network(network, IMAGES, LABELS, price=0.3)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    data = json.loads(json.dumps(found.to_dict()))
    assert data["relative"]["rate"] == pytest.approx(found.relative.rate)  # type: ignore[union-attr]
    assert data["steps"][0]["units"] == [1, 2]
    with torch.inference_mode():
        again = diagnose_network(network, IMAGES, LABELS, price=0.3)
    assert again.steps == found.steps


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"price": 0.0}, ConfigError, "where depth is free"),
        ({"price": float("nan")}, ConfigError, "price is nan"),
        ({"quantile": 0.0}, ConfigError, "quantile is 0.0"),
        ({"labels": [0, 1]}, InputError, "labels must be 24 whole numbers from 0 to 4"),
        ({"labels": np.full(N, 5)}, InputError, "labels must be 24"),
        ({"taken": np.zeros(N, int)}, InputError, "taken must be 24 whole numbers from 1 to 8"),
        ({"images": IMAGES[0]}, InputError, "images must be a tensor"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], says: str) -> None:
    given = {"images": IMAGES, "labels": LABELS, **options}
    with pytest.raises(error, match=says):
        diagnose_network(vit(), given.pop("images"), given.pop("labels"), **given)


def test_thin_networks_and_single_exits_are_refused() -> None:
    model = timm.create_model("resnet18", num_classes=5, channels=[8, 8, 16, 16])
    trunk = Trunk(model, image_size=32)
    configs: Sequence[ExitConfig] = (ExitConfig(plan="thin", every=2), ExitConfig(every=99))
    for config in configs:
        with pytest.raises(ConfigError, match="two or more trained exits on one path"):
            diagnose_network(MultiExit(trunk, config), torch.rand(2, 3, 32, 32))
