"""Figures, not promises: what all policies come to on the test split, and how calibrated the exits are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from odn_hybrid.outputs import ExitRecord
from odn_hybrid.stopping import (
    FAMILIES,
    Calibration,
    curve,
    fit_calibration,
    oracle,
    policy_path,
    readiness,
    reliability_curve,
    wilson,
)

__all__ = ["calibration_figures", "policy_curves"]

POINTS = 40  # policies on a family's curve
BINS = 10
ORACLE_PRICES = (0.0, *np.geomspace(1e-6, 10.0, POINTS))


def policy_curves(
    calibration: ExitRecord, test: ExitRecord, costs: Sequence[int], *, recall: bool, scaling: str
) -> dict[str, Any]:
    """Accuracy against mean MACs of every family, fitted on `calibration`, on `test`; and hindsight's bound.

    Rows as `stopping.curve` gives them, dearest first. `oracle` knows the labels: no policy reaches it.
    """
    scale = fit_calibration(calibration.logits, calibration.labels, scaling)
    families = {
        family: curve(
            policy_path(
                family, calibration.logits, calibration.labels, costs,
                calibration=scale, recall=recall, count=POINTS,
            ),
            test.logits, test.labels, costs,
        )
        for family in FAMILIES
    }  # fmt: skip
    return {"split": "test", "n": len(test.labels), "families": families, "oracle": _hindsight(test, costs)}


def _hindsight(test: ExitRecord, costs: Sequence[int]) -> list[dict[str, Any]]:
    paid = np.asarray(costs, dtype=np.float64)
    right, n = test.correct, len(test.labels)
    rows: list[dict[str, Any]] = []
    for price in ORACLE_PRICES:
        taken = oracle(test.logits, test.labels, costs, price=price) - 1
        correct = int(right[np.arange(n), taken].sum())
        low, high = wilson(correct, n)
        rows.append(
            {
                "setting": float(price),
                "mean_cost": float(paid[taken].mean()),
                "share": float(paid[taken].mean() / paid[-1]),
                "accuracy": {"value": correct / n, "n": n, "low": float(low), "high": float(high)},
            }
        )
    return [row for at, row in enumerate(rows) if at == 0 or row["mean_cost"] < rows[at - 1]["mean_cost"]]


def calibration_figures(calibration: ExitRecord, test: ExitRecord) -> list[dict[str, Any]]:
    """Per exit, on `test`: expected calibration error and reliability before and after scaling.

    "none" is the softmax as it comes, "temperature" and "vector" are fitted on `calibration`.
    """
    exits = test.logits.shape[1]
    scales = {
        "none": Calibration.of_temperatures(np.ones(exits)),
        "temperature": fit_calibration(calibration.logits, calibration.labels, "temperature"),
        "vector": fit_calibration(calibration.logits, calibration.labels, "vector"),
    }
    rows: list[dict[str, Any]] = [{"exit": k, "ece": {}, "reliability": {}} for k in range(1, exits + 1)]
    for name, scale in scales.items():
        sure = readiness(test.logits, "confidence", scale)
        for k, row in enumerate(rows):
            found = reliability_curve(sure[:, k], test.correct[:, k], bins=BINS)
            row["reliability"][name] = found.to_dict()
            row["ece"][name] = found.error
    for k, row in enumerate(rows):
        row["temperature"] = float(scales["temperature"].temperatures[k])
    return rows
