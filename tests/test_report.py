"""What a person is shown: every figure of the report, in human units, at any width, on a terminal or not."""

import copy
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from odn_hybrid.errors import RunDirError
from odn_hybrid.report import curves_table, exits_table, explain, summary_table

MACS = [34_100_000, 72_000_000, 130_000_000, 1_820_000_000]
STATEMENT = "accuracy drop against exit 4 is at most 1 points with confidence 0.95, for exchangeable data"
REFUSAL = "not certified: that the drop is at most 1 points is not shown by 239 images; 612 would do"


def accuracy(value: float, n: int, half: float) -> dict[str, float]:
    return {"value": value, "n": n, "low": value - half, "high": value + half / 2}


def exit_row(k: int, trained: bool) -> dict[str, Any]:
    both = {"selection": accuracy(0.95 + 0.01 * k, 239, 0.02), "test": accuracy(0.951 + 0.01 * k, 300, 0.024)}
    return {
        "exit": k, "units": 2 * k, "trained": trained, "macs_static": MACS[k - 1],
        "macs_dynamic": MACS[k - 1] + 900_000, "params": 75_200 * k, "bytes": 301_000 * k,
        "accuracy": both if trained else {"selection": None, "test": None},
    }  # fmt: skip


def make_report(*, trained: int = 4, certified: bool = True) -> dict[str, Any]:
    return {
        "schema": 1,
        "model": "resnet18",
        "data": {"name": "digits"},
        "reference": {"exit": trained, "units": 2 * trained, "full": trained == 4},
        "exits": [exit_row(k, k <= trained) for k in range(1, 5)],
        "static": {"exit": 2, "units": 4, "reason": "the shallowest exit shown to be good enough"},
        "dynamic": {
            "policy": {}, "accuracy": {"selection": None, "test": accuracy(0.968, 300, 0.022)},
            "mean_macs": 48_300_000.0, "mean_units": 2.84, "halting": [0.7, 0.2, 0.1], "params": 310_000,
            "bytes": 1_240_000, "certificate": {"drop": 0.01, "delta": 0.05, "statement": STATEMENT},
            "refusal": None,
        } if certified else {
            "policy": {}, "accuracy": {"selection": None, "test": accuracy(0.968, 300, 0.022)},
            "mean_macs": 48_300_000.0, "mean_units": 2.84, "halting": [0.7, 0.2, 0.1], "params": 310_000,
            "bytes": 1_240_000, "certificate": None, "refusal": REFUSAL,
        },
        "comparison": None,
        "search": {"epochs": 23, "train_macs": 2.3e15, "seconds": 134.2, "by_depth": {"10": 0.5, "2": 8.0}},
        "environment": {},
    }  # fmt: skip


def test_a_reference_no_better_than_guessing_is_warned_of() -> None:
    report = make_report()
    assert "Warning" not in explain(report)
    report["reference"]["chance"] = 0.9
    assert "Warning" not in explain(report)  # 0.97 and more
    report["reference"]["chance"] = 0.97
    assert "Warning: exit 4, which drops are measured against, is not shown to be better" in explain(report)


def test_a_search_that_its_budget_ended_says_so() -> None:
    report = make_report()
    for stopped, said in (("rule", False), ("budget", True)):
        report["search"]["stopped_by"] = stopped
        assert ("budget was used up" in explain(report)) == said


def make_thin_report() -> dict[str, Any]:
    """Of a network with 50 units in four stages, as long as any."""
    report = make_report()
    keep = [[*range(3), *range(3, 5), *range(11, 12 + 5 * k), *range(47, 48)] for k in range(1, 5)]
    for row, kept in zip(report["exits"], keep, strict=True):
        row.update(plan="thin", keep=kept, units=len(kept), macs_dynamic=row["macs_static"])
    report.update(dynamic=None, no_dynamic="inputs cannot halt in a network of thin plans; truncate it")
    report["static"]["units"] = len(keep[1])
    return report


def make_comparison(report: dict[str, Any], sizes: tuple[int, ...] = (1, 16, 64)) -> dict[str, Any]:
    exits = {row["exit"]: row for row in report["exits"]}
    rows = []
    for i, name in enumerate(("full", "static", "dynamic")):
        row = exits[report["reference"]["exit"] if name == "full" else 2]
        rows.append({
            "name": name, "accuracy": row["accuracy"]["test"], "mean_macs": row["macs_static"],
            "params": row["params"], "bytes": row["bytes"],
            "certified": report["dynamic"]["certificate"] is not None if name == "dynamic" else None,
            "ms_per_image": {str(b): {"median": 12.34 / (i + 1), "low": 1.0, "high": 2.0} for b in sizes},
            "speedup": {str(b): {"median": i + 1.0, "low": i + 0.9, "high": i + 1.1} for b in sizes},
        })  # fmt: skip
    return {
        "device": "cpu, 2 threads", "batch_sizes": list(sizes), "rows": rows,
        "recommendation": {"choice": "static", "reason": "static is 2 x as fast at batch 64"},
    }  # fmt: skip


