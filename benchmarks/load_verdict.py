"""What the rounds of serve_load.py come to: ratios of the same round, and where the dynamic model loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from load_goodput import spread

__all__ = ["alone_ratio", "shown", "verdict"]

#: What is asked.
OF_ALONE, P50, SIMULATED = 0.9, 0.7, 1.7
Rounds = dict[str, list[dict[str, Any]]]


def verdict(rounds: Rounds, alone: dict[str, Any] | None) -> dict[str, Any]:
    """Ratios over the full model and the others, and what was asked of them.

    Args:
        rounds: by server, what `Bench.round` found.
        alone: the runtime's own ratio, see `alone_ratio`; None for a simulated device.
    """
    found: dict[str, Any] = {"goodput": {}, "over": {}}
    for pattern in ("poisson", "bursty"):
        for name, ones in rounds.items():
            values = _goodputs(ones, pattern)
            if values:
                found["goodput"].setdefault(pattern, {})[name] = spread(values)
        for name in rounds:
            ratios = _ratios(_goodputs(rounds["dynamic"], pattern), _goodputs(rounds[name], pattern))
            if ratios and name != "dynamic":
                found["over"].setdefault(name, {})[f"goodput, {pattern}"] = spread(ratios)
    for point in ("p50", "p99"):
        for name in rounds:
            ratios = _ratios(_latencies(rounds["dynamic"], point), _latencies(rounds[name], point))
            if ratios and name != "dynamic":
                found["over"].setdefault(name, {})[f"{point} at half load"] = spread(ratios)
    found["asked"] = _asked(found["over"].get("full", {}), alone)
    found["loses"] = _loses(found["over"])
    return found


def _asked(over: dict[str, Any], alone: dict[str, Any] | None) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    gain, half = over.get("goodput, poisson"), over.get("p50 at half load")
    if gain and alone is None:
        asked["goodput over full, simulated device"] = _least(gain["median"], SIMULATED)
    if gain and alone is not None:
        share = gain["median"] / alone["ratio"]["median"]
        asked["goodput over full, of what the runtime alone reaches"] = {
            **_least(share, OF_ALONE),
            "alone": alone["ratio"]["median"],
        }
    if half and alone is not None:
        value = half["median"]
        asked["p50 at half load over full"] = {"value": value, "at_most": P50, "reached": value <= P50}
    return asked


def _least(value: float, least: float) -> dict[str, Any]:
    return {"value": value, "at_least": least, "reached": value >= least}


def _loses(over: dict[str, dict[str, Any]]) -> list[str]:
    """In words, wherever the dynamic model is not better."""
    found = []
    for name, measures in over.items():
        for measure, ratio in measures.items():
            worse = ratio["median"] <= 1 if measure.startswith("goodput") else ratio["median"] >= 1
            if worse:
                found.append(f"{measure}: {ratio['median']:.2f} x that of {name}")
    return found


def alone_ratio(times: dict[str, dict[str, list[float]]], sizes: dict[str, int]) -> dict[str, Any]:
    """The halting model's speed over the full one's, each at the batch size at which its server ran.

    Args:
        times: by model ("full", "dynamic") and batch size, milliseconds an image in every round.
        sizes: by model.
    """

    def ratio(full: int, dynamic: int) -> dict[str, Any]:
        return spread(_ratios(times["full"][str(full)], times["dynamic"][str(dynamic)]))

    return {
        "batch": sizes,
        "ratio": ratio(sizes["full"], sizes["dynamic"]),
        "at_the_same_batch": {size: ratio(int(size), int(size)) for size in times["full"]},
        "ms_per_image": times,
    }


def _goodputs(ones: Sequence[dict[str, Any]], pattern: str) -> list[float]:
    return [one[pattern]["goodput"] for one in ones if pattern in one]


def _latencies(ones: Sequence[dict[str, Any]], point: str) -> list[float]:
    values = [one["half"]["latency_ms"][point] for one in ones if "half" in one]
    return [value for value in values if value is not None]


def _ratios(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """Of the same round; none where they are not of the same rounds or one is 0."""
    if len(upper) != len(lower) or not all(lower):
        return []
    return (np.array(upper) / np.array(lower)).tolist()


def shown(name: str, one: dict[str, Any]) -> None:
    """One server's round on a line."""
    parts = [
        f"{pattern} {one[pattern]['goodput']:.1f} /s" for pattern in ("poisson", "bursty") if pattern in one
    ]
    if "half" in one:
        latency = one["half"]["latency_ms"]
        parts.append(f"at half load p50 {latency['p50']} ms, p99 {latency['p99']} ms")
    print(f"  {name}: {'; '.join(parts)} ({one['seconds']} s)", flush=True)
