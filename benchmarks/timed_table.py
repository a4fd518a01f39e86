"""The table of docs/static-or-dynamic.md: what the records with measured times come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["timed_table"]

DIGITS, DEEP = "handwritten digits, ResNet-18 of 8 units", "CIFAR-10, ResNet-18 of 15 units"


def timed_table(load: Callable[[str], dict[str, Any]]) -> str:
    """How fast static and dynamic models run as a ratio to the full one, and which is recommended."""
    lines = [
        "| network | device | batch | static | dynamic | recommended |",
        "| --- | --- | --- | --- | --- | --- |",
        *_digits(load("quickstart")),
        *_deep(load("halting_speed")),
    ]
    return "\n".join(lines)


def _gain(one: dict[str, Any]) -> str:
    return f"{one['median']:.2f} x [{one['low']:.2f}, {one['high']:.2f}]"


def _digits(record: dict[str, Any]) -> Iterator[str]:
    comparison = record["report"]["comparison"]
    rows = {row["name"]: row for row in comparison["rows"]}
    held = "" if rows["dynamic"]["certified"] else " (not certified)"
    for size in map(str, comparison["batch_sizes"]):
        static, dynamic = (_gain(rows[name]["speedup"][size]) for name in ("static", "dynamic"))
        choice = comparison["recommendation"]["choice"]
        yield f"| {DIGITS} | {comparison['device']} | {size} | {static} | {dynamic}{held} | {choice} |"


def _deep(record: dict[str, Any]) -> Iterator[str]:
    static = f"static, exit {record['fit']['static']['exit']}"
    device = f"cpu, {record['threads']} threads"
    for size, block in record["passes"]["eager"].items():
        cells = [_gain(block["rows"][name]["over_full"]["throughput"]) for name in (static, block["dynamic"])]
        choice = block["recommendation"]["choice"]
        yield f"| {DEEP} | {device} | {size} | {' | '.join(cells)} | {choice} |"