def shown(table: Table | str, width: int = 80, **kind: Any) -> str:
    console = Console(width=width, file=StringIO(), **kind)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


# --- the table of exits ---------------------------------------------------------------------------


def test_an_exit_row_shows_everything() -> None:
    row = line_of(shown(exits_table(make_report())), "2 ")
    for cell in ("97.0 [95.0, 98.0]", "97.1 [94.7, 98.3]", "72.0 M", "72.9 M", "150 k", "0.602"):
        assert cell in row
    assert "1.82 G" in shown(exits_table(make_report()))


def test_static_choice_and_reference_are_marked() -> None:
    report = make_report(trained=3)
    text = shown(exits_table(report))
    assert line_of(text, "2 *").split()[2] == "4" and line_of(text, "3 +").split()[2] == "6"
    assert "* static choice" in text and "+ reference" in text
    report["static"]["exit"] = 3
    assert line_of(shown(exits_table(report)), "3 *+")


@pytest.mark.parametrize("absent", [{"selection": None, "test": None}, None])
def test_untrained_exits_say_so(absent: dict[str, None] | None) -> None:
    report = make_report(trained=3)
    report["exits"][3]["accuracy"] = absent
    row = line_of(shown(exits_table(report)), "4 ")
    assert "not trained" in row and "1.82 G" in row and "[" not in row


def test_sample_sizes_are_given() -> None:
    assert "239 selection, 300 test images" in " ".join(shown(exits_table(make_report())).split())


def test_narrow_intervals_get_two_decimals() -> None:
    report = make_report()
    report["exits"][1]["accuracy"]["test"] = accuracy(0.9931, 10_000, 0.002)
    assert "99.31 [99.11, 99.41]" in line_of(shown(exits_table(report)), "2 ")


def test_thin_networks_show_which_units_they_keep() -> None:
    text = shown(exits_table(make_thin_report()), 120)
    row = line_of(text, "2 *")
    assert row.split()[2:7] == ["17", "0-4", "11-21", "47", "97.0"] and "dyn." not in text
    assert "kept: units of the thin network, from 0" in " ".join(text.split())
    assert "kept" not in shown(exits_table(make_report()))


def test_stages_and_times_are_shown_where_known() -> None:
    report = make_report()
    assert "stage" not in shown(exits_table(report))
    for row in report["exits"]:
        row.update(stage=f"stage {row['exit']}", ms=0.5 * row["exit"])
    report["exits"][0]["ms"] = None
    text = shown(exits_table(report), 120)
    assert "stage 3" in text and "ms/img" in text and "1.50" in text


# --- halting policies -------------------------------------------------------------------------------


def test_the_best_accuracy_within_shares_of_the_cost() -> None:
    report = make_report()
    points = [(1.0, 0.97), (0.55, 0.971), (0.35, 0.9)]
    rows = [{"share": share, "accuracy": accuracy(value, 300, 0.02)} for share, value in points]
    report["curves"] = {"split": "test", "n": 300, "families": {"snell": rows}, "oracle": rows[:1]}
    text = shown(curves_table(report))
    line = next(line for line in text.splitlines() if line.startswith("snell"))
    assert [word for word in line.split() if word != "snell"] == ["-", "90.0", "90.0", "97.1", "97.1", "97.1"]
    assert "hindsight" in text and "figures, not promises" in text
    del report["curves"]["families"]
    with pytest.raises(RunDirError, match=r"report\.json is damaged"):
        curves_table(report)


# --- full, static, dynamic ------------------------------------------------------------------------


def test_the_summary_shows_accuracy_cost_and_time() -> None:
    report = make_report()
    text = shown(summary_table(report, make_comparison(report)))
    full, static = line_of(text, "full"), line_of(text, "static (exit 2)")
    assert all(cell in full for cell in ("99.1 [96.7, 100.3]", "1.82 G", "301 k", "1.20", "12.3", "1.00x"))
    assert all(cell in static for cell in ("97.1 [94.7, 98.3]", "72.0 M", "150 k", "0.602", "6.17", "2.00x"))
    assert "certified" in text and "300 test images" in text and "cpu, 2 threads" in " ".join(text.split())


def test_every_batch_size_has_its_line() -> None:
    report = make_report()
    for sizes in ((1,), (1, 8, 256)):
        text = shown(summary_table(report, make_comparison(report, sizes)))
        assert text.count("2.00x") == len(sizes) and all(f" {size} " in text for size in sizes)


def test_an_untrained_full_network_is_not_called_full() -> None:
    report = make_report(trained=3)
    for comparison in (None, make_comparison(report)):
        text = shown(summary_table(report, comparison), 120)
        assert "reference (exit 3)" in text and "full" not in text


