"""Which of the models measured is worth it, and why: static, dynamic, or keep the full one.

A cheaper model is worth it where it is faster than the reference by more than 5 %, the whole 95 % interval
included. Static models count where they are shallower than the reference: the run's choice, and the
shallowest that is as accurate as a dynamic model that is certified. The dynamic one counts where it is
certified as it was measured, and it must be clearly faster than the static ones: with equal speed the plain
model is the better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from odn_hybrid.deploy.comparing.turns import Array, boot

__all__ = ["WORTH_IT", "recommend"]

WORTH_IT = 1.05
FEW_ROUNDS = 5
USUAL = 0.05  # difference of mean MACs that is no cause for remark

Row = dict[str, Any]


@dataclass(frozen=True)
class _Gain:
    """How many times as fast, with the bootstrap 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def range(self) -> str:
        return f"95 % interval {self.low:.2f} to {self.high:.2f}"

    def __str__(self) -> str:
        return f"{self.median:.2f} x ({self.range})"


def recommend(
    rows: Sequence[Row],
    report: dict[str, Any],
    sizes: Sequence[int],
    mix: dict[str, float | None] | None = None,
) -> dict[str, Any]:
    """The recommendation for each batch size and, by the geometric mean of the speed-ups, for all of them.

    Args:
        rows: of a comparison, the full model first, with `rounds_ms` by batch size.
        report: of the fit, for its reference and for why there is no dynamic model.
        mix: by batch size, the mean MACs of halting on the images timed over those on the test split.

    Returns:
        `choice` ("full", "static" or "dynamic"), `model` (its row's name), `reason`, `by_batch`: the same by
        batch size, and `notes`: sentences on what was not recommended.
    """
    by_batch = {str(size): _advise(rows, report, [size]) for size in sizes}
    whole = by_batch[str(sizes[0])] if len(sizes) == 1 else _advise(rows, report, sizes)
    if len({(one["choice"], one["model"]) for one in by_batch.values()}) > 1:
        whole = {**whole, "reason": f"{whole['reason']}; {_differing(by_batch, rows, report)}"}
    return {
        **whole,
        "by_batch": by_batch,
        "notes": [*_notes(rows, report, sizes, whole["model"]), *_unusual(mix or {})],
    }


def _advise(rows: Sequence[Row], report: dict[str, Any], sizes: Sequence[int]) -> dict[str, Any]:
    full = rows[0]
    statics = [row for row in rows if _may_be_static(row, rows, report)]
    static = max(statics, key=lambda row: _gain(full, row, sizes).median, default=None)
    if static is not None and _gain(full, static, sizes).low <= WORTH_IT:
        static = None
    dynamic = next((row for row in rows if row["kind"] == "dynamic" and row["certified"]), None)
    if dynamic is not None and _gain(full, dynamic, sizes).low <= WORTH_IT:
        dynamic = None
    where, whole = _where(sizes), _whole(report)
    if static is None and dynamic is None:
        reason = f"keep {whole}: nothing that may be recommended is clearly faster {where}"
        return {"choice": "full", "model": "full", "reason": reason}
    if dynamic is not None and (static is None or _gain(static, dynamic, sizes).low > 1):
        return _told(
            dynamic, f"{_faster(full, dynamic, sizes, report)}{_over(static, dynamic, sizes, report)}"
        )
    assert static is not None
    return _told(static, f"{_faster(full, static, sizes, report)}{_beside(static, dynamic, sizes, report)}")


def _told(row: Row, reason: str) -> dict[str, Any]:
    return {"choice": row["kind"], "model": row["name"], "reason": reason}


def _may_be_static(row: Row, rows: Sequence[Row], report: dict[str, Any]) -> bool:
    """A shallower exit: the run's choice, or as accurate as a dynamic model that is certified."""
    shallower = row["kind"] == "static" and row["exit"] < report["reference"]["exit"]
    return shallower and (row["name"] != "static_equal" or any(one["certified"] for one in rows))


# --- speeds ------------------------------------------------------------------------------------------


def _gain(slow: Row, fast: Row, sizes: Sequence[int]) -> _Gain:
    """How many times as fast `fast` is: the geometric mean over batch sizes of medians over rounds."""
    logs = [np.log(_ratios(slow, fast, size)) for size in sizes]
    median = float(np.mean([np.median(one) for one in logs]))
    again = np.mean([boot(one, seed) for seed, one in enumerate(logs)], axis=0)
    low, high = np.quantile(again, (0.025, 0.975))
    return _Gain(*(float(np.exp(value)) for value in (median, min(low, median), max(high, median))))


def _ratios(slow: Row, fast: Row, size: int) -> Array:
    one, two = (np.asarray(row["rounds_ms"][str(size)], dtype=np.float64) for row in (slow, fast))
    return np.asarray(one / two)


# --- sentences ---------------------------------------------------------------------------------------


