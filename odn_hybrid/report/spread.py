"""The table of several seeds, for a console."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from odn_hybrid.report.tables import blank_table
from odn_hybrid.report.wording import NOTHING, Data, accuracy_text, count, needs_whole_report

__all__ = ["seeds_table"]


@needs_whole_report
def seeds_table(found: Data) -> Table:
    """One row per seed and a last one with mean and spread.

    Args:
        found: the data of `seeds.json`, as `odn_hybrid.fit_seeds` gives them.

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> import odn_hybrid as odn
        >>> from odn_hybrid.report import seeds_table
        >>> # `data` is an .npz file of grey images of 12x12 pixels, `folder` an empty folder
        >>> tiny = {"model.args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, "model.stem": "small"}
        >>> tiny |= {"data.image_size": 12, "expansion.max_looks": 1}
        >>> found = odn.fit_seeds("resnet18", data, out=folder, seeds=[0, 1], overrides=tiny)
        >>> seeds_table(found).row_count  # a row per seed, and their mean
        3
    """
    title = f"{found['model']} on {found['data']}, {len(found['seeds'])} seeds"
    table = blank_table(title)
    table.add_column("seed", no_wrap=True)
    for name in (
        "units",
        "test %",
        "MACs",
        "ref.\ntest %",
        "dyn.\ntest %",
        "mean\nMACs",
        "train\nMACs",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["runs"]:
        static, reference, dynamic = row["static"], row["reference"], row["dynamic"]
        table.add_row(
            str(row["seed"]),
            str(static["units"]),
            accuracy_text(static["accuracy"], stacked=True),
            count(static["macs"]),
            accuracy_text(reference["accuracy"], stacked=True),
            accuracy_text(dynamic["accuracy"], stacked=True) if dynamic else NOTHING,
            count(dynamic["macs"]) if dynamic else NOTHING,
            count(row["search"]["train_macs"]),
        )
    table.add_section()
    summary = found["summary"]
    static, reference, dynamic = summary["static"], summary["reference"], summary["dynamic"]
    table.add_row(
        "mean\n± sd",
        _plain(static["units"]),
        _percent(static["accuracy"]),
        _count(static["macs"]),
        _percent(reference["accuracy"]),
        _percent(dynamic["accuracy"]),
        _count(dynamic["macs"]),
        _count(summary["search"]["train_macs"]),
        style="bold",
    )
    chosen = ", ".join(f"{units} units: {times}" for units, times in found["depths"].items())
    table.caption = Text(
        f"static depth chosen, by number of seeds: {chosen}\n"
        "accuracy with 95 % interval of each seed's test split; sd over seeds"
    )
    return table


def _percent(spread: Data | None) -> str:
    return _with_sd(spread, lambda value: f"{100 * value:.2f}")


def _plain(spread: Data | None) -> str:
    return _with_sd(spread, lambda value: f"{value:.2f}")


def _count(spread: Data | None) -> str:
    return _with_sd(spread, count)


def _with_sd(spread: Data | None, show: Any) -> str:
    if spread is None:
        return NOTHING
    return f"{show(spread['mean'])}" + ("" if spread["sd"] is None else f"\n± {show(spread['sd'])}")
