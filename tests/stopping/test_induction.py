"""Backward induction against stopping problems whose best value is known.

Claims of theory/stopping_problem.md and, on the price, of theory/depth_regularizer.md.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.policies.induction import Induction, backward_induction, one_step_ahead

Floats = NDArray[np.float64]


def value_of(rules: Induction, losses: Floats, scores: Floats, costs: Floats, price: float) -> float:
    """Mean loss plus price of rules on inputs they were not fitted on."""
    n, exits = losses.shape
    taken = np.full(n, exits - 1)
    for exit in range(exits - 2, -1, -1):
        edges, decisions = rules.rules[exit][0]
        stops = np.asarray(decisions)[np.searchsorted(edges, scores[:, exit], side="right")]
        taken = np.where(stops, exit, taken)
    return float((losses[np.arange(n), taken] + price * costs[taken]).mean())


# --- problems with a known answer --------------------------------------------------------------------


def offers(random: np.random.Generator, n: int, exits: int) -> tuple[Floats, Floats]:
    """Independent losses, uniform on [0, 1], seen when they come."""
    losses = random.random((n, exits))
    return losses, 1 - losses


def best_of_offers(exits: int, price: float) -> float:
    value = 0.5 + price * (exits - 1)
    for k in range(exits - 2, -1, -1):
        edge = min(1.0, max(0.0, value - price * k))
        value = price * k * edge + edge**2 / 2 + (1 - edge) * value
    return value


DRIFT = 0.35  # of the walk, up or down; which of the two is to be told


def walks(random: np.random.Generator, n: int, exits: int) -> tuple[Floats, Floats]:
    """A Gaussian random walk with unknown sign of drift: wrong guesses, and the posterior of the guess."""
    sign = random.choice([-1.0, 1.0], n)
    place = np.cumsum(sign[:, None] * DRIFT + random.standard_normal((n, exits)), axis=1)
    return (np.sign(place) != sign[:, None]).astype(float), 1 / (1 + np.exp(-2 * DRIFT * np.abs(place)))


def best_of_walks(exits: int, price: float) -> float:
    grid, steps = np.linspace(-14, 14, 1401), np.linspace(-6, 6, 121)
    weights = np.exp(-(steps**2) / 2)
    weights /= weights.sum()
    up = 1 / (1 + np.exp(-2 * DRIFT * grid))
    wrong = np.minimum(up, 1 - up)
    value = wrong + price * (exits - 1)
    for k in range(exits - 2, -1, -1):
        onward = sum(
            w
            * (
                up * np.interp(grid + DRIFT + z, grid, value)
                + (1 - up) * np.interp(grid - DRIFT + z, grid, value)
            )
            for z, w in zip(steps, weights, strict=True)
        )
        value = np.minimum(wrong + price * k, onward)
    return float(sum(w * np.interp(DRIFT + z, grid, value) for z, w in zip(steps, weights, strict=True)))


LOSS = np.array([0.5, 0.35, 0.3, 0.05, 0.0])  # of five states, from doubtful to sure
MOVES = np.array(
    [[.5, .3, .1, .1, 0], [.1, .4, .4, .1, 0], [0, .1, .5, .3, .1], [0, 0, .1, .5, .4], [0, 0, 0, 0, 1]]
)  # fmt: skip


def chains(random: np.random.Generator, n: int, exits: int) -> tuple[Floats, Floats]:
    """A Markov chain of five states, seen; losses are drawn with the state's probability."""
    state = np.zeros(n, dtype=int)
    states = []
    for _ in range(exits):
        state = (random.random(n)[:, None] > MOVES.cumsum(1)[state]).sum(1).clip(0, 4)
        states.append(state)
    seen = np.stack(states, 1)
    return (random.random((n, exits)) < LOSS[seen]).astype(float), seen.astype(float)


def best_of_chains(exits: int, price: float) -> float:
    value = LOSS + price * (exits - 1)
    for k in range(exits - 2, -1, -1):
        value = np.minimum(LOSS + price * k, MOVES @ value)
    return float(MOVES[0] @ value)


PROBLEMS = {
    "offers": (offers, best_of_offers, 10, 0.02),
    "walks": (walks, best_of_walks, 15, 0.01),
    "chains": (chains, best_of_chains, 8, 0.02),
}


