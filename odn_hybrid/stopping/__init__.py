"""Optimal stopping on arrays of exit outputs: policies, calibration, certificates; numpy and scipy only.

Nothing here sees a network: every function takes logits, labels or right/wrong answers as arrays.
"""

from odn_hybrid.stopping.limits.continuous import StoppingProblem, StoppingSolution, solve_stopping
from odn_hybrid.stopping.limits.decay import Decay, better_decay, fit_decay
from odn_hybrid.stopping.limits.depth_bound import (
    geometric_depth,
    power_depth,
    separated_depth,
    summable_depth,
)
from odn_hybrid.stopping.limits.diffusion import DiffusionEstimate, estimate_diffusion
from odn_hybrid.stopping.policies.calibration import Calibration, fit_calibration, fit_temperature, softmax
from odn_hybrid.stopping.policies.evaluating import curve, evaluate, held_out_path, outcomes, within_cost
from odn_hybrid.stopping.policies.families import FAMILIES, Member, oracle, policy_path
from odn_hybrid.stopping.policies.induction import Induction, backward_induction, one_step_ahead
from odn_hybrid.stopping.policies.looking import Looker, One, Seen
from odn_hybrid.stopping.policies.reliability import (
    CalibrationError,
    ReliabilityCurve,
    ece_interval,
    expected_calibration_error,
    reliability_curve,
)
from odn_hybrid.stopping.policies.scores import SCORES, readiness
from odn_hybrid.stopping.policies.tables import NEVER, HaltingTable
from odn_hybrid.stopping.policies.trees import TreeInduction, exit_features, tree_induction
from odn_hybrid.stopping.promises.betting import BettingTest
from odn_hybrid.stopping.promises.bounded import BoundedCertificate, certify_bounded, read_certificate
from odn_hybrid.stopping.promises.certificate import Certificate, certify_paired, smallest_drop
from odn_hybrid.stopping.promises.groups import GroupPromise, GroupsCertificate, certify_groups
from odn_hybrid.stopping.promises.intervals import clopper_pearson, wilson
from odn_hybrid.stopping.promises.losses import BRIER_RANGE, brier_scores, top_k_correct
from odn_hybrid.stopping.promises.noninferiority import Choice, choose_depth, look_level
from odn_hybrid.stopping.promises.paired import PairedTest
from odn_hybrid.stopping.promises.sequence import (
    SequenceCertificate,
    certify_sequence,
    order_candidates,
    predicted_power,
)
from odn_hybrid.stopping.watching.drift import DriftMonitor, DriftState

__all__ = [
    "BRIER_RANGE",
    "FAMILIES",
    "NEVER",
    "SCORES",
    "BettingTest",
    "BoundedCertificate",
    "Calibration",
    "CalibrationError",
    "Certificate",
    "Choice",
    "Decay",
    "DiffusionEstimate",
    "DriftMonitor",
    "DriftState",
    "GroupPromise",
    "GroupsCertificate",
    "HaltingTable",
    "Induction",
    "Looker",
    "Member",
    "One",
    "PairedTest",
    "ReliabilityCurve",
    "Seen",
    "SequenceCertificate",
    "StoppingProblem",
    "StoppingSolution",
    "TreeInduction",
    "backward_induction",
    "better_decay",
    "brier_scores",
    "certify_bounded",
    "certify_groups",
    "certify_paired",
    "certify_sequence",
    "choose_depth",
    "clopper_pearson",
    "curve",
    "ece_interval",
    "estimate_diffusion",
    "evaluate",
    "exit_features",
    "expected_calibration_error",
    "fit_calibration",
    "fit_decay",
    "fit_temperature",
    "geometric_depth",
    "held_out_path",
    "look_level",
    "one_step_ahead",
    "oracle",
    "order_candidates",
    "outcomes",
    "policy_path",
    "power_depth",
    "predicted_power",
    "read_certificate",
    "readiness",
    "reliability_curve",
    "separated_depth",
    "smallest_drop",
    "softmax",
    "solve_stopping",
    "summable_depth",
    "top_k_correct",
    "tree_induction",
    "wilson",
    "within_cost",
]
