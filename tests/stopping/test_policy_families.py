"""Families of policies on recorded outputs: paths from dear to cheap, recall, budgets, hindsight."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.policies.calibration import Calibration, fit_calibration
from odn_hybrid.stopping.policies.families import FAMILIES, Member, oracle, policy_path
from odn_hybrid.stopping.policies.recall import answering, fit_handicaps
from odn_hybrid.stopping.policies.scores import SCORES, agreement, readiness, streak
from odn_hybrid.stopping.policies.tables import HaltingTable

Floats = NDArray[np.float64]


def outputs(
    n: int = 4000, exits: int = 5, classes: int = 4, seed: int = 0
) -> tuple[Floats, NDArray[np.int64]]:
    """Exits whose evidence for the right class adds up, from inputs that are easy or hard."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    ease = random.gamma(1.0, 0.7, n)
    steps = random.standard_normal((n, exits, classes))
    steps[np.arange(n)[:, None], np.arange(exits)[None], labels[:, None]] += ease[:, None]
    return np.cumsum(steps, axis=1), labels


COSTS = np.array([1.0, 2.0, 3.5, 4.0, 6.0])


def figures(member: Member, logits: Floats, labels: NDArray[np.int64], costs: Floats) -> tuple[float, float]:
    taken, answered = member.table.decide(logits)
    right = logits[np.arange(len(labels)), answered - 1].argmax(1) == labels
    return float(right.mean()), float(costs[taken - 1].mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_leads_from_dear_to_cheap(family: str) -> None:
    logits, labels = outputs()
    path = policy_path(family, logits, labels, COSTS)
    costs = [figures(member, logits, labels, COSTS)[1] for member in path]
    assert len(path) >= 5
    if family != "snell":  # at a price of 0 going on is free, but need not help
        assert costs[0] == max(costs)
    assert costs[-1] < 0.5 * COSTS[-1]
    drops = np.diff(costs)
    assert (drops <= 0.02 * COSTS[-1]).all()
    again = Member.from_dict(json.loads(json.dumps(path[len(path) // 2].to_dict())))
    assert again == path[len(path) // 2]


def test_snell_is_at_least_as_good_as_the_best_threshold() -> None:
    logits, labels = outputs(8000)
    fresh, truth = outputs(40_000, seed=1)
    snell = [figures(m, fresh, truth, COSTS) for m in policy_path("snell", logits, labels, COSTS)]
    plain = [figures(m, fresh, truth, COSTS) for m in policy_path("confidence", logits, labels, COSTS)]
    costs, reached = zip(*sorted((cost, accuracy) for accuracy, cost in snell), strict=True)
    gains = [np.interp(cost, costs, np.maximum.accumulate(reached)) - accuracy for accuracy, cost in plain]
    assert min(gains) > -0.004
    assert max(gains) > 0.002


@pytest.mark.parametrize("family", ["confidence", "snell"])
def test_recall_keeps_an_answer_that_is_surer_by_the_handicap(family: str) -> None:
    logits, labels = outputs()
    table = policy_path(family, logits, labels, COSTS, recall=True)[15].table
    assert table.recall is not None
    taken, answered = table.decide(logits)
    sure = readiness(logits, "confidence", table.calibration)
    assert (answered <= taken).all()
    for row in range(0, 4000, 97):
        best = 0
        for exit in range(1, taken[row]):
            if sure[row, best] - sure[row, exit] < table.recall[exit]:
                best = exit
        assert answered[row] == best + 1


def test_recall_never_answers_worse_on_the_inputs_it_was_fitted_on() -> None:
    for seed in range(20):
        logits, labels = outputs(300, seed=seed)
        early = np.random.default_rng(seed).normal(0, 6, (300, 2, 4))
        logits[:, :2] = early  # sure and wrong: the most confident answer would be theirs
        wrong = (logits.argmax(2) != labels[:, None]).astype(float)
        calibration = fit_calibration(logits, labels)
        sure = readiness(logits, "confidence", calibration)
        place = answering(sure, fit_handicaps(sure, wrong, logits.argmax(2)))
        for exit in range(5):
            kept = np.take_along_axis(wrong, place, 1)[:, exit].mean()
            assert kept <= wrong[:, exit].mean() + 1e-12


@pytest.mark.parametrize("price", [0.02, 0.1, 0.3])
def test_recall_is_never_worse_where_later_exits_may_be_wrong(price: float) -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 20_000)
    logits = random.standard_normal((20_000, 5, 4)) * 1.5
    logits[np.arange(20_000)[:, None], np.arange(5)[None], labels[:, None]] += 2  # independent exits
    values = {}
    for recall in (False, True):
        path = policy_path("snell", logits[:10_000], labels[:10_000], COSTS, recall=recall)
        values[recall] = min(
            1 - accuracy + price * cost / COSTS[-1]
            for accuracy, cost in (figures(m, logits[10_000:], labels[10_000:], COSTS) for m in path)
        )
    assert values[True] <= values[False] + 0.002
    assert price > 0.2 or values[True] < values[False] - 0.002


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_beats_hindsight(family: str) -> None:
    logits, labels = outputs(1500)
    for price in (0.0, 0.1, 1.0):
        taken = oracle(logits, labels, COSTS, price=price)
        right = logits[np.arange(1500), taken - 1].argmax(1) == labels
        best = (~right).mean() + price * (COSTS[taken - 1] / 6).mean()
        for member in policy_path(family, logits, labels, COSTS):
            accuracy, cost = figures(member, logits, labels, COSTS)
            assert 1 - accuracy + price * cost / 6 >= best - 1e-12


def test_fifty_thousand_inputs_and_fifty_exits_in_seconds() -> None:
    random = np.random.default_rng(0)
    scores = np.sort(random.random((50_000, 50)), axis=1)
    losses = (random.random((50_000, 50)) > scores).astype(float)
    from odn_hybrid.stopping.policies.induction import backward_induction

    start = time.process_time()
    backward_induction(losses, scores, np.arange(50), price=0.005)
    assert time.process_time() - start < 20


PLAIN = Calibration.of_temperatures([1.0] * 4)

# --- scores -------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from(SCORES))
@settings(max_examples=50)
def test_scores_look_at_no_later_exit(seed: int, score: str) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (7, 4, 3))
    other = logits.copy()
    other[:, 3] = -logits[:, 3]
    one, two = (readiness(x, score, PLAIN) for x in (logits, other))
    assert (one[:, :3] == two[:, :3]).all()
    low = 1.0 / 3 if score == "confidence" else 0.0
    assert (one >= low - 1e-12).all() and (score == "streak" or (one <= 1 + 1e-12).all())


def test_agreement_and_streaks() -> None:
    answers = np.array([[0, 0, 1, 1, 1], [2, 2, 2, 0, 2]])
    logits = np.eye(3)[answers]
    assert agreement(logits).tolist() == [[False, True, False, True, True], [False, True, True, False, False]]
    assert streak(logits).tolist() == [[1, 2, 1, 2, 3], [1, 2, 3, 1, 1]]


# --- odd and bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (4, 1, 3), (6, 3, 1)])
def test_small_and_degenerate_tables(family: str, shape: tuple[int, int, int]) -> None:
    n, exits, classes = shape
    for logits in (np.zeros(shape), np.random.default_rng(0).normal(size=shape)):
        labels = np.arange(n) % classes
        for member in policy_path(family, logits, labels, np.arange(1.0, exits + 1)):
            taken, answered = member.table.decide(logits)
            assert taken.shape == answered.shape == (n,)
            assert taken.min() >= 1 and taken.max() <= exits


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"family": "luck"}, "unknown policy 'luck'"),
        ({"logits": np.full((10, 5, 4), np.nan)}, "NaN or infinite"),
        ({"labels": np.full(10, 9)}, "labels run from 9"),
        ({"costs": [5, 4, 3, 2, 1]}, "never fall"),
        ({"costs": [1, 2]}, "expected 5 finite numbers"),
        ({"calibration": Calibration.of_temperatures([1.0])}, "calibration is of 1 exits, the logits of 5"),
    ],
)
def test_bad_input(change: dict[str, object], says: str) -> None:
    logits, labels = outputs(10)
    given = {"family": "snell", "logits": logits, "labels": labels, "costs": COSTS, **change}
    with pytest.raises((InputError, ConfigError), match=says):
        policy_path(**given)  # type: ignore[arg-type]


ONE = Calibration.of_temperatures([1.0]).to_dict()
FALLING = {"edges": [2, 1], "stops": [True] * 3}
NUMBERS = {"edges": [1], "stops": [1, 0]}


@pytest.mark.parametrize(
    "garbled",
    [
        None, [], {"score": "confidence"},
        {"score": "luck", "calibration": ONE, "rows": [], "recall": None},
        {"score": "margin", "calibration": ONE, "rows": [[]], "recall": None},
        {"score": "margin", "calibration": ONE, "rows": [[FALLING] * 2], "recall": None},
        {"score": "margin", "calibration": ONE, "rows": [[NUMBERS] * 2], "recall": None},
    ],
)  # fmt: skip
def test_garbled_tables_are_refused(garbled: object) -> None:
    with pytest.raises(ConfigError):
        HaltingTable.from_dict(garbled)
