"""How long `make docs` takes from a fresh clone: set-up, theory, tutorials, pages and links.

    python benchmarks/docs_build.py

Clones the committed state, builds the site there with nothing but make, and counts its pages. Packages come
from where uv finds them, its cache first. Warnings are errors, so that a build which ends has none.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_record

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 20 * 60  # seconds


def main() -> None:
    """Build and write the record."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "odn_hybrid"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        begun = time.perf_counter()
        subprocess.run(["make", "setup", f"PYTHON={sys.executable}"], cwd=clone, check=True)
        set_up = time.perf_counter() - begun
        done = subprocess.run(["make", "docs"], cwd=clone, capture_output=True, text=True, encoding="utf-8")
        seconds = time.perf_counter() - begun
        print(done.stdout + done.stderr)
        said = re.search(r"(\d+) s, of which (\d+) s executing; (\d+) faulty links", done.stderr)
        if done.returncode or said is None:
            raise SystemExit("make docs failed")
        site = clone / "build" / "docs"
        data = {
            "seconds": round(seconds),
            "of_which_set_up": round(set_up),
            "of_which_executing": int(said[2]),
            "limit_seconds": LIMIT,
            "met": int(seconds <= LIMIT),
            "of": 1,
            "executed_pages": re.findall(r"^(\S+\.md): ok$", done.stdout + done.stderr, re.M),
            "pages": len(list(site.rglob("*.html"))),
            "faulty_links": int(said[3]),
        }
    print(write_record("docs_build", "make docs from a fresh clone takes at most 20 minutes", data))


if __name__ == "__main__":
    main()
