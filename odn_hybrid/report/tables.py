"""The tables of a report, for a console."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from odn_hybrid.report.wording import (
    NOTHING,
    Data,
    accuracy_text,
    count,
    data_name,
    is_thin,
    megabytes,
    needs_whole_report,
    ranges,
    reference_exit,
    reference_name,
    three,
)

__all__ = ["blank_table", "curves_table", "exits_table", "model_name", "model_rows", "summary_table"]

SHARES = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # of the reference's MACs
MOST_KEPT = 16  # characters; more units wrap
DYNAMIC = "MACs dyn.: all heads on the way counted"
KEPT = "kept: units of the thin network, from 0"


@needs_whole_report
def exits_table(report: Data) -> Table:
    """One row per exit: units, accuracy on selection and test, MACs static and dynamic, parameters, MB.

    Of thin networks, in which nothing halts, the units kept stand where the dynamic MACs would.

    Args:
        report: the data of `report.json`, as `run.report_` holds them; exit rows may also hold `stage`
            (text) and `ms` (milliseconds per image).

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> from rich.console import Console
        >>> from odn_hybrid.report import exits_table
        >>> # `run` is a finished fit of a ResNet of 4 units
        >>> table = exits_table(run.report_)
        >>> table.row_count
        4
        >>> Console(width=110).print(table)
        Exits of ...
    """
    rows = report["exits"]
    extras = [name for name in ("stage", "ms") if any(row.get(name) is not None for row in rows)]
    table = blank_table(f"Exits of {report['model']} on {data_name(report)}")
    table.add_column("exit", no_wrap=True)
    table.add_column("units", justify="right")
    thin = is_thin(report)
    if thin:
        table.add_column("kept", max_width=MOST_KEPT)
    for name in ("selection %", "test %"):
        table.add_column(name, justify="right", no_wrap=thin)  # units wrap first
    for name in ("MACs" if thin else "MACs\nstatic", *(() if thin else ("MACs\ndyn.",)), "params", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in extras:
        table.add_column("ms/img" if name == "ms" else name, justify="right" if name == "ms" else "left")
    static, reference = report["static"]["exit"], reference_exit(report)
    for row in rows:
        marks = "*" * (row["exit"] == static) + "+" * (row["exit"] == reference)
        table.add_row(
            f"{row['exit']} {marks}".rstrip(),
            str(row["units"]),
            *((ranges(row["keep"]),) if thin else ()),
            *_accuracy_cells(row, stacked=bool(extras)),
            count(row["macs_static"]),
            *(() if thin else (count(row["macs_dynamic"]),)),
            count(row["params"]),
            megabytes(row["bytes"]),
            *(_extra(row.get(name)) for name in extras),
            style="bold" if marks.startswith("*") else None if row["trained"] else "dim",
        )
    table.caption = Text(
        "* static choice   + reference, against which drops are measured\n"
        f"accuracy with 95 % interval{_sizes(rows)}; {KEPT if thin else DYNAMIC}"
    )
    return table


@needs_whole_report
def summary_table(report: Data, comparison: Data | None, *, times: bool = True) -> Table:
    """Full (or reference), static and dynamic: accuracy, mean MACs, parameters, MB and, if measured, time.

    Args:
        report: the data of `report.json`.
        comparison: its `comparison`, measured on this device; None leaves the times out.
        times: False leaves them out, too (`timings_table` has them).

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> from odn_hybrid.report import summary_table
        >>> # `run` is a finished fit
        >>> table = summary_table(run.report_, None)
        >>> [" ".join(str(column.header).split()) for column in table.columns]
        ['model', 'test %', 'mean MACs', 'params', 'MB']
    """
    table = blank_table(f"{report['model']} on {data_name(report)}")
    table.add_column("model")
    table.add_column("test %", justify="right", no_wrap=True)
    for name in ("mean\nMACs", "params", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    caption = "accuracy with 95 % interval"
    rows = model_rows(report) if comparison is None else comparison["rows"]
    n = next((row["accuracy"]["n"] for row in rows if row["accuracy"]), None)
    caption += f" on {n} test images" if n else ""
    if comparison is not None and times:
        for name in ("batch", "ms/img", "speed"):
            table.add_column(name, justify="right", no_wrap=True)
        against = reference_name(report)
        caption += f"; ms per image and speed relative to {against}: medians on {comparison['device']}"
    for row in rows:
        table.add_row(
            model_name(row, report),
            accuracy_text(row["accuracy"]),
            count(row["mean_macs"]),
            count(row["params"]),
            megabytes(row["bytes"]),
            *(_time_cells(row, comparison["batch_sizes"]) if comparison is not None and times else ()),
        )
    table.caption = Text(caption)
    return table


@needs_whole_report
def curves_table(report: Data) -> Table:
    """The best accuracy of every family of policies within shares of the reference's MACs, on test.

    Args:
        report: the data of `report.json`, of a fit that has `curves`.

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> from odn_hybrid.report import curves_table
        >>> # `run` is a finished fit
        >>> table = curves_table(run.report_)
        >>> "snell" in list(table.columns[0].cells), table.columns[1].header  # a share of the MACs
        (True, '30%')
    """
    curves = report["curves"]
    table = blank_table(f"Halting policies of {report['model']} on {data_name(report)}")
    table.add_column("policy", no_wrap=True)
    for share in SHARES:
        table.add_column(f"{share:.0%}", justify="right")
    rows = {**curves["families"], "hindsight": curves["oracle"]}
    for name, points in rows.items():
        table.add_row(
            name,
            *(_best_within(points, share) for share in SHARES),
            style="dim" if name == "hindsight" else None,
        )
    table.caption = Text(
        "best accuracy in % with 95 % interval, at most so much of the reference's mean MACs,\n"
        f"of policies fitted on calibration, on {curves['n']} test images; figures, not promises;\n"
        "hindsight knows the labels: a bound that no policy reaches"
    )
    return table


def _best_within(points: list[Data], share: float) -> str:
    fitting = [point["accuracy"] for point in points if point["share"] <= share + 1e-9]
    return accuracy_text(max(fitting, key=lambda one: one["value"]), stacked=True) if fitting else NOTHING


def blank_table(title: str) -> Table:
    """A table without columns, as narrow as can be: eight of figures fit into 80 characters."""
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        header_style="bold",
    )


def _accuracy_cells(row: Data, *, stacked: bool) -> list[str]:
    if not row["trained"]:
        return ["not trained", NOTHING]
    accuracy = row["accuracy"] or {}
    return [accuracy_text(accuracy.get(split), stacked=stacked) for split in ("selection", "test")]


def _extra(value: Any) -> str:
    if value is None:
        return NOTHING
    return three(value) if isinstance(value, float) else str(value)


def _sizes(rows: list[Data]) -> str:
    """How many images the accuracies stand on."""
    found = {}
    for split in ("selection", "test"):
        for row in rows:
            if row["accuracy"] and row["accuracy"].get(split):
                found[split] = row["accuracy"][split]["n"]
    return f" ({', '.join(f'{n} {split}' for split, n in found.items())} images)" if found else ""


def model_rows(report: Data) -> list[dict[str, Any]]:
    """The rows of a comparison as far as the report alone knows them."""
    exits = {row["exit"]: row for row in report["exits"]}
    rows = []
    for name, exit in (("full", reference_exit(report)), ("static", report["static"]["exit"])):
        row = exits[exit]
        accuracy = (row["accuracy"] or {}).get("test")
        rows.append({**row, "name": name, "accuracy": accuracy, "mean_macs": row["macs_static"]})
    dynamic = report.get("dynamic")
    if dynamic and dynamic.get("mean_macs") is not None:
        accuracy = (dynamic.get("accuracy") or {}).get("test")
        sizes = {key: dynamic.get(key) for key in ("params", "bytes", "mean_macs")}
        certified = dynamic.get("certificate") is not None
        rows.append({"name": "dynamic", "accuracy": accuracy, "certified": certified, **sizes})
    return rows


def model_name(row: Data, report: Data) -> str:
    """What a table calls a row of a comparison."""
    name = str(row["name"])
    if name == "full":
        return reference_name(report)
    if name in ("static", "static_equal"):
        return f"static (exit {row.get('exit') or report['static']['exit']})"
    if name == "dynamic":
        return f"dynamic ({'certified' if row.get('certified') else 'no certificate'})"
    return name


def _time_cells(row: Data, batch_sizes: list[int]) -> tuple[str, str, str]:
    """Batch sizes, milliseconds per image and speed-ups, each a line per batch size."""
    times = [(row.get("ms_per_image") or {}).get(str(size)) for size in batch_sizes]
    speeds = [(row.get("speedup") or {}).get(str(size)) for size in batch_sizes]
    return (
        "\n".join(str(size) for size in batch_sizes),
        "\n".join(three(time["median"]) if time else NOTHING for time in times),
        "\n".join(f"{speed['median']:.2f}x" if speed else NOTHING for speed in speeds),
    )
