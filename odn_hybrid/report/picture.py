"""The picture of a comparison: accuracy against measured time, a panel per batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odn_hybrid.errors import ConfigError, StorageError
from odn_hybrid.report.tables import model_name
from odn_hybrid.report.wording import Data, data_name, needs_whole_report

__all__ = ["check_picture", "draw_comparison"]

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which colour-blind readers tell apart; shape and filling do without colour.
MARKS = {
    "full": ("s", "#000000"),
    "static": ("^", "#0072B2"),
    "dynamic": ("o", "#D55E00"),
    "given": ("D", "#009E73"),
}
WIDTH, HEIGHT = 4.1, 4.0  # inches of a panel


def check_picture(path: str | Path) -> Path:
    """Where to draw; raises `ConfigError` for a format that is not known, or without matplotlib."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"picture {str(path)!r}: its name must end in one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"picture {str(path)!r}: there is no folder {str(path.parent)!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("a picture needs matplotlib: pip install 'odn-hybrid[plots]'") from None
    return path


@needs_whole_report
def draw_comparison(report: Data, path: str | Path) -> Path:
    """Draw the report's comparison into a .png, .svg or .pdf file.

    Every exit's static model (if `compare` timed them) and the models compared: test accuracy with its 95 %
    interval against milliseconds an image, median and 10 to 90 % of the rounds. A hollow circle is a dynamic
    model without certificate.

    Args:
        report: the data of `report.json`, as `run.report_` holds them.
        path: the file to write; its folder is there.

    Raises:
        ConfigError: no comparison yet, another format, no matplotlib. StorageError: the disk refuses.
        RunDirError: the data are damaged.

    Example:
        >>> from odn_hybrid.report import draw_comparison
        >>> # `run` is a finished fit, `folder` a new folder; few rounds, so that this takes a second
        >>> found = run.compare(batch_sizes=[1], rounds=2, seconds=0.2)
        >>> draw_comparison(run.report_, folder / "times.svg").name
        'times.svg'
    """
    path = check_picture(path)
    comparison = report.get("comparison")
    if not comparison:
        raise ConfigError("the report has no comparison to draw; run odn compare first")
    from matplotlib.figure import Figure  # no pyplot: no window, no state

    sizes = [str(size) for size in comparison["batch_sizes"]]
    figure = Figure(figsize=(max(1.6, len(sizes)) * WIDTH, HEIGHT + 0.5), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        _panel(panel, report, comparison, size)
    panels[0].set_ylim(*_limits(comparison))
    panels[0].set_ylabel("accuracy on the test split, % (95 % interval)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    where = f"{comparison['device']}; {comparison.get('runtime', '')}".rstrip("; ")
    figure.suptitle(f"{report['model']} on {data_name(report)}: {where}", fontsize=11)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _limits(comparison: Data) -> tuple[float, float]:
    """Accuracies shown, in percent: around the models compared; exits far below lie outside."""
    known = [row["accuracy"] for row in comparison["rows"] if row["accuracy"]]
    low = min((100 * one["low"] for one in known), default=0.0)
    high = max((100 * one["high"] for one in known), default=100.0)
    return max(0.0, low - max(4.0, high - low)), min(100.5, high + 0.25 * (high - low))


def _panel(panel: Any, report: Data, comparison: Data, size: str) -> None:
    exits = [row for row in comparison.get("exits") or () if row["accuracy"]]
    if exits:
        times = [row["ms_per_image"][size] for row in exits]
        _points(panel, times, [row["accuracy"] for row in exits], {
            "marker": ".", "color": "#8C8C8C", "linestyle": ":", "linewidth": 1.2, "markersize": 7,
            "label": "static, every exit", "zorder": 1,
        })  # fmt: skip
        for row, time in zip(exits, times, strict=True):
            spot = (time["median"], 100 * row["accuracy"]["value"])
            panel.annotate(
                str(row["exit"]), spot, xytext=(4, -10), textcoords="offset points", fontsize=8,
                color="#555555", annotation_clip=True,
            )  # fmt: skip
    for row in comparison["rows"]:
        if not row["accuracy"]:
            continue
        kind = row.get("kind") or (row["name"] if row["name"] in MARKS else "given")
        marker, colour = MARKS[kind]
        hollow = (kind == "dynamic" and not row.get("certified")) or row["name"] == "static_equal"
        _points(panel, [row["ms_per_image"][size]], [row["accuracy"]], {
            "marker": marker, "color": colour, "markersize": 8, "linestyle": "none", "markeredgewidth": 1.6,
            "markerfacecolor": "white" if hollow else colour, "label": model_name(row, report), "zorder": 3,
        })  # fmt: skip
    panel.set_title(f"batch {size}", fontsize=10)
    panel.set_xlabel("ms per image (bar: 10 to 90 % of rounds)")
    panel.set_xlim(left=0)
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _points(panel: Any, times: list[Any], accuracies: list[Any], style: dict[str, Any]) -> None:
    """Points with both error bars; times and accuracies as reports hold them."""

    def around(values: list[Any], middle: str, scale: float) -> tuple[list[float], list[list[float]]]:
        centres = [scale * value[middle] for value in values]
        below = [max(0.0, c - scale * value["low"]) for c, value in zip(centres, values, strict=True)]
        above = [max(0.0, scale * value["high"] - c) for c, value in zip(centres, values, strict=True)]
        return centres, [below, above]

    x, xerr = around(times, "median", 1.0)
    y, yerr = around(accuracies, "value", 100.0)
    panel.errorbar(x, y, xerr=xerr, yerr=yerr, elinewidth=1, capsize=2, **style)
