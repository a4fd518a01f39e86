"""Boosted trees as a reference: near the best value where it is known, honest about themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping import (
    Calibration,
    TreeInduction,
    backward_induction,
    exit_features,
    tree_induction,
)
from odn_hybrid.stopping.policies import trees
from odn_hybrid.stopping.policies.trees import FEATURES

Floats = NDArray[np.float64]
COSTS = np.arange(6.0)


# --- problems with a known answer ---------------------------------------------------------------------

LOSS = np.array([0.5, 0.35, 0.3, 0.05, 0.0])  # of five states, from doubtful to sure
MOVES = np.array(
    [[.5, .3, .1, .1, 0], [.1, .4, .4, .1, 0], [0, .1, .5, .3, .1], [0, 0, .1, .5, .4], [0, 0, 0, 0, 1]]
)  # fmt: skip


def chains(random: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """A Markov chain of five states over 6 exits: probability of being wrong, and the state, (n, 6, 1)."""
    state, states = np.zeros(n, dtype=int), []
    for _ in COSTS:
        state = (random.random(n)[:, None] > MOVES.cumsum(1)[state]).sum(1).clip(0, 4)
        states.append(state)
    seen = np.stack(states, 1)
    return LOSS[seen], seen[..., None].astype(float)


def best_of_chains(price: float) -> float:
    value = LOSS + price * 5
    for k in range(4, -1, -1):
        value = np.minimum(LOSS + price * k, MOVES @ value)
    return float(MOVES[0] @ value)


LIFT = np.array([-0.5, 0.0, 0.4, 0.8, 1.1, 1.3])  # of the chance of being right, in deviations, by exit
LEFT = 1 / (1 + np.arange(7))  # variance of an input's ease, standard normal, after so many noisy looks


def looks(random: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Each exit has a look at the input's ease, with noise of deviation 1; what is known is their mean."""
    seen = random.standard_normal((n, 1)) + random.standard_normal((n, 6))
    return wrong_given(np.cumsum(seen, axis=1) * LEFT[1:]), seen[..., None]


def wrong_given(mean: Floats) -> Floats:
    return np.asarray(ndtr(-(LIFT + mean) / np.sqrt(1 + LEFT[1:])))


def best_of_looks(price: float) -> float:
    grid, steps = np.linspace(-7, 7, 1401), np.linspace(-6, 6, 121)
    weights = np.exp(-(steps**2) / 2)
    weights /= weights.sum()
    stop = wrong_given(grid[:, None]) + price * COSTS
    value = stop[:, 5]
    for k in range(4, -1, -1):  # the mean moves as far as its uncertainty shrinks
        moved = grid + np.sqrt(LEFT[k + 1] - LEFT[k + 2]) * steps[:, None]
        value = np.minimum(stop[:, k], weights @ np.interp(moved, grid, value))
    return float(weights @ np.interp(np.sqrt(1 - LEFT[1]) * steps, grid, value))


FATES = np.array([[0.5, 0.5, 0.05, 0.05, 0.05, 0.05], [0.5, 0.5, 0.5, 0.5, 0.5, 0.05], [0.5] * 6])


