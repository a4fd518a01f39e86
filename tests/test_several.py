"""Several seeds: a run for each, mean and spread, and going on where it stopped."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import odn_hybrid as odn
from odn_hybrid.errors import ConfigError, RunDirError
from odn_hybrid.several import summarise_seeds

Odn = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def several(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Seeds 3 and 5, killed in the middle of the second and gone on with from the folder alone."""
    out = tmp_path_factory.mktemp("several") / "out"
    tiny = {**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 1}}
    seen: list[int] = []

    def stop(row: dict[str, Any]) -> None:
        seen.append(row["seed"])
        if row["seed"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        odn.fit_seeds(**tiny, out=out, seeds=[3, 5], listener=stop)
    assert seen == [3] * (len(seen) - 1) + [5]
    assert json.loads((out / "seeds.json").read_text())["seeds"] == [3]
    before = (out / "seed-3" / "report.json").stat().st_mtime_ns
    found = odn.fit_seeds(out=out, seeds=[3, 5], resume=True, listener=lambda row: seen.append(row["seed"]))
    assert (out / "seed-3" / "report.json").stat().st_mtime_ns == before
    assert seen.count(3) == len(odn.load(out / "seed-3").history_)  # finished: not run again
    return out, found


def test_each_seed_is_a_run_like_any_other(several: tuple[Path, dict[str, Any]]) -> None:
    out, found = several
    assert json.loads((out / "seeds.json").read_text()) == {**found, "schema": 1}
    for row in found["runs"]:
        run = odn.load(out / row["path"])
        report = run.report_
        assert run.parts.config["recipe"]["seed"] == row["seed"]
        exits = {e["exit"]: e for e in report["exits"]}
        static = exits[report["static"]["exit"]]
        assert row["static"]["accuracy"] == static["accuracy"]["test"]
        assert (row["static"]["units"], row["static"]["macs"]) == (static["units"], static["macs_static"])
        assert row["search"]["train_macs"] == report["search"]["train_macs"]
    assert odn.load(out / "seed-3").report_["data"] != odn.load(out / "seed-5").report_["data"]


def test_mean_and_spread(several: tuple[Path, dict[str, Any]]) -> None:
    _, found = several
    for part in ("static", "reference"):
        values = [row[part]["accuracy"]["value"] for row in found["runs"]]
        spread = found["summary"][part]["accuracy"]
        assert spread["mean"] == pytest.approx(statistics.mean(values))
        assert spread["sd"] == pytest.approx(statistics.stdev(values))
        assert (spread["low"], spread["high"], spread["n"]) == (min(values), max(values), 2)
    assert sum(found["depths"].values()) == 2
    assert set(found["depths"]) == {str(row["static"]["units"]) for row in found["runs"]}


def test_one_seed_has_no_spread_and_a_missing_dynamic_model_no_figures() -> None:
    exit_row = {"exit": 1, "units": 2, "macs_static": 10.0, "accuracy": {"test": {"value": 0.5, "n": 4}}}
    report = {
        "model": "m", "data": "d", "exits": [exit_row], "static": {"exit": 1}, "reference": {"exit": 1},
        "dynamic": None, "search": {"epochs": 3, "train_macs": 5.0, "seconds": 1.0, "stopped_by": "rule"},
    }  # fmt: skip
    found = summarise_seeds({7: report})
    assert found["summary"]["static"]["accuracy"] == {
        "mean": 0.5, "sd": None, "low": 0.5, "high": 0.5, "n": 1
    }  # fmt: skip
    assert found["runs"][0]["dynamic"] is None and found["summary"]["dynamic"]["accuracy"] is None
    assert found["depths"] == {"2": 1}


def test_the_command_line_sums_up(several: tuple[Path, dict[str, Any]], odn: Odn, tmp_path: Path) -> None:
    out, found = several
    status, printed, _ = odn("fit", "--seeds", "3,5", "--resume", "--out", str(out), "--json")
    assert status == 0 and json.loads(printed) == found
    status, printed, told = odn("fit", "--seeds", "3,5", "--resume", "--out", str(out))
    assert status == 0 and "2 seeds" in printed and "± sd" in printed and str(out) in told
    mean = 100 * found["summary"]["static"]["accuracy"]["mean"]
    assert f"{mean:.2f}" in printed


def test_the_report_of_several_seeds(several: tuple[Path, dict[str, Any]], odn: Odn) -> None:
    out, found = several
    status, printed, _ = odn("report", str(out), "--json")
    assert status == 0 and {**json.loads(printed), "schema": 1} == {**found, "schema": 1}
    status, printed, told = odn("report", str(out))
    assert status == 0 and "2 seeds" in printed and "odn report OUT/seed-N" in told
    value = found["runs"][0]["static"]["accuracy"]
    assert f"[{100 * value['low']:.1f}, {100 * value['high']:.1f}]" in printed  # on one line
    status, _, told = odn("report", str(out), "--curves")
    assert status == 2 and "ask for the curves of one" in told
    status, printed, _ = odn("report", str(out / "seed-3"))
    assert status == 0 and "seeds" not in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0,x"], "--seeds '0,x': give whole numbers"),
        (["--seeds", "1,1"], "each once"),
        (["--seeds", "0,1", "--seed", "2"], "--seed or --seeds, not both"),
        (["--seeds", "0,1,-1"], "seed is -1; it must be 0 to 2147483647"),
        (["--seeds", "-1"], "seed is -1; it must be 0 to 2147483647"),
    ],
)
def test_impossible_seeds_are_refused(arguments: list[str], says: str, odn: Odn, tmp_path: Path) -> None:
    status, printed, told = odn("fit", *arguments, "--out", str(tmp_path / "out"))
    assert status == 2 and printed == "" and says in told
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_repeated_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    for option in ({"seed": 1}, {"inplace": True}):
        with pytest.raises(ConfigError, match="fit_seeds has no option"):
            odn.fit_seeds(**tiny, out=tmp_path / "out", **option)
    with pytest.raises(ConfigError, match="no field 'seed' to change"):
        odn.fit_seeds(**{**tiny, "overrides": {**tiny["overrides"], "seed": 5}}, out=tmp_path / "out")
    with pytest.raises(RunDirError, match="holds no run to go on with"):
        odn.fit_seeds(out=tmp_path / "out", resume=True)
    with pytest.raises(ConfigError, match="give one or more"):
        odn.fit_seeds(**tiny, out=tmp_path / "out", seeds=[])


def test_finished_seeds_are_not_overwritten(
    several: tuple[Path, dict[str, Any]], tiny: dict[str, Any]
) -> None:
    out, _ = several
    tiny = {**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 1}}
    with pytest.raises(RunDirError, match="holds a finished run"):
        odn.fit_seeds(**tiny, out=out, seeds=[3, 5])
