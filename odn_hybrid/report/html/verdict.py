"""The answer at the head of the page: static, dynamic or full, by time where that was measured."""

from __future__ import annotations

from odn_hybrid.report.html.elements import paragraphs, section, text
from odn_hybrid.report.timings import comparison_lines
from odn_hybrid.report.wording import Data, percent, reference_exit, reference_word

__all__ = ["verdict"]

WORDS = {"static": "Static", "dynamic": "Dynamic"}


def verdict(report: Data) -> str:
    """The section; its class is the choice, for the colour."""
    comparison = report.get("comparison")
    advice = comparison.get("recommendation") if comparison else None
    if comparison and advice:
        choice, lines = str(advice["choice"]), comparison_lines(report, comparison)
        basis = f"By time, measured on {comparison['device']}."
    else:
        choice, lines = _by_macs(report)
        basis = "By MACs, not by time: odn compare RUN measures this run on your device."
    word = WORDS.get(choice, f"Keep the {reference_word(report)}")
    inner = f'<p class="word">{text(word)}</p>{paragraphs([basis], "soft")}{paragraphs(lines)}'
    kind = choice if choice in WORDS else "full"
    return section("verdict", "The answer", inner).replace("<section", f'<section class="verdict {kind}"', 1)


def _by_macs(report: Data) -> tuple[str, list[str]]:
    """What costs least of what was shown to be good enough, and why."""
    rows = {row["exit"]: row for row in report["exits"]}
    whole, static = rows[reference_exit(report)], rows[report["static"]["exit"]]
    dynamic, name = report.get("dynamic"), reference_word(report)
    certified = dynamic if dynamic and dynamic.get("certificate") else None
    lines = []
    if static["exit"] != whole["exit"]:
        share = percent(static["macs_static"] / whole["macs_static"])
        lines.append(
            f"Static: exit {static['exit']} takes {share} of the MACs of the {name}. {_reason(report)}"
        )
    else:
        lines.append(f"No shallower exit was chosen: {_reason(report)}")
    if certified:
        share = percent(certified["mean_macs"] / whole["macs_static"])
        lines.append(f"Dynamic: certified, {share} of the MACs of the {name} on average.")
    else:
        lines.append("Dynamic halting is not recommended: nothing is promised of it (see below).")
    if certified and certified["mean_macs"] < min(static["macs_static"], whole["macs_static"]):
        return "dynamic", lines[::-1]
    return ("static" if static["macs_static"] < whole["macs_static"] else "full"), lines


def _reason(report: Data) -> str:
    told = str(report["static"]["reason"]).strip()
    told = told[:1].upper() + told[1:]
    return told if told.endswith((".", "!", "?")) else f"{told}."
