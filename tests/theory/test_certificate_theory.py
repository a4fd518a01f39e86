"""theory/certificate.md, checked: false certificates, coverage, monotone regions."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from odn_hybrid.stopping import PairedTest

DROP, DELTA = 0.01, 0.05


@cache
def _certified(n: int, wrong: int, right: int, drop: float = DROP, delta: float = DELTA) -> bool:
    return PairedTest(n, wrong, right, drop, delta).rejects()


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


@pytest.mark.long
@pytest.mark.parametrize(("n", "q"), [(1000, 0.011), (1000, 0.03), (5000, 0.013), (5000, 0.05)])
def test_false_certificates_simulated_at_the_boundary(n, q):
    trials = 3000
    rates = [(q + DROP) / 2, (q - DROP) / 2, 1 - q]
    drawn = np.random.default_rng(1).multinomial(n, rates, size=trials)
    false = sum(_certified(n, int(b), int(c)) for b, c, _ in drawn)
    assert false <= binom.ppf(0.999, trials, DELTA)


@pytest.mark.long
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
