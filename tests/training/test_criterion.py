"""Objectives as criteria of other people's training loops, timm's `TrainingTask` among them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.task import ClassificationTask

from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training import OBJECTIVES, ExitOutputs, build_objective, register_objective
from odn_hybrid.training.objectives.criterion import ExitCriterion
from odn_hybrid.trunk import Trunk

LABELS = torch.tensor([0, 4, 2, 1])


def network(plan: Any = "prefix") -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5, layers=[1, 2, 1, 2], channels=[8, 8, 16, 16])
    return MultiExit(Trunk(model, image_size=32), ExitConfig(plan=plan)).train()


def batch() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("plan", ["prefix", "thin"])
def test_a_users_own_loss_trains_in_timms_task(plan: str) -> None:
    @register_objective("mine")
    def mine(outputs: ExitOutputs, *, price: float = 0.0) -> torch.Tensor:
        return (outputs.losses() + price * outputs.costs[:, None]).mean()

    try:
        net = network(plan)
        task = ClassificationTask(net, ExitCriterion(net, "mine", price=2.0), verbose=False)
    finally:
        del OBJECTIVES["mine"]
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        found = task(batch(), LABELS)
        assert len(found["output"]) == len(net)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(float(found["loss"].detach()))
    assert losses[-1] < losses[0]
    costs = count_costs(net).cumulative
    assert losses[-1] > 2.0 * sum(costs) / len(costs) / costs[-1]  # what it pays for depth is in it


def test_it_is_the_objective_with_the_networks_costs() -> None:
    net = network()
    logits = [z.detach() for z in net(batch())]
    costs = count_costs(net).cumulative
    shares = torch.tensor([cost / costs[-1] for cost in costs])
    for active in (1, 3, len(net)):
        torch.manual_seed(0)
        found = ExitCriterion(net, "distill", weight=0.3)(logits[:active], LABELS)
        wanted = build_objective("distill", len(net), weight=0.3)
        assert torch.equal(found, wanted(ExitOutputs(logits[:active], LABELS, shares[:active])))


def test_what_it_cannot_use_is_named() -> None:
    net = network()
    with pytest.raises(ConfigError, match="unknown objective 'jiont'"):
        ExitCriterion(net, "jiont")
    criterion = ExitCriterion(net)
    with pytest.raises(InputError, match=r"got Tensor; give the list of logits that a network of 6 exits"):
        criterion(torch.zeros(4, 5), LABELS)
    with pytest.raises(InputError, match="got 7 tensors"):
        criterion([torch.zeros(4, 5)] * 7, LABELS)
