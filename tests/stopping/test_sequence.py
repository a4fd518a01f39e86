"""Many candidates and groups (theory/certificate.md): what is chosen, promised and kept."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from odn_hybrid.errors import CertificateError, ConfigError, InputError
from odn_hybrid.stopping import (
    GroupsCertificate,
    SequenceCertificate,
    certify_groups,
    certify_paired,
    certify_sequence,
    order_candidates,
)

DROP, DELTA = 0.02, 0.05


def _answers(n: int, losses: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A reference that is always right and nested candidates that get so many of the first images wrong."""
    table = np.ones((len(losses), n), bool)
    for row, lost in zip(table, losses, strict=True):
        row[:lost] = False
    return np.ones(n, bool), table


def test_the_loosest_candidate_before_the_first_failure_is_chosen():
    before, table = _answers(2000, [2, 10, 20, 60, 5])
    found = certify_sequence(before, table, drop=DROP, delta=DELTA)
    assert (found.chosen, found.certified, len(found.tested)) == (2, True, 4)  # 5 wrong, behind the failure
    assert found.upper_bound == DROP  # after a choice no smaller bound may be claimed
    assert "candidate 3 of 5" in found.statement and "the next failed" in found.statement
    assert found.require() is found


def test_where_all_pass_the_largest_bound_holds():
    before, table = _answers(2000, [2, 10, 20])
    found = certify_sequence(before, table, drop=DROP, delta=DELTA, order=[0, 2, 1])
    assert found.chosen == 1
    assert found.upper_bound == max(one.upper_bound for one in found.tested) < DROP


def test_where_the_first_fails_the_refusal_says_what_is_missing():
    before, table = _answers(300, [3, 1])
    found = certify_sequence(before, table, drop=DROP, delta=DELTA)
    alone = certify_paired(before, table[0], drop=DROP, delta=DELTA)
    assert not found.certified and found.chosen is None and len(found.tested) == 1
    assert found.needed_n == alone.needed_n and alone.statement in found.statement
    with pytest.raises(CertificateError, match="none of 2 candidates"):
        found.require()


@pytest.mark.parametrize("losses", [[2, 10, 60], [2, 10], [60, 1]])
@pytest.mark.parametrize("bounded", [False, True])
def test_it_goes_through_json_and_a_record_that_claims_more_is_refused(losses, bounded):
    before, table = _answers(2000, losses)
    extra = {"low": 0, "high": 1, "measure": "error"} if bounded else {}
    if bounded:
        before, table = 1.0 - before, 1.0 - table
    found = certify_sequence(before, table, drop=DROP, delta=DELTA, **extra)
    values = json.loads(json.dumps(found.to_dict()))
    assert SequenceCertificate.from_dict(values) == found
    for changed in (
        {"chosen": 7}, {"certified": not found.certified}, {"upper_bound": -1.0}, {"delta": 0.01},
        {"tested": []}, {"order": [0]} if len(found.tested) > 1 else {"order": []},
        {"tested": [*values["tested"], values["tested"][0]]}, {"order": None},
    ):  # fmt: skip
        with pytest.raises(CertificateError, match="certify again"):
            SequenceCertificate.from_dict({**values, **changed})
    with pytest.raises(CertificateError):
        SequenceCertificate.from_dict("a promise")


def test_the_order_starts_safely_inside_and_goes_from_dear_to_cheap():
    before, table = _answers(2000, [0, 2, 4, 20, 36, 40, 50, 200])
    costs = np.arange(8, 0, -1.0)
    found = order_candidates(before, table, costs, drop=DROP, delta=DELTA)
    assert found[0] in (2, 3) and (np.diff(costs[found]) < 0).all() and found[-1] == 7
    assert len(order_candidates(before, table, costs, drop=DROP, delta=DELTA, steps=3)) == 3
    few = order_candidates(before, table, costs, drop=DROP, delta=DELTA, n_certification=150)
    assert few[0] <= found[0]
    hopeless = order_candidates(before, table[-2:], [2, 1], drop=DROP, delta=DELTA)
    assert hopeless[0] == 0


def test_the_order_does_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(1)
    before, table = rng.random(400) < 0.9, rng.random((6, 400)) < 0.89
    mixed = rng.permutation(400)
    costs = rng.random(6)
    one = order_candidates(before, table, costs, drop=0.1, delta=DELTA)
    assert (one == order_candidates(before[mixed], table[:, mixed], costs, drop=0.1, delta=DELTA)).all()
    losses = order_candidates(1.0 - before, 1.0 - table, costs, drop=0.1, delta=DELTA, low=0, high=1)
    assert (one == losses).all()


def test_false_choices_stay_within_delta_end_to_end():
    """Five candidates at the boundary, ordered on one sample, certified on another; both kinds of test."""
    rng = np.random.default_rng(2)
    n, trials, false, betting = 120, 120, 0, 0
    for _ in range(trials):
        first, second = (rng.random((6, n)) >= 0.05 for _ in range(2))
        first[0] = second[0] = True
        promise = {"drop": 0.05, "delta": 0.1}
        order = order_candidates(first[0], first[1:], np.ones(5), **promise)
        false += certify_sequence(second[0], second[1:], order=order, **promise).certified
        wrong = 1.0 - second
        betting += certify_sequence(wrong[0], wrong[1:], order=order, low=0, high=1, **promise).certified
    assert max(false, betting) <= binom.ppf(0.999, trials, 0.1)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_small_sample_has_an_answer(n, count, seed):
    rng = np.random.default_rng(seed)
    before, table = rng.random(n) < 0.8, rng.random((count, n)) < 0.8
    order = order_candidates(before, table, np.ones(count), drop=0.3, delta=0.2)
    mixed = rng.permutation(n)
    found = certify_sequence(before, table, drop=0.3, delta=0.2, order=order)
    assert found == certify_sequence(before[mixed], table[:, mixed], drop=0.3, delta=0.2, order=order)
    groups = rng.integers(0, 3, n)
    each = certify_groups(before, table[0], groups, drop=0.3, delta=0.2)
    assert each == certify_groups(before[mixed], table[0, mixed], groups[mixed], drop=0.3, delta=0.2)
    assert GroupsCertificate.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    for groups in ([], [{**each.to_dict()["groups"][0], "certificate": None}]):
        with pytest.raises(CertificateError, match="no group has images"):
            GroupsCertificate.from_dict({**each.to_dict(), "groups": groups})


