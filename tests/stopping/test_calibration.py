"""Temperature and vector scaling: laws, recovery of what made the labels, small splits, odd and bad input."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping import expected_calibration_error
from odn_hybrid.stopping.policies.calibration import (
    KINDS,
    Calibration,
    as_temperatures,
    confidence,
    fit_calibration,
    fit_temperature,
    softmax,
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def drawn(n: int, classes: int, temperature: float, seed: int = 0) -> tuple[Floats, Labels]:
    """Logits whose labels really follow softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, classes))
    noise = rng.gumbel(size=(n, classes))
    return logits, (logits / temperature + noise).argmax(axis=1)


def surprise(logits: Floats, labels: Labels) -> float:
    """Total negative log-likelihood of labels under softmax(logits), in nats."""
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].sum())


def random_calibration(kind: str, exits: int, classes: int, seed: int) -> Calibration:
    rng = np.random.default_rng(seed)
    if kind == "temperature":
        return Calibration(kind, np.exp(rng.normal(size=(exits, 1))), np.zeros((exits, 1)))
    return Calibration("vector", rng.normal(1, 0.3, (exits, classes)), rng.normal(size=(exits, classes)))


# --- temperatures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_recovers_the_temperature_that_made_the_labels(temperature: float) -> None:
    logits, labels = drawn(20_000, 5, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


@given(st.integers(0, 10_000), st.floats(0.2, 4.0))
def test_no_other_temperature_explains_the_labels_better(seed: int, other: float) -> None:
    """Labels and the prior on log T, of deviation 0.5, that keeps small splits sane."""
    logits, labels = drawn(60, 3, 1.0, seed)

    def evidence(t: float) -> float:
        return -surprise(logits / t, labels) - 2 * float(np.log(t)) ** 2

    assert evidence(fit_temperature(logits, labels)) >= evidence(other) - 1e-4


def test_a_small_split_without_errors_does_not_make_every_confidence_one() -> None:
    logits = 4 * drawn(100, 10, 1.0)[0]
    labels = logits.argmax(axis=1)
    assert fit_temperature(logits, labels) > 0.2


def test_temperature_scales_with_the_logits_and_calibrates() -> None:
    logits, labels = drawn(5_000, 4, 1.0)
    over = 4 * logits
    fitted = fit_temperature(over, labels)
    assert fitted == pytest.approx(4 * fit_temperature(logits, labels), rel=1e-2)
    before = expected_calibration_error(softmax(over), labels)
    after = expected_calibration_error(softmax(over, fitted), labels)
    assert after < 0.03 < before


def test_degenerate_calibration_data_give_a_finite_temperature() -> None:
    perfect = np.eye(3)[[0, 1, 2, 0]] * 5
    assert 0 < fit_temperature(perfect, np.array([0, 1, 2, 0])) < 1
    assert 1 < fit_temperature(perfect, np.array([1, 2, 0, 1])) < np.inf
    assert fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1.0
    assert fit_temperature(np.ones((2, 1)), np.array([0, 0])) == 1.0


def test_softmax_and_confidence_agree_and_survive_large_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 3, 4)) * 1e5
    temperatures = np.array([0.5, 1.0, 2.0])
    scores = confidence(logits, temperatures)
    assert scores.shape == (7, 3)
    np.testing.assert_allclose(scores, softmax(logits, temperatures).max(axis=2))
    np.testing.assert_allclose(softmax(logits, temperatures).sum(axis=2), 1)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_confidence_lies_between_chance_and_one(seed: int, exits: int, classes: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(5, exits, classes)) * 3
    scores = confidence(logits, np.ones(exits))
    assert (scores >= 1 / classes - 1e-12).all()
    assert (scores <= 1).all()


