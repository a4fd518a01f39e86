"""Optimal stopping on arrays of exit outputs: policies, calibration, certificates; numpy and scipy only.

Nothing here sees a network: every function takes logits, labels or right/wrong answers as arrays.
"""

from odn_hybrid.stopping.betting import BettingTest
from odn_hybrid.stopping.bounded import BoundedCertificate, certify_bounded, read_certificate
from odn_hybrid.stopping.calibration import confidence, expected_calibration_error, fit_temperature, softmax
from odn_hybrid.stopping.certificate import Certificate, certify_paired, smallest_drop
from odn_hybrid.stopping.drift import DriftMonitor, DriftState
from odn_hybrid.stopping.families import FAMILIES, Member, oracle, policy_path, within_cost
from odn_hybrid.stopping.groups import GroupPromise, GroupsCertificate, certify_groups
from odn_hybrid.stopping.induction import Induction, backward_induction, one_step_ahead
from odn_hybrid.stopping.intervals import clopper_pearson, wilson
from odn_hybrid.stopping.losses import BRIER_RANGE, brier_scores, top_k_correct
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
from odn_hybrid.stopping.sequence import SequenceCertificate, certify_sequence, order_candidates
from odn_hybrid.stopping.tables import HaltingTable

__all__ = [
    "BRIER_RANGE",
    "FAMILIES",
    "NEVER",
    "BettingTest",
    "BoundedCertificate",
    "Certificate",
    "Choice",
    "ConfidencePolicy",
    "DriftMonitor",
    "DriftState",
    "GroupPromise",
    "GroupsCertificate",
    "HaltingPolicy",
    "HaltingTable",
    "Induction",
    "Member",
    "PairedTest",
    "SequenceCertificate",
    "ThresholdChoice",
    "backward_induction",
    "brier_scores",
    "certify_bounded",
    "certify_groups",
    "certify_paired",
    "certify_sequence",
    "choose_depth",
    "choose_threshold",
    "clopper_pearson",
    "confidence",
    "confidence_candidates",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "look_level",
    "one_step_ahead",
    "oracle",
    "order_candidates",
    "policy_path",
    "read_certificate",
    "smallest_drop",
    "softmax",
    "top_k_correct",
    "wilson",
    "within_cost",
]
