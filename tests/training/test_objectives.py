"""The objectives: what they weigh, what gets a gradient, what `depth_reg` promises.

Its theory: theory/depth_regularizer.md.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from odn_hybrid.errors import ConfigError
from odn_hybrid.training import OBJECTIVES, ExitOutputs, build_objective, register_objective
from odn_hybrid.training.objectives import exit_losses


def outputs(exits=4, batch=6, classes=5, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = [
        (scale * torch.randn(batch, classes, generator=generator)).requires_grad_() for _ in range(exits)
    ]
    labels = torch.randint(0, classes, (batch,), generator=generator)
    return ExitOutputs(logits, labels, torch.linspace(1 / exits, 1.0, exits))


def test_cross_entropy_trains_the_deepest_exit_alone():
    out = outputs()
    loss = build_objective("cross_entropy", 4)(out)
    assert torch.isclose(loss, F.cross_entropy(out.logits[-1], out.labels))
    loss.backward()
    assert [z.grad is not None for z in out.logits] == [False, False, False, True]


def test_joint_is_the_mean_and_can_lean_on_the_deepest():
    out = outputs()
    losses = torch.stack([F.cross_entropy(z, out.labels) for z in out.logits])
    assert torch.isclose(build_objective("joint", 4)(out), losses.mean())
    leaning = build_objective("joint", 4, deepest=0.5)(out)
    assert torch.isclose(leaning, 0.5 * losses.mean() + 0.5 * losses[-1])
    by_cost = out.costs**2 / (out.costs**2).sum()
    rising = build_objective("joint", 4, deepest=0.3, power=2.0)(out)
    assert torch.isclose(rising, 0.7 * (by_cost * losses).sum() + 0.3 * losses[-1])


# --- depth_reg --------------------------------------------------------------------------------------


@given(
    exits=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 50), lam=st.floats(0, 100),
    deepest=st.floats(0, 1), part=st.floats(0, 1),
)  # fmt: skip
def test_depth_reg_has_weights_of_sum_one(exits, batch, seed, lam, deepest, part):
    """And the deepest keeps at least its own part and that of the joint term, every exit the latter."""
    halting = (1 - deepest) * part
    objective = build_objective("depth_reg", 6, lam=lam, deepest=deepest, halting=halting)
    for step in range(3):
        weights = objective.weights(outputs(exits, batch, seed=seed + step))
        assert weights.shape == (exits,)
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        joint = (1 - deepest - halting) / exits
        assert (weights >= joint - 1e-6).all() and weights[-1] >= joint + deepest - 1e-6


def test_depth_reg_weighs_exits_by_who_stops_there():
    objective = build_objective("depth_reg", 4, lam=0.7, deepest=0.2, halting=0.5)
    for seed in range(20):
        out = outputs(batch=32, seed=seed)
        first = objective.rule.stops(out.logits).int().argmax(0)
        shares = torch.bincount(first, minlength=4) / 32
        wanted = 0.3 / 4 + 0.5 * shares + torch.tensor([0, 0, 0, 0.2])
        assert torch.allclose(objective.weights(out), wanted)
    assert (shares > 0).sum() > 1  # it has learnt to tell inputs apart


def test_depth_reg_trains_by_weighed_losses_and_nothing_else():
    """The gradient at the logits is that of a weighed cross-entropy: none comes through the rule."""
    out = outputs()
    objective, twin = build_objective("depth_reg", 4, lam=0.3), build_objective("depth_reg", 4, lam=0.3)
    objective(out).backward()
    assert not list(objective.parameters())
    for weight, z in zip(twin.weights(out), out.logits, strict=True):
        alone = z.detach().clone().requires_grad_()
        F.cross_entropy(alone, out.labels).backward()
        assert torch.allclose(z.grad, weight * alone.grad, atol=1e-6)


def test_depth_reg_weighs_exits_without_looking_at_labels():
    one, two = build_objective("depth_reg", 4), build_objective("depth_reg", 4)
    for seed in range(5):
        out = outputs(seed=seed)
        soft = ExitOutputs(out.logits, torch.full((6, 5), 0.2), out.costs, smoothing=0.1)
        assert torch.equal(one.weights(out), two.weights(soft))


@pytest.mark.parametrize(("lam", "early"), [(0.0, False), (50.0, True)])
def test_the_price_moves_the_weight(lam, early):
    """With depth free inputs are to go on to the better exit; with depth dear, to stop at the first."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (64,), generator=generator)
    right = 6 * F.one_hot(labels, 5).float()
    out = ExitOutputs([torch.randn(64, 5, generator=generator), right], labels, torch.tensor([0.5, 1.0]))
    objective = build_objective("depth_reg", 2, lam=lam, deepest=0.0, halting=1.0)
    for _ in range(3):
        weights = objective.weights(out)
    assert weights[0] > 0.9 if early else weights[0] < 0.1


