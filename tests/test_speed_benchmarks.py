"""What benchmarks/halting_speed.py computes beside the clock: ratios, differences, earlyon's rule."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from odn_hybrid.deploy.comparing.turns import Clocked

ROOT = Path(__file__).parent.parent


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip(name)


def clocked(calls: np.ndarray) -> Clocked:
    return Clocked(calls.sum(axis=1), calls.ravel(), images=calls.shape[1])


def test_ratios_are_of_the_same_rounds(monkeypatch):
    speeds = benchmark("speeds", monkeypatch)
    noise = np.random.default_rng(0).lognormal(0, 1, (12, 1))  # of a round, as another process brings it
    calls = noise * np.array([[1.0, 1.0, 1.0, 3.0]])
    found = speeds.ratios(clocked(2 * calls), clocked(calls))
    for name in ("throughput", "p50", "p99"):
        assert found[name] == pytest.approx({"median": 2, "low": 2, "high": 2})
    # One call in four is slower by far: the median does not see it, the 99 % point does.
    tail = calls * np.array([[1.0, 1.0, 1.0, 10.0]])
    found = speeds.ratios(clocked(tail), clocked(calls))
    assert found["p99"]["median"] > 5 and found["p50"]["median"] < 2


def test_difference_has_the_interval_of_pairs(monkeypatch):
    speeds = benchmark("speeds", monkeypatch)
    one = np.arange(1000) % 10 != 0
    other = one.copy()
    other[:20] = False
    found = speeds.difference(one, other)
    assert found["value"] == pytest.approx(0.018) and 0.008 < found["low"] < found["high"] < 0.028


def test_a_batch_leaves_where_all_of_it_may(monkeypatch):
    earlyon_speed = benchmark("earlyon_speed", monkeypatch)
    sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.2, 0.0])
    first = torch.stack([sure, sure, sure, unsure, unsure, sure])
    second = torch.stack([sure, sure, sure, sure, unsure, sure])
    cache = SimpleNamespace(logits=[first, second, second.flip(1)], targets=torch.zeros(6, dtype=torch.long))
    points = [SimpleNamespace(name="e1"), SimpleNamespace(name="e2")]
    config = SimpleNamespace(
        exit_points=points,
        enabled_exits=[True, True],
        confidence_thresholds=[0.9, 0.9],
        temperatures={"e1": 1.0, "e2": 1.0},
    )
    assert earlyon_speed.left(cache, config, 1).tolist() == [0, 0, 0, 1, 2, 0]
    assert earlyon_speed.left(cache, config, 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert earlyon_speed.left(cache, config, 4).tolist() == [1, 1, 1, 1, 2, 2]
    config.enabled_exits = [False, True]
    taken = earlyon_speed.left(cache, config, 1)
    assert taken.tolist() == [1, 1, 1, 1, 2, 1]
    assert earlyon_speed.right_at(cache, taken).tolist() == [True, True, True, True, False, True]
