"""What a report says, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping

from odn_hybrid.report.timings import comparison_lines
from odn_hybrid.report.wording import (
    Data,
    accuracy_text,
    count,
    duration,
    is_thin,
    megabytes,
    needs_whole_report,
    percent,
    ranges,
    reference_exit,
    reference_name,
    reference_word,
)

__all__ = ["explain"]


@needs_whole_report
def explain(report: Data) -> str:
    """What was chosen and why, in plain sentences: one line each, without markup.

    The static choice, what drops are measured against, the dynamic certificate or its refusal, the measured
    comparison if there is one, and what the search cost.

    Args:
        report: the data of `report.json`, as `run.report_` holds them.

    Raises:
        RunDirError: the data are damaged.

    Example:
        >>> from odn_hybrid.report import explain
        >>> # `run` is a finished fit of a ResNet of 4 units
        >>> explain(run.report_).splitlines()[0]
        'Static choice: exit ...'
    """
    lines = [*_explain_static(report), *_explain_dynamic(report), *_explain_comparison(report)]
    return "\n".join([*lines, *_explain_search(report)])


def _explain_static(report: Data) -> list[str]:
    exits = {row["exit"]: row for row in report["exits"]}
    static, reference, last = report["static"]["exit"], reference_exit(report), max(exits)
    row, whole = exits[static], exits[last]
    depth = f"exit {static}, {row['units']} of {whole['units']} units"
    lines = [_sentence(f"Static choice: {depth}: {report['static']['reason']}")]
    if is_thin(report) and static != last:
        kept = ranges(row["keep"]).replace(" ", ", ")
        lines.append(f"It keeps units {kept} (numbered from 0) and the network's own head.")
    accuracy = accuracy_text((row["accuracy"] or {}).get("test"))
    cost = f"{megabytes(row['bytes'])} MB and {count(row['macs_static'])} MACs per image"
    if static != last and whole["bytes"] and whole["macs_static"]:
        size, macs = (percent(row[key] / whole[key]) for key in ("bytes", "macs_static"))
        cost += f" ({size} and {macs} of the full network's)"
    lines.append(f"It has {accuracy} % on the test split and takes {cost}.")
    lines += _no_better_than_guessing(report, exits[reference])
    if reference != last or not exits[last]["trained"]:
        lines.append(
            f"The full network was not trained: drops are measured against exit {reference} "
            f"({exits[reference]['units']} units), the deepest that was."
        )
    return lines


def _no_better_than_guessing(report: Data, row: Data) -> list[str]:
    """A warning where the network that drops are measured against may as well not have been trained."""
    reference, seen = report["reference"], (row["accuracy"] or {}).get("selection")
    chance = reference.get("chance") if isinstance(reference, Mapping) else None
    if chance is None or seen is None or seen["low"] > chance:
        return []
    return [
        f"Warning: exit {row['exit']}, which drops are measured against, is not shown to be better than "
        f"always answering the most frequent class ({percent(chance)} of the selection split): training has "
        "probably failed, try another learning rate (optim.lr) or more epochs."
    ]


def _explain_dynamic(report: Data) -> list[str]:
    dynamic = report.get("dynamic")
    if not dynamic:
        why = report.get("no_dynamic") or "it needs more than one trained exit"
        return [_sentence(f"Dynamic halting: none; {why}")]
    lines = []
    if dynamic.get("mean_macs") is not None:
        units = dynamic.get("mean_units")
        depth = f"{units:.2f} units and " if units is not None else ""
        text = f"Dynamic halting: {depth}{count(dynamic['mean_macs'])} MACs per image on average"
        macs = {row["exit"]: row["macs_static"] for row in report["exits"]}
        share = percent(dynamic["mean_macs"] / macs[reference_exit(report)])
        accuracy = accuracy_text((dynamic.get("accuracy") or {}).get("test"))
        lines.append(f"{text} ({share} of the {reference_word(report)}'s), {accuracy} % on the test split.")
        policy = dynamic.get("policy") or {}
        if "family" in policy:
            recall = ", with recall" if policy["table"]["recall"] is not None else ""
            lines.append(f"Its policy: {policy['family']}{recall}, setting {policy['setting']:.4g}.")
    certificate = dynamic.get("certificate")
    if certificate:
        lines.append(_sentence(f"Certificate: {_promise(certificate, report)}"))
    else:
        refusal = str(dynamic.get("refusal") or "none was asked for").removeprefix("not certified: ")
        lines.append(_sentence(f"No certificate: {refusal}"))
    return lines


def _promise(certificate: Data, report: Data) -> str:
    if certificate.get("statement"):
        return str(certificate["statement"])
    text = (
        f"accuracy drop against the {reference_word(report)} is at most {100 * certificate['drop']:g} points"
    )
    text += f" with confidence {1 - certificate['delta']:g}"
    return f"{text} ({certificate['n']} images)" if certificate.get("n") else text


def _explain_comparison(report: Data) -> list[str]:
    comparison = report.get("comparison")
    if not comparison:
        return []
    size = str(comparison["batch_sizes"][-1])
    speeds = []
    for row in comparison["rows"]:
        speed = (row.get("speedup") or {}).get(size)
        if speed and row["name"] != "full":
            interval = f"[{speed['low']:.2f}, {speed['high']:.2f}]"
            speeds.append(f"{row['name']} {speed['median']:.2f}x {interval}")
    lines = []
    if speeds:
        against = reference_name(report)
        where = f"at batch {size} on {comparison['device']}"
        lines.append(f"Measured speed relative to {against} {where}: {', '.join(speeds)} (95 % intervals).")
    advice = comparison.get("recommendation")
    if advice:
        choice = reference_word(report) if advice["choice"] == "full" else advice["choice"]
        reason = str(advice["reason"])
        lines.append(_sentence(f"Recommendation: {choice}. {reason[:1].upper()}{reason[1:]}"))
        lines += comparison_lines(report, comparison)[1:]
    return lines


def _explain_search(report: Data) -> list[str]:
    search = report["search"]
    macs, time = count(search["train_macs"]), duration(search["seconds"])
    lines = [f"The search took {search['epochs']:g} epochs, {macs} training MACs and {time}."]
    if search.get("stopped_by") == "budget":
        lines.append("It ended because its budget was used up: with a larger one it would have gone on.")
    by_depth = search.get("by_depth")
    if isinstance(by_depth, Mapping) and by_depth:
        # Keys are exits; JSON made strings of them.
        spent = sorted((int(exit), float(epochs)) for exit, epochs in by_depth.items())
        parts = ", ".join(f"exit {exit}: {epochs:g}" for exit, epochs in spent)
        lines.append(f"Epochs by the deepest exit in training: {parts}.")
    return lines


def _sentence(text: str) -> str:
    return text if text.rstrip().endswith((".", "!", "?")) else text.rstrip() + "."
