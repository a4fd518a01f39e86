"""Real numbers through the smallest model of each of timm's families: is what the trace found true?

    python benchmarks/sweep.py                    # all families, writes the record
    python benchmarks/sweep.py --family cait,vgg  # some, prints them and writes nothing

Of every family that `coverage.py` found split, the model with the fewest MACs is built with random weights
(timm's own tiny test models are left out): the resumed run against the forward, parts of a batch against the
batch, gradients from the exits to every unit. Exit status 1 if a model fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from coverage import Row, by_family, recorded
from record import write_record
from workers import PROCESSES, Job, run

from odn_hybrid.catalog import Entry
from odn_hybrid.catalog.checking import PART, RESUMED

SECONDS = 900
LARGE, SMALLER = 384, 224  # sides: models made for more than the one are checked at the other, if they can be
SHORTLIST = 4  # names of a family whose MACs are counted
HEAD = f"{'family':24}{'model':34}{'units':>6}{'resumed':>9}{'part':>9}{'s':>6}"


def jobs(rows: list[Row]) -> Iterator[Job]:
    """A job for each family that has a name to check; the cheapest last, so that no process waits long."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split and not row.name.startswith("test_"):
            families[row.family].append(row)
    for members in sorted(families.values(), key=lambda members: -min(map(_weight, members))):
        least = sorted(members, key=_weight)[:SHORTLIST]
        side = SMALLER if least[0].side > LARGE else None
        yield Job(tuple(row.name for row in least), SECONDS, {"check": True, "image_size": side})


def _weight(row: Row) -> int:
    """Roughly MACs, up to a factor that a family shares."""
    return row.params * row.side**2


def found(entry: Entry, seconds: float) -> dict[str, Any]:
    """What the record keeps of a family's model."""
    evidence = entry.evidence
    return {
        "passed": entry.checked is True,
        "model": entry.name,
        "image_size": entry.image_size,
        "units": entry.units,
        "macs": entry.macs,
        "params": entry.params,
        "reason": entry.reason,
        "resumed_difference": evidence.resumed if evidence else None,
        "part_difference": evidence.part if evidence else None,
        "largest_difference_between_images": evidence.spread if evidence else None,
        "units_without_gradient": list(evidence.unreached) if evidence else None,
        "seconds": seconds,
    }


def refused(rest: list[dict[str, Any]]) -> dict[str, Any]:
    """What the record keeps of a family that is not split at all."""
    return {"passed": False, "model": None, "reason": rest[0]["reason"]}


def show(family: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    line = f"{family:24}{row['model'] or '-':34}"
    if row.get("resumed_difference") is not None:
        line += f"{row['units']:>6}{row['resumed_difference']:>9.1e}{row['part_difference']:>9.1e}"
        line += f"{row['seconds']:>6.0f}"
    if not row["passed"]:
        line += f"  {'FAILED' if row['model'] else 'not split'}: {row['reason']}"
    print(line, flush=True)


def main() -> int:
    """Check the families, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", help="only these, separated by commas; writes no record")
    args = parser.parse_args()
    coverage = recorded("coverage")
    if coverage is None:
        print("there is no record of the coverage: run python benchmarks/coverage.py first", file=sys.stderr)
        return 2
    rows = [Row.read(line) for line in coverage["rows"]]
    if args.family:
        rows = [row for row in rows if row.family in args.family.split(",")]
    families = {name: refused(f["rest"]) for name, f in by_family(rows).items() if not f["split"]}
    print(HEAD)
    for family, row in families.items():
        show(family, row)
    started = time.monotonic()
    home = {row.name: row.family for row in rows}
    for done in run(jobs(rows)):
        family = home[done.entry.name]
        families[family] = found(done.entry, done.seconds)
        show(family, families[family])
    failed = sorted(name for name, row in families.items() if row["model"] and not row["passed"])
    summary = {
        "families": len(families),
        "claimed": sum(bool(row["model"]) for row in families.values()),
        "passed": sum(row["passed"] for row in families.values()),
        "failed": failed,
        "minutes": (time.monotonic() - started) / 60,
        "processes": PROCESSES,
        "allowed": {"resumed_difference": RESUMED, "part_difference": PART},
    }
    print(summary)
    if not args.family:
        claim = (
            "the smallest model of every family that is split: the resumed run equals the forward, a part of "
            "a batch equals the batch, gradients reach every unit"
        )
        ordered = {name: families[name] for name in sorted(families)}
        print(write_record("sweep", claim, {"summary": summary, "families": ordered}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