# --- calibrations: laws -------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
@settings(max_examples=50)
def test_calibration_by_temperature_changes_no_answer(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = size * rng.normal(size=(40, 3, 4)), rng.integers(0, 4, 40)
    found = fit_calibration(logits, labels).apply(logits)
    assert (found.argmax(axis=2) == logits.argmax(axis=2)).all()


@given(st.integers(0, 10_000), st.sampled_from([1, 7, 60, 400]), st.integers(1, 5))
@settings(max_examples=50)
def test_vector_scaling_is_the_best_of_all_scales_and_shifts(seed: int, n: int, classes: int) -> None:
    """With the prior: better than temperature scaling, from which it starts, and than points nearby."""
    rng = np.random.default_rng(seed)
    logits, labels = drawn(n, classes, 1.7, seed)
    logits = logits * rng.uniform(0.5, 2, classes) + rng.normal(size=classes)
    found = fit_calibration(logits[:, None], labels, "vector")
    temperature = fit_temperature(logits, labels)

    def loss(scale: Floats, shift: Floats) -> float:
        change = scale * temperature - 1
        at_mean = shift + change * logits.mean(axis=0) / temperature
        prior = ((change / 0.1) ** 2 + (at_mean / 0.25) ** 2).sum() / 2
        return surprise(logits * scale + shift, labels) + float(prior)

    best = loss(found.scales[0], found.shifts[0])
    assert best <= surprise(logits / temperature, labels) + 1e-9
    for step in (1e-3, 1e-2, 0.3):
        scale, shift = found.scales[0] + step * rng.normal(size=classes), found.shifts[0]
        assert best <= loss(scale, shift + step * rng.normal(size=classes)) + 1e-7


@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=60)
def test_writing_and_reading_changes_no_bit(seed: int, kind: str, exits: int, classes: int) -> None:
    one = random_calibration(kind, exits, classes, seed)
    again = Calibration.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one and hash(again) == hash(one)
    assert again.to_dict() == one.to_dict()
    logits = np.random.default_rng(seed).normal(size=(6, exits, classes))
    assert (again.apply(logits) == one.apply(logits)).all()
    assert (one.apply(logits) == logits * one.scales + one.shifts).all()
    for exit in range(1, exits + 1):
        assert (one.upto(exit).apply(logits[:, :exit]) == one.apply(logits)[:, :exit]).all()
        assert one.upto(exit).kind == kind and len(one.upto(exit)) == exit
    assert one.upto(exits) == one


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
@settings(max_examples=30)
def test_permuting_images_changes_nothing(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = 2 * rng.normal(size=(50, 2, 3)), rng.integers(0, 3, 50)
    order = rng.permutation(50)
    one, other = fit_calibration(logits, labels, kind), fit_calibration(logits[order], labels[order], kind)
    np.testing.assert_allclose(one.apply(logits), other.apply(logits), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_exit_is_calibrated_by_itself(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(80, 3, 4)), rng.integers(0, 4, 80)
    assert fit_calibration(logits[:, :2], labels, kind) == fit_calibration(logits, labels, kind).upto(2)


def test_temperatures_are_stored_as_temperatures() -> None:
    one = Calibration.of_temperatures([0.7, 3.0])
    assert one.to_dict() == {"kind": "temperature", "temperatures": pytest.approx([0.7, 3.0])}
    np.testing.assert_allclose(one.temperatures, [0.7, 3.0])
    assert one.scales.shape == one.shifts.shape == (2, 1)
    with pytest.raises(ConfigError, match="has no temperatures"):
        _ = random_calibration("vector", 2, 3, 0).temperatures


def test_a_calibration_cannot_be_changed() -> None:
    scales = np.ones((2, 3))
    one = Calibration("vector", scales, np.zeros((2, 3)))
    scales[0, 0] = 5.0
    assert one.scales[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        one.scales[0, 0] = 2.0
    assert one != Calibration("vector", np.ones((2, 3)), np.ones((2, 3)))
    assert one != "vector"


# --- what vector scaling finds ------------------------------------------------------------------------

TILT = np.array([0.9, -0.6, 0.0, -0.3])


def tilted(n: int, seed: int) -> tuple[Floats, Labels]:
    """Logits that are twice as sure as they should be, and biased towards some classes."""
    logits, labels = drawn(n, 4, 1.0, seed)
    return 2 * (logits + TILT), labels


def test_vector_scaling_recovers_a_bias_that_no_temperature_can() -> None:
    logits, labels = tilted(10_000, 0)
    fresh, truth = tilted(10_000, 1)
    losses = {
        kind: surprise(fit_calibration(logits[:, None], labels, kind).apply(fresh[:, None])[:, 0], truth)
        for kind in KINDS
    }
    ideal = surprise(fresh / 2 - TILT, truth)
    assert losses["vector"] - ideal < 0.005 * 10_000 < 0.02 * 10_000 < losses["temperature"] - ideal


@pytest.mark.parametrize(("n", "worse"), [(30, 0.06), (300, 0.02), (3000, 0.003)])
def test_small_splits_stay_near_temperature_scaling(n: int, worse: float) -> None:
    """Where a temperature is all there is to find, 20 numbers for 10 classes lose little on other images."""
    fresh, truth = drawn(5000, 10, 1.5, 99)
    lost = []
    for seed in range(5):
        logits, labels = drawn(n, 10, 1.5, seed)
        one, other = (fit_calibration(logits[:, None], labels, kind) for kind in KINDS)
        moved = surprise(other.apply(fresh[:, None])[:, 0], truth)
        lost.append((moved - surprise(one.apply(fresh[:, None])[:, 0], truth)) / 5000)
    assert np.mean(lost) < worse


def test_fifty_thousand_images_ten_exits_and_ten_classes_in_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 50_000)
    logits = rng.standard_normal((50_000, 10, 10))
    logits[np.arange(50_000), :, labels] += 2
    start = time.process_time()
    fit_calibration(logits, labels, "vector")
    assert time.process_time() - start < 15


# --- odd input ----------------------------------------------------------------------------------------


def odd_splits() -> dict[str, tuple[Floats, Labels]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    noise = rng.normal(size=(40, 1, 3))
    ideal = 50 * np.eye(3)[labels][:, None]
    return {
        "a class absent": (noise, labels % 2),
        "only one class there": (noise, np.full(40, 2)),
        "perfectly separated": (ideal, labels),
        "always wrong": (ideal, (labels + 1) % 3),
        "zeros": (np.zeros((40, 1, 3)), labels),
        "one class has one logit": (noise * [1, 1, 0] + 0.1, labels),
        "constants": (np.broadcast_to([3.0, 0.1, -7.0], (40, 1, 3)), labels),
        "one class at all": (noise[:, :, :1], labels * 0),
        "one image": (noise[:1], labels[:1]),
        "as large as fp32 goes": (noise * 3e38, labels),
        "far from 0": (noise + 1e7, labels),
        "tiny": (noise * 1e-30, labels),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", odd_splits())
def test_odd_splits_give_usable_numbers(name: str, kind: str) -> None:
    logits, labels = odd_splits()[name]
    found = fit_calibration(logits, labels, kind)
    likely = softmax(found.apply(logits))
    assert np.isfinite(likely).all()
    before = surprise(logits[:, 0] / fit_temperature(logits[:, 0], labels), labels)
    assert surprise(found.apply(logits)[:, 0], labels) <= before * (1 + 1e-9) + 1e-6


def test_a_class_never_seen_is_held_less_likely_but_possible() -> None:
    logits, labels = drawn(300, 4, 1.0)
    labels = np.where(labels == 3, 0, labels)
    likely = softmax(fit_calibration(logits[:, None], labels, "vector").apply(logits[:, None]))[:, 0]
    plain = softmax(fit_calibration(logits[:, None], labels).apply(logits[:, None]))[:, 0]
    assert 0 < likely[:, 3].mean() < 0.5 * plain[:, 3].mean()


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_logits_are_refused(bad: float) -> None:
    logits = np.zeros((3, 2, 2))
    logits[1, 0, 1] = bad
    labels = np.zeros(3, int)
    for kind in KINDS:
        with pytest.raises(InputError, match="1 of 12 logits"):
            fit_calibration(logits, labels, kind)
    with pytest.raises(InputError, match="1 of 12 logits"):
        confidence(logits, np.ones(2))
    with pytest.raises(InputError, match="1 of 12 logits"):
        Calibration.of_temperatures([1, 1]).apply(logits)
    with pytest.raises(InputError):
        fit_temperature(logits[:, 0], labels)
    with pytest.raises(InputError):
        softmax(logits)


def test_labels_and_temperatures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="labels run from 0 to 2"):
        fit_temperature(np.zeros((3, 2)), np.array([0, 1, 2]))
    with pytest.raises(InputError, match="labels have shape"):
        fit_temperature(np.zeros((3, 2)), np.array([0, 1]))
    with pytest.raises(InputError, match="whole numbers"):
        fit_temperature(np.zeros((2, 2)), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="labels have shape"):
        fit_calibration(np.zeros((3, 2, 2)), np.array([0, 1]))
    with pytest.raises(InputError, match="above 0"):
        confidence(np.zeros((3, 2, 2)), np.array([1.0, 0.0]))
    with pytest.raises(InputError, match="one per exit"):
        as_temperatures(np.array([1.0]), 2)
    with pytest.raises(InputError, match="an axis is empty"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(ConfigError, match="unknown calibration 'matrix'"):
        fit_calibration(np.zeros((3, 2, 2)), np.zeros(3, int), "matrix")


def test_logits_that_a_calibration_is_not_for_are_refused() -> None:
    one = Calibration("vector", np.ones((2, 3)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="for 2 exits and 3 classes"):
        one.apply(np.zeros((5, 2, 4)))
    with pytest.raises(InputError, match="for 2 exits"):
        Calibration.of_temperatures([1, 2]).apply(np.zeros((5, 3, 4)))
    with pytest.raises(InputError, match="overflow"):
        Calibration.of_temperatures([0.05]).apply(np.full((1, 1, 2), 1e308))
    for exit in (0, 3, 1.5, True, "1"):
        with pytest.raises(ConfigError, match="for exits 1 to 2"):
            one.upto(exit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "scales", "shifts"),
    [
        ("vector", np.ones((2, 3)), np.zeros((2, 2))),
        ("vector", np.ones(3), np.zeros(3)),
        ("vector", np.ones((0, 3)), np.zeros((0, 3))),
        ("vector", np.full((1, 2), np.nan), np.zeros((1, 2))),
        ("temperature", np.ones((2, 3)), np.zeros((2, 3))),
        ("temperature", np.zeros((2, 1)), np.zeros((2, 1))),
        ("temperature", np.ones((2, 1)), np.ones((2, 1))),
    ],
)
def test_numbers_that_are_no_calibration_are_refused(kind: str, scales: Floats, shifts: Floats) -> None:
    with pytest.raises(InputError):
        Calibration(kind, scales, shifts)


@pytest.mark.parametrize(
    "garbled",
    [
        None, [], "temperature", {}, {"kind": "temperature"}, {"kind": "matrix", "temperatures": [1.0]},
        {"kind": "temperature", "temperatures": []}, {"kind": "temperature", "temperatures": 1.0},
        {"kind": "temperature", "temperatures": [1.0, None]}, {"kind": "temperature", "temperatures": [True]},
        {"kind": "temperature", "temperatures": [-1.0]}, {"kind": "temperature", "temperatures": ["1"]},
        {"kind": "temperature", "temperatures": [np.inf]}, {"kind": "temperature", "temperatures": "11"},
        {"kind": "temperature", "temperatures": [[1.0]]}, {"kind": "temperature", "temperatures": [10**400]},
        {"kind": "temperature", "temperatures": [1.0], "more": 1}, {"kind": [], "temperatures": [1.0]},
        {"kind": "vector", "temperatures": [1.0]}, {"kind": "vector", "scales": [[1.0]]},
        {"kind": "vector", "scales": [[1.0, 1.0]], "shifts": [[1.0]]},
        {"kind": "vector", "scales": [[1.0, 1.0], [1.0]], "shifts": [[0.0, 0.0], [0.0]]},
        {"kind": "vector", "scales": [[float("nan")]], "shifts": [[0.0]]},
        {"kind": "vector", "scales": [1.0], "shifts": [0.0]},
        {"kind": "vector", "scales": None, "shifts": None},
    ],
)  # fmt: skip
def test_garbled_calibrations_are_refused(garbled: object) -> None:
    with pytest.raises(ConfigError, match="calibration"):
        Calibration.from_dict(garbled)
