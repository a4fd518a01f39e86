"""Multi-exit training as a task of timm's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from odn_hybrid.backbone import with_small_stem
from odn_hybrid.config import ExitConfig
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training import OBJECTIVES
from odn_hybrid.training.objectives import task
from odn_hybrid.training.objectives.task import MultiExitTask
from odn_hybrid.trunk import Trunk

pytestmark = pytest.mark.skipif(not task.HAS_TASKS, reason="this timm has no training tasks")


def make_task(loss: str = "depth_reg", **options: Any) -> MultiExitTask:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], num_classes=3)
    network = MultiExit(Trunk(with_small_stem(model), image_size=(12, 12)), ExitConfig())
    return MultiExitTask(network, loss, verbose=False, **options)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(16, 3, 12, 12, generator=generator), torch.arange(16) % 3


@pytest.mark.parametrize("loss", sorted(OBJECTIVES))
def test_two_steps_in_timms_loop(loss: str) -> None:
    """What timm's train.py does with a task: optimizer, forward, backward, step, average of the weights."""
    made = make_task(loss)
    made.train()
    optimizer = create_optimizer_v2(made.get_trainable_module(), opt="sgd", lr=0.05)
    made.setup_ema(decay=0.5)
    images, labels = batch()
    losses = []
    for step in range(2):
        found = made(images, labels)
        optimizer.zero_grad()
        found["loss"].backward()
        assert found["output"].shape == (16, 3) and found["output"] is found["exits"][-1]
        torch.nn.utils.clip_grad_norm_(made.get_clip_parameters(), 1.0)
        optimizer.step()
        made.update_ema(step=step)
        losses.append(float(found["loss"].detach()))
    assert losses[1] < losses[0]
    missing = [name for name, p in made.get_trainable_module().named_parameters() if p.grad is None]
    assert all(name.startswith("network.heads.") for name in missing)
    assert not missing or loss == "cross_entropy"


def test_soft_targets_are_taken() -> None:
    images, labels = batch()
    made = make_task("joint").eval()
    soft = torch.nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(made(images, soft)["loss"], made(images, labels)["loss"])


def test_what_timm_evaluates_and_keeps_is_the_backbone() -> None:
    made = make_task()
    images, labels = batch()
    made(images, labels)["loss"].backward()
    made.setup_ema()
    names = list(timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]).state_dict())
    made.eval()
    for ema in (False, True):
        model = made.get_eval_model(ema=ema)
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model.eval()(images), made(images, labels)["output"])
    evaluator = made.create_evaluator()
    evaluator.update(made.get_eval_model()(images), labels)
    right = made(images, labels)["output"].argmax(1) == labels
    assert evaluator.summary()["top1"] == pytest.approx(100 * float(right.float().mean()))


def test_a_checkpoint_holds_all_that_trains() -> None:
    made, other = make_task(), make_task()
    with torch.no_grad():
        for parameter in made.get_trainable_module().parameters():
            parameter.add_(0.1)
    kept = made.get_checkpoint_state()
    other.load_checkpoint_state(kept["state_dict"], kept["task_state"])
    mine = made.get_trainable_module().state_dict()
    assert all(torch.equal(value, mine[k]) for k, value in other.get_trainable_module().state_dict().items())


def test_compiling_leaves_the_keys_as_they_are() -> None:
    made = make_task()
    names = list(made.get_trainable_module().state_dict())
    made.compile(backend="eager")
    images, labels = batch()
    made(images, labels)["loss"].backward()
    assert list(made.get_trainable_module().state_dict()) == names


def test_an_older_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "HAS_TASKS", False)
    with pytest.raises(ConfigError, match=r"timm .* has no training tasks; install timm 1\.0\.31"):
        make_task()


def test_unknown_objectives_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'nonsense'"):
        make_task("nonsense")
