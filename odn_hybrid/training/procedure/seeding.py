"""A depth found by one fit as the start of another's search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odn_hybrid.config import FitConfig
from odn_hybrid.errors import ConfigError, RunDirError
from odn_hybrid.exits import MultiExit
from odn_hybrid.rundir import REPORT, RunDir
from odn_hybrid.training.objectives import PLAIN

__all__ = ["Seed", "find_seed"]


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Where a search starts, and why.

    `run`: name of the other run's directory. `units`, `of`: what it kept, of how many. `exit`: where this
    search starts.
    """

    run: str
    units: int
    of: int
    exit: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def find_seed(config: FitConfig, network: MultiExit, stored: Any = None) -> Seed | None:
    """The seed that `config.start_from` asks for; None if it asks for none.

    Of the other run only its report is used. Where its trunk has another number of units, the depth is
    scaled in proportion. `stored`: what an interrupted fit found; the other run may be gone since.

    Raises:
        ConfigError: the objective trains the whole network, so that there is nothing to seed.
        RunDirError: there is no finished run, or its report does not say what it kept.
    """
    if config.start_from is None:
        return None
    plain = config.objective.name == PLAIN and config.expansion.procedure != "reload"
    if plain or config.regime == "frozen":
        what = "objective cross_entropy" if plain else "regime frozen"
        raise ConfigError(f"start_from seeds a search for the depth, and {what} makes none: leave it out")
    if isinstance(stored, dict):
        return Seed(**stored)
    path = Path(config.start_from)
    report = RunDir.open(path).read_json(REPORT)
    try:
        units, of = int(report["static"]["units"]), max(int(row["units"]) for row in report["exits"])
        if not 1 <= units <= of:
            raise ValueError(units)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirError(
            f"{path}/{REPORT} does not say which depth was kept ({type(error).__name__}: {error}): give "
            "start_from a run of odn fit"
        ) from None
    wanted = units * len(network.trunk) / of
    near = min(range(len(network)), key=lambda at: (abs(network.units[at] - wanted), network.units[at]))
    return Seed(run=path.resolve().name, units=units, of=of, exit=near + 1)
