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

    A ratio that cannot be taken, because the other's figure is 0 or missing in some round, has the median
    None and says why under `not_measurable`.

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
        for name in found["goodput"].get(pattern, {}):  # peers have no bursts
            ratio = _ratio(_goodputs(rounds["dynamic"], pattern), _goodputs(rounds[name], pattern))
            if ratio is not None and name != "dynamic":
                found["over"].setdefault(name, {})[f"goodput, {pattern}"] = ratio
    for point in ("p50", "p99"):
        for name in rounds:
            ratio = _ratio(_latencies(rounds["dynamic"], point), _latencies(rounds[name], point))
            if ratio is None and _goodputs(rounds[name], "poisson"):
                ratio = _unknown("the full model's goodput is 0, so that there is no half load")
            if ratio is not None and name != "dynamic":
                found["over"].setdefault(name, {})[f"{point} at half load"] = ratio
    found["asked"] = _asked(found["over"].get("full", {}), alone)
    found["loses"] = _loses(found["over"])
    return found


def _asked(over: dict[str, Any], alone: dict[str, Any] | None) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    gain, half = over.get("goodput, poisson"), over.get("p50 at half load")
    if gain and alone is None:
        asked["goodput over full, simulated device"] = _judged(gain, 1.0, at_least=SIMULATED)
    if gain and alone is not None:
        own = alone["ratio"]["median"]
        asked["goodput over full, of what the runtime alone reaches"] = {
            **_judged(gain, own, at_least=OF_ALONE),
            "alone": own,
        }
    if half and alone is not None:
        asked["p50 at half load over full"] = _judged(half, 1.0, at_most=P50)
    return asked


def _judged(ratio: dict[str, Any], unit: float, **bound: float) -> dict[str, Any]:
    """A ratio's median in units of `unit`; what cannot be measured is not reached, and says so."""
    if ratio["median"] is None:
        return {"value": None, **bound, "reached": False, "not_measurable": ratio["not_measurable"]}
    value = ratio["median"] / unit
    good = value >= bound["at_least"] if "at_least" in bound else value <= bound["at_most"]
    return {"value": value, **bound, "reached": good}


def _loses(over: dict[str, dict[str, Any]]) -> list[str]:
    """In words, wherever the dynamic model is not better, or nobody can say."""
    found = []
    for name, measures in over.items():
        for measure, ratio in measures.items():
            if ratio["median"] is None:
                found.append(f"{measure} over {name} is not measurable: {ratio['not_measurable']}")
                continue
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


def _latencies(ones: Sequence[dict[str, Any]], point: str) -> list[float | None]:
    return [one["half"]["latency_ms"][point] for one in ones if "half" in one]


def _ratio(upper: Sequence[float | None], lower: Sequence[float | None]) -> dict[str, Any] | None:
    """Of the same rounds; None where neither was measured."""
    if not upper and not lower:
        return None
    why = None
    if len(upper) != len(lower):
        why = f"there are {len(upper)} and {len(lower)} rounds"
    elif None in upper or None in lower:
        why = "there is no figure in some round"
    elif 0 in lower:
        why = f"its figure is 0 in {lower.count(0)} of {len(lower)} rounds"
    if why is not None:
        return _unknown(why)
    return spread(_ratios(upper, lower))  # type: ignore[arg-type]


def _unknown(why: str) -> dict[str, Any]:
    return {"median": None, "rounds": [], "not_measurable": why}


def _ratios(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
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
