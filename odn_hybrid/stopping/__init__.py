"""Optimal stopping on arrays of exit outputs: policies, calibration, certificates; numpy and scipy only.

Nothing here sees a network: every function takes logits, labels or right/wrong answers as arrays.
"""

from odn_hybrid.stopping.calibration import confidence, expected_calibration_error, fit_temperature, softmax
from odn_hybrid.stopping.certificate import Certificate, certify_paired, smallest_drop
from odn_hybrid.stopping.intervals import clopper_pearson, wilson
from odn_hybrid.stopping.noninferiority import Choice, choose_depth, look_level
from odn_hybrid.stopping.paired import PairedTest
from odn_hybrid.stopping.policies import (
    NEVER,
    ConfidencePolicy,
    HaltingPolicy,
    ThresholdChoice,
    choose_threshold,
    confidence_candidates,
    evaluate,
)

__all__ = [
    "NEVER",
    "Certificate",
    "Choice",
    "ConfidencePolicy",
    "HaltingPolicy",
    "PairedTest",
    "ThresholdChoice",
    "certify_paired",
    "choose_depth",
    "choose_threshold",
    "clopper_pearson",
    "confidence",
    "confidence_candidates",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "look_level",
    "smallest_drop",
    "softmax",
    "wilson",
]
