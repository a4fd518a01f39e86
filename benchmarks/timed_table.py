"""The table of docs/static-or-dynamic.md: what the records with measured times come to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["timed_table"]

DIGITS, DEEP = "handwritten digits, ResNet-18 of 8 units", "CIFAR-10, ResNet-18 of 15 units"


def timed_table(load: Callable[[str], dict[str, Any]]) -> str:
    """How fast static and dynamic models run as a ratio to the full one, and which is recommended."""
    lines = [
        "| network | loss allowed | device | batch | static | dynamic | recommended |",
        "| --- " * 7 + "|",
        *_digits(load("quickstart")),
        *_deep(load("halting_speed")),
    ]
    return "\n".join(lines)


def _points(said: str) -> float:
    """The loss that a reason of a static choice, or a refusal of a certificate, speaks of."""
    found = re.search(r"(?:within|is at most) (-?[\d.]+) points?", said)
    if found is None:
        raise ValueError(f"no loss in {said!r}")
    return float(found[1])


def _allowed(static: float, dynamic: float) -> str:
    """In one cell; both where they differ."""
    said = f"{static:g} point{'' if static == 1 else 's'}"
    return said if static == dynamic else f"{said}, dynamic {dynamic:g}"


def _gain(one: dict[str, Any]) -> str:
    return f"{one['median']:.2f} x [{one['low']:.2f}, {one['high']:.2f}]"


def _digits(record: dict[str, Any]) -> Iterator[str]:
    report, comparison = record["report"], record["report"]["comparison"]
    rows = {row["name"]: row for row in comparison["rows"]}
    certificate = report["dynamic"]["certificate"]
    asked = 100 * certificate["drop"] if certificate else _points(report["dynamic"]["refusal"])
    loss = _allowed(_points(report["static"]["reason"]), asked)
    held = "" if rows["dynamic"]["certified"] else " (not certified)"
    advice = comparison["recommendation"]
    for size in map(str, comparison["batch_sizes"]):
        static, dynamic = (_gain(rows[name]["speedup"][size]) for name in ("static", "dynamic"))
        choice = advice.get("by_batch", {}).get(size, advice)["choice"]
        cells = [DIGITS, loss, comparison["device"], size, static, f"{dynamic}{held}", choice]
        yield f"| {' | '.join(cells)} |"


def _deep(record: dict[str, Any]) -> Iterator[str]:
    static = f"static, exit {record['fit']['static']['exit']}"
    device = f"cpu, {record['threads']} threads"
    (asked,) = {100 * made["certificate"]["drop"] for made in record["dynamic"].values()}
    loss = _allowed(_points(record["fit"]["static"]["reason"]), asked)
    for size, block in record["passes"]["eager"].items():
        gains = [_gain(block["rows"][name]["over_full"]["throughput"]) for name in (static, block["dynamic"])]
        cells = [DEEP, loss, device, size, *gains, block["recommendation"]["choice"]]
        yield f"| {' | '.join(cells)} |"
