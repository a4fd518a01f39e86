"""Normalisation of thin networks: each has the statistics that a network of its own would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.steps.averaging import WeightAverage
from odn_hybrid.trunk import Trunk


def resnet(**args: Any) -> nn.Module:
    """Two stages of two removable units each."""
    # By default a fresh unit adds nothing, and would not be missed.
    shape = {"layers": [1, 3, 1, 3], "channels": [8, 8, 16, 16], "zero_init_last": False, **args}
    return timm.create_model("resnet18", num_classes=5, **shape)


def pre_activated() -> nn.Module:
    """Normalisation comes before a unit's convolutions, and once more before the classifier."""
    return timm.create_model(
        "resnetv2_18", num_classes=5, layers=(1, 2, 1, 2), channels=(8, 8, 16, 16), stem_chs=8
    )


def thin(model: nn.Module, norms: Any = "own", every: int = 1) -> MultiExit:
    return MultiExit(Trunk(model, image_size=32), ExitConfig(plan="thin", norms=norms, every=every))


def batch(n: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "running" in name or "num_b" in name}


# --- the promise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("norms", ["own", "affine"])
@pytest.mark.parametrize("make", [resnet, pre_activated])
def test_trained_together_each_has_the_statistics_of_a_network_of_its_own(
    make: Callable[[], nn.Module], norms: str, every: int
) -> None:
    torch.manual_seed(0)
    network = thin(make(), norms, every)
    alone = [truncate(network, number).train() for number in range(1, len(network) + 1)]
    network.train()
    for seed in range(2):
        together = network(batch(seed=seed))
        for logits, model in zip(together, alone, strict=True):
            torch.testing.assert_close(logits, model(batch(seed=seed)), rtol=1e-4, atol=1e-4)
    for number, model in enumerate(alone, start=1):
        cut = truncate(network, number)
        found, wanted = statistics(cut), statistics(model)
        assert set(found) == set(wanted) != set()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=f"{number}: {name}")
        torch.testing.assert_close(cut.eval()(batch()), network.eval().at(batch(), number))
    network.train()
    own, thinnest = statistics(network.backbone), statistics(truncate(network, 1))
    assert any(not torch.allclose(value, own[name]) for name, value in thinnest.items())


def test_only_active_networks_learn_statistics() -> None:
    network = thin(resnet()).train()
    last = len(network)
    before = {name: value.clone() for name, value in statistics(truncate(network, last)).items()}
    network(batch(), 2)
    after = statistics(truncate(network, last))
    parted = min(
        set(range(len(network.trunk))) - set(network.plans[1].keep)
    )  # where 2 leaves the whole's way
    own = [unit for names in network.trunk.unit_names[parted:] for unit in names]
    for name, value in before.items():
        idle = name.startswith(tuple(f"{unit}." for unit in own))
        assert torch.equal(after[name], value) == idle, name


def test_shared_statistics_are_one_mixture() -> None:
    network = thin(resnet(), "shared").train()
    network(batch())
    assert not list(network.norms.parameters()) and not list(network.norms.buffers())
    own = statistics(network.backbone)
    assert own["layer2.0.bn1.num_batches_tracked"] == len(set(network.plans)) - sum(
        fork > 1 for fork in network.forks[1:]
    )
    assert all(torch.equal(value, own[name]) for name, value in statistics(truncate(network, 1)).items())


def test_scale_and_shift_are_shared_or_each_networks_own() -> None:
    for norms, touched in (("own", False), ("affine", True)):
        torch.manual_seed(0)
        network = thin(resnet(), norms).train()
        network(batch(), 1)[0].square().sum().backward()
        whole = network.backbone.get_submodule("layer4.2.bn1")
        kept = network.backbone.get_submodule("layer4.0.bn1")
        assert whole.weight.grad is None and (kept.weight.grad is None) == touched
        own = [p.grad for p in network.norms[0].parameters()]
        assert bool(own) == touched and all(grad is not None for grad in own)


