"""The static choice on made-up answers: targets, budgets, and both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from odn_hybrid.config import ChoiceConfig
from odn_hybrid.cost import Costs
from odn_hybrid.deploy.truncation import choice as module
from odn_hybrid.deploy.truncation.choice import deepest_within, static_choice
from odn_hybrid.errors import BudgetError
from odn_hybrid.outputs import ExitRecord

# Four exits of 100, 200, ... MACs; the first has a head so large that it is not the smallest.
COSTS = Costs(
    stem=0, units=(100, 100, 100, 100), heads=(0, 0, 0, 0), plans=((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)),
    params=(35, 20, 30, 40), bytes=(140, 80, 120, 160),
)  # fmt: skip


def answers(*right: int) -> ExitRecord:
    """A record of 100 images of class 1 of which exit k gets `right[k - 1]`."""
    logits = np.zeros((100, len(right), 2), dtype=np.float32)
    for k, count in enumerate(right):
        logits[:count, k, 1] = 1.0
    return ExitRecord(logits, np.ones(100, dtype=np.int64), "")


def choose(right: tuple[int, ...], trained: list[bool] | None = None, **wishes: Any) -> dict[str, Any]:
    flags = trained or [True] * len(right)
    network: Any = None
    return static_choice(network, ChoiceConfig(**wishes), COSTS, answers(*right), len(right), flags)


def test_the_deepest_that_fits_every_budget() -> None:
    assert deepest_within(ChoiceConfig(), COSTS) == 4
    assert deepest_within(ChoiceConfig(max_macs=399), COSTS) == 3
    assert deepest_within(ChoiceConfig(max_params=30, max_macs=1e9), COSTS) == 3
    assert deepest_within(ChoiceConfig(max_bytes=100), COSTS) == 2
    with pytest.raises(BudgetError, match=r"no exit has choice\.max_macs <= 150, choice\.max_params <= 30"):
        deepest_within(ChoiceConfig(max_macs=150, max_params=30), COSTS)


def test_the_most_accurate_within_the_budget_and_of_equals_the_shallower() -> None:
    assert choose((80, 90, 85, 95), max_macs=300)["exit"] == 2
    assert choose((80, 90, 90, 95), max_macs=300)["exit"] == 2
    assert choose((99, 90, 85, 95), max_params=30)["exit"] == 2, "exit 1 has more parameters than that"
    found = choose((80, 90, 85, 95), max_macs=300)
    assert (found["rule"], found["reached"]) == ("budget", True)
    assert (
        found["reason"] == "the most accurate exit within max_macs 300: it has 90.00% on the selection split"
    )


def test_untrained_exits_are_never_chosen() -> None:
    assert choose((99, 99, 80), [False, False, True], max_macs=300)["exit"] == 3


def test_a_target_within_a_budget() -> None:
    both = {"target_accuracy": 0.9, "tolerance": 0.0, "max_macs": 300}
    assert choose((80, 90, 95, 99), **both)["exit"] == 2
    found = choose((80, 85, 84, 99), **both)
    assert (found["exit"], found["reached"]) == (2, False)
    assert "the most accurate one within max_macs 300, 85.00%, is kept" in found["reason"]
    without = choose((80, 85, 84, 89), target_accuracy=0.9, tolerance=0.0)
    assert (without["exit"], without["reached"]) == (4, False)


def test_latency_is_measured_and_what_is_too_slow_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_latencies", lambda network, exits: {k: float(k) for k in exits})
    assert choose((80, 90, 95, 99), max_latency_ms=2.5)["exit"] == 2
    found = choose((80, 90, 95, 99), [False, False, True, True], max_latency_ms=2.5)
    assert (found["exit"], found["reached"]) == (3, False)
    assert "no trained exit is within max_latency_ms 2.5" in found["reason"]
