"""`odn models`: how every model of timm and torchvision splits, a row as soon as it is known."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from odn_hybrid.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from odn_hybrid.catalog import Entry

__all__ = ["list_models"]

#: Title and width of the columns after the name.
COLUMNS = (
    ("units", 6),
    ("exits", 6),
    ("stages", 7),
    ("removable", 10),
    ("GMACs", 8),
    ("MParams", 9),
)
WORDS = {None: "yes", True: "checked", False: "FAILED"}


@click.command("models", epilog="Example: odn models 'convnext_*' --check")
@click.argument("pattern", required=False)
@click.option("--check", is_flag=True, help="Run the numerical check too (seconds to minutes a model).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_models(pattern: str | None, check: bool, as_json: bool) -> None:
    """List the models whose names match PATTERN and how they split into units.

    PATTERN is a glob such as 'vit_*' or 'torchvision/*'; without one, all of timm is listed, which takes
    a quarter of an hour. Nothing is downloaded: models are built with random weights or with none.

    Removable units keep the shape of what they get. GMACs are billions of multiply-accumulates an image,
    at the size the model was made for. The check runs a model with real numbers, stopped and resumed after
    every unit, and compares it with the model's own forward.
    """
    from odn_hybrid.catalog import names, near_names

    found = names(pattern) if pattern else [name for name in names() if not name.startswith("torchvision/")]
    if not found:
        near = near_names(pattern or "")
        hint = f"; names like it: {', '.join(near)}" if near else ""
        raise ConfigError(f"no model of timm or torchvision matches {pattern!r}{hint}")
    entries = _described(found, check)
    failed = _show_json(entries) if as_json else _show_table(entries, max(map(len, found)))
    if failed:
        raise ModelError(f"{len(failed)} of {len(found)} models failed the check: {', '.join(failed)}")


def _described(names: list[str], check: bool) -> Iterator[Entry]:
    """The entries, one by one; a terminal shows meanwhile, on standard error, which is being looked at."""
    from odn_hybrid.catalog import describe

    shown = sys.stderr.isatty()
    for number, name in enumerate(names, start=1):
        if shown:
            click.echo(f"{number} of {len(names)}: {name}", nl=False, err=True)
        try:
            entry = describe(name, check=check)
        finally:
            if shown:
                click.echo("\r\x1b[K", nl=False, err=True)
        yield entry


def _show_table(entries: Iterable[Entry], longest: int) -> list[str]:
    """Print a header and the rows; the names of models that failed their check."""
    width = min(max(longest, len("torchvision")), 44)
    click.echo("name".ljust(width) + "".join(title.rjust(size) for title, size in COLUMNS) + "  split")
    failed, split, total = [], 0, 0
    for entry in entries:
        click.echo(_row(entry, width))
        failed += [entry.name] if entry.checked is False else []
        split += entry.supported
        total += 1
    click.echo(f"{split} of {total} are split", err=True)
    return failed


def _row(entry: Entry, width: int) -> str:
    """One line of figures; a reason stands below it, wrapped to the terminal."""
    numbers = [entry.units, entry.exits, entry.stages, entry.removable]
    cells = [str(number) if entry.supported else "-" for number in numbers]
    cells.append("-" if entry.macs is None else f"{entry.macs / 1e9:.2f}")
    cells.append("-" if entry.params is None else f"{entry.params / 1e6:.2f}")
    figures = "".join(cell.rjust(size) for cell, (_, size) in zip(cells, COLUMNS, strict=True))
    line = f"{entry.name.ljust(width)}{figures}  {WORDS[entry.checked] if entry.supported else 'no'}"
    if not entry.reason:
        return line
    columns = max(shutil.get_terminal_size((100, 24)).columns, 40)
    return f"{line}\n{textwrap.fill(entry.reason, columns, initial_indent='    ', subsequent_indent='    ')}"


def _show_json(entries: Iterable[Entry]) -> list[str]:
    """Print a JSON array, an entry a line as it comes; the names of models that failed their check."""
    failed, before = [], "["
    for entry in entries:
        click.echo(before + "\n" + json.dumps(_plain(entry), allow_nan=False), nl=False)
        failed += [entry.name] if entry.checked is False else []
        before = ","
    click.echo("\n]")
    return failed


def _plain(entry: Entry) -> dict[str, Any]:
    from odn_hybrid.rundir.files import to_plain

    plain: dict[str, Any] = to_plain(entry.to_dict())
    return plain
