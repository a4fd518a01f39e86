"""The betting test (theory/certificate.md): validity, laws, records, bad input."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from odn_hybrid.errors import CertificateError, ConfigError, InputError
from odn_hybrid.stopping import (
    BettingTest,
    BoundedCertificate,
    PairedTest,
    brier_scores,
    certify_bounded,
    certify_paired,
    read_certificate,
    top_k_correct,
)
from odn_hybrid.stopping.promises.betting import data_order

DROP, DELTA = 0.01, 0.05


def _outcome(n: int, wrong: int, right: int) -> np.ndarray:
    change = np.zeros(n)
    change[:wrong], change[wrong : wrong + right] = 1, -1
    return change


def _losses(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    before = rng.random(n)
    return before, np.clip(before + rng.normal(0.002, 0.05, n), 0, 1)


@pytest.mark.parametrize("kind", ["rare", "skewed", "wide"])
def test_false_certificates_at_the_boundary(kind):
    rng = np.random.default_rng(4)
    n, trials = 300, 1500
    draw = {
        "rare": lambda: rng.choice([1.0, -1.0, 0.0], p=[0.015, 0.005, 0.98], size=n),
        "skewed": lambda: np.where(rng.random(n) < 0.05, 1.0, -0.04 / 0.95),
        "wide": lambda: rng.choice([1.0, -1.0], p=[0.505, 0.495], size=n),
    }[kind]
    false = sum(BettingTest(draw(), 1.0, DROP, DELTA).rejects() for _ in range(trials))
    assert false <= binom.ppf(0.999, trials, DELTA)


def test_the_upper_bound_covers_other_means_than_the_promised_one():
    rng = np.random.default_rng(5)
    for mean in (-0.1, 0.0, 0.2):
        tests = (BettingTest(rng.uniform(-0.5, 0.5, 200) + mean, 1.0, DROP, DELTA) for _ in range(400))
        assert sum(test.upper_bound() < mean for test in tests) <= binom.ppf(0.999, 400, DELTA)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=120),
    st.sampled_from([0.0, 0.02, 0.3]),
)
def test_bound_and_decision_agree_and_p_values_fall_with_the_mean_tested(values, drop):
    test = BettingTest(np.array(values), 1.0, drop, 0.1)
    assert (test.upper_bound() <= drop) == test.rejects() == (test.p_value() <= 0.1)
    capital = [test._log_capital(m) for m in np.linspace(-0.999, 1, 60)]
    assert (np.diff(capital) >= -1e-9).all()


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.randoms())
def test_the_order_of_images_does_not_matter(values, random):
    rows = [(value, random.random()) for value in values]
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = (
        certify_bounded(*np.array(some).T, low=0, high=1, drop=0.1, delta=0.1) for some in (rows, shuffled)
    )
    assert one == other


def test_the_order_is_the_same_in_every_release():
    ordered, digest = data_order([3.0, -0.0, 1.0, 2.0, 0.0])
    assert digest.startswith("57dac0cb")
    assert ordered.tolist() == [1.0, 3.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(("b", "c"), [(0.01, 0.007), (0.004, 0.001)])
def test_the_exact_test_has_more_power_on_right_and_wrong_answers(b, c):
    rng = np.random.default_rng(6)
    drawn = [(int(x), int(y)) for x, y, _ in rng.multinomial(1000, [b, c, 1 - b - c], size=300)]
    exact = np.mean([PairedTest(1000, x, y, DROP, DELTA).rejects() for x, y in drawn])
    betting = np.mean([BettingTest(_outcome(1000, x, y), 1.0, DROP, DELTA).rejects() for x, y in drawn])
    assert 0.2 < betting < exact


def test_an_earned_certificate_says_what_was_promised_and_goes_through_json():
    found = certify_bounded(
        *_losses(3000), low=0, high=1, drop=0.02, delta=0.05, measure="Brier score", data="the scans"
    )
    assert found.certified and found.needed_n is None and found.require() is found
    assert 0.002 < found.upper_bound <= 0.02
    assert (
        "mean Brier score rises against the reference by at most 0.02 with confidence 0.95" in found.statement
    )
    assert "exchangeable with the scans" in found.statement
    assert read_certificate(json.loads(json.dumps(found.to_dict()))) == found


def test_a_refusal_says_how_many_images_would_do_or_that_none_would():
    before, after = _losses(60)
    found = certify_bounded(before, after, low=0, high=1, drop=0.02, delta=0.05)
    assert not found.certified and found.needed_n is not None
    assert f"about {found.needed_n} images" in found.statement
    with pytest.raises(CertificateError, match="not certified"):
        found.require()
    more = np.tile([before, after], math.ceil(1.2 * found.needed_n / 60))
    assert certify_bounded(*more, low=0, high=1, drop=0.02, delta=0.05).certified
    none = certify_bounded(before, np.minimum(before + 0.1, 1), low=0, high=1, drop=0.02, delta=0.05)
    assert none.needed_n is None and "no number of images would do" in none.statement


@pytest.mark.parametrize("n", [1, 2, 50, 700])
def test_constant_and_equal_losses_have_an_answer(n):
    same = certify_bounded(np.full(n, 0.5), np.full(n, 0.5), low=0, high=1, drop=0.02, delta=0.05)
    assert same.certified == (n == 700) and 0 < same.upper_bound <= 1
    assert same.certified or same.needed_n > n
    worse = certify_bounded(np.zeros(n), np.ones(n), low=0, high=1, drop=0.02, delta=0.05)
    assert not worse.certified and worse.needed_n is None and worse.upper_bound == 1
    better = certify_bounded(np.full(n, 2.0), np.zeros(n), low=0, high=2, drop=0.0, delta=0.05)
    assert better.certified == (n >= 50)


def test_scale_and_shift_of_a_loss_do_not_matter():
    before, after = _losses(500)
    one = certify_bounded(before, after, low=0, high=1, drop=0.01, delta=0.05)
    other = certify_bounded(8 * before - 4, 8 * after - 4, low=-4, high=4, drop=0.08, delta=0.05)
    assert other.p_value == pytest.approx(one.p_value, rel=0.5)  # another digest, another order
    assert other.difference == pytest.approx(8 * one.difference)


def test_bad_arguments_are_refused():
    before, after = _losses(20)
    for bad in (np.nan, np.inf, -0.1, 1.1):
        spoilt = after.copy()
        spoilt[3] = bad
        with pytest.raises(InputError):
            certify_bounded(before, spoilt, low=0, high=1, drop=0.1, delta=0.1)
    for one, other in (
        (before, after[:-1]),
        (before[:0], after[:0]),
        (before[None], after[None]),
        ("x", "y"),
    ):
        with pytest.raises(InputError):
            certify_bounded(one, other, low=0, high=1, drop=0.1, delta=0.1)
    for changed in (
        {"low": 1}, {"high": np.inf}, {"low": "a"}, {"drop": 1.0}, {"drop": -0.1}, {"drop": np.nan},
        {"delta": 0}, {"delta": 1.0},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            certify_bounded(before, after, **{"low": 0, "high": 1, "drop": 0.1, "delta": 0.1, **changed})


def test_a_record_that_contradicts_itself_is_refused():
    values = certify_bounded(*_losses(60), low=0, high=1, drop=0.02, delta=0.05).to_dict()
    for changed in (
        {"certified": True, "needed_n": None}, {"upper_bound": 0.01}, {"p_value": 0.01}, {"n": 0},
        {"high": -1.0}, {"delta": 2}, {"difference": 5.0}, {"upper_bound": "low"}, {"digest": 3},
    ):  # fmt: skip
        with pytest.raises(CertificateError, match="certify again"):
            read_certificate({**values, **changed})
    with pytest.raises(CertificateError):
        BoundedCertificate.from_dict({"certified": True})
    with pytest.raises(CertificateError):
        read_certificate({**values, "method": "a feeling"})
    paired = certify_paired(np.ones(500, bool), np.ones(500, bool), drop=0.02, delta=0.05)
    assert read_certificate(paired.to_dict()) == paired


def test_losses_from_logits():
    logits, labels = np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]]), np.array([1, 0, 0])
    assert top_k_correct(logits, labels, 1).tolist() == [False, False, False]  # ties count against the label
    assert top_k_correct(logits, labels, 2).tolist() == [True, False, False]
    assert top_k_correct(logits, labels, 3).all()
    found = brier_scores(logits, labels)
    share = np.exp([3, 2, 1]) / np.exp([3, 2, 1]).sum()
    assert found[0] == pytest.approx(share[0] ** 2 + (1 - share[1]) ** 2 + share[2] ** 2)
    assert found[1] == pytest.approx(2 / 3)
    assert brier_scores([[1000.0, -1000.0]], [1]) == pytest.approx([2.0])
    assert brier_scores([[5.0]], [0]) == pytest.approx([0.0])
    with pytest.raises(InputError):
        brier_scores([[np.nan, 1.0]], [0])
    with pytest.raises(ConfigError):
        top_k_correct(logits, labels, 4)
