"""Executing the notebooks of the site: the pages of theory/ and the tutorials, into theory's cache.

A page is executed when its text, or anything that its cells can read (the library, records, recipes), has
changed since it was; otherwise its results are taken from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from making.places import EXECUTED, ROOT, THEORY, TUTORIALS

sys.path.append(str(THEORY))

READ = (
    "odn_hybrid/**/*.py",
    "benchmarks/*.py",
    "benchmarks/records/*.json",
    "benchmarks/assets/**/*",
    "configs/*.yaml",
    "theory/*.py",
)


def notebooks() -> list[Any]:
    """The pages with cells: theory first, then the tutorials, each in order of names."""
    from myst_nb.core.read import is_myst_markdown_notebook
    from pages import all_pages

    pages = [*all_pages(THEORY), *all_pages(TUTORIALS)]
    return [page for page in pages if is_myst_markdown_notebook(page.text)]


def digest(paths: Iterable[Path], text: str = "") -> str:
    """One hash of files and a text."""
    made = hashlib.sha256(text.encode())
    for path in paths:
        made.update(str(path).encode() + path.read_bytes())
    return made.hexdigest()


def surroundings() -> str:
    """A hash of everything that cells can read."""
    return digest(sorted(path for glob in READ for path in ROOT.glob(glob) if path.is_file()))


def cached(page: Any) -> bool:
    """Whether the cache has results of exactly these cells."""
    from execute import CACHE
    from jupyter_cache import get_cache

    try:
        get_cache(str(CACHE)).match_cache_notebook(page.notebook())
    except KeyError:
        return False
    return True


def outdated() -> list[Any]:
    """Pages to be executed."""
    known = _known()
    return [page for page in notebooks() if known.get(page.name) != _now(page) or not cached(page)]


def execute_outdated(jobs: int = 2) -> int:
    """Execute what has to be; 0, or 1 if a cell raised."""
    from execute import CACHE, execute

    pages, failed = outdated(), 0
    # tqdm tells kernels without ipywidgets so, with a path of this machine.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    for outcome in execute(pages, CACHE, jobs) if pages else []:
        if outcome.error is None:
            _note(outcome.page)
        else:
            print(f"\n{outcome.page.name}:\n{outcome.error}", file=sys.stderr)
            failed = 1
    return failed


def without_results() -> list[str]:
    """Notebooks, by name on the site, that a quick build shows without results."""
    return [f"{page.path.parent.name}/{page.path.stem}" for page in notebooks() if not cached(page)]


def _now(page: Any) -> str:
    return digest((), page.text + surroundings())


def _known() -> dict[str, str]:
    found: dict[str, str] = json.loads(EXECUTED.read_text(encoding="utf-8")) if EXECUTED.is_file() else {}
    return found


def _note(page: Any) -> None:
    EXECUTED.parent.mkdir(parents=True, exist_ok=True)
    EXECUTED.write_text(json.dumps({**_known(), page.name: _now(page)}, indent=1), encoding="utf-8")
