"""Pieces of HTML. Whatever is not made here passes through `text`, which escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["figure", "item_list", "paragraphs", "section", "table", "text"]

LONGEST = 2000  # characters of a name or a sentence from outside


def text(value: object) -> str:
    """Anything as escaped text."""
    told = str(value)
    return escape(told if len(told) <= LONGEST else told[:LONGEST] + " ...", quote=True)


def section(name: str, title: str, *parts: str) -> str:
    """A part of the page with a heading; `parts` are HTML."""
    inner = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{text(title)}</h2>\n{inner}\n</section>'


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    """A paragraph per line."""
    mark = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{mark}>{text(line)}</p>" for line in lines)


def item_list(lines: Iterable[str]) -> str:
    """A list with a line per item."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], chosen: Sequence[int] = ()
) -> str:
    """A table whose first column names the row; `chosen` rows stand out."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number in chosen else ""
        cells = "".join(f"<td>{text(cell)}</td>" for cell in row[1:])
        lines.append(f'<tr{mark}><th scope="row">{text(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(drawing: str, caption: str, behind: str = "") -> str:
    """A drawing with its caption and the table behind it; `drawing` and `behind` are HTML."""
    told = f"<details><summary>The figures as a table</summary>{behind}</details>" if behind else ""
    return f"<figure>{drawing}<figcaption>{text(caption)}</figcaption></figure>{told}"
