import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping import clopper_pearson, wilson

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.floats(0.5, 0.999))
def test_intervals_hold_the_observed_share_and_stay_in_the_unit_interval(count, level):
    successes, n = count
    for low, high in (wilson(successes, n, level), clopper_pearson(successes, n, level)):
        assert 0 <= low <= successes / n <= high <= 1


@given(counts)
def test_intervals_treat_success_and_failure_alike(count):
    successes, n = count
    for interval in (wilson, clopper_pearson):
        low, high = interval(successes, n)
        other = interval(n - successes, n)
        assert other == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_wilson_matches_published_values():
    # Newcombe 1998, table I, method 3: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_clopper_pearson_matches_published_values():
    # Newcombe 1998, table I, method 5.
    assert clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert clopper_pearson(0, 20) == pytest.approx((0.0, 0.1684), abs=5e-5)


def test_one_sided_bounds_solve_their_defining_equations():
    low, high = clopper_pearson(3, 50, 0.95, side="upper")
    assert low == 0
    assert binom.cdf(3, 50, high) == pytest.approx(0.05)
    low, high = clopper_pearson(3, 50, 0.95, side="lower")
    assert high == 1
    assert binom.sf(2, 50, low) == pytest.approx(0.05)
    assert clopper_pearson(0, 50, 0.95, side="upper")[1] == pytest.approx(1 - 0.05 ** (1 / 50))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_clopper_pearson_covers_at_least_its_level(share):
    n, inside = 40, 0.0
    for k in range(n + 1):
        low, high = clopper_pearson(k, n, 0.9)
        inside += binom.pmf(k, n, share) * (low <= share <= high)
    assert inside >= 0.9


@pytest.mark.parametrize("count", [(-1, 5), (6, 5), (0, 0), (1.5, 5), (math.nan, 5)])
def test_impossible_counts_are_refused(count):
    with pytest.raises(InputError):
        wilson(*count)
    with pytest.raises(InputError):
        clopper_pearson(*count)


def test_bad_level_and_side_are_refused():
    with pytest.raises(ConfigError, match=r"level is 1\.5"):
        wilson(1, 2, 1.5)
    with pytest.raises(ConfigError, match="side is 'left'"):
        clopper_pearson(1, 2, side="left")
