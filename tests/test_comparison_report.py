"""How a comparison is shown: the table of times, the sentences, the picture."""

import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from odn_hybrid.errors import ConfigError, RunDirError
from odn_hybrid.report import comparison_lines, explain, summary_table, timings_table
from odn_hybrid.report.picture import draw_comparison

SIZES = ("1", "16", "256")


def accuracy(value: float) -> dict[str, Any]:
    return {"value": value, "n": 10_000, "low": value - 0.006, "high": value + 0.006}


def model_row(name: str, speed: float, **more: Any) -> dict[str, Any]:
    def each(value: Any) -> dict[str, Any]:
        return dict.fromkeys(SIZES, value)

    spread = {"median": 12.3 / speed, "low": 11.9 / speed, "high": 12.9 / speed}
    return {
        "name": name, "kind": name, "exit": None, "accuracy": accuracy(0.9123), "mean_macs": 53_500_000,
        "params": 11_200_000, "bytes": 44_700_000, "certified": None, "note": None,
        "ms_per_image": each(spread), "images_per_second": each(12_300.0),
        "ms_per_call": each({"p50": 1234.0, "p90": 2345.0, "p99": 3456.0, "calls": 100}),
        "speedup": each({"median": speed, "low": speed - 0.05, "high": speed + 0.05}),
        "peak_bytes": each(123_400_000), "joules_per_image": each(0.1234), **more,
    }  # fmt: skip


def made(**more: Any) -> dict[str, Any]:
    """A report with the widest cells there are."""
    both = dict.fromkeys(("selection", "test"), accuracy(0.9))
    exits = [{"exit": k, "units": k, "trained": True, "accuracy": both} for k in range(1, 13)]
    rows = [
        model_row("full", 1.0, exit=12),
        model_row("static", 1.5, exit=10),
        model_row("static_equal", 1.4, exit=11, kind="static"),
        model_row("dynamic", 12.34, certified=False, note="there is no certificate"),
        model_row("a_small_network_of_mine", 2.0, kind="given"),
    ]
    comparison = {
        "device": "cpu, 2 threads", "runtime": "eager fp32 folded cpu", "batch_sizes": [1, 16, 256],
        "images": dict.fromkeys(SIZES, 512), "rows": rows, "equal_accuracy_exit": 11, "rounds": 9,
        "memory": "growth of this", "energy": "RAPL, 1 processor package", "exits": None,
        "halting": dict.fromkeys(SIZES), "ideal": {
            size: {"speedup": {"median": 2.0}, "reached": {"median": 0.905}, "segments": []} for size in SIZES
        },
        "recommendation": {
            "choice": "static", "model": "static", "reason": "static (exit 10) runs 1.50 x",
            "notes": ["mind this"],
            "by_batch": {
                size: {"choice": c, "model": c, "reason": f"{c} here"}
                for size, c in zip(SIZES, ("full", "static", "static"), strict=True)
            },
        }, **more,
    }  # fmt: skip
    return {
        "model": "resnet18", "data": {"name": "cifar10"}, "reference": {"exit": 12, "full": True},
        "exits": exits, "static": {"exit": 10, "units": 10, "reason": "because"}, "comparison": comparison,
    }  # fmt: skip