def _faster(full: Row, row: Row, sizes: Sequence[int], report: dict[str, Any]) -> str:
    name, gain = _name(row, report), _gain(full, row, sizes)
    mean = "geometric mean; " if len(sizes) > 1 else ""
    text = f"{name} runs {gain.median:.2f} x as fast as {_whole(report)} {_where(sizes)}"
    return f"{text} ({mean}{gain.range}){_accuracies(row, full)}"


def _accuracies(row: Row, full: Row) -> str:
    if not row["accuracy"] or not full["accuracy"]:
        return ""
    mine, whole = (100 * one["accuracy"]["value"] for one in (row, full))
    if f"{mine:.1f}" == f"{whole:.1f}":
        return f", with {mine:.1f} % on the test split as that has"
    return f", with {mine:.1f} % on the test split against {whole:.1f} %"


def _over(static: Row | None, dynamic: Row, sizes: Sequence[int], report: dict[str, Any]) -> str:
    if static is None:
        return ""
    gain = _gain(static, dynamic, sizes)
    return f", and {gain.median:.2f} x as fast as {_name(static, report)}"


def _beside(static: Row, dynamic: Row | None, sizes: Sequence[int], report: dict[str, Any]) -> str:
    if dynamic is None:
        return ""
    gain = _gain(static, dynamic, sizes)
    what = "is slower than that" if gain.high < 1 else "is not clearly faster than that"
    return f"; dynamic halting {what}: {gain}"


def _differing(by_batch: dict[str, dict[str, Any]], rows: Sequence[Row], report: dict[str, Any]) -> str:
    """`by batch size: keep the full network at 1; dynamic at 16 and 64`."""
    places: dict[str, list[str]] = {}
    for size, one in by_batch.items():
        places.setdefault(one["model"], []).append(size)
    names = {row["name"]: _name(row, report) for row in rows}
    parts = [f"{names[model]} at {_listed(sizes)}" for model, sizes in places.items()]
    return f"by batch size: {'; '.join(parts)}"


def _notes(rows: Sequence[Row], report: dict[str, Any], sizes: Sequence[int], best: str) -> list[str]:
    full, chosen = rows[0], next(row for row in rows if row["name"] == best)
    notes = []
    if not any(_may_be_static(row, rows, report) for row in rows):
        notes.append("no shallower depth was shown to be good enough")
    dynamic = next((row for row in rows if row["kind"] == "dynamic"), None)
    if dynamic is None:
        why = report.get("no_dynamic")
        notes.append("there is no dynamic model" + (f": {why}" if why else ""))
    elif not dynamic["certified"]:
        notes.append(
            f"dynamic halting has no certificate here ({dynamic['note'] or 'none was given'}): it is not "
            f"recommended, whatever its speed, {_gain(full, dynamic, sizes)} {_where(sizes)}"
        )
    for row in rows:
        if row["kind"] == "given":
            notes.append(_given(row, chosen, sizes, report))
    rounds = len(full["rounds_ms"][str(sizes[0])])
    if rounds < FEW_ROUNDS:
        notes.append(f"intervals of {rounds} round{'s' * (rounds > 1)} say little; measure 9 or more")
    return notes


def _unusual(mix: dict[str, float | None]) -> list[str]:
    """Where the images timed halt earlier or later than those of the test split do."""
    return [
        f"at batch {size} dynamic halting takes {100 * abs(share - 1):.0f} % "
        f"{'more' if share > 1 else 'fewer'} MACs on the images timed than on the test split: "
        "give it more seconds (--seconds)"
        for size, share in mix.items()
        if share is not None and abs(share - 1) > USUAL
    ]


def _given(row: Row, chosen: Row, sizes: Sequence[int], report: dict[str, Any]) -> str:
    """How a model that the user brought stands to the recommended one."""
    text = f"{row['name']} runs {_gain(chosen, row, sizes)} as fast as {_name(chosen, report)}"
    if not row["accuracy"] or not chosen["accuracy"]:
        return text
    less = 100 * (chosen["accuracy"]["value"] - row["accuracy"]["value"])
    n = row["accuracy"]["n"]
    much = "as many" if abs(less) < 0.005 else f"{abs(less):.2f} points {'fewer' if less > 0 else 'more'}"
    return f"{text} and has {much} of the {n} test images right{_remark(row)}"


def _remark(row: Row) -> str:
    return f" ({row['note']})" if row["note"] else ""


def _name(row: Row, report: dict[str, Any]) -> str:
    if row["kind"] == "full":
        return _whole(report)
    return f"static (exit {row['exit']})" if row["kind"] == "static" else str(row["name"])


def _whole(report: dict[str, Any]) -> str:
    return "the full network" if report["reference"]["full"] else "the reference"


def _where(sizes: Sequence[int]) -> str:
    if len(sizes) == 1:
        return f"at batch {sizes[0]}"
    return f"over batches {_listed(sizes)}"


def _listed(values: Sequence[Any]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
