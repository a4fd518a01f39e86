"""Which of timm's models can be split: every name is built and traced on the meta device.

    python benchmarks/coverage.py               # all names, writes the record
    python benchmarks/coverage.py 'convnext*'   # some names, prints them and writes nothing
    python benchmarks/coverage.py --recount     # the record's names, counted anew with the sweep's record

A name counts if it has at least 4 exits and its family passed the numerical check of `sweep.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import timm
from record import RECORDS, write_record
from workers import PROCESSES, Job, run

from odn_hybrid.catalog import Entry, names

EXITS = 4
SECONDS = 120
EXAMPLES = 3
COLUMNS = ("name", "family", "units", "exits", "stages", "removable", "params", "side", "reason")


@dataclass(frozen=True)
class Row:
    """What the record keeps of a name; `reason` is empty where it was split."""

    name: str
    family: str
    units: int
    exits: int
    stages: int
    removable: int
    params: int
    side: int
    reason: str

    @classmethod
    def of(cls, entry: Entry) -> Row:
        """The row of a described name."""
        return cls(
            entry.name,
            entry.family or timm.model_entrypoint(entry.name).__module__.rpartition(".")[2],
            entry.units,
            entry.exits,
            entry.stages,
            entry.removable,
            entry.params or 0,
            max(entry.image_size or (0,)),
            entry.reason,
        )

    def line(self) -> str:
        """One line of text; the reason comes last, so it may hold the separator."""
        return "|".join(str(getattr(self, column)) for column in COLUMNS)

    @classmethod
    def read(cls, line: str) -> Row:
        """The row that `line` wrote."""
        name, family, *numbers, reason = line.split("|", len(COLUMNS) - 1)
        return cls(name, family, *(int(number) for number in numbers), reason)

    @property
    def split(self) -> bool:
        """Whether it was split with enough exits."""
        return not self.reason and self.exits >= EXITS

    @property
    def why_not(self) -> str:
        """The reason, or that it is too short."""
        return self.reason or f"split, but with {self.exits} exits only"


def recorded(name: str) -> dict[str, Any] | None:
    """A record, or None if it was not written yet."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def traced(pattern: list[str]) -> list[Row]:
    """Trace these names, telling how far it got."""
    rows: list[Row] = []
    for done in run(Job((name,), SECONDS, {"macs": False}) for name in pattern):
        rows.append(Row.of(done.entry))
        if len(rows) % 100 == 0 or len(pattern) < 100:
            print(f"{len(rows)} of {len(pattern)}  {rows[-1].name}: {rows[-1].units} units", flush=True)
    return sorted(rows, key=lambda row: pattern.index(row.name))


def by_family(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Per family: how many names, how many are split, and the reasons for the rest."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    return {
        family: {
            "names": len(members),
            "split": sum(row.split for row in members),
            "rest": _reasons([row for row in members if not row.split]),
        }
        for family, members in sorted(families.items())
    }


def _reasons(rows: list[Row]) -> list[dict[str, Any]]:
    """Reasons that differ in names and numbers only are one; the commonest first."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[re.sub(r"'[^']*'|\d+", "#", row.why_not)].append(row)
    return [
        {"reason": group[0].why_not, "count": len(group), "examples": [row.name for row in group[:EXAMPLES]]}
        for group in sorted(groups.values(), key=len, reverse=True)
    ]


def summary(rows: list[Row], sweep: dict[str, Any] | None, minutes: float) -> dict[str, Any]:
    """The counts; None for what needs the sweep if that was not run."""
    split = [row for row in rows if row.split]
    passed = {name for name, found in (sweep or {"families": {}})["families"].items() if found["passed"]}
    counted = sum(row.family in passed for row in split) if sweep else None
    return {
        "names": len(rows),
        "split": len(split),
        "split_share": len(split) / len(rows),
        "counted": counted,
        "counted_share": None if counted is None else counted / len(rows),
        "families_not_passed": sorted({row.family for row in split} - passed) if sweep else None,
        "minutes": minutes,
        "processes": PROCESSES,
    }


def main() -> None:
    """Trace, count, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", help="names to trace without writing the record")
    parser.add_argument("--recount", action="store_true", help="trace nothing, count the record's rows anew")
    args = parser.parse_args()
    before = recorded("coverage") if args.recount else None
    if before:
        rows, minutes = [Row.read(line) for line in before["rows"]], before["summary"]["minutes"]
    else:
        started = time.monotonic()
        chosen = [n for n in names(args.pattern or "*") if not n.startswith("torchvision/")]
        rows = traced(chosen)
        minutes = (time.monotonic() - started) / 60
    data = {"summary": summary(rows, recorded("sweep"), minutes), "families": by_family(rows)}
    for family, found in data["families"].items():
        for rest in found["rest"]:
            print(f"{family}: {rest['count']} of {found['names']}: {rest['reason']} ({rest['examples'][0]})")
    print(data["summary"])
    if args.pattern:
        return
    claim = f"of timm's model names at least 95 % are split with {EXITS} exits or more, in at most 8 minutes"
    data |= {"traced_by": _origin(before), "columns": COLUMNS, "rows": [row.line() for row in rows]}
    print(write_record("coverage", claim, data))


def _origin(before: dict[str, Any] | None) -> dict[str, Any] | None:
    """A recount's rows come from an earlier run: which; None for rows of this run."""
    if before is None:
        return None
    keys = ("command", "commit", "uncommitted_changes", "environment")
    return before["traced_by"] or {key: before[key] for key in keys}


if __name__ == "__main__":
    main()