def shown(thing: Any, width: int) -> str:
    console = Console(width=width, file=StringIO())
    console.print(thing)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_measured_stands_in_the_table(width: int) -> None:
    report = made()
    text = shown(timings_table(report, report["comparison"]), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for cell in ("1234", "2345", "3456", "12.3 k", "12.34 [12.29, 12.39]", "123", "cpu, 2 threads", "512 at"):
        assert cell in words, cell
    assert "eager fp32 folded cpu" in words and "9 rounds" in words and "growth of this" in words
    for name in ("full", "(exit 10)", "(exit 11)", "(no certificate)", "a_small"):
        assert name in text
    assert "mJ/" in text


def test_what_is_not_known_is_not_shown() -> None:
    report = made(memory="nobody tells")
    for row in report["comparison"]["rows"]:
        row["joules_per_image"] = row["peak_bytes"] = dict.fromkeys(SIZES)
        row["ms_per_call"]["16"] = {"p50": 1.0, "p90": 2.0, "p99": 7654.0, "calls": 99}
    text = shown(timings_table(report, report["comparison"]), 80)
    assert "mJ" not in text and "7654" not in text and "Peak memory unknown: nobody tells" in text


def test_a_comparison_of_an_earlier_release_is_shown_as_it_was() -> None:
    report = made()
    comparison = report["comparison"]
    old = {key: comparison[key] for key in ("device", "batch_sizes", "rows")}
    names = ("name", "accuracy", "mean_macs", "params", "bytes", "certified", "ms_per_image", "speedup")
    old["rows"] = [{name: row[name] for name in names} for row in comparison["rows"][:2]]
    old["recommendation"] = {"choice": "static", "reason": "static is faster"}
    report["comparison"] = old
    assert timings_table(report, old) is None
    assert "12.3" in shown(summary_table(report, old), 80)
    assert comparison_lines(report, old) == ["Static is faster."]


def test_the_advice_by_batch_size_where_it_differs() -> None:
    report = made()
    text = "\n".join(comparison_lines(report, report["comparison"]))
    assert text.startswith("Static (exit 10) runs 1.50 x.\nBatch 1: full here.\nBatch 16: static here.")
    assert "Note: mind this." in text and "90 % of 2.00 x at batch 1" in text
    assert "as accurate as the dynamic model on the selection split: static (exit 11)." in text
    for one in report["comparison"]["recommendation"]["by_batch"].values():
        one["model"] = "static"
    assert "Batch 16" not in "\n".join(comparison_lines(report, report["comparison"]))
    del report["comparison"]["recommendation"]
    with pytest.raises(RunDirError, match="recommendation"):
        comparison_lines(report, report["comparison"])


def test_explaining_a_report_gives_the_whole_advice() -> None:
    report = made()
    report |= {
        "dynamic": None,
        "no_dynamic": "why not",
        "search": {"epochs": 1, "train_macs": 1, "seconds": 1},
    }
    for row in report["exits"]:
        row |= {"macs_static": 1, "bytes": 1, "keep": []}
    text = explain(report)
    assert "Recommendation: static. Static (exit 10) runs 1.50 x." in text and "Note: mind this." in text


# --- the picture ------------------------------------------------------------------------------------


def drawn(report: dict[str, Any], path: Path) -> np.ndarray:
    draw_comparison(report, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_picture_has_a_panel_for_each_batch_size_and_every_model(tmp_path: Path) -> None:
    report = made()
    whole = drawn(report, tmp_path / "whole.png")
    one = drawn(made(batch_sizes=[16]), tmp_path / "one.png")
    assert whole.shape[1] > 1.6 * one.shape[1]
    for colour in ("000000", "0072B2", "D55E00", "009E73"):  # full, static, dynamic, given
        wanted = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
        assert (whole == wanted).all(axis=2).sum() > 50, colour
    report["comparison"]["exits"] = [
        {"exit": k, "units": k, "accuracy": accuracy(0.8 + k / 100), "ms_per_image": {
            size: {"median": k, "low": k, "high": k} for size in SIZES
        }} for k in range(1, 13)
    ]  # fmt: skip
    assert (drawn(report, tmp_path / "exits.png") != whole).any()


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_other_formats(tmp_path: Path, ending: str) -> None:
    path = draw_comparison(made(), tmp_path / f"times.{ending}")
    assert path.read_bytes()[:5] in (b"<?xml", b"%PDF-")


def test_pictures_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in one of \.png, \.svg, \.pdf"):
        draw_comparison(made(), tmp_path / "times.gif")
    with pytest.raises(ConfigError, match="run odn compare first"):
        draw_comparison({**made(), "comparison": None}, tmp_path / "times.png")
    with pytest.raises(ConfigError, match="there is no folder"):
        draw_comparison(made(), tmp_path / "missing" / "times.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'odn-hybrid\[plots\]'"):
        draw_comparison(made(), tmp_path / "times.png")
