"""theory/depth_regularizer.md, checked on a small finite stopping problem with tabular gates."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

SIGNALS = 3  # what an exit may see: one of three values; a history is the sequence of them
EXITS = 4
COSTS = np.array([0.2, 0.5, 0.7, 1.0])


class Problem:
    """A random process of signals and losses: P(history) and E[L_k | history up to k], all tabulated."""

    def __init__(self, seed: int, price: float) -> None:
        rng = np.random.default_rng(seed)
        shape = (SIGNALS,) * (EXITS - 1)
        self.weight = rng.dirichlet(np.ones(SIGNALS ** (EXITS - 1))).reshape(shape)
        losses = rng.gamma(1.0, 1.0, size=(EXITS, *shape)) + price * COSTS.reshape(-1, *[1] * len(shape))
        self.losses = losses  # E[L_k | full history]; exits before the last may not look at all of it

    def given(self, values: np.ndarray, k: int) -> np.ndarray:
        """E[values | first k signals], of shape (SIGNALS,) * k."""
        rest = tuple(range(k, EXITS - 1))
        return (self.weight * values).sum(axis=rest) / self.weight.sum(axis=rest)

    def snell(self, floor: float = 0.0) -> tuple[float, list[np.ndarray]]:
        """Backward induction: the value, and for exits 1..m-1 the advantage of going on over stopping.

        With a floor, signals can only be `floor` (go on) or `1 - floor` (stop).
        """
        value = self.losses[-1]
        gains = []
        for k in range(EXITS - 1, 0, -1):
            going, stopping = self.given(value, k), self.given(self.losses[k - 1], k)
            gains.insert(0, stopping - going)
            best, other = np.minimum(stopping, going), np.maximum(stopping, going)
            value = _spread((1 - floor) * best + floor * other)
        return float((self.weight * value).sum()), gains

    def objective(self, stops: list[np.ndarray]) -> float:
        """J(s) of equation (2)."""
        reach, total = np.ones_like(self.weight), 0.0
        for k, stop in enumerate(stops):
            total += float((self.weight * reach * _spread(stop) * self.losses[k]).sum())
            reach = reach * (1 - _spread(stop))
        return total + float((self.weight * reach * self.losses[-1]).sum())

    def gradient(self, stops: list[np.ndarray]) -> list[np.ndarray]:
        """Equation (3): P(history) times the chance of getting there times (stop - go on)."""
        after, slopes = self.losses[-1], []
        for k in range(EXITS - 1, 0, -1):
            going, stopping = self.given(after, k), self.given(self.losses[k - 1], k)
            reach = np.ones(())
            for earlier in stops[: k - 1]:
                reach = reach[..., None] * (1 - earlier) if reach.ndim else 1 - earlier
            reach = np.ones(()) if k == 1 else reach[..., None]
            mass = self.weight.sum(axis=tuple(range(k, EXITS - 1)))
            slopes.insert(0, mass * reach * (stopping - going))
            after = _spread(stops[k - 1] * stopping + (1 - stops[k - 1]) * going)
        return slopes


def _spread(values: np.ndarray) -> np.ndarray:
    """A function of the first k signals as a function of the full history."""
    return np.broadcast_to(
        values.reshape(values.shape + (1,) * (EXITS - 1 - values.ndim)), (SIGNALS,) * (EXITS - 1)
    )


def _split(flat: np.ndarray) -> list[np.ndarray]:
    sizes = [SIGNALS**k for k in range(1, EXITS)]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [part.reshape((SIGNALS,) * k) for k, part in enumerate(parts, start=1)]


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.ravel() for part in parts])


GATES = sum(SIGNALS**k for k in range(1, EXITS))


def _minimise(problem: Problem, start: np.ndarray, floor: float) -> tuple[float, list[np.ndarray]]:
    """Descent on tabular gates kept within [floor, 1 - floor]."""

    def loss(s: np.ndarray) -> tuple[float, np.ndarray]:
        return problem.objective(_split(s)), _flat(problem.gradient(_split(s)))

    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(floor, 1 - floor)] * GATES,
        options={"maxiter": 5000, "maxfun": 20_000, "ftol": 0, "gtol": 1e-12},
    )  # fmt: skip
    return float(found.fun), _split(found.x)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("price", [0.0, 0.3, 1.0])
def test_propositions_1_and_2_trained_gates_find_the_backward_induction(seed, price):
    problem, floor = Problem(seed, price), 0.02
    starts = np.random.default_rng(seed)
    value, gains = problem.snell(floor)
    for start in (np.full(GATES, 0.2), starts.uniform(0.1, 0.9, GATES)):
        reached, stops = _minimise(problem, start, floor)
        assert reached == pytest.approx(value, abs=1e-8)
        for stop, gain in zip(stops, gains, strict=True):
            np.testing.assert_array_equal(stop > 0.5, gain < 0)
    exact = problem.snell()[0]
    assert exact - 1e-12 <= value <= exact + 2 * EXITS * floor * problem.losses.max()


def test_without_a_floor_a_gate_that_closed_early_starves_the_gates_behind_it():
    """Stopping at exit 1 beats going on with gates that never stop, but not going on with Snell's rule."""
    problem = next(p for p in (Problem(seed, 0.3) for seed in range(200)) if _trapped(p) is not None)
    stops = _trapped(problem)
    assert stops is not None
    slopes = problem.gradient(stops)
    assert (slopes[0] < 0).all()  # more stopping still looks better at exit 1 ...
    assert not slopes[1].any()  # ... and nothing behind it learns
    assert not slopes[2].any()
    assert problem.objective(stops) > problem.snell()[0] + 1e-3


