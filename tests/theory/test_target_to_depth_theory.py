"""theory/target_to_depth.md, checked: looks, depths, what is lost by looking, and the rule with a target."""

import numpy as np
import pytest
from scipy.stats import binom

from odn_hybrid.stopping import choose_depth, look_level, smallest_drop


def test_no_look_chooses_a_bad_exit_too_often():
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


@pytest.mark.parametrize(("n", "look"), [(500, 1), (500, 30), (3000, 1), (3000, 30)])
def test_the_smallest_tolerance_is_near_the_bound_of_every_valid_test(n, look):
    level = look_level(0.05, look)
    bound = 1 - level ** (1 / n)
    assert bound <= smallest_drop(n, level) <= 1.15 * bound


def test_the_target_rule_is_a_point_estimate_with_a_hoeffding_bound():
    """What `static_choice` of deploy/truncation/choice.py does with a target, against the binomial law."""
    from odn_hybrid.config import ChoiceConfig
    from odn_hybrid.deploy.truncation.choice import static_choice
    from odn_hybrid.outputs import ExitRecord

    n, target, slack, trials = 400, 0.9, 0.05, 200
    choice = ChoiceConfig(target_accuracy=target, tolerance=0.0)
    passed = {0.0: 0, slack: 0}
    rng = np.random.default_rng(0)
    for gap in passed:
        for _ in range(trials):
            right = rng.random(n) < target - gap
            logits = np.zeros((n, 2, 2), np.float32)
            logits[:, 0, 1] = np.where(right, 1.0, -1.0)
            logits[:, 1, 1] = 1.0
            record = ExitRecord(logits, np.ones(n, np.int64), "")
            passed[gap] += static_choice(None, choice, None, record, 2, [True, True])["exit"] == 1
    assert 0.35 < passed[0.0] / trials < 0.65  # exactly at the target: every second time
    assert passed[slack] <= binom.ppf(0.999, trials, np.exp(-2 * n * slack**2))
