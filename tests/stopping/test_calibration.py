import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn_hybrid.errors import InputError
from odn_hybrid.stopping import confidence, expected_calibration_error, fit_temperature, softmax


def _drawn(n: int, classes: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels really follow softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, classes))
    noise = rng.gumbel(size=(n, classes))
    return logits, (logits / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_recovers_the_temperature_that_made_the_labels(temperature):
    logits, labels = _drawn(20_000, 5, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


@given(st.integers(0, 10_000), st.floats(0.2, 4.0))
def test_no_other_temperature_explains_the_labels_better(seed, other):
    """Labels and the prior on log T, of deviation 0.5, that keeps small splits sane."""
    logits, labels = _drawn(60, 3, 1.0, seed)
    rows = np.arange(len(labels))

    def evidence(t: float) -> float:
        return float(np.log(softmax(logits, t)[rows, labels]).sum()) - 2 * np.log(t) ** 2

    assert evidence(fit_temperature(logits, labels)) >= evidence(other) - 1e-4


def test_a_small_split_without_errors_does_not_make_every_confidence_one():
    logits = 4 * _drawn(100, 10, 1.0)[0]
    labels = logits.argmax(axis=1)
    assert fit_temperature(logits, labels) > 0.2


def test_temperature_scales_with_the_logits_and_calibrates():
    logits, labels = _drawn(5_000, 4, 1.0)
    over = 4 * logits
    fitted = fit_temperature(over, labels)
    assert fitted == pytest.approx(4 * fit_temperature(logits, labels), rel=1e-2)
    before = expected_calibration_error(softmax(over), labels)
    after = expected_calibration_error(softmax(over, fitted), labels)
    assert after < 0.03 < before


def test_degenerate_calibration_data_give_a_finite_temperature():
    perfect = np.eye(3)[[0, 1, 2, 0]] * 5
    assert 0 < fit_temperature(perfect, np.array([0, 1, 2, 0])) < 1
    assert 1 < fit_temperature(perfect, np.array([1, 2, 0, 1])) < np.inf
    assert fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1.0
    assert fit_temperature(np.ones((2, 1)), np.array([0, 0])) == 1.0


def test_softmax_and_confidence_agree_and_survive_large_logits():
    logits = np.random.default_rng(0).normal(size=(7, 3, 4)) * 1e5
    temperatures = np.array([0.5, 1.0, 2.0])
    scores = confidence(logits, temperatures)
    assert scores.shape == (7, 3)
    np.testing.assert_allclose(scores, softmax(logits, temperatures).max(axis=2))
    np.testing.assert_allclose(softmax(logits, temperatures).sum(axis=2), 1)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_confidence_lies_between_chance_and_one(seed, exits, classes):
    logits = np.random.default_rng(seed).normal(size=(5, exits, classes)) * 3
    scores = confidence(logits, np.ones(exits))
    assert (scores >= 1 / classes - 1e-12).all()
    assert (scores <= 1).all()


def test_calibration_error_of_known_cases():
    assert expected_calibration_error(np.eye(2), np.array([0, 1])) == 0
    assert expected_calibration_error(np.eye(2), np.array([1, 0])) == 1
    assert expected_calibration_error(np.full((4, 2), 0.5), np.array([0, 1, 0, 1])) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_logits_are_refused(bad):
    logits = np.zeros((3, 2, 2))
    logits[1, 0, 1] = bad
    with pytest.raises(InputError, match="1 of 12 logits"):
        confidence(logits, np.ones(2))
    with pytest.raises(InputError):
        fit_temperature(logits[:, 0], np.zeros(3, int))
    with pytest.raises(InputError):
        softmax(logits)


def test_labels_and_temperatures_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="labels run from 0 to 2"):
        fit_temperature(np.zeros((3, 2)), np.array([0, 1, 2]))
    with pytest.raises(InputError, match="labels have shape"):
        fit_temperature(np.zeros((3, 2)), np.array([0, 1]))
    with pytest.raises(InputError, match="whole numbers"):
        fit_temperature(np.zeros((2, 2)), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="above 0"):
        confidence(np.zeros((3, 2, 2)), np.array([1.0, 0.0]))
    with pytest.raises(InputError, match="one per exit"):
        confidence(np.zeros((3, 2, 2)), np.array([1.0]))
    with pytest.raises(InputError, match="an axis is empty"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(InputError, match="sum to 1"):
        expected_calibration_error(np.ones((2, 2)), np.array([0, 1]))
