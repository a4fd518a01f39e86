"""Where things are: the repository, what the site takes from it, and what a build writes."""

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
THEORY = ROOT / "theory"
TUTORIALS = DOCS / "tutorials"
RECORDS = ROOT / "benchmarks" / "records"

BUILD = ROOT / "build"
HTML = BUILD / "docs"
WORK = BUILD / "docs-work"
SOURCE = WORK / "source"  # what Sphinx reads: docs/, theory/ and the pages that are written by programs
DOCTREES = WORK / "doctrees"
EXECUTED = WORK / "executed.json"  # digests of what notebooks were executed with
