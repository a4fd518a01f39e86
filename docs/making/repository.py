"""A Sphinx extension: files of the repository that pages link to are shown on the site.

A link `repo:PATH` leads to a page with the file's text; records (JSON) are copied as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.application import Sphinx

from making.places import ROOT

FOLDER = "repository"
AS_THEY_ARE = (".json", ".safetensors", ".png")


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the extension."""
    app.connect("doctree-resolved", lead_there)
    app.connect("env-purge-doc", forget)
    app.connect("html-collect-pages", shown_files)
    app.connect("build-finished", copied_files)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}


def _linked(app: Sphinx) -> dict[str, set[str]]:
    if not hasattr(app.env, "odn_linked"):
        app.env.odn_linked = {}  # type: ignore[attr-defined]
    found: dict[str, set[str]] = app.env.odn_linked  # type: ignore[attr-defined]
    return found


def forget(app: Sphinx, env: Any, name: str) -> None:
    """A page that is read again."""
    _linked(app).pop(name, None)


def lead_there(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Make links `repo:PATH` of a page lead to the site's own copy."""
    for node in doctree.findall(nodes.reference):
        target = node.get("refuri", "")
        if not target.startswith("repo:"):
            continue
        path = target.removeprefix("repo:")
        _linked(app).setdefault(name, set()).add(path)
        own = app.builder.get_target_uri(name)
        there = f"{FOLDER}/{path}" if (ROOT / path).suffix in AS_THEY_ARE else f"{FOLDER}/{path}.html"
        node["refuri"] = "../" * own.count("/") + there
        node["internal"] = True


def _files(app: Sphinx) -> list[str]:
    return sorted(set().union(*_linked(app).values(), set()))


def shown_files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file that some page links to."""
    for path in _files(app):
        if (ROOT / path).suffix not in AS_THEY_ARE:
            body = _listing(ROOT / path) if (ROOT / path).is_dir() else _text(ROOT / path)
            yield f"{FOLDER}/{path}", {"title": path, "body": f"<h1>{path}</h1>{body}"}, "page.html"


def _text(path: Path) -> str:
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    made = highlight(path.read_text(encoding="utf-8"), lexer, HtmlFormatter(nowrap=False, linenos=False))
    return f'<div class="highlight-default notranslate">{made}</div>'


def _listing(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir() if not item.name.startswith(("_", ".")))
    return "<ul>" + "".join(f"<li><code>{name}</code></li>" for name in names) + "</ul>"


def copied_files(app: Sphinx, error: Exception | None) -> None:
    """Records and other data that some page links to."""
    for path in _files(app) if error is None else []:
        if (ROOT / path).suffix in AS_THEY_ARE:
            there = Path(app.outdir) / FOLDER / path
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, there)
