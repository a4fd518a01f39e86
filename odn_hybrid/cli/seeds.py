"""`odn fit --seeds`: the same fit with several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from odn_hybrid.errors import ConfigError

__all__ = ["fit_several", "parse_seeds", "read_seeds", "show_seeds"]


def parse_seeds(text: str, seed: int | None) -> list[int]:
    """Numbers from text such as 0,1,2; raises `ConfigError` for other text, or where `seed` is given too."""
    if seed is not None:
        raise ConfigError("give --seed or --seeds, not both")
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: give whole numbers separated by commas, e.g. 0,1,2") from None


def fit_several(model: str | None, data: str | None, *, seeds: list[int], **options: Any) -> dict[str, Any]:
    """`fit_seeds`, with progress on standard error; the data of seeds.json."""
    from odn_hybrid.cli.progress import watching
    from odn_hybrid.several import fit_seeds
    from odn_hybrid.training.devices.processes import is_main_process

    console = Console(stderr=True, quiet=not is_main_process())
    with watching(console) as show:
        last: int | None = None

        def listener(row: dict[str, Any]) -> None:
            nonlocal last
            if row["seed"] != last:
                last = row["seed"]
                console.print(
                    f"seed {last} ({seeds.index(row['seed']) + 1} of {len(seeds)})", highlight=False
                )
            show(row)

        return fit_seeds(model, data, seeds=seeds, listener=listener, **options)


def read_seeds(folder: Path) -> dict[str, Any] | None:
    """The data of seeds.json in a folder of several seeds; None for any other."""
    from odn_hybrid.rundir import CONFIG, read_json

    if (folder / CONFIG).exists() or not (folder / "seeds.json").is_file():
        return None
    return read_json(folder / "seeds.json")


def show_seeds(found: dict[str, Any]) -> None:
    """The table of several seeds, on standard output."""
    from odn_hybrid.report import seeds_table

    Console().print(seeds_table(found))
    click.echo("each seed's own table: odn report OUT/seed-N", err=True)