def test_the_summary_does_without_a_comparison() -> None:
    report = make_report(certified=False)
    text = shown(summary_table(report, None), 120)
    assert "dynamic (no certificate)" in text and "48.3 M" in text and "ms/img" not in text
    report["dynamic"] = None
    assert "dynamic" not in shown(summary_table(report, None))


# --- sentences ------------------------------------------------------------------------------------


def test_explain_tells_the_choice_the_certificate_and_the_cost() -> None:
    report = make_report()
    text = explain(report)
    assert "exit 2, 4 of 8 units: the shallowest exit shown to be good enough." in text
    assert "97.1 [94.7, 98.3] %" in text and "4.0 % of the full network's" in text
    assert f"Certificate: {STATEMENT}." in text
    assert "23 epochs, 2.30 P training MACs and 2.2 min." in text
    assert "exit 2: 8, exit 10: 0.5." in text and "not trained" not in text


def test_explain_tells_a_refusal_and_its_reason() -> None:
    text = explain(make_report(certified=False))
    assert (
        "No certificate: that the drop is at most 1 points is not shown by 239 images; 612 would do." in text
    )


def test_explain_knows_a_bare_refusal_and_no_dynamic_model() -> None:
    report = make_report()
    report["dynamic"] = {"refusal": "too few images.", "certificate": None}
    assert explain(report).count("No certificate: too few images.") == 1
    report["dynamic"] = None
    assert "Dynamic halting: none" in explain(report)


def test_explain_tells_what_a_thin_network_keeps_and_why_nothing_halts() -> None:
    text = explain(make_thin_report())
    assert "It keeps units 0-4, 11-21, 47 (numbered from 0) and the network's own head." in text
    assert "Dynamic halting: none; inputs cannot halt in a network of thin plans; truncate it." in text
    assert "keeps units" not in explain(make_report())


def test_explain_names_an_untrained_full_network() -> None:
    assert "full network was not trained: drops are measured against exit 3" in explain(
        make_report(trained=3)
    )


def test_explain_gives_measured_speed_with_interval_device_and_batch() -> None:
    report = make_report()
    report["comparison"] = make_comparison(report)
    text = explain(report)
    assert "relative to full at batch 64 on cpu, 2 threads: static 2.00x [1.90, 2.10]" in text
    assert "Recommendation: static. Static is 2 x as fast at batch 64." in text


def test_a_reference_may_be_a_plain_number() -> None:
    report = make_report(trained=3)
    report["reference"] = 3
    assert explain(report) == explain(make_report(trained=3))


# --- everywhere -----------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> list[Table]:
    comparison = make_comparison(report) if report["dynamic"] else None
    return [exits_table(report), summary_table(report, comparison), summary_table(report, None)]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("trained", [3, 4, None])
def test_nothing_is_cut_off_at_usual_widths(width: int, trained: int | None) -> None:
    report = make_report(trained=trained, certified=False) if trained else make_thin_report()
    for row in report["exits"]:  # the widest cells there are
        row.update(macs_static=12_300_000, macs_dynamic=556_000_000, params=11_200_000, bytes=44_700_000)
        if row["trained"]:
            row["accuracy"] = {s: accuracy(0.9931, 10_000, 0.002) for s in ("selection", "test")}
    for table in tables(report):
        text = shown(table, width)
        assert "…" not in text and max(map(len, text.splitlines())) <= width
        assert "99.31 [99.11, 99.41]" in text


def test_no_terminal_gets_plain_text() -> None:
    for table in tables(make_report()):
        assert "\x1b" not in shown(table) and "\x1b" in shown(
            table, force_terminal=True, color_system="standard"
        )


def test_names_are_not_read_as_markup() -> None:
    report = make_report()
    report["model"], report["data"] = "net[bold]", {"name": "[/red]set"}
    for table in tables(report):
        assert "net[bold] on [/red]set" in shown(table)


SHOWS: list[Callable[[dict[str, Any]], Any]] = [exits_table, explain, lambda r: summary_table(r, None)]


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("field", ["exits", "static", "reference"])
def test_a_damaged_report_is_a_clear_error(show: Callable[[dict[str, Any]], Any], field: str) -> None:
    for damage in (None, "text", {"exit": 77}):
        report = make_report()
        report[field] = damage
        if field == "exits" or damage != {"exit": 77} or show is not exits_table:
            with pytest.raises(RunDirError, match=r"report\.json is damaged"):
                show(report)
    report = make_report()
    del report[field]
    with pytest.raises(RunDirError, match=field):
        show(report)


def test_showing_changes_nothing() -> None:
    report = make_report()
    report["comparison"] = make_comparison(report)
    before = copy.deepcopy(report)
    tables(report)
    explain(report)
    assert report == before


def test_reports_are_shown_without_torch() -> None:
    code = "import sys, odn_hybrid.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
