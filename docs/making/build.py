"""Build the site into build/docs: execute what has changed, write the pages, run Sphinx, check the links.

python docs/making/build.py            # in full: warnings are errors
python docs/making/build.py --quick    # nothing is executed: tutorials and theory show what is in the cache
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from making import executing, links, sources
from making.places import DOCS, DOCTREES, HTML, SOURCE


def sphinx(quick: bool) -> int:
    """Run Sphinx on the assembled pages."""
    from sphinx.cmd.build import main as build

    os.environ["ODN_DOCS_QUICK"] = "1" if quick else ""
    options = ["-b", "html", "-q", "-W", "--keep-going", "-c", str(DOCS), "-d", str(DOCTREES)]
    return build([*options, str(SOURCE), str(HTML)])


def interactive() -> None:
    """Put the page "Static or dynamic?" beside the others, made of the records."""
    sys.path.append(str(DOCS / "choose"))
    from build_data import build_page

    build_page(HTML / "choose")


def main(arguments: list[str] | None = None) -> int:
    """Build; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="execute nothing")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    args = parser.parse_args(arguments)
    start = time.perf_counter()
    if not args.quick and executing.execute_outdated(args.jobs):
        return 1
    executed = time.perf_counter() - start
    sources.assemble()
    status = sphinx(args.quick)
    interactive()
    wrong = links.faults(HTML.resolve())
    print("\n".join(wrong), file=sys.stderr)
    took = time.perf_counter() - start
    print(
        f"{HTML}: {took:.0f} s, of which {executed:.0f} s executing; {len(wrong)} faulty links",
        file=sys.stderr,
    )
    return int(bool(status or wrong))


if __name__ == "__main__":
    sys.exit(main())
