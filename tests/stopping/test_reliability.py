"""Reliability curves and calibration errors: definitions, and intervals that hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.policies.reliability import (
    BINNINGS,
    ece_interval,
    expected_calibration_error,
    reliability_curve,
)
from odn_hybrid.stopping.promises.intervals import wilson

Floats = NDArray[np.float64]


# --- curves -------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from(BINNINGS), st.integers(1, 9), st.booleans())
@settings(max_examples=60)
def test_every_input_is_in_one_bin(seed: int, binning: str, bins: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    sure = rng.integers(0, 5, 37) / 4 if ties else rng.random(37)
    right = rng.random(37) < sure
    found = reliability_curve(sure, right, bins, binning=binning, level=0.9)
    edges = np.array(found.edges)
    assert len(found.counts) <= bins and len(edges) == len(found.counts) + 1 and sum(found.counts) == 37
    for place, count in enumerate(found.counts):
        low, high = edges[place], edges[place + 1]
        if binning == "width":
            mine = (sure >= low) & ((sure < high) | (place == len(found.counts) - 1))
        else:
            mine = (sure <= high) & ((sure > low) | (place == 0))
        assert count == mine.sum()
        if not count:
            assert found.accuracy[place] is None and found.low[place] is None
            continue
        assert found.confidence[place] == pytest.approx(sure[mine].mean())
        assert found.accuracy[place] == pytest.approx(right[mine].mean())
        assert (found.low[place], found.high[place]) == wilson(int(right[mine].sum()), int(count), 0.9)
    assert json.loads(json.dumps(found.to_dict()))["counts"] == list(found.counts)


def test_bins_of_equal_mass_hold_equally_many() -> None:
    sure = np.random.default_rng(0).random(120) ** 0.1
    assert reliability_curve(sure, sure > 0.5, 6, binning="mass").counts == (20,) * 6
    assert min(reliability_curve(sure, sure > 0.5, 6).counts) < 5
    together = reliability_curve(np.full(9, 0.8), np.arange(9) < 6, 6, binning="mass")
    assert together.counts == (9,) and together.edges == (0.8, 0.8)
    assert together.error == pytest.approx(0.8 - 6 / 9)


@given(st.integers(0, 10_000), st.sampled_from(BINNINGS))
@settings(max_examples=30)
def test_permuting_inputs_changes_nothing(seed: int, binning: str) -> None:
    rng = np.random.default_rng(seed)
    sure = rng.random(60)
    right, order = rng.random(60) < 0.5, rng.permutation(60)
    one = reliability_curve(sure, right, binning=binning)
    other = reliability_curve(sure[order], right[order], binning=binning)
    assert one.edges == other.edges and one.counts == other.counts and one.accuracy == other.accuracy
    wide, same = (ece_interval(sure[at], right[at], binning=binning) for at in (slice(None), order))
    assert wide.value == pytest.approx(same.value, abs=1e-12)
    assert (wide.low, wide.high) == pytest.approx((same.low, same.high), abs=1e-12)


# --- calibration error --------------------------------------------------------------------------------


def test_calibration_error_of_known_cases() -> None:
    assert expected_calibration_error(np.eye(2), np.array([0, 1])) == 0
    assert expected_calibration_error(np.eye(2), np.array([1, 0])) == 1
    assert expected_calibration_error(np.full((4, 2), 0.5), np.array([0, 1, 0, 1])) == 0


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 20))
@settings(max_examples=40)
def test_one_error_by_three_ways(seed: int, classes: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    rows, labels = rng.dirichlet(np.ones(classes), 50), rng.integers(0, classes, 50)
    rows /= rows.sum(axis=1, keepdims=True)
    sure, right = np.minimum(rows.max(axis=1), 1), rows.argmax(axis=1) == labels
    error = expected_calibration_error(rows, labels, bins)
    assert reliability_curve(sure, right, bins).error == pytest.approx(error, abs=1e-12)
    assert ece_interval(sure, right, bins, resamples=10).value == pytest.approx(error, abs=1e-12)


def binned_error(sure: Floats, chance: Floats, binning: str, bins: int = 15) -> float:
    """The error without sampling noise: each bin's gap between mean chance and mean confidence."""
    edges = np.array(reliability_curve(sure, np.zeros(len(sure), bool), bins, binning=binning).edges)
    side = "right" if binning == "width" else "left"
    place = np.searchsorted(edges[1:-1], sure, side=side)
    return float(np.abs(np.bincount(place, chance - sure)).sum() / len(sure))


