"""The page of records: the claim that each tests, what was reached of it, and the command that wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from making.places import RECORDS

TOP = """# Records

Every measured figure on this site and in the README, but those that a tutorial computes when the site is
built, comes from one of these files. A program wrote each of them; the command, the commit and the versions
are in it. Tables are written from them, and a figure in a sentence names its record in a comment of the
page's source; tests compare both. What nobody measured, such as limits and cited figures, stands in
[a list](repo:docs/unmeasured.toml).

A claim is what a program set out to test, and it may be wrong. Where a record judges targets one by one, the
column "reached" says how many of them were met.

| record | the claim that it tests | reached | command |
| --- | --- | --- | --- |
"""


def records_page() -> str:
    """A row for each record."""
    rows = []
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        claim = " ".join(str(record["claim"]).split()).replace("|", "\\|")
        cells = [claim, reached(record), f"`{record['command']}`"]
        rows.append(f"| [{path.stem}](repo:benchmarks/records/{path.name}) | {' | '.join(cells)} |\n")
    return TOP + "".join(rows)


def reached(record: dict[str, Any]) -> str:
    """How many of its targets a record met; nothing where it judges none."""
    if "met" in record and "of" in record:
        return f"{record['met']} of {record['of']}"
    judged = list(_judged(record))
    return f"{sum(judged)} of {len(judged)}" if judged else ""


def _judged(part: dict[str, Any], inside: bool = False) -> Iterator[bool]:
    """Every `reached` below a `verdict`; a fit's own `reached` is something else."""
    if inside and isinstance(part.get("reached"), bool):
        yield part["reached"]
    for key, below in part.items():
        if isinstance(below, dict):
            yield from _judged(below, inside or key == "verdict")
