import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping import (
    NEVER,
    ConfidencePolicy,
    certify_paired,
    choose_threshold,
    confidence_candidates,
    evaluate,
)

COSTS = [0.25, 0.5, 1.0]


def _outputs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three exits, ten classes; deeper exits see the label more clearly, and some inputs are harder."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    clear = rng.gamma(2.0, 4.0, size=(n, 1)) * np.array([0.5, 0.8, 1.2])
    return rng.normal(size=(n, 3, 10)) + clear[:, :, None] * np.eye(10)[labels][:, None], labels


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0, 1.2))
def test_every_input_halts_at_one_of_the_exits(seed, exits, threshold):
    logits = np.random.default_rng(seed).normal(size=(9, exits, 3)) * 3
    taken = ConfidencePolicy(np.full(exits, threshold), np.ones(exits)).halt(logits)
    assert taken.shape == (9,)
    assert ((taken >= 1) & (taken <= exits)).all()


@given(st.integers(0, 1000), st.floats(0, 1.1), st.floats(0, 1.1))
def test_a_looser_threshold_never_halts_later(seed, one, other):
    logits = np.random.default_rng(seed).normal(size=(20, 4, 3)) * 3
    strict, loose = (
        ConfidencePolicy(np.full(4, t), np.ones(4)).halt(logits) for t in (max(one, other), min(one, other))
    )
    assert (loose <= strict).all()


@given(st.integers(0, 1000), st.integers(0, 2))
def test_what_deeper_exits_say_changes_no_earlier_decision(seed, last):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(20, 4, 3)) * 3
    policy = ConfidencePolicy(np.full(4, 0.7), np.ones(4))
    changed = logits.copy()
    changed[:, last + 1 :] = rng.normal(size=changed[:, last + 1 :].shape)
    before, after = policy.halt(logits), policy.halt(changed)
    early = before <= last + 1
    assert (after[early] == before[early]).all()
    assert (after[~early] > last + 1).all()


def test_extreme_thresholds_take_the_first_and_the_last_exit():
    logits, _ = _outputs(50)
    assert (ConfidencePolicy(np.zeros(3), np.ones(3)).halt(logits) == 1).all()
    assert (ConfidencePolicy(np.full(3, NEVER), np.ones(3)).halt(1e6 * logits) == 3).all()
    assert (ConfidencePolicy([0.9], [1.0]).halt(logits[:, :1]) == 1).all()


def test_policy_goes_through_json_unchanged():
    policy = ConfidencePolicy([0.1 + 0.2, 1 / 3, NEVER], [1.0, 0.7, 1e-3])
    again = ConfidencePolicy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False)))
    assert again == policy
    assert hash(again) == hash(policy)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"kind": "snell", "thresholds": [1], "temperatures": [1]},
        {"kind": "confidence", "thresholds": "x", "temperatures": [1]},
        {"kind": "confidence", "thresholds": [1], "temperatures": [1], "extra": 0},
    ],
)
def test_what_is_no_policy_is_refused(values):
    with pytest.raises(ConfigError):
        ConfidencePolicy.from_dict(values)


def test_bad_numbers_and_logits_are_refused():
    for thresholds, temperatures in ([[np.nan], [1]], [[0.5], [0]], [[0.5], [1, 1]], [[], []]):
        with pytest.raises(InputError):
            ConfidencePolicy(np.array(thresholds), np.array(temperatures))
    logits, labels = _outputs(20)
    logits[3, 1, 2] = np.nan
    policy = ConfidencePolicy(np.full(3, 0.5), np.ones(3))
    with pytest.raises(InputError, match="NaN"):
        policy.halt(logits)
    with pytest.raises(InputError, match="NaN"):
        choose_threshold(logits, labels, drop=0.01, delta=0.05)


def test_evaluate_counts_what_was_taken():
    logits = np.zeros((4, 3, 2))
    logits[:, 2, 1] = 1  # exit 3 says class 1, the others say class 0
    found = evaluate(np.array([1, 1, 3, 3]), logits, np.array([0, 1, 1, 1]), COSTS)
    assert found == {"accuracy": 0.75, "mean_cost": 0.625, "histogram": [2, 0, 2]}
    with pytest.raises(InputError):
        evaluate(np.array([0, 1, 3, 3]), logits, np.array([0, 1, 1, 1]), COSTS)
    with pytest.raises(InputError):
        evaluate(np.array([1, 1, 3, 3]), logits, np.array([0, 1, 1, 1]), COSTS[:2])


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 4), st.integers(1, 70))
def test_candidates_run_from_never_to_loose(seed, n, exits, count):
    scores = np.random.default_rng(seed).uniform(0.1, 1, size=(n, exits)).round(2)
    candidates = confidence_candidates(scores, count)
    assert candidates[0] == NEVER
    assert 1 <= len(candidates) <= count
    assert (np.diff(candidates) < 0).all()
    if exits > 1 and count > 2:
        assert candidates[-1] == scores[:, :-1].min()  # the loosest lets everything pass


def test_threshold_keeps_its_rule_and_saves_cost():
    logits, labels = _outputs(4000)
    chosen = choose_threshold(logits, labels, drop=0.01, delta=0.05)
    found = evaluate(chosen.policy.halt(logits), logits, labels, COSTS)
    full = float((logits[:, -1].argmax(axis=1) == labels).mean())
    assert found["mean_cost"] < 0.8
    assert full - found["accuracy"] == pytest.approx(chosen.drop, abs=1e-12)
    assert chosen.drop + chosen.margin <= 0.01
    assert "loosest" in chosen.reason


def test_more_certification_images_or_more_drop_never_make_it_dearer():
    logits, labels = _outputs(2000)

    def cost(**kwargs: float) -> float:
        policy = choose_threshold(logits, labels, **{"drop": 0.01, "delta": 0.05, **kwargs}).policy
        return evaluate(policy.halt(logits), logits, labels, COSTS)["mean_cost"]

    assert cost(n_certification=10_000) <= cost() <= cost(n_certification=1200)
    assert cost(drop=0.05) <= cost(drop=0.02) <= cost()
    assert cost(power=None) <= cost(power=0.5) <= cost(power=0.9)


def test_chosen_thresholds_are_certified_most_of_the_time():
    earned = 0
    for seed in range(40):
        logits, labels = _outputs(4000, seed)
        policy = choose_threshold(logits[:2000], labels[:2000], drop=0.02, delta=0.05).policy
        fresh, wanted = logits[2000:], labels[2000:]
        right = fresh.argmax(axis=2) == wanted[:, None]
        taken = policy.halt(fresh)
        found = certify_paired(right[:, -1], right[np.arange(2000), taken - 1], drop=0.02, delta=0.05)
        earned += found.certified
    assert earned >= 24


def test_too_few_images_and_a_single_exit_never_halt_early():
    logits, labels = _outputs(100)
    few = choose_threshold(logits, labels, drop=0.01, delta=0.05)
    assert (few.policy.halt(logits) == 3).all()
    assert "never halts early" in few.reason
    one = choose_threshold(logits[:, :1], labels, drop=0.01, delta=0.05)
    assert (one.policy.halt(logits[:, :1]) == 1).all()
    assert "one exit" in one.reason


def test_choices_out_of_range_are_refused():
    logits, labels = _outputs(20)
    for wrong in ({"drop": -0.1}, {"drop": 1.5}, {"delta": 0}, {"power": 1.0}, {"n_certification": 0}):
        with pytest.raises(ConfigError):
            choose_threshold(logits, labels, **{"drop": 0.01, "delta": 0.05, **wrong})