@pytest.mark.parametrize("shape", ["crossing", "isotonic"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_within_one_percent_of_the_best_value(name: str, shape: str) -> None:
    draw, best, exits, price = PROBLEMS[name]
    random, costs = np.random.default_rng(0), np.arange(exits, dtype=float)
    found = backward_induction(*draw(random, 40_000, exits), costs, price=price, shape=shape)
    fresh = value_of(found, *draw(random, 200_000, exits), costs, price)
    assert fresh == pytest.approx(best(exits, price), rel=0.01)


def test_one_step_ahead_is_best_where_the_problem_is_monotone() -> None:
    # Each exit's loss shrinks to a share of what it was: once a step does not pay, no later one does.
    random, exits, price = np.random.default_rng(1), 8, 0.05
    start = random.random(20_000)
    losses = start[:, None] * 0.6 ** np.arange(exits)
    costs = np.arange(exits, dtype=float)
    best = (losses + price * costs).min(1).mean()  # known at once, so hindsight is no advantage
    for solve in (one_step_ahead, backward_induction):
        assert solve(losses, -losses, costs, price=price).value == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("name", ["offers", "walks"])
def test_one_step_ahead_is_worse_where_it_is_not(name: str) -> None:
    draw, best, exits, price = PROBLEMS[name]
    random, costs = np.random.default_rng(0), np.arange(exits, dtype=float)
    found = one_step_ahead(*draw(random, 20_000, exits), costs, price=price)
    assert value_of(found, *draw(random, 50_000, exits), costs, price) > 1.1 * best(exits, price)


# --- laws ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 60))
@settings(max_examples=40)
def test_permuting_inputs_changes_nothing(seed: int, exits: int, n: int) -> None:
    random = np.random.default_rng(seed)
    losses, scores = random.integers(0, 2, (n, exits)), random.integers(0, 6, (n, exits)) / 5
    order = random.permutation(n)
    costs = np.arange(exits)
    one = backward_induction(losses, scores, costs, price=0.1, least=1)
    other = backward_induction(losses[order], scores[order], costs, price=0.1, least=1)
    assert one.rules == other.rules
    assert (one.taken[order] == other.taken).all()


@given(st.integers(0, 10_000), st.integers(0, 3))
@settings(max_examples=40)
def test_a_free_copy_of_an_exit_changes_no_value(seed: int, place: int) -> None:
    losses, scores = walks(np.random.default_rng(seed), 400, 4)
    costs = np.arange(4.0)
    twice = np.insert(np.arange(4), place, place)
    one = backward_induction(losses, scores, costs, price=0.03)
    other = backward_induction(losses[:, twice], scores[:, twice], costs[twice], price=0.03)
    assert other.value == pytest.approx(one.value, abs=1e-12)


@given(st.integers(0, 10_000), st.floats(0, 0.2), st.floats(0, 0.2))
@settings(max_examples=40)
def test_a_higher_price_never_stops_later_on_the_whole(seed: int, one: float, other: float) -> None:
    losses, scores = chains(np.random.default_rng(seed), 3000, 6)
    costs = np.arange(6.0)
    low, high = (backward_induction(losses, scores, costs, price=p) for p in sorted((one, other)))
    assert high.taken.mean() <= low.taken.mean() + 1e-9


@pytest.mark.parametrize("solve", [backward_induction, one_step_ahead])
def test_one_exit_one_input_ties_and_constants(solve: object) -> None:
    for losses, scores in (
        ([[1.0]], [[0.5]]),
        ([[1.0, 0.0]], [[0.3, 0.3]]),
        ([[0.0] * 3] * 5, [[0.7] * 3] * 5),
    ):
        found = solve(losses, scores, np.arange(len(losses[0])), price=0.1)  # type: ignore[operator]
        assert len(found.rules) == len(losses[0])
        assert found.taken.min() >= 1 and found.taken.max() <= len(losses[0])


@pytest.mark.parametrize(
    ("losses", "scores", "costs", "options", "says"),
    [
        ([[np.nan]], [[0.0]], [1], {}, "NaN or infinite"),
        ([[0.0]], [[np.inf]], [1], {}, "NaN or infinite"),
        ([[0.0, 0.0]], [[0.0]], [1, 2], {}, "must both be"),
        ([], [], [], {}, "must both be"),
        ([[0.0, 0.0]], [[0.0, 0.0]], [2, 1], {}, "never fall"),
        ([[0.0]], [[0.0]], [1], {"price": -1}, "price is -1"),
        ([[0.0]], [[0.0]], [1], {"shape": "cubic"}, "choose one of"),
        ([[0.0]], [[0.0]], [1], {"groups": [[-1]]}, "integers from 0"),
    ],
)
def test_bad_input(
    losses: object, scores: object, costs: object, options: dict[str, object], says: str
) -> None:
    with pytest.raises((InputError, ConfigError), match=says):
        backward_induction(losses, scores, costs, **{"price": 0.1, **options})  # type: ignore[arg-type]