def test_depth_reg_goes_with_distillation():
    """The same weights, of losses in part of which the deepest exit teaches; and it is taught nothing."""
    out = outputs()
    objective = build_objective("depth_reg", 4, distill=0.5, temperature=3.0)
    weights = build_objective("depth_reg", 4).weights(out)
    losses = exit_losses(out, distill=0.5, temperature=3.0).mean(1)
    loss = objective(out)
    assert torch.isclose(loss, (weights * losses).sum())
    loss.backward()
    alone = out.logits[-1].detach().clone().requires_grad_()
    F.cross_entropy(alone, out.labels).backward()
    torch.testing.assert_close(out.logits[-1].grad, weights[-1] * alone.grad)


# --- self-distillation ------------------------------------------------------------------------------


def log_softmax(z):
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)


@given(exits=st.integers(2, 5), seed=st.integers(0, 50), weight=st.floats(0, 1), t=st.floats(0.5, 8))
def test_exits_before_the_deepest_learn_from_labels_and_from_it(exits, seed, weight, t):
    """Against numpy: (1 - d) cross-entropy + d T^2 KL(deepest || exit), and labels alone for the deepest."""
    out = outputs(exits, seed=seed)
    found = exit_losses(out, distill=weight, temperature=t).detach().numpy()
    z = [logits.detach().double().numpy() for logits in out.logits]
    plain = np.array([-log_softmax(row)[np.arange(6), out.labels.numpy()] for row in z])
    teacher = log_softmax(z[-1] / t)
    apart = np.array([(np.exp(teacher) * (teacher - log_softmax(row / t))).sum(1) for row in z])
    wanted = (1 - weight) * plain + weight * t**2 * apart
    wanted[-1] = plain[-1]
    assert found.shape == (exits, 6)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_teacher_does_not_learn_from_its_pupils():
    out = outputs()
    build_objective("distill", 4, weight=1.0)(out).backward()
    *pupils, deepest = out.logits
    alone = deepest.detach().clone().requires_grad_()
    (F.cross_entropy(alone, out.labels) / 4).backward()
    torch.testing.assert_close(deepest.grad, alone.grad)
    assert all(z.grad.abs().sum() > 0 for z in pupils)


def test_a_pupil_that_agrees_has_nothing_to_learn_from_the_teacher():
    out = outputs(exits=1)
    pupil = out.logits[0].detach().clone().requires_grad_()
    both = ExitOutputs([pupil, out.logits[0]], out.labels, torch.ones(2))
    exit_losses(both, distill=1.0)[0].sum().backward()
    assert pupil.grad.abs().max() < 1e-6


def test_the_size_of_the_lesson_does_not_depend_on_the_temperature():
    """For a large T, T^2 KL tends to half the variance of the logits' difference over classes."""
    out = outputs(scale=0.1)
    found = exit_losses(out, distill=1.0, temperature=8.0)[:-1].detach()
    apart = torch.stack([out.logits[-1] - z for z in out.logits[:-1]]).detach()
    torch.testing.assert_close(found, apart.var(2, correction=0) / 2, rtol=0.1, atol=1e-4)


