"""theory/certificate.md, checked: false certificates, coverage, monotone regions, power, looks and depths."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from odn_hybrid.stopping import PairedTest, choose_depth, clopper_pearson

PAGE = Path(__file__).resolve().parents[2] / "theory" / "certificate.md"
DROP, DELTA = 0.01, 0.05


@cache
def _certified(n: int, wrong: int, right: int, drop: float = DROP, delta: float = DELTA) -> bool:
    return PairedTest(n, wrong, right, drop, delta).rejects()


@cache
def _box(n: int, wrong: int, right: int) -> bool:
    high = clopper_pearson(wrong, n, 1 - 0.75 * DELTA, side="upper")[1]
    return high - clopper_pearson(right, n, 1 - 0.25 * DELTA, side="lower")[0] <= DROP


@pytest.mark.parametrize(
    ("n", "drop", "delta"), [(12, 0.3, 0.05), (40, 0.1, 0.05), (40, 0.1, 0.2), (25, 0.0, 0.1)]
)
def test_false_certificates_enumerated_at_the_boundary(n, drop, delta):
    """Every outcome of n images: the probability of certifying at b - c = drop, for a range of q."""
    table = [(b, c) for b in range(n + 1) for c in range(n + 1 - b) if _certified(n, b, c, drop, delta)]
    counts = np.array([(b, c, n - b - c) for b, c in table])
    sizes = []
    for q in np.linspace(max(drop, 1e-6), 1, 60):
        rates = [(q + drop) / 2, (q - drop) / 2, 1 - q]
        sizes.append(multinomial.pmf(counts, n, rates).sum())
    assert max(sizes) <= delta
    assert max(sizes) > 0.75 * delta  # and hardly any of delta is wasted


@pytest.mark.parametrize(("n", "q"), [(1000, 0.011), (1000, 0.03), (5000, 0.013), (5000, 0.05)])
def test_false_certificates_simulated_at_the_boundary(n, q):
    trials = 3000
    rates = [(q + DROP) / 2, (q - DROP) / 2, 1 - q]
    drawn = np.random.default_rng(1).multinomial(n, rates, size=trials)
    false = sum(_certified(n, int(b), int(c)) for b, c, _ in drawn)
    assert false <= binom.ppf(0.999, trials, DELTA)


def test_the_upper_bound_covers_other_drops_than_the_promised_one():
    n, trials = 400, 600
    for b, c in ((0.03, 0.0), (0.05, 0.02), (0.02, 0.03)):
        drawn = np.random.default_rng(2).multinomial(n, [b, c, 1 - b - c], size=trials)
        missed = sum(_bound(n, int(wrong), int(right)) < b - c for wrong, right, _ in drawn)
        assert missed <= binom.ppf(0.999, trials, DELTA)


@cache
def _bound(n: int, wrong: int, right: int) -> float:
    return PairedTest(n, wrong, right, DROP, DELTA).upper_bound()


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.2])
def test_lemma_1_the_certified_outcomes_are_monotone(drop):
    n = 45
    for b in range(n):
        for c in range(n - b):
            if _certified(n, b + 1, c, drop):
                assert _certified(n, b, c, drop)
            if _certified(n, b, c, drop):
                assert _certified(n, b, c + 1, drop)


@pytest.mark.parametrize(("b", "c"), [(0.01, 0.007), (0.015, 0.01), (0.004, 0.001)])
def test_the_page_shows_the_power_that_simulation_finds(b, c):
    row = re.search(rf"\| {100 * b:.2f} %, {100 * c:.2f} % \|(.*)\|", PAGE.read_text(encoding="utf-8"))
    assert row is not None
    cells = [tuple(map(float, cell.split("/"))) for cell in row[1].split("|")]
    rng = np.random.default_rng(0)
    for n, (box, exact) in zip((1000, 2000), cells, strict=False):
        drawn = [(int(x), int(y)) for x, y, _ in rng.multinomial(n, [b, c, 1 - b - c], size=2000)]
        assert np.mean([_box(n, *pair) for pair in drawn]) == pytest.approx(box, abs=0.03)
        assert np.mean([_certified(n, *pair) for pair in drawn]) == pytest.approx(exact, abs=0.03)
        assert exact >= box


def test_theorem_2_no_look_chooses_a_bad_exit_too_often():
    """Exits 1 and 2 lose exactly the tolerance, exit 3 nothing; the same images are looked at four times."""
    n, trials, tolerance, delta, changed = 120, 60, 0.06, 0.2, 0.03
    share = 1 - (1 - tolerance) / (1 - changed)  # with what changes at each look, the drop is the tolerance
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(trials):
        hard = rng.random(n)
        for look in range(1, 5):
            flip = rng.random((n, 2)) < changed  # each look has other weights
            correct = np.column_stack([hard > share, hard > share, hard >= 0, hard >= 0])
            correct[:, :2] &= ~flip
            found = choose_depth(correct, 4, np.ones(4, bool), tolerance, delta, look)
            if found.exit < 3:
                false += 1
                break
    assert false <= binom.ppf(0.999, trials, delta)