def test_bad_arguments_are_refused():
    before, table = _answers(30, [1, 2])
    for order in ([], [0, 0], [2], [-1], [0.5], [[0]]):
        with pytest.raises(InputError):
            certify_sequence(before, table, drop=DROP, delta=DELTA, order=order)
    with pytest.raises(InputError):
        certify_sequence(before, table[0], drop=DROP, delta=DELTA)
    with pytest.raises(InputError):
        certify_sequence(before[:-1], table, drop=DROP, delta=DELTA)
    with pytest.raises(InputError):
        certify_sequence(before, table.astype(float), drop=DROP, delta=DELTA)
    with pytest.raises(ConfigError):
        certify_sequence(before, table, drop=DROP, delta=DELTA, low=0)
    for changed in ({"costs": [1]}, {"costs": [1, np.nan]}, {"reference": before[:-1]}):
        with pytest.raises(InputError):
            arguments = {"reference": before, "candidates": table, "costs": [2, 1], **changed}
            order_candidates(**arguments, drop=DROP, delta=DELTA)
    for changed in ({"steps": 0}, {"sure": 1}, {"n_certification": 0}, {"drop": 1}, {"delta": 0}):
        with pytest.raises(ConfigError):
            order_candidates(before, table, [2, 1], **{"drop": DROP, "delta": DELTA, **changed})


def test_groups_each_have_their_promise():
    before, table = _answers(2400, [0])
    after = table[0].copy()
    groups = np.array(["cat"] * 1000 + ["dog"] * 1000 + ["emu"] * 390 + ["fox"] * 10)
    after[[5, 6]] = False
    after[1000:1100] = False
    after[2000:2004] = False
    names = ["cat", "dog", "emu", "fox", "gnu"]
    found = certify_groups(before, after, groups, drop=DROP, delta=DELTA, names=names)
    assert [row.certified for row in found.groups] == [True, False, False, False, False]
    assert [row.too_small for row in found.groups] == [False, False, False, True, True]
    cat, dog, emu, fox, gnu = found.groups
    assert cat.upper_bound == DROP and dog.upper_bound > 0.1 and gnu.upper_bound == 1
    assert dog.needed_n is None and emu.needed_n > 390 and fox.needed_n > 200
    assert "in each of cat, for all 5 groups together" in found.statement
    assert "fox (10 images, too few even if no answer changed" in found.statement
    assert "gnu (no images)" in found.statement
    assert "dog (1000 images; no number would do" in found.statement
    with pytest.raises(CertificateError):
        found.require()
    values = json.loads(json.dumps(found.to_dict()))
    assert GroupsCertificate.from_dict(values) == found
    values["groups"][1]["certified"] = True
    with pytest.raises(CertificateError, match="certify again"):
        GroupsCertificate.from_dict(values)


def test_holm_certifies_more_groups_than_bonferroni():
    before, table = _answers(600, [0])
    after = table[0].copy()
    groups = np.repeat([1, 2, 3], [220, 220, 160])
    found = certify_groups(before, after, groups, drop=0.02, delta=0.1)
    alone = [row.certificate.certified for row in found.groups]
    assert alone == [True, True, False] and all(row.certified for row in found.groups)
    assert found.groups[2].upper_bound == 0.02 > found.groups[0].upper_bound


def test_groups_of_losses_and_bad_groups():
    rng = np.random.default_rng(3)
    before = rng.random(900)
    groups = np.arange(900) % 3
    found = certify_groups(
        before, before, groups, drop=0.05, delta=0.05, low=0, high=1, measure="Brier score"
    )
    assert found.certified and found.require() is found
    assert (
        "mean Brier score rises against the reference by at most 0.05 in each of 0, 1, 2" in found.statement
    )
    answers = before > 0.2
    for bad in (groups[:-1], groups + 0.5, groups[:0], groups[None]):
        with pytest.raises(InputError):
            certify_groups(answers, answers, bad, drop=DROP, delta=DELTA)
    for names in ([0, 1], [0, 1, 2, 2], []):
        with pytest.raises(InputError):
            certify_groups(answers, answers, groups, drop=DROP, delta=DELTA, names=names)


def test_false_promises_to_any_group_stay_within_delta():
    rng = np.random.default_rng(7)
    trials, false = 60, 0
    for _ in range(trials):
        groups = rng.integers(0, 3, 90)
        after = rng.random(90) >= np.array([0.0, 0.2, 0.2])[groups]
        found = certify_groups(np.ones(90, bool), after, groups, drop=0.2, delta=0.2)
        false += any(row.certified for row in found.groups if row.name != "0")
    assert false <= binom.ppf(0.999, trials, 0.2)
