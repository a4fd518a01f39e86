"""The section of measured times, where the run has a comparison."""

from __future__ import annotations

from odn_hybrid.report.html.elements import paragraphs, section, table
from odn_hybrid.report.tables import model_name
from odn_hybrid.report.wording import NOTHING, Data, megabytes, reference_name, three

__all__ = ["measured_times"]


def measured_times(report: Data) -> str:
    """A row per model and batch size: time of an image, speed-up with interval, peak memory."""
    comparison = report.get("comparison")
    if not comparison:
        told = "No times were measured in this run. odn compare RUN does that, on your device."
        return section("times", "Measured times", paragraphs([told]))
    rows = []
    for row in comparison["rows"]:
        for size in map(str, comparison["batch_sizes"]):
            took, gain = (row.get("ms_per_image") or {}).get(size), (row.get("speedup") or {}).get(size)
            peak = (row.get("peak_bytes") or {}).get(size)
            speed = f"{gain['median']:.2f} x [{gain['low']:.2f}, {gain['high']:.2f}]" if gain else NOTHING
            cells = [size, three(took["median"]) if took else NOTHING, speed, megabytes(peak)]
            rows.append([model_name(row, report), *cells])
    where = ", ".join(str(comparison[key]) for key in ("device", "runtime") if comparison.get(key))
    caption = (
        f"Measured on {where}: medians of {comparison['rounds']} rounds. Speed: images a second as a ratio "
        f"to {reference_name(report)}, with its 95 % interval. Peak MB: weights and what one call adds."
    )
    columns = ["Model", "Batch size", "ms an image", "Speed", "Peak MB"]
    return section("times", "Measured times", table(caption, columns, rows))
