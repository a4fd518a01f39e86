"""Agreement with MAPIE's risk control (Learn Then Test) where both answer the same question.

MAPIE is not among the project's dependencies; `pip install mapie` to run these tests (last run with 1.6.0).
Its promise is about one model's accuracy, not about a paired drop. The two questions coincide where the
reference is always right: then the drop is the error rate. MAPIE's p-value is there the binomial one, which
is exact; ours allows for newly right images too, and pays for that with a little power.
"""

import warnings

import numpy as np
import pytest

from odn_hybrid.stopping import certify_paired, certify_sequence

mapie = pytest.importorskip("mapie.risk_control", reason="mapie is not installed")

DROP, DELTA = 0.02, 0.1
THRESHOLDS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6])  # a strict policy accepts nearly all of these scores


def _theirs(scores: np.ndarray) -> int:
    """How many thresholds MAPIE certifies to have accuracy 1 - DROP, by fixed sequence."""
    controller = mapie.BinaryClassificationController(
        predict_function=lambda x: np.column_stack([1 - x, x]),
        risk=mapie.accuracy,
        target_level=1 - DROP,
        confidence_level=1 - DELTA,
        list_predict_params=THRESHOLDS,
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where nothing can be certified
        controller.calibrate(scores, np.ones(len(scores), int))
    return len(controller.valid_predict_params)


def _ours(scores: np.ndarray) -> int:
    right = scores[None, :] >= THRESHOLDS[:, None]
    found = certify_sequence(np.ones(len(scores), bool), right, drop=DROP, delta=DELTA)
    return sum(one.certified for one in found.tested)


def _their_p_values(scores: np.ndarray) -> np.ndarray:
    """Their p-value for every threshold.

    The rate is nudged: they recover the count of errors by rounding n * rate upwards, which floating point
    often turns into one error more than there was.
    """
    methods = pytest.importorskip("mapie.risk_control.methods")
    rates = (scores[None, :] < THRESHOLDS[:, None]).mean(axis=1) - 1e-12
    return methods.compute_hoeffding_bentkus_p_value(np.maximum(rates, 0), len(scores), DROP, binary=True)[
        :, 0
    ]


@pytest.mark.parametrize("n", [300, 1000])
def test_the_same_thresholds_are_certified(n):
    rng = np.random.default_rng(n)
    both = []
    for trial in range(100):
        scores = rng.beta(1.0, 0.04, size=n)  # 0.5 % to 3 % lie below the thresholds
        passes = np.append(_their_p_values(scores) <= DELTA, False)
        both.append((int(passes.argmin()), _ours(scores)))
        if trial < 40:
            assert _theirs(scores) <= both[-1][0]  # the whole of MAPIE, with its rounding
    theirs, ours = np.array(both).T
    assert len(np.unique(theirs)) >= 4  # the simulation asks something
    assert (theirs == ours).mean() >= 0.95
    assert np.abs(theirs - ours).max() <= 1


def test_on_paired_answers_ours_certifies_wherever_the_clipped_loss_is():
    """MAPIE can bound the rate of newly wrong images, which bounds the drop: then ours certifies as well."""
    rng = np.random.default_rng(5)
    more = 0
    for _ in range(60):
        n = 1500
        kinds = rng.choice(3, p=[0.975, 0.014, 0.011], size=n)  # unchanged, newly wrong, newly right
        before, after = kinds != 2, kinds != 1
        controller = mapie.BinaryClassificationController(
            predict_function=lambda x: np.column_stack([1 - x, x]),
            risk=mapie.accuracy,
            target_level=1 - DROP,
            confidence_level=1 - DELTA,
            list_predict_params=np.array([0.5]),
            fwer_method="fixed_sequence",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller.calibrate(np.where(after | ~before, 0.9, 0.1), np.ones(n, int))
        theirs = len(controller.valid_predict_params) > 0
        ours = certify_paired(before, after, drop=DROP, delta=DELTA).certified
        assert ours or not theirs
        more += ours and not theirs
    assert more > 10
