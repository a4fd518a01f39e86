"""What a person sees while a fit runs: a live line on a terminal, one plain line per look elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["watching"]

MEANING = {
    "warmup": "warming up all depths",
    "expand": "expanding",
    "settle": "settling",
    "cooldown": "cooling down",
}


@contextmanager
def watching(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener for `fit` that shows each epoch; live if `console` is a terminal."""
    if not console.is_terminal:
        yield lambda row: _plain(console, row)
        return
    from rich.live import Live

    with Live(_message("loading"), console=console, refresh_per_second=4, transient=True) as live:
        seen: list[dict[str, Any]] = []

        def listener(row: dict[str, Any]) -> None:
            if row["selection"] is not None:
                seen.append(row)
            live.update(_table(row, seen[-1] if seen else None))

        yield listener


def _plain(console: Console, row: dict[str, Any]) -> None:
    if row["selection"] is not None:
        console.print(f"{_headline(row)}  selection {_accuracies(row)}", highlight=False, soft_wrap=True)


def _headline(row: dict[str, Any]) -> str:
    return (
        f"epoch {row['epoch']:>3}  {MEANING.get(row['phase'], row['phase'])}, exits 1-{row['active']}"
        f"  loss {row['loss']:.4f}  {row['train_macs'] / 1e12:.3g} TMACs  {row['seconds']:.0f} s"
    )


def _accuracies(row: dict[str, Any]) -> str:
    return " ".join(f"{100 * value:.1f}" for value in row["selection"])


def _message(text: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(text)
    return table


def _table(row: dict[str, Any], look: dict[str, Any] | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(_headline(row))
    if look is not None:
        table.add_row(f"selection accuracy by exit (epoch {look['epoch']}): {_accuracies(look)} %")
    return table