def test_networks_without_batch_normalisation_have_nothing_of_their_own() -> None:
    args = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 4, "num_classes": 5}
    network = thin(timm.create_model("vit_tiny_patch16_224", **args), "affine")
    assert len(network.norms) == 0
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone"}


def test_the_backbone_is_as_it_was_whatever_happens() -> None:
    network = thin(resnet()).train()
    model = network.backbone
    held = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}

    def fail(*call: Any) -> None:
        raise KeyboardInterrupt

    hook = model.get_submodule("layer4.0").register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        network(batch())
    hook.remove()
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == held
    assert list(model.state_dict()) == list(resnet().state_dict())


def test_recomputed_in_backward_it_is_the_same_network() -> None:
    """Where gradients are checkpointed, a unit runs again when the backbone has its own norms back."""
    gradients = []
    for saving in (False, True):
        torch.manual_seed(0)
        network = thin(resnet(), "affine")
        with torch.no_grad():
            for parameter in network.norms.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        network.backbone.set_grad_checkpointing(saving)  # type: ignore[operator]
        torch.stack(network.train()(batch())).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-4, atol=1e-4, msg=name)


def test_torch_compile_sees_one_graph_and_the_same_statistics() -> None:
    from torch._dynamo.utils import counters

    network = thin(resnet(layers=[1, 2, 1, 1]))
    network.eval().trunk.stem(batch())
    twin = network.copy().train()
    counters.clear()
    compiled = torch.compile(network.train().forward, backend="eager", dynamic=False)
    for found, wanted in zip(compiled(batch()), twin(batch()), strict=True):
        torch.testing.assert_close(found, wanted)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
    wanted = twin.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], msg=name)


# --- averaged, kept, loaded -------------------------------------------------------------------------


def test_the_average_of_the_weights_takes_them_in() -> None:
    network = thin(resnet(), "affine").train()
    average = WeightAverage(network, horizon=1.0)  # of the last step alone
    network(batch())
    with torch.no_grad():
        for parameter in network.norms.parameters():
            parameter.add_(1)
    average.update(network, len(network))
    found = average.network.norms.state_dict()
    assert found and all(torch.equal(found[name], v) for name, v in network.norms.state_dict().items())
    assert len(list(network.norms.parameters())) > 0


@torch.no_grad()
def test_kept_beside_the_backbone_and_loaded_strictly() -> None:
    network = thin(resnet()).train()
    network(batch())
    backbone, exits = network.backbone.state_dict(), network.exit_parts()
    assert exits and all(name.startswith("norms.") for name in exits)
    assert {name.split(".", 2)[2] for name in exits} <= set(backbone)
    twin = thin(resnet()).eval()
    twin.load_parts(backbone, exits)
    assert all(torch.equal(a, b) for a, b in zip(network.eval()(batch()), twin(batch()), strict=True))
    first = next(iter(exits))
    with pytest.raises(ModelError, match=f"normalisation of thin networks: .*{first.split('.', 1)[1]}"):
        twin.load_parts(backbone, {name: value for name, value in exits.items() if name != first})
    with pytest.raises(ModelError, match=r"do not fit the exit heads: .*0\.fc\.bias"):
        twin.load_parts(backbone, {**exits, "0.fc.bias": torch.zeros(5)})


@torch.no_grad()
def test_what_was_kept_before_they_had_their_own_answers_as_it_did() -> None:
    old = thin(resnet(), "shared").train()
    old(batch())
    new = thin(resnet(), "affine").eval()
    new.load_parts(old.backbone.state_dict(), old.exit_parts())
    assert all(torch.equal(a, b) for a, b in zip(old.eval()(batch()), new(batch()), strict=True))


def test_a_choice_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"exits.norms is 'mine'; choose one of own, affine, shared"):
        thin(resnet(), "mine")
