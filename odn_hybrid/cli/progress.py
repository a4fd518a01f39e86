"""What a person sees while a fit runs: a live display on a terminal, one plain line per look elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.spinner import Spinner
from rich.text import Text

from odn_hybrid.report.wording import count, duration

__all__ = ["watching"]

MEANING = {
    "backbone": "training the backbone",
    "warmup": "warming up all depths",
    "expand": "expanding",
    "settle": "settling",
    "cooldown": "cooling down",
    "features": "computing features",
    "heads": "training heads",
}


@contextmanager
def watching(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener for `fit` that shows each epoch; live if `console` is a terminal, and gone at the end."""
    if not console.is_terminal:
        yield lambda row: _plain(console, row)
        return
    from rich.live import Live

    display = _Display()
    with Live(display, console=console, refresh_per_second=4, transient=True):
        yield display.take


def _plain(console: Console, row: dict[str, Any]) -> None:
    if row["selection"] is not None:
        console.print(f"{_headline(row)}  selection {_accuracies(row)}", highlight=False, soft_wrap=True)


class _Display:
    """The latest epoch and the latest look, beside a sign of life and the time since the start."""

    def __init__(self) -> None:
        self.spinner = Spinner("line")
        self.started = time.monotonic()
        self.row: dict[str, Any] | None = None
        self.look: dict[str, Any] | None = None

    def take(self, row: dict[str, Any]) -> None:
        self.row = row
        if row["selection"] is not None:
            self.look = row

    def __rich__(self) -> Group:
        elapsed = duration(time.monotonic() - self.started)
        if self.row is None:
            self.spinner.update(text=Text(f"reading the data, preparing the network  {elapsed}"))
            return Group(self.spinner)
        doing = "finishing" if self.row["next"] == "done" else MEANING.get(self.row["next"], self.row["next"])
        self.spinner.update(text=Text(f"{doing}  {elapsed}"))
        lines = [Text(f"  last epoch:  {_headline(self.row)}")]
        if self.look is not None:
            what = f"  last look:   epoch {self.look['epoch']:>3}  selection accuracy by exit "
            lines.append(Text(what + _accuracies(self.look)))
        return Group(self.spinner, *lines)


def _headline(row: dict[str, Any]) -> str:
    exits = f"exits 1-{row['active']}" if row["active"] > 1 else "exit 1"
    phase = MEANING.get(row["phase"], row["phase"])
    spent = f"{count(row['train_macs'])} MACs  {duration(row['seconds'])}"
    loss = "" if row["loss"] is None else f"  loss {row['loss']:.4f}"
    return f"epoch {row['epoch']:>3}  {phase}, {exits}{loss}  {spent}"


def _accuracies(row: dict[str, Any]) -> str:
    return " ".join(f"{100 * value:.1f}" for value in row["selection"]) + " %"
