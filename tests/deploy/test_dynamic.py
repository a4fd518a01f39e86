"""From recorded outputs to a policy and a promise: sequences, budgets, groups, other losses, the ledger."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch

from odn_hybrid import MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.halting.deciding import Decider
from odn_hybrid.deploy.promising.dynamic import (
    DynamicResult,
    Looks,
    evaluate_policy,
    make_dynamic,
    uncertified_policy,
)
from odn_hybrid.deploy.promising.promise import BoundedLoss, Promise, policy_digest, why_void
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.outputs import ExitRecord, weights_digest
from odn_hybrid.stopping import (
    FAMILIES,
    GroupsCertificate,
    Member,
    SequenceCertificate,
    look_level,
    policy_path,
)

COSTS = (10, 25, 40, 70)


@cache
def network() -> MultiExit:
    """Only its weights' digest matters here."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5, channels=[8, 8, 8, 8])
    return MultiExit(Trunk(model, image_size=32), ExitConfig(every=2))


def record(n: int, seed: int, easy: float = 0.9) -> ExitRecord:
    """Four exits, five classes; most images are clear from the second exit on."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    clear = np.where(rng.random(n) < easy, 9.0, 3.0)[:, None] * np.array([0.3, 0.75, 0.85, 1.0])
    logits = rng.normal(size=(n, 4, 5)) + clear[:, :, None] * np.eye(5)[labels][:, None]
    return ExitRecord(logits.astype(np.float32), labels, f"split {seed}")


CALIBRATION, CERTIFICATION, FRESH = record(1500, 1), record(3000, 2), record(40_000, 3)


def made(ledger: list[dict[str, Any]] | None = None, **promise: Any) -> DynamicResult:
    return make_dynamic(
        network(), Promise(**{"drop": 0.01, "delta": 0.05, **promise}), reference=4, costs=COSTS,
        calibration=CALIBRATION, certification=CERTIFICATION, ledger=ledger or [],
    )  # fmt: skip


def drop_on(policy: Member, images: ExitRecord) -> float:
    return float(images.correct[:, -1].mean()) - evaluate_policy(policy, images, COSTS)["correct"] / len(
        images.labels
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_earns_a_promise_that_holds(family: str) -> None:
    found = made(policy=family)
    assert found.certificate["certified"]
    assert found.policy.family == family
    assert drop_on(found.policy, FRESH) <= 0.01
    mean = evaluate_policy(found.policy, FRESH, COSTS)["mean_macs"]
    assert mean < 70 or family in ("patience", "fixed")  # which have few settings


@pytest.mark.parametrize("scaling", ["temperature", "vector"])
@pytest.mark.parametrize("recall", [False, True])
def test_options_reach_the_policy(recall: bool, scaling: str) -> None:
    found = made(recall=recall, scaling=scaling)
    assert (found.policy.table.recall is not None) is recall
    assert found.policy.table.calibration.kind == scaling
    assert found.certificate["promise"]["recall"] is recall


def test_a_certificate_says_what_it_speaks_of_and_bears_itself_out() -> None:
    found = made()
    certificate = json.loads(json.dumps(found.certificate))
    digests = certificate["digests"]
    assert digests["data"] == "split 2" and digests["runtime"] == "eager fp32 cpu"
    assert digests["model"] == weights_digest(network())
    assert digests["policy"] == policy_digest(found.policy.table)
    assert digests["outputs"] == CERTIFICATION.outputs_digest
    assert why_void(certificate, digests["model"], found.policy.table, "eager fp32 cpu") is None
    again = SequenceCertificate.from_dict(certificate["evidence"])
    assert again.certified and again.drop == 0.01
    assert certificate["statement"].endswith("attempt 1 on this split spends 0.03 of delta 0.05)")
    other = why_void(certificate, digests["model"], found.policy.table, "eager bf16 cpu")
    assert (
        other == "the runtime is another than it was earned with: eager bf16 cpu, earned with eager fp32 cpu"
    )


def test_every_attempt_spends_and_the_same_promise_is_none() -> None:
    one = made()
    assert made(one.ledger).ledger == one.ledger
    two = made(one.ledger, policy="confidence")
    three = made(two.ledger, delta=0.1)
    levels = [entry["certificate"]["delta"] for entry in three.ledger]
    assert levels == pytest.approx([look_level(0.05, 1), look_level(0.05, 2), look_level(0.1, 3)])
    back = made(json.loads(json.dumps(three.ledger)))
    assert back.policy == one.policy and len(back.ledger) == 3


def test_a_promise_that_cannot_be_kept_is_refused_with_what_it_needs() -> None:
    found = make_dynamic(
        network(), Promise(drop=0.01, delta=0.05), reference=4, costs=COSTS,
        calibration=CALIBRATION, certification=record(150, 2), ledger=[],
    )  # fmt: skip
    assert not found.certificate["certified"]
    assert "images would be needed" in found.certificate["statement"]
    assert found.certificate["needed_n"] > 150


def test_the_cheapest_that_keeps_the_promise() -> None:
    costs = [
        evaluate_policy(made(drop=drop).policy, FRESH, COSTS)["mean_macs"]
        for drop in (0.004, 0.01, 0.03, 0.1)
    ]
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.75 * costs[0]


def test_a_budget_is_met_and_promised_for() -> None:
    found = made(max_macs=25.0, drop=0.05)
    assert found.certificate["certified"] and len(found.certificate["evidence"]["order"]) == 1
    assert evaluate_policy(found.policy, CALIBRATION, COSTS)["mean_macs"] <= 25 * 1.05
    assert drop_on(found.policy, FRESH) <= 0.05
    with pytest.raises(ConfigError, match=r"mean cost of 2; the cheapest has 10"):
        made(max_macs=2.0)


@pytest.mark.parametrize(("by", "drop", "policy"), [("class", 0.05, "snell"), ("exit", 0.1, "confidence")])
def test_promises_by_group_hold_in_each(by: str, drop: float, policy: str) -> None:
    found = made(by=by, drop=drop, policy=policy)
    certificate = GroupsCertificate.from_dict(json.loads(json.dumps(found.certificate["evidence"])))
    assert certificate.certified and found.certificate["certified"]
    outcome = evaluate_policy(found.policy, FRESH, COSTS)
    taken, right = outcome["taken"], FRESH.correct
    change = right[:, -1].astype(int) - right[np.arange(len(taken)), taken - 1]
    groups = FRESH.labels if by == "class" else taken
    named = {group.name for group in certificate.groups}
    for group in np.unique(groups):
        assert f"{by} {group}" in named
        assert change[groups == group].mean() <= drop
    assert outcome["mean_macs"] < 70


def test_a_promise_by_exit_names_exits_that_can_be_reached() -> None:
    for drop in (0.02, 0.3):
        found = made(by="exit", drop=drop, policy="patience")
        assert all(group["n"] > 0 for group in found.certificate["evidence"]["groups"])
        assert found.certificate["certified"]


def test_the_device_decides_as_the_table_does_on_the_inputs_it_was_fitted_on() -> None:
    """Edges lie between scores, so that a last digit decides nothing."""
    for family in ("snell", "confidence", "margin", "entropy"):
        for member in policy_path(family, CALIBRATION.logits, CALIBRATION.labels, COSTS, recall=True)[1::5]:
            decider, memory = Decider(member.table), None
            taken = np.zeros(len(CALIBRATION.labels), dtype=int)
            for exit in range(1, 5):
                stops, memory = decider.look(exit, torch.from_numpy(CALIBRATION.logits[:, exit - 1]), memory)
                taken[(taken == 0) & (stops.numpy() | (exit == 4))] = exit
            assert (taken == member.table.decide(CALIBRATION.logits)[0]).all()


def test_a_class_without_images_is_not_passed_over() -> None:
    rare = ExitRecord(CERTIFICATION.logits, np.where(CERTIFICATION.labels == 4, 0, CERTIFICATION.labels), "r")
    found = make_dynamic(
        network(), Promise(drop=0.05, delta=0.05, by="class"), reference=4, costs=COSTS,
        calibration=CALIBRATION, certification=rare, ledger=[],
    )  # fmt: skip
    assert not found.certificate["certified"]
    assert "class 4 (no images)" in found.certificate["statement"]


def squared(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (logits.argmax(1) != labels) * np.abs(logits.argmax(1) - labels) / 4.0


@pytest.mark.parametrize(
    ("measure", "drop", "word"),
    [
        ("top-2", 0.01, "top-2 accuracy drop"),
        ("brier", 0.05, "mean Brier score rises"),
        (BoundedLoss("rank error", squared, 0.0, 1.0), 0.02, "mean rank error rises"),
    ],
)
def test_other_measures(measure: Any, drop: float, word: str) -> None:
    found = made(measure=measure, drop=drop)
    assert found.certificate["certified"] and word in found.certificate["statement"]
    assert evaluate_policy(found.policy, FRESH, COSTS)["mean_macs"] < 70
    assert made(found.ledger, measure=measure, drop=drop).ledger == found.ledger


def test_another_function_of_the_same_name_is_another_promise() -> None:
    first = made(measure=BoundedLoss("rank error", squared, 0.0, 1.0), drop=0.02)
    again = made(first.ledger, measure=BoundedLoss("rank error", misses, 0.0, 1.0), drop=0.02)
    assert len(again.ledger) == 2
    assert again.certificate["digests"]["losses"] != first.certificate["digests"]["losses"]


def misses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (logits.argmax(1) != labels).astype(float)


def test_without_a_promise_the_cheapest_that_did_not_lose_more_on_calibration() -> None:
    member = uncertified_policy(Promise(drop=0.02, delta=0.05), CALIBRATION, Looks.all_of(COSTS, 4))
    assert drop_on(member, FRESH) < 0.03
    strict = uncertified_policy(Promise(drop=0.0, delta=0.05), CALIBRATION, Looks.all_of(COSTS, 4))
    assert (
        evaluate_policy(strict, FRESH, COSTS)["mean_macs"]
        >= evaluate_policy(member, FRESH, COSTS)["mean_macs"]
    )
    within = Promise(drop=0.0, delta=0.05, max_macs=20)
    cheap = uncertified_policy(within, CALIBRATION, Looks.all_of(COSTS, 4))
    assert evaluate_policy(cheap, CALIBRATION, COSTS)["mean_macs"] <= 20 * 1.05


def test_the_order_of_the_images_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(3000)
    first = np.random.default_rng(1).permutation(1500)
    moved = make_dynamic(
        network(), Promise(drop=0.01, delta=0.05), reference=4, costs=COSTS,
        calibration=ExitRecord(CALIBRATION.logits[first], CALIBRATION.labels[first], "split 1"),
        certification=ExitRecord(CERTIFICATION.logits[order], CERTIFICATION.labels[order], "split 2"),
        ledger=[],
    )  # fmt: skip
    usual = made()
    assert moved.certificate["certified"] == usual.certificate["certified"]
    assert moved.policy.setting == usual.policy.setting


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"drop": -0.1}, r"drop is -0.1 and delta 0.05: they must be in \[0, 1\) and \(0, 1\)"),
        ({"drop": 1.0}, "they must be in"),
        ({"drop": 2.0, "measure": "brier"}, r"they must be in \[0, 2\)"),
        ({"delta": 0.0}, "they must be in"),
        ({"policy": "luck"}, "unknown policy 'luck'; known: confidence"),
        ({"scaling": "platt"}, "choose temperature or vector"),
        ({"measure": "top-0"}, "choose accuracy, top-2"),
        ({"measure": "top-9"}, "k is 9; with 5 classes it must be from 1 to 5"),
        ({"by": "camera"}, "by class or by exit"),
        ({"max_macs": 0}, "max_macs is 0; it must be a number above 0"),
    ],
)
def test_promises_that_cannot_be_asked_for(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(**wrong)


def test_a_loss_of_the_wrong_shape_or_range() -> None:
    for function, says in (
        (lambda logits, labels: np.zeros(3), r"gave shape \(3,\) for \d+ images"),
        (lambda logits, labels: np.full(len(labels), 2.0), "outside its range"),
        (lambda logits, labels: logits.softmax(1), "gave no numbers .*AttributeError.* as numpy arrays"),
    ):
        with pytest.raises(InputError, match=says):
            made(measure=BoundedLoss("odd", function, 0.0, 1.0))