CASES = {
    "calibrated": lambda sure: sure,
    "overconfident": lambda sure: 0.5 + 0.8 * (sure - 0.5),
    "crossing": lambda sure: np.clip(sure + 0.08 * np.sin(12 * sure), 0, 1),
}


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("n", [200, 2000])
@pytest.mark.parametrize("case", CASES)
def test_the_interval_covers_the_error_without_noise(case: str, n: int, binning: str) -> None:
    """Over 150 draws of the answers at level 0.9; fewer than 124 hits happen once in about 500."""
    rng = np.random.default_rng(0)
    sure = 1 - 0.5 * rng.random(n) ** 2  # from 0.5 to 1, most near 1
    chance = CASES[case](sure)
    truth = binned_error(sure, chance, binning)
    found = [
        ece_interval(sure, rng.random(n) < chance, binning=binning, level=0.9, resamples=300)
        for _ in range(150)
    ]
    assert sum(one.low <= truth <= one.high for one in found) >= 124
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found)
    assert np.mean([one.high - one.low for one in found]) < 2.5 / np.sqrt(n)


def test_debiasing_removes_most_of_a_calibrated_networks_error() -> None:
    rng = np.random.default_rng(1)
    sure = 1 - 0.5 * rng.random(500) ** 2
    found = [ece_interval(sure, rng.random(500) < sure, resamples=300) for _ in range(40)]
    assert np.mean([one.value for one in found]) > 0.03
    assert np.mean([one.debiased for one in found]) < 0.7 * np.mean([one.value for one in found])
    wrong = ece_interval(sure, rng.random(500) < sure - 0.2)
    assert wrong.low > 0.1 and wrong.debiased == pytest.approx(0.2, abs=0.05)


def test_few_inputs_give_wide_intervals() -> None:
    one = ece_interval([0.9], [True])
    assert one.low == 0 and one.high > 0.5 and one.n == 1
    sure = ece_interval(np.ones(30), np.ones(30, bool))
    assert sure.value == sure.debiased == sure.low == 0 and 0.02 < sure.high < 0.3


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", [reliability_curve, ece_interval])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"confidence": [0.5, 1.2]}, "from 0 to 1"),
        ({"confidence": [0.5, np.nan]}, "from 0 to 1"),
        ({"confidence": [0.5]}, "one per answer"),
        ({"confidence": ["a", "b"]}, "not an array of numbers"),
        ({"right": [1, 0]}, "boolean"),
        ({"right": []}, "boolean"),
        ({"bins": 0}, "bins is 0"),
        ({"bins": 2.5}, "bins is 2.5"),
        ({"binning": "luck"}, "width, mass"),
        ({"level": 1.0}, "level is 1.0"),
    ],
)
def test_bad_input(solve: object, change: dict[str, object], says: str) -> None:
    given = {"confidence": [0.5, 0.9], "right": [True, False], **change}
    with pytest.raises((InputError, ConfigError), match=says):
        solve(**given)  # type: ignore[operator]


def test_probabilities_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="sum to 1"):
        expected_calibration_error(np.ones((2, 2)), np.array([0, 1]))
    with pytest.raises(ConfigError, match="bins is 0"):
        expected_calibration_error(np.eye(2), np.array([0, 1]), bins=0)
    with pytest.raises(ConfigError, match="resamples is 0"):
        ece_interval([0.5], [True], resamples=0)
