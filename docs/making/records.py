"""The page of records: what each claims, and the command that wrote it."""

from __future__ import annotations

import json

from making.places import RECORDS

TOP = """# Records

Every measured figure on this site and in the README comes from one of these files. A program wrote each of
them; the command, the commit and the versions are in it. Tables are written from them, and a figure in a
sentence names its record in a comment of the page's source; tests compare both. What nobody measured, such as
limits and cited figures, stands in [a list](repo:docs/unmeasured.toml).

| record | what it shows | command |
| --- | --- | --- |
"""


def records_page() -> str:
    """A row for each record."""
    rows = []
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        claim = " ".join(str(record["claim"]).split()).replace("|", "\\|")
        rows.append(
            f"| [{path.stem}](repo:benchmarks/records/{path.name}) | {claim} | `{record['command']}` |\n"
        )
    return TOP + "".join(rows)
