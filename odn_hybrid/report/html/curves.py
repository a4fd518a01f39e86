"""Curves of the page: accuracy against cost, where inputs stop, how training went."""

from __future__ import annotations

from collections.abc import Sequence

from odn_hybrid.report.html.drawing import Line, Mark, bars, plot
from odn_hybrid.report.html.elements import figure, paragraphs, section, table
from odn_hybrid.report.tables import model_name, model_rows
from odn_hybrid.report.wording import Data, accuracy_text, count, percent, reference_exit

__all__ = ["cost_curve", "halting_histogram", "history_curve"]

FAMILIES = ("snell", "confidence")
BELOW = 25.0  # points under the best; what lies further below is left out
MOST_ROWS = 200


def cost_curve(report: Data) -> str:
    """Exits, halting policies and the three models over mean MACs."""
    exits = [row for row in report["exits"] if row["trained"] and (row["accuracy"] or {}).get("test")]
    if not exits:
        return ""
    whole = next(row["macs_static"] for row in report["exits"] if row["exit"] == reference_exit(report))
    families = (report.get("curves") or {}).get("families") or {}
    points = [(row["macs_static"] / 1e6, 100 * row["accuracy"]["test"]["value"]) for row in exits]
    lines, rows = [], []
    for name in FAMILIES:
        found = sorted(families.get(name) or (), key=lambda one: one["share"])
        curve = [(one["share"] * whole / 1e6, 100 * one["accuracy"]["value"]) for one in found]
        lines.append(Line(name, curve))
        for one in found:
            macs = one["share"] * whole
            rows.append([name, count(macs), percent(one["share"]), accuracy_text(one["accuracy"])])
    lines = [line for line in lines if line.points] + [
        Line("exits", points, [str(row["exit"]) for row in exits])
    ]
    for row in exits:
        share = percent(row["macs_static"] / whole)
        told = accuracy_text(row["accuracy"]["test"])
        rows.append([f"static, exit {row['exit']}", count(row["macs_static"]), share, told])
    best = max(y for line in lines for _, y in line.points)
    names = ("million MACs an image, on average", "test accuracy, %")
    drawing = plot("curve-drawing", "Test accuracy against MACs", names, lines, _marks(report), best - BELOW)
    behind = table("Accuracy against cost", ["Model", "MACs", "Share", "Test accuracy, %"], rows)
    halting = " Solid: halting by Snell's rule; dashed: by confidence." if len(lines) > 1 else ""
    caption = (
        "Square: the full network; triangle: the static choice; circle: halting (hollow: not promised). "
        f"Dotted: every exit as a static model.{halting} "
        f"Exits more than {BELOW:g} points below the best are left out."
    )
    return section("curve", "Accuracy against cost", figure(drawing, caption, behind))


def _marks(report: Data) -> list[Mark]:
    marks = []
    for row in model_rows(report):
        told = row["accuracy"]
        if not told or row.get("mean_macs") is None:
            continue
        kind = str(row["name"])
        kind = "hollow" if kind == "dynamic" and not row.get("certified") else kind
        value, low, high = (100 * told[key] for key in ("value", "low", "high"))
        marks.append(Mark(kind, row["mean_macs"] / 1e6, value, low, high))
    return marks


def halting_histogram(report: Data) -> str:
    """The share of test images that stop at each exit."""
    dynamic = report.get("dynamic") or {}
    shares = dynamic.get("halting")
    if not shares:
        why = report.get("no_dynamic") or "this run has no halting model"
        return section("halting", "Where inputs stop", paragraphs([f"Nothing stops early: {why}."]))
    rows = [(f"exit {number}", float(share)) for number, share in enumerate(shares, 1)]
    drawing = bars("halting-drawing", "Share of test images that stop at each exit", rows)
    behind = table(
        "Where inputs stop", ["Exit", "Share"], [[name, f"{100 * share:.2f} %"] for name, share in rows]
    )
    units = dynamic.get("mean_units")
    mean = f" On average {units:.2f} units run." if units is not None else ""
    model = next(
        (model_name(row, report) for row in model_rows(report) if row["name"] == "dynamic"), "dynamic"
    )
    return section("halting", "Where inputs stop", figure(drawing, f"Test images, {model}.{mean}", behind))


def history_curve(history: Sequence[Data]) -> str:
    """Training loss and the best selection accuracy by epoch."""
    losses = [(float(row["epoch"]), row["loss"]) for row in history if row.get("loss") is not None]
    chosen = [(float(row["epoch"]), 100 * max(known)) for row in history if (known := _known(row))]
    if not losses and not chosen:
        return section("history", "How training went", paragraphs(["The run keeps no history."]))
    parts = []
    if chosen:
        names = ("epoch", "best selection accuracy, %")
        drawing = plot(
            "selection-drawing", "Best selection accuracy by epoch", names, [Line("selection", chosen)]
        )
        parts.append(figure(drawing, "The best exit's accuracy on the selection split, in percent."))
    if losses:
        drawing = plot(
            "loss-drawing", "Training loss by epoch", ("epoch", "training loss"), [Line("loss", losses)]
        )
        parts.append(
            figure(drawing, "The loss of all exits in training together; it may jump where depth is added.")
        )
    every = max(1, -(-len(history) // MOST_ROWS))
    rows = [
        [f"{row['epoch']}", str(row.get("phase", "")), _number(row.get("loss")), _percent(_known(row))]
        for number, row in enumerate(history)
        if number % every == 0 or number == len(history) - 1
    ]
    which = "" if every == 1 else f", every {every} epochs"
    behind = table(f"Training history{which}", ["Epoch", "Phase", "Loss", "Best selection, %"], rows)
    parts.append(f"<details><summary>The figures as a table</summary>{behind}</details>")
    return section("history", "How training went", *parts)


def _known(row: Data) -> list[float]:
    return [value for value in row.get("selection") or () if value is not None]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(values: list[float]) -> str:
    return f"{100 * max(values):.2f}" if values else "-"
