"""The solver of continuous depth against closed forms, trees and laws; theory/continuous_depth.md."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.limits.continuous import StoppingProblem, StoppingSolution, solve_stopping
from odn_hybrid.stopping.limits.diffusion import estimate_diffusion
from odn_hybrid.stopping.limits.generator import generator_matrix
from odn_hybrid.stopping.limits.obstacle import Obstacle, policy_iteration, projected_relaxation
from odn_hybrid.stopping.policies.induction import backward_induction

Floats = NDArray[np.float64]
STRIKE, RATE, VOLATILITY = 1.0, 0.05, 0.2


def put(x: Floats, **options: object) -> StoppingProblem:
    return StoppingProblem(
        axes=(x,), drift=(RATE * x,), diffusion=(VOLATILITY * x,), stopping=np.maximum(STRIKE - x, 0),
        discount=RATE, maximise=True, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def evidence(x: Floats, signal: float = 1.5, price: float = 0.15, **options: object) -> StoppingProblem:
    """Two classes: evidence x drifts towards the true one; stopping loses the chance of a wrong answer."""
    return StoppingProblem(
        axes=(x,), drift=(signal * np.tanh(signal * x),), diffusion=(1.0,),
        stopping=1 / (1 + np.exp(2 * signal * np.abs(x))), cost=price, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def order(coarse: float, fine: float) -> float:
    """Observed order of convergence when steps are halved."""
    return float(np.log2(coarse / fine))


# --- closed forms -------------------------------------------------------------------------------------


def test_perpetual_put_boundary_and_value() -> None:
    power = 2 * RATE / VOLATILITY**2
    edge = power * STRIKE / (1 + power)
    errors = []
    for n in (401, 801):  # 0.05 to 50 strikes in equal ratios
        x = np.geomspace(0.05, 50, n)
        found = solve_stopping(put(x))
        exact = np.where(x < edge, STRIKE - x, (STRIKE - edge) * (np.maximum(x, edge) / edge) ** -power)
        near = x < 2 * STRIKE
        errors.append((abs(found.boundary[0][0] / edge - 1), np.abs(found.value / exact - 1)[near].max()))
        assert len(found.boundary[0]) == 1 and found.residual < 1e-12
        assert (found.stop == (x <= found.boundary[0][0] + 1e-12))[near].mean() > 0.99
    assert max(errors[1]) < 1e-3
    assert order(errors[0][0], errors[1][0]) > 1.5 and order(errors[0][1], errors[1][1]) > 1.5


def tree(price: float, depth: float, steps: int) -> float:
    """American put on a binomial tree (Cox, Ross and Rubinstein 1979)."""
    dt = depth / steps
    up = np.exp(VOLATILITY * np.sqrt(dt))
    chance, less = (np.exp(RATE * dt) - 1 / up) / (up - 1 / up), np.exp(-RATE * dt)
    prices = price * up ** np.arange(-steps, steps + 1.0)
    value = np.maximum(STRIKE - prices[::2], 0)
    for n in range(steps - 1, -1, -1):
        now = prices[steps - n : steps + n + 1 : 2]
        value = np.maximum(less * (chance * value[1:] + (1 - chance) * value[:-1]), STRIKE - now)
    return float(value[0])


def test_finite_put_against_a_binomial_tree() -> None:
    x, depths = np.linspace(0, 3, 601), 1 - np.linspace(1, 0, 101) ** 2
    found = solve_stopping(put(x), depths, scheme="crank-nicolson")
    for price in (0.85, 1.0, 1.15):
        exact = (tree(price, 1.0, 1500) + tree(price, 1.0, 1501)) / 2
        assert np.interp(price, x, found.value[0]) == pytest.approx(exact, rel=1e-3)
    edges = np.array([b[0] for b in found.boundary[:-1]])
    assert all(len(b) == 1 for b in found.boundary[:-1]) and len(found.boundary[-1]) == 0
    assert (np.diff(edges) > -2e-3).all() and 0.71 < edges[0] < 0.83 < edges[-1] < 1
    # below the boundary stopping is strictly better on the tree too, above it is not
    assert tree(edges[0] - 0.01, 1.0, 1500) == pytest.approx(STRIKE - edges[0] + 0.01, abs=1e-12)
    assert tree(edges[0] + 0.01, 1.0, 1500) > STRIKE - edges[0] - 0.01 + 1e-6


def posterior_exact(signal: float, price: float, p: Floats) -> tuple[float, Floats]:
    """Telling two classes apart without end: where to stop and the value, as functions of the posterior."""

    def shape(q: Floats | float) -> Floats:
        return np.asarray((2 * q - 1) * np.log(q / (1 - q)))

    def slope(q: float) -> float:
        return float(2 * np.log(q / (1 - q)) + (2 * q - 1) / (q * (1 - q)))

    scale = price / (2 * signal**2)
    edge = brentq(lambda q: -scale * slope(q) - 1, 1e-9, 0.5 - 1e-9)
    inner = edge + scale * (shape(edge) - shape(np.clip(p, edge, 1 - edge)))
    return edge, np.where((p > edge) & (p < 1 - edge), inner, np.minimum(p, 1 - p))


def test_an_obstacle_problem_of_one_dimension_with_its_order() -> None:
    errors = []
    for n in (101, 201, 401):
        p = np.linspace(0, 1, n)
        edge, exact = posterior_exact(1.0, 0.1, p)
        found = solve_stopping(
            StoppingProblem(
                axes=(p,), drift=(0.0,), diffusion=(2 * p * (1 - p),), stopping=np.minimum(p, 1 - p), cost=0.1
            )
        )
        assert found.boundary[0] == pytest.approx([edge, 1 - edge], abs=2 / n**2 * 10)
        errors.append(np.abs(found.value - exact).max())
    assert order(errors[0], errors[2]) / 2 > 1.3 and errors[2] < 2e-5


def ball(n: int) -> tuple[Floats, Floats, Floats, float]:
    """A membrane over a ball (radial): grid, obstacle with the exact value at the edges, value, radius."""
    radius = brentq(lambda a: 1 - a * a - a * a * np.log(2 / a), 0.3, 0.99)
    x = np.linspace(-2, 2, n)
    r = np.hypot(*np.meshgrid(x, x, indexing="ij"))
    exact = np.where(
        r < radius,
        np.sqrt(np.maximum(1 - r**2, 0)),
        -(radius**2) / np.sqrt(1 - radius**2) * np.log(np.maximum(r, radius) / 2),
    )
    obstacle = np.where(r < 0.9, np.sqrt(np.maximum(1 - r**2, 0)), (1 - 0.9 * r) / np.sqrt(0.19))
    edge = np.maximum(*np.abs(np.meshgrid(x, x, indexing="ij"))) >= 2
    return x, np.where(edge, exact, obstacle), exact, radius


def test_an_obstacle_problem_of_two_dimensions_with_its_order() -> None:
    errors = []
    for n in (21, 81):
        x, obstacle, exact, radius = ball(n)
        found = solve_stopping(
            StoppingProblem(
                axes=(x, x), drift=(0.0, 0.0), diffusion=(1.0, 1.0), stopping=obstacle, edges="stop",
                maximise=True,
            )
        )  # fmt: skip
        errors.append(np.abs(found.value - exact).max())
        distance = np.hypot(*found.boundary[0].T)
    assert errors[1] < 1e-3 and order(*errors) / 2 > 1.5
    assert np.abs(distance - radius).max() < 0.02 and abs(distance.mean() - radius) < 2e-3


@pytest.mark.parametrize("correlation", [0.5, -0.4])
def test_correlated_noise(correlation: float) -> None:
    # |A^-1 X| of correlated Brownian motion is the radius of a plain one: value r^2 / 2 + 1 / 2 inside r = 1.
    x = np.linspace(-2, 2, 61)
    a, b = np.meshgrid(x, x, indexing="ij")
    r = np.hypot(a, (b - correlation * a) / np.sqrt(1 - correlation**2))
    found = solve_stopping(
        StoppingProblem(
            axes=(x, x), drift=(0.0, 0.0), diffusion=(1.0, 1.0), correlation=correlation, stopping=r,
            cost=1.0, edges="stop", maximise=True,
        )
    )  # fmt: skip
    assert found.value == pytest.approx(np.where(r < 1, (r**2 + 1) / 2, r), abs=1e-3)


# --- depth --------------------------------------------------------------------------------------------


def layers(count: int, signal: float = 1.5, price: float = 0.15) -> float:
    """`evidence` in `count` layers of two equal steps each way: exact backward induction, value from 0."""
    step = np.sqrt(1 / count)
    x = np.arange(-count, count + 1) * step
    stopping = 1 / (1 + np.exp(2 * signal * np.abs(x)))
    up = (1 + signal * np.tanh(signal * x) * step) / 2
    value = stopping
    for _ in range(count):
        onward = np.full_like(x, np.inf)
        onward[1:-1] = up[1:-1] * value[2:] + (1 - up[1:-1]) * value[:-2] + price / count
        value = np.minimum(stopping, onward)
    return float(value[count])


def test_many_thin_layers_converge_to_the_diffusion() -> None:
    x = np.linspace(-5, 5, 401)
    depths = 1 - np.linspace(1, 0, 101) ** 2
    limit = np.interp(0, x, solve_stopping(evidence(x), depths, scheme="crank-nicolson").value[0])
    misses = [abs(layers(n) - limit) for n in (16, 64, 256)]
    assert misses[0] > 2 * misses[1] > 4 * misses[2] and misses[2] < 1e-3 * limit * 2


def test_crank_nicolson_gains_an_order_where_steps_are_graded() -> None:
    x = np.linspace(0, 3, 151)
    core = (x > 0.7) & (x < 1.5)

    def value(intervals: int, scheme: str) -> Floats:
        depths = 1 - np.linspace(1, 0, intervals + 1) ** 2
        return np.asarray(solve_stopping(put(x), depths, scheme=scheme).value[0][core])

    best = value(320, "crank-nicolson")
    misses = {
        scheme: [np.abs(value(m, scheme) - best).max() for m in (10, 40)]
        for scheme in ("implicit", "crank-nicolson")
    }
    assert order(*misses["crank-nicolson"]) / 2 > 1.6 > 1.3 > order(*misses["implicit"]) / 2
    assert misses["crank-nicolson"][1] < misses["implicit"][1] / 5


def test_a_long_horizon_is_the_stationary_problem() -> None:
    x = np.linspace(-4, 4, 161)
    long = solve_stopping(evidence(x), np.linspace(0, 40, 81))
    ever = solve_stopping(evidence(x))
    assert long.value[0] == pytest.approx(ever.value, abs=1e-6)
    assert long.boundary[0] == pytest.approx(ever.boundary[0], abs=1e-4)
    assert (np.diff(long.value, axis=0) > -1e-12).all()  # less depth to come never helps


def test_a_second_state_that_says_nothing_changes_nothing() -> None:
    x, y, depths = np.linspace(-3, 3, 61), np.linspace(0, 1, 7), np.linspace(0, 1, 11)
    one = solve_stopping(evidence(x), depths)
    plain = evidence(x)
    two = solve_stopping(
        StoppingProblem(
            axes=(x, y), drift=(np.asarray(plain.drift[0])[:, None], 0.3 - y), diffusion=(1.0, 0.4),
            stopping=np.asarray(plain.stopping)[:, None], cost=plain.cost,
        ),
        depths,
    )  # fmt: skip
    assert two.value == pytest.approx(np.repeat(one.value[..., None], 7, axis=2), abs=1e-10)
    points = two.boundary[0]
    for line in y:
        assert np.sort(points[points[:, 1] == line, 0]) == pytest.approx(one.boundary[0], abs=1e-6)


def test_two_correlated_scores_that_act_through_their_sum() -> None:
    x, total, depths = np.linspace(-3, 3, 81), np.linspace(-6, 6, 321), np.linspace(0, 0.5, 11)
    loss = lambda s: 1 / (1 + np.exp(2 * np.abs(s)))  # noqa: E731
    two = solve_stopping(
        StoppingProblem(
            axes=(x, x), drift=(0.2, -0.1), diffusion=(1.0, 1.0), correlation=-0.4, cost=0.1,
            stopping=loss(x[:, None] + x[None]),
        ),
        depths,
    )  # fmt: skip
    one = solve_stopping(
        StoppingProblem(
            axes=(total,), drift=(0.1,), diffusion=(np.sqrt(2 - 0.8),), cost=0.1, stopping=loss(total)
        ),
        depths,
    )
    core = np.ix_(np.abs(x) < 1, np.abs(x) < 1)
    expected = np.interp((x[:, None] + x[None])[core], total, one.value[0])
    assert two.value[0][core] == pytest.approx(expected, abs=2e-3)
    points = two.boundary[0]
    points = points[(np.abs(points) < 1).all(axis=1)]
    assert len(points) > 10 and np.abs(np.abs(points.sum(axis=1)) - one.boundary[0][-1]).max() < 0.05


def test_fields_may_depend_on_depth() -> None:
    # Time that runs twice as fast after depth 0.5 is a problem of constant speed over 1.5.
    x = np.linspace(-4, 4, 161)
    plain = evidence(x)
    speed = lambda t: 1.0 if t < 0.5 else 2.0  # noqa: E731
    moved = StoppingProblem(
        axes=(x,), drift=(lambda t: speed(t) * np.asarray(plain.drift[0]),),
        diffusion=(lambda t: np.sqrt(speed(t)),), cost=lambda t: speed(t) * 0.15,
        stopping=lambda t: plain.stopping,
    )  # fmt: skip
    fast = solve_stopping(moved, np.append(np.linspace(0, 0.5, 51)[:-1], np.linspace(0.5, 1, 51)))
    slow = solve_stopping(plain, np.append(np.linspace(0, 0.5, 51)[:-1], np.linspace(0.5, 1.5, 51)))
    assert fast.value == pytest.approx(slow.value, abs=1e-9)


# --- smooth fit ---------------------------------------------------------------------------------------


def kink(found: StoppingSolution, at: float, slope: float) -> float:
    """Slope of the value just above `at`, from the two cells after the first, less `slope`."""
    x = found.axes[0]
    i = int(np.searchsorted(x, at)) + 1
    slopes = np.diff(found.value[i : i + 3]) / np.diff(x[i : i + 3])
    return float(
        slopes[0] - (slopes[1] - slopes[0]) * ((x[i] + x[i + 1]) / 2 - at) / (x[i + 1] - x[i]) - slope
    )


def test_smooth_fit_and_where_it_fails() -> None:
    misses = []
    for n in (201, 801):
        found = solve_stopping(put(np.geomspace(0.05, 50, n)))
        misses.append(abs(kink(found, found.boundary[0][0], -1.0)))
    assert misses[1] < 3e-3 and misses[1] < misses[0] / 4
    # A put whose payment is capped at 0.2 is stopped at the cap's kink, 0.8 strikes, with a slope of its own.
    x = np.geomspace(0.05, 50, 801)
    power = 2 * RATE / VOLATILITY**2
    capped = StoppingProblem(
        axes=(x,), drift=(RATE * x,), diffusion=(VOLATILITY * x,), discount=RATE, maximise=True,
        stopping=np.clip(STRIKE - x, 0, 0.2),
    )  # fmt: skip
    found = solve_stopping(capped)
    assert found.boundary[0][-1] == pytest.approx(0.8, abs=0.01)
    assert kink(found, 0.8, -0.2 * power / 0.8) == pytest.approx(0, abs=0.01)
    assert abs(kink(found, 0.8, -1.0)) > 0.3


# --- laws ---------------------------------------------------------------------------------------------


def drawn(seed: int, dims: int) -> StoppingProblem:
    random = np.random.default_rng(seed)
    axes = tuple(np.cumsum(random.uniform(0.05, 0.4, 24 // dims)) for _ in range(dims))
    shape = tuple(len(axis) for axis in axes)
    pull = [np.tanh(axis.mean() - axis) for axis in axes]
    return StoppingProblem(
        axes=axes,
        drift=tuple(
            np.broadcast_to(np.expand_dims(p, 1 - k) if dims == 2 else p, shape) for k, p in enumerate(pull)
        ),
        diffusion=tuple(random.uniform(0, 1, shape) for _ in range(dims)),
        stopping=random.uniform(0, 1, shape),
        cost=random.uniform(0, 0.5, shape),
        discount=float(random.choice([0.0, 0.3])),
        edges=str(random.choice(["reflect", "stop"])),
    )


@given(st.integers(0, 10_000), st.integers(1, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_policy_iteration_and_relaxation_agree(seed: int, dims: int, ends: bool) -> None:
    problem = drawn(seed, dims)
    depths = [0.0, 0.3, 1.0] if ends else None
    one = solve_stopping(problem, depths)
    other = solve_stopping(problem, depths, method="relaxation", relaxation=1.0)
    assert one.residual < 1e-11
    assert other.value == pytest.approx(one.value, abs=1e-6)
    assert (one.value <= np.asarray(problem.stopping) + 1e-12).all() and (one.value >= -1e-12).all()


@given(st.integers(0, 10_000), st.integers(1, 2), st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_laws_of_the_value(seed: int, dims: int, more: float) -> None:
    p = drawn(seed, dims)
    plain = solve_stopping(p)
    given_ = {
        k: getattr(p, k) for k in ("axes", "drift", "diffusion", "stopping", "cost", "discount", "edges")
    }
    dear = solve_stopping(StoppingProblem(**{**given_, "cost": np.asarray(p.cost) + more}))
    assert (dear.value >= plain.value - 1e-12).all()  # a higher cost is never cheaper
    assert (dear.stop | ~plain.stop).all()  # and never stops later
    raised = solve_stopping(StoppingProblem(**{**given_, "stopping": np.asarray(p.stopping) + more}))
    assert (raised.value <= plain.value + more + 1e-12).all() and (raised.value >= plain.value - 1e-12).all()
    mirror = solve_stopping(
        StoppingProblem(**{**given_, "stopping": -np.asarray(p.stopping), "maximise": True})
    )
    assert mirror.value == pytest.approx(-plain.value, abs=1e-12)


@given(st.integers(0, 10_000), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_the_generator_is_a_chains_and_exact_on_parabolas(seed: int, drift: float) -> None:
    random = np.random.default_rng(seed)
    x = np.cumsum(random.uniform(0.01, 0.05, 40))
    spread = random.uniform(0.5, 1, 40)
    edges = (("reflect", "reflect"),)
    rates = generator_matrix((x,), (np.full(40, drift),), (spread,), np.zeros(40), edges).toarray()
    assert np.abs(rates.sum(axis=1)).max() < 1e-9
    assert (rates - np.diag(np.diag(rates))).min() >= 0
    applied = rates @ (x**2 - x)
    exact = spread**2 + drift * (2 * x - 1)
    assert applied[1:-1] == pytest.approx(exact[1:-1], abs=1e-8)


# --- estimation ---------------------------------------------------------------------------------------


def test_drift_and_diffusion_are_recovered() -> None:
    random, pull, spread = np.random.default_rng(0), 2.0, 0.7
    depths = np.linspace(0, 1, 41)
    step = depths[1]
    score = np.zeros((20_000, 41))
    score[:, 0] = random.normal(0, 0.3, 20_000)
    for k in range(40):  # an Ornstein-Uhlenbeck process, exactly
        noise = spread * np.sqrt((1 - np.exp(-2 * pull * step)) / (2 * pull))
        score[:, k + 1] = score[:, k] * np.exp(-pull * step) + noise * random.standard_normal(20_000)
    found = estimate_diffusion(score, depths, depth_bandwidth=0.1)
    core = np.abs(found.scores) < 0.8
    miss = found.drift[:, core] + pull * found.scores[core]
    assert np.abs(miss).max() < 0.2 and np.abs(found.diffusion[:, core] / spread - 1).max() < 0.08
    thick = found.scores[core] * (pull - (1 - np.exp(-pull * step)) / step)  # of a layer that is not thin
    assert 0.8 < ((miss - thick) / found.drift_error[:, core]).std() < 1.3
    assert np.abs(found.memory).max() < 0.03 and np.abs(found.excess).max() < 0.2


def test_memory_and_jumps_are_told() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal((20_000, 20))
    smooth = np.cumsum(noise[:, 1:] + noise[:, :-1], axis=1)
    jumps = np.cumsum(noise * (random.random(noise.shape) < 0.1), axis=1)
    assert estimate_diffusion(smooth, np.arange(19.0)).memory[5:].min() > 0.3
    assert estimate_diffusion(jumps, np.arange(20.0)).excess.min() > 5


def test_an_estimated_boundary_stops_as_well_as_backward_induction() -> None:
    random, signal, price, exits = np.random.default_rng(0), 1.5, 0.15, 21
    depths = np.linspace(0, 1, exits)

    def look(n: int) -> tuple[Floats, Floats]:
        side = random.choice([-1.0, 1.0], (n, 1))
        noise = np.sqrt(depths[1]) * random.standard_normal((n, exits - 1))
        x = np.cumsum(np.hstack([np.zeros((n, 1)), side * signal * depths[1] + noise]), axis=1)
        return x, 1 / (1 + np.exp(2 * signal * np.abs(x)))

    x, loss = look(20_000)
    estimate = estimate_diffusion(x, depths, losses=loss, depth_bandwidth=0.1)
    found = solve_stopping(estimate.problem(price), depths)
    discrete = backward_induction(loss, np.abs(x), depths, price=price)
    x, loss = look(40_000)
    total = loss + price * depths
    values = []
    for rule in ("continuous", "discrete"):
        stops = np.ones_like(x, dtype=bool)
        for k in range(exits - 1):
            if rule == "continuous":
                nearest = np.abs(found.axes[0][:, None] - x[None, :, k]).argmin(axis=0)
                stops[:, k] = found.stop[k][nearest]
            else:
                edges, stop = discrete.rules[k][0]
                stops[:, k] = np.asarray(stop)[np.searchsorted(edges, np.abs(x[:, k]), side="right")]
        values.append(total[np.arange(len(x)), stops.argmax(axis=1)].mean())
    best = layers_of_looks(exits - 1)
    assert best * 0.99 < values[0] < 1.02 * values[1] and values[0] < 1.02 * best
    never = total[:, -1].mean()  # what rules are worth at all
    assert never - values[0] > 0.9 * (never - best)


def layers_of_looks(looks: int) -> float:
    """The best value with stopping at `looks` equal depths, from a fine solution between them."""
    x = np.linspace(-5, 5, 401)
    free = evidence(x)
    value = np.asarray(free.stopping)
    for _ in range(looks):
        still = solve_stopping(
            StoppingProblem(
                axes=(x,), drift=free.drift, diffusion=free.diffusion, cost=free.cost,
                stopping=lambda t, v=value: v if t >= 1 / looks else np.full_like(v, 9.0),
            ),
            np.linspace(0, 1 / looks, 6),
        )  # fmt: skip
        value = np.minimum(np.asarray(free.stopping), still.value[0])
    return float(np.interp(0, x, value))


# --- bad input ----------------------------------------------------------------------------------------

X, FINE = np.linspace(-1, 1, 11), np.linspace(-10, 10, 4001)
GOOD = {"axes": (X,), "drift": (-X,), "diffusion": (1.0,), "stopping": X**2, "cost": 0.1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cost": -0.1}, "cost is -0.1"),
        ({"cost": 0.0}, "every constant"),
        ({"axes": (X[::-1],)}, "strictly ascend"),
        ({"axes": (np.array([0.0, 1.0, 1.0, 2.0]),)}, "strictly ascend"),
        ({"axes": (X[:2],)}, "3 or more"),
        ({"axes": (X, X, X)}, "one or two grids"),
        ({"axes": (["a", "b", "c"],)}, "not a number"),
        ({"drift": (np.where(X > 0.9, np.inf, 0),)}, "NaN or infinite"),
        ({"drift": (50 * X,)}, "explosive"),
        ({"axes": (FINE,), "drift": (FINE**3,), "stopping": 1.0}, "explosive"),
        ({"drift": (X[:5],)}, "the grid has"),
        ({"drift": -X}, "one entry for each"),
        ({"drift": (-X, -X)}, "one entry for each"),
        ({"diffusion": (-1.0,)}, "diffusion is -1"),
        ({"stopping": np.nan}, "NaN or infinite"),
        ({"discount": -1.0}, "discount is -1"),
        ({"correlation": 2.0}, "correlation reaches 2"),
        ({"edges": "open"}, "edges are 'open'"),
        ({"edges": ("reflect", "stop")}, "per axis"),
        ({"edges": (("reflect", "stop"), ("stop", "stop"))}, "per axis"),
    ],
)  # fmt: skip
def test_bad_problems(changes: dict[str, object], says: str) -> None:
    with pytest.raises((InputError, ConfigError), match=says):
        solve_stopping(StoppingProblem(**{**GOOD, **changes}))  # type: ignore[arg-type]


def test_zero_cost_has_a_limit_where_something_ends_the_wait() -> None:
    free = {**GOOD, "cost": 0.0}
    ends = solve_stopping(StoppingProblem(**free), [0.0, 1.0])  # type: ignore[arg-type]
    assert np.isfinite(ends.value).all()
    held = {
        **free,
        "drift": (0.0,),
        "stopping": 1 - X**2,
        "edges": "stop",
    }  # free at the edges: wait for them
    assert solve_stopping(StoppingProblem(**held)).value == pytest.approx(np.zeros(11), abs=1e-9)  # type: ignore[arg-type]
    # As the cost goes to 0 the value goes to the least cost of stopping; as the discount does, to 0.
    shifted = {**GOOD, "stopping": X**2 + 1}
    small = solve_stopping(StoppingProblem(**{**shifted, "cost": 1e-9}))  # type: ignore[arg-type]
    assert small.value == pytest.approx(np.ones(11), abs=1e-6)
    wait = solve_stopping(StoppingProblem(**{**shifted, "cost": 0.0, "discount": 1e-6}))  # type: ignore[arg-type]
    assert wait.value == pytest.approx(np.zeros(11), abs=1e-6)


@pytest.mark.parametrize(
    ("depths", "options", "says"),
    [
        ([0.0], {}, "strictly ascend"),
        ([0.0, 0.0], {}, "strictly ascend"),
        ([0.0, np.inf], {}, "strictly ascend"),
        (None, {"method": "magic"}, "choose one of policy"),
        ([0.0, 1.0], {"scheme": "explicit"}, "choose one of implicit"),
        (None, {"method": "relaxation", "relaxation": 2.5}, "between 0 and 2"),
    ],
)
def test_bad_choices(depths: object, options: dict[str, object], says: str) -> None:
    with pytest.raises((InputError, ConfigError), match=says):
        solve_stopping(StoppingProblem(**GOOD), depths, **options)  # type: ignore[arg-type]


def test_too_few_rounds_are_an_error() -> None:
    rates = generator_matrix((X,), (-X,), (np.ones(11),), np.zeros(11), (("reflect", "reflect"),))
    problem = Obstacle(-rates, np.full(11, 1e-3), X**2, np.zeros(11, dtype=bool))
    assert policy_iteration(problem).iterations > 1
    with pytest.raises(ConfigError, match="1 policies were not enough"):
        policy_iteration(problem, limit=1)
    with pytest.raises(ConfigError, match="2 sweeps were not enough"):
        projected_relaxation(problem, [np.arange(0, 11, 2), np.arange(1, 11, 2)], limit=2)


def test_a_correlation_that_the_steps_cannot_hold() -> None:
    bad = {"drift": (0.0, 0.0), "diffusion": (1.0, 0.1), "stopping": 1.0, "cost": 1.0, "correlation": 0.9}
    with pytest.raises(InputError, match="ratio of the diffusions"):
        solve_stopping(StoppingProblem(axes=(X, X), **bad))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="equal steps"):
        solve_stopping(StoppingProblem(axes=(X, X**3 + 2 * X), **bad))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "costs", "options", "says"),
    [
        (np.zeros((50, 3)), [0, 1, 2], {}, "all equal"),
        (np.zeros(50), [0, 1, 2], {}, "at least 2 of each"),
        (np.full((50, 2), np.nan), [0, 1], {}, "NaN or infinite"),
        (np.eye(50)[:, :2], [1, 1], {}, "strictly ascend"),
        (np.random.default_rng(0).normal(size=(50, 2)), [0, 1], {"bandwidth": 0.0}, "bandwidth is 0"),
        (np.random.default_rng(0).normal(size=(50, 2)), [0, 1], {"depth_bandwidth": -1.0}, "depth_bandwidth"),
        (np.random.default_rng(0).normal(size=(50, 2)), [0, 1], {"least": 100}, "fewer than 100"),
        (np.random.default_rng(0).normal(size=(50, 2)), [0, 1], {"losses": [1, 2]}, "losses have shape"),
        (np.random.default_rng(0).normal(size=(50, 2)), [0, 1], {"grid": [1, 0, 2]}, "grid must be"),
        (np.random.default_rng(0).normal(size=(50, 2)), [0, 1], {"grid": 2}, "at least 3"),
    ],
)
def test_bad_recordings(scores: Floats, costs: object, options: dict[str, object], says: str) -> None:
    with pytest.raises((InputError, ConfigError), match=says):
        estimate_diffusion(scores, costs, **options)  # type: ignore[arg-type]


def test_an_estimate_without_losses_is_no_stopping_problem() -> None:
    scores = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(ConfigError, match="give losses"):
        estimate_diffusion(scores, [0, 1]).problem(0.1)
    with pytest.raises(ConfigError, match="price is -1"):
        estimate_diffusion(scores, [0, 1], losses=scores**2).problem(-1)