def test_distill_is_joint_where_there_is_nothing_to_teach():
    for args in ({"weight": 0.0}, {"weight": 0.0, "deepest": 0.3}):
        plain = {name: value for name, value in args.items() if name != "weight"}
        assert torch.equal(
            build_objective("distill", 4, **args)(outputs()), build_objective("joint", 4, **plain)(outputs())
        )
    assert torch.equal(build_objective("distill", 4)(outputs(1)), outputs(1).losses().mean())


def test_distill_can_lean_on_the_deepest():
    each = exit_losses(outputs(), distill=0.3, temperature=3.0).mean(1)
    found = build_objective("distill", 4, weight=0.3, temperature=3.0, deepest=0.25)(outputs())
    assert torch.isclose(found, 0.75 * each.mean() + 0.25 * each[-1])


def test_distillation_goes_with_the_recipes_targets():
    """Label smoothing and class weights change what comes from the labels, not what the teacher says."""
    out = outputs()
    weighed = ExitOutputs(
        out.logits, out.labels, out.costs, smoothing=0.1, class_weights=torch.linspace(0.5, 1.5, 5)
    )
    torch.testing.assert_close(exit_losses(weighed, distill=1.0)[:-1], exit_losses(out, distill=1.0)[:-1])
    torch.testing.assert_close(exit_losses(weighed, distill=0.0), weighed.losses())
    assert not torch.allclose(weighed.losses(), out.losses())


# --- a loss of one's own ----------------------------------------------------------------------------


def test_a_users_objective_registers_in_three_lines():
    @register_objective("first_only")
    def first_only(outputs, *, power=1.0):
        return outputs.losses()[0].pow(power).mean()

    try:
        out = outputs()
        assert torch.isclose(build_objective("first_only", 4, power=2.0)(out), out.losses()[0].pow(2).mean())
        with pytest.raises(ConfigError, match="first_only"):
            build_objective("first_only", 4, strength=2)
    finally:
        del OBJECTIVES["first_only"]


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("jiont", {}, "unknown objective 'jiont'"),
        ("joint", {"deepest": 2.0}, "deepest is 2.0; it must be from 0 to 1"),
        ("joint", {"deepest": "all"}, "deepest is 'all'"),
        ("joint", {"power": -1.0}, "'joint': power is -1.0; it must be from 0 to 8"),
        ("distill", {"power": 9}, "'distill': power is 9; it must be from 0 to 8"),
        ("distill", {"weight": 1.5}, "weight is 1.5; it must be from 0 to 1"),
        ("distill", {"weight": float("nan")}, "weight is nan"),
        ("distill", {"deepest": -0.1}, "objective 'distill': deepest is -0.1"),
        ("distill", {"temperature": 0}, "temperature is 0; it must be above 0"),
        ("depth_reg", {"lam": -1}, "lam is -1"),
        ("depth_reg", {"deepest": 0.8, "halting": 0.8}, "sum at most 1"),
        ("depth_reg", {"deepest": -0.1}, "deepest -0.1"),
        ("depth_reg", {"halting": float("nan")}, "halting nan"),
        ("depth_reg", {"lam": float("nan")}, "lam is nan"),
        ("depth_reg", {"lam": float("inf")}, "lam is inf"),
        ("depth_reg", {"lam": "dear"}, "lam is 'dear'"),
        ("depth_reg", {"distill": 2}, "objective 'depth_reg': distill is 2"),
        ("depth_reg", {"lambda_": 1}, "depth_reg"),
    ],
)
def test_impossible_choices_are_named(name, args, says):
    with pytest.raises(ConfigError, match=says):
        build_objective(name, 3, **args)  # before anything trains
