"""theory/depth_regularizer.md, checked on small finite stopping problems.

Its claim on the online rule: tests/training/test_stopping_rule.py.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from tree import Tree, stops_of

SIGNALS = Tree.random(0).histories
seeds = st.integers(0, 10_000)


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.ravel() for part in parts])


def test_no_randomised_rule_beats_backward_induction():
    tree = Tree.random(0)
    value, _ = tree.snell(0.5)
    stops = tree.split(np.random.default_rng(0).beta(0.5, 0.5, (300, SIGNALS)))
    assert (tree.objective(stops, 0.5) >= value - 1e-12).all()


def test_backward_induction_equals_the_best_of_all_stopping_rules():
    """Brute force over every pure rule at exits 1 and 2, the rest by Snell."""
    tree = Tree.random(1)
    value, gains = tree.snell(0.5)
    rules = np.array(list(itertools.product((0.0, 1.0), repeat=12)))
    last = np.broadcast_to(stops_of(gains)[-1], (len(rules), 3, 3, 3))
    best = tree.objective([rules[:, :3], rules[:, 3:].reshape(-1, 3, 3), last], 0.5).min()
    assert best == pytest.approx(value, abs=1e-12)


def test_the_tree_s_objective_is_a_sum_over_paths():
    """Against a plain loop: what every other check here relies on."""
    tree = Tree.random(4)
    s = tree.split(np.random.default_rng(0).uniform(size=SIGNALS))
    total = 0.0
    for path in itertools.product(range(3), repeat=3):
        going = 1.0
        for k in range(4):
            stop = s[k][path[: k + 1]] if k < 3 else 1.0
            cost = tree.losses[(k, *path)] + 0.4 * tree.costs[k]
            total += float(tree.weight[path] * going * stop * cost)
            going *= 1 - stop
    assert float(tree.objective(s, 0.4)) == pytest.approx(total, abs=1e-12)


def test_equation_3_is_the_gradient():
    tree = Tree.random(2)
    s = np.random.default_rng(0).uniform(0.1, 0.9, SIGNALS)
    slope = _flat(tree.gradient(tree.split(s), 0.4))
    steps = 0.05 * np.eye(SIGNALS)  # J is affine in each gate: any step gives the slope exactly
    up, down = (tree.objective(tree.split(s + sign * steps), 0.4) for sign in (1, -1))
    np.testing.assert_allclose((up - down) / 0.1, slope, atol=1e-10)


def test_a_gate_that_closed_early_starves_the_gates_behind_it():
    """Stopping at exit 1 beats going on with gates that never stop, but not going on with Snell's rule."""
    stops = [np.ones(3), np.zeros((3, 3)), np.zeros((3, 3, 3))]
    trees = map(Tree.random, range(200))
    tree = next(t for t in trees if t.objective(stops, 0.3) > t.snell(0.3)[0] + 1e-3 and _closed(t, stops))
    slopes = tree.gradient(stops, 0.3)
    assert not slopes[1].any() and not slopes[2].any()  # nothing behind gate 1 learns


def _closed(tree: Tree, stops: list[np.ndarray]) -> bool:
    """More stopping still looks better at exit 1."""
    return bool((tree.gradient(stops, 0.3)[0] < 0).all())


shifts = st.lists(st.floats(-2, 2), min_size=4, max_size=4).map(np.array)


@given(seeds, st.floats(0, 1), shifts, shifts)
def test_proposition_2_the_value_is_concave_and_lies_below_its_tangents(seed, price, one, other):
    tree = Tree.random(seed)

    def value(shift):
        return tree.shifted(shift).snell(price)[0]

    middle = value((one + other) / 2)
    assert middle >= (value(one) + value(other)) / 2 - 1e-12
    assert abs(value(one) - value(other)) <= np.abs(one - other).max() + 1e-12
    shares = tree.shares(stops_of(tree.snell(price)[1]))
    assert value(one) <= value(np.zeros(4)) + one @ shares + 1e-12


