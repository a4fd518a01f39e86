"""The depth bound holds for the smallest optimal stopping time of any adapted problem, and can be met.

Claims of theory/finite_depth.md, and theory/transformers.md for heads behind a layer norm.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.limits.decay import better_decay, fit_decay
from odn_hybrid.stopping.limits.depth_bound import (
    depth_bound,
    geometric_depth,
    head_drift,
    head_lipschitz,
    mean_excess,
    possible_gains,
    power_depth,
    relative_residuals,
    separated_depth,
    summable_depth,
)

Floats = NDArray[np.float64]
seeds = st.integers(0, 10_000)


# --- exact solutions of finite problems ---------------------------------------------------------------


def averages(values: Floats, weights: Floats, cells: NDArray[np.int64]) -> Floats:
    """E[values | cells] per outcome."""
    total = np.bincount(cells, weights * values) / np.bincount(cells, weights)
    return np.asarray(total[cells])


def smallest_optimal(
    losses: Floats, costs: Floats, weights: Floats, cells: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], float]:
    """Stopping time per outcome and its value; losses (K + 1, W), cells: what is known at each depth."""
    paid = losses + np.concatenate([[0.0], np.cumsum(costs)])[:, None]
    value = averages(paid[-1], weights, cells[-1])
    taken = np.full(len(weights), len(costs))
    for k in range(len(costs) - 1, -1, -1):
        stop, onward = averages(paid[k], weights, cells[k]), averages(value, weights, cells[k])
        taken = np.where(stop <= onward, k, taken)
        value = np.minimum(stop, onward)
    return taken, float(value @ weights)


def tree_cells(branches: list[int], depth: int, labels: int) -> list[NDArray[np.int64]]:
    """What is known at each depth: binary branches at the depths named; the label, never."""
    paths = 2 ** len(branches) * labels
    known = [sum(b < k for b in branches) for k in range(depth + 1)]
    return [np.arange(paths) // (labels * 2 ** (len(branches) - n)) for n in known]


def entropies(logits: Floats, label: NDArray[np.int64]) -> Floats:
    logits = logits - logits.max(-1, keepdims=True)
    return np.asarray(
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, label[..., None], -1)[..., 0]
    )


def residual_network(
    random: np.random.Generator, units: int
) -> tuple[Floats, Floats, Floats, list[NDArray[np.int64]]]:
    """A network on a tree of inputs: losses (K + 1, W), possible gains (K,), weights, cells."""
    branches = sorted(random.choice(np.arange(units), min(4, units), replace=False).tolist())
    cells = tree_cells(branches, units, labels=2)
    paths, width, classes = len(cells[0]), 3, 3
    label = np.arange(paths) % 2
    norms = random.uniform(0.2, 3) * random.uniform(0.5, 0.98) ** np.arange(units)
    heads = random.normal(size=(1, classes, width)) + 0.02 * random.normal(size=(units + 1, classes, width))
    shifts = 0.02 * random.normal(size=(units + 1, classes))
    stage = int(random.integers(0, units))
    x = np.repeat(random.normal(size=(1, width)) * 2, paths, 0)
    states = [x]
    for k in range(units):
        wanted = heads[k][label] - heads[k].mean(0)
        pull = np.stack([averages(wanted[:, i], np.ones(paths), cells[k]) for i in range(width)], 1)
        step = pull + random.normal(size=(paths, width))[cells[k + 1]]
        step *= random.uniform(0.2, 1.0) / np.linalg.norm(step, axis=1, keepdims=True)
        x = 0.5 * x @ random.normal(size=(width, width)) if k == stage else x + norms[k] * step
        states.append(x)
    logits = np.einsum("kcw,kpw->kpc", heads, np.stack(states)) + shifts[:, None]
    losses = entropies(logits, np.broadcast_to(label, logits.shape[:2]))
    radius = [float(np.linalg.norm(x, axis=1).max()) for x in states]
    drift = [
        head_drift(heads[k + 1], shifts[k + 1], heads[k], shifts[k], radius[k + 1]) for k in range(units)
    ]
    jump = {stage: max(0.0, float((losses[stage] - losses[stage + 1]).max()))}
    slopes = [head_lipschitz(head) for head in heads[:-1]]
    gains = possible_gains(norms, slopes, drift=drift, jumps=jump)
    return losses, gains, random.dirichlet(np.ones(paths)), cells


@given(seeds, st.integers(1, 25))
@settings(max_examples=100)
def test_instances_of_networks_obey_every_bound(seed: int, units: int) -> None:
    random = np.random.default_rng(seed)
    losses, gains, weights, cells = residual_network(random, units)
    assert (losses[:-1] - losses[1:] <= gains[:, None] + 1e-9).all()
    costs = gains[random.integers(0, units)] * random.uniform(0.2, 1.5, units) + 1e-6
    taken, _ = smallest_optimal(losses, costs, weights, cells)
    assert taken.max() <= depth_bound(gains, costs)
    least = costs.min()
    assert depth_bound(gains, costs) <= summable_depth(gains.sum(), least)
    assert taken @ weights <= losses[0] @ weights / least + 1e-9
    fell = np.maximum(losses[:-1] - losses[1:], 0) @ weights
    for n, most in enumerate(mean_excess(fell, least)):
        assert np.maximum(taken - n, 0) @ weights <= most + 1e-9


@given(seeds)
@settings(max_examples=60)
def test_no_stopping_rule_of_a_small_tree_is_better(seed: int) -> None:
    """The exact solver against all stopping times of a tree of depth 2, 2 * 2 outcomes and a hidden label."""
    random = np.random.default_rng(seed)
    cells = tree_cells([0, 1], 2, labels=2)
    losses, costs = random.random((3, 8)), random.uniform(0.01, 0.3, 2)
    weights = random.dirichlet(np.ones(8))
    taken, value = smallest_optimal(losses, costs, weights, cells)
    paid = losses + np.concatenate([[0.0], np.cumsum(costs)])[:, None]
    found = []
    for first, *second in itertools.product([False, True], repeat=3):
        rule = np.where(first, 0, np.where(np.array(second)[cells[1]], 1, 2))
        found.append((paid[rule, np.arange(8)] @ weights, rule))
    assert value == pytest.approx(min(v for v, _ in found), abs=1e-12)
    assert paid[taken, np.arange(8)] @ weights == pytest.approx(value, abs=1e-12)
    assert all((taken <= rule).all() for v, rule in found if v <= value + 1e-12)


# --- settled depths -----------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@given(sizes, seeds)
def test_the_bound_is_the_first_settled_depth(gains: list[int], seed: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 20, len(gains))

    def settled(n: int) -> bool:
        return all(sum(gains[n:m]) <= costs[n:m].sum() for m in range(n + 1, len(gains) + 1))

    assert depth_bound(gains, costs) == next(n for n in range(len(gains) + 1) if settled(n))


@given(sizes, st.integers(1, 20))
def test_the_problem_that_gains_all_it_can_meets_the_bound(gains: list[int], cost: int) -> None:
    losses = np.cumsum([0, *reversed(gains)])[::-1]
    paid = losses + cost * np.arange(len(losses))
    assert depth_bound(gains, cost) == paid.argmin()  # whole numbers: no rounding
    assert depth_bound(gains, cost) <= summable_depth(sum(gains), cost)
    assert summable_depth(sum(gains), cost) * cost < max(sum(gains), 1)


@given(st.floats(1e-3, 1e6), st.floats(0.02, 0.98), st.floats(0.3, 3.0), st.floats(1e-3, 10))
def test_closed_forms_are_the_bound_of_their_gains(
    first: float, rate: float, power: float, cost: float
) -> None:
    bound = geometric_depth(first, rate, cost)
    k = np.arange(bound + 5.0)
    gains = first * rate**k
    assert abs(depth_bound(gains, cost) - bound) <= (np.abs(gains / cost - 1) < 1e-9).any()
    assert bound <= max(0.0, math.ceil(math.log(first / cost) / -math.log(rate) + 1e-9))
    if first / cost < 50:
        bound = power_depth(first, power, cost)
        gains = first * np.arange(1, bound + 6.0) ** -power
        assert abs(depth_bound(gains, cost) - bound) <= (np.abs(gains / cost - 1) < 1e-9).any()


@given(seeds)
@settings(max_examples=50)
def test_heads_and_stages_add(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, rate, cost = random.uniform(0.1, 100), random.uniform(0.5, 0.95), random.uniform(0.1, 2)
    extra = np.zeros(300)
    extra[random.choice(100, 4, replace=False)] = random.uniform(0, 10, 4)
    gains = first * rate ** np.arange(300.0) + extra
    closed = separated_depth(lambda c: geometric_depth(first, rate, c), float(extra.sum()), cost)
    assert depth_bound(gains, cost) <= closed
    alone = separated_depth(lambda c: geometric_depth(first, rate, c), 0.0, cost)
    assert alone == geometric_depth(first, rate, cost)
    one = separated_depth(lambda c: geometric_depth(first, rate, c), 7.0, cost, shares=[0.5])
    assert one == geometric_depth(first, rate, cost / 2) + math.floor(14.0 / cost)


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("scale", [4.0, 37.0, 1000.0])
def test_tight_families(rate: float, scale: float) -> None:
    bound = geometric_depth(scale, rate, 1.0)
    ahead = scale * rate ** np.arange(bound + 300) / (1 - rate)
    line = (ahead + np.arange(len(ahead))).argmin()
    curve = (np.logaddexp(0, ahead) + np.arange(len(ahead))).argmin()
    assert line == bound
    assert curve <= bound <= 2 * curve


def test_where_anything_may_happen_at_a_unit_the_bound_lies_behind_it() -> None:
    assert depth_bound([0.1, math.inf, 0.1], 1.0) == 2
    assert depth_bound([0.1, math.inf, 3.0, 0.1], 1.0) == 3
    assert depth_bound([0.1, math.inf], 1.0) == 2


# --- constants ----------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 6), st.integers(1, 5))
@settings(max_examples=100)
def test_cross_entropy_never_beats_its_constants(seed: int, classes: int, width: int) -> None:
    random = np.random.default_rng(seed)
    w, v = random.normal(size=(2, classes, width)) * random.uniform(0.1, 5)
    b, a = random.normal(size=(2, classes))
    x, y = random.normal(size=(2, 50, width)) * random.uniform(0.1, 5)
    label = random.integers(0, classes, 50)
    moved = np.abs(entropies(x @ w.T + b, label) - entropies(y @ w.T + b, label))
    assert (moved <= head_lipschitz(w) * np.linalg.norm(x - y, axis=1) + 1e-9).all()
    drift = np.abs(entropies(x @ w.T + b, label) - entropies(x @ v.T + a, label))
    assert (drift <= head_drift(w, b, v, a, float(np.linalg.norm(x, axis=1).max())) + 1e-9).all()


@given(seeds, st.integers(2, 8))
@settings(max_examples=100)
def test_a_layer_norm_moves_by_at_most_the_relative_residual(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    states = np.cumsum(random.normal(size=(6, 20, width)) * random.uniform(0.01, 10, (6, 20, 1)), 0)
    eps = float(random.choice([0.0, 1e-6, 0.1]))
    scale = random.normal(size=width)
    centred = states - states.mean(-1, keepdims=True)
    normed = scale * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    moved = np.linalg.norm(np.diff(normed, axis=0), axis=-1)
    most = relative_residuals(states, eps=eps)
    assert most.shape == (5, 20)
    assert (moved <= math.sqrt(width) * np.abs(scale).max() * most + 1e-9).all()
    head = random.normal(size=(3, width))
    label = random.integers(0, 3, 20)
    losses = np.stack([entropies(z @ head.T, label) for z in normed])
    assert (np.abs(np.diff(losses, axis=0)) <= head_lipschitz(head, scale) * most + 1e-9).all()


def test_a_residual_along_the_state_or_its_mean_turns_nothing() -> None:
    x = np.array([[1.0, -1.0, 0.0]])
    assert relative_residuals(np.stack([x, x + 5]), eps=0.0) == pytest.approx(0.0)  # a shift of all channels
    turned = relative_residuals(np.stack([x, -x]), eps=0.0)
    assert turned == pytest.approx(2.0)  # the most there is


@given(seeds)
@settings(max_examples=30)
def test_pooled_exits_gain_by_what_they_see(seed: int) -> None:
    """Norm then average moves by the mean of the tokens' turns; average then norm by the average's own."""
    random = np.random.default_rng(seed)
    width, tokens = 6, 5
    states = np.cumsum(random.normal(size=(4, 10, tokens, width)) * random.uniform(0.1, 3, (4, 1, 1, 1)), 0)

    def normed(x: Floats) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6))

    head, label = random.normal(size=(3, width)), random.integers(0, 3, 10)
    most = head_lipschitz(head, np.ones(width))
    for seen, turned in (
        (normed(states).mean(2), relative_residuals(states).mean(2)),
        (normed(states.mean(2)), relative_residuals(states.mean(2))),
        (normed(states[:, :, 0]), relative_residuals(states[:, :, 0])),
    ):
        losses = np.stack([entropies(z @ head.T, label) for z in seen])
        assert (losses[:-1] - losses[1:] <= most * turned + 1e-9).all()


@given(seeds, st.floats(0.3, 1.0))
@settings(max_examples=50)
def test_a_stream_that_grows_bounds_the_depth(seed: int, growth: float) -> None:
    """A stream of length m (k + 1)^g that turns as fast as residuals of norm F let it."""
    random, units, width = np.random.default_rng(seed), 400, 3
    m, cost = random.uniform(0.5, 2), random.uniform(0.02, 0.5)
    most = m * random.uniform(1.0, 6.0)
    length = m * np.arange(1, units + 2.0) ** growth
    cosine = (length[1:] ** 2 + length[:-1] ** 2 - most**2) / (2 * length[1:] * length[:-1])
    angle = np.minimum(np.concatenate([[0.0], np.cumsum(np.arccos(np.clip(cosine, -1, 1)))]), np.pi)
    plane = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / np.sqrt([[2.0], [6.0]])
    direction = np.stack([-np.cos(angle), np.sin(angle)], 1) @ plane
    states = length[:, None] * direction + random.normal(size=(units + 1, 1))  # a shift of all channels
    head = np.stack([plane[0], -plane[0]]) * random.uniform(0.3, 3)
    losses = entropies(math.sqrt(width) * direction @ head.T, np.zeros(units + 1, dtype=np.int64))
    slope = head_lipschitz(head, np.ones(width))
    gains = slope * relative_residuals(states, eps=0.0)
    assert (losses[:-1] - losses[1:] <= gains + 1e-9).all()
    best = (losses + cost * np.arange(units + 1)).argmin()
    assert best <= depth_bound(gains, cost) <= power_depth(slope * most / m, growth, cost)


@given(seeds)
@settings(max_examples=30)
def test_branches_that_do_not_fade_turn_the_stream_without_end(seed: int) -> None:
    random, units, width = np.random.default_rng(seed), 200, 5
    wrote = random.normal(size=(units, width))
    wrote -= wrote.mean(1, keepdims=True)
    wrote *= random.uniform(1, 2, (units, 1)) / np.linalg.norm(wrote, axis=1, keepdims=True)
    states = np.concatenate([random.normal(size=(1, width)), wrote]).cumsum(0)
    start = math.sqrt(((states[0] - states[0].mean()) ** 2).sum())
    least = 1 / (start + 2 * np.arange(1, units + 1))
    assert (relative_residuals(states, eps=0.0) >= least - 1e-12).all()


# --- where it fails -----------------------------------------------------------------------------------


def resolving(hazard: Floats, costs: Floats) -> tuple[int, float]:
    """Deepest and mean stop of inputs with loss 1 that unit k resolves, to loss 0, with chance hazard[k]."""
    value, goes = 1.0, np.zeros(len(hazard) + 1, dtype=bool)
    for k in range(len(hazard) - 1, -1, -1):
        onward = costs[k] + (1 - hazard[k]) * value
        goes[k], value = onward < 1, min(1.0, onward)
    deepest = int(np.argmin(goes))
    alive = np.cumprod(np.concatenate([[1.0], 1 - hazard]))[:deepest]
    return deepest, float(alive.sum())


@pytest.mark.parametrize("horizon", [1, 10, 100])
def test_decay_in_the_mean_leaves_no_bound(horizon: int) -> None:
    chance, cost = 0.2, 0.07
    deepest, mean = resolving(np.full(horizon, chance), np.full(horizon, cost))
    assert deepest == horizon == depth_bound(np.ones(horizon), cost)  # some go all the way
    assert mean == pytest.approx((1 - (1 - chance) ** horizon) / chance)
    assert mean < 1 / cost
    left = mean_excess(chance * (1 - chance) ** np.arange(horizon), cost)
    tails = [mean - (1 - (1 - chance) ** n) / chance for n in range(horizon)]
    assert (np.array(tails) <= left + 1e-12).all()


def test_where_cost_vanishes_depth_has_no_end() -> None:
    for horizon in (5, 20, 45):
        costs = 0.5 ** np.arange(horizon)
        losses = 2 * costs.sum() - 2 * np.concatenate([[0.0], np.cumsum(costs)])
        paid = losses + np.concatenate([[0.0], np.cumsum(costs)])
        assert paid.argmin() == horizon == depth_bound(2 * costs, costs)
    means = []
    for horizon in (64, 128, 256, 512):
        k = np.arange(horizon)
        deepest, mean = resolving(1 / (k + 2), 0.5 ** (k + 2.0))
        assert deepest == horizon
        means.append(mean)
    assert np.diff(means) == pytest.approx(math.log(2), abs=0.01)  # a logarithm: no limit


@pytest.mark.parametrize("depth", [1, 7, 40])
def test_the_zero_one_loss_may_want_any_depth(depth: int) -> None:
    steps, cost = 0.3 ** np.arange(45.0), 0.02
    ahead = np.concatenate([np.cumsum(steps[:depth][::-1])[::-1], [0.0], -np.cumsum(steps[depth:])])
    wrong = 0.5 * steps[depth - 1] - ahead < 0
    assert (wrong + cost * np.arange(46)).argmin() == depth
    assert geometric_depth(1.0, 0.3, cost) < 5  # had the loss the Lipschitz constant 1


# --- decay --------------------------------------------------------------------------------------------


def test_a_decay_is_found_again_with_its_kind() -> None:
    k = np.arange(12.0)
    noise = np.exp(0.05 * np.random.default_rng(0).normal(size=12))
    geometric, power = 3 * 0.8**k * noise, 3 * (k + 1) ** -1.5 * noise
    for sizes, kind, rate in ((geometric, "geometric", 0.8), (power, "power", 1.5)):
        found = better_decay(sizes)
        assert found.kind == kind
        assert found.low < rate < found.high
        assert found.scale == pytest.approx(3, rel=0.1)
        assert found.falls is True and found.summable is True
        assert found.at(k) == pytest.approx(sizes, rel=0.2)
    assert fit_decay(geometric).depth(10.0, 0.1) == geometric_depth(
        10 * fit_decay(geometric).scale, fit_decay(geometric).rate, 0.1
    )


def test_an_interval_covers_as_often_as_it_says() -> None:
    random, k, hits = np.random.default_rng(1), np.arange(10.0), 0
    for _ in range(400):
        found = fit_decay(2 * 0.9**k * np.exp(0.3 * random.normal(size=10)), confidence=0.9)
        hits += found.low < 0.9 < found.high
    assert hits == pytest.approx(360, abs=25)  # four standard errors


def test_what_does_not_fall_is_not_said_to() -> None:
    k = np.arange(8.0)
    assert fit_decay(1.1**k).falls is False
    assert fit_decay(1.1**k).depth(1.0, 0.1) is None
    assert fit_decay((k + 1) ** -0.5, kind="power").summable is False
    assert fit_decay((k + 1) ** -0.5, kind="power").falls is True
    jagged = np.tile([1.0, 3.0], 4)
    assert fit_decay(jagged).falls is None


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: depth_bound([], 1.0), InputError, "one number per unit"),
        (lambda: depth_bound([math.nan], 1.0), InputError, "must be numbers"),
        (lambda: depth_bound([1.0], -1.0), InputError, "0 or more"),
        (lambda: depth_bound([1.0, 2.0], [1.0]), InputError, "expected one number or 2"),
        (lambda: geometric_depth(1.0, 1.0, 0.1), ConfigError, "without decay there is no bound"),
        (lambda: geometric_depth(1.0, 0.5, 0.0), ConfigError, "cost is 0"),
        (lambda: geometric_depth(math.inf, 0.5, 1.0), InputError, "finite"),
        (lambda: power_depth(1.0, 0.0, 0.1), ConfigError, "exponent is 0"),
        (lambda: power_depth(1e9, 0.1, 0.1), ConfigError, "too many to be of use"),
        (lambda: summable_depth(-1.0, 1.0), InputError, "0 or more"),
        (lambda: separated_depth(lambda c: 0, 1.0, 1.0, shares=[1.0]), ConfigError, "between 0 and 1"),
        (lambda: mean_excess([-1.0], 1.0), InputError, "0 or more"),
        (lambda: possible_gains([1.0], -1.0), InputError, "0 or more"),
        (lambda: possible_gains([1.0], 1.0, jumps={3: 1.0}), InputError, "unit 3"),
        (lambda: head_lipschitz([1.0, 2.0]), InputError, "classes, channels"),
        (lambda: head_drift([[1.0]], [0.0], [[1.0], [2.0]], [0.0], 1.0), InputError, "expected the same"),
        (lambda: head_drift([[1.0]], [0.0], [[1.0]], [0.0], -1.0), InputError, "radius is -1"),
        (lambda: relative_residuals([[1.0, 2.0]]), InputError, "depths of 2 or more"),
        (lambda: relative_residuals(np.ones((2, 3)), eps=-1.0), InputError, "eps is -1"),
        (lambda: fit_decay([1.0, 2.0, 3.0]), InputError, "4 or more"),
        (lambda: fit_decay([1.0, 2.0, 0.0, 1.0]), InputError, "above 0"),
        (lambda: fit_decay([1.0] * 4, [0, 0, 0, 0]), InputError, "not all equal"),
        (lambda: fit_decay([1.0] * 4, kind="cubic"), ConfigError, "choose one of"),
    ],
)
def test_bad_input(call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()  # type: ignore[operator]