def told_once(random: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """The first exit tells when, if ever, the input will be right; the others see noise."""
    fate, seen = random.integers(0, 3, n), random.random((n, 6, 1))
    seen[:, 0, 0] = fate
    return FATES[fate], seen


def best_of_told_once(price: float) -> float:
    return float((FATES + price * COSTS).min(axis=1).mean())


PROBLEMS = {
    "chains": (chains, best_of_chains, 0.02),
    "looks": (looks, best_of_looks, 0.06),
    "told once": (told_once, best_of_told_once, 0.05),
}


def value_of(taken: NDArray[np.int64], wrong: Floats, price: float) -> float:
    """Expected loss plus price, exactly for these inputs' probabilities of being wrong."""
    return float((wrong[np.arange(len(taken)), taken - 1] + price * COSTS[taken - 1]).mean())


@pytest.fixture(scope="module", params=PROBLEMS)
def solved(request: pytest.FixtureRequest) -> tuple[str, TreeInduction, Floats, Floats]:
    """A problem, what the trees make of 6000 inputs of right and wrong answers, and those inputs."""
    draw, _, price = PROBLEMS[request.param]
    random = np.random.default_rng(0)
    wrong, features = draw(random, 6000)
    losses = (random.random(wrong.shape) < wrong).astype(float)
    return request.param, tree_induction(losses, features, COSTS, price=price, folds=3), wrong, features


def test_within_three_percent_of_the_best_value(solved: tuple[str, TreeInduction, Floats, Floats]) -> None:
    name, found, *_ = solved
    draw, best, price = PROBLEMS[name]
    wrong, features = draw(np.random.default_rng(1), 12_000)
    fresh = value_of(found.decide(features), wrong, price)
    assert 0.98 * best(price) < fresh < 1.03 * best(price)


def test_its_own_value_is_honest(solved: tuple[str, TreeInduction, Floats, Floats]) -> None:
    """Not below the best there is, and what its decisions are expected to lose, up to sampling noise."""
    name, found, wrong, _ = solved
    _, best, price = PROBLEMS[name]
    assert found.value > best(price) - 3 * found.deviation
    assert found.value == pytest.approx(value_of(found.taken, wrong, price), abs=3 * found.deviation)
    assert found.deviation < 0.05 * best(price)


def test_trees_use_what_earlier_exits_saw() -> None:
    """Where only the first exit was told, a table of each exit's own score is far from the best."""
    random, price = np.random.default_rng(2), 0.05
    wrong, features = told_once(random, 2000)
    losses = (random.random(wrong.shape) < wrong).astype(float)
    table = backward_induction(losses, features[..., 0], COSTS, price=price)
    found = tree_induction(losses, features, COSTS, price=price, folds=2)
    halfway = (best_of_told_once(price) + value_of(table.taken, wrong, price)) / 2
    assert value_of(found.taken, wrong, price) < halfway < 1.1 * best_of_told_once(price)


# --- honesty ------------------------------------------------------------------------------------------


def test_noise_is_not_taken_for_knowledge() -> None:
    """Nothing can be learnt: on average its value is the fixed exit's, where deciding again is far below."""
    losses_of, again = [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        losses, features = random.integers(0, 2, (300, 4)).astype(float), random.random((300, 4, 3))
        with quick():
            found = tree_induction(losses, features, np.zeros(4), price=0.0, folds=2)
        losses_of.append(found.value)
        again.append(losses[np.arange(300), found.decide(features) - 1].mean())
    noise = 0.5 / np.sqrt(10 * 300)
    assert np.mean(losses_of) == pytest.approx(0.5, abs=3.5 * noise)
    assert np.mean(again) < 0.5 - 5 * noise


# --- laws ---------------------------------------------------------------------------------------------


def quick() -> AbstractContextManager[object]:
    """What holds for any number of rounds is tried with few."""
    return mock.patch.object(trees, "ROUNDS", 10)


def small(seed: int, n: int = 60, exits: int = 3) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    features = random.integers(0, 4, (n, exits, 2)) / 3
    return (random.random((n, exits)) > features.mean(axis=2)).astype(float), features


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_permuting_inputs_changes_nothing(seed: int) -> None:
    losses, features = small(seed)
    order = np.random.default_rng(seed).permutation(60)
    with quick():
        one = tree_induction(losses, features, np.arange(3), price=0.05, folds=2)
        other = tree_induction(losses[order], features[order], np.arange(3), price=0.05, folds=2)
    assert other.value == pytest.approx(one.value, abs=1e-12)
    assert (one.decide(features) == other.decide(features)).all()
    ties = np.unique(np.concatenate([features.reshape(60, -1), losses], axis=1), axis=0)
    if len(ties) == 60:  # equal inputs may swap folds
        assert (one.taken[order] == other.taken).all()


@given(st.integers(0, 10_000), st.integers(0, 2))
@settings(max_examples=10)
def test_decisions_look_at_no_later_exit(seed: int, exit: int) -> None:
    losses, features = small(seed)
    with quick():
        found = tree_induction(losses, features, np.arange(3), price=0.1, folds=2)
    other = features.copy()
    other[:, exit + 1 :] = 1 - other[:, exit + 1 :]
    one, two = found.decide(features), found.decide(other)
    assert (one[one <= exit + 1] == two[one <= exit + 1]).all()
    assert (two[one > exit + 1] > exit + 1).all()


def test_the_same_seed_gives_the_same_trees_and_another_other_folds() -> None:
    losses, features = small(0, 400)
    one, two, three = (
        tree_induction(losses, features, np.arange(3), price=0.05, folds=2, seed=seed) for seed in (0, 0, 1)
    )
    assert one.value == two.value and (one.taken == two.taken).all()
    assert (one.taken != three.taken).any()


def test_prices_lead_from_late_to_early() -> None:
    losses, features = small(1, 800, 4)
    depth = [
        tree_induction(losses, features, np.arange(4), price=price, folds=2).taken.mean()
        for price in (0.0, 0.05, 2.0)
    ]
    assert depth[0] > depth[1] > depth[2] == 1


# --- features -----------------------------------------------------------------------------------------


def test_features_of_exits() -> None:
    logits = np.log([[[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]], [[1 / 3, 1 / 3, 1 / 3]] * 3])
    table = exit_features(logits, Calibration.of_temperatures(np.ones(3)))
    assert table.shape == (2, 3, len(FEATURES))
    found = {name: table[..., place] for place, name in enumerate(FEATURES)}
    np.testing.assert_allclose(found["confidence"], [[0.7, 0.7, 0.8], [1 / 3] * 3])
    np.testing.assert_allclose(found["margin"], [[0.5, 0.5, 0.7], [0.0] * 3], atol=1e-12)
    np.testing.assert_allclose(found["entropy"][1], 0, atol=1e-12)
    assert found["agreement"].tolist() == [[0, 0, 1], [0, 1, 1]]
    assert found["streak"].tolist() == [[1, 1, 2], [1, 2, 3]]


def test_answers_are_the_raw_logits_also_with_vector_scaling() -> None:
    logits = np.log([[[0.6, 0.4], [0.6, 0.4]]])
    flipping = Calibration("vector", np.ones((2, 2)), np.array([[0.0, 3.0], [0.0, 0.0]]))
    table = exit_features(logits, flipping)
    assert table[0, 0, 0] < 0.5 and table[0, 1, 0] == pytest.approx(0.6)
    assert table[0, 1, FEATURES.index("agreement")] == 1


# --- odd and bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [15, 16, 40])
def test_few_inputs_constants_and_one_exit(n: int) -> None:
    for exits in (1, 3):
        zeros, ones = np.zeros((n, exits)), np.ones((n, exits, 2))
        free = tree_induction(zeros, ones, np.zeros(exits), price=1.0)
        assert free.value == 0 and (free.taken == 1).all()  # what costs nothing either way stops
        assert (free.decide(ones) == 1).all()
        falling = zeros + np.linspace(1, 0, exits)
        found = tree_induction(falling, ones, np.arange(exits), price=0.01)
        assert (found.taken == exits).all() and found.value == pytest.approx(
            falling[0, -1] + 0.01 * (exits - 1)
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"losses": np.full((20, 2), np.nan)}, "losses are NaN or infinite"),
        ({"features": np.full((20, 2, 1), np.inf)}, "features are NaN or infinite"),
        ({"features": np.zeros((20, 2))}, "expected .inputs, exits, features."),
        ({"features": np.zeros((20, 2, 0))}, "not empty"),
        ({"features": [["a"]]}, "not an array of numbers"),
        ({"losses": np.zeros((20, 3))}, "losses have shape"),
        ({"costs": [2, 1]}, "never fall"),
        ({"price": -1.0}, "price is -1"),
        ({"folds": 1}, "folds is 1"),
        ({"folds": 11}, "give at least 33"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_input(change: dict[str, object], says: str) -> None:
    given = {"losses": np.zeros((20, 2)), "features": np.zeros((20, 2, 1)), "costs": [0, 1], "price": 0.1}
    with pytest.raises((InputError, ConfigError), match=says):
        tree_induction(**{**given, **change})  # type: ignore[arg-type]


def test_features_of_another_network_are_refused() -> None:
    found = tree_induction(np.zeros((20, 2)), np.zeros((20, 2, 1)), [0, 1], price=0.1)
    with pytest.raises(InputError, match="as the trees were grown on"):
        found.decide(np.zeros((5, 3, 1)))
