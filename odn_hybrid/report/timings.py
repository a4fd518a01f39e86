"""What `compare` measured: a table of times, and sentences on how near to the ideal halting came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from odn_hybrid.report.tables import blank_table, model_name
from odn_hybrid.report.wording import (
    NOTHING,
    Data,
    count,
    megabytes,
    needs_whole_report,
    reference_exit,
    reference_name,
    three,
)

__all__ = ["comparison_lines", "timings_table"]

FEW_CALLS = 100  # the 99 % point of fewer is their maximum


@needs_whole_report
def timings_table(report: Data, comparison: Data) -> Table | None:
    """Per model and batch size: times of a call, images a second, speed-up, peak memory, energy if known.

    None of a comparison made by a release that did not measure them.

    Args:
        report: the data of `report.json`, as `run.report_` holds them.
        comparison: its `comparison`, what `odn_hybrid.compare` gives.

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> from odn_hybrid.report import timings_table
        >>> # `run` is a finished fit; few rounds, so that this takes a second
        >>> table = timings_table(run.report_, run.compare(batch_sizes=[1], rounds=2, seconds=0.2))
        >>> [column.header for column in table.columns][:2]
        ['model', 'batch']
    """
    rows = comparison["rows"]
    if not all(row.get("ms_per_call") for row in rows):
        return None
    energy = any(
        (row.get("joules_per_image") or {}).get(s) is not None for row in rows for s in _sizes(comparison)
    )
    where = f"{comparison['device']}; {comparison['runtime']}; {comparison['rounds']} rounds"
    table = blank_table(f"Measured on {where}")
    table.add_column("model", max_width=16, overflow="fold")
    for name in ("batch", "p50\nms", "p90\nms", "p99\nms", "images\nper s", "speed", "peak\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    if energy:
        table.add_column("mJ/\nimage", justify="right", no_wrap=True)
    for row in rows:
        if row is not rows[0]:
            table.add_section()
        sizes = _sizes(comparison)
        for name, size in zip(_stacked(model_name(row, report), len(sizes)), sizes, strict=True):
            table.add_row(name, *_cells(row, size, energy))
    table.caption = Text(_caption(report, comparison))
    return table


def _sizes(comparison: Data) -> list[str]:
    return [str(size) for size in comparison["batch_sizes"]]


def _stacked(name: str, lines: int) -> list[str]:
    """A name over so many lines of a table, what stands in brackets below the rest."""
    first, bracket, rest = name.partition(" (")
    second = bracket.strip() + rest
    if lines == 1 or not second:
        return [name, *[""] * (lines - 1)]
    return [first, second, *[""] * (lines - 2)]


def _cells(row: Data, size: str, energy: bool) -> list[str]:
    call, speed = row["ms_per_call"][size], row["speedup"][size]
    late = three(call["p99"]) if call["calls"] >= FEW_CALLS else NOTHING
    peak = (row.get("peak_bytes") or {}).get(size)
    cells = [
        size,
        three(call["p50"]),
        three(call["p90"]),
        late,
        count(row["images_per_second"][size]),
        f"{speed['median']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]",
        megabytes(peak),
    ]
    used = (row.get("joules_per_image") or {}).get(size)
    return [*cells, NOTHING if used is None else three(1000 * used)] if energy else cells


def _caption(report: Data, comparison: Data) -> str:
    images = ", ".join(f"{n} at batch {size}" for size, n in comparison["images"].items())
    lines = [
        f"p50, p90, p99: ms of a call; p99 of {FEW_CALLS} calls or more. speed: relative to "
        f"{reference_name(report)}, with 95 % interval.",
        f"Images a round: {images}.",
    ]
    peaks = [
        (row.get("peak_bytes") or {}).get(size) for row in comparison["rows"] for size in _sizes(comparison)
    ]
    if any(peak is not None for peak in peaks):
        lines.append(f"Peak memory: weights and {comparison['memory']}.")
    else:
        lines.append(f"Peak memory unknown: {comparison['memory']}.")
    return "\n".join(lines)


@needs_whole_report
def comparison_lines(report: Data, comparison: Data) -> list[str]:
    """The recommendation, overall and by batch size, and what else a reader should know; one line each.

    Args:
        report: the data of `report.json`, as `run.report_` holds them.
        comparison: its `comparison`, what `odn_hybrid.compare` gives.

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> from odn_hybrid.report import comparison_lines
        >>> # `run` is a finished fit; few rounds, so that this takes a second
        >>> lines = comparison_lines(run.report_, run.compare(batch_sizes=[1], rounds=2, seconds=0.2))
        >>> all(line.endswith(".") for line in lines)
        True
    """
    advice = comparison["recommendation"]
    lines = [_sentence(_capital(str(advice["reason"])))]
    by_batch = advice.get("by_batch") or {}
    if len({one["model"] for one in by_batch.values()}) > 1:
        lines += [_sentence(f"Batch {size}: {one['reason']}") for size, one in by_batch.items()]
    lines += [_sentence(f"Note: {note}") for note in advice.get("notes") or ()]
    return [*lines, *_equal(report, comparison), *_near_ideal(comparison)]


def _equal(report: Data, comparison: Data) -> list[str]:
    exit = comparison.get("equal_accuracy_exit")
    if exit is None:
        return []
    what = "the full network" if exit == reference_exit(report) else f"static (exit {exit})"
    return [f"The shallowest exit as accurate as the dynamic model on the selection split: {what}."]


def _near_ideal(comparison: Data) -> list[str]:
    found = {size: one for size, one in (comparison.get("ideal") or {}).items() if one}
    if not found:
        return []
    parts = [
        f"{100 * one['reached']['median']:.0f} % of {one['speedup']['median']:.2f} x at batch {size}"
        for size, one in found.items()
    ]
    what = "Halting reached this much of its ideal speed-up (segments alone, at the inputs left)"
    return [f"{what}: {_listed(parts)}."]


def _listed(parts: Sequence[Any]) -> str:
    return str(parts[0]) if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return text if text.rstrip().endswith((".", "!", "?")) else text.rstrip() + "."
