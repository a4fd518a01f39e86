"""`fit_seeds`: the same fit with several seeds, and what its figures come to: mean and spread."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from odn_hybrid.asking import stored_recipe
from odn_hybrid.config import FitConfig, replace_fields
from odn_hybrid.errors import ConfigError
from odn_hybrid.fitting import fit
from odn_hybrid.rundir import CONFIG
from odn_hybrid.rundir.files import to_plain, write_json
from odn_hybrid.training.devices.processes import is_main_process
from odn_hybrid.training.engine import Listener

__all__ = ["SEEDS", "fit_seeds", "summarise_seeds"]

#: The file of the summary, beside the run directories.
SEEDS = "seeds.json"


def fit_seeds(
    model: nn.Module | str | Path | None = None,
    data: Any = None,
    *,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    config: FitConfig | None = None,
    resume: bool = False,
    listener: Listener | None = None,
    tensorboard: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit once for each seed, into `out`/seed-0, `out`/seed-1 and so on, and sum up in `out`/seeds.json.

    A seed decides the splits, the new weights, and the order and augmentation of batches, so that the spread
    is that of all of these together. (A model handed over as a module starts with its own weights each time.)

    Args:
        model, data, config, **options: as for `fit`, without `seed` and `inplace`.
        out: folder of the run directories.
        seeds: which; each once.
        resume: go on with what is in `out`: finished seeds are not run again, and seeds may be added.
        listener: called after every epoch with the history row and its `seed`.
        tensorboard: a folder for TensorBoard; each seed writes into its own below it.

    Returns:
        The contents of seeds.json, see `summarise_seeds`.

    Raises:
        ConfigError: no seeds, or the same twice. What `fit` raises, too; seeds already finished are kept.

    Example:
        >>> import odn_hybrid as odn
        >>> # `data` is an .npz file of 450 images of 12x12 pixels in 3 classes, `folder` an empty folder;
        >>> # a tiny network and one look, so that this takes a second
        >>> tiny = {
        ...     "model.args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        ...     "model.stem": "small",
        ...     "data.image_size": 12,
        ...     "expansion.max_looks": 1,
        ... }
        >>> found = odn.fit_seeds("resnet18", data, out=folder, seeds=[0, 1], overrides=tiny)
        >>> found["seeds"], found["summary"]["static"]["accuracy"]["n"]
        ([0, 1], 2)
    """
    seeds = _checked(seeds, options)
    folder = Path(out)
    if resume and model is None and config is None:
        asked = [value for value in (data, *options.values()) if value is not None and value != {}]
        config = _stored_recipe(folder, needed=not asked)
    found: dict[str, Any] = {}
    reports: dict[int, Mapping[str, Any]] = {}
    for seed in seeds:
        run = fit(
            model,
            data,
            out=folder / f"seed-{seed}",
            config=config,
            resume=resume,
            listener=None if listener is None else _marked(listener, seed),
            tensorboard=None if tensorboard is None else Path(tensorboard) / f"seed-{seed}",
            seed=seed,
            **options,
        )
        reports[seed] = run.report_
        found = to_plain(summarise_seeds(reports))
        if is_main_process():  # after each: what is finished is summed up, whatever happens next
            write_json(folder / SEEDS, found)
    return found


def summarise_seeds(reports: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the reports of several seeds come to.

    Args:
        reports: seed -> the data of its `report.json`.

    Returns:
        `model`, `data`, `seeds`; `runs`: one row per seed with its folder, static choice, reference and
        dynamic model (each with test accuracy and interval, units and MACs an image), and search; `summary`:
        for each figure the `mean` over seeds, the standard deviation `sd` (n - 1; null for one seed),
        `low`, `high` and `n` seeds; `depths`: how many seeds chose each number of units.
    """
    rows = [_row(seed, report) for seed, report in reports.items()]
    first = next(iter(reports.values()))
    parts = {part: [row[part] for row in rows if row[part] is not None] for part in _PARTS}
    summary = {
        part: {
            "accuracy": _spread([row["accuracy"]["value"] for row in found if row["accuracy"]]),
            "units": _spread([row["units"] for row in found]),
            "macs": _spread([row["macs"] for row in found]),
        }
        for part, found in parts.items()
    }
    search = {key: _spread([row["search"][key] for row in rows]) for key in _SEARCH}
    chosen = Counter(row["static"]["units"] for row in rows)
    return {
        "model": first["model"],
        "data": first["data"]["name"] if isinstance(first["data"], Mapping) else first["data"],
        "seeds": list(reports),
        "runs": rows,
        "summary": {**summary, "search": search},
        "depths": {str(units): chosen[units] for units in sorted(chosen)},
    }


_PARTS = ("static", "reference", "dynamic")
_SEARCH = ("epochs", "train_macs", "seconds")


def _row(seed: int, report: Mapping[str, Any]) -> dict[str, Any]:
    exits = {row["exit"]: row for row in report["exits"]}

    def of(number: int) -> dict[str, Any]:
        row = exits[number]
        return {
            "exit": number,
            "units": row["units"],
            "accuracy": row["accuracy"]["test"],
            "macs": row["macs_static"],
        }

    dynamic = report["dynamic"]
    return {
        "seed": seed,
        "path": f"seed-{seed}",
        "static": of(report["static"]["exit"]),
        "reference": of(report["reference"]["exit"]),
        "dynamic": None
        if dynamic is None
        else {
            "accuracy": dynamic["accuracy"]["test"],
            "units": dynamic["mean_units"],
            "macs": dynamic["mean_macs"],
            "certified": dynamic["certificate"] is not None,
        },
        "search": {key: report["search"][key] for key in (*_SEARCH, "stopped_by")},
    }


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def _checked(seeds: Sequence[int], options: Mapping[str, Any]) -> list[int]:
    for name in ("seed", "inplace"):
        if name in options:
            raise ConfigError(f"fit_seeds has no option {name!r}; pass seeds=[...]; each fit trains a copy")
    if "seed" in (options.get("overrides") or {}):
        raise ConfigError("fit_seeds has no field 'seed' to change (--set seed=...): seeds=[...] says it all")
    found = list(seeds)
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"seeds is {found!r}; give one or more, each once")
    for seed in found:  # now, and not after hours of the seeds before it
        replace_fields(FitConfig(), {"seed": seed})
    return found


def _stored_recipe(folder: Path, *, needed: bool) -> FitConfig | None:
    """The recipe of the runs below `folder`, as `asking.stored_recipe` finds that of one."""
    found = sorted(folder.glob(f"seed-*/{CONFIG}"))
    return stored_recipe(found[0].parent if found else folder, needed=needed)


def _marked(listener: Listener, seed: int) -> Listener:
    return lambda row: listener({**row, "seed": seed})