@given(seeds, st.floats(0, 1), shifts)
def test_proposition_2_the_halting_shares_are_the_gradient(seed, price, direction):
    tree = Tree.random(seed)
    value, gains = tree.snell(price)
    near = (
        min(float(np.abs(gain).min()) for gain in gains) / 10
    )  # changes no decision: gains move by 8 at most
    shares = tree.shares(stops_of(gains))
    moved = tree.shifted(near * direction).snell(price)[0]
    assert shares.sum() == pytest.approx(1)
    assert moved - value == pytest.approx(near * direction @ shares, abs=1e-12)


def test_proposition_2_at_ties_one_sided_derivatives_are_the_extreme_shares():
    """Whole numbers make ties; all rules of the tree are tried."""
    tied = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        losses = rng.integers(0, 4, (4, 2, 2, 2)).astype(float)
        tree = Tree(np.ones((2, 2, 2)), losses, np.arange(1.0, 5.0))
        rules = tree.pure_rules()
        totals = tree.objective(rules, 0.5)
        best = tree.shares([rule[totals < totals.min() + 1e-9] for rule in rules])
        tied += int(np.ptp(best, axis=0).max() > 1e-9)
        for k, unit in enumerate(np.eye(4)):
            up, down = (
                (tree.shifted(sign * 1e-5 * unit).snell(0.5)[0] - totals.min()) * sign / 1e-5
                for sign in (1, -1)
            )
            assert up == pytest.approx(best[:, k].min(), abs=1e-8)
            assert down == pytest.approx(best[:, k].max(), abs=1e-8)
    assert tied >= 2


@given(seeds)
def test_rules_that_imitate_hindsight_are_not_snell_s_rule(seed):
    tree = Tree.random(seed)
    totals, value = tree.totals(0.3), tree.snell(0.3)[0]
    best = [(totals[k - 1] <= totals[k:].min(axis=0)).astype(float) for k in range(1, tree.exits)]
    imitating = [tree.given(choice, k) for k, choice in enumerate(best, start=1)]
    assert tree.prophet(0.3) <= value <= float(tree.objective(imitating, 0.3)) + 1e-12
    assert float(tree.objective(imitating, 0.3)) > value + 1e-6  # on problems without structure


@pytest.mark.parametrize("rare", [0.5, 0.1, 0.001])
def test_the_prophet_beats_every_stopping_time_by_any_factor(rare):
    """Exit 2 loses 1 / rare on a rare path and nothing else; exit 1 sees nothing of it."""
    blind = Tree(np.array([1.0]), np.array([[1.0], [1.0]]), np.zeros(2))  # E[loss of exit 2] = 1
    knowing = Tree(np.array([1 - rare, rare]), np.array([[1.0, 1.0], [0.0, 1 / rare]]), np.zeros(2))
    assert blind.snell(0.0)[0] == pytest.approx(1.0)
    assert knowing.prophet(0.0) == pytest.approx(rare)


@given(seeds, st.floats(0, 3), st.floats(0, 3))
def test_a_higher_price_stops_earlier(seed, one, other):
    tree = Tree.random(seed)
    low, high = (tree.spent(stops_of(tree.snell(price)[1])) for price in sorted((one, other)))
    assert high[1] <= low[1] + 1e-12  # the cost falls
    assert high[0] >= low[0] - 1e-12  # the loss rises


@pytest.mark.parametrize("seed", range(4))
def test_proposition_5_the_best_for_a_budget_is_a_mixture_at_one_price(seed):
    """Against a linear program over all mixtures of all stopping rules of a tree with two signals."""
    tree = Tree.random(seed, signals=2)
    rules = tree.pure_rules()
    losses = tree.objective(rules, 0.0)
    costs = tree.objective(rules, 1.0) - losses
    for budget in np.linspace(tree.costs[0] + 0.03, 0.9, 4):
        least = linprog(
            losses, A_ub=costs[None], b_ub=[budget], A_eq=np.ones((1, len(losses))), b_eq=[1], method="highs"
        ).fun
        prices = np.linspace(0, 60, 4001)
        dual = max(tree.snell(price)[0] - price * budget for price in prices[:: 1 if seed == 0 else 8])
        assert dual <= least + 1e-9
        low, high = 0.0, 1e3
        for _ in range(80):
            price = (low + high) / 2
            dear = tree.spent(stops_of(tree.snell(price)[1]))[1] > budget
            low, high = (price, high) if dear else (low, price)
        assert tree.snell(high)[0] - high * budget == pytest.approx(least, abs=1e-7)
