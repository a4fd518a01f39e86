"""How names and numbers of a report are written: one way, for tables and sentences alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from odn_hybrid.errors import RunDirError

__all__ = [
    "NOTHING",
    "Data",
    "accuracy_text",
    "count",
    "data_name",
    "duration",
    "is_thin",
    "megabytes",
    "needs_whole_report",
    "percent",
    "ranges",
    "reference_exit",
    "reference_name",
    "reference_word",
    "three",
]

Data = Mapping[str, Any]
P = ParamSpec("P")
R = TypeVar("R")

NOTHING = "-"
FINE = 0.005  # intervals narrower than half a point either way deserve a second decimal


def needs_whole_report(show: Callable[P, R]) -> Callable[P, R]:
    """A field that is missing or of the wrong kind is the file's fault: say so instead of a traceback."""

    @wraps(show)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return show(*args, **kwargs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise RunDirError(
                f"report.json is damaged: it lacks or garbles {error}; copy it again or repeat the fit"
            ) from error

    return checked


def reference_exit(report: Data) -> int:
    """Number of the exit that drops are measured against."""
    reference = report["reference"]
    return int(reference["exit"] if isinstance(reference, Mapping) else reference)


def _is_full(report: Data) -> bool:
    """Whether the reference is the whole network, trained."""
    last = max(report["exits"], key=lambda row: row["exit"])
    return bool(last["exit"] == reference_exit(report) and last["trained"])


def reference_word(report: Data) -> str:
    """What a sentence calls it: "full network" only where that was trained."""
    return "full network" if _is_full(report) else "reference"


def reference_name(report: Data) -> str:
    """What a table calls it: "full" only where the whole network was trained."""
    return "full" if _is_full(report) else f"reference (exit {reference_exit(report)})"


def is_thin(report: Data) -> bool:
    """Whether the exits are thin networks; reports of before depth plans speak of prefixes."""
    return any(row.get("plan") == "thin" for row in report["exits"])


def data_name(report: Data) -> str:
    """Name of the data set."""
    data = report["data"]
    return str(data["name"] if isinstance(data, Mapping) else data)


def accuracy_text(accuracy: Data | None, *, stacked: bool = False) -> str:
    """`97.8 [95.4, 98.9]` in percent; with two decimals where the interval is narrow."""
    if not accuracy:
        return NOTHING
    digits = 2 if accuracy["high"] - accuracy["low"] < 2 * FINE else 1
    value, low, high = (f"{100 * accuracy[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{chr(10) if stacked else ' '}[{low}, {high}]"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers with neighbours drawn together: `0-2 4 7-8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def count(value: float | None) -> str:
    """`1.82 G`: three significant digits and the power of 1000."""
    if value is None:
        return NOTHING
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:  # 999,600 is 1.00 M, not 1000 k
            return f"{three(value / size)} {unit}"
    return f"{value:.0f}"


def megabytes(size: float | None) -> str:
    """Bytes in MB of 10^6, without the unit."""
    return NOTHING if size is None else three(size / 1e6)


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    for limit, digits in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def percent(share: float) -> str:
    """A share as `13 %`, below ten with one decimal."""
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