def _trapped(problem: Problem) -> list[np.ndarray] | None:
    stops = [np.ones((SIGNALS,) * k) if k == 1 else np.zeros((SIGNALS,) * k) for k in range(1, EXITS)]
    closed = bool((problem.gradient(stops)[0] < 0).all())
    return stops if closed and problem.objective(stops) > problem.snell()[0] + 1e-3 else None


def test_no_randomised_rule_beats_backward_induction():
    problem = Problem(0, 0.5)
    value, _ = problem.snell()
    rng = np.random.default_rng(0)
    for _ in range(300):
        assert problem.objective(_split(rng.beta(0.5, 0.5, GATES))) >= value - 1e-12


def test_backward_induction_equals_the_best_of_all_stopping_rules():
    """Brute force over every pure rule at exits 1 and 2, the rest by Snell."""
    problem = Problem(1, 0.5)
    value, gains = problem.snell()
    last = (gains[-1] < 0).astype(float)
    best = min(
        problem.objective([np.array(rule[:3], float), np.array(rule[3:], float).reshape(3, 3), last])
        for rule in itertools.product((0, 1), repeat=12)
    )
    assert best == pytest.approx(value, abs=1e-12)


def test_equation_3_is_the_gradient():
    problem = Problem(2, 0.4)
    s = np.random.default_rng(0).uniform(0.1, 0.9, GATES)
    slope = _flat(problem.gradient(_split(s)))
    for i in range(GATES):
        step = np.zeros(GATES)
        step[i] = 0.05  # J is affine in each gate: any step gives the slope exactly
        difference = (problem.objective(_split(s + step)) - problem.objective(_split(s - step))) / 0.1
        assert difference == pytest.approx(slope[i], abs=1e-10)


def test_a_higher_price_stops_earlier():
    cost = []
    for price in (0.0, 0.2, 1.0, 5.0):
        problem = Problem(3, price)
        _, gains = problem.snell()
        stops = [(gain < 0).astype(float) for gain in gains]
        base = Problem(3, 0.0)
        cost.append(problem.objective(stops) - base.objective(stops))
        cost[-1] = cost[-1] / price if price else np.inf
    assert cost == sorted(cost, reverse=True)
    assert cost[-1] >= COSTS[0]


@pytest.mark.parametrize("rare", [0.5, 0.1, 0.001])
def test_the_prophet_beats_every_stopping_time_by_any_factor(rare):
    stopping = min(1.0, rare * (1 / rare) + (1 - rare) * 0.0)
    prophet = rare * min(1.0, 1 / rare) + (1 - rare) * 0.0
    assert stopping == pytest.approx(1.0)
    assert prophet == pytest.approx(rare)
