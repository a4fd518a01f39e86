"""A Sphinx extension: docstrings written for people are made fit for reStructuredText.

Bars (|x|, conditional probabilities) and `**options` in prose are meant as they stand.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

KEPT = re.compile(r"`[^`]*`|:math:`[^`]*`")
MARKS = re.compile(r"(?<!\\)(\||\*\*(?=\w))")


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the extension, before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", readable, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def readable(app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Escape what is no markup, outside code, formulas and examples."""
    formula = False
    for at, line in enumerate(lines):
        if line.lstrip().startswith(".. math::"):
            formula = True
        elif line.strip() and not line.startswith(" "):
            formula = False
        if not formula and not line.lstrip().startswith((">>>", "...")):
            lines[at] = escaped(line)


def escaped(line: str) -> str:
    """`line` with bars and double stars escaped outside of backticks."""
    parts, end = [], 0
    for kept in KEPT.finditer(line):
        parts += [MARKS.sub(r"\\\1", line[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*parts, MARKS.sub(r"\\\1", line[end:])])
